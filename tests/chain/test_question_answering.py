"""Figures of grounded question answering, by hand.

The evidence is 10 to 20 s throughout: 12 to 16 has IoP 1 and IoU 0.4, 15 to 25 has IoP 0.5, 5 to 25 has IoP 0.5 too.
"""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.question_answering import answer_iop, answering_figures, iop
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span, iou

TRUTH = Span(10, 20)


@pytest.mark.parametrize(
    ("pred", "share", "why"),
    [
        (Span(10, 20), 1.0, "exact"),
        (Span(12, 16), 1.0, "inside: nothing shown is beside the point"),
        (Span(15, 25), 0.5, "half of it"),
        (Span(5, 25), 0.5, "around it: 10 of 20 s"),
        (Span(0, 100), 0.1, "everything is little evidence"),
        (Span(20, 30), 0.0, "it touches"),
        (Span(30, 40), 0.0, "a miss is 0 and not below"),
    ],
)
def test_iop_is_the_share_of_the_prediction_that_is_evidence(pred, share, why):
    assert iop(pred, TRUTH) == pytest.approx(share), why


SPANS = st.tuples(st.integers(0, 99), st.integers(1, 50)).map(lambda pair: Span(pair[0], sum(pair)))


@given(SPANS, SPANS)
def test_iop_lies_between_iou_and_one(pred, gold):
    assert iou(pred, gold) <= iop(pred, gold) <= 1


def answer(span: Span | None, option: int | None = None):
    return parse(render([], span, option=option), options=4)


def test_the_best_window_counts_and_silence_is_nothing():
    assert answer_iop(answer(Span(15, 25)), [Span(24, 30), TRUTH]) == 0.5
    assert answer_iop(answer(None), [TRUTH]) == 0.0
    with pytest.raises(ValueError, match="window"):
        answer_iop(answer(TRUTH), [])


def test_figures_by_hand():
    rows = [
        # answer, option, right one: what it counts for
        (Span(10, 20), 1, 1),  # right, IoP 1
        (Span(15, 25), 1, 1),  # right, IoP 0.5, which is enough
        (Span(10, 35), 2, 2),  # right, IoP 0.4: not grounded
        (Span(12, 16), 0, 3),  # wrong option, IoP 1
        (Span(30, 40), 3, 3),  # right for no shown reason
        (TRUTH, None, 0),  # IoP 1 and no option
        (None, 2, 2),  # right without evidence
        (None, None, 0),  # silence
    ]
    figures = answering_figures(
        [answer(span, option) for span, option, _ in rows], [[TRUTH]] * 8, [choice for *_, choice in rows]
    )
    assert figures == {
        "acc_qa": 5 / 8,
        "acc_gqa": 2 / 8,
        "miop": pytest.approx((1 + 0.5 + 0.4 + 1 + 1) / 8),
        "iop@0.3": 5 / 8,
        "iop@0.5": 4 / 8,
        "option_rate": 6 / 8,
    }


def test_moments_without_options_do_not_count():
    chains = [answer(TRUTH, 1), parse(render([], TRUTH))]
    assert answering_figures(chains, [[TRUTH], [TRUTH]], [1, None])["acc_gqa"] == 1.0
    assert answering_figures(chains, [[TRUTH], [TRUTH]], [None, None]) == {}
    assert answering_figures([], [], []) == {}


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="1 chains, 1 lists of windows, 2 choices"):
        answering_figures([answer(TRUTH)], [[TRUTH]], [0, 1])


# --- texts written to break the reading of options

FRAGMENTS = (
    "<think>", "</think>", "<answer>10 to 20</answer>", "<answer>", "</answer>", "<timestamp>9 to 21</timestamp>",
    "<timestamp>5 to 25</timestamp>", "<option>", "</option>", "<option>A</option>", "<option> b </option>",
    "<option>B</option>", "<option>Z</option>", "<option>AB</option>", "<OPTION>B</OPTION>", "<option>\u0131</option>",
    "<option>\uff22</option>", "<option>\x00</option>", "A", "b", " ", "\n", "\ud800", "word",
)  # fmt: skip
GOOD = "<think>{}</think><answer>10 to 20</answer>{}<option>B</option>"
# Each step gains just what it must, to the truth itself: the most that can be had.
HONEST = render([Span(7.5, 20), Span(10 - 10 / 9, 20)], TRUTH, option=1)


def test_ten_thousand_hostile_texts_are_read_and_earn_no_more_than_an_honest_choice():
    rng, spec, seen = random.Random(0), RewardSpec(), set()
    best = score_chain(parse(HONEST, options=4), [TRUTH], 60.0, spec, 1).total
    assert best == pytest.approx(sum(spec.weights.values()) - spec.weights["anchors"] * (1 - (0.8 + 2 * 0.9) / 3))
    for _ in range(10_000):
        parts = ["".join(rng.choices(FRAGMENTS, k=rng.randrange(6))) for _ in range(2)]
        text = rng.choice([GOOD, "{}{}"]).format(*parts)
        chain = parse(text, options=4)
        plain = parse(text)
        assert (chain.anchors, chain.answer) == (plain.anchors, plain.answer)
        assert (chain.option is None) == (chain.option_chars is None)
        assert score_chain(chain, [TRUTH], 60.0, spec, 1).total <= best, text
        if chain.status in ("ok", "no_anchor"):
            assert chain.option in range(4) and text.count("option>") == 2
            assert chain.answer_chars[1] <= chain.option_chars[0]
        seen.add(chain.status)
    assert {"ok", "bad_option", "extra_text", "no_answer", "bad_answer"} <= seen


@pytest.mark.parametrize("unit", ["<option>", "</option>", "<option>A</option>", "<option", " "])
def test_a_megabyte_of_options_is_read_in_linear_time(unit):
    text = f"<think></think><answer>1 to 2</answer><option>{unit * (1_000_000 // len(unit))}</option>"
    begin = time.process_time()
    assert parse(text, options=4).status == "bad_option"
    # Linear is well under a second; a reader that backtracks needs hours.
    assert time.process_time() - begin < 5
