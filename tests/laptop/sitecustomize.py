"""Python as labkit finds it on Windows, in every process that starts with this folder in PYTHONPATH.

Modules and names that only POSIX has are not there, for labkit's own code: libraries built for Linux need theirs. decord is there for
nobody, as on a Mac with Apple's processor.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import types
from typing import Any

ABSENT = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog", "readline", "curses"}
HIDDEN = {
    "os": "fork forkpty getuid geteuid getgid getegid getpgid getpgrp setsid setpgid killpg sched_getaffinity sched_setaffinity "
    "EX_OK EX_USAGE EX_TEMPFAIL wait wait3 wait4 waitid P_PID P_ALL WEXITED WNOWAIT WNOHANG WIFEXITED mkfifo statvfs uname pread "
    "pwrite register_at_fork getloadavg nice chown lchown fchown fchmod fchdir O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC sysconf "
    "confstr openpty ttyname posix_spawn sendfile",
    "signal": "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGQUIT SIGCHLD SIGPIPE SIGSTOP SIGCONT SIGTSTP alarm setitimer "
    "pthread_sigmask pthread_kill sigwait siginterrupt",
    "select": "poll epoll",
    "socket": "AF_UNIX",
    "sys": "",
    "time": "tzset",
}
VALUES = {("os", "name"): "nt", ("sys", "platform"): "win32"}
_import = builtins.__import__
_made: dict[str, Any] = {}


class WindowsModule(types.ModuleType):
    """A module without what it lacks on Windows."""

    def __init__(self, module: types.ModuleType) -> None:
        super().__init__(module.__name__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        module = self.__dict__["_module"]
        if name in HIDDEN[module.__name__].split():
            raise AttributeError(f"module {module.__name__!r} has no {name!r} on Windows", name=name, obj=self)
        return VALUES.get((module.__name__, name), getattr(module, name))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_module"], name, value)


def _windows_import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    file = str((globals or {}).get("__file__", ""))
    ours, top = "/labkit/" in file and "site-packages" not in file, name.partition(".")[0]
    if top == "decord" or (ours and top in ABSENT and not level):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    if ours and name == "msvcrt":
        return msvcrt
    found = _import(name, globals, locals, fromlist, level)
    if ours and name in HIDDEN and not level:
        return _made.setdefault(name, WindowsModule(found))
    return found


def _locking(handle: int, mode: int, count: int) -> None:
    """Windows' lock of some bytes; here of the whole file."""
    assert count == 1
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


# Not for all: subprocess takes Python for that of Windows where it finds this module.
msvcrt: Any = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.locking = 2, _locking
if __name__ == "sitecustomize":  # and not where tests are collected
    builtins.__import__ = _windows_import
