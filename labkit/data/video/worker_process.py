"""Worker processes for native code that may hang or crash: one request at a time, each with a deadline.

Request and response are a line of JSON each; before its response a child may send arrays as raw bytes, and heartbeats. The parent's
side is `WorkerProcess`, which kills a process that is silent up to the deadline and starts another for the next request; the child's
side is `serve`. A child ends with its parent, however that ends and whatever the child is doing.

pebble's ProcessPool was tried in its place, and left for two reasons. Its processes are spawned from the main module: a script
without a `__main__` guard runs again in each of them, and the pool ends in BrokenProcessPool. And a process that hangs in native code
outlives a parent that was killed by SIGKILL, while here a thread of the child notices the closed pipe and exits.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_HEARTBEAT_SECONDS = 0.5
"""Seconds between two heartbeats."""
_PIPE_BYTES = 1 << 20
"""Bytes that an array's pipe holds: with Linux's 64 KiB a frame costs dozens of changes between two processes."""


def available_cores() -> int:
    """Cores that this process may use, which a job's may be fewer than the machine's; at least 1."""
    # Not on macOS and Windows.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerFailed(Exception):
    """A process timed out or died over a request; the text says which. `timed_out`: it was killed at the deadline."""

    def __init__(self, text: str, timed_out: bool) -> None:
        """Keep both."""
        self.timed_out = timed_out
        super().__init__(text)


class WorkerProcess:
    """A process that serves requests, started with the first one and again after it was killed or died; for one thread."""

    def __init__(self, command: Sequence[str], deadline: float, environment: Mapping[str, str] | None = None) -> None:
        """`deadline` in seconds for each request; `environment` goes on top of this process's own."""
        self.command, self.deadline, self.environment = command, deadline, environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def call(
        self,
        request: Any,
        deadline: float | None = None,
        on_array: Callable[[NDArray[np.uint8]], object] | None = None,
    ) -> Any:
        """The response, unless the process is silent for `deadline` seconds; `on_array` takes what it sends before.

        Raises WorkerFailed when the process times out, dies, or was closed meanwhile; the next request gets a new one.
        """
        limit = self.deadline if deadline is None else deadline
        process = self.process = self.process or self._start()
        timed_out = threading.Event()
        try:
            if self.closed:
                process.kill()  # closed by another thread while the process was being started
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
                while (message := _receive(process, process.stdout, limit, timed_out)) is not None:
                    if isinstance(message, np.ndarray):
                        if on_array is not None:
                            on_array(message)
                    elif message != _HEARTBEAT:
                        return message
        except OSError:
            pass  # it has died
        except BaseException:
            self.end()  # interrupted: its response would be taken for that of the next request
            raise
        self.end()
        if timed_out.is_set():
            raise WorkerFailed(f"not done after {limit:g} s", timed_out=True)
        code = process.returncode
        raise WorkerFailed(f"ended by {f'signal {-code}' if code < 0 else f'exit code {code}'}", timed_out=False)

    def end(self) -> None:
        """End the process, whatever it is doing; a further request starts another."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    pass  # a line that a dead process will never read

    def close(self) -> None:
        """Serve no request any more; for any thread, and at once: the calling thread reaps the process."""
        self.closed = True
        if process := self.process:
            process.kill()

    def detach(self) -> None:
        """Forget a process that belongs to the process from which this one was forked."""
        if self.process is not None:
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process.returncode = 0  # nobody here may wait for it
            self.process = None

    def _start(self) -> subprocess.Popen[bytes]:
        # The package may run from a checkout: the child finds it where this process has found it.
        root = str(Path(__file__).parents[3])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self.environment},
            # A kernel's interrupt goes to its whole process group, and is not meant for a decoder at work.
            start_new_session=True,
        )  # fmt: skip
        if sys.platform == "linux" and process.stdout is not None:
            import fcntl

            try:
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass  # a machine with a lower limit: slower, not wrong
        return process


_HEARTBEAT = {"alive": True}


def _receive(
    process: subprocess.Popen[bytes], pipe: Any, limit: float, timed_out: threading.Event
) -> NDArray[np.uint8] | Any | None:
    """The next message of a process, an array or JSON; None when it has ended, or was ended for its silence."""

    def stop() -> None:
        timed_out.set()
        process.kill()

    timer = threading.Timer(limit, stop)
    timer.daemon = True  # whoever ends the program does not wait for it
    timer.start()
    try:
        line = pipe.readline()
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if not (isinstance(message, dict) and "array" in message):
            return message
        array = np.empty(message["array"], np.uint8)
        view = array.data.cast("B")
        read = 0
        while read < len(view):
            count = pipe.readinto(view[read:])
            if not count:
                return None
            read += count
        return array
    finally:
        timer.cancel()
        timer.join()


class _Child:
    """State of this process where it is a worker."""

    pipe: BinaryIO | None = None
    last_heartbeat = 0.0


def in_worker() -> bool:
    """Whether this process is a worker: it may be killed, so that it runs native code itself."""
    return _Child.pipe is not None


def heartbeat() -> None:
    """Signal progress to the parent, if there is one; cheap enough for every packet."""
    if _Child.pipe is not None and (now := time.monotonic()) - _Child.last_heartbeat > _HEARTBEAT_SECONDS:
        _Child.last_heartbeat = now
        _send_message(_HEARTBEAT)


def send_array(array: NDArray[np.uint8]) -> None:
    """Send an array before the response."""
    assert _Child.pipe is not None
    _Child.pipe.write(json.dumps({"array": array.shape}).encode() + b"\n")
    _Child.pipe.write(np.ascontiguousarray(array).data.cast("B"))
    _Child.pipe.flush()


def _send_message(message: Any) -> None:
    assert _Child.pipe is not None
    _Child.pipe.write(json.dumps(message).encode() + b"\n")
    _Child.pipe.flush()


def serve(handle: Callable[[Any], Any]) -> None:
    """Respond to each request on standard input with `handle(request)`, until the input ends."""
    # Native code may write to standard output: the responses go through a descriptor of their own.
    _Child.pipe = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read_requests() -> None:
        for line in sys.stdin.buffer:
            requests.put(line)
        os._exit(0)  # the parent is gone, and the main thread may hang in native code

    threading.Thread(target=read_requests, daemon=True).start()
    while True:
        _send_message(handle(json.loads(requests.get())))
