"""LoRA and QLoRA: which layers an adapter is put on, a base of 4 bits below it, and the adapter merged for the time of sampling.

An adapter adds two narrow products and their sum to each linear layer. Learning needs them apart, decoding pays for them at every
token: two fifths of all kernels. So sampling has weights of its own, W + scale * B A of each adapted layer, which last as long as one
call and are freed behind it. The base is read and never written, so that nothing has to be restored and nothing can drift. That
costs a copy of the adapted matrices in the model's number type while chains are sampled, when no activation of learning is there.
A base of 4 bits is dequantized into that copy too, which is why it can be left out (`lora_merge`).

Shapes: O x I weights of a linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError, nearest

if TYPE_CHECKING:
    import torch


def linear_layers(model: Any) -> tuple[list[str], list[str]]:
    """Names of a Hugging Face model's linear layers: those of the language model, which LoRA is on by default, and all others."""
    import torch

    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    inside = decoder_name(model) + "."
    language = [name for name in names if name.startswith(inside)]
    return language, [name for name in names if not name.startswith(inside)]


def decoder_name(model: Any) -> str:
    """The language model's name within the Hugging Face model."""
    decoder = model.get_decoder()
    return next(name for name, part in model.named_modules() if part is decoder)


def lora_targets(model: Any, names: Sequence[str] = ()) -> str:
    """A regular expression of the layers that get an adapter: those whose last name is among `names`, or all of the language model.

    The vision tower has layers of the same names, which stay frozen: a clip's features are computed once.

    Raises LabError for a name that no linear layer of the language model has.
    """
    there = sorted({name.rpartition(".")[2] for name in linear_layers(model)[0]})
    for name in names:
        if name not in there:
            tower = any(other.rpartition(".")[2] == name for other in linear_layers(model)[1])
            near = nearest(name, there)
            raise LabError(
                f"lora_targets: '{name}' is no linear layer of the language model"
                + (", only of what is frozen beside it" if tower else f" (nearest: {near})" if near else "")
                + f"; it has {', '.join(there)}"
            )
    return rf"{re.escape(decoder_name(model))}\..*\.({'|'.join(sorted(set(names)) or there)})"


def add_lora(model: Any, rank: int, alpha: int, seed: int, names: Sequence[str] = ()) -> Any:
    """A `PeftModel` with LoRA of `rank` on the language model's linear layers, or those of these `names`; errors as `lora_targets`."""
    import torch
    from peft import LoraConfig, get_peft_model

    targets = lora_targets(model, names)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", lora_dropout=0.0)
    with torch.random.fork_rng([]):  # on the CPU, so that the adapter is the same whatever the device
        torch.default_generator.manual_seed(seed)
        return get_peft_model(model, config)


def skeleton(source: str) -> Any:
    """The Hugging Face model in a folder or of a hub id without its weights: names and shapes."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        return transformers.AutoModelForImageTextToText.from_config(config)


def require_nf4(device: str) -> None:
    """Raise LabError where 4 bits cannot be had on `device`: bitsandbytes is not installed, or does not know it."""
    import torch

    if find_spec("bitsandbytes") is None:
        raise LabError(
            "quantization: nf4 needs bitsandbytes, which is not installed; pip install 'labkit[qlora]', or set quantization: none"
        )
    import bitsandbytes

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device not in (known := getattr(bitsandbytes, "supported_torch_devices", {"cuda"})):
        raise LabError(
            f"quantization: the bitsandbytes {bitsandbytes.__version__} that is installed computes with 4 bits on "
            f"{', '.join(sorted(known))}, and not on {device}; upgrade it, take another device, or set quantization: none"
        )


def nf4_arguments(source: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` that keep the language model's linear layers in 4 bits; raises LabError as `require_nf4`.

    What is beside the language model keeps its numbers, and so do embeddings and the output layer.
    """
    from transformers import BitsAndBytesConfig

    require_nf4(device)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=linear_layers(skeleton(source))[1],
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": device}}


@contextmanager
def merged(model: Any) -> Iterator[int]:
    """Put plain linear layers of merged weights in the place of the adapted ones within the block; yields how many.

    What is no plain LoRA of a linear layer (DoRA, an adapted embedding, modules that are trained whole) stays and works as it is.
    `model` is a `PeftModel`, or any other, of which nothing is changed.
    """
    import torch

    names = [name for name, part in model.named_modules() if _can_merge(part)]
    replaced: list[tuple[Any, str, Any]] = []
    try:
        with torch.no_grad():
            _replace(model, names, replaced)
            _lay_together(replaced)
        yield len(replaced)
    finally:
        for owner, child, layer in replaced:
            setattr(owner, child, layer)


def _can_merge(part: Any) -> bool:
    import torch

    if not hasattr(part, "lora_A") or part.merged or part.disable_adapters:
        return False
    active = [name for name in part.active_adapters if name in part.lora_A]
    return isinstance(part.get_base_layer(), torch.nn.Linear) and not any(name in part.lora_variant for name in active)


def unload(model: Any) -> Any:
    """The Hugging Face model with adapters merged into its weights, none of them in 4 bits; `model` is of no use any more.

    Weights of 4 bits become what they stood for, so that the model answers as it was trained and measured.
    """
    import torch

    with torch.no_grad():
        _replace(model, [name for name, part in model.named_modules() if _can_merge(part)], [])
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        _replace(model, [name for name, part in model.named_modules() if hasattr(part, "quant_state")], [])
    if getattr(model, "hf_quantizer", None) is not None:
        model.hf_quantizer.remove_quantization_config(model)
    return model


def _replace(model: Any, names: Sequence[str], replaced: list[tuple[Any, str, Any]]) -> None:
    """Put `merged_linear` of these layers in their places; `replaced` gets what has to be set to undo it."""
    for name in names:
        parent, _, child = name.rpartition(".")
        owner, layer = model.get_submodule(parent), model.get_submodule(name)
        setattr(owner, child, merged_linear(layer))
        replaced.append((owner, child, layer))


TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers of one module that decoding may take as one product (`labkit.policy.decode_pass`)."""


def _lay_together(replaced: Sequence[tuple[Any, str, Any]]) -> None:
    """Put the merged weights of such layers behind each other in memory, so that joining them takes no further copy."""
    import torch

    merged_here = {(id(owner), child): getattr(owner, child) for owner, child, _ in replaced}
    for owner in {id(owner) for owner, _, _ in replaced}:
        for names in TOGETHER:
            # All of them: what is not adapted is the base's own.
            parts = [merged_here[owner, name] for name in names if (owner, name) in merged_here]
            if len(parts) == len(names):
                whole = torch.cat([part.weight for part in parts])
                for part, weight in zip(parts, whole.split([len(part.weight) for part in parts]), strict=True):
                    part.weight = torch.nn.Parameter(weight, requires_grad=False)


def merged_linear(layer: Any) -> Any:
    """A plain linear layer that does what PEFT's layer of active adapters does, or one of 4 bits, in the base's number type.

    In bfloat16 the sum is rounded up or down by chance, as likely as it is near, from random numbers that are always the same.
    Rounded to the nearest, most changes of a young adapter would be lost: they are smaller than half of the last bit of the weight
    that they change, and the chains would be those of the base. With none to add, the base's weights come out bit by bit.
    """
    import torch

    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    total, kind, bias = *_full_weight(base.weight), base.bias
    for name in getattr(layer, "active_adapters", ()):
        if name in layer.lora_A:
            down, up, scale = layer.lora_A[name].weight, layer.lora_B[name], layer.scaling[name]
            total = torch.addmm(total, up.weight.float(), down.float(), alpha=scale)
            if up.bias is not None:
                bias = torch.nn.Parameter(bias + scale * up.bias.to(bias.dtype), requires_grad=False)
    made = torch.nn.Linear(total.shape[1], total.shape[0], bias=False, device="meta")
    made.weight = torch.nn.Parameter(_rounded(total, kind), requires_grad=False)
    made.bias = bias
    return made.eval()


def _full_weight(weight: Any) -> tuple[torch.Tensor, torch.dtype]:
    """(O, I) in float32, and the number type that products with it are in."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().float(), weight.dtype
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).float(), state.dtype


def _rounded(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """(O, I) float32 to `kind`; to bfloat16 by a dither of fixed random numbers, whose mean is the value itself."""
    import torch

    if kind != torch.bfloat16:
        return values.to(kind)
    generator = torch.Generator(values.device).manual_seed(0)
    dither = torch.randint(1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    return (dither.add_(values.view(torch.int32)) & -(1 << 16)).view(torch.float32).to(kind)
