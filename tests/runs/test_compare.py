"""Runs beside each other: over seeds, paired, with the parameters that differ, and everything else by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.cli import main
from labkit.data.moments import Moment, write_moments
from labkit.errors import LabError
from labkit.lab import Lab
from labkit.params import DEFAULTS
from labkit.runs.compare import compare_runs
from labkit.runs.results import evaluation_folder
from labkit.runs.run import Run
from labkit.runs.settings import differences
from labkit.scoring.bootstrap import spread_over_seeds
from labkit.stages.completions import question_digest
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore
from labkit.views import over_seeds
from tests.runs.test_budget import ended, sampled

EXACT, HALF = "<answer>5 to 10</answer>", "<answer>5 to 7.5</answer>"
"""Answers of IoU 1 and 0.5 to every query here."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("notebooks", "params", "data"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    moments = []
    for number in range(4):
        video = tmp_path / "data" / f"{number}.mp4"
        video.write_bytes(b"film")
        moments.append(Moment(f"q{number}", str(video), "a door opens", (Span(5, 10),), 20.0))
    for split in ("train", "validation", "test"):
        write_moments(moments, tmp_path / "data" / f"{split}.jsonl")
    return tmp_path


def make_run(name: str, miou: float, texts: str = EXACT, stages: int = 5, **changed: Any) -> Lab:
    """A run whose stages are finished, as far as `stages`, with a base of mIoU 0.3 and a final model of `miou`."""
    lab = Lab.open(DEFAULTS.replace(run=name, data="data", **changed))
    made = {"01_grpo": {"base": {"greedy": {"n": 4.0, "miou": 0.3}}}, "04_grpo_final": {}}
    for stage in ("01_grpo", "02_distill", "03_sft", "04_grpo_final", "05_analysis")[:stages]:
        Run.start(lab, stage)  # that of the lab seeds torch, too
        figures = {"n": 4.0, "miou": miou, "r1@0.5": 1.0, "anchor_rate": 0.5}
        final = {"grpo_final": {"greedy": figures}} if stage == "04_grpo_final" else {}
        lab.finish(stage, made.get(stage, {}) | final)
    for model, notebook in (("base", "01_grpo"), ("grpo_final", "04_grpo_final")):
        if model != "base" and stages < 4:
            continue
        rollouts = [
            Rollout(
                run=name, stage=model, step=0, qid=moment.qid, sample=0, seed=0, checkpoint="m",
                text=HALF if texts == HALF and number > 1 else EXACT, status="no_think", **UNPAID,
                prompt_tokens=1, completion_tokens=1, finished=True, question=question_digest(moment),
            )
            for number, moment in enumerate(lab.moments("test"))
        ]  # fmt: skip
        lab.cached_json(notebook, f"{model}-greedy", lambda: {"figures": {"miou": 0.0}})
        RolloutStore(evaluation_folder(lab.path, notebook, f"{model}-greedy")).write(0, rollouts, batch="a")
    return lab


def lines_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_three_seeds_have_a_mean_a_spread_and_students_interval(project, capsys):
    for seed, miou in enumerate((0.50, 0.54, 0.52)):
        make_run(f"r{seed}", miou, seed=seed, texts=EXACT if seed else HALF)
    (project / "outputs" / "frames").mkdir()
    (project / "outputs" / "note.txt").write_text("x")
    assert main(["results", *(str(path) for path in sorted((project / "outputs").iterdir()))]) == 0
    out = capsys.readouterr().out
    lines = lines_of(out)
    # mean 52, sd 2; 4.303 (t of 2 degrees) * 2 / sqrt(3) = 4.97
    assert "final 3 52.0 ±5.0 100.0".split() in lines
    assert "base 3 30.0 -".split() in lines, "seeds that agree show no spread"
    assert "greedy, 4 queries, mean over n seeds" in out and "parameters that differ" not in out
    # 0, 0, 0.5, 0.5 more: mean 25; 3.182 (t of 3 degrees) * 0.2887 / 2 = 45.9; t = 1.73
    row = "r1 less r0, final +25.0 -20.9 to +70.9 0.182 +0.0 -60.2 to +60.2 1.000 2 0 2".split()
    assert row in lines and ["r2", *row[1:]] in lines
    assert "left out, 2 of what was given" in out and "frames    no manifest.json" in out and "note.txt" in out


def test_runs_for_a_program(project, capsys):
    for seed, miou in enumerate((0.50, 0.54)):
        make_run(f"r{seed}", miou, seed=seed)
    assert main(["results", "outputs", "--json"]) == 0
    (test,) = json.loads(capsys.readouterr().out)["tests"]
    found = test["settings"]["A"]["figures"]["grpo_final"]["greedy"]["miou"]
    # sd 0.02828; 12.706 (t of 1 degree) * 0.02
    assert found == {
        "mean": pytest.approx(0.52), "sd": pytest.approx(0.028284, abs=1e-6), "n": 2,
        "interval": [pytest.approx(0.2659, abs=1e-4), pytest.approx(0.7741, abs=1e-4)],
    }  # fmt: skip
    assert (
        test["paired"]["rows"][0]["label"] == "r1 less r0"
        and test["paired"]["rows"][0]["differences"]["miou"]["value"] == 0
    )
    assert test["settings"]["A"]["runs"]["r1"] == {"seed": 1, "open": ""}


def test_a_single_seed_has_no_interval():
    spread = spread_over_seeds([0.4])
    assert spread.mean == 0.4 and spread.n == 1 and str(spread.sd) == str(spread.interval.low) == "nan"


def test_settings_show_only_the_parameters_that_differ_and_are_paired_by_their_means(project):
    for seed in (0, 1):
        make_run(f"a{seed}", 0.5, seed=seed, texts=HALF)
        make_run(f"b{seed}", 0.6, seed=seed, learning_rate=1e-4)
    runs = compare_runs([f"outputs/{name}" for name in ("a0", "a1", "b0", "b1")]).tests[0]
    assert [[run.name for run in setting.runs] for setting in runs.settings] == [["a0", "a1"], ["b0", "b1"]]
    assert differences(runs.settings) == {"learning_rate": ["0.0005", "0.0001"]}
    assert [each.label for each in runs.paired.rows] == ["b0 less a0", "b1 less a1", "B, mean of 2"]
    assert runs.paired.rows[-1].differences["miou"].value == pytest.approx(0.25)
    figure = over_seeds(compare_runs(["outputs/a0", "outputs/b0"]))
    assert figure is not None and "B: b0." in figure.layout.meta["alt"]


def test_settings_are_paired_by_seed_and_show_what_they_spent(project):
    for seed, (ours, theirs) in enumerate(((0.50, 0.52), (0.54, 0.58), (0.52, 0.56))):
        lab = make_run(f"first-seed{seed}", ours, seed=seed)
        ended(lab.path / "04_grpo_final", 2, 1.5, stopped_by="steps")
        sampled(lab.path / "04_grpo_final", 100 + seed)
        make_run(f"second-seed{seed}", theirs, seed=seed, beta=0.0)
    make_run("second-seed3", 0.9, seed=3, beta=0.0)  # a seed that the first has not counts in no difference
    comparison = compare_runs(["outputs"])
    lines = lines_of(str(comparison))
    # 52, sd 2, 4.303 (t of 2 degrees) * 2 / sqrt(3) = 5.0; 2, 4 and 4 more: 3.33, sd 1.155, 4.303 * 1.155 / sqrt(3) = 2.87
    assert "final first 3 52.0 ±5.0".split() in [line[:5] for line in lines] and "first 3 101 3".split() in lines
    assert "second 3 +3.3 ±2.9* +0.0 - +0.0 -".split() in lines
    assert "leaves out 0: 1 of 1; were nothing different, 0.05 would by chance alone" in str(comparison)
    found = comparison.as_dict()["tests"][0]["settings"]
    assert {kind: each["mean"] for kind, each in found["first"]["spent"].items()} == {
        "rollouts": 101,
        "cpu_seconds": 3,
    }
    assert found["second"]["spent"] == found["first"]["less"] == {} and found["second"]["less"]["miou"]["n"] == 3


def test_many_settings_have_a_row_each_and_stand_against_the_one_whose_budget_they_have(project):
    make_run("whole-seed0", 0.5)
    for number in range(5):
        make_run(f"a{number}-seed0", 0.5 + number / 100, beta=number / 10)
    for seed in (1, 2):
        make_run(f"whole-seed{seed}", 0.5, seed=seed)
        make_run(f"a4-seed{seed}", 0.54 + seed / 100, seed=seed, beta=0.4)
    make_run("whole-seed3", 0.5, seed=3, stages=1)  # a campaign on its way: nothing is held back by it
    make_run("a4-seed3", 0.9, seed=3, beta=0.4)
    make_run("late-seed7", 0.9, seed=7, beta=0.9)
    path = project / "outputs" / "a0-seed0" / "params.yaml"
    path.write_text(path.read_text().replace("budget_of: ''", "budget_of: whole-seed{seed}"))
    comparison = compare_runs(["outputs"])
    text, labels = str(comparison), ["whole", "a0", "a1", "a2", "a3", "a4", "late"]
    assert [setting.label for setting in comparison.tests[0].settings] == labels
    assert "a0     budget_of whole-seed{seed}, beta 0\n" in text
    assert "No seed of which whole has a final model too, so not here: late." in text
    lines = lines_of(text)
    assert ["whole", "0,", "1,", "2", "3", "at", "02_distill"] in lines
    # 4, 5 and 6 more: sd 1, 4.303 (t of 2 degrees) * 1 / sqrt(3) = 2.5
    assert "a4 3 +5.0 ±2.5* +0.0 - +0.0 -".split() in lines
    assert ["a1", "1", "+1.0", "+0.0", "-", "+0.0", "-"] in lines
    pairs = [line[:5] for line in lines if "final" in line[1:5]]
    assert [*pairs[0], *pairs[-1]] == "a0, mean of 1, final a4, mean of 3, final".split(), "of seeds that both have"
    figure = over_seeds(comparison)
    assert figure is not None and list(figure.layout.yaxis.ticktext) == labels
    assert "the dotted line is the mean of whole" in figure.layout.meta["alt"]
    marks = [trace.marker.symbol for trace in figure.data if trace.xaxis == "x" and trace.marker.size == 9]
    assert marks == ["diamond", *["circle-open"] * 4, "triangle-right", "circle-open"]


def test_nothing_is_held_against_another_setting_than_the_one_that_is_named(project):
    make_run("whole-seed0", 0.5, stages=1)
    for number in range(5):
        make_run(f"a{number}-seed0", 0.5, beta=number / 10)
    path = project / "outputs" / "a0-seed0" / "params.yaml"
    path.write_text(path.read_text().replace("budget_of: ''", "budget_of: whole-seed{seed}"))
    comparison = compare_runs(["outputs"])
    assert "so not here: a0, a1, a2, a3, a4." in str(comparison) and "mean of" not in str(comparison)
    figure = over_seeds(comparison)
    assert figure is not None and "whole has none, so that nothing is held against it" in figure.layout.meta["alt"]


@pytest.mark.parametrize(
    ("gaps", "shown"),
    [
        ((0.02, 0.02, 0.02), "+2.0"),  # few that agree show no spread, which is not the same as having none
        ((0.02, 0.03, 0.025), "+2.5 ±1.2*"),  # sd 0.5; 4.303 * 0.5 / sqrt(3)
        ((0.02, -0.03), "-0.5 ±31.8"),  # sd 3.54; 12.706 * 3.54 / sqrt(2)
        ((0.02,), "+2.0"),
    ],
)
def test_a_star_needs_seeds_whose_spread_leaves_out_0(gaps, shown, project):
    for seed, gap in enumerate(gaps):
        make_run(f"one-seed{seed}", 0.5, seed=seed)
        make_run(f"two-seed{seed}", 0.5 + gap, seed=seed, beta=0.0)
    words = shown.split()
    assert ["two", str(len(gaps)), *words, "+0.0"] in [
        line[: 3 + len(words)] for line in lines_of(str(compare_runs(["outputs"])))
    ]


def test_what_runs_do_not_share_and_no_parameter_says_is_said(project):
    for seed in range(3):
        path = make_run(f"r{seed}", 0.5, seed=seed).path
        start = {"weights": "other" if seed == 2 else "same", "seed": seed}
        (path / "03_sft").mkdir(exist_ok=True)
        (path / "03_sft" / "start.json").write_text(json.dumps(start))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    for entry in manifest["stages"].values():
        entry |= {"commit": "abcdef0123", "changed": False}
    (path / "manifest.json").write_text(json.dumps(manifest))
    text = str(compare_runs(["outputs"]))
    assert "Not the same in all runs: weights of the base, same in r0 and 1 more; other in r2." in text
    assert ", commit abcdef0 in r2." in text and "torch, " in text and "; 1.0 in r2." in text


def test_the_lab_shows_a_folder_of_runs_over_seeds_and_not_in_each_figure(project):
    make_run("one", 0.5)
    lab = make_run("mine", 0.6, seed=1, compare=("outputs",))
    comparison = lab.compare_runs()
    assert comparison is not None and [run.name for run in comparison.tests[0].runs] == ["mine", "one"]
    assert lab.compared_runs() == {}


def test_a_figure_that_a_seed_has_not_is_of_fewer_and_says_so(project):
    for seed, rate in enumerate((0.4, None, 0.6)):
        lab = make_run(f"r{seed}", 0.5 + seed / 100, seed=seed)
        manifest = lab.manifest
        manifest["stages"]["04_grpo_final"]["figures"]["grpo_final"]["greedy"]["anchor_rate"] = rate
        (lab.path / "manifest.json").write_text(json.dumps(manifest))
    # 0.4 and 0.6: sd 0.1414, 12.706 (t of 1 degree) * 0.1
    text = str(compare_runs(["outputs"]))
    assert "final 3 51.0 ±2.5".split() in [line[:4] for line in lines_of(text)] and "final  2  50.0 ±127.1" in text


def test_a_seed_that_comes_twice_counts_once_and_is_named(project):
    make_run("r0", 0.5)
    make_run("copy", 0.9)
    make_run("another", 0.7, stages=3)  # an unfinished one does not stand for its seed
    comparison = compare_runs(["outputs/another", "outputs/r0", "outputs/copy"])
    (setting,) = comparison.tests[0].settings
    assert setting.spread("grpo_final", "greedy", "miou").mean == 0.5
    assert "counts in no mean: another, copy" in str(comparison)


def test_an_unfinished_run_shows_what_it_has(project):
    make_run("r0", 0.5)
    make_run("r1", 0.7, seed=1, stages=1)
    text = str(compare_runs(["outputs/r0", "outputs/r1"]))
    lines = lines_of(text)
    assert "A 0 (r0) 1 (r1) at 02_distill".split() in lines
    assert "base 2 30.0 -".split() in [line[:4] for line in lines]
    assert "final 1 50.0".split() in [line[:3] for line in lines]
    assert "r1 less r0, base".split() in [line[:4] for line in lines], "paired at the last model that both have"


def test_a_base_is_not_held_against_a_fine_tuned_model(project):
    for lab in (make_run("whole", 0.5, stages=3), make_run("plain", 0.5, stages=3, sft_model="base")):
        lab.cached_json("03_sft", "sft-greedy", lambda: {"figures": {"n": 4.0, "miou": 0.4}})
    runs = compare_runs(["outputs/whole", "outputs/plain"]).tests[0]
    assert {tuple(row[0].split()) for table in runs.tables() for row in table.rows} >= {("sft", "A"), ("base", "B")}
    assert [row.model for row in runs.paired.rows] == ["base"]


def test_runs_on_other_test_data_stand_apart_by_name(project):
    make_run("r0", 0.5)
    make_run("fewer", 0.9, seed=1, test_limit=2)
    Lab.open(DEFAULTS.replace(run="new", data="data", seed=2))
    comparison = compare_runs(["outputs/r0", "outputs/fewer", "outputs/new"])
    assert comparison.left_out == {"outputs/new": "it has not been tested yet"}
    assert [[run.name for run in test.runs] for test in comparison.tests] == [["r0"], ["fewer"]]
    assert ", first 2 queries: fewer (other test data: not to be compared" in str(comparison)
    figure = over_seeds(comparison)
    assert figure is not None and "On other test data, so not here: fewer." in figure.layout.meta["alt"]


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        (lambda root: (root / "data" / "test.jsonl").unlink(), "are not at"),
        (lambda root: (root / "data" / "test.jsonl").write_text("{}"), "is not the test split of run 'r0' any more"),
    ],
)
def test_without_the_test_data_figures_are_shown_and_pairs_say_what_is_missing(project, trouble, says):
    for seed in (0, 1):
        make_run(f"r{seed}", 0.5, seed=seed)
    trouble(project)
    text = str(compare_runs(["outputs/r0", "outputs/r1"]))
    assert "No paired tests" in text and says in text and "final  2  50.0" in text


def test_a_run_of_before_with_other_parameters_is_read(project):
    make_run("r0", 0.5)
    lab = make_run("old", 0.6, seed=1)
    values = [
        line for line in (lab.path / "params.yaml").read_text().splitlines() if not line.startswith("test_limit")
    ]
    (lab.path / "params.yaml").write_text("\n".join([*values, "progress_reward: gated", ""]))
    runs = compare_runs(["outputs/r0", "outputs/old"]).tests[0]
    assert differences(runs.settings) == {"progress_reward": ["absent", "gated"]}


def test_runs_of_other_own_code_are_no_seeds_of_one_setting(project):
    for seed in (0, 1):
        (project / "mine.py").write_text(f"def extra(chain, moment, spec):\n    return {seed}.0\n")
        make_run(f"r{seed}", 0.5, seed=seed, rewards={"mine.py:extra": 0.5})
    runs = compare_runs(["outputs/r0", "outputs/r1"]).tests[0]
    assert [[run.name for run in setting.runs] for setting in runs.settings] == [["r0"], ["r1"]]
    ((name, digests),) = differences(runs.settings).items()
    assert name == "text of mine.py" and len(set(digests)) == 2


def test_where_nothing_is_a_run_it_is_said_with_the_next_step(project, capsys):
    assert main(["results", "data", "params"]) == 2
    assert (
        "none of the 2 folders is a run (data: no manifest.json; params: no manifest.json)" in capsys.readouterr().err
    )
    with pytest.raises(LabError, match="labkit run"):
        compare_runs(["nowhere"])


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("params.yaml", None, "there is no params file"),  # whose values would be made up
        ("01_grpo/base-greedy.json", "{", "01_grpo/base-greedy.json' is damaged"),
        ("01_grpo/base-greedy.json", "[]", "01_grpo/base-greedy.json' is damaged"),
        ("01_grpo/base-greedy.json", "{}", "KeyError('figures')"),
        ("params.yaml", "seed: one", "seed 'one' is not a whole number"),
    ],
)
def test_a_run_that_lacks_a_part_is_named_beside_the_others(file, text, says, project):
    make_run("r0", 0.5)
    bad = Lab.open(DEFAULTS.replace(run="bad", data="data")).folder("01_grpo").parent / file
    bad.unlink(missing_ok=True)
    if text is not None:
        bad.write_text(text)
    assert says in compare_runs(["outputs/r0", "outputs/bad"]).left_out["outputs/bad"]


def test_a_damaged_run_is_named_beside_the_others(project):
    make_run("r0", 0.5)
    bad = project / "outputs" / "bad"
    bad.mkdir()
    (bad / "manifest.json").write_text("{")
    assert "is damaged" in compare_runs(["outputs/r0", "outputs/bad"]).left_out["outputs/bad"]


def test_the_lab_compares_itself_with_the_runs_that_compare_names(project):
    make_run("other", 0.5)
    lab = Lab.open(DEFAULTS.replace(run="mine", data="data", seed=3, compare=("outputs/other",)))
    lab.moments("test")
    comparison = lab.compare_runs()
    assert comparison is not None and [run.name for run in comparison.tests[0].runs] == ["mine", "other"]
    alone = Lab.open(DEFAULTS.replace(run="alone", data="data"))
    assert alone.compare_runs() is None and over_seeds(None) is None
