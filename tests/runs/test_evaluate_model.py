"""Any model on any moments, outside of a run: interrupted, resumed, shared, refused; and on the real video."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import yaml

import labkit
from labkit.chain.spans import Span
from labkit.cli import main
from labkit.data.moments import Moment, read_moments, write_moments
from labkit.data.usable_moments import Moments
from labkit.embedded.model import write_untrained
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.model import load_policy, save_policy
from labkit.runs.evaluate_model import REAL_MODEL, evaluate_model, params_for
from labkit.runs.workbench import EvaluationBench
from labkit.scoring.score_table import published_figures
from labkit.stages import evaluate as stage

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "real"
VIDEO = REAL / "videos" / "OHOFG.mp4"
CHARADES = REAL / "charades_sta" / "charades_sta_test.txt"
WORLD = "world-2/test"
SMALL = {"world_train": 1, "world_validation": 1, "world_test": 3, "eval_batch": 4}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose run `r` has been evaluated as its notebook does it, and a stand-in checkpoint."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "params"):
        (folder / name).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_untrained(folder / "standin", "qwen2_5_vl")
        yield folder


@pytest.fixture(scope="module")
def usual(project):
    """What `lab.evaluate` finds of the base, and the test split."""
    lab = labkit.Lab.open(Params(run="r", sampled_evaluation=False, **SMALL))
    return lab.evaluate("base", lab.policy()), lab.moments("test")


@pytest.fixture
def batches(monkeypatch):
    """The qids of each batch that a model is really asked; `stop` interrupts before the batch of that number."""

    class Batches(list):
        stop = math.inf

    found, generate = Batches(), stage.generate

    def watched(policy, prompts, *args, **kwargs):
        if len(found) >= found.stop:
            raise KeyboardInterrupt
        found.append([prompt.qid for prompt in prompts])
        return generate(policy, prompts, *args, **kwargs)

    monkeypatch.setattr(stage, "generate", watched)
    return found


def texts(evaluation):
    return {rollout.qid: rollout.text for rollout in evaluation}


def test_interrupted_and_resumed_it_is_what_the_lab_measures(project, usual, batches, monkeypatch):
    measured, moments = usual
    batches.stop = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate_model("embedded-2", WORLD, overrides=SMALL, folder="outputs/again")
    assert len(batches) == 2
    batches.stop = math.inf
    got = evaluate_model("embedded-2", WORLD, overrides=SMALL, folder="outputs/again")
    assert sorted(qid for batch in batches for qid in batch) == sorted(moment.qid for moment in moments), "each once"
    assert texts(got.evaluation.rollouts) == texts(measured.greedy)
    assert repr(got.evaluation.figures) == repr(stage.evaluate_answers(
        {rollout.qid: rollout for rollout in measured.greedy}, moments).figures)  # fmt: skip
    assert got.evaluation.figures["miou"] == measured.figures["greedy"]["miou"] > 0
    assert got.score.figures["miou"] == pytest.approx(got.evaluation.figures["miou"])
    assert got.score.protocol.settings["model"] == "embedded-2" and got.published is None
    monkeypatch.setattr(EvaluationBench, "load", lambda *_: pytest.fail("nothing is left to ask"))
    assert str(evaluate_model("embedded-2", WORLD, overrides=SMALL, folder="outputs/again")) == str(got)
    assert labkit.score(got.predictions, moments).figures == got.score.figures, "the file is what `labkit score` takes"
    assert len(labkit.explore(got.predictions, moments)) == len(moments)


def test_a_higher_limit_asks_only_the_rest_and_other_parameters_are_refused(project, usual, batches):
    world = str(project / "outputs/world-2-1-1-3-seed0/test.jsonl")
    first = evaluate_model("standin", world, limit=3, folder="outputs/limited", overrides={"max_new_tokens": 8})
    assert "the first 3 of" in first.score.protocol.moments and first.score.protocol.rows == 3
    asked = sum(map(len, batches))
    evaluate_model("standin", world, limit=5, folder="outputs/limited", overrides={"max_new_tokens": "8"})
    assert (asked, sum(map(len, batches))) == (3, 5)
    with pytest.raises(LabError, match=r"other parameters \(max_new_tokens: there 8, here 9\).*-o"):
        evaluate_model("standin", world, limit=5, folder="outputs/limited", overrides={"max_new_tokens": 9})
    noted = project / "outputs/limited/evaluation.json"
    earlier = json.loads(noted.read_text())
    del earlier["total_pixels"]  # a folder that is older than the parameter
    noted.write_text(json.dumps(earlier))
    with pytest.raises(LabError, match="total_pixels: there 0, here 9000000"):
        tighter = {"max_new_tokens": 8, "total_pixels": 9_000_000}
        evaluate_model("standin", world, limit=5, folder="outputs/limited", overrides=tighter)
    write_untrained(project / "other", "qwen2_5_vl", seed=1)
    shutil.rmtree(project / "standin")
    shutil.move(project / "other", project / "standin")
    with pytest.raises(
        LabError, match="another policy or decoding"
    ):  # the folder's name is the same, the weights are not
        evaluate_model("standin", world, limit=6, folder="outputs/limited", overrides={"max_new_tokens": 8})


def test_a_prompt_in_a_file_is_asked_and_an_edited_one_is_another_parameter(project, usual, capsys):
    _, moments = usual
    write_untrained(project / "prompted", "qwen2_5_vl")
    write_moments(moments[:1], project / "one.jsonl")
    (project / "mine.txt").write_text("When does {query} happen?")
    terms = ["evaluate", "prompted", "--moments", "one.jsonl", "--prompt", "mine.txt", "-p", "max_new_tokens", "8"]
    assert main([*terms, "-o", "outputs/prompted", "--json"]) == 0
    said = capsys.readouterr()
    settings = json.loads(said.out)["protocol"]["settings"]
    assert settings["prompt"].startswith("mine.txt (") and "evaluation, greedy: 1 of 1" in said.err
    (project / "mine.txt").write_text("Where in this video is {query}?")
    assert main([*terms, "-o", "outputs/prompted"]) == 2
    assert "other parameters (prompt: there mine.txt (" in capsys.readouterr().err


def test_a_prompt_that_does_not_fit_the_moments_is_refused_before_the_model_loads(project, usual, monkeypatch):
    _, moments = usual
    write_moments([dataclasses.replace(moments[0], options=("a", "b"), choice=0)], project / "choice.jsonl")
    (project / "plain.txt").write_text("When does {query} happen?")
    monkeypatch.setattr(EvaluationBench, "load", lambda *_: pytest.fail("it was loaded"))
    with pytest.raises(LabError, match="options"):
        evaluate_model("embedded-2", "choice.jsonl", overrides={"prompt": "plain.txt"}, folder="outputs/choice")


@pytest.mark.slow
def test_two_processes_answer_what_one_does(project, usual):
    measured, moments = usual
    got = evaluate_model("embedded-2", WORLD, overrides=SMALL | {"processes": 2}, folder="outputs/shared")
    assert texts(got.evaluation.rollouts) == texts(measured.greedy)
    assert (got.folder / "logs" / "rank-1.txt").is_file()


def test_an_adapter_is_evaluated_and_its_missing_base_is_named(project, usual, capsys):
    _, moments = usual
    write_untrained(project / "base", "qwen2_5_vl", seed=2)
    policy = load_policy(str(project / "base"), lora_rank=2, device="cpu")
    save_policy(policy, project / "adapter")
    write_moments(moments[:2], project / "two.jsonl")
    got = evaluate_model("adapter", "two.jsonl", overrides={"max_new_tokens": 8})
    assert got.folder == project / "outputs/evaluate-adapter-two" and got.score.protocol.rows == 2
    shutil.rmtree(project / "base")
    assert main(["evaluate", "adapter", "--moments", "two.jsonl"]) == 2
    said = capsys.readouterr().err
    assert str(project / "base") in said and "adapter_config.json" in said and "put that model there" in said


@pytest.mark.slow
def test_the_real_queries_of_the_real_video_in_one_command(project, capsys):
    if not VIDEO.exists():
        pytest.skip(f"THE REAL VIDEO IS ABSENT ({VIDEO}): the evaluation of real queries was NOT tested")
    words = [
        "evaluate",
        "standin",
        "--moments",
        str(CHARADES),
        "--videos",
        str(VIDEO.parent),
        "--present",
        "-o",
        "outputs/six",
    ]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    for expected in ("the 6 of 3,720", "each is another protocol", "TAR-TVG 7B", "max_new_tokens 64", "labkit score"):
        assert expected in said
    rows = [json.loads(line) for line in (project / "outputs/six/predictions.jsonl").read_text().splitlines()]
    assert rows[0]["settings"]["fps"] == 2.0 and len(rows) == 7
    assert {moment.video for moment in read_moments(project / "outputs/six/moments.jsonl")} == {str(VIDEO)}


@pytest.fixture(scope="module")
def bad(project):
    folder = project / "bad"
    (folder / "videos").mkdir(parents=True)
    (folder / "hollow").mkdir()
    (folder / "hollow/config.json").write_text("{}")
    moment = Moment("q", str(folder / "videos/gone.mp4"), "a door opens", (Span(1, 2),), 8.0, source="charades-sta")
    write_moments([moment], folder / "lost.jsonl")
    (folder / "lost.csv").write_text("id,length\n")
    return folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./no/model", "--moments", "lost.jsonl"], ["no/model", "not a directory", "give a folder"]),
        (["bad/hollow", "--moments", "lost.jsonl"], ["hollow", "no weights", "take another"]),
        (["embedded", "--moments", "charade-sta/test"], ["charade-sta/test", "did you mean 'charades-sta/test'?"]),
        (["embedded", "--moments", "lost.jsonl", "--videos", "no/films"], ["'no/films' is not a folder"]),
        (["embedded", "--moments", "bad/lost.jsonl"], ["gone.mp4", "0 of the videos are there", "--videos DIR"]),
        (
            ["embedded", "--moments", "bad/lost.jsonl", "--videos", "bad/videos"],
            ["gone.mp4", "bad/videos", "--videos DIR"],
        ),
        (["embedded", "--moments", "bad/lost.jsonl", "--present"], ["none of the videos", "gone.mp4", "--videos DIR"]),
        (["embedded-2", "--moments", WORLD, "--prompt", "ancors"], ["'ancors'", "anchors"]),
        (["embedded-2", "--moments", WORLD, "-p", "max_frame", "8"], ["max_frame", "did you mean 'max_frames'?"]),
        (["embedded-2", "--moments", WORLD, "--limit", "-1"], ["limit = -1", "0 for all"]),
        (["embedded-2", "--moments", WORLD, "-o", "bad"], ["bad' is not empty", "-o"]),
    ],
)
def test_bad_input_is_one_error_that_names_the_thing_and_the_next_step(bad, usual, capsys, words, said):
    words = [str(bad / word) if word == "lost.jsonl" else word for word in words]
    assert (
        main(["evaluate", *words, *(each for name, value in SMALL.items() for each in ("-p", name, str(value)))]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("labkit: ") and all(each in error for each in said), error


def test_what_a_published_model_is_asked_with_is_what_its_params_file_says():
    values = yaml.safe_load((ROOT / "params/qwen2.5-vl-3b-lora.yaml").read_text())
    assert {name: values[name] for name in REAL_MODEL} == dict(REAL_MODEL)
    params = params_for("Qwen/Qwen2.5-VL-3B-Instruct", {"max_frames": "16"})
    assert (params.prompt, params.max_new_tokens, params.max_frames) == ("anchors", 512, 16)
    assert params_for("embedded", {}).prompt == "query"


def test_published_figures_have_a_protocol_and_a_source_each_and_stand_beside_one_benchmark_alone():
    benchmarks = yaml.safe_load((ROOT / "labkit/scoring/published.yaml").read_text())
    rows = [row for each in benchmarks.values() for row in each["rows"]]
    assert all(row["protocol"] and set(row) & {"miou", "r1@0.5"} for row in rows)
    place = re.compile(r"arXiv \d{4}\.\d{5}|\w+\.(com|org)/\w|\w+'s (project page|table of )")
    assert [row["read in"] for row in rows if not place.search(row["read in"])] == [], "a place that can be looked up"
    assert all(0 < row[name] < 100 for row in rows for name in row if name == "miou" or name.startswith("r1"))
    mixed = [Moment(f"q{k}", "/v/a.mp4", "x", (Span(0, 1),), 9.0, source=name) for k, name in enumerate(benchmarks)]
    assert published_figures(mixed) is None and published_figures(mixed[:1]) is not None
    sta = [moment for moment in mixed if moment.source == "charades-sta"]
    assert (
        published_figures(Moments(sta, 3720, [], "charades-sta/test (/train/test.txt), the first 1 of 3,720"))
        is not None
    )
    assert (
        published_figures(Moments(sta, 1, [], "charades-sta/train (/v/sta_train.txt), the first 1 of 12,404")) is None
    )
    assert published_figures(Moments(sta, 12_408, [], "Charades-STA txt (/v/mine.txt)")) is None, (
        "more than its test split has"
    )
