"""Spans as bars of characters, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from labkit.chain.spans import Span, clip_span

MARKS = {False: ("█", "▒", "·"), True: ("#", "=", ".")}
"""A span, a span that is less sure, and the rest of the line; by whether only ASCII can be shown."""


@dataclass(frozen=True, slots=True)
class BarLines:
    """Lines of a label, a bar, and what is said of it, over one axis of `duration` seconds.

    A line is `width` characters wide, of which labels take `label` and what is said `said`.

    >>> lines = BarLines(20.0, 34, label=8, said=10, ascii_only=True)
    >>> lines.line("truth", [Span(5, 10)], "5 to 10 s", sure=False)
    'truth   ....====........  5 to 10 s'
    >>> lines.axis()
    '        0.0             20.0 s'
    """

    duration: float
    width: int
    label: int
    said: int
    ascii_only: bool = False

    @property
    def _room(self) -> int:
        return max(10, self.width - self.label - self.said)

    def line(self, label: str, spans: Iterable[Span], said: str, *, sure: bool = True) -> str:
        """One line; spans that are less sure, or a truth, are marked apart."""
        full, half, rest = MARKS[self.ascii_only]
        shown = bar(spans, self.duration, self._room, full if sure else half, rest)
        return f"{label:<{self.label}}{shown}  {said}"

    def axis(self) -> str:
        """The seconds under the bars."""
        return " " * self.label + axis(self.duration, self._room)


def bar(spans: Iterable[Span], duration: float, width: int, mark: str, rest: str) -> str:
    """Spans on a line of `width` characters, each at least one of them.

    >>> bar([Span(5, 10)], 20.0, 8, "#", "."), bar([Span(0, 1), Span(19, 30)], 20.0, 8, "#", "."), bar([], 20.0, 4, "#", ".")
    ('..##....', '#......#', '....')
    """
    line = [rest] * width
    for span in (part for span in spans if (cut := clip_span(span, duration)) for part in cut.parts):
        begin = min(width - 1, int(span.start / duration * width))
        end = max(begin + 1, round(span.end / duration * width))
        line[begin:end] = mark * (end - begin)
    return "".join(line)


def axis(duration: float, width: int) -> str:
    """Seconds under a bar, at its quarters, or at its ends alone where five do not fit.

    >>> axis(20.0, 32)
    '0.0     5.0     10.0    15.0    20.0 s'
    >>> axis(20.0, 16)
    '0.0             20.0 s'
    """
    places = [round(quarter * width / 4) for quarter in range(5)]
    labels = [f"{quarter * duration / 4:.1f}" + (" s" if quarter == 4 else "") for quarter in range(5)]
    if any(len(label) >= end - begin for label, begin, end in zip(labels, places, places[1:], strict=False)):
        places, labels = places[::4], labels[::4]
    line = ""
    for place, label in zip(places, labels, strict=True):
        line = line.ljust(place) + label
    return line
