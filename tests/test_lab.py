"""The lab's data, rewards and comparisons; its models and training are walked by test_notebooks."""

from __future__ import annotations

import fcntl
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from labkit import files
from labkit.chain.rewards import RewardSpec
from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.errors import LabError
from labkit.files import lock, locked, unlock
from labkit.lab import Lab, ModelRef
from labkit.params import DEFAULTS
from labkit.runs.results import evaluation_folder
from labkit.scoring.baselines import best_constant, constant_ious
from labkit.scoring.predictions import read_predictions
from labkit.stages import evaluate as evaluation
from labkit.stages import harvest as distill
from labkit.stages.completions import question_digest
from labkit.stages.evaluate import Evaluation, draw_clips
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import JOINED, UNPAID, Rollout, RolloutStore

SMALL = DEFAULTS.replace(world_train=2, world_validation=1, world_test=2)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_share_a_world_and_limits_cut_it(project):
    lab = Lab.open(SMALL)
    moments = lab.moments("train")
    clips = sorted((project / "outputs").glob("world-*/clips/*.mp4"))
    assert len(clips) == 5
    before = [clip.stat().st_mtime_ns for clip in clips]
    other = Lab.open(SMALL.replace(run="y", train_limit=3))
    assert other.moments("train") == moments[:3]
    assert [clip.stat().st_mtime_ns for clip in clips] == before
    assert lab.manifest["data"]["train"] == other.manifest["data"]["train"]


def test_another_task_asks_about_the_same_clips_and_its_data_are_told_apart(project):
    lab = Lab.open(SMALL)
    plain = lab.moments("test")
    clips = {clip: clip.stat().st_mtime_ns for clip in (project / "outputs").glob("world-*/clips/*.mp4")}
    gqa = Lab.open(SMALL.replace(run="gqa", task="gqa", model="embedded-gqa"))
    asked = gqa.moments("test")
    assert {clip: clip.stat().st_mtime_ns for clip in (project / "outputs").glob("world-*/clips/*.mp4")} == clips
    assert [moment.windows for moment in asked] == [moment.windows for moment in plain]
    assert all(len(moment.options) == 4 for moment in asked) and not any(moment.options for moment in plain)
    assert gqa.manifest["data"]["test"] != lab.manifest["data"]["test"]


def test_in_a_folder_of_data_the_moments_say_whether_there_are_options(project):
    folder = project / "data"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(b"film")
    moment = Moment("q", str(folder / "v.mp4"), "what opens?", (Span(5, 10),), 20.0, options=("a", "b"), choice=0)
    for split in ("train", "validation", "test"):
        write_moments([moment], folder / f"{split}.jsonl")
    for task in ("grounding", "gqa"):
        assert Lab.open(DEFAULTS.replace(run=task, data="data", task=task)).moments("test") == [moment]


def test_the_right_option_is_paid_alike_in_both_stages(project):
    lab = Lab.open(DEFAULTS.replace(option_weight=0.25))
    assert lab.rewards().weights["option"] == lab.rewards(final=True).weights["option"] == 0.25


def test_a_clip_that_has_gone_is_named(project):
    lab = Lab.open(SMALL)
    Path(lab.moments("test")[0].video).unlink()
    with pytest.raises(LabError, match="is not there"):
        lab.moments("test")


def test_the_defaults_of_a_spec_are_those_of_the_parameters(project):
    lab = Lab.open(DEFAULTS)
    assert lab.rewards() == RewardSpec() == RewardSpec.of(DEFAULTS)


def test_the_final_stage_has_weights_of_its_own(project):
    lab = Lab.open(DEFAULTS.replace(final_answer_weight=3.0, final_progress_weight=0.25))
    first, final = lab.rewards(), lab.rewards(final=True)
    changed = {name: (first.weights[name], final.weights[name]) for name in first.weights}
    assert changed["answer"] == (2.0, 3.0) and changed["progress"] == (0.75, 0.25)
    assert all(one == other for name, (one, other) in changed.items() if name not in ("answer", "progress"))


def test_a_score_has_baselines_fitted_on_train_and_a_file_for_labkit_score(project):
    folder = project / "data"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(b"film")
    windows = {"train": Span(5, 10), "validation": Span(5, 10), "test": Span(5, 20)}
    for split, window in windows.items():
        moment = Moment(f"{split}1", str(folder / "v.mp4"), "a door opens", (window,), 20.0)
        write_moments([moment], folder / f"{split}.jsonl")
    lab = Lab.open(DEFAULTS.replace(data="data"))
    row = {"figures": {}, "predictions": [["test1", "<think></think><answer>5 to 8</answer>", "no_anchor"]]}
    (lab.folder("01_grpo") / "base-greedy.json").write_text(json.dumps(row))
    score = lab.score("base")
    assert score.figures["miou"] == pytest.approx(0.2)
    assert score.baselines["best constant"]["miou"] == pytest.approx(1 / 3)  # 5 to 10 s against 5 to 20 s
    assert score.protocol.settings["fps"] == DEFAULTS.fps
    written = read_predictions(lab.folder("05_analysis") / score.protocol.predictions)
    assert written.rows["test1"].text == row["predictions"][0][1]
    assert written.settings["decoding"] == "greedy"


def test_a_model_that_has_not_come_to_be_names_its_notebook(project):
    lab = Lab.open(DEFAULTS)
    with pytest.raises(LabError, match="run notebooks/03_sft.ipynb first"):
        lab.policy("sft")
    with pytest.raises(LabError, match="base has not been evaluated .* run notebooks/01_grpo.ipynb first"):
        lab.read_evaluation("base")
    assert not list((project / "outputs").glob("world-*")), "it says so before it writes the world"


@pytest.mark.parametrize(
    ("missing", "joined", "works", "reason"),
    [
        (0, True, False, "nothing is left to do"),
        (0, False, False, "killed before its parts were joined, which needs no model"),
        (1, False, True, "one part is still to be sampled"),
        (3, False, True, "nothing is there"),
    ],
)
def test_workers_start_only_where_traces_are_missing(missing, joined, works, reason, project, monkeypatch):
    monkeypatch.setattr(distill, "PROMPTS_PER_PART", 3)
    lab = Lab.open(SMALL.replace(processes=2, harvest_samples=2))
    moments, store, calls = lab.harvested_moments(), lab.rollouts("distill"), []
    parts = [moments[begin : begin + 3] for begin in range(0, len(moments), 3)]
    assert len(parts) == 3

    def write(begin: int, end: int) -> None:
        for step, asked in enumerate(parts[begin:end], begin + 1):
            store.write(step, [sampled(step, moment.qid, sample) for moment in asked for sample in (0, 1)])

    def work(task: str, *_: object, **__: object) -> None:
        calls.append(task)
        write(0, missing)

    write(missing, 3)
    if joined:
        store.compact()
    monkeypatch.setattr(lab, "_work", work)
    harvest = lab.harvest(ModelRef("grpo", "embedded"))
    assert calls == ["harvest"] * works, reason
    assert harvest.size == 2 * len(moments)
    assert [path.name for path in store.folder.iterdir()] == [JOINED]


def sampled(step: int, qid: str, sample: int) -> Rollout:
    return Rollout(
        run="x", stage="distill", step=step, qid=qid, sample=sample, seed=0, checkpoint="grpo", text="", status="no_think",
        reward_format=0.0, reward_answer=0.0, reward_anchors=0.0, reward_progress=0.0, total=0.0, advantage=0.0,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


def test_a_harvest_that_kept_nothing_says_what_to_change(project):
    with pytest.raises(LabError, match="the harvest kept no trace.*lower min_answer_iou"):
        Lab.open(DEFAULTS).train_sft(None, [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("traces", "processes", "steps", "line", "reason"),
    [
        (10, 4, 4, "10 traces are fewer than sft_batch, 24; 4 processes take 8 a step, 4 times", "3 x 10 / 8"),
        (10, 1, 3, "", "one process takes all ten"),
        (30, 4, 4, "", "enough for a batch: 3 x 30 / 24"),
    ],
)
def test_fewer_traces_than_a_batch_are_said_and_counted(
    traces, processes, steps, line, reason, project, monkeypatch, capsys
):
    lab = Lab.open(SMALL.replace(processes=processes, sft_epochs=3.0, sft_batch=24))

    def work(task, policy, on_event, **arguments):
        assert task == "sft" and len(arguments["traces"]) == traces
        on_event(0, {"row": {"step": 1, "loss": 0.5}})
        on_event(0, {"row": {"step": steps, "loss": 0.25}})
        (lab.folder("03_sft") / "final").mkdir()
        (lab.folder("03_sft") / "result.json").write_text(json.dumps({"steps": steps, "history": [], "seconds": 1.0}))

    monkeypatch.setattr(lab, "_work", work)
    policy = ModelRef("base", "embedded") if processes > 1 else None
    kept = [SimpleNamespace(qid=f"q{i}", text="t") for i in range(traces)]
    assert lab.train_sft(policy, kept).steps == steps  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert f"sft: {steps} of {steps}" in out, reason
    assert line in out and ("fewer" in out) == bool(line)
    assert lab.train_sft(policy, kept).steps == steps and "fewer" not in capsys.readouterr().out  # type: ignore[arg-type]


def put_evaluation(lab: Lab, miou: float, text: str = "text") -> None:
    rollouts = [
        Rollout(
            run=lab.params.run, stage="grpo_final", step=0, qid=moment.qid, sample=0, seed=0, checkpoint="m", text=text,
            status="ok", **UNPAID, prompt_tokens=1, completion_tokens=1, finished=True, question=question_digest(moment),
        )
        for moment in lab.moments("test")
    ]  # fmt: skip
    lab.cached_json("04_grpo_final", "grpo_final-greedy", lambda: {"figures": {"miou": miou}})
    RolloutStore(evaluation_folder(lab.path, "04_grpo_final", "grpo_final-greedy")).write(0, rollouts[::-1], batch="a")


def test_other_runs_stand_beside_this_one_when_they_share_the_test_split(project):
    put_evaluation(Lab.open(SMALL.replace(run="other")), 0.7)
    put_evaluation(Lab.open(SMALL.replace(run="elsewhere", world_seed=1)), 0.9)
    lab = Lab.open(SMALL.replace(compare=("outputs/other",)))
    qids = [moment.qid for moment in lab.moments("test")]
    other = lab.compared_runs()["other"]
    assert other.figures == {"greedy": {"miou": 0.7}} and other.sampled == []
    assert [(each.run, each.qid) for each in other.greedy] == [("other", qid) for qid in qids]
    lab = Lab.open(SMALL.replace(compare=("outputs/elsewhere",)))
    with pytest.raises(LabError, match="elsewhere' was tested on other data"):
        lab.compared_runs()


def test_a_compared_run_may_have_been_tested_on_fewer_moments_of_the_split(project):
    put_evaluation(Lab.open(SMALL.replace(run="fewer", test_limit=2)), 0.7)
    lab = Lab.open(SMALL.replace(compare=("outputs/fewer",)))
    qids = [moment.qid for moment in lab.moments("test")]
    assert [each.qid for each in lab.compared_runs()["fewer"].greedy] == qids[:2] != qids


def test_an_evaluation_of_the_version_before_is_read(project):
    """It kept (qid, text, status) beside the figures."""
    lab = Lab.open(SMALL)
    rows = [["q1", "<think>", "cut_off"], ["q0", "text", "no_answer"]]
    for decoding in ("greedy", "sampled"):
        lab.cached_json("03_sft", f"sft-{decoding}", lambda: {"figures": {"miou": 0.5}, "predictions": rows})
    found = lab.read_evaluation("sft")
    assert found.figures == {"greedy": {"miou": 0.5}, "sampled": {"miou": 0.5}}
    assert [(each.qid, each.text, each.status) for each in found.greedy] == [tuple(row) for row in rows]
    assert {(each.run, each.stage, each.step) for each in found.sampled} == {(lab.params.run, "sft", 0)}
    assert [each.finished for each in found.greedy] == [False, True]
    assert math.isnan(found.greedy[0].total)


@pytest.mark.parametrize(
    ("share", "there", "asked", "why"),
    [
        (0.25, {}, 4, "one clip of two, by its queries"),
        (1.0, {}, 8, "all"),
        (
            0.25,
            {"blind-black": {"miou": 0.5, "n": 8.0}},
            8,
            "the other kind as many as the first, of an earlier labkit",
        ),
        (
            0.25,
            {"blind-black": {"miou": 0.5, "n": 8.0}, "blind-another": {"miou": 0.25, "n": 8.0}},
            8,
            "nothing is asked",
        ),
    ],
)
def test_frames_are_taken_away_over_whole_clips_whose_own_figures_stand_beside(
    project, monkeypatch, share, there, asked, why
):
    monkeypatch.setattr(evaluation, "BLIND_QUERIES", 1)
    lab, told = Lab.open(SMALL.replace(blind_share=share)), []
    # IoU of an answer that is the whole clip is the part of the clip that the moment takes.
    put_evaluation(lab, 0.7, "<answer>0.0 to 24.0</answer>")
    for name, figures in there.items():
        lab.cached_json("05_analysis", name, lambda figures=figures: {"figures": figures})

    def work(self, task, policy, on_event, **arguments):
        told.append((arguments["queries"], [part[0] for part in arguments["parts"]]))
        for name, _, _ in arguments["parts"]:
            self.cached_json("05_analysis", name, lambda: {"figures": {"miou": 0.25, "n": arguments["queries"]}})

    monkeypatch.setattr(Lab, "_work", work)
    found = lab.ablate_frames(ModelRef("grpo_final", "m"))
    missing = [name for name in ("blind-black", "blind-another") if name not in there]
    assert told == ([(asked, missing)] if missing else []), why
    drawn = draw_clips(lab.moments("test"), asked)
    assert found.queries == len(drawn) == asked
    assert found.seeing == pytest.approx(
        sum(sum(span.length for span in moment.windows) / 24 for moment in drawn) / asked
    )
    assert found.blind == {"black": 0.5 if there else 0.25, "another clip's": 0.25}
    best = best_constant([m.targets for m in lab.moments("train")], [m.duration for m in lab.moments("train")])
    ious = constant_ious(best, [moment.targets for moment in drawn], [moment.duration for moment in drawn])
    assert found.constant == pytest.approx(sum(ious) / asked)


def test_an_evaluation_is_read_once_and_again_when_something_is_added(project):
    lab = Lab.open(SMALL)
    put_evaluation(lab, 0.7)
    first = lab.read_evaluation("grpo_final")
    assert lab.read_evaluation("grpo_final") is first
    added = {"figures": {"miou": 0.5}, "predictions": [["q0", "text", "no_answer"]]}
    lab.cached_json("04_grpo_final", "grpo_final-sampled", lambda: added)
    again = lab.read_evaluation("grpo_final")
    assert again.figures == {"greedy": {"miou": 0.7}, "sampled": {"miou": 0.5}} and len(again.sampled) == 1
    assert [each.text for each in again.greedy] == [each.text for each in first.greedy]


def test_moments_of_one_content_are_read_once(project):
    lab = Lab.open(SMALL)
    first, again = lab.moments("test"), lab.moments("test")
    assert first is not again and all(a is b for a, b in zip(first, again, strict=True)), "a list may be changed"
    other = Lab.open(SMALL.replace(run="y", test_limit=2)).moments("test")
    assert [a is b for a, b in zip(first, other, strict=False)] == [True, True]
    file = next((project / "outputs").glob("world-*/test.jsonl"))
    file.write_text("\n".join(file.read_text().splitlines()[:3]))
    with pytest.raises(LabError, match="has changed since run"):
        lab.moments("test")
    assert len(Lab.open(SMALL.replace(run="z")).moments("test")) == 3


def test_decodings_over_the_same_frames_share_their_prompts(project, monkeypatch):
    lab, asked = Lab.open(SMALL), []
    monkeypatch.setattr(Lab, "source", lambda self, policy, split, frames: [frames])
    monkeypatch.setattr(evaluation, "read_evaluation", lambda folder, moments: Evaluation({}, []))
    monkeypatch.setattr(
        evaluation,
        "answer",
        lambda policy, source, moments, **how: asked.append((source, how["greedy"], len(moments))),
    )
    parts = [("a", "greedy", "own"), ("b", "sampled", "own"), ("c", "greedy", "black"), ("d", "greedy", "another")]
    lab.run_evaluation(lab.load("base"), print, stage="base", notebook="01_grpo", parts=parts, queries=1)
    assert [(source[0], greedy) for source, greedy, _ in asked] == [
        ("own", True), ("own", False), ("black", True), ("another", True)
    ]  # fmt: skip
    assert asked[0][0] is asked[1][0] and {count for *_, count in asked} == {4}, (
        "one clip of two, with all its queries"
    )


def test_a_harvester_is_trained_first_and_the_model_stays_the_base(project):
    lab = Lab.open(SMALL.replace(harvester="embedded-gqa"))
    assert (lab.policy("base").name, lab.policy("harvester").name) == ("embedded-2", "embedded-gqa")
    assert Lab.open(SMALL.replace(run="y")).policy("harvester").name == "embedded-2", (
        "where none is named, the base is"
    )


def test_a_stage_that_stopped_by_condition_ends_its_progress_with_the_reason(project, monkeypatch, capsys):
    lab = Lab.open(SMALL)
    history = [{"step": step, "anchor_rate": 0.96, "strict_share": 0.7, "total": 1.0} for step in range(1, 8)]

    def work(self, task, policy, on_event, **arguments):
        for row in history:
            on_event(0, {"row": row})
        result = GrpoResult(7, "condition", history, 1.0)
        (self.folder("01_grpo") / "final").mkdir()
        (self.folder("01_grpo") / "result.json").write_text(json.dumps(asdict(result)))

    monkeypatch.setattr(Lab, "_work", work)
    assert lab.train_grpo("grpo", ModelRef("base", "b")).steps == 7
    assert capsys.readouterr().out.splitlines()[-1] == (
        "grpo: 7 of 150, 0 s; stopped by condition: in the last 5 steps 96.0 % of chains had anchors and 70.0 % narrowed"
    )


def test_the_model_of_another_stage_is_not_measured_as_a_stages(project):
    """Such as the base, which the notebook still holds when another process has ended the stage."""
    lab = Lab.open(SMALL)
    (lab.folder("01_grpo") / "start.json").write_text(json.dumps({"final": "0123456789abcdef"}))
    with pytest.raises(
        LabError, match=r"'embedded-2' has not the weights that .*01_grpo' ended with .* with lab.policy"
    ):
        lab.evaluate("grpo", lab.policy("base"))
    lab = Lab.open(SMALL.replace(processes=2))
    with pytest.raises(LabError, match=r"the model of 'base' is not that of 'grpo'; give lab.policy\('grpo'\)"):
        lab.evaluate("grpo", ModelRef("base", "embedded-2"))


def test_a_cell_run_by_itself_waits_for_no_begin_to_keep_others_out(project, monkeypatch):
    """Two notebooks on one run, of which neither has claimed it, or whose stage has ended."""
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.2)
    lab, calls = Lab.open(SMALL), []

    def work(lab, policy, on_event, *, stage, notebook, parts, queries):
        calls.append(notebook)
        with (lab.path / ".stage.lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for what, *_ in parts:
            lab.cached_json("01_grpo", what, lambda: {"figures": {}, "predictions": []})

    monkeypatch.setattr(Lab, "run_evaluation", work)
    with (lab.path / ".stage.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("a notebook, process 1 on node7")
        other.flush()
        with pytest.raises(LabError, match="is in use by a notebook, process 1 on node7; wait until it has ended"):
            lab.evaluate("base", None)  # type: ignore[arg-type]
    assert not calls
    lab.evaluate("base", None)  # type: ignore[arg-type]
    assert calls == ["01_grpo"]
    with (lab.path / ".stage.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free again


def test_a_lock_that_was_held_before_is_held_behind_the_block(tmp_path):
    lock(tmp_path / "lock", "a notebook")
    with locked(tmp_path / "lock", "a notebook"):
        pass
    with (tmp_path / "lock").open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unlock(tmp_path / "lock")


def test_adapters_begin_by_the_runs_seed_and_by_who_is_adapted(project):
    def adapter(stage, seed, drawn):
        torch.manual_seed(drawn)  # whatever else a notebook has drawn
        policy = Lab.open(SMALL.replace(run=f"s{seed}", seed=seed, lora_rank=2)).load(stage)
        return torch.cat([p.flatten() for name, p in policy.model.named_parameters() if "lora_A" in name])

    one = adapter("base", 0, drawn=1)
    assert torch.equal(one, adapter("base", 0, drawn=2))
    assert not torch.equal(one, adapter("base", 1, drawn=1))
    assert not torch.equal(one, adapter("harvester", 0, drawn=1)), "stage 1 and SFT begin apart"


def test_the_most_improved_query_is_held_against_the_first_model_that_was_evaluated(project, monkeypatch):
    folder = project / "data"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(b"film")
    moments = [Moment(f"q{k}", str(folder / "v.mp4"), "a door opens", (Span(5, 10),), 20.0) for k in range(2)]
    for split in ("train", "validation", "test"):
        write_moments(moments, folder / f"{split}.jsonl")
    lab = Lab.open(DEFAULTS.replace(data="data"))
    with pytest.raises(LabError, match="base has not been evaluated"):
        lab.most_improved_query()
    answers = {"grpo": ("5 to 10", "5 to 6"), "sft": ("1 to 2", "1 to 2"), "grpo_final": ("5 to 10", "5 to 10")}
    for notebook, (stage, texts) in zip(("01_grpo", "03_sft", "04_grpo_final"), answers.items(), strict=True):
        rows = [[f"q{k}", f"<think></think><answer>{text}</answer>", "no_anchor"] for k, text in enumerate(texts)]
        (lab.folder(notebook) / f"{stage}-greedy.json").write_text(json.dumps({"figures": {}, "predictions": rows}))
    read = []
    found = Lab.read_evaluation
    monkeypatch.setattr(Lab, "read_evaluation", lambda self, stage: (read.append(stage), found(self, stage))[1])
    assert lab.most_improved_query() == "q1" and read == ["grpo", "grpo_final"]
