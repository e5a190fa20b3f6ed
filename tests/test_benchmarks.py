"""The benchmark whose ratios the docs quote runs, at a size that takes seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_step_is_timed_beside_both_baselines() -> None:
    command = [sys.executable, "benchmarks/grpo_step.py", "--tokens", "32", "--new", "4", "--group", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    [whole] = [line for line in done.stdout.splitlines() if line.startswith("whole step")]
    assert len(whole.split()) == 8 and "features kept" in done.stdout  # three ways, two ratios
