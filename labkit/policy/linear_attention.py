"""Gated linear attention (Qwen3.5's) with shared prefixes: a suffix begins from the state that its prefix leaves.

A linear layer has no keys and values of the tokens behind it but one state, and of its short convolution the last inputs. So in a
packed sequence (`labkit.policy.attention.Layout`) the prefix is run once, and its suffixes as one batch, each from a copy of both.
That is exact: what differs from one sample at a time is where the recurrence is cut into chunks, which is rounding. Padding has
neither a decay nor a step, so the state behind it is the suffix's own.

Two functions of transformers' modeling file are wrapped; without a layout they are what they were.

Shapes: L tokens of the packed sequence, D channels, H heads, d width of a head; S suffixes of a row, T tokens of the longest, K taps.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

CONVOLUTION, RECURRENCE = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"


def install_linear_attention(model: Any) -> None:
    """Make the linear layers of a Hugging Face model keep to the layout of a packed sequence, if it has any."""
    modeling = sys.modules[type(model).__module__]
    if model.device.type == "cpu":  # on a GPU it is worth knowing that a faster kernel is not installed
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    for name, branched in ((CONVOLUTION, _convolve), (RECURRENCE, _recur)):
        plain = getattr(modeling, name, None)
        if plain is not None and not hasattr(plain, "labkit_plain"):
            wrapped = functools.wraps(plain)(functools.partial(_with_layout, plain, branched))
            wrapped.labkit_plain = plain  # type: ignore[attr-defined]
            setattr(modeling, name, wrapped)


def _with_layout(
    plain: Callable[..., Any], branched: Callable[..., Any], *tensors: Any, layout: Any = None, **options: Any
) -> Any:
    return plain(*tensors, **options) if layout is None else branched(plain, layout, *tensors, **options)


def _convolve(plain: Any, layout: Any, x: torch.Tensor, weight: torch.Tensor, *rest: Any, **options: Any) -> Any:
    """(1, D, L) inputs to outputs of the same shape."""
    import torch

    taps = weight.shape[-1] - 1
    parts, begin = [], 0
    for row in layout.rows:
        prefix, suffix = x[:, :, begin : begin + row.prefix], x[:, :, begin + row.prefix : begin + row.length]
        if row.prefix:
            parts.append(plain(prefix, weight, *rest, **options))
        if row.suffixes:
            slots = layout.slots(row, x.device)
            last = torch.nn.functional.pad(prefix[:, :, max(0, row.prefix - taps) :], (max(0, taps - row.prefix), 0))
            each = _pad(suffix.transpose(1, 2), row, slots).transpose(1, 2)  # (S, D, T)
            out = plain(torch.cat([last.expand(len(each), -1, -1), each], -1), weight, *rest, **options)
            parts.append(_unpad(out[:, :, taps:].transpose(1, 2), slots).transpose(1, 2))
        begin += row.length
    return torch.cat(parts, -1)


def _recur(
    plain: Any,
    layout: Any,
    *tensors: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Any = None,
    output_final_state: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries, keys and values (1, L, H, d), decays and steps (1, L, H), to outputs (1, L, H, d).

    Also the states (N, H, d, d) at the end of each suffix, or of a row without any, in their order, if asked for.
    """
    import torch

    def run(values: list[torch.Tensor], state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, decay, step = values
        return plain(q, k, v, g=decay, beta=step, initial_state=state, output_final_state=True, **options)

    outputs: list[Any] = []
    states: list[Any] = []
    begin = 0
    for row in layout.rows:
        state = None
        if row.prefix:
            out, state = run([x[:, begin : begin + row.prefix] for x in (*tensors, g, beta)], None)
            outputs.append(out)
        if row.suffixes:
            slots = layout.slots(row, g.device)
            each = [_pad(x[:, begin + row.prefix : begin + row.length], row, slots) for x in (*tensors, g, beta)]
            out, state = run(each, None if state is None else state.expand(len(row.suffixes), -1, -1, -1))
            outputs.append(_unpad(out, slots))
        states.append(state)
        begin += row.length
    return torch.cat(outputs, 1), torch.cat(states) if output_final_state else None


def _pad(x: torch.Tensor, row: Any, slots: torch.Tensor | None) -> torch.Tensor:
    """(1, tokens, ...) of a row's suffixes to (S, T, ...), padded with zeros."""
    flat = x[0]
    if slots is not None:
        flat = flat.new_zeros(len(row.suffixes) * max(row.suffixes), *flat.shape[1:]).index_copy(0, slots, flat)
    return flat.reshape(len(row.suffixes), max(row.suffixes), *flat.shape[1:])


def _unpad(x: torch.Tensor, slots: torch.Tensor | None) -> torch.Tensor:
    """(S, T, ...) back to (1, tokens, ...)."""
    flat = x.flatten(0, 1)
    return (flat if slots is None else flat[slots])[None]
