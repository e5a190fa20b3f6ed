"""Answerers: processes that do what native code may hang on or die of, one question at a time.

A question and its answer are a line of JSON each; before its answer a child may send arrays as they lie in memory, and signs of
life. The parent's side is `Answerer`, which ends a process that is silent up to a deadline and starts another for the next question;
the child's side is `answer`. A child ends with its parent, however that ends and whatever the child is doing.
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

_BEAT = 0.5
"""Seconds between two signs of life."""
_PIPE = 1 << 20
"""Bytes that an array's pipe holds: with Linux's 64 KiB a frame costs dozens of changes between two processes."""


class Unanswered(Exception):
    """A question cost its process; the text says what became of it. `late`: it was ended at the deadline."""

    def __init__(self, text: str, late: bool) -> None:
        """Keep both."""
        self.late = late
        super().__init__(text)


class Answerer:
    """A process that answers, started when it is first asked and again after it was ended or died; for one thread."""

    def __init__(self, command: Sequence[str], deadline: float, environment: Mapping[str, str] | None = None) -> None:
        """`deadline` in seconds for each question; `environment` goes on top of this process's own."""
        self.command, self.deadline, self.environment = command, deadline, environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.closed = False

    def ask(
        self,
        question: Any,
        deadline: float | None = None,
        on_array: Callable[[NDArray[np.uint8]], object] | None = None,
    ) -> Any:
        """The answer, unless the process is silent for `deadline` seconds; `on_array` takes what it sends before.

        Raises Unanswered when the process is late, dies, or was closed meanwhile; the next question gets a new one.
        """
        patience = self.deadline if deadline is None else deadline
        process = self.process = self.process or self._start()
        late = threading.Event()
        try:
            if self.closed:
                process.kill()  # closed by another thread while the process was being started
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                while (message := _next(process, process.stdout, patience, late)) is not None:
                    if isinstance(message, np.ndarray):
                        if on_array is not None:
                            on_array(message)
                    elif message != _ALIVE:
                        return message
        except OSError:
            pass  # it has died
        except BaseException:
            self.end()  # interrupted: its answer would be taken for that of the next question
            raise
        self.end()
        if late.is_set():
            raise Unanswered(f"not done after {patience:g} s", late=True)
        code = process.returncode
        raise Unanswered(f"ended by {f'signal {-code}' if code < 0 else f'exit code {code}'}", late=False)

    def end(self) -> None:
        """End the process, whatever it is doing; a further question starts another."""
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
        """Let no question be answered any more; for any thread, and at once: the asking thread reaps the process."""
        self.closed = True
        if process := self.process:
            process.kill()

    def leave(self) -> None:
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
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _PIPE)
            except OSError:
                pass  # a machine with a lower limit: slower, not wrong
        return process


_ALIVE = {"alive": True}


def _next(
    process: subprocess.Popen[bytes], pipe: Any, patience: float, late: threading.Event
) -> NDArray[np.uint8] | Any | None:
    """The next message of a process, an array or JSON; None when it has ended, or was ended for its silence."""

    def stop() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(patience, stop)
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
    """What this process knows when it answers another."""

    pipe: BinaryIO | None = None
    beaten = 0.0


def answering() -> bool:
    """Whether this process is one that answers: it may be lost, and does itself what native code may hang on."""
    return _Child.pipe is not None


def beat() -> None:
    """Tell the parent, if there is one that waits, that this process gets on; cheap enough for every packet."""
    if _Child.pipe is not None and (now := time.monotonic()) - _Child.beaten > _BEAT:
        _Child.beaten = now
        _send(_ALIVE)


def send(array: NDArray[np.uint8]) -> None:
    """Send an array before the answer."""
    assert _Child.pipe is not None
    _Child.pipe.write(json.dumps({"array": array.shape}).encode() + b"\n")
    _Child.pipe.write(np.ascontiguousarray(array).data.cast("B"))
    _Child.pipe.flush()


def _send(message: Any) -> None:
    assert _Child.pipe is not None
    _Child.pipe.write(json.dumps(message).encode() + b"\n")
    _Child.pipe.flush()


def answer(how: Callable[[Any], Any]) -> None:
    """Answer each question on standard input with `how(question)`, until the input ends."""
    # Native code may write to standard output: the answers go through a door of their own.
    _Child.pipe = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    questions: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            questions.put(line)
        os._exit(0)  # nobody is left to answer to, and the main thread may hang in native code

    threading.Thread(target=listen, daemon=True).start()
    while True:
        _send(how(json.loads(questions.get())))
