"""One of several workers: joins the others, does its share of a task, and reports.

`labkit.stages.distributed.launch` is the other side.

python -m labkit.runs.worker JOB.json
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import replacing
from labkit.stages.distributed.launch import MEETING, Job, Place, place
from labkit.stages.distributed.launcher_variables import WORKERS

MEETING_TIME = 600.0
"""Seconds in which all workers must have come; importing torch on a busy file system takes its time."""
SILENCE = datetime.timedelta(hours=2)
"""What a worker waits for the others at most: one of them may be decoding videos, or writing a large model."""


class Report:
    """What a worker tells the notebook's process: lines of JSON in rank-N.jsonl."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Nothing is written yet."""
        self._file = (folder / f"rank-{rank}.jsonl").open("a", encoding="utf-8")

    def __call__(self, event: dict[str, Any]) -> None:
        """Tell one thing."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


def main(file: Path) -> None:
    """Do this worker's share of the job in `file`."""
    job = Job(**json.loads(file.read_text(encoding="utf-8")))
    with joined(Path(os.environ[WORKERS]), job.params["device"]) as report:
        from labkit.lab import Lab
        from labkit.params import Params
        from labkit.runs.tasks import TASKS

        lab: Any = Lab.open(Params.build(job.params))
        lab.settle()
        TASKS[job.task](lab, lab.load(job.stage), report, **job.asked)
        report({"result": None})


@contextlib.contextmanager
def joined(folder: Path, device: str = "auto") -> Iterator[Report]:
    """Join the other workers, and part when the work is done; `device` is the parameter of that name."""
    here = place()
    report = Report(folder, here.rank)
    threading.Thread(target=end_with_the_notebook, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the notebook's process decides, and says SIGTERM
    sys.stdout.write(f"== {time.strftime('%F %T')}, worker {here.rank} of {here.world}: {' '.join(sys.argv)}\n")
    with telling(report):
        _meet(folder, here, device)
        yield report
        _part()


@contextlib.contextmanager
def telling(report: Report) -> Iterator[None]:
    """Report what is raised in the block, and end this process with it."""
    try:
        yield
    except BaseException as error:
        text, ours = traceback.format_exc(), isinstance(error, LabError)
        what = {"kind": type(error).__name__, "traceback": text,
                "message": str(error) if ours else f"{type(error).__name__}: {error}"}  # fmt: skip
        report({"error": what, "time": time.time()})
        sys.stdout.flush()
        sys.stderr.write(text)
        sys.stderr.flush()
        os._exit(1)  # a process group that has lost a member may wait for it for ever


def _meet(folder: Path, here: Place, device: str) -> None:
    """Make the process group; rank 0 says where it is found, so that no port needs to be chosen before it is bound."""
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
    patience = datetime.timedelta(seconds=MEETING_TIME)
    path = folder / MEETING
    if here.rank == 0:
        store = torch.distributed.TCPStore("0.0.0.0", 0, here.world, True, patience, wait_for_workers=False)
        with replacing(path) as draft:
            draft.write_text(json.dumps([socket.gethostname(), store.port]), encoding="utf-8")
        host, port = socket.gethostname(), store.port
    else:
        host, port = _found(path)
        address = "127.0.0.1" if host == socket.gethostname() else host
        store = torch.distributed.TCPStore(address, port, here.world, False, patience)
    # Libraries look here when they ask whether there are several processes, and which one this is.
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), here, strict=True):
        os.environ[name] = str(value)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=here.rank, world_size=here.world, timeout=SILENCE)


def _found(path: Path) -> tuple[str, int]:
    deadline = time.monotonic() + MEETING_TIME
    while not (said := _read(path)):
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"rank 0 has not said in '{path}' where it is found, {MEETING_TIME:.0f} s after the start"
            )
        time.sleep(0.05)
    host, port = json.loads(said)
    return host, port


def _read(path: Path) -> str:
    """What stands in a file, nothing where it is not there; on NFS it may be replaced just while it is read."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8")
    return ""


def _part() -> None:
    import torch

    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def end_with_the_notebook() -> None:
    """Wait for the end of standard input, and end with it: whoever started this process has gone."""
    os.read(0, 1)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
