"""Submitting a run, or a sweep of runs, to SLURM or to this machine, as one job each for all five notebooks.

Everything that can be wrong is checked here, while somebody is looking. On SLURM the job is the batch script itself, on
the first node: there the notebooks run, and only training spreads to the other nodes, by steps of its own. So the notice
before the end goes to the script alone (`--signal=B:`), and what it asks to stop saves before it stops.
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
from labkit.runs.project import notebooks_of
from labkit.runs.run import STAGES, Run
from labkit.runs.slurm_job import RunJob, read_job, record_event

SLURM_ONLY = ("cpus", "memory", "partition", "account", "qos", "options")
"""Resources that mean nothing on this machine."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What each job asks the scheduler for."""

    time: str = "24:00:00"
    """Time limit in SLURM's forms; a job that reaches it goes on in a new place in the queue. The jobs of a
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
    """Seconds before the time limit at which a job is told: at least one step of training and the saving of it."""
    requeues: int = 20
    """How often a job may reach its time limit; a local one five times at most."""


def minutes(time: str) -> int:
    """A time limit as SLURM writes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S), in minutes, rounded up.

    >>> minutes("90"), minutes("12:00:00"), minutes("1-12"), minutes("0:30")
    (90, 720, 2160, 1)

    Raises:
        LabError: it is none of these, or nothing.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time.strip())
    seconds = 0
    if found:
        days, *rest = found.groups()
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
        values = [value.strip() for value in listed.split(",")]
        if not parameter or not all(values):
            raise LabError(f"sweep: '{text}' must be a parameter and its values, such as seed=0,1,2")
        if parameter == "run" or parameter in axes:
            raise LabError(
                f"sweep: '{parameter}' " + ("names the runs itself" if parameter == "run" else "stands twice")
            )
        axes[parameter] = values
    found = []
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        ending = "".join(f"-{parameter}{value}" for parameter, value in chosen.items())
        found.append({**chosen, "run": name + re.sub(r"[^A-Za-z0-9._-]+", "_", ending)})
    names = [each["run"] for each in found]
    if twice := sorted({each for each in names if names.count(each) > 1}):
        raise LabError(f"sweep: two runs would be called {', '.join(twice)}; give each value once")
    return found


def submit(
    params_file: str | Path,
    overrides: Mapping[str, str],
    resources: Resources,
    sweeps: Sequence[str] = (),
    *,
    local: bool = False,
    say: Callable[[str], None],
) -> list[str]:
    """Submit the runs and return the ids of their jobs; what is finished already is said and left out.

    Several runs are one job array. `processes` becomes the number of GPUs, whatever the file says, unless `overrides` or
    a sweep gives it.

    Raises:
        LabError: anything that would keep a run from starting, or a run of these has a job already.
    """
    executor_class = _executor_class(resources, local)
    environment = _gpus_in_sight(resources.gpus) if local else {}
    if local and (idle := [name for name in SLURM_ONLY if getattr(resources, name)]):
        say(f"{', '.join(idle)}: only SLURM heeds it, --local does not")
    name = read_params(params_file, {**overrides, "processes": "1"}).run
    variants = sweep(name, sweeps)
    chosen = [_chosen(params_file, {**overrides, **variant}, resources) for variant in variants]
    runs = [Run.open(params, check=notebooks_of) for params in chosen]
    waiting = []
    for run in runs:
        if (job := read_job(run.path)) and job.active:
            end = f"kill {job.id}" if job.cluster == "local" else f"scancel {job.id}"
            raise LabError(f"run '{run.params.run}' is in {job.cluster} job {job.id}; wait, or end it with `{end}`")
        if run.finished(STAGES[-1]):
            say(f"{run.params.run} is finished, skipped")
        else:
            waiting.append(run)
    if not waiting:
        raise LabError("there is nothing to submit; `labkit results` shows the figures of a finished run")
    jobs = [
        RunJob(
            run.path, run.root, patience=0.8 * resources.notice,
            # A run that exists may have been written with others of these.
            overrides={"outputs": run.params.outputs, "processes": str(run.params.processes)},
            environment=environment,
        )
        for run in waiting
    ]  # fmt: skip
    executor = executor_class(runs[0].path.parent / "jobs" / name, len(jobs))
    try:
        with _detached() if local else contextlib.nullcontext():
            submitted = executor.submit_array(jobs)
    except Exception as error:
        if type(error).__module__.startswith("submitit"):
            raise LabError(f"the scheduler did not take the job: {error}") from None
        raise
    cluster = "local" if local else "slurm"
    for run, job in zip(waiting, submitted, strict=True):
        size = f"{resources.nodes} x {resources.gpus} GPUs" if resources.gpus else _without_gpus(run.params, local)
        log = str(job.paths.stdout)
        record_event(run.path, "submitted", job=job.job_id, cluster=cluster, log=log, host=socket.gethostname())
        work = f"{cluster} job {job.job_id}, {size}, {_processes_text(run.params.processes)}"
        say(f"{run.params.run}: {work}; labkit status {_shown(run)}")
    return [job.job_id for job in submitted]


def _chosen(params_file: str | Path, changes: Mapping[str, str], resources: Resources) -> Params:
    """The parameters of one run, a process for each GPU unless `changes` says otherwise.

    The number in the file is not heeded where GPUs are asked for: it suits whoever wrote the file. Raises LabError when
    parameters are wrong, or the processes do not fit the GPUs and nodes.
    """
    gpus, nodes = resources.gpus * resources.nodes, resources.nodes
    read_params(params_file, {**changes, "processes": "1"})  # what is wrong with any number of them is said first
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


def _gpus_in_sight(count: int) -> dict[str, str | None]:
    """What a local job has to change so that it sees `count` of the GPUs that are in sight here, or all of them for 0.

    submitit numbers GPUs from 0 whatever this process may see, and hides all where none is asked for. Raises LabError
    when fewer are in sight than are asked for.
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
    """What is started within the block does not inherit this process's streams.

    submitit lets a local job keep them, and `labkit submit --local | tail` would wait for the end of the run.
    """
    silence = os.open(os.devnull, os.O_RDWR)
    kept = {}
    for number in (0, 1, 2):
        with contextlib.suppress(OSError):  # it is closed already
            kept[number] = os.dup(number)
        os.dup2(silence, number)
    try:
        yield
    finally:
        for number in (0, 1, 2):
            if number in kept:
                os.dup2(kept[number], number)
                os.close(kept[number])
            else:
                os.close(number)
        os.close(silence)


def _without_gpus(params: Params, local: bool) -> str:
    """What a job that asks for no GPU finds, in words."""
    if not local or params.device == "cpu":
        return "no GPU"
    import torch

    count = torch.cuda.device_count()
    return f"the {count} GPU{'s' * (count > 1)} of this machine" if count else "no GPU (this machine shows none)"


def _executor_class(resources: Resources, local: bool) -> Callable[[Path, int], Any]:
    """What makes the executor once its folder and how many jobs it gets are known.

    Raises LabError when this machine cannot submit so.
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
        # Without `exec`, bash would be the one to hear the signal.
        executor = submitit.SlurmExecutor(
            folder, max_num_timeout=resources.requeues, python="exec " + shlex.quote(sys.executable)
        )
        known = {"partition": resources.partition, "account": resources.account, "qos": resources.qos,
                 "cpus_per_task": resources.cpus, "mem": resources.memory and f"{resources.memory * 1024:.0f}MB",
                 "gpus_per_node": resources.gpus or None}  # fmt: skip
        executor.update_parameters(
            job_name=folder.name, time=limit, nodes=resources.nodes, ntasks_per_node=tasks, use_srun=False,
            stderr_to_stdout=True, signal_delay_s=resources.notice,
            additional_parameters={"signal": f"B:USR2@{resources.notice}", "requeue": True, **resources.options},
            **{name: value for name, value in known.items() if value is not None},
        )  # fmt: skip
        return executor

    return on_slurm


def _processes_text(count: int) -> str:
    """How many processes a run has, in words.

    >>> _processes_text(0), _processes_text(1), _processes_text(8)
    ('a process for each GPU', '1 process', '8 processes')
    """
    return "a process for each GPU" if not count else f"{count} process" + "es" * (count > 1)


def _shown(run: Run) -> str:
    return str(run.path.relative_to(run.root) if run.path.is_relative_to(run.root) else run.path)
