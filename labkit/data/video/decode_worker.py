"""The process in which this one's videos are opened: native code that hangs on a film, or dies of it, takes nothing else along.

A warm process for each process that reads, started with the first video and ended with its owner; frames come back through a pipe
as they lie in memory. It does not import torch: whoever asks makes the frames small. Processes that read for others (readers,
examiners) do it in themselves, under their own deadline.
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
from labkit.data.video.decoders import Measures, Shown, Shrink, Times
from labkit.data.video.fingerprints import fingerprint
from labkit.data.video.worker_process import Answerer, Unanswered
from labkit.errors import LabError

log = logging.getLogger(__name__)

DEADLINE = 60.0
"""Seconds that the decoding of a video may stand still."""
START_DEADLINE = 600.0
"""Seconds in which a process that reads videos has to start: many that import from one network disk at once take minutes."""
_COMMAND = [sys.executable, "-m", "labkit.data.video.decode_worker"]
STEP = "convert it to H.264 mp4 or leave its moments out"


class Decoded(NamedTuple):
    """What was shown, by which decoder, and what is to be said of that."""

    shown: Shown
    backend: str
    note: str


def decode(path: str | Path, wanted: Times, shrink: Shrink | None, folder: Path | None, deadline: float) -> Decoded:
    """The frames on screen at the wanted seconds, by decord where it was found right, otherwise by PyAV.

    `folder` keeps whether decord is right. Raises LabError, which names the video and the seconds, when it cannot be read, ends
    before all of them, or stands still for `deadline` seconds.
    """
    if worker_process.answering():
        return _decode(path, wanted, shrink, folder)
    parts: list[NDArray[Any]] = []

    def take(rgb: NDArray[np.uint8]) -> None:
        parts.append(shrink(rgb) if shrink else rgb)

    question = {"path": str(path), "wanted": wanted.tolist(), "folder": None if folder is None else str(folder)}
    answer = _ask(path, question, deadline, between(wanted), take)
    where, times = np.array(answer["where"]), np.array(answer["times"], np.float64)
    rgb = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not np.array_equal(where, np.arange(len(rgb))):
        rgb = rgb[where]
    return Decoded(Shown(rgb, times, answer["end"], answer["trouble"]), answer["backend"], answer["note"])


def between(times: ArrayLike, start: float = 0.0) -> str:
    """The seconds asked for, as an error names them.

    >>> between([0.5, 2.0], 10.0), between([])
    (' between second 10.50 and 12.00', '')
    """
    wanted = np.asarray(times, np.float64) + start
    return f" between second {wanted.min():.2f} and {wanted.max():.2f}" if wanted.size else ""


def measure(path: str | Path, deadline: float) -> Measures:
    """`decoders.measure`. Raises LabError as `decode`."""
    if worker_process.answering():
        return decoders.measure(path)
    return Measures(*_ask(path, {"path": str(path), "measure": True}, deadline, ""))


def header_seconds(path: str | Path, deadline: float = DEADLINE) -> float:
    """The length that a video's header states; 0 where it states none or cannot be opened, which is doctor's to tell."""
    try:
        return float(_ask(path, {"path": str(path), "header": True}, deadline, ""))
    except LabError as error:
        log.warning("%s", error)
        return 0.0


def _decode(path: str | Path, wanted: Times, shrink: Shrink | None, folder: Path | None) -> Decoded:
    """Decode in this process."""
    try:
        note = decord_check.distrust(path, fingerprint(path), folder)
        if not note:
            return Decoded(decoders.by_decord(path, wanted, shrink), "decord", "")
    except LabError:
        raise
    except Exception as error:
        # All of them: decord raises errors of its own, assertions and RuntimeErrors, or its library is not there.
        note = decoders.reason(error)
    return Decoded(decoders.by_pyav(path, wanted, shrink), "pyav", note)


def _ask(
    path: str | Path,
    question: dict[str, Any],
    deadline: float,
    span: str,
    take: Callable[[NDArray[np.uint8]], object] | None = None,
) -> Any:
    with _State.lock:
        try:
            if _State.worker.process is None:
                _State.worker.ask({}, START_DEADLINE)  # its imports are no video's fault
        except Unanswered as error:
            raise LabError(
                f"the process that decodes videos could not be started ({error}); try '{sys.executable} -m {_COMMAND[-1]}'"
            ) from None
        try:
            answer = _State.worker.ask(question, deadline, take)
        except Unanswered as error:
            if error.late:
                text = f"video {path} hangs{span}: its decoder stood still for {deadline:g} s, and was ended; {STEP}"
                raise LabError(text) from None
            raise LabError(f"video {path} killed its decoder{span} ({error}); {STEP}") from None
    if "error" in answer:
        raise LabError(answer["error"])
    return answer["found"]


class _State:
    """The worker of this process; threads wait for each other."""

    lock = threading.Lock()
    worker = Answerer(_COMMAND, DEADLINE)


def _forked() -> None:
    _State.worker.leave()
    _State.lock = threading.Lock()


atexit.register(lambda: _State.worker.end())
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def _do(question: dict[str, Any]) -> dict[str, Any]:
    """The child's side."""
    if not question:
        return {}
    path = question["path"]
    try:
        if "header" in question:
            return {"found": _header(path)}
        if "measure" in question:
            return {"found": list(decoders.measure(path))}
        sent = 0

        def send(rgb: NDArray[np.uint8]) -> NDArray[Any]:
            """Send frames away and keep their numbers."""
            nonlocal sent
            worker_process.send(rgb)
            sent += len(rgb)
            return np.arange(sent - len(rgb), sent)

        folder = Path(question["folder"]) if question["folder"] else None
        shown, backend, note = _decode(path, np.array(question["wanted"], np.float64), send, folder)
    except LabError as error:
        return {"error": str(error)}
    except Exception as error:
        # An error nobody foresaw is this video's, not the others'.
        return {"error": f"video {path} could not be read ({type(error).__name__}: {error}); replace it"}
    numbers = shown.rgb.tolist()
    found = {"where": numbers, "times": shown.times.tolist(), "end": shown.end, "trouble": shown.note}
    return {"found": {**found, "backend": backend, "note": note}}


def _header(path: str) -> float:
    import av

    try:
        with decoders.open_container(path) as container:
            return (container.duration or 0) / float(av.time_base)
    except (OSError, ValueError):
        return 0.0


if __name__ == "__main__":
    worker_process.answer(_do)
