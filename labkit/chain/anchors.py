"""The anchor chain, and the one parser that reads it from a model's text.

The form is `<think> ... <timestamp>a to b</timestamp> ... </think> <answer>a to b</answer>` with seconds as plain
decimals. What happens several times is `a to b, c to d`, in an anchor as in the answer. A question with options to choose from adds
`<option>B</option>` behind the answer, which then is the span of the evidence. Reading is strict where a second reading would be
possible and never guesses:

- the thought runs from the first `<think>` to the first `</think>` behind it, or to the end of the text; where no `<think>`
  is written, to the first `</think>` from the text's beginning: the prompt has opened it, as Qwen3's thinking models have it;
- an anchor is a `<timestamp>` in the thought, directly closed, around a span or several;
- the answer is the first closed `<answer>` behind the thought; a model that wrote no `<think>` at all is still read,
  but what stands in a thought that never ends is thought, not answer;
- a span is `a to b`, ASCII digits, a < b. Anything else (a sign, a unit, a colon, an exponent) is not a span;
- several spans stand with a comma between each two, in any order. Those that overlap or touch are one, since they leave out nothing
  between them. Where one of them is no span none is read, and neither is `and`, brackets or a comma at the end;
- the option is the first closed `<option>` behind the answer, or behind the thought where there is no answer, around one
  letter. Case and blanks don't matter, since a tokenizer may change both and neither makes another letter of it; a dot,
  a bracket or the option's words beside the letter are not read. Where no options were given, `<option>` is plain text;
- what a tokenizer marks the end of a turn with (`<|im_end|>`, `</s>`) is no text where it ends the text.

What breaks the form gives the chain a status. What could be read is kept all the same, so that a view can show it.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol

from labkit.chain.spans import Span, union

STATUSES = (
    "ok",
    "cut_off",
    "no_think",
    "bad_anchor",
    "no_answer",
    "bad_answer",
    "bad_option",
    "extra_text",
    "no_anchor",
)
"""How a text kept to the form. `ok`, then the failures in the order in which they are looked for; the first one wins.

cut_off      the generation hit its token limit; first, because it explains every failure behind it
no_think     not exactly one `<think>` followed by exactly one `</think>`; a thought that the prompt opened is read, but
             isn't labkit's form, whose own prompts leave the opening to the model
bad_anchor   a `<timestamp>` that is unclosed, nested, outside the thought, or holds what is no span
no_answer    no closed `<answer>` behind the thought
bad_answer   the answer holds what is no span, or there are more answer tags than its two
bad_option   options were given, and there is not exactly one `<option>`, closed, behind the answer, around the letter of one
extra_text   something besides the thought, the answer and the option
no_anchor    none of these, but the thought has no anchor: the form of a model that thinks without anchors
"""

ANCHOR_TAGS = ("timestamp", "timestep")
"""What anchors stand in: labkit's own, and that of Time-R1's and VideoChat-R1's models, which is read only when asked for."""
END_OF_TURN = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "<eos>", "</s>")
"""How tokenizers write the end of a turn, where special tokens weren't taken out of a text."""

_TAGS = {name: re.compile(rf"(</?(?:think|{name}|answer)>)") for name in ANCHOR_TAGS}
_TAG = _TAGS["timestamp"]
_OPTION_TAG = re.compile(r"</?option>")
# What was matched is never given back (`+` behind a quantifier), so a failing match gives up in linear time.
_SECONDS = r"\d++(?:\.\d++)?+"
_SPAN = re.compile(rf"\s*+({_SECONDS})\s*+to\s*+({_SECONDS})\s*+", re.ASCII)
_PAIR = rf"\s*+{_SECONDS}\s*+to\s*+{_SECONDS}\s*+"
_SPANS = rf"{_PAIR}(?:,{_PAIR})*+"
_ANCHOR = re.compile(rf"<timestamp>(\s*+({_SECONDS})\s*+to\s*+({_SECONDS})\s*+(,[^<]++)?+)</timestamp>", re.ASCII)
_END = rf"(?:(?:{'|'.join(map(re.escape, END_OF_TURN))})\s*+)*+"
_ENDS = re.compile(rf"\s*+{_END}", re.ASCII)
_WELL_FORMED = re.compile(
    rf"\s*+<think>([^<]*+(?:<timestamp>{_SPANS}</timestamp>[^<]*+)*+)</think>"
    rf"\s*+(<answer>({_SPANS})</answer>)\s*+{_END}",
    re.ASCII,
)
_LETTER = re.compile(r"\s*([A-Za-z])\s*", re.ASCII)


class Anchor(NamedTuple):
    """One anchor: its span, or the set that it names, and the characters [begin, end) of the whole tag in the chain's text."""

    span: Span
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class AnchorChain:
    """What a model's text says: its anchors in order, then its answer, then the option that it chose.

    `answer` is a `SpanSet` where several spans are named: `answer.parts` are its spans in any case.
    `answer_chars` and `option_chars` are the characters [begin, end) of the whole `<answer>` and `<option>` tag; None
    exactly when `answer` or `option` is. `option` counts from 0.
    """

    text: str
    anchors: tuple[Anchor, ...]
    answer: Span | None
    status: str
    answer_chars: tuple[int, int] | None
    option: int | None = None
    option_chars: tuple[int, int] | None = None

    @property
    def spans(self) -> tuple[Span, ...]:
        """The anchors' spans, in order."""
        return tuple([anchor.span for anchor in self.anchors])

    @property
    def steps(self) -> tuple[Span, ...]:
        """The anchors' spans, then the answer if there is one."""
        return self.spans if self.answer is None else (*[anchor.span for anchor in self.anchors], self.answer)


class ChainRecord(Protocol):
    """A chain on record, to be drawn or scored: a `labkit.Rollout` is one."""

    @property
    def qid(self) -> str: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102


class _Tag(NamedTuple):
    name: str
    begin: int
    end: int


class _Tagged(NamedTuple):
    """A text at its tags: `pieces` are texts and tags in turn, `begins` and `ends` the tags' characters.

    `opened` and `closed` say whether the thought's own tags are there, `thought` is [begin, end) of what it holds, and an
    answer is looked for from `behind` on.
    """

    pieces: list[str]
    names: list[str]
    begins: list[int]
    ends: list[int]
    opened: bool
    closed: bool
    thought: tuple[int, int]
    behind: int


class _Option(NamedTuple):
    """The first closed `<option>`, and whether it is the only one."""

    begin: int
    end: int
    number: int | None
    alone: bool


def parse(text: str, *, finished: bool = True, options: int = 0, anchor_tag: str = "timestamp") -> AnchorChain:
    """Read a text as an anchor chain. Any string gives a chain, in time linear in its length.

    `finished=False` says that the generation hit its token limit: the status is `cut_off`, whatever the text holds.
    `options` is how many the question had to choose from; with 0 none is looked for. `anchor_tag="timestep"` reads the
    anchors of other models in the place of labkit's, for views: the status stays that of labkit's own form, and rewards never
    read that way.
    Source: TAR-TVG paper for the form without options; the option, and how to read what breaks the form, is our choice.

    >>> chain = parse("<think>near <timestamp>2.0 to 9.5</timestamp></think><answer>3 to 8</answer>")
    >>> chain.status, chain.spans, chain.answer
    ('ok', (Span(start=2.0, end=9.5),), Span(start=3.0, end=8.0))
    >>> parse("<answer>8 to 3</answer>", finished=False).status
    'cut_off'
    >>> parse("<think></think><answer>3 to 8</answer><option>b</option>", options=4).option
    1
    >>> parse("<think></think><answer>12 to 15, 3 to 8</answer>").answer.parts
    (Span(start=3.0, end=8.0), Span(start=12.0, end=15.0))
    """
    if anchor_tag != "timestamp":
        own = parse(text, finished=finished, options=options)
        return replace(own, anchors=tuple(_anchors_in(_tagged(text, anchor_tag), anchor_tag)))
    if finished and not options and (whole := _WELL_FORMED.fullmatch(text)):
        # Nearly every text of a trained model; read in half the time, and never otherwise than below.
        if (chain := _read_well_formed(text, whole)) is not None:
            return chain
    tags = _tagged(text, "timestamp")
    thought, behind = tags.thought, tags.behind
    anchors = _anchors_in(tags, "timestamp")
    answer_block: tuple[int, int, Span | None] | None = None
    for at, pair in enumerate(pairwise(tags.names)):
        if pair == ("<answer>", "</answer>") and tags.begins[at] >= behind:
            answer_block = (tags.begins[at], tags.ends[at + 1], _read_span(tags.pieces[2 * at + 2]))
            break

    answer = answer_block[2] if answer_block else None
    option = _read_option(text, answer_block[1] if answer_block else behind, options) if options else None
    if not finished:
        status = "cut_off"
    elif not tags.opened or not tags.closed or tags.names.count("<think>") > 1 or tags.names.count("</think>") > 1:
        status = "no_think"
    elif tags.names.count("<timestamp>") != len(anchors) or tags.names.count("</timestamp>") != len(anchors):
        status = "bad_anchor"
    elif answer_block is None:
        status = "no_answer"
    elif answer is None or tags.names.count("<answer>") > 1 or tags.names.count("</answer>") > 1:
        status = "bad_answer"
    elif options and (option is None or option.number is None or not option.alone):
        status = "bad_option"
    else:
        before = text[: thought[0] - len("<think>")]
        between = [text[behind : answer_block[0]], text[answer_block[1] : option.begin] if option else ""]
        tail = text[option.end if option else answer_block[1] :]
        if any(part.strip(string.whitespace) for part in (before, *between)) or not _ENDS.fullmatch(tail):
            status = "extra_text"
        else:
            status = "ok" if anchors else "no_anchor"
    chosen = option if option and option.number is not None else None
    return AnchorChain(
        text,
        tuple(anchors),
        answer,
        status,
        answer_block[:2] if answer_block and answer else None,
        chosen.number if chosen else None,
        chosen[:2] if chosen else None,
    )


def render(
    anchors: Sequence[Span], answer: Span | None, thoughts: Sequence[str] | None = None, option: int | None = None
) -> str:
    r"""The text of a chain, the inverse of `parse`: reading it back gives the same spans, to the last bit.

    `thoughts` are the len(anchors) + 1 texts before, between and behind the anchors; blanks are put around them.
    `option` is the chosen one's number, counted from 0.
    Raises: ValueError for a span before 0 (the form has no sign), a wrong number of thoughts, a thought with a tag, or
    an option that has no letter.

    >>> render([Span(2.0, 9.5)], Span(3.0, 8.0), ["near", "or so"])
    '<think>near <timestamp>2.0 to 9.5</timestamp> or so</think>\n<answer>3.0 to 8.0</answer>'
    """
    if thoughts is None:
        thoughts = [""] * (len(anchors) + 1)
    if len(thoughts) != len(anchors) + 1:
        raise ValueError(f"{len(thoughts)} thoughts for {len(anchors)} anchors: give {len(anchors) + 1}")
    for thought in thoughts:
        if tag := _TAG.search(thought) or _OPTION_TAG.search(thought):
            raise ValueError(f"thought {thought!r} holds the tag {tag[0]}, which would be read as part of the chain")
    pieces = [thoughts[0]]
    for span, thought in zip(anchors, thoughts[1:], strict=True):
        pieces += [f"<timestamp>{_write_span(span)}</timestamp>", thought]
    text = f"<think>{' '.join(piece for piece in pieces if piece)}</think>"
    if answer is not None:
        text += f"\n<answer>{_write_span(answer)}</answer>"
    return text if option is None else f"{text}\n<option>{option_letter(option)}</option>"


def option_letter(number: int) -> str:
    """What option `number`, counted from 0, is called in a prompt and in an answer.

    Raises: ValueError when it has no letter.

    >>> option_letter(1)
    'B'
    """
    if not 0 <= number < len(string.ascii_uppercase):
        raise ValueError(f"option {number} has no letter; options are numbered from 0 to 25")
    return string.ascii_uppercase[number]


def _read_well_formed(text: str, whole: re.Match[str]) -> AnchorChain | None:
    """The chain of a text that keeps to the form, with no other `<` in it; None when two numbers are no span."""
    thought_begin, thought_end = whole.span(1)
    anchors = []
    for tag in _ANCHOR.finditer(text, thought_begin, thought_end):
        spans, first, last, more = tag.groups()
        start, end = float(first), float(last)
        span = _read_span(spans) if more else Span(start, end) if start < end < math.inf else None
        if span is None:
            return None
        anchors.append(Anchor(span, *tag.span()))
    answer = _read_span(whole[3])
    if answer is None:
        return None
    return AnchorChain(text, tuple(anchors), answer, "ok" if anchors else "no_anchor", whole.span(2))


def _tagged(text: str, anchor_tag: str) -> _Tagged:
    # Texts and tags take turns. No object is made for a tag: a store holds millions, and most are never asked for.
    pieces = _TAGS[anchor_tag].split(text)
    names, places = pieces[1::2], list(accumulate(map(len, pieces)))
    begins, ends = places[:-1:2], places[1::2]
    opening = names.index("<think>") if "<think>" in names else None
    closing = "</think>" in names[opening or 0 :]
    if not closing:
        thought = (0, 0) if opening is None else (ends[opening], len(text))
        return _Tagged(pieces, names, begins, ends, opening is not None, False, thought, thought[1])
    at = names.index("</think>", opening or 0)
    thought = (0 if opening is None else ends[opening], begins[at])
    return _Tagged(pieces, names, begins, ends, opening is not None, True, thought, ends[at])


def _anchors_in(tags: _Tagged, anchor_tag: str) -> list[Anchor]:
    """The anchors of the thought."""
    begin, end = tags.thought
    pair = (f"<{anchor_tag}>", f"</{anchor_tag}>")
    anchors = []
    for at, both in enumerate(pairwise(tags.names)):
        if both == pair and begin <= tags.begins[at] and tags.ends[at + 1] <= end:
            span = _read_span(tags.pieces[2 * at + 2])
            if span is not None:
                anchors.append(Anchor(span, tags.begins[at], tags.ends[at + 1]))
    return anchors


def _read_span(text: str) -> Span | None:
    """The span or the set that a text is, None where it or a part of it is none."""
    spans = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part)
        if match is None:
            return None
        start, end = float(match[1]), float(match[2])
        # Digits beyond the largest float read as infinity, which is no time either.
        if not start < end < math.inf:
            return None
        spans.append(Span(start, end))
    return spans[0] if len(spans) == 1 else union(spans)


def _read_option(text: str, begin: int, options: int) -> _Option | None:
    """The first closed `<option>` from character `begin` on."""
    tags = [_Tag(match[0], match.start(), match.end()) for match in _OPTION_TAG.finditer(text)]
    for tag, following in pairwise(tags):
        if tag.name == "<option>" and following.name == "</option>" and tag.begin >= begin:
            letter = _LETTER.fullmatch(text, tag.end, following.begin)
            number = string.ascii_uppercase.index(letter[1].upper()) if letter else options
            return _Option(tag.begin, following.end, number if number < options else None, len(tags) == 2)
    return None


def _write_span(span: Span) -> str:
    if span.start < 0:
        raise ValueError(f"span {span.start} to {span.end} starts before the clip; clip it to the video first")
    return ", ".join([f"{_write_seconds(part.start)} to {_write_seconds(part.end)}" for part in span.parts])


def _write_seconds(value: float) -> str:
    # repr is the shortest text that reads back as the same float; Decimal spells out its exponent, and adding 0.0
    # takes the sign from -0.0.
    return format(Decimal(repr(float(value) + 0.0)), "f")
