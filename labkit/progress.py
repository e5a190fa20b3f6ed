"""Progress of long work: a bar where somebody watches a notebook, plain lines with the time left in a batch log."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

EVERY = 10.0
"""Seconds between two lines, at least."""
_LINE = re.compile(r"([^:\n]+): [\d,]+ of [\d,]+, \d")
"""How a line of progress begins."""


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
    """Says how far `what` has come; call it after each step as `progress(done, note)`.

    The first step called may be any, as in a resumed run: the time left is taken from the steps of this process.
    A step that is told twice is heard once.
    """

    def __init__(self, what: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`total` steps make the whole."""
        self.what, self.total, self.clock = what, total, clock
        self.begin = self.said = clock()
        self.first: int | None = None
        self.last: int | None = None
        self.bar: Any = _bar()
        self.watched = self.bar is not None and "JPY_SESSION_NAME" in os.environ

    def __call__(self, done: int, note: str = "") -> None:
        """Tell that `done` of the steps are done; `note` says something about the last."""
        if done == self.last:
            return
        now = self.clock()
        if self.first is None:
            self.first = done - 1
        self.last = done
        left = (now - self.begin) / max(1, done - self.first) * (self.total - done)
        text = f"{self.what}: {done} of {self.total}, {duration(now - self.begin)}"
        text += f", {duration(left)} left" if done < self.total else ""
        text += f"; {note}" if note else ""
        if self.bar is not None:
            self.bar.update(_Bar(done, self.total, text))
        # Where somebody sees the bar, lines would only pile up below what is shown.
        if (now - self.said >= EVERY and not self.watched) or done >= self.total:
            say(text)
            self.said = now

    def end(self, why: str = "") -> None:
        """Tell that there will be no more steps: the bar goes, and where not all were taken a line says `why`."""
        if self.bar is not None:
            self.bar.update(_Bar(self.total, self.total, why))
        if self.last is not None and self.last < self.total:
            spent = duration(self.clock() - self.begin)
            say(f"{self.what}: {self.last} of {self.total}, {spent}" + (f"; {why}" if why else ""))


class Tally:
    """Progress of work that one process does or several share, each of which tells how far all have come.

    Called as `tally(rank, {"what": "harvest", "done": 24})`; each `what` has a bar of its own.
    """

    def __init__(self, total: int) -> None:
        """`total` parts make the whole of each work."""
        self.total = total
        self._bars: dict[str, Progress] = {}
        self._done: dict[str, int] = {}

    def __call__(self, rank: int, event: Mapping[str, Any]) -> None:
        """Take what one of them tells; what another knew better is kept."""
        what = event["what"]
        if what not in self._bars:
            self._bars[what] = Progress(what, self.total)
        self._done[what] = max(self._done.get(what, 0), event["done"])
        self._bars[what](self._done[what])


def last_lines(text: str) -> str:
    r"""Printed text with the last line of each work's progress, and all other lines.

    >>> last_lines("grpo: 1 of 3, 9 s, 18 s left\nsaved\ngrpo: 3 of 3, 27 s\n")
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
