"""A worker process: joins the process group, and does its shard of each task on a workbench that it opens for it.

`do_task` has the workers do a task, for `labkit.lab` and `labkit.runs.evaluate_model`.

python -m labkit.runs.worker DEVICE
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.params import Params
from labkit.policy.model import Policy
from labkit.runs.workbench import EvaluationBench, Workbench
from labkit.stages.distributed.launch import launch
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.distributed.process_group import EventWriter, report_stillness, serve, world_size

BENCHES: dict[bool, type[Workbench]] = {False: Workbench, True: EvaluationBench}


def do_task(
    bench: Workbench,
    task: str,
    policy: Policy | str,
    on_event: Callable[[int, dict[str, Any]], None],
    logs: Path,
    /,
    **arguments: Any,
) -> None:
    """Do a task, as `Workbench.run_task` takes it, with a policy that is here, or have workers load that of the stage named.

    `on_event` takes their events with their ranks; `logs` is the workers' folder.
    """
    if not isinstance(policy, str):
        with single_process():
            bench.run_task(task, policy, lambda event: on_event(0, event), **arguments)
        return
    bench.data_folder()  # written by one process, before several look for it
    asked: dict[str, Any] = {"task": task, "stage": policy, "params": bench.params.as_dict(), "arguments": arguments}
    asked["outside"] = isinstance(bench, EvaluationBench)
    command = [sys.executable, "-m", "labkit.runs.worker", bench.params.device]
    launch(command, world_size(bench.params.processes), logs, asked, on_event=on_event, cwd=bench.root)


def work(asked: dict[str, Any], events: EventWriter) -> None:
    """Do this worker's shard of a task."""
    bench: Workbench = BENCHES[asked["outside"]].open(Params.build(asked["params"]))
    bench.seed_everything()
    policy = bench.load(asked["stage"])
    with report_stillness(events):
        bench.run_task(asked["task"], policy, events, **asked["arguments"])


if __name__ == "__main__":
    serve(work, sys.argv[1])
