"""What a user's input can raise, how a run ends early, and the next step where the file system refuses a file.

Everything else that goes wrong is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable
from difflib import get_close_matches

LIKE = 0.75
"""Share of two names that must agree for one to be taken for a slip of the other; below it `lr` would be `run`."""


class LabError(ValueError):
    """Bad input: the message names the thing, the value it had and the next step to take.

    The command line prints the message alone and exits with code 2.
    """


class NotebookError(RuntimeError):
    """A notebook stopped before its end; `user_error` is True where bad input was the cause, and not a bug."""

    def __init__(self, message: str, user_error: bool = False) -> None:
        """`message` names the notebook, the cell and what was raised there."""
        super().__init__(message)
        self.user_error = user_error


class Stopped(Exception):
    """A run was asked to stop and has saved where it is; the same command goes on from there."""


class Terminated(SystemExit):
    """The process was ended from outside, by SIGTERM or SIGHUP; its code is the one that a shell expects then."""

    def __init__(self, number: int) -> None:
        """`number` is the signal's."""
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


def nearest(name: str, names: Iterable[str], like: float = LIKE) -> str | None:
    """The one of `names` that `name` is likely a slip of, or None where less than `like` of the two agrees.

    >>> nearest("learning_rat", ["learning_rate", "run"]), nearest("lr", ["learning_rate", "run"])
    ('learning_rate', None)
    """
    near = get_close_matches(name, list(names), n=1, cutoff=like)
    return near[0] if near else None


NEXT_STEPS = {
    errno.ENOSPC: "make room there, or choose another folder (a run's: `outputs`); the same command then goes on",
    errno.EDQUOT: "make room in your quota, or choose another folder (a run's: `outputs`); the same command then goes on",
    errno.EACCES: "ask its owner for the right to use it, or choose another one",
    errno.EPERM: "ask its owner for the right to use it, or choose another one",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOENT: "check how it is written, and whether what is above it is there",
    errno.ENOTDIR: "a part of this path is a file; choose another one",
    errno.EISDIR: "it is a folder; name a file",
    errno.EEXIST: "choose another name, or move what is there",
    errno.ENOTEMPTY: "choose another name, or move what is there",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle; choose another one",
    errno.EIO: "the disk failed; look at the system's log, or choose another folder",
    errno.ESTALE: "the shared file system has lost it; try again",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n), or lower `readers`",
}
"""What to do where the system refuses a file, by errno; any other OSError is a fault of the code and keeps its traceback."""


def file_trouble(error: OSError) -> str | None:
    """An OSError as one line: path, what the system said, next step; None where it does not come from the file system.

    >>> file_trouble(PermissionError(errno.EACCES, "Permission denied", "outputs/x"))
    "'outputs/x': Permission denied; ask its owner for the right to use it, or choose another one"
    """
    if error.errno not in NEXT_STEPS:
        return None
    paths = " -> ".join(
        repr(os.fsdecode(each)) for each in (error.filename, error.filename2) if isinstance(each, (str, bytes))
    )
    return f"{paths + ': ' if paths else ''}{error.strerror}; {NEXT_STEPS[error.errno]}"
