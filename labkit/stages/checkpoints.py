"""Checkpoints: which one a killed stage goes on from, the order of queries that it goes on with, and how a stage ends."""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from labkit.errors import LabError
from labkit.files import apply_umask, replacing
from labkit.policy.model import Policy, save_policy
from labkit.progress import say
from labkit.stages.distributed.process_group import all_gather_object, barrier, process_rank
from labkit.stages.sharding import full_state_dict, load_full_state_dict
from labkit.stages.start import record_final_weights

COMPLETE = "labkit_complete"
"""File written last into a checkpoint, with the sizes of the others: a kill while saving leaves a directory without it."""

Result = TypeVar("Result")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a stage, or None; incomplete ones are removed, and those that have been damaged since."""
    found = {}
    for path in folder.glob("checkpoint-*"):
        damaged = find_damage(path)
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and damaged is None:
            found[int(match[1])] = path
        elif process_rank().rank == 0:
            if damaged:
                say(
                    f"'{path}' is damaged ({damaged}); it is removed, and the stage goes on from the one before, if any"
                )
            shutil.rmtree(path)
    barrier()
    return found[max(found)] if found else None


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, by the sizes of its files; nothing is said of one that was never complete.

    One without sizes, as earlier versions of labkit wrote them, is taken to be whole.
    """
    marker = checkpoint / COMPLETE
    if not marker.exists():
        return ""
    try:
        for name, size in json.loads(marker.read_text(encoding="utf-8") or "{}").items():
            if (there := (checkpoint / name).stat().st_size) != size:
                return f"{name} has {there} bytes, of {size}"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def step_of(checkpoint: Path | None) -> int:
    """Number of updates that a checkpoint has seen; 0 without one.

    >>> step_of(Path("outputs/x/01_grpo/checkpoint-50"))
    50
    """
    return int(checkpoint.name.split("-")[1]) if checkpoint else 0


def resumable(trainer: Any) -> Any:
    """A TRL trainer whose checkpoints are marked once they are whole, and are loaded with all their weights.

    Each step is logged with `cpu_seconds`, the processor time of all that train since the step before: of the steps that a killed
    attempt lost, those count that were taken again.
    """

    class Resumable(trainer):
        _cpu_mark = 0.0

        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            if "loss" in logs:
                now = time.process_time()
                logs["cpu_seconds"] = math.fsum(all_gather_object([now - self._cpu_mark]))
                self._cpu_mark = now
            super().log(logs, start_time)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            barrier()  # each process has written its part
            if self.args.should_save:
                folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
                apply_umask(folder)
                files = [path for path in folder.rglob("*") if path.is_file()]
                # Those of random numbers are each process's own: of another machine's, sizes are known late.
                sizes = {
                    str(path.relative_to(folder)): path.stat().st_size for path in files if "rng" not in path.name
                }
                with replacing(folder / COMPLETE) as draft:
                    draft.write_text(json.dumps(sizes), encoding="utf-8")

        def train_from(self, checkpoint: Path | None) -> None:
            """Train, from a checkpoint if there is one, and let go of what only training needs."""
            self._cpu_mark = time.process_time()
            try:
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            finally:
                # A notebook keeps the traceback of a cell that failed, and with it this trainer.
                self.optimizer = self.lr_scheduler = None
                self.accelerator.free_memory()

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
    load_full_state_dict(model, saved.state_dict())


def _plain_type(model: Any) -> Any:
    """The model's own class; FSDP2 puts one of its making in front."""
    return next(kind for kind in type(model).__mro__ if not kind.__name__.startswith("FSDP"))


def read_result(folder: Path, kind: type[Result]) -> Result | None:
    """The result of a stage that has ended, or None. Raises LabError where its model stands there and its result does not."""
    if not (folder / "final").is_dir():
        return None
    path = folder / "result.json"
    try:
        return kind(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"'{path}' cannot be read ({error}), though the stage has ended; put it back, or remove '{folder}' to train again"
        ) from error


def finish_stage(policy: Policy, result: Any, folder: Path) -> None:
    """Write `result.json` and, last, `final/`; checkpoints, and what a killed save has left, are of no more use.

    All workers come here, rank 0 writes.
    """
    state = full_state_dict(policy)
    if process_rank().rank == 0:
        with replacing(folder / "result.json") as draft:
            draft.write_text(json.dumps(asdict(result)), encoding="utf-8")
        if state is None:
            record_final_weights(policy, folder)
        save_policy(policy, folder / "final", state)
        for leftover in [*folder.glob("checkpoint-*"), *folder.glob(".final.*")]:
            shutil.rmtree(leftover)
    barrier()


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
