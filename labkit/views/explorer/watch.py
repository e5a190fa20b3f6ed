"""Watch a query learn: the chains that one query got at each step of a training, as a widget; made by `watch`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.views.explorer import packing
from labkit.views.explorer.sprites import SheetCache
from labkit.views.explorer.watch_still import draw_watch
from labkit.views.explorer.widget import ChainExplorer, Context
from labkit.views.figures.failures import failure_kind
from labkit.views.figures.style import count, in_stage_order
from labkit.views.measured_chains import MeasuredChain, Records


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
        best = max(lines, key=lambda line: _gain([self._rows[place] for place in line]), default=[-1])
        return best[-1]

    def line(self) -> list[MeasuredChain]:
        """The chains of the query that is shown, in the order of training."""
        with self._lock:
            if self.selected < 0:
                return []
            qid = self._rows[self.selected].moment.qid
            return [self._rows[place] for place in learnt_lines(self._rows)[qid]]

    def picture(self, shown: int | None = None) -> bytes:
        """The query that is shown as a PNG, as far as its `shown`-th chain: for a slide, or a picture that moves."""
        line = self.line()
        if not line:
            raise LabError("there is no chain to draw")
        return draw_watch(line, *self._sheet_or_problem(packing.clip_of(line[0].moment)), shown)

    def _saved(self, first: int, found: Sequence[int] | None, most: int) -> list[int]:
        """What the page shows: whole lines, none of them without a step; of very many those that learnt most."""
        lines = list(learnt_lines(self._rows).values())
        own = self._rows[first].moment.qid if first >= 0 else ""

        def order(line: list[int]) -> tuple[bool, float]:
            rows = [self._rows[place] for place in line]
            return rows[0].moment.qid != own, -_gain(rows)

        saved = {first} if first >= 0 else set()
        for number, line in enumerate(sorted(lines, key=order)):
            if not number or len(saved.union(line)) <= most:
                saved.update(line)
        return sorted(saved)

    def _left_out(self, found: Sequence[int] | None) -> dict[str, Any] | None:
        left = super()._left_out(found)
        every = len(learnt_lines(self._rows))
        here = len({self._rows[place].moment.qid for place in self._places})
        text = f"{here:,} of {every:,} queries are saved in this notebook, those that learnt most; watch(..., qid=...) shows any."
        return left and {**left, "text": text if here < every else ""}

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
    widget = QueryWatch(
        rollouts, Context(by_qid, [], None, failure_kind, frozenset(), []), SheetCache(folder), len(by_qid), 0
    )
    if not len(widget):
        raise LabError("there is no chain to watch; give the rollouts of probe queries, as lab.probes('grpo').read()")
    if qid:
        if not (places := widget.find(qid=qid)):
            asked = ", ".join(sorted({row.moment.qid for row in widget._rows})[:4])
            raise LabError(f"qid '{qid}' was not asked in these rollouts; they ask {asked}, ...")
        widget.selected = places[-1]
    return widget


def learnt_lines(rows: Sequence[MeasuredChain]) -> dict[str, list[int]]:
    """By qid the places of its chains as it learnt, by stage and step; of each step the first sample."""
    stages = in_stage_order(row.stage for row in rows)

    def key(place: int) -> tuple[int, int, int]:
        record = rows[place].record
        return stages.index(rows[place].stage), getattr(record, "step", 0), getattr(record, "sample", 0)

    lines: dict[str, list[int]] = {}
    seen = set()
    for place in sorted(range(len(rows)), key=key):
        qid = rows[place].moment.qid
        if (at := (qid, *key(place)[:2])) not in seen:
            seen.add(at)
            lines.setdefault(qid, []).append(place)
    return lines


def _gain(line: Sequence[MeasuredChain]) -> float:
    gain = line[-1].answer_iou - line[0].answer_iou
    return -1.0 if math.isnan(gain) else gain  # a query without a truth
