"""The null of "chains narrow": the same chains, each dealt to another query.

A chain whose spans shrink would look as if it narrowed towards something, whatever it was about. So each chain moves as a whole,
with the order of its spans, to the query of another (in parts of the clip's length, where clips differ in it), a thousand times: what
the figures are then is what habits of place and length are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain
from labkit.chain.spans import iou_array
from labkit.chain.steps import LEAST_GAIN
from labkit.data.moments import Moment
from labkit.scoring.baselines import padded_windows

Floats = NDArray[np.float64]

FIGURES = {
    "iou_first": "first anchor",
    "iou_last": "last anchor",
    "iou_answer": "answer",
    "strict_share": "share that narrows",
}
"""What is held against its null, as in `labkit.chain.metrics.chain_figures`; the share is of the chains with an anchor."""
_ROUNDING = 1e-9


class Null(NamedTuple):
    """A figure of the chains as they are, and of the same chains shuffled."""

    observed: float
    mean: float
    low: float
    """2.5 % of the shuffles lie below."""
    high: float
    """2.5 % of the shuffles lie above."""
    p: float
    """Share of shuffles that reach what was observed, the chains as they are counted among them."""


def shuffled_chains(
    chains: Sequence[AnchorChain], moments: Sequence[Moment], *, shuffles: int = 1000, seed: int = 0
) -> dict[str, Null]:
    """The figures `FIGURES` of chains with an anchor, each beside its moment; empty where fewer than two have one.

    Chains and truths of several spans are left out.

    Source: a permutation test; that chains move as a whole is our choice.
    """
    rows = [
        (chain, moment)
        for chain, moment in zip(chains, moments, strict=True)
        if chain.anchors and all(len(span.parts) == 1 for span in (*chain.steps, *moment.targets))
    ]
    if len(rows) < 2:
        return {}
    most = max(len(chain.anchors) for chain, _ in rows)
    counts = np.array([len(chain.anchors) for chain, _ in rows])
    spans = np.full((len(rows), most + 1, 2), np.nan)  # anchors, then the answer, in parts of the clip
    for row, (chain, moment) in enumerate(rows):
        steps = [*enumerate(chain.spans), *([(most, chain.answer)] if chain.answer else [])]
        for place, span in steps:
            spans[row, place] = np.clip((span.start / moment.duration, span.end / moment.duration), 0.0, 1.0)
    durations = np.array([moment.duration for _, moment in rows])
    gold = padded_windows([moment.windows for _, moment in rows], len(rows)) / durations[:, None, None]
    generator = np.random.default_rng(seed)
    observed = _figures(spans, counts, gold)
    null = np.array([_figures(spans, counts, gold[generator.permutation(len(rows))]) for _ in range(shuffles)])
    return {
        name: Null(
            observed[k], float(null[:, k].mean()), float(np.quantile(null[:, k], 0.025)), float(np.quantile(null[:, k], 0.975)),
            (1 + int((null[:, k] >= observed[k] - _ROUNDING).sum())) / (1 + shuffles),
        )
        for k, name in enumerate(FIGURES)
    }  # fmt: skip


def _figures(spans: Floats, counts: NDArray[np.int64], gold: Floats) -> list[float]:
    """The figures of chains (N, K + 1, 2), of which the first `counts` spans are anchors, on windows (N, W, 2)."""
    with np.errstate(invalid="ignore"):
        ious = np.fmax.reduce(iou_array(spans[:, :, None], gold[:, None]), axis=2, initial=0.0)
    ious = np.where(spans[:, :, 0] < spans[:, :, 1], ious, 0.0)  # no answer, or nothing inside the clip
    anchors = ious[:, :-1]
    gains = anchors[:, 1:] - anchors[:, :-1]
    step = (anchors[:, :-1] > 0) & (gains >= LEAST_GAIN - _ROUNDING)
    there = np.arange(1, anchors.shape[1]) < counts[:, None]
    strict = (step | ~there).all(axis=1) & (counts > 1)
    last = anchors[np.arange(len(anchors)), counts - 1]
    return [float(values.mean()) for values in (anchors[:, 0], last, ious[:, -1], strict)]
