"""Files that are there whole or not at all, locks that do not outlive their owner, and where the project lies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import LabError


def project_root(start: str | Path = ".") -> Path:
    """The nearest folder upwards that holds notebooks/ and params/, or `start` itself where there is none."""
    start = Path(start).resolve()
    for folder in (start, *start.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return start


def under(root: Path, path: str | Path) -> Path:
    """A path of the parameters or the command line: `~` is the user's home, and what is relative stands under `root`.

    >>> under(Path("/project"), "outputs"), under(Path("/project"), "/data/runs")
    (PosixPath('/project/outputs'), PosixPath('/data/runs'))
    """
    return (root / os.path.expanduser(path)).resolve()


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
    # By chance, since writers may be threads of one process, or processes of one number on two machines that share a disk;
    # the leading dot keeps leftovers of a kill out of every glob.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        _replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write plain data into a file, whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, next_step: str) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file. Raises LabError with the `next_step` where it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise LabError(f"'{path}' is damaged ({error}); {next_step}") from None


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What of `here` was noted otherwise `there`, in words; "" where all agrees.

    >>> differences({"seed": 0, "model": "a"}, {"seed": 1, "model": "a"})
    'seed: there 0, here 1'
    """
    return "; ".join(
        f"{name}: there {there.get(name)}, here {here[name]}" for name in here if there.get(name) != here[name]
    )


REPLACE_TIMEOUT = 2.0
"""Seconds in which a file that is to be replaced has to be closed on Windows."""


def _replace(source: Path, target: Path) -> None:
    """`os.replace`, and on Windows again for a moment where a reader or a virus scanner holds the target open."""
    deadline = time.monotonic() + (REPLACE_TIMEOUT if os.name == "nt" else 0.0)
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.05)


def apply_umask(folder: Path) -> None:
    """Give each file below `folder` the rights of files that this process makes.

    safetensors writes weights by way of a temporary file that only its owner may read, so that a group could not go on from
    them. On Windows, which has no such rights, nothing is done.
    """
    if os.name == "nt":
        return
    mask = os.umask(0o022)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_uid == os.geteuid():
            path.chmod(0o666 & ~mask)


LOCK_TIMEOUT = 5.0
"""Seconds that a lock is waited for: a kernel outlives its killed parent by one or two."""
LOCK_HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""Errno of a lock that another process holds; any other means that the file system has no locks."""
_LOCKED_BYTE = 1 << 20
"""Where a lock lies on Windows, which locks bytes: behind all that is written, so that others can read whose it is."""
_locks: dict[Path, int] = {}
"""Locks that this process holds: it may claim them again, as when a cell is run twice."""


def lock(path: Path, who: str, timeout: float | None = None) -> None:
    """Take the lock `path`; the system itself releases it when the process dies, however it dies.

    `who` is written into the file, for the message of others, and `timeout` is how many seconds to wait for them. Taking a
    lock twice in one process is allowed. Raises LabError, which names the owner, when another process holds it, and the file
    system when that has no locks.
    """
    if path in _locks:
        return
    handle = open_lock(path)
    deadline = time.monotonic() + (LOCK_TIMEOUT if timeout is None else timeout)
    while True:
        try:
            _try_lock(handle)
            break
        except OSError as error:
            if error.errno not in LOCK_HELD:
                os.close(handle)
                raise no_locks_error(path, error) from None
            if time.monotonic() > deadline:
                os.lseek(handle, 0, os.SEEK_SET)
                owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise LabError(
                    f"'{path.parent}' is in use by {owner}; wait until it has ended, or end it "
                    "(a notebook: shut down its kernel), or choose another `run` name"
                ) from None
            time.sleep(0.1)
    with contextlib.suppress(
        OSError
    ):  # the file may be another's, to be read only: the lock itself is had all the same
        os.ftruncate(handle, 0)
        os.lseek(handle, 0, os.SEEK_SET)
        os.write(handle, f"{who}, process {os.getpid()} on {socket.gethostname()}".encode())
    _locks[path] = handle


def _try_lock(handle: int, shared: bool = False) -> None:
    """Lock an open file, `shared` among those that only look; raises OSError with an errno of `LOCK_HELD` where it is held."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Whether a process holds this lock, on this machine or, where the file system shares locks, on another.

    False where the file system has no locks.
    """
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        _try_lock(handle, shared=True)
    except OSError as error:
        return error.errno in LOCK_HELD
    finally:
        os.close(handle)
    return False


@contextmanager
def locked(path: Path, who: str, timeout: float | None = None) -> Iterator[None]:
    """Hold the lock `path` within the block; raises what `lock` raises. One that this process held before it keeps."""
    held = path in _locks
    lock(path, who, timeout)
    try:
        yield
    finally:
        if not held:
            unlock(path)


def open_lock(path: Path) -> int:
    """A handle on the lock file `path`, made with the rights that the umask leaves, so that a group may go on with a run.

    One that belongs to somebody else and is closed to writing is opened for reading, which is enough for a lock.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)


def no_locks_error(path: Path, error: OSError) -> LabError:
    """What to raise where the lock `path` cannot be had from anybody, because its file system has none."""
    return LabError(
        f"'{path.parent}' lies on a file system that gives no locks ({_file_system(path)}: {error.strerror}), and without "
        "them two processes could write there at once; give another `outputs`, such as a folder on NFS or a local disk, "
        "or have this one mounted with locks (Lustre: the mount option flock; NFS: rpc.statd running)"
    )


def _file_system(path: Path) -> str:
    """The kind of file system that `path` lies on and where it is mounted, as far as this machine tells."""
    try:
        lines = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "of unknown kind"
    mounts = [(mount.replace("\\040", " "), kind) for _, mount, kind, *_ in lines]
    around = [(mount, kind) for mount, kind in mounts if path.resolve().is_relative_to(mount)]
    # Where one covers another, the later one is seen.
    mount, kind = max(reversed(around), key=lambda each: len(each[0]), default=("/", "unknown"))
    return f"{kind} at {mount}"


def unlock(path: Path) -> None:
    """Release a lock; nothing happens when this process does not hold it."""
    if (handle := _locks.pop(path, None)) is not None:
        os.close(handle)
