"""Sharding: what several processes share of a model while it is trained.

Under DDP each has the whole model. Under FSDP2 each holds a part of weights, gradients and optimizer, put together layer by layer
when it is needed. The vision tower is frozen and called on its own, before any pass of the whole model, so it stays whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.policy.model import Policy, fsdp_modules
from labkit.stages.distributed.process_group import process_rank


def sharding_arguments(policy: Policy, sharding: str) -> dict[str, Any]:
    """What a trainer's arguments say about `sharding`, `ddp` or `fsdp2`."""
    if _is_sharded(sharding):
        layer = type(policy.base.get_decoder().layers[0]).__name__
        return {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [layer]}}
    return {"ddp_find_unused_parameters": False}  # the vision tower has no gradient to wait for


def ignore_vision_modules(policy: Policy, arguments: Any) -> None:
    """Have a trainer with these arguments leave the vision tower to each process, if it shards at all."""
    if arguments.fsdp_plugin_args is not None:
        arguments.fsdp_plugin_args["ignored_modules"] = policy.towers


def require_sharding(trainer: Any) -> None:
    """Raise LabError when a trainer was asked to shard and does not."""
    if trainer.args.fsdp and not trainer.is_fsdp_enabled:
        raise LabError("sharding: fsdp2 needs GPUs, and accelerate shards nothing on this device; use sharding: ddp")


def require_same_sharding(checkpoint: Path | None, sharding: str) -> None:
    """Raise LabError when `checkpoint` holds the optimizer of a sharded model and the model is not sharded now, or the reverse.

    accelerate writes the one under the weights' names, Trainer the other under their numbers, and neither reads the other's file.
    """
    if checkpoint is None:
        return
    sharded_there, sharded_here = not (checkpoint / "optimizer.pt").exists(), _is_sharded(sharding)
    if sharded_there != sharded_here:
        there, step = ("several processes", "more than 1") if sharded_there else ("one process", "1")
        world = process_rank().world_size
        raise LabError(
            f"'{checkpoint}' was written by {there} with sharding: fsdp2, and {'one' if world == 1 else world} cannot go on from "
            f"it; let `processes` be {step}, as before, until this stage has ended, or remove its checkpoints to start it over"
        )


@contextmanager
def summon_full_params(model: Any) -> Iterator[None]:
    """Keep all weights of a sharded model in each process for the time of the block.

    Decoding needs them at every token, and processes decode different numbers of tokens: gathering them there would be slow, and
    a process that ends first would leave the others waiting.
    """
    modules = fsdp_modules(model)
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def full_state_dict(policy: Policy) -> dict[str, Any] | None:
    """All weights of a sharded model on the CPU, in the type that it was loaded in; None where nothing is sharded.

    All processes must ask.
    """
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not fsdp_modules(policy.model):
        return None
    state: dict[str, Any] = get_model_state_dict(
        policy.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    kind = getattr(torch, str(policy.base.config.dtype).removeprefix("torch."))  # a word once it has been saved
    return {name: each.to(kind) if each.is_floating_point() else each for name, each in state.items()}


def shard_reference(policy: Policy, reference: Any, accelerator: Any) -> Any:
    """Shard a frozen copy of a policy's model as `accelerator` shards the model itself; returned as it is where it shards nothing."""
    if not accelerator.is_fsdp2:
        return reference
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerator.state.fsdp_plugin
    theirs, plugin.ignored_modules = plugin.ignored_modules, dataclasses.replace(policy, model=reference).towers
    try:
        return fsdp2_prepare_model(accelerator, reference)
    finally:
        plugin.ignored_modules = theirs


def load_full_state_dict(model: Any, read: Callable[[], dict[str, Any]]) -> None:
    """Put all weights into a model; where it is sharded, only rank 0 calls `read` for them, and the others take their parts."""
    if not fsdp_modules(model):
        model.load_state_dict(read())
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    state = read() if process_rank().rank == 0 else {}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def _is_sharded(sharding: str) -> bool:
    return sharding == "fsdp2" and process_rank().world_size > 1
