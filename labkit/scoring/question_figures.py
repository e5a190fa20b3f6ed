"""Each question's own value of every figure, in the moments' order; a figure is the mean of its column.

What has no prediction, or none that can be read, counts 0; NaN says that a figure doesn't apply to the moment. Of ranked windows,
mean average precision is as QVHighlights' own evaluator defines it: each predicted window, in the order of its score, takes the free
truth window that it agrees with best, if their IoU reaches the threshold; precision over the ranks is then made monotone and
averaged over the truth windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain
from labkit.chain.metrics import Reaches
from labkit.chain.question_answering import GROUNDED, answer_iop
from labkit.chain.span_sets import THRESHOLDS, set_figures
from labkit.chain.spans import Span, SpanSet, best_value, clip_span, iou_array, union
from labkit.data.moments import Moment
from labkit.scoring.answers import PredictedRow
from labkit.scoring.baselines import are_sets, padded_windows, window_ious
from labkit.scoring.predictions import Predictions
from labkit.scoring.reading_rules import Pair, ReadingRule
from labkit.scoring.readings import ReadAnswer

AP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""0.5, 0.55, ... 0.95; each is reached with `>=`. Source: QVHighlights."""
LENGTH_CLASSES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}
"""Truth windows by their length in seconds, above the first and up to the second number. Source: QVHighlights, whose long
ones end at the 150 s of its clips."""
MOST_WINDOWS = 10
"""Windows of a query that count: the first ones in the file, before they are ordered by score. Source: QVHighlights."""


def average_precisions(
    ranked: Sequence[Sequence[Pair]],
    windows: Sequence[Sequence[Span]],
    scores: Sequence[Sequence[float] | None] | None = None,
) -> Floats:
    """Average precision of each query at each of AP_THRESHOLDS, (N, 10); mAP is the mean of all.

    `ranked` holds each query's predicted [start, end], best first; where `scores` has numbers for a query they order its
    windows, equal ones in the file's order. Predictions aren't cut to the video, and a window that is no span (start >= end)
    meets nothing but takes its rank. A query with more truth windows than MOST_WINDOWS can't reach 1; one without
    predictions has 0, where QVHighlights' program leaves it out.
    Raises: ValueError unless there is one row for each query, each with a truth window, and a score for each window.
    Source: QVHighlights' standalone evaluator.

    >>> truth = [[Span(0, 10), Span(20, 30)]]
    >>> average_precisions([[(0, 10), (50, 60), (20, 30)]], truth).mean().round(4).item()
    0.8333
    """
    if len(ranked) != len(windows):
        raise ValueError(f"{len(ranked)} rows of predictions for {len(windows)} lists of windows: one each")
    gold = padded_windows(windows, len(windows))
    pred = _padded([_ordered(row, None if scores is None else scores[n]) for n, row in enumerate(ranked)])
    found = _matches(pred, gold)
    ranks = np.arange(1, pred.shape[1] + 1)
    precision = np.cumsum(found, axis=2) / ranks
    # At each rank the best precision from there on: the interpolation of Pascal VOC.
    envelope = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    truths = (~np.isnan(gold[..., 0])).sum(1)
    return np.asarray((found * envelope).sum(2) / truths[:, None])


def class_precisions(
    ranked: Sequence[Sequence[Pair]],
    windows: Sequence[Sequence[Span]],
    scores: Sequence[Sequence[float] | None],
    name: str,
) -> Floats:
    """Mean average precision of each query, only its truth windows of one of LENGTH_CLASSES counting, (N,).

    NaN for a query that has none of that length. All predictions stay, as in QVHighlights' evaluator.

    >>> truth = [[Span(0, 5), Span(20, 60)], [Span(0, 20)]]
    >>> class_precisions([[(0, 5), (20, 60)], []], truth, [None, None], "long").tolist()
    [0.5, nan]
    """
    low, high = LENGTH_CLASSES[name]
    kept = [[window for window in row if low < window.length <= high] for row in windows]
    found = np.full(len(windows), np.nan)
    rows = [n for n, row in enumerate(kept) if row]
    if rows:
        precisions = average_precisions([ranked[n] for n in rows], [kept[n] for n in rows], [scores[n] for n in rows])
        found[rows] = precisions.mean(1)
    return found


def _matches(pred: Floats, gold: Floats) -> NDArray[np.bool_]:
    """Whether each predicted window finds a truth of its own at each threshold, (N, 10, P)."""
    thresholds = np.array(AP_THRESHOLDS)[:, None]
    free = np.ones((len(pred), len(thresholds), gold.shape[1]), dtype=bool)
    found = np.zeros((len(pred), len(thresholds), pred.shape[1]), dtype=bool)
    places = np.arange(gold.shape[1])
    for rank in range(pred.shape[1]):
        # NaN of a window that isn't there compares as false, so that it is never taken.
        ious = iou_array(pred[:, rank, None, :], gold)[:, None, :]
        values = np.where(free & (ious >= thresholds), ious, -1.0)
        # Of equal ones the last is taken; QVHighlights' program leaves that to how numpy sorts on the machine.
        best = gold.shape[1] - 1 - values[..., ::-1].argmax(2)
        hit = np.take_along_axis(values, best[..., None], axis=2)[..., 0] > 0
        found[..., rank] = hit
        free &= ~(hit[..., None] & (places == best[..., None]))
    return found


def _ordered(row: Sequence[Pair], scores: Sequence[float] | None) -> list[Pair]:
    if scores is None:
        return list(row[:MOST_WINDOWS])
    if len(scores) != len(row):
        raise ValueError(f"{len(scores)} scores for {len(row)} windows: give one each")
    order = sorted(range(min(len(row), MOST_WINDOWS)), key=lambda place: -scores[place])
    return [row[place] for place in order]


def _padded(rows: Sequence[Sequence[Pair]]) -> Floats:
    most = max(1, max(map(len, rows)))
    nothing = [(np.nan, np.nan)] * most
    return np.array([[*row, *nothing[len(row) :]] for row in rows], dtype=np.float64)


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
    """IoU with the best truth, 0 for nothing, a miss and a reversed pair."""
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
