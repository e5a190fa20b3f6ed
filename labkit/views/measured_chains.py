"""Records read for drawing: each chain parsed once, beside its moment and its IoUs.

Every figure and every page of chains starts here, so that a picture and a score never read one text in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from labkit.chain.anchors import AnchorChain, ChainRecord, parse
from labkit.chain.metrics import many_chain_ious
from labkit.chain.spans import Span, iou
from labkit.chain.steps import narrows
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.predictions import Answers
from labkit.scoring.readings import PredictedChain, are_predictions, predicted_chains
from labkit.scoring.score_table import labelled
from labkit.stages.rollouts import LATER, NAMES, Rollout
from labkit.views.figures.style import in_stage_order

if TYPE_CHECKING:
    import pandas

_UNCUT = 1e12
"""Seconds behind which nothing lies."""
Records: TypeAlias = "Mapping[str, Sequence[ChainRecord]] | Sequence[ChainRecord] | pandas.DataFrame"
"""Records by label (stage or run), records that say their own stage as Rollouts do, or a table of `RolloutStore.frame()`."""


class PlainRecord(NamedTuple):
    """A chain of a table that doesn't hold whole rollouts: a prediction."""

    qid: str
    text: str
    status: str = ""


class StepBar(NamedTuple):
    """A step as it is drawn; `anchor` is its place among the anchors, None for the answer, whose span is None when none was read."""

    name: str
    span: Span | None
    iou: float
    anchor: int | None


@dataclass(frozen=True, slots=True)
class MeasuredChain:
    """One chain as figures and pages see it; times in seconds from the clip's beginning."""

    record: ChainRecord
    moment: Moment
    chain: AnchorChain
    ious: list[float]
    """IoU of each anchor, then of the answer if there is one; the best window counts. NaN where the moment has no truth."""
    stage: str = ""
    """What the chain is shown under: a stage, or the label that its records came with."""

    @property
    def run(self) -> str:
        """The run that sampled it; "" where the record doesn't say."""
        return str(getattr(self.record, "run", ""))

    @property
    def step(self) -> int:
        """The step of training that sampled it, else 0."""
        return int(getattr(self.record, "step", 0))

    @property
    def sample(self) -> int:
        """Its place among the samples of one prompt."""
        return int(getattr(self.record, "sample", 0))

    @property
    def answer_iou(self) -> float:
        """IoU of the answer, 0 when none was read; NaN where the moment has no truth."""
        if not self.moment.has_truth:
            return math.nan
        return self.ious[-1] if self.chain.answer is not None else 0.0

    @property
    def anchor_ious(self) -> list[float]:
        """IoU of each anchor."""
        return self.ious[: len(self.chain.anchors)]

    def bars(self, most: int) -> list[StepBar]:
        """Its first `most` anchors, then its answer."""
        anchors = zip(self.chain.anchors[:most], self.anchor_ious, strict=False)
        bars = [StepBar(f"anchor {k + 1}", anchor.span, iou, k) for k, (anchor, iou) in enumerate(anchors)]
        return [*bars, StepBar("answer", self.chain.answer, self.answer_iou, None)]

    @property
    def window(self) -> Span:
        """What the chain is measured against: the set of windows, or the best for its answer, else for its last anchor."""
        if not self.moment.has_truth:
            raise LabError(f"moment {self.moment.qid!r} has no window: this figure is of chains that can be measured")
        steps = self.chain.steps
        if not steps:
            return self.moment.targets[0]
        return max(self.moment.targets, key=lambda window: iou(steps[-1], window))

    @property
    def strict(self) -> bool:
        """Two anchors or more that narrow from each to the next, as `labkit.chain.steps` says."""
        return len(self.chain.anchors) >= 2 and narrows(self.anchor_ious)


def with_predictions(
    records: Records | Answers, moments: Sequence[Moment], rules: str | None = None
) -> tuple[Records, str]:
    """Records with predictions in the place of what `labkit.score` takes, and what to say where little was read of it.

    With `rules` all records are read as predictions, by stage or not. Several files are told apart by their names.
    """
    if isinstance(records, list | tuple) and (files := [each for each in records if isinstance(each, str | Path)]):
        records = labelled(files)
    if are_predictions(records):
        return predicted_chains(records, moments, rules)
    if isinstance(records, Mapping):
        found: dict[str, Any] = dict(records)
        notes = dict.fromkeys([""])
        for stage, each in found.items():
            if rules is not None or are_predictions(each):
                found[stage], note = predicted_chains(each, moments, rules)
                notes[note] = None
        return found, " ".join(filter(None, notes))
    if rules is None:
        return records, ""
    return predicted_chains([record for _, record in by_stage(records)], moments, rules)


def measure_chains(records: Records, moments: Mapping[str, Moment]) -> list[MeasuredChain]:
    """Parse and measure each record against its moment, in the order in which they came.

    A table of predictions needs `qid` and `text`; `status` and `stage` are used when they are there. Raises LabError for a table
    without them, and when a record's qid is not among the moments.
    """
    return measure_pairs(by_stage(records), moments)


def measure_pairs(pairs: Iterable[tuple[str, ChainRecord]], moments: Mapping[str, Moment]) -> list[MeasuredChain]:
    """The same of records behind their stages or labels."""
    found: list[tuple[ChainRecord, Moment, AnchorChain, str]] = []
    for stage, record in pairs:
        moment = moments.get(record.qid)
        if moment is None:
            raise LabError(
                f"a record has qid '{record.qid}', which is not among the {len(moments)} moments given; "
                "pass the moments file that the records were made from"
            )
        if isinstance(record, PredictedChain):
            chain = record.chain
        else:
            chain = parse(record.text, finished=record.status != "cut_off", options=len(moment.options))
        found.append((record, moment, chain, stage))
    told = [(record, moment, chain) for record, moment, chain, _ in found if moment.has_truth]
    ious = iter(
        many_chain_ious(
            [chain for _, _, chain in told],
            [moment.targets for _, moment, _ in told],
            # Some programs don't cut spans to the video.
            [_UNCUT if getattr(record, "clips", True) is False else moment.duration for record, moment, _ in told],
        )
    )
    return [
        MeasuredChain(
            record, moment, chain, next(ious) if moment.has_truth else [math.nan] * len(chain.steps), stage=stage
        )
        for record, moment, chain, stage in found
    ]


def measure_groups(records: Records, moments: Mapping[str, Moment]) -> dict[str, list[MeasuredChain]]:
    """Measured chains by label, in the order of the stages; labels without records are left out."""
    groups: dict[str, list[MeasuredChain]] = {}
    for measured in measure_chains(records, moments):
        groups.setdefault(measured.stage, []).append(measured)
    return {label: groups[label] for label in in_stage_order(groups)}


def by_stage(records: Records) -> list[tuple[str, ChainRecord]]:
    """Each record behind its stage or label, in the order in which they came."""
    if isinstance(records, Mapping):
        return [(stage, record) for stage, each in records.items() for record in each]
    if hasattr(records, "columns"):
        return _of_table(records)
    return [(str(getattr(record, "stage", "")), record) for record in records]


def _of_table(table: pandas.DataFrame) -> list[tuple[str, ChainRecord]]:
    names = list(table.columns)
    if not {"qid", "text"} <= set(names):
        raise LabError(f"a table of chains needs the columns qid and text; this one has {', '.join(map(str, names))}")
    columns = {name: table[name].tolist() for name in names}
    stages = columns.get("stage", [""] * len(table))
    if set(NAMES) - set(LATER) <= set(names):
        known = [name for name in NAMES if name in names]
        values = zip(*(columns[name] for name in known), strict=True)
        rollouts = (Rollout(**dict(zip(known, row, strict=True))) for row in values)
        return [(rollout.stage, rollout) for rollout in rollouts]
    statuses = columns.get("status", [""] * len(table))
    rows = zip(columns["qid"], columns["text"], statuses, strict=True)
    return [(str(stage), PlainRecord(*map(str, row))) for stage, row in zip(stages, rows, strict=True)]
