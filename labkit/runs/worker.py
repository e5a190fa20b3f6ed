"""A worker process: joins the process group, does its shard of a task on a workbench, and reports events.

`labkit.lab` writes the task's file and launches the workers.

python -m labkit.runs.worker TASK.json
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from labkit.files import replacing
from labkit.params import Params
from labkit.runs.workbench import Workbench
from labkit.stages.distributed.launcher_variables import WORKER_FOLDER_VARIABLE
from labkit.stages.distributed.process_group import process_group


class WorkerTask(NamedTuple):
    """A task for several workers: plain data, which they read from a JSON file."""

    task: str
    """As `Workbench.run_task` takes it."""
    stage: str
    """The stage whose model it is done with."""
    params: dict[str, Any]
    arguments: dict[str, Any]
    """The task's own."""

    def command(self, folder: Path) -> list[str]:
        """Write the file into `folder`, and return the command of a worker."""
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "task.json") as draft:
            draft.write_text(json.dumps(self._asdict(), ensure_ascii=False), encoding="utf-8")
        return [sys.executable, "-m", "labkit.runs.worker", str(folder / "task.json")]


def main(file: Path) -> None:
    """Do this worker's shard of the task in `file`."""
    task = WorkerTask(**json.loads(file.read_text(encoding="utf-8")))
    with process_group(Path(os.environ[WORKER_FOLDER_VARIABLE]), task.params["device"]) as events:
        bench: Workbench = Workbench.open(Params.build(task.params))
        bench.seed_everything()
        bench.run_task(task.task, bench.load(task.stage), events, **task.arguments)
        events({"result": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
