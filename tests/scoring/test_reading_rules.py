"""One text, many readings: the table of what each program of the field takes for the answer, cell by cell."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span, best_window, iou
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.question_figures import _ious
from labkit.scoring.reading_rules import FILE_RULES, RULES, find_rule
from labkit.scoring.readings import ReadAnswer

NAMES = (
    "labkit", "timer1-reward", "timer1", "videochat-r1", "timelens", "timelens-reward", "lmms-eval", "lmms-eval-timelens",
    "taro",
)  # fmt: skip

CHAIN = (
    "<think>The video is long. Roughly <timestamp>2 to 28</timestamp>, more likely <timestamp>8 to 20</timestamp>, "
    "then <timestamp>10 to 15</timestamp>.</think>"
)
THOUGHT = "<think>He opens the door.</think>"
RIGHT, FIRST, NOTHING = (10.5, 14.2), (2.0, 28.0), None
SWAPPED, BACKWARDS, WHOLE = (10.5, 14.2), (14.2, 10.5), (10.0, 14.0)

# Each row: a text; what labkit reads and why; then Time-R1's reward and evaluation, VideoChat-R1's evaluation, TimeLens'
# evaluation and reward, lmms-eval's two tasks as their own programs were run on it, and TaRO's evaluation as it reads.
TABLE = {
    "an anchor chain": (
        f"{CHAIN}\n<answer>10.5 to 14.2</answer>",
        (RIGHT, "ok: the anchors are thought, the answer is what stands in <answer>"),
        (RIGHT, RIGHT, RIGHT, FIRST, RIGHT, FIRST, FIRST, RIGHT),
    ),
    "a remark behind the answer": (
        f"{THOUGHT}\n<answer>10.5 to 14.2</answer>\n(video runs 0.0 to 30.0)",
        (RIGHT, "extra_text: a remark breaks the form and costs the format reward, but it is no second answer"),
        (RIGHT, (0.0, 30.0), (0.0, 30.0), RIGHT, RIGHT, RIGHT, RIGHT, (0.0, 30.0)),
    ),
    "cut off after the second anchor": (
        CHAIN[: CHAIN.index(", then")],
        (NOTHING, "no_think: nothing was answered, and a thought is not an answer; scoring it would pay for rambling"),
        (NOTHING, (8.0, 20.0), (8.0, 20.0), FIRST, FIRST, FIRST, FIRST, (8.0, 20.0)),
    ),
    "a dash": (
        f"{THOUGHT}\n<answer>10.5 - 14.2</answer>",
        (NOTHING, "bad_answer: the form asks for `to`, and reading more forms than are asked for makes rules differ"),
        (NOTHING, NOTHING, NOTHING, RIGHT, RIGHT, RIGHT, RIGHT, RIGHT),
    ),
    "clock times": (
        f"{THOUGHT}\n<answer>00:10 to 00:14</answer>",
        (NOTHING, "bad_answer: seconds are asked for; half a clock time (`10 to 00`) is no time at all"),
        ((10.0, 0.0), (10.0, 0.0), (10.0, 0.0), WHOLE, WHOLE, WHOLE, WHOLE, (0.0, 14.0)),
    ),
    "reversed": (
        f"{THOUGHT}\n<answer>14.2 to 10.5</answer>",
        (NOTHING, "bad_answer: which end is wrong cannot be known, so it is not turned around"),
        (BACKWARDS, BACKWARDS, BACKWARDS, BACKWARDS, BACKWARDS, SWAPPED, BACKWARDS, SWAPPED),
    ),
    "a unit": (
        f"{THOUGHT}\n<answer>10.5s to 14.2s</answer>",
        (NOTHING, "bad_answer: a number cut short at its point (10 for 10.5s) is worse than none"),
        (NOTHING, NOTHING, NOTHING, WHOLE, WHOLE, RIGHT, WHOLE, RIGHT),
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE)
def test_the_parser_table_holds_in_every_cell(row):
    text, (ours, _), theirs = TABLE[row]
    assert {name: RULES[name].read(text) for name in NAMES} == dict(zip(NAMES, (ours, *theirs), strict=True))


@pytest.mark.parametrize("row", TABLE)
def test_labkits_reading_is_its_parsers_for_the_reason_that_the_table_gives(row):
    text, (ours, reason), _ = TABLE[row]
    chain = parse(text)
    assert chain.status == reason.partition(":")[0]
    assert (None if chain.answer is None else (chain.answer.start, chain.answer.end)) == ours


def test_every_rule_is_in_the_table_and_says_what_to_know():
    assert set(NAMES) == set(RULES)
    for name, rule in RULES.items():
        assert (rule.name, rule.note[-1]) == (name, ".")


def test_thresholds_and_cutting_are_each_programs_own():
    assert {name for name, rule in RULES.items() if rule.reaches == ">"} == {"timer1", "timer1-reward"}
    assert {name for name, rule in RULES.items() if rule.clips} == {"labkit"}


@pytest.mark.parametrize(
    ("name", "text", "pair", "why"),
    [
        ("timer1", "1 to 2, then 3 and 5", (3.0, 5.0), "the last pair, `and` too"),
        ("timer1", "1  to  2", None, "one blank exactly"),
        ("timer1", "From 1 TO 2", None, "its evaluation minds the case"),
        ("timer1-reward", "<answer>1 TO 2</answer>", (1.0, 2.0), "its reward doesn't"),
        ("timer1-reward", "<answer>1 to 2</answer><answer>3 to 4</answer>", (3.0, 4.0), "the last answer"),
        ("timer1-reward", "1 to 2", None, "an answer only"),
        ("timer1", "5. to 7.", (5.0, 7.0), "a point without decimals"),
        ("timelens", "1:02:03 to 01:02:05.5", (3723.0, 3725.5), "hours"),
        ("timelens", "at 4 and again at 9", (4.0, 9.0), "two lone numbers"),
        ("timelens", "at 4 only", None, "one lone number"),
        ("timelens", "1 to 2, 3 - 4", (3.0, 4.0), "a dash before `to`"),
        ("timelens-reward", "1 to 2, 3 - 4", (1.0, 2.0), "`to` has become a dash"),
        ("lmms-eval", "It starts at 4.\nIt ends at 9.", (4.0, 9.0), "one number from each sentence"),
        ("lmms-eval", "0 - 5 is empty.\nIt happens at 6 - 9.", (6.0, 9.0), "sentences that speak of it go first"),
        ("labkit", "<answer>1 to 2</answer><answer>3 to 4</answer>", (1.0, 2.0), "the first answer"),
        ("taro", "From 3 s to 9.5 s, that is 2 things.", (2.0, 9.5), "the last two numbers, turned around"),
        ("taro", "only 3", None, "one number"),
        ("vtimellm", "From 07 to 27, or 30 to 40.", (7.0, 27.0), "the first pair, in hundredths"),
        ("vtimellm", "From 7 to 27.", None, "two digits each"),
        ("videochat-r1.5", "(1, 2) <answer>[(12.54, 17.83), (20, 22)]</answer>", (12.54, 17.83), "the answer's first"),
        ("videochat-r1.5", "[[1, 2]]", (1.0, 2.0), "the text where nothing is tagged"),
        ("videochat-r1.5", "<answer>1 to 2</answer>", None, "a list is asked for"),
        ("timer1", "9" * 400 + " to 5", None, "infinity is no time"),
    ],
)
def test_a_rule_reads_as_its_program_does(name, text, pair, why):
    assert find_rule(name).read(text) == pair, why


def pair_iou(pair, windows) -> float:
    """What a score takes for the IoU of a pair that a rule has read, not cut to the video."""
    moment = Moment("q", "/v/a.mp4", "a door opens", tuple(windows), 100.0)
    return float(_ious([ReadAnswer(pair, "")], [moment], [windows], False)[0])


@pytest.mark.parametrize(
    ("pair", "windows", "value"),
    [
        ((0.0, 10.0), [Span(0, 10)], 1.0),
        ((0.0, 10.0), [Span(5, 20), Span(0, 8)], 0.8),
        ((0.0, 10.0), [Span(20, 30)], 0.0),
        ((10.0, 0.0), [Span(0, 10)], 0.0),
        ((5.0, 5.0), [Span(0, 10)], 0.0),
        (None, [Span(0, 10)], 0.0),
    ],
)
def test_the_iou_of_a_rules_pair(pair, windows, value):
    assert pair_iou(pair, windows) == value


@given(st.tuples(*[st.floats(0, 100)] * 4))
@settings(max_examples=200, deadline=None)
def test_a_pair_in_order_has_the_iou_of_its_span(ends):
    (a, b), (c, d) = sorted(ends[:2]), sorted(ends[2:])
    if a < b and c < d:
        assert pair_iou((a, b), [Span(c, d)]) == iou(Span(a, b), Span(c, d))
        assert pair_iou((a, b), [Span(c, d), Span(0, 50)]) == best_window(Span(a, b), [Span(c, d), Span(0, 50)]).value


@given(st.floats(0, 1000), st.floats(0.5, 100))
@settings(max_examples=100, deadline=None)
def test_a_plain_answer_is_read_alike_by_all(start, length):
    # One decimal and no anchor: what every program can read.
    start, end = round(start, 1), round(round(start, 1) + length, 1)
    text = render([], Span(start, end))
    assert {rule.read(text) for rule in RULES.values()} == {(start, end)}


def test_an_unknown_rule_is_an_error_that_lists_the_rules():
    with pytest.raises(LabError, match="rules 'timer-1': did you mean 'timer1'.* choose one of labkit, timer1"):
        find_rule("timer-1")


SIZE = 1_000_000
LONG = {
    "digits": "1" * SIZE,
    "digits and a point": "1" * SIZE + ".",
    "decimals": "0." + "1" * SIZE,
    "points": "1." * (SIZE // 2),
    "blanks": "1" + " " * SIZE,
    "blanks and dashes": "1 - " * (SIZE // 4),
    "one number, blanks, no dash": "1" + " " * SIZE + "x",
    "clocks": "00:10 " * (SIZE // 6),
    "colons": "1:" * (SIZE // 2),
    "a clock's decimals": "00:10." + "1" * SIZE + "x",
    "pairs": "1 to 2 " * (SIZE // 7),
    "answers": "<answer>1 to 2</answer>" * (SIZE // 23),
    "opening answers": "<answer>" * (SIZE // 8),
    "thoughts": "<think>" * (SIZE // 7),
    "closing thoughts": "<think>" + "</think> " * (SIZE // 9),
    "closing thoughts and blanks": "<think>" + ("</think>" + " " * 100) * (SIZE // 108),
    "lines": "at 1\n" * (SIZE // 5),
    "starts": "start 1!" * (SIZE // 8),
    "seconds": "1s " * (SIZE // 3),
    "NUL": "\x00" * SIZE,
    "unicode digits": "\u0661" * SIZE,
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_of_anything_is_read_in_linear_time(name):
    # Two rules that share a reader are measured once.
    for rule in {rule.read: rule for rule in (*RULES.values(), *FILE_RULES.values())}.values():
        begin = time.process_time()
        rule.read(LONG[name])
        # Linear is under a second; a pattern that backtracks needs hours.
        assert time.process_time() - begin < 5, rule.name
