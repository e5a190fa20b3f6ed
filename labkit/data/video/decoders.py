"""The two decoders behind `video`: PyAV, and decord, where it can leave much of a file undecoded and does not misread it.

Both return the frame on screen at each wanted second, counted from the first frame shown, and both turn frames upright. They run
native code that may hang or die: nothing here is called but in a worker process, see `decode_worker`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.data.video.fingerprints import require
from labkit.data.video.worker_process import heartbeat
from labkit.errors import LabError

if TYPE_CHECKING:
    import av
    import av.container
    from av.video.reformatter import VideoReformatter

# A time this close before a frame's timestamp shows that frame: timestamps are rounded to the file's clock.
PTS_TOLERANCE = 1e-3
# Frames that decord decodes before they are made small: bounds memory (64 frames of 1080p are 0.4 GB).
_CHUNK = 64
# Bytes of frames that PyAV decodes before they are made small or sent, which costs more for each than a small frame itself.
_BATCH_BYTES = 1 << 20
# Seconds by which a clock must fall to have been set back; less is a muxer's rounding.
_CLOCK_RESET = 0.5
# Frames decoded behind the last wanted one, to see whether the timestamps up to it can be believed: B-frames reorder 16 at most.
_LOOKAHEAD = 16

Pixels = NDArray[np.uint8]
Times = NDArray[np.float64]
Shrink = Callable[[Pixels], NDArray[Any]]


class DecodedFrames(NamedTuple):
    """Frames (T, H, W, 3), their timestamps (T,), the last frame's end, and what is wrong with the file ("": nothing).

    All times are in seconds from the first frame shown.
    """

    rgb: NDArray[Any]
    times: Times
    end: float
    note: str = ""


class Measures(NamedTuple):
    """Seconds from the first frame's start to the last one's end, number of frames, displayed height and width."""

    duration: float
    frames: int
    height: int
    width: int


class FrameClock(NamedTuple):
    """When the frames of a file are shown, in seconds (N,) from the first one on, and the last one's end."""

    starts: Times
    end: float
    rate: float
    """Mean frames per second by the file's header: other programs divide a frame's number by it."""


class PacketScan(NamedTuple):
    """The packets of a video: start and length in seconds (N, 2) of the pictures shown, in the order of the file.

    There is one array for each segment of the file's clock, which begins another when it is set back. `broken` says how the file
    breaks off, "" if it does not.
    """

    segments: list[Times]
    broken: str

    @property
    def frames(self) -> int:
        """How many pictures are shown."""
        return sum(map(len, self.segments))

    @property
    def duration(self) -> float:
        """Seconds from the first picture's start to the last one's end, segments one behind the other."""
        return sum(float(segment.sum(1).max() - segment[:, 0].min()) for segment in self.segments)


class _UntrustedTimestamps(Exception):
    """decord can read this file, but the frames it gives are not those of their timestamps."""


class _OutOfOrder(Exception):
    """The timestamps of frames run backwards while their packets do not."""


def decord_reader(path: str | Path) -> Any:
    """A reader of decord's; drop it at once. Raises whatever decord raises, ImportError where it is not installed."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    # One thread, one owner, dropped at once: a shared reader aborts the process, an idle one fills the memory.
    # A frame that had to be guessed is an error: decord would repeat the last good one without a word.
    return decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)


def decord_spans(reader: Any) -> Times:
    """Start and end of each frame (N, 2) in seconds, as decord counts them."""
    return np.asarray(reader.get_frame_timestamp(np.arange(len(reader))), np.float64)


def decode_with_decord(path: str | Path, wanted: Times, shrink: Shrink | None) -> DecodedFrames:
    """Seek to the wanted frames; `shrink` is applied to at most 64 frames at a time.

    Raises whatever decord raises, ImportError where it is not installed, and an error of our own where its frames
    do not belong to their timestamps: `reason` puts each in words. Raises LabError when the file ends before all that is wanted.
    """
    video = decord_reader(path)
    spans = decord_spans(video)
    starts = spans[:, 0]
    step = float(np.median(np.diff(starts))) if len(starts) > 1 else 0.0
    if not np.isfinite(starts).all() or (np.diff(starts) <= 0).any():
        raise _UntrustedTimestamps("timestamps do not increase")
    if starts[0] < -step / 2:
        raise _UntrustedTimestamps(
            f"edit list (first frame at {starts[0]:.2f} s): decord's indices are not those of its frames"
        )
    seconds = starts - starts[0]
    end = max(float(spans[-1, 1]) - float(starts[0]), float(seconds[-1]) + step)
    require_within(path, wanted, end)
    shown = np.searchsorted(seconds, wanted + PTS_TOLERANCE, side="right") - 1
    index, where = np.unique(shown, return_inverse=True)
    chunk = _CHUNK if shrink else len(index)
    parts: list[NDArray[Any]] = []
    for first in range(0, len(index), chunk):
        heartbeat()
        video = video or decord_reader(path)
        rgb = video.get_batch(index[first : first + chunk].tolist()).asnumpy()
        video = None
        parts.append(shrink(rgb) if shrink else rgb)
    return DecodedFrames(np.concatenate(parts)[where], seconds[index][where], end)


def decode_with_pyav(path: str | Path, wanted: Times, shrink: Shrink | None) -> DecodedFrames:
    """Decode from the beginning, as a player does; what cannot be decoded is left out and counted in the note.

    Frames of another size than the first, as of a recording that was turned, are fitted into its size on black. A clock that is set
    back in mid-file goes on from where it was. Timestamps that run backwards, which AVI cannot even store, give way to the order in
    which frames come out of the decoder, at the times of their packets. The note says each of these.

    Raises LabError when the file cannot be opened, holds no pictures, none of them can be decoded, or it ends before all that is
    wanted.
    """
    if wanted.min() > _CLOCK_RESET:
        with open_video(path) as container:
            end = scan_packets(container, picture_stream(container)).duration  # nothing is decoded for this
        if end and wanted.min() > end + _CLOCK_RESET:
            require_within(path, wanted, end)
    try:
        return _from_the_beginning(path, wanted, shrink, in_order=False)
    except _OutOfOrder:
        return _from_the_beginning(path, wanted, shrink, in_order=True)


def _from_the_beginning(path: str | Path, wanted: Times, shrink: Shrink | None, in_order: bool) -> DecodedFrames:
    from av.video.reformatter import VideoReformatter

    reformatter = VideoReformatter()
    targets, where = np.unique(wanted, return_inverse=True)
    latest = (targets + PTS_TOLERANCE).tolist()
    owner = np.zeros(len(targets), np.intp)
    batch: list[Pixels] = []
    parts: list[NDArray[Any]] = []
    times: list[float] = []
    warnings = _Warnings()
    done, end, ahead = 0, 0.0, 0
    last: tuple[float, av.VideoFrame] | None = None
    size: tuple[int, int] | None = None
    with open_video(path) as container:
        in_order = in_order or container.format.name == "avi"
        frames = _frames(container, warnings, in_order)
        for seconds, length, frame in itertools.chain(frames, [(math.inf, 0.0, None)]):
            if frame is not None and size is None:
                size = upright_size(frame)
            # What was asked for before this frame comes on is answered by the one before it.
            upto = bisect.bisect_left(latest, seconds) if last else 0
            if last and size and upto > done:
                warnings.fitted += upright_size(last[1]) != size
                batch.append(upright(last[1], reformatter, size))
                owner[done:upto], done = len(times), upto
                times.append(last[0])
                if done == len(targets) or len(batch) * batch[0].nbytes >= _BATCH_BYTES:
                    rgb = np.stack(batch)
                    parts.append(shrink(rgb) if shrink else rgb)
                    batch.clear()
            if frame is None:
                break
            last, end = (seconds, frame), seconds + length
            ahead += done == len(targets)
            if ahead > _LOOKAHEAD:
                break
    if last is None:
        raise _no_frame(path)
    return DecodedFrames(
        np.concatenate(parts)[owner[where]], np.array(times)[owner[where]], max(end, last[0]), warnings.note()
    )


def require_within(path: str | Path, wanted: Times, end: float) -> None:
    """Raise LabError when a video of `end` seconds ends before every second that is wanted."""
    if wanted.min() > end + PTS_TOLERANCE:
        step = "correct the clip's window or replace the video"
        raise LabError(f"video {path} ends at {end:.2f} s but is asked for second {wanted.min():.2f} on; {step}")


def measure(path: str | Path) -> Measures:
    """Read the packets, decoding only until the first frame.

    Raises LabError when the file cannot be opened, holds no pictures, or the first of them cannot be decoded.
    """
    first: list[tuple[int, int]] = []

    def decode(packet: av.Packet[Any]) -> None:
        if not first:
            first.extend(upright_size(frame) for frame in _decode(packet, _Warnings())[:1])

    with open_video(path) as container:
        found = scan_packets(container, picture_stream(container), decode)
    if not first or not found.frames:
        raise _no_frame(path)
    return Measures(found.duration, found.frames, *first[0])


def frame_clock(path: str | Path) -> FrameClock:
    """When each frame of a file is shown, by its packets; nothing is decoded.

    Raises LabError when the file cannot be opened or shows no frame.
    """
    with open_video(path) as container:
        stream = picture_stream(container)
        rate, found = float(stream.average_rate or 0), scan_packets(container, stream)
    if not found.frames:
        raise _no_frame(path)
    starts, passed = [], 0.0
    for segment in found.segments:
        starts.append(np.sort(segment[:, 0]) - segment[:, 0].min() + passed)
        passed += float(segment.sum(1).max() - segment[:, 0].min())
    return FrameClock(np.concatenate(starts), passed, rate or found.frames / passed)


def scan_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    on_packet: Callable[[av.Packet[Any]], None] | None = None,
) -> PacketScan:
    """Read all packets; `on_packet` sees each. A file that breaks off is what is left of it."""
    import av

    usual, base = _frame_seconds(stream), stream.time_base
    in_order = container.format.name == "avi"  # its pts are guesses
    segments: list[list[tuple[float, float]]] = [[]]
    before, broken = -math.inf, ""
    try:
        for packet in container.demux(stream):
            heartbeat()
            if on_packet is not None:
                on_packet(packet)
            ticks = packet.dts if in_order or packet.pts is None else packet.pts
            if ticks is None or packet.is_discard:
                continue
            clock = seconds_of(packet.dts if packet.dts is not None else ticks, base)
            if clock < before - _CLOCK_RESET:
                segments.append([])
            before = clock
            segments[-1].append((seconds_of(ticks, base), seconds_of(packet.duration, base)))
    except av.FFmpegError as error:
        broken = f"breaks off: {error.strerror}"
    arrays = [np.array(segment) for segment in segments if segment]
    for segment in arrays:
        # AVI states no lengths, and PyAV's own AVI no rate.
        waits = np.diff(np.unique(segment[:, 0]))
        segment[segment[:, 1] <= 0, 1] = float(np.median(waits)) if len(waits) else usual
    return PacketScan(arrays, broken)


def open_video(path: str | Path) -> av.container.InputContainer:
    """PyAV's container of a file with pictures; close it, best by `with`.

    Raises LabError when the file is missing, empty, not a video, or holds no pictures.
    """
    import av

    require(path)
    try:
        container = open_container(path)
    except av.FFmpegError as error:
        step = "replace the file, or convert it to H.264 mp4"
        raise LabError(f"video {path} cannot be opened ({error.strerror}); {step}") from None
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        container.close()
        raise LabError(f"video {path} holds no pictures (only {kinds}); replace the file or correct its path")
    return container


def open_container(path: str | Path) -> av.container.InputContainer:
    """What FFmpeg opens; titles and names in old encodings, which nobody here reads, are no reason to refuse a film."""
    import av

    return av.open(str(path), metadata_errors="ignore")


def picture_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The one video track that is measured and shown: FFmpeg's best, which is also decord's."""
    return container.streams.best("video") or container.streams.video[0]  # type: ignore[return-value]


def reason(error: Exception) -> str:
    """Why decord was not used, in one line without the place and time of day that its messages carry.

    >>> reason(RuntimeError("[03:40:30] /a/video_reader.cc:151: Check failed: no stream"))
    'decord: RuntimeError: Check failed: no stream'
    """
    if isinstance(error, _UntrustedTimestamps):
        return str(error)
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", str(error)).strip()
    first = text.splitlines()[0] if text else ""
    return f"decord: {type(error).__name__}: {first}"[:200]


class _Warnings:
    """What is wrong with a file, collected while it is decoded."""

    def __init__(self) -> None:
        self.damage: list[str] = []
        self.clock_resets: list[str] = []
        self.misordered = False
        self.fitted = 0

    def note(self) -> str:
        """All of it in words, "" for nothing."""
        notes = list(self.clock_resets)
        if self.misordered:
            notes.append(
                "its timestamps run backwards: frames are shown in the order of the decoder, at the times of their packets (dts)"
            )
        if self.fitted:
            notes.append(
                f"its picture changes size or orientation: {self.fitted} frames were fitted into the first one's size"
            )
        if self.damage:
            notes.append(f"damaged in {len(self.damage)} places, which were left out ({self.damage[0]})")
        return "; ".join(notes)


def _frames(
    container: av.container.InputContainer, warnings: _Warnings, in_order: bool
) -> Iterator[tuple[float, float, av.VideoFrame]]:
    """Every frame shown as (second, length in seconds, frame), seconds never decreasing; what goes wrong is added to `warnings`.

    `in_order`: go by the packets' clock (dts) in the order in which frames come out. Raises _OutOfOrder where the frames' own (pts)
    turns out to run backwards.
    """
    import av

    stream = picture_stream(container)
    stream.thread_type = "NONE"  # one thread a process: whoever wants more speed starts more processes
    step, base = _frame_seconds(stream), stream.time_base
    zero: float | None = None
    before = shown = 0.0  # the last frame's place on the file's clock and on ours
    length, latest, fallen = 0.0, -math.inf, 0
    pts_before = -math.inf
    try:
        for packet in container.demux(stream):
            heartbeat()
            if packet.dts is not None:
                clock = seconds_of(packet.dts, base)
                fallen += clock < latest - _CLOCK_RESET
                latest = clock
            for frame in _decode(packet, warnings):
                if frame.pts is not None:
                    pts = seconds_of(frame.pts, base)
                    if not fallen:
                        warnings.misordered |= pts < pts_before - PTS_TOLERANCE
                    pts_before = pts
                if not in_order and frame.pts is None:
                    raise _OutOfOrder
                ticks = frame.dts if in_order else frame.pts
                clock = before + step if ticks is None else seconds_of(ticks, base)
                if zero is None:
                    zero = before = clock
                elif clock < before - _CLOCK_RESET and fallen:
                    fallen = 0
                    warnings.clock_resets.append(
                        f"its clock is set back by {before - clock:.2f} s at second {shown + length:.2f}: it is counted on from there"
                    )
                    shown += length
                elif clock < before - PTS_TOLERANCE and not in_order:
                    raise _OutOfOrder
                else:
                    clock = max(clock, before)
                    if clock > before:
                        step = clock - before
                    shown += clock - before
                before = clock
                length = seconds_of(frame.duration, base) if frame.duration and not in_order else step
                yield shown, length, frame
    except av.FFmpegError as error:
        warnings.damage.append(f"breaks off: {error.strerror}")


def _decode(packet: av.Packet[Any], warnings: _Warnings) -> list[av.VideoFrame]:
    """Frames that a packet completes, none when it is damaged."""
    import av

    try:
        return list(packet.decode())
    except av.FFmpegError as error:
        warnings.damage.append(str(error.strerror))
        return []


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """Height and width as a player shows a frame."""
    turned = round(frame.rotation / 90) % 2
    return (frame.width, frame.height) if turned else (frame.height, frame.width)


def upright(frame: av.VideoFrame, reformatter: VideoReformatter, size: tuple[int, int] | None = None) -> Pixels:
    """Pixels (H, W, 3) as a player shows them, phones store upright films lying; fitted into `size` on black where they differ.

    One `reformatter` serves a whole file: setting one up costs more than converting a small frame.
    """
    turns = round(frame.rotation / 90)
    own = upright_size(frame)
    if size is None or own == size:
        rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, turns))
    scale = min(size[0] / own[0], size[1] / own[1])
    height, width = (max(1, min(whole, round(side * scale))) for whole, side in zip(size, own, strict=True))
    stored = (width, height) if turns % 2 else (height, width)
    small = reformatter.reformat(frame, height=stored[0], width=stored[1], format="rgb24", threads=1).to_ndarray()
    canvas = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    canvas[top : top + height, left : left + width] = np.rot90(small, turns)
    return canvas


def _frame_seconds(stream: av.VideoStream) -> float:
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def seconds_of(ticks: int | None, base: Fraction | None) -> float:
    """A file's ticks as seconds; 0 where it states none."""
    # Not as a product of fractions, which costs as much as a small packet's other work: the quotient is the same.
    return ticks * base.numerator / base.denominator if ticks and base else 0.0


def _no_frame(path: str | Path) -> LabError:
    return LabError(f"video {path} shows no frame that can be decoded; copy or download it again")
