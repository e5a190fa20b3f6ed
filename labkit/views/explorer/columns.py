"""Columns of many chains on their way to a page: numbers rounded, names as places in a list, and all of it zipped.

At thirty thousand chains each of these costs as much as reading the chains, unless it is done a column at a time.
"""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate
from typing import Any

import numpy as np
import orjson

from labkit.chain.anchors import AnchorChain


class Zipped:
    """A gzip file in memory, compressed in a thread of its own while the next piece is being made."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._thread = ThreadPoolExecutor(1)
        self._file = zlib.compressobj(4, wbits=zlib.MAX_WBITS | 16)  # 16: with gzip's header
        self._pieces: list[Future[bytes]] = []

    def add(self, piece: bytes) -> None:
        """Take the next piece; its turn comes when those before it are done."""
        self._pieces.append(self._thread.submit(self._file.compress, piece))

    def close(self) -> bytes:
        """The whole file, when its last piece is done."""
        self._pieces.append(self._thread.submit(self._file.flush))
        with self._thread:
            return b"".join(piece.result() for piece in self._pieces)


def anchor_places(chain: AnchorChain) -> list[list[float]]:
    """Start, end, and the first and behind-last character of each anchor's tag as a page counts characters."""
    place = _utf16(chain.text)
    return [[span.start, span.end, place(begin), place(end)] for span, begin, end in chain.anchors]


def answer_place(chain: AnchorChain) -> list[float] | None:
    """The same of the answer's tag; None without an answer."""
    if chain.answer is None or chain.answer_chars is None:
        return None
    place = _utf16(chain.text)
    return [chain.answer.start, chain.answer.end, *map(place, chain.answer_chars)]


def option_chars(chain: AnchorChain) -> list[int] | None:
    """The first and behind-last character of the option's tag; None without an option."""
    return None if chain.option_chars is None else [*map(_utf16(chain.text), chain.option_chars)]


def _utf16(text: str) -> Callable[[int], int]:
    """Turns a place in a Python string into the place in a page's string, where an emoji counts two.

    >>> _utf16("a😀b")(2)
    3
    """
    if text.isascii():
        return int
    wide = [place for place, char in enumerate(text) if ord(char) > 0xFFFF]
    return lambda place: place + bisect_left(wide, place)


def places(names: Sequence[str], values: Sequence[str]) -> list[int]:
    """Where each value stands among the names."""
    place = {name: index for index, name in enumerate(names)}
    return [place[value] for value in values]


def rounded(rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Four decimals of each value; None where there is none, or none that can be written.

    >>> import math
    >>> rounded([[0.123456, None], [], [math.inf]])
    [[0.1235, None], [], [None]]
    """
    flat = np.round(np.array([value for row in rows for value in row], dtype=np.float64), 4)
    values: list[float | None] = flat.tolist()
    for at in np.flatnonzero(~np.isfinite(flat)).tolist():
        values[at] = None
    ends = list(accumulate(map(len, rows)))
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def as_json(value: Any) -> bytes:
    """JSON without blanks; ten times as fast by orjson, which refuses half a character: a text may hold one all the same."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
