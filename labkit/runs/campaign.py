"""Campaigns: several params files over several seeds, one command, nobody watching.

Every run is a `labkit run` of its own, so that none takes another down with it. What is finished is skipped, what was killed goes on,
a run that fails is named at the end and holds up only those that count their steps from it (`labkit.runs.budget`). Everything that
can be wrong with the parameters is said before any work.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from labkit.errors import LabError, Stopped
from labkit.files import locked, project_root, under
from labkit.params import Params, read_params, read_yaml
from labkit.progress import duration, now, tail
from labkit.runs.budget import COUNTED, as_counted, named_run, other_training
from labkit.runs.notebooks import notebooks_of
from labkit.runs.own_terms import OwnTerms, with_cells
from labkit.runs.run import STAGES, changed_texts, check_inputs, differing, read_manifest
from labkit.runs.slurm_job import SHUTDOWN_GRACE
from labkit.runs.submit import minutes
from labkit.stages.distributed.preemption import handle_preemption, stop_requested

LOGS = "campaign"
"""Folder in `outputs` with what each run printed."""
ATTEMPT = "--- labkit campaign: "
"""Begins the line of a log before what an attempt printed."""
POLL_SECONDS = 0.5


class Planned(NamedTuple):
    """A run of a campaign."""

    file: Path
    params: Params
    folder: Path
    overrides: dict[str, str]
    needs: tuple[Path, ...]
    """Folders of the runs that it counts its steps from; none once it is there, with its numbers in params.yaml."""

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether all of its stages have ended, and the last showed what `compare` names now."""
        if not (self.folder / "manifest.json").is_file():
            return False
        ended = read_manifest(self.folder)["stages"].get(STAGES[-1], {}).get("state") == "finished"
        return ended and read_yaml(self.folder / "params.yaml").get("compare", []) == list(self.params.compare)

    @property
    def log(self) -> Path:
        """What it printed, in all attempts."""
        return self.folder.parent / LOGS / f"{self.folder.name}.log"

    def command(self) -> list[str]:
        """The command line of the run."""
        overrides = [word for name, value in self.overrides.items() for word in ("-p", name, value)]
        return [sys.executable, "-m", "labkit", "run", str(self.file), *overrides]


@dataclass
class CampaignResult:
    """How the runs ended, by name."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """With what went wrong, in a line."""


def plan(files: Sequence[str | Path], seeds: Sequence[int], overrides: Mapping[str, str]) -> list[Planned]:
    """All runs in an order in which each comes behind those that it counts its steps from; of one seed all, then the next.

    `files` may be a folder, whose params files are all taken. `overrides` are for all, but numbers of steps only for those that do
    not count theirs from another run. Raises LabError where a file or a parameter is wrong, two files name one run, a run exists with
    other parameters or own texts, or counts from one that is neither there nor in the campaign, or cannot be its pace.
    """
    root = project_root()
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise LabError(f"seeds: {', '.join(map(str, twice))} is given twice; give each seed once")
    if named := [name for name in ("run", "seed") if name in overrides]:
        raise LabError(
            f"{named[0]}: a campaign gives it to each run itself; use --seeds, or `run` in the params files"
        )
    runs, own = dict[str, Planned](), dict[Path, OwnTerms]()
    for seed in seeds:
        for file in _params_files(files):
            given = dict(overrides)
            if read_params(file, given).budget_of:
                given = {name: value for name, value in given.items() if name not in COUNTED}
            changes = {**given, "run": f"{read_params(file, given).run}-seed{seed}", "seed": str(seed)}
            params = read_params(file, changes)
            if file not in own:  # no seed changes what it finds
                own[file] = check_inputs(params, root)
            run = _planned(file, params, changes, root, own[file])
            if (same := runs.setdefault(run.name, run)) is not run:
                raise LabError(
                    f"'{same.file}' and '{file}' both make the run {run.name}; give each a `run` of its own"
                )
    folders = {run.folder: run for run in runs.values()}
    for run in runs.values():
        for need in run.needs:
            if need not in folders and not (need / "manifest.json").is_file():
                raise LabError(
                    f"{run.name} counts its steps from run '{need}', which is neither there nor in this campaign; "
                    "give its params file too"
                )
        twin = folders.get(named_run(run.params.pace_of, run.params, root)) if run.params.pace_of else None
        if twin and run.needs and (names := other_training(run.params, twin.params.as_dict())):
            raise LabError(f"{run.name}: pace_of names {twin.name}, which has other parameters: {', '.join(names)}")
    return _in_order(list(runs.values()))


def _planned(file: Path, params: Params, changes: dict[str, str], root: Path, own: OwnTerms) -> Planned:
    """A run; raises LabError where something is wrong with its parameters, or its folder is a run of others."""
    folder = under(root, params.outputs) / params.run
    if (folder / "manifest.json").is_file():
        written = read_yaml(folder / "params.yaml")
        names = differing(folder / "params.yaml", as_counted(with_cells(params, written), written))
        if names := names + [f"text of {name}" for name in changed_texts(folder, own)]:
            raise LabError(
                f"'{folder}' is a run of other parameters ({', '.join(names)}); choose other `outputs`, or delete it"
            )
        return Planned(file, params, folder, changes, ())
    if params.budget_of and (given := [name for name in COUNTED if name in params.changed()]):
        raise LabError(f"{file}: {', '.join(given)} is given, and budget_of computes it; leave it out")
    needs = tuple(named_run(each, params, root) for each in (params.budget_of, params.pace_of) if each)
    return Planned(file, params, folder, changes, needs)


def run_campaign(
    files: Sequence[str | Path],
    seeds: Sequence[int],
    overrides: Mapping[str, str],
    *,
    jobs: int = 1,
    time_limit: str = "24:00:00",
    say: Callable[[str], None],
) -> CampaignResult:
    """Make all runs of `plan`, `jobs` of them at a time; called again, it goes on where it was.

    A run that takes longer than `time_limit`, in SLURM's form, is ended and counts as failed; so does one that needs a failed one.
    Raises Stopped where SIGUSR2 asked the campaign to stop: its runs then have saved where they are.
    """
    limit = 60.0 * minutes(time_limit)
    if jobs < 1:
        raise LabError(f"jobs: {jobs} runs at a time make none; give 1 or more")
    planned = plan(files, seeds, overrides)
    notebooks_of(project_root())
    logs = sorted({run.log.parent for run in planned})
    with ExitStack() as held:
        for folder in logs:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder / ".lock", "labkit campaign"))
        held.enter_context(handle_preemption(logs[0] / ".stop"))
        return _work(planned, jobs, limit, say)


class _Attempt(NamedTuple):
    run: Planned
    process: subprocess.Popen[bytes]
    since: float


def _work(planned: Sequence[Planned], jobs: int, limit: float, say: Callable[[str], None]) -> CampaignResult:
    result, waiting, running = CampaignResult(), list(planned), list[_Attempt]()
    stopping = False

    def tell(run: Planned, what: str) -> None:
        say(f"[{planned.index(run) + 1}/{len(planned)}] {run.name} {what}")

    def fail(run: Planned, why: str) -> None:
        result.failed[run.name] = why
        tell(run, f"failed: {why}")

    try:
        while running or (waiting and not stop_requested()):
            while len(running) < jobs and not stop_requested() and (run := _next(waiting, running)):
                waiting.remove(run)
                if run.finished:
                    tell(run, "is finished, skipped")
                    result.finished.append(run.name)
                elif lacking := [need.name for need in run.needs if need.name in result.failed]:
                    fail(run, f"it counts its steps from {' and '.join(lacking)}, which failed")
                else:
                    tell(run, "...")
                    running.append(_Attempt(run, _begin(run, jobs), time.monotonic()))
            if stop_requested() and not stopping:
                stopping = True
                for each in running:
                    each.process.send_signal(signal.SIGUSR2)
            time.sleep(POLL_SECONDS if running else 0)
            for each in list(running):
                run, process, took = each.run, each.process, time.monotonic() - each.since
                if (code := process.poll()) is None and took < limit:
                    continue
                running.remove(each)
                if code is None:
                    _end([process])
                    fail(
                        run, f"it was ended at its time limit, {duration(limit)}; the same command goes on from there"
                    )
                elif not code and run.finished:
                    tell(run, f"finished in {duration(took)}")
                    result.finished.append(run.name)
                elif stopping:
                    waiting.append(run)
                else:
                    fail(run, _trouble(run, code))
    finally:
        _end([each.process for each in running])
    if waiting:
        raise Stopped("campaign stopped as asked; the same command goes on from there")
    return result


def _next(waiting: Sequence[Planned], running: Sequence[_Attempt]) -> Planned | None:
    """The first run none of whose needs has yet to end."""
    open_folders = {run.folder for run in waiting} | {each.run.folder for each in running}
    return next((run for run in waiting if open_folders.isdisjoint(run.needs)), None)


def _begin(run: Planned, jobs: int) -> subprocess.Popen[bytes]:
    command = [
        *run.command(),
        *(["-p", "second_process", "false"] if jobs > 1 else []),
    ]  # the other core is another run's
    with run.log.open("ab") as log:
        log.write(f"{ATTEMPT}{now()}\n".encode())
        log.flush()
        return subprocess.Popen(
            command, cwd=project_root(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End runs, which save their partial notebooks; what does not end in time is killed."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SHUTDOWN_GRACE
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        process.kill()
        process.wait()


def _trouble(run: Planned, code: int) -> str:
    """What went wrong, from the last line that says so in what the run's last attempt printed."""
    why = f"it was killed by signal {-code}" if code < 0 else f"exit code {code}"
    for line in reversed(tail(run.log)) if code >= 0 else ():
        if line.startswith(("labkit: ", ATTEMPT)):
            why = line.removeprefix("labkit: ") if line.startswith("labkit: ") else why
            break
    return f"{why} ({run.log})"


def _params_files(files: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for each in map(Path, files):
        inside = sorted(each.glob("[!.]*.y*ml")) if each.is_dir() else [each]
        if not inside:
            raise LabError(f"'{each}' holds no params file; give a folder of *.yaml, or the files themselves")
        found += [path.resolve() for path in inside]
    return list(dict.fromkeys(found))


def _in_order(runs: Sequence[Planned]) -> list[Planned]:
    ordered: list[Planned] = []
    left = list(runs)
    while left:
        open_folders = {each.folder for each in left}
        free = next((each for each in left if not open_folders.intersection(each.needs)), None)
        if free is None:
            raise LabError(f"{left[0].name} counts its steps from a run that counts its own from it; change budget_of")
        ordered.append(free)
        left.remove(free)
    return ordered
