"""Two workers on two idle cores: when they are worth their start, and that a run whose `processes` is 1 has them then."""

import os

import pytest

from labkit.lab import Lab, ModelRef
from labkit.params import DEFAULTS
from labkit.runs import worker
from labkit.runs.worker import second_core_is_worth_it
from labkit.stages.distributed import launch


@pytest.mark.parametrize(
    ("changes", "cores", "load", "worth"),
    [
        ({}, 2, 1.2, True),
        ({}, 2, 2.1, False),
        ({}, 1, 0.1, False),
        ({"second_process": False}, 2, 1.2, False),
        ({"test_limit": 60}, 2, 1.2, False),
        ({"world_test": 20}, 2, 1.2, False),
        ({"processes": 2}, 2, 1.2, False),
        ({"prompts_per_step": 9}, 2, 1.2, False),
        ({"prompts_per_pass": 12}, 2, 1.2, False),
        ({"sft_batch": 25}, 2, 1.2, False),
        ({"sharding": "fsdp2"}, 2, 1.2, False),
        ({"quantization": "nf4", "lora_rank": 4}, 2, 1.2, False),
        ({"model": "models/mine"}, 2, 1.2, False),
    ],
    ids=[
        "on",
        "busy cores",
        "one core",
        "off",
        "few queries",
        "a small world",
        "workers",
        "an odd step",
        "a pass that is a whole step",
        "an odd batch of traces",
        "shards, of which one process has none and CPUs make none",
        "4 bits, which several processes have not been seen to train",
        "a model of another size",
    ],
)
def test_it_is_started_where_an_idle_core_has_enough_to_do(changes, cores, load, worth, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert second_core_is_worth_it(DEFAULTS.replace(**{"device": "cpu", "second_process": True} | changes)) is worth


def test_a_notebook_has_two_workers_where_a_core_is_idle_and_leaves_them_to_the_next(tmp_path, monkeypatch):
    started, later = [], []
    monkeypatch.setattr("labkit.lab.second_core_is_worth_it", lambda params: params.second_process)
    monkeypatch.setattr("labkit.lab.end_workers_later", later.append)
    monkeypatch.setattr(worker, "start_workers", lambda command, world, folder, cwd: started.append((world, folder)))
    small = {"world_train": 1, "world_validation": 1, "world_test": 2, "outputs": str(tmp_path)}
    lab = Lab.open(DEFAULTS.replace(run="two", **small))
    lab.start("01_grpo")
    assert lab.params.processes == 1 and lab.world == 2 and started == [(2, tmp_path / "two" / "logs")]
    assert isinstance(lab.policy("base"), ModelRef)
    lab.finish("01_grpo", {})
    assert later == [60.0]
    alone = Lab.open(DEFAULTS.replace(run="one", second_process=False, **small))
    alone.start("01_grpo")
    assert alone.world == 1 and len(started) == 1 and not launch.workers_wait()
