"""The log of a run: every line that its notebooks printed, with the time, in log.txt of the run's directory.

`labkit run` writes it, on whatever machine; `labkit status` reads it, maybe on another one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

LOG_FILE = "log.txt"
TAIL_BYTES = 65_536
"""Bytes at a log's end that are read: some hundreds of lines."""


def tee(folder: Path, say: Callable[[str], None]) -> Callable[[str], None]:
    """`say`, with each line also appended to the log of the run in `folder`."""
    path = folder / LOG_FILE

    def log(line: str) -> None:
        with path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")
        say(line)

    return log


def tail(path: Path, count: int = 0) -> list[str]:
    """The last `count` lines of a text file, or all of its last `TAIL_BYTES`; none when it is not there."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()[-count:]
