"""Train as one of several workers, on the models of `tests.stages.small`, so that they can be compared with one process.

python -m tests.stages.several; a task is the world's folder, that of the stages, and a list of these, each with a name for its folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from labkit.data.moments import read_moments
from labkit.policy.model import load_policy
from labkit.stages.distributed.process_group import all_gather_object, process_rank, serve
from tests.stages import small


def main(task: tuple[str, str, list[dict[str, Any]]], report: Any) -> dict[str, Any]:
    world, folder, plan = Path(task[0]), Path(task[1]), task[2]
    torch.set_num_threads(1)
    counts: dict[str, list[tuple[int, int, int]]] = {}
    moments = read_moments(world / "train.jsonl")
    found = {}
    for each in plan:
        stage, name, changes = each.pop("stage"), each.pop("name"), each
        if changes.get("sharding") == "fsdp2":
            shard_on_cpus()
        step, killed = changes.pop("ends_at", 0), changes.pop("killed", False)
        broken = pytest.raises(Broken) if step and not killed else contextlib.nullcontext()
        torch.manual_seed(0)
        options = {name: changes.pop(name) for name in ("dtype", "lora_rank") if name in changes}
        policy = load_policy("embedded", device="cpu", **options)
        source = small.source(policy, moments, folder / "frames")
        train = small.train_grpo if stage == "grpo" else small.train_sft
        with pytest.MonkeyPatch.context() as patch, broken:
            count_reference(patch, counts.setdefault(name, []))
            if step:
                end_in(step, killed, patch)
            found[name] = train(policy, source, moments, folder / name, **changes).history
    return found | {"reference": counts}


def count_reference(patch: pytest.MonkeyPatch, counts: list[tuple[int, int, int]]) -> None:
    """Count, on each rank, the weights of the KL reference that it keeps, those of them that nobody shards, and all."""
    shard = small.grpo.shard_reference

    def counted(policy: Any, reference: Any, accelerator: Any) -> Any:
        frozen = sum(weight.numel() for tower in policy.towers for weight in tower.parameters())
        whole = sum(weight.numel() for weight in reference.parameters())
        sharded = shard(policy, reference, accelerator)
        kept = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in sharded.parameters()]
        counts.extend(all_gather_object([(sum(map(torch.Tensor.numel, kept)), frozen, whole)]))
        return sharded

    patch.setattr(small.grpo, "shard_reference", counted)


class Broken(Exception):
    """A stage that was broken off, alike in all workers."""


def end_in(step: int, killed: bool, patch: pytest.MonkeyPatch) -> None:
    """Once this step's chains are sampled, break off; or be killed, for real, where this is not rank 0."""
    figures, taken = small.grpo.step_figures, []

    def figures_or_end(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == step and not killed:
            raise Broken
        if len(taken) == step and process_rank().rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return figures(*arguments)

    patch.setattr(small.grpo, "step_figures", figures_or_end)


def shard_on_cpus() -> None:
    """Have accelerate take processes on CPUs for such on GPUs, which alone it shards."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def backend(state: Any, *_: Any) -> tuple[str, DistributedType]:
        state.device = torch.device("cpu")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = backend


if __name__ == "__main__":
    serve(main, "cpu")
