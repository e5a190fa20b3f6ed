"""A chain's own words as markup for a picture: anchors in their colours, everything else harmless."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from labkit.views import style
from labkit.views.readings import Reading

LINES = 4
WIDTH = 112
_HOVER_LINES, _HOVER_WIDTH = 6, 70


class _Word(NamedTuple):
    text: str
    color: str | None = None


def thought_lines(reading: Reading, colors: Sequence[str]) -> list[str]:
    """The text as at most `LINES` lines of markup, each anchor as `[a to b s]` in the colour of its bar.

    Anchors beyond `colors` have the text's colour. A text that broke the form keeps its tags: they are what went wrong.
    """
    chain = reading.chain
    pieces = [
        (a.begin, a.end, a.span, colors[k] if k < len(colors) else style.TEXT) for k, a in enumerate(chain.anchors)
    ]
    if chain.answer is not None and chain.answer_chars is not None:
        pieces.append((*chain.answer_chars, chain.answer, style.ANSWER))
    tags = chain.status not in ("ok", "no_anchor")
    # more cannot be shown, and a hostile text may be a megabyte
    limit = 2 * LINES * WIDTH
    words: list[_Word] = []
    at = 0
    for begin, end, span, color in pieces:
        if at > limit:
            break
        words += _words(chain.text[at : min(begin, at + limit)], tags)
        words.append(_Word(f"[{style.seconds(span.start)} to {style.seconds(span.end)} s]", color))
        at = end
    words += _words(chain.text[at : at + limit], tags)
    return _lines(words, WIDTH, LINES) or ["<i>the model wrote nothing</i>"]


def words_before(reading: Reading, anchor: int | None) -> list[str]:
    """The words that led to an anchor, or with None to the answer, as lines of markup for hovering."""
    chain = reading.chain
    last = len(chain.anchors) if anchor is None else anchor
    begin = chain.anchors[last - 1].end if last else 0
    if anchor is not None:
        end = chain.anchors[anchor].begin
    else:
        end = chain.answer_chars[0] if chain.answer_chars else len(chain.text)
    limit = 2 * _HOVER_LINES * _HOVER_WIDTH
    return _lines(_words(chain.text[begin : min(end, begin + limit)], tags=False), _HOVER_WIDTH, _HOVER_LINES)


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
