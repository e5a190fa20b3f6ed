"""How well one set of spans agrees with another: by matching span to span, by count, and by how far its seconds lie off.

IoU and soft IoU of sets are in `labkit.chain.spans`. What is here says more than they do: IoU of unions can't tell one long span from
two short ones, and is 0 for every miss. Each is symmetric; a plain span is a set of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from labkit.chain.spans import Span, iou, union

THRESHOLDS = (0.3, 0.5, 0.7)
"""IoUs from which on a matched span is found. Source: the field's benchmarks."""
WASSERSTEIN_SCALE = 3.0
"""How fast the score falls with the distance. Source: TimeLens2's reward code (twass)."""


def matched_ious(pred: Span, gold: Span) -> tuple[float, ...]:
    """IoU of each pair that meets, when the spans are matched one to one so that the sum of their IoUs is largest; in order of time.

    >>> matched_ious(union([Span(0, 10), Span(20, 30)]), union([Span(5, 10), Span(12, 14), Span(20, 30)]))
    (0.5, 1.0)
    """
    # Spans of a set stand in order and apart, so that of two pairs that cross one at least doesn't meet: matching without crossings
    # loses nothing, and takes one pass.
    best: list[tuple[float, ...]] = [()] * (len(gold.parts) + 1)
    for part in pred.parts:
        row: list[tuple[float, ...]] = [()]
        for at, window in enumerate(gold.parts):
            row.append(max(best[at + 1], row[at], (*best[at], iou(part, window)), key=math.fsum))
        best = row
    return tuple([value for value in best[-1] if value > 0])


def set_f1(pred: Span, gold: Span) -> float:
    """F1 of the matched spans, each counted by its IoU: twice their sum over the spans of both; of two plain spans their IoU.

    Source: F1 by matching is the field's (OMTG's code); counting a span by its IoU in place of a threshold is our choice.

    >>> set_f1(Span(0, 10), union([Span(0, 10), Span(20, 30)])), set_f1(Span(0, 10), Span(5, 20)) == iou(Span(0, 10), Span(5, 20))
    (0.6666666666666666, True)
    """
    return 2 * math.fsum(matched_ious(pred, gold)) / (len(pred.parts) + len(gold.parts))


def f1_at(pred: Span, gold: Span, threshold: float) -> float:
    """F1 of the matched spans, those found whose IoU reaches the threshold (tF1@m).

    >>> f1_at(union([Span(0, 10), Span(20, 24)]), union([Span(0, 10), Span(20, 30)]), 0.5)
    0.5
    """
    found = sum([value >= threshold for value in matched_ious(pred, gold)])
    return 2 * found / (len(pred.parts) + len(gold.parts))


def wasserstein(pred: Span, gold: Span) -> float:
    """Temporal Wasserstein distance in seconds: how far on average the seconds of one set are moved to make the other of them.

    Each set's weight is 1, spread evenly over its length.

    >>> wasserstein(Span(0, 2), Span(10, 12)), wasserstein(Span(0, 2), union([Span(0, 1), Span(11, 12)]))
    (10.0, 5.0)
    """
    places = np.unique([end for part in (*pred.parts, *gold.parts) for end in (part.start, part.end)])
    gap = _share_before(pred, places) - _share_before(gold, places)
    before, behind, apart = gap[:-1], gap[1:], np.diff(places)
    sizes = np.abs(before) + np.abs(behind)
    crossing = before * behind < 0  # two triangles in place of a trapezium
    sizes[crossing] = (before**2 + behind**2)[crossing] / sizes[crossing]
    return float((sizes * apart).sum() / 2)


def wasserstein_score(pred: Span, gold: Span) -> float:
    """The distance as a reward in [0, 1]: exp(-3 x distance / seconds in either), 1 for equal sets.

    Unlike IoU it tells one miss from another.

    Source: TimeLens2's reward code (twass), its default scale.

    >>> round(wasserstein_score(Span(0, 10), Span(10, 20)), 4), round(wasserstein_score(Span(0, 10), Span(20, 30)), 4)
    (0.2231, 0.0498)
    """
    return math.exp(-WASSERSTEIN_SCALE * wasserstein(pred, gold) / union((pred, gold)).length)


def _share_before(spans: Span, places: np.ndarray) -> np.ndarray:
    """The share of a set's seconds that lies before each place."""
    ends = [end for part in spans.parts for end in (part.start, part.end)]
    seconds = np.cumsum([0.0, *[part.end - part.start for part in spans.parts]])
    return np.asarray(np.interp(places, ends, np.repeat(seconds, 2)[1:-1] / seconds[-1]))


def set_figures(answer: Span | None, truths: Sequence[Span]) -> dict[str, float]:
    """Figures of one answer against the truth, or the best of several; all 0 without an answer.

    tf1@m is `f1_at`; count_accuracy says whether there are as many spans as there should be; etf1 is the mean of tf1@m where the
    count is right, and 0 where it isn't. Source: OMTG's metrics (C-Acc, tF1, EtF1), as its authors' evaluation computes them.

    >>> figures = set_figures(union([Span(0, 10), Span(20, 24)]), [union([Span(0, 10), Span(20, 30)])])
    >>> {name: round(value, 3) for name, value in figures.items()}
    {'tf1@0.3': 1.0, 'tf1@0.5': 0.5, 'tf1@0.7': 0.5, 'etf1': 0.667, 'count_accuracy': 1.0}
    """
    names = [f"tf1@{m}" for m in THRESHOLDS]
    if answer is None:
        return dict.fromkeys([*names, "etf1", "count_accuracy"], 0.0)
    truth = max(truths, key=lambda each: iou(answer, each))
    found = [f1_at(answer, truth, m) for m in THRESHOLDS]
    right = len(answer.parts) == len(truth.parts)
    effective = sum(found) / len(found) if right else 0.0
    return dict(zip(names, found, strict=True)) | {"etf1": effective, "count_accuracy": float(right)}
