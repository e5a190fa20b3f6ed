"""Runs that begin with a later stage: what is skipped says so, and what was given is checked before any work."""

from __future__ import annotations

import ast
import json

import pytest

from labkit import files
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.model import write_untrained
from labkit.errors import LabError
from labkit.params import DEFAULTS
from labkit.runs.notebooks import _PassOver, _write_skipped
from labkit.runs.results import read_results, results_text
from labkit.runs.run import STAGES, Run
from labkit.runs.status import read_status, status_text
from labkit.runs.workbench import Workbench
from tests.stages.small import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    (tmp_path / "traces.jsonl").write_text('{"qid": "q1", "text": "<think></think><answer>1 to 2</answer>"}\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_locks", {})
    return tmp_path


@pytest.mark.parametrize(
    ("given", "skipped"),
    [
        ({}, 0),  # the whole path
        ({"grpo_model": "embedded"}, 1),
        ({"traces": "traces.jsonl"}, 2),
        ({"sft_model": "embedded"}, 3),
    ],
)
def test_a_run_begins_where_its_parameters_say(given, skipped, project):
    run = Run.open(DEFAULTS.replace(**given))
    manifest = run.manifest["stages"]
    assert list(manifest) == list(STAGES[:skipped])
    assert all(entry["state"] == "skipped" for entry in manifest.values())
    for name in STAGES[:skipped]:
        assert run.start(name), "there is nothing to do"
        run.finish(name, {})
        assert run.manifest["stages"][name] == manifest[name]
    assert not run.start(STAGES[skipped])
    run.finish(STAGES[skipped], {})
    assert [run.finished(name) for name in STAGES].index(True) == skipped
    results, status = read_results(run.path), read_status(run.path)
    assert [entry["state"] for entry in results["stages"].values()].count("skipped") == skipped
    assert [stage["state"] for stage in status["stages"].values()].count("skipped") == skipped
    if skipped:
        (name, value), *_ = given.items()
        why = f"01_grpo is skipped: this run begins with {STAGES[skipped]}, from {name} '{value}'."
        assert results_text(results).startswith(f"run embedded: {why}")
        assert STAGES[skipped + 1] in status_text(project / "outputs") if skipped < 4 else True


@pytest.mark.parametrize(
    ("stage", "given", "expected"),
    [
        ("grpo", {"grpo_model": "embedded"}, "embedded"),
        ("sft", {"sft_model": "mine"}, "{project}/mine"),  # relative to the project's root
        ("base", {"sft_model": "mine"}, "embedded-2"),
        ("sft", {"sft_model": "base", "model": "mine"}, "{project}/mine"),  # the base itself
        ("grpo", {"grpo_model": "base"}, "embedded-2"),
    ],
)
def test_a_given_model_stands_for_its_stage(stage, given, expected, project):
    write_untrained(project / "mine", "qwen2_5_vl")
    bench = Workbench.open(DEFAULTS.replace(**given))
    assert bench.model_name(stage) == expected.format(project=project)


@pytest.mark.parametrize(
    ("given", "groups", "why"),
    [
        ({}, ["q1", "q2", "q3"], "the query comes first: only traces of one query share a prefix"),
        ({"prompt": "anchors"}, ["/a.mp4 None", "/a.mp4 None", "/b.mp4 None"], "the video comes first"),
        ({"prompt": "{query} When?{video}"}, ["q1", "q2", "q3"], "one's own text, with the query first"),
        ({"pack_traces": False}, None, "not asked for"),
    ],
)
def test_sft_puts_those_traces_together_that_share_a_prefix(given, groups, why, project, monkeypatch):
    moments = [Moment(f"q{n}", f"/{clip}.mp4", "a cat", (Span(1, 2),), 9.0) for n, clip in enumerate("aab", 1)]
    taken = []
    monkeypatch.setattr(Workbench, "moments", lambda self, split: moments)
    monkeypatch.setattr(Workbench, "source", lambda self, policy, split: {})
    monkeypatch.setattr("labkit.stages.sft.train_sft", lambda *args, groups, **options: taken.append(groups))
    Workbench.open(DEFAULTS.replace(**given)).run_sft(None, print, traces=[])
    assert taken == [groups and {f"q{n}": group for n, group in enumerate(groups, 1)}], why


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"traces": "none.jsonl"}, "traces: there is no file '.*none.jsonl'; give JSON Lines of qid and text"),
        ({"sft_model": "./nowhere"}, "model '.*nowhere' is not a directory"),
        ({"grpo_model": "params"}, "is not a checkpoint: it holds no config.json"),
        ({"traces": "a.jsonl", "sft_model": "b"}, "traces and sft_model: a run begins in one place; give one of them"),
        ({"traces": "a.jsonl", "harvester": "b"}, "harvester: stage 1, which would train it, is skipped where traces"),
    ],
)
def test_a_start_that_cannot_be_is_refused_before_any_work(given, message, project):
    with pytest.raises(LabError, match=message):
        Run.open(DEFAULTS.replace(**given))
    assert not (project / "outputs").exists()


def test_another_start_is_another_run(project):
    Run.open(DEFAULTS.replace(traces="traces.jsonl"))
    with pytest.raises(LabError, match="traces: there traces.jsonl, here"):
        Run.open(DEFAULTS)


def test_the_notebook_of_a_skipped_stage_holds_its_heading_and_why(project):
    _write_skipped(ROOT / "notebooks" / "01_grpo.ipynb", project / "01_grpo.ipynb", "01_grpo is skipped.")
    (cell,) = json.loads((project / "01_grpo.ipynb").read_text())["cells"]
    assert cell["cell_type"] == "markdown"
    assert "".join(cell["source"]).startswith("# 1 · ") and "".join(cell["source"]).endswith("\n\n01_grpo is skipped.")


@pytest.mark.parametrize(
    ("cell", "runs"),
    [
        ("training = lab.train_grpo('grpo', lab.policy('harvester'))", False),
        ("views.gallery(grpo.greedy, moments)", False),
        ("sft_model = ''\nseed = 1", True),  # the parameters, changed by hand
        ("params = Params.from_notebook(globals())\nlab = Lab.open(params)", True),  # which ends it
        ("harvester = lab.policy('grpo')", False),  # a variable that is called like a parameter
        ("traces = harvest.kept", False),
        ("base = 1e-4\nlearning_rate = max(base, 2 * base)", True),
    ],
)
def test_later_cells_of_a_skipped_stage_do_nothing_but_parameters_can_be_changed(cell, runs):
    assert bool(_PassOver().visit(ast.parse(cell)).body) is runs


@pytest.mark.parametrize("name", STAGES[:3])
def test_no_cell_behind_the_one_that_opens_the_lab_does_anything_in_a_skipped_notebook(name):
    notebook = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    opens = next(at for at, cell in enumerate(cells) if "from_notebook" in cell)
    assert [cell for cell in cells[opens + 1 :] if _PassOver().visit(ast.parse(cell)).body] == []
    assert all(_PassOver().visit(ast.parse(cell)).body for cell in cells[: opens + 1])
