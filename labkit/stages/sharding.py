"""Sharding: what several processes share of a model while it is trained.

Under DDP each has the whole model. Under FSDP2 each holds a part of weights, gradients and optimizer, put together layer by layer
when it is needed. The vision tower is frozen and called on its own, before any pass of the whole model, so it stays whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.policy.model import Policy, fsdp_modules
from labkit.stages.distributed.process_group import process_rank


def sharding_arguments(policy: Policy, sharding: str) -> dict[str, Any]:
    """What a trainer's arguments say about `sharding`, `ddp` or `fsdp2`."""
    if is_sharded(sharding):
        layer = type(policy.base.get_decoder().layers[0]).__name__
        wrapped = {"transformer_layer_cls_to_wrap": [layer], "state_dict_type": "SHARDED_STATE_DICT"}
        return {"fsdp": True, "fsdp_config": {"version": 2, **wrapped}}
    return {"ddp_find_unused_parameters": False}  # the vision tower has no gradient to wait for


def is_sharded(sharding: str) -> bool:
    """Whether this process holds a part of a model that it trains: one alone has nobody to share with."""
    return sharding == "fsdp2" and process_rank().world_size > 1


def shard_trained(policy: Policy, trainer: Any) -> None:
    """Shard the policy's model where its trainer was asked to; raise LabError where accelerate would not."""
    if not trainer.args.fsdp:
        return
    if not trainer.is_fsdp_enabled:
        raise LabError("sharding: fsdp2 needs GPUs, and accelerate shards nothing on this device; use sharding: ddp")
    import torch

    accelerator = trainer.accelerator
    shard_model(policy, policy.model, accelerator)
    # It would look the optimizer's weights up by their addresses, and an empty shard (LoRA's, of fewer rows than processes) has none.
    accelerator._prepare_fsdp2 = lambda *given: tuple(
        each if isinstance(each, torch.nn.Module) else accelerator._prepare_one(each, first_pass=True)
        for each in given
    )


def shard_model(policy: Policy, model: Any, accelerator: Any) -> None:
    """Shard a model of the policy's kind in place, where `accelerator` shards at all; its towers stay whole.

    Each process copies its own part out of the files that the weights are mapped from, one layer after the other, and only then
    makes float32 of what is trained: accelerate would do that first, and hold the whole model so.
    """
    if not accelerator.is_fsdp2:
        return
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator.state.fsdp_plugin.ignored_modules = dataclasses.replace(policy, model=model).towers
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    model.requires_grad_(False)
    fsdp2_prepare_model(accelerator, model)
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    if accelerator.mixed_precision != "no":
        model._apply(lambda weight: weight.float() if weight.requires_grad else weight)


def require_same_sharding(checkpoint: Path | None, sharding: str) -> None:
    """Raise LabError when `checkpoint` holds the optimizer of a sharded model and the model is not sharded now, or the reverse.

    Shards are written under the weights' names, for any number of processes above one; what is whole, under their numbers.
    """
    if checkpoint is None:
        return
    whole, shards = (checkpoint / "optimizer.pt").exists(), (checkpoint / "optimizer_0").exists()
    if whole if is_sharded(sharding) else not whole:
        there, step = ("one process", "1") if whole else ("several processes", "more than 1")
        world = process_rank().world_size
        raise LabError(
            f"'{checkpoint}' was written by {there} with sharding: fsdp2, and {'one' if world == 1 else world} cannot go on from "
            f"it; let `processes` be {step}, as before, until this stage has ended, or remove its checkpoints to start it over"
        )
    if not whole and not shards:
        raise LabError(
            f"'{checkpoint}' was written by a labkit that saved no shards; go on with that one until this stage has ended, or "
            "remove its checkpoints to start it over"
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
    """All weights of a sharded model on the CPU of rank 0, in the type that it was loaded in; None where nothing is sharded.

    All processes must ask.
    """
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    if not fsdp_modules(policy.model):
        return None
    # Of a policy with an adapter nothing else is saved.
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=policy.has_adapter)
    state: dict[str, Any] = get_model_state_dict(policy.model, options=options)
    kind = getattr(torch, str(policy.base.config.dtype).removeprefix("torch."))  # a word once it has been saved
    for name, weight in state.items():
        if weight.is_floating_point():
            state[name] = weight.to(kind)  # one after the other, so that they are not there twice
    return state
