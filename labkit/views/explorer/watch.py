"""Watch a query learn: the chains that one query got at each step of a training, as a widget; made by `watch`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.chain.spans import clip_span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.views.explorer import packing
from labkit.views.explorer.chain_columns import ChainColumns
from labkit.views.explorer.sprites import Sheet, SheetCache
from labkit.views.explorer.still import BAND, FILM, INK, LINE, MOST_STEPS, SOFT, WIDTH, Canvas, Timeline, plain_words
from labkit.views.explorer.widget import ChainExplorer, Context
from labkit.views.figures import style
from labkit.views.figures.style import count, in_stage_order
from labkit.views.measured_chains import MeasuredChain, Records
from labkit.views.report.sanitize import safe_text


class QueryWatch(ChainExplorer):
    """One query's chains by step of training, over its video; `selected`, `selection`, `find` and `update` as of an explorer."""

    page_name = "watch"

    def _counted(self) -> str:
        lines = learnt_lines(self._rows)
        steps = max(map(len, lines.values()), default=0)
        return f"{count(len(lines), 'query', 'queries')} at {count(steps, 'step')} of training"

    def __repr__(self) -> str:
        return f"QueryWatch({self._counted()})"

    def _first_to_show(self) -> int:
        """The last chain of the query that has learnt most."""
        lines = learnt_lines(self._rows).values()
        best = max(lines, key=self._gain, default=[-1])
        return best[-1]

    def line(self) -> list[MeasuredChain]:
        """The chains of the query that is shown, in the order of training."""
        with self._lock:
            if self.selected < 0:
                return []
            line = learnt_lines(self._rows)[self._rows[self.selected].moment.qid]
            return [self._rows[place] for place in line]

    def picture(self, shown: int | None = None) -> bytes:
        """The query that is shown as a PNG, as far as its `shown`-th chain: for a slide, or a picture that moves."""
        line = self.line()
        if not line:
            raise LabError("there is no chain to draw")
        return draw_watch(line, *self._sheet(packing.clip_of(line[0].moment)), shown)

    def _saved(self, first: int, found: Sequence[int] | None, most: int) -> list[int]:
        """What the page shows: whole lines, none of them without a step; of very many those that learnt most."""
        lines = list(learnt_lines(self._rows).values())
        own = self._rows.moment[first] if first >= 0 else -1

        def order(line: list[int]) -> tuple[bool, float]:
            return self._rows.moment[line[0]] != own, -self._gain(line)

        saved = {first} if first >= 0 else set()
        for number, line in enumerate(sorted(lines, key=order)):
            if not number or len(saved.union(line)) <= most:
                saved.update(line)
        return sorted(saved)

    def _left_out(self, found: Sequence[int] | None) -> dict[str, Any] | None:
        left = super()._left_out(found)
        every = len(learnt_lines(self._rows))
        here = len(set(self._rows.moment[self._places].tolist()))
        text = f"{here:,} of {every:,} queries are saved in this notebook, those that learnt most; watch(..., qid=...) shows any."
        return left and {**left, "text": text if here < every else ""}

    def _gain(self, line: Sequence[int]) -> float:
        gain = float(self._rows.iou[line[-1]] - self._rows.iou[line[0]])
        return -1.0 if math.isnan(gain) else gain  # a query without a truth

    def _poster(self) -> bytes | None:
        return self.picture() if self.selected >= 0 else None


def watch(
    rollouts: Records,
    moments: Sequence[Moment],
    *,
    qid: str = "",
    folder: str | Path | None = None,
) -> QueryWatch:
    """How the chains of a query change while a model trains: its video across, steps downwards, bars for anchors and answer.

    `rollouts` are those of probe queries (`lab.probes("grpo").read()`), or any others: of each stage and step a query's first
    sample is shown. Opened at the query `qid`, or at the one that has learnt most. `folder` keeps the clips' pictures between
    runs. Raises LabError when there is no chain, none of `qid`, or a chain's moment isn't there.
    """
    by_qid = {moment.qid: moment for moment in moments}
    widget = QueryWatch(rollouts, Context(by_qid), SheetCache(folder), len(by_qid), 0)
    if not len(widget):
        raise LabError("there is no chain to watch; give the rollouts of probe queries, as lab.probes('grpo').read()")
    if qid:
        if not (places := widget.find(qid=qid)):
            asked = ", ".join(sorted(widget.rows.names["moment"])[:4])
            raise LabError(f"qid '{qid}' was not asked in these rollouts; they ask {asked}, ...")
        widget.selected = places[-1]
    return widget


def learnt_lines(rows: ChainColumns) -> dict[str, list[int]]:
    """By qid the places of its chains as it learnt, by stage and step; of each step the first sample."""
    stages, qids = in_stage_order(rows.names["stage"]), rows.names["moment"]
    stage = np.array([stages.index(name) for name in rows.names["stage"]], dtype=int)[rows.stage]
    lines: dict[tuple[int, int, int], int] = {}
    for place in np.lexsort((rows.sample, rows.step, stage)).tolist():
        lines.setdefault((int(rows.moment[place]), int(stage[place]), int(rows.step[place])), place)
    found: dict[str, list[int]] = {}
    for (query, *_), place in lines.items():
        found.setdefault(qids[query], []).append(place)
    return found


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
    time = Timeline(pen, begin, end, moment.duration)
    pen.text(14, 26, f"“{moment.query}”", 17, most=WIDTH - 28)
    pen.text(14, 48, "its chain at each step of training", 12, SOFT, WIDTH - 28)
    _legend(pen, begin, 74, max((len(row.chain.anchors) for row in line), default=0))
    time.film(92, sheet, problem)
    for window in moment.windows:
        pen.box(time.at(window.start), 92 + FILM + 2, time.at(window.end), bottom, BAND)
    zero, one = end + 28, end + 98
    if moment.has_truth:
        pen.text(end + 16, 74, "IoU of the answer", 12, SOFT)
        pen.text(zero, bottom + 12, "0", 10.5, SOFT, anchor="mm")
        pen.text(one, bottom + 12, "1", 10.5, SOFT, anchor="mm")
        for share in (0.0, 0.5, 1.0):
            pen.box(zero + share * (one - zero) - 0.5, top, zero + share * (one - zero) + 0.5, bottom, LINE)
    y, middles = float(top), []
    for number in range(len(line)):
        for text, color in heads.get(number, ()):
            pen.box(begin, y + _HEAD / 2, WIDTH - 14, y + _HEAD / 2 + 1, LINE)
            pen.box(14, y + _HEAD / 2 - 4, 22, y + _HEAD / 2 + 4, color, 2)
            width = pen.text(28, y + _HEAD / 2, text, 12, SOFT)
            if 28 + width > begin:  # a line of words, before which the rule would stand
                pen.box(begin, y + _HEAD / 2 - 8, 32 + width, y + _HEAD / 2 + 9, "#ffffff")
                pen.text(28, y + _HEAD / 2, text, 12, SOFT)
            y += _HEAD
        middles.append(y + height / 2)
        y += height
    seen = list(zip(line[:shown], middles, strict=False))
    for number, (row, middle) in enumerate(seen):
        _row(time, row, middle, height, number == shown - 1)
    dots = [(zero + row.answer_iou * (one - zero), middle) for row, middle in seen if moment.has_truth]
    for number, dot in enumerate(dots):
        if number not in heads:
            pen.stroke(dots[number - 1], dot, "#f0bf80")
    for number, (x, middle) in enumerate(dots):
        pen.box(x - 3, middle - 3, x + 3, middle + 3, style.ANSWER, 3)
        ink, said = INK if number == shown - 1 else SOFT, f"{line[number].answer_iou:.2f}"
        pen.text(WIDTH - 14, middle, said, min(12, height - 2), ink, anchor="rm")
    time.axis(bottom)
    pen.box(14, bottom + 27, WIDTH - 14, bottom + 28, LINE)
    pen.text(14, bottom + 46, f"step {last.step}", 12)
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


def _row(time: Timeline, row: MeasuredChain, middle: float, height: int, last: bool) -> None:
    """One chain: the answer within its anchors, as they should lie within one another."""
    time.pen.text(14, middle, f"step {row.step}", min(11.5, height - 2), INK if last else SOFT)
    bars = [step for step in row.bars(MOST_STEPS) if step.span]
    if not bars:
        time.pen.text(time.at(0) + 6, middle, "no span was read", 11, SOFT)
    for step in bars:
        color, half = style.ANSWER, 2.5
        if step.anchor is not None:
            color, half = _SHADES[min(step.anchor, len(_SHADES) - 1)], max(3.0, 0.4 * height - 2 * step.anchor)
        if step.span and (clipped := clip_span(step.span, row.moment.duration)):
            time.spans(clipped.parts, middle, half, color, min(half, 4))
