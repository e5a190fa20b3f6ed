"""Records read for drawing: each chain parsed once, beside its moment and its IoUs.

Every figure of chains starts here, so that a picture and a score never read one text in two ways.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from labkit.chain.anchors import AnchorChain, ChainRecord, parse
from labkit.chain.metrics import many_chain_ious
from labkit.chain.spans import Span, iou
from labkit.chain.steps import narrows
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.readings import PredictedChain
from labkit.views.figures.style import in_stage_order

_UNCUT = 1e12
"""Seconds behind which nothing lies."""


class StagedRecord(ChainRecord, Protocol):
    """A record that says which stage it comes from: a Rollout does."""

    @property
    def stage(self) -> str: ...  # noqa: D102


Records: TypeAlias = Mapping[str, Sequence[ChainRecord]] | Sequence[StagedRecord]
"""Records by label (stage or run), or Rollouts, which are then grouped by their own stage."""


@dataclass(frozen=True, slots=True)
class MeasuredChain:
    """One chain as the figures see it; times in seconds from the clip's beginning."""

    record: ChainRecord
    moment: Moment
    chain: AnchorChain
    ious: list[float]
    """IoU of each anchor, then of the answer if there is one; the best window counts. NaN where the moment has no truth."""

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


def measure_chains(records: Iterable[ChainRecord], moments: Mapping[str, Moment]) -> list[MeasuredChain]:
    """Parse and measure each record against its moment.

    Raises LabError when a record's qid is not among the moments.
    """
    found: list[tuple[ChainRecord, Moment, AnchorChain]] = []
    for record in records:
        moment = moments.get(record.qid)
        if moment is None:
            raise LabError(
                f"a record has qid '{record.qid}', which is not among the {len(moments)} moments given; "
                "pass the moments file that the records were made from"
            )
        chain = (
            record.chain
            if isinstance(record, PredictedChain)
            else parse(record.text, finished=record.status != "cut_off", options=len(moment.options))
        )
        found.append((record, moment, chain))
    told = [each for each in found if each[1].has_truth]
    ious = iter(
        many_chain_ious(
            [chain for _, _, chain in told],
            [moment.targets for _, moment, _ in told],
            # Some programs don't cut spans to the video.
            [_UNCUT if getattr(record, "clips", True) is False else moment.duration for record, moment, _ in told],
        )
    )
    return [
        MeasuredChain(*each, next(ious) if each[1].has_truth else [math.nan] * len(each[2].steps)) for each in found
    ]


def measure_groups(records: Records, moments: Mapping[str, Moment]) -> dict[str, list[MeasuredChain]]:
    """Readings by label, in the order of the stages; labels without records are left out."""
    groups: dict[str, Sequence[ChainRecord]] = {}
    if isinstance(records, Mapping):
        groups = dict(records)
    else:
        staged: dict[str, list[StagedRecord]] = {}
        for record in records:
            staged.setdefault(record.stage, []).append(record)
        groups = dict(staged)
    return {label: measure_chains(groups[label], moments) for label in in_stage_order(groups) if groups[label]}


def step_names(anchors: int) -> list[str]:
    """Names of a chain's steps.

    >>> step_names(2)
    ['anchor 1', 'anchor 2', 'answer']
    """
    return [f"anchor {k}" for k in range(1, anchors + 1)] + ["answer"]
