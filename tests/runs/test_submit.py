"""Jobs: what is asked of SLURM, what is refused before it is asked, and a job that is told to stop and goes on.

SLURM itself is played by four scripts; that its own `sbatch` understands the same is not tested here.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import pytest

from labkit import files
from labkit.cli import main
from labkit.errors import LabError, Stopped
from labkit.params import Params
from labkit.runs.run import STAGES, Run
from labkit.runs.slurm_job import read_job, record_event
from labkit.runs.status import read_status, status_text
from labkit.runs.submit import minutes, sweep
from labkit.stages.distributed.preemption import (
    STOP_FILE_VARIABLE,
    handle_preemption,
    stop_between_parts,
    stop_requested,
)

pytest.importorskip("submitit")
ROOT = Path(__file__).parents[2]
CELL = """
from labkit.params import Params
from labkit.runs.run import Run
from labkit.stages.distributed.preemption import stop_between_parts
import pathlib, time
run = Run.open(Params.build({{"run": "x"}}))
run.start("{name}")
{body}
run.finish("{name}", {{}})
"""
# A work that is kept part by part: it goes on where it stopped, and says how often it began.
PARTS = """
with (run.path / "begun").open("a") as file:
    file.write("b")
while len(list(run.path.glob("part-*"))) < 3:
    stop_between_parts(lambda: (run.path / f"part-{time.time()}").touch())()
    while len((run.path / "begun").read_text()) < 2:
        stop_between_parts(lambda: time.sleep(0.05))()
"""


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of stand-in notebooks that take no time, the second but for its parts."""
    for folder in ("notebooks", "params", "bin"):
        (tmp_path / folder).mkdir()
    for name in STAGES:
        cell = nbformat.v4.new_code_cell(CELL.format(name=name, body=PARTS if name == "02_distill" else ""))
        parameters = nbformat.v4.new_code_cell("", metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=[parameters, cell], metadata={"kernelspec": kernel})
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "params/p.yaml").write_text("run: x\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # the job's working directory is the project of stand-ins
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setattr(files, "_locks", {})
    return tmp_path


def command(project: Path, name: str, script: str) -> None:
    """A command on PATH that stands in for one of SLURM's."""
    path = project / "bin" / name
    path.write_text(f"#!/bin/bash\ncd {project}\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(project) -> Path:
    """SLURM of one node and one job, number 4242: `sbatch` starts the script, `scontrol requeue` starts it again."""
    start = "setsid env SLURM_JOB_ID=4242 SLURM_PROCID=0 bash batch.sh >> job.out 2>&1 & echo $! > batch.pid"
    command(project, "sbatch", f"cp -L $1 batch.sh; echo Submitted batch job 4242; [ -e held ] || {{ {start}; }}")
    command(project, "srun", "echo no step belongs here >> job.out; exit 1")
    command(project, "scontrol", f'[ "$1 $2" = "requeue 4242" ] && {start}')
    command(project, "squeue", "[ -e held ] && echo PENDING || (kill -0 $(cat batch.pid) 2>&- && echo RUNNING)")
    command(project, "sacct", "echo 'COMPLETED'")
    return project


SHARED = ("-p", "prompts_per_step", "48", "-p", "sft_batch", "48")
"""Queries and traces that 16 processes can share."""


def submitted(project: Path, *options: str) -> str:
    """The text of the script that SLURM is given."""
    (project / "held").touch()
    assert main(["submit", "params/p.yaml", *options]) == 0
    return (project / "batch.sh").read_text()


# --- what is asked


def test_slurm_is_asked_for_one_job_that_is_told_before_its_end_and_may_be_requeued(slurm):
    script = submitted(
        slurm, "--partition", "gpu", "--gpus", "8", "--nodes", "2", "--time", "12:00:00", "--cpus", "6",
        "--memory", "400", *SHARED, "--account", "vision", "--qos", "long", "--slurm", "constraint=h100", "--notice", "600",
    )  # fmt: skip
    for line in (
        "partition=gpu", "nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=6", "mem=409600MB", "time=720",
        "account=vision", "qos=long", "constraint=h100", "signal=B:USR2@600", "requeue", "open-mode=append", "job-name=x",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script, line
    last = script.strip().splitlines()[-1]
    assert last.startswith("exec ") and "submitit.core._submit" in last and "srun" not in last
    assert (
        Run.open(Params.build({"run": "x", "processes": 16, "prompts_per_step": 48, "sft_batch": 48})).params.processes
        == 16
    )


@pytest.mark.parametrize(
    ("in_file", "options", "processes", "said"),
    [
        ("", (), 1, "no GPU, 1 process;"),  # as the parameters say
        ("processes: 2", (), 2, "no GPU, 2 processes;"),
        ("", ("--gpus", "1"), 1, "1 x 1 GPUs, 1 process;"),
        ("", ("--gpus", "4", "--nodes", "2"), 8, "2 x 4 GPUs, 8 processes;"),  # one for each GPU
        (
            "processes: 8",
            ("--gpus", "8", "--nodes", "2"),
            16,
            "16 processes;",
        ),  # all GPUs work, not as many as the file has
        ("processes: 1", ("--gpus", "4"), 4, "4 processes;"),
        ("processes: 8", ("--gpus", "4"), 4, "4 processes;"),  # the file is for a larger machine
        ("processes: 5", ("--gpus", "4"), 4, "4 processes;"),  # 5 could not share 48, and nobody asks them to
        ("", ("--gpus", "4", "-p", "processes", "2"), 2, "2 processes;"),  # who submits knows better
        ("", ("--gpus", "4", "-p", "processes", "0"), 0, "a process for each GPU;"),
        ("", ("--gpus", "4", "-p", "processes", "6", "-p", "device", "cpu"), 6, "6 processes;"),  # they need no GPU
    ],
)
def test_processes_are_the_gpus_that_were_asked_for(slurm, capsys, in_file, options, processes, said):
    (slurm / "params/p.yaml").write_text(f"run: x\n{in_file}\n")
    submitted(slurm, *options, *SHARED)
    assert f"processes: {processes}\n" in (slurm / "outputs/x/params.yaml").read_text()
    assert said in capsys.readouterr().out


def test_a_sweep_is_one_job_array_of_runs_with_names_of_their_own(slurm, capsys):
    script = submitted(slurm, "--sweep", "seed=0,1", "--sweep", "learning_rate=1e-4,2e-4")
    assert "#SBATCH --array=0-3%4\n" in script
    names = [path.name for path in sorted((slurm / "outputs").glob("x-*"))]
    assert names == [f"x-seed{seed}-learning_rate{rate}" for seed in (0, 1) for rate in ("1e-4", "2e-4")]
    for number, name in enumerate(names):
        job = read_job(slurm / "outputs" / name)
        assert job is not None
        assert (job.id, job.cluster, job.event, job.state) == (f"4242_{number}", "slurm", "submitted", "PENDING")
    assert main(["status", "outputs"]) == 0
    assert capsys.readouterr().out.count("slurm job 4242_") == 8  # four when submitted, four in the table


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 90),
        ("0:30", 1),  # half a minute is rounded up
        ("2:00", 2),  # minutes and seconds
        ("12:00:00", 720),
        ("1-0", 1440),
        ("1-12:30", 2190),
        ("2-00:00:01", 2881),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time, expected):
    assert minutes(time) == expected


@pytest.mark.parametrize("time", ["", "0", "0:00", "soon", "1:2:3:4", "-5", "12h"])
def test_what_is_no_time_limit_is_refused(time):
    with pytest.raises(LabError, match="is no time limit; write it as SLURM does"):
        minutes(time)


def test_names_of_a_sweep_can_name_directories():
    assert [each["run"] for each in sweep("x", ["model=a/b,c"])] == ["x-modela_b", "x-modelc"]


# --- what is refused


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sweep", "seed"), "'seed' must be a parameter and its values"),
        (("--sweep", "seed=1,"), "'seed=1,' must be"),
        (("--sweep", "run=a,b"), "'run' names the runs itself"),
        (("--sweep", "seed=1", "--sweep", "seed=2"), "'seed' is given twice"),
        (("--sweep", "seed=1,1"), "two runs would be called x-seed1"),
        (("--sweep", "sed=1,2"), "did you mean 'seed'"),
        (("--sweep", "group_size=8,1"), "group_size: 1 is out of range"),
        (("--time", "soon"), "'soon' is no time limit"),
        (("--time", "5"), "notice: 300 s is not less than the time limit"),
        (("--nodes", "0"), "nodes and notice must be at least 1"),
        (("--slurm", "exclusive"), "'exclusive' must be an option of sbatch and its value"),
        (("--local", "--nodes", "2"), "--local has one"),
        (("-p", "model", "./nowhere"), "is not a directory"),
        (("--gpus", "4", "-p", "processes", "6"), "processes: 6 are more than the GPUs that are asked for, 1 x 4"),
        (("--gpus", "4", "--sweep", "processes=2,6"), "processes: 6 are more than the GPUs"),
        (("--gpus", "4", "--nodes", "2", "-p", "processes", "3"), "3 cannot be spread evenly over 2 nodes"),
        (("--gpus", "5"), "12 is no multiple of processes (5)"),
        (
            ("--gpus", "5"),
            "5 GPUs mean 5 processes; change what they share, or give -p processes N",
        ),  # where 5 comes from
    ],
)
def test_what_cannot_run_is_one_message_and_nothing_is_made(slurm, capsys, options, says):
    assert main(["submit", "params/p.yaml", *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("labkit: ") and says in captured.err
    assert not (slurm / "outputs").exists() and not (slurm / "batch.sh").exists()


def test_without_slurm_the_way_out_is_named(project, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", "params/p.yaml"]) == 2
    assert "there is no sbatch on PATH: submit where SLURM's commands are, or use --local" in capsys.readouterr().err


def test_without_submitit_the_installation_is_named(project, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main(["submit", "params/p.yaml", "--local"]) == 2
    told = capsys.readouterr().err
    assert "pip install submitit" in told and "labkit[slurm]" not in told  # labkit is not on PyPI


def test_a_job_that_slurm_refuses_is_its_own_words(slurm, capsys):
    command(slurm, "sbatch", "echo sbatch: error: invalid partition specified: gpuu >&2; exit 1")
    assert main(["submit", "params/p.yaml", "--partition", "gpuu"]) == 2
    assert "invalid partition specified: gpuu" in capsys.readouterr().err
    assert read_job(slurm / "outputs/x") is None


def test_a_run_is_submitted_once_and_not_when_it_is_finished(slurm, capsys):
    submitted(slurm)
    assert main(["submit", "params/p.yaml"]) == 2
    assert "run 'x' is in slurm job 4242; wait, or end it with `scancel 4242`" in capsys.readouterr().err
    run = Run.open(Params.build({"run": "x"}))
    for stage in STAGES:
        run.start(stage)
        run.finish(stage, {})
    record_event(run.path, "finished", job="4242")
    (slurm / "held").unlink()
    assert main(["submit", "params/p.yaml"]) == 2
    captured = capsys.readouterr()
    assert "x is finished, skipped" in captured.out and "nothing to submit" in captured.err


@pytest.mark.parametrize(
    ("hangs", "state", "active"),
    [
        ("squeue", None, True),  # as was noted last
        (
            "sacct",
            "GONE",
            False,
        ),  # squeue, asked first, knows of no such job: it holds no place, whatever became of it
    ],
)
def test_a_command_of_slurm_that_hangs_has_not_answered(slurm, monkeypatch, hangs, state, active):
    submitted(slurm)
    command(slurm, "squeue", "true")
    run = subprocess.run

    def hanging(words, **options):
        if words[0] == hangs:
            raise subprocess.TimeoutExpired(words, options["timeout"])
        return run(words, **options)

    monkeypatch.setattr(subprocess, "run", hanging)
    job = read_job(slurm / "outputs/x")
    assert job is not None and (job.state, job.active) == (state, active)
    assert main(["status", "outputs/x"]) == 0


@pytest.mark.parametrize(
    ("squeue", "sacct", "state", "active"),
    [
        ("echo RUNNING", "exit 1", "RUNNING", True),
        ("true", "echo 'CANCELLED by 1000'", "CANCELLED", False),  # ended a moment ago
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", "echo NODE_FAIL", "NODE_FAIL", False),
        (
            "echo slurm_load_jobs error: Invalid job id specified >&2; exit 1",
            "exit 1",
            "GONE",
            False,
        ),  # no accounts kept
        ("echo Unable to contact slurm controller >&2; exit 1", "exit 1", None, True),  # as was noted last
    ],
)
def test_the_state_of_a_job_is_slurms_word(slurm, squeue, sacct, state, active):
    submitted(slurm)
    command(slurm, "squeue", squeue)
    command(slurm, "sacct", sacct)
    job = read_job(slurm / "outputs/x")
    assert job is not None and (job.state, job.active) == (state, active)


def test_what_only_slurm_heeds_is_said_with_local(project, capsys):
    options = ["--partition", "gpu", "--slurm", "constraint=a100", "-p", "model", "./nowhere"]
    assert main(["submit", "params/p.yaml", "--local", *options]) == 2
    assert "partition, options: only SLURM uses it, --local ignores it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (errno.EWOULDBLOCK, "running"),  # somebody holds it
        (errno.EACCES, "running"),  # the same on some file systems
        (errno.ENOSYS, "broken off"),  # no locks here, so nobody is seen to work
    ],
)
def test_a_stage_runs_where_its_lock_is_held_and_not_where_there_are_no_locks(project, monkeypatch, error, state):
    run = Run.open(Params.build({"run": "x"}))
    run.start(STAGES[0])

    def flock(handle: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert read_status(run.path)["stages"][STAGES[0]]["state"] == state


def test_the_status_of_a_running_stage_shows_its_step_and_none_of_an_earlier_stage(project):
    run = Run.open(Params.build({"run": "x"}))
    step = {"what": "grpo", "done": 12, "total": 150, "left": "12 min 20 s", "note": "reward 1.31"}
    progress = run.path / "progress.json"
    progress.write_text(json.dumps({**step, "time": "2020-01-01T00:00:00+00:00"}))
    run.start(STAGES[0])
    assert read_status(run.path)["stages"][STAGES[0]]["step"] is None, "it is older than the stage"
    progress.write_text(json.dumps({**step, "time": datetime.now(UTC).isoformat(timespec="seconds")}))
    assert step.items() <= read_status(run.path)["stages"][STAGES[0]]["step"].items()
    assert "grpo 12 of 150, 12 min 20 s left; reward 1.31" in status_text(run.path)
    progress.unlink()
    assert read_status(run.path)["stages"][STAGES[0]]["step"] is None, "as in a run of an earlier version"


# --- a job that is told to stop


def told_to_stop(project: Path, cluster: str) -> dict:
    """The status of a run whose job got notice in its second notebook and has ended after that."""
    folder = project / "outputs" / "x"

    def came_to(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300  # seconds as a rule; a machine that others use as well may take minutes
        while not reached():
            record = folder / "job.jsonl"
            if time.monotonic() > deadline or (record.exists() and '"failed"' in record.read_text()):
                pytest.fail("\n".join(path.read_text() for path in (project / "outputs/jobs").rglob("*.out")))
            time.sleep(0.05)

    came_to((folder / "begun").exists)
    job = read_job(folder)
    assert job is not None and job.active and (job.cluster, job.event, job.state) == (cluster, "started", "RUNNING")
    status = read_status(folder)
    assert [stage["state"] for stage in status["stages"].values()] == ["finished", "running", "new", "new", "new"]
    os.kill(job.details["process"], signal.SIGUSR2)
    came_to(lambda: '"finished"' in (folder / "job.jsonl").read_text())
    return read_status(folder)


@pytest.mark.slow
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_job_told_to_stop_keeps_its_parts_and_goes_on_when_it_is_requeued(slurm, cluster):
    # In a process of its own, which a local job outlives.
    words = [sys.executable, "-m", "labkit.cli", "submit", "params/p.yaml"]
    subprocess.run([*words, "--local"] if cluster == "local" else words, check=True)
    status = told_to_stop(slurm, cluster)
    assert [stage["state"] for stage in status["stages"].values()] == ["finished"] * 5
    assert status["job"]["attempts"] == 2
    folder = slurm / "outputs" / "x"
    events = [json.loads(line) for line in (folder / "job.jsonl").read_text().splitlines()]
    assert [each["event"] for each in events if each["event"] != "submitted"] == [
        "started", "requeued", "started", "finished",
    ]  # fmt: skip
    assert next(each["how"] for each in events if each["event"] == "requeued") == "the run had saved and stopped"
    assert (folder / "begun").read_text() == "bb" and len(list(folder.glob("part-*"))) == 3
    assert "[2/5] 02_distill stopped as asked" in (folder / "log.txt").read_text()
    assert not list(folder.glob(".stop")), "a notice is not left for the next attempt"


# --- stopping


def test_a_request_reaches_what_listens_and_ends_with_the_block(tmp_path):
    heard = []
    with handle_preemption(tmp_path / ".stop"):
        stop_between_parts(heard.append)(1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop_requested()
        with pytest.raises(Stopped):
            stop_between_parts(heard.append)(2)
    assert heard == [1, 2], "the part that was done is told"
    assert not stop_requested() and STOP_FILE_VARIABLE not in os.environ and not list(tmp_path.iterdir())


def test_a_request_that_an_earlier_attempt_left_is_forgotten(tmp_path):
    (tmp_path / ".stop").touch()
    with handle_preemption(tmp_path / ".stop"):
        assert not stop_requested()
