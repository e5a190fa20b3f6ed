"""Spans of seconds, sets of them, and how well two agree.

Two measures, each for one pair and for whole arrays: IoU, which every published number uses, and soft IoU, which
goes below 0 for spans that don't meet, so that a near miss differs from a far one.

Something that happens several times is a `SpanSet`, a span with gaps: every function here takes it where it takes a span, and measures
what lies in its parts. How several spans are written doesn't matter: `union` puts them in order and joins those that overlap or touch,
and what is left of one is a plain `Span`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A stretch of a clip, in seconds from the clip's beginning; it always has a length.

    Raises: ValueError unless both ends are finite and start < end.

    >>> Span(12, 24.5).length
    12.5
    """

    start: float
    end: float

    def __init__(self, start: float, end: float) -> None:
        """Refuse what is no span, so that nothing behind this line has to ask again."""
        if not -math.inf < start < end < math.inf:
            if not (math.isfinite(start) and math.isfinite(end)):
                raise ValueError(f"span {start} to {end}: both ends must be finite seconds")
            raise ValueError(f"span {start} to {end}: the start must lie before the end")
        # Slot by slot, in half the time of what a frozen dataclass does: a harvest reads millions.
        _put_start(self, start)
        _put_end(self, end)

    @property
    def length(self) -> float:
        """Seconds from start to end."""
        return self.end - self.start

    @property
    def middle(self) -> float:
        """The second halfway between start and end."""
        return (self.start + self.end) / 2

    @property
    def parts(self) -> tuple[Span, ...]:
        """The stretches that it is made of, in order: itself, or those of a set."""
        return (self,)


_put_start, _put_end = (vars(Span)[name].__set__ for name in ("start", "end"))


@dataclass(frozen=True, slots=True)
class SpanSet(Span):
    """Two or more spans with gaps between them; `start` and `end` are those of the whole. `union` makes it.

    Raises: ValueError unless the spans are in order, apart from each other, and reach from `start` to `end`.
    """

    spans: tuple[Span, ...]

    def __post_init__(self) -> None:
        """Refuse what `union` would have written otherwise: a set is written in one way."""
        apart = len(self.spans) > 1 and all(before.end < behind.start for before, behind in pairwise(self.spans))
        if not apart or (self.start, self.end) != (self.spans[0].start, self.spans[-1].end):
            raise ValueError(f"spans {self.spans} are no set; union(spans) makes one of them")

    @property
    def length(self) -> float:
        """Seconds in its parts."""
        return sum([part.end - part.start for part in self.spans])

    @property
    def middle(self) -> float:
        """The second before which half of its seconds lie."""
        left = self.length / 2
        for part in self.spans:
            if left <= part.length:
                break
            left -= part.length
        return part.start + left

    @property
    def parts(self) -> tuple[Span, ...]:
        """The spans, in order."""
        return self.spans


@dataclass(frozen=True, slots=True)
class BestWindow:
    """The value that the best of several windows gave, and which one it was."""

    value: float
    index: int


def union(spans: Iterable[Span]) -> Span:
    """All that lies in any of the spans: a `SpanSet`, or a plain span where no gap is left.

    Raises: ValueError when there is none.

    >>> union([Span(9, 12), Span(0, 2), Span(1, 5)]).parts
    (Span(start=0, end=5), Span(start=9, end=12))
    >>> union([Span(3, 5), Span(5, 8)])
    Span(start=3, end=8)
    """
    merged: list[Span] = []
    for part in sorted([part for span in spans for part in span.parts]):
        if not merged or part.start > merged[-1].end:
            merged.append(part)
        elif part.end > merged[-1].end:
            merged[-1] = Span(merged[-1].start, part.end)
    if not merged:
        raise ValueError("no span to make a set of; give at least one")
    return merged[0] if len(merged) == 1 else SpanSet(merged[0].start, merged[-1].end, tuple(merged))


def soft_iou(pred: Span, gold: Span) -> float:
    """IoU without the clamp at 0: equal to IoU on overlap, -gap / hull for spans that don't meet.

    In (-1, 1], symmetric, unchanged by shift and scale. Of two misses of equal length the nearer one is better.
    A miss grows better by stretching away from the truth, but never beyond 0: clip predictions to the video first,
    or the stretch has no limit. Of sets it is the IoU of all that lies in them, and the gap is the narrowest between the two.
    Source: TAR-TVG paper (soft IoU); the hull as the denominator, and what it is of sets, is our choice.

    >>> soft_iou(Span(0, 10), Span(5, 20))
    0.25
    >>> soft_iou(Span(0, 5), Span(7, 10))
    -0.2
    >>> soft_iou(union([Span(0, 4), Span(10, 14)]), Span(0, 4))
    0.5
    """
    if type(pred) is SpanSet or type(gold) is SpanSet:
        shared, nearest = meeting(pred.parts, gold.parts)
        if shared > 0:
            return min(1.0, shared / union((pred, gold)).length)
        return nearest / (max(pred.end, gold.end) - min(pred.start, gold.start))
    # Comparisons instead of min and max, which take twice as long: this is asked for every step of every chain.
    a, b, c, d = pred.start, pred.end, gold.start, gold.end
    inside = (b if b < d else d) - (a if a > c else c)
    return inside / ((d if b < d else b) - (c if a > c else a))


def meeting(one: Sequence[Span], other: Sequence[Span]) -> tuple[float, float]:
    """Seconds that two sets share, and the seconds of their longest meeting: where there is none, the narrowest gap below 0."""
    shared, nearest, i, j = 0.0, -math.inf, 0, 0
    while i < len(one) and j < len(other):  # the two that are nearest to each other come side by side in order of time
        inside = min(one[i].end, other[j].end) - max(one[i].start, other[j].start)
        shared, nearest = shared + max(0.0, inside), max(nearest, inside)
        if one[i].end < other[j].end:
            i += 1
        else:
            j += 1
    return shared, nearest


def iou(pred: Span, gold: Span) -> float:
    """Seconds in both spans over seconds in either; in [0, 1] and symmetric. Of sets: the IoU of their unions.

    >>> iou(Span(0, 10), Span(5, 20))
    0.25
    >>> iou(Span(0, 5), Span(7, 10))
    0.0
    """
    # Spans that overlap fill their hull, so the union is the hull wherever the value isn't 0.
    return max(0.0, soft_iou(pred, gold))


def soft_iou_array(pred: ArrayLike, gold: ArrayLike) -> NDArray[np.float64]:
    """`soft_iou` row by row on (N, 2) arrays of [start, end]; leading axes broadcast.

    Rows aren't checked: each must have start < end.

    >>> soft_iou_array([[0, 10], [0, 5]], [[5, 20], [7, 10]]).tolist()
    [0.25, -0.2]
    """
    a, b = np.asarray(pred, dtype=np.float64), np.asarray(gold, dtype=np.float64)
    inside = np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0])
    hull = np.maximum(a[..., 1], b[..., 1]) - np.minimum(a[..., 0], b[..., 0])
    return np.asarray(inside / hull)


def iou_array(pred: ArrayLike, gold: ArrayLike) -> NDArray[np.float64]:
    """`iou` row by row on (N, 2) arrays of [start, end]; leading axes broadcast.

    >>> iou_array([[0, 10], [0, 5]], [[5, 20], [7, 10]]).tolist()
    [0.25, 0.0]
    """
    return np.maximum(0.0, soft_iou_array(pred, gold))


def clip_span(span: Span, duration: float) -> Span | None:
    """What of a span lies in the video [0, duration], or None when nothing does.

    Raises: ValueError unless the duration is finite and above 0.

    >>> clip_span(Span(20, 45), 30.0)
    Span(start=20, end=30.0)
    >>> clip_span(Span(31, 45), 30.0) is None
    True
    """
    if not 0 < duration < math.inf:
        raise ValueError(f"duration {duration}: must be finite seconds above 0")
    if span.start >= 0 and span.end <= duration:
        return span
    cut = [(max(0.0, part.start), min(duration, part.end)) for part in span.parts]
    inside = [Span(start, end) for start, end in cut if start < end]
    return union(inside) if inside else None


def best_value(span: Span, windows: Sequence[Span], measure: Callable[[Span, Span], float] = iou) -> float:
    """The value of `best_window` alone: nearly every moment has one window, and this is asked for each step of each chain.

    >>> best_value(Span(0, 4), [Span(20, 30), Span(2, 4)])
    0.5
    """
    return measure(span, windows[0]) if len(windows) == 1 else best_window(span, windows, measure).value


def best_window(span: Span, windows: Sequence[Span], measure: Callable[[Span, Span], float] = iou) -> BestWindow:
    """The truth window that a span agrees with best; the first one wins a tie.

    Raises: ValueError when there is no window: a query without a truth can't be scored.
    Source: our choice for queries with several windows (QVHighlights).

    >>> best_window(Span(0, 4), [Span(20, 30), Span(2, 4)])
    BestWindow(value=0.5, index=1)
    """
    if not windows:
        raise ValueError("no ground-truth window to compare with; a moment needs at least one")
    values = [measure(span, window) for window in windows]
    index = max(range(len(values)), key=values.__getitem__)
    return BestWindow(values[index], index)
