"""A job of SLURM or of this machine: `labkit run` of one run, requeued when it is preempted, and the record of its events.

The job is a small process around the command. When the scheduler signals the end, it asks the command to stop, waits until the
newest step is saved, and is requeued. The events that it appends to job.jsonl in the run's directory serve `labkit status`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from labkit.files import no_locks_error, open_lock
from labkit.progress import now

EVENTS_FILE = "job.jsonl"
"""In a run's directory: a line of JSON for each event of its jobs."""
ACTIVE_STATES = (
    "PENDING",
    "CONFIGURING",
    "RUNNING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SUSPENDED",
    "STOPPED",
)
"""States of `squeue` and `sacct` of jobs that run or wait to run."""
MAX_LOCAL_STARTS = 6
"""How often submitit starts a local job; asked to requeue it once more, it drops it silently."""
SHUTDOWN_GRACE = 15.0
"""Seconds that a cancelled command has to write its notebook; SLURM waits for 30 before it kills all."""
SLURM_TIMEOUT = 60.0
"""Seconds that a command of SLURM may take."""


class JobError(RuntimeError):
    """The command of a job failed; its own message stands above in the job's log."""


@dataclass
class RunJob:
    """The callable that submitit submits: it runs the notebooks, and submitit calls `checkpoint` before a requeue."""

    folder: Path
    """The run's directory; its params.yaml is used, not the file that was submitted."""
    root: Path
    """The project, where the command runs."""
    overrides: dict[str, str]
    stop_timeout: float = 240.0
    """Seconds that the run has to stop after the signal; then the job ends whether or not it has."""
    environment: dict[str, str | None] = field(default_factory=dict)
    """Environment variables that are set for the command; None removes one."""
    start: int = 1
    """Number of this start, from 1; starts that only waited for earlier jobs count too."""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    noticed: bool = field(default=False, repr=False)

    def __call__(self) -> None:
        """Run to the end; raises JobError when the command fails."""
        signal.signal(signal.SIGTERM, _on_sigterm)  # submitit ignores it, and nothing could then end a local job
        overrides = [word for name, value in self.overrides.items() for word in ("-p", name, value)]
        command = [sys.executable, "-m", "labkit", "run", str(self.folder / "params.yaml"), *overrides]
        changed = {**os.environ, **self.environment}
        environment = {name: value for name, value in changed.items() if value is not None}
        try:
            _wait_for_earlier_jobs()
            self._record("started", host=socket.gethostname(), process=os.getpid())
            self.process = subprocess.Popen(command, cwd=self.root, env=environment)
            # Not Popen.wait: the notice may come while it holds the lock that `checkpoint` would need.
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
            code = self.process.wait()
            if code:
                raise JobError(f"labkit run ended with exit code {code}")
            self._record("finished")
        except Exception as error:
            self._record("failed", why=str(error))
            raise
        except BaseException:
            if not self.noticed:
                self._record("terminated")
            raise
        finally:
            if self.process is not None:
                self._terminate()

    def _terminate(self) -> None:
        """End the command where it has not ended; it saves its partial notebook, unless `stop_timeout` has passed."""
        assert self.process is not None
        if not self.noticed:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(SHUTDOWN_GRACE)
        self.process.kill()
        self.process.wait()

    def checkpoint(self) -> Any:
        """Have the run save and stop, and return the job that goes on; submitit calls this in its signal handler.

        Raises JobError, which ends the job, where submitit would not start it again.
        """
        from submitit import JobEnvironment
        from submitit.helpers import DelayedSubmission

        how = "it was waiting for earlier jobs of the sweep"
        self.noticed = True
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # SLURM sends it to a job that it is about to requeue
        if self.process is not None:
            self.process.send_signal(signal.SIGUSR2)
            deadline = time.monotonic() + self.stop_timeout
            while (ended := _exit_status(self.process.pid)) is None and time.monotonic() < deadline:
                time.sleep(0.2)
            how = {
                None: f"the run did not stop in {self.stop_timeout:g} s",
                os.EX_TEMPFAIL: "the run had saved and stopped",
            }.get(ended, f"the run had ended with exit code {ended}")
        if self.start >= MAX_LOCAL_STARTS and JobEnvironment().cluster == "local":
            raise JobError(
                f"{how}, and a local job is started {self.start} times at most; submit it again with more --time"
            )
        if self.process is not None:
            self._record("requeued", how=how)
        return DelayedSubmission(dataclasses.replace(self, process=None, noticed=False, start=self.start + 1))

    def _record(self, event: str, **details: Any) -> None:
        from submitit import JobEnvironment

        record_event(self.folder, event, job=JobEnvironment().job_id, **details)


def _wait_for_earlier_jobs() -> None:
    """On one machine the jobs of a sweep run one after another; the lock is released when this process ends.

    Raises LabError where the file system gives no locks.
    """
    import fcntl

    from submitit import JobEnvironment

    environment = JobEnvironment()
    if environment.cluster == "local":
        lock_file = environment.paths.folder / ".turn"
        handle = open_lock(lock_file)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise no_locks_error(lock_file, error) from None


def _on_sigterm(*_: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _exit_status(process: int) -> int | None:
    """The exit code of a child, or the number of the signal that ended it; None while it runs."""
    status = os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    return status and status.si_status


def record_event(folder: Path, event: str, **details: Any) -> None:
    """Append an event to job.jsonl of the run in `folder`: what happened, when, and to which job."""
    line = {"event": event, "time": now(), **details}
    with (folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


class Job(NamedTuple):
    """The newest job of a run: its id, log, last event and state."""

    id: str
    cluster: str
    """`slurm` or `local`."""
    log: Path
    """File with all that the job's attempts printed."""
    attempts: int
    """How often it has started."""
    event: str
    """What happened last: submitted, started, requeued, finished, failed or terminated (from outside, or preempted)."""
    details: dict[str, Any]
    """`time` of that, and what else was noted: `host`, `process`, `how`, `why`."""
    state: str | None
    """State by the scheduler now: SLURM's word or, for a local job, RUNNING; GONE when it knows of no such job; None where
    the scheduler cannot be asked."""

    @property
    def active(self) -> bool:
        """Whether it runs or waits to run."""
        if self.state is not None:
            return self.state in ACTIVE_STATES
        return self.event in ("submitted", "started", "requeued")


def read_job(folder: Path) -> Job | None:
    """The newest job of the run in `folder`, or None when it was never submitted."""
    path = folder / EVENTS_FILE
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    submissions = [line for line in lines if line["event"] == "submitted"]
    if not submissions:
        return None
    submission = submissions[-1]
    # A local job may have started before its submission is noted.
    events = [line for line in lines if line["job"] == submission["job"] and line["event"] != "submitted"]
    last = dict(events[-1] if events else submission)
    return Job(
        submission["job"], submission["cluster"], Path(submission["log"]),
        sum(line["event"] == "started" for line in events), last.pop("event"), last,
        _scheduler_state(submission["job"], submission["cluster"], submission["host"]),
    )  # fmt: skip


def _scheduler_state(job: str, cluster: str, host: str) -> str | None:
    if cluster == "local":
        if host != socket.gethostname():
            return None
        try:
            command = Path(f"/proc/{job}/cmdline").read_bytes()
        except OSError:
            return "GONE"
        return "RUNNING" if b"submitit.local._local" in command else "GONE"  # else another process has that id now
    queue = _slurm("squeue", "-h", "-o", "%T", "-j", job)
    if queue is None:
        return None
    if queue.stdout.split():
        return queue.stdout.split()[0]
    if queue.returncode and "Invalid job id" not in queue.stderr:
        return None  # the controller does not answer
    # The queue forgets a job some minutes after its end. Not every cluster keeps accounts, and where they do not answer
    # it is certain all the same that the job is over.
    accounts = _slurm("sacct", "-n", "-X", "-P", "-o", "State", "-j", job)
    words = accounts.stdout.split() if accounts and not accounts.returncode else []
    return words[0] if words else "GONE"  # "CANCELLED by 1000" is CANCELLED


def _slurm(*command: str) -> subprocess.CompletedProcess[str] | None:
    """The completed command of SLURM, or None where it is not installed or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT)
    except subprocess.TimeoutExpired:
        return None
