"""What it costs to watch a stage of GRPO: the embedded lab's own steps, watched and not.

A kernel of its own takes the same steps twice, in one process; what is shown goes the way that it goes in JupyterLab.
Both times the same chains are sampled, so that each step is compared with itself. Wall time wavers with whatever else
the machine does; the processor time of the thread that trains hardly does. By hand: `python benchmarks/monitor.py [STEPS]`.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nbformat
import numpy as np

from labkit.lab import Lab
from labkit.params import DEFAULTS
from labkit.runs.notebooks import execute
from labkit.views import monitor
from labkit.views.monitor import SHARE, Monitor

ROOT = Path(__file__).parents[1]
GOAL = 2.0
"""Percent by which a step may become slower."""


def take(lab: Lab, shown: bool) -> tuple[np.ndarray, float, list[dict[str, Any]]]:
    """Seconds of wall and of processor for each step but the first, the seconds spent drawing, and the history."""
    marks, watching = [], Monitor.__call__
    drawing = 0.0

    def watched(self: Monitor, row: dict[str, Any]) -> None:
        nonlocal drawing
        watching(self, row)
        drawing = self.spent
        marks.append((time.perf_counter(), time.thread_time()))

    with patch.object(Monitor, "__call__", watched), patch.object(monitor, "_in_notebook", lambda: shown):
        history = lab.train_grpo("grpo", lab.policy()).history
    return np.diff(marks, axis=0), drawing, history


def measure(steps: int, outputs: str) -> None:
    """Take the steps both ways and print what they took; runs in the kernel."""
    params = DEFAULTS.replace(outputs=outputs, world_train=40, world_validation=1, world_test=1, grpo_steps=steps)
    labs = [Lab.open(params.replace(run=name)) for name in ("plain", "watched")]
    labs[0].start("01_grpo")
    source = labs[0].source(labs[0].policy(), "train")
    for moment in labs[0].moments("train"):
        source[moment.qid]  # frames are decoded once, before both
    (plain, _, expected), (watched, drawing, history) = (take(lab, lab is labs[1]) for lab in labs)
    for before, after in zip(expected, history, strict=True):
        for name in before.keys() - {"step_time"}:
            if before[name] != after[name] and not (math.isnan(before[name]) and math.isnan(after[name])):
                raise SystemExit(f"step {after['step']}: {name} is {after[name]} and was {before[name]} unwatched")
    print(f"{len(plain) + 1} steps, every figure of their history the same to the last digit")
    for what, a, b in zip(("wall", "processor"), plain.T, watched.T, strict=True):
        slower = 100 * (b.sum() / a.sum() - 1)
        print(f"{what:10} {a.mean():.3f} s a step, watched {b.mean():.3f} s: {slower:+.2f} %, goal {GOAL:.0f} %")
    whole = watched[:, 0].sum()
    print(f"drawing    {drawing:.3f} s of {whole:.1f} s: {100 * drawing / whole:.2f} %, bound {100 * SHARE:.1f} %")


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    with tempfile.TemporaryDirectory() as name:
        code = f"from benchmarks.monitor import measure\nmeasure({steps}, {name!r})"
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        cells = [nbformat.v4.new_code_cell(code)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), f"{name}/bench.ipynb")
        execute(Path(name, "bench.ipynb"), Path(name, "done.ipynb"), {}, cwd=ROOT, say=print)


if __name__ == "__main__":
    main()
