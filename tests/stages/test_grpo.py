import dataclasses
import math

import pytest
import torch

from labkit.chain.anchors import parse
from labkit.chain.rewards import TERMS, score_chain
from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.model import load_policy
from labkit.stages import completions, grpo
from labkit.stages.checkpoints import stage_seed
from labkit.stages.completions import score_completion
from labkit.stages.experimental import vllm_generation
from labkit.stages.grpo_steps import should_stop, step_figures
from labkit.stages.rollouts import RolloutStore
from tests.stages import small
from tests.stages.small import distance, farthest, plain_log_probs, weights


@pytest.fixture
def loss_inputs(monkeypatch):
    """What each pass of the loss is given, and the log-probs that it uses."""
    seen = []
    trainer = grpo.trainer_class()
    inner, log_probs_of = trainer._compute_loss, trainer._get_per_token_logps_and_entropies

    def compute_loss(self, model, inputs):
        seen.append(dict(inputs))
        return inner(self, model, inputs)

    def log_probs(self, *args, **kwargs):
        found = log_probs_of(self, *args, **kwargs)
        seen[-1]["log_probs"] = found[0].detach()
        return found

    monkeypatch.setattr(trainer, "_compute_loss", compute_loss)
    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", log_probs)
    return seen


@pytest.fixture
def same_completions(monkeypatch):
    """Whoever trains is given the completions that were sampled first."""
    made = {}

    def recorded(policy, prompts, num, *, seed, **options):
        return made.setdefault(seed, generate(policy, prompts, num, seed=seed, **options))

    monkeypatch.setattr(vllm_generation, "generate", recorded)
    return made


def by_hand(policy, source, moments, rollouts, params):
    """GRPO from its definition, one sample a pass: weights after the grpo_steps, and the advantages of each."""
    asked = {moment.qid: moment for moment in moments}
    reference = load_policy("embedded", device="cpu").model
    model, group = policy.model, params.group_size
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=params.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    advantages = []
    for step in range(params.grpo_steps):
        qids = [r.qid for r in rollouts if r.step == step + 1]
        completions = generate(
            policy, [source[qid] for qid in qids[::group]], group, max_new_tokens=params.max_new_tokens,
            seed=stage_seed(params.seed, "grpo") * 1_000_003 + step + 1,
        )  # fmt: skip
        totals = []
        for qid, completion in zip(qids, completions, strict=True):
            chain = parse(completion.text, finished=completion.finished)
            totals.append(score_chain(chain, asked[qid].windows, asked[qid].duration, small.SPEC).total)
        rewards = torch.tensor(totals).view(-1, group)
        scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        advantages += scaled.flatten().tolist()
        tokens = sum(len(completion.ids) for completion in completions)
        optimizer.zero_grad()
        for qid, advantage, completion in zip(qids, scaled.flatten(), completions, strict=True):
            ids = torch.tensor(completion.ids)
            log_probs = plain_log_probs(model, source[qid], ids)
            ratio = (log_probs - log_probs.detach()).exp()
            loss = -advantage * ratio
            if params.beta:
                with torch.no_grad():
                    apart = plain_log_probs(reference, source[qid], ids) - log_probs
                apart = apart + log_probs.detach() - log_probs
                loss = loss + params.beta * (
                    apart.exp() - apart - 1
                )  # not weighted by the ratio, which has a gradient
            (loss.sum() / tokens).backward()  # the mean over all tokens of the step
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        cosine = 0.5 * (
            1 + math.cos(math.pi * step / (params.grpo_steps - 1))
        )  # one step of warm-up, which has it whole
        for parameters in optimizer.param_groups:
            parameters["lr"] = params.learning_rate * (0.9 * cosine + 0.1)
        optimizer.step()
    return weights(policy), advantages


@pytest.mark.parametrize("beta", [0.0, 0.2])
@pytest.mark.slow
def test_weights_after_some_steps_equal_the_textbook_one_sample_at_a_time(policy, source, moments, tmp_path, beta):
    start = weights(policy)
    small.train_grpo(policy, source, moments, tmp_path / "ours", grpo_steps=3, beta=beta)
    rollouts = RolloutStore(tmp_path / "ours" / "rollouts").read()
    fresh = load_policy("embedded", device="cpu")
    expected, advantages = by_hand(fresh, source, moments, rollouts, small.grpo_params(grpo_steps=3, beta=beta))
    moved = distance(start, expected)
    assert moved > 0.1
    assert distance(weights(policy), expected) < 1e-3 * moved
    # What was recorded is what the update used.
    assert [r.advantage for r in rollouts] == pytest.approx(advantages, abs=1e-5)
    assert max(abs(value) for value in advantages) > 0.5


@pytest.mark.slow
def test_neither_passes_nor_checkpointing_change_the_update(source, moments, tmp_path, same_completions, capfd):
    """The loss is the mean over the step's tokens, however many prompts a pass holds; the seed samples the same."""
    found = []
    for number, changes in enumerate(
        [
            {"prompts_per_pass": 0},  # all four
            {"prompts_per_pass": 1},
            {"prompts_per_pass": 2},
            {"prompts_per_pass": 2, "gradient_checkpointing": True},
        ]
    ):
        policy = load_policy("embedded", device="cpu")
        start = weights(policy)
        options = {"grpo_steps": 2, "warmup_steps": 0, "learning_rate": 1e-4, **changes}
        small.train_grpo(policy, source, moments, tmp_path / str(number), **options)
        found.append(weights(policy))
    assert farthest(found[0], start) > 1e-4
    for other in found[1:]:
        assert farthest(found[0], other) < 1e-5
    assert capfd.readouterr() == ("", "")


def test_every_rollout_is_recorded_and_the_history_agrees(policy, source, moments, tmp_path, loss_inputs, capfd):
    heard = []
    result = small.train_grpo(policy, source, moments, tmp_path / "run", grpo_steps=2, on_step=heard.append)
    assert result.steps == 2 and result.stopped_by == "steps"
    assert result.history == heard and [row["step"] for row in heard] == [1, 2]
    rollouts = RolloutStore(tmp_path / "run" / "rollouts").read()
    assert all(rollout.spec == small.SPEC for rollout in rollouts), "what it was paid by is on record"
    assert len(rollouts) == 2 * 4 * 4 and len({r.key for r in rollouts}) == len(rollouts)
    first = [r for r in rollouts if r.step == 1]
    assert heard[0]["total"] == pytest.approx(sum(r.total for r in first) / 16)
    assert heard[0]["completion_tokens"] == sum(r.completion_tokens for r in first) / 16
    for rollout in first:
        chain = parse(rollout.text, finished=rollout.finished)
        moment = next(m for m in moments if m.qid == rollout.qid)
        breakdown = score_chain(chain, moment.windows, moment.duration, small.SPEC)
        assert rollout.status == chain.status and rollout.total == breakdown.total
        assert [getattr(rollout, f"reward_{term}") for term in TERMS] == list(breakdown.terms.values())
        assert rollout.prompt_tokens == len(source[rollout.qid].ids)
    given = torch.cat([inputs["advantages"] for inputs in loss_inputs])
    assert [r.advantage for r in rollouts] == given.tolist()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"final", "result.json", "rollouts", "start.json"}
    again = small.train_grpo(policy, source, moments, tmp_path / "run", grpo_steps=2, on_step=pytest.fail)
    assert repr(again) == repr(result)  # means over nothing are NaN, which equals nothing
    assert capfd.readouterr() == ("", ""), "a notebook shows what it wants to show"


@pytest.mark.parametrize("train", [small.train_grpo, small.train_sft])
@pytest.mark.slow
def test_a_run_tells_nobody_about_itself(source, moments, tmp_path, train, monkeypatch):
    """TRL's trainers send usage data, unless the machine is offline or the variable CI is set."""
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **told: sent.append(told))
    train(load_policy("embedded", device="cpu"), source, moments[:4], tmp_path, save_steps=9)
    assert sent == []


@pytest.mark.slow
def test_the_policy_pass_sees_the_video(source, moments, tmp_path, loss_inputs, same_completions):
    """The same completions, advantages and start, other frames: log-probs and update must be others.

    Stock GRPOTrainer fails this: it drops the video from the log-prob pass without a word.
    """
    reversed_film = {q: dataclasses.replace(prompt, features=prompt.features.flip(0)) for q, prompt in source.items()}
    start, ends, passes = weights(load_policy("embedded", device="cpu")), [], []
    for name, shown in [("seen", source), ("reversed", reversed_film)]:
        loss_inputs.clear()
        policy = load_policy("embedded", device="cpu")
        small.train_grpo(policy, shown, moments, tmp_path / name, grpo_steps=1, warmup_steps=0)
        ends.append(weights(policy))
        passes.append([dict(inputs) for inputs in loss_inputs])
    assert len(same_completions) == 1, "nothing was sampled anew"
    for seen, other in zip(*passes, strict=True):
        assert torch.equal(seen["completion_ids"], other["completion_ids"])
        assert torch.equal(seen["advantages"], other["advantages"])
        assert (seen["log_probs"] - other["log_probs"]).abs().amax(1).min() > 0.01, "of every completion"
    assert distance(ends[0], ends[1]) > 0.1 * distance(ends[0], start)


@pytest.mark.parametrize(
    ("rates", "stricts", "stops", "why"),
    [
        ([0.97] * 5, [0.7] * 5, True, "both above, on average over the window"),
        ([1.0] * 5, [1.0, 1.0, 1.0, 0.1, 0.1], True, "0.64: single steps may fall below"),
        ([0.95] * 5, [0.7] * 5, False, "the anchor rate is reached, not passed"),
        ([0.97] * 5, [0.6] * 5, False, "nor is progress"),
        ([1.0] * 4, [1.0] * 4, False, "too few steps to judge by"),
        ([0.0] * 5 + [1.0] * 5, [0.0] * 5 + [1.0] * 5, True, "only the last steps count"),
    ],
)
def test_the_stop_condition_is_a_mean_over_the_last_steps(rates, stricts, stops, why):
    pairs = zip(rates, stricts, strict=True)
    figures = {i + 1: {"anchor_rate": rate, "strict_share": strict} for i, (rate, strict) in enumerate(pairs)}
    params = small.grpo_params(stop_anchor_rate=0.95, stop_progress=0.6)
    assert should_stop(figures, len(rates), params) is stops, why


def test_the_threshold_of_one_never_stops():
    figures = {step: {"anchor_rate": 1.0, "strict_share": 1.0} for step in range(1, 9)}
    assert not should_stop(figures, 8, small.grpo_params(stop_anchor_rate=1.0, stop_progress=1.0))


def test_groups_in_which_all_earned_the_same_are_counted(moments):
    texts = ["<answer>1.0 to 2.0</answer>", "nothing"]
    sampled = [
        score_completion(moment, sample, texts[kind], 3, True, small.SPEC, step=1)
        for moment, kinds in zip(moments[:3], [(1, 1, 1), (0, 1, 1), (0, 0, 0)], strict=True)
        for sample, kind in enumerate(kinds)
    ]
    figures = step_figures(sampled, group_size=3)
    assert (figures["zero_variance_groups"], figures["groups"]) == (2, 3)


def test_an_error_in_a_reward_ends_training(policy, source, moments, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("the reward divides by the length of the video")

    monkeypatch.setattr(completions, "score_moment", broken)
    with pytest.raises(ZeroDivisionError, match="length of the video"):
        small.train_grpo(policy, source, moments, tmp_path / "run", grpo_steps=1)
    assert not (tmp_path / "run" / "final").exists()


@pytest.fixture(scope="module")
def adapted(source, moments, tmp_path_factory):
    """An adapter after some steps with a KL term: weights before and after, history, folder."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    torch.manual_seed(0)
    policy = load_policy("embedded", device="cpu", lora_rank=4)
    before = weights(policy)
    result = small.train_grpo(policy, source, moments, folder, grpo_steps=3, beta=0.1, warmup_steps=0)
    return before, weights(policy), result.history, folder


def test_lora_with_a_kl_term_trains_the_adapter_alone(adapted):
    before, after, history, _ = adapted
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all("lora" in name and ".default." in name for name in moved)
    assert abs(history[0]["kl"]) < 1e-6 < history[2]["kl"], "against the model below the adapter"


@pytest.mark.slow
def test_chains_are_those_of_an_adapter_that_is_not_merged(adapted, source, moments, tmp_path):
    """And with them all that is learnt; in bfloat16 the base is the same bit by bit behind four steps, too."""
    _, after, history, folder = adapted
    policy = load_policy("embedded", device="cpu", lora_rank=4, lora_merge=False)
    result = small.train_grpo(policy, source, moments, tmp_path / "apart", grpo_steps=3, beta=0.1, warmup_steps=0)
    texts = [[row.text for row in RolloutStore(each / "rollouts").read()] for each in (folder, tmp_path / "apart")]
    assert texts[0] == texts[1] and len(texts[0]) == 48
    assert [row["kl"] for row in result.history] == pytest.approx([row["kl"] for row in history], abs=1e-5)
    assert farthest(after, weights(policy)) < 1e-5
    policy = load_policy("embedded", device="cpu", lora_rank=4, dtype="bfloat16")
    before = weights(policy)
    small.train_grpo(policy, source, moments, tmp_path / "half", grpo_steps=4, beta=0.1, warmup_steps=0)
    moved = {name for name, weight in weights(policy).items() if not torch.equal(weight, before[name])}
    assert moved and all("lora_" in name for name in moved)


@pytest.mark.slow
def test_an_adapter_that_is_trained_on_is_held_to_itself(adapted, source, moments, tmp_path, capfd):
    """Not to the model below: the first step of the final stage is no divergence."""
    _, after, _, folder = adapted
    policy = load_policy(str(folder / "final"), device="cpu")
    start = weights(policy)
    assert all(torch.equal(start[name], after[name]) for name in start)
    result = small.train_grpo(policy, source, moments, tmp_path / "run", grpo_steps=2, beta=0.1, warmup_steps=0)
    assert abs(result.history[0]["kl"]) < 1e-6 < result.history[1]["kl"]
    again, trained = weights(load_policy(str(tmp_path / "run" / "final"), device="cpu")), weights(policy)
    assert all(torch.equal(again[name], trained[name]) for name in again)
    assert farthest(start, again) > 1e-4
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_checkpointing_changes_nothing_under_lora(adapted, source, moments, tmp_path):
    _, after, _, _ = adapted
    torch.manual_seed(0)
    policy = load_policy("embedded", device="cpu", lora_rank=4)
    options = {"grpo_steps": 3, "beta": 0.1, "warmup_steps": 0, "gradient_checkpointing": True}
    small.train_grpo(policy, source, moments, tmp_path / "run", **options)
    assert farthest(after, weights(policy)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 400}, "a step asks 400 queries and the training split has"),
        ({"prompts_per_pass": 3}, "prompts_per_step is 4 and must be a multiple of prompts_per_pass, 3"),
    ],
)
def test_settings_that_cannot_work_end_before_any_work(policy, moments, tmp_path, changes, message):
    changes = {"prompts_per_pass": 0, **changes}
    with pytest.raises(LabError, match=message):
        small.train_grpo(policy, {}, moments, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
