"""Sets of spans: every measure by hand, and that a set of one is the span that it was before there were sets."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import chain_figures, chain_ious, many_chain_ious
from labkit.chain.question_answering import iop
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.span_sets import f1_at, matched_ious, set_f1, set_figures, wasserstein, wasserstein_score
from labkit.chain.spans import Span, SpanSet, clip_span, iou, soft_iou, union
from labkit.chain.steps import is_copy


def of(*pairs) -> Span:
    return union([Span(*pair) for pair in pairs])


TRUTH = of((10, 20), (40, 50))
# A share u of the truth's seconds lies before 10 + 20 u, from 1/2 on before 30 + 20 u; of the three pieces before 10, 11, 31 + 19 u.
CUT = 25 / 722 + (4 / 19 - 56 / 722) + (21 / 38 - (1 / 4 - 81 / 361) / 2) + 1 / 8
BY_HAND = [
    # prediction, soft IoU, F1 by IoU, seconds that each second is moved, right count, why
    (of((10, 20), (40, 50)), 1.0, 1.0, 0.0, True, "equal"),
    (of((10, 20)), 0.5, 2 / 3, 15.0, False, "one of two: half of the seconds are moved by 30"),
    (of((10, 50)), 0.5, 2 * 0.25 / 3, 5.0, False, "the whole between them: IoU cannot tell it from one of two"),
    (of((10, 15), (15, 20)), 0.5, 2 / 3, 15.0, False, "one of two, in two pieces that touch: a span is a span"),
    (of((10, 15), (16, 20), (40, 50)), 19 / 20, 2 * 1.5 / 5, CUT, False, "one of them in two: counted as a third"),
    (of((10, 20), (45, 55)), 15 / 25, (1 + 1 / 3) / 2, 2.5, True, "the second by 5 s off"),
    (of((0, 5), (60, 65)), -5 / 65, 0.0, 15.0, True, "both missed: the nearest gap is 5 s of 65"),
    (of((25, 35)), -5 / 40, 0.0, 12.5, False, "between the two: 5 s from either"),
    (of((20, 25)), 0.0, 0.0, 13.75, False, "it touches: no overlap, no gap"),
]


@pytest.mark.parametrize(("pred", "soft", "f1", "moved", "count", "why"), BY_HAND, ids=[row[-1] for row in BY_HAND])
def test_every_measure_by_hand(pred, soft, f1, moved, count, why):
    assert soft_iou(pred, TRUTH) == pytest.approx(soft, abs=1e-12)
    assert iou(pred, TRUTH) == max(0.0, soft_iou(pred, TRUTH))
    assert set_f1(pred, TRUTH) == pytest.approx(f1, abs=1e-12)
    assert wasserstein(pred, TRUTH) == pytest.approx(moved, abs=1e-9)
    assert set_figures(pred, [TRUTH])["count_accuracy"] == count


def test_the_field_s_figures_by_hand():
    pred = of((10, 20), (40, 44), (46, 47))  # matched: IoU 1 and 0.4, the third with nothing
    figures = set_figures(pred, [TRUTH])
    assert figures["tf1@0.3"] == pytest.approx(2 * 2 / 5) and figures["tf1@0.5"] == pytest.approx(2 * 1 / 5)
    assert (figures["count_accuracy"], figures["etf1"]) == (0.0, 0.0)  # three are not two, whatever is found
    assert set_figures(of((10, 20), (40, 46)), [TRUTH])["etf1"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert set(set_figures(None, [TRUTH]).values()) == {0.0}
    assert set_figures(Span(0, 5), [Span(40, 50), Span(0, 5)])["etf1"] == 1.0  # of windows by themselves the best


def test_a_span_is_matched_once_and_to_its_best_partner():
    assert matched_ious(of((0, 10)), of((0, 4), (6, 10))) == (0.4,)
    assert matched_ious(of((0, 4), (6, 10)), of((0, 10))) == (0.4,)
    # The first could have a part of the second's partner, too.
    assert matched_ious(of((0, 10), (11, 20)), of((2, 10), (10.5, 20))) == pytest.approx((0.8, 9 / 9.5))


def test_misses_of_iou_0_are_ordered_by_how_far_they_lie():
    group = [of((22, 24)), of((2, 4)), of((58, 60)), of((0, 2), (58, 60))]
    assert [iou(each, TRUTH) for each in group] == [0.0] * 4
    assert len({wasserstein_score(each, TRUTH) for each in group}) == 4
    near, far = of((21, 22), (51, 52)), of((1, 2), (59, 60))
    assert wasserstein_score(near, TRUTH) > wasserstein_score(far, TRUTH) > 0


def test_what_spans_overlap_or_touch_is_one():
    assert of((5, 9), (1, 3), (2, 4)) == SpanSet(1, 9, (Span(1, 4), Span(5, 9)))
    assert of((1, 3), (3, 5), (2, 4)) == Span(1, 5)
    assert (of((1, 3), (5, 9)).length, of((1, 3), (5, 9)).start, of((1, 3), (5, 9)).end) == (6, 1, 9)
    with pytest.raises(ValueError, match="give at least one"):
        union([])
    for bad in [(Span(1, 3),), (Span(5, 9), Span(1, 3)), (Span(1, 3), Span(2, 9)), (Span(1, 3), Span(5, 8))]:
        with pytest.raises(ValueError, match="no set"):
            SpanSet(1, 9, bad)


def test_a_set_is_cut_to_the_video_part_by_part():
    assert clip_span(of((-4, 3), (5, 9), (20, 30)), 25.0) == of((0, 3), (5, 9), (20, 25))
    assert clip_span(of((1, 3), (40, 50)), 25.0) == Span(1, 3)
    assert clip_span(of((26, 30), (40, 50)), 25.0) is None


TIMES = st.integers(0, 60 * 4).map(lambda quarter: quarter / 4)
SPANS = st.lists(TIMES, min_size=2, max_size=2, unique=True).map(lambda pair: Span(*sorted(pair)))
PIECES = st.lists(SPANS, min_size=1, max_size=5)
SETS = PIECES.map(union)
MEASURES = (soft_iou, iou, set_f1, wasserstein_score, lambda a, b: f1_at(a, b, 0.5), lambda a, b: -wasserstein(a, b))


@given(SETS, SETS)
@settings(max_examples=200, deadline=None)
def test_measures_are_symmetric_in_their_range_and_best_for_equal_sets(a, b):
    for measure in MEASURES:
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-12)
        assert measure(a, b) <= measure(a, a) + 1e-12
    assert -1 < soft_iou(a, b) <= 1 and (soft_iou(a, b) == 1) == (a == b)
    assert 0 <= set_f1(a, b) <= 1 and 0 <= wasserstein_score(a, b) <= 1 and 0 <= wasserstein(a, b) <= 60
    assert set_f1(a, b) <= f1_at(a, b, 0.0) <= 1


@given(PIECES, SETS)
@settings(max_examples=100, deadline=None)
def test_neither_order_nor_overlaps_nor_saying_it_twice_change_a_value(pieces, truth):
    whole = union(pieces)
    for written in [*permutations(pieces[:3], min(3, len(pieces)))][:6]:
        again = union([*pieces, *written])
        assert again == whole and all(measure(again, truth) == measure(whole, truth) for measure in MEASURES)


@given(SETS, SETS)
@settings(max_examples=200, deadline=None)
def test_unions_are_measured_as_grids_of_quarter_seconds_are(a, b):
    middles = np.arange(0.125, 60, 0.25)
    inside = [
        np.any([(part.start < middles) & (middles < part.end) for part in each.parts], axis=0) for each in (a, b)
    ]
    shared, either = (inside[0] & inside[1]).sum(), (inside[0] | inside[1]).sum()
    assert iou(a, b) == pytest.approx(shared / either, abs=1e-12)
    assert iop(a, b) == pytest.approx(shared / inside[0].sum(), abs=1e-12)
    shares = [
        np.cumsum(each) / each.sum() for each in inside
    ]  # both go straight within a quarter, but where they cross
    assert wasserstein(a, b) == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 4, abs=0.26)


@given(SPANS, SPANS)
@settings(max_examples=200, deadline=None)
def test_a_set_of_one_is_the_span_itself_to_the_last_digit(pred, gold):
    assert union([pred]) is pred and union([pred, pred]) == pred
    start, end = max(pred.start, gold.start), min(pred.end, gold.end)
    plain = (end - start) / (max(pred.end, gold.end) - min(pred.start, gold.start))
    assert (soft_iou(pred, gold), iou(pred, gold)) == (plain, max(0.0, plain))
    assert set_f1(pred, gold) == iou(pred, gold) and f1_at(pred, gold, 0.5) == (iou(pred, gold) >= 0.5)


@given(SPANS, SETS, SETS)
@settings(max_examples=100, deadline=None)
def test_a_copy_of_a_set_gains_no_more_than_what_a_copy_of_a_span_does(span, one, truth):
    nearly = union([*one.parts, span])
    if is_copy(nearly, one):
        assert abs(iou(nearly, truth) - iou(one, truth)) <= 0.05 + 1e-9


@given(st.lists(SETS, max_size=3), SETS, st.lists(SETS, min_size=1, max_size=2))
@settings(max_examples=100, deadline=None)
def test_chains_of_sets_are_written_read_measured_and_bounded(anchors, answer, truths):
    chain = parse(render(anchors, answer))
    assert (chain.spans, chain.answer) == (tuple(anchors), answer)
    ious = chain_ious(chain, truths, 50.0) if min(each.start for each in truths) < 50 else []
    assert all(0 <= value <= 1 for value in ious)
    assert many_chain_ious([chain], [truths], [60.0]) == [chain_ious(chain, truths, 60.0)]
    for name in ("soft_iou", "iou", "timer1", "f1", "wasserstein"):
        breakdown = score_chain(chain, truths, 60.0, RewardSpec(answer=name))
        assert -1 <= breakdown.terms["answer"] <= 1 and 0 <= breakdown.terms["progress"] <= 1
        assert breakdown.total <= sum(RewardSpec().weights.values())


# --- a chain is paid and measured by the set


def test_a_chain_of_sets_narrows_and_is_paid_by_the_set():
    wide, near = of((5, 25), (35, 55)), of((8, 22), (38, 52))
    chain = parse(render([wide, near], TRUTH))
    breakdown = score_chain(chain, [TRUTH], 60.0)
    assert (breakdown.terms["answer"], breakdown.terms["progress"]) == (1.0, 1.0)
    assert breakdown.terms["anchors"] == pytest.approx((20 / 40 + 2 * 20 / 28) / 3)
    assert breakdown.reasons["answer"] == "soft_iou 1.000, spans 2 of 2"
    assert chain_ious(chain, [TRUTH], 60.0) == [0.5, pytest.approx(20 / 28), 1.0]


@pytest.mark.parametrize(
    ("name", "answer", "value"),
    [
        ("iou", of((10, 20)), 0.5),
        ("soft_iou", of((25, 35)), -5 / 40),
        ("f1", of((10, 20)), 2 / 3),
        ("f1", of((25, 35)), 0.0),
        ("wasserstein", of((25, 35)), math.exp(-3 * 12.5 / 30)),
        ("wasserstein", TRUTH, 1.0),
    ],
)
def test_rewards_of_sets_by_name(name, answer, value):
    breakdown = score_chain(parse(render([], answer)), [TRUTH], 60.0, RewardSpec(answer=name))
    assert breakdown.terms["answer"] == pytest.approx(value)


def test_naming_all_windows_is_no_second_try_where_each_is_an_answer_by_itself():
    windows = [Span(10, 20), Span(40, 50)]
    one, both = (score_chain(parse(render([], each)), windows, 60.0).terms["answer"] for each in (windows[0], TRUTH))
    assert (one, both) == (1.0, 0.5)


def test_figures_of_sets_stand_beside_the_others_where_a_truth_is_one():
    chains = [parse(render([], TRUTH)), parse(render([], Span(10, 20))), parse("")]
    figures = chain_figures(chains, [[TRUTH]] * 3, [60.0] * 3)
    assert (figures["miou"], figures["count_accuracy"]) == (pytest.approx(0.5), pytest.approx(1 / 3))
    assert figures["tf1@0.5"] == pytest.approx((1 + 2 / 3) / 3) and figures["etf1"] == pytest.approx(1 / 3)
    assert "etf1" not in chain_figures(chains, [[Span(10, 20)]] * 3, [60.0] * 3)


def test_a_long_hostile_set_is_measured_in_time():
    text = ", ".join(f"{2 * n} to {2 * n + 1}" for n in range(20_000))
    chain = parse(f"<think><timestamp>{text}</timestamp><timestamp>{text}</timestamp></think><answer>{text}</answer>")
    assert len(chain.answer.parts) == 20_000
    breakdown = score_chain(chain, [TRUTH], 60.0, RewardSpec(answer="f1"))
    assert breakdown.terms["answer"] == pytest.approx(2 * 2 * 0.1 / 32)  # 30 of them lie in the video
