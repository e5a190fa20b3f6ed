"""Intervals that draw whole videos, figures that share their draws, and two models on the same questions."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from labkit.chain.intervals import bootstrap_interval, bootstrap_intervals, paired_differences


def test_the_interval_covers_the_mean_and_is_the_same_each_time():
    values = np.random.default_rng(1).uniform(size=400)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    # The plain standard error, 1.96 * 0.289 / 20 = 0.028 to each side.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)


def test_queries_on_one_video_are_drawn_together():
    # 10 videos of 40 equal queries are 10 facts, not 400: the interval is sqrt(40) times as wide.
    per_video = np.random.default_rng(2).uniform(size=10)
    values, videos = np.repeat(per_video, 40), np.repeat(np.arange(10), 40).tolist()
    clustered, single = bootstrap_interval(values, videos), bootstrap_interval(values)
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(40), rel=0.15)


def test_a_draw_is_the_mean_over_queries_not_over_videos():
    # Video a has 3 queries of 1, b one of 0: drawn together 3/4, a twice 1, b twice 0.
    low, high = bootstrap_interval([1, 1, 1, 0], ["a", "a", "a", "b"], level=0.2)
    assert (low, high) == (0.75, 0.75)


def test_one_video_says_nothing_about_other_videos():
    assert all(map(math.isnan, bootstrap_interval([0.2, 0.8], ["a", "a"])))


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([], None, {}, "at least one"),
        ([1.0], ["a", "b"], {}, "1 values and 2 clusters"),
        ([1.0, 2.0], [], {}, "2 values and 0 clusters"),
        ([1.0, 2.0], None, {"level": 1.0}, "level=1.0"),
        ([1.0, 2.0], None, {"draws": 0}, "draws=0"),
    ],
)
def test_an_interval_of_nonsense_is_refused(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, clusters, **options)


def test_a_thousand_draws_over_a_benchmark_are_quick():
    generator = np.random.default_rng(0)
    values, videos = generator.uniform(size=17_031), [f"v_{i}" for i in generator.integers(0, 4885, 17_031)]
    begin = time.process_time()
    bootstrap_interval(values, videos)
    assert time.process_time() - begin < 3


def test_figures_of_one_table_share_their_draws():
    # A figure and its complement move against each other in every draw, so their intervals are mirror images.
    values = np.random.default_rng(4).uniform(size=100)
    videos = np.repeat(np.arange(20), 5).tolist()
    one, other = bootstrap_intervals(np.stack([values, 1 - values], axis=1), videos)
    assert one == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)


def test_each_column_has_the_interval_that_it_has_alone():
    matrix = np.random.default_rng(5).uniform(size=(60, 3))
    videos = np.repeat(np.arange(15), 4).tolist()
    together = bootstrap_intervals(matrix, videos, draws=200, seed=7)
    for got, column in zip(together, matrix.T, strict=True):
        assert got == pytest.approx(bootstrap_interval(column, videos, draws=200, seed=7), abs=1e-12)


def test_many_videos_are_drawn_in_blocks():
    # 3,000 videos exceed what one block holds at 1,000 draws; the standard error is that of 3,000 coins.
    values = (np.arange(3000) % 2).astype(float)
    low, high = bootstrap_interval(values, draws=1000)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(3000), rel=0.1)


def test_a_difference_by_hand():
    # Question by question 0.5, 0, 0, -0.25: mean 0.0625. Two videos of two: a draw is a twice, b twice or both.
    ours, theirs = [[1.0], [0.5], [0.5], [0.25]], [[0.5], [0.5], [0.5], [0.5]]
    (gap,) = paired_differences(ours, theirs, ["a", "a", "b", "b"])
    assert gap.value == pytest.approx(0.0625)
    assert gap.interval == pytest.approx((-0.125, 0.25))


def test_pairing_takes_out_what_is_hard_for_both():
    hard = np.random.default_rng(6).uniform(size=400)
    better = hard + 0.01
    (gap,) = paired_differences(better[:, None], hard[:, None])
    assert gap.value == pytest.approx(0.01) and gap.interval == pytest.approx((0.01, 0.01))
    low, high = bootstrap_interval(better)
    assert high - low > 0.05  # each alone could not tell


def test_p_is_small_for_a_difference_and_large_for_none():
    generator = np.random.default_rng(8)
    base = generator.uniform(size=500)
    noise = generator.normal(size=500)
    noise -= noise.mean()
    better, same, worse = ((base + shift + 0.1 * noise)[:, None] for shift in (0.02, 0.0, -0.02))
    p = [paired_differences(model, base[:, None])[0].p for model in (better, same, worse)]
    assert p[0] < 0.01 and p[1] > 0.8 and p[2] < 0.01
    # With 1,000 draws nothing smaller can be claimed.
    assert paired_differences(base[:, None] + 1, base[:, None])[0].p == pytest.approx(2 / 1001)


def test_equal_models_differ_by_nothing():
    values = np.random.default_rng(9).uniform(size=(50, 2))
    for gap in paired_differences(values, values):
        assert (gap.value, gap.interval, gap.p) == (0.0, (0.0, 0.0), 1.0)


def test_one_video_says_nothing_about_a_difference():
    (gap,) = paired_differences([[1.0], [1.0]], [[0.0], [0.0]], ["a", "a"])
    assert gap.value == 1.0 and all(map(math.isnan, (*gap.interval, gap.p)))


def test_what_is_not_the_same_questions_is_refused():
    with pytest.raises(ValueError, match="pair the same"):
        paired_differences([[1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_intervals([[]])
