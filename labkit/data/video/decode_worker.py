"""The worker process in which videos are decoded, so that a decoder that hangs or crashes takes nothing else along.

One for each process that reads, started with the first video and ended with its parent; frames come back through a pipe as raw
bytes. It does not import torch: the caller resizes the frames. Processes that are workers already (`prefetch`, `probe_worker`)
decode in themselves, under the deadline of their parent.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labkit.data.video import decoders, decord_check, worker_process
from labkit.data.video.decoders import DecodedFrames, FrameClock, Measures, Shrink, Times
from labkit.data.video.fingerprints import fingerprint
from labkit.data.video.worker_process import WorkerFailed, WorkerProcess
from labkit.errors import LabError

log = logging.getLogger(__name__)

DEADLINE = 60.0
"""Seconds that the decoding of a video may make no progress."""
START_DEADLINE = 600.0
"""Seconds in which a process that reads videos has to start: many that import from one network disk at once take minutes."""
_COMMAND = [sys.executable, "-m", "labkit.data.video.decode_worker"]
NEXT_STEP = "convert it to H.264 mp4 or leave its moments out"
SKIPPED = 60.0
"""Seconds of a video that decord must be able to leave undecoded before it is asked, see `_skippable`."""


class Decoded(NamedTuple):
    """Frames, which decoder read them, and why decord, where it was asked, did not."""

    frames: DecodedFrames
    backend: str
    note: str


def decode(path: str | Path, wanted: Times, shrink: Shrink | None, folder: Path | None, deadline: float) -> Decoded:
    """The frames on screen at the wanted seconds, by decord where it can leave much out and its frames were found correct.

    PyAV reads all others. `folder` caches whether decord is right. Raises LabError, which names the video and the seconds, when it
    cannot be read, ends before all of them, or stands still for `deadline` seconds.
    """
    if worker_process.in_worker():
        return _decode(path, wanted, shrink, folder)
    parts: list[NDArray[Any]] = []

    def keep(rgb: NDArray[np.uint8]) -> None:
        parts.append(shrink(rgb) if shrink else rgb)

    request = {"path": str(path), "wanted": wanted.tolist(), "folder": None if folder is None else str(folder)}
    response = _call(path, request, deadline, time_range(wanted), keep)
    where, times = np.array(response["where"]), np.array(response["times"], np.float64)
    rgb = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not np.array_equal(where, np.arange(len(rgb))):
        rgb = rgb[where]
    return Decoded(
        DecodedFrames(rgb, times, response["end"], response["warnings"]), response["backend"], response["note"]
    )


def time_range(times: ArrayLike, start: float = 0.0) -> str:
    """The seconds asked for, as an error names them.

    >>> time_range([0.5, 2.0], 10.0), time_range([])
    (' between second 10.50 and 12.00', '')
    """
    wanted = np.asarray(times, np.float64) + start
    return f" between second {wanted.min():.2f} and {wanted.max():.2f}" if wanted.size else ""


def measure(path: str | Path, deadline: float) -> Measures:
    """`decoders.measure`. Raises LabError as `decode`."""
    if worker_process.in_worker():
        return decoders.measure(path)
    return Measures(*_call(path, {"path": str(path), "measure": True}, deadline, ""))


def frame_clock(path: str | Path, deadline: float = DEADLINE) -> FrameClock:
    """`decoders.frame_clock`. Raises LabError as `decode`."""
    starts, end, rate = _call(path, {"path": str(path), "clock": True}, deadline, "")
    return FrameClock(np.array(starts), end, rate)


def header_seconds(path: str | Path, deadline: float = DEADLINE) -> float:
    """The length that a video's header states; 0 where it states none or cannot be opened, which doctor reports."""
    try:
        return float(_call(path, {"path": str(path), "header": True}, deadline, ""))
    except LabError as error:
        log.warning("%s", error)
        return 0.0


def _decode(path: str | Path, wanted: Times, shrink: Shrink | None, folder: Path | None) -> Decoded:
    """Decode in this process."""
    note = ""
    if _skippable(wanted) > SKIPPED:
        try:
            note = decord_check.reason_against_decord(path, fingerprint(path), folder)
            if not note:
                return Decoded(decoders.decode_with_decord(path, wanted, shrink), "decord", "")
        except LabError:
            raise
        except Exception as error:
            # All of them: decord raises errors of its own, assertions and RuntimeErrors, or its library is not there.
            note = decoders.reason(error)
    return Decoded(decoders.decode_with_pyav(path, wanted, shrink), "pyav", note)


def _skippable(wanted: Times) -> float:
    """Seconds of a video up to the last wanted one, less two for each frame wanted.

    PyAV decodes them all, decord only the groups of pictures that hold a wanted frame, each as far as that frame: this is about what
    it can gain, and its check is due once for a video. By benchmarks/RESULTS.md it gains nothing at two frames a second; at one in
    5 s 50 ms of 30 s, for a check of 430, and 450 ms of 150 s, for one of 617. At one in 2 s it gains nothing either, even with a key
    frame every 2 s. A window late in a long video gains far more.

    >>> _skippable(np.arange(48) / 2), _skippable(np.arange(600.0, 630.0))
    (-72.5, 569.0)
    """
    return float(wanted.max()) - 2 * len(np.unique(wanted))


def _call(
    path: str | Path,
    request: dict[str, Any],
    deadline: float,
    span: str,
    keep: Callable[[NDArray[np.uint8]], object] | None = None,
) -> Any:
    with _State.lock:
        try:
            if _State.worker.process is None:
                _State.worker.call({}, START_DEADLINE)  # its imports do not count as the video's time
        except WorkerFailed as error:
            raise LabError(
                f"the process that decodes videos could not be started ({error}); try '{sys.executable} -m {_COMMAND[-1]}'"
            ) from None
        try:
            response = _State.worker.call(request, deadline, keep)
        except WorkerFailed as error:
            if error.timed_out:
                text = (
                    f"video {path} hangs{span}: its decoder stood still for {deadline:g} s, and was ended; {NEXT_STEP}"
                )
                raise LabError(text) from None
            raise LabError(f"video {path} killed its decoder{span} ({error}); {NEXT_STEP}") from None
    if "error" in response:
        raise LabError(response["error"])
    return response["found"]


class _State:
    """The worker of this process, and the lock by which threads share it."""

    lock = threading.Lock()
    worker = WorkerProcess(_COMMAND, DEADLINE)


def _after_fork() -> None:
    _State.worker.detach()
    _State.lock = threading.Lock()


atexit.register(lambda: _State.worker.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side."""
    if not request:
        return {}
    path = request["path"]
    try:
        if "header" in request:
            return {"found": _header(path)}
        if "clock" in request:
            clock = decoders.frame_clock(path)
            return {"found": [clock.starts.tolist(), clock.end, clock.rate]}
        if "measure" in request:
            return {"found": list(decoders.measure(path))}
        sent = 0

        def send(rgb: NDArray[np.uint8]) -> NDArray[Any]:
            """Send frames to the parent and keep their numbers."""
            nonlocal sent
            worker_process.send_array(rgb)
            sent += len(rgb)
            return np.arange(sent - len(rgb), sent)

        folder = Path(request["folder"]) if request["folder"] else None
        frames, backend, note = _decode(path, np.array(request["wanted"], np.float64), send, folder)
    except LabError as error:
        return {"error": str(error)}
    except Exception as error:
        # An unexpected error is this video's, not the others'.
        return {"error": f"video {path} could not be read ({type(error).__name__}: {error}); replace it"}
    numbers = frames.rgb.tolist()
    found = {"where": numbers, "times": frames.times.tolist(), "end": frames.end, "warnings": frames.note}
    return {"found": {**found, "backend": backend, "note": note}}


def _header(path: str) -> float:
    import av

    try:
        with decoders.open_container(path) as container:
            return (container.duration or 0) / float(av.time_base)
    except (OSError, ValueError):
        return 0.0


if __name__ == "__main__":
    worker_process.serve(_handle)
