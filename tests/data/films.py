"""Films whose frames carry their own number, so that a test reads which frame it was given."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.stream import Disposition

WIDTH, HEIGHT, BITS = 160, 96, 10


def painted(number: int) -> np.ndarray:
    """A grey frame with its number as a barcode in the upper third, and a bright corner at the lower left."""
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for bit in range(BITS):
        frame[:32, bit * 16 : (bit + 1) * 16] = 235 if number >> bit & 1 else 16
    frame[64:, :32] = (235, 40, 40)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number painted into a frame of any size."""
    height, width = frame.shape[:2]
    row = frame[height // 12 : height // 4].astype(float).mean(axis=(0, 2))
    middles = [int((bit + 0.5) * width / BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, middle in enumerate(middles) if row[middle] > 120)


def film(
    path: Path,
    milliseconds: Sequence[int],
    *,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    faststart: bool = False,
    kind: str | None = None,
    flags: str = "",
    title: str = "",
) -> Path:
    """Write a film whose frame k is first shown at `milliseconds[k]`; `kind` is FFmpeg's name of a container."""
    if codec == "libsvtav1" and multiprocessing.parent_process() is None:
        # For the superuser, SVT-AV1 moves the process that calls it to real-time priority 99, and all that the process
        # starts from then on: kernels and browsers would leave nothing to anybody else on the machine.
        work = partial(film, path, milliseconds, codec=codec, options=options, faststart=faststart, kind=kind)
        child = multiprocessing.get_context("spawn").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0, f"the encoder's process ended with {child.exitcode}"
        return path
    clock = Fraction(1, 1000)
    flags = "faststart" if faststart else flags
    with av.open(str(path), "w", format=kind, options={"movflags": flags} if flags else {}) as container:
        if title:
            container.metadata["title"] = title
        stream = container.add_stream(codec, rate=25, options={"threads": "1"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        for number, pts in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts, frame.time_base = pts, clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def steady(rate: float, seconds: float = 4.0) -> list[int]:
    """Milliseconds of the frames of a constant rate."""
    return [round(1000 * k / rate) for k in range(round(rate * seconds))]


def hide_tail(source: Path, target: Path, seconds: float) -> Path:
    """Copy an mp4 with an edit list that ends it after `seconds`, and leaves the rest in the file."""
    content = bytearray(source.read_bytes())
    at = content.index(b"elst")
    assert content[at + 4] == 0, "an edit list of another version"
    clock = content.index(b"mvhd") + 16
    scale = int.from_bytes(content[clock : clock + 4], "big")
    content[at + 12 : at + 16] = round(seconds * scale).to_bytes(4, "big")
    target.write_bytes(content)
    return target


def turned_midway(path: Path, count: int) -> Path:
    """Write a recording that lies for `count` frames and stands for as many."""
    clock = Fraction(1, 1000)
    with av.open(str(path), "w", format="webm") as container:
        stream: Any = container.add_stream("libvpx", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.time_base = WIDTH, HEIGHT, "yuv420p", clock
        for part, size in enumerate([(WIDTH, HEIGHT), (HEIGHT, WIDTH)]):
            encoder: Any = av.CodecContext.create("libvpx", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuv420p", clock
            encoder.framerate = Fraction(25)
            packets = []
            for k in range(count):
                picture = painted(part * count + k)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(picture, part)), format="rgb24")
                frame.pts, frame.time_base = 40 * (part * count + k), clock
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode(None)]:
                packet.stream = stream
                container.mux(packet)
    return path


def two_tracks(path: Path, milliseconds: Sequence[int]) -> Path:
    """Write a film behind a smaller and shorter one that shows other numbers."""
    clock = Fraction(1, 1000)
    with av.open(str(path), "w") as container:
        streams: list[Any] = [container.add_stream("libx264", rate=25) for _ in range(2)]
        for stream, (width, height) in zip(streams, [(64, 64), (WIDTH, HEIGHT)], strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.codec_context.time_base = stream.time_base = clock
        streams[1].disposition = Disposition.default
        for number, pts in enumerate(milliseconds):
            for stream, shown in zip(streams, [1023 - number, number], strict=True):
                if stream.width == WIDTH or number < len(milliseconds) // 2:
                    frame = av.VideoFrame.from_ndarray(painted(shown), format="rgb24")
                    frame.pts, frame.time_base = pts, clock
                    container.mux(stream.encode(frame.reformat(stream.width, stream.height, "yuv420p")))
        for stream in streams:
            container.mux(stream.encode())
    return path


def remux(source: Path, target: Path, *, rotate: int = 0, cut: float = 0.0) -> Path:
    """Copy the packets, turned by `rotate` degrees, or beginning inside a group of pictures at `cut` seconds."""
    with av.open(str(source)) as given, av.open(str(target), "w") as container:
        stream: Any = given.streams.video[0]
        copy = container.add_stream_from_template(stream)
        if rotate:
            copy.set_display_rotation(rotate)
        packets = [packet for packet in given.demux(stream) if packet.dts is not None]
        shift = round(cut / stream.time_base)
        keys = [k for k, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= shift]
        for packet in packets[keys[-1] :]:
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
            container.mux(packet)
    return target


def sound(path: Path) -> Path:
    """Write a file with a second of silence and no pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for k in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, k * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cut_off(source: Path, target: Path, share: float) -> Path:
    """Copy the first `share` of a file's bytes, as a download that broke off leaves it."""
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def av1_encoder() -> str | None:
    """An encoder of AV1 that this PyAV was built with."""
    return next((name for name in ("libsvtav1", "libaom-av1") if name in av.codecs_available), None)


CONSTANT = [40 * k for k in range(200)]
"""25 frames a second, 8 s."""
# Long and short waits in turn: at no second is frame number = time x mean rate.
VARIABLE = [int(t) for t in np.cumsum([0] + [20, 20, 20, 400, 40] * 20)]


_GOP = {"g": "25", "keyint_min": "25", "bf": "2", "sc_threshold": "0"}
_OPEN = "keyint=25:min-keyint=25:scenecut=0:log-level=none:pools=none:frame-threads=1"


class Encoding(NamedTuple):
    """A film of an encoding, when its frames are shown, and who reads it."""

    path: Path
    clock: list[int]
    backend: str
    period: int = 1 << BITS
    """Numbers begin anew after so many frames."""


def encodings(folder: Path) -> dict[str, Encoding]:
    """Films of what people meet, with burnt-in frame numbers."""
    made: dict[str, Encoding] = {}

    def add(name: str, backend: str, suffix: str = ".mp4", clock: list[int] = CONSTANT[:100], **how: Any) -> None:
        how = {"options": _GOP} | how
        made[name] = Encoding(film(folder / f"{name}{suffix}", clock, **how), clock, backend)

    for rate in (23.976, 25, 30, 50, 59.94):
        add(f"H.264 closed {rate:g}", "decord", clock=steady(rate))
    add("H.264 variable rate", "decord", clock=VARIABLE)
    add("H.264 in Matroska", "decord", ".mkv")
    add("H.264 fragmented", "decord", flags="frag_keyframe+empty_moov+default_base_moof")
    add("VP9", "decord", ".webm", codec="libvpx-vp9", options={"g": "25", "deadline": "realtime", "cpu-used": "8"})
    add(
        "HEVC closed", "decord", codec="libx265", options={"x265-params": f"{_OPEN}:open-gop=0", "preset": "ultrafast"}
    )
    add("HEVC open (x265's default)", "pyav", codec="libx265", options={"x265-params": _OPEN, "preset": "fast"})
    add("H.264 open", "pyav", options=_GOP | {"x264-params": "open-gop=1:bframes=3:b-adapt=0"})
    add("H.264 intra refresh", "pyav", options={"g": "25", "x264-params": "intra-refresh=1:keyint=25"})
    add("H.264 in MPEG-TS", "pyav", ".ts")
    add("H.264 in MPEG-TS named mp4", "pyav", kind="mpegts")
    add("MPEG-4 part 2", "pyav", codec="mpeg4", options={"g": "12", "bf": "2"})
    add("WMV", "pyav", ".wmv", codec="wmv2", options={"g": "12"})
    add("H.264 in AVI", "pyav", ".avi", options=_GOP | {"x264-params": "b-adapt=0"})
    add("MPEG-4 part 2 in AVI", "pyav", ".avi", codec="mpeg4", options={"g": "12", "bf": "2"})
    if encoder := av1_encoder():
        preset = {"preset": "10", "svtav1-params": "lp=1"} if encoder == "libsvtav1" else {"cpu-used": "8"}
        add("AV1", "pyav", codec=encoder, options=preset)
    whole = made["H.264 in MPEG-TS"].path
    cut = cut_off(whole, folder / "cut off.ts", 0.7)
    made["H.264 in MPEG-TS cut off"] = Encoding(cut, CONSTANT[:65], "pyav")
    tail = hide_tail(made["H.264 closed 25"].path, folder / "hidden tail.mp4", 2.0)
    made["edit list that hides the tail"] = Encoding(tail, CONSTANT[:50], "pyav")
    twice = folder / "twice.ts"
    twice.write_bytes(film(folder / "take.ts", CONSTANT[:50], options=_GOP).read_bytes() * 2)
    made["clock set back"] = Encoding(twice, CONSTANT[:100], "pyav", 50)
    made["two tracks"] = Encoding(two_tracks(folder / "tracks.mkv", CONSTANT[:100]), CONSTANT[:100], "pyav")
    return made


def expected(milliseconds: Sequence[int], times: Sequence[float], first: int = 0) -> list[int]:
    """Frame numbers by definition: the last frame, from `first` on, whose time is not after the second asked for."""
    clock = np.array(milliseconds[first:], float) - milliseconds[first]
    return [first + int(np.flatnonzero(clock <= 1000 * time + 1)[-1]) for time in times]


def numbers(frames: np.ndarray) -> list[int]:
    """The number painted into each frame."""
    return [number_of(frame) for frame in frames]


def with_sound(source: Path, target: Path, lead: float = 0.0) -> Path:
    """A film with a tone that begins `lead` seconds before its first frame."""
    rate = 44_100
    with av.open(str(source)) as film, av.open(str(target), "w") as container:
        picture = container.add_stream_from_template(film.streams.video[0])
        sound: Any = container.add_stream("aac", rate=rate, layout="mono")
        seconds = float(film.duration or 0) / 1e6 + lead
        tone = 0.2 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate, dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(tone[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        for packet in film.demux(video=0):
            if packet.dts is not None:
                late = round(lead / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts + late, packet.dts + late, picture
                container.mux(packet)
        for packets in (sound.encode(frame), sound.encode(None)):
            container.mux(packets)
    return target
