"""Jobs on this machine: what they see, how long they may wait for each other, and how they end."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labkit.cli import main
from labkit.errors import LabError
from labkit.runs.run import STAGES
from labkit.runs.slurm_job import MAX_LOCAL_STARTS, JobError, RunJob, read_job

pytest.importorskip("submitit")
from submitit import JobEnvironment  # noqa: E402
from submitit.core.utils import UncompletedJobError  # noqa: E402
from submitit.helpers import DelayedSubmission  # noqa: E402


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of notebooks that nobody opens, and the working directory in it."""
    for name in STAGES:
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "params").mkdir()
    (tmp_path / "params/p.yaml").write_text("run: x\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def local(project, monkeypatch) -> Callable[..., list[dict[str, Any]]]:
    """Submits with --local; what submitit would have started is returned instead."""
    from submitit.local import local

    started: list[dict[str, Any]] = []

    def start(**asked: Any) -> Any:
        started.append(asked)
        return SimpleNamespace(pid=2**30 + len(started), poll=lambda: 0)  # no process has so high a number

    monkeypatch.setattr(local, "start_controller", start)

    def submit(*options: str) -> list[dict[str, Any]]:
        assert main(["submit", "params/p.yaml", "--local", *options]) == 0
        return started

    return submit


def test_jobs_that_take_turns_have_the_time_of_all(local):
    started = local("--sweep", "seed=0,1,2", "--time", "1:00:00")
    assert [asked["timeout_min"] for asked in started] == [180, 180, 180]


@pytest.mark.parametrize(
    ("shown", "gpus", "seen"),
    [
        (None, 0, None),  # nothing was said, and nothing is hidden
        ("2,3", 0, "2,3"),
        ("", 0, ""),
        (None, 2, "0,1"),
        ("2,3", 1, "2"),  # 0 may be another's
        ("GPU-8f,GPU-1c", 2, "GPU-8f,GPU-1c"),  # by name
    ],
)
def test_a_local_job_sees_gpus_that_are_in_sight_where_it_is_submitted(local, monkeypatch, shown, gpus, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    (asked,) = local("--gpus", str(gpus))
    (pickled,) = asked["folder"].glob("*submitted.pkl")
    job = DelayedSubmission.load(pickled).function
    # As submitit starts it; the job's command is one that tells what it sees.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked["cuda_devices"])
    played(monkeypatch, job.folder, asked["folder"])
    monkeypatch.setattr(sys, "executable", script(job.folder, 'echo "${CUDA_VISIBLE_DEVICES-nothing said}" > seen'))
    dataclasses.replace(job, root=job.folder)()
    assert (job.folder / "seen").read_text().strip() == ("nothing said" if seen is None else seen)


@pytest.mark.parametrize("shown", ["3", "", "3,-1,2"])
def test_more_gpus_than_are_in_sight_are_refused(project, monkeypatch, capsys, shown):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert main(["submit", "params/p.yaml", "--local", "--gpus", "2"]) == 2
    assert f"gpus: 2, and CUDA_VISIBLE_DEVICES='{shown}' shows {int('3' in shown)}" in capsys.readouterr().err
    assert not (project / "outputs").exists()


@pytest.mark.slow
def test_what_goes_on_in_the_background_does_not_hold_the_callers_pipe(project):
    """`labkit submit --local | tail` waited for the end of the run; standard input is not taken away either."""
    code = (
        "import subprocess, sys, time; from submitit.local import local; from types import SimpleNamespace\n"
        "wait = [sys.executable, '-c', 'import time; time.sleep(90)']\n"
        "local.start_controller = lambda **asked: subprocess.Popen(wait)\n"
        "from labkit.cli import main; sys.exit(main(['submit', 'params/p.yaml', '--local']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=75,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0 and "x: local job" in done.stdout, done.stderr
    job = read_job(project / "outputs" / "x")
    assert job is not None
    os.kill(int(job.id), signal.SIGKILL)  # which fails where it has ended


@pytest.mark.parametrize(
    ("there", "options", "says"),
    [
        (0, [], "no GPU (this machine shows none)"),  # it was told of "the GPUs of this machine"
        (1, [], "the 1 GPU of this machine"),
        (2, [], "the 2 GPUs of this machine"),
        (2, ["-p", "device", "cpu"], "no GPU"),
        (2, ["--gpus", "2"], "1 x 2 GPUs"),
    ],
)
def test_a_local_job_is_told_of_the_gpus_that_there_are(local, monkeypatch, capsys, there, options, says):
    import torch

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    local(*options)
    assert f", {says}, " in capsys.readouterr().out


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("writes", [True, False], ids=["ends when asked", "does not end"])
def test_a_cancelled_job_lets_the_command_write_its_notebook(project, monkeypatch, writes):
    folder = project / "x"
    played(monkeypatch, folder, project / "jobs")
    monkeypatch.setattr("labkit.runs.slurm_job.SHUTDOWN_GRACE", 5.0 if writes else 0.3)
    trap = "trap 'touch written; exit 143' TERM" if writes else "trap '' TERM"
    command = script(folder, f"{trap}\ntouch begun\nwhile :; do sleep 0.05; done")
    monkeypatch.setattr(sys, "executable", command)
    job = RunJob(folder, folder, {}, stop_timeout=60.0)

    def cancel() -> None:
        while not (folder / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=cancel, daemon=True).start()
    with pytest.raises(SystemExit):
        job()
    assert (folder / "written").exists() is writes
    assert job.process and job.process.returncode == (143 if writes else -signal.SIGKILL)


def script(folder: Path, text: str) -> str:
    """An interpreter for the job's command that does `text` instead."""
    path = folder / "python"
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def played(monkeypatch, folder: Path, jobs: Path) -> None:
    """Make this process the local job 7 of submitit, and put back at the end what it does to signals."""
    for name, value in (("EXECUTOR", "local"), ("LOCAL_JOB_ID", "7"), ("FOLDER", str(jobs))):
        monkeypatch.setenv(f"SUBMITIT_{name}", value)
    jobs.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)


@pytest.fixture
def signals():
    """A job and submitit take signals over, which would outlive the test."""
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def notes(folder: Path) -> list[tuple[str, str]]:
    """What a job has noted, and why."""
    lines = map(json.loads, (folder / "job.jsonl").read_text().splitlines())
    return [(line["event"], line.get("how") or line.get("why") or "") for line in lines]


def listening(job: RunJob, jobs: Path, *, minutes: int, requeues: int) -> DelayedSubmission:
    """The job as submitit runs it: told to stop, it is requeued or has been told so too often."""
    delayed = DelayedSubmission(job)
    delayed.set_timeout(minutes, requeues)
    environment = JobEnvironment()
    environment.paths.submitted_pickle.parent.mkdir(parents=True, exist_ok=True)
    environment._handle_signals(environment.paths, delayed)
    return delayed


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("start", "ends", "noted"),
    [
        (5, SystemExit, ("requeued", "the run had saved and stopped")),
        (6, JobError, ("failed", "the run had saved and stopped, and a local job is started 6 times at most")),
    ],
)
def test_the_last_start_of_a_local_job_ends_in_words(project, monkeypatch, start, ends, noted):
    folder, jobs = project / "x", project / "jobs"
    played(monkeypatch, folder, jobs)
    text = "trap 'exit 75' USR2\ntouch begun\nwhile :; do sleep 0.05; done"
    monkeypatch.setattr(sys, "executable", script(folder, text))
    job = RunJob(folder, folder, {}, stop_timeout=60.0, start=start)
    delayed = listening(job, jobs, minutes=600, requeues=20)

    def notice() -> None:
        while not (folder / "begun").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR2)

    threading.Thread(target=notice, daemon=True).start()
    with pytest.raises(ends):
        delayed.result()
    event, why = notes(folder)[-1]
    assert event == noted[0] and why.startswith(noted[1])


def test_submitit_starts_a_local_job_as_often_as_is_taken_for_granted():
    from submitit.local.local import Controller

    assert inspect.signature(Controller.run).parameters["max_retry"].default == MAX_LOCAL_STARTS


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(
    ("happens", "ends", "noted"),
    [
        ("notice", UncompletedJobError, ("failed", "timed-out too many times")),
        ("cancelled", SystemExit, ("terminated", "")),
        ("no locks", LabError, ("failed", "lies on a file system that gives no locks")),  # not '[Errno 38]'
    ],
)
def test_what_ends_a_job_that_waits_for_its_turn_is_noted(project, monkeypatch, happens, ends, noted):
    folder, jobs = project / "x", project / "jobs"
    played(monkeypatch, folder, jobs)
    delayed = listening(RunJob(folder, folder, {}, stop_timeout=60.0), jobs, minutes=5, requeues=0)

    def flock(handle: int, how: int) -> None:
        if happens == "no locks":
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        os.kill(os.getpid(), signal.SIGUSR2 if happens == "notice" else signal.SIGTERM)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ends):
        delayed.result()
    ((event, why),) = notes(folder)
    assert event == noted[0] and noted[1] in why
