"""Shared-prefix attention: many completions of one prompt in one packed sequence, none of which attends to another.

Tokens form one packed sequence, row after row without padding, and a row is a prefix with its suffixes:

    [prefix] [suffix 1] [suffix 2] ...    [prefix] [suffix 1] ...

A prefix token attends causally to the prefix; a suffix token to the whole prefix and causally to its own suffix. So three plain
calls a row do the work, prefix on prefix, suffixes on prefix, suffixes on themselves, and nothing of the size of tokens x tokens
is ever made or multiplied. Two softmaxes over parts of one row of keys are merged exactly by their log-sum-exp (`lse`); backward,
each call is given the merged output and the merged log-sum-exp, as ring attention does.

transformers calls this module by its `_attn_implementation` (`install_attention`); without a layout it is `sdpa` as before. In
the vision tower, where transformers goes through windows and frames one by one, all of one size are one batch.

Shapes: B batch, L tokens of the packed sequence, H query heads, K key/value heads, d width of a head; S suffixes of a row, T
tokens of the longest; N prompts of at most P tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.linear_attention import install_linear_attention

if TYPE_CHECKING:
    import torch

TEXT_ATTENTION, VISION_ATTENTION = "labkit", "labkit_flash"
"""`_attn_implementation` of the text model and of the vision tower; transformers passes all windows in one call where the name
holds `flash`."""


class PackedRow(NamedTuple):
    """A prompt and its completions in the packed sequence: lengths in tokens."""

    prefix: int
    suffixes: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.prefix + sum(self.suffixes)


class Layout:
    """Which tokens of a packed sequence may attend to which; passed through the model as the keyword argument `layout`."""

    def __init__(self, rows: Sequence[PackedRow]) -> None:
        """Rows in their order in the packed sequence."""
        self.rows = tuple(rows)
        self._slots: dict[tuple[PackedRow, Any], torch.Tensor | None] = {}

    def slots(self, row: PackedRow, device: Any) -> torch.Tensor | None:
        """Index of each suffix token in a padded (S * T) batch; None when all suffixes are equally long."""
        import torch

        if (row, device) not in self._slots:
            lengths = torch.tensor(row.suffixes)
            steps = torch.arange(int(lengths.max()))
            valid = (steps < lengths[:, None]).flatten().nonzero()[:, 0].to(device)
            self._slots[row, device] = None if len(valid) == len(lengths) * len(steps) else valid
        return self._slots[row, device]


def install_attention(model: Any) -> None:
    """Make a Hugging Face vision-language model use the attention of this module."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    install_linear_attention(model)
    if model.config.text_config._attn_implementation != TEXT_ATTENTION:
        AttentionInterface.register(TEXT_ATTENTION, packed_attention)
        AttentionInterface.register(VISION_ATTENTION, window_attention)
        ALL_MASK_ATTENTION_FUNCTIONS.register(TEXT_ATTENTION, sdpa_mask)
        model.config.text_config._attn_implementation = TEXT_ATTENTION
        if hasattr(model.model, "visual"):  # of Qwen's; the others' frames are one batch as they are
            model.config.vision_config._attn_implementation = VISION_ATTENTION


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of the text model's layers: (B, H, L, d) queries to (B, L, H, d) outputs.

    `key` is a `labkit.policy.kv_cache.CacheView` while completions are generated.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if hasattr(key, "attend"):
        return key.attend(query, options["scaling"]), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return _autograd_function().apply(query, key, value, layout, options["scaling"]).transpose(1, 2), None


def window_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of the vision tower's layers: (1, H, L, d) to (1, L, H, d), within each window or frame."""
    import torch

    ends = cu_seq_lens_q.tolist()
    begins: dict[int, list[int]] = {}
    for begin, end in zip(ends, ends[1:], strict=False):
        begins.setdefault(end - begin, []).append(begin)
    attention = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling)
    if len(begins) == 1:  # windows of one size are in order already; frames always are
        (length,) = begins
        out = attention(*(x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)))
        return out.transpose(1, 2).flatten(0, 1)[None], None
    out = torch.empty_like(query)
    for length, starts in begins.items():
        at = torch.tensor(starts, device=query.device)[:, None] + torch.arange(length, device=query.device)
        q, k, v = (x[0][:, at.flatten()].unflatten(1, at.shape).transpose(0, 1) for x in (query, key, value))
        out[0][:, at.flatten()] = attention(q, k, v).transpose(0, 1).flatten(1, 2)
    return out.transpose(1, 2), None


def no_attention_mask(device: Any) -> torch.Tensor:
    """A placeholder (1, 1, 1, 1): transformers leaves a mask of four dimensions as it is, and `layout` does the masking."""
    import torch

    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def attend_to_prompts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    padding_mask: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of generated tokens to their prompts: outputs (N, K, m, d) and log-sum-exp (N, K, m) of queries (N, K, m, d).

    Keys and values are (N, K, P, d), of which the first `lengths` count; `padding_mask` (N, 1, 1, P) is -inf at the others.
    """
    import torch

    kernel = _kernel_for(query)
    if min(lengths) == key.shape[2]:
        return kernel.forward(query, key, value, False, scale)
    if kernel is not _FlashCuda:
        return kernel.forward(query, key, value, False, scale, padding_mask)
    parts = [
        kernel.forward(query[at, None], key[at, None, :, :length], value[at, None, :, :length], False, scale)
        for at, length in enumerate(lengths)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


def attend_to_own(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of each row's newest token to all that it has generated: outputs (A, K, Q, d) and log-sum-exp (A, K, Q).

    Keys and values are (A, K, width, d); `mask` (1, 1, 1, width), of their type, is -inf at tokens that are not there yet.
    """
    import torch

    kernel = _kernel_for(query)
    if kernel is not _FlashCuda:
        return kernel.forward(query, key, value, False, scale, mask)
    every = None if mask is None else mask.expand(*query.shape[:3], -1)
    attend = torch.ops.aten._scaled_dot_product_efficient_attention  # flash attention takes no mask
    out, lse, *_ = attend(query, key, value, every, True, scale=scale)
    return out, lse[..., : query.shape[2]]  # padded to a multiple of 32


@functools.cache
def _autograd_function() -> Any:
    import torch

    def pad(x: torch.Tensor, row: PackedRow, slots: torch.Tensor | None) -> torch.Tensor:
        """(1, H, tokens, d) of a row's suffixes to (S, H, T, d), padded."""
        flat = x[0].transpose(0, 1)
        if slots is not None:
            padded = flat.new_zeros(len(row.suffixes) * max(row.suffixes), *flat.shape[1:])
            flat = padded.index_copy_(0, slots, flat)
        return flat.reshape(len(row.suffixes), max(row.suffixes), *flat.shape[1:]).transpose(1, 2)

    def unpad(x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
        """(S, H, T, d) back to (1, H, tokens, d)."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return (flat if slots is None else flat[slots]).transpose(0, 1)[None]

    class SharedPrefixAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, layout: Layout, scale: float) -> Any:
            kernel = _kernel_for(query)
            out = torch.empty_like(query)
            lse = query.new_empty(query.shape[:3], dtype=torch.float32)
            begin = 0
            for row in layout.rows:
                prefix, suffix = slice(begin, begin + row.prefix), slice(begin + row.prefix, begin + row.length)
                q, k, v = (x[:, :, prefix] for x in (query, key, value))
                if row.prefix:
                    out[:, :, prefix], lse[:, :, prefix] = kernel.forward(q, k, v, True, scale)
                if row.suffixes:
                    slots = layout.slots(row, query.device)
                    q, k_suffix, v_suffix = (x[:, :, suffix] for x in (query, key, value))
                    out_suffix, suffix_lse = kernel.forward(
                        *(pad(x, row, slots) for x in (q, k_suffix, v_suffix)), True, scale
                    )
                    out_suffix, suffix_lse = unpad(out_suffix, slots), unpad(suffix_lse[..., None], slots)[..., 0]
                    if row.prefix:
                        on_prefix, prefix_lse = kernel.forward(q, k, v, False, scale)
                        merged_lse = torch.logaddexp(suffix_lse, prefix_lse)
                        out_suffix = (
                            out_suffix * (suffix_lse - merged_lse).exp()[..., None]
                            + on_prefix * (prefix_lse - merged_lse).exp()[..., None]
                        )
                        suffix_lse = merged_lse
                    out[:, :, suffix], lse[:, :, suffix] = out_suffix, suffix_lse
                begin += row.length
            ctx.save_for_backward(query, key, value, out, lse)
            ctx.layout, ctx.scale = layout, scale
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            query, key, value, out, lse = ctx.saved_tensors
            kernel, layout, scale = _kernel_for(query), ctx.layout, ctx.scale
            grads = [torch.empty_like(x) for x in (query, key, value)]
            begin = 0
            for row in layout.rows:
                prefix, suffix = slice(begin, begin + row.prefix), slice(begin + row.prefix, begin + row.length)
                k, v = key[:, :, prefix], value[:, :, prefix]
                if row.prefix:
                    given = [x[:, :, prefix] for x in (grad, query, key, value, out, lse)]
                    for into, part in zip(grads, kernel.backward(*given, True, scale), strict=True):
                        into[:, :, prefix] = part
                if row.suffixes:
                    slots = layout.slots(row, query.device)
                    rest = [x[:, :, suffix] for x in (grad, query, key, value, out, lse[..., None])]
                    given = [pad(x, row, slots) for x in rest]
                    given[-1] = given[-1][..., 0]
                    for into, part in zip(grads, kernel.backward(*given, True, scale), strict=True):
                        into[:, :, suffix] = unpad(part, slots)
                    if row.prefix:
                        d_query, d_key, d_value = kernel.backward(
                            rest[0], rest[1], k, v, rest[4], rest[5][..., 0], False, scale
                        )
                        grads[0][:, :, suffix] += d_query
                        grads[1][:, :, prefix] += d_key
                        grads[2][:, :, prefix] += d_value
                begin += row.length
            return (*grads, None, None)

    return SharedPrefixAttention


class _FlashCuda:
    """torch's flash attention for CUDA and half precision, which does grouped-query attention by itself."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, causal: bool, scale: float) -> tuple[Any, Any]:
        import torch

        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Any:
        import torch

        none = torch.empty(0, dtype=torch.int64, device=q.device)  # of the random numbers that dropout would need
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, lse.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, none, none, scale=scale
        )  # fmt: skip


class _FlashCpu:
    """torch's flash attention for CPUs."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any = None) -> tuple[Any, Any]:
        import torch

        k, v = (repeat_kv(x, q.shape[1]) for x in (k, v))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Any:
        import torch

        heads = k.shape[1]
        k, v = (repeat_kv(x, q.shape[1]) for x in (k, v))
        d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, lse.contiguous(), 0.0, causal, scale=scale
        )
        return d_q, sum_kv_grads(d_k, heads), sum_kv_grads(d_v, heads)


class _Eager:
    """From the definition, for everything else, such as float32 on a GPU."""

    @staticmethod
    def _scores(q: Any, k: Any, causal: bool, scale: float) -> Any:
        import torch

        scores = (q @ k.transpose(-1, -2)).float() * scale
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
            scores.masked_fill_(later, -torch.inf)
        return scores

    @staticmethod
    def forward(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any = None) -> tuple[Any, Any]:
        k, v = (repeat_kv(x, q.shape[1]) for x in (k, v))
        scores = _Eager._scores(q, k, causal, scale)
        if mask is not None:
            scores += mask
        lse = scores.logsumexp(-1)
        return scores.sub_(lse[..., None]).exp_().to(v.dtype) @ v, lse

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, causal: bool, scale: float) -> Any:
        heads = k.shape[1]
        k, v = (repeat_kv(x, q.shape[1]) for x in (k, v))
        probs = _Eager._scores(q, k, causal, scale).sub_(lse[..., None]).exp_()
        d_v = probs.to(grad.dtype).transpose(-1, -2) @ grad
        d_probs = (grad @ v.transpose(-1, -2)).float() - (grad.float() * out.float()).sum(-1, keepdim=True)
        d_scores = probs.mul_(d_probs).mul_(scale).to(q.dtype)
        return d_scores @ k, sum_kv_grads(d_scores.transpose(-1, -2) @ q, heads), sum_kv_grads(d_v, heads)


def _kernel_for(query: torch.Tensor) -> Any:
    import torch

    if query.device.type == "cpu":
        return _FlashCpu
    half = query.dtype in (torch.bfloat16, torch.float16)
    return _FlashCuda if half and torch.cuda.get_device_capability(query.device)[0] >= 8 else _Eager


def repeat_kv(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, K, L, d) keys or values to (B, H, L, d): one copy for each query head, as grouped-query attention shares them."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def sum_kv_grads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(B, H, L, d) gradients to (B, K, L, d), summed over the copies that `repeat_kv` made."""
    return x if x.shape[1] == heads else x.unflatten(1, (heads, -1)).sum(2)
