"""A stage from its start to its end: its seed and initial weights, the checkpoint that a killed one goes on from, and its result.

The KL term holds a policy to the start of its stage, a stage that is broken off goes back to it, and one that is called again goes on
only from it. Trainers leave traces in the model that they are given (TRL puts a closure in place of its forward and adds an
adapter, accelerate wraps it, checkpointing hooks into it), so that none may stay: the next training would take them for the model.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from labkit.errors import LabError
from labkit.files import apply_umask, differences, read_json, write_json
from labkit.policy.model import Policy, save_policy
from labkit.progress import say
from labkit.stages.completions import weights_digest
from labkit.stages.distributed.process_group import all_gather_object, barrier, process_rank
from labkit.stages.sharding import full_state_dict

START = "start.json"
"""What a stage began from and, once it has ended, with which weights it did; beside its checkpoints."""


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage of a run, below 2**31: another for each stage and seed, the same in every process and version of Python.

    >>> stage_seed(0, "grpo"), stage_seed(0, "grpo_final")
    (385666354, 13568515)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big") >> 1


def frozen_copy(policy: Policy, shared: bool = False) -> Any:
    """The policy's model with the weights that it has now, as an instance of its own that no training changes.

    Made from the configuration: a copy of the object would copy what others have put in place of its methods, which then still
    work on the object that they were made for. What is frozen anyway is shared and takes no memory, and so does all with
    `shared`, for a policy that is about to be sharded, which leaves these weights alone. Not for a model under LoRA.
    """
    model = policy.model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad and not shared}
    state = {
        name: weight.detach().clone() if name in trained else weight.detach()
        for name, weight in model.state_dict(keep_vars=True).items()
    }
    config = copy.deepcopy(model.config)
    made = type(model).from_pretrained(
        None, config=config, state_dict=state, dtype=model.dtype, attn_implementation="sdpa"
    )
    made.generation_config = copy.deepcopy(model.generation_config)
    if shared:  # the towers may be on the GPU already
        for name, part in policy.base.base_model.named_children():
            if part in policy.towers:
                setattr(made.base_model, name, part)
    return (made if shared else made.to(model.device)).requires_grad_(False).eval()


@contextmanager
def preserve_model_state(policy: Policy, reference: Any = None) -> Iterator[None]:
    """Restore, after the block, everything of a policy's model but its trained weights: attributes, hooks, modes, gradients.

    After an exception, such as an interrupted cell, the weights are restored too, so that the stage can be called again with the
    same object. They come from `reference`, a `frozen_copy`, or else from a copy in the memory of the CPU.

    Of the models of several workers only the configurations, which are saved: a worker ends with its task, and fsdp2 has put other
    weights in the model.
    """
    import torch

    several = process_rank().world_size > 1
    kept = [
        _Attributes(each)
        for each in _modules_and_configs(policy.model)
        if not (several and isinstance(each, torch.nn.Module))
    ]
    if several:
        try:
            yield
        finally:
            for each in kept:
                each.restore()
        return
    weights = [(weight, weight.requires_grad, weight.grad) for weight in policy.model.parameters()]
    there = dict(reference.named_parameters()) if reference is not None else None
    start = {
        name: there[name] if there is not None else weight.detach().to("cpu", copy=True)
        for name, weight in policy.model.named_parameters()
        if weight.requires_grad
    }
    ended = False
    try:
        yield
        ended = True
    finally:
        for each in kept:
            each.restore()
        for weight, trained, grad in weights:
            weight.requires_grad_(trained)
            weight.grad = grad
        if not ended:
            names = dict(policy.model.named_parameters())
            with torch.no_grad():
                for name, weight in start.items():
                    names[name].copy_(weight)


class _Attributes:
    """The attributes of one object, and what stands in those that are dictionaries, lists and sets."""

    def __init__(self, thing: Any) -> None:
        self.thing, self.attributes = thing, dict(vars(thing))
        self.contents = {
            name: copy.copy(value) for name, value in self.attributes.items() if isinstance(value, dict | list | set)
        }

    def restore(self) -> None:
        attributes = vars(self.thing)
        attributes.clear()
        attributes.update(self.attributes)
        for name, content in self.contents.items():
            # In place: adapters and their model look at one dictionary.
            attributes[name].clear()
            if isinstance(content, list):
                attributes[name].extend(content)
            else:
                attributes[name].update(content)


def _modules_and_configs(model: Any) -> list[Any]:
    """A model's modules, and the configurations that they hold."""
    from transformers.utils import PushToHubMixin  # what configurations of transformers and of PEFT have in common

    found: dict[int, Any] = {id(module): module for module in model.modules()}
    for module in list(found.values()):
        for value in vars(module).values():
            for each in value.values() if isinstance(value, dict) else (value,):
                if isinstance(each, PushToHubMixin):
                    found.setdefault(id(each), each)
    return list(found.values())


def require_same_start(policy: Policy, folder: Path, **facts: Any) -> None:
    """Record the digest of a stage's initial weights in `folder`; raise LabError where it began from others.

    `facts` are plain data that, with the initial weights, determine what is learnt. A record of an earlier version of labkit may
    hold fewer of them: those that it holds are compared. Of several processes, rank 0 reads the weights.
    """
    if process_rank().rank:
        return
    here = {"weights": weights_digest(policy), **facts}
    there = read_start(folder)
    if there.get("weights", here["weights"]) != here["weights"]:
        raise LabError(
            f"the policy {policy.name!r} is not the model that '{folder}' began from (weights there {there['weights']}, here "
            f"{here['weights']}): it has been trained since, or is another one; load it anew, as the notebook's cell does, "
            "or remove the folder to start the stage over from this one"
        )
    if other := differences(there, {name: value for name, value in here.items() if name in there}):
        raise LabError(
            f"'{folder}' began with other {other}; put it back, or remove the folder to start the stage over"
        )
    if there != here | there:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / START, here | there)


def record_final_weights(policy: Policy, folder: Path) -> None:
    """Record the digest of a stage's final weights, so that no other model is taken for it."""
    write_json(folder / START, read_start(folder) | {"final": weights_digest(policy)})


def require_final_weights(policy: Policy, folder: Path) -> None:
    """Raise LabError unless `policy` has the weights that the stage in `folder` ended with, as far as these are known."""
    there = read_start(folder).get("final")
    if there is not None and there != (here := weights_digest(policy)):
        raise LabError(
            f"the policy {policy.name!r} has not the weights that '{folder}' ended with (there {there}, here {here}): "
            "it has been trained since, or was not trained there; load that stage's model with lab.policy(...)"
        )


def read_start(folder: Path) -> dict[str, Any]:
    """The record of a stage's start; empty where it has not begun."""
    return read_json(folder / START, "remove it, and the stage goes on unchecked")


COMPLETE = "labkit_complete"
"""File written last into a checkpoint, with the sizes of the others: a kill while saving leaves a directory without it."""

Result = TypeVar("Result")


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete `checkpoint-N` of a stage, or None; incomplete ones are removed, and those that have been damaged since."""
    complete = {}
    for step, path in _checkpoints(folder).items():
        damaged = find_damage(path)
        if damaged is None:
            complete[step] = path
        elif process_rank().rank == 0:
            if damaged:
                say(
                    f"'{path}' is damaged ({damaged}); it is removed, and the stage goes on from the one before, if any"
                )
            shutil.rmtree(path)
    barrier()
    return complete[max(complete)] if complete else None


def _checkpoints(folder: Path) -> dict[int, Path]:
    """Folders of checkpoints by their steps; one that a user has put beside them under another name is none."""
    return {step_of(path): path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)}


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
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if self.args.should_save:
                apply_umask(folder)
            # Of what a process of another machine has written, sizes are known late: each tells those of its own.
            sizes = all_gather_object([
                (str(path.relative_to(folder)), path.stat().st_size)
                for path in folder.rglob("*")
                if path.is_file() and _writer(path.name) == process_rank().rank
            ])  # fmt: skip
            if self.args.should_save:
                write_json(folder / COMPLETE, dict(sizes), indent=None)

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
            # An adapter is saved under its own names, and of shards each process reads its own.
            if self.is_fsdp_enabled or hasattr(self.model, "get_base_model"):
                super()._load_from_checkpoint(resume_from_checkpoint, model)
                if not self.is_fsdp_enabled:
                    # Before 5.24, transformers reads no adapter but the reference's where that has a folder of its own.
                    self.model.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            else:
                load_weights(self.model, Path(resume_from_checkpoint))

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """The run's manifest and params.yaml say more than a card would."""

        def _send_telemetry(self) -> None:
            # A run tells nobody about itself. The thread that would do it reads the environment, too, while others write there:
            # one training died of that, by a segmentation fault.
            pass

    return Resumable


def _writer(name: str) -> int:
    """The rank whose part of a checkpoint is in the file of this name; rank 0 for what all have in common."""
    found = re.match(r"(?:__|rng_state_)(\d+)", name)
    return int(found[1]) if found else 0


def load_weights(model: Any, checkpoint: Path) -> None:
    """Put a checkpoint's weights into `model`, all of them.

    `Trainer` cannot: transformers saves Qwen2.5-VL under the names of its published weights, and `Trainer` looks for the
    names of the running model, finds none and, with a warning, goes on from the weights that are there.
    """
    # The widest type of them all rounds nothing.
    kind = max((weight.dtype for weight in model.parameters()), key=lambda each: each.itemsize)
    model.load_state_dict(type(model).from_pretrained(checkpoint, dtype=kind).state_dict())


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
        write_json(folder / "result.json", asdict(result), indent=None)
        if state is None:
            record_final_weights(policy, folder)
        save_policy(policy, folder / "final", state)
        for leftover in [*_checkpoints(folder).values(), *folder.glob(".final.*")]:
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
