"""Workers are started, heard, and ended together, however one of them ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from labkit.errors import LabError
from labkit.params import Params
from labkit.stages.distributed import launch as workers
from labkit.stages.distributed.launch import WorkerError, launch
from labkit.stages.distributed.process_group import ProcessRank, all_gather_object, barrier, process_rank, world_size

ROOT = Path(__file__).parents[3]
BEGIN = """
import os, signal, subprocess, sys, time
from pathlib import Path
from labkit.errors import LabError
from labkit.stages.distributed import process_group
here, folder = process_group.process_rank(), Path(os.environ["LABKIT_WORKERS"])
process_group.rendezvous = lambda *_: None  # the seconds that torch takes
def work(task, report):
"""


def command(folder: Path, text: str) -> list[str]:
    """A worker whose tasks are `text`, `task`, `report` and `here` being at hand."""
    file = folder / "work.py"
    file.write_text(BEGIN + textwrap.indent(textwrap.dedent(text), "    ") + "\nprocess_group.serve(work)\n")
    return [sys.executable, str(file)]


def work(folder: Path, text: str, world: int = 2, task: Any = None, device: str = "cpu", **options: Any) -> Any:
    return launch([*command(folder, text), device], world, folder / "logs", task, cwd=ROOT, **options)


@pytest.fixture(autouse=True)
def end_workers() -> Iterator[None]:
    yield
    workers.end_workers()


def gone(pid: int) -> bool:
    """Whether a process is over; one that is not yet reaped is."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(true: Any) -> bool:
    deadline = time.monotonic() + 30
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def test_alone_there_is_nobody_to_wait_for_or_to_gather_from():
    assert process_rank() == ProcessRank(0, 1, 0)
    barrier()
    assert all_gather_object(["a", 1]) == ["a", 1]
    assert world_size(3) == 3 and world_size(1) == 1


def test_what_workers_report_is_heard_while_they_work_and_rank_0_s_result_is_returned(tmp_path):
    heard = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        heard.append((rank, event["step"]))
        (tmp_path / f"heard-{rank}-{event['step']}").touch()

    text = """
        for step in (1, 2):
            report({"step": step})
            while not Path(sys.argv[0]).with_name(f"heard-{here.rank}-{step}").exists():
                time.sleep(0.02)
        print("worker", here)
        return here.rank + task["more"]
    """
    assert work(tmp_path, text, task={"more": 10}, on_event=on_event) == 10
    assert sorted(heard) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert "rank=1, world_size=2, local_rank=1" in (tmp_path / "logs" / "rank-1.txt").read_text()
    assert not [*(tmp_path / "logs").glob("task-*")]


def test_the_next_task_is_done_by_the_same_processes_where_they_are_what_it_asks_for(tmp_path, monkeypatch):
    text, before = "return os.getpid(), len(task)", 0
    for same, reason, options in [
        (False, "nobody is there", {}),
        (True, "nothing has changed", {}),
        (True, "more than a pipe holds", {"task": "é" * 100_000}),
        (False, "another world size", {"world": 3}),
        (False, "another device", {"device": "cuda"}),
        (False, "another environment", {"device": "cuda"}),
        (False, "one of them is gone", {"device": "cuda"}),
    ]:
        if reason == "another environment":
            monkeypatch.setenv("SOME_VARIABLE", "1")
        if reason == "one of them is gone":
            os.kill(before, signal.SIGKILL)
            assert eventually(lambda pid=before: gone(pid))
        pid, length = work(tmp_path, text, **{"task": "x", **options})
        assert (pid == before) == same, reason
        assert length == len(options.get("task", "x"))
        assert same or not before or gone(before)
        before = pid
    log = (tmp_path / "logs" / "rank-0.txt").read_text()
    assert log.count("== ") == 7, "what the later ones wrote stands behind what earlier ones wrote"


def test_all_that_is_waited_for_is_there_before_a_worker_starts(tmp_path):
    text = """
        import os, pathlib
        folder = pathlib.Path(os.environ["LABKIT_WORKERS"])
        print(sorted(path.name for path in folder.glob("*.json*") if "task" not in path.name))
    """
    with pytest.raises(WorkerError, match=r"\['rank-0.jsonl', 'rank-1.jsonl'\]"):
        launch([sys.executable, "-c", textwrap.dedent(text)], 2, tmp_path / "logs", None)


def test_the_shared_disk_is_asked_often_at_first_and_ever_less_later(tmp_path, monkeypatch):
    now, looks = 0.0, []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Process:
        stdin, returncode, pid = None, 0, 2**30

        def poll(self) -> int | None:
            return None

        def wait(self, timeout: float) -> int:
            return 0

    def new_events(worker: workers.Worker) -> list[dict[str, Any]]:
        """It works for 100.5 seconds."""
        looks.append(now)
        return [{"result": "done"}] if now >= 100.5 else []

    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now, time_ns=lambda: 0, sleep=sleep)
    monkeypatch.setattr(workers, "time", clock)
    monkeypatch.setattr(workers.Worker, "new_events", new_events)
    monkeypatch.setattr(workers, "_popen", lambda *words: Process())
    assert launch(["nothing"], 1, tmp_path, None) == "done"
    assert len([at for at in looks if at < 10]) >= 100 and len([at for at in looks if at >= 90]) <= 12


def test_a_hang_is_named_with_the_place_of_each_rank_and_only_where_no_rank_moves(tmp_path, monkeypatch):
    text = """
        process_group.STILL_SECONDS, process_group.STILL_POLL = 0.6, 0.02
        def all_reduce():
            time.sleep(600)
        def decode():
            for step in range(10):  # the other waits meanwhile, which is no hang
                report({"step": step})
                time.sleep(0.1)
            time.sleep(600)
        with process_group.report_stillness(report):
            decode() if here.rank else all_reduce()
    """
    moved: list[int] = []
    with pytest.raises(WorkerError) as caught:
        work(tmp_path, text, on_event=lambda rank, event: moved.append(event["step"]))
    assert moved == [*range(10)]
    message = str(caught.value)
    assert "nothing has moved for 15 minutes in 2 of 2 workers" in message and "from the newest checkpoint" in message
    assert re.search(r"worker 0: all_reduce \(.*work.py:\d+\).*\n *worker 1: decode \(", message)
    assert "does not move:" in (tmp_path / "logs" / "rank-1.txt").read_text()


def test_an_error_in_one_worker_ends_all_with_its_traceback_and_not_with_the_echo(tmp_path):
    text = """
        report({"step": os.getpid()})
        if here.rank == 1:
            time.sleep(0.5)
            {}["no such clip"]
        time.sleep(1)
        raise RuntimeError("[gloo] Connection closed by peer")
    """
    pids = []
    with pytest.raises(WorkerError) as caught:
        work(tmp_path, text, on_event=lambda rank, event: pids.append(event["step"]))
    message = str(caught.value)
    assert "worker 1 of 2" in message and "KeyError: 'no such clip'" in message and "work.py" in message
    assert str(tmp_path / "logs" / "rank-1.txt") in message
    assert len(pids) == 2 and eventually(lambda: all(map(gone, pids)))


def test_bad_input_that_a_worker_finds_is_bad_input(tmp_path):
    with pytest.raises(LabError, match=r"^prompts_per_step is 3$"):
        work(tmp_path, "raise LabError('prompts_per_step is 3')")


def test_a_worker_that_dies_is_named_with_what_it_wrote_last(tmp_path):
    text = """
        if here.rank == 1:
            print("frame 7", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    """
    with pytest.raises(
        WorkerError, match=r"worker 1 of 2 .*was killed by SIGKILL, as happens when memory(.|\n)*frame 7"
    ):
        work(tmp_path, text)


def test_an_interrupt_ends_all_workers_and_what_they_have_started(tmp_path):
    text = """
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        report({"pids": [os.getpid(), child.pid]})
        time.sleep(600)
    """
    pids: list[int] = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        pids.extend(event["pids"])
        if len(pids) == 4:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, text, on_event=on_event)
    assert len(pids) == 4 and eventually(lambda: all(map(gone, pids)))


def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    text = """
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        Path(folder, f"pids-{here.rank}").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(600)
    """
    words, logs = command(tmp_path, text), tmp_path / "logs"
    start = "from pathlib import Path\nfrom labkit.stages.distributed.launch import launch\n"
    start += f"launch({words!r}, 2, Path({str(logs)!r}), None)"
    notebook = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT)
    files = [logs / f"pids-{rank}" for rank in (0, 1)]
    assert eventually(lambda: all(file.exists() and " " in file.read_text() for file in files))
    notebook.kill()
    notebook.wait()
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert eventually(lambda: all(map(gone, pids)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"processes": 5}, "prompts_per_step: 12 is no multiple of processes (5)"),
        (
            {"processes": 4, "prompts_per_pass": 2},
            "prompts_per_step: 12 is no multiple of processes (4) x prompts_per_pass (2)",
        ),
        ({"processes": 4, "sft_batch": 6}, "sft_batch: 6 is no multiple of processes (4)"),
    ],
)
def test_work_that_cannot_be_divided_is_refused_before_any_of_it(changes, expected):
    with pytest.raises(LabError, match=re.escape(expected)):
        Params.build(changes)


SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, threading, time
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--") and "=" in word)
command = [word for word in sys.argv[1:] if not word.startswith("--")]
world, each = int(options["ntasks"]), int(options["ntasks-per-node"])
tasks, dead = [], set()
for rank in range(world):
    numbers = {{"SLURM_PROCID": rank, "SLURM_NTASKS": world, "SLURM_LOCALID": rank % each}}
    log = open(options["output"].replace("%t", str(rank)), "ab")
    environment = os.environ | {{name: str(number) for name, number in numbers.items()}}
    environment["CORES"] = options.get("cpus-per-task", "")
    tasks.append(subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log))
def hand_on():
    for line in sys.stdin.buffer:
        for task in tasks:
            task.stdin.write(line)
            task.stdin.flush()
    for task in tasks:
        task.stdin.close()
threading.Thread(target=hand_on, daemon=True).start()
while any(task.poll() is None for task in tasks):
    for rank, task in enumerate(tasks):
        if task.poll() and rank not in dead:
            dead.add(rank)
            how = signal.strsignal(-task.returncode) if task.returncode < 0 else "Exited with exit code %d" % task.returncode
            print("srun: error: node%d: task %d: %s" % (rank // each, rank, how), file=sys.stderr, flush=True)
            for other in tasks:
                other.kill()
    time.sleep(0.02)
sys.exit(max(abs(task.returncode) for task in tasks))
"""
"""As much of srun as the launcher uses, on one machine."""


@pytest.fixture
def two_machines(tmp_path, monkeypatch):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "srun").write_text(SRUN)
    (folder / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")


def test_on_several_machines_srun_starts_them(two_machines, tmp_path):
    heard = {}
    text = "report({'place': [*here, os.getpid()]}); print('hello', flush=True); return task"
    for task in ("first", "second"):
        seen = dict(heard)
        assert work(tmp_path, text, 4, task, on_event=lambda rank, event: heard.update({rank: event["place"]})) == task
        assert {rank: place[:3] for rank, place in heard.items()} == {
            0: [0, 4, 0],
            1: [1, 4, 1],
            2: [2, 4, 0],
            3: [3, 4, 1],
        }
    assert heard == seen, "the same processes"
    assert (tmp_path / "logs" / "rank-3.txt").read_text().count("hello\n") == 2


@pytest.mark.parametrize(
    ("job", "cores"),
    [
        (
            {"SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS_PER_NODE": "2"},
            "6",
        ),  # a task of the job for each GPU, as labkit asks
        (
            {"SLURM_CPUS_PER_TASK": "6", "SLURM_NTASKS_PER_NODE": "8"},
            "24",
        ),  # fewer workers than GPUs share what all have
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS_PER_NODE": "2"}, "1"),
        ({"SLURM_CPUS_PER_TASK": "12"}, "6"),  # one task for each machine, in a job of somebody's own
        ({}, ""),  # nobody said: as the cluster does it
    ],
)
def test_on_several_machines_workers_share_all_cores_that_the_job_has_there(
    two_machines, tmp_path, monkeypatch, job, cores
):
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    assert work(tmp_path, "return os.environ['CORES']", 4) == cores


ECHOING = """
def echo():
    report({"error": {"kind": "RuntimeError", "message": "[gloo] Connection closed by peer", "traceback": "theirs"},
            "time": time.time()})
    time.sleep(600)
def wait_for_echoes(count):
    while sum(path.stat().st_size > 0 for path in folder.glob("rank-*.jsonl")) < count:
        time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("text", "blamed"),
    [
        pytest.param(  # its own error looks like an echo, the others have said nothing and are killed
            """
            if here.rank != 2:
                time.sleep(600)
            raise RuntimeError("NCCL error: unhandled system error")
            """,
            r"worker 2 of 4 .*failed: RuntimeError: NCCL error(.|\n)*Traceback",
            id="an error like an echo",
        ),
        pytest.param(  # one that memory has run out for says nothing, and what the others say is an echo
            """
            if here.rank != 3:
                echo()
            wait_for_echoes(3)
            print("frame 7", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
            """,
            r"worker 3 of 4 .*exited before its work was done \(srun says: node1: task 3: Killed\)(.|\n)*frame 7",
            id="killed",
        ),
        pytest.param(  # the same, before srun has made its log
            """
            if here.rank != 3:
                echo()
            wait_for_echoes(3)
            (folder / "rank-3.txt").unlink()
            os._exit(9)
            """,
            r"worker 3 of 4 .*\(srun says: node1: task 3: Exited with exit code 9\)",
            id="no log",
        ),
        pytest.param(  # an error of its own, by a machine whose clock is late, with words that hold an echo's words
            """
            if here.rank != 1:
                echo()
            wait_for_echoes(3)
            raise ValueError("/data/store/igloo.mp4 cannot be restored")
            """,
            r"worker 1 of 4 .*failed: ValueError: /data/store/igloo.mp4",
            id="a late clock",
        ),
    ],
)
def test_on_several_machines_the_worker_that_failed_first_is_named(two_machines, tmp_path, monkeypatch, text, blamed):
    monkeypatch.setattr(workers, "SHUTDOWN_GRACE", 60.0)  # srun ends all of them long before
    with pytest.raises(WorkerError, match=blamed):
        work(tmp_path, ECHOING + textwrap.dedent(text), 4)


def test_workers_are_spread_evenly_over_machines(two_machines, tmp_path):
    with pytest.raises(LabError, match="3 processes cannot be spread evenly over 2 machines; change `processes`"):
        work(tmp_path, "pass", 3)
