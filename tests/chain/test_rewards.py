"""Every property that the rewards must have, each with numbers by hand.

The truth is 10 to 20 in a video of 60 s throughout, so that spans of round IoU are easy to see:
10 to 20 is 1, 10 to 22.5 is 0.8, 10 to 30 is 0.5, 10 to 50 is 0.25, 20 to 30 is 0 (it touches), 30 to 40 is -1/3.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.rewards import TERMS, WORST, Ledger, RewardSpec, score_chain, timer1_iou
from labkit.chain.spans import Span, soft_iou
from labkit.errors import LabError

TRUTH, DURATION = Span(10, 20), 60.0
FULL, EIGHT, HALF, QUARTER = Span(10, 20), Span(10, 22.5), Span(10, 30), Span(10, 50)
TOUCH, MISS = Span(20, 30), Span(30, 40)
GATED = RewardSpec(progress="gated")
EVEN = dict.fromkeys(TERMS, 1.0)


def score(anchors, answer, spec=None, windows=(TRUTH,)) -> Ledger:
    return score_chain(parse(render(anchors, answer)), list(windows), DURATION, spec)


def terms(anchors, answer, spec=None) -> dict[str, float]:
    return score(anchors, answer, spec).terms


# --- each term by hand


def test_a_chain_by_hand():
    ledger = score([QUARTER, HALF], EIGHT)
    assert ledger.terms["format"] == 1.0
    assert ledger.terms["answer"] == pytest.approx(0.8)
    assert ledger.terms["anchors"] == pytest.approx((1 * 0.25 + 2 * 0.5) / 3)
    assert ledger.terms["progress"] == 1.0
    assert ledger.total == pytest.approx(1 + 0.8 + 0.5 * 1.25 / 3 + 0.5)
    assert tuple(ledger.terms) == tuple(ledger.reasons) == TERMS


@pytest.mark.parametrize(
    ("text", "earned", "why"),
    [
        (render([HALF, EIGHT], FULL), 1.0, "the form, two anchors"),
        (render([HALF], FULL), 0.0, "one anchor of two"),
        (render([], FULL), 0.0, "no anchor"),
        (render([HALF, EIGHT], None), 0.0, "no answer"),
        (render([HALF, EIGHT], FULL) + "!", 0.0, "a word too many"),
        (render([HALF, EIGHT], FULL).replace("</think>", ""), 0.0, "a thought without end"),
        (render([HALF, EIGHT], FULL).replace("20.0</answer>", "9.0</answer>"), 0.0, "a reversed answer"),
    ],
)
def test_format_is_all_or_nothing(text, earned, why):
    assert score_chain(parse(text), [TRUTH], DURATION).terms["format"] == earned, why


def test_format_is_lost_at_the_token_limit():
    chain = parse(render([HALF, EIGHT], FULL), finished=False)
    ledger = score_chain(chain, [TRUTH], DURATION)
    assert (ledger.terms["format"], ledger.reasons["format"]) == (0.0, "status cut_off")


def test_the_plain_control_is_not_asked_for_anchors_but_its_terms_are_recorded():
    plain = RewardSpec(weights={**EVEN, "anchors": 0, "progress": 0}, min_anchors=0)
    ledger = score([], EIGHT, plain)
    assert ledger.total == pytest.approx(1.8)
    assert (ledger.terms["anchors"], ledger.terms["progress"]) == (WORST, 0.0)


@pytest.mark.parametrize(
    ("name", "answer", "value", "why"),
    [
        ("soft_iou", HALF, 0.5, "overlap is IoU"),
        ("soft_iou", MISS, -10 / 30, "gap 10 of hull 30"),
        ("iou", HALF, 0.5, "hard"),
        ("iou", MISS, 0.0, "hard: all misses are alike"),
        ("timer1", HALF, 0.5 * (1 - 0 / 60) * (1 - 10 / 60), "the end is 10 of 60 s off"),
        ("timer1", FULL, 1.0, "perfect"),
    ],
)
def test_answer_rewards_by_name(name, answer, value, why):
    assert terms([HALF, EIGHT], answer, RewardSpec(answer=name))["answer"] == pytest.approx(value), why


def test_timer1_takes_both_ends_into_account():
    assert timer1_iou(Span(5, 30), TRUTH, 60.0) == pytest.approx(10 / 25 * (1 - 5 / 60) * (1 - 10 / 60))


@pytest.mark.parametrize(
    ("anchors", "answer", "share", "why"),
    [
        ([QUARTER, HALF], FULL, 1.0, "both steps closer"),
        ([QUARTER, HALF], HALF, 0.5, "the answer repeats the last anchor"),
        ([HALF, QUARTER], FULL, 0.5, "back, then on"),
        ([FULL, HALF], QUARTER, 0.0, "away from the truth"),
        ([FULL, FULL], FULL, 0.0, "perfect from the start leaves nothing to win: strict"),
        ([QUARTER], FULL, 1.0, "one anchor has one step"),
        ([QUARTER, HALF, EIGHT], FULL, 1.0, "three steps"),
        ([QUARTER, HALF, HALF], FULL, 2 / 3, "a copy among three"),
        ([QUARTER, HALF], None, 0.5, "the missing answer is a failed step"),
        ([], FULL, 0.0, "no anchor"),
        ([MISS, HALF], FULL, 0.5, "a step from a miss earns nothing"),
        ([TOUCH, HALF], FULL, 0.5, "touching is not overlap"),
        ([MISS, TOUCH], FULL, 0.0, "nor does a miss that comes nearer"),
    ],
)
def test_progress_is_the_share_of_strict_improvements_from_an_overlap(anchors, answer, share, why):
    assert terms(anchors, answer)["progress"] == pytest.approx(share), why


def test_gated_progress_is_the_share_times_the_mean_anchor_iou():
    assert terms([QUARTER, HALF], FULL, GATED)["progress"] == pytest.approx(1.0 * (0.25 + 0.5) / 2)
    assert terms([QUARTER, HALF], HALF, GATED)["progress"] == pytest.approx(0.5 * (0.25 + 0.5) / 2)
    # A miss counts 0 in the gate, not below.
    assert terms([MISS, HALF], FULL, GATED)["progress"] == pytest.approx(0.5 * (0 + 0.5) / 2)


# --- silence never pays


def test_no_answer_is_worth_less_than_the_worst_answer():
    far = Span(59, 60)
    silent, wrong = terms([HALF, EIGHT], None), terms([HALF, EIGHT], far)
    assert silent["answer"] == WORST == -1.0
    assert wrong["answer"] == pytest.approx(-39 / 50)
    assert silent["answer"] < wrong["answer"]
    assert silent["progress"] <= wrong["progress"]
    for name in ("soft_iou", "iou", "timer1"):
        spec = RewardSpec(answer=name)
        assert terms([HALF], None, spec)["answer"] < terms([HALF], far, spec)["answer"]


def test_no_anchor_is_worth_less_than_the_worst_anchor():
    far = Span(59, 60)
    assert terms([], FULL)["anchors"] == WORST == -1.0
    assert terms([far, far], FULL)["anchors"] == pytest.approx(-39 / 50)
    assert terms([], FULL)["progress"] == 0.0


def test_saying_nothing_is_the_worst_chain():
    nothing = score_chain(parse(""), [TRUTH], DURATION)
    assert nothing.total == pytest.approx(0 - 1 - 0.5 + 0)
    assert nothing.total < score([Span(59, 60)] * 2, Span(59, 60)).total


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(1, 60)), min_size=1, max_size=6), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_answer_beats_none_and_any_anchor_beats_none(pairs, gated):
    spans = [Span(start, start + length) for start, length in pairs]
    spec = GATED if gated else RewardSpec()
    assert score(spans, spans[0], spec).total > score(spans, None, spec).total
    assert score(spans, FULL, spec).total > score([], FULL, spec).total


# --- what is no span earns nothing


def test_a_reversed_answer_is_unparsed_and_not_turned_round():
    chain = parse("<think></think><answer>20 to 10</answer>")
    assert score_chain(chain, [TRUTH], DURATION).terms["answer"] == WORST


def test_reversed_anchors_are_no_anchors():
    chain = parse("<think><timestamp>20 to 10</timestamp></think><answer>10 to 20</answer>")
    assert score_chain(chain, [TRUTH], DURATION).terms["anchors"] == WORST


# --- the video's ends


def test_predictions_are_cut_to_the_video():
    assert terms([HALF, EIGHT], Span(10, 9999))["answer"] == pytest.approx(10 / 50)
    assert terms([Span(10, 9999)], FULL)["anchors"] == pytest.approx(10 / 50)


def test_stretching_a_miss_beyond_the_video_does_not_raise_it():
    honest, stretched = Span(40, 60), Span(40, 100000)
    # Uncut it would rise from -0.4 to nearly 0.
    assert soft_iou(honest, TRUTH) == -0.4 and soft_iou(stretched, TRUTH) > -0.001
    assert terms([HALF, EIGHT], stretched) == terms([HALF, EIGHT], honest)
    assert terms([stretched], FULL) == terms([honest], FULL)


def test_a_span_wholly_outside_the_video_is_worth_what_silence_is():
    outside = Span(61, 90)
    ledger = score([outside, outside], outside)
    assert (ledger.terms["answer"], ledger.terms["anchors"], ledger.terms["progress"]) == (WORST, WORST, 0.0)
    assert ledger.reasons["answer"] == "answer lies outside the video of 60 s"


def test_stretching_inside_the_video_never_turns_a_miss_into_a_gain():
    # Soft IoU of a miss rises as it stretches away from the truth, but stays below every overlap.
    assert -1 / 3 == terms([], Span(30, 40))["answer"] < terms([], Span(30, 60))["answer"] == -0.2
    assert terms([], Span(20.5, 60))["answer"] < 0 < terms([], Span(19.9, 60))["answer"]


# --- copies and padding


def test_copying_an_anchor_earns_no_progress():
    assert terms([HALF, HALF], HALF)["progress"] == 0.0
    assert terms([HALF, HALF], FULL)["progress"] == 0.5, "only the answer's step"
    assert terms([HALF, HALF], FULL, GATED)["progress"] == pytest.approx(0.5 * 0.5)


def test_copies_that_differ_only_beyond_the_video_are_copies():
    assert terms([Span(10, 70), Span(10, 80)], FULL)["progress"] == 0.5


def test_padding_with_copies_of_the_best_anchor_does_not_lift_the_weighted_mean():
    # Uncounted, the copies would lift it from 0.417 to (0.25 + 0.5 * (2 + 3 + 4)) / 10 = 0.475.
    assert terms([QUARTER, HALF, HALF, HALF], FULL)["anchors"] == pytest.approx((0.25 + 2 * 0.5) / 3)


SECONDS = st.tuples(st.integers(0, 58), st.integers(1, 59)).map(lambda pair: Span(pair[0], min(60, sum(pair))))


@given(st.lists(SECONDS, min_size=1, max_size=3), SECONDS, st.data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_inserting_a_copy_never_raises_anchors_or_progress(anchors, answer, data, gated):
    spec = GATED if gated else RewardSpec()
    at = data.draw(st.integers(0, len(anchors) - 1))
    before = terms(anchors, answer, spec)
    after = terms([*anchors[: at + 1], *anchors[at:]], answer, spec)
    assert after["anchors"] <= before["anchors"] + 1e-12
    assert after["progress"] <= before["progress"] + 1e-12


@given(st.lists(SECONDS, min_size=4, max_size=4), st.lists(SECONDS, min_size=1, max_size=5), SECONDS, st.booleans())
@settings(max_examples=100, deadline=None)
def test_more_than_max_anchors_earns_nothing_more(anchors, extra, answer, gated):
    spec = GATED if gated else RewardSpec()
    assert score([*anchors, *extra], answer, spec).terms == score(anchors, answer, spec).terms


def test_anchors_over_the_limit_are_named():
    assert "2 anchors over the limit" in score([QUARTER, HALF, EIGHT, FULL, FULL, FULL], FULL).reasons["anchors"]


def test_malformed_and_misplaced_anchors_earn_nothing():
    good = render([HALF], FULL)
    for cheat in (
        good.replace("</think>", "<timestamp>10 to 20</think>"),
        good.replace("</think>", "</think><timestamp>10 to 20</timestamp>"),
        good.replace("</think>", "</think><think><timestamp>10 to 20</timestamp></think>"),
        "<timestamp>10 to 20</timestamp>" + good,
    ):
        ledger = score_chain(parse(cheat), [TRUTH], DURATION)
        assert ledger.terms == score([HALF], FULL).terms | {"format": 0.0}, cheat


def test_a_second_answer_is_no_second_try():
    two = parse(render([HALF, EIGHT], MISS) + "<answer>10 to 20</answer>")
    assert score_chain(two, [TRUTH], DURATION).terms == terms([HALF, EIGHT], MISS) | {"format": 0.0}


# --- a bad first anchor on purpose

BOTH = pytest.mark.parametrize("spec", [RewardSpec(), GATED], ids=["share", "gated"])


def pays(anchors, answer, spec) -> float:
    """What anchors and progress add to the total."""
    ledger = score(anchors, answer, spec)
    return sum(spec.weights[term] * ledger.terms[term] for term in ("anchors", "progress"))


@BOTH
def test_a_first_anchor_that_misses_on_purpose_costs_more_than_it_earns(spec):
    # From a tie at 0.5, where a sandbag has most to win: nothing won, and 0.5 * (0.5 + 1/3) / 3 lost in anchors.
    assert pays([MISS, HALF], FULL, spec) < pays([HALF, HALF], FULL, spec)
    assert terms([MISS, HALF], FULL, spec)["progress"] <= terms([HALF, HALF], FULL, spec)["progress"]
    assert pays([MISS, EIGHT], FULL, spec) < pays([HALF, EIGHT], FULL, spec)


HITS = SECONDS.filter(lambda span: soft_iou(span, TRUTH) > 0)
MISSES = SECONDS.filter(lambda span: soft_iou(span, TRUTH) <= 0)
WEIGHTS = st.fixed_dictionaries({term: st.floats(0.01, 10) for term in TERMS})


@given(HITS, MISSES, st.lists(SECONDS, max_size=3), SECONDS, WEIGHTS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_first_anchor_that_misses_loses_under_all_weights(hit, miss, others, answer, weights, gated):
    anchors = [hit, *others]
    assume(all(a != b for a, b in pairwise(anchors)) and others[:1] != [miss])
    spec = RewardSpec(weights=weights, progress="gated" if gated else "share")
    assert terms([miss, *anchors[1:]], answer, spec)["progress"] <= terms(anchors, answer, spec)["progress"]
    assert pays([miss, *anchors[1:]], answer, spec) < pays(anchors, answer, spec)


@BOTH
def test_a_chain_that_narrows_already_has_nothing_to_win_by_a_worse_start(spec):
    worse = [Span(10, 10 + 10 / q) for q in (0.49, 0.4, 0.3, 0.2)]
    paid = [pays([first, EIGHT], FULL, spec) for first in [HALF, *worse]]
    assert all(b < a for a, b in pairwise(paid))


def test_gated_makes_a_drop_of_more_than_three_fifths_a_loss_and_share_does_not():
    # Two anchors tied at q = 0.8, an answer better than both, default weights; the first drops by d.
    def gain(d: float, spec: RewardSpec) -> float:
        return pays([Span(10, 10 + 10 / (0.8 - d)), EIGHT], FULL, spec) - pays([EIGHT, Span(7.5, 20)], FULL, spec)

    for d in (0.1, 0.3, 0.5):
        assert gain(d, RewardSpec()) == pytest.approx(1 / 4 - d / 6)
        assert gain(d, GATED) == pytest.approx((0.8 - d) / 4 - d / 6)
    assert gain(0.47, GATED) > 0 > gain(0.49, GATED)
    # With share the weights must be 1.5 / d apart: for d = 0.5 three to one is the border.
    below, above = ({**EVEN, "anchors": w, "progress": 0.5} for w in (1.45, 1.55))
    assert gain(0.5, RewardSpec(weights=below)) > 0 > gain(0.5, RewardSpec(weights=above))


# --- options


def chosen(text: str, choice: int | None, spec: RewardSpec | None = None) -> Ledger:
    return score_chain(parse(text, options=0 if choice is None else 4), [TRUTH], DURATION, spec, choice)


@pytest.mark.parametrize(
    ("option", "value", "reason", "why"),
    [
        (1, 1.0, "option B, right", "right"),
        (0, 0.0, "option A, B is right", "wrong"),
        (None, 0.0, "no option, B is right", "silence pays no more than a wrong option"),
    ],
)
def test_the_option_is_right_or_worth_nothing(option, value, reason, why):
    ledger = chosen(render([HALF, EIGHT], FULL, option=option), 1)
    assert (ledger.terms["option"], ledger.reasons["option"]) == (value, reason), why
    assert ledger.terms["format"] == (option is not None), "the form asks for an option"


def test_the_right_option_adds_its_weight_and_touches_no_other_term():
    text = render([QUARTER, HALF], EIGHT)
    plain, right = chosen(text, None), chosen(f"{text}<option>c</option>", 2, RewardSpec({**EVEN, "option": 3.0}))
    assert {**right.terms, "option": 0.0} == plain.terms
    assert right.total == pytest.approx(1 + 0.8 + 1.25 / 3 + 1 + 3)


def test_without_options_the_term_is_nothing_whatever_its_weight():
    text = render([QUARTER, HALF], EIGHT)
    for weight in (0.0, 1.0, 100.0):
        ledger = chosen(text, None, RewardSpec({**EVEN, "option": weight}))
        assert ledger.terms["option"] == 0.0 and ledger.reasons["option"] == "no options to choose from"
        assert ledger.total == pytest.approx(1 + 0.8 + 1.25 / 3 + 1)


@pytest.mark.parametrize(
    ("cheat", "value", "why"),
    [
        ("<option>A</option><option>B</option>", 0.0, "naming all of them: the first one counts"),
        ("<option>B</option><option>A</option>", 1.0, "which can be right by luck, but the form is lost"),
        ("<option>A B C D</option>", 0.0, "all in one"),
    ],
)
def test_several_options_lose_the_form(cheat, value, why):
    ledger = chosen(render([HALF, EIGHT], FULL) + cheat, 1)
    assert (ledger.terms["format"], ledger.terms["option"]) == (0.0, value), why


@given(st.lists(SECONDS, max_size=4), st.one_of(st.none(), SECONDS), st.integers(0, 3), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_option_pays_at_least_what_none_pays_and_the_right_one_more(anchors, answer, option, gated):
    spec = GATED if gated else RewardSpec()
    some, none = (chosen(render(anchors, answer, option=each), 1, spec).total for each in (option, None))
    assert some > none if option == 1 else some >= none


# --- truth, errors, parameters


def test_the_best_of_several_windows_counts_for_each_step_and_is_named():
    ledger = score([Span(40, 60), Span(45, 55)], Span(10, 20), windows=(TRUTH, Span(45, 50)))
    assert ledger.terms["anchors"] == pytest.approx((5 / 20 + 2 * 0.5) / 3)
    assert ledger.terms["progress"] == 1.0
    assert ledger.reasons["answer"] == "soft_iou 1.000, window 1 of 2"


@pytest.mark.parametrize(
    ("windows", "duration", "message"),
    [([], 60.0, "window"), ([TRUTH], 0.0, "duration"), ([TRUTH], float("nan"), "duration")],
)
def test_a_reward_that_meets_bad_data_raises(windows, duration, message):
    with pytest.raises(ValueError, match=message):
        score_chain(parse(render([HALF], FULL)), windows, duration)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {"format": 1.0}}, "exactly one for each"),
        ({"weights": {**EVEN, "progres": 1}}, "progres"),
        ({"weights": {**EVEN, "answer": -1}}, "answer=-1"),
        ({"weights": {**EVEN, "option": -1}}, "option=-1"),
        ({"weights": {**EVEN, "answer": float("nan")}}, "answer=nan"),
        ({"answer": "giou"}, "'giou'"),
        ({"progress": "all"}, "'all'"),
        ({"min_anchors": 5}, "min_anchors=5"),
        ({"min_anchors": -1}, "min_anchors=-1"),
        ({"min_anchors": 0, "max_anchors": 0}, "max_anchors=0"),
    ],
)
def test_a_reward_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(LabError, match=message):
        RewardSpec(**values)
