import dataclasses

import pytest
import torch

from labkit.policy import generate as module
from labkit.policy.generate import generate
from labkit.policy.inputs import vision_kwargs
from tests import tiny


@pytest.fixture(scope="module")
def policy():
    return tiny.policy()


@pytest.fixture(scope="module")
def prompts(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    moments = tiny.moments(folder)
    source = tiny.source(policy, moments, folder / "frames")
    return [source[moment.qid] for moment in moments]


def plain_logits(policy, prompt, completion):
    """Logits of each token of a completion, from one whole pass without cache, padding or neighbours."""
    ids, positions = tiny.append_completion(prompt, torch.tensor(completion, dtype=torch.long))
    shown = vision_kwargs([prompt], ids.device)
    with torch.no_grad():
        out = policy.model(input_ids=ids[None], position_ids=positions[:, None], use_cache=False, **shown)
    return out.logits[0, len(prompt.ids) - 1 : -1]


def test_greedy_answers_equal_those_of_transformers_generate(policy, prompts):
    """With the same position ids: transformers' own would restart behind the video (see test_inputs)."""
    for prompt in prompts[:3]:
        theirs = policy.model.generate(
            input_ids=prompt.ids[None],
            attention_mask=torch.ones_like(prompt.ids)[None],
            position_ids=prompt.positions[:, None],
            max_new_tokens=16,
            do_sample=False,
            pad_token_id=policy.pad_id,
            eos_token_id=policy.eos_ids,
            suppress_tokens=policy.suppress_tokens,
            **vision_kwargs([prompt], prompt.ids.device),
        )
        (ours,) = generate(policy, [prompt], max_new_tokens=16, greedy=True)
        assert theirs[0, len(prompt.ids) :].tolist() == ours.ids


def test_greedy_tokens_are_the_best_of_a_plain_pass(policy, prompts):
    for prompt, completion in zip(prompts, generate(policy, prompts, max_new_tokens=24, greedy=True), strict=True):
        logits = plain_logits(policy, prompt, completion.ids)
        logits[:, policy.suppress_tokens] = -torch.inf
        assert logits.argmax(-1).tolist() == completion.ids


def test_a_group_is_sampled_in_the_prompts_order(policy, prompts):
    together = generate(policy, prompts, 4, max_new_tokens=12, seed=3)
    alone = [one for prompt in prompts for one in generate(policy, [prompt], 4, max_new_tokens=12, seed=3)]
    assert together == alone  # neither the neighbours nor the padding matter
    backwards = generate(policy, prompts[::-1], 4, max_new_tokens=12, seed=3)
    assert [backwards[i : i + 4] for i in range(0, len(backwards), 4)][::-1] == [
        together[i : i + 4] for i in range(0, len(together), 4)
    ]
    assert len({tuple(completion.ids) for completion in together[:4]}) == 4


def test_the_same_seed_samples_the_same_whatever_the_global_state(policy, prompts):
    torch.manual_seed(1)
    first = generate(policy, prompts, 2, max_new_tokens=8, seed=5)
    torch.manual_seed(2)
    torch.rand(7)
    assert generate(policy, prompts, 2, max_new_tokens=8, seed=5) == first
    assert generate(policy, prompts, 2, max_new_tokens=8, seed=6) != first


def test_sampling_follows_the_softmax_at_its_temperature(policy, prompts):
    """First tokens of 4,000 samples against the plain pass: total variation as small as chance allows."""
    count, temperature = 4000, 0.7
    sampled = generate(policy, prompts[:1], count, max_new_tokens=1, temperature=temperature, seed=1)
    logits = plain_logits(policy, prompts[0], [0])[0]
    logits[policy.suppress_tokens] = -torch.inf
    expected = (logits / temperature).softmax(-1)
    found = torch.bincount(torch.tensor([c.ids[0] for c in sampled]), minlength=len(expected)) / count
    chance = (expected * (1 - expected) / count).sqrt().sum() / 2  # of the total variation, roughly
    assert (found - expected).abs().sum() / 2 < 1.5 * chance


def ending(policy, monkeypatch, at):
    """Make every row end at the token that `at` gives for it: 0 draws the first token that may be written."""
    real = module._uniforms

    def draws(seed, qid, num, length):
        numbers = real(seed, qid, num, length) / 2 + 0.4
        for row in range(num):
            if at(qid, row) < length:
                numbers[row, at(qid, row)] = 0
        return numbers

    monkeypatch.setattr(module, "_uniforms", draws)


def test_rows_that_have_ended_leave_and_change_nothing_for_the_others(policy, prompts, monkeypatch):
    first = min(set(range(8)) - set(policy.suppress_tokens))
    monkeypatch.setattr(type(policy), "eos_ids", property(lambda self: [first]))
    ends = {prompt.qid: 3 * i + 2 for i, prompt in enumerate(prompts)}
    ending(policy, monkeypatch, lambda qid, row: ends[qid] + row)
    dropped = generate(policy, prompts, 3, max_new_tokens=12)
    monkeypatch.setattr(module, "COMPACT_FRACTION", 0)  # nobody leaves before the end
    assert generate(policy, prompts, 3, max_new_tokens=12) == dropped
    lengths = [len(completion.ids) for completion in dropped]
    assert lengths == [min(12, ends[prompt.qid] + row + 1) for prompt in prompts for row in range(3)]
    for completion in dropped:
        assert completion.finished == (completion.ids[-1] == first)
        assert first not in completion.ids[:-1]


def test_questions_about_one_clip_are_answered_as_each_by_itself(policy, prompts):
    """The words stand behind the video, so that the clip is read once for all of them."""
    first = prompts[0]
    keep, last = first.video_end, int(first.positions.max()) + 1 - (len(first.ids) - first.video_end)
    asked = []
    for qid, words in [("a", [30, 31, 32]), ("b", [30, 40]), ("c", [50])]:
        places = torch.cat([first.positions[:, :keep], (torch.arange(len(words)) + last).expand(3, -1)], 1)
        ids = torch.cat([first.ids[:keep], torch.tensor(words)])
        asked.append(dataclasses.replace(first, qid=qid, ids=ids, positions=places))
    for options in ({"greedy": True}, {"seed": 3}):
        together = generate(policy, [*asked, prompts[2]], 2, max_new_tokens=12, **options)
        alone = [one for p in [*asked, prompts[2]] for one in generate(policy, [p], 2, max_new_tokens=12, **options)]
        assert together == alone


def test_video_and_padding_tokens_are_never_written(policy, prompts):
    weight = policy.model.lm_head.weight
    before = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[policy.suppress_tokens] *= 50  # what the model likes best is now mostly forbidden
        written = {token for c in generate(policy, prompts, 8, max_new_tokens=12) for token in c.ids}
    finally:
        with torch.no_grad():
            weight.copy_(before)
    assert policy.model.config.video_token_id in policy.suppress_tokens
    assert policy.pad_id in policy.suppress_tokens
    assert not written & set(policy.suppress_tokens)


def test_the_highest_number_draws_no_token_without_mass(policy, prompts, monkeypatch):
    """Rounded up, it equals the whole mass, which the last tokens do not add to when they are suppressed."""
    last = policy.model.config.text_config.vocab_size - 1
    monkeypatch.setattr(type(policy), "suppress_tokens", property(lambda self: [last - 1, last]))
    monkeypatch.setattr(module, "_uniforms", lambda seed, qid, num, length: torch.ones(num, length))
    written = {token for c in generate(policy, prompts, 2, max_new_tokens=8) for token in c.ids}
    assert written and not written & {last - 1, last}


def test_a_training_model_is_left_in_training_mode(policy, prompts):
    policy.model.train()
    try:
        generate(policy, prompts[:1], max_new_tokens=1)
        assert policy.model.training
    finally:
        policy.model.eval()


def test_no_prompts_no_completions(policy):
    assert generate(policy, [], max_new_tokens=3) == []
