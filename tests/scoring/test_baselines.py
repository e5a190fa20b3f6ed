"""Answers that never look: constants and guesses from the training set, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.chain.spans import Span
from labkit.scoring.baselines import (
    CENTRE_HALF,
    WHOLE_VIDEO,
    Constant,
    best_constant,
    constant_ious,
    padded_windows,
    prior_ious,
    relative_spans,
)

TRUTH = Span(10, 20)


def test_the_whole_video_is_as_good_as_the_truth_is_long():
    windows = [[Span(0, 15)], [Span(10, 20)], [Span(0, 6), Span(10, 40)]]
    assert constant_ious(WHOLE_VIDEO, windows, [60, 40, 60]).tolist() == [0.25, 0.25, 0.5]


def test_a_constant_is_in_parts_of_each_video():
    got = constant_ious(Constant(0.5, 1.0), [[Span(0, 10)], [Span(75, 100)], [Span(15, 30)]], [60, 100, 30])
    assert got.tolist() == [0.0, 0.5, 1.0]


def test_the_best_constant_is_found_on_its_grid():
    # Two of three truths are the middle half of their video; the third pulls no constant that far.
    windows = [[Span(5, 15)], [Span(10, 30)], [Span(0, 2)]]
    assert best_constant(windows, [20, 40, 20]) == (0.25, 0.75)


def test_the_best_constant_beats_the_whole_video_on_its_own_queries():
    generator = np.random.default_rng(3)
    starts = generator.uniform(0, 20, 200)
    windows = [[Span(start, start + 8)] for start in starts]
    durations = [30.0] * 200
    best = best_constant(windows, durations)
    assert constant_ious(best, windows, durations).mean() > constant_ious(WHOLE_VIDEO, windows, durations).mean()


def test_baselines_need_a_window_for_each_query():
    with pytest.raises(ValueError, match="2 lists of windows for 1 durations"):
        constant_ious(WHOLE_VIDEO, [[TRUTH], [TRUTH]], [60])
    with pytest.raises(ValueError, match="window"):
        best_constant([[]], [60])


def test_the_centre_half_leaves_a_quarter_on_each_side():
    assert constant_ious(CENTRE_HALF, [[Span(10, 30)], [Span(0, 10)], [Span(0, 20)]], [40, 40, 40]).tolist() == [
        1.0,
        0.0,
        10 / 30,
    ]


def test_a_prior_of_one_span_is_a_constant():
    windows, durations = [[Span(0, 10)], [Span(75, 100)], [Span(2, 4), Span(15, 30)]], [60, 100, 30]
    got = prior_ious(np.array([[0.5, 1.0]]), windows, durations, draws=4)
    assert got.shape == (3, 4)
    expected = constant_ious(Constant(0.5, 1.0), windows, durations)
    assert (got == expected[:, None]).all()


def test_the_prior_draws_each_training_window_with_equal_chance():
    # Three windows, one of which is the truth and two of which miss: expected IoU 1/3.
    prior = relative_spans([[Span(0, 10)], [Span(20, 30), Span(30, 40)]], [40, 40])
    got = prior_ious(prior, [[Span(0, 5)]] * 50, [20.0] * 50)
    assert set(np.unique(got)) == {0.0, 1.0}
    assert got.mean() == pytest.approx(1 / 3, abs=0.03)


def test_guesses_are_the_same_each_time_and_others_for_another_seed():
    prior = np.array([[0.0, 0.5], [0.5, 1.0]])
    once, again, other = (prior_ious(prior, [[TRUTH]] * 20, [60] * 20, seed=seed) for seed in (0, 0, 1))
    assert (once == again).all() and (once != other).any()


def test_windows_are_padded_with_what_is_no_number():
    got = padded_windows([[Span(0, 4)], [Span(1, 2), Span(5, 6)]], 2)
    assert np.isnan(got[0, 1]).all() and got[1].tolist() == [[1.0, 2.0], [5.0, 6.0]]


def test_a_prior_needs_a_window():
    with pytest.raises(ValueError, match="no training window"):
        prior_ious(np.empty((0, 2)), [[TRUTH]], [60])
