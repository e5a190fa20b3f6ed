from collections import Counter

import pytest
import torch

from labkit.policy.forbidden_text import ForbiddenText
from labkit.policy.generate import generate
from labkit.policy.inputs import begin_completion
from tests import tiny
from tests.policy.test_generate import plain_logits


@pytest.fixture(scope="module")
def policy():
    return tiny.policy()


@pytest.fixture(scope="module")
def prompts(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    moments = tiny.moments(folder, clips=2)
    source = tiny.source(policy, moments, folder / "frames")
    return [source[moment.qid] for moment in moments]


@pytest.mark.parametrize(
    ("spelling", "masked_at"),
    [
        (["<timestamp>"], 0),  # one token, as in the embedded vocabulary
        (["<", "timestamp", ">"], 1),  # Qwen's
        (["a <t", "imestamp>"], 1),  # cut inside of the tag, other text before
        (["<t", "i"], 1),
        (["<", "t", "i"], 2),
        ([" <TIME"], 0),  # case does not matter
        (["<", "<", "ti"], 2),  # a beginning that begins anew
        (["<think>", "</think>", "<answer>", "<", "think", ">", "ti", "t", "i"], None),  # the other tags, and the letters alone
    ],
)  # fmt: skip
def test_a_text_is_forbidden_however_tokens_spell_it(policy, spelling, masked_at):
    words = [*dict.fromkeys(spelling)]

    class Words:
        """A vocabulary of these words."""

        def __len__(self):
            return len(words)

        def batch_decode(self, rows, **_):
            return ["".join(words[token] for token in row) for row in rows]

    made = ForbiddenText(type(policy)(policy.model, Words(), "words"), "<ti", [""])
    for at, word in enumerate(spelling):
        scores = made.mask(torch.zeros(1, 448))
        assert scores[0, words.index(word)].isinf() == (at == masked_at), word
        assert not scores[0, len(words) :].isinf().any(), "rows without a token"
        if at == masked_at:
            return
        made.follow(torch.tensor([[words.index(word)]]))
    assert masked_at is None


def test_what_begins_in_the_prompt_is_followed(policy):
    made = ForbiddenText(policy, "<ti", ["", "I see <", "<t"])
    letter = policy.tokenizer.convert_tokens_to_ids("i")
    assert made.mask(torch.zeros(3, 448))[:, letter].isinf().tolist() == [False, False, True]
    with pytest.raises(ValueError, match="'<ti' stands already"):
        ForbiddenText(policy, "<ti", ["<time"])


def test_generation_never_writes_what_is_forbidden(policy, prompts):
    free = generate(policy, prompts, 8, max_new_tokens=24, temperature=2.0, seed=1)
    pairs = Counter(
        text[at : at + 2]
        for text in {each.text for each in free}
        for at in range(len(text) - 1)
        if text[at : at + 2].isascii()
    )
    common = pairs.most_common(1)[0][0]
    without = generate(policy, prompts, 8, max_new_tokens=24, temperature=2.0, seed=1, forbid=common)
    for texts, written in ((free, True), (without, False)):
        assert any(common.lower() in each.text.lower() for each in texts) == written
    greedy = generate(policy, prompts, max_new_tokens=24, greedy=True)
    assert generate(policy, prompts, max_new_tokens=24, greedy=True, forbid="zq<ti") == greedy, "nothing else changes"


def test_a_begun_completion_is_gone_on_with(policy, prompts):
    """As one plain pass over prompt and beginning does, though beginnings of one prompt share its prefill."""
    texts = ["<think> at first", "<think> at first <timestamp> 2.0 to"]
    begun = [begin_completion(policy, prompt, text) for prompt in prompts for text in texts]
    done = generate(policy, begun, max_new_tokens=8, greedy=True)
    for prompt, completion, text in zip(begun, done, texts * len(prompts), strict=True):
        assert policy.tokenizer.decode(prompt.ids[-prompt.begun :]) == text
        assert completion.text.startswith(text) and len(completion.ids) <= 8
        logits = plain_logits(policy, prompt, completion.ids)
        logits[:, policy.suppress_tokens] = -torch.inf
        assert logits.argmax(-1).tolist() == completion.ids
