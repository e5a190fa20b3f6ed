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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from labkit.errors import LabError, Stopped
from labkit.files import lock, project_root, under, unlock
from labkit.params import Params, read_params, read_yaml
from labkit.progress import duration
from labkit.runs.budget import COUNTED, as_counted, named_run
from labkit.runs.log import tail
from labkit.runs.project import notebooks_of
from labkit.runs.run import STAGES, check_inputs, differing, read_manifest
from labkit.runs.slurm_job import SHUTDOWN_GRACE
from labkit.runs.submit import minutes, sweep
from labkit.stages.distributed.preemption import handle_preemption, stop_requested

LOGS = "campaign"
"""Folder in `outputs` with what each run printed."""
POLL_SECONDS = 0.5


class Planned(NamedTuple):
    """A run of a campaign."""

    file: Path
    params: Params
    folder: Path
    overrides: dict[str, str]
    needs: tuple[Path, ...]
    """Folders of the runs that it counts its steps from."""

    @property
    def finished(self) -> bool:
        """Whether all of its stages have ended."""
        return (self.folder / "manifest.json").is_file() and _state(self.folder) == "finished"

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
    not count theirs from another run. Raises LabError where a file or a parameter is wrong, two files name
    one run, a run exists with other parameters, or counts from one that is neither there nor in the campaign.
    """
    root = project_root()
    runs: list[Planned] = []
    for variant in sweep("", ["seed=" + ",".join(map(str, seeds))]):
        for file in _params_files(files):
            given = dict(overrides)
            if read_params(file, given).budget_of:
                given = {name: value for name, value in given.items() if name not in COUNTED}
            name = read_params(file, given).run + variant["run"]
            changes = {**given, "run": name, "seed": variant["seed"]}
            params = read_params(file, changes)
            if params.seed == seeds[0]:
                check_inputs(params, root)
            folder = under(root, params.outputs) / name
            needs = tuple(named_run(each, params, root) for each in (params.budget_of, params.pace_of) if each)
            runs.append(Planned(file, params, folder, changes, needs))
            _refuse_other_run(runs[-1])
    folders = [each.folder for each in runs]
    if twice := sorted({folder.name for folder in folders if folders.count(folder) > 1}):
        raise LabError(
            f"two params files, or a seed twice, make the run {', '.join(twice)}; give each a `run` of its own"
        )
    for each in runs:
        for need in each.needs:
            if need not in folders and not (need / "manifest.json").is_file():
                raise LabError(
                    f"{each.folder.name} counts its steps from run '{need}', which is neither there nor in this campaign; "
                    "give its params file too"
                )
    return _in_order(runs)


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
    outputs = planned[0].folder.parent
    (outputs / LOGS).mkdir(parents=True, exist_ok=True)
    lock(outputs / LOGS / ".lock", "labkit campaign")
    try:
        with handle_preemption(outputs / LOGS / ".stop"):
            return _work(planned, jobs, limit, say)
    finally:
        unlock(outputs / LOGS / ".lock")


def _work(planned: Sequence[Planned], jobs: int, limit: float, say: Callable[[str], None]) -> CampaignResult:
    result, running = CampaignResult(), dict[str, tuple[Planned, subprocess.Popen[bytes], float]]()
    numbers = {each.folder.name: f"[{number}/{len(planned)}]" for number, each in enumerate(planned, 1)}
    waiting = list(planned)

    def fail(run: Planned, why: str) -> None:
        result.failed[run.folder.name] = why
        say(f"{numbers[run.folder.name]} {run.folder.name} failed: {why}")

    try:
        while waiting or running:
            for run in list(waiting):
                name = run.folder.name
                if run.finished:
                    say(f"{numbers[name]} {name} is finished, skipped")
                    result.finished.append(name)
                elif lacking := [need.name for need in run.needs if need.name in result.failed]:
                    fail(run, f"it counts its steps from {' and '.join(lacking)}, which failed")
                elif len(running) < jobs and not stop_requested() and not _pending(run, waiting, running):
                    say(f"{numbers[name]} {name} ...")
                    running[name] = (run, _begin(run), time.monotonic())
                else:
                    continue
                waiting.remove(run)
            if stop_requested():
                for _, process, _ in running.values():
                    process.send_signal(signal.SIGUSR2)
                for _, process, _ in running.values():
                    process.wait()
                raise Stopped("campaign stopped as asked; the same command goes on from there")
            time.sleep(POLL_SECONDS if running else 0)
            for name, (run, process, since) in list(running.items()):
                took = time.monotonic() - since
                if process.poll() is None and took < limit:
                    continue
                del running[name]
                if process.poll() is None:
                    _end([process])
                    fail(
                        run, f"it was ended at its time limit, {duration(limit)}; the same command goes on from there"
                    )
                elif process.returncode or not run.finished:
                    fail(run, _trouble(run, process.returncode))
                else:
                    say(f"{numbers[name]} {name} finished in {duration(took)}")
                    result.finished.append(name)
    finally:
        _end([process for _, process, _ in running.values()])
    return result


def _pending(run: Planned, waiting: Sequence[Planned], running: Mapping[str, object]) -> bool:
    """Whether a run that this one counts its steps from has yet to end."""
    return any(each.folder in run.needs for each in waiting) or any(need.name in running for need in run.needs)


def _begin(run: Planned) -> subprocess.Popen[bytes]:
    with run.log.open("ab") as log:
        return subprocess.Popen(
            run.command(), cwd=project_root(), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
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
    """What went wrong, from the last line that says so in the run's log."""
    lines = [line for line in tail(run.log, 40) if line.startswith("labkit: ")]
    how = f"it was killed by signal {-code}" if code < 0 else f"exit code {code}"
    said = lines[-1].removeprefix("labkit: ") if lines and code >= 0 else how
    return f"{said} ({run.log})"


def _params_files(files: Sequence[str | Path]) -> list[Path]:
    found: list[Path] = []
    for each in map(Path, files):
        inside = sorted(each.glob("[!.]*.yaml")) if each.is_dir() else [each]
        if not inside:
            raise LabError(f"'{each}' holds no params file; give a folder of *.yaml, or the files themselves")
        found += [path.resolve() for path in inside]
    return list(dict.fromkeys(found))


def _refuse_other_run(run: Planned) -> None:
    written = run.folder / "params.yaml"
    if not (run.folder / "manifest.json").is_file() or not written.is_file():
        return
    if names := differing(written, as_counted(run.params, read_yaml(written))):
        raise LabError(
            f"'{run.folder}' is a run of other parameters ({', '.join(names)}); choose other `outputs`, or delete it"
        )


def _state(folder: Path) -> str:
    return str(read_manifest(folder)["stages"].get(STAGES[-1], {}).get("state", "new"))


def _in_order(runs: Sequence[Planned]) -> list[Planned]:
    ordered: list[Planned] = []
    left = list(runs)
    while left:
        open_folders = {each.folder for each in left}
        free = next((each for each in left if not open_folders.intersection(each.needs)), None)
        if free is None:
            raise LabError(
                f"{left[0].folder.name} counts its steps from a run that counts its own from it; change budget_of"
            )
        ordered.append(free)
        left.remove(free)
    return ordered
