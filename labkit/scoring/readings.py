"""What a rule reads in each prediction: the answer's span, a chain to look at, and where two rules disagree.

read_answers        the span that is scored, see `labkit.scoring.scores`
predicted_chains    chains for `labkit.explore` and `labkit.views.gallery`
disagreements       texts in which another rule finds another answer than labkit's, and why
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.spans import Span, union
from labkit.data.moments import Moment
from labkit.data.video_index import stem_of
from labkit.errors import LabError
from labkit.scoring.answers import PredictedRow, QuestionName
from labkit.scoring.predictions import Answers, Predictions, as_predictions
from labkit.scoring.reading_rules import RULES, Pair, ReadingRule, clock_seconds, find_rule
from labkit.table import Table, repr_pretty

LOW_READ_RATE = 0.9
"""Below this share of predictions read, a card says which rule reads more."""
EXAMPLES = 3
"""Names that a message or a card gives of many."""
KINDS = {
    "an anchor": "takes an anchor of the thought for the answer",
    "one of several": "takes one span of an answer of several",
    "another span": "takes numbers that are neither the answer nor an anchor",
    "reversed": "takes a start that isn't before its end, which overlaps nothing",
    "nothing": "finds nothing where there is an answer",
}
"""What a rule does that labkit's doesn't."""
_TIME = re.compile(r"\d++(?::\d\d)*+(?:\.\d++)?+", re.ASCII)


class ReadAnswer(NamedTuple):
    """What a rule made of one prediction; `status` is "" where there is none.

    `chain` is what labkit's parser read; other rules have none. `spans` is the set that a rule read, whose ends are the pair.
    """

    pair: Pair | None
    status: str
    chain: AnchorChain | None = None
    spans: Span | None = None

    @property
    def answer(self) -> Span | None:
        """The answer's span or set of spans; None where there is none, or it is reversed."""
        return self.chain.answer if self.chain is not None else self.spans or _span(self.pair)


def match_questions(predictions: Answers, moments: Sequence[Moment]) -> Predictions:
    """Predictions whose questions are among these moments' qids.

    Raises: LabError that shows both kinds of qids where there are predictions and none is on any of the moments.
    """
    given = as_predictions(predictions)
    answers = given.on(moments)
    known = {moment.qid for moment in moments}
    if answers.rows and known.isdisjoint(answers.rows):
        theirs, ours = (
            ", ".join(repr(qid) for qid in islice(qids, EXAMPLES))
            for qids in (answers.rows, (moment.qid for moment in moments))
        )
        wrote = _of_file(answers)
        name = next(iter([*given.names.values(), *(name for name, _ in given.named)]), QuestionName())
        first = moments[0]
        raise LabError(
            f"none of the {len(answers.rows):,} predictions{wrote} is on any of the {len(known):,} moments: predictions are on "
            f"{theirs}{_first(name.video, name.words)}, moments are called {ours}{_first(stem_of(first.video)[0], first.query)}; give "
            "the moments that were asked, or write the moments' own qids into the predictions"
        )
    return answers


def _of_file(answers: Predictions) -> str:
    wrote = f" of {answers.file}" if answers.file else ""
    return f"{wrote} (by {answers.program})" if answers.program else wrote


def _first(video: str, words: str) -> str:
    """What the first question is about, for a message."""
    words = " ".join(words.split())
    asks = f"asks {words if len(words) <= 80 else '... ' + words[-76:]!r}" if words else ""
    about = " and ".join(filter(None, [f"is on video {video!r}" if video else "", asks]))
    return f" (the first {about})" if about else ""


def read_answers(answers: Predictions, moments: Sequence[Moment], rule: ReadingRule) -> list[ReadAnswer]:
    """What a rule reads for each moment.

    Raises: LabError where the predictions hold windows, which no rule but labkit's own takes, or windows and texts, and where
    they are hundredths of the video, which the rule would take for seconds.
    """
    if find_rule(answers.rules).hundredths and not rule.hundredths:
        raise LabError(
            f"rules {rule.name!r} read seconds, but these predictions{_of_file(answers)} are hundredths of the video; leave the "
            f"rules out, or name {answers.rules}"
        )
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


def better_rule(
    readings: Sequence[ReadAnswer], answers: Predictions, moments: Sequence[Moment], rule: ReadingRule
) -> str:
    """Which rule reads more of these predictions, in words, where this one reads little; "" where it reads enough."""
    given = [reading for reading in readings if reading.status]
    read = sum(_usable(reading) for reading in given)
    if not given or read >= LOW_READ_RATE * len(given):
        return ""
    if rule.hundredths:
        return "the other rules read seconds, and not hundredths of the video"
    if answers.ranked:
        turned = sum(reading.status == "start not before end" for reading in given)
        return "most windows start behind their end; are start and end exchanged?" if 2 * turned > len(given) else ""
    counts = {
        other.name: sum(map(_usable, read_answers(answers, moments, other)))
        for other in RULES.values()
        if not other.any_numbers
    }
    best = max(counts, key=counts.__getitem__)
    if counts[best] <= read:
        return "no other rule reads more of them"
    return (
        f"rules {best!r} find a span in {100 * counts[best] / len(given):.0f} % of them; what they take for an answer shows "
        "with rules 'all'"
    )


@dataclass(frozen=True, slots=True)
class PredictedChain:
    """One prediction as a rule read it; `clips` says whether the rule cuts spans to the video before IoU.

    `sample` counts a question's answers from 0, of which the first is the one that is scored.
    """

    qid: str
    text: str
    status: str
    chain: AnchorChain
    clips: bool
    sample: int = 0


class PredictedChains(NamedTuple):
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


def predicted_chains(predictions: Answers, moments: Sequence[Moment], rules: str | None = None) -> PredictedChains:
    """Each prediction that is on one of these moments, as the rules read it; further samples of a question behind its first.

    Raises: as `labkit.score`.

    >>> moments = [Moment("q1", "/v/a.mp4", "a door opens", (Span(0, 10),), 40.0)]
    >>> predicted_chains({"q1": "From 2 to 9."}, moments, "timer1").chains[0].chain.answer
    Span(start=2.0, end=9.0)
    """
    answers = match_questions(predictions, moments)
    rule = find_rule(rules or answers.rules)
    readings = read_answers(answers, moments, rule)
    chains = [
        PredictedChain(moment.qid, chain.text, chain.status, chain, rule.clips, sample)
        for moment, reading in zip(moments, readings, strict=True)
        if (first := answers.rows.get(moment.qid)) is not None
        for sample, row in enumerate((first, *answers.more.get(moment.qid, ())))
        for chain in [_chain(row, moment, _read(row, moment, rule) if sample else reading, rule)]
    ]
    note = better_rule(readings, answers, moments, rule)
    given = [reading for reading in readings if reading.status]
    unread = sum(reading.pair is None for reading in given)
    return PredictedChains(
        chains, f"Nothing was read in {unread:,} of {len(given):,} predictions: {note}." if note else ""
    )


def _chain(row: PredictedRow, moment: Moment, reading: ReadAnswer, rule: ReadingRule) -> AnchorChain:
    if row.text is None:
        return _of_windows(row, reading)
    if reading.chain is not None:
        return reading.chain
    own = parse(row.text, finished=row.finished, options=len(moment.options), anchor_tag=rule.anchor_tag)
    answer = reading.answer
    return replace(
        own,
        answer=answer,
        answer_chars=None if answer is None else _answer_chars(row.text, rule.read(row.text) or (0.0, 0.0)),
        status=reading.status,
    )


def _of_windows(row: PredictedRow, reading: ReadAnswer) -> AnchorChain:
    lines = [f"{start:g} to {end:g}" for start, end in row.windows or ()]
    answer = reading.answer
    scores: Sequence[Any] = row.scores or [None] * len(lines)
    text = "\n".join(
        line if mark is None else f"{line}, score {mark:g}" for line, mark in zip(lines, scores, strict=True)
    )
    shown = len(text) if reading.spans else len(lines[0]) if answer else 0
    return AnchorChain(text, (), answer, reading.status, None if answer is None else (0, shown))


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A text that a rule reads in another way than labkit does; `count` such texts were found for this rule and kind."""

    rule: str
    kind: str
    count: int
    qid: str
    text: str
    ours: Span | None
    theirs: Pair | None

    @property
    def pairs(self) -> tuple[str, str]:
        """What labkit reads in the text, and what the rule does."""
        return _text(self.ours.parts if self.ours else ()), _text((self.theirs,) if self.theirs else ())

    @property
    def account(self) -> str:
        """What the rule does, and the text."""
        return f"{KINDS[self.kind]}, as in {self.qid}: {_short(self.text)}"

    def __str__(self) -> str:
        ours, theirs = self.pairs
        return (
            f"{self.rule} {KINDS[self.kind]} ({self.count:,} texts), as in {self.qid}: {theirs} instead of {ours}\n"
            f"    {_short(self.text)}"
        )


class Disagreements(list[Disagreement]):
    """Disagreements that show as a table in a notebook and print as lines."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        if not self:
            return "<p>Every rule reads every text as labkit does.</p>"
        head = ("rules", "texts", "labkit", "there", "an example of what it does")
        rows = [(each.rule, f"{each.count:,}", *each.pairs, each.account) for each in self]
        return Table("", head, rows, align="lrrrl")._repr_html_()


def disagreements(predictions: Answers, moments: Sequence[Moment], *, most: int = 1) -> Disagreements:
    """Up to `most` examples for each rule and kind, rules in their order, then the most frequent kind first.

    Only texts on the moments' questions are looked at.
    Raises: LabError for ranked windows, which need no reading, and for hundredths of the video, which one rule alone reads.

    >>> from labkit.chain.spans import Span
    >>> moments = [Moment("q1", "/v/a.mp4", "a door opens", (Span(0, 10),), 40.0)]
    >>> text = "<think><timestamp>0 to 30</timestamp></think><answer>2 to 9</answer>"
    >>> [(found.rule, found.theirs) for found in disagreements({"q1": text}, moments)]
    [('timelens', (0.0, 30.0)), ('lmms-eval', (0.0, 30.0)), ('lmms-eval-timelens', (0.0, 30.0))]
    """
    answers = match_questions(predictions, moments)
    if answers.ranked:
        raise LabError("these predictions hold windows, which every rule reads alike; give texts")
    if find_rule(answers.rules).hundredths:
        raise LabError(
            f"these predictions are hundredths of the video, which rules {answers.rules} alone read; give texts"
        )
    rows = [(moment.qid, row) for moment in moments if (row := answers.rows.get(moment.qid)) is not None]
    chains = [(qid, parse(row.text or "", finished=row.finished)) for qid, row in rows]
    found = Disagreements()
    for rule in list(RULES.values())[1:]:  # all but labkit's own
        examples: dict[str, list[tuple[str, AnchorChain, Pair | None]]] = {}
        counts: Counter[str] = Counter()
        for qid, chain in chains:
            theirs = rule.read(chain.text)  # RULES are all in seconds
            kind = _kind(chain, theirs)
            if kind:
                counts[kind] += 1
                examples.setdefault(kind, []).append((qid, chain, theirs))
        for kind, count in counts.most_common():
            found += [
                Disagreement(rule.name, kind, count, qid, chain.text, chain.answer, theirs)
                for qid, chain, theirs in examples[kind][:most]
            ]
    return found


def _kind(chain: AnchorChain, theirs: Pair | None) -> str:
    parts = [(part.start, part.end) for part in chain.answer.parts] if chain.answer else []
    if theirs is None:
        return "nothing" if parts else ""
    if theirs in parts:
        return "one of several" if len(parts) > 1 else ""
    if theirs[0] >= theirs[1]:
        return "reversed"
    return "an anchor" if theirs in [(span.start, span.end) for span in chain.spans] else "another span"


def _text(spans: Iterable[Span | Pair]) -> str:
    pairs = [(each.start, each.end) if isinstance(each, Span) else each for each in spans]
    return ", ".join(f"{start:g} to {end:g}" for start, end in pairs) or "nothing"


def _usable(reading: ReadAnswer) -> bool:
    return reading.pair is not None and reading.pair[0] < reading.pair[1]


def _read(row: PredictedRow | None, moment: Moment, rule: ReadingRule) -> ReadAnswer:
    if row is None:
        return ReadAnswer(None, "")
    if row.text is None:
        if not row.windows:
            return ReadAnswer(None, "no window")
        if rule.name == "window-set":
            return _of_set([Span(start, end) for start, end in row.windows if start < end], "start not before end")
        start, end = row.windows[0]
        return ReadAnswer((start, end), "window") if start < end else ReadAnswer(None, "start not before end")
    if rule.name == "labkit":
        chain = parse(row.text, finished=row.finished, options=len(moment.options))
        answer = chain.answer
        return ReadAnswer(None if answer is None else (answer.start, answer.end), chain.status, chain)
    if rule.read_set is not None:
        found = rule.read_set(row.text)
        return _of_set([] if found is None else [found], "nothing")
    pair = rule.read_seconds(row.text, moment.duration)
    if pair is None:
        return ReadAnswer(None, "nothing")
    return ReadAnswer(pair, "a span" if pair[0] < pair[1] else "start not before end")


def _of_set(spans: Sequence[Span], without: str) -> ReadAnswer:
    if not spans:
        return ReadAnswer(None, without)
    found = union(spans)
    return ReadAnswer((found.start, found.end), "a span" if len(found.parts) == 1 else "several spans", None, found)


def _span(pair: Pair | None) -> Span | None:
    return Span(*pair) if pair is not None and pair[0] < pair[1] else None


def _answer_chars(text: str, pair: Pair) -> tuple[int, int]:
    """The characters from one end's number to the other's, as near to each other and as late in the text as they stand.

    >>> text = "0:02 to 0:09, so 2 - 9"
    >>> text[slice(*_answer_chars(text, (2, 9)))]
    '2 - 9'
    """
    times = list(_TIME.finditer(text))
    values = [clock_seconds(time[0]) for time in times]
    wanted = set(pair)
    for (before, first), (after, second) in reversed(list(pairwise(zip(values, times, strict=True)))):
        if {before, after} == wanted:
            return first.start(), second.end()
    ends = [next((time for value, time in zip(values, times, strict=True) if value == end), None) for end in wanted]
    found = [time for time in ends if time is not None]
    return (min(t.start() for t in found), max(t.end() for t in found)) if found else (len(text), len(text))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-95:]}"
