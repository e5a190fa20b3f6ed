"""The one parser: what each text says, its status, and that rendering is its inverse."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.anchors import STATUSES, option_letter, parse, render
from labkit.chain.rewards import score_chain
from labkit.chain.spans import Span, SpanSet
from labkit.data.moments import OPTION_LETTERS

A, B = "<timestamp>2.0 to 28.0</timestamp>", "<timestamp>8.0 to 20.0</timestamp>"
ANSWER = "<answer>10.5 to 14.2</answer>"
GOOD = f"<think>wide {A} closer {B} there</think>\n{ANSWER}"
TWO, ONE, NONE = (Span(2, 28), Span(8, 20)), (Span(2, 28),), ()
TRUE = Span(10.5, 14.2)
TWICE = SpanSet(3, 15, (Span(3, 8), Span(12, 15)))


def anchored(body: str) -> str:
    return f"<think>{body}</think>{ANSWER}"


def answered(body: str) -> str:
    return f"<think>{A}{B}</think><answer>{body}</answer>"


READINGS = [
    # text, status, anchors, answer, why
    (GOOD, "ok", TWO, TRUE, "the form"),
    (
        "<think> look at <timestamp> 2.0 to 28.0 </timestamp> . </think> <answer> 10.5 to 14.2 </answer>",
        "ok", ONE, TRUE, "a word-level tokenizer puts blanks inside the tags",
    ),
    (f"\n {GOOD} \n", "ok", TWO, TRUE, "blank space around the form is no text"),
    (anchored(f"<timestamp>2\nto\t28</timestamp>{B}"), "ok", TWO, TRUE, "any blank space around `to`, whole seconds"),
    (anchored("it moves from 2 to 28, so 8 to 20"), "no_anchor", NONE, TRUE, "times without a tag are plain thought"),
    ("<think></think>" + ANSWER, "no_anchor", NONE, TRUE, "an empty thought is still a thought"),
    # no thought
    (ANSWER, "no_think", NONE, TRUE, "the answer of a model that doesn't think is read"),
    (f"{A}{ANSWER}", "no_think", NONE, TRUE, "no thought, so nothing is an anchor"),
    ("", "no_think", NONE, None, "silence"),
    ("it is at 10.5 to 14.2", "no_think", NONE, None, "a span outside tags is never guessed at"),
    (f"<think>{A}{ANSWER}", "no_think", ONE, None, "the thought never ends, so this is thought and no answer"),
    (f"</think><think>{A}{ANSWER}", "no_think", ONE, None, "closed before it was opened"),
    (f"<think>{A}</think><think>{B}</think>{ANSWER}", "no_think", ONE, TRUE, "two thoughts: the first one counts"),
    (f"<think><think>{A}</think></think>{ANSWER}", "no_think", ONE, TRUE, "nested thoughts"),
    (f"<THINK>{A}</THINK>{ANSWER}", "no_think", NONE, TRUE, "tags are written in one way"),
    # a thought that the prompt opened
    (f"wide {A} closer {B}</think>\n{ANSWER}", "no_think", TWO, TRUE, "opened by the prompt: the anchors are there"),
    (f"or <answer>40 to 44</answer>? No.</think>{ANSWER}", "no_think", NONE, TRUE, "a draft in the thought is thought"),
    (f"{A}<answer>40 to 44</answer></think>", "no_think", ONE, None, "a draft alone is no answer"),
    (f"{A}</think>{B}</think>{ANSWER}", "no_think", ONE, TRUE, "closed twice: the first one counts"),
    ("</think>" + ANSWER, "no_think", NONE, TRUE, "an empty thought that the prompt opened"),
    # anchors
    (anchored(f"{A}<timestamp>8 to 20"), "bad_anchor", ONE, TRUE, "unclosed"),
    (anchored(f"{A}8 to 20</timestamp>"), "bad_anchor", ONE, TRUE, "unopened"),
    (anchored(f"<timestamp>{A}</timestamp>"), "bad_anchor", ONE, TRUE, "nested: the inner one is one"),
    (anchored(f"{A}<timestamp></timestamp>"), "bad_anchor", ONE, TRUE, "empty"),
    (anchored(f"{A}<timestamp>20 to 8</timestamp>"), "bad_anchor", ONE, TRUE, "reversed is not a span"),
    (anchored(f"{A}<timestamp>8 to 8</timestamp>"), "bad_anchor", ONE, TRUE, "no length is not a span"),
    (anchored(f"{A}<timestamp>-8 to 20</timestamp>"), "bad_anchor", ONE, TRUE, "there is no time before the clip"),
    (anchored(f"{A}<timestamp>8 to 20 or 9 to 21</timestamp>"), "bad_anchor", ONE, TRUE, "two spans in one tag"),
    (anchored(f"{A}<timestamp>8 to <b>20</b></timestamp>"), "bad_anchor", ONE, TRUE, "markup in a number"),
    (f"{A}<think>{B}</think>{ANSWER}", "bad_anchor", (Span(8, 20),), TRUE, "an anchor before the thought"),
    (f"<think>{A}</think>{B}{ANSWER}", "bad_anchor", ONE, TRUE, "an anchor behind the thought"),
    (f"<think>{A}</think>{ANSWER}{B}", "bad_anchor", ONE, TRUE, "an anchor behind the answer"),
    (answered(B), "bad_anchor", TWO, None, "an anchor as the answer"),
    (f"<think>{A}<timestamp>8 to 20</think></timestamp>{ANSWER}", "bad_anchor", ONE, TRUE, "crossing tags"),
    (anchored(f"{A}<timestamp>8 <answer>to</answer> 20</timestamp>"), "bad_anchor", ONE, TRUE, "answer tags in it"),
    # the answer
    (f"<think>{A}{B}</think>", "no_answer", TWO, None, "the answer is missing"),
    (f"<think>{A}{B}</think>10.5 to 14.2", "no_answer", TWO, None, "an answer without its tag"),
    (f"<think>{A}{B}</think><answer>10.5 to 14.2", "no_answer", TWO, None, "an answer that isn't closed"),
    (f"<think>{A}{B}{ANSWER}</think>", "no_answer", TWO, None, "an answer in the thought is thought"),
    (f"{ANSWER}<think>{A}{B}</think>", "no_answer", TWO, None, "an answer before the thought"),
    (f"<think>{A}{ANSWER}{B}</think>{ANSWER}", "bad_answer", TWO, TRUE, "one in the thought, one behind it"),
    (GOOD + "<answer>1 to 2</answer>", "bad_answer", TWO, TRUE, "a second answer doesn't replace the first"),
    (answered("x") + ANSWER, "bad_answer", TWO, None, "nor mend it"),
    (answered("<answer>10.5 to 14.2</answer>"), "bad_answer", TWO, TRUE, "nested answers"),
    (answered("14.2 to 10.5"), "bad_answer", TWO, None, "reversed is not a span, and is not turned round"),
    (answered("10.5 - 14.2"), "bad_answer", TWO, None, "a dash could be a sign"),
    (answered("10.5s to 14.2s"), "bad_answer", TWO, None, "a unit"),
    (answered("00:10 to 00:14"), "bad_answer", TWO, None, "clock time would be read as seconds by half the readers"),
    (answered("1e1 to 2e1"), "bad_answer", TWO, None, "an exponent"),
    (answered(".5 to 14."), "bad_answer", TWO, None, "half a decimal"),
    (answered("10,5 to 14,2"), "bad_answer", TWO, None, "a decimal comma"),
    (answered("nan to inf"), "bad_answer", TWO, None, "words that float() would take"),
    (answered("1_0 to 2_0"), "bad_answer", TWO, None, "underscores that float() would take"),
    (answered("\u0661\u0660 to \u0662\u0660"), "bad_answer", TWO, None, "Arabic digits that float() would take"),
    (answered("\uff11\uff10 to \uff12\uff10"), "bad_answer", TWO, None, "full-width digits"),
    (answered("\u00b2 to \u00b3"), "bad_answer", TWO, None, "superscripts: digits to str.isdigit()"),
    (answered("1 to " + "9" * 400), "bad_answer", TWO, None, "beyond the largest float"),
    (answered("9" * 400 + " to " + "9" * 401), "bad_answer", TWO, None, "both beyond it"),
    (answered("10.5 to 14.2\x00"), "bad_answer", TWO, None, "NUL"),
    (answered("the answer is 10.5 to 14.2"), "bad_answer", TWO, None, "words beside the span"),
    # several spans
    (answered("3 to 8, 12 to 15"), "ok", TWO, TWICE, "something that happens twice"),
    (answered(" 12.0 to 15.0 ,\n3.0 to 8.0 "), "ok", TWO, TWICE, "in any order, with blanks around the comma"),
    (answered("3 to 5, 12 to 15, 4 to 8, 3 to 8"), "ok", TWO, TWICE, "what overlaps is one span"),
    (answered("10.5 to 12, 12 to 14.2"), "ok", TWO, TRUE, "what touches is one span"),
    (anchored("<timestamp>3 to 8, 12 to 15</timestamp>"), "ok", (TWICE,), TRUE, "an anchor of two spans"),
    (answered("3 to 8,"), "bad_answer", TWO, None, "a comma with nothing behind it"),
    (answered(", 3 to 8"), "bad_answer", TWO, None, "or before it"),
    (answered("3 to 8,, 12 to 15"), "bad_answer", TWO, None, "or between two"),
    (answered("3 to 8, 15 to 12"), "bad_answer", TWO, None, "one of two is no span, so none is read"),
    (answered("3 to 8 12 to 15"), "bad_answer", TWO, None, "without a comma"),
    (answered("3 to 8 and 12 to 15"), "bad_answer", TWO, None, "`and` may also stand between two ends"),
    (answered("3 to 8; 12 to 15"), "bad_answer", TWO, None, "another mark"),
    (answered("[[3, 8], [12, 15]]"), "bad_answer", TWO, None, "another program's form"),
    (answered("3 - 8, 12 - 15"), "bad_answer", TWO, None, "another program's form with dashes"),
    (answered("3 to 8</answer> <answer>12 to 15"), "bad_answer", TWO, Span(3, 8), "a tag for each: the first one counts"),
    (anchored(f"{A}<timestamp>3 to 8, 12</timestamp>"), "bad_anchor", ONE, TRUE, "an anchor that breaks off"),
    # text around the form
    (GOOD + " (the video runs 0.0 to 30.0)", "extra_text", TWO, TRUE, "what follows the answer changes nothing"),
    ("Sure! " + GOOD, "extra_text", TWO, TRUE, "a preamble"),
    (f"<think>{A}{B}</think> so {ANSWER}", "extra_text", TWO, TRUE, "words between the blocks"),
    (GOOD + "<|im_end|>", "ok", TWO, TRUE, "the end of a turn is no text"),
    (GOOD + "\n</s> <|endoftext|>\n", "ok", TWO, TRUE, "nor are several, in blanks"),
    (GOOD + "<eos><end_of_turn><|eot_id|>", "ok", TWO, TRUE, "whatever the tokenizer calls it"),
    (f"<think></think>{ANSWER}<|im_end|>", "no_anchor", NONE, TRUE, "without anchors, too"),
    (GOOD + "<|im_end|> so", "extra_text", TWO, TRUE, "words behind the end of the turn are words"),
    (f"<think>{A}{B}</think><|im_end|>{ANSWER}", "extra_text", TWO, TRUE, "an end of turn in the middle is text"),
    (GOOD + "<|im_start|>", "extra_text", TWO, TRUE, "the beginning of another turn is text"),
    (GOOD + "\u200b", "extra_text", TWO, TRUE, "an invisible character is a character"),
    (GOOD + "<option>B</option>", "extra_text", TWO, TRUE, "an option where none were given"),
    (GOOD + "</option>", "extra_text", TWO, TRUE, "its tag is plain text then"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "status", "anchors", "answer", "why"), READINGS, ids=[row[4] for row in READINGS])
def test_reading(text, status, anchors, answer, why):
    chain = parse(text)
    assert (chain.status, chain.spans, chain.answer) == (status, anchors, answer), why


def test_anchors_of_other_models_are_read_when_asked_for_and_never_paid_for():
    text = f"<think>wide <timestep>2.0 to 28.0</timestep> closer <timestep>8.0 to 20.0</timestep></think>{ANSWER}"
    plain, shown = parse(text), parse(text, anchor_tag="timestep")
    assert (plain.spans, plain.status) == (NONE, "no_anchor")
    assert (shown.spans, shown.status, shown.answer) == (TWO, "no_anchor", TRUE)
    assert [text[anchor.begin : anchor.end] for anchor in shown.anchors] == [
        "<timestep>2.0 to 28.0</timestep>", "<timestep>8.0 to 20.0</timestep>",
    ]  # fmt: skip
    assert parse(GOOD, anchor_tag="timestep").spans == NONE, "one tag at a time"
    opened = parse(text.removeprefix("<think>"), anchor_tag="timestep")
    assert (opened.spans, opened.answer) == (TWO, TRUE)
    # What training scores has no such anchors: half the form is not paid for.
    assert score_chain(plain, [TRUE], 30.0).terms["anchors"] == -1.0


CHOSEN = f"{GOOD}\n<option>B</option>"

CHOICES = [
    # text, status, option, why: each with four options to choose from
    (CHOSEN, "ok", 1, "the form"),
    (f"{GOOD}<option>\n b </option> \n", "ok", 1, "case and blanks change with the tokenizer"),
    (f"{GOOD}<option>A</option>", "ok", 0, "the first"),
    (f"{GOOD}<option>D</option>", "ok", 3, "the last"),
    (f"<think></think>{ANSWER}<option>B</option>", "no_anchor", 1, "no anchor shows in the status as ever"),
    # bad_option
    (GOOD, "bad_option", None, "none was chosen"),
    (f"{GOOD}<option>E</option>", "bad_option", None, "a letter that no option has"),
    (f"{GOOD}<option></option>", "bad_option", None, "empty"),
    (f"{GOOD}<option>BC</option>", "bad_option", None, "two letters"),
    (f"{GOOD}<option>B.</option>", "bad_option", None, "a dot"),
    (f"{GOOD}<option>(B)</option>", "bad_option", None, "brackets"),
    (f"{GOOD}<option>B blink</option>", "bad_option", None, "the option's words, which could contradict the letter"),
    (f"{GOOD}<option>1</option>", "bad_option", None, "a number, from 0 or from 1?"),
    (f"{GOOD}<option>\uff22</option>", "bad_option", None, "a full-width letter"),
    (f"{GOOD}<option>B", "bad_option", None, "not closed"),
    (f"{GOOD}B</option>", "bad_option", None, "not opened"),
    (f"{GOOD} so B", "bad_option", None, "without its tag"),
    (f"{GOOD}<option>A</option><option>B</option>", "bad_option", 0, "a second option doesn't replace the first"),
    (f"{GOOD}<option>E</option><option>B</option>", "bad_option", None, "nor mend it"),
    (f"{GOOD}<option><option>B</option></option>", "bad_option", 1, "nested: the inner one is one"),
    (f"<think>{A}<option>A</option>{B}</think>{ANSWER}<option>B</option>", "bad_option", 1, "one in the thought"),
    (f"<think>{A}{B}</think><option>B</option>{ANSWER}", "bad_option", None, "before the answer"),
    (f"<think>{A}{B}<option>B</option></think>{ANSWER}", "bad_option", None, "in the thought alone"),
    # what else breaks the form shows first, and the option is read all the same
    (f"{ANSWER}<option>B</option>", "no_think", 1, "a model that doesn't think"),
    ("<option>B</option>", "no_think", 1, "nor shows its evidence"),
    (f"<think>{A}{B}<option>B</option>", "no_think", None, "the thought never ends, so this is thought"),
    (f"<think>{A}{B}</think><option>B</option>", "no_answer", 1, "no evidence"),
    (f"<think>{A}</think><answer>soon</answer><option>B</option>", "bad_answer", 1, "no span"),
    (f"<think>{A}</think><answer><option>B</option></answer>", "bad_answer", None, "an option as the answer"),
    (f"<think><timestamp>2 to 1</timestamp></think>{ANSWER}<option>B</option>", "bad_anchor", 1, "a bad anchor"),
    (f"{CHOSEN}<|im_end|>\n", "ok", 1, "the end of a turn is no text"),
    # extra_text
    (f"{GOOD} so <option>B</option>", "extra_text", 1, "words between answer and option"),
    (f"{CHOSEN}, blink", "extra_text", 1, "words behind it"),
    (f"Sure! {CHOSEN}", "extra_text", 1, "a preamble"),
    (f"<think>{A}{B}</think> so {ANSWER}<option>B</option>", "extra_text", 1, "words between thought and answer"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "status", "option", "why"), CHOICES, ids=[row[3] for row in CHOICES])
def test_reading_an_option(text, status, option, why):
    chain = parse(text, options=4)
    assert (chain.status, chain.option) == (status, option), why
    # Looking for an option changes nothing else that is read.
    plain = parse(text)
    assert (chain.anchors, chain.answer, chain.answer_chars) == (plain.anchors, plain.answer, plain.answer_chars)
    assert (plain.option, plain.option_chars) == (None, None)
    if option is not None:
        begin, end = chain.option_chars
        assert text[begin:end].startswith("<option>") and text[begin:end].endswith("</option>")
    else:
        assert chain.option_chars is None


def test_how_many_options_there_are_decides_which_letters_count():
    assert [parse(CHOSEN, options=n).option for n in (1, 2, 8, 26)] == [None, 1, 1, 1]
    assert OPTION_LETTERS == "".join(option_letter(number) for number in range(len(OPTION_LETTERS)))


def test_an_option_at_the_token_limit_is_cut_off_but_read():
    chain = parse(CHOSEN, finished=False, options=4)
    assert (chain.status, chain.option) == ("cut_off", 1)
    assert parse(CHOSEN[:-3], finished=False, options=4).option is None


@pytest.mark.parametrize(
    ("text", "anchors", "answer", "why"),
    [
        (f"<think>{A} closer {B} and", TWO, None, "cut in the thought: its anchors are there"),
        (f"<think>{A}<timestamp>8.0 to 2", ONE, None, "cut in an anchor: half a number is no time"),
        (f"<think>{A}</think><answer>10.5 to 1", ONE, None, "cut in the answer: 1 is not 14.2"),
        (GOOD, TWO, TRUE, "cut behind the answer: it can be read, but nobody knows what would have followed"),
    ],
)
def test_a_text_at_the_token_limit_is_cut_off_whatever_it_holds(text, anchors, answer, why):
    chain = parse(text, finished=False)
    assert (chain.status, chain.spans, chain.answer) == ("cut_off", anchors, answer), why


def test_the_first_failure_wins_in_the_documented_order():
    # Each line mends one failure of the line above, so the next one shows.
    bad = "x" + "<timestamp>" + "<answer>1 to 1</answer>"
    shown = [
        parse(bad, finished=False, options=2),
        parse(bad, options=2),
        parse("<think></think>x<timestamp>", options=2),
        parse("<think></think>x", options=2),
        parse("<think></think>x<answer>1 to 1</answer>", options=2),
        parse("<think></think>x<answer>1 to 2</answer><option>C</option>", options=2),
        parse("<think></think>x<answer>1 to 2</answer><option>B</option>", options=2),
        parse("<think></think><answer>1 to 2</answer><option>B</option>", options=2),
    ]
    assert tuple(chain.status for chain in shown) == STATUSES[1:]


def test_offsets_point_at_the_whole_tags():
    chain = parse(GOOD)
    assert [GOOD[anchor.begin : anchor.end] for anchor in chain.anchors] == [A, B]
    assert chain.answer_chars is not None
    assert GOOD[slice(*chain.answer_chars)] == ANSWER
    assert chain.text == GOOD


def test_steps_are_the_anchors_then_the_answer_if_there_is_one():
    assert parse(GOOD).steps == (*TWO, TRUE)
    assert parse(f"<think>{A}{B}</think>").steps == TWO
    assert parse("<think></think>").steps == ()


def test_a_chain_can_be_pickled_compared_and_kept_in_a_set():
    chain = parse(GOOD)
    assert pickle.loads(pickle.dumps(chain)) == chain
    assert {chain, parse(GOOD)} == {chain}


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        ((2, 9), "2.0 to 9.0"),
        ((0.1, 0.3), "0.1 to 0.3"),
        ((-0.0, 1.0), "0.0 to 1.0"),
        ((1e-7, 1e16), "0.0000001 to 10000000000000000"),
    ],
)
def test_numbers_are_written_as_plain_decimals(seconds, written):
    assert render([], Span(*seconds)) == f"<think></think>\n<answer>{written}</answer>"


def test_rendering_what_could_not_be_read_back_is_an_error():
    with pytest.raises(ValueError, match="starts before the clip"):
        render([Span(-1, 2)], None)
    with pytest.raises(ValueError, match="2 thoughts for 2 anchors"):
        render([Span(1, 2), Span(1, 2)], None, ["a", "b"])
    with pytest.raises(ValueError, match="<answer>"):
        render([], Span(1, 2), ["<answer>3 to 4</answer>"])
    with pytest.raises(ValueError, match="<option>"):
        render([], Span(1, 2), ["<option>A</option>"], option=0)
    for number in (-1, 26):
        with pytest.raises(ValueError, match="no letter"):
            render([], Span(1, 2), option=number)


SPANS = st.tuples(
    st.floats(0, 1e9, allow_subnormal=True), st.floats(0, 1e9, allow_subnormal=True)
).filter(lambda pair: pair[0] != pair[1]).map(lambda pair: Span(*sorted(pair)))  # fmt: skip
WORDS = st.text(st.characters(blacklist_characters="<>"), max_size=12)


@given(st.lists(SPANS, max_size=5), st.one_of(st.none(), SPANS), st.data())
@settings(max_examples=200, deadline=None)
def test_reading_a_rendered_chain_gives_the_chain(anchors, answer, data):
    thoughts = data.draw(st.one_of(st.none(), st.lists(WORDS, min_size=len(anchors) + 1, max_size=len(anchors) + 1)))
    chain = parse(render(anchors, answer, thoughts))
    assert (chain.spans, chain.answer) == (tuple(anchors), answer)
    assert chain.status == ("no_answer" if answer is None else "ok" if anchors else "no_anchor")
    assert parse(render(chain.spans, chain.answer, thoughts)) == chain


@given(st.lists(SPANS, max_size=3), st.one_of(st.none(), SPANS), st.one_of(st.none(), st.integers(0, 7)))
@settings(max_examples=200, deadline=None)
def test_reading_a_rendered_choice_gives_the_choice(anchors, answer, option):
    chain = parse(render(anchors, answer, option=option), options=8)
    assert (chain.spans, chain.answer, chain.option) == (tuple(anchors), answer, option)
    missing = "no_answer" if answer is None else "bad_option" if option is None else None
    assert chain.status == (missing or ("ok" if anchors else "no_anchor"))
