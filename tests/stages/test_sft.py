import math

import pytest
import torch

from labkit.errors import LabError
from labkit.policy.inputs import vision_kwargs, with_completion
from labkit.policy.model import load_policy
from labkit.stages import checkpoints
from labkit.stages.checkpoints import COMPLETE, newest_checkpoint, shuffled_order
from labkit.stages.sft import SftSettings, collate, train_sft
from tests.stages import small


def weights(policy):
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def distance(ours, theirs):
    return math.sqrt(sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours))


def test_only_completions_are_learnt_and_they_end(policy, source, moments):
    rows = [trace._asdict() for trace in small.traces(moments)[:3]]
    batch = collate(policy, source, rows)
    for row, ids, labels, mask in zip(rows, batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        prompt = source[row["qid"]]
        learnt = labels[labels != -100]
        assert torch.equal(ids[: len(prompt.ids)], prompt.ids) and torch.all(labels[: len(prompt.ids)] == -100)
        assert learnt[-1] == policy.tokenizer.eos_token_id
        assert policy.tokenizer.decode(learnt[:-1]) == row["text"]
        assert int(mask.sum()) == len(prompt.ids) + len(learnt)
        assert torch.all(labels[mask == 0] == -100)


def by_hand(policy, source, rows, steps, learning_rate):
    """Weights after `steps` batches of 4 rows: the mean over the batch's completion tokens, one sample a pass."""
    trained = [p for p in policy.model.parameters() if p.requires_grad]
    decayed = {id(p) for name, p in policy.model.named_parameters() if p.dim() > 1}
    groups = [
        {"params": [p for p in trained if id(p) in decayed], "weight_decay": 0.01},
        {"params": [p for p in trained if id(p) not in decayed], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        found = []
        for trace in rows[4 * step : 4 * step + 4]:
            prompt = source[trace.qid]
            text = policy.tokenizer(trace.text, add_special_tokens=False)["input_ids"]
            ids = torch.tensor([*text, policy.tokenizer.eos_token_id])
            whole, positions = with_completion(prompt, ids)
            out = policy.model(
                input_ids=whole[None],
                position_ids=positions[:, None],
                use_cache=False,
                **vision_kwargs([prompt], whole.device),
            )
            table = out.logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1)
            found.append(-table.gather(1, ids[:, None])[:, 0])
        loss = torch.cat(found).mean()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - 1) / (steps - 1)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (0.95 * cosine + 0.05 if step else 0.0)
        optimizer.step()
    return weights(policy), losses


def test_weights_after_some_steps_equal_the_textbook_one_sample_at_a_time(policy, source, moments, tmp_path):
    start = weights(policy)
    rows = small.traces(moments)
    settings = SftSettings(epochs=12 / len(rows), batch=4, learning_rate=1e-3, save_steps=9, seed=3, warmup_steps=1)
    heard = []
    result = train_sft(policy, source, rows, settings=settings, folder=tmp_path / "run", on_step=heard.append)
    assert result.steps == 3 and [row["step"] for row in heard] == [1, 2, 3]
    order = [rows[i] for i in shuffled_order(range(len(rows)), 12, seed=3)]
    fresh = load_policy("embedded", device="cpu")
    expected, losses = by_hand(fresh, source, order, 3, 1e-3)
    assert [row["loss"] for row in result.history] == pytest.approx(losses, abs=1e-4)
    assert losses[-1] < losses[0]
    moved = distance(start, expected)
    assert moved > 0.1
    assert distance(weights(policy), expected) < 1e-3 * moved


def test_a_stage_killed_while_saving_ends_as_if_it_never_was(world, moments, policy, source, tmp_path):
    whole = load_policy("embedded", device="cpu")
    expected = small.train_sft(whole, source, moments, tmp_path / "whole")
    folder = tmp_path / "run"
    assert small.train_and_kill("sft", world, folder, "save4") == -9
    assert (folder / "checkpoint-4").is_dir() and not (folder / "checkpoint-4" / COMPLETE).exists()
    heard = []
    result = small.train_sft(policy, source, moments, folder, on_step=heard.append)
    assert [row["step"] for row in heard] == list(range(3, expected.steps + 1))  # from checkpoint 2
    assert distance(weights(policy), weights(whole)) < 1e-6
    assert result.history == expected.history
    again = load_policy(str(folder / "final"), device="cpu")
    assert distance(weights(again), weights(whole)) < 1e-6
    assert repr(small.train_sft(policy, source, moments, folder, on_step=pytest.fail)) == repr(result)


class Killed(Exception):
    pass


def test_an_adapter_resumes_too(source, moments, tmp_path):
    def stop(row):
        if row["step"] == 3:
            raise Killed

    def adapted():
        torch.manual_seed(0)
        return load_policy("embedded", device="cpu", lora_rank=4)

    whole, broken, resumed = adapted(), adapted(), adapted()
    small.train_sft(whole, source, moments, tmp_path / "whole")
    with pytest.raises(Killed):
        small.train_sft(broken, source, moments, tmp_path / "run", on_step=stop)
    small.train_sft(resumed, source, moments, tmp_path / "run")
    assert distance(weights(resumed), weights(whole)) < 1e-6
    assert distance(weights(resumed), weights(adapted())) > 1e-2


def test_no_trace_is_an_error(policy, tmp_path):
    settings = SftSettings(epochs=1, batch=4, learning_rate=1e-3, save_steps=9, seed=3)
    with pytest.raises(LabError, match="no trace to learn from"):
        train_sft(policy, {}, [], settings=settings, folder=tmp_path / "run")


def test_an_incomplete_checkpoint_is_left_out_and_removed(tmp_path):
    for step, complete in [(9, True), (10, True), (11, False)]:
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / COMPLETE).touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # by number, not by name
    assert not (tmp_path / "checkpoint-11").exists()
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_no_block_of_the_order_holds_an_item_twice():
    order = shuffled_order(range(7), 30, seed=1, block=3)
    assert len(order) == 30
    assert all(len(set(order[i : i + 3])) == 3 for i in range(0, 30, 3))
    assert order[:12] == shuffled_order(range(7), 12, seed=1, block=3)  # a longer stage begins as a shorter one
    with pytest.raises(ValueError, match="2 items do not fill a block of 3"):
        shuffled_order(range(2), 3, seed=1, block=3)


def test_a_checkpoint_is_loaded_under_the_names_it_was_saved_with(policy, tmp_path):
    """Saved weights carry the published names; a loader that looks for the running model's finds none of them."""
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.25)
    policy.model.save_pretrained(tmp_path)
    fresh = load_policy("embedded", device="cpu")
    checkpoints.load_weights(fresh.model, tmp_path)
    assert distance(weights(fresh), weights(policy)) == 0
