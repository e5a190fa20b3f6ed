"""Answerers: processes that do what native code may hang on or die of, one question at a time.

A question and its answer are a line of JSON each. The parent's side is `Answerer`, which ends the process at a deadline
and starts another for the next question; the child's side is `answer`. A child ends with its parent, however that
ends and whatever the child is doing.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO


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

    def ask(self, question: Any, deadline: float | None = None) -> Any:
        """The answer, after `deadline` seconds at most if given.

        Raises Unanswered when the process is late, dies, or was closed meanwhile; the next question gets a new one.
        """
        patience = self.deadline if deadline is None else deadline
        process = self.process = self.process or self._start()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(patience, stop)
        timer.daemon = True  # whoever ends the program does not wait for it
        timer.start()
        line = b""
        try:
            if self.closed:
                process.kill()  # closed by another thread while the process was being started
            if process.stdin is not None and process.stdout is not None:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
        except OSError:
            pass  # it has died: the empty line says so
        finally:
            timer.cancel()
            timer.join()
        if line.endswith(b"\n"):
            return json.loads(line)
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

    def _start(self) -> subprocess.Popen[bytes]:
        # The package may run from a checkout: the child finds it where this process has found it.
        root = str(Path(__file__).parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **self.environment},
            # A kernel's interrupt goes to its whole process group, and is not meant for a decoder at work.
            start_new_session=True,
        )  # fmt: skip


def answer(how: Callable[[Any], Any]) -> None:
    """Answer each question on standard input with `how(question)`, until the input ends."""
    # Native code may write to standard output: the answers go through a door of their own.
    answers: BinaryIO = os.fdopen(os.dup(1), "wb")
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
        answers.write(json.dumps(how(json.loads(questions.get()))).encode() + b"\n")
        answers.flush()
