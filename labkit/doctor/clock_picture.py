"""The picture of a clock audit: a line from the second at which a frame is on screen down to the second that is told of it.

A clock that is right is a row of upright lines; what leans is told wrongly, is orange, and says by how much. Drawn as SVG without
any library, so that a page is some kilobytes and takes the colours of its reader's theme.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from labkit.data.video.decoders import Times

MOST_LINES = 90
"""Lines of one ladder: of more patches every so many are drawn, and always the last one."""
_LEFT, _WIDTH, _RIGHT, _ROW, _STEP = 190, 560, 190, 36, 22
_TICKS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200)


class Ladder(NamedTuple):
    """One row of the picture: seconds (T,) on screen and as they are told, and which are wrong."""

    group: str
    name: str
    shown: Times
    told: Times
    wrong: Sequence[bool] | np.ndarray
    verdict: str


def ladders(rows: Sequence[Ladder], seconds: float) -> str:
    """All rows as an SVG, those of a group below their heading; `seconds` is the clip's length."""
    parts, y = [], 0.0
    end = max(seconds, *(float(row.told.max()) for row in rows))
    for group, members in itertools.groupby(rows, key=lambda row: row.group):
        y += 26
        parts.append(f'<text x="0" y="{y:g}" class="clock-group">{html.escape(group)}</text>')
        for row in members:
            parts.append(_ladder(row, y + 10, end))
            y += _ROW
        parts.append(_axis(y + 14, end))
        y += 26
    wide = _LEFT + _WIDTH + _RIGHT
    words = "Above: when the frames are on screen. Below: the seconds that are told of them."
    return (
        f"<style>{_STYLE}</style>"
        f'<svg class="clock" viewBox="0 0 {wide} {y + 8:g}" role="img" aria-label="{words}" width="{wide}">{"".join(parts)}</svg>'
        f'<p class="clock-words">{words} A line that leans is a second that is told wrongly.</p>'
    )


def page(body: str, title: str) -> str:
    """A whole HTML page, light or dark as its reader's system is."""
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{html.escape(title)}</title>'
    )
    ground = ":root{color-scheme:light dark}body{margin:20px;font:14px system-ui,sans-serif;max-width:1200px}h1{font-size:18px}"
    ground += "td,th{padding:2px 10px 2px 0;white-space:nowrap;font-variant-numeric:tabular-nums}p{opacity:.8}"
    main = f"<main><h1>{html.escape(title)}</h1>{body}</main>"
    return f'<!DOCTYPE html><html lang="en"><head>{head}<style>{ground}</style></head><body>{main}</body></html>'


_STYLE = (
    ".clock{max-width:100%;font:12px system-ui,sans-serif;fill:currentColor;stroke:none}.clock line{stroke:currentColor}"
    ".clock .right{stroke:#2f86d1;stroke-width:1}.clock .rail{opacity:.3}.clock .tick{opacity:.6}"
    ".clock .clock-group{font-weight:600;font-size:14px}.clock .wrong{stroke:#e06a00;stroke-width:1.4}"
    ".clock .bad{fill:light-dark(#b34a00,#ff9a52);font-weight:600}"
)


def _x(second: float, end: float) -> float:
    return round(_LEFT + _WIDTH * second / end, 1)


def _ladder(row: Ladder, y: float, end: float) -> str:
    every = -(-len(row.told) // MOST_LINES)
    chosen = sorted({*range(0, len(row.told), every), len(row.told) - 1})
    lines = [
        f'<line class="rail" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{at:g}" y2="{at:g}"/>' for at in (y, y + _STEP)
    ]
    for k in chosen:
        kind, above, below = "wrong" if row.wrong[k] else "right", row.shown[k], row.told[k]
        lines.append(
            f'<line class="{kind}" x1="{_x(above, end)}" y1="{y:g}" x2="{_x(below, end)}" y2="{y + _STEP:g}">'
            f"<title>on screen from {above:.2f} s, told {below:.1f} s</title></line>"
        )
    middle = y + _STEP / 2 + 4
    bad = ' class="bad"' if any(row.wrong) else ""
    return (
        f'<text x="8" y="{middle:g}">{html.escape(row.name)}</text>{"".join(lines)}'
        f'<text x="{_LEFT + _WIDTH + 12}" y="{middle:g}"{bad}>{html.escape(row.verdict)}</text>'
    )


def _axis(y: float, end: float) -> str:
    step = next((tick for tick in _TICKS if end / tick <= 10), _TICKS[-1])
    marks = [
        f'<text class="tick" x="{_x(second, end)}" y="{y:g}" text-anchor="middle">{second:g}</text>'
        for second in np.arange(0, end + 1e-6, step)
    ]
    return "".join(marks) + f'<text class="tick" x="{_LEFT + _WIDTH + 24}" y="{y:g}">seconds</text>'
