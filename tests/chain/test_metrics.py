"""Figures by hand on a handful of chains, the clustered interval, and the baselines that never look."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import (
    WHOLE_VIDEO,
    Constant,
    answer_iou,
    best_constant,
    bootstrap_interval,
    chain_figures,
    chain_ious,
    constant_ious,
    recall_figures,
)
from labkit.chain.spans import Span

TRUTH, DURATION = Span(10, 20), 60.0
FULL, EIGHT, HALF, QUARTER, MISS = Span(10, 20), Span(10, 22.5), Span(10, 30), Span(10, 50), Span(30, 40)


def figures(texts: list[str], windows=(TRUTH,)) -> dict[str, float]:
    chains = [parse(text) for text in texts]
    return chain_figures(chains, [list(windows)] * len(chains), [DURATION] * len(chains))


def test_every_figure_of_five_chains_by_hand():
    got = figures(
        [
            render([QUARTER, HALF], EIGHT),  # 0.25, 0.5, then 0.8: narrows
            render([HALF, HALF], HALF),  # a copy of a copy
            render([HALF, QUARTER, EIGHT], HALF),  # back, on, and back again
            render([MISS], None),  # no answer
            render([], FULL),  # right without an anchor
        ]
    )
    answers = [0.8, 0.5, 0.5, 0.0, 1.0]
    expected = {
        "n": 5.0,
        "miou": sum(answers) / 5,
        "r1@0.3": 4 / 5,
        "r1@0.5": 4 / 5,  # 0.5 reaches 0.5
        "r1@0.7": 2 / 5,
        "anchor_rate": 4 / 5,
        "two_anchor_rate": 3 / 5,
        "anchors_mean": (2 + 2 + 3 + 1 + 0) / 5,
        "iou_first": (0.25 + 0.5 + 0.5 + 0.0) / 4,
        "iou_last": (0.5 + 0.5 + 0.8 + 0.0) / 4,
        "iou_answer": (0.8 + 0.5 + 0.5 + 0.0) / 4,
        "gain": (0.55 + 0.0 + 0.0 + 0.0) / 4,
        "iou_step_1": (0.25 + 0.5 + 0.5 + 0.0) / 4,
        "iou_step_2": (0.5 + 0.5 + 0.25) / 3,
        "iou_step_3": 0.8,
        "strict_share": 1 / 5,  # the first chain
        "improved_share": 2 / 5,  # and the third, from 0.5 to 0.8
        "non_decreasing_share": 2 / 5,  # the first and the copy
        "answer_improves_share": 2 / 5,  # 0.8 on 0.5 and 0.5 on 0.5; the third falls, two have no such step
        "copy_rate": 1 / 3,  # of the three with an anchor and an answer
        "anchor_copy_rate": 1 / 3,  # of the three with two anchors
        "oracle_miou": (0.8 + 0.5 + 0.8 + 0.0 + 1.0) / 5,
        "parse_failure_rate": 1 / 5,
        "status_ok": 3 / 5,
        "status_no_answer": 1 / 5,
        "status_no_anchor": 1 / 5,
        "status_cut_off": 0.0,
        "status_no_think": 0.0,
        "status_bad_anchor": 0.0,
        "status_bad_answer": 0.0,
        "status_extra_text": 0.0,
    }
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, abs=1e-12)


def test_perfect_chains_reach_one_and_silent_ones_zero():
    perfect, silent = figures([render([HALF, EIGHT], FULL)] * 3), figures([""] * 3)
    for name in ("miou", "r1@0.3", "r1@0.5", "r1@0.7", "strict_share", "anchor_rate", "oracle_miou", "status_ok"):
        assert (perfect[name], silent[name]) == (1.0, 0.0), name
    assert (perfect["parse_failure_rate"], silent["parse_failure_rate"]) == (0.0, 1.0)


def test_a_mean_over_no_chain_is_nan_and_a_share_of_all_chains_is_zero():
    got = figures([render([], FULL)])
    for name in ("iou_first", "iou_last", "iou_answer", "gain", "copy_rate", "anchor_copy_rate"):
        assert math.isnan(got[name]), name
    for name in ("strict_share", "improved_share", "non_decreasing_share", "answer_improves_share"):
        assert got[name] == 0.0, name
    assert "iou_step_1" not in got


def test_predictions_are_cut_to_the_video_and_outside_it_count_nothing():
    chain = parse(render([Span(10, 900), Span(70, 90)], Span(0, 900)))
    assert chain_ious(chain, [TRUTH], DURATION) == pytest.approx([10 / 50, 0.0, 10 / 60])


def test_the_best_of_several_windows_counts():
    chain = parse(render([MISS], Span(45, 50)))
    assert chain_ious(chain, [TRUTH, Span(45, 55)], DURATION) == [0.0, 0.5]
    assert answer_iou(chain, [TRUTH, Span(45, 55)], DURATION) == 0.5


def test_rows_must_match():
    chain = parse(render([], FULL))
    with pytest.raises(ValueError, match="1 chains, 2 windows, 1 durations"):
        chain_figures([chain], [[TRUTH], [TRUTH]], [DURATION])
    with pytest.raises(ValueError, match="no query"):
        chain_figures([], [], [])
    with pytest.raises(ValueError, match="window"):
        chain_figures([chain], [[]], [DURATION])


def test_thresholds_are_reached_from_below():
    assert recall_figures([0.3, 0.5, 0.7]) == pytest.approx(
        {"miou": 0.5, "r1@0.3": 1.0, "r1@0.5": 2 / 3, "r1@0.7": 1 / 3}
    )


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
