"""Predictions as chains to look at: what a rule read in each, for `labkit.explore` and `labkit.views.gallery`.

Nothing is added that nobody wrote: a prediction has no reward. Of ranked windows the first is shown as the answer, as it is
scored, and the others are listed in its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.scoring.marks import Reading, asked, read_all, reads_more
from labkit.scoring.predictions import Answers, PredictedRow, Predictions
from labkit.scoring.reading_rules import Pair, ReadingRule, find_rule

_TIME = re.compile(r"\d++(?::\d\d)*+(?:\.\d++)?+", re.ASCII)


@dataclass(frozen=True, slots=True)
class PredictedChain:
    """One prediction as a rule read it; `clips` says whether the rule cuts spans to the video before IoU."""

    qid: str
    text: str
    status: str
    chain: AnchorChain
    clips: bool


class Shown(NamedTuple):
    """Predictions to look at, and what to say where little was read, "" otherwise."""

    chains: list[PredictedChain]
    note: str


def are_predictions(records: object) -> TypeGuard[Answers]:
    """Whether `records` are predictions without any stage: a file, what was read from one, or rows and texts by qid."""
    if isinstance(records, str | Path | Predictions):
        return True
    if isinstance(records, Mapping):
        return isinstance(next(iter(records.values()), None), str | PredictedRow)
    return isinstance(records, Sequence) and bool(records) and isinstance(records[0], Mapping)


def shown_chains(predictions: Answers, moments: Sequence[Moment], rules: str | None = None) -> Shown:
    """Each prediction that is on one of these moments, as the rules read it.

    Raises: as `labkit.score`.

    >>> moments = [Moment("q1", "/v/a.mp4", "a door opens", (Span(0, 10),), 40.0)]
    >>> shown_chains({"q1": "From 2 to 9."}, moments, "timer1").chains[0].chain.answer
    Span(start=2.0, end=9.0)
    """
    answers = asked(predictions, moments)
    rule = find_rule(rules or answers.rules)
    readings = read_all(answers, moments, rule)
    chains = [
        PredictedChain(moment.qid, chain.text, chain.status, chain, rule.clips)
        for moment, reading in zip(moments, readings, strict=True)
        if (row := answers.rows.get(moment.qid)) is not None
        for chain in [_chain(row, moment, reading, rule)]
    ]
    note = reads_more(readings, answers, moments, rule)
    unread = sum(reading.pair is None for reading in readings if reading.status)
    return Shown(chains, f"Nothing was read in {unread:,} of {len(chains):,} predictions: {note}." if note else "")


def _chain(row: PredictedRow, moment: Moment, reading: Reading, rule: ReadingRule) -> AnchorChain:
    if row.text is None:
        return _of_windows(row, reading)
    if reading.chain is not None:
        return reading.chain
    own = parse(row.text, finished=row.finished, options=len(moment.options), anchor_tag=rule.anchor_tag)
    answer = _span(reading.pair)
    return replace(
        own, answer=answer, answer_chars=None if answer is None else _place(row.text, answer), status=reading.status
    )


def _of_windows(row: PredictedRow, reading: Reading) -> AnchorChain:
    lines = [f"{start:g} to {end:g}" for start, end in row.windows or ()]
    answer = _span(reading.pair)
    scores: Sequence[Any] = row.scores or [None] * len(lines)
    text = "\n".join(
        line if mark is None else f"{line}, score {mark:g}" for line, mark in zip(lines, scores, strict=True)
    )
    return AnchorChain(text, (), answer, reading.status, None if answer is None else (0, len(lines[0])))


def _span(pair: Pair | None) -> Span | None:
    return Span(*pair) if pair is not None and pair[0] < pair[1] else None


def _place(text: str, span: Span) -> tuple[int, int]:
    """The characters from one end's number to the other's, as near to each other and as late in the text as they stand.

    >>> text = "0:02 to 0:09, so 2 - 9"
    >>> text[slice(*_place(text, Span(2, 9)))]
    '2 - 9'
    """
    times = list(_TIME.finditer(text))
    values = [_seconds(time[0]) for time in times]
    wanted = {span.start, span.end}
    for (before, first), (after, second) in reversed(list(pairwise(zip(values, times, strict=True)))):
        if {before, after} == wanted:
            return first.start(), second.end()
    ends = [next((time for value, time in zip(values, times, strict=True) if value == end), None) for end in wanted]
    found = [time for time in ends if time is not None]
    return (min(t.start() for t in found), max(t.end() for t in found)) if found else (len(text), len(text))


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds
