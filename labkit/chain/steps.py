"""The score of a step of a chain, and what counts as a copy: the one definition that rewards, metrics, harvest and views share.

A step leads from one span of a chain to the next: anchor to anchor, last anchor to answer. It scores above 0 only where
it brings the chain closer to the truth than anything before it in the chain, and by an amount that is not noise.

    gain   = IoU behind the step - the best IoU before it
    score  = min(1, gain / FULL_GAIN) x min(1, best IoU before / CORRECT_IOU), 0 where either is below 0

A copy is recognised by where its span lies, not by what it earns: its temporal IoU with an earlier span is at least COPY_IOU. The
two fit together. 1 - IoU is a metric, so two spans of mutual IoU c differ by 1 - c at most in their IoU with anything else:
a copy can't gain more than LEAST_GAIN, wherever the truth lies and whichever of its windows counts.

All of it is a matter of shares of length, so it says the same of clips of 16 seconds and of videos of an hour: it takes 0.2 s
on 4 s, or 3 s on a minute, to be no copy.
Source: that later anchors must come closer is the TAR-TVG paper's; all numbers and the definition of a copy are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkit.chain.spans import Span, clip_span, soft_iou

LEAST_GAIN = 0.05
"""IoU that a step gains at least to be one.

The distance of two neighbouring thresholds of mAP (0.5, 0.55, ... 0.95): what gains less may pass none of them.
"""
FULL_GAIN = 2 * LEAST_GAIN
"""Gain from which on a step is paid in full; below, it is paid in proportion, so that there is no edge to sit on.

It has an end, so that a worse start can't buy a dearer step.
"""
COPY_IOU = 1 - LEAST_GAIN
"""Temporal IoU of two spans from which on the later one is a copy of the earlier."""
CORRECT_IOU = 0.5
"""IoU from which on a span counts as correct: the middle one of the benchmarks' three thresholds.

A step that starts below it is paid in proportion: the price of a bad first anchor.
"""
_MOST_ORIGINALS = 64
"""Spans of one chain that later ones are compared with: hostile texts hold ten thousands."""
_ROUNDING = 1e-9
"""0.55 - 0.5 is a hair below 0.05 in floats for some such pairs."""


def clip_spans(spans: Sequence[Span], duration: float) -> list[Span]:
    """Spans cut to the video; one wholly outside stays as written, so that it can still be distinguished from another."""
    return [clip_span(span, duration) or span for span in spans]


def is_copy(span: Span, earlier: Span) -> bool:
    """Whether a span is a copy of an earlier one: their temporal IoU is at least COPY_IOU.

    >>> is_copy(Span(10.02, 19.98), Span(10, 20)), is_copy(Span(10, 21), Span(10, 20))
    (True, False)
    """
    return soft_iou(span, earlier) >= COPY_IOU - _ROUNDING


def copies(spans: Sequence[Span]) -> list[bool]:
    """For each span whether it is a copy of an earlier one that is no copy itself, next to it or not.

    >>> wide, near = Span(0, 30), Span(10, 25)
    >>> copies([wide, near, wide, near])
    [False, False, True, True]
    """
    originals: list[tuple[Span, float]] = []
    flags = []
    for span in spans:
        copied, length = False, span.length
        for (
            earlier,
            other,
        ) in originals:  # a loop where `any` would do: twice as fast, and asked for each chain of a harvest
            # No IoU is above the ratio of the lengths, and COPY_IOU is above this one by more than rounding.
            if 0.9 * other < length and 0.9 * length < other and is_copy(span, earlier):
                copied = True
                break
        flags.append(copied)
        if not copied and len(originals) < _MOST_ORIGINALS:
            originals.append((span, length))
    return flags


def is_step(before: float, after: float) -> bool:
    """Whether going from IoU `before` to IoU `after` narrows: it starts at an overlap and gains LEAST_GAIN.

    >>> is_step(0.5, 0.55), is_step(0.5, 0.54), is_step(0.0, 0.5)
    (True, False, False)
    """
    return before > 0 and after - before >= LEAST_GAIN - _ROUNDING


def step_direction(before: float, after: float) -> int:
    """1 where a step came closer by LEAST_GAIN, -1 where it fell back by as much, else 0; what views mark a step with.

    >>> step_direction(0.5, 0.8), step_direction(0.5, 0.51), step_direction(0.5, 0.2)
    (1, 0, -1)
    """
    change = after - before
    return 0 if abs(change) < LEAST_GAIN - _ROUNDING else 1 if change > 0 else -1


def narrows(values: Sequence[float]) -> bool:
    """Whether every step is one; `values` are the IoUs of a chain in order. True where there is no step at all.

    >>> narrows([0.4, 0.6, 0.8]), narrows([0.79, 0.795, 0.8]), narrows([0.4, 0.8, 0.8])
    (True, False, False)
    """
    return all([is_step(before, after) for before, after in zip(values, values[1:], strict=False)])


def step_scores(values: Sequence[float]) -> list[float]:
    """The score of each step, 0 to 1, against the best before it; `values` are IoUs, or soft IoUs, in order.

    >>> step_scores([0.5, 0.75, 0.8125]), step_scores([0.25, 0.75, 0.25, 0.75])
    ([1.0, 0.625], [0.5, 0.0, 0.0])
    """
    scores = []
    best = values[0] if values else 0.0
    for value in values[1:]:
        if value <= best:
            scores.append(0.0)
            continue
        scores.append(min(1.0, (value - best) / FULL_GAIN) * min(1.0, best / CORRECT_IOU) if best > 0 else 0.0)
        best = value
    return scores
