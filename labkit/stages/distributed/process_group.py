"""The process group of one stage: which rank this process has, and what the ranks exchange.

`launch` starts the processes. They rendezvous through files in a folder that all of them see, so that the same works on one
machine and, started by srun, on several. Alone, a process is rank 0 of a world of 1, and nothing here waits.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.files import replacing
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE

RENDEZVOUS_FILE = "rendezvous.json"
"""Where rank 0 writes its host and port for the others; `launch` makes it, empty."""
RENDEZVOUS_SECONDS = 600.0
"""Seconds in which all workers must have connected; importing torch on a busy file system takes its time."""
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)
"""What a rank waits for the others at most: one of them may be decoding videos, or writing a large model."""


class ProcessRank(NamedTuple):
    """Which of the workers this process is, as `torch.distributed` numbers them."""

    rank: int
    """From 0."""
    world_size: int
    """How many there are."""
    local_rank: int
    """Which of those on its machine, and so the number of its GPU."""


def process_rank() -> ProcessRank:
    """The rank of this process, by torchrun's variables or srun's; alone, it is `ProcessRank(0, 1, 0)`.

    Clusters set these variables for processes of their own too; a worker is only what `launch` has started.
    """
    environment = os.environ
    if WORKER_FOLDER_VARIABLE not in environment:
        return ProcessRank(0, 1, 0)
    names = (("RANK", "SLURM_PROCID"), ("WORLD_SIZE", "SLURM_NTASKS"), ("LOCAL_RANK", "SLURM_LOCALID"))
    return ProcessRank(*(int(environment.get(name) or environment[other]) for name, other in names))


def world_size(processes: int) -> int:
    """Workers that the parameter `processes` asks for: itself, or for 0 one for each visible GPU, on all nodes of a job."""
    if processes:
        return processes
    import torch

    return max(1, torch.cuda.device_count() * node_count())


def node_count() -> int:
    """Machines of this SLURM job; 1 outside of one."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))


def barrier() -> None:
    """Wait until all ranks have called this; returns at once in a single process."""
    if process_rank().world_size > 1:
        import torch

        torch.distributed.all_reduce(torch.zeros(1))  # on the CPU: torch's barrier would first bind a GPU


def all_gather_object(values: Sequence[Any]) -> list[Any]:
    """The values of all ranks in one list, by rank, for each of them."""
    if process_rank().world_size == 1:
        return list(values)
    import torch

    gathered: list[Any] = [None] * process_rank().world_size
    torch.distributed.all_gather_object(gathered, list(values))
    return [value for each in gathered for value in each]


class EventWriter:
    """Writes a worker's events for the notebook's process: lines of JSON in rank-N.jsonl."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Open the file; nothing is written yet."""
        self._file = (folder / f"rank-{rank}.jsonl").open("a", encoding="utf-8")

    def __call__(self, event: dict[str, Any]) -> None:
        """Append one event."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


@contextlib.contextmanager
def process_group(folder: Path, device: str = "auto") -> Iterator[EventWriter]:
    """Join the other workers, and leave the group when the block ends; `device` is the parameter of that name.

    What is raised in the block is reported, and ends this process.
    """
    here = process_rank()
    events = EventWriter(folder, here.rank)
    threading.Thread(target=exit_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the notebook's process decides, and sends SIGTERM
    sys.stdout.write(f"== {time.strftime('%F %T')}, worker {here.rank} of {here.world_size}: {' '.join(sys.argv)}\n")
    with report_errors(events):
        rendezvous(folder, here, device)
        yield events
        _destroy_process_group()


@contextlib.contextmanager
def report_errors(events: EventWriter) -> Iterator[None]:
    """Report what is raised in the block with its traceback, and exit this process."""
    try:
        yield
    except BaseException as error:
        text, ours = traceback.format_exc(), isinstance(error, LabError)
        report = {"kind": type(error).__name__, "traceback": text,
                  "message": str(error) if ours else f"{type(error).__name__}: {error}"}  # fmt: skip
        events({"error": report, "time": time.time()})
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
        os._exit(1)  # a process group that has lost a member may wait for it for ever


def rendezvous(folder: Path, here: ProcessRank, device: str) -> None:
    """Initialize the process group; rank 0 writes its address, so that no port needs to be chosen before it is bound."""
    import torch

    gpus = torch.cuda.device_count() if device != "cpu" else 0
    if gpus == 1 and "RANK" not in os.environ:
        here = here._replace(local_rank=0)  # srun may show each of its tasks one GPU
    if 0 < gpus <= here.local_rank:
        raise LabError(
            f"processes: worker {here.rank} finds no GPU of its own, this machine shows {gpus}; "
            "lower `processes`, or let it be 0, one for each GPU"
        )
    if gpus:
        torch.cuda.set_device(here.local_rank)
    timeout = datetime.timedelta(seconds=RENDEZVOUS_SECONDS)
    path = folder / RENDEZVOUS_FILE
    if here.rank == 0:
        store = torch.distributed.TCPStore("0.0.0.0", 0, here.world_size, True, timeout, wait_for_workers=False)
        with replacing(path) as draft:
            draft.write_text(json.dumps([socket.gethostname(), store.port]), encoding="utf-8")
        host, port = socket.gethostname(), store.port
    else:
        host, port = _wait_for_address(path)
        address = "127.0.0.1" if host == socket.gethostname() else host
        store = torch.distributed.TCPStore(address, port, here.world_size, False, timeout)
    # Libraries look here when they ask whether there are several processes, and which one this is.
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), here, strict=True):
        os.environ[name] = str(value)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if gpus else "gloo",
        store=store,
        rank=here.rank,
        world_size=here.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )


def _wait_for_address(path: Path) -> tuple[str, int]:
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not (text := _read(path)):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"rank 0 has not written its address to '{path}' {RENDEZVOUS_SECONDS:.0f} s after the start"
            )
        time.sleep(0.05)
    host, port = json.loads(text)
    return host, port


def _read(path: Path) -> str:
    """The text of a file, nothing where it is not there; on NFS it may be replaced just while it is read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def _destroy_process_group() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def exit_with_parent() -> None:
    """Wait for the end of standard input, and exit then: whoever started this process is gone."""
    os.read(0, 1)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
