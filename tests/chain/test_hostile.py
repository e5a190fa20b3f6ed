"""Texts written to break the parser or to cheat the rewards: no exception, linear time, nothing above honesty."""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain import anchors
from labkit.chain.anchors import STATUSES, AnchorChain, parse, render
from labkit.chain.rewards import DEFAULT_WEIGHTS, RewardSpec, score_chain
from labkit.chain.spans import Span

FRAGMENTS = (
    "<think>", "</think>", "<answer>", "</answer>", "<timestamp>", "</timestamp>",
    "<timestamp>10.0 to 20.0</timestamp>", "<timestamp>9 to 21</timestamp>", "<timestamp>5 to 25</timestamp>",
    "<timestamp>40 to 10</timestamp>", "<timestamp>0 to 9999999</timestamp>", "<timestamp>35 to 55</timestamp>",
    "<timestamp><timestamp>10 to 20</timestamp></timestamp>", "<timestamp>10 to 20", "<timestamp>-10 to 20</timestamp>",
    "<answer><answer>10 to 20</answer></answer>", "<answer>10 to 20", "<think><think>", "</think></think>",
    "<option>B</option>", "<option>", "</option>",
    "<answer>10.0 to 20.0</answer>", "<answer>11 to 19</answer>", "<answer>30 to 1e9</answer>",
    "<answer>-10 to 20</answer>", "<answer>10 - 20</answer>", "<answer>00:10 to 00:20</answer>",
    "<answer>" + "9" * 400 + " to " + "9" * 401 + "</answer>", "<answer>1 to " + "9" * 400 + "</answer>",
    "<answer>\u0661\u0660 to \u0662\u0660</answer>", "<timestamp>\uff11\uff10 to \uff12\uff10</timestamp>",
    "10 to 20", "10.0", " to ", "nan to inf", "\x00", "\u200b", "\ud800", "<", ">", "</", "<THINK>", "<think >",
    "<|im_end|>", "{{", "\n", " ", "word",
)  # fmt: skip

FORMS = (
    "{}",
    "<think>{}</think><answer>10 to 20</answer>",
    "{}<think></think><answer>10 to 20</answer>",
    "<think><timestamp>9 to 21</timestamp>{}</think><answer>10 to 20</answer>",
)


def texts() -> st.SearchStrategy[str]:
    """Fragments in any order, with any text between them."""
    piece = st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=5))
    loose = st.lists(piece, max_size=25).map("".join)
    # Half of them begin well, because a text that broke at once never reaches the rewards.
    return st.one_of(loose, loose.map(lambda body: f"<think>{body}</think><answer>10 to 20</answer>"))


def many(count: int, seed: int = 0) -> Iterator[str]:
    """The same by a plain generator: a hundred thousand of them cost seconds, not half an hour."""
    rng = random.Random(seed)
    for _ in range(count):
        body = "".join(rng.choices(FRAGMENTS, k=rng.randrange(12)))
        yield rng.choice(FORMS).replace("{}", body)


def long_ones(size: int) -> dict[str, str]:
    """One text of about `size` characters for each way of making a backtracking reader slow."""
    units = {
        "opening thoughts": "<think>",
        "closing thoughts": "</think>",
        "nested anchors": "<timestamp>",
        "good anchors": "<timestamp>1 to 2</timestamp>",
        "answers": "<answer>1 to 2</answer>",
        "angle brackets": "<",
        "half tags": "</timestam",
        "blanks": " ",
        "NUL": "\x00",
    }
    made = {name: "<think>" + unit * (size // len(unit)) for name, unit in units.items()}
    made["ends of turn"] = "<think></think><answer>1 to 2</answer>" + "</s> " * (size // 5) + "x"
    made["digits in an anchor"] = f"<think><timestamp>{'1' * size}</timestamp></think>"
    made["digits, twice"] = f"<think><timestamp>{'1' * (size // 2)} to {'1' * (size // 2)}</timestamp></think>"
    made["decimals"] = f"<think></think><answer>0.{'1' * (size // 2)} to 0.{'2' * (size // 2)}</answer>"
    made["dots"] = f"<think><timestamp>{'1.' * (size // 2)} to 2</timestamp></think>"
    made["blanks in an anchor"] = f"<think><timestamp>{' ' * size}1 to 2{' ' * size}x</timestamp></think>"
    made["blanks around to"] = f"<think><timestamp>1{' ' * size}to{' ' * size}</timestamp></think>"
    made["nested pairs"] = "<think>" * (size // 20) + "</think>" * (size // 20)
    return made


TRUTH, DURATION = Span(10.0, 20.0), 60.0
PLAIN = {**DEFAULT_WEIGHTS, "option": 0.0}  # these texts answer questions without options
SPECS = [RewardSpec(PLAIN, answer) for answer in ("soft_iou", "iou", "timer1")]
# Each step gains just what it must, to the truth itself: the most that can be had.
HONEST = parse(render([Span(7.5, 20.0), Span(10 - 10 / 9, 20.0)], TRUTH))
BEST = {id(spec): score_chain(HONEST, [TRUTH], DURATION, spec).total for spec in SPECS}


def check_chain(text: str, chain: AnchorChain) -> None:
    """What holds for the chain of any text at all."""
    assert chain.status in STATUSES
    assert chain.text == text
    assert (chain.answer is None) == (chain.answer_chars is None)
    previous = 0
    for anchor in chain.anchors:
        assert previous <= anchor.begin < anchor.end
        assert text.startswith("<timestamp>", anchor.begin)
        assert text.endswith("</timestamp>", anchor.begin, anchor.end)
        previous = anchor.end
    if chain.status == "ok":
        assert chain.anchors and chain.answer and previous <= chain.answer_chars[0]


def check_rewards(chain: AnchorChain) -> None:
    """No text earns more than an honest chain, and nothing that isn't a number."""
    for spec in SPECS:
        breakdown = score_chain(chain, [TRUTH], DURATION, spec)
        assert all(-1 <= value <= 1 for value in breakdown.terms.values()), chain.text
        assert all(breakdown.reasons[term] for term in breakdown.terms)
        assert math.isfinite(breakdown.total)
        assert breakdown.total <= sum(spec.weights.values())
        assert breakdown.total <= BEST[id(spec)], chain.text


@given(texts(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_text_is_read_and_scored(text, finished):
    chain = parse(text, finished=finished)
    check_chain(text, chain)
    check_rewards(chain)


@pytest.mark.slow
def test_a_hundred_thousand_hostile_texts_earn_no_more_than_an_honest_chain():
    seen, earning = set(), 0
    for text in many(100_000):
        chain = parse(text)
        check_chain(text, chain)
        check_rewards(chain)
        seen.add(chain.status)
        earning += bool(chain.anchors and chain.answer)
    assert seen == set(STATUSES) - {"cut_off", "bad_option"}
    assert earning > 20_000  # texts that break at once would prove little


def test_the_short_way_of_reading_reads_what_the_long_way_reads(monkeypatch):
    written = [*many(20_000, seed=1), *(form.replace("{}", body) for form in FORMS for body in ("", *FRAGMENTS))]
    written += [
        form.replace("{}", "") + end + more for form in FORMS for end in anchors.END_OF_TURN for more in FRAGMENTS
    ]
    written += [text.removeprefix("<think>") for text in written[:5000]]
    short = [parse(text) for text in written]
    taken = sum(anchors._WELL_FORMED.fullmatch(text) is not None for text in written)
    monkeypatch.setattr(anchors, "_WELL_FORMED", re.compile(r"(?!)"))
    assert short == [parse(text) for text in written]
    assert taken > 200, "hardly any text took the short way, so that nothing was compared"


def test_hostile_texts_are_read_with_options_too():
    seen = set()
    for text in many(10_000, seed=1):
        chain = parse(f"{text}<option>b</option>", options=4)
        assert chain.status in STATUSES and chain.option in (None, 0, 1, 2, 3)
        assert (chain.option is None) == (chain.option_chars is None)
        seen.add(chain.status)
    assert seen >= {"ok", "bad_option"}


def test_an_honest_chain_that_is_right_lacks_only_what_its_anchors_were_from_the_truth():
    for spec in SPECS:
        total = score_chain(HONEST, [TRUTH], DURATION, spec).total
        assert total == pytest.approx(sum(spec.weights.values()) - spec.weights["anchors"] * (1 - (0.8 + 2 * 0.9) / 3))


@pytest.mark.parametrize("name", long_ones(10))
def test_a_megabyte_of_anything_is_read_and_scored_in_linear_time(name):
    text = long_ones(1_000_000)[name]
    begin = time.process_time()
    chain = parse(text)
    check_chain(text, chain)
    score_chain(chain, [TRUTH], DURATION)
    # Linear is well under a second; a reader that backtracks needs hours.
    assert time.process_time() - begin < 5
