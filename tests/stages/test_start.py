"""A stage starts where it began, whatever the policy object went through: interruptions, other stages, other trainers."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head

from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.model import load_policy
from labkit.stages.checkpoints import (
    START,
    _modules_and_configs,
    frozen_copy,
    preserve_model_state,
    read_result,
    require_final_weights,
    require_same_start,
    stage_seed,
)
from labkit.stages.experimental import vllm_generation
from labkit.stages.rollouts import RolloutStore
from tests.stages import small
from tests.stages.small import farthest, plain_log_probs, weights

KL = {"beta": 0.2, "grpo_steps": 3, "save_steps": 2, "prompts_per_step": 2, "prompts_per_pass": 0}


class Interrupted(KeyboardInterrupt):
    pass


def interrupt_at(step):
    def hear(row):
        if row["step"] == step:
            raise Interrupted

    return hear


def kl(result):
    return [row["kl"] for row in result.history]


def equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module", params=[0, 4], ids=["all weights", "lora"])
def rank(request):
    return request.param


@pytest.fixture(scope="module")
def fresh(rank, source, moments, tmp_path_factory):
    """What a policy that nobody has touched comes to: its KL by step, its weights, its folder, and the object itself."""
    folder = tmp_path_factory.mktemp("fresh") / "run"
    policy = load_policy("embedded", device="cpu", lora_rank=rank)
    return kl(small.train_grpo(policy, source, moments, folder, **KL)), weights(policy), folder, policy


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3], ids=["before a checkpoint", "behind one"])
def test_one_object_trained_interrupted_and_trained_again_has_the_kl_of_a_fresh_one(
    step, rank, fresh, source, moments, tmp_path
):
    expected, trained, *_ = fresh
    policy = load_policy("embedded", device="cpu", lora_rank=rank)
    before = weights(policy)
    with pytest.raises(Interrupted):
        small.train_grpo(policy, source, moments, tmp_path / "run", on_step=interrupt_at(step), **KL)
    assert equal(weights(policy), before), "broken off, it is given back as it came"
    assert kl(small.train_grpo(policy, source, moments, tmp_path / "run", **KL)) == expected
    assert equal(weights(policy), trained)
    assert abs(expected[0]) < 1e-6 < 1e-4 < expected[2] < 1


@pytest.mark.slow
def test_what_is_trained_on_is_the_model_that_the_first_stage_left(rank, fresh, source, moments, tmp_path):
    """The object that was trained and one that was loaded from its files learn the same, from a KL of 0; by SFT, too."""
    _, _, folder, held = fresh
    loaded, found = load_policy(str(folder / "final"), device="cpu"), []
    for name, policy in {"held": held, "loaded": loaded}.items():
        second = small.train_grpo(policy, source, moments, tmp_path / f"{name} grpo", **KL)
        before, options = weights(policy), {"sft_epochs": 0.6, "on_step": interrupt_at(1 if name == "held" else -1)}
        if name == "held":
            with pytest.raises(Interrupted):
                small.train_sft(policy, source, moments, tmp_path / f"{name} sft", **options)
            assert equal(weights(policy), before)
        third = small.train_sft(policy, source, moments, tmp_path / f"{name} sft", sft_epochs=0.6)
        found.append((kl(second), before, third.history, weights(policy)))
    (divergence, after_grpo, history, after_sft), other = found
    assert abs(divergence[0]) < 1e-6 < 1e-4 < divergence[2] < 1 and divergence == other[0]
    assert (
        equal(after_grpo, other[1])
        and small.untimed(history) == small.untimed(other[2])
        and equal(after_sft, other[3])
    )


@pytest.mark.parametrize("end", ["ended", "interrupted"])
@pytest.mark.parametrize("train", [small.train_grpo, small.train_sft])
def test_training_leaves_no_trace_in_the_model_but_its_weights(train, end, rank, source, moments, tmp_path):
    """Nor in bfloat16, where accelerate wraps the forward, nor with checkpointing, which hooks into the embeddings."""
    policy = load_policy("embedded", device="cpu", lora_rank=rank, dtype="bfloat16")
    policy.model.train()
    policy.base.lm_head.eval()

    def shown(value):
        if isinstance(value, torch.nn.Module | torch.Tensor):
            return id(value)
        return str(value).removeprefix("torch.")  # saving a model turns its dtype into a word

    def state():
        found = {}
        for number, part in enumerate(_modules_and_configs(policy.model)):
            for name, value in vars(part).items():
                each = (
                    value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
                )
                found[number, name] = {key: shown(inner) for key, inner in each} or shown(value)
        return found | {name: (p.requires_grad, p.grad, p.dtype) for name, p in policy.model.named_parameters()}

    before = state()
    options = {"gradient_checkpointing": True, "on_step": interrupt_at(1 if end == "interrupted" else -1)}
    if train is small.train_grpo:
        options |= {"grpo_steps": 1, "beta": 0.1, "max_new_tokens": 4, "prompts_per_step": 2}
    with pytest.raises(Interrupted) if end == "interrupted" else nullcontext():
        train(policy, source, moments[:4], tmp_path / "run", **options)
    after = state()
    parts = {key: (before.get(key), after.get(key)) for key in before | after}
    assert {key: pair for key, pair in parts.items() if pair[0] != pair[1]} == {}


def test_a_reference_is_the_model_itself_though_its_methods_have_been_replaced(policy, source, moments):
    """As another trainer leaves them, or an earlier labkit: a copy of the object would go on following the original."""
    add_fused_lm_head(policy.model, outputs=("log_probs",))
    made, prompt = frozen_copy(policy), source[moments[0].qid]
    ids = torch.tensor(policy.tokenizer("<think>", add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        before = plain_log_probs(policy.model, prompt, ids)
        assert torch.equal(plain_log_probs(made, prompt, ids), before)
        for weight in policy.model.parameters():
            if weight.requires_grad:
                weight.mul_(1.5)
        assert torch.equal(plain_log_probs(made, prompt, ids), before)
        assert not torch.allclose(plain_log_probs(policy.model, prompt, ids), before)
    assert not any(weight.requires_grad for weight in made.parameters()) and not made.training
    tower, copied = policy.model.model.visual.parameters(), made.model.visual.parameters()
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(tower, copied, strict=True)), "the tower takes no memory"


def test_the_final_adapter_stands_alone(rank, fresh):
    _, _, folder, _ = fresh
    assert not [path.name for path in (folder / "final").iterdir() if path.is_dir()]


def test_workers_models_are_left_to_them(policy, monkeypatch, tmp_path):
    """What fsdp2 has put in the place of weights must not be replaced by what was there before."""
    for name, number in {"LABKIT_WORKERS": tmp_path, "RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(number))
    with preserve_model_state(policy):
        policy.model.trace = 1
    assert policy.model.trace == 1


# Random numbers


def test_each_stage_and_seed_has_random_numbers_of_its_own():
    seeds = {
        stage_seed(seed, stage) for seed in range(50) for stage in ("grpo", "grpo_final", "sft", "base", "harvester")
    }
    assert len(seeds) == 250 and all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.slow
def test_stage_3_asks_other_queries_than_stage_1_and_draws_other_numbers(source, moments, tmp_path, monkeypatch):
    asked, seeds = {}, []
    monkeypatch.setattr(
        vllm_generation,
        "generate",
        lambda *args, seed, **options: seeds.append(seed) or generate(*args, seed=seed, **options),
    )
    for stage in ("grpo", "grpo_final"):
        small.train_grpo(
            load_policy("embedded", device="cpu"), source, moments, tmp_path / stage, stage=stage, grpo_steps=3,
            final_steps=3, max_new_tokens=4, prompts_per_pass=0, warmup_steps=10,
        )  # fmt: skip
        rollouts = RolloutStore(tmp_path / stage / "rollouts").read()
        asked[stage] = [[r.qid for r in rollouts if r.step == step][::4] for step in (1, 2, 3)]
        assert {r.seed for r in rollouts} == {7}, "the record names the run's seed"
    assert all(first != third for first, third in zip(*asked.values(), strict=True))
    assert len(set(seeds)) == 6, "three steps of each"


@pytest.mark.parametrize("place", ["grpo", "sft"])
def test_the_first_step_moves_the_weights(place, source, moments, tmp_path):
    """Its rollouts were once thrown away: the learning rate rose from 0."""
    policy = load_policy("embedded", device="cpu")
    before = weights(policy)
    if place == "grpo":
        result = small.train_grpo(policy, source, moments, tmp_path, grpo_steps=1, warmup_steps=10)
    else:
        result = small.train_sft(policy, source, moments, tmp_path, sft_epochs=0.3, warmup_steps=10)
    assert [row["learning_rate"] for row in result.history] == [1e-3]
    assert farthest(before, weights(policy)) > 1e-4


@pytest.mark.slow
def test_the_learning_rate_rises_in_equal_parts_and_falls_to_its_tenth(source, moments, tmp_path):
    result = small.train_grpo(
        load_policy("embedded", device="cpu"), source, moments, tmp_path, grpo_steps=6, warmup_steps=3, max_new_tokens=4,
        learning_rate=1e-3, stop_anchor_rate=1.0, prompts_per_pass=0,
    )  # fmt: skip
    rates = [row["learning_rate"] / 1e-3 for row in result.history]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 0.775, 0.325, 0.1])


def test_lora_begins_by_its_seed_alone():
    def adapted(seed, before):
        torch.manual_seed(before)
        policy = load_policy("embedded", device="cpu", lora_rank=4, seed=seed)
        return weights(policy), torch.rand(1)

    (one, drawn), (again, _), (other, _) = adapted(0, 1), adapted(0, 2), adapted(1, 1)
    assert equal(one, again) and not equal(one, other)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1)), "nobody else's random numbers are touched"


# Going on


def test_a_stage_goes_on_only_from_what_it_began_with(policy, source, moments, tmp_path):
    """Such as a policy that the notebook still holds and that has been trained since."""
    with pytest.raises(Interrupted):
        small.train_grpo(policy, source, moments, tmp_path, on_step=interrupt_at(3), **KL)
    with torch.no_grad():
        policy.model.lm_head.weight[0, 0] += 1e-3
    with pytest.raises(LabError, match="'embedded' is not the model that .* began from .* load it anew"):
        small.train_grpo(policy, source, moments, tmp_path, **KL)
    with pytest.raises(LabError, match="began with other seed: there 7, here 8"):
        small.train_grpo(load_policy("embedded", device="cpu"), source, moments, tmp_path, seed=8, **KL)


def test_sft_goes_on_only_with_the_traces_it_began_with(policy, source, moments, tmp_path):
    with pytest.raises(Interrupted):
        small.train_sft(policy, source, moments, tmp_path, on_step=interrupt_at(2))
    with pytest.raises(LabError, match="began with other traces"):
        small.train_sft(policy, source, moments[:-1], tmp_path)


def test_what_an_earlier_version_noted_is_compared_as_far_as_it_goes(policy, tmp_path):
    (tmp_path / START).write_text(json.dumps({"seed": 3}))
    require_same_start(policy, tmp_path, seed=3)
    noted = json.loads((tmp_path / START).read_text())
    assert noted["seed"] == 3 and len(noted["weights"]) == 16
    (tmp_path / START).write_text("{")
    with pytest.raises(LabError, match="start.json' is damaged"):
        require_same_start(policy, tmp_path, seed=3)


def test_a_model_that_is_not_the_stages_is_not_taken_for_it(fresh, rank):
    _, _, folder, _ = fresh
    require_final_weights(load_policy(str(folder / "final"), device="cpu"), folder)
    with pytest.raises(LabError, match="'embedded' has not the weights that .* ended with"):
        require_final_weights(load_policy("embedded", device="cpu", lora_rank=rank), folder)


def test_rollouts_that_have_gone_are_missed(policy, source, moments, tmp_path):
    with pytest.raises(Interrupted):
        small.train_grpo(policy, source, moments, tmp_path, on_step=interrupt_at(3), **KL)
    next((tmp_path / "rollouts").glob("part-*1.parquet")).unlink()
    with pytest.raises(LabError, match="lacks the rollouts of 1 steps that .*checkpoint-2' has seen .*the first: 1"):
        small.train_grpo(policy, source, moments, tmp_path, **KL)


def test_a_result_that_has_gone_is_missed(tmp_path):
    (tmp_path / "final").mkdir()
    with pytest.raises(LabError, match="result.json' cannot be read .*though the stage has ended"):
        read_result(tmp_path, SimpleNamespace)
