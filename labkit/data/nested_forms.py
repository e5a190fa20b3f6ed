"""Forms of annotation files with several queries in an object, or with a second file: their readers, each owner's rule for windows.

    TimeLens-100K   events = [{query, span}, ...] beside video_path; flat, as its filter writes them, query and span themselves
    TimeLens2       annotations = [{text, timestamps}, ...] beside video_id, or chats: messages of questions and times
    Ego4D-NLQ       videos > clips > annotations > language_queries; seconds of the clip, which lies in its video
    HiREST          {query: {video: {relevant, clip, v_duration, bounds, steps}}}; a step is looked for inside the bounds
    DiDeMo          times = [[first, last], ...] in chunks of 5 s, by several annotators
    NExT-GQA        csv of questions with options; evidence by video and question stands in a JSON file beside it

Windows that nobody has labelled stay empty, so that their rows are counted where they are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from labkit.data.rows import CLOCK, Row, RowFile, has, read_text, refuse_repeated_keys, short, to_seconds
from labkit.errors import LabError

CHUNK = 5.0
"""Seconds of one of DiDeMo's chunks, of which it looks at the first six of a video. Source: its README."""
_KEPT_ANNOTATORS = 3
"""DiDeMo's measure is the mean over the three annotators that agree best with an answer. Source: its utils/eval.py."""

_TIMES = re.compile(rf"{CLOCK}|\d+(?:\.\d+)?", re.ASCII)
_BESIDE_TIMES = set(
    "a an and are at be beginning between bounds can end ending ends event events from happen happens in interval intervals is "
    "it observed occur occurs of range ranges s sec second seconds segment segments span spans start starts starting temporal "
    "the these this time times to video window windows appears visible".split()
)
_HEADS = (
    "Find the video segment that answer:", "Given the query:", "Given", "For the query", "Locate the time range related to",
    "Return the time interval where the video provides evidence for:", "Identify the segment needed to answer",
    "Watch the video and identify when the query is answered:", "What time range in the video are relevant to",
)  # fmt: skip
_QUOTED = re.compile(
    rf'(?:{"|".join(map(re.escape, _HEADS))})\s*"(.+)"|Please find the visual event described by the sentence \'(.+?)\', determ',
    re.DOTALL,
)
_MARKS = re.compile(r"<(?:VIDEO_CONTEXT|video|image)>")


def timelens_events(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """A video's events, of TimeLens-100K and TimeLens2; an object without a list of them is one itself."""
    ours = "video_id" in row
    video = str(row["video_id"] if ours else row["video_path"])
    events, names = (
        (row["annotations"], ("text", "timestamps")) if ours else (row.get("events", [row]), ("query", "span"))
    )
    part = row.get("source")
    source = "timelens2" if ours or str(part).startswith("timelens2") else f"timelens-100k/{part}" if part else ""
    for event in events if isinstance(events, list) else [events]:
        if has(event, *names):
            query, windows = (event[name] for name in names)
            if isinstance(query, str):
                query = _unwrapped(query) or query
            yield Row(line, file.qid(video), video, query, windows, row.get("duration"), source=source)
        else:
            yield Row(line, file.qid(video), fault=f"event {short(event)} has no {names[0]} and {names[1]}")


def is_conversation(row: Any) -> bool:
    """Whether an object is a chat that names its video apart from the text, as TimeLens2's do."""
    return has(row, "messages") and ("video_id" in row or _shown(row["messages"]) is not None)


def conversation(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """A chat about one video: each question with the times of its answer, whichever way these are written."""
    shown = _shown(row["messages"]) or {}
    video = str(row.get("video_id") or shown.get("url", "")).rstrip("/")
    folder, beside, _ = video.rpartition("/")
    source = f"timelens2/{folder.rpartition('/')[2]}" if beside else "timelens2"
    messages = row["messages"] if isinstance(row["messages"], list) and row["messages"] else [row["messages"]]
    asked: str | None = None
    for message in messages:
        role, text = (message.get("role"), _text(message.get("content"))) if isinstance(message, dict) else (None, "")
        if role == "user":
            if asked is not None:
                yield Row(line, file.qid(video), fault=f"question {short(asked)} has no answer")
            asked = text
        elif role == "assistant" and asked is not None:
            windows = times_in(text)
            fault = f"answer {short(text)} is not times alone, in pairs" if windows is None else ""
            yield Row(
                line, file.qid(video), video, _question(asked), windows, _length(shown), source=source, fault=fault
            )
            asked = None
        elif role != "system":
            yield Row(line, file.qid(video), fault=f"message {short(message)} is neither a question nor its answer")
    if asked is not None:
        yield Row(line, file.qid(video), fault=f"question {short(asked)} has no answer")


def times_in(text: str) -> list[list[str]] | None:
    """The pairs of times of an answer that holds nothing but times and the words around them; None of any other text.

    >>> times_in("From 2 to 8.5 seconds, and from 1:02 to 1:10."), times_in("[[]]"), times_in("6 - 9, the second goal")
    ([['2', '8.5'], ['1:02', '1:10']], [], None)
    """
    times = _TIMES.findall(text)
    words = re.findall(r"[^\W\d_]+", _TIMES.sub(" ", text.lower()))
    if len(times) % 2 or not _BESIDE_TIMES.issuperset(words):
        return None
    return [times[k : k + 2] for k in range(0, len(times), 2)]


def _shown(messages: Any) -> dict[str, Any] | None:
    """The video that the first message with one shows: url, and how many frames at what rate."""
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if has(part, "video_url") and has(part["video_url"], "url"):
                return dict(part["video_url"])
    return None


def _length(shown: dict[str, Any]) -> float | None:
    for kind in ("processed", "origin"):
        frames, rate = (to_seconds(shown.get(f"{kind}_{name}")) for name in ("video_length", "fps"))
        if frames and rate:
            return frames / rate
    return None


def _text(content: Any) -> str:
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in parts if has(part, "text") and isinstance(part["text"], str))


def _question(text: str) -> str:
    """What is asked: the text that a template quotes, or the first line, below which stands how to answer."""
    text = _MARKS.sub("", text).strip()
    return _unwrapped(text) or text.partition("\n")[0].strip()


def _unwrapped(text: str) -> str:
    quoted = _QUOTED.match(text)
    return " ".join((quoted[1] or quoted[2]).split()) if quoted else ""


def ego4d_nlq(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """A query's key is its owners': clip, annotation and the query's number in it."""
    levels = ("videos", "clips", "annotations", "language_queries")
    for place, objects in _innermost(row, levels, "", ()):
        if isinstance(objects, str):
            yield Row(place, "", fault=objects)
            continue
        video, clip, annotation, query = objects
        start, end = clip.get("video_start_sec"), clip.get("video_end_sec")
        begin, stop = to_seconds(start), to_seconds(end)
        windows = [[query[f"clip_{each}_sec"] for each in ("start", "end")]] if "clip_start_sec" in query else []
        yield Row(
            place, f"{clip.get('clip_uid')}-{annotation.get('annotation_uid')}-{place.rpartition('[')[2][:-1]}",
            str(video.get("video_uid") or ""), query.get("query") or "", windows,
            None if begin is None or stop is None else stop - begin, [start, end], cut=str(clip.get("clip_uid") or ""),
            source="ego4d-nlq",
        )  # fmt: skip


def _innermost(
    node: Any, levels: Sequence[str], place: str, above: tuple[dict[str, Any], ...]
) -> Iterator[tuple[str, tuple[dict[str, Any], ...] | str]]:
    """Where each object at the last of `levels` stands, with those above it, or what is wrong there."""
    if not isinstance(node, dict):
        yield place, f"{short(node)} is not an object"
    elif not levels:
        yield place, (*above, node)
    elif not isinstance(node.get(levels[0]), list):
        yield place or levels[0], f"{short(node)} has no list of {levels[0]}"
    else:
        own = (*above, node) if place else ()
        for k, each in enumerate(node[levels[0]]):
            yield from _innermost(each, levels[1:], f"{place}{'.' if place else ''}{levels[0]}[{k}]", own)


def is_hirest(document: dict[str, Any]) -> bool:
    """Whether a JSON object is HiREST's: queries, and below each its videos with their bounds."""
    videos = (video for each in document.values() if isinstance(each, dict) for video in each.values())
    return any(has(video, "bounds", "v_duration") for video in videos)


def hirest(document: dict[str, Any]) -> Iterator[Row]:
    """A query's bounds in a video, and the steps in them; videos that are not relevant, or are so as a whole, have no window."""
    file = RowFile()
    for query, videos in document.items():
        for video, entry in videos.items() if isinstance(videos, dict) else [("", videos)]:
            place = f"key {query}, {video}"
            if not has(entry, "bounds", "v_duration"):
                yield Row(place, file.qid(video), fault=f"{short(entry)} has no bounds and v_duration")
                continue
            bounds, length = entry["bounds"], entry["v_duration"]
            labelled = entry.get("relevant") is not False and entry.get("clip") is not False
            yield Row(
                place, file.qid(video), video, query, [bounds] if labelled else [], length, source="hirest/moment"
            )
            steps = entry.get("steps") or []
            for k, step in enumerate(steps if isinstance(steps, list) else [steps]):
                if not has(step, "heading", "absolute_bounds"):
                    fault = f"step {short(step)} has no heading and absolute_bounds"
                    yield Row(f"{place}[{k}]", file.qid(video), fault=fault)
                    continue
                window = _relative(step["absolute_bounds"], bounds)
                yield Row(
                    f"{place}[{k}]", file.qid(video), video, step["heading"], [window], _relative(bounds, bounds)[1], bounds,
                    source="hirest/step",
                )  # fmt: skip


def _relative(window: Any, bounds: Any) -> Any:
    """Seconds from the beginning of `bounds`; what are no seconds stay as they are."""
    pair = window if isinstance(window, list) and len(window) == 2 else [window, None]
    begin = to_seconds(bounds[0]) if isinstance(bounds, list) and bounds else None
    ends = [to_seconds(each) for each in pair]
    return pair if begin is None or None in ends else [each - begin for each in ends if each is not None]


def didemo(file: RowFile, line: int | str, number: int, row: dict[str, Any]) -> Iterator[Row]:
    """Of what several annotators marked the window that its owners' measure scores best, chunks as seconds."""
    times, chunks = row["times"], to_seconds(row.get("num_segments", 6))
    marked = [tuple(pair) for pair in times if _is_chunks(pair)] if isinstance(times, list) else []
    if not isinstance(times, list) or len(marked) < len(times):
        yield Row(line, row["annotation_id"], fault=f"times {short(times)} are not pairs of a first and a last chunk")
        return
    best = max(dict.fromkeys(marked), key=lambda one: _agreement(one, marked), default=None)
    yield Row(
        line, row["annotation_id"], str(row["video"]), row["description"],
        [] if best is None else [[best[0] * CHUNK, (best[1] + 1) * CHUNK]], None,
        None if chunks is None else [0.0, chunks * CHUNK], source="didemo",
        noted="several annotators" if len(set(marked)) > 1 else "",
    )  # fmt: skip


def _is_chunks(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(type(k) is int for k in pair) and 0 <= pair[0] <= pair[1]


def _agreement(window: tuple[int, ...], marked: Sequence[tuple[int, ...]]) -> float:
    """DiDeMo's score of an answer: its mean IoU with the annotators that agree best, in whole chunks, both ends included."""

    def iou(other: tuple[int, ...]) -> float:
        union = max(window[1], other[1]) + 1 - min(window[0], other[0])
        return max(0, min(window[1], other[1]) + 1 - max(window[0], other[0])) / union

    best = sorted(map(iou, marked))[-_KEPT_ANNOTATORS:]
    return sum(best) / len(best)


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
