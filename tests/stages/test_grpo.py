import dataclasses
import json
import math

import pytest
import torch

from labkit.chain.anchors import parse
from labkit.chain.rewards import TERMS, score_chain
from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.inputs import vision_kwargs, with_completion
from labkit.policy.model import load_policy
from labkit.stages import grpo
from labkit.stages.grpo import WINDOW, Sampled, may_stop, step_figures
from labkit.stages.rollouts import RolloutStore
from tests.stages import small


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def distance(ours, theirs):
    """Length of the difference of two sets of weights."""
    return math.sqrt(sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours))


def plain_log_probs(model, prompt, ids):
    """Of one completion, in a pass of its own."""
    whole, positions = with_completion(prompt, torch.tensor(ids))
    out = model(
        input_ids=whole[None],
        position_ids=positions[:, None],
        use_cache=False,
        **vision_kwargs([prompt], whole.device),
    )
    table = out.logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1)
    return table.gather(1, torch.tensor(ids)[:, None])[:, 0]


def by_hand(policy, source, moments, rollouts, settings):
    """GRPO from its definition, one sample a pass: weights after the steps, and the advantages of each."""
    asked = {moment.qid: moment for moment in moments}
    reference = load_policy("embedded", device="cpu").model
    model, group = policy.model, settings.group_size
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    advantages = []
    for step in range(settings.steps):
        qids = [r.qid for r in rollouts if r.step == step + 1][::group]
        prompts = [source[qid] for qid in qids]
        completions = generate(
            policy, prompts, group, max_new_tokens=settings.max_new_tokens, seed=settings.seed * 1_000_003 + step + 1
        )
        totals = [
            score_chain(parse(c.text, finished=c.finished), asked[qid].windows, asked[qid].duration, small.SPEC).total
            for qid, c in zip([qid for qid in qids for _ in range(group)], completions, strict=True)
        ]
        rewards = torch.tensor(totals).view(-1, group)
        scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        advantages += scaled.flatten().tolist()
        tokens = sum(len(c.ids) for c in completions)
        optimizer.zero_grad()
        for row, completion in enumerate(completions):
            log_probs = plain_log_probs(model, prompts[row // group], completion.ids)
            ratio = (log_probs - log_probs.detach()).exp()
            loss = -scaled.flatten()[row] * ratio
            if settings.beta:
                with torch.no_grad():
                    apart = plain_log_probs(reference, prompts[row // group], completion.ids)
                kl = (apart - log_probs).exp() - (apart - log_probs) - 1
                loss = loss + settings.beta * kl * ratio  # weighted by the ratio: the gradient of the reverse KL
            (loss.sum() / tokens).backward()  # the mean over all tokens of the step
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 1) / (settings.steps - 1)))
        warm = step / settings.warmup_steps if step < settings.warmup_steps else 0.9 * cosine + 0.1
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.learning_rate * warm
        optimizer.step()
    return weights(policy), advantages


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_weights_after_some_steps_equal_the_textbook_one_sample_at_a_time(policy, source, moments, tmp_path, beta):
    start = weights(policy)
    small.train_grpo(policy, source, moments, tmp_path / "ours", steps=3, beta=beta)
    rollouts = RolloutStore(tmp_path / "ours" / "rollouts").read()
    fresh = load_policy("embedded", device="cpu")
    expected, advantages = by_hand(fresh, source, moments, rollouts, small.grpo_settings(steps=3, beta=beta))
    moved = distance(start, expected)
    assert moved > 0.1
    assert distance(weights(policy), expected) < 1e-3 * moved
    # What was recorded is what the update used.
    assert [r.advantage for r in rollouts] == pytest.approx(advantages, abs=1e-5)
    assert max(abs(value) for value in advantages) > 0.5


def test_every_rollout_is_recorded_and_the_history_agrees(policy, source, moments, tmp_path):
    heard = []
    result = small.train_grpo(policy, source, moments, tmp_path / "run", steps=2, on_step=heard.append)
    assert result.steps == 2 and result.stopped_by == "steps"
    assert result.history == heard and [row["step"] for row in heard] == [1, 2]
    rollouts = RolloutStore(tmp_path / "run" / "rollouts").read()
    assert len(rollouts) == 2 * 4 * 4 and len({r.key for r in rollouts}) == len(rollouts)
    first = [r for r in rollouts if r.step == 1]
    assert heard[0]["total"] == pytest.approx(sum(r.total for r in first) / 16)
    assert heard[0]["completion_tokens"] == sum(r.completion_tokens for r in first) / 16
    for rollout in first:
        chain = parse(rollout.text, finished=rollout.finished)
        moment = next(m for m in moments if m.qid == rollout.qid)
        ledger = score_chain(chain, moment.windows, moment.duration, small.SPEC)
        assert rollout.status == chain.status and rollout.total == ledger.total
        assert [getattr(rollout, f"reward_{term}") for term in TERMS] == list(ledger.terms.values())
        assert rollout.prompt_tokens == len(source[rollout.qid].ids)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"final", "result.json", "rollouts"}
    again = small.train_grpo(policy, source, moments, tmp_path / "run", steps=2, on_step=pytest.fail)
    assert repr(again) == repr(result)  # means over nothing are NaN, which equals nothing


def test_the_policy_pass_sees_the_video(policy, source, moments, tmp_path, monkeypatch):
    """The same completions, advantages and start, other frames: the update must be another one.

    Stock GRPOTrainer fails this: it drops the video from the log-prob pass without a word.
    """
    made = {}

    def recorded(policy, prompts, num, *, seed, **options):
        return made.setdefault(seed, generate(policy, prompts, num, seed=seed, **options))

    monkeypatch.setattr(grpo, "generate", recorded)
    start = weights(policy)
    small.train_grpo(policy, source, moments, tmp_path / "seen", steps=2)
    blind = {qid: dataclasses.replace(prompt, features=prompt.features.flip(0)) for qid, prompt in source.items()}
    other = load_policy("embedded", device="cpu")
    small.train_grpo(other, blind, moments, tmp_path / "blind", steps=2)
    assert len(made) == 2  # nothing was sampled anew
    assert distance(weights(policy), weights(other)) > 0.1 * distance(weights(policy), start)


@pytest.fixture(scope="module")
def uninterrupted(world, moments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    policy = load_policy("embedded", device="cpu")
    result = small.train_grpo(policy, small.source(policy, moments, folder / "frames"), moments, folder / "run")
    return weights(policy), RolloutStore(folder / "run" / "rollouts").read(), result


def test_a_stage_killed_twice_ends_as_if_it_never_was(world, moments, policy, source, tmp_path, uninterrupted):
    folder = tmp_path / "run"
    assert small.train_and_kill("grpo", world, folder, "save4") == -9
    assert (folder / "checkpoint-4").is_dir() and (folder / "checkpoint-2").is_dir()
    assert RolloutStore(folder / "rollouts").steps() == [1, 2, 3, 4]
    assert small.train_and_kill("grpo", world, folder, "end") == -9  # resumed from 2, for 4 is not complete
    assert not (folder / "final").exists()
    heard = []
    result = small.train_grpo(policy, source, moments, folder, on_step=heard.append)
    expected, rollouts, whole = uninterrupted
    assert [row["step"] for row in heard] == []  # checkpoint-5 holds the last step
    assert distance(weights(policy), expected) < 1e-6
    assert RolloutStore(folder / "rollouts").read() == rollouts  # none lost, none doubled, none other
    assert result.steps == whole.steps
    timeless = [[{**row, "step_time": 0} for row in each.history] for each in (result, whole)]
    assert timeless[0] == timeless[1]
    again = load_policy(str(folder / "final"), device="cpu")
    assert distance(weights(again), expected) < 1e-6


class Killed(Exception):
    pass


@pytest.mark.parametrize("save_steps", [WINDOW, 3])
def test_a_stage_that_stopped_by_condition_and_was_killed_before_its_end_stops_there_again(
    policy, source, moments, tmp_path, monkeypatch, save_steps
):
    """Whether the last step was a checkpoint of its own (5) or was taken after one (3)."""
    easy = {"steps": 8, "stop_anchor_rate": -1.0, "stop_progress": -1.0, "save_steps": save_steps}

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(grpo, "save_policy", die)
        with pytest.raises(Killed):
            small.train_grpo(policy, source, moments, tmp_path / "run", **easy)
    expected = weights(policy)
    state = json.loads((tmp_path / "run" / f"checkpoint-{save_steps}" / "trainer_state.json").read_text())
    for term in TERMS:  # TRL has logged each term under its name
        assert f"rewards/{term}/mean" in state["log_history"][0]
    fresh = load_policy("embedded", device="cpu")
    heard = []
    result = small.train_grpo(fresh, source, moments, tmp_path / "run", on_step=heard.append, **easy)
    assert [row["step"] for row in heard] == list(range(save_steps + 1, WINDOW + 1))
    assert (result.steps, result.stopped_by) == (WINDOW, "condition")
    assert len(result.history) == WINDOW
    assert RolloutStore(tmp_path / "run" / "rollouts").steps() == list(range(1, WINDOW + 1))
    assert distance(weights(fresh), expected) < 1e-6


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
    settings = small.grpo_settings(stop_anchor_rate=0.95, stop_progress=0.6)
    assert may_stop(figures, len(rates), settings) is stops, why


def test_the_threshold_of_one_never_stops():
    figures = {step: {"anchor_rate": 1.0, "strict_share": 1.0} for step in range(1, 9)}
    assert not may_stop(figures, 8, small.grpo_settings(stop_anchor_rate=1.0, stop_progress=1.0))


def test_groups_in_which_all_earned_the_same_are_counted(moments):
    texts = ["<answer>1.0 to 2.0</answer>", "nothing"]
    asked = {moment.qid: moment for moment in moments}
    sampled = []
    for qid, pattern in zip(list(asked)[:3], [(1, 1, 1), (0, 1, 1), (0, 0, 0)], strict=True):
        for sample, kind in enumerate(pattern):
            chain = parse(texts[kind])
            ledger = score_chain(chain, asked[qid].windows, asked[qid].duration, small.SPEC)
            sampled.append(Sampled(qid, sample, texts[kind], 3, True, chain, ledger))
    figures = step_figures(sampled, asked, group_size=3)
    assert (figures["zero_variance_groups"], figures["groups"]) == (2, 3)


def test_an_error_in_a_reward_ends_training(policy, source, moments, tmp_path, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("the reward divides by the length of the video")

    monkeypatch.setattr(grpo, "score_chain", broken)
    with pytest.raises(ZeroDivisionError, match="length of the video"):
        small.train_grpo(policy, source, moments, tmp_path / "run", steps=1)
    assert not (tmp_path / "run" / "final").exists()


def test_lora_with_a_kl_term_trains_the_adapter_alone(source, moments, tmp_path):
    policy = load_policy("embedded", device="cpu", lora_rank=4)
    start = weights(policy)
    result = small.train_grpo(policy, source, moments, tmp_path / "run", steps=2, beta=0.1, save_steps=1)
    assert result.history[1]["kl"] >= 0
    now = weights(policy)
    moved = {name for name in start if not torch.equal(start[name], now[name])}
    assert moved and all("lora" in name and ".default." in name for name in moved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_per_step": 400}, "a step asks 400 queries and the training split has"),
        ({"prompts_per_pass": 3}, "prompts_per_pass is 3 and must divide prompts_per_step, 4"),
    ],
)
def test_settings_that_cannot_work_end_before_any_work(policy, moments, tmp_path, changes, message):
    with pytest.raises(LabError, match=message):
        small.train_grpo(policy, {}, moments, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
