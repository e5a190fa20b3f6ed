"""Files that are there whole or not at all, locks that do not outlive their owner, and where the project lies."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.errors import LabError


def project_root(start: str | Path = ".") -> Path:
    """The nearest folder upwards that holds notebooks/ and params/, or `start` itself where there is none."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return start


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to, and move it there when the block ends well.

    A reader sees the old file or the new one, never half of it; after an error, or a kill, the old one stands.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text()
    'whole'
    """
    path = Path(path)
    # The process number keeps two writers apart; the leading dot keeps leftovers of a kill out of every glob.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


LOCK_PATIENCE = 5.0
"""Seconds that a lock is waited for: a kernel outlives its killed parent by one or two."""
_locks: dict[Path, int] = {}
"""Locks that this process holds: it may claim them again, as when a cell is run twice."""


def lock(path: Path, who: str) -> None:
    """Take the lock `path`; the system itself releases it when the process dies, however it dies.

    `who` is written into the file, for the message of others. Taking a lock twice in one process is allowed. Raises
    LabError, which names the owner, when another process holds it.
    """
    import fcntl

    if path in _locks:
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > deadline:
                owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise LabError(
                    f"'{path.parent}' is in use by {owner}; wait until it has ended, or end it "
                    "(a notebook: shut down its kernel), or choose another `run` name"
                ) from None
            time.sleep(0.1)
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{who}, process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _locks[path] = handle


def unlock(path: Path) -> None:
    """Release a lock; nothing happens when this process does not hold it."""
    if (handle := _locks.pop(path, None)) is not None:
        os.close(handle)
