"""Runs that begin with own traces and with an own SFT model, walked through their notebooks, with a tracker that listens."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest

from labkit.params import read_params
from labkit.runs.notebooks import execute, run_notebooks
from labkit.runs.results import read_results
from labkit.runs.run import STAGES, Run
from labkit.runs.workbench import Workbench
from labkit.views.report.report import write_report
from tests.stages import small

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("starts")]
TINY = {
    "world_train": 3, "world_validation": 1, "world_test": 3, "sampled_evaluation": False, "final_steps": 2, "min_anchors": 2,
    "report_to": "tensorboard",
}  # fmt: skip


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def from_traces(outputs) -> Run:
    """A run that learns from another program's traces: perfect chains, but for three lines."""
    given = {**TINY, "outputs": str(outputs), "run": "own", "traces": str(outputs / "traces.jsonl")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("BROWSER_PATH", "/no/browser")
        (outputs / "traces.jsonl").write_text('{"qid": "q", "text": "t"}\n')
        moments = Workbench.open(read_params("params/smoke.yaml", {**given, "run": "world"})).moments("train")
        rows = [trace._asdict() for trace in small.traces(moments)]
        rows += [{"qid": "q", "text": "t"}, {**rows[0], "text": "no answer"}, rows[0]]
        (outputs / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run_notebooks("params/smoke.yaml", given, say=lambda line: None)


@pytest.fixture(scope="module")
def from_model(outputs, from_traces) -> Run:
    """A run of stage 3 alone, from the SFT model of the other."""
    given = {**TINY, "outputs": str(outputs), "run": "later", "sft_model": str(from_traces.path / "03_sft" / "final")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("BROWSER_PATH", "/no/browser")
        return run_notebooks("params/smoke.yaml", given, say=lambda line: None)


def test_own_traces_are_learnt_from_and_the_others_counted(from_traces):
    results = read_results(from_traces.path)
    assert [entry["state"] for entry in results["stages"].values()] == ["skipped"] * 2 + ["finished"] * 3
    assert list(results["models"]) == ["base", "sft", "grpo_final"] == list(results["scores"])
    counts = {
        name: results["harvest"][name]
        for name in ("dropped: no such moment", "dropped: unparsed", "dropped: duplicate")
    }
    assert list(counts.values()) == [1, 1, 1] and results["harvest"]["kept"] == results["harvest"]["harvested"] - 3


def test_an_own_sft_model_is_measured_and_trained_on(from_traces, from_model):
    results, before = read_results(from_model.path), read_results(from_traces.path)
    assert [entry["state"] for entry in results["stages"].values()] == ["skipped"] * 3 + ["finished"] * 2
    assert list(results["models"]) == ["sft", "grpo_final"]
    assert results["models"]["sft"] == before["models"]["sft"], "it is the same model"
    assert results["models"]["grpo_final"] == before["models"]["grpo_final"], "and stage 3 is the same"


def test_the_report_says_what_is_skipped_and_shows_the_rest(from_model, tmp_path):
    page = write_report(from_model.path, tmp_path)[-1].read_text(encoding="utf-8")
    for name in STAGES[:3]:
        assert f"{name} is skipped: this run begins with 04_grpo_final, from sft_model" in page
    assert "Open:" not in page
    last = nbformat.read(from_model.path / "05_analysis.ipynb", 4)
    assert "since the model that it began from" in json.dumps(last.cells[-1].outputs[-1])


def test_a_skipped_notebook_that_is_run_by_hand_says_so_and_does_not_fail(from_model, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    given = {
        name: value
        for name, value in from_model.params.as_dict().items()
        if name == "run" or name in from_model.params.changed()
    }
    before = {path: path.stat().st_mtime_ns for path in from_model.path.rglob("*")}
    execute(ROOT / "notebooks/01_grpo.ipynb", tmp_path / "x.ipynb", given, cwd=ROOT, say=lambda line: None)
    cells = [cell for cell in nbformat.read(tmp_path / "x.ipynb", 4).cells if cell.cell_type == "code"]
    shown = [cell for cell in cells if cell.outputs]
    assert len(shown) == 1 and "01_grpo is skipped" in json.dumps(shown[0].outputs)
    assert {path: path.stat().st_mtime_ns for path in from_model.path.rglob("*")} == before


def test_tensorboard_has_the_steps_of_sft_and_of_grpo_with_chains(from_traces):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = {}
    for stage in ("03_sft", "04_grpo_final"):
        events = EventAccumulator(str(from_traces.path / "tensorboard" / stage))
        events.Reload()
        history = json.loads((from_traces.path / stage / "result.json").read_text())["history"]
        for name in ("loss", "learning_rate"):
            found = [(event.step, event.value) for event in events.Scalars(name)]
            assert found == [(row["step"], pytest.approx(row[name])) for row in history]
        steps[stage] = events
    assert {"total", "anchor_rate", "iou_answer", "entropy"} <= set(steps["04_grpo_final"].Tags()["scalars"])
    assert steps["04_grpo_final"].Images("chain/best")[0].width == 1920
    assert steps["03_sft"].Tags()["images"] == []
