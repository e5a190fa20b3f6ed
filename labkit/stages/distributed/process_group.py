"""The process group of a notebook's workers: which rank this process has, and what the ranks exchange.

`launch` starts the processes, tells them where rank 0 is, and sends them their tasks, so that the same works on one machine and,
started by srun, on several. Alone, a process is rank 0 of a world of 1, and nothing here waits.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE

RENDEZVOUS_SECONDS = 600.0
"""Seconds in which all workers must have connected; importing torch on a busy file system takes its time."""
COLLECTIVE_TIMEOUT = datetime.timedelta(hours=2)
"""What a rank waits for the others at most: one of them may be decoding videos, or writing a large model."""
STILL_SECONDS, STILL_POLL = 900.0, 0.25
"""Seconds at one and the same place after which a rank is said not to move, and between two looks at it.

Writing the largest file takes less. A rank that decodes moves, though most looks find it waiting for the GPU.
"""


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
        self.written = 0

    def __call__(self, event: dict[str, Any]) -> None:
        """Append one event."""
        self.written += "still" not in event
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


def serve(work: Callable[[Any, EventWriter], Any], device: str = "auto") -> None:
    """As a worker: join the others, and do each task that the notebook's process sends, until that process is gone.

    `work` takes the task and what reports its events; `device` is the parameter of that name. What is raised is reported, and ends
    this process.
    """
    here, events = process_rank(), EventWriter(Path(os.environ[WORKER_FOLDER_VARIABLE]), process_rank().rank)
    told: dict[str, queue.Queue[Any]] = {"task": queue.Queue(), "address": queue.Queue()}
    threading.Thread(target=_listen, args=(told,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the notebook's process decides, and sends SIGTERM
    with report_errors(events):
        rendezvous(here, device, events, told["address"])
        while True:
            path = told["task"].get()
            _write_log(f"== {time.strftime('%F %T')}, worker {here.rank} of {here.world_size}: {path}\n")
            task = json.loads(Path(path).read_text(encoding="utf-8"))
            result = work(task, events)
            gc.collect()  # a trainer and its callbacks hold each other, and the model
            if "torch" in sys.modules:
                sys.modules["torch"].cuda.empty_cache()
            events({"result": result})


def _listen(told: dict[str, queue.Queue[Any]]) -> None:
    """Sort what comes by standard input, and exit at its end: whoever started this process is gone."""
    for line in sys.stdin:
        for kind, value in json.loads(line).items():
            told[kind].put(value)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


@contextlib.contextmanager
def report_stillness(events: EventWriter) -> Iterator[None]:
    """Report once this thread has stood at one place and reported nothing for `STILL_SECONDS`: where, and later that it moves.

    A collective waits as long as it must: for a rank that decodes, or writes a large model. When no rank moves, all hang. Not for
    what may take long without moving, such as the download of a model.
    """
    thread, over, looks = threading.get_ident(), threading.Event(), STILL_SECONDS / STILL_POLL

    def watch() -> None:
        last: Any = None
        count = 0
        while not over.wait(STILL_POLL):
            # No frame is kept: its variables may be large. Looks are counted, for a machine may have slept.
            here = events.written, [(frame.f_code, frame.f_lasti) for frame, _ in _stack(thread)]
            before, count = count, count + 1 if here == last else 0
            last = here
            if (before >= looks) != (count >= looks):
                events({"still": _place(thread) if count else ""})

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _stack(thread: int) -> Iterator[tuple[FrameType, int]]:
    return traceback.walk_stack(sys._current_frames()[thread])


def _place(thread: int) -> str:
    """The innermost function of a thread and the innermost of labkit's; all of its stack goes into the log."""
    stack = traceback.StackSummary.extract(_stack(thread))
    _write_log("".join(["== this process does not move:\n", *reversed(stack.format())]))
    ours = next((each for each in stack if "labkit" in Path(each.filename).parts), stack[-1])
    return ", of ".join(dict.fromkeys(f"{each.name} ({each.filename}:{each.lineno})" for each in (stack[0], ours)))


def _write_log(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


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
        _write_log(text)
        os._exit(1)  # a process group that has lost a member may wait for it for ever


def rendezvous(here: ProcessRank, device: str, events: EventWriter, address: queue.Queue[Any]) -> None:
    """Initialize the process group; rank 0 reports its address, so that no port needs to be chosen before it is bound."""
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
    if here.rank == 0:
        store = torch.distributed.TCPStore("0.0.0.0", 0, here.world_size, True, timeout, wait_for_workers=False)
        events({"address": [socket.gethostname(), store.port]})
    try:
        host, port = address.get(timeout=RENDEZVOUS_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"rank 0 has not told its address {RENDEZVOUS_SECONDS:.0f} s after the start") from None
    if here.rank:
        near = "127.0.0.1" if host == socket.gethostname() else host
        store = torch.distributed.TCPStore(near, port, here.world_size, False, timeout)
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
