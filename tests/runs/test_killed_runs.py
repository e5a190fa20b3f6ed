"""A run that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from labkit.runs.notebooks import run_notebooks
from labkit.runs.results import read_results
from labkit.runs.run import STAGES
from labkit.stages.rollouts import RolloutStore

ROOT = Path(__file__).parents[2]
# Enough steps that each kill hits a stage between two checkpoints.
LONGER = {"grpo_steps": "12", "sft_epochs": "6", "save_steps": "3"}
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("killed")]


@contextmanager
def started(outputs: Path, run: str) -> Iterator[tuple[subprocess.Popen, Path]]:
    """The command on its way, and the file that it writes its lines to; nothing of it is left behind."""
    values = {**LONGER, "outputs": str(outputs), "run": run}
    command = [sys.executable, "-m", "labkit.cli", "run", "params/smoke.yaml"]
    command += [word for name, value in values.items() for word in ("-p", name, value)]
    lines = outputs / "lines.txt"
    with lines.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process, lines
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the command and to its kernel."""
    if process.poll() is None:
        parent = psutil.Process(process.pid)
        for each in [parent, *parent.children(recursive=True)]:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
    process.wait()


def run_until(outputs: Path, reached: Callable[[], bool]) -> None:
    """Start the command and kill it once the run has come so far."""
    with started(outputs, "killed") as (process, lines):
        # A stage takes seconds; a machine that other people use as well may take minutes.
        deadline = time.monotonic() + 600
        while not reached():
            assert process.poll() is None, f"it ended before it could be killed:\n{lines.read_text()}"
            assert time.monotonic() < deadline, f"it did not come so far in ten minutes:\n{lines.read_text()}"
            time.sleep(0.02)


def records(folder: Path) -> dict[str, list]:
    """Every rollout of every stage, less the name of its run and the folder of its weights."""
    stages = ("01_grpo", "02_distill", "04_grpo_final")
    frames = {stage: RolloutStore(folder / stage / "rollouts").frame() for stage in stages}
    return {stage: frame.drop(columns=["run", "checkpoint"]).to_dict("records") for stage, frame in frames.items()}


@pytest.mark.usefixtures("without_pictures")
def test_kill_9_in_stage_1_in_sft_and_between_notebooks_loses_doubles_and_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    whole = run_notebooks("params/smoke.yaml", {**LONGER, "outputs": str(tmp_path), "run": "whole"}, lambda line: None)
    folder = tmp_path / "killed"

    def saved(stage: str) -> Callable[[], bool]:
        return lambda: any((folder / stage).glob("checkpoint-*/labkit_complete"))

    def stage_1_is_over() -> bool:
        manifest = folder / "manifest.json"
        return manifest.exists() and json.loads(manifest.read_text())["stages"]["01_grpo"]["state"] == "finished"

    run_until(tmp_path, saved("01_grpo"))
    assert not (folder / "01_grpo" / "final").exists(), "the kill came too late to show anything"
    run_until(tmp_path, stage_1_is_over)
    run_until(tmp_path, saved("03_sft"))
    assert not (folder / "03_sft" / "final").exists(), "the kill came too late to show anything"
    with started(tmp_path, "killed") as (last, lines):
        assert last.wait(timeout=600) == 0, lines.read_text()

    expected, found = read_results(whole.path), read_results(folder)
    assert [found["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    assert found["models"] == expected["models"]
    assert found["harvest"] == expected["harvest"]
    assert records(folder) == records(whole.path)
