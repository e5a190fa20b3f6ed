"""Readers: a few processes that decode the clips to come, so that whoever asks for one finds its frames on disk.

What is wanted is told in order and may be far ahead: frames go to the `FrameCache`, not into memory. A reader that hangs
in a clip, or dies of it, costs itself and that clip, whose LabError waits for whoever asks for the clip. Processes start
when there is something to decode, rest for a while, and end with the program, however it ends.
"""

from __future__ import annotations

import logging
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from labkit.data.video.decode_worker import START_DEADLINE, STEP, between
from labkit.data.video.frames import FrameCache, VideoInfo
from labkit.data.video.worker_process import Answerer, Unanswered, answer
from labkit.errors import LabError

log = logging.getLogger(__name__)

_COMMAND = [sys.executable, "-m", "labkit.data.video.prefetch"]
# One thread a process, and none of the GPU's memory for torch's resizing.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
REST = 60.0
"""Seconds without work after which a reader is ended."""


class Reader(Answerer):
    """One process that decodes into caches; for one thread."""

    def __init__(self, deadline: float) -> None:
        """`deadline`: seconds that the decoding of a clip may stand still."""
        super().__init__(_COMMAND, deadline, _ENVIRONMENT)
        self._ready: tuple[Any, bool] = (None, False)

    def info(self, cache: FrameCache, path: str) -> VideoInfo:
        """`cache.info(path)`, the video opened in this process. Raises LabError that names the video."""
        if not cache.knows(path):
            self._read(path, False, {"folder": str(cache.folder), "path": path})
        return cache.info(path)

    def frames(
        self, cache: FrameCache, path: str, times: ArrayLike, size: tuple[int, int], start: float = 0.0
    ) -> None:
        """Have `cache.get(path, times, size, start)` find its frames on disk. Raises LabError that names the video."""
        if cache.holds(path, times, size, start):
            return
        info = self.info(cache, path)
        seconds = np.asarray(times, np.float64).tolist()
        question = {"folder": str(cache.folder), "path": path, "times": seconds, "size": size, "start": start}
        found = self._read(path, size != (info.height, info.width), question)
        with _counting:
            cache.decoded += 1
        if found["note"]:
            log.warning("%s: %s", path, found["note"])

    def _read(self, path: str, resizes: bool, question: dict[str, Any]) -> dict[str, Any]:
        self._prepare(resizes)
        try:
            found = self.ask(question)
        except Unanswered as error:
            step, place = STEP, between(question.get("times", ()), question.get("start", 0.0))
            if error.late:
                raise LabError(
                    f"video {path} hangs{place}: its reader was {error}, and ended; {step}, or raise video_deadline"
                ) from None
            raise LabError(f"video {path} cost its reader's life{place} ({error}); {step}") from None
        if "error" in found:
            raise LabError(found["error"])
        return found

    def _prepare(self, resizes: bool) -> None:
        """Start the process and its imports, which are no clip's fault, before the clip's time begins to run."""
        process, can_resize = self._ready
        if process is None or process is not self.process or (resizes and not can_resize):
            try:
                self.ask({"resizes": resizes}, START_DEADLINE)
            except Unanswered as error:
                raise LabError(
                    f"a process that reads videos could not be started ({error}); "
                    f"try '{sys.executable} -m labkit.data.video.prefetch', or set readers to 0 and do without"
                ) from None
            self._ready = (self.process, resizes)


_counting = threading.Lock()
Job: TypeAlias = Callable[[Reader], object]
"""What a reader does for one clip; what it returns is not looked at, a LabError is kept for whoever asks."""


class _Board:
    """What is to be done and what was done; everything under `changed`."""

    def __init__(self, processes: int, deadline: float) -> None:
        self.processes, self.deadline = processes, deadline
        self.changed = threading.Condition()
        self.waiting: OrderedDict[Hashable, Job] = OrderedDict()
        self.working: set[Hashable] = set()
        self.done: dict[Hashable, BaseException | None] = {}
        self.readers: list[Reader] = []
        self.closed = False

    def hire(self) -> None:
        """Start threads for what is waiting; the caller holds `changed`."""
        idle = len(self.readers) - len(self.working)
        for _ in range(min(self.processes - len(self.readers), len(self.waiting) - idle)):
            reader = Reader(self.deadline)
            self.readers.append(reader)
            threading.Thread(target=_serve, args=[self, reader], daemon=True, name="labkit reader").start()

    def close(self) -> None:
        """End all processes, whatever they are doing, and their threads."""
        with self.changed:
            self.closed = True
            self.waiting.clear()
            for reader in self.readers:
                reader.close()
            self.changed.notify_all()


def _serve(board: _Board, reader: Reader) -> None:
    """Do what waits, first things first, until the board is closed or nothing came for a while."""
    try:
        while True:
            with board.changed:
                if not board.changed.wait_for(lambda: board.waiting or board.closed, REST) or board.closed:
                    board.readers.remove(reader)
                    return
                key, job = board.waiting.popitem(last=False)
                board.working.add(key)
            error: BaseException | None = None
            try:
                job(reader)
            except BaseException as caught:  # raised again in the thread that asks for the clip
                error = caught
            del job  # it holds the model, and the next may be long in coming
            with board.changed:
                board.working.discard(key)
                board.done[key] = error
                board.changed.notify_all()
    finally:
        reader.end()


class Readers:
    """A pool of readers; closed when it is dropped, at the program's end, or by `close`."""

    def __init__(self, processes: int, deadline: float) -> None:
        """At most so many `processes`, and `deadline` seconds that a clip may stand still; nothing is started yet."""
        self._board = _Board(processes, deadline)
        self.close = weakref.finalize(self, self._board.close)

    def want(self, jobs: Iterable[tuple[Hashable, Job]]) -> None:
        """Tell which clips come next, in order, each under a key of its own; replaces what was told before.

        A clip that is being read, or was read, is not read again.
        """
        board = self._board
        with board.changed:
            fresh = ((key, job) for key, job in jobs if key not in board.working and key not in board.done)
            board.waiting = OrderedDict(fresh)
            board.hire()
            board.changed.notify_all()

    def finish(self, key: Hashable, job: Job) -> None:
        """Have a clip read now, if it was not read yet, and wait for it.

        Raises what its job raised, once: asked again, the clip is read again.
        """
        board = self._board
        with board.changed:
            if key not in board.done and key not in board.working:
                board.waiting[key] = job
                board.waiting.move_to_end(key, last=False)
                board.hire()
                board.changed.notify_all()
            board.changed.wait_for(lambda: key in board.done or board.closed)
            if key not in board.done:
                raise RuntimeError("these readers are closed")
            if error := board.done[key]:
                del board.done[key]
                raise error


def _do(question: dict[str, Any]) -> dict[str, Any]:
    """The child's side: import what is needed, measure a video, or decode a clip into the cache."""
    if "resizes" in question:
        if question["resizes"]:
            import torch  # noqa: F401
        return {}
    path = question["path"]
    cache = FrameCache(question["folder"])
    try:
        if "times" not in question:
            cache.info(path)
            return {}
        frames = cache.get(path, question["times"], tuple(question["size"]), question["start"])
    except LabError as error:
        return {"error": str(error)}
    except Exception as error:
        # An error nobody foresaw is this clip's, not the others'.
        return {"error": f"video {path} could not be read ({type(error).__name__}: {error}); replace it"}
    return {"note": frames.note}


if __name__ == "__main__":
    answer(_do)
