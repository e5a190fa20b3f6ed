"""Scores: what any model's predictions are worth, with all that is needed to believe the number.

    score(read_predictions("predictions.jsonl"), load_moments("charades-sta/test"))

Beside each figure stand its interval, by whole videos, and what answers get that never look at the video; below
them the protocol card. A question without a prediction counts 0. Two models are compared question by question, and one
set of texts can be scored under the rules of other people's programs (`labkit.scoring.reading_rules`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.chain.metrics import Reaches, recall_figures
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring import cards
from labkit.scoring.baselines import (
    CENTRE_HALF,
    WHOLE_VIDEO,
    best_constant,
    constant_ious,
    prior_ious,
    relative_spans,
)
from labkit.scoring.bootstrap import Difference, Interval, mean_intervals, paired_differences
from labkit.scoring.marks import SCORE_THRESHOLDS, Floats, Reading, asked, marks, read_all, reads_more
from labkit.scoring.predictions import Answers, Predictions, read_predictions
from labkit.scoring.protocol import Protocol
from labkit.scoring.reading_rules import RULES, ReadingRule, find_rule

LEVEL = 0.95
_EXAMPLES = 3


@dataclass(frozen=True, repr=False, eq=False)
class Score:
    """Figures as fractions by name, and what they rest on.

    `columns` holds each question's own value of each figure, in the order of `qids`; NaN where the question doesn't have it
    (an option, say). `videos` are the questions' source videos. `intervals` are of `figures` by name; `baselines` hold the same
    figures of answers that never look.
    """

    figures: dict[str, float]
    intervals: dict[str, Interval]
    baselines: dict[str, dict[str, float]]
    protocol: Protocol
    qids: tuple[str, ...]
    videos: tuple[str, ...]
    columns: dict[str, Floats]

    def against(self, other: Score) -> Paired:
        """This score less another one of the same questions, see `compare`."""
        return compare(self, other)

    def as_dict(self) -> dict[str, Any]:
        """Figures, intervals, baselines and protocol for a program; a value that doesn't exist is None."""
        return {
            "figures": {name: _known(value) for name, value in self.figures.items()},
            "intervals": {name: [_known(low), _known(high)] for name, (low, high) in self.intervals.items()},
            "baselines": self.baselines,
            "protocol": self.protocol.as_dict(),
        }

    def __str__(self) -> str:
        return cards.score_card(self)

    def __repr__(self) -> str:
        miou = 100 * self.figures["miou"]
        return f"<Score mIoU {miou:.1f} on {self.protocol.rows:,} questions, rules {self.protocol.rules}>"

    _repr_pretty_ = cards.printed

    def _repr_html_(self) -> str:
        return cards.score_card_html(self)


@dataclass(frozen=True, repr=False, eq=False)
class Paired:
    """Two models on the same questions: `differences` are the first's figures less the second's.

    `wins`, `losses` and `ties` count the questions by IoU, seen from the first.
    """

    differences: dict[str, Difference]
    wins: int
    losses: int
    ties: int
    first: Score
    second: Score

    def as_dict(self) -> dict[str, Any]:
        """The differences for a program; a value that doesn't exist is None."""
        return {
            "differences": {
                name: {"value": gap.value, "interval": [*map(_known, gap.interval)], "p": _known(gap.p)}
                for name, gap in self.differences.items()
            },
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
        }

    def __str__(self) -> str:
        return cards.paired_card(self)

    def __repr__(self) -> str:
        return f"<Paired mIoU {100 * self.differences['miou'].value:+.1f}, wins {self.wins}, losses {self.losses}>"

    _repr_pretty_ = cards.printed

    def _repr_html_(self) -> str:
        return cards.paired_card_html(self)


class RuleScores(dict[str, Score]):
    """Scores of one set of texts by the rule's name; a table in a notebook, and lines in a terminal."""

    def __str__(self) -> str:
        return cards.rules_card(self)

    _repr_pretty_ = cards.printed

    def _repr_html_(self) -> str:
        return cards.rules_card_html(self)


def score(
    predictions: Answers,
    moments: Sequence[Moment],
    *,
    rules: str | None = None,
    train: Sequence[Moment] | None = None,
) -> Score:
    """Score predictions, texts or ranked windows, on every moment; each counts the same.

    `rules` are labkit's by default, or those of the program that wrote the file. `train` is the training set, for the two
    baselines that need one. Figures: miou, and r1@0.3 to r1@0.9; of ranked windows, of which the first one is the answer, map,
    map_short, map_middle and map_long by the truth's length, and map@0.5 to
    map@0.95; acc_qa, acc_gqa, miop, iop@0.3 and iop@0.5 over the moments with options, under labkit's rules.
    Raises: LabError for unknown rules, rules that read texts on windows, no moment, or predictions of which none is on any of
    these moments.

    >>> from labkit.chain.spans import Span
    >>> moments = [Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(0, 10),), 40.0) for n in range(2)]
    >>> got = score({"q0": "<answer>0 to 5</answer>"}, moments)
    >>> got.figures["miou"], got.figures["r1@0.5"], got.protocol.missing, got.baselines["whole video"]["miou"]
    (0.25, 0.5, 1, 0.25)
    """
    qids = _names(moments)
    answers = asked(predictions, moments)
    rule = find_rule(rules or answers.rules)
    readings = read_all(answers, moments, rule)
    unread = reads_more(readings, answers, moments, rule)
    return _scored(answers, moments, rule, readings, qids, _baselines(moments, train, rule.reaches), unread)


def compare(first: Score, second: Score) -> Paired:
    """Pair two scores question by question, clustered by source video as the intervals are.

    Raises: LabError unless both were taken on the same questions, under the same rules.
    """
    if first.qids != second.qids:
        raise LabError("these scores are of different questions; score both on the same moments to compare them")
    if first.protocol.rules != second.protocol.rules:
        ours, theirs = first.protocol.rules, second.protocol.rules
        raise LabError(
            f"one score is under the rules {ours!r}, the other under {theirs!r}; compare under the same rules"
        )
    shared = {name: column for name, column in first.columns.items() if name in second.columns}
    card = first.protocol
    differences: dict[str, Difference] = {}
    for names, rows in _groups(shared):
        one, other = (np.stack([side.columns[name][rows] for name in names], axis=1) for side in (first, second))
        clusters = _clusters(first.videos, rows)
        gaps = paired_differences(one, other, clusters, level=card.level)
        differences |= dict(zip(names, gaps, strict=True))
    differences = {name: differences[name] for name in shared}
    a, b = first.columns["miou"], second.columns["miou"]
    return Paired(differences, int((a > b).sum()), int((a < b).sum()), int((a == b).sum()), first, second)


def under_every_rule(predictions: Answers, moments: Sequence[Moment]) -> RuleScores:
    """One set of texts scored under every rule, labkit's first; `labkit.scoring.contrasts.disagreements` shows texts read differently.

    Raises: LabError for ranked windows, which need no reading.
    """
    qids = _names(moments)
    answers = asked(predictions, moments)
    found = RuleScores()
    for name, rule in RULES.items():
        readings = read_all(answers, moments, rule)
        found[name] = _scored(answers, moments, rule, readings, qids, _baselines(moments, None, rule.reaches))
    return found


def score_text(
    predictions: str | Path,
    moments: str,
    *,
    videos: str | None = None,
    rules: str | None = None,
    train: str | None = None,
    against: str | Path | None = None,
    as_json: bool = False,
) -> str:
    """What `labkit score` prints; `moments` and `train` are files or names, `rules` may be "all".

    Raises: LabError for what can't be read or doesn't go together.
    """
    from labkit.data.benchmarks import load_moments
    from labkit.scoring.contrasts import disagreements

    answers, questions = read_predictions(predictions), load_moments(moments, videos=videos)
    seen = None if train is None else load_moments(train, videos=videos)
    if rules == "all":
        if against is not None or train is not None:
            raise LabError("'--rules all' goes with neither --against nor --train; name one of the rules for them")
        scores, texts = under_every_rule(answers, questions), disagreements(answers, questions)
        if as_json:
            parts = {name: one.as_dict() for name, one in scores.items()}
            return json.dumps({"rules": parts, "disagreements": [asdict(text) for text in texts]}, indent=1)
        return "\n\n".join([str(scores), *map(str, texts), str(scores["labkit"].protocol)])
    first = score(answers, questions, rules=rules, train=seen)
    if against is None:
        return json.dumps(first.as_dict(), indent=1) if as_json else str(first)
    second = score(read_predictions(against), questions, rules=rules, train=seen)
    paired = compare(first, second)
    if as_json:
        both = {"first": first.as_dict(), "second": second.as_dict(), "paired": paired.as_dict()}
        return json.dumps(both, indent=1)
    return f"{paired}\n\nfirst\n\n{first}\n\nsecond\n\n{second}"


def _scored(
    answers: Predictions,
    moments: Sequence[Moment],
    rule: ReadingRule,
    readings: Sequence[Reading],
    qids: tuple[str, ...],
    baselines: dict[str, dict[str, float]],
    unread: str = "",
) -> Score:
    columns = marks(readings, answers, moments, rule)
    videos = tuple(moment.source_video for moment in moments)
    return Score(
        figures={name: float(np.nanmean(column)) for name, column in columns.items()},
        intervals=_intervals(columns, videos),
        baselines=baselines,
        protocol=_protocol(answers, moments, rule, readings, unread),
        qids=qids,
        videos=videos,
        columns=columns,
    )


def _names(moments: Sequence[Moment]) -> tuple[str, ...]:
    if not moments:
        raise LabError("no moment to score on; give at least one")
    qid, count = Counter(moment.qid for moment in moments).most_common(1)[0]
    if count > 1:
        raise LabError(f"qid {qid!r} stands {count} times among the moments; give every question a name of its own")
    return tuple(moment.qid for moment in moments)


def _baselines(
    moments: Sequence[Moment], train: Sequence[Moment] | None, reaches: Reaches
) -> dict[str, dict[str, float]]:
    windows, durations = [moment.windows for moment in moments], [moment.duration for moment in moments]
    ious = {
        "whole video": constant_ious(WHOLE_VIDEO, windows, durations),
        "centre half": constant_ious(CENTRE_HALF, windows, durations),
    }
    if train is not None:
        seen = [moment.windows for moment in train], [moment.duration for moment in train]
        ious["best constant"] = constant_ious(best_constant(*seen), windows, durations)
        ious["training prior"] = prior_ious(relative_spans(*seen), windows, durations)
    # Who doesn't look can still pick an option, each with the same chance.
    chances = [1 / len(moment.options) for moment in moments if moment.options]
    blind = {"acc_qa": math.fsum(chances) / len(chances)} if chances else {}
    return {name: recall_figures(values, reaches, SCORE_THRESHOLDS) | blind for name, values in ious.items()}


def _groups(columns: Mapping[str, Floats]) -> list[tuple[list[str], NDArray[np.bool_]]]:
    """Names of columns that hold a value on the same questions, with these."""
    groups: dict[bytes, tuple[list[str], NDArray[np.bool_]]] = {}
    for name, column in columns.items():
        rows = ~np.isnan(column)
        groups.setdefault(rows.tobytes(), ([], rows))[0].append(name)
    return list(groups.values())


def _clusters(videos: Sequence[str], rows: NDArray[np.bool_]) -> list[str]:
    return [video for video, row in zip(videos, rows, strict=True) if row]


def _intervals(columns: Mapping[str, Floats], videos: Sequence[str]) -> dict[str, Interval]:
    intervals: dict[str, Interval] = {}
    for names, rows in _groups(columns):
        matrix = np.stack([columns[name][rows] for name in names], axis=1)
        found = mean_intervals(matrix, _clusters(videos, rows), level=LEVEL)
        intervals |= dict(zip(names, found, strict=True))
    return {name: intervals[name] for name in columns}


def _protocol(
    answers: Predictions,
    moments: Sequence[Moment],
    rule: ReadingRule,
    readings: Sequence[Reading],
    unread: str,
) -> Protocol:
    known = {moment.qid for moment in moments}
    missing = [moment.qid for moment in moments if moment.qid not in answers.rows]
    extra = [qid for qid in answers.rows if qid not in known]
    given = [reading for reading in readings if reading.status]
    counts = getattr(moments, "counts", dict)
    sources = dict.fromkeys(moment.source for moment in moments if moment.source)
    names = {"missing": missing, "extra": extra, "duplicates": answers.duplicates}
    return Protocol(
        rules=f"{rule.name}",
        reading=_window_rule(rule) if answers.ranked else rule.note,
        reaches=rule.reaches,
        clips=rule.clips,
        moments=getattr(moments, "source", ", ".join(islice(sources, _EXAMPLES))),
        rows=len(moments),
        listed=getattr(moments, "rows", len(moments)),
        findings=counts(),
        predictions=answers.file,
        missing=len(missing),
        extra=len(extra),
        duplicates=len(answers.duplicates),
        first={name: tuple(qids[:_EXAMPLES]) for name, qids in names.items()},
        parse_failure_rate=sum(r.pair is None for r in given) / len(given) if given else math.nan,
        statuses=dict(Counter(reading.status for reading in given).most_common()),
        unread=unread,
        cut_line=answers.cut_line,
        settings=answers.settings,
        level=LEVEL,
        videos=len({moment.source_video for moment in moments}),
    )


def _window_rule(rule: ReadingRule) -> str:
    first = (
        rule.note
        if rule.windows
        else "The first window of each question in the file is its answer, cut to the video for R1; "
        "`qvhighlights` are the rules that don't cut it."
    )
    return (
        f"{first} For mAP its first 10 windows count, ordered by score where they have one, not cut to the video, as "
        "QVHighlights' evaluator does."
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
