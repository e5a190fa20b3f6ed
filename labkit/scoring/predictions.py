"""Predictions: what any model answered, one row for each question.

A predictions file is JSON Lines: UTF-8, one object a line, lines without any text are passed over. Each row holds

    qid                     the question's name, text or a whole number
    text                    what the model wrote, from which a rule reads the answer
    windows                 or instead of text: [[start, end], ...] or [[start, end, score], ...] in seconds, best first
    pred_relevant_windows   another name for windows, the one of QVHighlights submissions
    finished                false when the generation hit its token limit (may be left out; goes with text)

and whatever else its model wrote down, which isn't read; output_text is another name for text.
The first line may be {"settings": {...}} without a qid: how the answers were decoded and what the model saw of
the video, for the protocol card (see `labkit.scoring.protocol`); "rules" beside them names those to read the answers under,
where these aren't labkit's. The same rows in a JSON list, and gzip, are read too, and so is
what other programs write (`labkit.scoring.programs`). A last line that broke off, as a killed evaluation leaves it,
counts as missing.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.chain.anchors import ChainRecord
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.files import replacing
from labkit.scoring.answers import BadRow, PredictedRow, QuestionName, join, ranked_row, shorten
from labkit.scoring.prediction_files import file_rows
from labkit.scoring.programs import Program, looked_for, named_answers, recognise
from labkit.scoring.reading_rules import find_rule

_TEXTS = ("text", "output_text")
_WINDOWS = ("windows", "pred_relevant_windows")
_OWN = "labkit"
_Rows = tuple[PredictedRow, ...]


@dataclass(frozen=True)
class Predictions:
    """A model's answers by question; `more` are those that came again on a question, of which the first counts.

    `rules` are those that are scored under unless others are named: of the `program` that wrote the file, labkit's otherwise.
    `names` say by qid how their question is named beside, and `named` hold the answers whose question has no qid, or one that
    another question of the file has (files that count from 0, put together); `on` joins them to moments, and
    `joined` then counts by which key. `duplicates` are the qids that came again. `cut_line` is the number of the file's last line
    where it broke off, 0 otherwise.
    """

    rows: Mapping[str, PredictedRow]
    settings: Mapping[str, Any] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()
    file: str = ""
    rules: str = "labkit"
    named: tuple[tuple[QuestionName, _Rows], ...] = ()
    cut_line: int = 0
    names: Mapping[str, QuestionName] = field(default_factory=dict)
    more: Mapping[str, Sequence[PredictedRow]] = field(default_factory=dict)
    program: str = ""
    joined: Mapping[str, int] = field(default_factory=dict)

    def on(self, moments: Sequence[Moment]) -> Predictions:
        """These predictions with each answer under the qid of the moment that it is about, as far as one is.

        What is joined to no moment keeps a name of its own.
        """
        if self.joined:
            return self
        entries = list(self._entries())
        kept, counts, known = _Kept(), Counter[str](), {moment.qid for moment in moments}
        alone, same = dict[QuestionName, str](), Counter[str]()
        for (qid, key), (name, rows) in zip(join((name for name, _ in entries), moments), entries, strict=True):
            if qid is None:
                if name not in alone:
                    # A moment may have the same qid, whose video or query isn't the one that stands beside it here.
                    label = name.label
                    same[label] += 2 if label in known and label not in same else 1
                    alone[name] = label if same[label] == 1 else f"{label} ({same[label]})"
                qid = alone[name]
            else:
                counts[key] += 1
            for row in rows:
                kept.keep(qid, row)
        again = kept.again if self.more else [*self.duplicates, *kept.again]
        return replace(
            self, rows=kept.rows, more=kept.more, duplicates=tuple(again), names={}, named=(), joined=dict(counts)
        )

    def _entries(self) -> Iterator[tuple[QuestionName, _Rows]]:
        for qid, row in self.rows.items():
            yield self.names.get(qid) or QuestionName(qid=qid), (row, *self.more.get(qid, ()))
        yield from self.named

    @property
    def ranked(self) -> bool:
        """Whether the rows hold ranked windows instead of texts."""
        return any(row.windows is not None for row in self.rows.values())


Answers = Predictions | str | Path | Mapping[str, str | PredictedRow] | Iterable[ChainRecord | Mapping[str, Any]]
"""What can be scored: predictions, the path of their file, texts by qid, chains on record, or a file's rows."""


def as_predictions(source: Answers, settings: Mapping[str, Any] | None = None) -> Predictions:
    """Predictions of what a notebook has at hand: texts by qid, or records such as an evaluation's predictions.

    Of several records on one question the first counts; the others are duplicates. `settings` go before those at hand.

    >>> as_predictions({"q1": "<answer>2 to 9</answer>"}).rows["q1"].text
    '<answer>2 to 9</answer>'
    """
    if isinstance(source, str | Path):
        source = read_predictions(source)
    if isinstance(source, Predictions):
        return source if settings is None else replace(source, settings=settings)
    if isinstance(source, Mapping):
        given = {qid: PredictedRow(row) if isinstance(row, str) else row for qid, row in source.items()}
        return Predictions(given, settings or {})
    reader = _Reader()
    for number, record in enumerate(source):
        try:
            if isinstance(record, Mapping):
                reader.take(dict(record))
            else:
                reader.keep(record.qid, PredictedRow(record.text, finished=record.status != "cut_off"))
        except BadRow as fault:
            raise LabError(f"predictions, row {number}: {fault}") from None
    read = reader.predictions()
    return read if settings is None else replace(read, settings=settings)


def read_predictions(path: str | Path) -> Predictions:
    """Predictions of a file, of labkit or of another program, which is recognised by what stands in it.

    Raises: LabError that names file, line, fault and next step at the first row that can't be used, and for a file that is
    missing or unreadable. An empty file is no fault: all its questions are unanswered.
    """
    reader, cut_line = _Reader(), 0
    for where, row, number in file_rows(Path(path)):
        if row is None:
            cut_line = number
            break
        try:
            reader.take(row)
        except BadRow as fault:
            raise LabError(f"{path}, {where}: {fault}") from None
    return replace(reader.predictions(), file=str(path), cut_line=cut_line)


def write_predictions(path: str | Path, source: Answers, settings: Mapping[str, Any] | None = None) -> None:
    """Write predictions that `read_predictions` reads back, whole or not at all; duplicates are left out.

    The rules that they are read under go along, where these aren't labkit's.
    """
    predictions = as_predictions(source, settings)
    if predictions.named:
        step = "call on(moments) first, which finds their questions"
        raise LabError(f"{len(predictions.named):,} of these predictions have no qid; {step}")
    rules = {"rules": predictions.rules} if predictions.rules != _OWN else {}
    first = {"settings": dict(predictions.settings), **rules}
    objects: list[dict[str, Any]] = [first] if predictions.settings or rules else []
    for qid, row in predictions.rows.items():
        entry: dict[str, Any] = {"qid": qid}
        if row.text is not None:
            entry["text"] = row.text
            if not row.finished:
                entry["finished"] = False
        elif row.scores is None:
            entry["windows"] = [list(window) for window in row.windows or ()]
        else:
            pairs = zip(row.windows or (), row.scores, strict=True)
            entry["windows"] = [[*window, score] for window, score in pairs]
        objects.append(entry)
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in objects), encoding="utf-8")


class _Kept:
    """Answers by qid, the first of each question apart from those that came again."""

    def __init__(self) -> None:
        self.rows: dict[str, PredictedRow] = {}
        self.more: dict[str, list[PredictedRow]] = {}
        self.again: list[str] = []

    def keep(self, qid: str, row: PredictedRow) -> None:
        if qid in self.rows:
            self.again.append(qid)
            self.more.setdefault(qid, []).append(row)
        else:
            self.rows[qid] = row


class _Reader:
    """Takes a file's rows one by one."""

    def __init__(self) -> None:
        self.kept = _Kept()
        self.settings: Mapping[str, Any] = {}
        self.named: list[tuple[QuestionName, _Rows]] = []
        self.names: dict[str, QuestionName] = {}
        self.kind, self.program, self.rules, self.any = "", "", _OWN, False

    def take(self, row: dict[str, Any]) -> None:
        """Read a row. Raises BadRow."""
        if "qid" not in row and "settings" in row:
            if self.any:
                raise BadRow("settings are not in the first line; move them to the top")
            self.settings = _settings(row["settings"])
            self.rules = _rules(row.get("rules", _OWN))
        elif (program := recognise(row)) is None:
            self._of(_OWN)
            if "qid" not in row and not any(name in row for name in (*_TEXTS, *_WINDOWS)):
                raise BadRow(
                    f"has the fields {', '.join(map(repr, list(row)[:8])) or 'of nothing'}, by which no file of predictions is known "
                    f"(looked for: labkit's qid with text or windows, {looked_for()}); "
                    'write rows of {"qid": ..., "text": ...}'
                )
            self.keep(*_row(row))
        else:
            self._of(program.name)
            self._take(row, program)
        self.any = True

    def _take(self, row: dict[str, Any], program: Program) -> None:
        for name, rows in named_answers(row, program):
            for each in rows:
                self._same(each)
            if self.kind == "windows" and self.rules == _OWN:
                self.rules = "qvhighlights"  # they take the first span as it stands
            elif self.rules == _OWN:
                self.rules = program.rules
            if not name.qid or self.names.setdefault(name.qid, name) != name:
                self.named.append((name, rows))
                continue
            for each in rows:
                self.kept.keep(name.qid, each)

    def keep(self, qid: str, answer: PredictedRow) -> None:
        """Keep an answer, the first of each question. Raises BadRow for windows among texts."""
        self._same(answer)
        self.kept.keep(qid, answer)

    def _same(self, answer: PredictedRow) -> None:
        kind = "text" if answer.text is not None else "windows"
        if self.kind not in ("", kind):
            raise BadRow(f"holds {kind} while rows before hold {self.kind}; score the two in files of their own")
        self.kind = kind

    def _of(self, program: str) -> None:
        if self.program not in ("", program):
            raise BadRow(
                f"is a row of {program} while rows before are of {self.program}; give them in files of their own"
            )
        self.program = program

    def predictions(self) -> Predictions:
        kept, program = self.kept, "" if self.program == _OWN else self.program
        return Predictions(
            kept.rows, self.settings, tuple(kept.again), rules=self.rules, named=tuple(self.named), names=self.names,
            more=kept.more, program=program,
        )  # fmt: skip


def _settings(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRow(f'settings = {shorten(value)} is not an object; write {{"settings": {{"fps": 2, ...}}}}')
    return value


def _rules(name: object) -> str:
    if not isinstance(name, str):
        raise BadRow(f"rules = {shorten(name)} is no name of rules; write the name that --rules takes")
    try:
        return find_rule(name).name
    except LabError as error:
        raise BadRow(str(error)) from None


def _row(row: dict[str, Any]) -> tuple[str, PredictedRow]:
    qid = row.get("qid")
    # True is an int for Python, not for a person who writes a predictions file.
    if isinstance(qid, bool) or not isinstance(qid, str | int) or qid == "":
        raise BadRow(f"qid = {shorten(qid)} names no question; write the moment's qid as text or a whole number")
    given = [name for name in (*_TEXTS, *_WINDOWS) if row.get(name) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "neither text nor windows"
        raise BadRow(f"qid {qid} holds {what}; give the answer once, as text or as windows")
    value = row[given[0]]
    if given[0] in _WINDOWS:
        return str(qid), ranked_row(f"qid {qid}: {given[0]}", value)
    if not isinstance(value, str):
        raise BadRow(f"qid {qid}: text = {shorten(value)} is not text; write what the model wrote")
    finished = row.get("finished", True)
    if not isinstance(finished, bool):
        raise BadRow(f"qid {qid}: finished = {shorten(finished)} is neither true nor false; write one of them")
    return str(qid), PredictedRow(value, finished=finished)
