"""Training by several processes is training by one: the same rollouts, the same weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import LabError
from labkit.policy.model import Policy, load_policy
from labkit.stages.grpo import prompts_of_a_pass
from labkit.stages.rollouts import RolloutStore
from labkit.workers import launch
from tests.stages import small

NEVER = {"stop_anchor_rate": 1.0, "stop_progress": 1.0}


def together(stage: str, world: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """What two workers report of a stage that they train together."""
    command = [sys.executable, "-m", "tests.stages.several", stage, str(world), str(folder), json.dumps(changes)]
    return launch(command, 2, folder / "logs", cwd=small.ROOT)


def final(folder: Path) -> dict[str, Any]:
    return small.weights(load_policy(str(folder / "final"), device="cpu"))


@pytest.mark.parametrize("changes", [{"beta": 0.04}, {"prompts_per_pass": 1, "lora_rank": 4, "beta": 0.04}])
def test_three_steps_of_grpo_are_the_same_by_two_processes(changes, world, moments, source, tmp_path):
    settings = {"steps": 3, "save_steps": 2, **NEVER, **changes}
    rank = settings.pop("lora_rank", 0)
    alone = load_policy("embedded", device="cpu", lora_rank=rank)
    expected = small.train_grpo(alone, source, moments, tmp_path / "one", **settings)
    found = together("grpo", world, tmp_path / "two", **settings, lora_rank=rank)
    assert small.farthest(small.weights(alone), final(tmp_path / "two")) < 1e-5
    stores = [RolloutStore(tmp_path / name / "rollouts") for name in ("one", "two")]
    assert [r.key for r in stores[1].read()] == [r.key for r in stores[0].read()]
    assert [r.text for r in stores[1].read()] == [r.text for r in stores[0].read()]
    for ours, theirs in zip(found["history"], expected.history, strict=True):
        times = ("step_time",)
        assert {k: v for k, v in ours.items() if k not in times} == pytest.approx(
            {k: v for k, v in theirs.items() if k not in times}, abs=1e-5
        )
