"""Each question's own value of every figure, in the moments' order; a figure is the mean of its column.

What has no prediction, or none that can be read, counts 0; NaN says that a figure doesn't apply to the moment.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain
from labkit.chain.metrics import Reaches
from labkit.chain.question_answering import GROUNDED, answer_iop
from labkit.chain.span_sets import THRESHOLDS, set_figures
from labkit.chain.spans import Span, SpanSet, best_value, clip_span, union
from labkit.data.moments import Moment
from labkit.scoring.answers import PredictedRow
from labkit.scoring.average_precision import AP_THRESHOLDS, LENGTH_CLASSES, average_precisions, class_precisions
from labkit.scoring.baselines import are_sets, padded_windows, window_ious
from labkit.scoring.predictions import Predictions
from labkit.scoring.reading_rules import ReadingRule
from labkit.scoring.readings import ReadAnswer

Floats = NDArray[np.float64]

SCORE_THRESHOLDS = (*THRESHOLDS, 0.9)
"""The IoUs at which R1 is scored."""


def question_figures(
    readings: Sequence[ReadAnswer], answers: Predictions, moments: Sequence[Moment], rule: ReadingRule
) -> dict[str, Floats]:
    """The columns that these predictions and moments have, by the figure's name.

    Where a moment has several windows those of sets come along: set_miou and those of `labkit.chain.span_sets.set_figures`, of all
    windows of a question. `miou` and R1 are by what the moments ask for, the best window or all as a set; where that is a set,
    best_miou is by the best window.
    """
    columns = _recalls(_ious(readings, moments, [moment.targets for moment in moments], rule.clips), rule.reaches)
    if any(len(moment.windows) > 1 for moment in moments):
        if any(moment.as_set for moment in moments):
            columns["best_miou"] = _ious(readings, moments, [moment.windows for moment in moments], rule.clips)
        columns |= _of_sets(readings, moments, rule.clips)
    if answers.ranked:
        return columns | _precisions(answers, moments)
    if rule.name == "labkit":
        return columns | _answering([reading.chain for reading in readings], moments)
    return columns


def _ious(
    readings: Sequence[ReadAnswer], moments: Sequence[Moment], truths: Sequence[Sequence[Span]], clips: bool
) -> Floats:
    """IoU with the best truth, 0 for nothing; as `labkit.scoring.reading_rules.rule_iou`, for all at once."""
    gold = padded_windows(truths, len(moments))
    pairs = np.array([reading.pair or (np.nan, np.nan) for reading in readings], dtype=np.float64)
    pairs[pairs[:, 0] >= pairs[:, 1]] = np.nan
    if clips:
        pairs = np.clip(pairs, 0.0, np.array([moment.duration for moment in moments])[:, None])
    ious = np.nan_to_num(window_ious(pairs[:, None, :], gold, are_sets(truths))[:, 0])
    for row, (reading, moment, truth) in enumerate(zip(readings, moments, truths, strict=True)):
        if type(answer := reading.answer) is SpanSet:
            cut = clip_span(answer, moment.duration) if clips else answer
            ious[row] = 0.0 if cut is None else best_value(cut, truth)
    return ious


def _of_sets(readings: Sequence[ReadAnswer], moments: Sequence[Moment], clips: bool) -> dict[str, Floats]:
    truths = [(union(moment.windows),) for moment in moments]
    answers = [reading.answer for reading in readings]
    if clips:
        answers = [each and clip_span(each, moment.duration) for each, moment in zip(answers, moments, strict=True)]
    rows = [set_figures(answer, truth) for answer, truth in zip(answers, truths, strict=True)]
    names = {"set_miou": _ious(readings, moments, truths, clips)}
    return names | {name: np.array([row[name] for row in rows]) for name in rows[0]}


def _recalls(ious: Floats, reaches: Reaches) -> dict[str, Floats]:
    hits = {f"r1@{m}": (ious >= m if reaches == ">=" else ious > m).astype(np.float64) for m in SCORE_THRESHOLDS}
    return {"miou": ious} | hits


def _precisions(answers: Predictions, moments: Sequence[Moment]) -> dict[str, Floats]:
    rows = [answers.rows.get(moment.qid, PredictedRow(windows=())) for moment in moments]
    ranked, scores = [row.windows or () for row in rows], [row.scores for row in rows]
    truth = [moment.windows for moment in moments]
    precisions = average_precisions(ranked, truth, scores)
    classes = {f"map_{name}": class_precisions(ranked, truth, scores, name) for name in LENGTH_CLASSES}
    at = {f"map@{m}": column for m, column in zip(AP_THRESHOLDS, precisions.T, strict=True)}
    present = {name: column for name, column in classes.items() if not np.isnan(column).all()}
    return {"map": precisions.mean(1)} | present | at


def _answering(chains: Sequence[AnchorChain | None], moments: Sequence[Moment]) -> dict[str, Floats]:
    """The figures of `labkit.chain.question_answering`, question by question; NaN where a moment has no options."""
    if all(moment.choice is None for moment in moments):
        return {}
    right, shown = np.full((2, len(moments)), np.nan)
    for row, (chain, moment) in enumerate(zip(chains, moments, strict=True)):
        if moment.choice is not None:
            right[row] = chain is not None and chain.option == moment.choice
            shown[row] = 0.0 if chain is None else answer_iop(chain, moment.windows)
    asked = np.where(np.isnan(right), np.nan, 1.0)
    grounded = asked * (shown >= GROUNDED)
    return {
        "acc_qa": right,
        "acc_gqa": right * grounded,
        "miop": shown,
        "iop@0.3": asked * (shown >= 0.3),
        "iop@0.5": grounded,
    }
