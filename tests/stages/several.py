"""Train as one of several workers, on the models of `tests.stages.small`, so that they can be compared with one process.

python -m tests.stages.several; a task is the world's folder, that of the stages, and a list of these, each with a name for its folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
import torch.distributed.fsdp._fully_shard._fsdp_param_group as fsdp_group
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from labkit.data.moments import read_moments
from labkit.policy.model import load_policy
from labkit.stages.distributed.process_group import all_gather_object, process_rank, serve
from tests.stages import small


def main(task: tuple[str, str, list[dict[str, Any]]], report: Any) -> dict[str, Any]:
    world, folder, plan = Path(task[0]), Path(task[1]), task[2]
    torch.set_num_threads(1)
    seen: dict[str, dict[str, Any]] = {}
    moments = read_moments(world / "train.jsonl")
    found = {}
    for each in plan:
        stage, name, changes = each.pop("stage"), each.pop("name"), each
        if sharded := changes.get("sharding") == "fsdp2":
            shard_on_cpus()
        step, killed = changes.pop("ends_at", 0), changes.pop("killed", False)
        broken = pytest.raises(Broken) if step and not killed else contextlib.nullcontext()
        torch.manual_seed(0)
        options = {name: changes.pop(name) for name in ("dtype", "lora_rank") if name in changes}
        policy = load_policy("embedded", device="cpu", whole=not sharded, **options)
        source = small.source(policy, moments, folder / "frames")
        train = small.train_grpo if stage == "grpo" else small.train_sft
        with pytest.MonkeyPatch.context() as patch, broken, watched(policy, seen.setdefault(name, {})):
            if step:
                end_in(step, killed, patch)
            found[name] = train(policy, source, moments, folder / name, **changes).history
    return found | {"seen": seen}


@contextlib.contextmanager
def watched(policy: Any, seen: dict[str, Any]) -> Iterator[None]:
    """See what each rank holds at the first update, in bytes, and how often weights are gathered in the last step."""
    references: list[Any] = []
    gathers, copy, gather = [0], small.grpo.frozen_copy, fsdp_group.foreach_all_gather

    def copy_kept(*of: Any, **how: Any) -> Any:
        references.append(copy(*of, **how))
        return references[-1]

    def gathered(*of: Any) -> Any:
        gathers[-1] += 1
        return gather(*of)

    def see(optimizer: Any, *_: Any) -> None:
        seen["gathers"] = gathers[-1]
        gathers.append(0)
        trained = [weight for group in optimizer.param_groups for weight in group["params"]]
        named, towers = (
            dict(policy.model.named_parameters()),
            [id(w) for tower in policy.towers for w in tower.parameters()],
        )
        frozen = {name for name, weight in named.items() if id(weight) in towers}  # of a model and its reference alike
        copied = [each for of in references for name, each in of.named_parameters() if name not in frozen]
        copied += [named.pop(name) for name in list(named) if ".ref." in name]
        kept = {
            "weights": named.values(),
            "reference": copied,
            "gradients": [weight.grad for weight in trained],
            "optimizer": [each for of in optimizer.state.values() for each in of.values() if each.dim()],
        }
        if "bytes" not in seen:
            seen["bytes"] = all_gather_object([{name: sum(map(local_bytes, all)) for name, all in kept.items()}])

    hook = register_optimizer_step_post_hook(see)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small.grpo, "frozen_copy", copy_kept)
        patch.setattr(fsdp_group, "foreach_all_gather", gathered)
        try:
            yield
        finally:
            hook.remove()


def local_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor that this rank holds."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


class Broken(Exception):
    """A stage that was broken off, alike in all workers."""


def end_in(step: int, killed: bool, patch: pytest.MonkeyPatch) -> None:
    """Once this step's chains are sampled, break off; or be killed, for real, where this is not rank 0, while its checkpoint is saved.

    The model's shards are saved then, and the optimizer's are not.
    """
    figures, save, taken, saved = small.grpo.step_figures, checkpoint.save, [], []

    def figures_or_end(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) == step and not killed:
            raise Broken
        return figures(*arguments)

    def save_or_die(*arguments: Any, **options: Any) -> Any:
        saved.append(1)
        if killed and len(taken) == step and len(saved) % 2 == 0 and process_rank().rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return save(*arguments, **options)

    patch.setattr(small.grpo, "step_figures", figures_or_end)
    patch.setattr(checkpoint, "save", save_or_die)


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
