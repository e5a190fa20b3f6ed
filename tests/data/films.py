"""Films whose frames carry their own number, so that a test reads which frame it was given."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

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
) -> Path:
    """Write a film whose frame k is first shown at `milliseconds[k]`."""
    if codec == "libsvtav1" and multiprocessing.parent_process() is None:
        # For the superuser, SVT-AV1 moves the process that calls it to real-time priority 99, and all that the process
        # starts from then on: kernels and browsers would leave nothing to anybody else on the machine.
        work = partial(film, path, milliseconds, codec=codec, options=options, faststart=faststart)
        child = multiprocessing.get_context("spawn").Process(target=work)
        child.start()
        child.join()
        assert child.exitcode == 0, f"the encoder's process ended with {child.exitcode}"
        return path
    clock = Fraction(1, 1000)
    with av.open(str(path), "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=25, options={"threads": "1"} | (options or {}))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = stream.time_base = clock
        for number, pts in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(painted(number), format="rgb24")
            frame.pts, frame.time_base = pts, clock
            container.mux(stream.encode(frame))
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


def expected(milliseconds: Sequence[int], times: Sequence[float], first: int = 0) -> list[int]:
    """Frame numbers by definition: the last frame, from `first` on, whose time is not after the second asked for."""
    clock = np.array(milliseconds[first:], float) - milliseconds[first]
    return [first + int(np.flatnonzero(clock <= 1000 * time + 1)[-1]) for time in times]


def numbers(frames: np.ndarray) -> list[int]:
    """The number painted into each frame."""
    return [number_of(frame) for frame in frames]
