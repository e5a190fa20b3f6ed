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


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's weights into `model`, all of them.

    `Trainer` cannot: transformers saves Qwen2.5-VL under the names of its published weights, and `Trainer` looks for the
    names of the running model, finds none and, with a warning, goes on from the weights that are there.
    """
    saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
    model.load_state_dict(saved.state_dict())


def shuffled_order(items: Sequence[Any], count: int, seed: int, block: int = 1) -> list[Any]:
    """`count` items, epoch after epoch, each epoch in a random order of its own.

    Written down before training starts, so that a resumed run sees what an uninterrupted one sees. An epoch gives whole
    blocks of `block` items and leaves out the rest, so that no block holds an item twice.

    >>> order = shuffled_order(["a", "b", "c"], 7, seed=0)
    >>> len(order), sorted(order[:3]), sorted(order[3:6])
    (7, ['a', 'b', 'c'], ['a', 'b', 'c'])
    >>> order = shuffled_order(["a", "b", "c"], 4, seed=0, block=2)
    >>> len(set(order[:2])), len(set(order[2:]))
    (2, 2)

    Raises:
        ValueError: there are fewer items than a block holds.
    """
    if len(items) < block:
        raise ValueError(f"{len(items)} items do not fill a block of {block}")
    rng = np.random.default_rng(seed)
    order: list[Any] = []
    while len(order) < count:
        order += [items[i] for i in rng.permutation(len(items))[: len(items) // block * block]]
    return order[:count]
