"""The journal of a run: every line that its notebooks printed, with the time, in one file of the run's directory.

`labkit run` writes it, on whatever machine; who looks at the run later, from another one, reads there how far it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

NAME = "log.txt"
TAIL = 65_536
"""Bytes at the journal's end that are read: some hundreds of lines."""
STEP = re.compile(
    r"(?P<what>.+): (?P<done>\d+) of (?P<total>\d+), (?P<spent>[^,;]+)(?:, (?P<left>[^,;]+) left)?(?:; (?P<note>.*))?"
)
"""What `labkit.progress.Progress` prints."""


class Step(NamedTuple):
    """How far a work had come, at its last word."""

    what: str
    done: int
    total: int
    left: str | None
    """Time left as it was then, in words; None at the end."""
    note: str | None
    """Figures of the last step."""


def kept(folder: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, with each line also written into the journal of the run in `folder`."""
    path = folder / NAME

    def say_and_keep(line: str) -> None:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")
        say(line)

    return say_and_keep


def last_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a text file; fewer when it is shorter, none when it is not there."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL))
        return file.read().decode("utf-8", errors="replace").splitlines()[-count:]


def read_step(line: str) -> Step | None:
    """The step that a line tells of, with or without its time in front, or None.

    >>> read_step("grpo: 12 of 150, 1 min 5 s, 12 min 20 s left; reward 1.31, anchors 0.20")
    Step(what='grpo', done=12, total=150, left='12 min 20 s', note='reward 1.31, anchors 0.20')
    >>> read_step("2026-01-02T03:04:05+00:00     evaluation, greedy: 16 of 16, 2 s")
    Step(what='evaluation, greedy', done=16, total=16, left=None, note=None)
    >>> read_step("[1/5] 01_grpo ...")
    """
    found = STEP.fullmatch(re.sub(r"^\d{4}-\S+T\S+ ", "", line).strip())
    if found is None:
        return None
    return Step(found["what"], int(found["done"]), int(found["total"]), found["left"], found["note"])


def last_step(folder: Path, since: str) -> Step | None:
    """The newest step in the journal of the run in `folder` behind the last line that ends in `since`, or None."""
    for line in reversed(last_lines(folder / NAME, TAIL)):
        if line.endswith(since):
            return None
        if step := read_step(line):
            return step
    return None
