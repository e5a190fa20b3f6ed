"""What a run has spent on learning: rollouts and processor time of each stage, counted from the files that it left.

What a stage was planned to take is not asked: stage 1 may stop by its condition, and a killed run takes steps twice. Evaluation and
figures are not learning and are left out; probes, which are asked between two steps, are in their processor time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from labkit.stages.checkpoints import read_result
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import RolloutStore
from labkit.stages.sft import SftResult

KEPT_SPENT = "spent.json"
"""In a small copy of a run, whose rollouts stayed behind: what `read_spent` counted before."""


class Spent(NamedTuple):
    """What one stage took."""

    steps: int
    """Updates; 0 of a harvest."""
    rollouts: int
    """Chains that were sampled to learn from; 0 of SFT."""
    cpu_seconds: float | None
    """Processor time of its training or sampling; None of runs that are older than its measure (2026-11-30)."""


def read_spent(run: Path) -> dict[str, Spent]:
    """By notebook, what each stage of the run in the folder `run` has spent that has ended; of a harvest what there is of it.

    Stages that it skips are missing.
    """
    if (kept := run / KEPT_SPENT).is_file():
        return {name: Spent(*each) for name, each in json.loads(kept.read_text(encoding="utf-8")).items()}
    found: dict[str, Spent] = {}
    for notebook in ("01_grpo", "04_grpo_final"):
        if result := read_result(run / notebook, GrpoResult):
            found[notebook] = Spent(result.steps, _count(run / notebook), _cpu_seconds(result.history))
    store = RolloutStore(run / "02_distill" / "rollouts")
    if store.files():
        found["02_distill"] = Spent(0, _count(run / "02_distill"), store.cpu_seconds())
    if learnt := read_result(run / "03_sft", SftResult):
        found["03_sft"] = Spent(learnt.steps, 0, _cpu_seconds(learnt.history))
    return dict(sorted(found.items()))


def total(spent: Mapping[str, Spent]) -> Spent:
    """All stages together.

    >>> total({"01_grpo": Spent(10, 960, 12.5), "03_sft": Spent(20, 0, 3.5)})
    Spent(steps=30, rollouts=960, cpu_seconds=16.0)
    """
    seconds = [each.cpu_seconds for each in spent.values()]
    known = [each for each in seconds if each is not None]
    return Spent(
        sum(each.steps for each in spent.values()),
        sum(each.rollouts for each in spent.values()),
        math.fsum(known) if len(known) == len(seconds) else None,
    )


def _count(folder: Path) -> int:
    return sum(sum(qids.values()) for qids in RolloutStore(folder / "rollouts").qid_counts().values())


def _cpu_seconds(history: list[dict[str, float]]) -> float | None:
    if not history or not all("cpu_seconds" in row for row in history):
        return None
    return math.fsum(row["cpu_seconds"] for row in history)
