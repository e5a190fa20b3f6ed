"""Small copies of finished runs, to be carried to another machine: tables, paired tests, budgets and campaigns count them there.

Models, rollouts, notebooks and films stay behind; figures, the final model's greedy answers, words along training and costs go.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from labkit.errors import LabError
from labkit.runs.run import STAGES, read_manifest, runs_in
from labkit.runs.spent import KEPT_SPENT, read_spent

FILES = (
    "manifest.json", "params.yaml", "*/start.json", "*/result.json", "*/words.json", "*/grpo_final-greedy.json",
    "*/evaluations/grpo_final-greedy/*.parquet",
)  # fmt: skip
STAYED = "The model stayed where this run was made; this is a small copy, by `labkit export --figures`.\n"


def carry(folder: str | Path, target: str | Path) -> str:
    """Copy the run in `folder`, or all finished ones that it holds, into `target`; returns what was copied and left out.

    A copy that is there is replaced. Raises LabError where none is finished, and where a run's name is taken by anything but a copy.
    """
    runs, target = runs_in(Path(folder)), Path(target)
    left_out = {}
    for run in runs:
        states = {stage: entry["state"] for stage, entry in read_manifest(run)["stages"].items()}
        if here := next((stage for stage in STAGES if states.get(stage) not in ("finished", "skipped")), ""):
            left_out[run] = f"{run.resolve().name} at {here}"
    if not (finished := [run for run in runs if run not in left_out]):
        raise LabError(f"none of the {len(runs)} runs of '{folder}' is finished ({', '.join(left_out.values())})")
    size = sum(_copy(run, target / run.resolve().name) for run in finished)
    text = f"{target}: {len(finished)} run{'s' * (len(finished) > 1)}, {size / 1e6:.2f} MB"
    return text + (f"; left out, unfinished: {', '.join(left_out.values())}" if left_out else "")


def _copy(run: Path, place: Path) -> int:
    """Copy one run and return how many bytes that takes."""
    if place.exists() and not (place / KEPT_SPENT).is_file():
        raise LabError(f"'{place}' is there and is no small copy of a run; give another folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
        draft = Path(scratch) / place.name
        for file in (file for pattern in FILES for file in run.glob(pattern)):
            to = draft / file.relative_to(run)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
        for final in run.glob("*/final"):  # by which a stage has ended
            (draft / final.relative_to(run)).mkdir()
            (draft / final.relative_to(run) / "README.txt").write_text(STAYED, encoding="utf-8")
        (draft / KEPT_SPENT).write_text(json.dumps(read_spent(run)), encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
    return sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
