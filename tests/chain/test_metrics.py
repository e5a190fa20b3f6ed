"""Figures by hand on a handful of chains."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import answer_iou, chain_figures, chain_ious, many_chain_ious, recall_figures
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
        "answer_improves_share": 1 / 5,  # 0.8 on 0.5; the second copies, the third falls, two have no such step
        "copy_rate": 2 / 3,  # of the three with an anchor and an answer: the third returns to its first anchor
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
        "status_bad_option": 0.0,
        "status_extra_text": 0.0,
    }
    assert got.keys() == expected.keys()
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("anchors", "answer", "strict", "copied", "anchors_copied", "why"),
    [
        ([HALF, EIGHT], FULL, 1, 0, 0, "0.5, 0.8, 1"),
        ([Span(10.02, 19.98), Span(10.01, 19.99)], FULL, 0, 1, 1, "0.996, 0.998, 1: near copies of the answer"),
        ([HALF, Span(10, 29.5)], FULL, 0, 0, 1, "0.51 after 0.5"),
        ([HALF, Span(10, 28.3)], FULL, 0, 0, 0, "0.546 after 0.5 is no copy, but no step"),
        ([HALF, Span(10, 28)], FULL, 1, 0, 0, "0.556 after 0.5 is"),
        ([HALF, EIGHT, Span(10, 30.2)], FULL, 0, 0, 1, "back to the first anchor"),
        ([HALF, EIGHT], Span(10, 22.6), 1, 1, 0, "the answer stays where it was"),
        ([MISS, HALF], FULL, 0, 0, 0, "what starts at a miss has not narrowed"),
        ([Span(10, 70), Span(10, 90)], FULL, 0, 0, 1, "equal where the video has them"),
        ([Span(70, 80), Span(85, 90)], FULL, 0, 0, 0, "two spans outside are no copies"),
    ],
)
def test_copies_are_told_by_closeness_and_steps_by_gain(anchors, answer, strict, copied, anchors_copied, why):
    got = figures([render(anchors, answer)])
    assert (got["strict_share"], got["copy_rate"], got["anchor_copy_rate"]) == (strict, copied, anchors_copied), why


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


def test_a_threshold_may_have_to_be_passed():
    got = recall_figures([0.3, 0.5, 0.7, 0.7 + 1e-12], reaches=">")
    assert (got["r1@0.3"], got["r1@0.5"], got["r1@0.7"]) == (0.75, 0.5, 0.25)


ENDS = st.lists(st.floats(0, 90), min_size=2, max_size=2, unique=True).map(lambda pair: Span(*sorted(pair)))


@given(
    st.lists(
        st.tuples(
            st.lists(ENDS, max_size=3), st.none() | ENDS, st.lists(ENDS, min_size=1, max_size=3), st.floats(1, 80)
        ),
        max_size=5,
    )
)
@settings(deadline=None)
def test_many_chains_are_measured_as_each_of_them_alone(rows):
    chains = [parse(render(anchors, answer)) for anchors, answer, _, _ in rows]
    windows, durations = [row[2] for row in rows], [row[3] for row in rows]
    one_by_one = [chain_ious(*row) for row in zip(chains, windows, durations, strict=True)]
    assert many_chain_ious(chains, windows, durations) == one_by_one


def test_many_chains_are_refused_for_what_one_is_refused():
    chain = parse(render([], FULL))
    with pytest.raises(ValueError, match="no ground-truth window"):
        many_chain_ious([chain, chain], [[TRUTH], []], [DURATION] * 2)
    with pytest.raises(ValueError, match="duration 0"):
        many_chain_ious([chain], [[TRUTH]], [0.0])
