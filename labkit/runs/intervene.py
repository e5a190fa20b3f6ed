"""Asking a run's model, or any model, what becomes of its answers once its anchors are tampered with: `labkit interventions`.

    06_interventions/STAGE/          of a run's model; `interventions/` in the folder of an evaluation
        texts/, frames/, untagged/   rollout stores: what was answered to each variant
        plan.json                    what decides which variants these are
        interventions.json           all figures, for a program

Answers go to disk batch by batch, and what is there is not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import differences, locked, project_root, read_json, under, write_json
from labkit.params import Params, read_yaml
from labkit.policy.model import Policy
from labkit.runs.evaluate_model import do_missing, evaluate_model, open_bench
from labkit.runs.interventions import Interventions
from labkit.runs.run import STAGE_LOCK
from labkit.runs.workbench import Workbench, frame_sampling
from labkit.stages.interventions import SHIFTS, plan, read_interventions

PLAN = "plan.json"
PAGE = "06_interventions"
"""The page that shows them, and their folder in a run."""


def intervene(
    model: str,
    moments: str = "",
    *,
    stage: str = "grpo_final",
    shifts: Sequence[float] = SHIFTS,
    videos: str | Path | None = None,
    present: bool = False,
    limit: int = 0,
    folder: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Interventions:
    """Intervene on the anchors of a model's own chains, and measure what its answers do; everything is checked before any work.

    `model` is a run's folder, which has its own moments and a `stage` that must have been evaluated; or a model as `evaluate_model`
    takes it, with the arguments behind `shifts`. Anchors are shifted by so many seconds, and widened by the largest.

    Raises LabError for bad input, and as `evaluate_model`.
    """
    require_shifts(shifts)
    where = under(project_root(), model)
    if (where / "manifest.json").is_file():
        if moments or limit or folder or present or videos or overrides:
            raise LabError(
                f"'{where}' is a run, which is asked about its own test split as its parameters say; give one of its models, such "
                f"as {where / '04_grpo_final' / 'final'}, to ask it otherwise"
            )
        params = Params.build(read_yaml(where / "params.yaml")).replace(run=where.name, outputs=str(where.parent))
        run = Workbench.open(params)
        return intervene_in(run, stage, lambda: run.load(stage), shifts)
    if not moments:
        raise LabError(
            f"'{model}' is no run's folder; say what the model is asked with --moments, such as charades-sta/test"
        )
    options: dict[str, Any] = {"videos": videos, "present": present, "limit": limit, "folder": folder}
    evaluate_model(model, moments, **options, overrides=overrides)
    bench, _ = open_bench(model, moments, **options, overrides=overrides or {})
    return intervene_in(bench, "base", lambda: bench.load("base"), shifts, "interventions")


def intervene_in(
    bench: Workbench, stage: str, load: Callable[[], Policy], shifts: Sequence[float] = SHIFTS, folder: str = ""
) -> Interventions:
    """Ask a stage's model what has not been asked yet, and read all of it; the model is loaded only where that is needed."""
    require_shifts(shifts)
    model = bench.params.model if folder else f"{bench.params.run}, {stage}"
    moments, folder = bench.moments("test"), folder or f"{PAGE}/{stage}"
    own, where = bench.greedy_chains(stage), bench.path / folder
    planned = plan(own, moments, frame_sampling(bench.params), shifts)
    with locked(bench.path / STAGE_LOCK, "labkit interventions"):
        require_same_plan(where, planned.note)
        try:
            answers = read_interventions(where, moments, planned)
        except LabError:  # what is missing is asked, and what is wrong is said then
            count = len(planned.texts) + len(planned.frames) + len(moments)
            shifts = planned.note["shifts"]
            do_missing(bench, "interventions", stage, load, count, folder=folder, shifts=shifts)
            answers = read_interventions(where, moments, planned)
        found = Interventions(model, moments, own, answers, planned)
        write_json(where / "interventions.json", found.as_dict())
    return found


def require_same_plan(where: Path, note: Mapping[str, Any]) -> None:
    """Raise LabError, which names what differs, unless a folder holds answers to these very variants, or none."""
    file, then = where / PLAN, "remove the folder to ask again"
    there = read_json(file, then) or ({"format": 1} if (where / "texts").is_dir() else {})
    if not there:
        where.mkdir(parents=True, exist_ok=True)
        return write_json(file, note)
    if there.get("format", 1) != note["format"]:
        raise LabError(f"'{where}' holds interventions of another version of labkit; {then}")
    if other := differences(there, note):
        raise LabError(
            f"'{where}' holds other interventions ({other}); {then}, or give the shifts, the limit and the "
            "model that it was made with"
        )


def require_shifts(shifts: Sequence[float]) -> None:
    """Raise LabError for shifts of anchors that are none, or fewer than two to hold against each other."""
    if len({*shifts}) < 2 or not all(math.isfinite(by) and by for by in shifts):
        raise LabError(f"shifts {list(shifts)}: give seconds other than 0, two at least, such as -1 and 1")


def both_ways(text: str) -> list[float]:
    """Seconds of the command line, both ways. Raises LabError for what are none.

    >>> both_ways("1,2.5")
    [-2.5, -1.0, 1.0, 2.5]
    """
    try:
        values = sorted({sign * abs(float(part)) for part in text.split(",") for sign in (-1, 1)})
    except ValueError:
        raise LabError(f"shifts '{text}': give seconds with commas between, such as 1,2") from None
    require_shifts(values)
    return values
