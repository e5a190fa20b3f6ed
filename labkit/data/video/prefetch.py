"""Prefetching: a pool of processes decodes the next clips ahead, so that their frames are cached when they are needed.

Clips are scheduled in order and may be far ahead: frames go to the `FrameCache` on disk, not into memory. A process that hangs or
crashes costs itself and its clip, whose LabError is raised when the clip is waited for. Processes start when there is something to
decode, end when idle for a while, and end with the program, however it ends.
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

from labkit.data.video.decode_worker import NEXT_STEP, START_DEADLINE, time_range
from labkit.data.video.frames import FrameCache, VideoInfo
from labkit.data.video.worker_process import WorkerFailed, WorkerProcess, serve
from labkit.errors import LabError

log = logging.getLogger(__name__)

_COMMAND = [sys.executable, "-m", "labkit.data.video.prefetch"]
# One thread a process, and none of the GPU's memory for torch's resizing.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
IDLE_SECONDS = 60.0
"""Seconds without work after which a process is ended."""


class PrefetchWorker(WorkerProcess):
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
        request = {"folder": str(cache.folder), "path": path, "times": seconds, "size": size, "start": start}
        found = self._read(path, size != (info.height, info.width), request)
        with _count_lock:
            cache.decoded += 1
        if found["note"]:
            log.warning("%s: %s", path, found["note"])

    def _read(self, path: str, resizes: bool, request: dict[str, Any]) -> dict[str, Any]:
        self._prepare(resizes)
        try:
            found = self.call(request)
        except WorkerFailed as error:
            step, place = NEXT_STEP, time_range(request.get("times", ()), request.get("start", 0.0))
            if error.timed_out:
                raise LabError(
                    f"video {path} hangs{place}: its reader was {error}, and ended; {step}, or raise video_deadline"
                ) from None
            raise LabError(f"video {path} cost its reader's life{place} ({error}); {step}") from None
        if "error" in found:
            raise LabError(found["error"])
        return found

    def _prepare(self, resizes: bool) -> None:
        """Start the process and its imports, before the clip's deadline begins to run."""
        process, can_resize = self._ready
        if process is None or process is not self.process or (resizes and not can_resize):
            try:
                self.call({"resizes": resizes}, START_DEADLINE)
            except WorkerFailed as error:
                raise LabError(
                    f"a process that reads videos could not be started ({error}); "
                    f"try '{sys.executable} -m labkit.data.video.prefetch', or set readers to 0 and do without"
                ) from None
            self._ready = (self.process, resizes)


_count_lock = threading.Lock()
PrefetchTask: TypeAlias = Callable[[PrefetchWorker], object]
"""What a worker does for one clip; its result is ignored, its error is raised by `wait_for`."""


class _TaskQueue:
    """The queue of tasks and their results; everything under the lock `changed`."""

    def __init__(self, processes: int, deadline: float) -> None:
        self.processes, self.deadline = processes, deadline
        self.changed = threading.Condition()
        self.waiting: OrderedDict[Hashable, PrefetchTask] = OrderedDict()
        self.working: set[Hashable] = set()
        self.done: dict[Hashable, BaseException | None] = {}
        self.workers: list[PrefetchWorker] = []
        self.closed = False

    def start_threads(self) -> None:
        """Start threads for waiting tasks; the caller holds `changed`."""
        idle = len(self.workers) - len(self.working)
        for _ in range(min(self.processes - len(self.workers), len(self.waiting) - idle)):
            worker = PrefetchWorker(self.deadline)
            self.workers.append(worker)
            threading.Thread(target=_run_tasks, args=[self, worker], daemon=True, name="labkit prefetch").start()

    def close(self) -> None:
        """End all processes, whatever they are doing, and their threads."""
        with self.changed:
            self.closed = True
            self.waiting.clear()
            for worker in self.workers:
                worker.close()
            self.changed.notify_all()


def _run_tasks(queue: _TaskQueue, worker: PrefetchWorker) -> None:
    """Run waiting tasks in order, until the pool is closed or idle for a while."""
    try:
        while True:
            with queue.changed:
                if not queue.changed.wait_for(lambda: queue.waiting or queue.closed, IDLE_SECONDS) or queue.closed:
                    queue.workers.remove(worker)
                    return
                key, task = queue.waiting.popitem(last=False)
                queue.working.add(key)
            error: BaseException | None = None
            try:
                task(worker)
            except BaseException as caught:  # raised again in the thread that waits for the clip
                error = caught
            del task  # it holds the model, and the next may be long in coming
            with queue.changed:
                queue.working.discard(key)
                queue.done[key] = error
                queue.changed.notify_all()
    finally:
        worker.end()


class PrefetchPool:
    """A pool of worker processes; closed when it is garbage-collected, at the program's end, or by `close`."""

    def __init__(self, processes: int, deadline: float) -> None:
        """At most so many `processes`, and `deadline` seconds that a clip may stand still; nothing is started yet."""
        self._queue = _TaskQueue(processes, deadline)
        self.close = weakref.finalize(self, self._queue.close)

    def schedule(self, tasks: Iterable[tuple[Hashable, PrefetchTask]]) -> None:
        """Schedule the clips that come next, in order, each under a key of its own; replaces what was scheduled before.

        A clip that is being read, or was read, is not read again.
        """
        queue = self._queue
        with queue.changed:
            fresh = ((key, task) for key, task in tasks if key not in queue.working and key not in queue.done)
            queue.waiting = OrderedDict(fresh)
            queue.start_threads()
            queue.changed.notify_all()

    def wait_for(self, key: Hashable, task: PrefetchTask) -> None:
        """Read a clip now, if it was not read yet, and wait for it.

        Raises what its task raised, once: the next call reads the clip again.
        """
        queue = self._queue
        with queue.changed:
            if key not in queue.done and key not in queue.working:
                queue.waiting[key] = task
                queue.waiting.move_to_end(key, last=False)
                queue.start_threads()
                queue.changed.notify_all()
            queue.changed.wait_for(lambda: key in queue.done or queue.closed)
            if key not in queue.done:
                raise RuntimeError("this pool is closed")
            if error := queue.done[key]:
                del queue.done[key]
                raise error


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    """The child's side: import what is needed, measure a video, or decode a clip into the cache."""
    if "resizes" in request:
        if request["resizes"]:
            import torch  # noqa: F401
        return {}
    path = request["path"]
    cache = FrameCache(request["folder"])
    try:
        if "times" not in request:
            cache.info(path)
            return {}
        frames = cache.get(path, request["times"], tuple(request["size"]), request["start"])
    except LabError as error:
        return {"error": str(error)}
    except Exception as error:
        # An unexpected error is this clip's, not the others'.
        return {"error": f"video {path} could not be read ({type(error).__name__}: {error}); replace it"}
    return {"note": frames.note}


if __name__ == "__main__":
    serve(_handle)
