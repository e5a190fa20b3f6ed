"""The two decoders behind `video`: decord, and PyAV for what decord cannot read or would misread.

Both return the frame on screen at each wanted second, counted from the first frame shown, and both turn frames
upright. They are asked through `video`, which decides between them.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.errors import LabError

if TYPE_CHECKING:
    import av
    import av.container
    from av.video.reformatter import VideoReformatter

# A time this close before a frame's timestamp shows that frame: timestamps are rounded to the file's clock.
TICK = 1e-3
# Frames decoded before they are made small: bounds memory (64 frames of 1080p are 0.4 GB).
_CHUNK = 64

Pixels = NDArray[np.uint8]
Times = NDArray[np.float64]
Shrink = Callable[[Pixels], Pixels]


class Shown(NamedTuple):
    """Frames (T, H, W, 3), their timestamps (T,), the last frame's end, and what is wrong with the file ("": nothing).

    All times are in seconds from the first frame shown.
    """

    rgb: Pixels
    times: Times
    end: float
    note: str = ""


class Measures(NamedTuple):
    """Seconds from the first frame's start to the last one's end, number of frames, displayed height and width."""

    duration: float
    frames: int
    height: int
    width: int


class _Untrusted(Exception):
    """decord can read this file, but the frames it gives are not those of their timestamps."""


def by_decord(path: str | Path, wanted: Times, shrink: Shrink | None) -> Shown:
    """Seek to the wanted frames; `shrink` is applied to at most 64 frames at a time.

    Raises whatever decord raises, ImportError where it is not installed, and an error of our own where its frames
    do not belong to their timestamps: `reason` puts each in words.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)

    def reader() -> Any:
        # One thread, one owner, dropped at once: a shared reader aborts the process, an idle one fills the memory.
        # A frame that had to be guessed is an error: decord would repeat the last good one without a word.
        return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)

    video = reader()
    spans = np.asarray(video.get_frame_timestamp(np.arange(len(video))), np.float64)  # (N, 2) start and end
    starts = spans[:, 0]
    step = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    if not np.isfinite(starts).all() or (np.diff(starts) <= 0).any():
        raise _Untrusted("timestamps do not increase")
    if starts[0] < -step / 2:
        raise _Untrusted(f"edit list (first frame at {starts[0]:.2f} s): decord's indices are not those of its frames")
    seconds = starts - starts[0]
    shown = np.searchsorted(seconds, wanted + TICK, side="right") - 1
    index, where = np.unique(shown, return_inverse=True)
    chunk = _CHUNK if shrink else len(index)
    parts: list[Pixels] = []
    for first in range(0, len(index), chunk):
        video = video or reader()
        rgb = video.get_batch(index[first : first + chunk].tolist()).asnumpy()
        video = None
        parts.append(shrink(rgb) if shrink else rgb)
    end = max(float(spans[-1, 1]) - float(starts[0]), float(seconds[-1]) + step)
    return Shown(np.concatenate(parts)[where], seconds[index][where], end)


def by_pyav(path: str | Path, wanted: Times, shrink: Shrink | None) -> Shown:
    """Decode from the beginning, as a player does; what cannot be decoded is left out and counted in the note.

    Raises LabError when the file cannot be opened, holds no pictures, or none of them can be decoded.
    """
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    targets, where = np.unique(wanted, return_inverse=True)
    owner = np.zeros(len(targets), np.intp)
    parts: list[Pixels] = []
    times: list[float] = []
    damage: list[str] = []
    done, end = 0, 0.0
    last: tuple[float, av.VideoFrame] | None = None
    with open_video(path) as container:
        for seconds, length, frame in itertools.chain(_frames(container, damage), [(math.inf, 0.0, None)]):
            # What was asked for before this frame comes on is answered by the one before it.
            upto = int(np.searchsorted(targets + TICK, seconds)) if last else 0
            if last and upto > done:
                rgb = _upright(last[1], reformatter)[None]
                parts.append(shrink(rgb) if shrink else rgb)
                times.append(last[0])
                owner[done:upto], done = len(parts) - 1, upto
            if frame is None or done == len(targets):
                break
            last, end = (seconds, frame), seconds + length
    if last is None:
        raise _no_frame(path)
    end = max(end, last[0])
    note = f"damaged in {len(damage)} places, which were left out ({damage[0]})" if damage else ""
    return Shown(np.concatenate(parts)[owner[where]], np.array(times)[owner[where]], end, note)


def measure(path: str | Path) -> Measures:
    """Walk through the packets, decoding only until the first frame.

    Raises LabError when the file cannot be opened, holds no pictures, or the first of them cannot be decoded.
    """
    import av
    from av.video.reformatter import VideoReformatter

    first: av.VideoFrame | None = None
    begin, end, count = math.inf, -math.inf, 0
    with open_video(path) as container:
        stream = container.streams.video[0]
        usual = float(1 / stream.average_rate) if stream.average_rate else 0.0
        try:
            for packet in container.demux(stream):
                if first is None:
                    first = next(iter(_decode(packet, [])), None)
                if packet.pts is None or packet.is_discard:
                    continue
                start = _seconds(packet.pts, stream.time_base)
                begin, count = min(begin, start), count + 1
                end = max(end, start + (_seconds(packet.duration, stream.time_base) or usual))
        except av.FFmpegError:
            # A file that breaks off is as long as what is left of it.
            pass
    if first is None or count == 0:
        raise _no_frame(path)
    height, width = _upright(first, VideoReformatter()).shape[:2]
    return Measures(end - begin, count, height, width)


def open_video(path: str | Path) -> av.container.InputContainer:
    """PyAV's container of a file with pictures; close it, best by `with`.

    Raises LabError when the file is missing, empty, not a video, or holds no pictures.
    """
    import av

    require(path)
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        step = "replace the file, or convert it to H.264 mp4"
        raise LabError(f"video {path} cannot be opened ({error.strerror}); {step}") from None
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise LabError(f"video {path} holds no pictures (only {kinds}); replace the file or correct its path")
    return container


def require(path: str | Path) -> int:
    """Size in bytes of a file that is there, can be read and holds something; LabError says which of these fails."""
    step = "put the file there or correct 'video' in the moments file"
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise LabError(f"video {path} is not there; {step}") from None
    except OSError as error:
        raise LabError(f"video {path} cannot be read ({error.strerror}); {step}") from None
    if size == 0:
        raise LabError(f"video {path} is empty (0 bytes); copy or download it again")
    return size


def reason(error: Exception) -> str:
    """Why decord was not used, in one line without the place and time of day that its messages carry.

    >>> reason(RuntimeError("[03:40:30] /a/video_reader.cc:151: Check failed: no stream"))
    'decord: RuntimeError: Check failed: no stream'
    """
    if isinstance(error, _Untrusted):
        return str(error)
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error)).strip()
    first = text.splitlines()[0] if text else ""
    return f"decord: {type(error).__name__}: {first}"[:200]


def _frames(
    container: av.container.InputContainer, damage: list[str]
) -> Iterator[tuple[float, float, av.VideoFrame | None]]:
    """Every frame shown as (second, length in seconds, frame); what goes wrong is added to `damage`."""
    import av

    stream = container.streams.video[0]
    stream.thread_type = "NONE"  # one thread a process: whoever wants more speed starts more processes
    usual = float(1 / stream.average_rate) if stream.average_rate else 0.0
    zero: float | None = None
    try:
        for packet in container.demux(stream):
            for frame in _decode(packet, damage):
                if frame.pts is None:
                    damage.append("a frame without timestamp")
                    continue
                clock = _seconds(frame.pts, stream.time_base)
                zero = clock if zero is None else zero
                yield clock - zero, _seconds(frame.duration, stream.time_base) or usual, frame
    except av.FFmpegError as error:
        damage.append(f"breaks off: {error.strerror}")


def _decode(packet: av.Packet[Any], damage: list[str]) -> list[av.VideoFrame]:
    """Frames that a packet completes, none when it is damaged."""
    import av

    try:
        return list(packet.decode())
    except av.FFmpegError as error:
        damage.append(str(error.strerror))
        return []


def _upright(frame: av.VideoFrame, reformatter: VideoReformatter) -> Pixels:
    """Pixels (H, W, 3) as a player shows them: phones store upright films lying down.

    One `reformatter` serves a whole file: setting one up costs more than converting a small frame.
    """
    rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))


def _seconds(ticks: int | None, base: Fraction | None) -> float:
    return float(ticks * base) if ticks and base else 0.0


def _no_frame(path: str | Path) -> LabError:
    return LabError(f"video {path} shows no frame that can be decoded; copy or download it again")
