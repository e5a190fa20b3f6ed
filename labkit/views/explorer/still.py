"""The explorer as a still picture, for viewers that run nothing: drawn here, with no browser on the machine.

What a reader would see on opening it: rows of the table, and the selected chain with its frame, its film, the truth and a
bar for each step, what it earned, and its words.
"""

from __future__ import annotations

import functools
import io
import math
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from labkit.chain.spans import Span, clip_span
from labkit.views.explorer.packing import paid_total
from labkit.views.explorer.sprites import Sheet
from labkit.views.figures import style
from labkit.views.measured_chains import MeasuredChain, StepBar
from labkit.views.report.sanitize import safe_text

WIDTH = 960
"""Pixels in which a notebook shows it; it is drawn in twice as many."""
_SCALE = 2
_TABLE, _ROW, _ROWS = 368, 26, 12
INK, SOFT, LINE, _GROUND, RAISED, _CHOSEN, _SCREEN = (
    "#1b2026", "#59616b", "#dfe3e8", "#ffffff", "#f5f7f9", "#dcebf9", "#0d1117",
)  # fmt: skip
BAND = "#d4efe7"
MOST_STEPS = 5
_LABEL, _VALUE = 68, 118
FILM = 44


def draw_still(
    rows: Sequence[MeasuredChain], chosen: int, sheet: Sheet | None, caption: str, problem: str = ""
) -> bytes:
    """A PNG of an explorer of `rows` with the chain at place `chosen`; `caption` is the line above it.

    `sheet` are its clip's frames; without them `problem` says why in their place.
    """
    measured = rows[chosen]
    steps = measured.bars(MOST_STEPS)
    words = textwrap.wrap(plain_words(safe_text(measured.record.text), measured.chain.status), 96)
    if len(words) > 5:
        words = [*words[:4], words[4][:88] + " …"]
    height = max(34 + (_ROWS + 1) * _ROW + 12, 34 + 262 + (len(steps) + 1) * 22 + 34 + 18 * len(words) + 14)
    pen = Canvas(WIDTH, height)
    pen.box(0, 0, WIDTH, 34, RAISED)
    pen.text(12, 17, caption, 12, SOFT, WIDTH - 24)
    pen.box(0, 34, WIDTH, 35, LINE)
    _table(pen, rows, chosen, int((height - 34) // _ROW) - 1)
    pen.box(_TABLE, 34, _TABLE + 1, height, LINE)
    _chain(pen, rows[chosen], steps, sheet, problem, words)
    pen.frame(0, 0, WIDTH, height, LINE)
    return pen.png()


class Canvas:
    """Draws in pixels of the shown size, in twice as many."""

    def __init__(self, width: float, height: float) -> None:
        """A ground of that size, nothing on it."""
        self.image = Image.new("RGB", (int(width * _SCALE), int(height * _SCALE)), _GROUND)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: str, radius: float = 0) -> None:
        """A filled rectangle; one without an area is left out."""
        ends = [round(each * _SCALE) for each in (x0, y0, x1, y1)]
        if ends[2] > ends[0] and ends[3] > ends[1]:
            place = (ends[0], ends[1], ends[2] - 1, ends[3] - 1)
            self.draw.rounded_rectangle(place, min(radius * _SCALE, (ends[2] - ends[0]) / 2), fill=color)

    def frame(self, x0: float, y0: float, x1: float, y1: float, color: str, width: int = 1) -> None:
        """The outline of a rectangle."""
        place = [round(each * _SCALE) for each in (x0, y0, x1, y1)]
        self.draw.rectangle((*place[:2], place[2] - 1, place[3] - 1), outline=color, width=width * _SCALE)

    def text(
        self, x: float, y: float, text: str, size: float, color: str = INK, most: float = 9999, anchor: str = "lm"
    ) -> float:
        """A line whose middle is at `y`, cut to `most` pixels; returns its width."""
        font = _font(size)
        shown = safe_text(text)
        while font.getlength(shown) > most * _SCALE and len(shown) > 1:
            shown = (
                shown[: min(len(shown) - 2, int(len(shown) * most * _SCALE / font.getlength(shown)))].rstrip() + "…"
            )
        self.draw.text((x * _SCALE, y * _SCALE), shown, color, font, anchor)
        return float(font.getlength(shown)) / _SCALE

    def mark(self, x: float, y: float, up: bool, color: str) -> None:
        """A triangle, since a font may have none."""
        tip, foot = (-3.5, 3) if up else (3.5, -3)
        points = [(x - 4, y + foot), (x + 4, y + foot), (x, y + tip)]
        self.draw.polygon([(a * _SCALE, b * _SCALE) for a, b in points], color)

    def paste(self, image: Any, x: float, y: float, width: float, height: float) -> None:
        """A picture that fills a place, cut where its proportions differ."""
        size = (max(1, round(width * _SCALE)), max(1, round(height * _SCALE)))
        scale = max(size[0] / image.width, size[1] / image.height)
        cut = (size[0] / scale, size[1] / scale)
        left, top = (image.width - cut[0]) / 2, (image.height - cut[1]) / 2
        fitted = image.resize(size, Image.Resampling.BICUBIC, (left, top, left + cut[0], top + cut[1]))
        self.image.paste(fitted, (round(x * _SCALE), round(y * _SCALE)))

    def stroke(self, begin: tuple[float, float], end: tuple[float, float], color: str) -> None:
        """A line between two places."""
        ends = [each * _SCALE for each in (*begin, *end)]
        self.draw.line(ends, color, 3)

    def png(self) -> bytes:
        """The picture, in at most 256 colours."""
        file = io.BytesIO()
        # 256 colours are enough for text, bars and a few small frames, and a notebook holds less than half as much.
        # Chosen so that each colour that means something stays as it is.
        few = self.image.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True)
        return file.getvalue()


class Timeline:
    """The seconds of a clip across a canvas, from pixel `begin` to `end`, which a film, bars and an axis share."""

    def __init__(self, pen: Canvas, begin: float, end: float, duration: float) -> None:
        """Of a clip of `duration` seconds."""
        self.pen, self.begin, self.end, self.duration = pen, begin, end, duration

    def at(self, second: float) -> float:
        """The pixel of a second; what lies outside the clip is at its ends."""
        return self.begin + (self.end - self.begin) / self.duration * min(max(second, 0.0), self.duration)

    def film(self, top: float, sheet: Sheet | None, problem: str = "") -> None:
        """As many frames as fit side by side, each from the middle of its seconds; without a sheet what is wrong."""
        if sheet is None:
            self.pen.box(self.begin, top, self.end, top + FILM, RAISED, 4)
            middle, most = (self.begin + self.end) / 2, self.end - self.begin - 20
            self.pen.text(middle, top + FILM / 2, problem, 11, SOFT, most, "mm")
            return
        picture = sheet_picture(sheet)
        count = max(1, round((self.end - self.begin) / (FILM * sheet.width / sheet.height)))
        each = (self.end - self.begin) / count
        for k in range(count):
            second = (k + 0.5) * self.duration / count
            if second < sheet.frames * sheet.step:
                self.pen.paste(_frame(picture, sheet, second), self.begin + k * each, top, each, FILM)

    def spans(self, spans: Sequence[Span], middle: float, half: float, color: str, radius: float = 3) -> None:
        """Spans as bars around a line, each at least two pixels wide."""
        for span in spans:
            begin = self.at(span.start)
            self.pen.box(begin, middle - half, max(self.at(span.end), begin + 2), middle + half, color, radius)

    def axis(self, y: float) -> None:
        """Seconds at the quarters of the clip."""
        for k in range(5):
            second = k * self.duration / 4
            self.pen.box(self.at(second) - 0.5, y, self.at(second) + 0.5, y + 4, SOFT)
            self.pen.text(self.at(second), y + 12, f"{second:.1f}" + (" s" if k == 4 else ""), 10.5, SOFT, anchor="mm")


@functools.cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size * _SCALE)


def plain_words(text: str, status: str) -> str:
    """A chain's words with its spans in brackets; as it stands where the tags are what went wrong."""
    if status in ("ok", "no_anchor"):
        text = re.sub(r"<timestamp>\s*(.*?)\s*</timestamp>", r"[\1 s]", text, flags=re.DOTALL)
        text = re.sub(r"<answer>\s*(.*?)\s*</answer>", r"Answer: [\1 s]", text, flags=re.DOTALL)
        text = re.sub(r"</?(?:think|option)>", " ", text)
    return " ".join(text.split())


def _table(pen: Canvas, rows: Sequence[MeasuredChain], chosen: int, most: int) -> None:
    """The rows around the chosen one, by IoU as the explorer opens."""
    ious = [row.answer_iou for row in rows]
    order = sorted(range(len(rows)), key=lambda at: (math.inf if math.isnan(ious[at]) else -ious[at], at))
    spot = order.index(chosen)
    begin = max(0, min(spot - most // 2, len(order) - most))
    stages = len({row.stage for row in rows}) > 1
    query = 92 if stages else 12
    for x, name in ((12, "stage" if stages else ""), (query, "query")):
        pen.text(x, 34 + _ROW / 2, name, 11.5, SOFT)
    pen.text(_TABLE - 66, 34 + _ROW / 2, "IoU", 11.5, SOFT, anchor="rm")
    pen.text(_TABLE - 12, 34 + _ROW / 2, "reward", 11.5, SOFT, anchor="rm")
    looks = style.looks(dict.fromkeys(row.stage for row in rows))
    for line, at in enumerate(order[begin : begin + most], 1):
        top, row = 34 + line * _ROW, rows[at]
        middle = top + _ROW / 2
        if at == chosen:
            pen.box(0, top, _TABLE, top + _ROW, _CHOSEN)
            pen.box(0, top, 3, top + _ROW, style.ANCHOR)
        pen.box(0, top, _TABLE, top + 0.5, LINE)
        if stages:
            pen.box(12, middle - 4, 20, middle + 4, looks[row.stage].color, 2)
            pen.text(25, middle, row.stage, 12, most=62)
        iou = ious[at]
        pen.text(query, middle, row.moment.query, 12, most=_TABLE - 132 - query)
        if math.isnan(iou):  # nobody has told the truth
            continue
        pen.box(_TABLE - 124, middle - 3, _TABLE - 94, middle + 3, LINE, 3)
        pen.box(
            _TABLE - 124,
            middle - 3,
            _TABLE - 124 + 30 * iou,
            middle + 3,
            style.ANCHOR if iou >= 0.5 else style.WORSE,
            3,
        )
        pen.text(_TABLE - 66, middle, f"{iou:.2f}", 12, anchor="rm")
        total = paid_total(row.record)
        pen.text(_TABLE - 12, middle, "-" if total is None else f"{total:.2f}", 12, anchor="rm")


def _chain(
    pen: Canvas, row: MeasuredChain, steps: Sequence[StepBar], sheet: Sheet | None, problem: str, words: Sequence[str]
) -> None:
    moment, left, right = row.moment, _TABLE + 14, WIDTH - 14
    record: Any = row.record
    pen.text(left, 52, f"“{moment.query}”", 15, most=right - left)
    facts = [
        row.stage,
        moment.qid,
        f"step {record.step}" if getattr(record, "step", 0) else "",
        row.chain.status,
    ]
    pen.text(left, 71, "   ".join(filter(None, facts)), 11.5, SOFT, right - left)
    wide = 224 if sheet is None else min(250.0, 140 * sheet.width / sheet.height)
    pen.box(left, 84, left + wide, 224, _SCREEN, 6)
    shown = [*filter(None, [row.chain.answer]), *moment.windows, *row.chain.steps]
    if sheet is None:
        for number, line in enumerate(textwrap.wrap(problem, 34)[:6]):
            pen.text(left + wide / 2, 110 + 16 * number, line, 11, "#d5dae0", wide - 12, "mm")
    else:
        pen.paste(_frame(sheet_picture(sheet), sheet, shown[0].start if shown else 0.0), left, 84, wide, 140)
    _earned(pen, record, left + wide + 18, right)
    top = 236
    time = Timeline(pen, left + _LABEL, right - _VALUE, moment.duration)
    time.film(top, sheet)
    first = top + FILM + 15 + (22 if moment.has_truth else 0)
    bottom = first - 11 + 22 * len(steps)
    for window in moment.windows:
        pen.box(time.at(window.start), top + FILM + 4, time.at(window.end), bottom, BAND)
    if moment.has_truth:
        pen.text(left, top + FILM + 15, "truth", 12, SOFT)
        time.spans(moment.windows, top + FILM + 15, 7, style.TRUTH)
        value = f"{moment.windows[0].start:.1f} to {moment.windows[0].end:.1f}" if len(moment.windows) == 1 else ""
        pen.text(time.end + 12, top + FILM + 15, value or f"{len(moment.windows)} windows", 11.5, SOFT)
    before: float | None = None
    for number, step in enumerate(steps):
        middle = first + 22 * number
        pen.text(left, middle, step.name, 12, SOFT)
        if step.span and (clipped := clip_span(step.span, moment.duration)):
            time.spans(clipped.parts, middle, 7, style.ANSWER if step.anchor is None else style.ANCHOR)
        pen.text(time.end + 12, middle, _said(step.span), 11.5, SOFT, 70)
        if not moment.has_truth:
            continue
        pen.text(right - 12, middle, f"{step.iou:.2f}", 11.5, anchor="rm")
        if before is not None and step.iou != before:
            better = step.iou > before
            pen.mark(right - 5, middle, better, style.BETTER if better else style.WORSE)
        before = step.iou
    time.axis(bottom)
    for number, line in enumerate(words):
        pen.text(left, bottom + 34 + 18 * number, line, 12, most=right - left)


def _said(span: Span | None) -> str:
    if span is None:
        return "none"
    return f"{span.start:.1f} to {span.end:.1f}" if len(span.parts) == 1 else f"{len(span.parts)} spans"


def _earned(pen: Canvas, record: Any, left: float, right: float) -> None:
    """What the chain was paid, term by term, where it was."""
    total = paid_total(record)
    if total is None:
        return
    pen.text(left, 92, f"Reward {total:.2f}", 13)
    terms = {term: float(getattr(record, f"reward_{term}")) for term in ("format", "answer", "anchors", "progress")}
    terms |= {term: said.value for term, said in getattr(record, "own", {}).items()}
    apart = min(24.0, 120 / len(terms))  # what follows begins where five end
    for number, (term, value) in enumerate(terms.items()):
        middle = 118 + apart * number
        pen.text(left, middle, term, 12, SOFT)
        pen.text(left + 98, middle, f"{value:.2f}", 12, anchor="rm")
        zero = left + 108 + (right - left - 108) / 2
        end = zero + max(-1.0, min(1.0, value)) * (right - left - 108) / 2
        pen.box(min(zero, end), middle - 5, max(zero, end), middle + 5, style.ANCHOR if value > 0 else style.WORSE)
        pen.box(zero - 0.5, middle - 8, zero + 0.5, middle + 8, SOFT)


def sheet_picture(sheet: Sheet) -> Any:
    """The frames of a sheet as one picture."""
    return Image.open(io.BytesIO(sheet.webp)).convert("RGB")


def _frame(picture: Any, sheet: Sheet, second: float) -> Any:
    """The frame of a sheet that the clip shows at a second."""
    number = min(max(int(second / sheet.step + 1e-4), 0), sheet.frames - 1)
    row, column = divmod(number, sheet.columns)
    x, y = column * sheet.width, row * sheet.height
    return picture.crop((x, y, x + sheet.width, y + sheet.height))
