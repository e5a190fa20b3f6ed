"""Checkpoints: which one a killed stage goes on from, and the order of queries that it goes on with."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

COMPLETE = "labkit_complete"
"""Empty file, written last into a checkpoint: a kill while saving leaves a directory without it."""


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a stage, or None; incomplete ones are removed."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists():
            found[int(match[1])] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def step_of(checkpoint: Path | None) -> int:
    """Number of updates that a checkpoint has seen; 0 without one.

    >>> step_of(Path("outputs/x/01_grpo/checkpoint-50"))
    50
    """
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def mark_saves() -> Any:
    """A trainer callback that marks each checkpoint as complete once everything of it is written."""
    from transformers import TrainerCallback

    class MarkSaves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.is_world_process_zero:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / COMPLETE).touch()

    return MarkSaves()


def shuffled_order(items: Sequence[Any], count: int, seed: int) -> list[Any]:
    """`count` items, epoch after epoch, each epoch in a random order of its own.

    Written down before training starts, so that a resumed run sees what an uninterrupted one sees.

    >>> order = shuffled_order(["a", "b", "c"], 7, seed=0)
    >>> len(order), sorted(order[:3]), sorted(order[3:6])
    (7, ['a', 'b', 'c'], ['a', 'b', 'c'])
    """
    rng = np.random.default_rng(seed)
    order: list[Any] = []
    while len(order) < count:
        order += [items[i] for i in rng.permutation(len(items))]
    return order[:count]
