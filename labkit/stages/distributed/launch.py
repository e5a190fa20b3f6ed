"""Launching workers: several processes that do a notebook's tasks together, a GPU each, as torchrun would.

The notebook's process starts them with its first task and sends them the next ones, reads the events that they report, and
terminates all of them when one fails or the cell is interrupted. `process_group` is the workers' side.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit import errors
from labkit.errors import LabError
from labkit.files import replacing
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE, without_launchers
from labkit.stages.distributed.process_group import STILL_SECONDS, node_count

POLL_INTERVALS = 0.05, 1.0
"""Seconds between two polls of the workers, at first and in the end: their files lie on a disk that the whole cluster shares."""
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
    process: subprocess.Popen[bytes] | None = None
    """None when srun has started it."""
    read: int = 0
    begin: int = 0
    """Where in its log this task begins."""
    ended: float | None = None
    """When it was first seen to have exited, or reported an error; 0 when srun names it as the first that failed."""
    srun: str = ""
    """srun's message about it."""
    still: str = ""
    """Where it stands while it does not move, see `report_stillness`."""
    error: dict[str, Any] | None = None
    result: Any = None
    done: bool = False

    @property
    def log(self) -> Path:
        """What it wrote to standard output and standard error."""
        return self.folder / f"rank-{self.rank}.txt"

    @property
    def event_file(self) -> Path:
        """Where its `EventWriter` appends; made before it starts."""
        return self.folder / f"rank-{self.rank}.jsonl"

    def begin_task(self) -> None:
        """Forget the task before."""
        self.result, self.done, self.still, self.begin = None, False, "", 0
        self.begin = len(self.output())

    def output(self) -> bytes:
        """What it has written in this task; srun makes the log, and may not have come so far."""
        return self.log.read_bytes()[self.begin :] if self.log.exists() else b""

    def new_events(self) -> Iterator[dict[str, Any]]:
        """The events that it has reported since the last call."""
        with self.event_file.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the rest is still on its way
                self.read += len(line)
                yield json.loads(line)

    def poll(self, on_event: Callable[[int, dict[str, Any]], None]) -> Any:
        """Read its new events, and note its exit; returns its address when it has reported that."""
        address = None
        for event in self.new_events():
            if "error" in event:
                self.error, self.ended = event["error"], event["time"]
            elif "result" in event:
                self.result, self.done = event["result"], True
            elif "still" in event:
                self.still = event["still"]
            elif "address" in event:
                address = event["address"]
            else:
                on_event(self.rank, event)
        if self.process is not None and self.process.poll() is not None and self.ended is None:
            self.ended = time.time()
        return address


class WorkerPool:
    """Workers that wait for tasks: `command` on each of `world`, all of them in sessions of their own."""

    def __init__(
        self, command: Sequence[str], world: int, folder: Path, environment: dict[str, str], cwd: Path | None
    ):
        """Start them; `folder` is that of their files."""
        folder.mkdir(parents=True, exist_ok=True)
        self.workers = [Worker(rank, folder) for rank in range(world)]
        for worker in self.workers:
            # There from the beginning: a machine that has asked NFS in vain may go on for a minute to think that it is not.
            worker.event_file.unlink(missing_ok=True)
            worker.event_file.touch()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.uses = 0
        try:
            for process in _start(command, self.workers, environment, cwd):
                self.processes.append(process)
        except BaseException:
            terminate(self.processes)
            raise

    def do(self, task: Any, on_event: Callable[[int, dict[str, Any]], None]) -> Any:
        """Send a task to all of them, wait until they have done it, and return what rank 0 returned."""
        for worker in self.workers:
            worker.begin_task()
        # Not through the pipe, which srun may hand on in pieces, and under a name that no machine has asked for in vain.
        path = self.workers[0].folder / f"task-{time.time_ns()}.json"
        with replacing(path) as draft:
            draft.write_text(json.dumps(task, ensure_ascii=False), encoding="utf-8")
        try:
            self._tell({"task": str(path)})
            self._wait(on_event)
        finally:
            path.unlink(missing_ok=True)
        if failed := [worker for worker in self.workers if not worker.done]:
            if self.workers[0].process is None:
                _read_srun_failures(self.workers)
            raise _failure(failed, len(self.workers))
        return self.workers[0].result

    def _tell(self, what: dict[str, Any]) -> None:
        for process in self.processes:
            with contextlib.suppress(OSError):  # it has died, which `_wait` sees
                if process.stdin is not None:
                    process.stdin.write(json.dumps(what).encode() + b"\n")

    def _wait(self, on_event: Callable[[int, dict[str, Any]], None]) -> None:
        """Read events until all have done the task or none moves, or one has failed and the others had time to report why they did."""
        failed, (interval, slowest) = 0.0, POLL_INTERVALS
        while True:
            alive = sum(process.poll() is None for process in self.processes)
            for worker in self.workers:
                if address := worker.poll(on_event):
                    self._tell({"address": address})
            if not alive or all(worker.done or worker.still for worker in self.workers):
                return
            if alive < len(self.processes) or any(worker.error for worker in self.workers):
                failed, interval = failed or time.monotonic(), POLL_INTERVALS[0]
                if time.monotonic() - failed > SHUTDOWN_GRACE / 5:
                    return
            time.sleep(interval)
            interval = min(interval * 1.01, slowest)


_pools: list[tuple[Any, WorkerPool]] = []
"""The workers of this process, if there are any, behind what they were started with."""
_use = threading.RLock()
"""Held while they are started, work or are ended."""


def workers_wait() -> bool:
    """Whether there are workers that could do another task."""
    return bool(_pools) and all(process.poll() is None for process in _pools[0][1].processes)


def start_workers(command: Sequence[str], world: int, folder: Path, *, cwd: Path | None = None) -> WorkerPool:
    """`world` workers, each of which runs `command` and works within `process_group.serve`.

    They are those of the task before, where these were started alike. rank-N.txt in `folder` holds the output of each.
    """
    # Whoever started the notebook's process meant that one. srun's variables stay: srun itself and `process_rank` read them.
    environment = without_launchers(os.environ, but=("srun",))
    # What a worker writes goes into a log in UTF-8, whatever the terminal is.
    environment |= {WORKER_FOLDER_VARIABLE: str(folder), "PYTHONIOENCODING": "utf-8"}
    key = (list(command), world, environment, cwd)
    with _use:
        if not (workers_wait() and _pools[0][0] == key):
            end_workers()
            _pools.append((key, WorkerPool(command, world, folder, environment, cwd)))
        _pools[0][1].uses += 1
        return _pools[0][1]


def launch(
    command: Sequence[str],
    world: int,
    folder: Path,
    task: Any,
    *,
    on_event: Callable[[int, dict[str, Any]], None] = lambda rank, event: None,
    cwd: Path | None = None,
) -> Any:
    """Have `world` workers do a task, plain data, and return what rank 0 returned.

    They are those of `start_workers`. `on_event` takes the events that they report, with their ranks.

    Raises:
        LabError: one of them raised it.
        WorkerError: one of them failed or was killed, or none of them moves any more; all are then ended.
    """
    with _use:
        pool = start_workers(command, world, folder, cwd=cwd)
        try:
            return pool.do(task, on_event)
        except BaseException:
            end_workers()
            raise


@atexit.register
def end_workers() -> None:
    """End the workers that wait for another task, if there are any."""
    while _pools:
        terminate(_pools.pop()[1].processes)


def end_workers_later(seconds: float) -> None:
    """End them if they have had no other task by then."""
    if not _pools:
        return
    pool, uses = _pools[0][1], _pools[0][1].uses

    def end() -> None:
        with _use:
            if _pools and _pools[0][1] is pool and pool.uses == uses:
                end_workers()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _start(
    command: Sequence[str], workers: Sequence[Worker], environment: dict[str, str], cwd: Path | None
) -> Iterator[subprocess.Popen[bytes]]:
    """The processes to wait for, one after the other: the workers, or srun that starts them on several machines."""
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
        # They read their tasks from standard input, which closes when this process ends, however it ends, and they exit then.
        # srun hands it on to all of its own.
        return subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=subprocess.PIPE, bufsize=0, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


def _read_srun_failures(workers: Sequence[Worker]) -> None:
    """Read in srun's output, which stands in rank 0's log, which workers failed first.

    Call it before srun itself is terminated: then it names all of them. A worker that has reported its own error keeps it.
    """
    if (found := SRUN_TASK_FAILED.search(workers[0].output())) is None:
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
            with contextlib.suppress(OSError):  # a task that it has not read
                process.stdin.close()


def _failure(failed: Sequence[Worker], world: int) -> Exception:
    """The exception to raise: the failure that came first, and not the peers' errors that followed from it."""

    def order(worker: Worker) -> tuple[bool, float]:
        if worker.ended is None:  # it was ended, by us or by srun
            return True, float("inf")
        return worker.error is not None and PEER_FAILURE.search(worker.error["message"]) is not None, worker.ended

    worker = min(failed, key=order)
    if worker.ended is None and all(each.still for each in failed):
        places = "\n".join(f"  worker {each.rank}: {each.still}" for each in failed)
        return WorkerError(
            f"nothing has moved for {STILL_SECONDS / 60:.0f} minutes in {len(failed)} of {world} workers, which were ended:\n"
            f"{places}\nTheir whole stacks stand in {worker.folder}/rank-N.txt. The same cell goes on from the newest checkpoint; "
            "where it stops there again, `processes` of 1 needs nobody to wait for"
        )
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
    tail = worker.output().decode(errors="replace").splitlines()[-LOG_TAIL:]
    last_output = "\n".join(["; its last output:", *tail]) if tail else ""
    return WorkerError(
        f"{who} {how}. The others were ended; the same cell goes on from the newest checkpoint{last_output}"
    )
