"""Submitting a run, or a sweep of runs, to SLURM or to this machine, as one job each for all five notebooks.

Everything that can be wrong is checked here, while somebody is looking. On SLURM the job is the batch script itself, on
the first node: there the notebooks run, and only training spreads to the other nodes, by steps of its own. So the notice
before the end goes to the script alone (`--signal=B:`), and the run that it asks to stop saves a checkpoint first.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.params import Params, read_params
from labkit.runs.notebooks import notebooks_of
from labkit.runs.run import STAGES, Run
from labkit.runs.slurm_job import RunJob, read_job, record_event

SLURM_ONLY = ("cpus", "memory", "partition", "account", "qos", "options")
"""Resources that mean nothing on this machine."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Resources that each job requests from the scheduler."""

    time: str = "24:00:00"
    """Time limit in SLURM's forms; a job that reaches it is requeued and resumes. The jobs of a
    local sweep take turns and share the sum of their limits."""
    nodes: int = 1
    gpus: int = 0
    """GPUs of each node; with --local and 0, the job sees what this machine shows."""
    cpus: int | None = None
    """CPU cores for each GPU, or for each node when there is none; None leaves it to the cluster."""
    memory: float | None = None
    """GB of each node; None leaves it to the cluster."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    """Any other option of sbatch, by its long name."""
    notice: int = 300
    """Seconds before the time limit at which a job gets the signal to stop: at least one step of training and the saving of it."""
    requeues: int = 20
    """How often a job may reach its time limit; a local one five times at most."""


def minutes(time: str) -> int:
    """A time limit as SLURM writes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S), in minutes, rounded up.

    >>> minutes("90"), minutes("12:00:00"), minutes("1-12"), minutes("0:30")
    (90, 720, 2160, 1)

    Raises:
        LabError: it is none of these, or nothing.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    seconds = 0
    if match:
        days, *rest = match.groups()
        parts = [int(part) for part in rest if part is not None]
        if days is None and len(parts) < 3:
            parts = [0, *parts]  # without days one number is minutes, two are minutes and seconds
        hours, mins, secs = [*parts, 0, 0][:3]
        seconds = int(days or 0) * 86_400 + hours * 3600 + mins * 60 + secs
    if not seconds:
        raise LabError(
            f"time: '{time}' is no time limit; write it as SLURM does: 90 (minutes), 12:00:00 or 2-12:00:00"
        )
    return -(-seconds // 60)


def sweep(name: str, sweeps: Iterable[str]) -> list[dict[str, str]]:
    """The overrides of each run of a sweep, `run` among them; `sweeps` are texts like `seed=0,1,2`, in all combinations.

    >>> sweep("x", ["seed=0,1"])
    [{'seed': '0', 'run': 'x-seed0'}, {'seed': '1', 'run': 'x-seed1'}]
    >>> sweep("x", [])
    [{'run': 'x'}]

    Raises:
        LabError: a text is not of that form, or names a parameter twice, or two runs would have one name.
    """
    axes: dict[str, list[str]] = {}
    for text in sweeps:
        parameter, _, listed = text.partition("=")
        texts = [value.strip() for value in listed.split(",")]
        if not parameter or not all(texts):
            raise LabError(f"sweep: '{text}' must be a parameter and its values, such as seed=0,1,2")
        if parameter == "run" or parameter in axes:
            raise LabError(
                f"sweep: '{parameter}' " + ("names the runs itself" if parameter == "run" else "is given twice")
            )
        axes[parameter] = texts
    variants = []
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values, strict=True))
        ending = "".join(f"-{parameter}{value}" for parameter, value in overrides.items())
        variants.append({**overrides, "run": name + re.sub(r"[^A-Za-z0-9._-]+", "_", ending)})
    names = [each["run"] for each in variants]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise LabError(f"sweep: two runs would be called {', '.join(twice)}; give each value once")
    return variants


def submit(
    params_file: str | Path,
    overrides: Mapping[str, str],
    resources: Resources,
    sweeps: Sequence[str] = (),
    *,
    local: bool = False,
    say: Callable[[str], None],
) -> list[str]:
    """Submit the runs and return the ids of their jobs; finished runs are reported and skipped.

    Several runs are one job array. `processes` becomes the number of GPUs, whatever the file says, unless `overrides` or
    a sweep gives it.

    Raises:
        LabError: anything that would keep a run from starting, or a run of these has a job already.
    """
    make_executor = _executor_factory(resources, local)
    environment = _visible_gpus(resources.gpus) if local else {}
    if local and (ignored := [name for name in SLURM_ONLY if getattr(resources, name)]):
        say(f"{', '.join(ignored)}: only SLURM uses it, --local ignores it")
    name = read_params(params_file, {**overrides, "processes": "1"}).run
    variants = sweep(name, sweeps)
    all_params = [_run_params(params_file, {**overrides, **variant}, resources) for variant in variants]
    runs = [Run.open(params, check=notebooks_of) for params in all_params]
    unfinished = []
    for run in runs:
        if (job := read_job(run.path)) and job.active:
            end = f"kill {job.id}" if job.cluster == "local" else f"scancel {job.id}"
            raise LabError(f"run '{run.params.run}' is in {job.cluster} job {job.id}; wait, or end it with `{end}`")
        if run.finished(STAGES[-1]):
            say(f"{run.params.run} is finished, skipped")
        else:
            unfinished.append(run)
    if not unfinished:
        raise LabError("there is nothing to submit; `labkit results` shows the figures of a finished run")
    jobs = [
        RunJob(
            run.path, run.root, stop_timeout=0.8 * resources.notice,
            # A run that exists may have been written with others of these.
            overrides={"outputs": run.params.outputs, "processes": str(run.params.processes)},
            environment=environment,
        )
        for run in unfinished
    ]  # fmt: skip
    executor = make_executor(runs[0].path.parent / "jobs" / name, len(jobs))
    try:
        with _detached() if local else contextlib.nullcontext():
            submitted = executor.submit_array(jobs)
    except Exception as error:
        if type(error).__module__.startswith("submitit"):
            raise LabError(f"the scheduler did not take the job: {error}") from None
        raise
    cluster = "local" if local else "slurm"
    for run, job in zip(unfinished, submitted, strict=True):
        size = f"{resources.nodes} x {resources.gpus} GPUs" if resources.gpus else _no_gpu_text(run.params, local)
        log = str(job.paths.stdout)
        record_event(run.path, "submitted", job=job.job_id, cluster=cluster, log=log, host=socket.gethostname())
        work = f"{cluster} job {job.job_id}, {size}, {_processes_text(run.params.processes)}"
        say(f"{run.params.run}: {work}; labkit status {_display_path(run)}")
    return [job.job_id for job in submitted]


def _run_params(params_file: str | Path, changes: Mapping[str, str], resources: Resources) -> Params:
    """The parameters of one run, a process for each GPU unless `changes` sets `processes`.

    The number in the file is ignored where GPUs are asked for: it was chosen for another machine. Raises LabError when
    parameters are wrong, or the processes do not fit the GPUs and nodes.
    """
    gpus, nodes = resources.gpus * resources.nodes, resources.nodes
    read_params(params_file, {**changes, "processes": "1"})  # errors that do not depend on it come first
    spread = {"processes": str(gpus)} if gpus and "processes" not in changes else {}
    try:
        params = read_params(params_file, {**changes, **spread})
    except LabError as error:
        if spread:
            raise LabError(
                f"{error}\n{gpus} GPUs mean {gpus} processes; change what they share, or give -p processes N for fewer"
            ) from None
        raise
    count = params.processes
    if count > gpus > 0 and params.device != "cpu":
        raise LabError(
            f"processes: {count} are more than the GPUs that are asked for, {nodes} x {resources.gpus}; "
            f"ask for more of them, or leave `processes` out for {gpus}"
        )
    if count > 1 and count % nodes:
        raise LabError(
            f"processes: {count} cannot be spread evenly over {nodes} nodes; give a multiple of {nodes}, or other --nodes"
        )
    return params


def _visible_gpus(count: int) -> dict[str, str | None]:
    """The CUDA_VISIBLE_DEVICES of a local job that is to see `count` of the GPUs visible here, or all of them for 0.

    submitit numbers GPUs from 0 whatever this process may see, and hides all where none is asked for. Raises LabError
    when fewer are visible than are asked for.
    """
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not count:
        return {"CUDA_VISIBLE_DEVICES": shown}
    if shown is None:
        return {}
    # CUDA reads the list up to the first name that is none.
    names = list(itertools.takewhile(lambda name: name not in ("", "-1"), map(str.strip, shown.split(","))))
    if count > len(names):
        raise LabError(
            f"gpus: {count}, and CUDA_VISIBLE_DEVICES='{shown}' shows {len(names)}; ask for no more, or show more of them"
        )
    return {"CUDA_VISIBLE_DEVICES": ",".join(names[:count])}


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Processes started within the block do not inherit this process's standard streams.

    submitit lets a local job keep them, and `labkit submit --local | tail` would wait for the end of the run.
    """
    devnull = os.open(os.devnull, os.O_RDWR)
    saved = {}
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # it is closed already
            saved[number] = os.dup(number)
        os.dup2(devnull, number)
    try:
        yield
    finally:
        for number in (0, 1, 2):
            if number in saved:
                os.dup2(saved[number], number)
                os.close(saved[number])
            else:
                os.close(number)
        os.close(devnull)


def _no_gpu_text(params: Params, local: bool) -> str:
    """Which GPUs a job sees that asks for none, in words."""
    if not local or params.device == "cpu":
        return "no GPU"
    import torch

    count = torch.cuda.device_count()
    return f"the {count} GPU{'s' * (count > 1)} of this machine" if count else "no GPU (this machine shows none)"


def _executor_factory(resources: Resources, local: bool) -> Callable[[Path, int], Any]:
    """A function that makes the submitit executor from its folder and its number of jobs.

    Raises LabError when this machine cannot submit such jobs.
    """
    limit = minutes(resources.time)
    if min(resources.nodes, resources.gpus + 1, resources.notice, resources.requeues + 1) < 1:
        raise LabError("nodes and notice must be at least 1, gpus and requeues at least 0")
    if limit * 60 <= resources.notice:
        raise LabError(f"notice: {resources.notice} s is not less than the time limit, {limit} min; give less notice")
    try:
        import submitit
    except ImportError:
        raise LabError(
            "jobs need submitit; `pip install submitit`, or `pip install -e '.[slurm]'` in labkit's checkout"
        ) from None
    if local:
        if resources.nodes > 1:
            raise LabError(f"nodes: {resources.nodes}, and --local has one; leave out one of the two")

        def on_this_machine(folder: Path, jobs: int) -> Any:
            executor = submitit.LocalExecutor(folder, max_num_timeout=resources.requeues)
            # They start at once and take turns, so the last has waited for all the others when its own work begins.
            executor.update_parameters(
                timeout_min=limit * jobs, signal_delay_s=resources.notice, stderr_to_stdout=True,
                gpus_per_node=resources.gpus,
            )  # fmt: skip
            return executor

        return on_this_machine
    if missing := [command for command in ("sbatch", "srun") if shutil.which(command) is None]:
        raise LabError(
            f"there is no {missing[0]} on PATH: submit where SLURM's commands are, or use --local for this machine"
        )
    tasks = max(1, resources.gpus)

    def on_slurm(folder: Path, jobs: int) -> Any:
        # Without `exec`, bash would receive the signal.
        executor = submitit.SlurmExecutor(
            folder, max_num_timeout=resources.requeues, python="exec " + shlex.quote(sys.executable)
        )
        options = {"partition": resources.partition, "account": resources.account, "qos": resources.qos,
                 "cpus_per_task": resources.cpus, "mem": resources.memory and f"{resources.memory * 1024:.0f}MB",
                 "gpus_per_node": resources.gpus or None}  # fmt: skip
        executor.update_parameters(
            job_name=folder.name, time=limit, nodes=resources.nodes, ntasks_per_node=tasks, use_srun=False,
            stderr_to_stdout=True, signal_delay_s=resources.notice,
            additional_parameters={"signal": f"B:USR2@{resources.notice}", "requeue": True, **resources.options},
            **{name: value for name, value in options.items() if value is not None},
        )  # fmt: skip
        return executor

    return on_slurm


def _processes_text(count: int) -> str:
    """How many processes a run has, in words.

    >>> _processes_text(0), _processes_text(1), _processes_text(8)
    ('a process for each GPU', '1 process', '8 processes')
    """
    return "a process for each GPU" if not count else f"{count} process" + "es" * (count > 1)


def _display_path(run: Run) -> str:
    return str(run.path.relative_to(run.root) if run.path.is_relative_to(run.root) else run.path)
