"""A query as it learns, as a still picture for viewers that run nothing: film, a row for each step, the IoU at the edge."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

from PIL import Image

from labkit.chain.spans import Span, clip_span
from labkit.views.explorer.sprites import Sheet
from labkit.views.explorer.still import (
    BAND,
    FILM,
    INK,
    LINE,
    RAISED,
    SOFT,
    WIDTH,
    Canvas,
    draw_film,
    plain_words,
    step_bars,
)
from labkit.views.figures import style
from labkit.views.measured_chains import MeasuredChain
from labkit.views.report.sanitize import safe_text

_LEFT, _RIGHT, _HEAD = 84, 150, 26
_MANY = 40
"""Rows, from which on they are less high."""
_WORDS = {"grpo": "stage 1: GRPO", "grpo_final": "stage 3: GRPO"}
_FRESH = "stage 2: a fresh base learns by SFT from chains that stage 1 sampled"
_SHADES = ("#b0d1ef", "#72afe0", style.ANCHOR)
"""Of a first anchor, a second and so on."""


def draw_watch(
    line: Sequence[MeasuredChain], sheet: Sheet | None, problem: str = "", shown: int | None = None
) -> bytes:
    """A PNG of one query's chains in the order of training, the first `shown` of them, with the words of the last."""
    moment = line[0].moment
    shown = len(line) if shown is None else shown
    last = line[max(0, shown - 1)]
    words = textwrap.wrap(plain_words(safe_text(last.record.text), last.chain.status), 145)[:2]
    heads = _heads(line)
    height = 20 if len(line) <= _MANY else 13
    top = 92 + FILM + 6
    bottom = top + len(line) * height + sum(map(len, heads.values())) * _HEAD
    pen = Canvas(WIDTH, bottom + 84)
    begin, end = _LEFT, WIDTH - _RIGHT
    scale = (end - begin) / moment.duration

    def at(second: float) -> float:
        return begin + scale * min(max(second, 0.0), moment.duration)

    pen.text(14, 26, f"“{moment.query}”", 17, most=WIDTH - 28)
    pen.text(14, 48, "its chain at each step of training", 12, SOFT, WIDTH - 28)
    _legend(pen, begin, 74, max((len(row.chain.anchors) for row in line), default=0))
    if sheet is None:
        pen.box(begin, 92, end, 92 + FILM, RAISED, 4)
        pen.text((begin + end) / 2, 92 + FILM / 2, problem, 11, SOFT, end - begin - 20, "mm")
    else:
        picture = Image.open(io.BytesIO(sheet.webp)).convert("RGB")
        draw_film(pen, picture, sheet, moment.duration, (begin, 92, end))
    for window in moment.windows:
        pen.box(at(window.start), 92 + FILM + 2, at(window.end), bottom, BAND)
    zero, one = end + 28, end + 98
    if moment.has_truth:
        pen.text(end + 16, 74, "IoU of the answer", 12, SOFT)
        pen.text(zero, bottom + 12, "0", 10.5, SOFT, anchor="mm")
        pen.text(one, bottom + 12, "1", 10.5, SOFT, anchor="mm")
        for share in (0.0, 0.5, 1.0):
            pen.box(zero + share * (one - zero) - 0.5, top, zero + share * (one - zero) + 0.5, bottom, LINE)
    y, before = float(top), None
    for number, row in enumerate(line):
        for text, color in heads.get(number, ()):
            pen.box(begin, y + _HEAD / 2, WIDTH - 14, y + _HEAD / 2 + 1, LINE)
            pen.box(14, y + _HEAD / 2 - 4, 22, y + _HEAD / 2 + 4, color, 2)
            width = pen.text(28, y + _HEAD / 2, text, 12, SOFT)
            if 28 + width > begin:  # a line of words, before which the rule would stand
                pen.box(begin, y + _HEAD / 2 - 8, 32 + width, y + _HEAD / 2 + 9, "#ffffff")
                pen.text(28, y + _HEAD / 2, text, 12, SOFT)
            y, before = y + _HEAD, None
        if number < shown:
            middle = y + height / 2
            _row(pen, row, middle, at, height, number == shown - 1)
            here = (zero + row.answer_iou * (one - zero), middle)
            if before is not None and moment.has_truth:
                pen.stroke(before, here, "#f0bf80")
            before = here
        y += height
    y = float(top)
    for number, row in enumerate(line[:shown] if moment.has_truth else ()):
        y += _HEAD * len(heads.get(number, ()))
        x, iou = zero + row.answer_iou * (one - zero), row.answer_iou
        pen.box(x - 3, y + height / 2 - 3, x + 3, y + height / 2 + 3, style.ANSWER, 3)
        ink = INK if number == shown - 1 else SOFT
        pen.text(WIDTH - 14, y + height / 2, f"{iou:.2f}", min(12, height - 2), ink, anchor="rm")
        y += height
    for k in range(5):
        second = k * moment.duration / 4
        pen.box(at(second) - 0.5, bottom, at(second) + 0.5, bottom + 4, SOFT)
        pen.text(at(second), bottom + 12, f"{second:.1f}" + (" s" if k == 4 else ""), 10.5, SOFT, anchor="mm")
    pen.box(14, bottom + 27, WIDTH - 14, bottom + 28, LINE)
    pen.text(14, bottom + 46, f"step {getattr(last.record, 'step', 0)}", 12)
    for number, each in enumerate(words):
        pen.text(begin, bottom + 46 + 18 * number, each, 12, most=WIDTH - begin - 14)
    pen.frame(0, 0, WIDTH, bottom + 84, LINE)
    return pen.png()


def _heads(line: Sequence[MeasuredChain]) -> dict[int, list[tuple[str, str]]]:
    """By the place of a stage's first row, what stands above it, with its colour."""
    looks = style.looks(dict.fromkeys(("sft", *(row.stage for row in line))))
    heads: dict[int, list[tuple[str, str]]] = {}
    for place, row in enumerate(line):
        if place and row.stage == line[place - 1].stage:
            continue
        own = (_WORDS.get(row.stage, row.stage), looks[row.stage].color)
        heads[place] = [(_FRESH, looks["sft"].color), own] if place and row.stage == "grpo_final" else [own]
    return heads


def _legend(pen: Canvas, x: float, y: float, anchors: int) -> None:
    named = [("truth", style.TRUTH), *((f"anchor {k + 1}", _SHADES[k]) for k in range(min(anchors, len(_SHADES))))]
    for name, color in [*named, ("answer", style.ANSWER)]:
        pen.box(x, y - 4, x + 18, y + 4, color, 3)
        x += 18 + 6 + pen.text(x + 24, y, name, 12, SOFT) + 18


def _row(pen: Canvas, row: MeasuredChain, middle: float, at: Any, height: int, last: bool) -> None:
    """One chain: the answer within its anchors, as they should lie within one another."""
    pen.text(14, middle, f"step {getattr(row.record, 'step', 0)}", min(11.5, height - 2), INK if last else SOFT)
    steps = step_bars(row)
    spans: list[tuple[Span, str, float]] = [
        (step.span, _SHADES[min(k, len(_SHADES) - 1)], max(3.0, 0.4 * height - 2 * k))
        for k, step in enumerate(steps[:-1])
        if step.span
    ]
    if steps[-1].span:
        spans.append((steps[-1].span, style.ANSWER, 2.5))
    if not spans:
        pen.text(at(0) + 6, middle, "no span was read", 11, SOFT)
    for span, color, half in spans:
        if clipped := clip_span(span, row.moment.duration):
            for part in clipped.parts:
                begin, end = at(part.start), max(at(part.end), at(part.start) + 2)
                pen.box(begin, middle - half, end, middle + half, color, min(half, 4))
