"""Checkpoints: which one a killed stage goes on from, the order of queries that it goes on with, and how a stage ends."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from labkit.files import apply_umask, replacing
from labkit.policy.model import Policy, save_policy
from labkit.stages.sharding import full_state, load_full_state
from labkit.workers import place, wait

COMPLETE = "labkit_complete"
"""Empty file, written last into a checkpoint: a kill while saving leaves a directory without it."""

Result = TypeVar("Result")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a stage, or None; incomplete ones are removed."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists():
            found[int(match[1])] = path
        elif place().rank == 0:
            shutil.rmtree(path)
    wait()
    return found[max(found)] if found else None


def step_of(checkpoint: Path | None) -> int:
    """Number of updates that a checkpoint has seen; 0 without one.

    >>> step_of(Path("outputs/x/01_grpo/checkpoint-50"))
    50
    """
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def resumable(trainer: Any) -> Any:
    """A TRL trainer whose checkpoints are marked once they are whole, and are loaded with all their weights."""

    class Resumable(trainer):
        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            wait()  # each process has written its part
            if self.args.should_save:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                apply_umask(folder)
                (folder / COMPLETE).touch()

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            if hasattr(self.model, "get_base_model"):  # an adapter is saved under its own names
                super()._load_from_checkpoint(resume_from_checkpoint, model)
            else:
                load_weights(self.model, Path(resume_from_checkpoint))

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """The run's manifest and params.yaml say more than a card would."""

        def _send_telemetry(self) -> None:
            # A run tells nobody about itself. The thread that would do it reads the environment, too, while others write there:
            # one training died of that, by a segmentation fault.
            pass

    return Resumable


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's weights into `model`, all of them.

    `Trainer` cannot: transformers saves Qwen2.5-VL under the names of its published weights, and `Trainer` looks for the
    names of the running model, finds none and, with a warning, goes on from the weights that are there.
    """
    # What fsdp2 trains is float32 beside a frozen tower in bfloat16; the widest type of them all rounds nothing.
    kind = max((weight.dtype for weight in model.parameters()), key=lambda each: each.itemsize)
    saved = _plain_type(model).from_pretrained(checkpoint, dtype=kind)
    load_full_state(model, saved.state_dict())


def _plain_type(model: Any) -> Any:
    """The model's own class; FSDP2 puts one of its making in front."""
    return next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))


def read_result(folder: Path, kind: type[Result]) -> Result | None:
    """The result of a stage that has ended, or None."""
    if not (folder / "final").is_dir():
        return None
    return kind(**json.loads((folder / "result.json").read_text(encoding="utf-8")))


def end_stage(policy: Policy, result: Any, folder: Path) -> None:
    """Write `result.json` and, last, `final/`; checkpoints, and what a killed save has left, are of no more use.

    All workers come here, rank 0 writes.
    """
    state = full_state(policy)
    if place().rank == 0:
        with replacing(folder / "result.json") as draft:
            draft.write_text(json.dumps(asdict(result)), encoding="utf-8")
        save_policy(policy, folder / "final", state)
        for leftover in [*folder.glob("checkpoint-*"), *folder.glob(".final.*")]:
            shutil.rmtree(leftover)
    wait()


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
