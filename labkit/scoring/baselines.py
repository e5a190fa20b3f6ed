"""What is had without looking: answers that ignore the video, and chains dealt to other queries.

A score says something about seeing only by how far it lies above the first. A constant is one span for every query, in parts of
the video; the training prior guesses a span that some training query had. A chain whose spans shrink looks as if it narrowed towards
something, whatever it was about: so each chain moves as a whole to the query of another, a thousand times, and what the figures are
then is what habits of place and length are worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain
from labkit.chain.spans import Span, SpanSet, iou_array
from labkit.chain.steps import LEAST_GAIN
from labkit.data.moments import Moment

Floats = NDArray[np.float64]


class Constant(NamedTuple):
    """One answer for every query: a span in parts of the video, both ends in [0, 1]."""

    start: float
    end: float


WHOLE_VIDEO = Constant(0.0, 1.0)
"""The answer that never misses and never says anything."""
CENTRE_HALF = Constant(0.25, 0.75)
"""The middle of the video, half as long as it is."""


def constant_ious(constant: Constant, windows: Sequence[Sequence[Span]], durations: Sequence[float]) -> Floats:
    """IoU of one constant answer on each query; `WHOLE_VIDEO` is the plainest.

    >>> constant_ious(WHOLE_VIDEO, [[Span(0, 10)], [Span(0, 10)]], [20.0, 40.0]).tolist()
    [0.5, 0.25]
    """
    return _constant_ious(constant, *_padded(windows, durations))


def best_constant(windows: Sequence[Sequence[Span]], durations: Sequence[float], *, steps: int = 20) -> Constant:
    """The constant answer with the highest mIoU on these queries (the training set), on a grid of 1 / steps.

    A model that doesn't beat it on the test set shows no sign of having looked at the video.

    >>> best_constant([[Span(5, 10)], [Span(10, 20)]], [20.0, 40.0])
    Constant(start=0.25, end=0.5)
    """
    padded = _padded(windows, durations)
    grid = [Constant(a / steps, b / steps) for a in range(steps) for b in range(a + 1, steps + 1)]
    return max(grid, key=lambda constant: float(_constant_ious(constant, *padded).mean()))


def best_constant_miou(moments: Sequence[Moment], train: Sequence[Moment]) -> float:
    """MIoU on moments of the constant answer that is best on the training set."""
    constant = best_constant([moment.targets for moment in train], [moment.duration for moment in train])
    ious = constant_ious(constant, [moment.targets for moment in moments], [moment.duration for moment in moments])
    return float(ious.mean())


def relative_spans(windows: Sequence[Sequence[Span]], durations: Sequence[float]) -> Floats:
    """Every window of a training set in parts of its video, (M, 2): where and how long things happen there.

    Start and end together are centre and length together, so drawing a row draws from the joint distribution.

    >>> relative_spans([[Span(5, 10)], [Span(0, 10), Span(30, 40)]], [20.0, 40.0]).tolist()
    [[0.25, 0.5], [0.0, 0.25], [0.75, 1.0]]
    """
    gold = padded_windows(windows, len(durations)) / np.asarray(durations, dtype=np.float64)[:, None, None]
    return gold[~np.isnan(gold[..., 0])]


def prior_ious(
    prior: Floats, windows: Sequence[Sequence[Span]], durations: Sequence[float], *, draws: int = 200, seed: int = 0
) -> Floats:
    """IoUs of `draws` guesses on each query, (N, draws), each a row of `relative_spans` drawn with equal chance.

    Means over the draws are what guessing from the training set is expected to score.

    >>> prior_ious(np.array([[0.0, 0.5]]), [[Span(0, 10)]], [20.0], draws=3).tolist()
    [[1.0, 1.0, 1.0]]
    """
    if not len(prior):
        raise ValueError("no training window to draw from; give a training set with at least one")
    gold, together, ends = _padded(windows, durations)
    picked = np.random.default_rng(seed).integers(0, len(prior), (len(ends), draws))
    return window_ious(prior[picked] * ends[:, None, None], gold, together)


def window_ious(spans: Floats, gold: Floats, together: NDArray[np.bool_]) -> Floats:
    """IoU of spans (N, K, 2) with the best window of each query, of `padded_windows`, or with all where they are one set; (N, K).

    >>> gold = padded_windows([[Span(0, 4), Span(6, 10)]] * 2, 2)
    >>> window_ious(np.array([[[0.0, 4.0]]] * 2), gold, np.array([False, True])).tolist()
    [[1.0], [0.5]]
    """
    ious, shared = np.zeros(spans.shape[:2]), np.zeros((int(together.sum()), spans.shape[1]))
    # Window by window keeps memory at one array of spans, however many windows a query has. fmax passes over NaN.
    for window in np.moveaxis(gold[:, :, None, :], 1, 0):
        np.fmax(ious, iou_array(spans, window), out=ious)
        ends, starts = (
            of(spans[together, :, side], window[together, :, side]) for of, side in ((np.minimum, 1), (np.maximum, 0))
        )
        shared += np.fmax(0.0, ends - starts)
    lengths = np.nansum(gold[together, :, 1] - gold[together, :, 0], axis=1)[:, None]
    ious[together] = shared / (spans[together, :, 1] - spans[together, :, 0] + lengths - shared)
    return ious


def padded_windows(windows: Sequence[Sequence[Span]], rows: int) -> Floats:
    """The truth windows of all queries as one array, (N, most windows, 2), NaN where a query has fewer; a set's spans one by one.

    Raises: ValueError unless there is one list for each of `rows` queries, each with a window.

    >>> padded_windows([[Span(0, 4)], [Span(1, 2), Span(5, 6)]], 2).tolist()
    [[[0.0, 4.0], [nan, nan]], [[1.0, 2.0], [5.0, 6.0]]]
    """
    if len(windows) != rows or not rows or not all(windows):
        raise ValueError(f"{len(windows)} lists of windows for {rows} durations: need one list with a window for each")
    table = [[(part.start, part.end) for window in gold for part in window.parts] for gold in windows]
    nothing = [(np.nan, np.nan)] * max(map(len, table))
    return np.array([row + nothing[len(row) :] for row in table], dtype=np.float64)


def are_sets(windows: Sequence[Sequence[Span]]) -> NDArray[np.bool_]:
    """Which queries' truth is a set of several spans."""
    return np.array([type(gold[0]) is SpanSet for gold in windows], dtype=np.bool_)


def _padded(windows: Sequence[Sequence[Span]], durations: Sequence[float]) -> tuple[Floats, NDArray[np.bool_], Floats]:
    gold = padded_windows(windows, len(durations))
    return gold, are_sets(windows), np.asarray(durations, dtype=np.float64)


def _constant_ious(constant: Constant, gold: Floats, together: NDArray[np.bool_], durations: Floats) -> Floats:
    return window_ious(durations[:, None, None] * np.array(constant), gold, together)[:, 0]


SHUFFLED_FIGURES = {
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
    """The figures `SHUFFLED_FIGURES` of chains with an anchor, each beside its moment; empty where fewer than two have one.

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
    observed = _chain_figures(spans, counts, gold)
    null = np.array([_chain_figures(spans, counts, gold[generator.permutation(len(rows))]) for _ in range(shuffles)])
    return {
        name: Null(
            observed[k], float(null[:, k].mean()), float(np.quantile(null[:, k], 0.025)), float(np.quantile(null[:, k], 0.975)),
            (1 + int((null[:, k] >= observed[k] - _ROUNDING).sum())) / (1 + shuffles),
        )
        for k, name in enumerate(SHUFFLED_FIGURES)
    }  # fmt: skip


def _chain_figures(spans: Floats, counts: NDArray[np.int64], gold: Floats) -> list[float]:
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
