"""Training by several processes is training by one: the same rollouts, the same weights, also when one was killed on the way."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit.doctor.memory import stage_memory
from labkit.doctor.workload import Workload, read_model_shape
from labkit.errors import LabError
from labkit.params import names
from labkit.policy.model import SHIPPED, load_policy
from labkit.stages.checkpoints import COMPLETE
from labkit.stages.distributed.launch import WorkerError, launch
from labkit.stages.grpo import prompts_per_pass
from labkit.stages.rollouts import RolloutStore
from tests.stages import small
from tests.stages.several import watched

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]  # one setting up serves all
# Adam's first update is as large where a gradient is nothing but rounding as anywhere: a whole step of 1e-3 would show it.
GRPO: dict[str, Any] = {
    "stage": "grpo", "grpo_steps": 4, "stop_anchor_rate": 1.0, "prompts_per_pass": 0, "beta": 0.04, "learning_rate": 2e-4,
    "probe_every": 3,
}  # fmt: skip
ALONE: dict[str, dict[str, Any]] = {
    "all weights": GRPO,
    "lora": GRPO | {"lora_rank": 4, "grpo_steps": 2, "prompts_per_pass": 1},
    "sft": {"stage": "sft", "sft_epochs": 1.0, "sft_learning_rate": 2e-4},
}
# What has once been sharded leaves its mark on accelerate's view of the process, so that comes last.
PLAN = {f"{name}, {how}": changes | {"sharding": how} for how in ("ddp", "fsdp2") for name, changes in ALONE.items()}
PLAN = {"few traces": {"stage": "sft", "sft_epochs": 2.0, "sft_batch": 64}} | PLAN
SMALL_STEPS: dict[str, Any] = {"dtype": "bfloat16", "sharding": "fsdp2", "learning_rate": 1e-5}
PLAN["small steps, whole"] = GRPO | SMALL_STEPS
PLAN["small steps, broken off"] = GRPO | SMALL_STEPS | {"gradient_checkpointing": True}
RESUMED = ("all weights, ddp", "small steps, broken off", "all weights, fsdp2")
"""Broken off in step 4, the last of these being killed while it saves, and called again from the checkpoint of step 2."""


def together(world: Path, folder: Path, plan: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What two workers report of stages that they train together."""
    named = [{"name": name, **changes} for name, changes in plan.items()]
    command = [sys.executable, "-m", "tests.stages.several"]
    return launch(command, 2, folder / "logs", [str(world), str(folder), named], cwd=small.ROOT)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory) -> tuple[Path, dict[str, Any], str]:
    """Folder and reports of all stages of the plan, and what the launch said of which one worker was killed."""
    folder = tmp_path_factory.mktemp("several")
    broken = {name: PLAN[name] | {"ends_at": 4, "killed": name == RESUMED[-1]} for name in RESUMED}
    with pytest.raises(WorkerError) as killed:
        together(world, folder, broken)
    assert all((folder / name / "checkpoint-2" / COMPLETE).is_file() for name in RESUMED)
    half = folder / RESUMED[-1] / "checkpoint-4"
    assert (half / "pytorch_model_fsdp_0").is_dir() and not (half / COMPLETE).exists()
    shutil.copytree(folder / RESUMED[-1], folder / "for one")
    return folder, together(world, folder, PLAN), str(killed.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_two_processes_learn_what_one_learns(name, trained, world, moments, source, tmp_path):
    folder, found, _ = trained
    stage, changes = ALONE[name]["stage"], {key: value for key, value in ALONE[name].items() if key != "stage"}
    torch.manual_seed(0)
    policy = load_policy("embedded", device="cpu", lora_rank=changes.pop("lora_rank", 0))
    train = small.train_grpo if stage == "grpo" else small.train_sft
    start, seen = small.weights(policy), {}
    with watched(policy, seen):
        expected = train(policy, source, moments, tmp_path, **changes)
    require_foretold(seen["bytes"], ALONE[name], world=1)
    moved = small.distance(start, small.weights(policy))
    for how in ("ddp", "fsdp2"):
        both = folder / f"{name}, {how}"
        one, two = (load_policy(str(place / "final"), device="cpu") for place in (tmp_path, both))
        assert small.farthest(small.weights(one), small.weights(two)) < 1e-5, how
        assert small.distance(small.weights(one), small.weights(two)) < 1e-3 * moved, how
        if how == "ddp" and not changes.get("prompts_per_pass"):
            assert small.farthest(small.weights(one), small.weights(two)) == 0, "two passes of one are one pass of two"
        assert [each.read_text() for each in sorted((both / "final").glob("*config.json"))] == [
            each.read_text() for each in sorted((tmp_path / "final").glob("*config.json"))
        ], how
        for ours, theirs in zip(found[both.name], expected.history, strict=True):
            same = [key for key in theirs if key not in ("step_time", "cpu_seconds")]
            assert [ours[key] for key in same] == pytest.approx(
                [theirs[key] for key in same], rel=1e-4, abs=1e-5, nan_ok=True
            ), how
        if stage == "grpo":
            first, second = (RolloutStore(place / "rollouts").read() for place in (tmp_path, both))
            assert [(each.key, each.text) for each in second] == [(each.key, each.text) for each in first]
            pay = [each.advantage for each in first]
            assert [each.advantage for each in second] == pytest.approx(pay, abs=1e-6)
            one, two = (RolloutStore(place / "probes").read() for place in (tmp_path, both))
            assert [(each.key, each.text) for each in two] == [(each.key, each.text) for each in one]
            assert len(one) == 3 * (changes["grpo_steps"] + 1), "shared by both, none lost"


def require_foretold(ranks: list[dict[str, int]], changes: dict[str, Any], world: int) -> None:
    """Hold what each rank has counted of a stage against the doctor's arithmetic on the model's config."""
    workload = Workload(
        train=13, test=3, train_clips=3, test_clips=1, prompt_tokens=60, longest_prompt=70, video_tokens=32
    )
    given = {key: value for key, value in changes.items() if key in names()}
    params = small.grpo_params(**given | {"stop_anchor_rate": 1.0, "stop_progress": 0.0})
    memory = stage_memory(read_model_shape(SHIPPED["embedded"]), params, workload, "cpu", world=world)
    told = memory["sft" if "sft_epochs" in changes else "grpo"]
    assert len(ranks) == world
    for kept in ranks:
        assert kept == pytest.approx({name: told.get(name, 0.0) for name in kept}, rel=0.02), changes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PLAN if name not in ("few traces", RESUMED[-1])])
def test_a_rank_holds_of_each_kind_what_the_doctor_foretells(name, trained):
    require_foretold(trained[1]["seen"][name]["bytes"], PLAN[name], world=2)


@pytest.mark.slow
def test_checkpointed_layers_gather_their_weights_no_more_often(trained):
    """Forward and backward each; the pass that computes a layer again finds its weights gathered for the backward pass."""
    seen = trained[1]["seen"]
    assert seen["small steps, broken off"]["gathers"] == seen["small steps, whole"]["gathers"] > 0


@pytest.mark.slow
def test_traces_too_few_for_a_batch_are_learnt_though_they_are_odd(trained, moments):
    assert len(moments) == 13
    assert len(trained[1]["few traces"]) == 2, "two passes of 12, the second beginning with what the first left out"


@pytest.mark.slow
def test_steps_too_small_for_bfloat16_survive_breaking_off(trained):
    """fsdp2 trains in float32 what is loaded and ends in bfloat16, and a checkpoint keeps it so."""
    folder, start = trained[0], small.weights(load_policy("embedded", device="cpu", dtype="bfloat16"))
    whole, resumed = (
        small.weights(load_policy(str(folder / f"small steps, {how}" / "final"), device="cpu", dtype="bfloat16"))
        for how in ("whole", "broken off")
    )
    assert small.farthest(whole, resumed) == 0 < small.distance(whole, start)


@pytest.mark.slow
def test_one_process_does_not_go_on_from_the_parts_of_two(trained, policy, source, moments):
    """It could not read the optimizer's; nothing is lost when it says so."""
    folder = trained[0] / "for one"
    before = RolloutStore(folder / "rollouts").steps()
    for train in (small.train_grpo, small.train_sft):
        with pytest.raises(
            LabError, match="checkpoint-2' was written by several .* `processes` be more than 1, as be"
        ):
            train(policy, source, moments, folder, sharding="fsdp2")
    assert RolloutStore(folder / "rollouts").steps() == before and before[-1] > 2


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named(trained):
    assert "worker 1 of 2" in trained[2] and "SIGKILL" in trained[2] and "rank-1.txt" in trained[2]


@pytest.mark.parametrize(
    ("world", "per_pass", "expected", "reason"),
    [
        (1, 0, 6, "two passes, as two processes have one each"),
        (2, 0, 6, "its half"),
        (2, 3, 3, "two passes each"),
        (4, 3, 3, "one pass each"),
        (5, 0, None, "12 groups cannot be divided among 5"),
        (2, 4, None, "8 at a time do not make 12"),
        (1, 5, None, "nor do 5"),
    ],
)
def test_whole_groups_only(world, per_pass, expected, reason):
    params = small.grpo_params(prompts_per_step=12, prompts_per_pass=per_pass)
    if expected:
        assert prompts_per_pass(params, world) == expected, reason
        return
    with pytest.raises(LabError, match=rf"prompts_per_step is 12 and must be a multiple .*{per_pass or world}"):
        prompts_per_pass(params, world)
