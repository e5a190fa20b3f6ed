"""Marks: what each question's prediction is worth, figure by figure.

A column of marks holds one value for each moment, in the moments' order; a figure is the mean of its column. What has no
prediction, or none that can be read, is marked 0; NaN says that a figure doesn't apply to the moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import THRESHOLDS, Reaches
from labkit.chain.question_answering import GROUNDED, answer_iop
from labkit.chain.spans import iou_array
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.average_precision import AP_THRESHOLDS, LENGTH_CLASSES, average_precisions, class_precisions
from labkit.scoring.baselines import padded_windows
from labkit.scoring.predictions import Answers, PredictedRow, Predictions, as_predictions
from labkit.scoring.reading_rules import RULES, Pair, ReadingRule

Floats = NDArray[np.float64]

SCORE_THRESHOLDS = (*THRESHOLDS, 0.9)
"""The IoUs at which R1 is scored."""
LITTLE_READ = 0.9
"""Below this share of predictions read, a card says which rule reads more."""
_EXAMPLES = 3


def asked(predictions: Answers, moments: Sequence[Moment]) -> Predictions:
    """Predictions whose questions are among these moments' qids.

    Raises: LabError that shows both kinds of qids where there are predictions and none is on any of the moments.
    """
    answers = as_predictions(predictions).on(moments)
    known = {moment.qid for moment in moments}
    if answers.rows and known.isdisjoint(answers.rows):
        theirs, ours = (
            ", ".join(repr(qid) for qid in islice(qids, _EXAMPLES))
            for qids in (answers.rows, (moment.qid for moment in moments))
        )
        raise LabError(
            f"none of the {len(answers.rows):,} predictions{f' of {answers.file}' if answers.file else ''} is on any of the "
            f"{len(known):,} moments: predictions are on {theirs}, moments are called {ours}; give the moments that were asked, "
            "or write the moments' own qids into the predictions"
        )
    return answers


def reads_more(readings: Sequence[Reading], answers: Predictions, moments: Sequence[Moment], rule: ReadingRule) -> str:
    """Which rule reads more of these predictions, in words, where this one reads little; "" where it reads enough."""
    given = [reading for reading in readings if reading.status]
    read = sum(_usable(reading) for reading in given)
    if not given or read >= LITTLE_READ * len(given):
        return ""
    if answers.ranked:
        turned = sum(reading.status == "start not before end" for reading in given)
        return "most windows start behind their end; are start and end exchanged?" if 2 * turned > len(given) else ""
    counts = {other.name: sum(map(_usable, read_all(answers, moments, other))) for other in RULES.values()}
    best = max(counts, key=counts.__getitem__)
    if counts[best] <= read:
        return "no other rule reads more of them"
    return (
        f"rules {best!r} find a span in {100 * counts[best] / len(given):.0f} % of them; what they take for an answer shows "
        "with rules 'all'"
    )


class Reading(NamedTuple):
    """What a rule made of one prediction; `status` is "" where there is none.

    `chain` is what labkit's parser read; other rules have none.
    """

    pair: Pair | None
    status: str
    chain: AnchorChain | None = None


def _usable(reading: Reading) -> bool:
    return reading.pair is not None and reading.pair[0] < reading.pair[1]


def read_all(answers: Predictions, moments: Sequence[Moment], rule: ReadingRule) -> list[Reading]:
    """What a rule reads for each moment.

    Raises: LabError where the predictions hold windows, which no rule but labkit's own takes, or windows and texts.
    """
    if answers.ranked and rule.name != "labkit" and not rule.windows:
        raise LabError(
            f"rules {rule.name!r} read texts, but these predictions hold windows; leave the rules out, or name qvhighlights"
        )
    if rule.windows and answers.rows and not answers.ranked:
        raise LabError(
            f"rules {rule.name!r} take windows, but these predictions hold texts; name rules that read them"
        )
    if answers.ranked and any(row.text is not None for row in answers.rows.values()):
        raise LabError("these predictions hold texts and windows; score the two apart")
    return [_read(answers.rows.get(moment.qid), moment, rule) for moment in moments]


def marks(
    readings: Sequence[Reading], answers: Predictions, moments: Sequence[Moment], rule: ReadingRule
) -> dict[str, Floats]:
    """The columns that these predictions and moments have, by the figure's name."""
    columns = _recalls(_ious(readings, moments, rule.clips), rule.reaches)
    if answers.ranked:
        return columns | _precisions(answers, moments)
    if rule.name == "labkit":
        return columns | _answering([reading.chain for reading in readings], moments)
    return columns


def _read(row: PredictedRow | None, moment: Moment, rule: ReadingRule) -> Reading:
    if row is None:
        return Reading(None, "")
    if row.text is None:
        if not row.windows:
            return Reading(None, "no window")
        start, end = row.windows[0]
        return Reading((start, end), "window") if start < end else Reading(None, "start not before end")
    if rule.name == "labkit":
        chain = parse(row.text, finished=row.finished, options=len(moment.options))
        answer = chain.answer
        return Reading(None if answer is None else (answer.start, answer.end), chain.status, chain)
    pair = rule.read(row.text)
    if pair is None:
        return Reading(None, "nothing")
    return Reading(pair, "a span" if pair[0] < pair[1] else "start not before end")


def _ious(readings: Sequence[Reading], moments: Sequence[Moment], clips: bool) -> Floats:
    """IoU with the best window, 0 for nothing; as `labkit.scoring.reading_rules.rule_iou`, for all at once."""
    gold = padded_windows([moment.windows for moment in moments], len(moments))
    pairs = np.array([reading.pair or (np.nan, np.nan) for reading in readings], dtype=np.float64)
    if clips:
        pairs = np.clip(pairs, 0.0, np.array([moment.duration for moment in moments])[:, None])
    # NaN of a window or an answer that isn't there is passed over.
    return np.asarray(np.fmax(0.0, np.fmax.reduce(iou_array(pairs[:, None, :], gold), axis=1)))


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
