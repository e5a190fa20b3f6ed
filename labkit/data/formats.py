"""Formats: annotation files as their owners publish them, read into rows that nobody has judged yet.

A file is recognised by what stands in it, never by its name:

    Charades-STA txt   `VIDEO start end##sentence` a line; durations stand in Charades_v1_{train,test}.csv beside it
    captions JSON      {video: {duration, timestamps, sentences}}: ActivityNet-Captions, and Charades-STA's newer form
    QVHighlights       JSON Lines of qid, query, duration, vid = ID_start_end, relevant_windows
    TVGBench           JSON list of path, question, answer "start-end", duration, and the trim window's start, end
    TimeRFT            JSON list of video, duration, timestamp, sentence, and the trim window's video_start, video_end
    NExT-GQA           csv of question, answer, five options; evidence stands in gsub_{val,test}.json beside it
    moments            our own JSON Lines, see `labkit.data.moments`

Ids are the file's own; where it has none they are VIDEO-k, the k-th query of that video from 0, or tvgbench-k, row k
from 0. What is missing or ill-typed stays as it is, for `labkit.data.judge` to decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from labkit.data.companions import charades, charades_durations, nextgqa
from labkit.data.folders import stem_of
from labkit.data.moments import FIELDS, FRAME, REQUIRED
from labkit.data.rows import NUMBER, Repeated, Row, Table, Unread, has, read_object, read_text, short, unrepeated
from labkit.errors import LabError

_PAIR = re.compile(rf"\s*({NUMBER})\s*-\s*({NUMBER})\s*", re.ASCII)
_TRIMMED = re.compile(r"(.+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)", re.ASCII)
_CLOCK = r"(\d+):(\d\d):(\d\d[:.]\d+)"
_STAMPED = re.compile(rf"(.+)_{_CLOCK}_{_CLOCK}", re.ASCII)
_LABELS = ("timestamps", "sentences")
# What ActivityNet puts before a video's id, and nobody else.
_ACTIVITYNET = "v_"


def read_rows(path: Path, durations: str | Path | None = None) -> Table:
    """Recognise a file and read its rows; `durations` is a csv with columns id and length, for Charades-STA's txt.

    Raises LabError when the file, or one that belongs to it, is missing, unreadable or in none of the formats.
    """
    text = read_text(path)
    if not text.strip() or text.split() in (["[]"], ["{}"]):
        raise LabError(f"{path} holds no row; download it again")
    try:
        document = json.loads(text, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        table = _lines(path, text, durations)
        if table is None and isinstance(error, Repeated):
            raise LabError(f"{path}: {error} in one object; keep one of the two") from None
        if table is None and text.lstrip().startswith(("{", "[")):
            raise LabError(f"{path} is not JSON ({error}); download it again") from None
    else:
        table = _document(path, document)
    if table is None:
        forms = "Charades-STA, ActivityNet-Captions, QVHighlights, TVGBench, TimeRFT, NExT-GQA or labkit's own jsonl"
        raise LabError(f"{path} is no annotation file that labkit knows ({forms}); give one as its owners publish it")
    return table


def _document(path: Path, document: Any) -> Table | None:
    if isinstance(document, dict):
        if any(has(value, *_LABELS) for value in document.values()):
            title = "ActivityNet-Captions" if next(iter(document)).startswith(_ACTIVITYNET) else "Charades-STA json"
            return Table(title, list(_captions(document)))
        return _objects(path, [(1, document)])
    if isinstance(document, list):
        forms: list[tuple[tuple[str, ...], str, Callable[[int, dict[str, Any]], Row]]] = [
            (("path", "question", "answer"), "TVGBench", _tvgbench),
            (("video", "sentence", "timestamp"), "TimeRFT", _timerft),
        ]
        for fields, title, read in forms:
            if any(has(row, *fields) for row in document):
                return Table(title, [_checked(f"row {k}", row, fields, k, read) for k, row in enumerate(document)])
    return None


def _lines(path: Path, text: str, durations: str | Path | None) -> Table | None:
    """A file that is not one JSON document: JSON Lines, a table, or Charades-STA's text."""
    head = text.partition("\n")[0].strip().split(",")
    if {"video_id", "question", "answer", "qid", "a0", "a1"} <= set(head):
        return Table("NExT-GQA", list(nextgqa(path, text)))
    # Not splitlines, which also breaks at marks that a sentence may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("{") or not any("##" in line for _, line in lines):
        return _objects(path, [(number, read_object(line)) for number, line in lines])
    return Table("Charades-STA txt", list(charades(lines, charades_durations(path, durations))))


def _objects(path: Path, objects: list[tuple[int, Any]]) -> Table | None:
    """JSON Lines: QVHighlights or our own; what is no object is told by its error text."""
    if any(has(row, "vid", "query") for _, row in objects):
        if not any(has(row, "relevant_windows") for _, row in objects):
            raise LabError(f"{path} holds no relevant_windows: its labels are not published; use train or val")
        needed = ("qid", "vid", "query")
        return Table("QVHighlights", [_checked(n, row, needed, n, _qvhighlights) for n, row in objects])
    if any(has(row, "qid", "query") and ("video" in row or "windows" in row) for _, row in objects):

        def moment(number: int, row: dict[str, Any]) -> Row:
            return _moment(path.parent, number, row)

        return Table("moments", [_checked(n, row, REQUIRED[:3], n, moment) for n, row in objects])
    return None


def _checked(line: int | str, row: Any, needed: Iterable[str], number: int, read: Callable[[int, Any], Row]) -> Row:
    """`read` where the row is an object that has the fields without which nothing can be told about it."""
    if not isinstance(row, dict):
        return Row(line, "", fault=row if isinstance(row, Unread) else f"{short(row)} is not an object")
    if missing := [field for field in needed if row.get(field) is None]:
        own = row.get("qid")
        return Row(line, own if isinstance(own, str) else "", fault=f"{', '.join(missing)} missing")
    return read(number, row)


def _captions(document: dict[str, Any]) -> Iterator[Row]:
    for video, entry in document.items():
        if not (has(entry, *_LABELS) and all(isinstance(entry[field], list) for field in _LABELS)):
            yield Row(f"key {video}", "", fault=f"{short(entry)} has no lists of timestamps and sentences")
            continue
        stamps, sentences = entry["timestamps"], entry["sentences"]
        source = "activitynet" if video.startswith(_ACTIVITYNET) else "charades-sta"
        for k in range(max(len(stamps), len(sentences))):
            line, qid = f"key {video}[{k}]", f"{video}-{k}"
            if k >= min(len(stamps), len(sentences)):
                counted = f"{len(stamps)} timestamps for {len(sentences)} sentences: this one has no partner"
                yield Row(line, qid, fault=counted)
            else:
                yield Row(line, qid, video, sentences[k], [stamps[k]], entry.get("duration"), source=source)


def _qvhighlights(number: int, row: dict[str, Any]) -> Row:
    video = str(row["vid"])
    trimmed = _TRIMMED.fullmatch(video)
    clip = [float(trimmed[2]), float(trimmed[3])] if trimmed else None
    return Row(
        number, row["qid"], trimmed[1] if trimmed else video, row["query"], row.get("relevant_windows"),
        row.get("duration"), clip, cut=video if trimmed else "", source="qvhighlights",
    )  # fmt: skip


def _tvgbench(number: int, row: dict[str, Any]) -> Row:
    bins = row.get("bins")
    part = row.get("dataset_name") or (bins.get("dataset") if isinstance(bins, dict) else None)
    pair = _PAIR.fullmatch(row["answer"]) if isinstance(row["answer"], str) else None
    windows = [[float(pair[1]), float(pair[2])]] if pair else [row["answer"]]
    return Row(
        f"row {number}", f"tvgbench-{number:03d}", str(row["path"]), row["question"], windows, row.get("duration"),
        _both(row.get("start"), row.get("end")), source=f"tvgbench/{part}" if part else "tvgbench",
    )  # fmt: skip


def _timerft(number: int, row: dict[str, Any]) -> Row:
    """Names such as ID_00:00:39:000_00:01:24:700.mp4 are files that hold seconds 39 to 84.7 of ID.mp4 and no more."""
    video, own, cut = str(row["video"]), row.get("qid"), ""
    clip = _both(row.get("video_start"), row.get("video_end"))
    stem, suffix = stem_of(video)
    if clip is not None and (stamped := _STAMPED.fullmatch(stem)):
        begun, ended = _clock(*stamped.groups()[1:4]), _clock(*stamped.groups()[4:7])
        if not _near(clip[0], begun) or not _near(clip[1], ended):
            fault = f"the video's name says {begun:g} to {ended:g} s, its trim window {clip[0]} to {clip[1]}"
            return Row(f"row {number}", own or f"timerft-{number}", fault=fault)
        video, cut = stamped[1] + suffix, video
    part = own.split("|")[1] if isinstance(own, str) and own.count("|") >= 2 else ""
    return Row(
        f"row {number}", own or f"timerft-{number}", video, row["sentence"], [row["timestamp"]], row.get("duration"),
        clip, cut, source=f"timerft/{part}" if part else "timerft",
    )  # fmt: skip


def _moment(folder: Path, number: int, row: dict[str, Any]) -> Row:
    video = row["video"]
    if not isinstance(video, str) or not video.strip():
        return Row(number, row["qid"], fault=f"video = {short(video)} is no path")
    source = row.get("source")
    return Row(
        number, row["qid"], video, row["query"], row.get("windows"), row.get("duration"), row.get("clip"),
        path=str(folder / video), source=source if isinstance(source, str) else "", options=row.get("options"),
        choice=row.get("choice"), unknown=tuple(sorted(set(row) - set(FIELDS))),
    )  # fmt: skip


def _both(start: Any, end: Any) -> list[Any] | None:
    """A trim window, None when neither end is given."""
    return None if start is None and end is None else [start, end]


def _clock(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(":", "."))


def _near(value: Any, seconds: float) -> bool:
    return isinstance(value, int | float) and abs(value - seconds) <= FRAME
