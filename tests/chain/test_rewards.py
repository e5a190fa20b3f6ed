"""Every property that the rewards must have, each with numbers by hand.

The truth is 10 to 20 in a video of 60 s throughout, so that spans of round IoU are easy to see:
10 to 20 is 1, 10 to 22.5 is 0.8, 10 to 30 is 0.5, 10 to 50 is 0.25, 20 to 30 is 0 (it touches), 30 to 40 is -1/3.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.rewards import MISSING_PENALTY, TERMS, RewardBreakdown, RewardSpec, score_chain, timer1_iou
from labkit.chain.spans import Span, iou, soft_iou
from labkit.chain.steps import FULL_GAIN, copies, is_copy, is_step
from labkit.errors import LabError
from labkit.param_fields import RewardParams
from labkit.params import DEFAULTS

TRUTH, DURATION = Span(10, 20), 60.0
FULL, EIGHT, HALF, QUARTER = Span(10, 20), Span(10, 22.5), Span(10, 30), Span(10, 50)
TOUCH, MISS = Span(20, 30), Span(30, 40)
STAGES = [RewardSpec.of(RewardParams(), final) for final in (False, True)]
BOTH = pytest.mark.parametrize("spec", STAGES, ids=["stage 1", "stage 3"])
EVEN = dict.fromkeys(TERMS, 1.0)


def score(anchors, answer, spec=None, windows=(TRUTH,)) -> RewardBreakdown:
    return score_chain(parse(render(anchors, answer)), list(windows), DURATION, spec)


def terms(anchors, answer, spec=None) -> dict[str, float]:
    return score(anchors, answer, spec).terms


# --- each term by hand


def test_a_chain_by_hand():
    breakdown = score([QUARTER, HALF], EIGHT)
    assert breakdown.terms["format"] == 1.0
    assert breakdown.terms["answer"] == pytest.approx(0.8)
    assert breakdown.terms["anchors"] == pytest.approx((1 * 0.25 + 2 * 0.5) / 3)
    assert breakdown.terms["progress"] == pytest.approx((0.5 + 1) / 2)  # the first step starts at half of a right span
    assert breakdown.total == pytest.approx(1 + 2 * 0.8 + 0.75 * 1.25 / 3 + 0.75 * 0.75)
    assert tuple(breakdown.terms) == tuple(breakdown.reasons) == TERMS


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
    breakdown = score_chain(chain, [TRUTH], DURATION)
    assert (breakdown.terms["format"], breakdown.reasons["format"]) == (0.0, "status cut_off")


def test_the_plain_control_is_not_asked_for_anchors_but_its_terms_are_recorded():
    plain = RewardSpec(weights={**EVEN, "anchors": 0, "progress": 0}, min_anchors=0)
    breakdown = score([], EIGHT, plain)
    assert breakdown.total == pytest.approx(1.8)
    assert (breakdown.terms["anchors"], breakdown.terms["progress"]) == (MISSING_PENALTY, 0.0)


def test_where_no_anchor_is_wanted_the_form_is_paid_without_them_alone():
    none = RewardSpec(weights={**EVEN, "anchors": 0, "progress": 0}, min_anchors=0, max_anchors=0)
    assert score([], EIGHT, none).total == pytest.approx(1.8)
    breakdown = score([HALF], EIGHT, none)
    assert breakdown.total == pytest.approx(0.8) and "none is wanted" in breakdown.reasons["format"]


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
    ("anchors", "answer", "worth", "why"),
    [
        ([HALF, EIGHT], FULL, [1, 1], "both steps gain 0.1 or more, from a right span"),
        ([QUARTER, HALF], FULL, [0.5, 1], "a start of half a right span halves the first step"),
        ([HALF], FULL, [1], "one anchor has one step"),
        ([HALF, Span(10, 26), EIGHT], FULL, [1, 1, 1], "three steps"),
        ([HALF, EIGHT], EIGHT, [1, 0], "the answer repeats the last anchor"),
        ([HALF, Span(10, 10 + 10 / 0.56)], FULL, [0.6, 1], "0.06 of 0.1 is six tenths of a step"),
        ([HALF, Span(10, 10 + 10 / 0.52)], FULL, [0, 1], "0.02 better, and so near that it is a copy"),
        ([EIGHT, HALF], FULL, [0, 1], "back, then on"),
        ([QUARTER, HALF, QUARTER, HALF], FULL, [0.5, 0, 0, 1], "back and forth is paid once"),
        ([FULL, HALF], QUARTER, [0, 0], "away from the truth"),
        ([HALF, FULL], EIGHT, [1, 0], "an anchor counts as far as the answer keeps it"),
        ([FULL, FULL], FULL, [0, 0], "perfect from the start leaves nothing to win"),
        ([HALF, EIGHT, EIGHT], FULL, [1, 1, 0], "a copy among three"),
        ([HALF, EIGHT], None, [0, 0], "without an answer nothing is narrowed down to"),
        ([HALF, EIGHT], MISS, [0, 0], "nor with one that misses"),
        ([MISS, HALF], FULL, [0, 1], "a step from a miss earns nothing"),
        ([TOUCH, HALF], FULL, [0, 1], "touching is not overlap"),
        ([MISS, TOUCH], FULL, [0, 0], "nor does a miss that comes nearer"),
    ],
)
def test_progress_is_the_mean_worth_of_the_steps(anchors, answer, worth, why):
    assert terms(anchors, answer)["progress"] == pytest.approx(sum(worth) / len(worth), abs=1e-3), why


def test_without_anchors_there_is_no_progress():
    assert terms([], FULL)["progress"] == 0.0


def test_an_anchor_counts_no_more_than_the_answer():
    assert terms([QUARTER, FULL], HALF)["anchors"] == pytest.approx((0.25 + 2 * 0.5) / 3)
    assert terms([FULL, FULL], MISS)["anchors"] == pytest.approx(-1 / 3)
    assert "1 counted as the answer" in score([QUARTER, FULL], HALF).reasons["anchors"]


# --- silence never pays


def test_no_answer_is_worth_less_than_the_worst_answer():
    far = Span(59, 60)
    silent, wrong = terms([HALF, EIGHT], None), terms([HALF, EIGHT], far)
    assert silent["answer"] == MISSING_PENALTY == -1.0
    assert wrong["answer"] == pytest.approx(-39 / 50)
    assert silent["answer"] < wrong["answer"]
    assert silent["progress"] <= wrong["progress"]
    for name in ("soft_iou", "iou", "timer1"):
        spec = RewardSpec(answer=name)
        assert terms([HALF], None, spec)["answer"] < terms([HALF], far, spec)["answer"]


def test_no_anchor_is_worth_less_than_the_worst_anchor():
    far = Span(59, 60)
    assert terms([], FULL)["anchors"] == MISSING_PENALTY == -1.0
    assert terms([far, far], FULL)["anchors"] == pytest.approx(-39 / 50)
    assert terms([], FULL)["progress"] == 0.0


def test_saying_nothing_is_the_worst_chain():
    nothing = score_chain(parse(""), [TRUTH], DURATION)
    assert nothing.total == pytest.approx(0 - 2 - 0.75 + 0)
    assert nothing.total < score([Span(59, 60)] * 2, Span(59, 60)).total


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(1, 60)), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_any_answer_beats_none_and_any_anchor_beats_none(pairs):
    spans = [Span(start, start + length) for start, length in pairs]
    assert score(spans, spans[0]).total > score(spans, None).total
    assert score(spans, FULL).total > score([], FULL).total


# --- what is no span earns nothing


def test_a_reversed_answer_is_unparsed_and_not_turned_round():
    chain = parse("<think></think><answer>20 to 10</answer>")
    assert score_chain(chain, [TRUTH], DURATION).terms["answer"] == MISSING_PENALTY


def test_reversed_anchors_are_no_anchors():
    chain = parse("<think><timestamp>20 to 10</timestamp></think><answer>10 to 20</answer>")
    assert score_chain(chain, [TRUTH], DURATION).terms["anchors"] == MISSING_PENALTY


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
    breakdown = score([outside, outside], outside)
    assert (breakdown.terms["answer"], breakdown.terms["anchors"], breakdown.terms["progress"]) == (
        MISSING_PENALTY,
        MISSING_PENALTY,
        0.0,
    )
    assert breakdown.reasons["answer"] == "answer lies outside the video of 60 s"


def test_stretching_inside_the_video_never_turns_a_miss_into_a_gain():
    # Soft IoU of a miss rises as it stretches away from the truth, but stays below every overlap.
    assert -1 / 3 == terms([], Span(30, 40))["answer"] < terms([], Span(30, 60))["answer"] == -0.2
    assert terms([], Span(20.5, 60))["answer"] < 0 < terms([], Span(19.9, 60))["answer"]


# --- copies and padding


def test_copying_an_anchor_earns_no_progress():
    assert terms([HALF, HALF], HALF)["progress"] == 0.0
    assert terms([HALF, HALF], FULL)["progress"] == 0.5, "only the answer's step"


def test_copies_that_differ_only_beyond_the_video_are_copies():
    assert terms([Span(10, 70), Span(10, 80)], FULL)["progress"] == terms([Span(10, 60)] * 2, FULL)["progress"]


def test_padding_with_copies_of_the_best_anchor_does_not_lift_the_weighted_mean():
    # Uncounted, the copies would lift it from 0.417 to (0.25 + 0.5 * (2 + 3 + 4)) / 10 = 0.475.
    near = [Span(10, 30.1), Span(9.9, 30)]
    assert terms([QUARTER, HALF, HALF, HALF], FULL)["anchors"] == pytest.approx((0.25 + 2 * 0.5) / 3)
    assert terms([QUARTER, HALF, *near], FULL)["anchors"] == pytest.approx((0.25 + 2 * 0.5) / 3)
    assert "2 copies not counted" in score([QUARTER, HALF, *near], FULL).reasons["anchors"]


SECONDS = st.tuples(st.integers(0, 58), st.integers(1, 59)).map(lambda pair: Span(pair[0], min(60, sum(pair))))


@given(st.lists(SECONDS, min_size=1, max_size=3), SECONDS, st.data())
@settings(max_examples=300, deadline=None)
def test_inserting_a_copy_never_raises_anchors_or_progress(anchors, answer, data):
    of = data.draw(st.integers(0, len(anchors) - 1))
    at = data.draw(st.integers(of + 1, len(anchors)))
    off = data.draw(st.sampled_from([0.0, 0.002, 0.01]))  # of the length, at either end
    near = Span(anchors[of].start + off * anchors[of].length, anchors[of].end - off * anchors[of].length)
    before = terms(anchors, answer)
    after = terms([*anchors[:at], near, *anchors[at:]], answer)
    assert after["anchors"] <= before["anchors"] + 1e-12
    assert after["progress"] <= before["progress"] + 1e-12


@given(st.lists(SECONDS, min_size=4, max_size=4), st.lists(SECONDS, min_size=1, max_size=5), SECONDS)
@settings(max_examples=100, deadline=None)
def test_more_than_max_anchors_earns_nothing_more(anchors, extra, answer):
    assert score([*anchors, *extra], answer).terms == score(anchors, answer).terms


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
        breakdown = score_chain(parse(cheat), [TRUTH], DURATION)
        assert breakdown.terms == score([HALF], FULL).terms | {"format": 0.0}, cheat


def test_a_second_answer_is_no_second_try():
    two = parse(render([HALF, EIGHT], MISS) + "<answer>10 to 20</answer>")
    assert score_chain(two, [TRUTH], DURATION).terms == terms([HALF, EIGHT], MISS) | {"format": 0.0}


# --- near copies


def near_copies(answer: Span, *off: float) -> list[Span]:
    """The answer, shorter by so many seconds at each end."""
    return [Span(answer.start + each, answer.end - each) for each in off]


def wider(span: Span, iou: float) -> Span:
    """A span around another, of this IoU with it."""
    more = span.length * (1 / iou - 1) / 2
    return Span(max(0.0, span.start - more), min(DURATION, span.end + more))


@BOTH
@pytest.mark.parametrize("off", [(0.02, 0.01), (0.01, 0.02), (-0.02, -0.01)])
def test_near_copies_of_the_answer_earn_what_exact_copies_earn_and_less_than_narrowing(spec, off):
    draw = random.Random(0)
    near = exact = narrowing = 0.0
    for _ in range(2000):
        begin, length = draw.uniform(5, 45), draw.uniform(2, 8)
        truth = Span(begin, begin + length)
        answer = Span(*sorted((begin + draw.gauss(0, 0.5), begin + length + draw.gauss(0, 0.5))))
        near += score(near_copies(answer, *off), answer, spec, [truth]).total
        exact += score([answer, answer], answer, spec, [truth]).total
        narrowing += score([wider(answer, 0.64), wider(answer, 0.8)], answer, spec, [truth]).total
    whole = 2000 * (sum(spec.weights.values()) - spec.weights["option"])
    assert near < exact + 0.02 * whole
    assert narrowing > near + 0.03 * whole


@given(SECONDS, SECONDS, st.floats(-0.024, 0.024), st.floats(-0.024, 0.024))
@settings(max_examples=300, deadline=None)
def test_a_copy_is_never_a_step_wherever_the_truth_lies(truth, span, left, right):
    near = Span(span.start + left * span.length, span.end + right * span.length)
    assume(is_copy(near, span))
    assert not is_step(iou(span, truth), iou(near, truth) - 1e-6)


# --- a bad first anchor on purpose


def pays(anchors, answer, spec) -> float:
    """What anchors and progress add to the total."""
    breakdown = score(anchors, answer, spec)
    return sum(spec.weights[term] * breakdown.terms[term] for term in ("anchors", "progress"))


@BOTH
def test_a_first_anchor_that_misses_on_purpose_costs_more_than_it_earns(spec):
    assert pays([MISS, HALF], FULL, spec) < pays([HALF, HALF], FULL, spec)
    assert terms([MISS, HALF], FULL, spec)["progress"] <= terms([HALF, HALF], FULL, spec)["progress"]
    assert pays([MISS, EIGHT], FULL, spec) < pays([HALF, EIGHT], FULL, spec)


def spans_from(start: int, least: int, most: int) -> st.SearchStrategy[Span]:
    return st.integers(max(start, least) + 1, most).map(lambda end: Span(start, end))


# Made, not filtered: all spans of whole seconds that meet the truth, and all that do not.
HITS = st.integers(0, 19).flatmap(lambda start: spans_from(start, 10, 60))
MISSES = st.integers(0, 9).flatmap(lambda start: spans_from(start, 0, 10)) | st.integers(20, 59).flatmap(
    lambda start: spans_from(start, 0, 60)
)
WEIGHTS = st.fixed_dictionaries({term: st.floats(0.01, 10) for term in TERMS})


@given(HITS, MISSES, st.lists(HITS, max_size=3), HITS, WEIGHTS)
@settings(max_examples=200, deadline=None)
def test_a_first_anchor_that_misses_loses_under_all_weights(hit, miss, others, answer, weights):
    rest = [*others, answer]
    if soft_iou(hit, TRUTH) > soft_iou(rest[0], TRUTH):
        hit, rest[0] = rest[0], hit
    *others, answer = rest
    # Copies aside: an anchor that repeats the miss is left out of the mean, as any copy is.
    assume(not any(copies([hit, *others])) and not any(copies([miss, *others])))
    spec = RewardSpec(weights=weights)
    assert terms([miss, *others], answer, spec)["progress"] <= terms([hit, *others], answer, spec)["progress"]
    assert pays([miss, *others], answer, spec) < pays([hit, *others], answer, spec)


def at(value: float) -> Span:
    """A span of this IoU with the truth."""
    return Span(10, 10 + 10 * value)


GAINS = st.lists(st.floats(FULL_GAIN, 0.3), min_size=2, max_size=3) | st.lists(
    st.floats(FULL_GAIN, 0.22), min_size=4, max_size=4
)


@given(GAINS, st.floats(0, 1), WEIGHTS)
@settings(max_examples=300, deadline=None)
def test_a_chain_whose_steps_are_paid_in_full_loses_by_lowering_its_first_anchor(gains, part, weights):
    values = [1.0]
    for gain in gains:
        values.insert(0, values[0] - gain - 1e-9)
    by = 0.01 + part * min(0.49, values[0] - 0.07)
    spec = RewardSpec(weights=weights)
    chain = [at(value) for value in values[:-1]]
    assume(not any(copies([at(values[0] - by), *chain[1:]])))
    assert pays([at(values[0] - by), *chain[1:]], FULL, spec) < pays(chain, FULL, spec)


def lowered(d: float, spec: RewardSpec) -> float:
    """What lowering the first of two anchors that tie at IoU 0.8 by `d` adds to the total."""
    tie = [EIGHT, Span(7.5, 20)]
    return pays([at(0.8 - d), tie[1]], FULL, spec) - pays(tie, FULL, spec)


@BOTH
def test_lowering_a_tied_first_anchor_is_what_the_sum_in_the_documentation_says(spec):
    weight = spec.weights["progress"]
    assert spec.weights["anchors"] == weight
    table = [(0.05, 0.23), (0.1, 0.47), (0.2, 0.43), (0.3, 0.40), (0.4, 0.27), (0.5, 0.13), (0.6, 0.0), (0.7, -0.13)]
    for d, told in table:
        sum_ = min(1, d / 0.1) * min(1, (0.8 - d) / 0.5) / 2 - d / 3
        assert lowered(d, spec) == pytest.approx(weight * sum_, abs=1e-9)
        assert sum_ == pytest.approx(told, abs=0.006), d


@BOTH
def test_lowering_a_tied_first_anchor_pays_most_for_the_least_full_step_and_less_for_every_bit_beyond(spec):
    paid = [lowered(d / 100, spec) for d in range(1, 78)]
    assert max(paid) == paid[9]
    assert all(b < a for a, b in pairwise(paid[9:]))
    assert lowered(0.61, spec) < 0


# --- what always holds


@given(st.lists(SECONDS, max_size=5), SECONDS, SECONDS, st.sampled_from(["soft_iou", "iou"]), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_better_answer_with_the_same_anchors_never_earns_less(anchors, one, other, measure, several):
    windows = (TRUTH, Span(40, 55)) if several else (TRUTH,)
    better, worse = sorted((one, other), key=lambda span: -max(soft_iou(span, window) for window in windows))
    spec = RewardSpec(answer=measure)
    assert score(anchors, better, spec, windows).total >= score(anchors, worse, spec, windows).total - 1e-9


@given(st.lists(SECONDS, max_size=5), SECONDS, st.sampled_from([0.25, 3.0, 60.0]))
@settings(max_examples=200, deadline=None)
def test_time_has_no_scale(anchors, answer, factor):
    def scaled(span: Span) -> Span:
        return Span(span.start * factor, span.end * factor)

    chain = parse(render([scaled(span) for span in anchors], scaled(answer)))
    breakdown = score_chain(chain, [scaled(TRUTH)], DURATION * factor)
    assert breakdown.total == pytest.approx(score(anchors, answer).total, abs=1e-6)


# --- one place of defaults


def test_the_default_spec_is_what_default_parameters_pay():
    assert RewardSpec() == RewardSpec.of(RewardParams()) == RewardSpec.of(DEFAULTS)
    changed = DEFAULTS.replace(anchors_weight=0.25, final_progress_weight=3.0, answer_reward="iou", max_anchors=3)
    assert RewardSpec.of(changed).weights["anchors"] == 0.25
    assert RewardSpec.of(changed, final=True) == RewardSpec(
        {**RewardSpec().weights, "anchors": 0.25, "progress": 3.0}, "iou", 2, 3
    )


def test_a_spec_survives_as_plain_data():
    spec = RewardSpec({**EVEN, "answer": 3.0}, "timer1", 1, 6)
    assert RewardSpec(**json.loads(json.dumps(spec.as_dict()))) == spec


# --- options


def chosen(text: str, choice: int | None, spec: RewardSpec | None = None) -> RewardBreakdown:
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
    breakdown = chosen(render([HALF, EIGHT], FULL, option=option), 1)
    assert (breakdown.terms["option"], breakdown.reasons["option"]) == (value, reason), why
    assert breakdown.terms["format"] == (option is not None), "the form asks for an option"


def test_the_right_option_adds_its_weight_and_touches_no_other_term():
    text = render([QUARTER, HALF], EIGHT)
    plain, right = chosen(text, None), chosen(f"{text}<option>c</option>", 2, RewardSpec({**EVEN, "option": 3.0}))
    assert {**right.terms, "option": 0.0} == plain.terms
    assert right.total == pytest.approx(1 + 0.8 + 1.25 / 3 + 0.75 + 3)


def test_without_options_the_term_is_nothing_whatever_its_weight():
    text = render([QUARTER, HALF], EIGHT)
    for weight in (0.0, 1.0, 100.0):
        breakdown = chosen(text, None, RewardSpec({**EVEN, "option": weight}))
        assert breakdown.terms["option"] == 0.0 and breakdown.reasons["option"] == "no options to choose from"
        assert breakdown.total == pytest.approx(1 + 0.8 + 1.25 / 3 + 0.75)


@pytest.mark.parametrize(
    ("cheat", "value", "why"),
    [
        ("<option>A</option><option>B</option>", 0.0, "naming all of them: the first one counts"),
        ("<option>B</option><option>A</option>", 1.0, "which can be right by luck, but the form is lost"),
        ("<option>A B C D</option>", 0.0, "all in one"),
    ],
)
def test_several_options_lose_the_form(cheat, value, why):
    breakdown = chosen(render([HALF, EIGHT], FULL) + cheat, 1)
    assert (breakdown.terms["format"], breakdown.terms["option"]) == (0.0, value), why


@given(st.lists(SECONDS, max_size=4), st.one_of(st.none(), SECONDS), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_any_option_pays_at_least_what_none_pays_and_the_right_one_more(anchors, answer, option):
    some, none = (chosen(render(anchors, answer, option=each), 1).total for each in (option, None))
    assert some > none if option == 1 else some >= none


# --- truth, errors, parameters


def test_the_best_of_several_windows_counts_for_each_step_and_is_named():
    breakdown = score([Span(40, 60), Span(45, 55)], Span(10, 20), windows=(TRUTH, Span(45, 50)))
    assert breakdown.terms["anchors"] == pytest.approx((5 / 20 + 2 * 0.5) / 3)
    assert breakdown.terms["progress"] == pytest.approx((0.5 + 1) / 2)
    assert breakdown.reasons["answer"] == "soft_iou 1.000, window 1 of 2"


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
        ({"min_anchors": 5}, "min_anchors=5"),
        ({"min_anchors": -1}, "min_anchors=-1"),
        ({"min_anchors": 1, "max_anchors": 0}, "max_anchors=0"),
    ],
)
def test_a_reward_that_makes_no_sense_is_refused(values, message):
    with pytest.raises(LabError, match=message):
        RewardSpec(**values)
