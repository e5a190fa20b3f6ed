"""A worker process: joins the process group, and does its shard of each task on a workbench that it opens for it.

`do_task` has the workers do a task, for `labkit.lab` and `labkit.runs.evaluate_model`. On two cores that are idle the embedded lab's
tasks are those of two workers: with half a step's queries each, they learn what one process learns in two passes, to the last bit.

python -m labkit.runs.worker DEVICE
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.data.video.worker_process import available_cores
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.policy.model import SHIPPED, Policy
from labkit.runs.workbench import EvaluationBench, Workbench
from labkit.stages.distributed.launch import launch, start_workers, workers_wait
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.distributed.process_group import EventWriter, report_stillness, serve
from labkit.stages.sharding import is_sharded

BENCHES: dict[bool, type[Workbench]] = {False: Workbench, True: EvaluationBench}
WORTH = 300
"""Test queries from which the start of two workers, some seconds of both cores, is worth it."""


def second_core_is_worth_it(params: Params) -> bool:
    """Whether there is an idle core for a run of these parameters, which asks for one process, and enough to do for two."""
    cores = available_cores() if hasattr(os, "sched_getaffinity") else 1
    # Processes that ran in the last minute, this one among them; and the two, once they are there.
    idle = cores > 1 and (os.getloadavg()[0] < cores or workers_wait())
    alone = params.processes == params.threads == 1 and (params.sharding, params.quantization) == ("ddp", "none")
    here = alone and params.device != "cuda" and params.model in SHIPPED and params.data in WORLDS
    even = not (params.prompts_per_step % (2 * (params.prompts_per_pass or 1)) or params.sft_batch % 2)
    queries = 4 * params.world_test
    if not (params.second_process and here and even and idle and min(params.test_limit or queries, queries) >= WORTH):
        return False
    import torch

    return params.device == "cpu" or not torch.cuda.is_available()


def do_task(
    bench: Workbench,
    task: str,
    policy: Policy | str,
    on_event: Callable[[int, dict[str, Any]], None],
    /,
    **arguments: Any,
) -> None:
    """Do a task, as `Workbench.run_task` takes it, with a policy that is here, or have workers load that of the stage named.

    `on_event` takes their events with their ranks.
    """
    if not isinstance(policy, str):
        with single_process():
            bench.run_task(task, policy, lambda event: on_event(0, event), **arguments)
        return
    bench.data_folder()  # written by one process, before several look for it
    asked: dict[str, Any] = {"task": task, "stage": policy, "params": bench.params.as_dict(), "arguments": arguments}
    asked["outside"] = isinstance(bench, EvaluationBench)
    launch(*_workers(bench), asked, on_event=on_event, cwd=bench.root)


def begin_workers(bench: Workbench) -> None:
    """Start the workers of the tasks to come, which load their libraries meanwhile."""
    start_workers(*_workers(bench), cwd=bench.root)


def _workers(bench: Workbench) -> tuple[list[str], int, Path]:
    """Their command, how many they are, and the folder of their files: that of a run, whose notebooks may share them."""
    return [sys.executable, "-m", "labkit.runs.worker", bench.params.device], bench.world, bench.path / "logs"


def work(asked: dict[str, Any], events: EventWriter) -> None:
    """Do this worker's shard of a task."""
    bench: Workbench = BENCHES[asked["outside"]].open(Params.build(asked["params"]))
    bench.seed_everything()
    # Trained by all, or whole in each, which answers alone.
    policy = bench.load(
        asked["stage"], whole=asked["task"] not in ("grpo", "sft") or not is_sharded(bench.params.sharding)
    )
    with report_stillness(events):
        bench.run_task(asked["task"], policy, events, **asked["arguments"])


if __name__ == "__main__":
    importlib.import_module("trl")  # all that takes seconds, while the notebook's process does something else
    serve(work, sys.argv[1])
