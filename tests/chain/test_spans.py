"""Spans and their two measures: numbers by hand, and the properties that every reward and figure leans on."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.spans import (
    BestWindow,
    Span,
    best_window,
    clip_span,
    iou,
    iou_array,
    soft_iou,
    soft_iou_array,
)


def spans(low: int = 0, high: int = 1000) -> st.SearchStrategy[Span]:
    """Spans on a grid of 1/16 s, where shift and scale by powers of two are exact."""
    return st.tuples(st.integers(low * 16, high * 16 - 1), st.integers(1, 200 * 16)).map(
        lambda pair: Span(pair[0] / 16, (pair[0] + pair[1]) / 16)
    )


@pytest.mark.parametrize(
    ("start", "end", "why"),
    [
        (5.0, 5.0, "no length"),
        (8.0, 3.0, "reversed"),
        (math.nan, 3.0, "not a number at the start"),
        (1.0, math.nan, "not a number at the end"),
        (1.0, math.inf, "no end"),
        (-math.inf, 1.0, "no start"),
    ],
)
def test_what_is_no_span_is_refused(start, end, why):
    with pytest.raises(ValueError, match="span"):
        Span(start, end)


def test_a_span_knows_its_length_and_middle_and_cannot_be_changed():
    span = Span(12.0, 24.5)
    assert (span.length, span.middle) == (12.5, 18.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        span.start = 0.0


def test_spans_sort_by_start_then_end():
    assert sorted([Span(2, 9), Span(1, 8), Span(2, 3)]) == [Span(1, 8), Span(2, 3), Span(2, 9)]


@pytest.mark.parametrize(
    ("pred", "gold", "hard", "soft", "why"),
    [
        ((10, 20), (10, 20), 1.0, 1.0, "equal"),
        ((0, 10), (5, 20), 0.25, 0.25, "5 s shared of 20 s covered"),
        ((0, 40), (10, 20), 0.25, 0.25, "the truth inside the prediction"),
        ((12, 14), (10, 20), 0.2, 0.2, "the prediction inside the truth"),
        ((0, 5), (5, 10), 0.0, 0.0, "they touch: no overlap, no gap"),
        ((0, 5), (7, 10), 0.0, -0.2, "gap 2 s of hull 10 s"),
        ((22, 24), (10, 20), 0.0, -2 / 14, "a near miss"),
        ((38, 40), (10, 20), 0.0, -18 / 30, "a far miss of the same length is worse"),
    ],
)
def test_both_measures_by_hand(pred, gold, hard, soft, why):
    assert iou(Span(*pred), Span(*gold)) == pytest.approx(hard, abs=1e-12), why
    assert soft_iou(Span(*pred), Span(*gold)) == pytest.approx(soft, abs=1e-12), why


@given(spans(), spans())
@settings(max_examples=300, deadline=None)
def test_measures_are_symmetric_and_in_their_range(a, b):
    assert iou(a, b) == iou(b, a)
    assert soft_iou(a, b) == soft_iou(b, a)
    assert 0.0 <= iou(a, b) <= 1.0
    assert -1.0 < soft_iou(a, b) <= 1.0
    assert (soft_iou(a, b) == 1.0) == (a == b)


@given(spans(), spans())
@settings(max_examples=300, deadline=None)
def test_soft_iou_is_iou_on_overlap_and_not_above_zero_elsewhere(a, b):
    overlap = min(a.end, b.end) > max(a.start, b.start)
    if overlap:
        assert soft_iou(a, b) == iou(a, b) > 0
    else:
        assert soft_iou(a, b) <= 0 == iou(a, b)


@given(spans(), spans(), st.integers(-5000, 5000), st.integers(-6, 6))
@settings(max_examples=300, deadline=None)
def test_measures_ignore_shift_and_scale(a, b, shift, power):
    def moved(span: Span) -> Span:
        return Span((span.start + shift) * 2.0**power, (span.end + shift) * 2.0**power)

    assert iou(moved(a), moved(b)) == pytest.approx(iou(a, b), abs=1e-12)
    assert soft_iou(moved(a), moved(b)) == pytest.approx(soft_iou(a, b), abs=1e-12)


@given(st.lists(st.tuples(spans(), spans()), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_array_forms_agree_with_the_single_ones_to_the_last_bit(pairs):
    pred = np.array([[a.start, a.end] for a, _ in pairs])
    gold = np.array([[b.start, b.end] for _, b in pairs])
    assert iou_array(pred, gold).tolist() == [iou(a, b) for a, b in pairs]
    assert soft_iou_array(pred, gold).tolist() == [soft_iou(a, b) for a, b in pairs]


def test_array_forms_broadcast_one_prediction_over_many_truths():
    values = iou_array([[0, 10]], [[0, 10], [0, 20], [20, 30]])
    assert values.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("span", "clipped", "why"),
    [
        (Span(5, 10), Span(5, 10), "inside stays"),
        (Span(20, 45), Span(20, 30), "past the end is cut"),
        (Span(-5, 10), Span(0, 10), "before the beginning is cut"),
        (Span(-5, 99), Span(0, 30), "all around is the whole video"),
        (Span(30, 45), None, "begins where the video ends"),
        (Span(-5, 0), None, "ends where the video begins"),
    ],
)
def test_clipping_keeps_what_lies_in_the_video(span, clipped, why):
    assert clip_span(span, 30) == clipped, why


@pytest.mark.parametrize("duration", [0.0, -1.0, math.nan, math.inf])
def test_clipping_refuses_a_duration_that_is_none(duration):
    with pytest.raises(ValueError, match="duration"):
        clip_span(Span(0, 1), duration)


def test_the_best_of_several_windows_counts_and_the_first_wins_a_tie():
    windows = [Span(20, 30), Span(2, 4), Span(0, 2)]
    assert best_window(Span(0, 4), windows) == BestWindow(0.5, 1)
    assert best_window(Span(40, 50), windows) == BestWindow(0.0, 0)
    best = best_window(Span(40, 50), windows, soft_iou)
    assert (best.value, best.index) == (pytest.approx(-10 / 30), 0), "the nearest window of a miss"


def test_a_query_without_a_truth_is_an_error():
    with pytest.raises(ValueError, match="window"):
        best_window(Span(0, 4), [])
