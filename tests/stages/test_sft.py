import math

import pytest
import torch

from labkit.errors import LabError
from labkit.params import DEFAULTS
from labkit.policy.model import load_policy
from labkit.stages import arguments
from labkit.stages.checkpoints import shuffled_order, stage_seed
from labkit.stages.sft import Trace, collate, sft_batch_size, train_sft
from tests.stages import small
from tests.stages.small import distance, farthest, plain_log_probs, weights


def test_only_completions_are_learnt_and_they_end(policy, source, moments):
    rows = [trace._asdict() for trace in small.traces(moments)[:3]]
    batch = collate(policy, source, rows)
    assert [prompt.qid for prompt in batch["prompts"]] == [row["qid"] for row in rows]
    assert batch["sizes"] == (1, 1, 1)
    for row, labels in zip(rows, batch["labels"], strict=True):
        learnt = labels[labels != -100]
        assert learnt[-1] == policy.tokenizer.eos_token_id
        assert policy.tokenizer.decode(learnt[:-1]) == row["text"]
        assert torch.all(labels[len(learnt) :] == -100)


def test_traces_of_one_clip_stand_together(policy, source, moments):
    asked = [moments[at] for at in (0, 4, 1, 0)]
    assert moments[0].video == moments[1].video != moments[4].video
    rows = [{"qid": moment.qid, "text": f"{at}.0"} for at, moment in enumerate(asked)]
    batch = collate(policy, source, rows)
    assert [prompt.qid for prompt in batch["prompts"]] == [asked[at].qid for at in (0, 2, 1)]
    assert batch["sizes"] == (2, 1, 1), "the two traces of one question share even that"
    assert [policy.tokenizer.decode(labels[:1]) for labels in batch["labels"]] == ["0.0", "3.0", "2.0", "1.0"]


def by_hand(policy, source, rows, steps, learning_rate):
    """Weights after `steps` batches of 4 rows: the mean over the batch's completion tokens, one sample a pass."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        found = []
        for trace in rows[4 * step : 4 * step + 4]:
            text = policy.tokenizer(trace.text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([*text, policy.tokenizer.eos_token_id])
            found.append(-plain_log_probs(policy.model, source[trace.qid], ids))
        loss = torch.cat(found).mean()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * step / (steps - 1)))  # one step of warm-up, which has it whole
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (0.95 * cosine + 0.05)
        optimizer.step()
    return weights(policy), losses


def test_weights_after_some_steps_equal_the_textbook_one_sample_at_a_time(
    policy, source, moments, tmp_path, capfd, monkeypatch
):
    start = weights(policy)
    rows = small.traces(moments)
    monkeypatch.setattr(arguments, "WARMUP_STEPS", 1)
    params = DEFAULTS.replace(sft_epochs=12 / len(rows), sft_batch=4, sft_learning_rate=1e-3, save_steps=9, seed=3)
    heard = []
    result = train_sft(policy, source, rows, params=params, folder=tmp_path / "run", on_step=heard.append)
    assert result.steps == 3 and [row["step"] for row in heard] == [1, 2, 3]
    assert capfd.readouterr() == ("", ""), "a notebook shows what it wants to show"
    order = [rows[i] for i in shuffled_order(range(len(rows)), 12, seed=stage_seed(3, "sft"))]
    fresh = load_policy("embedded", device="cpu")
    expected, losses = by_hand(fresh, source, order, 3, 1e-3)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]
    moved = distance(start, expected)
    assert moved > 0.1
    assert distance(weights(policy), expected) < 1e-3 * moved


@pytest.mark.slow
def test_checkpointing_changes_nothing(source, moments, tmp_path):
    found = []
    for checkpointing in (False, True):
        policy = load_policy("embedded", device="cpu")
        options = {
            "sft_epochs": 0.5,
            "warmup_steps": 0,
            "sft_learning_rate": 1e-4,
            "gradient_checkpointing": checkpointing,
        }
        small.train_sft(policy, source, moments, tmp_path / str(checkpointing), **options)
        found.append(weights(policy))
    assert farthest(*found) < 1e-5 < farthest(found[0], weights(load_policy("embedded", device="cpu")))


def test_no_trace_is_an_error(policy, tmp_path):
    with pytest.raises(LabError, match="no trace to learn from"):
        train_sft(policy, {}, [], params=DEFAULTS, folder=tmp_path / "run")


@pytest.mark.parametrize(
    ("asked", "traces", "processes", "expected", "reason"),
    [
        (64, 100, 8, 64, "enough for a whole batch"),
        (64, 37, 8, 32, "fewer: four for each, and five that wait for the next step"),
        (64, 37, 1, 37, "one takes all there are"),
        (60, 37, 8, 32, "a batch that is not taken need not be divided"),
        (60, 100, 8, "`processes` be 4", "60 are divided by 4, which 8 steps of GRPO can be divided by as well"),
        (64, 5, 8, "`processes` be 4", "five traces are not enough for eight, nor do they go into five with 64"),
        (63, 5, 8, "`processes` be 1", "63 is divided by no number that divides 8"),
    ],
)
def test_traces_are_shared_out_evenly(asked, traces, processes, expected, reason, policy, tmp_path, monkeypatch):
    if isinstance(expected, int):
        assert sft_batch_size(asked, traces, processes) == expected, reason
        return
    for name, number in {"LABKIT_WORKERS": tmp_path, "RANK": 0, "WORLD_SIZE": processes, "LOCAL_RANK": 0}.items():
        monkeypatch.setenv(name, str(number))
    params = DEFAULTS.replace(sft_batch=asked)
    with pytest.raises(
        LabError, match=f"{traces} traces.* sft_batch, {asked}, .*{processes} processes; let {expected}"
    ):
        train_sft(policy, {}, [Trace("q", "text")] * traces, params=params, folder=tmp_path / "run")
