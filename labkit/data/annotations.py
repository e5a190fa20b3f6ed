"""Formats: annotation files as their owners publish them, read into rows that nobody has judged yet.

A file is recognised by what stands in it, never by its name, and unpacked where it is gzip:

    Charades-STA txt   `VIDEO start end##sentence` a line; durations stand in Charades_v1_{train,test}.csv beside it
    captions JSON      {video: {duration, timestamps, sentences}}: ActivityNet-Captions, and Charades-STA's newer form;
                       with fps and num_frames instead of a duration TACoS, whose times are in frames
    TimeLens-Bench     {video: {duration, spans, queries}}
    QVHighlights       qid, query, duration, vid = ID_start_end, relevant_windows
    TVGBench           path, question, answer "start-end", duration, and the trim window's start, end
    TimeRFT            video, duration, timestamp, sentence, and the trim window's video_start, video_end
    TimeLens-100K      source, video_path, duration, events = [{query, span}, ...]
    lmms-eval          video, caption, timestamp
    QAEgo4D            video_id, question, moment_start_frame, moment_end_frame
    labels             video, start, end and sentence, caption or query: what people write themselves, mostly as csv
    NExT-GQA           csv of question, answer, five options; evidence stands in gsub_{val,test}.json beside it
    moments            our own, see `labkit.data.moments`

Objects are read alike from JSON Lines, from a JSON list and from a table with a head line.

A format is not whose videos are asked about: a moment's `source` is told by the videos' ids (`labkit.data.owners`), by what
the row says of itself, or else it is the file's own name.

Ids are the file's own; where it has none they are VIDEO-k, the k-th query of that video from 0, or tvgbench-k, row k
from 0. What is missing or ill-typed stays as it is, for `labkit.data.cleaning` to decide.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from labkit.data.companions import CHARADES, QUESTIONS, charades, nextgqa, with_durations
from labkit.data.moments import ANSWERS, FIELDS, FRAME, REQUIRED, SCORE_STEP
from labkit.data.owners import owners_of
from labkit.data.rows import (
    TIME,
    Repeated,
    Row,
    Table,
    Unread,
    has,
    read_encoded,
    read_object,
    read_table,
    short,
    to_seconds,
    unrepeated,
)
from labkit.data.video_index import is_elsewhere, local_path, stem_of, trim_window
from labkit.errors import LabError

_PAIR = re.compile(rf"\s*({TIME})\s*s?\s*(?:-|–|—|to)\s*({TIME})\s*s?\s*", re.ASCII)
_WINDOW_IN_NAME = re.compile(r"(.+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)", re.ASCII)
_SENTENCES = ("sentence", "caption", "query")
_CAPTIONS = {("timestamps", "sentences"): "ActivityNet-Captions", ("spans", "queries"): "TimeLens-Bench"}
_TIMELENS = (CHARADES, "activitynet", "qvhighlights")


@dataclass
class _File:
    """What a reader knows of its file beside the row: its folder, and how often a video was asked about."""

    path: Path
    asked: Counter[str] = field(default_factory=Counter)

    def qid(self, video: str) -> str:
        """The next question's id of a video, where the file gives none."""
        stem = stem_of(video)[0]
        self.asked[stem] += 1
        return f"{stem}-{self.asked[stem] - 1}"


class _Form(NamedTuple):
    """A form of objects: the fields that one is recognised by, those that no row may lack, and its reader.

    The reader is given the file, the row's line, its number from 0 and the object.
    """

    title: str
    fields: tuple[str, ...]
    needed: tuple[str, ...]
    read: Callable[[_File, int | str, int, dict[str, Any]], Iterable[Row]]


def read_rows(path: Path, durations: str | Path | None = None) -> Table:
    """Recognise a file and read its rows; `durations` is a csv with columns id and length, for rows without.

    Raises LabError when the file, or one that belongs to it, is missing, unreadable or in none of the formats; where it is
    known what the file is instead, that is said.
    """
    text, encoding = read_encoded(path)
    if not text.strip() or text.split() in (["[]"], ["{}"]):
        raise LabError(f"{path} holds no row; download it again")
    try:
        document = json.loads(text, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        table = _lines(path, text)
        if table is None and isinstance(error, Repeated):
            raise LabError(f"{path}: {error} in one object; keep one of the two") from None
        if table is None and text.lstrip().startswith(("{", "[")):
            raise LabError(f"{path} is not JSON ({error}); download it again") from None
    else:
        table = _document(path, document)
    if table is None:
        titles = ("Charades-STA", *_CAPTIONS.values(), "NExT-GQA", *dict.fromkeys(form.title for form in FORMS))
        forms = ", ".join(titles)
        raise LabError(f"{path} is no annotation file that labkit knows ({forms}); give one as its owners publish it")
    return table._replace(rows=with_durations(table.rows, path, durations), encoding=encoding)


def _document(path: Path, document: Any) -> Table | None:
    if isinstance(document, list):
        return _objects(path, [(f"row {k}", row) for k, row in enumerate(document)])
    if not isinstance(document, dict):
        return None
    for labels, title in _CAPTIONS.items():
        if any(has(value, *labels) for value in document.values()):
            return _owned(path, title, list(_captions(document, *labels)))
    if any(">>>" in key for key in document):
        raise LabError(
            f"{path} holds predictions (as TimeLens and lmms-eval write them), no annotations; {SCORE_STEP}"
        )
    return _objects(path, [(1, document)])


def _lines(path: Path, text: str) -> Table | None:
    """A file that is not one JSON document: JSON Lines, a table, or Charades-STA's text."""
    # Not splitlines, which also breaks at marks that a sentence may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines[0][1].lstrip().startswith(("{", "[")):
        if any("##" in line for _, line in lines):
            return _owned(path, "Charades-STA txt", list(charades(lines)))
        try:
            head, cells = read_table(text.lstrip("\n"))
        except ValueError:
            head, cells = (), []
        if set(QUESTIONS) <= set(head):
            return Table("NExT-GQA", list(nextgqa(path, head, cells)))
        if len(head) > 1 and (table := _objects(path, list(cells))):
            return table
    return _objects(path, [(number, read_object(line)) for number, line in lines])


def _objects(path: Path, objects: list[tuple[int | str, Any]]) -> Table | None:
    """Rows of the first form that any object has; what is no object is told by its error text."""
    for form in FORMS:
        if any(has(row, *form.fields) for _, row in objects):
            file = _File(path)
            rows = [row for k, (line, each) in enumerate(objects) for row in _checked(form, file, line, k, each)]
            return Table(form.title, rows) if form.title == "moments" else _owned(path, form.title, rows)
    for fields, what in _OTHERS:
        if any(has(row, *fields) for _, row in objects):
            raise LabError(f"{path} holds {what}")
    return None


def _checked(form: _Form, file: _File, line: int | str, number: int, row: Any) -> Iterable[Row]:
    """The form's rows where the object has the fields without which nothing can be told about it."""
    if not isinstance(row, dict):
        return [Row(line, "", fault=row if isinstance(row, Unread) else f"{short(row)} is not an object")]
    if missing := [field for field in form.needed if row.get(field) is None]:
        own = row.get("qid")
        return [Row(line, own if isinstance(own, str) else "", fault=f"{', '.join(missing)} missing")]
    return form.read(file, line, number, row)


def _owned(path: Path, title: str, rows: list[Row]) -> Table:
    """The rows with their sources, and whose they are: the form's own benchmark, or another one in its form."""
    owners = owners_of(row.cut or row.video for row in rows if row.video)
    name = path.name.removesuffix(".gz").partition(".")[0]

    def source(row: Row) -> str:
        if row.source or not row.video:
            return row.source
        owner = owners[row.cut or row.video]
        # Charades' labels are seconds: five characters may be anybody's id.
        owner = "" if owner == CHARADES and row.rate is not None else owner
        return f"timelens-bench/{owner}" if title == "TimeLens-Bench" and owner in _TIMELENS else owner or name

    rows = [replace(row, source=source(row)) for row in rows]
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    own = {_TITLES.get(each.partition("/")[0], "") for each in sources}
    if title == "ActivityNet-Captions" and own == {"Charades-STA txt"}:
        return Table("Charades-STA json", rows)
    return Table(title if own <= {title} else ", ".join(sources[:3]), rows)


_TITLES = {
    "charades-sta": "Charades-STA txt", "activitynet": "ActivityNet-Captions", "timelens-bench": "TimeLens-Bench",
    "timelens-100k": "TimeLens-100K", "qvhighlights": "QVHighlights", "tvgbench": "TVGBench", "timerft": "TimeRFT",
}  # fmt: skip
"""The form in which a source's owners publish it."""


def _captions(document: dict[str, Any], stamped: str, said: str) -> Iterator[Row]:
    for video, entry in document.items():
        if not (has(entry, stamped, said) and isinstance(entry[stamped], list) and isinstance(entry[said], list)):
            yield Row(f"key {video}", "", fault=f"{short(entry)} has no lists of {stamped} and {said}")
            continue
        stamps, sentences = entry[stamped], entry[said]
        duration, rate = entry.get("duration", entry.get("video_duration")), None
        if duration is None and "fps" in entry:
            rate, frames = entry["fps"] or "", to_seconds(entry.get("num_frames"))
            duration = frames / fps if frames and (fps := to_seconds(rate)) else None
        for k in range(max(len(stamps), len(sentences))):
            line, qid = f"key {video}[{k}]", f"{stem_of(video)[0]}-{k}"
            if k >= min(len(stamps), len(sentences)):
                counted = f"{len(stamps)} {stamped} for {len(sentences)} {said}: this one has no partner"
                yield Row(line, qid, fault=counted)
            else:
                yield Row(line, qid, video, sentences[k], [stamps[k]], duration, rate=rate)


def _qvhighlights(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video = str(row["vid"])
    trimmed = _WINDOW_IN_NAME.fullmatch(stem_of(video)[0])
    clip = [float(trimmed[2]), float(trimmed[3])] if trimmed else None
    yield Row(
        line, row["qid"], trimmed[1] if trimmed else video, row["query"], row.get("relevant_windows"),
        row.get("duration"), clip, cut=video if trimmed else "",
    )  # fmt: skip


def _tvgbench(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    bins, answer, video = row.get("bins"), row["answer"], str(row["path"])
    part = row.get("dataset_name") or (bins.get("dataset") if isinstance(bins, dict) else None)
    pair = _PAIR.fullmatch(answer) if isinstance(answer, str) else None
    own = row.get("qid") or (f"tvgbench-{number:03d}" if part else file.qid(video))
    yield Row(
        line, own, video, row["question"], [[pair[1], pair[2]] if pair else answer], row.get("duration"),
        _both(row.get("start"), row.get("end")), source=f"tvgbench/{part}" if part else "",
    )  # fmt: skip


def _timerft(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """Names such as ID_00:00:39:000_00:01:24:700.mp4 are files that hold seconds 39 to 84.7 of ID.mp4 and no more."""
    video, own, cut = str(row["video"]), row.get("qid"), ""
    qid = own or file.qid(video)
    clip = _both(row.get("video_start"), row.get("video_end"))
    stem, suffix = stem_of(video)
    if clip is not None and ":" in stem and (window := trim_window(stem)):
        if not _near(clip[0], window[1]) or not _near(clip[1], window[2]):
            said = f"the video's name says {window[1]:g} to {window[2]:g} s, its trim window {clip[0]} to {clip[1]}"
            yield Row(line, qid, fault=said)
            return
        video, cut = window[0] + suffix, video
    part = own.split("|")[1] if isinstance(own, str) and own.count("|") >= 2 else ""
    yield Row(
        line, qid, video, row["sentence"], [row["timestamp"]], row.get("duration"), clip, cut,
        source=f"timerft/{part}" if part else "",
    )  # fmt: skip


def _timelens(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video, events = str(row["video_path"]), row["events"]
    source = f"timelens-100k/{row['source']}" if isinstance(row.get("source"), str) else ""
    for event in events if isinstance(events, list) else [events]:
        if has(event, "query", "span"):
            windows = event["span"]
            yield Row(line, file.qid(video), video, event["query"], windows, row.get("duration"), source=source)
        else:
            yield Row(line, file.qid(video), fault=f"event {short(event)} has no query and span")


def _labels(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """What names its video, its sentence and one window, in the words that people use for them."""
    video = str(row["video"])
    query = next((row[name] for name in _SENTENCES if row.get(name) is not None), None)
    window = row["timestamp"] if "timestamp" in row else [row["start"], row["end"]]
    yield Row(line, row.get("qid") or file.qid(video), video, query, [window], row.get("duration"))


def _qaego4d(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video, window = str(row["video_id"]), [row["moment_start_frame"], row["moment_end_frame"]]
    qid = row.get("sample_id") or file.qid(video)
    yield Row(line, qid, video, row["question"], [window], row.get("duration"), rate=row.get("fps") or "")


def _moment(file: _File, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video, source = row["video"], row.get("source")
    if not isinstance(video, str) or not video.strip():
        yield Row(line, row["qid"], fault=f"video = {short(video)} is no path")
        return
    yield Row(
        line, row["qid"], video, row["query"], row.get("windows"), row.get("duration"), row.get("clip"),
        path="" if is_elsewhere(video) else local_path(video, file.path.parent),
        source=source if isinstance(source, str) else "", options=row.get("options"), choice=row.get("choice"),
        unknown=tuple(sorted(set(row) - set(FIELDS))),
    )  # fmt: skip


FORMS = (
    _Form("QVHighlights", ("vid", "query", "relevant_windows"), ("qid", "vid", "query"), _qvhighlights),
    _Form("TVGBench", ("path", "question", "answer"), ("path", "question", "answer"), _tvgbench),
    _Form("TimeRFT", ("video", "sentence", "timestamp"), ("video", "sentence", "timestamp"), _timerft),
    _Form("TimeLens-100K", ("video_path", "events"), ("video_path", "events"), _timelens),
    _Form("lmms-eval", ("video", "caption", "timestamp"), ("video", "caption", "timestamp"), _labels),
    _Form(
        "QAEgo4D",
        ("video_id", "question", "moment_start_frame"),
        ("video_id", "question", "moment_end_frame"),
        _qaego4d,
    ),
    _Form("moments", ("qid", "query", "windows"), REQUIRED[:3], _moment),
    *(_Form("labels", ("video", "start", "end", name), ("video", "start", "end"), _labels) for name in _SENTENCES),
    _Form("moments", ("qid", "query", "video"), REQUIRED[:3], _moment),
    _Form("moments", ("qid", "video", "windows"), REQUIRED[:3], _moment),
)
"""Forms of objects, in the order in which they are tried."""

_FROM_WHICH = "whose times stand in sentences; give the annotation file that they were made from"
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    *((fields, f"predictions ({', '.join(fields)}), no annotations; {SCORE_STEP}") for fields in ANSWERS),
    (("vid", "query"), "no relevant_windows: its labels are not published; use train or val"),
    (("id", "length"), "durations, no annotations; give the file of queries, and this one as its durations"),
    (("conversations",), f"ShareGPT conversations, training texts {_FROM_WHICH}"),
    (("messages",), f"chats (messages, as ms-swift and TimeLens2 train on), {_FROM_WHICH}"),
    (("videos", "version"), "Ego4D's own tree of videos, clips and annotations; give a file of one row a query"),
)
"""Objects that are no annotations: the fields they are recognised by, what they are and what to do."""


def _both(start: Any, end: Any) -> list[Any] | None:
    """A trim window, None when neither end is given."""
    return None if start is None and end is None else [start, end]


def _near(value: Any, seconds: float) -> bool:
    given = to_seconds(value)
    return given is not None and abs(given - seconds) <= FRAME
