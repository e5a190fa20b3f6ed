"""Status: how far a run is, on whatever machine it works, from its manifest, progress file, log and job events.

SLURM is asked for the job's state where its commands are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import is_locked
from labkit.progress import LOG_FILE, PROGRESS_FILE, duration, read_step, tail
from labkit.runs.results import MODELS
from labkit.runs.run import STAGE_LOCK, STAGES, read_manifest
from labkit.runs.slurm_job import read_job
from labkit.table import Table

LOG_LINES = 5
"""Last lines of the log that are shown."""


def read_status(folder: str | Path) -> dict[str, Any]:
    """How far the run in `folder` is: `run`, `job`, `stages`, `log` and `lines`, its last ones, plain enough for JSON.

    A stage is `new`, `running`, `broken off`, `finished` or `skipped`; the running one has `step` (see `labkit.progress.Step`), and a
    finished one its `figures`: greedy mIoU, as a fraction, by model. Raises LabError when `folder` holds no run.
    """
    folder = Path(folder)
    manifest, job = read_manifest(folder)["stages"], read_job(folder)
    stages: dict[str, dict[str, Any]] = {}
    for name in STAGES:
        entry = manifest.get(name, {})
        state = entry.get("state", "new")
        stage = {"state": state, "started": entry.get("started"), "seconds": entry.get("seconds")}
        if state == "running":
            # A lock held on another node may be invisible here; the state of its job is not.
            alive = is_locked(folder / STAGE_LOCK) or (job is not None and job.event == "started" and job.active)
            stage["state"] = "running" if alive else "broken off"
            step = read_step(folder / PROGRESS_FILE)
            stage["step"] = step._asdict() if step and step.time >= entry["started"] else None
        figures = entry.get("figures", {})
        stage["figures"] = {
            model: figures[model]["greedy"]["miou"] for model in MODELS if "greedy" in (figures.get(model) or {})
        }
        stages[name] = stage
    log = folder / LOG_FILE
    lines = tail(log, LOG_LINES)
    if job is not None and not lines:
        log, lines = job.log, tail(job.log, LOG_LINES)  # it failed before the first notebook
    return {
        "run": folder.resolve().name,
        "job": job and {**job._asdict(), "log": str(job.log), "active": job.active},
        "stages": stages,
        "log": str(log),
        "lines": lines,
    }


def status_text(folder: str | Path) -> str:
    """The status of a run as plain text, or of all runs in a folder, a line each.

    Raises LabError when there is neither.
    """
    folder = Path(folder)
    if (folder / "manifest.json").is_file():
        return _run_text(read_status(folder))
    runs = sorted(path.parent for path in folder.glob("*/manifest.json"))
    if not runs:
        raise LabError(f"'{folder}' is neither a run nor a folder of runs; `labkit run` makes runs under outputs/")
    rows = []
    for run in runs:
        status = read_status(run)
        name, stage = _current_stage(status["stages"])
        rows.append([status["run"], name, stage["state"], _step_text(stage), _job_text(status["job"])])
    return str(Table("", (), rows, align="l"))


def _run_text(status: Mapping[str, Any]) -> str:
    blocks = [f"run {status['run']}"]
    if job := status["job"]:
        blocks[0] += f": {_job_text(job)}"
    rows = []
    for name, stage in status["stages"].items():
        figures = ", ".join(f"{MODELS[model]} {100 * miou:.1f} mIoU" for model, miou in stage["figures"].items())
        took = duration(stage["seconds"]) if stage["seconds"] is not None else ""
        rows.append([name, stage["state"], took, _step_text(stage) or figures])
    blocks.append(str(Table("", (), rows, align="l")))
    blocks.append("\n".join([f"log {status['log']}", *(f"  {line}" for line in status["lines"])]))
    if status["job"] and status["job"]["log"] != status["log"]:
        blocks[-1] += f"\nlog of the job {status['job']['log']}"
    return "\n\n".join(blocks)


def _current_stage(stages: Mapping[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The first stage that is neither finished nor skipped, or the last."""
    done = ("finished", "skipped")
    return next(
        ((name, stage) for name, stage in stages.items() if stage["state"] not in done), list(stages.items())[-1]
    )


def _step_text(stage: Mapping[str, Any]) -> str:
    if not (step := stage.get("step")):
        return ""
    left = f", {step['left']} left" if step["left"] else ""
    note = f"; {step['note']}" if step["note"] else ""
    return f"{step['what']} {step['done']} of {step['total']}{left}{note}"


def _job_text(job: Mapping[str, Any] | None) -> str:
    """A job as text: its id, its last event with the time, and its state by the scheduler."""
    if job is None:
        return "not submitted"
    details = job["details"]
    when = datetime.fromisoformat(details["time"]).astimezone().strftime("%d %b %H:%M")
    text = f"{job['cluster']} job {job['id']}, {job['event']} {when}"
    text += f" on {details['host']}" if job["event"] == "started" else ""
    text += f" ({details.get('how') or details.get('why')})" if details.get("how") or details.get("why") else ""
    text += f", attempt {job['attempts']}" if job["attempts"] > 1 else ""
    if job["active"] or job["event"] in ("submitted", "started", "requeued"):
        text += f"; {job['state'] or 'its state is unknown here'}"
    return text
