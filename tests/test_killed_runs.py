"""A run that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from labkit.results import read_results
from labkit.runs import STAGES, run_notebooks
from labkit.stages.rollouts import RolloutStore

ROOT = Path(__file__).parents[1]
# Enough steps that each kill hits a stage between two checkpoints.
LONGER = {"grpo_steps": "12", "sft_epochs": "6", "save_steps": "3"}
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("killed")]


def start(outputs: Path, run: str) -> subprocess.Popen:
    values = {**LONGER, "outputs": str(outputs), "run": run}
    command = [sys.executable, "-m", "labkit.cli", "run", "params/smoke.yaml"]
    command += [word for name, value in values.items() for word in ("-p", name, value)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def kill_when(process: subprocess.Popen, reached: Callable[[], bool]) -> None:
    """SIGKILL to the command and to its kernel once the run has come so far."""
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, f"it ended before it could be killed:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "it did not come so far in two minutes"
        time.sleep(0.02)
    parent = psutil.Process(process.pid)
    for each in [parent, *parent.children(recursive=True)]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
    process.stdout.close()


def records(folder: Path) -> dict[str, list]:
    """Every rollout of every stage, less the name of its run and the folder of its weights."""
    stages = ("01_grpo", "02_distill", "04_grpo_final")
    frames = {stage: RolloutStore(folder / stage / "rollouts").frame() for stage in stages}
    return {stage: frame.drop(columns=["run", "checkpoint"]).to_dict("records") for stage, frame in frames.items()}


def test_kill_9_in_stage_1_in_sft_and_between_notebooks_loses_doubles_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole = run_notebooks("params/smoke.yaml", {**LONGER, "outputs": str(tmp_path), "run": "whole"}, lambda line: None)
    folder = tmp_path / "killed"

    def saved(stage: str) -> Callable[[], bool]:
        return lambda: any((folder / stage).glob("checkpoint-*/labkit_complete"))

    def stage_1_is_over() -> bool:
        manifest = folder / "manifest.json"
        return manifest.exists() and json.loads(manifest.read_text())["stages"]["01_grpo"]["state"] == "finished"

    kill_when(start(tmp_path, "killed"), saved("01_grpo"))
    assert not (folder / "01_grpo" / "final").exists(), "the kill came too late to show anything"
    kill_when(start(tmp_path, "killed"), stage_1_is_over)
    kill_when(start(tmp_path, "killed"), saved("03_sft"))
    assert not (folder / "03_sft" / "final").exists(), "the kill came too late to show anything"
    last = start(tmp_path, "killed")
    assert last.wait(timeout=300) == 0, last.stdout.read()
    last.stdout.close()

    expected, found = read_results(whole.path), read_results(folder)
    assert [found["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    assert found["models"] == expected["models"]
    assert found["harvest"] == expected["harvest"]
    assert records(folder) == records(whole.path)
