"""Scores: what any model's predictions are worth, with all that is needed to believe the number.

    score(read_predictions("predictions.jsonl"), load_moments("charades-sta/test"))

Beside each figure stand its interval, by whole videos, and what answers get that never look at the video; below
them the protocol card. A question without a prediction counts 0. Two models are compared question by question, and one
set of texts can be scored under the rules of other people's programs (`labkit.scoring.reading_rules`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.chain.metrics import Reaches, recall_figures
from labkit.chain.span_sets import THRESHOLDS
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.baselines import CENTRE_HALF, WHOLE_VIDEO, best_constant, constant_ious, prior_ious, relative_spans
from labkit.scoring.bootstrap import Difference, Interval, few_videos, known, mean_intervals, paired_differences
from labkit.scoring.predictions import Answers, Predictions
from labkit.scoring.protocol import Protocol
from labkit.scoring.question_figures import AP_THRESHOLDS, SCORE_THRESHOLDS, Floats, question_figures
from labkit.scoring.reading_rules import RULES, ReadingRule, find_rule
from labkit.scoring.readings import EXAMPLES, ReadAnswer, better_rule, match_questions, read_answers
from labkit.table import Table, percent, repr_pretty

LEVEL = 0.95
TITLES = {
    "miou": "mIoU",
    "r1@0.3": "R1@0.3",
    "r1@0.5": "R1@0.5",
    "r1@0.7": "R1@0.7",
    "r1@0.9": "R1@0.9",
    "best_miou": "best mIoU",
    "set_miou": "set mIoU",
    **{f"tf1@{m}": f"tF1@{m}" for m in THRESHOLDS},
    "etf1": "EtF1",
    "count_accuracy": "C-Acc",
    "map": "mAP",
    "map_short": "mAP short, to 10 s",
    "map_middle": "mAP middle, to 30 s",
    "map_long": "mAP long",
    **{f"map@{m}": f"mAP@{m}" for m in AP_THRESHOLDS},
    "acc_qa": "Acc@QA",
    "acc_gqa": "Acc@GQA",
    "miop": "mIoP",
    "iop@0.3": "IoP@0.3",
    "iop@0.5": "IoP@0.5",
}
"""What figures are called where people read them."""
HEADLINE = ("miou", "r1@0.3", "r1@0.5", "r1@0.7")
"""Figures of a table with a row for each file, rule or model."""


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
            "figures": {name: known(value) for name, value in self.figures.items()},
            "intervals": {name: [known(low), known(high)] for name, (low, high) in self.intervals.items()},
            "baselines": self.baselines,
            "protocol": self.protocol.as_dict(),
        }

    def __str__(self) -> str:
        return f"{self._table()}\n\n{self.protocol}"

    def __repr__(self) -> str:
        miou = 100 * self.figures["miou"]
        return f"<Score mIoU {miou:.1f} on {self.protocol.rows:,} questions, rules {self.protocol.rules}>"

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        return self._table()._repr_html_() + Table("protocol", (), self.protocol.lines(), align="l")._repr_html_()

    def _table(self) -> Table:
        head = ("", "score", f"{100 * self.protocol.level:g} % interval", *self.baselines)
        rows = [
            (
                TITLES.get(name, name),
                percent(value),
                between(self.intervals.get(name)),
                *(percent(figures.get(name, math.nan)) for figures in self.baselines.values()),
            )
            for name, value in self.figures.items()
        ]
        return Table("", head, rows, self._note(), align="lr")

    def _note(self) -> str:
        """What to know before believing the table."""
        card = self.protocol
        notes = [few_videos(card.videos)]
        if card.unread:
            notes.append(
                f"Nothing was read in {100 * card.parse_failure_rate:.0f} % of the predictions: {card.unread}."
            )
        if card.cut_line:
            notes.append(f"The predictions' file broke off in line {card.cut_line:,}.")
        return " ".join(filter(None, ["Percent.", *notes]))


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
            "differences": {name: gap.as_dict() for name, gap in self.differences.items()},
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
        }

    def __str__(self) -> str:
        return str(self._table())

    def __repr__(self) -> str:
        return f"<Paired mIoU {100 * self.differences['miou'].value:+.1f}, wins {self.wins}, losses {self.losses}>"

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        return self._table()._repr_html_()

    def _table(self) -> Table:
        card = self.first.protocol
        rows = []
        for name, gap in self.differences.items():
            figures = [percent(score.figures[name]) for score in (self.first, self.second)]
            rows.append((TITLES.get(name, name), *figures, *gap_cells(gap)))
        first, second = (score.protocol.predictions or "not stated" for score in (self.first, self.second))
        note = (
            f"first: {first}, second: {second}. Percent; of {card.rows:,} questions the first is better on "
            f"{self.wins:,}, the second on {self.losses:,}, equal on {self.ties:,} (by IoU). p is two-sided. "
            f"{few_videos(card.videos)}"
        ).rstrip()
        head = ("", "first", "second", "difference", f"{100 * card.level:g} % interval", "p")
        return Table("", head, rows, note, align="lr")


class RuleScores(dict[str, Score]):
    """Scores of one set of texts by the rule's name; a table in a notebook, and lines in a terminal."""

    def __str__(self) -> str:
        notes = "\n".join(f"{name}: {score.protocol.reading}" for name, score in self.items())
        return f"{Table('', *self._rows(), self._note('(percent)'), align='lr')}\n\n{notes}"

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        head, rows = self._rows()
        notes = [score.protocol.reading for score in self.values()]
        lines = [(*row, note) for row, note in zip(rows, notes, strict=True)]
        align = "l" + "r" * (len(head) - 1) + "l"
        return Table("", (*head, "what it does"), lines, self._note("percent"), align)._repr_html_()

    def _note(self, unit: str) -> str:
        """The unit, and which rules are left out."""
        read = (
            ""
            if "labkit" in self
            else "\nThese predictions are hundredths of the video, which the other rules would take for seconds."
        )
        return unit + read

    def _rows(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows = [
            (
                rule,
                *(percent(score.figures[name]) for name in HEADLINE),
                score.protocol.reaches,
                percent(score.protocol.parse_failure_rate),
            )
            for rule, score in self.items()
        ]
        return ("rules", *(TITLES[name] for name in HEADLINE), "threshold", "nothing read"), rows


def score(
    predictions: Answers, moments: Sequence[Moment], *, rules: str | None = None, train: Sequence[Moment] | None = None
) -> Score:
    """Score predictions, texts or ranked windows, on every moment; each counts the same.

    `rules` are labkit's by default, or those of the program that wrote the file. `train` is the training set, for the two
    baselines that need one. Figures: miou, and r1@0.3 to r1@0.9; those of sets where moments have several windows, see
    `labkit.scoring.question_figures`; of ranked windows, of which the first one is the answer, map, map_short, map_middle and map_long
    by the truth's length, and map@0.5 to map@0.95; acc_qa, acc_gqa, miop, iop@0.3 and iop@0.5 over the moments with options, under
    labkit's rules.
    Raises: LabError for unknown rules, rules that read texts on windows, no moment, or predictions of which none is on any of
    these moments.

    >>> from labkit.chain.spans import Span
    >>> moments = [Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(0, 10),), 40.0) for n in range(2)]
    >>> got = score({"q0": "<answer>0 to 5</answer>"}, moments)
    >>> got.figures["miou"], got.figures["r1@0.5"], got.protocol.missing, got.baselines["whole video"]["miou"]
    (0.25, 0.5, 1, 0.25)
    """
    qids = _names(moments)
    answers = match_questions(predictions, moments)
    rule = find_rule(rules or answers.rules)
    readings = read_answers(answers, moments, rule)
    unread = better_rule(readings, answers, moments, rule)
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
    """One set of texts scored under every rule, labkit's first; `labkit.disagreements` shows texts read differently.

    Hundredths of the video are scored under their own rules alone, since the others read seconds.
    Raises: LabError for ranked windows, which need no reading.
    """
    qids = _names(moments)
    answers = match_questions(predictions, moments)
    found, own = RuleScores(), find_rule(answers.rules)
    for rule in [own] if own.hundredths else RULES.values():
        readings = read_answers(answers, moments, rule)
        found[rule.name] = _scored(answers, moments, rule, readings, qids, _baselines(moments, None, rule.reaches))
    return found


def _scored(
    answers: Predictions,
    moments: Sequence[Moment],
    rule: ReadingRule,
    readings: Sequence[ReadAnswer],
    qids: tuple[str, ...],
    baselines: dict[str, dict[str, float]],
    unread: str = "",
) -> Score:
    columns = question_figures(readings, answers, moments, rule)
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
    if open_questions := [moment.qid for moment in moments if not moment.has_truth]:
        raise LabError(
            f"moment {open_questions[0]!r} has no window, so that nothing can be scored on it; give it its windows"
        )
    return tuple(moment.qid for moment in moments)


def _baselines(
    moments: Sequence[Moment], train: Sequence[Moment] | None, reaches: Reaches
) -> dict[str, dict[str, float]]:
    windows, durations = [moment.targets for moment in moments], [moment.duration for moment in moments]
    ious = {
        "whole video": constant_ious(WHOLE_VIDEO, windows, durations),
        "centre half": constant_ious(CENTRE_HALF, windows, durations),
    }
    if train is not None:
        seen = [moment.targets for moment in train], [moment.duration for moment in train]
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
    answers: Predictions, moments: Sequence[Moment], rule: ReadingRule, readings: Sequence[ReadAnswer], unread: str
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
        moments=getattr(moments, "source", ", ".join(islice(sources, EXAMPLES))),
        rows=len(moments),
        listed=getattr(moments, "rows", len(moments)),
        findings=counts(),
        predictions=answers.file,
        program=answers.program,
        joined=answers.joined,
        missing=len(missing),
        extra=len(extra),
        duplicates=len(answers.duplicates),
        first={name: tuple(qids[:EXAMPLES]) for name, qids in names.items()},
        parse_failure_rate=sum(r.pair is None for r in given) / len(given) if given else math.nan,
        statuses=dict(Counter(reading.status for reading in given).most_common()),
        unread=unread,
        cut_line=answers.cut_line,
        settings=answers.settings,
        level=LEVEL,
        videos=len({moment.source_video for moment in moments}),
        several=sum(len(moment.windows) > 1 for moment in moments),
        as_sets=sum(moment.as_set for moment in moments),
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


def between(interval: Interval | None) -> str:
    """An interval of fractions as percent, "-" where there is none."""
    if interval is None or math.isnan(interval.low):
        return "-"
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def gap_cells(gap: Difference) -> tuple[str, str, str]:
    """A difference, its interval and its p, in percent."""
    low, high = gap.interval
    interval = "-" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
    p = "-" if math.isnan(gap.p) else "<0.001" if gap.p < 0.001 else f"{gap.p:.3f}"
    return f"{100 * gap.value:+.1f}", interval, p
