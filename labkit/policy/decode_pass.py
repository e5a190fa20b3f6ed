"""One token of each row through the language model, without transformers' modules in between.

While completions are sampled, a layer is a hundred small operations, whose starts cost more than what they compute. Here it is written
once for all families whose decoder is Llama's (RMSNorm, rotary attention, SwiGLU): q, k and v are one product and are rotated and
kept together, and angles are computed once for a batch of prompts. On a GPU with Triton gate and up are one product, too, and all
around the attention is compiled by `torch.compile`, once for all layers, whose weights are arguments. Joined weights are copied anew
for each batch of prompts, so that what was learnt since then is in them; the copies go with the batch. Those of a merged adapter
are such copies already.

Shapes: A active rows, N prompts, E width of the model, I of its MLP; H query heads, K key/value heads of width d.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.policy.inputs import position_ids
from labkit.policy.kv_cache import SharedPrefixCache, merge_outputs

if TYPE_CHECKING:
    import torch

LAYERS = frozenset({
    "Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer", "Qwen3VLTextDecoderLayer", "LlamaDecoderLayer", "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
})  # fmt: skip
"""transformers' classes of the layers that are computed here; a model with any other goes through its own modules."""

MOST_APART = 0.1
"""Of a distribution, moved: rounding of bfloat16 moves some hundredths."""


class LayerWeights(NamedTuple):
    """The weights of one layer, as the functions below take them."""

    qkv: torch.Tensor
    """((H + 2 K) d, E)"""
    qkv_bias: torch.Tensor | None
    out: torch.Tensor
    gate_up: tuple[torch.Tensor, ...]
    """Gate and up (I, E) each, or both as one (2 I, E)."""
    down: torch.Tensor
    norms: tuple[torch.Tensor, torch.Tensor]
    """(E,) before attention and before the MLP."""
    head_norms: tuple[torch.Tensor, torch.Tensor] | None
    """(d,) of queries and keys, as Qwen3 has them."""


def can_decode(base: Any) -> bool:
    """Whether a Hugging Face model is computed here: layers of a known class that are no more than their linear modules' weights.

    Adapters that are not merged and quantized weights are not: their modules do more than multiply.
    """
    import torch

    decoder = base.get_decoder()
    if getattr(decoder, "has_sliding_layers", False) or decoder.config.hidden_act != "silu":
        return False
    rope = decoder.config.rope_parameters.get("rope_type", "default")
    return (
        rope not in ("dynamic", "longrope")
        and all(
            type(layer).__name__.removeprefix("FSDP") in LAYERS  # as fully_shard calls its layers
            and all(type(each) is torch.nn.Linear for each in _linears(layer))
            and all(each.bias is None for each in _linears(layer)[3:])
            for layer in decoder.layers
        )
    )


def can_compile(device: Any) -> bool:
    """Whether layers are compiled: on a GPU for which there is Triton. On a CPU it would cost more than a short run gains."""
    return device.type == "cuda" and find_spec("triton") is not None


def require_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Raise LabError where logits (A, V) of the compiled pass are others than those of the model's own modules, rounding aside."""
    apart = float((found.float().softmax(-1) - expected.float().softmax(-1)).abs().sum(-1).max()) / 2
    if not apart <= MOST_APART:
        raise LabError(
            f"fused decoding answers otherwise than the model does: {apart:.2f} of the next token's probability lies elsewhere; set "
            "fused_decoding: false, and please report the GPU and the versions of torch and transformers"
        )


class DecodePass:
    """Logits of the next token of each row, from its newest; keeps that one's keys and values in the cache."""

    def __init__(self, base: Any, cache: SharedPrefixCache, last_positions: torch.Tensor, length: int) -> None:
        """`last_positions` (axes, N) of the prompts; `length` tokens of a row at most."""
        import torch

        decoder, self.cache = base.get_decoder(), cache
        self.compiled = can_compile(base.device)
        self.layers = [_weights(each, self.compiled) for each in decoder.layers]
        self.embeddings, self.head = decoder.embed_tokens.weight, base.get_output_embeddings().weight
        self.norm, self.epsilon = decoder.norm.weight, decoder.norm.variance_epsilon
        attention = decoder.layers[0].self_attn
        self.width, self.scale = attention.head_dim, attention.scaling
        places = last_positions[..., None] + torch.arange(1, length + 1, device=last_positions.device)
        cos, sin = decoder.rotary_emb(self.norm, position_ids(places))
        half = cos.shape[-1] // 2
        # x * cos + rotate_half(x) * sin, with the minus sign of a half in the sine.
        self.angles = torch.stack([cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)])
        """(2, N, length, d)"""
        functions: tuple[Callable[..., Any], ...] = (_before, merge_outputs, _after)
        self.before, self.merge, self.after = _compiled(*functions) if self.compiled else functions

    def __call__(self, tokens: torch.Tensor, at: torch.Tensor, row_to_prompt: torch.Tensor) -> torch.Tensor:
        """(A, 1) tokens, which are number `at` (1,) of their rows, to (A, V) logits; `row_to_prompt` (A,)."""
        import torch

        angles = self.angles.index_select(2, at).index_select(1, row_to_prompt)
        x: Any = torch.nn.functional.embedding(tokens[:, 0], self.embeddings)
        delta: Any = torch.zeros_like(x)
        for number, layer in enumerate(self.layers):
            x, query, new = self.before(x, delta, layer, angles, self.width, self.epsilon)
            self.cache.append(number, new)
            out = self.cache.attend(number, query, self.scale, self.merge if self.compiled else None)
            x, delta = self.after(x, out.flatten(1), layer, self.epsilon)
        return torch.nn.functional.linear(_norm(x + delta, self.norm, self.epsilon), self.head)


def _before(
    x: torch.Tensor, delta: torch.Tensor, layer: LayerWeights, angles: torch.Tensor, width: int, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both summands (A, E) of a layer's input to their sum, queries (A, K, Q, d), keys and values (2, A, K, d)."""
    import torch

    x = x + delta
    qkv = torch.nn.functional.linear(_norm(x, layer.norms[0], epsilon), layer.qkv, layer.qkv_bias)
    qkv = qkv.unflatten(-1, (-1, width))
    kv_heads = (qkv.shape[1] - layer.out.shape[1] // width) // 2
    turned, values = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
    if layer.head_norms is not None:
        parts = zip((turned[:, :-kv_heads], turned[:, -kv_heads:]), layer.head_norms, strict=True)
        turned = torch.cat([_norm(part, weight, epsilon) for part, weight in parts], 1)
    turned = turned * angles[0] + turned.roll(width // 2, -1) * angles[1]
    query = turned[:, :-kv_heads].unflatten(1, (kv_heads, -1))
    return x, query, torch.stack([turned[:, -kv_heads:], values])


def _after(x: torch.Tensor, out: torch.Tensor, layer: LayerWeights, epsilon: float) -> tuple[Any, torch.Tensor]:
    """Inputs (A, E) and the attention's outputs (A, H d) to the two summands (A, E) of the layer's output."""
    from torch.nn.functional import linear, silu

    x = x + linear(out, layer.out)
    hidden = _norm(x, layer.norms[1], epsilon)
    products = [linear(hidden, weight) for weight in layer.gate_up]
    gate, up = products if len(products) == 2 else products[0].chunk(2, -1)
    return x, linear(silu(gate) * up, layer.down)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """RMSNorm as transformers rounds it; in float32 torch's own does the same in one call."""
    import torch

    if x.dtype == torch.float32:
        return torch.rms_norm(x, weight.shape, weight, epsilon)
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj,
    ]  # fmt: skip


def _weights(layer: Any, joined: bool) -> LayerWeights:
    import torch

    *qkv, out, gate, up, down = _linears(layer)
    attention = layer.self_attn
    gate_up = gate.weight, up.weight
    return LayerWeights(
        _joined([each.weight for each in qkv]),
        None if qkv[0].bias is None else torch.cat([each.bias for each in qkv]),
        out.weight,
        (_joined(gate_up),) if joined else gate_up,
        down.weight,
        (layer.input_layernorm.weight, layer.post_attention_layernorm.weight),
        (attention.q_norm.weight, attention.k_norm.weight) if hasattr(attention, "q_norm") else None,
    )


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Matrices as one below the other; no copy where they lie so, as those of a merged adapter do (`labkit.policy.adapters`)."""
    import torch

    first, end = parts[0], parts[0].storage_offset()
    memory = first.untyped_storage().data_ptr()
    for part in parts:
        if part.untyped_storage().data_ptr() != memory or part.storage_offset() != end or not part.is_contiguous():
            return torch.cat(list(parts))
        end += part.numel()
    return first.detach().as_strided((sum(map(len, parts)), first.shape[1]), first.stride())


@functools.cache
def _compiled(*functions: Callable[..., Any]) -> tuple[Callable[..., Any], ...]:
    """Compiled once a process: weights are arguments, so all layers share one."""
    import torch

    return tuple(torch.compile(function) for function in functions)
