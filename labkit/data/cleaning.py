"""The judge: turns a row of an annotation file into a moment, repairs it, or drops it, by `findings.RULES`.

What is within a millisecond is rounding, not a fault: such a label is cut to the clip without a finding, so that a
prediction of exactly the label can reach IoU 1. Blanks around a query are no fault either and are taken off.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.chain.spans import Span
from labkit.data.findings import RULES, Finding
from labkit.data.moments import FRAME, OPTION_LETTERS, ROUNDING, BadField, Moment
from labkit.data.rows import Row, printable, to_seconds
from labkit.data.video import decode_worker
from labkit.data.video_index import Found, VideoFolder, is_elsewhere, stem_of
from labkit.errors import LabError

POINT = 0.5
"""Seconds that a label without a length is widened by, to each side. Source: our choice."""


def mend_window(start: float, end: float, duration: float) -> tuple[Span | None, tuple[str, ...]]:
    """The label as it can be used, None when it cannot, and the kinds of fault that were found.

    >>> mend_window(4.0, 30.4, 29.5)
    (Span(start=4.0, end=29.5), ('end past the clip',))
    >>> mend_window(12.0, 12.0, 12.2)
    (Span(start=11.5, end=12.2), ('point',))
    >>> mend_window(8.0, 7.0, 30.0)
    (None, ('start after end',))
    """
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


class Judge:
    """Judges the rows of one file in their order, and keeps what it found."""

    def __init__(self, file: Path, videos: VideoFolder, strict: bool, rows: Sequence[Row] = ()) -> None:
        """With `strict` the first fault raises LabError; `rows` are all of the file's, to compare one with."""
        self.file, self.videos, self.strict = str(file), videos, strict
        self.findings: list[Finding] = []
        self._lines: dict[str, int | str] = {}
        self._noted: set[str] = set()
        self._rows = rows
        self._cut: bool | None = None
        self._headers: dict[str, float] = {}
        self._measured: dict[str, tuple[float, float]] = {}

    def moment(self, row: Row) -> Moment | None:
        """The row's moment, or None when it is dropped: then exactly one finding says "dropped"."""
        begun = len(self.findings)
        try:
            return self._moment(row)
        except _Dropped as drop:
            # What was mended before does not matter any more: of a dropped row only the reason counts.
            self.findings[begun:] = [finding for finding in self.findings[begun:] if finding.action == "noted"]
            self._find(row, drop.kind, "dropped", drop.value, drop.note)
            return None

    def _moment(self, row: Row) -> Moment:
        if row.fault:
            raise _Dropped("malformed row", None, row.fault)
        qid = _qid(row.qid)
        if not qid:
            raise _Dropped("malformed row", row.qid, "qid is no text")
        if qid in self._lines:
            first = self._lines[qid]
            raise _Dropped(
                "duplicate id", qid, f"first {f'on line {first}' if isinstance(first, int) else f'in {first}'}"
            )
        self._lines[qid] = row.line
        if not isinstance(row.query, str):
            raise _Dropped("malformed row", row.query, "query is no text")
        if not row.query.strip():
            raise _Dropped("empty query", row.query)
        if not row.video.strip():
            raise _Dropped("malformed row", row.video, "it names no video")
        for field in row.unknown:
            self._note(row, "unknown field", field, field)
        video, clip = self._video(row)
        labels = self._labels(row, video)
        duration = self._duration(row, video, clip)
        if clip is not None:
            clip, duration = self._clip(row, clip, duration)
        windows = self._windows(row, labels, duration)
        options, choice = _options(row)
        try:
            return Moment(qid, video.path, row.query.strip(), windows, duration, clip, row.source, options, choice)
        except BadField as error:
            raise _Dropped("malformed row", error.value, str(error)) from None

    def _video(self, row: Row) -> tuple[Found, Span | None]:
        """The video to look at, and the trim window in it: none where the file holds the clip alone."""
        clip = None if row.clip is None else _clip_of(row.clip)
        if row.path:
            own = os.path.abspath(row.path)
            # A folder given by the user goes before where the file says its videos lie.
            found = Found(own, os.path.exists(own)) if self.videos.implied else self.videos.find(row.video)
        elif row.cut and ((whole := self.videos.find(row.cut)).there or not self.videos.find(row.video).there):
            found, clip = whole, None
        elif clip is not None and (alone := self.videos.find(_named(row.video, clip))).there:
            found, clip = alone, None
        else:
            found = self.videos.find(row.video)
            if clip is not None and found.there and self._is_cut(row, found.path, clip):
                self._find(row, "already cut", "noted", f"{clip.start:g} to {clip.end:g}")
                clip = None
        if is_elsewhere(row.video):
            self._note(row, "path of elsewhere", "path of elsewhere", row.video)
        if found.others:
            self._note(row, "duplicate video names", found.path, [found.path, *found.others])
        return found, clip

    def _is_cut(self, row: Row, path: str, clip: Span) -> bool:
        """Whether a file is the clip itself; where it may be either, what the file's other videos are decides."""
        kind = self._holds(row, path, clip)
        if kind == "either" and not self._others_are_cut():
            note = f"{clip.start:g} to {clip.end:g} of {self._header(path):g} s"
            self._find(row, "window past the video", "noted", note)
            return False
        return kind in ("clip", "either")

    def _holds(self, row: Row, path: str, clip: Span) -> str:
        """What a file holds by its length: "clip", "whole" or "either"; "" where that does not tell.

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

    def _others_are_cut(self) -> bool:
        """Whether more of the file's videos are clips for certain than whole: who cuts some cuts them all."""
        if self._cut is None:
            kinds: Counter[str] = Counter()
            for row in self._rows:
                pair, found = _pair(row.clip), self.videos.find(row.video)
                if not row.cut and not row.path and found.there and pair and 0 <= pair[0] < pair[1]:
                    kinds[self._holds(row, found.path, Span(*pair))] += 1
            self._cut = kinds["clip"] > kinds["whole"]
        return self._cut

    def _header(self, path: str) -> float:
        if path not in self._headers:
            self._headers[path] = decode_worker.header_seconds(path)
        return self._headers[path]

    def _labels(self, row: Row, video: Found) -> object:
        """The row's windows as numbers, in seconds where they count frames."""
        rate = 1.0 if row.rate is None else to_seconds(row.rate)
        if rate is None and video.there:
            rate = self._probe(row, "no frame rate", video.path)[1]
            self._find(row, "no frame rate", "repaired", row.windows, f"measured, {rate:g} frames a second")
        if rate is None or rate <= 0:
            raise _Dropped("no frame rate", row.windows, f"{video.path} is not there to be measured")
        # One label may stand without a list around it.
        windows = [row.windows] if _pair(row.windows) else row.windows
        if not isinstance(windows, list):
            return windows
        return [_numbers(window, pair, rate) if (pair := _pair(window)) else window for window in windows]

    def _probe(self, row: Row, kind: str, path: str) -> tuple[float, float]:
        """A video's seconds and frames a second; the row is dropped where it cannot be read."""
        from labkit.data.video.frames import probe

        if path not in self._measured:
            try:
                info = probe(path)
            except LabError as error:
                raise _Dropped(kind, row.duration, str(error)) from None
            self._measured[path] = info.duration, info.fps
        return self._measured[path]

    def _duration(self, row: Row, video: Found, clip: Span | None) -> float:
        seconds = to_seconds(row.duration)
        if seconds is not None and seconds > 0:
            return seconds
        # A file of the clip alone is measured where it is there: it may be shorter than its window.
        if clip is None and row.clip is not None and not video.there:
            clip = _clip_of(row.clip)
        if clip is not None:
            self._find(row, "no duration", "repaired", row.duration, "the trim window's length is taken")
            return clip.length
        if not video.there:
            raise _Dropped("no duration", row.duration, f"{video.path} is not there to be measured")
        measured = self._probe(row, "no duration", video.path)[0]
        if measured <= 0:
            raise _Dropped("no duration", row.duration, f"{video.path} has no length either")
        self._find(row, "no duration", "repaired", row.duration, f"measured, {measured:.2f} s")
        return measured

    def _clip(self, row: Row, clip: Span, duration: float) -> tuple[Span, float]:
        """Trim window and duration, made to agree."""
        if abs(clip.length - duration) <= FRAME:
            return clip, duration
        said = f"{clip.start:g} to {clip.end:g} is {clip.length:g} s, duration {duration:g}"
        self._find(row, "clip window", "repaired", said)
        return (clip, clip.length) if clip.length < duration else (Span(clip.start, clip.start + duration), duration)

    def _windows(self, row: Row, labels: object, duration: float) -> tuple[Span, ...]:
        if not isinstance(labels, list) or not labels:
            raise _Dropped("no window", labels)
        kept: list[Span] = []
        lost: list[tuple[str, object]] = []
        for window in labels:
            pair = _pair(window)
            if pair is None:
                lost.append(("malformed row", window))
                continue
            span, faults = mend_window(*pair, duration)
            if span is None:
                lost.append((faults[0], window))
                continue
            kept.append(span)
            for kind in faults:
                self._find(row, kind, "repaired", _beside(window, duration))
        if not kept:
            kind, window = lost[0]
            note = f"{_say(window)} is no pair of seconds" if kind == "malformed row" else ""
            raise _Dropped(kind, _beside(labels if len(labels) > 1 else window, duration), note)
        for kind, window in lost:
            self._find(row, kind, "repaired", _beside(window, duration), "this label is left out, the others stand")
        return tuple(kept)

    def _find(self, row: Row, kind: str, action: str, value: object, note: str = "") -> None:
        rule = RULES[kind]
        own = f"{note}; {rule}" if note else rule
        finding = Finding(kind, action, self.file, row.line, printable(_qid(row.qid)), _say(value), printable(own))
        if self.strict and action != "noted":
            raise LabError(f"{finding}; correct the row, or read the file without strict")
        self.findings.append(finding)

    def _note(self, row: Row, kind: str, once: str, value: object) -> None:
        """A finding that holds for many rows is noted with the first."""
        if once not in self._noted:
            self._noted.add(once)
            self._find(row, kind, "noted", value)


class _Dropped(Exception):
    """The row cannot be used: kind, value and what there is to say beside the rule."""

    def __init__(self, kind: str, value: object, note: str = "") -> None:
        self.kind, self.value, self.note = kind, value, note


def _qid(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else ""


def _pair(value: object) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    start, end = map(to_seconds, value)
    return None if start is None or end is None else (start, end)


def _numbers(window: list[object], pair: tuple[float, float], rate: float) -> list[Any]:
    """A label as numbers of seconds; what is that already stays as it was written."""
    written = rate == 1.0 and not any(isinstance(at, str) for at in window)
    return window if written else [at / rate for at in pair]


def _clip_of(value: object) -> Span:
    pair = _pair(value)
    if pair is None or not 0 <= pair[0] < pair[1]:
        raise _Dropped("clip window", value, "where the clip lies in its video cannot be known")
    return Span(*pair)


def _named(video: str, clip: Span) -> str:
    """What a file of the clip alone is called where its owners gave it no name: as QVHighlights does."""
    return f"{stem_of(video)[0]}_{clip.start}_{clip.end}"


def _options(row: Row) -> tuple[tuple[str, ...], int | None]:
    """Options with the right one's number; () and None for a query without any."""
    if not row.options and row.choice is None:
        return (), None
    options, choice = row.options, row.choice
    if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
        raise _Dropped("options", options, "an option is empty or no text")
    if not 2 <= len(options) <= len(OPTION_LETTERS) or len(set(options)) < len(options):
        raise _Dropped("options", options, f"there must be 2 to {len(OPTION_LETTERS)}, each once")
    if type(choice) is not int or not 0 <= choice < len(options):
        raise _Dropped("options", options, "the answer is none of them")
    return tuple(options), choice


def _beside(window: object, duration: float) -> str:
    return f"{_say(window)} of {duration:g} s"


def _say(value: Any) -> str:
    if isinstance(value, str):
        text = value
    else:
        text = "none" if value is None else json.dumps(value, ensure_ascii=False, default=repr)
    text = printable(text)
    return text if len(text) <= 160 else f"{text[:140]}...{text[-15:]}"
