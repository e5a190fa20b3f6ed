"""Cleaning: turns the rows of an annotation file into moments, and lists every issue on the way.

Every kind of issue has one rule, stated in `labkit.data.usable_moments.RULES` and repeated in each issue's note. A row is repaired
only where the repair can't be argued about, and dropped otherwise; nothing disappears uncounted:
usable moments + issues with action "dropped" = rows of the file.

What is within a millisecond is rounding, not an issue: such a label is cut to the clip without one, so that a
prediction of exactly the label can reach IoU 1. Blanks around a query are no issue either and are taken off.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from labkit.chain.spans import Span
from labkit.data.moments import FRAME, OPTION_LETTERS, ROUNDING, BadField, Moment
from labkit.data.rows import PlainRow, Row, is_plain, printable, to_seconds
from labkit.data.usable_moments import RULES, Fields, Issue, Shared, made_of
from labkit.data.video import decode_worker
from labkit.data.video_index import VideoFile, VideoFolder, is_foreign_path, stem_of
from labkit.errors import LabError

POINT = 0.5
"""Seconds that a label without a length is widened by, to each side. Source: our choice."""


def repair_window(start: float, end: float, duration: float) -> tuple[Span | None, tuple[str, ...]]:
    """The label as it can be used, None when it cannot, and the kinds of fault that were found.

    >>> repair_window(4.0, 30.4, 29.5)
    (Span(start=4.0, end=29.5), ('end past the clip',))
    >>> repair_window(12.0, 12.0, 12.2)
    (Span(start=11.5, end=12.2), ('point',))
    >>> repair_window(8.0, 7.0, 30.0)
    (None, ('start after end',))
    """
    if 0 <= start < end <= duration:
        return Span(start, end), ()
    if start > end:
        return None, ("start after end",)
    if start >= duration:
        return None, ("start past the end",)
    if end < 0 or start < end == 0:
        return None, ("before the clip",)
    if start == end:
        return Span(max(0.0, start - POINT), min(duration, end + POINT)), ("point",)
    faults = {"negative start": start < -ROUNDING, "end past the clip": end > duration + ROUNDING}
    return Span(max(0.0, start), min(duration, end)), tuple(kind for kind, found in faults.items() if found)


_SETS = ("timelens2",)
"""Sources whose owners take all windows of a query as one answer."""


class RowCleaner:
    """Turns the rows of one file into moments, in their order, and keeps the issues."""

    def __init__(self, file: Path, videos: VideoFolder, strict: bool, rows: Iterable[Row] = ()) -> None:
        """With `strict` the first fault raises LabError; `rows` are all of the file's, to compare one with."""
        self.file, self.videos, self.strict = str(file), videos, strict
        self.issues: list[Issue] = []
        self._lines: dict[str, int | str] = {}
        self._recorded: set[str] = set()
        self._rows = rows
        self._mostly_clips: bool | None = None
        self._shared: dict[tuple[Any, ...], Shared] = {}
        self._headers: dict[str, float] = {}
        self._measured: dict[str, tuple[float, float]] = {}
        # Whether it is there is looked at where it has to be measured.
        self._at = cache(lambda path: VideoFile(os.path.abspath(path), False))
        self._find = cache(videos.find)
        self._is_foreign = cache(is_foreign_path)
        self._asks_for_all = cache(lambda source: source.partition("/")[0] in _SETS)

    def moment(self, row: Row) -> Moment | None:
        """The row's moment, or None when it is dropped: then exactly one issue says "dropped"."""
        fields = self.fields(row)
        return None if fields is None else made_of(fields)

    def fields(self, row: Any) -> Fields | None:
        """What `moment` makes a Moment of."""
        if type(row) is PlainRow and self.videos.implied and row.qid not in self._lines:
            line, qid, _, query, windows, duration, path, source = row
            self._lines[qid] = line
            shared = self._shared.get((path, source))
            if shared is None:
                shared = (path, None, source, (), None, self._asks_for_all(source))
                shared = self._shared.setdefault((path, source), shared)
            return qid, query, windows, duration, shared
        begun = len(self.issues)
        try:
            return self._fields(row)
        except RowRejected as rejected:
            # Repairs do not matter any more: of a dropped row only the reason counts.
            self.issues[begun:] = [issue for issue in self.issues[begun:] if issue.action == "noted"]
            self._record(row, rejected.kind, "dropped", rejected.value, rejected.note)
            return None

    def _fields(self, row: Row) -> Fields:
        if row.fault:
            raise RowRejected("malformed row", None, row.fault)
        qid = _qid(row.qid)
        if not qid:
            raise RowRejected("malformed row", row.qid, "qid is no text")
        if qid in self._lines:
            first = self._lines[qid]
            raise RowRejected(
                "duplicate id", qid, f"first {f'on line {first}' if isinstance(first, int) else f'in {first}'}"
            )
        self._lines[qid] = row.line
        if not isinstance(row.query, str):
            raise RowRejected("malformed row", row.query, "query is no text")
        if not row.query.strip():
            raise RowRejected("empty query", row.query)
        if not row.video.strip():
            raise RowRejected("malformed row", row.video, "it names no video")
        if row.noted:
            self._record(row, row.noted, "noted", row.windows)
        for field in row.unknown:
            self._record_once(row, "unknown field", field, field)
        video, clip = self._video(row)
        if clip is None and row.rate is None and is_plain(row.windows, row.duration):
            windows: Any = row.windows
            duration: Any = row.duration
        else:
            labels = self._labels(row, video)
            duration = self._duration(row, video, clip)
            if clip is not None:
                clip, duration = self._clip(row, clip, duration)
            windows = self._windows(row, labels, duration)
        query, (options, choice) = row.query.strip(), _options(row)
        as_set = self._asks_for_all(row.source)
        shared = (video.path, clip, row.source, options, choice, as_set)
        fields = (qid, query, windows, duration, self._shared.setdefault(shared, shared))
        # Of what has come here only a text may be refused yet, for a character that no file or no path can hold.
        plain = qid.isascii() and query.isascii() and video.path.isascii() and row.source.isascii()
        if options or not plain or "\0" in video.path:
            try:
                made_of(fields)
            except BadField as error:
                raise RowRejected("malformed row", error.value, str(error)) from None
        return fields

    def _video(self, row: Row) -> tuple[VideoFile, Span | None]:
        """The video to look at, and the trim window in it: none where the file holds the clip alone."""
        clip = None if row.clip is None else _clip_of(row.clip)
        if row.path:
            # A folder given by the user goes before where the file says its videos lie.
            found = self._at(row.path) if self.videos.implied else self._find(row.video)
        elif row.cut and ((whole := self._find(row.cut)).there or not self._find(row.video).there):
            found, clip = whole, None
        elif clip is not None and (alone := self._find(_clip_file_name(row.video, clip))).there:
            found, clip = alone, None
        else:
            found = self._find(row.video)
            if clip is not None and found.there and self._is_clip_file(row, found.path, clip):
                self._record(row, "already cut", "noted", f"{clip.start:g} to {clip.end:g}")
                clip = None
        if self._is_foreign(row.video):
            self._record_once(row, "foreign path", "foreign path", row.video)
        if found.others:
            self._record_once(row, "duplicate video names", found.path, [found.path, *found.others])
        return found, clip

    def _is_clip_file(self, row: Row, path: str, clip: Span) -> bool:
        """Whether a file is the clip itself; where it may be either, what the file's other videos are decides."""
        kind = self._clip_or_whole(row, path, clip)
        if kind == "either" and not self._most_are_clips():
            note = f"{clip.start:g} to {clip.end:g} of {self._header(path):g} s"
            self._record(row, "window past the video", "noted", note)
            return False
        return kind in ("clip", "either")

    def _clip_or_whole(self, row: Row, path: str, clip: Span) -> str:
        """What a file holds by its length: "clip", "whole" or "either"; "" where the length does not say.

        A clip is as long as its trim window. So may be a whole video whose window overshoots its end: it may be either where
        most of the window lies inside it and the labels begin there. A window from second 0 shows the same frames either way.
        """
        seconds, slack = self._header(path), max(1.0, 0.02 * clip.length)
        if clip.start <= 0 or seconds <= 0:
            return ""
        if seconds >= clip.end - slack:
            return "whole"
        if abs(seconds - clip.length) > slack:
            return ""
        windows = row.windows if isinstance(row.windows, list) else []
        # An end may overshoot with the window, but no label begins where there is no video.
        last = max((pair[0] for window in windows if (pair := _pair(window))), default=0.0)
        return "clip" if seconds - clip.start <= clip.length / 2 or clip.start + last >= seconds else "either"

    def _most_are_clips(self) -> bool:
        """Whether more of the file's videos are clips for certain than whole: who cuts some cuts them all."""
        if self._mostly_clips is None:
            kinds: Counter[str] = Counter()
            for row in self._rows:
                pair, found = _pair(row.clip), self._find(row.video)
                if not row.cut and not row.path and found.there and pair and 0 <= pair[0] < pair[1]:
                    kinds[self._clip_or_whole(row, found.path, Span(*pair))] += 1
            self._mostly_clips = kinds["clip"] > kinds["whole"]
        return self._mostly_clips

    def _header(self, path: str) -> float:
        if path not in self._headers:
            self._headers[path] = decode_worker.header_seconds(path)
        return self._headers[path]

    def _labels(self, row: Row, video: VideoFile) -> list[tuple[object, tuple[float, float] | None]]:
        """The row's windows as they are shown, and as seconds where they are pairs of them."""
        rate = 1.0 if row.rate is None else to_seconds(row.rate)
        if rate is None and video.there:
            rate = self._probe(row, "no frame rate", video.path)[1]
            self._record(row, "no frame rate", "repaired", row.windows, f"measured, {rate:g} frames a second")
        if rate is None or rate <= 0:
            raise RowRejected("no frame rate", row.windows, f"{video.path} is not there to be measured")
        # One label may stand without a list around it.
        windows = [row.windows] if _pair(row.windows) else row.windows
        return [_label(window, rate) for window in windows] if isinstance(windows, list) else []

    def _probe(self, row: Row, kind: str, path: str) -> tuple[float, float]:
        """A video's seconds and frames a second; the row is dropped where it cannot be read."""
        from labkit.data.video.frames import probe

        if path not in self._measured:
            try:
                info = probe(path)
            except LabError as error:
                raise RowRejected(kind, row.duration, str(error)) from None
            self._measured[path] = info.duration, info.fps
        return self._measured[path]

    def _duration(self, row: Row, video: VideoFile, clip: Span | None) -> float:
        seconds = to_seconds(row.duration)
        if seconds is not None and seconds > 0:
            return seconds
        # A file of the clip alone is measured where it is there: it may be shorter than its window.
        if clip is None and row.clip is not None and not video.there:
            clip = _clip_of(row.clip)
        if clip is not None:
            ends = self._header(video.path) if os.path.exists(video.path) else 0.0
            if clip.start < ends < clip.end:
                self._record(row, "no duration", "repaired", row.duration, f"the video ends at {ends:.2f} s")
                return ends - clip.start
            self._record(row, "no duration", "repaired", row.duration, "the trim window's length is taken")
            return clip.length
        if not os.path.exists(video.path):
            raise RowRejected("no duration", row.duration, f"{video.path} is not there to be measured")
        measured = self._probe(row, "no duration", video.path)[0]
        if measured <= 0:
            raise RowRejected("no duration", row.duration, f"{video.path} has no length either")
        self._record(row, "no duration", "repaired", row.duration, f"measured, {measured:.2f} s")
        return measured

    def _clip(self, row: Row, clip: Span, duration: float) -> tuple[Span, float]:
        """Trim window and duration, made to agree."""
        if abs(clip.length - duration) <= FRAME:
            return clip, duration
        reason = f"{clip.start:g} to {clip.end:g} is {clip.length:g} s, duration {duration:g}"
        self._record(row, "clip window", "repaired", reason)
        return (clip, clip.length) if clip.length < duration else (Span(clip.start, clip.start + duration), duration)

    def _windows(
        self, row: Row, labels: list[tuple[object, tuple[float, float] | None]], duration: float
    ) -> list[tuple[float, float]]:
        if not labels:
            raise RowRejected("no window", row.windows)
        kept: list[tuple[float, float]] = []
        unusable: list[tuple[str, object]] = []
        for window, pair in labels:
            if pair is None:
                unusable.append(("malformed row", window))
                continue
            span, faults = repair_window(*pair, duration)
            if span is None:
                unusable.append((faults[0], window))
                continue
            kept.append((span.start, span.end))
            for kind in faults:
                self._record(row, kind, "repaired", _value_of_duration(window, duration))
        if not kept:
            kind, window = unusable[0]
            note = f"{_value_text(window)} is no pair of seconds" if kind == "malformed row" else ""
            raise RowRejected(
                kind, _value_of_duration([each for each, _ in labels] if len(labels) > 1 else window, duration), note
            )
        for kind, window in unusable:
            self._record(
                row, kind, "repaired", _value_of_duration(window, duration), "this label is left out, the others stand"
            )
        return kept

    def _record(self, row: Row, kind: str, action: str, value: object, note: str = "") -> None:
        rule = RULES[kind]
        own = f"{note}; {rule}" if note else rule
        issue = Issue(kind, action, self.file, row.line, printable(_qid(row.qid)), _value_text(value), printable(own))
        if self.strict and action != "noted":
            raise LabError(f"{issue}; correct the row, or read the file without strict")
        self.issues.append(issue)

    def _record_once(self, row: Row, kind: str, once: str, value: object) -> None:
        """A issue that holds for many rows is noted with the first."""
        if once not in self._recorded:
            self._recorded.add(once)
            self._record(row, kind, "noted", value)


class RowRejected(Exception):
    """The row cannot be used: kind, value and what there is to say beside the rule."""

    def __init__(self, kind: str, value: object, note: str = "") -> None:
        """Keep the parts for the issue."""
        self.kind, self.value, self.note = kind, value, note


def _qid(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else ""


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    start, end = to_seconds(value[0]), to_seconds(value[1])
    return None if start is None or end is None else (start, end)


def _label(window: Any, rate: float) -> tuple[Any, tuple[float, float] | None]:
    """A label and its pair, as numbers of seconds; what is that already is shown as it was written."""
    pair = _pair(window)
    if pair is None or rate == 1.0 and str not in map(type, window):
        return window, pair
    pair = pair[0] / rate, pair[1] / rate
    return list(pair), pair


def _clip_of(value: object) -> Span:
    pair = _pair(value)
    if pair is None or not 0 <= pair[0] < pair[1]:
        raise RowRejected("clip window", value, "where the clip lies in its video cannot be known")
    return Span(*pair)


def _clip_file_name(video: str, clip: Span) -> str:
    """The name of a file of the clip alone where none was published: as QVHighlights writes it."""
    return f"{stem_of(video)[0]}_{clip.start}_{clip.end}"


def _options(row: Row) -> tuple[tuple[str, ...], int | None]:
    """Options with the right one's number; () and None for a query without any."""
    if not row.options and row.choice is None:
        return (), None
    options, choice = row.options, row.choice
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise RowRejected("options", options, "an option is empty or no text")
    if not 2 <= len(options) <= len(OPTION_LETTERS):
        raise RowRejected("options", options, f"there must be 2 to {len(OPTION_LETTERS)}")
    if type(choice) is not int or not 0 <= choice < len(options):
        raise RowRejected("options", options, "the answer is none of them")
    if options.count(options[choice]) > 1:
        raise RowRejected("options", options, "the answer is two of them")
    return tuple(options), choice


def _value_of_duration(window: object, duration: float) -> str:
    return f"{_value_text(window)} of {duration:g} s"


def _value_text(value: Any) -> str:
    if isinstance(value, str):
        text = value
    else:
        text = "none" if value is None else json.dumps(value, ensure_ascii=False, default=repr)
    text = printable(text)
    return text if len(text) <= 160 else f"{text[:140]}...{text[-15:]}"
