"""The video scrubber: any video with labelled spans under its film strip, and their IoU where one of them is the truth."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import traitlets

from labkit.chain.spans import Span, best_value
from labkit.data.video.frames import probe
from labkit.errors import LabError
from labkit.progress import Progress
from labkit.views.explorer.packing import VideoClip
from labkit.views.explorer.page import PageWidget
from labkit.views.explorer.sprites import SHARP_WIDTH, Sheet, SheetCache

TRUTH = "truth"
"""The label of the spans that the others are measured against."""
QUIET_SECONDS = 2.0
"""Within which a sheet of pictures is made without a bar of progress."""
_SPAN: TypeAlias = Span | tuple[float, float]
Spans: TypeAlias = Mapping[str, _SPAN | Sequence[_SPAN]] | Sequence[_SPAN]
"""Spans by label, or without labels."""


class Scrubber(PageWidget):
    """One video with a scrub bar and labelled spans; made by `scrub`. `time` can be read, set and observed."""

    time = traitlets.Float(0.0).tag(sync=True)
    """Seconds from the clip's beginning."""

    page_traits = (*PageWidget.page_traits, "time")

    def __init__(self, page: dict[str, Any], sheet: Sheet, clip: VideoClip) -> None:
        """Take what `scrub` has read."""
        self._name, self._seconds, self._source = page["name"], page["duration"], clip
        packed = gzip.compress(json.dumps(page, allow_nan=False).encode(), mtime=0)
        super().__init__(shows="scrubber", data=packed, clips={"0": sheet.meta()}, sheets={"0": sheet.webp}, height=0)

    @property
    def clip_sources(self) -> Sequence[VideoClip]:
        """The one clip."""
        return [self._source]

    def __repr__(self) -> str:
        return f"Scrubber('{self._name}', {self._seconds:.1f} s)"


def scrub(
    video: str | Path,
    spans: Spans | None = None,
    start: float = 0.0,
    duration: float | None = None,
    *,
    folder: str | Path | None = None,
) -> Scrubber:
    """Any video with a scrub bar, and a bar for each span: `scrub("a.mp4", {"truth": (3, 8), "answer": (4, 7)})`.

    Seconds count from `start`; the clip ends after `duration`, or with the video. A label may have several spans.
    `truth` is drawn green, `answer` orange, every other label blue; where there is a truth, the others show their IoU with it, and
    how each narrows to the next. The video itself plays, with sound, where the browser gets it and can; where not, its pictures do,
    which `folder` keeps between runs. Raises LabError for a video that can't be read, and for a span that is none.
    """
    named: Mapping[str, Any] = (
        spans
        if isinstance(spans, Mapping)
        else {str(k): each for k, each in enumerate(_several(() if spans is None else spans), 1)}
    )
    rows = _rows({label: [_span(label, each) for each in _several(value)] for label, value in named.items()})
    sheet = SheetCache(folder).get(video, duration, start, SHARP_WIDTH, _progress(Path(video).name))
    length = probe(video).duration - start if duration is None else duration
    page = {"name": Path(video).name, "duration": length, "rows": rows}
    return Scrubber(page, sheet, VideoClip(str(video), start, length))


def _rows(named: Mapping[str, Sequence[Span]]) -> list[dict[str, Any]]:
    """A row for each label, the truth's first, with the IoU of each span where there is a truth.

    >>> _rows({"answer": [Span(0, 4)], "truth": [Span(2, 4)]})[1]
    {'label': 'answer', 'spans': [[0.0, 4.0]], 'ious': [0.5]}
    """
    truth = named.get(TRUTH, ())
    rows = []
    for label in sorted(named, key=lambda each: each != TRUTH):
        row: dict[str, Any] = {
            "label": label,
            "spans": [[float(span.start), float(span.end)] for span in named[label]],
        }
        if truth and label != TRUTH:
            row["ious"] = [round(best_value(span, truth), 4) for span in named[label]]
        rows.append(row)
    return rows


def _progress(name: str) -> Callable[[int, int], None]:
    """Shows how far a sheet is once that takes a while."""
    begin, shown = time.monotonic(), None

    def progress(done: int, frames: int) -> None:
        nonlocal shown
        if shown is None and time.monotonic() - begin > QUIET_SECONDS:
            shown = Progress(f"pictures of {name}", frames, passing=True)
            shown.begin = begin
        if shown is not None:
            shown(done)

    return progress


def _several(value: Any) -> Sequence[Any]:
    """One span or several, as several."""
    if isinstance(value, Span) or not isinstance(value, Iterable):
        return [value]
    listed = list(value)
    return [listed] if len(listed) == 2 and all(isinstance(end, Real) for end in listed) else listed


def _span(label: str, value: Any) -> Span:
    try:
        return value if isinstance(value, Span) else Span(*map(float, value))
    except (TypeError, ValueError) as error:
        raise LabError(f"span {value!r} labelled {label!r} is none ({error}); give (start, end) in seconds") from None
