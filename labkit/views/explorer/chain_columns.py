"""All chains of an explorer, however many: what they are chosen, found and sorted by as columns, a hundred bytes a chain.

Texts and the rest stay where they are: in the records that were handed in, or in a file where they come from a store. A chain is
read and measured anew when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain, ChainRecord
from labkit.chain.spans import Span
from labkit.chain.steps import LEAST_GAIN, narrows
from labkit.data.moments import Moment
from labkit.stages.rollout_spool import RolloutSpool
from labkit.stages.rollouts import ROWS, RolloutStore
from labkit.views.figures.failures import failure_kind
from labkit.views.measured_chains import MeasuredChain, Records, by_stage, measure_pairs

Kind: TypeAlias = Callable[[AnchorChain, Sequence[Span], float], str]
"""Names what is wrong with a chain, given the windows and the duration; "" for nothing."""
Column: TypeAlias = "NDArray[Any]"
EPSILON = 1e-6
_MOST_STEPS = 12
"""Steps that a page looks at for the best one of a chain, as MOST_STEPS in js/chains.js."""


class _Row(NamedTuple):
    """What is measured of a rollout in a store."""

    qid: str
    text: str
    status: str
    stage: str
    run: str
    step: int
    sample: int


class ChainColumns(Sequence[MeasuredChain]):
    """The chains in their places, each made when it is asked for, and a column of each value that all are compared by.

    `stage`, `run`, `status`, `kind` and `moment` are numbers, of `names` and `moments` in the order in which they came.
    """

    stage: Column
    run: Column
    status: Column
    kind: Column
    moment: Column
    step: Column
    sample: Column
    anchors: Column
    """How many it has."""
    iou: Column
    """Of its answer."""
    best: Column
    """Of all its steps."""
    falls_back: Column
    """Whether a step loses."""
    loses: Column
    """Whether the answer does, against the best of the steps that a page looks at."""
    gain: Column
    """IoU from the first step on, and 1, where it narrows at every step; else its answer's, and -1 without a truth."""

    def __init__(
        self,
        records: Records | RolloutStore,
        moments: Mapping[str, Moment],
        kind: Kind | None = None,
        base: Sequence[tuple[str, ChainRecord]] = (),
    ) -> None:
        """Measure all, those of the `base` model behind the others. Raises LabError as `measure_chains` does."""
        self._by_qid, self._kind = moments, kind
        self._spool, self._listed = RolloutSpool(), list[ChainRecord]()
        self._codes: dict[str, dict[str, int]] = {name: {} for name in ("stage", "run", "status", "kind", "moment")}
        parts = [self._columns(measure_pairs(pairs, moments)) for pairs in self._read(records, base)]
        for name in list(parts[0]):
            setattr(self, name, np.concatenate([part.pop(name) for part in parts]))
        self.names = {name: list(codes) for name, codes in self._codes.items()}
        self.moments = [moments[qid] for qid in self.names["moment"]]

    def _read(
        self, records: Records | RolloutStore, base: Sequence[tuple[str, ChainRecord]]
    ) -> Iterator[list[tuple[str, Any]]]:
        """Some thousand at a time, each behind its stage; at least one part, if of nothing."""
        if isinstance(records, RolloutStore):
            for table in records.tables():
                self._spool.append(table)
                columns = (table[name].to_pylist() for name in _Row._fields)
                yield [(row.stage, row) for row in map(_Row, *columns)]
            records = []
        listed = chain(by_stage(records), base)
        while True:
            pairs = list(islice(listed, ROWS))
            self._listed += [record for _, record in pairs]
            yield pairs
            if not pairs:
                return

    def _columns(self, rows: Sequence[MeasuredChain]) -> dict[str, Column]:
        def coded(name: str, values: Iterable[str]) -> Column:
            codes = self._codes[name]
            return np.array([codes.setdefault(value, len(codes)) for value in values], dtype=np.int32)

        sizes = [len(row.ious) for row in rows]
        ious = np.fromiter(chain.from_iterable(row.ious for row in rows), dtype=np.float64, count=sum(sizes))
        row_of = np.repeat(np.arange(len(rows)), sizes)
        iou = np.array([row.answer_iou for row in rows])
        best, early = np.zeros(len(rows)), np.zeros(len(rows))
        first = np.arange(len(ious)) - np.repeat(np.cumsum(sizes) - sizes, sizes) < _MOST_STEPS
        with np.errstate(invalid="ignore"):  # NaN where there is no truth
            np.maximum.at(best, row_of, ious)
            np.maximum.at(early, row_of[first], ious[first])
        same = row_of[:-1] == row_of[1:]
        step_of, gained = row_of[1:][same], np.diff(ious)[same]
        # What narrows at every step is what rises at every step, by enough.
        gain = np.where([row.moment.has_truth for row in rows], iou, -1.0)
        rises = np.bincount(step_of[gained <= 0], minlength=len(rows)) == 0
        for place in np.flatnonzero(rises & (np.array(sizes) >= 3)).tolist():
            steps = rows[place].ious
            if rows[place].chain.answer is not None and narrows(steps):
                gain[place] = iou[place] - steps[0] + 1
        return {
            "stage": coded("stage", (row.stage for row in rows)),
            "run": coded("run", (row.run for row in rows)),
            "status": coded("status", (row.chain.status for row in rows)),
            "kind": coded("kind", (kind_of(self._kind, row) for row in rows)),
            "moment": coded("moment", (row.moment.qid for row in rows)),
            "step": np.array([row.step for row in rows], dtype=np.int64),
            "sample": np.array([row.sample for row in rows], dtype=np.int64),
            "anchors": np.array([len(row.chain.anchors) for row in rows], dtype=np.int32),
            "iou": iou,
            "best": best,
            "gain": gain,
            "falls_back": np.bincount(step_of[gained <= EPSILON - LEAST_GAIN], minlength=len(rows)) > 0,
            "loses": early - iou > EPSILON,
        }

    def __len__(self) -> int:
        return len(self.stage)

    def __getitem__(self, place: Any) -> Any:
        places = range(len(self))[place]
        return self.take(places) if isinstance(places, range) else self.take([places])[0]

    def __iter__(self) -> Iterator[MeasuredChain]:
        for begin in range(0, len(self), ROWS):
            yield from self[begin : begin + ROWS]

    def take(self, places: Sequence[int]) -> list[MeasuredChain]:
        """The chains at these places, which are in order."""
        stages = [self.names["stage"][code] for code in self.stage[list(places)].tolist()]
        return measure_pairs(list(zip(stages, self.records(places), strict=True)), self._by_qid)

    def records(self, places: Iterable[int]) -> Iterator[Any]:
        """Their records as they were handed in, or written."""
        stored, listed = self._parted(places)
        return chain(self._spool.take(stored), listed)

    def texts(self, places: Iterable[int]) -> Iterator[str]:
        """The texts of the chains at these places."""
        stored, listed = self._parted(places)
        return chain(self._spool.texts(stored), (record.text for record in listed))

    def _parted(self, places: Iterable[int]) -> tuple[list[int], list[ChainRecord]]:
        """Places in the file, and the records that are not in it, which stand behind the others."""
        places, stored = list(places), len(self._spool)
        return [each for each in places if each < stored], [
            self._listed[each - stored] for each in places if each >= stored
        ]

    def where(self, name: str, value: str) -> Column:
        """Whether the `name` of each chain is `value`."""
        return getattr(self, name) == self._codes[name].get(value, -1)

    def base_ious(self, reference: str = "base") -> dict[str, float]:
        """The mean answer IoU by qid of the base model, or of another one that is the `reference` for the others."""
        found: dict[str, list[float]] = {}
        for place in np.flatnonzero(self.where("stage", reference) & ~np.isnan(self.iou)).tolist():
            found.setdefault(self.names["moment"][self.moment[place]], []).append(float(self.iou[place]))
        return {qid: math.fsum(ious) / len(ious) for qid, ious in found.items()}

    def iou_loss(self, base: Mapping[str, float]) -> Column:
        """IoU that each answer lost against the base model, or where there is none, since the chain's best step."""
        before = np.array([base.get(qid, math.nan) for qid in self.names["moment"]])[self.moment]
        return np.where(np.isnan(before) | self.where("stage", "base"), self.best, before) - self.iou

    def first_to_show(self) -> int:
        """The chain to open with: of those that narrow at every step, the one that gains most; -1 when there is none.

        Among chains without a truth that is the first.
        """
        return int(self.gain.argmax()) if len(self) else -1

    def most_disputed(self) -> int:
        """The chain to open with where several models are compared: the best on the query on which they are furthest apart."""
        if not len(self):
            return -1
        ious = np.nan_to_num(self.iou)
        most, least = np.full(len(self.moments), -math.inf), np.full(len(self.moments), math.inf)
        np.maximum.at(most, self.moment, ious)
        np.minimum.at(least, self.moment, ious)
        query = int((most - least).argmax())
        return int(np.flatnonzero((self.moment == query) & (ious == most[query]))[0])


def kind_of(kind: Kind | None, measured: MeasuredChain) -> str:
    """A chain's class of failure, by the user's own `kind` where there is one and the truth is known."""
    if kind is None or not measured.moment.has_truth:
        return failure_kind(measured)
    return kind(measured.chain, measured.moment.targets, measured.moment.duration)
