"""Predictions: what any model answered, one row for each question.

A predictions file is JSON Lines: UTF-8, one object a line, lines without any text are passed over. Each row holds

    qid                     the question's name, text or a whole number
    text                    what the model wrote, from which a rule reads the answer
    windows                 or instead of text: [[start, end], ...] or [[start, end, score], ...] in seconds, best first
    pred_relevant_windows   another name for windows, the one of QVHighlights submissions
    finished                false when the generation hit its token limit (may be left out; goes with text)

and whatever else its model wrote down, which isn't read. The first line may be {"settings": {...}} without a qid: how the
answers were decoded and what the model saw of the video, for the protocol card (see `labkit.chain.protocol`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.chain.anchors import ChainRecord
from labkit.errors import LabError
from labkit.files import replacing

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
    """A model's answers by question; `duplicates` are the qids that came again, of which the first row counts."""

    rows: Mapping[str, PredictedRow]
    settings: Mapping[str, Any] = field(default_factory=dict)
    duplicates: tuple[str, ...] = ()
    file: str = ""

    @property
    def ranked(self) -> bool:
        """Whether the rows hold ranked windows instead of texts."""
        return any(row.windows is not None for row in self.rows.values())


Answers = Predictions | str | Path | Mapping[str, str | PredictedRow] | Iterable[ChainRecord]
"""What can be scored: predictions, the path of their file, texts by qid, or chains on record."""


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
        rows = {qid: PredictedRow(row) if isinstance(row, str) else row for qid, row in source.items()}
        return Predictions(rows, settings or {})
    rows, again = {}, []
    for record in source:
        if record.qid in rows:
            again.append(record.qid)
        else:
            rows[record.qid] = PredictedRow(record.text, finished=record.status != "cut_off")
    return Predictions(rows, settings or {}, tuple(again))


def read_predictions(path: str | Path) -> Predictions:
    """Predictions of a JSON Lines file.

    Raises: LabError that names file, line, fault and next step at the first row that can't be used, and for a file that is
    missing or unreadable. An empty file is no fault: all its questions are unanswered.
    """
    path = Path(path)
    try:
        # Not splitlines(), which also splits at characters that may stand inside a text.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise LabError(f"predictions '{path}' can't be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise LabError(f"predictions '{path}' is not UTF-8 text ({error.reason}); write it as JSON Lines") from None
    rows: dict[str, PredictedRow] = {}
    settings: Mapping[str, Any] = {}
    again: list[str] = []
    kind, first = "", True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _object(line)
            if "qid" not in row and "settings" in row:
                if not first:
                    raise _Fault("settings are not in the first line; move them to the top")
                settings = _settings(row["settings"])
            else:
                qid, answer = _row(row)
                found = "text" if answer.text is not None else "windows"
                if kind not in ("", found):
                    raise _Fault(f"holds {found} while rows before hold {kind}; score the two in files of their own")
                kind = found
                if qid in rows:
                    again.append(qid)
                else:
                    rows[qid] = answer
        except _Fault as fault:
            raise LabError(f"{path}, line {number}: {fault}") from None
        first = False
    return Predictions(rows, settings, tuple(again), str(path))


def write_predictions(
    path: str | Path,
    source: Answers,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write predictions that `read_predictions` reads back, whole or not at all; duplicates are left out."""
    predictions = as_predictions(source, settings)
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


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise _Fault("is nested too deeply; write one object a line") from None
    except ValueError as error:
        raise _Fault(f"is not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise _Fault(f'is {_short(row)}, not an object; write {{"qid": ..., "text": ...}}')
    return row


def _settings(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(f'settings = {_short(value)} is not an object; write {{"settings": {{"fps": 2, ...}}}}')
    return value


def _row(row: dict[str, Any]) -> tuple[str, PredictedRow]:
    qid = row.get("qid")
    # True is an int for Python, not for a person who writes a predictions file.
    if isinstance(qid, bool) or not isinstance(qid, str | int) or qid == "":
        raise _Fault(f"qid = {_short(qid)} names no question; write the moment's qid as text or a whole number")
    given = [name for name in ("text", *_WINDOWS) if row.get(name) is not None]
    if len(given) != 1:
        what = " and ".join(given) if given else "neither text nor windows"
        raise _Fault(f"qid {qid} holds {what}; give the answer once, as text or as windows")
    value = row[given[0]]
    if given[0] != "text":
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
