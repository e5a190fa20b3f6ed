r"""Edits of a chain's text that interventions make: a thought closed early, an anchor forced, an anchor moved.

Each gives the text up to a point from which a model goes on. It is the chain's own text as far as it goes, its blanks included, so
that a tokenizer cuts it as the model is used to. Spans are in seconds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.spans import Span

CLOSING = "</think>\n<answer>"
"""What closes a thought and opens an answer, where a model's own chain doesn't say how it writes that."""
_CLOSING = re.compile(r"\s*</think>\s*<answer>")
_TAG = re.compile(r"<timestamp>|</think>|<answer>")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")
_NUMBER = re.compile(r"\d+(?:\.(\d+))?", re.ASCII)


def closed_thought(text: str, anchors: int = 0) -> str:
    r"""How a chain begins whose thought is closed behind its first so many anchors, up to where the answer's times stand.

    With no anchor the thought stays up to the last full sentence before the first one; a thought without anchors stays whole.

    >>> closed_thought("<think> I see it. Around <timestamp> 1.0 to 4.0 </timestamp> </think> <answer> 2.0 to 3.0 </answer>")
    '<think> I see it. </think> <answer>'
    >>> closed_thought("<think>I see it <timestamp>1 to 4</timestamp>, or <timestamp>2 to 3</timestamp>", anchors=1)
    '<think>I see it <timestamp>1 to 4</timestamp></think>\n<answer>'
    """
    own = _CLOSING.search(text)
    closing = own[0] if own else CLOSING
    if anchors:
        return text[: parse(text).anchors[anchors - 1].end] + closing
    head = _before_anchors(text)
    ends = [match.end() for match in _SENTENCE.finditer(head)]
    return (head[: ends[-1]] if ends and "<timestamp>" in text else head).rstrip() + closing


def forced_anchor(text: str) -> str:
    """How a chain begins that must have an anchor: `<timestamp>` behind its words before the first one, or behind all of them.

    >>> forced_anchor("<think>I see it.</think><answer>2.0 to 3.0</answer>")
    '<think>I see it. <timestamp>'
    """
    return _before_anchors(text).rstrip() + " <timestamp>"


def edited_anchor(chain: AnchorChain, number: int, span: Span | None = None) -> str:
    """A chain up to the end of an anchor, counted from 0, whose span is another; the same without `span`.

    >>> edited_anchor(parse("<think>at <timestamp> 1.0 to 4.0 </timestamp>, so</think>"), 0, Span(2, 5))
    '<think>at <timestamp> 2.0 to 5.0 </timestamp>'
    """
    anchor = chain.anchors[number]
    if span is None:
        return chain.text[: anchor.end]
    written = chain.text[anchor.begin : anchor.end]
    digits = max(decimals(written), *map(_decimals_of, (span.start, span.end)))
    times = iter((span.start, span.end))
    return chain.text[: anchor.begin] + _NUMBER.sub(lambda _: f"{next(times):.{digits}f}", written)


def shifted(span: Span, by: float, duration: float, digits: int) -> Span | None:
    """A span moved by so many seconds, or as far as it stays in the clip; None where it cannot move at all.

    It moves by a multiple of 10 ** -digits seconds, so that the model can write where it ends.

    >>> shifted(Span(1.0, 4.0), -2.0, 10.0, 1), shifted(Span(0.0, 4.0), -2.0, 10.0, 1)
    (Span(start=0.0, end=3.0), None)
    """
    room = duration - span.end if by > 0 else span.start
    unit = 10.0**digits
    far = math.copysign(min(abs(by), math.floor(max(room, 0.0) * unit + 1e-6) / unit), by)
    return Span(round(span.start + far, 6), round(span.end + far, 6)) if far else None


def widened(span: Span, by: float, duration: float, digits: int) -> Span | None:
    """A span that begins so many seconds earlier and ends as many later, cut to the clip; None where it cannot.

    >>> widened(Span(0.5, 4.0), 1.0, 10.0, 1), widened(Span(0.0, 10.0), 1.0, 10.0, 1)
    (Span(start=0.0, end=5.0), None)
    """
    last = math.floor(duration * 10.0**digits + 1e-6) / 10.0**digits
    wide = Span(max(0.0, round(span.start - by, 6)), max(span.end, min(last, round(span.end + by, 6))))
    return wide if wide != span else None


def swap_partners(anchored: Mapping[str, tuple[Span, float, str]]) -> dict[str, tuple[Span, Span]]:
    """For each query two anchors of others, with different middles, where there are two that it has room for.

    The others' clips are as long to a second but not the same. `anchored` holds a query's anchor, its clip's seconds, and its video.
    The next such queries in the order of names are taken, so that each anchor goes to two others as far as possible.
    """
    by_length: dict[int, list[str]] = {}
    for qid in sorted(anchored):
        by_length.setdefault(round(anchored[qid][1]), []).append(qid)
    partners = {}
    for qids in by_length.values():
        for at, qid in enumerate(qids):
            span, duration, video = anchored[qid]
            first: Span | None = None
            for other in (*qids[at + 1 :], *qids[:at]):
                theirs, _, source = anchored[other]
                if source == video or theirs == span or theirs.end > duration:
                    continue
                if first is None:
                    first = theirs
                elif abs(theirs.middle - first.middle) > 1e-6:
                    partners[qid] = first, theirs
                    break
    return partners


def decimals(text: str) -> int:
    """Most digits behind the point of the numbers in a text.

    >>> decimals("<timestamp>2 to 9.50</timestamp>")
    2
    """
    return max((len(match[1] or "") for match in _NUMBER.finditer(text)), default=0)


def _decimals_of(value: float) -> int:
    return next((digits for digits in range(6) if abs(round(value, digits) - value) < 1e-6), 6)


def _before_anchors(text: str) -> str:
    """A thought up to its first anchor, or to its end."""
    tag = _TAG.search(text)
    head = text[: tag.start()] if tag else text
    return head if head.strip() else "<think>"
