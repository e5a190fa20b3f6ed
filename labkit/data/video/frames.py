"""Videos: the frames shown at true seconds, small enough for a model, decoded once.

Second 0 is the moment the first frame is shown, whatever clock the file carries. The frame shown at second t is the
last one whose timestamp is not after t; beyond the end that is the last frame. decord reads what it can leave much out of, in files
on which it was found right, PyAV all else, and `Frames` says so. Either does it in a worker process, see `decode_worker`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from labkit.data.video import decode_worker, decoders
from labkit.data.video.decode_worker import DEADLINE
from labkit.data.video.decoders import Pixels, Shrink, Times
from labkit.data.video.fingerprints import fingerprint, require
from labkit.files import replacing

log = logging.getLogger(__name__)

# Part of every cache key: raise it when the same request would give other pixels.
_CACHE_FORMAT = 3


class Frames(NamedTuple):
    """The frames shown at the times asked for, one per time.

    `rgb` is uint8 (T, H, W, 3); `times` (T,) are the true timestamps of these frames in seconds, relative to the
    clip's beginning (the first may be just below 0: that frame is still shown when the clip begins); `backend` is
    "decord" or "pyav"; `note` says why decord, where it was asked, was not used and what is wrong with the file, "" if nothing is.
    """

    rgb: Pixels
    times: Times
    backend: str
    note: str


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """A video measured by its packets, not its header: seconds, mean frames per second, displayed pixels, frames."""

    duration: float
    fps: float
    width: int
    height: int
    frames: int


def sample_times(duration: float, fps: float, max_frames: int, multiple: int = 2) -> Times:
    """Seconds (T,) at which a clip is looked at: t_k = k * step from 0, all inside [0, duration).

    step is 1 / fps; longer when `max_frames` binds; shorter only for a clip too short to hold `multiple` frames.
    T is a multiple of `multiple` (a temporal patch): what is missing repeats the last time, as Qwen-VL's processors repeat the last
    frame. Rounding down would lose the clip's last second, and spreading fewer frames would see the others more thinly.

    >>> sample_times(3.0, fps=2.0, max_frames=32)
    array([0. , 0.5, 1. , 1.5, 2. , 2.5])
    >>> sample_times(60.0, fps=2.0, max_frames=5)
    array([ 0., 15., 30., 45.])
    >>> sample_times(0.4, fps=2.0, max_frames=32)
    array([0. , 0.2])
    >>> sample_times(3.0, fps=1.0, max_frames=32)
    array([0., 1., 2., 2.])
    """
    if not (math.isfinite(duration) and duration > 0 and math.isfinite(fps) and fps > 0):
        raise ValueError(f"duration and fps must be finite and above 0, not {duration!r} and {fps!r}")
    if not 1 <= multiple <= max_frames:
        raise ValueError(f"max_frames must hold one multiple of {multiple} frames, not {max_frames!r}")
    # The small number keeps 8.0 s at 2 fps at 16 frames when 8.0 was computed as 8.000000001.
    fitting = math.ceil(duration * fps - 1e-6)
    whole, most = -(-fitting // multiple) * multiple, max_frames // multiple * multiple
    if fitting < multiple or whole > most:
        count = min(whole, most)
        return np.arange(count, dtype=np.float64) * (duration / count)
    return np.minimum(np.arange(whole), fitting - 1) * (1 / fps)


def read_frames(path: str | Path, times: ArrayLike, start: float = 0.0, *, deadline: float = DEADLINE) -> Frames:
    """Frames of `path` shown at `start + times`, in the video's own size, rotated as a player shows them.

    `start` is the trim window's beginning in the video; times in the result are relative to it. A recording that is
    turned or changes its size is shown at its first frame's size.

    Raises LabError when the file is missing, empty, not a video, or ends before the first time asked for, and when its decoder
    dies or stands still for `deadline` seconds.
    """
    return _read(path, times, start, None, None, deadline)


def thumbnails(
    path: str | Path,
    times: ArrayLike,
    width: int,
    *,
    folder: str | Path | None = None,
    deadline: float = DEADLINE,
    on_frames: Callable[[int], object] | None = None,
) -> Pixels:
    """Small frames (T, H, W, 3) for figures, `width` pixels wide, heights in proportion. Otherwise as `read_frames`.

    `folder` caches between processes whether decord is right on the file. `on_frames` takes how many frames are there, now and then.
    """
    done = 0

    def shrink(rgb: Pixels) -> Pixels:
        nonlocal done
        done += len(rgb)
        if on_frames is not None:
            on_frames(done)
        return resize(rgb, (max(1, round(rgb.shape[1] * width / rgb.shape[2])), width))

    return _read(path, times, 0.0, shrink, None if folder is None else Path(folder), deadline).rgb


def resize(rgb: Pixels, size: tuple[int, int]) -> Pixels:
    """Frames (T, H, W, 3) at `size` (height, width): bicubic with antialias on uint8, as Qwen-VL's processors do it.

    >>> resize(np.full((2, 8, 8, 3), 7, np.uint8), (4, 2)).shape
    (2, 4, 2, 3)
    """
    if rgb.shape[1:3] == tuple(size):
        return rgb
    import torch  # two seconds and 200 MB, which a reader of clips that fit already is spared

    frames = torch.from_numpy(np.ascontiguousarray(rgb)).permute(0, 3, 1, 2)
    frames = torch.nn.functional.interpolate(frames, size, mode="bicubic", antialias=True, align_corners=False)
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).numpy())


def probe(path: str | Path, *, deadline: float = DEADLINE) -> VideoInfo:
    """Measure a video by its packets and its first frame; a truncated file is measured by what is left of it.

    Raises LabError when the file is missing, empty or shows no frame, and when its decoder dies or stands still for
    `deadline` seconds.
    """
    duration, frames, height, width = decode_worker.measure(path, deadline)
    return VideoInfo(duration, frames / duration if duration > 0 else 0.0, width, height, frames)


class FrameCache:
    """Frames at the model's size on disk, so that no clip is decoded twice, by this run or the next.

    One file per video content, times and size; files appear whole, so several processes may share the folder, and a data
    folder that was moved finds its frames again. Beside them stands for each video what it measures, and, where decord was
    asked, whether it is right. `hits` and `decoded` count what `get` did, `decoded` also what `labkit.data.video.prefetch` did for
    this cache.
    """

    def __init__(self, folder: str | Path, deadline: float = DEADLINE) -> None:
        """Use `folder`, making it when it is not there; `deadline`: seconds that the decoding of a video may stand still."""
        self.folder, self.deadline = Path(folder), deadline
        self.folder.mkdir(parents=True, exist_ok=True)
        self.hits = 0
        self.decoded = 0

    def __repr__(self) -> str:
        """Folder and counters."""
        return f"FrameCache({str(self.folder)!r}, hits={self.hits}, decoded={self.decoded})"

    def get(self, path: str | Path, times: ArrayLike, size: tuple[int, int], start: float = 0.0) -> Frames:
        """`read_frames` resized to `size` (height, width), from disk if these frames were ever made.

        A video that changed is decoded again. Raises LabError as `read_frames`.
        """
        wanted = np.asarray(times, np.float64)
        file = self._file(path, wanted, size, start)
        frames = _load(file)
        if frames is not None:
            self.hits += 1
            return frames
        frames = _read(path, wanted, start, lambda rgb: resize(rgb, size), self.folder, self.deadline)
        self.decoded += 1
        # Uncompressed: frames of real videos hardly shrink, and reading them back is what is done often. The archive's
        # checksum costs a twentieth of what patches of these frames cost, and finds a damaged file.
        with replacing(file) as temporary, open(temporary, "wb") as out:
            np.savez(out, rgb=frames.rgb, times=frames.times, backend=frames.backend, note=frames.note)
        return frames

    def holds(self, path: str | Path, times: ArrayLike, size: tuple[int, int], start: float = 0.0) -> bool:
        """Whether `get` need not decode. Raises LabError when the video is missing or empty."""
        return self._file(path, np.asarray(times, np.float64), size, start).is_file()

    def file_beside(
        self, path: str | Path, times: ArrayLike, size: tuple[int, int], start: float, suffix: str
    ) -> Path:
        """Where to keep what follows from these frames. Raises LabError when the video is missing or empty."""
        return self._file(path, np.asarray(times, np.float64), size, start).with_suffix(suffix)

    def knows(self, path: str | Path) -> bool:
        """Whether `info` need not open the video. Raises LabError when it is missing or empty."""
        return self._info_file(path).is_file()

    def _file(self, path: str | Path, times: Times, size: tuple[int, int], start: float) -> Path:
        request = f"{_CACHE_FORMAT} {fingerprint(path)} {size[0]}x{size[1]} {float(start)!r} {times.tolist()}"
        return self.folder / f"{hashlib.blake2b(request.encode(), digest_size=20).hexdigest()}.npz"

    def _info_file(self, path: str | Path) -> Path:
        return self.folder / f"{fingerprint(path)}.json"

    def info(self, path: str | Path) -> VideoInfo:
        """`probe`, kept beside the frames: the size for the model is asked for every clip in every epoch."""
        file = self._info_file(path)
        try:
            return VideoInfo(**json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            pass
        except (ValueError, TypeError) as error:
            log.warning("%s is damaged (%s); measuring %s again", file, error, path)
        info = probe(path, deadline=self.deadline)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(asdict(info)), encoding="utf-8")
        return info


class BlackFrames(FrameCache):
    """Black frames in place of every video's own, at the same times and size: what a model knows that sees nothing."""

    def get(self, path: str | Path, times: ArrayLike, size: tuple[int, int], start: float = 0.0) -> Frames:
        """As `FrameCache.get`, but all black; the video is not opened."""
        shown = np.asarray(times, np.float64)
        return Frames(np.zeros((len(shown), *size, 3), np.uint8), shown, "black", "")

    def holds(self, path: str | Path, times: ArrayLike, size: tuple[int, int], start: float = 0.0) -> bool:
        """Always."""
        return True

    def _file(self, path: str | Path, times: Times, size: tuple[int, int], start: float) -> Path:
        name = f"black {size[0]}x{size[1]} {len(times)}"  # the same for every video
        return self.folder / f"{hashlib.blake2b(name.encode(), digest_size=20).hexdigest()}.npz"


def _load(file: Path) -> Frames | None:
    """Frames of a cache file; None when there is none, or when a crash of the machine has left it damaged."""
    try:
        # Opened here, not by numpy, which leaves a file open that turns out to be no archive.
        with open(file, "rb") as raw, np.load(raw, allow_pickle=False) as arrays:
            return Frames(arrays["rgb"], arrays["times"], str(arrays["backend"]), str(arrays["note"]))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        log.warning("%s is damaged (%s); decoding its clip again", file, error)
        return None


def _read(
    path: str | Path, times: ArrayLike, start: float, shrink: Shrink | None, folder: Path | None, deadline: float
) -> Frames:
    """Decode frames, check them, and make their times relative to the clip."""
    wanted = np.asarray(times, np.float64) + start
    if wanted.ndim != 1 or wanted.size == 0 or not np.isfinite(wanted).all() or wanted.min() < 0:
        raise ValueError(f"times must be one row of seconds from 0 on, not {times!r} from {start!r} s")
    require(path)
    shown, backend, reason = decode_worker.decode(path, wanted, shrink, folder, deadline)
    if reason:
        log.info("%s: %s; read with PyAV", path, reason)
    decoders.require_within(path, wanted, shown.end)
    late = int((wanted > shown.end + decoders.PTS_TOLERANCE).sum())
    past = f"{late} of {wanted.size} times lie past the end ({shown.end:.2f} s) and show the last frame"
    warnings = [shown.note, past if late else ""]
    for warning in filter(None, warnings):
        log.warning("%s: %s", path, warning)
    return Frames(shown.rgb, shown.times - start, backend, "; ".join(filter(None, [reason, *warnings])))
