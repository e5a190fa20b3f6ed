"""Small copies of runs: another machine's tables, budgets and campaigns count them as they count the runs themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.params import DEFAULTS, read_params
from labkit.runs.budget import count_budget
from labkit.runs.campaign import plan
from labkit.runs.compare import compare_runs
from labkit.runs.run import Run
from tests.runs.test_budget import ended, sampled
from tests.runs.test_compare import make_run, project

__all__ = ["project"]


def spent_run(name: str, miou: float, **changed: object) -> Path:
    """A finished run with what training leaves: two steps of stage 3 and a model."""
    path = make_run(name, miou, **changed).path
    ended(path / "04_grpo_final", 2, 1.5, stopped_by="steps")
    (path / "04_grpo_final" / "final" / "model.safetensors").write_bytes(b"0" * 1_000_000)
    sampled(path / "04_grpo_final", 192)
    return path


def test_a_copy_counts_as_its_run_does_and_is_small(project, capsys):
    for seed in (0, 1):
        spent_run(f"default-seed{seed}", 0.5 + seed / 100, seed=seed)
        spent_run(f"other-seed{seed}", 0.6, seed=seed, beta=0.0)
    make_run("other-seed2", 0.9, seed=2, beta=0.0, stages=1)
    assert main(["export", "outputs", "--figures", "carried"]) == 0
    out = capsys.readouterr().out
    assert "carried: 4 runs, 0." in out and out.endswith("left out, unfinished: other-seed2 at 02_distill\n")
    assert main(["export", "carried", "--figures", "again"]) == 0, "a copy of a copy"
    shutil.rmtree(project / "outputs" / "other-seed2")
    runs, params = (
        str(compare_runs(["outputs"])),
        DEFAULTS.replace(run="x", budget_of="default-seed0", sft_model="base"),
    )
    counted = count_budget(params, project)
    shutil.rmtree(project / "outputs")
    shutil.move(project / "again", project / "outputs")
    assert str(compare_runs(["outputs"])) == runs and "192" in runs and "less default" in runs
    assert count_budget(params, project) == counted and counted.final_steps == 2
    file = project / "params" / "default.yaml"
    file.write_text("run: default\ndata: data\n")
    assert all(run.finished for run in plan([file], [0, 1], {}))
    Run.open(read_params("outputs/default-seed0/params.yaml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["outputs/new", "--figures", "carried"], "none of the 1 runs of 'outputs/new' is finished (new at 02_distill)"),
        (["outputs/whole", "--figures", "outputs"], "outputs/whole' is there and is no small copy of a run"),
        (["outputs/whole"], "or --figures DIR"),
    ],
)  # fmt: skip
def test_what_cannot_be_copied_is_said(arguments, message, project, capsys):
    make_run("whole", 0.5)
    make_run("new", 0.5, stages=1)
    assert main(["export", *arguments]) == 2
    assert message in capsys.readouterr().err and (project / "outputs" / "whole" / "manifest.json").is_file()
