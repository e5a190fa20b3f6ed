"""The worker process that opens video after video for `labkit.data.video.probe`, because a decoder may hang or crash.

`python -m labkit.data.video.probe_worker` reads a path a line, as JSON, and responds to each with a line of JSON: what `probe_file`
found.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.data.video import decoders, decord_check
from labkit.data.video.decord_check import is_cover
from labkit.data.video.fingerprints import fingerprint
from labkit.data.video.probe import CLOCK_RESET
from labkit.data.video.worker_process import serve
from labkit.errors import LabError

if TYPE_CHECKING:
    import av

# Beginnings of files that are videos, broken or not: the kind of an MP4's first box, Matroska's number, AVI, FLV, MPEG.
_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
_BEGINNINGS = (b"\x1a\x45\xdf\xa3", b"RIFF", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
# A file that holds less than this share of what its header states is truncated; headers round, and so do editors.
_MIN_HEADER_FRACTION = 0.98


def probe_file(path: str) -> dict[str, Any]:
    """What the file is and how labkit would read it, as plain data: the fields of `probe.VideoCheck` but the suffix.

    `format` is FFmpeg's name of the container. Every packet is read; of the pictures, one at the beginning, one in the
    middle and one at the end are decoded as a run would do it.
    """
    import av

    try:
        container = decoders.open_container(path)
    except av.FFmpegError as error:
        with open(path, "rb") as file:
            head = file.read(12)
        if head[4:8] in _BOXES or head.startswith(_BEGINNINGS):
            return _bad(
                "truncated", f"begins as a video but cannot be opened ({error.strerror}): its index is missing"
            )
        return _bad("not a video", f"FFmpeg cannot open it ({error.strerror})")
    with container:
        kind = container.format.name
        if kind == "tty" or kind.endswith("_pipe") or kind.startswith("image2"):
            return _bad("not a video", f"a still picture or text ({kind})", kind)
        pictures = [stream for stream in container.streams.video if not is_cover(stream)]
        if not pictures:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            state = "audio only" if container.streams.audio else "not a video"
            return _bad(state, f"holds no moving pictures (only {kinds})", kind)
        best = decoders.picture_stream(container)
        found = _scan(container, pictures[0] if is_cover(best) else best) | {"format": kind}
    if found["frames"]:
        backend, why = _backend(path, found["duration"])
        found |= {"backend": backend, "notes": [*found["notes"], *why]}
    elif found["state"] == "ok":
        found |= {"state": "not a video", "notes": ["not one of its pictures can be decoded"]}
    return found


def _bad(state: str, note: str, kind: str = "") -> dict[str, Any]:
    return {"state": state, "notes": [note], "format": kind}


def _scan(container: av.container.InputContainer, stream: av.VideoStream) -> dict[str, Any]:
    """Read all packets, decode up to the first picture, and compare with what the header promises."""
    import av

    header_frames, header_end = stream.frames, _header_seconds(container, stream)
    first: av.VideoFrame | None = None
    packets, hidden = 0, False

    def on_packet(packet: av.Packet[Any]) -> None:
        nonlocal first, packets, hidden
        packets, hidden = packets + (packet.size > 0), hidden or packet.is_discard
        if first is None:
            try:
                first = next(iter(packet.decode()), None)
            except av.FFmpegError:
                pass  # a later picture may be whole

    scan = decoders.scan_packets(container, stream, on_packet)
    broken = scan.broken
    if first is None:
        return {"state": "truncated" if broken else "ok", "frames": 0, "notes": [broken] if broken else []}
    starts = np.concatenate([np.sort(segment[:, 0]) for segment in scan.segments]) if scan.segments else np.zeros(1)
    duration = scan.duration
    # AVI's number counts also the pictures that are left out to wait, an mp4's those behind the end of its edit list.
    if header_frames and container.format.name != "avi" and not hidden:
        if not broken and packets < header_frames * _MIN_HEADER_FRACTION:
            broken = f"holds {packets} of {header_frames} pictures"
    elif not broken and header_end - duration > max(0.5, (1 - _MIN_HEADER_FRACTION) * header_end):
        broken = f"ends at {duration:.2f} s; its header promises {header_end:.2f} s"
    height, width = decoders.upright_size(first)
    notes = [broken] if broken else []
    if len(scan.segments) > 1:
        notes.append(f"{CLOCK_RESET} {len(scan.segments) - 1} times: what follows is counted on from there")
    return {
        "state": "truncated" if broken else "ok",
        "duration": round(duration, 6),
        "fps": round(scan.frames / duration, 6) if duration > 0 else 0.0,
        "frames": scan.frames,
        "width": width,
        "height": height,
        "codec": stream.codec_context.codec.canonical_name,
        "rotation": round(first.rotation) % 360,
        "variable_rate": is_variable(starts),
        "notes": notes,
    }


def is_variable(starts: np.ndarray) -> bool:
    """Whether more than one in a hundred waits between frames, and more than one, is off the usual by over a tenth.

    >>> is_variable(np.arange(100) / 30), is_variable(np.cumsum([0.02, 0.02, 0.4] * 20))
    (False, True)
    """
    waits = np.diff(starts)
    if len(waits) < 2:
        return False
    usual = float(np.median(waits))
    # A file's clock may tick in milliseconds: 16 and 17 ms in turn are 60 pictures a second, evenly.
    off = np.abs(waits - usual) > 0.1 * usual + 1.5e-3
    return int(off.sum()) > max(1, 0.01 * len(waits))


def _header_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """Length of the pictures by the header, 0 when it does not say: a container's length may be its sound's."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / 1e6 - max(0.0, (container.start_time or 0) / 1e6)
    return 0.0


def _backend(path: str, duration: float) -> tuple[str, list[str]]:
    """The decoder that reads it where much can be left out: decord, or PyAV with the reason why decord does not."""
    places = np.array([0.0, duration / 2, max(0.0, duration - 0.1)])
    try:
        reason = decord_check.reason_against_decord(path, fingerprint(path), None)
        if not reason:
            decoders.decode_with_decord(path, places, None)
            return "decord", []
    except Exception as error:
        # All of them, as in `decode_worker`: whatever decord raises, PyAV takes over.
        reason = decoders.reason(error)
    trouble = decoders.decode_with_pyav(path, places[:1], None).note
    return "pyav", [reason, *filter(None, [trouble])]


def safe_probe(path: str) -> dict[str, Any]:
    """`probe_file`, for a file that may be anything."""
    try:
        found = probe_file(str(Path(path)))
    except (LabError, OSError) as error:
        found = _bad("not a video", str(error))
    except Exception as error:
        # An unexpected error is this file's, not the others'.
        found = _bad("crashed", f"{type(error).__name__}: {error}"[:200])
    if not math.isfinite(found.get("duration", 0.0)):
        found = _bad("not a video", "its timestamps are no numbers", found["format"])
    return found


if __name__ == "__main__":
    serve(safe_probe)
