"""Preemption: a run that is asked to stop saves a checkpoint at its next step, and ends there.

A scheduler sends SIGUSR2 to `labkit run` before it takes a machine back, which makes a stop file; kernels and workers, on
whatever node, know its name from the environment and look for it between two steps. A signal would have to be forwarded to
each of them and could interrupt any line; a file is looked for where a checkpoint is whole.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.errors import Stopped, Terminated

STOP_FILE_VARIABLE = "LABKIT_STOP_FILE"
"""Environment variable with the file that asks a run to stop; without it nothing does."""


TERMINATION_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What ends a process from outside: `kill`, `scancel`, and a terminal that is closed. Windows has the first alone."""


@contextmanager
def handle_preemption(file: Path) -> Iterator[None]:
    """Within the block SIGUSR2 creates the stop file `file`, which asks this process and its children to stop.

    SIGTERM and SIGHUP raise Terminated, the first time, so that what was reached can still be written.
    """
    file.unlink(missing_ok=True)
    before, os.environ[STOP_FILE_VARIABLE] = os.environ.get(STOP_FILE_VARIABLE), str(file)
    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only there may Python handle signals
        if hasattr(signal, "SIGUSR2"):
            handlers[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, lambda *_: file.touch())
        for number in TERMINATION_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
                handlers[number] = signal.signal(number, _terminate)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)
        if before is None:
            del os.environ[STOP_FILE_VARIABLE]
        else:
            os.environ[STOP_FILE_VARIABLE] = before


def _terminate(number: int, _: Any) -> None:
    for each in TERMINATION_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Terminated(number)


def stop_requested() -> bool:
    """Whether the stop file of this process's run exists."""
    file = os.environ.get(STOP_FILE_VARIABLE)
    return file is not None and os.path.exists(file)


def stop_between_parts(listener: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a listener that is called after each saved part of the work, so that it raises Stopped when that was requested."""

    def listen(*arguments: Any) -> None:
        listener(*arguments)
        if stop_requested():
            raise Stopped("stopped as asked; all parts that were done are kept")

    return listen


def stop_callback() -> Any:
    """A callback for a `transformers.Trainer`: once asked to stop, it saves the step just taken and raises Stopped.

    With several processes all of them save and stop at the same step, also when not all have seen the file yet.
    """
    import transformers

    callback: Any = transformers.TrainerCallback  # its annotations do not foresee overrides

    class SaveAndStop(callback):
        stopping = False

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if _any_process(stop_requested(), args.device):
                self.stopping = control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.stopping:
                # None may end, and so end the others, before the first has written all.
                _any_process(True, args.device)
                raise Stopped(f"stopped as asked after step {state.global_step}, which is saved")

    return SaveAndStop()


def _any_process(here: bool, device: Any) -> bool:
    """`here` of any of the processes that train together (all-reduce with MAX); all of them must call it."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return here
    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())
