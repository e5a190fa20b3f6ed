"""Frames on their way to the model: decoded, cached, decoded ahead by readers, and not read at all.

Clips are H.264 films of moving noise and shapes, written first; sizes and times are those of one params file of the
embedded lab (56 x 56) or of a real one (`--side`, `--seconds`). Seconds are CPU seconds of this process where they are of
one thread's work, and wall time where processes work side by side. Run from the project's root:

    OMP_NUM_THREADS=1 python benchmarks/frames.py
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import decode_worker, decoders, decord_check, worker_process
from labkit.data.video.frames import FrameCache, read_frames, sample_times
from labkit.data.video.prefetch import PrefetchPool, PrefetchWorker
from labkit.policy.families import FAMILIES
from labkit.policy.inputs import FrameSampling, patchify, smart_resize
from labkit.policy.prompt_source import PromptSource

REPEATS = 7
PACKAGES = ("torch", "numpy", "av", "decord")


@contextmanager
def decoded_here() -> Iterator[None]:
    """Decode in this process, whose processor time is measured, and not in one beside it."""
    original = worker_process.in_worker
    worker_process.in_worker = lambda: True
    try:
        yield
    finally:
        worker_process.in_worker = original


def write_film(
    path: Path,
    seconds: float,
    height: int,
    width: int,
    seed: int,
    rate: int = 25,
    codec: str = "libx264",
    **options: str,
) -> str:
    """An H.264 film of textured ground that slides, with a square that crosses it: about as hard to decode as a phone's."""
    import av

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (height // 8 + 1, width // 8 + 9, 3), dtype=np.uint8)
    ground = coarse.repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", "preset": "veryfast"} | options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(round(seconds * rate)):
            shift = number % 64
            picture = ground[:height, shift : shift + width].copy()
            side = height // 5
            left = number * 3 % (width - side)
            picture[side : 2 * side, left : left + side] = (235, 40, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def cpu_ms(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Median CPU milliseconds of this process."""
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return 1e3 * median(taken)


def one_clip(folder: Path, seconds: float, height: int, width: int, max_pixels: int) -> None:
    """Decoding against reading back, and the two forms on disk."""
    video = write_film(folder / f"{width}.mp4", seconds, height, width, 0)
    size = smart_resize(height, width, 28, 3136, max_pixels)
    times = sample_times(seconds, 2.0, 768)
    cache = FrameCache(folder / f"frames-{width}")
    frames = cache.get(video, times, size)
    numbers = iter(range(100))
    with decoded_here():
        decode = cpu_ms(lambda: FrameCache(folder / f"cold-{width}-{next(numbers)}").get(video, times, size), 4)
    cached = cpu_ms(lambda: cache.get(video, times, size))
    patches = cpu_ms(lambda: patchify(frames.rgb, FAMILIES["qwen2_5_vl"], 14, 2, 2))
    raw = folder / "raw.npy"
    np.save(raw, frames.rgb)
    plain = cpu_ms(lambda: np.load(raw))
    mapped = cpu_ms(lambda: np.ascontiguousarray(np.load(raw, mmap_mode="r")))
    (entry,) = cache.folder.glob("*.npz")
    tokens = len(times) // 2 * (size[0] // 28) * (size[1] // 28)
    print(
        f"\n{seconds:g} s of {width} x {height}, {len(times)} frames at {size[1]} x {size[0]}, {tokens} video tokens"
    )
    print(f"{'':<34}{'CPU ms':>10}{'of decoding':>14}")
    for name, taken in [
        ("decoded, resized, written", decode),
        ("from the cache", cached),
        ("  as raw .npy, no checksum", plain),
        ("  as mapped .npy, no checksum", mapped),
        ("patches of it", patches),
        ("decoded + patches", decode + patches),
        ("from the cache + patches", cached + patches),
    ]:
        print(f"{name:<34}{taken:>10.1f}{taken / decode:>13.1%}")
    print(
        f"cached against decoded: {decode / cached:.1f}x; with patches {(decode + patches) / (cached + patches):.1f}x"
    )
    kinds = f"pixels {frames.rgb.nbytes:,}, cache file {entry.stat().st_size:,}, features of a 7B in bf16"
    print(f"bytes: {kinds} {tokens * 3584 * 2:,}, video file {Path(video).stat().st_size:,}")


def two_decoders(folder: Path) -> None:
    """What decord gains over PyAV where both are right, and what it costs not to believe either; by turns, as the pace moves."""
    films = [
        ("H.264, 16 s of 56 x 56", 16.0, 56, 56, "libx264", 2.0),
        ("H.264, 30 s of 640 x 360", 30.0, 360, 640, "libx264", 2.0),
        ("H.264, 30 s of 640 x 360", 30.0, 360, 640, "libx264", 0.2),
        ("H.264, 150 s of 640 x 360", 150.0, 360, 640, "libx264", 0.2),
        ("H.264, 20 s of 1280 x 720", 20.0, 720, 1280, "libx264", 2.0),
        ("HEVC, 10 s of 640 x 360", 10.0, 360, 640, "libx265", 2.0),
        ("VP9, 10 s of 640 x 360", 10.0, 360, 640, "libvpx-vp9", 2.0),
    ]
    options = {
        "libx265": {"x265-params": "open-gop=0:log-level=none:pools=none:frame-threads=1", "preset": "ultrafast"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "128"},
    }
    print(
        f"\n{'CPU ms':<28}{'fps':>5}{'decord':>9}{'PyAV':>9}{'ratio':>7}{'check, once':>13}{'beside':>9}{'share':>8}"
    )
    for number, (name, seconds, height, width, codec, fps) in enumerate(films):
        suffix = ".webm" if codec == "libvpx-vp9" else ".mp4"
        extra = options.get(codec, {})
        video = write_film(folder / f"both{number}{suffix}", seconds, height, width, 0, 25, codec, **extra)
        times = sample_times(seconds, fps, 768)
        if reason := decord_check._check(video):
            raise SystemExit(f"decord would not read {name}: {reason}")
        works: dict[str, Callable[[], Any]] = {
            "decord": functools.partial(decoders.decode_with_decord, video, times, None),
            "pyav": functools.partial(decoders.decode_with_pyav, video, times, None),
            "check": functools.partial(decord_check._check, video),
            "here": functools.partial(decode_worker._decode, video, times, None, None),
            "beside": functools.partial(read_frames, video, times),
        }
        taken: dict[str, list[float]] = {kind: [] for kind in works}
        for turn in range(1 + (3 if height > 300 else REPEATS)):
            for kind, work in works.items():
                begin = both_processes()
                work()
                if turn:
                    taken[kind].append(1e3 * (both_processes() - begin))
        ms = {kind: median(each) for kind, each in taken.items()}
        print(
            f"{name:<28}{fps:>5g}{ms['decord']:>9.1f}{ms['pyav']:>9.1f}{ms['pyav'] / ms['decord']:>6.1f}x"
            f"{ms['check']:>13.1f}{ms['beside'] - ms['here']:>9.1f}{ms['beside'] / ms['here'] - 1:>8.0%}"
        )


def both_processes() -> float:
    """Processor seconds of this process and of the one that decodes beside it."""
    import psutil

    worker = decode_worker._State.worker.process
    times = psutil.Process(worker.pid).cpu_times() if worker else None
    return time.process_time() + (times.user + times.system if times else 0.0)


def epochs(folder: Path, clips: int) -> None:
    """Two epochs over many clips: what is decoded, what is encoded, and how long it takes."""
    from labkit.embedded.world import write_world
    from labkit.policy.model import load_policy

    moments = write_world(folder / "world", clips, 1, 1, edition=1)["train"]
    policy = load_policy("embedded", device="cpu")
    sampling = FrameSampling(2.0, 32, 3136, 3136)
    features = 0
    print(f"\n{clips} clips of the embedded world, {len(moments)} queries, each asked once an epoch")
    print(
        f"{'feature memory':<18}{'epoch':>6}{'videos decoded':>16}{'frames read':>13}{'encoded':>9}{'kept MB':>9}{'CPU s':>8}"
    )
    cache = FrameCache(folder / "frames")
    for name, memory in (("all fit", 4.0), ("a tenth", 0.0)):
        before = cache.decoded
        if not memory:
            memory = features / 10 / 1e9
        source = PromptSource(policy, moments, template="query", sampling=sampling, cache=cache, feature_memory=memory)
        for epoch in (1, 2):
            begin, counts = time.process_time(), (cache.decoded, cache.hits, source.encoded)
            for moment in moments:
                source[moment.qid]
            taken = time.process_time() - begin
            row = [now - then for now, then in zip((cache.decoded, cache.hits, source.encoded), counts, strict=True)]
            print(
                f"{name:<18}{epoch:>6}{row[0]:>16}{row[1]:>13}{row[2]:>9}{source.cached_bytes / 1e6:>9.1f}{taken:>8.2f}"
            )
        features = source.cached_bytes
        if before and cache.decoded != before:
            raise SystemExit("a second source decoded clips that were on disk")


def ahead(folder: Path, clips: int, readers: int, work_ms: float) -> None:
    """A model that works on each clip for a while: how long it waits for frames, read in its process and ahead of it."""
    films = [write_film(folder / f"film{k}.mp4", 10.0, 360, 480, k) for k in range(clips)]
    moments = [Moment(f"q{k}", film, "a square moves", (Span(0.0, 5.0),), 10.0) for k, film in enumerate(films)]
    times, size = sample_times(10.0, 2.0, 768), smart_resize(360, 480, 28, 3136, 100352)
    print(
        f"\n{clips} clips of 10 s, 480 x 360; the model works {work_ms:.0f} ms on each (asleep, as the CPU is beside a GPU)"
    )
    print(f"{'readers':<10}{'wall s':>8}{'waited s':>10}{'first clip s':>14}{'decoded':>9}")
    walls = []
    for number in (0, readers):
        cache = FrameCache(folder / f"ahead-{number}")
        pool = PrefetchPool(number, 60.0) if number else None
        jobs = {m.qid: functools.partial(into, cache, m.video, times, size) for m in moments}
        begin, waited = time.monotonic(), []
        if pool is not None:
            pool.schedule(jobs.items())
        for moment in moments:
            asked = time.monotonic()
            if pool is not None:
                pool.wait_for(moment.qid, jobs[moment.qid])
            else:
                cache.info(moment.video)
            cache.get(moment.video, times, size)
            waited.append(time.monotonic() - asked)
            time.sleep(work_ms / 1e3)
        walls.append(time.monotonic() - begin)
        if pool is not None:
            pool.close()
        print(f"{number:<10}{walls[-1]:>8.2f}{sum(waited):>10.2f}{waited[0]:>14.2f}{cache.decoded:>9}")
    print(f"ahead against in the process: {walls[0] / walls[1]:.2f}x")


def into(cache: FrameCache, video: str, times: np.ndarray, size: tuple[int, int], reader: PrefetchWorker) -> None:
    """A reader's job."""
    reader.frames(cache, video, times, size)


def starts() -> None:
    """What a reader costs before it decodes."""
    print(f"\n{'a reader starts':<34}{'CPU s':>8}{'MB':>8}")
    for name, imports in (
        ("decodes only, beside this process", "import decord, av"),
        ("a reader that resizes (torch)", "import torch, decord"),
    ):
        code = (
            f"import time, labkit.data.video.prefetch\n{imports}\n"
            "memory = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
            "print(time.process_time(), int(memory.split()[1]) / 1e3)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        print(f"{name:<34}{float(found[0]):>8.2f}{float(found[1]):>8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200, help="clips of the two epochs (default: %(default)s)")
    parser.add_argument("--readers", type=int, default=2, help="processes that decode ahead (default: %(default)s)")
    parser.add_argument("--work", type=float, default=250.0, help="ms of the model on a clip (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in PACKAGES)
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, Python {platform.python_version()}, {versions}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starts()
        two_decoders(folder)
        one_clip(folder, 16.0, 56, 56, 3136)
        one_clip(folder, 20.0, 360, 640, 3584 * 28 * 28 // 40)
        epochs(folder, options.clips)
        ahead(folder, 24, options.readers, options.work)


if __name__ == "__main__":
    main()
