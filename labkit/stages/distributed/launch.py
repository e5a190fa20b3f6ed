"""Launching workers: several processes that do one piece of a notebook's work together, a GPU each, as torchrun would.

The notebook's process starts them, reads the events that they report, and terminates all of them when one fails or the cell is
interrupted. `process_group` is the workers' side.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import errors
from labkit.errors import LabError
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE, without_launchers
from labkit.stages.distributed.process_group import RENDEZVOUS_FILE, node_count

POLL_INTERVAL = 0.05
"""Seconds between two polls of the processes, and at first of the workers' event files."""
FAST_POLL_SECONDS = 10.0
"""Seconds in which event files are polled so often: a short piece of work is over then."""
SLOW_POLL_INTERVAL = 1.0
"""Seconds between two polls of them later: they lie on a disk that the whole cluster shares."""
SHUTDOWN_GRACE = 5.0
"""Seconds that workers have to exit after SIGTERM; then they are killed."""
PEER_FAILURE = re.compile(
    r"connection (closed|reset)|\bgloo\b|nccl|process ?group|(?<![\w/])(tcp)?store(?![\w/])|broken pipe", re.IGNORECASE
)
"""Error of a worker whose peer is gone."""
SRUN_TASK_FAILED = re.compile(rb"srun: error: (\S+: tasks? ([\d,-]+): .*)")
"""srun's line about failed tasks, `node2: tasks 3-4,7: Out Of Memory`; rank 0 may have begun the line."""
LOG_TAIL = 15
"""Lines of a log that an error shows."""


class WorkerError(RuntimeError):
    """A worker failed; the message names its rank, its log and the error."""


@dataclass
class Worker:
    """One worker as the launching process sees it: its process, log and events."""

    rank: int
    folder: Path
    begin: int = 0
    """Where in its log this piece of work begins."""
    read: int = 0
    process: subprocess.Popen[bytes] | None = None
    """None when srun has started it."""
    ended: float | None = None
    """When it was first seen to have exited, or reported an error; 0 when srun names it as the first that failed."""
    srun: str = ""
    """srun's message about it."""
    error: dict[str, Any] | None = None
    result: Any = None
    done: bool = False

    @property
    def log(self) -> Path:
        """What it wrote to standard output and standard error."""
        return self.folder / f"rank-{self.rank}.txt"

    @property
    def event_file(self) -> Path:
        """Where its `EventWriter` appends; `launch` has made it."""
        return self.folder / f"rank-{self.rank}.jsonl"

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events that it has reported since the last call."""
        with self.event_file.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the rest is still on its way
                self.read += len(line)
                yield json.loads(line)


def launch(
    command: Sequence[str],
    world: int,
    folder: Path,
    *,
    on_event: Callable[[int, dict[str, Any]], None] = lambda rank, event: None,
    cwd: Path | None = None,
) -> Any:
    """Start `command` on `world` workers, wait until all have ended, and return what rank 0 returned.

    Each runs in a session of its own and works within `process_group(folder)`. `on_event` takes the events that they report, with
    their ranks. rank-N.txt in `folder` holds the output of each, this work's behind that of earlier work.

    Raises:
        LabError: one of them raised it.
        WorkerError: one of them failed or was killed; all others are then ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob("rank-*.jsonl"), folder / RENDEZVOUS_FILE]:
        leftover.unlink(missing_ok=True)
    workers = [Worker(rank, folder) for rank in range(world)]
    # A machine that has asked NFS for a file in vain may go on for a minute to think that it is not there, so all that is
    # waited for is there from the beginning.
    (folder / RENDEZVOUS_FILE).touch()
    for worker in workers:
        worker.event_file.touch()
        worker.begin = worker.log.stat().st_size if worker.log.exists() else 0
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for process in _start(command, workers, cwd):
            processes.append(process)
        _wait_for_workers(workers, processes, on_event)
        if workers[0].process is None:
            _read_srun_failures(workers)
    finally:
        terminate(processes)
    if failed := [worker for worker in workers if not worker.done]:
        raise _failure(failed, world)
    return workers[0].result


def _start(command: Sequence[str], workers: Sequence[Worker], cwd: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """The processes to wait for, one after the other: the workers, or srun that starts them on several machines."""
    # Whoever started the notebook's process meant that one. srun's variables stay: srun itself and `process_rank` read them.
    environment = without_launchers(os.environ, but=("srun",))
    # What a worker writes goes into a log in UTF-8, whatever the terminal is.
    environment |= {WORKER_FOLDER_VARIABLE: str(workers[0].folder), "PYTHONIOENCODING": "utf-8"}
    world, machines = len(workers), node_count()
    if machines > 1:
        if world % machines:
            raise LabError(f"{world} processes cannot be spread evenly over {machines} machines; change `processes`")
        if shutil.which("srun") is None:
            raise LabError(f"this is a job of {machines} machines and there is no srun to start processes on them")
        each = world // machines
        # The notebook has all that the job has: the workers of a machine share what the job's tasks there were given.
        tasks = int(environment.get("SLURM_NTASKS_PER_NODE", 1))
        cpus = int(environment.get("SLURM_CPUS_PER_TASK", 0)) * tasks // each
        srun = ["srun", "--overlap", f"--nodes={machines}", f"--ntasks={world}", f"--ntasks-per-node={each}",
                *([f"--cpus-per-task={cpus}"] if cpus else []), "--kill-on-bad-exit=1",
                f"--output={workers[0].folder}/rank-%t.txt", "--open-mode=append"]  # fmt: skip
        yield _popen([*srun, *command], environment, workers[0].log, cwd)
        return
    for worker in workers:
        numbers = {"RANK": worker.rank, "WORLD_SIZE": world, "LOCAL_RANK": worker.rank, "LOCAL_WORLD_SIZE": world}
        named = environment | {name: str(number) for name, number in numbers.items()}
        worker.process = _popen(command, named, worker.log, cwd)
        yield worker.process


def _popen(
    command: Sequence[str], environment: dict[str, str], log: Path, cwd: Path | None
) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        # Their standard input closes when this process ends, however it ends, and they exit then (`exit_with_parent`).
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=file, cwd=cwd, start_new_session=True
        )


def _wait_for_workers(
    workers: Sequence[Worker],
    processes: Sequence[subprocess.Popen[bytes]],
    on_event: Callable[[int, dict[str, Any]], None],
) -> None:
    """Read the workers' events until all have exited, or one has failed and the others had time to report why they did."""
    failed: float | None = None
    begin, looked, running = time.monotonic(), float("-inf"), len(processes)
    while True:
        alive, now = sum(process.poll() is None for process in processes), time.monotonic()
        if failed or alive < running or now - begin < FAST_POLL_SECONDS or now - looked >= SLOW_POLL_INTERVAL:
            looked, running = now, alive
            for worker in workers:
                _poll(worker, on_event)
        if not alive:
            return
        any_failed = any(worker.error for worker in workers) or any(process.poll() for process in processes)
        failed = failed or (time.monotonic() if any_failed else None)
        if failed and time.monotonic() - failed > SHUTDOWN_GRACE / 5:
            return
        time.sleep(POLL_INTERVAL)


def _poll(worker: Worker, on_event: Callable[[int, dict[str, Any]], None]) -> None:
    """Read a worker's new events, and note its exit."""
    for event in worker.new_events():
        if "error" in event:
            worker.error, worker.ended = event["error"], event["time"]
        elif "result" in event:
            worker.result, worker.done = event["result"], True
        else:
            on_event(worker.rank, event)
    if worker.process is not None and worker.process.poll() is not None and worker.ended is None:
        worker.ended = time.time()


def _read_srun_failures(workers: Sequence[Worker]) -> None:
    """Read in srun's output, which stands in rank 0's log, which workers failed first.

    Call it before srun itself is terminated: then it names all of them. A worker that has reported its own error keeps it.
    """
    with workers[0].log.open("rb") as file:
        file.seek(workers[0].begin)
        found = SRUN_TASK_FAILED.search(file.read())
    if found is None:
        return
    for part in found[2].decode().split(","):
        first, _, last = part.partition("-")
        for worker in workers[int(first) : int(last or first) + 1]:
            if worker.error is None and not worker.done:
                worker.ended, worker.srun = 0.0, found[1].decode(errors="replace")


def terminate(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the process groups of these processes: SIGTERM, then SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            # The group outlives its leader: a reader of videos may still be there when its worker has gone.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + SHUTDOWN_GRACE
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()


def _failure(failed: Sequence[Worker], world: int) -> Exception:
    """The exception to raise: the failure that came first, and not the peers' errors that followed from it."""

    def order(worker: Worker) -> tuple[bool, float]:
        if worker.ended is None:  # it was ended, by us or by srun
            return True, float("inf")
        return worker.error is not None and PEER_FAILURE.search(worker.error["message"]) is not None, worker.ended

    worker = min(failed, key=order)
    if worker.error and isinstance(kind := getattr(errors, worker.error["kind"], None), type):
        return kind(worker.error["message"])
    who = f"worker {worker.rank} of {world} (from 0; its log: {worker.log})"
    if worker.error:
        return WorkerError(f"{who} failed: {worker.error['message']}\n\n{worker.error['traceback']}")
    status = worker.process.returncode if worker.process is not None else None
    how = f"exited with status {status}" if status is not None and status >= 0 else "exited before its work was done"
    if status is not None and status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
        how += ", as happens when memory runs out" if status == -signal.SIGKILL else ""
    how += f" (srun says: {worker.srun})" if worker.srun else ""
    tail: list[str] = []
    if worker.log.exists():  # srun makes it, and may not have come so far
        with worker.log.open("rb") as file:
            file.seek(worker.begin)
            tail = file.read().decode(errors="replace").splitlines()[-LOG_TAIL:]
    last_output = "\n".join(["; its last output:", *tail]) if tail else ""
    return WorkerError(
        f"{who} {how}. The others were ended; the same cell goes on from the newest checkpoint{last_output}"
    )
