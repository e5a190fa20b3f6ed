"""The second core of a CPU: a second process for the notebook's, and when the embedded lab takes that core at all.

The notebook works on the batches from the first on, this process on the same batches from the last on, and each leaves out what it
finds in the store. So neither waits for the other, what is answered is the same whoever answers it, and where this process dies the
notebook does all. A stage of training stays in the notebook's process and in one thread: two gave the
same 31 steps of SFT to the last bit, and another rounding in the 32nd.

python -m labkit.runs.second_process
"""

from __future__ import annotations

import functools
import importlib
import os
import queue
import sys
import threading
import warnings
from typing import Any

from labkit.data.video.worker_process import WorkerFailed, WorkerProcess, available_cores, heartbeat, serve
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.policy.model import SHIPPED, Policy, load_policy
from labkit.progress import say
from labkit.runs.workbench import Workbench
from labkit.stages.completions import weights_digest

WORTH = 300
"""Test queries from which its start, some seconds of another core, is worth it."""
DEADLINE = 300.0
"""Seconds without a batch after which the process is given up."""
GRACE = 30.0
"""Seconds in which the batch at hand has to be done when the notebook has done all others."""


def worth_it(params: Params) -> bool:
    """Whether there is an idle core for a run of these parameters, and enough to do for it."""
    cores = available_cores() if hasattr(os, "sched_getaffinity") else 1
    # Processes that ran in the last minute, this one among them; and the second one itself, once it is there.
    idle = cores > 1 and (os.getloadavg()[0] < cores or second_process.cache_info().currsize > 0)
    alone = params.processes == params.threads == 1
    here = alone and params.device != "cuda" and params.model in SHIPPED and params.data in WORLDS
    queries = 4 * params.world_test
    if not (params.second_process and here and idle and min(params.test_limit or queries, queries) >= WORTH):
        return False
    import torch

    return params.device == "cpu" or not torch.cuda.is_available()


class SecondProcess:
    """The notebook's side: requests are sent one after another, from a thread that ends with the program."""

    def __init__(self) -> None:
        """Start the process, which loads its libraries meanwhile."""
        self.worker = WorkerProcess([sys.executable, "-m", "labkit.runs.second_process"], DEADLINE)
        self.requests: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._send, daemon=True).start()
        self.requests.put({})

    def help(self, params: Params, task: str, policy: Policy, arguments: dict[str, Any]) -> None:
        """Have it do `evaluation` or `harvest` from the end, with the model that `policy` was loaded from; returns at once."""
        if policy.device.type == "cpu" and not policy.has_adapter:
            asked = {"model": policy.name, "weights": weights_digest(policy), "task": task, "arguments": arguments}
            self.requests.put({"params": params.as_dict(), **asked})

    def settle(self) -> None:
        """Wait until it writes nothing any more: for the batch at hand, and not for ever."""
        with self.requests.all_tasks_done:
            done = self.requests.all_tasks_done.wait_for(lambda: not self.requests.unfinished_tasks, GRACE)
        if not done:
            self.worker.close()

    def _send(self) -> None:
        while True:
            request = self.requests.get()
            try:
                if not self.worker.closed and (trouble := self.worker.call(request)):
                    say(f"second process: {trouble}; this one does all")
            except WorkerFailed as failure:
                if not self.worker.closed:
                    say(f"second process {failure}; this one does all")
            finally:
                self.requests.task_done()


@functools.cache
def second_process() -> SecondProcess:
    """The one of this program, started when it is first asked for: the five notebooks of `labkit run` are of one."""
    return SecondProcess()


def _handle(request: dict[str, Any]) -> str:
    """In the second process: do a task, and say what was in the way, if anything."""
    warnings.simplefilter("ignore")  # the notebook's process has said it
    try:
        if not request:
            importlib.import_module("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl")
            return ""
        bench = Workbench.open(Params.build(request["params"]))
        bench.seed_everything()
        policy = load_policy(request["model"], dtype=bench.params.dtype, device="cpu")
        if weights_digest(policy) == request["weights"]:  # else the notebook's model has been trained since
            bench.run_task(request["task"], policy, lambda event: heartbeat(), backwards=True, **request["arguments"])
    except Exception as error:  # the notebook's process meets it, too, or does without this one
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    serve(_handle)
