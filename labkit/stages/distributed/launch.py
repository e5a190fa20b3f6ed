"""Workers: several processes that do one piece of a notebook's work together, a GPU each.

The notebook's process starts them, hears what they report, and ends all of them when one fails or the cell is interrupted. They
meet through files in a folder that all of them see, so that the same works on one machine and, started by srun, on several.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit import errors
from labkit.errors import LabError
from labkit.files import replacing
from labkit.stages.distributed.launcher_variables import WORKERS, without_launchers

EVERY = 0.05
"""Seconds between two looks at the processes, and at first at what the workers write."""
YOUNG = 10.0
"""Seconds in which what they write is looked at so often: a short piece of work is over then."""
CALM = 1.0
"""Seconds between two looks at it later: it stands on a disk that the whole cluster shares."""
PATIENCE = 5.0
"""Seconds that workers have to end once they are told to; then they are killed."""
ECHO = re.compile(
    r"connection (closed|reset)|\bgloo\b|nccl|process ?group|(?<![\w/])(tcp)?store(?![\w/])|broken pipe", re.IGNORECASE
)
"""What a worker says when another one has gone."""
GONE = re.compile(rb"srun: error: (\S+: tasks? ([\d,-]+): .*)")
"""What srun says of tasks that ended badly, `node2: tasks 3-4,7: Out Of Memory`; rank 0 may have begun the line."""
TAIL = 15
"""Lines of a log that an error shows."""


class Place(NamedTuple):
    """Which of the workers this process is."""

    rank: int
    """From 0."""
    world: int
    """How many there are."""
    local_rank: int
    """Which of those on its machine, and so the number of its GPU."""


class WorkerError(RuntimeError):
    """A worker failed: the message names it, its log, and what went wrong there."""


@dataclass
class Worker:
    """What the notebook's process knows of one of them."""

    rank: int
    folder: Path
    begin: int = 0
    """Where in its log this piece of work begins."""
    read: int = 0
    process: subprocess.Popen[bytes] | None = None
    """None when srun has started it."""
    ended: float | None = None
    """When it was first seen to have ended, or said that it failed; 0 when srun names it as the first that did."""
    srun: str = ""
    """srun's words for that."""
    error: dict[str, Any] | None = None
    result: Any = None
    done: bool = False

    @property
    def log(self) -> Path:
        """What it wrote to standard output and standard error."""
        return self.folder / f"rank-{self.rank}.txt"

    @property
    def news_file(self) -> Path:
        """Where it reports; `launch` has made it."""
        return self.folder / f"rank-{self.rank}.jsonl"

    def news(self) -> Iterator[dict[str, Any]]:
        """What it has reported since it was last asked."""
        with self.news_file.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # the rest is still on its way
                self.read += len(line)
                yield json.loads(line)


class Job(NamedTuple):
    """A task for several workers, as a file tells them of it."""

    task: str
    """One of `labkit.runs.tasks.TASKS`."""
    stage: str
    """Which model it is done with."""
    params: dict[str, Any]
    asked: dict[str, Any]
    """The task's own arguments."""

    def command(self, folder: Path) -> list[str]:
        """Write the file into `folder`, and return the command that does it."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "job.json") as draft:
            draft.write_text(json.dumps(self._asdict(), ensure_ascii=False), encoding="utf-8")
        return [sys.executable, "-m", "labkit.runs.worker", str(folder / "job.json")]


def place() -> Place:
    """Which of several workers this process is, by torchrun's variables or srun's; alone, it is `Place(0, 1, 0)`.

    Clusters set these variables for processes of their own too; a worker is only what `launch` has started.
    """
    environment = os.environ
    if WORKERS not in environment:
        return Place(0, 1, 0)
    names = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID"))
    return Place(*(int(environment.get(name) or environment[other]) for name, other in names))


def count(processes: int) -> int:
    """Workers that the parameter `processes` asks for: itself, or for 0 one for each GPU in sight, on all machines of a job."""
    if processes:
        return processes
    import torch

    return max(1, torch.cuda.device_count() * _machines())


def wait() -> None:
    """Wait until all workers have come here; alone, there is nobody to wait for."""
    if place().world > 1:
        import torch

        torch.distributed.all_reduce(torch.zeros(1))  # on the CPU: a barrier would first bind a GPU


def gathered(values: Sequence[Any]) -> list[Any]:
    """The values of all workers, by rank, for each of them."""
    if place().world == 1:
        return list(values)
    import torch

    found: list[Any] = [None] * place().world
    torch.distributed.all_gather_object(found, list(values))
    return [value for each in found for value in each]


def launch(
    command: Sequence[str],
    world: int,
    folder: Path,
    *,
    hear: Callable[[int, dict[str, Any]], None] = lambda rank, event: None,
    cwd: Path | None = None,
) -> Any:
    """Start `command` on `world` workers, wait until all have ended, and return what rank 0 returned.

    Each runs in a session of its own under `labkit.runs.worker.joined(folder)`. `hear` takes what they report, with their ranks.
    rank-N.txt in `folder` holds what each writes, this work behind earlier work.

    Raises:
        LabError: one of them raised it.
        WorkerError: one of them failed or was killed; all others are then ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob("rank-*.jsonl"), folder / MEETING]:
        leftover.unlink(missing_ok=True)
    workers = [Worker(rank, folder) for rank in range(world)]
    # A machine that has asked NFS for a file in vain may go on for a minute to think that it is not there, so all that is
    # waited for is there from the beginning.
    (folder / MEETING).touch()
    for worker in workers:
        worker.news_file.touch()
        worker.begin = worker.log.stat().st_size if worker.log.exists() else 0
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for process in _started(command, workers, cwd):
            processes.append(process)
        _attend(workers, processes, hear)
        if workers[0].process is None:
            _ask_srun(workers)
    finally:
        end(processes)
    if failed := [worker for worker in workers if not worker.done]:
        raise _failure(failed, world)
    return workers[0].result


MEETING = "meeting.json"
"""Where rank 0 writes at which address the others find it; empty until then."""


def _started(command: Sequence[str], workers: Sequence[Worker], cwd: Path | None) -> Iterator[subprocess.Popen[bytes]]:
    """The processes to wait for, one after the other: the workers, or srun that starts them on several machines."""
    # Whoever started the notebook's process meant that one. srun's variables stay: srun itself and `place` read them.
    environment = without_launchers(os.environ, but=("srun",))
    # What a worker writes goes into a log in UTF-8, whatever the terminal is.
    environment |= {WORKERS: str(workers[0].folder), "PYTHONIOENCODING": "utf-8"}
    world, machines = len(workers), _machines()
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
        # Standard input is their leash: it ends with this process, however that ends, and they end with it.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=file, stderr=file, cwd=cwd, start_new_session=True
        )


def _attend(
    workers: Sequence[Worker],
    processes: Sequence[subprocess.Popen[bytes]],
    hear: Callable[[int, dict[str, Any]], None],
) -> None:
    """Hear the workers until all have ended, or one has failed and the others had time to say why they did."""
    failed: float | None = None
    begin, looked, running = time.monotonic(), float("-inf"), len(processes)
    while True:
        alive, now = sum(process.poll() is None for process in processes), time.monotonic()
        if failed or alive < running or now - begin < YOUNG or now - looked >= CALM:
            looked, running = now, alive
            for worker in workers:
                _look(worker, hear)
        if not alive:
            return
        ill = any(worker.error for worker in workers) or any(process.poll() for process in processes)
        failed = failed or (time.monotonic() if ill else None)
        if failed and time.monotonic() - failed > PATIENCE / 5:
            return
        time.sleep(EVERY)


def _look(worker: Worker, hear: Callable[[int, dict[str, Any]], None]) -> None:
    """Take note of what a worker has reported, and of its end."""
    for event in worker.news():
        if "error" in event:
            worker.error, worker.ended = event["error"], event["time"]
        elif "result" in event:
            worker.result, worker.done = event["result"], True
        else:
            hear(worker.rank, event)
    if worker.process is not None and worker.process.poll() is not None and worker.ended is None:
        worker.ended = time.time()


def _ask_srun(workers: Sequence[Worker]) -> None:
    """Read in srun's output, which stands in rank 0's log, which workers were the first to end badly.

    To be asked before srun itself is told to end: then it names all of them. A worker that has said what happened needs no
    other's word.
    """
    with workers[0].log.open("rb") as file:
        file.seek(workers[0].begin)
        found = GONE.search(file.read())
    if found is None:
        return
    for part in found[2].decode().split(","):
        first, _, last = part.partition("-")
        for worker in workers[int(first) : int(last or first) + 1]:
            if worker.error is None and not worker.done:
                worker.ended, worker.srun = 0.0, found[1].decode(errors="replace")


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that are not over, and all that these have started: first asked, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            # The group outlives its leader: a reader of videos may still be there when its worker has gone.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
        deadline = time.monotonic() + PATIENCE
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()


def _failure(failed: Sequence[Worker], world: int) -> Exception:
    """What to raise: the failure that came first, and not what others said because of it."""

    def order(worker: Worker) -> tuple[bool, float]:
        if worker.ended is None:  # it was ended, by us or by srun
            return True, float("inf")
        return worker.error is not None and ECHO.search(worker.error["message"]) is not None, worker.ended

    worker = min(failed, key=order)
    if worker.error and isinstance(kind := getattr(errors, worker.error["kind"], None), type):
        return kind(worker.error["message"])
    who = f"worker {worker.rank} of {world} (from 0; its log: {worker.log})"
    if worker.error:
        return WorkerError(f"{who} failed: {worker.error['message']}\n\n{worker.error['traceback']}")
    status = worker.process.returncode if worker.process is not None else None
    how = f"exited with status {status}" if status is not None and status >= 0 else "ended before its work was done"
    if status is not None and status < 0:
        how = f"was killed by {signal.Signals(-status).name}"
        how += ", as happens when memory runs out" if status == -signal.SIGKILL else ""
    how += f" (srun says: {worker.srun})" if worker.srun else ""
    tail: list[str] = []
    if worker.log.exists():  # srun makes it, and may not have come so far
        with worker.log.open("rb") as file:
            file.seek(worker.begin)
            tail = file.read().decode(errors="replace").splitlines()[-TAIL:]
    said = "\n".join(["; it last wrote:", *tail]) if tail else ""
    return WorkerError(f"{who} {how}. The others were ended; the same cell goes on from the newest checkpoint{said}")


def _machines() -> int:
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
