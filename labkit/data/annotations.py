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

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import islice
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
    nextgqa,
    timelens_events,
)
from labkit.data.rows import (
    TIME,
    Again,
    AnnotationFile,
    InvalidLine,
    PlainRow,
    RepeatedKey,
    Row,
    RowFile,
    has,
    is_plain,
    read_object,
    read_table,
    refuse_repeated_keys,
    short,
    text_lines,
    to_seconds,
)
from labkit.data.video_index import stem_of, trim_window
from labkit.errors import LabError

HEAD = 1000
"""Objects by which a file's form is guessed before all are gone through."""
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


class AnotherForm(Exception):
    """A file's later rows have another form than its first ones."""


class _Form(NamedTuple):
    """A form of objects: the fields that one is recognised by, those that no row may lack, and its reader.

    The reader is given the file, the row's line, its number from 0 and the object. `accepts` is asked where fields don't tell.
    """

    title: str
    fields: tuple[str, ...]
    needed: tuple[str, ...]
    read: Callable[[RowFile, int | str, int, dict[str, Any]], Iterable[Row]]
    accepts: Callable[[Any], bool] = bool


def read_rows(path: Path, durations: str | Path | None = None, whole: bool = True) -> AnnotationFile:
    """Recognise a file and read its rows; `durations` is a csv with columns id and length, for rows without.

    A file of objects is recognised by all of them or, not `whole`, by the first ones: going through the rows then raises
    AnotherForm where a later object tells better, and the file has to be read again as a whole.

    Raises LabError when the file, or one that belongs to it, is missing, unreadable or in none of the formats; where it is
    known what the file is instead, that is said.
    """
    lines, encoding = text_lines(path)
    texts = (line for line in lines if not line.isspace())
    first, more = next(texts, ""), next(texts, None)
    texts.close()
    begins_json = first.lstrip().startswith(("{", "["))
    document: Any = InvalidLine()
    # Where a line holds a value and another one follows, the file cannot be one document.
    if begins_json and (more is None or isinstance(read_object(first), InvalidLine)):
        text = "".join(lines)
        first = "" if text.split() in (["[]"], ["{}"]) else first
        with suppress(ValueError, RecursionError):
            document = json.loads(text, object_pairs_hook=refuse_repeated_keys)
        del text
    if not first:
        raise LabError(f"{path} holds no row; download it again")
    table = (
        _lines(path, first, lines, whole) if isinstance(document, InvalidLine) else _document(path, document, whole)
    )
    if table is None:
        try:
            json.loads("".join(lines) if begins_json else "0", object_pairs_hook=refuse_repeated_keys)
        except RepeatedKey as error:
            raise LabError(f"{path}: {error} in one object; keep one of the two") from None
        except (ValueError, RecursionError) as error:
            raise LabError(f"{path} is not JSON ({error}); download it again") from None
        named = dict.fromkeys(form.title for form in FORMS)
        forms = ", ".join(("Charades-STA", *_CAPTIONS.values(), "NExT-GQA", "HiREST", *named))
        raise LabError(f"{path} is no annotation file that labkit knows ({forms}); give one as its authors publish it")
    return table._replace(rows=with_durations(table.rows, path, durations), encoding=encoding)


def _document(path: Path, document: Any, whole: bool) -> AnnotationFile | None:
    if isinstance(document, list):
        return _objects(path, Again(lambda: ((f"row {k}", row) for k, row in enumerate(document))), whole)
    if not isinstance(document, dict):
        return None
    for labels, title in _CAPTIONS.items():
        if any(has(value, *labels) for value in document.values()):
            return _with_sources(path, title, Again(partial(_captions, document, *labels)), whole)
    if is_hirest(document):
        return _with_sources(path, "HiREST", Again(lambda: hirest(document)), whole)
    if any(">>>" in key for key in document):
        raise LabError(
            f"{path} holds predictions (as TimeLens and lmms-eval write them), no annotations; {SCORE_STEP}"
        )
    return _objects(path, [(1, document)], whole)


def _lines(path: Path, first: str, lines: Iterable[str], whole: bool) -> AnnotationFile | None:
    """A file that is not one JSON document: JSON Lines, a table, or Charades-STA's text."""
    # Not splitlines, which also breaks at marks that a sentence may hold.
    if not first.lstrip().startswith(("{", "[")):
        if any("##" in line for line in lines):
            return _with_sources(path, "Charades-STA txt", Again(lambda: charades(enumerate(lines, 1))), whole)
        try:
            head, cells = read_table(lines)
            if set(QUESTIONS) <= set(head):
                return AnnotationFile("NExT-GQA", list(nextgqa(path, head, list(cells))))
            if len(head) > 1 and (table := _objects(path, Again(lambda: read_table(lines)[1]), whole)):
                return table
        except csv.Error:
            pass
    objects = Again(lambda: ((k, read_object(line)) for k, line in enumerate(lines, 1) if not line.isspace()))
    return _objects(path, objects, whole)


def _objects(path: Path, objects: Iterable[tuple[int | str, Any]], whole: bool) -> AnnotationFile | None:
    """Rows of the first form that any object has; what is no object becomes a row with a fault."""
    for part in (objects,) if whole else (islice(objects, HEAD), objects):
        known: dict[tuple[str, ...], list[int]] = {}
        best = min((_form_of(row, known) for _, row in part), default=len(FORMS))
        if best < len(FORMS):
            title, rows = FORMS[best].title, Again(partial(_rows, best, path, objects))
            return AnnotationFile(title, rows) if title == "moments" else _with_sources(path, title, rows, whole)
    for fields, what in _OTHERS:
        if any(set(fields).issubset(names) for names in known):
            raise LabError(f"{path} holds {what}")
    return None


def _form_of(row: Any, known: dict[tuple[str, ...], list[int]]) -> int:
    """The number of the first form that an object has; `known` are those that have the fields, by an object's names."""
    names = tuple(row) if isinstance(row, dict) else ()
    forms = known.get(names)
    if forms is None:
        forms = known[names] = [k for k, form in enumerate(FORMS) if has(row, *form.fields)]
    for k in forms:
        if FORMS[k].accepts is bool or FORMS[k].accepts(row):
            return k
    return len(FORMS)


def _rows(best: int, path: Path, objects: Iterable[tuple[int | str, Any]]) -> Iterator[Row]:
    """The form's rows, where an object has the fields that no row may lack. Raises AnotherForm at an object of an earlier one."""
    form, file = FORMS[best], RowFile(path)
    read, needed = form.read, form.needed
    known: dict[tuple[str, ...], list[int]] = {}
    plain: tuple[str, ...] = ()
    for number, (line, row) in enumerate(objects):
        if type(row) is dict and (names := tuple(row)) != plain:
            if _form_of(row, known) < best:
                raise AnotherForm
            # Where no earlier form may be asked for its own opinion, names alone tell for the rows that follow.
            plain = names if known[names][:1] == [best] else ()
        if not isinstance(row, dict):
            yield Row(line, "", fault=row if isinstance(row, InvalidLine) else f"{short(row)} is not an object")
        elif None in map(row.get, needed):
            own = row.get("qid")
            missing = ", ".join(field for field in needed if row.get(field) is None)
            yield Row(line, own if isinstance(own, str) else "", fault=f"{missing} missing")
        else:
            yield from read(file, line, number, row)


_Kind = tuple[str, str, bool]
"""What a row's source depends on: its own, the video's name, and whether its windows are seconds."""


def _with_sources(path: Path, form: str, rows: Iterable[Row], whole: bool) -> AnnotationFile:
    """The rows with their sources, and the benchmark that they are of: the form's own, or another one in its form.

    Not `whole`, sources are guessed video by video; AnotherForm comes after the last row where all videos together tell better.
    """
    found = _sources(path, form, map(_kind, rows if whole else islice(rows, HEAD)))
    title = _title(form, found)

    def with_source() -> Iterator[Row]:
        for row in rows:
            kind = _kind(row)
            if kind not in found:
                found.update(_sources(path, form, [kind]))
            row.source = found[kind]
            yield row
        if not whole and (found != _sources(path, form, found) or title != _title(form, found)):
            raise AnotherForm

    return AnnotationFile(title, Again(with_source))


def _kind(row: Row) -> _Kind:
    return row.source, row.cut or row.video, row.rate is None


def _sources(path: Path, form: str, kinds: Iterable[_Kind]) -> dict[_Kind, str]:
    kinds = dict.fromkeys(kinds)
    benchmarks = benchmarks_by_id(video for _, video, _ in kinds if video)
    name = path.name.removesuffix(".gz").partition(".")[0]

    def source(own: str, video: str, in_seconds: bool) -> str:
        if own or not video:
            return own
        # Charades' labels are seconds: five characters may be anybody's id.
        benchmark = benchmarks[video] if in_seconds or benchmarks[video] != CHARADES else ""
        within = form == "TimeLens-Bench" and benchmark in _TIMELENS
        return f"timelens-bench/{benchmark}" if within else benchmark or name

    return {kind: source(*kind) for kind in kinds}


def _title(form: str, found: dict[_Kind, str]) -> str:
    sources = list(dict.fromkeys(filter(None, found.values())))
    own = {_TITLES.get(each.partition("/")[0], "") for each in sources}
    if form == "ActivityNet-Captions" and own == {"Charades-STA txt"}:
        return "Charades-STA json"
    return form if own <= {form} else ", ".join(sources[:3])


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


def _moment(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> list[Any]:
    qid, video, query, source = row["qid"], row["video"], row["query"], row.get("source", "")
    windows, duration = row.get("windows"), row.get("duration")
    plain = row.keys() <= _PLAIN and row.get("clip") is None and is_plain(windows, duration)
    if plain and type(qid) is type(video) is type(query) is type(source) is str and f"{qid}{query}{source}".isascii():
        path = file.local(video) if qid.strip() and video.strip() and query.strip() == query != "" else ""
        if path and path.isascii() and "\0" not in path:
            # As NamedTuple does it, in half the time.
            return [tuple.__new__(PlainRow, (line, qid, video, query, windows, duration, path, source))]
    if not isinstance(video, str) or not video.strip():
        return [Row(line, qid, fault=f"video = {short(video)} is no path")]
    return [Row(
        line, qid, video, query, windows, duration, row.get("clip"),
        path=file.local(video),
        source=source if isinstance(source, str) else "", options=row.get("options"), choice=row.get("choice"),
        unknown=() if row.keys() <= _OWN else tuple(sorted(row.keys() - _OWN)),
    )]  # fmt: skip


_OWN = set(FIELDS)
_PLAIN = {*REQUIRED, "clip", "source"}
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


def charades(lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    """Rows of numbered lines of Charades-STA's txt, which holds no durations."""
    count: Counter[str] = Counter()
    for number, line in lines:
        if line.isspace():
            continue
        head, mark, sentence = line.partition("##")
        parts = head.split()
        if not mark or len(parts) != 3:
            yield Row(number, "", fault=f"{short(line.strip())} is not 'VIDEO start end##sentence'")
            continue
        video = parts[0]
        stem = stem_of(video)[0]
        yield Row(number, f"{stem}-{count[stem]}", video, sentence, [parts[1:]])
        count[stem] += 1


def with_durations(rows: Iterable[Row], path: Path, durations: str | Path | None) -> Iterable[Row]:
    """The rows, with seconds for those that lack them, of the csv `durations` or else of Charades' own beside `path`.

    What neither knows may yet be measured.
    """
    given = None if durations is None else _lengths(Path(durations))

    def with_duration() -> Iterator[Row]:
        lengths = given
        for row in rows:
            if row.duration is None:
                if lengths is None:
                    of_charades = any(each.duration is None and each.source == CHARADES for each in rows)
                    beside = [path.parent / f"{name}{packed}" for name in DURATIONS for packed in ("", ".gz")]
                    lengths = {}
                    for file in filter(Path.is_file, beside if of_charades else ()):
                        lengths |= _lengths(file)
                row.duration = lengths.get(stem_of(row.video)[0])
            yield row

    return Again(with_duration)


def _lengths(path: Path) -> dict[str, float]:
    step = "give Charades_v1_train.csv or Charades_v1_test.csv"
    try:
        head, rows = read_table(text_lines(path)[0])
        if not {"id", "length"} <= set(head):
            raise LabError(f"{path} has no columns id and length; {step}")
        read = [(row["id"], to_seconds(row["length"])) for _, row in rows if isinstance(row["id"], str)]
    except csv.Error as error:
        raise LabError(f"{path} is no table ({error}); {step}") from None
    return {stem_of(video)[0]: length for video, length in read if length is not None}
