import json
import re

import numpy as np
import pytest
import torch

from labkit.chain.anchors import parse
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.clips import ACTIONS, Event, Thing
from labkit.embedded.first_edition import grounding_query, make_scene
from labkit.embedded.model import (
    SPECIAL,
    TAGS,
    TIMES,
    build_model,
    build_tokenizer,
)
from labkit.embedded.recipes import lessons, second_base
from labkit.embedded.recipes.first_base import Recipe, frame_labels, make_clips, make_completion, train_base
from labkit.embedded.recipes.option_warmup import GQA_WORDS, add_option_words
from labkit.embedded.recipes.shared import clip_positions, question_ids
from labkit.embedded.second_edition import all_queries, make_film, query_text
from labkit.policy.inputs import ClipPatches, build_prompt
from labkit.policy.model import SHIPPED, load_policy

THING = Thing("red", "circle", 1, 0.75, 0.25, 0.12, 1.0, 0, (Event("blinks", 4.0, 8.0),))
TINY = Recipe(clips=12, vision_steps=2, vision_batch=8, text_steps=4, text_batch=4)


def test_everything_that_the_world_asks_and_the_base_writes_is_in_the_vocabulary():
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    unknown = tokenizer.unk_token_id
    for seed in range(200):
        for thing in make_scene(seed).things:
            for event in thing.events:
                for form in range(3):
                    assert unknown not in tokenizer(grounding_query(thing, event, form))["input_ids"]
                assert (
                    unknown not in tokenizer(make_completion(thing, event, rng, Recipe(anchor_share=1.0)))["input_ids"]
                )


def test_text_comes_back_from_its_tokens_so_that_traces_can_be_learnt_from():
    tokenizer = build_tokenizer()
    text = make_completion(THING, THING.events[0], np.random.default_rng(1), Recipe(anchor_share=1.0))
    ids = tokenizer(text)["input_ids"]
    written = tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer(written)["input_ids"] == ids
    assert parse(written).spans == parse(text).spans


def test_a_word_outside_the_world_becomes_unknown_and_no_error():
    tokenizer = build_tokenizer()
    assert tokenizer.unk_token_id in tokenizer("a person opens the fridge")["input_ids"]


def test_the_recipes_ask_as_every_stage_does():
    policy, clip = load_policy("embedded", device="cpu"), ClipPatches(torch.empty(0), (16, 4, 4), 1.0)
    moment = Moment("q", "/v.mp4", grounding_query(THING, THING.events[0], 0), (Span(4.0, 8.0),), 16.0)
    prompt = build_prompt(policy, moment, "query", clip, torch.empty(0))
    ids = question_ids(policy.tokenizer, moment.query, 16)
    assert prompt.ids.tolist() == ids
    assert torch.equal(prompt.positions, clip_positions(policy.base.config, torch.tensor(ids), 16))


def test_time_is_one_token_per_half_second_and_tags_survive_decoding():
    tokenizer = build_tokenizer()
    assert all(len(tokenizer(time)["input_ids"]) == 1 for time in TIMES)
    kept = tokenizer.decode(tokenizer(" ".join(TAGS))["input_ids"], skip_special_tokens=True).split()
    assert kept == list(TAGS)
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(list(SPECIAL[2:])), skip_special_tokens=True) == ""


def test_the_base_writes_anchors_rarely_and_after_any_opening():
    rng = np.random.default_rng(2)
    texts = [make_completion(THING, THING.events[0], rng, Recipe()) for _ in range(2000)]
    with_anchors = [text for text in texts if "<timestamp>" in text]
    assert 0.05 < len(with_anchors) / len(texts) < 0.11
    openings = {
        re.sub(r"(early|late|in the middle).*", "", text.split("<timestamp>")[0][:24]) for text in with_anchors
    }
    assert len(openings) == 3
    assert all(parse(text).answer is not None for text in texts)


def test_labels_of_the_recipe_are_wider_than_the_truth_on_average():
    rng = np.random.default_rng(3)
    answers = [parse(make_completion(THING, THING.events[0], rng, Recipe())).answer for _ in range(1000)]
    assert np.mean([a.start for a in answers]) == pytest.approx(4.0 - 1.5, abs=0.2)
    assert np.mean([a.end for a in answers]) == pytest.approx(8.0 + 1.5, abs=0.2)


def test_frame_labels_name_colour_shape_and_action_where_they_are_seen():
    scene = make_scene(7)
    labels = frame_labels(scene)
    for thing in scene.things:
        always = not any(event.action == "appears" for event in thing.events)
        assert (labels[:, thing.quadrant, 0] > 0).all() == always
        for event in thing.events:
            halves = labels[:, thing.quadrant, 2:].reshape(-1)
            assert (halves[int(event.start * 2) : int(event.end * 2)] > 0).all()
    empty = set(range(4)) - {thing.quadrant for thing in scene.things}
    assert all((labels[:, quadrant] == 0).all() for quadrant in empty)


def test_the_recipe_runs_and_writes_a_checkpoint_that_loads(tmp_path):
    lines = []
    folder = train_base(tmp_path / "base", recipe=TINY, report=lines.append)
    policy = load_policy(str(folder))
    assert policy.base.config.model_type == "qwen2_5_vl"
    assert (folder / "recipe.json").exists()
    assert any("vision" in line for line in lines) and any("text" in line for line in lines)


def test_the_recipe_trains_on_clips_that_no_split_holds():
    assert all(scene.seed >= 3 * 10**9 for scene in make_clips(3, seed=0).scenes)


def test_the_shipped_base_is_the_recipes_model():
    policy = load_policy("embedded")
    fresh = build_model(build_tokenizer())
    shapes = {name: weight.shape for name, weight in policy.base.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in fresh.state_dict().items()}
    assert policy.tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert sum(path.stat().st_size for path in SHIPPED["embedded"].iterdir()) < 3_000_000
    assert 1.2e6 < sum(p.numel() for p in policy.base.parameters()) < 1.5e6


# --- the base of the second edition


def second_tokenizer():
    return build_tokenizer((*second_base.TIMES, *lessons.WORDS))


def test_everything_that_the_second_edition_asks_and_its_base_is_taught_is_in_the_vocabulary():
    tokenizer, rng = second_tokenizer(), np.random.default_rng(0)
    unknown, rough = tokenizer.unk_token_id, lessons.Noise(1.0, 1.0)
    for seed in range(100):
        film = make_film(seed)
        for query in all_queries(film):
            texts = [query_text(query, form) for form in range(3)]
            texts += [lesson(film, query, rng, rough) for lesson in (lessons.direct_lesson, lessons.chain_lesson)]
            assert all(unknown not in tokenizer(text)["input_ids"] for text in texts), texts


def test_the_second_editions_recipe_runs_and_writes_a_checkpoint_that_loads(tmp_path):
    recipe = second_base.Recipe(clips=4, vision_steps=2, clean_steps=2, rough_steps=2, prompts=4)
    lines = []
    folder = second_base.train_second_base(tmp_path / "base", recipe=recipe, report=lines.append)
    policy, shipped = load_policy(str(folder)), load_policy("embedded-2")
    shapes = {name: weight.shape for name, weight in shipped.base.state_dict().items()}
    assert {name: weight.shape for name, weight in policy.base.state_dict().items()} == shapes
    assert json.loads((folder / "recipe.json").read_text()) == {"seed": 0, **recipe._asdict()}
    assert any("vision" in line for line in lines) and any("text 4" in line for line in lines)


def test_the_shipped_base_of_the_second_edition_is_the_recipes_model():
    policy, recipe = load_policy("embedded-2"), second_base.Recipe()
    fresh = build_model(second_tokenizer(), layers=recipe.layers)
    shapes = {name: weight.shape for name, weight in policy.base.state_dict().items()}
    assert policy.name == "embedded-2"
    assert shapes == {name: weight.shape for name, weight in fresh.state_dict().items()}
    assert policy.tokenizer.get_vocab() == second_tokenizer().get_vocab()
    assert sum(path.stat().st_size for path in SHIPPED["embedded-2"].iterdir()) < 3_000_000
    noted = json.loads((SHIPPED["embedded-2"] / "recipe.json").read_text())
    assert noted == {"seed": noted["seed"], **recipe._asdict()}, "the defaults made the weights that ship"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_base_loads_by_transformers_alone(name):
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    found, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(SHIPPED[name], output_loading_info=True)
    assert not any(info.values()), f"no weight is missing, left over or of another shape: {info}"
    assert len(AutoTokenizer.from_pretrained(SHIPPED[name])) <= found.config.get_text_config().vocab_size
    assert all(torch.isfinite(weight).all() for weight in found.parameters())


# --- the base of grounded question answering


def options_tokenizer():
    return build_tokenizer((*second_base.TIMES, *lessons.WORDS, *GQA_WORDS))


def test_lessons_with_options_are_in_the_larger_vocabulary_and_answer_what_was_asked():
    tokenizer, rng = options_tokenizer(), np.random.default_rng(0)
    plain, unknown = second_tokenizer(), tokenizer.unk_token_id
    for seed in range(50):
        film = make_film(seed)
        for query in all_queries(film):
            asked, option = second_base._question(film, query, rng, "gqa")
            completion = lessons.chain_lesson(film, query, rng, lessons.Noise()) + option
            ids = tokenizer(completion)["input_ids"]
            assert unknown not in tokenizer(asked)["input_ids"] + ids
            assert plain.unk_token_id in plain(asked)["input_ids"]
            chain = parse(completion, options=4)
            assert chain.status == "ok"
            assert f" {'ABCD'[chain.option]} {ACTIONS[query.event.action][0]}" in asked
            written = tokenizer.decode(ids, skip_special_tokens=True)
            assert tokenizer(written)["input_ids"] == ids, "traces can be learnt from"


def test_more_words_keep_every_old_one_and_its_row():
    before, model = load_policy("embedded-2"), load_policy("embedded-2").model
    tokenizer = add_option_words(model, (*second_base.TIMES, *lessons.WORDS))
    words = before.tokenizer.get_vocab()
    assert {word: number for word, number in tokenizer.get_vocab().items() if word in words} == words
    assert len(tokenizer) == len(words) + len(set(GQA_WORDS) - set(words))
    old, new = (each.model.language_model.embed_tokens.weight for each in (before.model, model))
    assert torch.equal(new[: len(words)], old[: len(words)])
    assert model.lm_head.weight is new and len(new) % 16 == 0 and len(new) >= len(tokenizer)
    rows = new[len(words) : len(tokenizer)]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows), "every new word has a row of its own"


def test_the_recipe_teaches_a_base_with_more_words(tmp_path):
    recipe = second_base.GQA._replace(clips=4, clean_steps=2, rough_steps=2, prompts=4, warmup_steps=2, warmup_batch=4)
    folder = second_base.train_second_base(tmp_path / "base", recipe=recipe, task="gqa")
    policy = load_policy(str(folder))
    assert policy.tokenizer.get_vocab() == options_tokenizer().get_vocab()
    seen = [each.base.model.visual.state_dict() for each in (policy, load_policy("embedded-2"))]
    assert all(torch.equal(seen[0][name], weight) for name, weight in seen[1].items()), "the tower stays as it is"


def test_the_shipped_base_with_options_is_the_recipes_model():
    policy, wider = load_policy("embedded-gqa"), load_policy("embedded-2").model
    tokenizer = add_option_words(wider, (*second_base.TIMES, *lessons.WORDS))
    shapes = {name: weight.shape for name, weight in policy.base.state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in wider.state_dict().items()}
    assert policy.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert sum(path.stat().st_size for path in SHIPPED["embedded-gqa"].iterdir()) < 3_000_000
    noted = json.loads((SHIPPED["embedded-gqa"] / "recipe.json").read_text())
    assert noted == {"seed": 0, **second_base.GQA._asdict()}
