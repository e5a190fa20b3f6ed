"""Whether decord decodes a file correctly: compared once with its packets and with PyAV; cached by content.

decord numbers packets, seeks to a key frame and counts frames from there. That is right where decoding can begin at every key frame
and all earlier frames have been shown before it. Elsewhere (open groups of pictures, intra refresh, containers without an index,
clocks that are guesses) it gives the frames of other seconds without a word, and it hangs behind the end that an edit list sets. So
the packets of the whole file are checked first, without a call of decord; then its frame times are compared with theirs, and its
pictures with PyAV's behind later key frames, on and before the last of them, and at the end.
"""

from __future__ import annotations

import bisect
import json
import logging
import math
from collections import deque
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.data.video import decoders
from labkit.data.video.worker_process import heartbeat
from labkit.errors import LabError
from labkit.files import replacing

if TYPE_CHECKING:
    import av

log = logging.getLogger(__name__)

# Raise it when the check finds out other things.
_FORMAT = 1
_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_CODECS = ("h264", "hevc", "vp9")
"""Those whose key frames can be recognised in their packets: decord cannot read AV1, and misreads MPEG-4 part 2 and WMV."""
# Kinds of coding units from which a decoder can begin: IDR of H.264; BLA, IDR and CRA of HEVC, whose leading pictures the order tells.
_ENTRY = {"h264": range(5, 6), "hevc": range(16, 22)}
_KEYS = 4
"""Later key frames at which pictures are compared."""
_NEAR = 2
"""Frames on either side of a compared one that decord's picture must not resemble more."""
_SIDE = 96
"""Pixels of a picture's side that are compared, evenly spread."""
_CLOCK = 2e-3
"""Seconds by which decord's times, 32-bit floats, may differ from the packets'."""
_MAX_DIFFERENCE = 24.0
"""Mean difference, of 255, that no conversion of colours explains."""
_known: dict[str, str] = {}


class _Layout(NamedTuple):
    """The pictures of a file by their packets."""

    pts: np.ndarray
    """(N,) in the order in which they are shown, which is increasing."""
    keys: list[int]
    """Places of the key frames among them."""
    key_ticks: list[int]
    """What the file is sought by: the decoder's clock, where it has one."""
    base: float
    """Seconds of a tick."""


class _Picture(NamedTuple):
    size: tuple[int, ...]
    pixels: np.ndarray
    """(<= 96, <= 96, 3) evenly spread."""


class _Unreliable(Exception):
    """decord must not read this file; the text says why."""


def reason_against_decord(path: str | Path, key: str, folder: Path | None) -> str:
    """Why decord must not read the video of fingerprint `key`; "" where its frames were found correct.

    The result is cached in memory, and in `folder` where there is one. Raises ImportError where decord is not installed, and
    LabError where the file is no video.
    """
    file = folder / f"{key}.decord" if folder is not None else None
    found = _known.get(key)
    cached = found is not None and file is not None and file.exists()
    if found is None and file is not None:
        found = _load(file)
        cached = found is not None
    if found is None:
        import decord  # noqa: F401 - its absence is not the file's fault, and not cached

        found = _check(path)
    _known[key] = found
    if file is not None and not cached:
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"heading": _cache_key(), "distrust": found}), encoding="utf-8")
    return found


def _check(path: str | Path) -> str:
    try:
        layout = _layout(path)
        _compare(path, layout)
    except LabError:
        raise
    except _Unreliable as error:
        return str(error)
    except Exception as error:
        # All of them: decord raises errors of its own, assertions and RuntimeErrors, and PyAV takes over from each.
        return decoders.reason(error)
    return ""


def _layout(path: str | Path) -> _Layout:
    """Walk all packets of a file; raises _Unreliable for what decord is known to misread."""
    import av

    with decoders.open_video(path) as container:
        stream = decoders.picture_stream(container)
        codec = stream.codec_context.codec.canonical_name
        kind = container.format.name
        if kind not in _CONTAINERS:
            raise _Unreliable(f"decord is not trusted with {kind} files, in which it seeks to other frames")
        if codec not in _CODECS:
            raise _Unreliable(f"decord is not trusted with {codec}, of which it cannot read or shows other frames")
        if len([each for each in container.streams.video if not is_cover(each)]) > 1:
            raise _Unreliable("holds several video tracks")
        prefix = _prefix(codec, stream.codec_context.extradata)
        base = float(stream.time_base) if stream.time_base else 0.0
        pts: list[int] = []
        keys: list[tuple[int, int]] = []
        try:
            for packet in container.demux(stream):
                heartbeat()
                if not packet.size:
                    continue
                if packet.pts is None:
                    raise _Unreliable("packets without timestamps")
                if packet.is_discard:
                    raise _Unreliable("its edit list hides frames, which decord counts and may hang on")
                if packet.has_sidedata("new_extradata"):
                    raise _Unreliable("its picture changes size or kind")
                if packet.is_keyframe:
                    if codec in _ENTRY and not _is_entry(bytes(packet), codec, prefix):
                        where = f"at {(packet.pts - (pts[0] if pts else packet.pts)) * base:.2f} s"
                        raise _Unreliable(
                            f"key frames from which decoding cannot begin ({where}: intra refresh or open groups)"
                        )
                    keys.append((len(pts), packet.pts if packet.dts is None else packet.dts))
                pts.append(packet.pts)
        except av.FFmpegError as error:
            raise _Unreliable(f"breaks off: {error.strerror}") from None
    if not keys or keys[0][0] != 0:
        raise _Unreliable("does not begin with a key frame")
    order = np.array(pts)
    before = np.maximum.accumulate(order)
    behind = np.minimum.accumulate(order[::-1])[::-1]
    for place, _ in keys:
        if behind[place] != order[place] or (place and before[place - 1] >= order[place]):
            raise _Unreliable("open groups of pictures: frames behind a key frame are shown before it")
    shown = np.sort(order)
    if (np.diff(shown) <= 0).any():
        raise _Unreliable("two frames of one timestamp")
    return _Layout(shown, [place for place, _ in keys], [ticks for _, ticks in keys], base)


def is_cover(stream: av.VideoStream) -> bool:
    """Whether a video track is only an attached picture, such as cover art."""
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.attached_pic)


def _prefix(codec: str, extradata: bytes | None) -> int:
    """Bytes that state a unit's length in a packet, as the file's header has them; 0 where units follow start codes."""
    if codec == "h264" and extradata and len(extradata) > 4 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and extradata and len(extradata) > 21 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def _is_entry(packet: bytes, codec: str, prefix: int) -> bool:
    """Whether a key packet holds a unit from which decoding can begin. Source: ITU-T H.264 table 7-1, H.265 table 7-1."""
    at = 0
    while prefix and at + prefix < len(packet):
        size = int.from_bytes(packet[at : at + prefix], "big")
        kind = packet[at + prefix]
        if (kind & 31 if codec == "h264" else kind >> 1 & 63) in _ENTRY[codec]:
            return True
        at += prefix + size
    return False


def _compare(path: str | Path, layout: _Layout) -> None:
    """Compare decord's times and pictures with the packets' and PyAV's; raises _Unreliable for the first that differs."""
    reader = decoders.decord_reader(path)
    starts = decoders.decord_spans(reader)[:, 0]
    seconds = (layout.pts - layout.pts[0]) * layout.base
    if len(starts) != len(seconds):
        raise _Unreliable(f"decord counts {len(starts)} frames of {len(seconds)}")
    if not np.allclose(starts - starts[0], seconds, rtol=1e-6, atol=_CLOCK):
        raise _Unreliable("decord gives its frames other times")
    places = _compared_frames(layout)
    heartbeat()
    given = reader.get_batch(places).asnumpy()
    del reader
    heartbeat()
    count = len(layout.pts)
    near = {place + step for place in places for step in range(-_NEAR, _NEAR + 1)}
    frames = _pyav_pictures(path, layout, sorted(place for place in near if 0 <= place < count))
    for place, picture in zip(places, given, strict=True):
        _require_same(_picture(picture), frames, place, seconds)


def _compared_frames(layout: _Layout) -> list[int]:
    """Frames to compare: a little behind key frames spread over the file, on the last of them and before it, first and last.

    Whatever lies late in a group costs the decoding of all of it, so that there are two of these, and the packets vouch for the rest.
    """
    count, later = len(layout.pts), layout.keys[1:]
    spread = {later[round(k * (len(later) - 1) / max(1, _KEYS - 1))] for k in range(_KEYS)} if later else set()
    places = {0, count - 1} | {key + _NEAR for key in spread}
    if later:
        places |= {later[-1] - 1, later[-1]}
    return sorted(place for place in places if place < count)


def _pyav_pictures(path: str | Path, layout: _Layout, wanted: list[int]) -> dict[int, _Picture]:
    """PyAV's frames by place, sought from the key frame before each: one at which the layout says that decoding can begin."""
    from av.video.reformatter import VideoReformatter

    place_of = {int(pts): place for place, pts in enumerate(layout.pts)}
    reformatter = VideoReformatter()
    found: dict[int, _Picture] = {}
    left = deque(wanted)
    with decoders.open_video(path) as container:
        stream = decoders.picture_stream(container)
        stream.thread_type = "NONE"
        while left:
            group = bisect.bisect_right(layout.keys, left[0]) - 1
            container.seek(layout.key_ticks[group], stream=stream)
            for packet in container.demux(stream):
                heartbeat()
                for frame in packet.decode():
                    place = place_of.get(frame.pts if frame.pts is not None else -1)
                    if place is None:
                        raise _Unreliable("PyAV's frames have other times than its packets")
                    if place in wanted:
                        found[place] = _picture(decoders.upright(frame, reformatter))
                    while left and left[0] <= place:
                        left.popleft()
                # The next one stands behind another key frame: nothing between is decoded.
                if not left or bisect.bisect_right(layout.keys, left[0]) - 1 > group + 1:
                    break
            else:
                break  # the end of the file: what is left is not there
    return found


def _picture(rgb: np.ndarray) -> _Picture:
    steps = tuple(slice(None, None, max(1, math.ceil(side / _SIDE))) for side in rgb.shape[:2])
    return _Picture(rgb.shape, rgb[steps].astype(np.int16))


def _difference(one: _Picture, other: _Picture) -> float:
    """Mean absolute difference."""
    return float(np.abs(one.pixels - other.pixels).mean())


def _require_same(given: _Picture, frames: dict[int, _Picture], place: int, seconds: np.ndarray) -> None:
    """Raise _Unreliable unless decord's picture is PyAV's of that place, and no neighbour of it."""
    at = f"at {seconds[place]:.2f} s"
    if place not in frames:
        raise _Unreliable(f"decord has a frame {at}, PyAV has none")
    if frames[place].size != given.size:
        raise _Unreliable(f"decord shows frames of another size ({at})")
    own = _difference(given, frames[place])
    if own > _MAX_DIFFERENCE:
        raise _Unreliable(f"decord shows wrong frames ({at})")
    for other in range(place - _NEAR, place + _NEAR + 1):
        # Colours are converted a little differently: a neighbour must be clearly nearer.
        if (
            other in frames
            and frames[other].size == given.size
            and _difference(given, frames[other]) < 0.75 * own - 0.25
        ):
            raise _Unreliable(f"decord shows wrong frames ({at} that of {seconds[other]:.2f} s)")


def _cache_key() -> dict[str, Any]:
    """What a cached result depends on beside the file."""
    return {"format": _FORMAT, **{package: metadata.version(package) for package in ("av", "decord")}}


def _load(file: Path) -> str | None:
    """A cached result; None where there is none, or one of other versions."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return str(stored["distrust"]) if stored["heading"] == _cache_key() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, metadata.PackageNotFoundError) as error:
        log.warning("%s is damaged (%s); comparing its video with PyAV again", file, error)
        return None
