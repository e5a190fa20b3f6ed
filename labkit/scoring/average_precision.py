"""Ranked windows: mean average precision as QVHighlights' own evaluator defines it.

A model may name several windows for a query, best first. Each predicted window, in the order of its score, takes the
free truth window that it agrees with best, if their IoU reaches the threshold; precision over the ranks is then made
monotone and averaged over the truth windows. Everything is done for all queries at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.chain.spans import Span, iou_array
from labkit.scoring.baselines import padded_windows

Floats = NDArray[np.float64]
Pair = tuple[float, float]

AP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, ... 0.95; each is reached with `>=`. Source: QVHighlights."""
LENGTH_CLASSES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}
"""Truth windows by their length in seconds, above the first and up to the second number. Source: QVHighlights, whose long
ones end at the 150 s of its clips."""
MOST_WINDOWS = 10
"""Windows of a query that count: the first ones in the file, before they are ordered by score. Source: QVHighlights."""


def average_precisions(
    ranked: Sequence[Sequence[Pair]],
    windows: Sequence[Sequence[Span]],
    scores: Sequence[Sequence[float] | None] | None = None,
) -> Floats:
    """Average precision of each query at each of AP_THRESHOLDS, (N, 10); mAP is the mean of all.

    `ranked` holds each query's predicted [start, end], best first; where `scores` has numbers for a query they order its
    windows, equal ones in the file's order. Predictions aren't cut to the video, and a window that is no span (start >= end)
    meets nothing but takes its rank. A query with more truth windows than MOST_WINDOWS can't reach 1; one without
    predictions has 0, where QVHighlights' program leaves it out.
    Raises: ValueError unless there is one row for each query, each with a truth window, and a score for each window.
    Source: QVHighlights' standalone evaluator.

    >>> truth = [[Span(0, 10), Span(20, 30)]]
    >>> average_precisions([[(0, 10), (50, 60), (20, 30)]], truth).mean().round(4).item()
    0.8333
    """
    if len(ranked) != len(windows):
        raise ValueError(f"{len(ranked)} rows of predictions for {len(windows)} lists of windows: one each")
    gold = padded_windows(windows, len(windows))
    pred = _padded([_ordered(row, None if scores is None else scores[n]) for n, row in enumerate(ranked)])
    found = _matches(pred, gold)
    ranks = np.arange(1, pred.shape[1] + 1)
    precision = np.cumsum(found, axis=2) / ranks
    # At each rank the best precision from there on: the interpolation of Pascal VOC.
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    truths = (~np.isnan(gold[..., 0])).sum(1)
    return np.asarray((found * envelope).sum(2) / truths[:, None])


def class_precisions(
    ranked: Sequence[Sequence[Pair]],
    windows: Sequence[Sequence[Span]],
    scores: Sequence[Sequence[float] | None],
    name: str,
) -> Floats:
    """Mean average precision of each query, only its truth windows of one of LENGTH_CLASSES counting, (N,).

    NaN for a query that has none of that length. All predictions stay, as in QVHighlights' evaluator.

    >>> truth = [[Span(0, 5), Span(20, 60)], [Span(0, 20)]]
    >>> class_precisions([[(0, 5), (20, 60)], []], truth, [None, None], "long").tolist()
    [0.5, nan]
    """
    low, high = LENGTH_CLASSES[name]
    kept = [[window for window in row if low < window.length <= high] for row in windows]
    found = np.full(len(windows), np.nan)
    rows = [n for n, row in enumerate(kept) if row]
    if rows:
        precisions = average_precisions([ranked[n] for n in rows], [kept[n] for n in rows], [scores[n] for n in rows])
        found[rows] = precisions.mean(1)
    return found


def _matches(pred: Floats, gold: Floats) -> NDArray[np.bool_]:
    """Whether each predicted window finds a truth of its own at each threshold, (N, 10, P)."""
    thresholds = np.array(AP_THRESHOLDS)[:, None]
    free = np.ones((len(pred), len(thresholds), gold.shape[1]), dtype=bool)
    found = np.zeros((len(pred), len(thresholds), pred.shape[1]), dtype=bool)
    places = np.arange(gold.shape[1])
    for rank in range(pred.shape[1]):
        # NaN of a window that isn't there compares as false, so that it is never taken.
        ious = iou_array(pred[:, rank, None, :], gold)[:, None, :]
        values = np.where(free & (ious >= thresholds), ious, -1.0)
        # Of equal ones the last is taken; QVHighlights' program leaves that to how numpy sorts on the machine.
        best = gold.shape[1] - 1 - values[..., ::-1].argmax(2)
        hit = np.take_along_axis(values, best[..., None], axis=2)[..., 0] > 0
        found[..., rank] = hit
        free &= ~(hit[..., None] & (places == best[..., None]))
    return found


def _ordered(row: Sequence[Pair], scores: Sequence[float] | None) -> list[Pair]:
    if scores is None:
        return list(row[:MOST_WINDOWS])
    if len(scores) != len(row):
        raise ValueError(f"{len(scores)} scores for {len(row)} windows: give one each")
    order = sorted(range(min(len(row), MOST_WINDOWS)), key=lambda place: -scores[place])
    return [row[place] for place in order]


def _padded(rows: Sequence[Sequence[Pair]]) -> Floats:
    most = max(1, max(map(len, rows)))
    nothing = [(np.nan, np.nan)] * most
    return np.array([[*row, *nothing[len(row) :]] for row in rows], dtype=np.float64)
