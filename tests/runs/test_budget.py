"""Budgets: a run takes as many steps as another's rollouts, or its processor time, are worth, counted when it is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from labkit.errors import LabError
from labkit.params import DEFAULTS, Params
from labkit.runs.budget import Spent, count_budget, read_spent, total
from labkit.runs.run import Run
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore

STEP = 12 * 8
"""Rollouts of one step by default."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sampled(folder: Path, count: int, step: int = 1, cpu_seconds: float | None = None) -> None:
    rollouts = [
        Rollout(
            run="r", stage="grpo", step=step, qid="q", sample=sample, seed=0, checkpoint="m", text="", status="no_think", **UNPAID,
            prompt_tokens=1, completion_tokens=1, finished=True,
        )
        for sample in range(count)
    ]  # fmt: skip
    RolloutStore(folder / "rollouts").write(step, rollouts, cpu_seconds=cpu_seconds)


def ended(folder: Path, steps: int, cpu_seconds: float | None, **more: Any) -> None:
    """A stage of training that has ended, each of whose steps took `cpu_seconds`."""
    (folder / "final").mkdir(parents=True)
    row = {"step": 1.0} if cpu_seconds is None else {"step": 1.0, "cpu_seconds": cpu_seconds}
    (folder / "result.json").write_text(json.dumps({"steps": steps, "history": [row] * steps, "seconds": 1.0, **more}))


def spend(
    project: Path,
    name: str = "default-seed0",
    *,
    first: int = 3,
    final: int = 2,
    cpu: float | None = 2.0,
    **values: Any,
) -> Path:
    """A finished run: `first` steps of stage 1 (0: none), a harvest of 64 chains, SFT and `final` steps of stage 3."""
    folder = project / "outputs" / name
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(DEFAULTS.as_dict() | {"run": name} | values))
    if first:
        ended(folder / "01_grpo", first, cpu, stopped_by="condition")
        sampled(folder / "01_grpo", first * STEP)
        sampled(folder / "02_distill", 64, cpu_seconds=4.0)
        ended(folder / "03_sft", 5, cpu)
    ended(folder / "04_grpo_final", final, cpu, stopped_by="steps")
    sampled(folder / "04_grpo_final", final * STEP)
    return folder


def asked(**changes: Any) -> Params:
    return DEFAULTS.replace(run="control", budget_of="default-seed{seed}", **changes)


def test_what_a_run_spent_is_counted_from_what_it_left(project):
    spent = read_spent(spend(project))
    assert spent == {
        "01_grpo": Spent(3, 288, 6.0), "02_distill": Spent(0, 64, 4.0), "03_sft": Spent(5, 0, 10.0),
        "04_grpo_final": Spent(2, 192, 4.0),
    }  # fmt: skip
    assert total(spent) == Spent(10, 544, 24.0)
    old = read_spent(spend(project, "old", cpu=None))
    assert total(old).cpu_seconds is None, "a run of before has no time, which is not 0"


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({"sft_model": "base"}, {"final_steps": 6}),  # 544 / 96 = 5.7, at least as many
        ({"sft_model": "base", "group_size": 4}, {"final_steps": 12}),  # 544 / 48 = 11.3
        ({"grpo_model": "base"}, {"final_steps": 5}),  # its own harvest of 64: 480 / 96
        ({"grpo_model": "base", "harvest_samples": 4}, {"final_steps": 6}),  # its 8 queries, half the chains: 512 / 96
        ({}, {"grpo_steps": 3, "stop_anchor_rate": 1.0, "final_steps": 2}),  # stage by stage
        ({"sft_model": "base", "pace_of": "plain-seed{seed}"}, {"final_steps": 48}),  # 24 s at 0.5 s a step
    ],
)
def test_steps_are_counted_from_the_other_run(changes, counted, project):
    spend(project)
    spend(project, "plain-seed0", first=0, cpu=0.5, sft_model="base", budget_of="default-seed{seed}", final_steps=6)
    params = asked(**changes)
    assert count_budget(params, project) == params.replace(**counted)


def test_what_was_counted_stays_when_the_other_run_has_gone(project):
    other = spend(project)
    params = asked(sft_model="base")
    assert Run.open(params).params.final_steps == 6
    for file in other.glob("*.yaml"):
        file.unlink()
    assert Run.open(params).params.final_steps == 6, "params.yaml has it"
    with pytest.raises(LabError, match="learning_rate"):
        Run.open(params.replace(learning_rate=1e-4))


@pytest.mark.parametrize(
    ("run", "changes", "message"),
    [
        ("other", {"sft_model": "base"}, "budget_of: there is no run '.*default-seed0'; make it first"),
        (
            "default-seed0",
            {"sft_model": "base", "final_steps": 90},
            "final_steps: 90 is given, and budget_of makes it 6; leave it out",
        ),
        ("default-seed0", {"sft_model": "base", "pace_of": "none"}, "pace_of: there is no run '.*none'"),
        (
            "default-seed0",
            {"grpo_model": "base", "harvest_prompts": 700},
            "spent 544 rollouts, .* nothing is left for stage 3",
        ),
    ],
)
def test_a_budget_that_cannot_be_counted_is_refused(run, changes, message, project):
    spend(project, run)
    with pytest.raises(LabError, match=message):
        Run.open(asked(**changes))
    assert not (project / "outputs" / "control").exists()


def test_a_pace_is_that_of_the_same_training(project):
    spend(project)
    spend(project, "plain-seed0", first=0, sft_model="base", max_new_tokens=99)
    with pytest.raises(
        LabError, match=r"is a run of other parameters \(max_new_tokens\); its steps take another time"
    ):
        count_budget(asked(sft_model="base", pace_of="plain-seed0"), project)


def test_a_run_of_before_has_no_processor_time_to_be_equal_to(project):
    spend(project, cpu=None)
    spend(project, "plain-seed0", first=0, sft_model="base")
    with pytest.raises(LabError, match="default-seed0' has no record of its processor time"):
        count_budget(asked(sft_model="base", pace_of="plain-seed0"), project)


def test_an_unfinished_run_is_no_budget(project):
    (spend(project) / "04_grpo_final" / "final").rmdir()
    with pytest.raises(LabError, match="has not ended its stage 3"):
        count_budget(asked(sft_model="base"), project)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pace_of": "x", "sft_model": "base"},
            "pace_of: it counts the steps of a run with budget_of that is stage 3 alone",
        ),
        ({"pace_of": "x", "budget_of": "y"}, "pace_of: it counts"),
        ({"trace_choice": "random", "sft_model": "base"}, "trace_choice: there is no harvest to choose from"),
        ({"min_anchors": 0, "max_anchors": 0}, "max_anchors: 0 scores no anchor; let anchors_weight"),
    ],
)
def test_controls_that_contradict_themselves_are_refused(changes, message):
    with pytest.raises(LabError, match=message):
        DEFAULTS.replace(**changes)
