"""The start of a stage: its seed, its initial weights, and restoring them after an error.

The KL term holds a policy to the start of its stage, a stage that is broken off goes back to it, and one that is called again goes on
only from it. Trainers leave traces in the model that they are given (TRL puts a closure in place of its forward and adds an
adapter, accelerate wraps it, checkpointing hooks into it), so that none may stay: the next training would take them for the model.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import replacing
from labkit.policy.model import Policy
from labkit.stages.distributed.process_group import process_rank
from labkit.stages.provenance import weights_digest

START = "start.json"
"""What a stage began from and, once it has ended, with which weights it did; beside its checkpoints."""


def stage_seed(seed: int, stage: str) -> int:
    """The seed of one stage of a run, below 2**31: another for each stage and seed, the same in every process and version of Python.

    >>> stage_seed(0, "grpo"), stage_seed(0, "grpo_final")
    (385666354, 13568515)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{stage}".encode()).digest()[:4], "big") >> 1


def frozen_copy(policy: Policy) -> Any:
    """The policy's model with the weights that it has now, as an instance of its own that no training changes.

    Made from the configuration: a copy of the object would copy what others have put in place of its methods, which then still
    work on the object that they were made for. What is frozen anyway is shared and takes no memory. Not for a model under LoRA.
    """
    model = policy.model
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    state = {
        name: weight.detach().clone() if name in trained else weight.detach()
        for name, weight in model.state_dict(keep_vars=True).items()
    }
    config = copy.deepcopy(model.config)
    made = type(model).from_pretrained(
        None, config=config, state_dict=state, dtype=model.dtype, attn_implementation="sdpa"
    )
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(model.device).requires_grad_(False).eval()


@contextmanager
def preserve_model_state(policy: Policy, reference: Any = None) -> Iterator[None]:
    """Restore, after the block, everything of a policy's model but its trained weights: attributes, hooks, modes, gradients.

    After an exception, such as an interrupted cell, the weights are restored too, so that the stage can be called again with the
    same object. They come from `reference`, a `frozen_copy`, or else from a copy in the memory of the CPU.

    The models of several workers are left as they are: a worker ends with its task, and fsdp2 has put other weights in the model.
    """
    import torch

    if process_rank().world_size > 1:
        yield
        return
    kept = [_Attributes(each) for each in _modules_and_configs(policy.model)]
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
    hold fewer of them: those that it holds are compared.
    """
    here = {"weights": weights_digest(policy), **facts}
    there = read_start(folder)
    differing = [name for name in here if name in there and there[name] != here[name]]
    if "weights" in differing:
        raise LabError(
            f"the policy {policy.name!r} is not the model that '{folder}' began from (weights there {there['weights']}, here "
            f"{here['weights']}): it has been trained since, or is another one; load it anew, as the notebook's cell does, "
            "or remove the folder to start the stage over from this one"
        )
    if differing:
        what = "; ".join(f"{name}: there {there[name]}, here {here[name]}" for name in differing)
        raise LabError(
            f"'{folder}' began with other {what}; put it back, or remove the folder to start the stage over"
        )
    if process_rank().rank == 0 and there != here | there:
        _write(folder, here | there)


def record_final_weights(policy: Policy, folder: Path) -> None:
    """Record the digest of a stage's final weights, so that no other model is taken for it."""
    _write(folder, read_start(folder) | {"final": weights_digest(policy)})


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
    path = folder / START
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise LabError(f"'{path}' is damaged ({error}); remove it, and the stage goes on unchecked") from None


def _write(folder: Path, note: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / START) as draft:
        draft.write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
