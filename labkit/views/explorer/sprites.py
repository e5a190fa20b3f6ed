"""Clips as pictures: the frames of a clip side by side in one WebP sheet, which a page can scrub without a video player.

A browser seeks in a video only as finely as its key frames lie, and doesn't play every codec; a sheet is shown frame
by frame in well under a millisecond. A minute at two frames a second takes about 0.2 MB.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from labkit.data.video.frames import fingerprint, probe, sample_times, thumbnails
from labkit.errors import LabError
from labkit.files import replacing

log = logging.getLogger("labkit.views")

FPS = 2.0
WIDTH = 224
"""Pixels of a frame where many clips share a page; smaller videos keep their own size."""
SHARP_WIDTH = 640
"""Pixels of a frame where a page shows one clip, as long as all its frames fit into `MOST_PIXELS`."""
MOST_PIXELS = 20_000_000
"""Of one sheet, 80 MB once a browser has decoded it: almost six minutes at 2 fps and 224x126. Longer clips get smaller
frames down to `WIDTH`, then longer steps."""
OnProgress: TypeAlias = Callable[[int, int], object]
"""Takes how many frames of how many there are."""
_QUALITY = 60
# Part of every cache key: raise it when the same request would give another sheet.
_FORMAT = 3


class Sheet(NamedTuple):
    """A clip's frames in one WebP picture, row by row; frame k is what the clip shows at second `k * step`."""

    webp: bytes
    frames: int
    columns: int
    width: int
    height: int
    step: float

    def meta(self) -> dict[str, Any]:
        """Everything but the picture, as a page reads it."""
        return {name: getattr(self, name) for name in self._fields if name != "webp"}


class SheetCache:
    """Sheets on disk, so that no clip is decoded twice for a page; without a folder each is made anew.

    One file per video content, times and width. Files appear whole, so several processes may share the folder.
    `hits` and `made` count what `get` did. Safe to use from several threads, which then wait for each other.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Use `folder`, making it when it is not there."""
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = self.made = 0
        self._lock = threading.Lock()

    def get(
        self,
        video: str | Path,
        duration: float | None = None,
        start: float = 0.0,
        width: int = WIDTH,
        on_progress: OnProgress | None = None,
    ) -> Sheet:
        """The sheet of a clip of `duration` seconds from second `start` of a video; None: to the video's end.

        Frames are at most `width` pixels wide. Those past the video's own end are left out: annotations often run a little longer
        than the file. `on_progress` is called while a sheet is made. Raises LabError when the video is missing, can't be read or
        ends before `start`.
        """
        with self._lock:
            request = f"{_FORMAT} {fingerprint(video)} {duration!r} {float(start)!r} {width} {FPS} {MOST_PIXELS}"
            name = f"{hashlib.blake2b(request.encode(), digest_size=20).hexdigest()}.sheet"
            if self.folder is not None and (found := _load(self.folder / name)):
                self.hits += 1
                return found
            sheet = _make(video, duration, start, width, self.folder, on_progress)
            self.made += 1
            if self.folder is not None:
                with replacing(self.folder / name) as temporary:
                    head = json.dumps({**sheet.meta(), "bytes": len(sheet.webp)})
                    temporary.write_bytes(head.encode() + b"\n" + sheet.webp)
            return sheet

    def get_or_problem(self, video: str, *clip: Any) -> tuple[Sheet | None, str]:
        """The sheet that `get` finds, or what is wrong with the video: thousands of other chains are still to be seen."""
        try:
            return self.get(video, *clip), ""
        except LabError as error:
            return None, str(error)
        except Exception as error:  # one that nobody foresaw is this clip's
            log.warning("%s: no frames", video, exc_info=True)
            return None, f"video {video} cannot be shown ({type(error).__name__}: {error}); replace it"


def sheet_columns(count: int, width: int, height: int) -> int:
    """How many frames stand side by side, so that the sheet is about square: its sides then keep below WebP's 16,383.

    >>> sheet_columns(120, 224, 126)
    8
    """
    return max(1, min(round((count * height / width) ** 0.5), count))


def _make(
    video: str | Path,
    duration: float | None,
    start: float,
    width: int,
    folder: Path | None,
    on_progress: OnProgress | None,
) -> Sheet:
    from PIL import Image

    info = probe(video)
    length = duration if duration is not None else max(info.duration - start, 1 / FPS)
    fitting = math.sqrt(MOST_PIXELS / max(1.0, length * FPS) * info.width / info.height)
    width = min(width, max(WIDTH, int(fitting)))
    # Chroma has half the resolution: an odd frame would borrow colour from its neighbour.
    width = max(2, min(width, info.width) // 2 * 2)
    most = max(1, MOST_PIXELS // (width * max(2, round(width * info.height / info.width))))
    times = sample_times(length, FPS, most, multiple=1)
    step = float(times[1]) if len(times) > 1 else 1 / FPS
    # The first one is always asked for: where even that lies past the end, the reader's error says so best.
    times = times[(times + start < info.duration) | (times == 0)]

    def done(frames: int) -> None:
        if on_progress is not None:
            on_progress(min(frames, len(times)), len(times))

    frames = thumbnails(video, times + start, width, folder=folder, on_frames=done)
    if frames.shape[1] % 2:  # the last row repeated
        frames = np.concatenate([frames, frames[:, -1:]], axis=1)
    count, height, width = frames.shape[:3]
    columns = sheet_columns(count, width, height)
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, 3), np.uint8)
    grid[:count] = frames
    picture = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "WEBP", quality=_QUALITY, method=2)
    return Sheet(file.getvalue(), count, columns, width, height, step)


def _load(file: Path) -> Sheet | None:
    """A sheet of the cache; None when there is none, or when a crash of the machine has left it damaged."""
    try:
        head, _, webp = file.read_bytes().partition(b"\n")
        meta = json.loads(head)
        if meta.pop("bytes") != len(webp):
            raise ValueError("its picture is cut off")
        return Sheet(webp, **meta)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s); making its sheet again", file, error)
        return None
