import math
import re

import numpy as np
import pytest
import torch

from labkit.chain.anchors import option_letter, parse
from labkit.embedded.clips import ACTIONS
from labkit.embedded.model import build_tokenizer
from labkit.embedded.recipes.option_warmup import (
    GQA_WORDS,
    LONG,
    SHORT,
    OptionWarmup,
    add_option_words,
    draw_warmup,
    letters,
)
from labkit.policy.model import load_policy


def test_a_warmup_text_gives_each_action_the_letter_of_its_own_option():
    rng, tokenizer = np.random.default_rng(0), build_tokenizer(GQA_WORDS)
    for _ in range(200):
        query, said = draw_warmup(rng)
        options = dict(re.findall(r"\b([A-D]) (\w+)", query))
        assert len(set(options.values())) == 4
        named = re.findall(r"(\w+) <option> (\w) </option>", said)
        assert len(named) == SHORT
        assert all(ACTIONS[action][0] == options[letter.upper()] for action, letter in named)
        assert tokenizer.unk_token_id not in tokenizer(f"{query} {said}")["input_ids"]


def test_letters_are_single_words_in_order():
    tokenizer = build_tokenizer(GQA_WORDS)
    assert tokenizer.convert_ids_to_tokens(letters(tokenizer).tolist()) == ["a", "b", "c", "d"]


def test_a_long_warmup_text_says_the_same_in_a_targets_words():
    rng = np.random.default_rng(0)
    query, said = draw_warmup(rng, long=True)
    chains = [parse(text + "</option>", options=4) for text in said.split(" </option>")[:-1]]
    assert [chain.status for chain in chains] == ["no_anchor"] * LONG
    options = dict(re.findall(r"\b([A-D]) (\w+)", query))
    assert all(f"{options[option_letter(chain.option)]}s" in chain.text for chain in chains)


def test_a_model_chooses_by_chance_at_first_and_learns_from_the_warmup():
    model = load_policy("embedded", device="cpu").model
    warmup, texts = (
        OptionWarmup(model, add_option_words(model)),
        [draw_warmup(np.random.default_rng(n)) for n in range(4)],
    )
    before = {name: weight.clone() for name, weight in model.model.visual.state_dict().items()}
    weights = [weight for weight in model.parameters() if weight.requires_grad] + warmup.weights
    optimizer, losses = torch.optim.AdamW(weights, lr=1e-3), []
    for _ in range(40):
        loss, share = warmup.loss(texts)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Chance is ln 4 for the letters and for one head, ln 5 for the other.
    assert losses[0] == pytest.approx(2 * math.log(4) + math.log(5), abs=1.5)
    assert losses[-1] < 0.5 and share > 0.9
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.visual.state_dict().items())


def test_a_closed_warmup_removes_its_hook():
    model = load_policy("embedded", device="cpu").model
    warmup = OptionWarmup(model, add_option_words(model))
    warmup.close()
    with pytest.raises(AttributeError, match="hidden"):
        warmup.loss([draw_warmup(np.random.default_rng(0))])
    assert not model.model.language_model.layers[0]._forward_hooks
