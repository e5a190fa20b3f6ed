"""Progress of long work: a bar in a notebook, plain lines with the time left in a log, and files for `labkit status`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from labkit.files import write_json

LOG_INTERVAL = 10.0
"""Seconds between two lines, at least, and between two writes of the progress file."""
PROGRESS_FILE = "progress.json"
"""In a run's directory, beside log.txt: the newest `Step`."""
_LINE = re.compile(r"([^:\n]+): [\d,]+ of [\d,]+, \d")
"""How a printed line of progress begins."""


class Step(NamedTuple):
    """How far a work had come when it was last written to a progress file."""

    what: str
    done: int
    total: int
    left: str | None
    """Estimated time left, in words; None at the end."""
    note: str | None
    """Figures of the last step."""
    time: str
    """When that was, as `now` says it."""


def now() -> str:
    """The time, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def duration(seconds: float) -> str:
    """Seconds as people read them, rounded to what is shown: whole seconds, from an hour on whole minutes.

    >>> duration(7.4), duration(95), duration(7260)
    ('7 s', '1 min 35 s', '2 h 1 min')
    >>> duration(59.6), duration(239.7), duration(3599.7)
    ('1 min 0 s', '4 min 0 s', '1 h 0 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Shows how far `what` has come; call it after each step as `progress(done, note)`.

    The first step called may be any, as in a resumed run: the time left is estimated from the steps of this process.
    A step that is given twice is shown once.
    """

    def __init__(
        self,
        what: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        file: Path | None = None,
        passing: bool = False,
    ) -> None:
        """`total` steps make the whole; `file` is replaced by the newest `Step`, for readers in other processes.

        Of what is `passing` a notebook keeps no line once its bar has gone.
        """
        self.what, self.total, self.clock, self.file, self.passing = what, total, clock, file, passing
        self.begin = self.printed = clock()
        self.written = float("-inf")
        self.first: int | None = None
        self.last: int | None = None
        self.bar: Any = _bar()
        self.watched = self.bar is not None and "JPY_SESSION_NAME" in os.environ

    def __call__(self, done: int, note: str = "") -> None:
        """Show that `done` of the steps are done, with a `note` on the last."""
        if done == self.last:
            return
        now = self.clock()
        if self.first is None:
            self.first = done - 1
        self.last = done
        left = duration((now - self.begin) / max(1, done - self.first) * (self.total - done))
        text = f"{self.what}: {done} of {self.total}, {duration(now - self.begin)}"
        text += f", {left} left" if done < self.total else ""
        text += f"; {note}" if note else ""
        if self.bar is not None:
            self.bar.update(_Bar(done, self.total, text))
        # Where somebody sees the bar, lines would only pile up below what is shown.
        ended = done >= self.total and not (self.passing and self.bar is not None)
        if (now - self.printed >= LOG_INTERVAL and not self.watched) or ended:
            say(text)
            self.printed = now
        if now - self.written >= LOG_INTERVAL or done >= self.total:
            self._write(done, left if done < self.total else None, note)
            self.written = now

    def end(self, why: str = "") -> None:
        """There will be no more steps: the bar is removed, and where not all were taken a line says `why`."""
        if self.bar is not None:
            self.bar.update(_Bar(self.total, self.total, why))
        if self.last is not None and self.last < self.total:
            spent = duration(self.clock() - self.begin)
            say(f"{self.what}: {self.last} of {self.total}, {spent}" + (f"; {why}" if why else ""))
            self._write(self.last, None, why)

    def _write(self, done: int, left: str | None, note: str) -> None:
        if self.file is None:
            return
        step = Step(self.what, done, self.total, left, note or None, now())
        with contextlib.suppress(OSError):  # a status that is lost ends no training
            write_json(self.file, step._asdict(), indent=None)


class Tally:
    """Progress of work that one process does or several share, each of which reports how far all have come.

    Called as `tally(rank, {"what": "harvest", "done": 24})`; each `what` has a bar of its own.
    """

    def __init__(self, total: int, file: Path | None = None) -> None:
        """`total` parts make the whole of each work; `file` as for `Progress`."""
        self.total, self.file = total, file
        self._bars: dict[str, Progress] = {}
        self._done: dict[str, int] = {}

    def __call__(self, rank: int, event: Mapping[str, Any]) -> None:
        """Take one process's event; where another has reported more, that is kept."""
        what = event["what"]
        if what not in self._bars:
            self._bars[what] = Progress(what, self.total, file=self.file)
        self._done[what] = max(self._done.get(what, 0), event["done"])
        self._bars[what](self._done[what])


def read_step(file: Path) -> Step | None:
    """The newest step in a progress file; None where there is none, as in runs of earlier versions."""
    try:
        return Step(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def fold_progress(text: str) -> str:
    r"""Printed text with only the last line of each work's progress, and all other lines.

    >>> fold_progress("grpo: 1 of 3, 9 s, 18 s left\nsaved\ngrpo: 3 of 3, 27 s\n")
    'saved\ngrpo: 3 of 3, 27 s\n'
    """
    lines = text.splitlines(keepends=True)
    works = [found[1] if (found := _LINE.match(line)) else None for line in lines]
    last = {work: at for at, work in enumerate(works)}
    return "".join(line for at, line in enumerate(lines) if works[at] is None or last[works[at]] == at)


def say(line: str) -> None:
    """Write a line at once, so that it stands in a batch log before the work that it is about.

    What the terminal cannot show becomes a question mark. A reader that goes away, as `head` does, ends no work.
    """
    if sys.stdout is None:  # closed by whoever started the process
        return
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding or "ascii"
        sys.stdout.write(line.encode(encoding, errors="replace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, sys.stdout.fileno())
        os.close(silence)


class _Bar:
    """What a notebook shows: HTML where it can, text elsewhere."""

    def __init__(self, done: int, total: int, text: str) -> None:
        self.done, self.total, self.text = done, total, text

    def _repr_html_(self) -> str:
        import html

        if self.done >= self.total:
            return ""  # the line that says so stands below
        return (
            f'<progress max="{self.total}" value="{self.done}" style="width:24em"></progress> {html.escape(self.text)}'
        )

    def __repr__(self) -> str:
        return self.text


def _bar() -> Any:
    """A display to be updated, or None outside of a notebook."""
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        return None
    return display(_Bar(0, 1, "..."), display_id=True)


LOG_FILE = "log.txt"
TAIL_BYTES = 65_536
"""Bytes at a log's end that are read: some hundreds of lines."""


def tee(folder: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, with each line also appended to the log of the run in `folder`."""
    path = folder / LOG_FILE

    def log(line: str) -> None:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now()} {line}\n")
        say(line)

    return log


def tail(path: Path, count: int = 0) -> list[str]:
    """The last `count` lines of a text file, or all of its last `TAIL_BYTES`; none when it is not there."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()[-count:]
