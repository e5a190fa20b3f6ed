"""Where the wall time of a whole run goes: seconds by part, from the five executed notebooks of a run that has ended.

    python benchmarks/run_parts.py outputs/embedded [outputs/another]

A cell counts as what its call is for; what a figure in the same cell takes is in it. Runs are comparable where they ran on one machine
in one hour and nothing else did.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat

from labkit.runs.run import STAGES
from labkit.table import Table

CALLS = {
    "lab.start(": "imports, browser, start",
    'lab.train_grpo("grpo"': "stage 1",
    "lab.harvest(": "harvest",
    "lab.train_sft(": "SFT",
    'lab.train_grpo("grpo_final"': "stage 3",
    "lab.evaluate(": "evaluations",
    "lab.ablate_frames(": "evaluations",
}
"""What a cell is for, by the first of these calls that stands in it; of all others the figures."""
WORLD, KERNEL, FIGURES = "clips of the embedded world", "kernels, saving, signing", "figures"
_WORLD = re.compile(rf"{WORLD}: (\d+) of \1, (?:(\d+) min )?(\d+) s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = [dict(parts_of(run)) for run in parser.parse_args().runs]
    names = [WORLD, *dict.fromkeys(CALLS.values()), FIGURES, KERNEL]
    rows = [[name, *(f"{run.get(name, 0.0):.1f}" for run in runs)] for name in names]
    rows.append(["in all", *(f"{sum(run.values()):.1f}" for run in runs)])
    print(Table("", ["part", *("seconds" for _ in runs)], rows, align="lr"))


def parts_of(run: Path) -> dict[str, float]:
    """Wall seconds of each part; together they are those from the first notebook's beginning to the last one's end."""
    parts: dict[str, float] = {}
    begun, ended = [], []
    for stage in STAGES:
        notebook = nbformat.read(run / f"{stage}.ipynb", 4)
        begun.append(_time(notebook.metadata.papermill.start_time))
        ended.append(_time(notebook.metadata.papermill.end_time))
        for part, seconds in _cells(notebook):
            parts[part] = parts.get(part, 0.0) + seconds
    parts[KERNEL] = ended[-1] - begun[0] - sum(parts.values())
    return parts


def _cells(notebook: Any) -> Iterator[tuple[str, float]]:
    for cell in notebook.cells:
        if cell.cell_type != "code" or not (seconds := cell.metadata.get("papermill", {}).get("duration")):
            continue
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
        if found := _WORLD.search(printed):
            world = 60 * int(found[2] or 0) + int(found[3])
            yield WORLD, world
            seconds -= world
        yield next((part for call, part in CALLS.items() if call in cell.source), FIGURES), seconds


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
