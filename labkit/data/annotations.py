"""Annotations: files as their authors publish them, read into rows that are not checked yet.

A file is recognised by what stands in it, never by its name, and unpacked where it is gzip:

    Charades-STA txt   `VIDEO start end##sentence` a line; durations stand in Charades_v1_{train,test}.csv beside it
    captions JSON      {video: {duration, timestamps, sentences}}: ActivityNet-Captions, and Charades-STA's newer form;
                       with fps and num_frames instead of a duration TACoS, whose times are in frames
    TimeLens-Bench     {video: {duration, spans, queries}}; those of QVHighlights are called ID_start_end
    QVHighlights       qid, query, duration, vid = ID_start_end, relevant_windows
    TVGBench           path, question, answer "start-end", duration, and the trim window's start, end
    TimeRFT            video, duration, timestamp, sentence, and the trim window's video_start, video_end
    TimeLens-100K      source, video_path, duration, events = [{query, span}, ...], or flat: query, span
    TimeLens2          video_id, annotations = [{text, timestamps}, ...], or messages = [question, answer, ...] of a video
    Ego4D-NLQ          videos > clips > annotations > language_queries
    HiREST             {query: {video: {relevant, clip, v_duration, bounds, steps}}}
    DiDeMo             annotation_id, description, video, times in chunks of 5 s, num_segments
    lmms-eval          video, caption, timestamp
    QAEgo4D            video_id, question, moment_start_frame, moment_end_frame
    labels             video, start, end and sentence, caption or query: what people write themselves, mostly as csv
    NExT-GQA           csv of question, answer, five options; evidence stands in gsub_{val,test}.json beside it
    moments            our own, see `labkit.data.moments`

Objects are read alike from JSON Lines, from a JSON list and from a table with a head line.

A format does not say whose videos they are: a moment's `source` comes from the videos' ids (`benchmarks_by_id`), from what
the row says of itself, or else it is the file's own name.

Two formats need a second file beside them: Charades-STA's txt gives no durations, which are Charades' own, in a csv;
NExT-GQA's questions are a csv, their evidence is a JSON file.

Ids are the file's own; where it has none they are VIDEO-k, the k-th query of that video from 0, or tvgbench-k, row k
from 0. What is missing or ill-typed stays as it is, for `labkit.data.cleaning` to decide.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from labkit.data.moments import ANSWERS, FIELDS, FRAME, REQUIRED, SCORE_STEP, benchmarks_by_id
from labkit.data.nested_forms import (
    conversation,
    didemo,
    ego4d_nlq,
    hirest,
    is_conversation,
    is_hirest,
    timelens_events,
)
from labkit.data.rows import (
    TIME,
    AnnotationFile,
    InvalidLine,
    RepeatedKey,
    Row,
    RowFile,
    has,
    read_encoded,
    read_object,
    read_table,
    read_text,
    refuse_repeated_keys,
    short,
    to_seconds,
)
from labkit.data.video_index import is_foreign_path, local_path, stem_of, trim_window
from labkit.errors import LabError

DURATIONS = ("Charades_v1_train.csv", "Charades_v1_test.csv")
"""Charades' own tables, with a column length."""
CHARADES = "charades-sta"
"""The source of a moment of Charades-STA, in whatever form."""
QUESTIONS = ("video_id", "question", "answer", "qid", "a0", "a1")
"""Columns that NExT-GQA's questions have."""

_PAIR = re.compile(rf"\s*({TIME})\s*s?\s*(?:-|–|—|to)\s*({TIME})\s*s?\s*", re.ASCII)
_WINDOW_IN_NAME = re.compile(r"(.+)_(\d+(?:\.\d+)?)_(\d+(?:\.\d+)?)", re.ASCII)
_SENTENCES = ("sentence", "caption", "query")
_CAPTIONS = {("timestamps", "sentences"): "ActivityNet-Captions", ("spans", "queries"): "TimeLens-Bench"}
_TIMELENS = (CHARADES, "activitynet", "qvhighlights")


class _Form(NamedTuple):
    """A form of objects: the fields that one is recognised by, those that no row may lack, and its reader.

    The reader is given the file, the row's line, its number from 0 and the object. `accepts` is asked where fields don't tell.
    """

    title: str
    fields: tuple[str, ...]
    needed: tuple[str, ...]
    read: Callable[[RowFile, int | str, int, dict[str, Any]], Iterable[Row]]
    accepts: Callable[[Any], bool] = bool


def read_rows(path: Path, durations: str | Path | None = None) -> AnnotationFile:
    """Recognise a file and read its rows; `durations` is a csv with columns id and length, for rows without.

    Raises LabError when the file, or one that belongs to it, is missing, unreadable or in none of the formats; where it is
    known what the file is instead, that is said.
    """
    text, encoding = read_encoded(path)
    if not text.strip() or text.split() in (["[]"], ["{}"]):
        raise LabError(f"{path} holds no row; download it again")
    try:
        document = json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except (ValueError, RecursionError) as error:
        table = _lines(path, text)
        if table is None and isinstance(error, RepeatedKey):
            raise LabError(f"{path}: {error} in one object; keep one of the two") from None
        if table is None and text.lstrip().startswith(("{", "[")):
            raise LabError(f"{path} is not JSON ({error}); download it again") from None
    else:
        table = _document(path, document)
    if table is None:
        titles = (
            "Charades-STA",
            *_CAPTIONS.values(),
            "NExT-GQA",
            "HiREST",
            *dict.fromkeys(form.title for form in FORMS),
        )
        forms = ", ".join(titles)
        raise LabError(f"{path} is no annotation file that labkit knows ({forms}); give one as its authors publish it")
    return table._replace(rows=with_durations(table.rows, path, durations), encoding=encoding)


def _document(path: Path, document: Any) -> AnnotationFile | None:
    if isinstance(document, list):
        return _objects(path, [(f"row {k}", row) for k, row in enumerate(document)])
    if not isinstance(document, dict):
        return None
    for labels, title in _CAPTIONS.items():
        if any(has(value, *labels) for value in document.values()):
            return _with_sources(path, title, list(_captions(document, *labels)))
    if is_hirest(document):
        return _with_sources(path, "HiREST", list(hirest(document)))
    if any(">>>" in key for key in document):
        raise LabError(
            f"{path} holds predictions (as TimeLens and lmms-eval write them), no annotations; {SCORE_STEP}"
        )
    return _objects(path, [(1, document)])


def _lines(path: Path, text: str) -> AnnotationFile | None:
    """A file that is not one JSON document: JSON Lines, a table, or Charades-STA's text."""
    # Not splitlines, which also breaks at marks that a sentence may hold.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines[0][1].lstrip().startswith(("{", "[")):
        if any("##" in line for _, line in lines):
            return _with_sources(path, "Charades-STA txt", list(charades(lines)))
        try:
            head, cells = read_table(text.lstrip("\n"))
        except ValueError:
            head, cells = (), []
        if set(QUESTIONS) <= set(head):
            return AnnotationFile("NExT-GQA", list(nextgqa(path, head, cells)))
        if len(head) > 1 and (table := _objects(path, list(cells))):
            return table
    return _objects(path, [(number, read_object(line)) for number, line in lines])


def _objects(path: Path, objects: list[tuple[int | str, Any]]) -> AnnotationFile | None:
    """Rows of the first form that any object has; what is no object becomes a row with a fault."""
    for form in FORMS:
        if any(has(row, *form.fields) and form.accepts(row) for _, row in objects):
            file = RowFile(path)
            rows = [row for k, (line, each) in enumerate(objects) for row in _checked(form, file, line, k, each)]
            return (
                AnnotationFile(form.title, rows) if form.title == "moments" else _with_sources(path, form.title, rows)
            )
    for fields, what in _OTHERS:
        if any(has(row, *fields) for _, row in objects):
            raise LabError(f"{path} holds {what}")
    return None


def _checked(form: _Form, file: RowFile, line: int | str, number: int, row: Any) -> Iterable[Row]:
    """The form's rows where the object has the fields that no row may lack."""
    if not isinstance(row, dict):
        return [Row(line, "", fault=row if isinstance(row, InvalidLine) else f"{short(row)} is not an object")]
    if missing := [field for field in form.needed if row.get(field) is None]:
        own = row.get("qid")
        return [Row(line, own if isinstance(own, str) else "", fault=f"{', '.join(missing)} missing")]
    return form.read(file, line, number, row)


def _with_sources(path: Path, title: str, rows: list[Row]) -> AnnotationFile:
    """The rows with their sources, and the benchmark that they are of: the form's own, or another one in its form."""
    benchmarks = benchmarks_by_id(row.cut or row.video for row in rows if row.video)
    name = path.name.removesuffix(".gz").partition(".")[0]

    def source(row: Row) -> str:
        if row.source or not row.video:
            return row.source
        benchmark = benchmarks[row.cut or row.video]
        # Charades' labels are seconds: five characters may be anybody's id.
        benchmark = "" if benchmark == CHARADES and row.rate is not None else benchmark
        return (
            f"timelens-bench/{benchmark}"
            if title == "TimeLens-Bench" and benchmark in _TIMELENS
            else benchmark or name
        )

    rows = [replace(row, source=source(row)) for row in rows]
    sources = list(dict.fromkeys(row.source for row in rows if row.source))
    own = {_TITLES.get(each.partition("/")[0], "") for each in sources}
    if title == "ActivityNet-Captions" and own == {"Charades-STA txt"}:
        return AnnotationFile("Charades-STA json", rows)
    return AnnotationFile(title if own <= {title} else ", ".join(sources[:3]), rows)


_TITLES = {
    "charades-sta": "Charades-STA txt", "activitynet": "ActivityNet-Captions", "timelens-bench": "TimeLens-Bench",
    "timelens-100k": "TimeLens-100K", "timelens2": "TimeLens2", "ego4d-nlq": "Ego4D-NLQ", "hirest": "HiREST", "didemo": "DiDeMo",
    "qvhighlights": "QVHighlights", "tvgbench": "TVGBench", "timerft": "TimeRFT",
}  # fmt: skip
"""The form in which a source is published."""


def _captions(document: dict[str, Any], times_key: str, texts_key: str) -> Iterator[Row]:
    for video, entry in document.items():
        if not (
            has(entry, times_key, texts_key)
            and isinstance(entry[times_key], list)
            and isinstance(entry[texts_key], list)
        ):
            yield Row(f"key {video}", "", fault=f"{short(entry)} has no lists of {times_key} and {texts_key}")
            continue
        stamps, sentences = entry[times_key], entry[texts_key]
        duration, rate = entry.get("duration", entry.get("video_duration")), None
        if duration is None and "fps" in entry:
            rate, frames = entry["fps"] or "", to_seconds(entry.get("num_frames"))
            duration = frames / fps if frames and (fps := to_seconds(rate)) else None
        # Files of clips, of which the source video may be at hand instead: QVHighlights' in TimeLens-Bench.
        window = trim_window(stem_of(video)[0]) if times_key == "spans" else None
        for k in range(max(len(stamps), len(sentences))):
            line, qid = f"key {video}[{k}]", f"{stem_of(video)[0]}-{k}"
            if k >= min(len(stamps), len(sentences)):
                counted = f"{len(stamps)} {times_key} for {len(sentences)} {texts_key}: this one has no partner"
                yield Row(line, qid, fault=counted)
            else:
                row = Row(line, qid, video, sentences[k], [stamps[k]], duration, rate=rate)
                yield replace(row, video=window[0], clip=[*window[1:]], cut=video) if window else row


def _qvhighlights(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video = str(row["vid"])
    trimmed = _WINDOW_IN_NAME.fullmatch(stem_of(video)[0])
    clip = [float(trimmed[2]), float(trimmed[3])] if trimmed else None
    yield Row(
        line, row["qid"], trimmed[1] if trimmed else video, row["query"], row.get("relevant_windows"),
        row.get("duration"), clip, cut=video if trimmed else "",
    )  # fmt: skip


def _tvgbench(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    bins, answer, video = row.get("bins"), row["answer"], str(row["path"])
    part = row.get("dataset_name") or (bins.get("dataset") if isinstance(bins, dict) else None)
    pair = _PAIR.fullmatch(answer) if isinstance(answer, str) else None
    own = row.get("qid") or (f"tvgbench-{number:03d}" if part else file.qid(video))
    yield Row(
        line, own, video, row["question"], [[pair[1], pair[2]] if pair else answer], row.get("duration"),
        _span_or_none(row.get("start"), row.get("end")), source=f"tvgbench/{part}" if part else "",
    )  # fmt: skip


def _timerft(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """Names such as ID_00:00:39:000_00:01:24:700.mp4 are files that hold seconds 39 to 84.7 of ID.mp4 and no more."""
    video, own, cut = str(row["video"]), row.get("qid"), ""
    qid = own or file.qid(video)
    clip = _span_or_none(row.get("video_start"), row.get("video_end"))
    stem, suffix = stem_of(video)
    if clip is not None and ":" in stem and (window := trim_window(stem)):
        if not _near(clip[0], window[1]) or not _near(clip[1], window[2]):
            fault = f"the video's name says {window[1]:g} to {window[2]:g} s, its trim window {clip[0]} to {clip[1]}"
            yield Row(line, qid, fault=fault)
            return
        video, cut = window[0] + suffix, video
    part = own.split("|")[1] if isinstance(own, str) and own.count("|") >= 2 else ""
    yield Row(
        line, qid, video, row["sentence"], [row["timestamp"]], row.get("duration"), clip, cut,
        source=f"timerft/{part}" if part else "",
    )  # fmt: skip


def _labels(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """What names its video, its sentence and one window, in the words that people use for them."""
    video = str(row["video"])
    query = next((row[name] for name in _SENTENCES if row.get(name) is not None), None)
    window = row["timestamp"] if "timestamp" in row else [row["start"], row["end"]]
    yield Row(line, row.get("qid") or file.qid(video), video, query, [window], row.get("duration"))


def _qaego4d(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video, window = str(row["video_id"]), [row["moment_start_frame"], row["moment_end_frame"]]
    qid = row.get("sample_id") or file.qid(video)
    yield Row(line, qid, video, row["question"], [window], row.get("duration"), rate=row.get("fps") or "")


def _moment(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    video, source = row["video"], row.get("source")
    if not isinstance(video, str) or not video.strip():
        yield Row(line, row["qid"], fault=f"video = {short(video)} is no path")
        return
    yield Row(
        line, row["qid"], video, row["query"], row.get("windows"), row.get("duration"), row.get("clip"),
        path="" if is_foreign_path(video) else local_path(video, file.path.parent),
        source=source if isinstance(source, str) else "", options=row.get("options"), choice=row.get("choice"),
        unknown=tuple(sorted(set(row) - set(FIELDS))),
    )  # fmt: skip


FORMS = (
    _Form("QVHighlights", ("vid", "query", "relevant_windows"), ("qid", "vid", "query"), _qvhighlights),
    _Form("TVGBench", ("path", "question", "answer"), ("path", "question", "answer"), _tvgbench),
    _Form("TimeRFT", ("video", "sentence", "timestamp"), ("video", "sentence", "timestamp"), _timerft),
    _Form("TimeLens-100K", ("video_path", "events"), ("video_path", "events"), timelens_events),
    _Form("TimeLens-100K", ("video_path", "query", "span"), ("video_path", "query", "span"), timelens_events),
    _Form("TimeLens2", ("video_id", "annotations"), ("video_id", "annotations"), timelens_events),
    _Form("TimeLens2", ("messages",), ("messages",), conversation, is_conversation),
    _Form("Ego4D-NLQ", ("videos", "version"), ("videos",), ego4d_nlq),
    _Form(
        "DiDeMo", ("annotation_id", "description", "times"), ("annotation_id", "description", "video", "times"), didemo
    ),
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

_TIMES_IN_SENTENCES = "whose times stand in sentences; give the annotation file that they were made from"
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    *((fields, f"predictions ({', '.join(fields)}), no annotations; {SCORE_STEP}") for fields in ANSWERS),
    (("vid", "query"), "no relevant_windows: its labels are not published; use train or val"),
    (("id", "length"), "durations, no annotations; give the file of queries, and this one as its durations"),
    (("conversations",), f"ShareGPT conversations, training texts {_TIMES_IN_SENTENCES}"),
    (("messages",), f"chats (messages, as ms-swift trains on) that name no video, {_TIMES_IN_SENTENCES}"),
)
"""Objects that are no annotations: the fields they are recognised by, what they are and what to do."""


def _span_or_none(start: Any, end: Any) -> list[Any] | None:
    """A trim window, None when neither end is given."""
    return None if start is None and end is None else [start, end]


def _near(value: Any, seconds: float) -> bool:
    given = to_seconds(value)
    return given is not None and abs(given - seconds) <= FRAME


def charades(lines: list[tuple[int, str]]) -> Iterator[Row]:
    """Rows of numbered lines of Charades-STA's txt, which holds no durations."""
    count: Counter[str] = Counter()
    for number, line in lines:
        head, mark, sentence = line.partition("##")
        parts = head.split()
        if not mark or len(parts) != 3:
            yield Row(number, "", fault=f"{short(line.strip())} is not 'VIDEO start end##sentence'")
            continue
        video = parts[0]
        stem = stem_of(video)[0]
        yield Row(number, f"{stem}-{count[stem]}", video, sentence, [parts[1:]])
        count[stem] += 1


def with_durations(rows: list[Row], path: Path, durations: str | Path | None) -> list[Row]:
    """The rows, with seconds for those that lack them, of the csv `durations` or else of Charades' own beside `path`.

    What neither knows may yet be measured.
    """
    beside = [path.parent / f"{name}{packed}" for name in DURATIONS for packed in ("", ".gz")]
    lengths: dict[str, float] = {}
    if durations is not None:
        lengths = _lengths(Path(durations))
    elif any(row.duration is None and row.source == CHARADES for row in rows):
        for file in filter(Path.is_file, beside):
            lengths |= _lengths(file)
    return [
        replace(row, duration=lengths.get(stem_of(row.video)[0])) if row.duration is None and lengths else row
        for row in rows
    ]


def _lengths(path: Path) -> dict[str, float]:
    try:
        head, rows = read_table(read_text(path))
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} {error}; give Charades_v1_train.csv or Charades_v1_test.csv") from None
    if not {"id", "length"} <= set(head):
        raise LabError(f"{path} has no columns id and length; give Charades_v1_train.csv or Charades_v1_test.csv")
    read = ((row["id"], to_seconds(row["length"])) for _, row in rows if isinstance(row["id"], str))
    return {stem_of(video)[0]: length for video, length in read if length is not None}


def nextgqa(path: Path, head: tuple[str, ...], numbered: list[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    """Rows of NExT-GQA's questions, with the evidence of the file beside `path` that knows their videos."""
    evidence = _evidence(path, [row for _, row in numbered])
    letters = sorted(name for name in head if re.fullmatch(r"a\d", name))
    # Published with the answer's text, in NExT-QA's form with its number. An option may be a number itself, so that the
    # file decides, not the row.
    by_number = all(re.fullmatch(r"\d", (row["answer"] or "").strip()) for _, row in numbered)
    for line, row in numbered:
        video, qid = (row["video_id"] or "").strip(), (row["qid"] or "").strip()
        options = [(row[name] or "").strip() for name in letters]
        answer = (row["answer"] or "").strip()
        choice = int(answer) if by_number else options.index(answer) if answer in options else None
        entry = evidence.get(video, {})
        location = entry.get("location")
        windows = location.get(qid) if isinstance(location, dict) else None
        if video and qid:
            yield Row(line, f"{video}-{qid}", video, row["question"], windows, entry.get("duration"),
                      source="nextgqa", options=options, choice=-1 if choice is None else choice)  # fmt: skip
        else:
            yield Row(line, "", fault="video_id or qid missing")


def _evidence(path: Path, rows: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Of the evidence files beside the questions, the one that knows most of their videos."""
    best: dict[str, dict[str, Any]] = {}
    known = 0
    for file in sorted(path.parent.glob("gsub_*.json")):
        try:
            found = json.loads(read_text(file), object_pairs_hook=refuse_repeated_keys)
        except (ValueError, RecursionError) as error:
            raise LabError(f"{file} is not JSON ({error}); download it again") from None
        if isinstance(found, dict):
            entries = {video: entry for video, entry in found.items() if isinstance(entry, dict)}
            count = sum(row["video_id"] in entries for row in rows)
            if count > known:
                best, known = entries, count
    if not known:
        step = "put gsub_val.json or gsub_test.json beside it (train has no evidence)"
        raise LabError(f"{path}: no evidence for its questions in {path.parent}; {step}")
    return best
