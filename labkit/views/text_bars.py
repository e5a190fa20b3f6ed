"""Spans as bars of characters, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from labkit.chain.spans import Span, clip_span

MARKS = {False: ("█", "▒", "·"), True: ("#", "=", ".")}
"""A span, a span that is less sure, and the rest of the line; by whether only ASCII can be shown."""


def bar(spans: Iterable[Span], duration: float, width: int, mark: str, rest: str) -> str:
    """Spans on a line of `width` characters, each at least one of them.

    >>> bar([Span(5, 10)], 20.0, 8, "#", "."), bar([Span(0, 1), Span(19, 30)], 20.0, 8, "#", "."), bar([], 20.0, 4, "#", ".")
    ('..##....', '#......#', '....')
    """
    line = [rest] * width
    for span in filter(None, (clip_span(span, duration) for span in spans)):
        begin = min(width - 1, int(span.start / duration * width))
        end = max(begin + 1, round(span.end / duration * width))
        line[begin:end] = mark * (end - begin)
    return "".join(line)


def axis(duration: float, width: int) -> str:
    """Seconds under a bar, at its quarters.

    >>> axis(20.0, 32)
    '0.0     5.0     10.0    15.0    20.0 s'
    """
    line = [" "] * (width + 8)
    for quarter in range(5):
        label = f"{quarter * duration / 4:.1f}" + (" s" if quarter == 4 else "")
        begin = round(quarter * width / 4)
        line[begin : begin + len(label)] = label
    return "".join(line).rstrip()
