"""Attention over a shared beginning: many continuations of one prompt, none of which sees another.

Tokens stand in one line, row behind row without padding, and a row is a head with its tails:

    [head] [tail 1] [tail 2] ...    [head] [tail 1] ...

A head token attends to the head up to itself; a tail token to the whole head and to its own tail up to itself. So three plain
calls a row do the work, head on head, tails on head, tails on themselves, and nothing of the size of tokens x tokens is
ever made or multiplied. Two softmaxes over parts of one row of keys are merged exactly by their log-sums; backward, each call
is given the merged output and the merged log-sum, as ring attention does.

transformers asks this module for attention by name (`install`); without a layout it is `sdpa` as before. In the vision tower,
where transformers goes through windows and frames one by one, all of one size go together.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

NAME, VISION = "labkit", "labkit_flash"
"""What `_attn_implementation` says of the text model and of the vision tower; transformers hands all windows over at once
where the name holds `flash`."""


class Row(NamedTuple):
    """Lengths in tokens."""

    head: int
    tails: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        """Tokens of the row."""
        return self.head + sum(self.tails)


class Layout:
    """How a line of tokens is divided; goes through the model as the keyword argument `layout`."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Rows in the order in which they stand in the line."""
        self.rows = tuple(rows)
        self._slots: dict[tuple[Row, Any], torch.Tensor | None] = {}

    def slots(self, row: Row, device: Any) -> torch.Tensor | None:
        """Where each tail token goes in a rectangle (tails x longest tail); None when the tails fill it."""
        import torch

        if (row, device) not in self._slots:
            lengths = torch.tensor(row.tails)
            places = torch.arange(int(lengths.max()))
            shown = (places < lengths[:, None]).flatten().nonzero()[:, 0].to(device)
            self._slots[row, device] = None if len(shown) == len(lengths) * len(places) else shown
        return self._slots[row, device]


def install(model: Any) -> None:
    """Let a Hugging Face vision-language model ask this module for attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    if model.config.text_config._attn_implementation != NAME:
        AttentionInterface.register(NAME, attend)
        AttentionInterface.register(VISION, attend_windows)
        ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
        model.config.text_config._attn_implementation = NAME
        model.config.vision_config._attn_implementation = VISION


def attend(
    module: Any,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: torch.Tensor | None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: (B, H, L, d) queries to (B, L, H, d) outputs."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if hasattr(key, "attend"):  # what `labkit.policy.kv_cache.SharedCache` gave back
        return key.attend(query, options["scaling"]), None
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return _function().apply(query, key, value, layout, options["scaling"]).transpose(1, 2), None


def attend_windows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    cu_seq_lens_q: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer of the vision tower: (1, H, L, d) to (1, L, H, d), each window by itself."""
    import torch

    ends = cu_seq_lens_q.tolist()
    begins: dict[int, list[int]] = {}
    for begin, end in zip(ends, ends[1:], strict=False):
        begins.setdefault(end - begin, []).append(begin)
    attention = functools.partial(torch.nn.functional.scaled_dot_product_attention, scale=scaling)
    if len(begins) == 1:  # all of one size stand as they should; frames always do
        (length,) = begins
        found = attention(*(x[0].unflatten(1, (-1, length)).transpose(0, 1) for x in (query, key, value)))
        return found.transpose(1, 2).flatten(0, 1)[None], None
    out = torch.empty_like(query)
    for length, starts in begins.items():
        at = torch.tensor(starts, device=query.device)[:, None] + torch.arange(length, device=query.device)
        q, k, v = (x[0][:, at.flatten()].unflatten(1, at.shape).transpose(0, 1) for x in (query, key, value))
        out[0][:, at.flatten()] = attention(q, k, v).transpose(0, 1).flatten(1, 2)
    return out.transpose(1, 2), None


def no_mask(device: Any) -> torch.Tensor:
    """A mask that says that masks are ours: transformers takes four dimensions as they are, and `layout` decides."""
    import torch

    return torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)


def over_prompts(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    padding: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of rows to their prompts: outputs (N, K, m, d) and log-sums (N, K, m) of queries (N, K, m, d).

    Keys are (N, K, P, d), of which `lengths` count; `padding` (N, 1, 1, P) is -inf at the others.
    """
    import torch

    kernel = _kernel(query)
    if min(lengths) == key.shape[2]:
        return kernel.forward(query, key, value, False, scale)
    if kernel is not _Flash:
        return kernel.forward(query, key, value, False, scale, padding)
    parts = [
        kernel.forward(query[at, None], key[at, None, :, :length], value[at, None, :, :length], False, scale)
        for at, length in enumerate(lengths)
    ]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]


@functools.cache
def _function() -> Any:
    import torch

    def rectangle(x: torch.Tensor, row: Row, slots: torch.Tensor | None) -> torch.Tensor:
        """(1, H, T, d) tail tokens to (tails, H, longest, d)."""
        flat = x[0].transpose(0, 1)
        if slots is not None:
            whole = flat.new_zeros(len(row.tails) * max(row.tails), *flat.shape[1:])
            flat = whole.index_copy_(0, slots, flat)
        return flat.reshape(len(row.tails), max(row.tails), *flat.shape[1:]).transpose(1, 2)

    def line(x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
        """The way back."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return (flat if slots is None else flat[slots]).transpose(0, 1)[None]

    class OverHeads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, layout: Layout, scale: float) -> Any:
            kernel = _kernel(query)
            out = torch.empty_like(query)
            sums = query.new_empty(query.shape[:3], dtype=torch.float32)
            begin = 0
            for row in layout.rows:
                head, tail = slice(begin, begin + row.head), slice(begin + row.head, begin + row.length)
                q, k, v = (x[:, :, head] for x in (query, key, value))
                if row.head:
                    out[:, :, head], sums[:, :, head] = kernel.forward(q, k, v, True, scale)
                if row.tails:
                    slots = layout.slots(row, query.device)
                    q, k_own, v_own = (x[:, :, tail] for x in (query, key, value))
                    found, own_sums = kernel.forward(
                        *(rectangle(x, row, slots) for x in (q, k_own, v_own)), True, scale
                    )
                    found, own_sums = line(found, slots), line(own_sums[..., None], slots)[..., 0]
                    if row.head:
                        other, head_sums = kernel.forward(q, k, v, False, scale)
                        whole = torch.logaddexp(own_sums, head_sums)
                        found = (
                            found * (own_sums - whole).exp()[..., None] + other * (head_sums - whole).exp()[..., None]
                        )
                        own_sums = whole
                    out[:, :, tail], sums[:, :, tail] = found, own_sums
                begin += row.length
            ctx.save_for_backward(query, key, value, out, sums)
            ctx.layout, ctx.scale = layout, scale
            return out

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            query, key, value, out, sums = ctx.saved_tensors
            kernel, layout, scale = _kernel(query), ctx.layout, ctx.scale
            found = [torch.empty_like(x) for x in (query, key, value)]
            begin = 0
            for row in layout.rows:
                head, tail = slice(begin, begin + row.head), slice(begin + row.head, begin + row.length)
                k, v = key[:, :, head], value[:, :, head]
                if row.head:
                    given = [x[:, :, head] for x in (grad, query, key, value, out, sums)]
                    for into, part in zip(found, kernel.backward(*given, True, scale), strict=True):
                        into[:, :, head] = part
                if row.tails:
                    slots = layout.slots(row, query.device)
                    rest = [x[:, :, tail] for x in (grad, query, key, value, out, sums[..., None])]
                    given = [rectangle(x, row, slots) for x in rest]
                    given[-1] = given[-1][..., 0]
                    for into, part in zip(found, kernel.backward(*given, True, scale), strict=True):
                        into[:, :, tail] = line(part, slots)
                    if row.head:
                        d_query, d_key, d_value = kernel.backward(
                            rest[0], rest[1], k, v, rest[4], rest[5][..., 0], False, scale
                        )
                        found[0][:, :, tail] += d_query
                        found[1][:, :, head] += d_key
                        found[2][:, :, head] += d_value
                begin += row.length
            return (*found, None, None)

    return OverHeads


class _Flash:
    """CUDA, half precision: torch's flash attention, which shares keys among heads by itself."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, causal: bool, scale: float) -> tuple[Any, Any]:
        import torch

        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any, causal: bool, scale: float) -> Any:
        import torch

        none = torch.empty(0, dtype=torch.int64, device=q.device)  # of the random numbers that dropout would need
        return torch.ops.aten._scaled_dot_product_flash_attention_backward(
            grad, q, k, v, out, sums.contiguous(), None, None, q.shape[2], k.shape[2], 0.0, causal, none, none, scale=scale
        )  # fmt: skip


class _Cpu:
    """torch's flash attention for CPUs."""

    @staticmethod
    def forward(q: Any, k: Any, v: Any, causal: bool, scale: float, mask: Any = None) -> tuple[Any, Any]:
        import torch

        k, v = (_spread(x, q.shape[1]) for x in (k, v))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(q, k, v, 0.0, causal, attn_mask=mask, scale=scale)

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any, causal: bool, scale: float) -> Any:
        import torch

        heads = k.shape[1]
        k, v = (_spread(x, q.shape[1]) for x in (k, v))
        d_q, d_k, d_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, q, k, v, out, sums.contiguous(), 0.0, causal, scale=scale
        )
        return d_q, _gather(d_k, heads), _gather(d_v, heads)


class _Plain:
    """Everything else, such as float32 on a GPU: from the definition."""

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
        k, v = (_spread(x, q.shape[1]) for x in (k, v))
        scores = _Plain._scores(q, k, causal, scale)
        if mask is not None:
            scores += mask
        sums = scores.logsumexp(-1)
        return scores.sub_(sums[..., None]).exp_().to(v.dtype) @ v, sums

    @staticmethod
    def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, sums: Any, causal: bool, scale: float) -> Any:
        heads = k.shape[1]
        k, v = (_spread(x, q.shape[1]) for x in (k, v))
        shares = _Plain._scores(q, k, causal, scale).sub_(sums[..., None]).exp_()
        d_v = shares.to(grad.dtype).transpose(-1, -2) @ grad
        pull = (grad @ v.transpose(-1, -2)).float() - (grad.float() * out.float()).sum(-1, keepdim=True)
        d_scores = shares.mul_(pull).mul_(scale).to(q.dtype)
        return d_scores @ k, _gather(d_scores.transpose(-1, -2) @ q, heads), _gather(d_v, heads)


def _kernel(query: torch.Tensor) -> Any:
    import torch

    if query.device.type == "cpu":
        return _Cpu
    half = query.dtype in (torch.bfloat16, torch.float16)
    return _Flash if half and torch.cuda.get_device_capability(query.device)[0] >= 8 else _Plain


def _spread(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values, one copy for each query head."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def _gather(x: torch.Tensor, heads: int) -> torch.Tensor:
    """Gradients of the copies, summed."""
    return x if x.shape[1] == heads else x.unflatten(1, (heads, -1)).sum(2)
