"""Probing videos: which exist, which can be decoded, and their true length, size, codec and frame rate.

Finding a file costs a stat. Opening one is left to worker processes (`probe_worker`), each of which opens many videos one after
the other, and is killed and replaced when a video takes longer than the deadline or crashes it, so that neither a hanging nor a
crashing decoder reaches the caller. Results are cached by the file's fingerprint.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import queue
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from labkit.data.video.frames import fingerprint
from labkit.data.video.worker_process import WorkerFailed, WorkerProcess, available_cores
from labkit.errors import LabError
from labkit.files import replacing

log = logging.getLogger(__name__)

STATES = ("ok", "not opened", "missing", "empty", "unreadable rights", "not a video", "audio only", "truncated", "hangs",
          "crashed")  # fmt: skip
"""What a video can be; `not opened` is a file that is there, can be read, and was only looked for."""
CLOCK_RESET = "its clock is set back"
"""How the note begins on a file whose timestamps start anew."""
# What the file itself decides. A machine under load may make a file hang or a worker die.
_CACHED_STATES = ("ok", "not a video", "audio only", "truncated")
# Raise it when `probe_worker` finds out other things.
_FORMAT = 2
_COMMAND = [sys.executable, "-m", "labkit.data.video.probe_worker"]
# Seconds between two writings of the cache: what an interruption costs at most.
_SAVE_EVERY = 20.0
_SUFFIXES = {
    "mov,mp4,m4a,3gp,3g2,mj2": (".mp4", ".mov", ".m4v", ".3gp", ".qt"),
    "matroska,webm": (".mkv", ".webm"),
    "avi": (".avi",),
    "flv": (".flv", ".f4v"),
    "mpegts": (".ts", ".m2ts", ".mts"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "asf": (".wmv", ".asf"),
    "ogg": (".ogv", ".ogg"),
    "gif": (".gif",),
}
"""What a file of FFmpeg's format may be called."""


@dataclass(frozen=True, slots=True)
class VideoCheck:
    """The result of probing one video; zeros and "" where it could not be opened.

    `duration`, `fps` and `frames` are measured by the packets, not taken from the header, and of a truncated file they
    are those of what is left; `width` and `height` are as a player shows them, after `rotation` degrees.
    """

    state: str
    """One of STATES."""
    duration: float = 0.0
    """Seconds from the first frame's beginning to the last one's end."""
    fps: float = 0.0
    """Frames per second on average."""
    frames: int = 0
    width: int = 0
    height: int = 0
    codec: str = ""
    rotation: int = 0
    variable_rate: bool = False
    """Waits between frames differ: at no second is frame number = time x fps."""
    wrong_suffix: str = ""
    """What the name should end in, "" when it ends well."""
    backend: str = ""
    """The decoder that reads it where much can be left out: "decord" or "pyav"."""
    notes: tuple[str, ...] = ()
    """Further remarks, such as why decord does not read it."""

    @property
    def readable(self) -> bool:
        """Whether a run gets frames of it, as far as is known."""
        return self.state in ("ok", "not opened") or (self.state == "truncated" and self.frames > 0)


def stat_video(path: str | Path) -> VideoCheck:
    """Check for a video without opening it: one stat.

    A file whose mode lets nobody read counts as unreadable for the superuser too, who could read it all the same.
    """
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return VideoCheck("missing")
    except (OSError, ValueError) as error:
        return VideoCheck("unreadable rights", notes=(str(getattr(error, "strerror", None) or error),))
    if not stat.S_ISREG(found.st_mode):
        return VideoCheck("not a video", notes=("not a file",))
    if not found.st_mode & 0o444 or not os.access(path, os.R_OK):
        return VideoCheck("unreadable rights", notes=(f"mode {stat.S_IMODE(found.st_mode):03o}",))
    return VideoCheck("empty" if found.st_size == 0 else "not opened")


def check_videos(
    paths: Iterable[str],
    *,
    cache: Path,
    deadline: float = 20.0,
    processes: int | None = None,
    on_video: Callable[[int, int], None] | None = None,
) -> dict[str, VideoCheck]:
    """Open every video once, in worker processes, which may hang or crash on it.

    Args:
        paths: in any order, repeated or not.
        cache: file of results by fingerprint; made, and replaced whole.
        deadline: seconds after which a video counts as hanging.
        processes: workers at a time; by default one for each core that this process may use, 8 at most.
        on_video: called with (done, all) after each video that had to be opened.
    """
    found = {path: stat_video(path) for path in dict.fromkeys(map(str, paths))}
    cached = _read_cache(cache)
    prints: dict[str, str] = {}
    for path, check in found.items():
        if check.state == "not opened":
            try:
                prints[path] = fingerprint(path)
            except LabError as error:
                found[path] = VideoCheck("unreadable rights", notes=(str(error),))
    unopened: dict[str, str] = {}
    for path, key in prints.items():
        if key not in cached:
            unopened.setdefault(key, path)  # two names of one content are opened once
    fresh: dict[str, dict[str, Any]] = {}
    saved = time.monotonic()
    try:
        for done, (key, answer) in enumerate(
            _probe_all(unopened, deadline, processes or min(8, available_cores())), 1
        ):
            fresh[key] = answer
            if on_video is not None:
                on_video(done, len(unopened))
            if time.monotonic() - saved > _SAVE_EVERY:
                _write_cache(cache, fresh)
                saved = time.monotonic()
    finally:
        if fresh:
            _write_cache(cache, fresh)
    answers = cached | fresh
    return {path: _video_check(path, answers[prints[path]]) if path in prints else found[path] for path in found}


def _video_check(path: str, answer: dict[str, Any]) -> VideoCheck:
    """A worker's result, with what it says about this file's name."""
    values = dict(answer)
    allowed = _SUFFIXES.get(values.pop("format", ""), ())
    wrong = allowed and Path(path).suffix.lower() not in allowed and values["state"] in ("ok", "truncated")
    return VideoCheck(
        **values | {"notes": tuple(values.get("notes", ())), "wrong_suffix": allowed[0] if wrong else ""}
    )


def _probe_all(unopened: dict[str, str], deadline: float, processes: int) -> Iterable[tuple[str, dict[str, Any]]]:
    """Results as they come, by fingerprint, from a few workers in parallel."""
    tasks: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[str, dict[str, Any]] | BaseException] = queue.SimpleQueue()
    for task in unopened.items():
        tasks.put(task)
    stopped = threading.Event()

    def run_worker(worker: WorkerProcess) -> None:
        try:
            while not stopped.is_set():
                key, path = tasks.get_nowait()
                answers.put((key, _probe_one(worker, path)))
        except queue.Empty:
            pass
        except BaseException as error:
            answers.put(error)
        finally:
            worker.end()

    workers = [WorkerProcess(_COMMAND, deadline) for _ in range(min(processes, len(unopened)))]
    threads = [threading.Thread(target=run_worker, args=[worker], daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for _ in unopened:
            answer = answers.get()
            if isinstance(answer, BaseException):
                raise answer
            yield answer
    finally:
        # An interruption does not wait for a video that hangs.
        stopped.set()
        for worker, thread in zip(workers, threads, strict=True):
            worker.close()
            thread.join(5.0)


def _probe_one(worker: WorkerProcess, path: str) -> dict[str, Any]:
    """The result for one video, or what became of the process that opened it."""
    try:
        return worker.call(path)
    except WorkerFailed as error:
        if error.timed_out:
            return {"state": "hangs", "notes": [str(error)]}
        return {"state": "crashed", "notes": [f"the process that opened it {error}"]}


def _cache_key() -> dict[str, Any]:
    """What the cached results depend on beside the file."""
    versions = {}
    for package in ("av", "decord"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = ""
    return {"format": _FORMAT, **versions}


def _read_cache(path: Path) -> dict[str, dict[str, Any]]:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored.pop("heading") != _cache_key():
            return {}
        names = {field.name for field in dataclasses.fields(VideoCheck)} | {"format"}
        return {key: answer for key, answer in stored["found"].items() if "state" in answer and set(answer) <= names}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("%s is damaged (%r); opening the videos again", path, error)
        return {}


def _write_cache(path: Path, fresh: dict[str, dict[str, Any]]) -> None:
    # Read again: another process may have written meanwhile, and its results are as good as ours.
    found = _read_cache(path) | {key: answer for key, answer in fresh.items() if answer["state"] in _CACHED_STATES}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"heading": _cache_key(), "found": found}), encoding="utf-8")
    except OSError as error:  # the results hold all the same
        log.warning("%s cannot be written (%s); the videos are opened again next time", path, error)
