"""LoRA: which modules an adapter is put on, and its weights merged for the time of sampling.

An adapter adds two narrow products and their sum to each linear layer. Learning needs them apart, decoding pays for them at every
token: a third of all kernels. So sampling has weights of its own, W + scale * B A of each adapted layer, which last as long as one
call and are freed behind it. The base is read and never written, so that nothing has to be restored and nothing can drift. That
costs a copy of the adapted matrices in the model's number type while chains are sampled, when no activation of learning is there.

Shapes: O x I weights of a linear layer; r rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def add_lora(model: Any, rank: int, alpha: int, seed: int) -> Any:
    """A `PeftModel` with LoRA of `rank` on the language model's linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model

    decoder = model.get_decoder()
    linear = {name.rpartition(".")[2] for name, part in decoder.named_modules() if isinstance(part, torch.nn.Linear)}
    (inside,) = (name for name, part in model.named_modules() if part is decoder)
    # The vision tower has modules of the same names, which stay frozen.
    targets = rf"{re.escape(inside)}\..*\.({'|'.join(sorted(linear))})"
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
    with torch.random.fork_rng([]):  # on the CPU, so that the adapter is the same whatever the device
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, config)


@contextmanager
def merged(model: Any) -> Iterator[int]:
    """Put plain linear layers of merged weights in the place of the adapted ones within the block; yields how many.

    What is no plain LoRA of a linear layer (DoRA, an adapted embedding, modules that are trained whole) stays and works as it is.
    `model` is a `PeftModel`, or any other, of which nothing is changed.
    """
    import torch

    layers = [(name, part) for name, part in model.named_modules() if _can_merge(part)]
    plain: list[tuple[Any, str, Any]] = []
    try:
        with torch.no_grad():
            for name, layer in layers:
                parent, _, child = name.rpartition(".")
                owner = model.get_submodule(parent)
                setattr(owner, child, merged_linear(layer))
                plain.append((owner, child, layer))
        yield len(plain)
    finally:
        for owner, child, layer in plain:
            setattr(owner, child, layer)


def _can_merge(part: Any) -> bool:
    import torch

    if not hasattr(part, "lora_A") or part.merged or part.disable_adapters:
        return False
    active = [name for name in part.active_adapters if name in part.lora_A]
    return isinstance(part.get_base_layer(), torch.nn.Linear) and not any(name in part.lora_variant for name in active)


def merged_linear(layer: Any) -> Any:
    """A plain linear layer that does what PEFT's layer of active adapters does, in the base's number type.

    In bfloat16 the sum is rounded up or down by chance, as likely as it is near, from random numbers that are always the same.
    Rounded to the nearest, most changes of a young adapter would be lost: they are smaller than half of the last bit of the weight
    that they change, and the chains would be those of the base. With none to add, the base's weights come out bit by bit.
    """
    import torch

    base = layer.get_base_layer()
    weight, bias = base.weight.detach(), base.bias
    total = weight.float()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            down, up, scale = layer.lora_A[name].weight, layer.lora_B[name], layer.scaling[name]
            total = torch.addmm(total, up.weight.float(), down.float(), alpha=scale)
            if up.bias is not None:
                bias = torch.nn.Parameter(bias + scale * up.bias.to(bias.dtype), requires_grad=False)
    made = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight = torch.nn.Parameter(_rounded(total, weight.dtype), requires_grad=False)
    made.bias = bias
    return made.eval()


def _rounded(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """(O, I) float32 to `kind`; to bfloat16 by a dither of fixed random numbers, whose mean is the value itself."""
    import torch

    if kind != torch.bfloat16:
        return values.to(kind)
    generator = torch.Generator(values.device).manual_seed(0)
    dither = torch.randint(1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return (dither.add_(values.view(torch.int32)) & -(1 << 16)).view(torch.float32).to(kind)
