"""Intervals by whole videos, and two models on the same questions."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from labkit.scoring.bootstrap import (
    _degrees_of_freedom,
    _t_quantile,
    few_videos,
    mean_interval,
    mean_intervals,
    paired_differences,
    slope,
)


def test_the_interval_covers_the_mean_and_is_the_same_each_time():
    values = np.random.default_rng(1).uniform(size=400)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    # The plain standard error, 1.96 * 0.289 / 20 = 0.028 to each side.
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert mean_interval(values) == (low, high)


def test_queries_on_one_video_are_one_fact():
    # 40 videos of 40 equal queries are 40 facts, not 1,600: the interval is sqrt(40) times as wide, and a little more.
    per_video = np.random.default_rng(2).uniform(size=40)
    values, videos = np.repeat(per_video, 40), np.repeat(np.arange(40), 40).tolist()
    clustered, single = mean_interval(values, videos), mean_interval(values)
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(math.sqrt(40), rel=0.05)
    assert clustered == pytest.approx(mean_interval(per_video), abs=1e-9)


def test_the_mean_is_over_queries_not_over_videos():
    # Video a has 3 queries of 1, b one of 0; the narrower the level, the nearer both ends are to the mean of 3/4.
    low, high = mean_interval([1, 1, 1, 0], ["a", "a", "a", "b"], level=1e-4)
    assert (low, high) == pytest.approx((0.75, 0.75), abs=1e-3)


def _shares_that_hold(videos: int, tries: int = 400) -> list[float]:
    """How often intervals hold the truth of IoU, uniform above 0 and 0 for a third, and of R1@0.7."""
    rng, held = np.random.default_rng(videos), np.zeros(2)
    for _ in range(tries):
        names = np.repeat(np.arange(videos), 3)
        shared = rng.normal(size=videos)[names]
        ranks = 0.5 * (1 + np.array([math.erf(z / 2) for z in shared + rng.normal(size=len(names))]))
        ious = np.maximum(1.5 * ranks - 0.5, 0.0)
        found = mean_intervals(np.stack([ious, ious >= 0.7], axis=1), names.tolist())
        held += [low <= truth <= high for (low, high), truth in zip(found, (1 / 3, 0.2), strict=True)]
    return (held / tries).tolist()


@pytest.mark.parametrize("videos", [2, 5, 10, 20])
def test_intervals_of_few_videos_hold_what_they_claim(videos):
    """Drawing videos anew held 48 % of 2 videos, 82 % of 5 and 89 % of 10; whole table: benchmarks/coverage.py."""
    assert min(_shares_that_hold(videos)) >= 0.94


@pytest.mark.parametrize("videos", [2, 5, 10])
def test_equal_models_seldom_differ_on_few_videos(videos):
    """Drawing videos anew saw a difference in 18 % of tries on 5 videos; 5 % is what p < 0.05 says."""
    rng, alarms = np.random.default_rng(videos), np.zeros(2)
    for _ in range(400):
        names = np.repeat(np.arange(videos), 3).tolist()
        ours, theirs = rng.uniform(size=(2, len(names))) ** 2
        both = [np.stack([side, side >= 0.5], axis=1) for side in (ours, theirs)]
        alarms += [gap.p < 0.05 for gap in paired_differences(*both, names)]
    assert max(alarms / 400) <= 0.06


@pytest.mark.parametrize(
    ("values", "videos", "why"),
    [
        ([1.0, 1.0], ["a", "b"], "two of two say little of a third"),
        ([0.0] * 12, list("aabbccddeeff"), "none on six videos is not none anywhere"),
        ([1.0, 0.0, 1.0, 0.0], ["a", "a", "b", "b"], "two videos that happen to agree"),
    ],
)
def test_videos_that_agree_are_no_certainty(values, videos, why):
    low, high = mean_interval(values, videos)
    assert high - low > 0.3 and 0 <= low <= np.mean(values) <= high <= 1, why


def test_one_video_that_holds_most_queries_leaves_little_to_go_on():
    values = np.random.default_rng(3).uniform(size=104)
    even, heavy = np.repeat(np.arange(5), 21)[:104].tolist(), [0] * 100 + [1, 2, 3, 4]
    widths = [high - low for low, high in (mean_interval(values, even), mean_interval(values, heavy))]
    assert widths[1] > 2 * widths[0]


def test_few_videos_are_told_and_many_are_not():
    assert [bool(few_videos(videos)) for videos in (1, 2, 19, 20, 150)] == [True, True, True, False, False]


def test_one_video_says_nothing_about_other_videos():
    assert all(map(math.isnan, mean_interval([0.2, 0.8], ["a", "a"])))


@pytest.mark.parametrize(
    ("values", "clusters", "options", "message"),
    [
        ([], None, {}, "at least one"),
        ([1.0], ["a", "b"], {}, "1 values and 2 clusters"),
        ([1.0, 0.5], [], {}, "2 values and 0 clusters"),
        ([1.0, 0.5], None, {"level": 1.0}, "level=1.0"),
        ([1.0, 55.0], None, {}, "outside 0 to 1"),
        ([1.0, math.nan], None, {}, "outside 0 to 1"),
    ],
)
def test_an_interval_of_nonsense_is_refused(values, clusters, options, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(values, clusters, **options)


def test_a_benchmark_of_activitynets_size_is_quick():
    generator = np.random.default_rng(0)
    values, videos = generator.uniform(size=17_031), [f"v_{i}" for i in generator.integers(0, 4885, 17_031)]
    begin = time.process_time()
    mean_interval(values, videos)
    assert time.process_time() - begin < 1


def test_a_figure_and_its_complement_have_mirrored_intervals():
    values = np.random.default_rng(4).uniform(size=100)
    videos = np.repeat(np.arange(20), 5).tolist()
    one, other = mean_intervals(np.stack([values, 1 - values], axis=1), videos)
    assert one == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)


def test_each_column_has_the_interval_that_it_has_alone():
    matrix = np.random.default_rng(5).uniform(size=(60, 3))
    videos = np.repeat(np.arange(15), 4).tolist()
    together = mean_intervals(matrix, videos)
    for got, column in zip(together, matrix.T, strict=True):
        assert got == pytest.approx(mean_interval(column, videos), abs=1e-12)


def test_many_videos_have_the_plain_standard_error():
    low, high = mean_interval((np.arange(3000) % 2).astype(float))
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(3000), rel=0.01)


def test_a_difference_by_hand():
    # Question by question 0.5, 0, 0, -0.25: mean 0.0625. Two videos of half the queries, 0.25 and -0.125: each is off by
    # 0.09375 at half weight, which with CR2 makes a standard error of 2 * 0.09375; t of one degree of freedom is 12.706.
    ours, theirs = [[1.0], [0.5], [0.5], [0.25]], [[0.5], [0.5], [0.5], [0.5]]
    (gap,) = paired_differences(ours, theirs, ["a", "a", "b", "b"])
    assert gap.value == pytest.approx(0.0625)
    assert gap.interval == pytest.approx((-1.0, 1.0))
    assert gap.p == pytest.approx(2 * (0.5 - math.atan(0.0625 / 0.1875) / math.pi), abs=1e-6)
    (narrow,) = paired_differences(ours, theirs, ["a", "a", "b", "b"], level=0.5)  # t is 1
    assert narrow.interval == pytest.approx((0.0625 - 0.1875, 0.0625 + 0.1875), abs=1e-6)


def test_pairing_takes_out_what_is_hard_for_both():
    hard = np.random.default_rng(6).uniform(size=400)
    better = hard + 0.01 + 0.001 * np.random.default_rng(7).normal(size=400)
    better = np.clip(better, 0, 1)
    (gap,) = paired_differences(better[:, None], hard[:, None])
    assert gap.value == pytest.approx(0.01, abs=5e-4) and gap.interval == pytest.approx((0.01, 0.01), abs=5e-4)
    low, high = mean_interval(better)
    assert high - low > 0.05  # each alone could not tell


def test_p_is_small_for_a_difference_and_large_for_none():
    generator = np.random.default_rng(8)
    base = generator.uniform(size=500)
    noise = generator.normal(size=500)
    noise -= noise.mean()
    better, same, worse = ((base + shift + 0.1 * noise)[:, None] for shift in (0.02, 0.0, -0.02))
    p = [paired_differences(model, base[:, None])[0].p for model in (better, same, worse)]
    assert p[0] < 0.01 and p[1] > 0.8 and p[2] < 0.01
    # A gain of the same on every query shows no spread: what is left is that all five videos agree.
    assert paired_differences(np.ones((5, 1)), np.zeros((5, 1)))[0].p == 2 / 2**5


def test_equal_models_differ_by_nothing():
    values = np.random.default_rng(9).uniform(size=(50, 2))
    for gap in paired_differences(values, values):
        assert (gap.value, gap.interval, gap.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_figure_in_which_two_models_agree_is_not_proved_equal():
    # They differ in IoU, and reach R1@0.7 on the same queries of five videos: a sixth may tell them apart.
    ours, theirs = np.array([[0.8, 1.0]] * 5), np.array([[0.9, 1.0], [0.7, 1.0], [0.9, 1.0], [0.75, 1.0], [0.8, 1.0]])
    _, gap = paired_differences(ours, theirs)
    assert (gap.value, gap.p) == (0.0, 1.0) and gap.interval.low < -0.3 and gap.interval.high > 0.3


@pytest.mark.parametrize("videos", [2, 5, 6, 19, 30])
def test_the_same_gain_on_every_video_is_believed_as_far_as_the_videos_go(videos):
    (gap,) = paired_differences(np.ones((videos, 1)), np.full((videos, 1), 0.5))
    assert gap.value == 0.5 and gap.p == pytest.approx(2 / 2**videos)
    assert (gap.interval.low <= 0) == (gap.p > 0.05), "interval and p say the same"
    assert videos < 20 or gap.interval == (0.5, 0.5)


def test_one_video_says_nothing_about_a_difference():
    (gap,) = paired_differences([[1.0], [1.0]], [[0.0], [0.0]], ["a", "a"])
    assert gap.value == 1.0 and all(map(math.isnan, (*gap.interval, gap.p)))


def test_what_is_not_the_same_questions_is_refused():
    with pytest.raises(ValueError, match="pair the same"):
        paired_differences([[1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="at least one"):
        mean_intervals([[]])


@pytest.mark.parametrize(
    "sizes",
    [[2, 2, 2, 2, 2], [1, 2, 6, 3, 9, 1], [1] * 8],
    ids=["equal videos", "unequal videos", "one movement a video"],
)
def test_a_slope_has_the_interval_of_cr2_with_satterthwaites_freedom(sizes):
    """Held against the definition by matrices: residuals of each video by (I - H)^(-1/2), freedom where videos' slopes vary alike."""
    rng = np.random.default_rng(len(sizes))
    names = np.repeat(np.arange(len(sizes)), sizes)
    x = rng.choice([-3.0, -1.0, 1.0, 2.0], len(names))
    y = (0.4 + rng.normal(0, 1, len(sizes))[names]) * x + rng.normal(0, 0.1, len(names))
    square = x @ x
    value, meat, forms = x @ y / square, 0.0, []
    for name in range(len(sizes)):
        own = x * (names == name)
        adjust = 1 / np.sqrt(1 - own @ own / square)  # x is an eigenvector of H
        meat += (adjust * own @ (y - value * x) / square) ** 2
        forms.append(adjust * (own - x * (own @ own) / square) / square)
    # The variance is a quadratic form of y; where each video's own slope is equally uncertain, its covariance is that of
    # x times a number a video.
    loads = np.stack([x * (names == name) for name in range(len(sizes))], axis=1)
    middle = np.stack(forms) @ loads
    form = middle @ middle.T
    freedom = np.trace(form) ** 2 / np.trace(form @ form)
    found = slope(x, y, names.tolist())
    assert found.value == pytest.approx(value)
    assert found.interval.high - value == pytest.approx(_t_quantile(0.95, freedom) * np.sqrt(meat), rel=1e-6)


def test_a_video_that_is_moved_far_counts_by_its_squared_movements_and_one_that_is_not_moved_not_at_all():
    """Two videos of ten small movements, one of a single large one: by hand slope (10 * 0 + 10 * 1 + 100 * 0.5) / 120."""
    x, names = [1.0] * 20 + [10.0], ["a"] * 10 + ["b"] * 10 + ["c"]
    y = [0.0] * 10 + [1.0] * 10 + [5.0]
    value, interval, n, videos = slope(x, y, names)
    assert (value, n, videos) == (pytest.approx(0.5), 21, 3)
    # Shares 1/12, 1/12 and 10/12; video a departs by 10 * -0.5 / 120, b by as much, c not at all.
    variance = 2 * (5 / 120) ** 2 / (1 - 1 / 12)
    freedom = _degrees_of_freedom(np.array([1, 1, 10]) / 12)
    assert freedom == pytest.approx(1.08, abs=0.01), "so unequal are the shares"
    assert interval.high - value == pytest.approx(_t_quantile(0.95, freedom) * variance**0.5)
    still = slope([*x, 0.0], [*y, 7.0], [*names, "d"])
    assert still == slope(x, y, names), "what was not moved says nothing"


@pytest.mark.parametrize(
    ("moved", "n", "videos"),
    [([], 0, 0), ([0.0, 0.0], 0, 0), ([1.0, 2.0], 2, 1)],
    ids=["nothing", "no movement", "one video"],
)
def test_a_slope_of_too_little_has_no_interval(moved, n, videos):
    found = slope(moved, moved, ["a"] * len(moved))
    assert (found.n, found.videos) == (n, videos) and np.isnan(found.interval.low)
    assert np.isnan(found.value) == (n == 0)


def test_a_slope_needs_a_movement_and_a_video_for_each():
    with pytest.raises(ValueError, match="give one number each"):
        slope([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="name one cluster for each"):
        slope([1.0, 2.0], [1.0, 2.0], ["a"])
