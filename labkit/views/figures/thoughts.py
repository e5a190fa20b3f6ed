"""A chain's own words as markup for a picture: anchors in their colours, everything else harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.chain.anchors import option_letter
from labkit.chain.spans import Span
from labkit.views.figures import style
from labkit.views.measured_chains import Reading

LINES = 4
WIDTH = 112
_HOVER_LINES, _HOVER_WIDTH = 6, 70


class _Word(NamedTuple):
    text: str
    color: str | None = None


def thought_lines(reading: Reading, colors: Sequence[str]) -> list[str]:
    """The text as at most `LINES` lines of markup, each anchor as `[a to b s]` in the colour of its bar.

    A chosen option stands as `[B ✓]`, or `[B ✗]` where another one is right.
    Where it is longer, the words before each anchor lose their beginning, so that every anchor stays. Anchors beyond
    `colors` have the text's colour. A text that broke the form keeps its tags: they are what went wrong.
    """
    chain = reading.chain
    marks = [
        (a.begin, a.end, _times(a.span, colors[k] if k < len(colors) else style.TEXT))
        for k, a in enumerate(chain.anchors)
    ]
    if chain.answer is not None and chain.answer_chars is not None:
        marks.append((*chain.answer_chars, _times(chain.answer, style.ANSWER)))
    if chain.option is not None and chain.option_chars is not None:
        right = chain.option == reading.moment.choice
        told = f"[{option_letter(chain.option)} {'✓' if right else '✗'}]"
        marks.append((*chain.option_chars, _Word(told, style.TRUTH if right else style.WORSE)))
    # a hostile text has thousands: those that four lines can hold
    marks = marks[: LINES * WIDTH // 20]
    labels = [label for *_, label in marks]
    tags = chain.status not in ("ok", "no_anchor")
    begins, ends = [0, *(end for _, end, _ in marks)], [*(begin for begin, _, _ in marks), len(chain.text)]
    room = int(0.93 * LINES * WIDTH) - sum(len(label.text) + 1 for label in labels)
    share = _share([end - begin for begin, end in zip(begins, ends, strict=True)], room)
    words: list[_Word] = []
    for begin, end, label in zip(begins, ends, [*labels, None], strict=True):
        if label is None:
            words += _words(_head(chain.text[begin:], share), tags)
        else:
            words += [*_words(_tail(chain.text, begin, end, share), tags), label]
    return _lines(words, WIDTH, LINES) or ["<i>the model wrote nothing</i>"]


def _times(span: Span, color: str) -> _Word:
    return _Word(f"[{style.seconds(span.start)} to {style.seconds(span.end)} s]", color)


def words_before(reading: Reading, anchor: int | None) -> list[str]:
    """The words that led to an anchor, or with None to the answer, as lines of markup for hovering."""
    chain = reading.chain
    last = len(chain.anchors) if anchor is None else anchor
    begin = chain.anchors[last - 1].end if last else 0
    if anchor is not None:
        end = chain.anchors[anchor].begin
    else:
        end = chain.answer_chars[0] if chain.answer_chars else len(chain.text)
    share = int(0.93 * _HOVER_LINES * _HOVER_WIDTH)
    return _lines(_words(_tail(chain.text, begin, end, share), tags=False), _HOVER_WIDTH, _HOVER_LINES)


def _share(lengths: Sequence[int], room: int) -> int:
    """How many characters each piece may have, so that all together fit and short ones leave theirs to the long."""
    left = max(0, room)
    for place, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - place)
        if length > share:
            return share
        left -= length
    return max(lengths)


def _tail(text: str, begin: int, end: int, share: int) -> str:
    """The last `share` characters of a piece, from a whole word on."""
    if end - begin <= share:
        return text[begin:end]
    cut = text[max(begin, end - share) : end] if share > 0 else ""
    return f"… {cut.partition(' ')[2] or cut}"


def _head(text: str, share: int) -> str:
    """The first `share` characters, up to a whole word."""
    if len(text) <= share:
        return text
    return f"{text[:share].rpartition(' ')[0] or text[:share]} …"


def _words(text: str, tags: bool) -> list[_Word]:
    if not tags:
        text = re.sub(r"</?think>", " ", text)
    # a word without end must not run out of the picture
    return [_Word(word[i : i + 60]) for word in text.split() for i in range(0, len(word), 60)]


def _lines(words: Iterable[_Word], width: int, lines: int) -> list[str]:
    rows: list[list[_Word]] = [[]]
    used = 0
    for word in words:
        if used and used + 1 + len(word.text) > width:
            if len(rows) == lines:
                rows[-1].append(_Word("…"))
                break
            rows.append([])
            used = 0
        rows[-1].append(word)
        used += 1 + len(word.text)
    return [" ".join(_marked(word) for word in row) for row in rows if row]


def _marked(word: _Word) -> str:
    text = style.plain(word.text)
    return text if word.color is None else f'<b><span style="color:{word.color}">{text}</span></b>'
