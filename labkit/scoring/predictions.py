"""Predictions: what any model answered, one row for each question.

A predictions file is JSON Lines: UTF-8, one object a line, lines without any text are passed over. Each row holds

    qid                     the question's name, text or a whole number
    text                    what the model wrote, from which a rule reads the answer
    windows                 or instead of text: [[start, end], ...] or [[start, end, score], ...] in seconds, best first
    pred_relevant_windows   another name for windows, the one of QVHighlights submissions
    finished                false when the generation hit its token limit (may be left out; goes with text)

and whatever else its model wrote down, which isn't read; output_text is another name for text, the one of Time-R1's files.
The first line may be {"settings": {...}} without a qid: how the answers were decoded and what the model saw of
the video, for the protocol card (see `labkit.scoring.protocol`). The same rows in a JSON list, and gzip, are read too, and so is
what some other programs write (`labkit.scoring.programs`). A last line that broke off, as a killed evaluation leaves it,
counts as missing.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.chain.anchors import ChainRecord
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.files import replacing
from labkit.scoring.programs import NamedAnswer, Refused, match, named_answers, refuse_table

_TEXTS = ("text", "output_text")
_WINDOWS = ("windows", "pred_relevant_windows")


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """One answer: a text, or ranked windows as [start, end] in seconds in the file's order.

    `scores` are the windows' own, None when the file gave none and the order is the rank.
    """

    text: str | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    scores: tuple[float, ...] | None = None
    finished: bool = True


@dataclass(frozen=True)
class Predictions:
    """A model's answers by question; `duplicates` are the qids that came again, of which the first row counts.

    `rules` are those that are scored under unless others are named: of the program that wrote the file, labkit's otherwise.
    `named` are answers whose question has no qid but a video and words, see `on`. `cut_line` is the number of the file's last
    line where it broke off, 0 otherwise.
    """

    rows: Mapping[str, PredictedRow]
    settings: Mapping[str, Any] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()
    file: str = ""
    rules: str = "labkit"
    named: tuple[NamedAnswer, ...] = ()
    cut_line: int = 0

    def on(self, moments: Sequence[Moment]) -> Predictions:
        """These predictions, with answers that name a video and words put to the moment that they are about."""
        if not self.named:
            return self
        rows, again = dict(self.rows), list(self.duplicates)
        for qid, answer in match(self.named, moments):
            if qid in rows:
                again.append(qid)
            else:
                rows[qid] = PredictedRow(answer.text)
        return replace(self, rows=rows, duplicates=tuple(again), named=())

    @property
    def ranked(self) -> bool:
        """Whether the rows hold ranked windows instead of texts."""
        return any(row.windows is not None for row in self.rows.values())


Answers = Predictions | str | Path | Mapping[str, str | PredictedRow] | Iterable[ChainRecord | Mapping[str, Any]]
"""What can be scored: predictions, the path of their file, texts by qid, chains on record, or a file's rows."""


def as_predictions(
    source: Answers,
    settings: Mapping[str, Any] | None = None,
) -> Predictions:
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
        except (_Fault, Refused) as fault:
            raise LabError(f"predictions, row {number}: {fault}") from None
    read = reader.predictions()
    return read if settings is None else replace(read, settings=settings)


def read_predictions(path: str | Path) -> Predictions:
    """Predictions of a JSON Lines file.

    Raises: LabError that names file, line, fault and next step at the first row that can't be used, and for a file that is
    missing or unreadable. An empty file is no fault: all its questions are unanswered.
    """
    path = Path(path)
    data, reader = _bytes(path), _Reader()
    document = _document(path, data)
    if document is not None:
        for number, row in enumerate(document):
            try:
                reader.take(row if isinstance(row, dict) else _no_object(row))
            except (_Fault, Refused) as fault:
                raise LabError(f"{path}, row {number}: {fault}") from None
        return replace(reader.predictions(), file=str(path))
    # Not splitlines(), which also splits at characters that may stand inside a text; CR alone ended lines once.
    lines = data.split(b"\n" if b"\n" in data else b"\r")
    cut_line = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _object(line)
        except _Fault as fault:
            # What a killed evaluation leaves: the last line, which has no end.
            if number < len(lines) or not reader.any:
                raise LabError(f"{path}, line {number}: {fault}") from None
            cut_line = number
            break
        try:
            reader.take(row)
        except (_Fault, Refused) as fault:
            raise LabError(f"{path}, line {number}: {fault}") from None
    return replace(reader.predictions(), file=str(path), cut_line=cut_line)


def write_predictions(
    path: str | Path,
    source: Answers,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions that `read_predictions` reads back, whole or not at all; duplicates are left out."""
    predictions = as_predictions(source, settings)
    if predictions.named:
        step = "call on(moments) first, which finds their questions"
        raise LabError(f"{len(predictions.named):,} of these predictions have no qid; {step}")
    objects: list[dict[str, Any]] = [{"settings": dict(predictions.settings)}] if predictions.settings else []
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


class _Fault(ValueError):
    """What is wrong with one line, and what to do; the reader puts file and line in front."""


class _Reader:
    """Takes a file's rows one by one."""

    def __init__(self) -> None:
        self.rows: dict[str, PredictedRow] = {}
        self.settings: Mapping[str, Any] = {}
        self.again: list[str] = []
        self.named: list[NamedAnswer] = []
        self.kind, self.any = "", False

    def take(self, row: dict[str, Any]) -> None:
        """Read a row. Raises _Fault or Refused."""
        if "qid" not in row and "settings" in row:
            if self.any:
                raise _Fault("settings are not in the first line; move them to the top")
            self.settings = _settings(row["settings"])
        elif "qid" not in row and (found := named_answers(row)):
            self._same("text")
            self.named += found
        else:
            if not any(name in row for name in (*_TEXTS, *_WINDOWS)):
                named_answers(row)  # refused by name where it is another program's
            qid, answer = _row(row)
            self.keep(qid, answer)
        self.any = True

    def keep(self, qid: str, answer: PredictedRow) -> None:
        """Keep an answer, the first of each question. Raises _Fault for windows among texts."""
        self._same("text" if answer.text is not None else "windows")
        if qid in self.rows:
            self.again.append(qid)
        else:
            self.rows[qid] = answer

    def _same(self, kind: str) -> None:
        if self.kind not in ("", kind):
            raise _Fault(f"holds {kind} while rows before hold {self.kind}; score the two in files of their own")
        self.kind = kind

    def predictions(self) -> Predictions:
        rules = self.named[0].rules if self.named else "labkit"
        return Predictions(self.rows, self.settings, tuple(self.again), rules=rules, named=tuple(self.named))


def _bytes(path: Path) -> bytes:
    """A file's bytes, unzipped and without a byte order mark. Raises LabError where they can't be read or are no UTF-8 text."""
    try:
        data = path.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LabError(
            f"predictions '{path}': its gzip is damaged ({error}); unzip what is there and give that"
        ) from None
    except OSError as error:
        raise LabError(f"predictions '{path}' can't be read ({error.strerror}); check the path") from None
    if data.startswith(b"PAR1"):
        import pyarrow.parquet

        try:
            refuse_table(pyarrow.parquet.read_schema(path).names)
        except (Refused, pyarrow.ArrowException) as fault:
            raise LabError(f"predictions '{path}': {fault}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LabError(f"predictions '{path}' is not UTF-8 text but UTF-16; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


def _document(path: Path, data: bytes) -> list[Any] | None:
    """The rows of a file that is one JSON list, or one object over several lines; None for JSON Lines."""
    text = data.strip()
    if not text.startswith((b"[", b"{")):
        return None
    if text.startswith(b"{"):
        first, _, more = text.partition(b"\n")
        try:
            json.loads(first)
        except (ValueError, RecursionError):
            if not more:
                return None
        else:
            return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else [found]


def _object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _Fault(f"is not UTF-8 text ({error.reason}); write it as JSON Lines") from None
    except RecursionError:
        raise _Fault("is nested too deeply; write one object a line") from None
    except ValueError as error:
        raise _Fault(f"is not JSON ({error}); write one object a line") from None
    return row if isinstance(row, dict) else _no_object(row)


def _no_object(row: object) -> dict[str, Any]:
    raise _Fault(f'is {_short(row)}, not an object; write {{"qid": ..., "text": ...}}')


def _settings(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f'settings = {_short(value)} is not an object; write {{"settings": {{"fps": 2, ...}}}}')
    return value


def _row(row: dict[str, Any]) -> tuple[str, PredictedRow]:
    qid = row.get("qid")
    # True is an int for Python, not for a person who writes a predictions file.
    if isinstance(qid, bool) or not isinstance(qid, str | int) or qid == "":
        raise _Fault(f"qid = {_short(qid)} names no question; write the moment's qid as text or a whole number")
    given = [name for name in (*_TEXTS, *_WINDOWS) if row.get(name) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "neither text nor windows"
        raise _Fault(f"qid {qid} holds {what}; give the answer once, as text or as windows")
    value = row[given[0]]
    if given[0] in _WINDOWS:
        return str(qid), _ranked(qid, given[0], value)
    if not isinstance(value, str):
        raise _Fault(f"qid {qid}: text = {_short(value)} is not text; write what the model wrote")
    finished = row.get("finished", True)
    if not isinstance(finished, bool):
        raise _Fault(f"qid {qid}: finished = {_short(finished)} is neither true nor false; write one of them")
    return str(qid), PredictedRow(value, finished=finished)


def _ranked(qid: object, name: str, value: object) -> PredictedRow:
    if not isinstance(value, list):
        raise _Fault(f"qid {qid}: {name} = {_short(value)} is not a list; write [[start, end], ...] in seconds")
    lengths = {len(window) if isinstance(window, list) else 0 for window in value}
    if not lengths <= {2, 3} or len(lengths) > 1:
        step = "write all as [start, end] or all as [start, end, score]"
        raise _Fault(f"qid {qid}: {name} = {_short(value)} mixes forms; {step}")
    for window in value:
        for number in window:
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not abs(number) <= sys.float_info.max
            ):
                raise _Fault(f"qid {qid}: {name} holds {_short(window)}; write plain finite numbers")
    windows = tuple((float(window[0]), float(window[1])) for window in value)
    scores = tuple(float(window[2]) for window in value) if lengths == {3} else None
    return PredictedRow(windows=windows, scores=scores)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
