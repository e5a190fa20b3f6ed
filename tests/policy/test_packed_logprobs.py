import dataclasses

import pytest
import torch

from labkit.policy import packed_logprobs as module
from labkit.policy.adapters import add_lora
from labkit.policy.inputs import vision_kwargs
from labkit.policy.model import Policy, ignore_renames
from labkit.policy.packed_logprobs import pack_shared_prefix
from tests import tiny

TOLERANCE = 1e-4
TEMPERATURE = 0.9
LENGTHS = [[7, 1, 5, 3], [2, 2], [6, 4, 9]]
"""Completions of three prompts of different lengths: uneven groups, one of a single token."""


@pytest.fixture(scope="module")
def policy():
    return tiny.policy()


@pytest.fixture(scope="module")
def prompts(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    moments = tiny.moments(folder)
    source = tiny.source(policy, moments, folder / "frames")
    found = [source[moments[i].qid] for i in (0, 3, 1)]
    assert len({len(prompt.ids) for prompt in found}) > 1
    return found


@pytest.fixture(scope="module")
def completions():
    lengths = torch.tensor([n for group in LENGTHS for n in group])
    ids = torch.randint(20, 380, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids * mask, mask


def one_at_a_time(policy, prompts, ids, mask):
    """(rows, C) log-probs and entropies as the textbook has them: one sample, one pass, no padding."""
    logps, entropies = torch.zeros(mask.shape), torch.zeros(mask.shape)
    owners = [prompt for prompt, group in zip(prompts, LENGTHS, strict=True) for _ in group]
    for row, prompt in enumerate(owners):
        completion = ids[row][mask[row]]
        whole, positions = tiny.append_completion(prompt, completion)
        out = policy.model(
            input_ids=whole[None],
            position_ids=positions[:, None],
            use_cache=False,
            **vision_kwargs([prompt], whole.device),
        )
        table = (out.logits[0, len(prompt.ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
        logps[row, : len(completion)] = table.gather(1, completion[:, None])[:, 0]
        entropies[row, : len(completion)] = -(table.exp() * table).sum(-1).detach()
    return logps, entropies


def gradients(policy, logps, mask):
    policy.model.zero_grad()
    weights = torch.linspace(-1, 1, len(mask))[:, None] * mask  # advantages of both signs
    (logps * weights).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def packed(policy, prompts, ids, mask):
    row = pack_shared_prefix(prompts, ids, mask, [len(group) for group in LENGTHS])
    return row.log_probs(policy.model, TEMPERATURE, entropy=True)


@pytest.mark.parametrize("case", ["plain", "checkpointed", "lora"])
def test_log_probs_and_gradients_equal_one_sample_at_a_time(policy, prompts, completions, case):
    ids, mask = completions
    if case == "lora":
        inner = tiny.policy()
        with ignore_renames():
            policy = Policy(add_lora(inner.model, 4, 8, 0), inner.tokenizer, "tiny")
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
    plain, entropies = one_at_a_time(policy, prompts, ids, mask)
    expected = gradients(policy, plain, mask)
    if case == "checkpointed":
        tiny.checkpoint_activations(policy.model, True)
        policy.model.train()
    try:
        logps, spread = packed(policy, prompts, ids, mask)
        found = gradients(policy, logps, mask)
    finally:
        policy.model.eval()
        if case == "checkpointed":
            tiny.checkpoint_activations(policy.model, False)
    assert (logps - plain).abs().max() < TOLERANCE
    assert (spread - entropies).abs().max() < TOLERANCE
    assert not spread.requires_grad
    assert found.keys() == expected.keys() and not any("visual" in name for name in found)
    assert max(expected[name].abs().max() for name in expected) > 0.1
    assert max((found[name] - expected[name]).abs().max() for name in found) < TOLERANCE


def test_padding_is_zero_and_carries_no_gradient(policy, prompts, completions):
    logps, spread = packed(policy, prompts, *completions)
    assert torch.all(logps[~completions[1]] == 0) and torch.all(spread[~completions[1]] == 0)


def test_the_prompt_is_read_once_whatever_the_group_size(policy, prompts, completions):
    ids, mask = completions
    row = pack_shared_prefix(prompts, ids, mask, [len(group) for group in LENGTHS]).inputs["input_ids"][0]
    total = sum(len(p.ids) - 1 + sum(group) for p, group in zip(prompts, LENGTHS, strict=True))
    assert row.shape == (total,)
    video = policy.model.config.video_token_id
    assert int((row == video).sum()) == sum(int((p.ids == video).sum()) for p in prompts)


def test_other_frames_change_the_log_probs(policy, prompts, completions):
    """Fails if the policy pass ever reads the prompt without its video."""
    seen, _ = packed(policy, prompts, *completions)
    swapped = [dataclasses.replace(prompt, features=prompt.features.flip(0)) for prompt in prompts]
    unseen, _ = packed(policy, swapped, *completions)
    assert (seen - unseen).abs().amax(1).min() > 0.1  # every completion is answered otherwise


def behind(prompt, words):
    """The same clip, with other words behind the video."""
    keep = prompt.video_end
    after = torch.arange(len(words)) + int(prompt.positions.max()) + 1 - (len(prompt.ids) - keep)
    positions = torch.cat([prompt.positions[:, :keep], after.expand(3, -1)], 1)
    return dataclasses.replace(prompt, ids=torch.cat([prompt.ids[:keep], torch.tensor(words)]), positions=positions)


def test_questions_about_one_clip_share_it(policy, prompts, completions):
    """Values and gradients are those of one question at a time; the clip is read once."""
    ids, mask = completions
    asked = [behind(prompts[0], [30, 31, 32]), behind(prompts[0], [30, 40]), behind(prompts[1], [30, 40])]
    plain, _ = one_at_a_time(policy, asked, ids, mask)
    expected = gradients(policy, plain, mask)
    row = pack_shared_prefix(asked, ids, mask, [len(group) for group in LENGTHS])
    video = policy.model.config.video_token_id
    assert int((row.inputs["input_ids"] == video).sum()) == sum(int((p.ids == video).sum()) for p in asked[1:])
    found, _ = row.log_probs(policy.model, TEMPERATURE)
    assert (found - plain).abs().max() < TOLERANCE
    ours = gradients(policy, found, mask)
    assert max((ours[name] - expected[name]).abs().max() for name in ours) < TOLERANCE
    separate, _ = packed(policy, [dataclasses.replace(p, features=p.features.clone()) for p in asked], ids, mask)
    assert (separate - plain).abs().max() < TOLERANCE


def test_logits_exist_for_a_chunk_at_a_time(policy, prompts, completions, monkeypatch):
    whole, spread = packed(policy, prompts, *completions)
    expected = gradients(policy, whole, completions[1])
    monkeypatch.setattr(module, "LOGIT_CHUNK", 4)
    parts, parts_spread = packed(policy, prompts, *completions)
    found = gradients(policy, parts, completions[1])
    assert torch.allclose(parts, whole, atol=1e-5) and torch.allclose(parts_spread, spread, atol=1e-5)
    assert max((found[name] - expected[name]).abs().max() for name in found) < TOLERANCE
