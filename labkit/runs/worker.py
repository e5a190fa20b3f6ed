"""A worker process: joins the process group, does its shard of a task on a workbench, and reports events.

`do_task` writes the task's file and launches the workers, for `labkit.lab` and `labkit.runs.evaluate_model`.

python -m labkit.runs.worker TASK.json
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from labkit.files import replacing
from labkit.params import Params
from labkit.policy.model import Policy
from labkit.runs.workbench import EvaluationBench, Workbench
from labkit.stages.distributed.launch import launch
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE, single_process
from labkit.stages.distributed.process_group import process_group, world_size

BENCHES: dict[str, type[Workbench]] = {each.__name__: each for each in (Workbench, EvaluationBench)}


class WorkerTask(NamedTuple):
    """A task for several workers: plain data, which they read from a JSON file."""

    task: str
    """As `Workbench.run_task` takes it."""
    stage: str
    """The stage whose model it is done with."""
    params: dict[str, Any]
    arguments: dict[str, Any]
    """The task's own."""
    bench: str = Workbench.__name__
    """Name of the class among `BENCHES` that the worker opens."""

    def command(self, folder: Path) -> list[str]:
        """Write the file into `folder`, and return the command of a worker."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "task.json") as draft:
            draft.write_text(json.dumps(self._asdict(), ensure_ascii=False), encoding="utf-8")
        return [sys.executable, "-m", "labkit.runs.worker", str(folder / "task.json")]


def do_task(
    bench: Workbench,
    task: str,
    policy: Policy | str,
    on_event: Callable[[int, dict[str, Any]], None],
    logs: Path,
    /,
    **arguments: Any,
) -> None:
    """Do a task with a policy that is here, or have workers load that of the stage named, and do it.

    `on_event` takes their events with their ranks; `logs` is the workers' folder.
    """
    if not isinstance(policy, str):
        with single_process():
            bench.run_task(task, policy, lambda event: on_event(0, event), **arguments)
        return
    bench.data_folder()  # written by one process, before several look for it
    kind = EvaluationBench if isinstance(bench, EvaluationBench) else Workbench
    command = WorkerTask(task, policy, bench.params.as_dict(), arguments, kind.__name__).command(logs)
    launch(command, world_size(bench.params.processes), logs, on_event=on_event, cwd=bench.root)


def main(file: Path) -> None:
    """Do this worker's shard of the task in `file`."""
    task = WorkerTask(**json.loads(file.read_text(encoding="utf-8")))
    with process_group(Path(os.environ[WORKER_FOLDER_VARIABLE]), task.params["device"]) as events:
        bench: Workbench = BENCHES[task.bench].open(Params.build(task.params))
        bench.seed_everything()
        bench.run_task(task.task, bench.load(task.stage), events, **task.arguments)
        events({"result": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
