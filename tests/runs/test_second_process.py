"""A second process beside the notebook's: when it is worth its start, and what it answers."""

import os

import pytest
import torch

from labkit.params import DEFAULTS
from labkit.runs import second_process as module
from labkit.runs.second_process import SecondProcess, worth_it
from labkit.runs.workbench import Workbench
from labkit.stages import evaluate as stage

SMALL = {"world_train": 1, "world_validation": 1, "world_test": 2, "max_new_tokens": 8, "eval_batch": 2}
PARTS = [["base-greedy", "greedy", "own"]]


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
        "a model of another size",
    ],
)
def test_it_is_started_where_an_idle_core_has_enough_to_do(changes, cores, load, worth, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert worth_it(DEFAULTS.replace(**{"device": "cpu", "second_process": True} | changes)) is worth


@pytest.fixture
def bench(tmp_path):
    bench = Workbench.open(DEFAULTS.replace(run="two", outputs=str(tmp_path), device="cpu", **SMALL))
    bench.moments("test")
    return bench


@pytest.mark.slow
def test_the_notebook_finds_answered_what_it_has_answered_meanwhile(bench, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 300.0)  # of a machine that is busy
    policy, asked = bench.load("base"), []
    second = SecondProcess()
    arguments = {"stage": "base", "notebook": "01_grpo", "parts": PARTS}
    second.help(bench.params, "evaluation", policy, arguments)
    second.settle()
    assert not (bench.path / "01_grpo/base-greedy.json").exists(), "figures are the notebook's"
    generate = stage.generate
    monkeypatch.setattr(stage, "generate", lambda p, prompts, **k: asked.extend(prompts) or generate(p, prompts, **k))
    bench.run_evaluation(policy, lambda event: None, **arguments)
    assert asked == [] and (bench.path / "01_grpo/base-greedy.json").exists()
    with torch.no_grad():
        next(policy.model.parameters()).add_(1.0)
    second.help(bench.params, "evaluation", policy, {**arguments, "parts": [["blind-black", "greedy", "black"]]})
    second.settle()
    assert not (bench.path / "01_grpo/evaluations/blind-black").exists(), "a model that was trained since is not there"
    second.worker.close()


def test_where_it_dies_the_notebook_is_told_and_goes_on(bench, monkeypatch, capsys):
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    second = SecondProcess()
    second.settle()
    assert "second process ended by exit code 1; this one does all" in capsys.readouterr().out
