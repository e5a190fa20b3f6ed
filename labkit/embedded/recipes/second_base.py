"""Pretraining on the second edition: the recipe that made `embedded-2`.

The vision tower is that of the first edition's base, whose colours, shapes and actions are the same; it learns to say in which quarter
of the frame it looks, and then stays frozen. A language model of three layers learns both forms, answers with anchors before them and
without. Chains are taught rightly, and so are answers to queries that take one look; an answer without anchors to a query that takes
two is taught as one look gives it: any of the events that it may mean. That is a choice, and it decides what anchors are worth here: a
base whose direct answers were taught rightly as well (`one_look` off) gives them as well without anchors, since one pass through three
layers can take both looks. The last steps make it weak on purpose: answers are widened and shaken, and few thoughts have anchors.

Labels come from the simulator. Auxiliary heads that say what each frame token shows, and whether the query asks for it, are what makes
the model look at the video; their weights are thrown away.

The base of grounded question answering is `embedded-2` with rows for a few more words, taught by a shorter text half alone: its tower
sees all that there is to be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.chain.anchors import option_letter
from labkit.embedded.clips import ACTIONS, COLORS, PLACES, SHAPES, STATES_PER_SECOND
from labkit.embedded.model import SIDE, build_model, build_tokenizer
from labkit.embedded.recipes import lessons
from labkit.embedded.recipes.option_warmup import OptionWarmup, add_option_words, draw_warmup, letters
from labkit.embedded.recipes.shared import (
    LayerOutput,
    VisionRecipe,
    clip_positions,
    encode_clips,
    init_embeddings,
    optimizer_step,
    question_ids,
    text_rate,
    train_vision,
    write_base,
)
from labkit.embedded.second_edition import (
    SECONDS,
    STATES,
    Film,
    Query,
    all_queries,
    make_film,
    option_question,
    query_text,
    render_frames,
)
from labkit.embedded.world import Task, clip_seed
from labkit.policy.inputs import Prompt
from labkit.policy.prompts import one_line

if TYPE_CHECKING:
    import torch

TIMES = tuple(f"{state / STATES_PER_SECOND:.1f}" for state in range(STATES + 1))
_SEEN = 9
"""What the auxiliary heads say of a token and the query: see `_frame_targets`."""


class Recipe(NamedTuple):
    """How the base is trained; the defaults made the weights that ship."""

    clips: int = 1500
    layers: int = 3
    """Of the language model."""
    one_look: bool = True
    """Whether answers without anchors are taught as one look gives them: see `labkit.embedded.recipes.lessons.direct_lesson`."""
    vision_steps: int = 200
    vision_rate: float = 3e-3
    clean_steps: int = 1700
    rough_steps: int = 120
    prompts: int = 16
    """Queries a step, each with two lessons."""
    rate: float = 2e-3
    heads: float = 0.8
    """Share of the clean steps that have the auxiliary heads' help."""
    widen: float = 1.0
    """Seconds by which answers are widened at either end in the rough steps."""
    jitter: float = 1.0
    """Standard deviation in seconds of what is then added to either end."""
    anchor_share: float = 0.06
    """Share of thoughts with anchors in the rough steps."""
    warmup_steps: int = 0
    """Steps of `labkit.embedded.recipes.option_warmup` on short texts before the first lesson; where questions have options."""
    warmup_batch: int = 0
    """Texts in one of these steps; half as many, every other one long, beside each batch of lessons."""
    choice_weight: float = 0.0
    """How much the letter of the right option counts, besides being one word of many."""


GQA = Recipe(vision_steps=0, clean_steps=500, rate=1e-3, warmup_steps=500, warmup_batch=24, choice_weight=1.0)
"""How the base with a larger vocabulary is trained on questions with options; it made the weights that ship."""


def train_second_base(
    folder: str | Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    report: Callable[[str], None] = lambda line: None,
    task: Task = "grounding",
) -> Path:
    """Train the second edition's base and write it to `folder`, in about ten minutes on one CPU core.

    With `task="gqa"`, give the shipped base more words and teach it questions with options, in about five.

    Raises:
        LabError: `folder` exists already.
    """
    import torch

    from labkit.data.video.frames import resize
    from labkit.policy.model import load_policy

    gqa = task == "gqa"
    recipe = recipe or (GQA if gqa else Recipe())
    words = (*TIMES, *lessons.WORDS)
    if gqa:
        torch.manual_seed(seed)
        model = load_policy("embedded-2", device="cpu").model
        tokenizer = add_option_words(model, words, seed)
    else:
        tokenizer = build_tokenizer(words)
        model = build_model(tokenizer, seed, layers=recipe.layers)
        model.model.visual.load_state_dict(load_policy("embedded", device="cpu").model.model.visual.state_dict())
        init_embeddings(model, tokenizer, TIMES, SECONDS)
    films = [make_film(clip_seed("base", index, seed)) for index in range(recipe.clips)]
    frames = np.stack([resize(render_frames(film), (SIDE, SIDE)) for film in films])
    report(f"{len(films)} clips rendered")
    if gqa:
        features = encode_clips(model.model.visual, frames)
    else:
        labels = np.stack([frame_labels(film) for film in films])
        vision = VisionRecipe(recipe.vision_steps, 320, recipe.vision_rate)
        features = train_vision(model.model.visual, frames, labels, vision, seed, report)
    train_text(model, tokenizer, films, features, recipe, seed, report, task)
    name = "embedded-gqa" if gqa else "embedded-2"
    return write_base(folder, name, model, tokenizer, {"seed": seed, **recipe._asdict()})


def frame_labels(film: Film) -> np.ndarray:
    """(24, 4, 5) per second and quadrant: 1 + index of colour, shape and the action in either half, 0 being none; the quadrant."""
    labels = np.zeros((STATES, len(PLACES), 3), np.int64)
    for scene in film.scenes:
        for thing in scene.things:
            cell = labels[:, thing.quadrant]
            shown = slice(scene.start * STATES_PER_SECOND, scene.end * STATES_PER_SECOND)
            cell[shown, :2] = 1 + list(COLORS).index(thing.color), 1 + SHAPES.index(thing.shape)
            for event in thing.events:
                acting = slice(int(event.start * STATES_PER_SECOND), int(event.end * STATES_PER_SECOND))
                cell[acting, 2] = 1 + list(ACTIONS).index(event.action)
    halves = labels.reshape(SECONDS, STATES_PER_SECOND, len(PLACES), 3)
    places = np.broadcast_to(np.arange(len(PLACES))[:, None], (SECONDS, len(PLACES), 1))
    return np.concatenate([halves[:, 0], halves[:, 1, :, 2:], places], -1)


def film_prompt(model: Any, tokenizer: Any, qid: str, text: str, features: torch.Tensor) -> Prompt:
    """The prompt of a query about a film, as `labkit.policy.inputs.build_prompt` would write it."""
    import torch

    ids = torch.tensor(question_ids(tokenizer, text, SECONDS))
    end = int((ids == model.config.video_token_id).nonzero()[-1]) + 1
    return Prompt(qid, ids, clip_positions(model.config, ids, SECONDS), (SECONDS, 4, 4), 1.0, features, end)


def train_text(
    model: Any,
    tokenizer: Any,
    films: list[Film],
    features: torch.Tensor,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None],
    task: Task = "grounding",
) -> None:
    """Teach the language model both forms of lessons, and then the rough one."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
    from torch.nn.utils.rnn import pad_sequence

    from labkit.policy.packed_logprobs import pack_shared_prefix

    rng = np.random.default_rng([2, seed])
    asked = [(number, query) for number, film in enumerate(films) for query in _balanced(film, rng)]
    heads = torch.nn.Linear(model.config.text_config.hidden_size, _SEEN + len(PLACES) + SECONDS)
    weights = [p for p in model.parameters() if p.requires_grad] + list(heads.parameters())
    warmup = OptionWarmup(model, tokenizer) if recipe.warmup_batch else None
    if warmup:
        weights += warmup.weights
        warmup.train(weights, recipe.warmup_steps, recipe.warmup_batch, recipe.rate, rng, report)
    optimizer = torch.optim.AdamW(weights, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.01)
    middle = LayerOutput(model, model.config.text_config.num_hidden_layers - 2)
    token_place = torch.arange(4).repeat(SECONDS).repeat(recipe.prompts)
    token_second = torch.arange(SECONDS).repeat_interleave(4).repeat(recipe.prompts)
    steps, losses, choices = recipe.clean_steps + recipe.rough_steps, [], []
    chosen_letters = letters(tokenizer) if task == "gqa" else torch.tensor([])
    for step in range(steps):
        done = step / steps
        rate = text_rate(step, done, least=0.05)
        chosen = [asked[int(at)] for at in rng.choice(len(asked), recipe.prompts, replace=False)]
        asked_texts = [_question(films[number], query, rng, task) for number, query in chosen]
        prompts = [
            film_prompt(model, tokenizer, f"{step}-{row}", text, features[number])
            for row, ((text, _), (number, _)) in enumerate(zip(asked_texts, chosen, strict=True))
        ]
        texts = [
            text + option
            for (number, query), (_, option) in zip(chosen, asked_texts, strict=True)
            for text in _two_lessons(films[number], query, rng, recipe, step, task)
        ]
        rows = [
            torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id])
            for text in texts
        ]
        ids = pad_sequence(rows, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        packed = pack_shared_prefix(prompts, ids, mask, [2] * len(prompts))
        log_probs, _ = packed.log_probs(model)
        loss = -log_probs[mask].mean()
        losses.append(loss.item())
        if len(chosen_letters):
            letter = log_probs[mask & torch.isin(ids, chosen_letters)]
            choices.append(letter.exp().mean().item())
            loss = loss - recipe.choice_weight * letter.mean()
        if step < recipe.heads * recipe.clean_steps:
            is_video = packed.inputs["input_ids"][0] == model.config.video_token_id
            seen, place, second = heads(middle.hidden[0][is_video]).split((_SEEN, len(PLACES), SECONDS), -1)
            wanted = torch.cat([_frame_targets(films[number], query) for number, query in chosen])
            loss = loss + binary_cross_entropy_with_logits(seen, wanted, pos_weight=torch.tensor(3.0))
            loss = loss + 0.3 * cross_entropy(second, token_second) + 0.3 * cross_entropy(place, token_place)
        if warmup:  # last: its pass goes through the layer that the heads listen to
            loss = loss + warmup.loss([draw_warmup(rng, long=n % 2 == 0) for n in range(recipe.warmup_batch // 2)])[0]
        optimizer_step([optimizer], recipe.rate * rate, loss, weights)
        if step % 100 == 99 or step == steps - 1:
            right = f", right option {np.mean(choices[-100:]):.3f}" if choices else ""
            report(f"text {step + 1}: loss {np.mean(losses[-100:]):.3f}{right}")
    middle.close()
    if warmup:
        warmup.close()


def _question(film: Film, query: Query, rng: np.random.Generator, task: Task) -> tuple[str, str]:
    """What is asked, and what follows the answer where there are options."""
    if task == "grounding":
        return query_text(query, int(rng.integers(3))), ""
    text, options, choice = option_question(film, query, rng)
    return one_line(text, options), f" <option> {option_letter(choice).lower()} </option>"


def _balanced(film: Film, rng: np.random.Generator) -> list[Query]:
    """Up to two queries that take one look and three that take two."""
    found = all_queries(film)
    kinds = [
        ([query for query in found if (query.clue is None) == easy], most) for easy, most in ((True, 2), (False, 3))
    ]
    return [kind[int(at)] for kind, most in kinds for at in rng.permutation(len(kind))[:most]]


def _two_lessons(
    film: Film, query: Query, rng: np.random.Generator, recipe: Recipe, step: int, task: Task
) -> list[str]:
    """Both forms, clean; in the rough steps two rough ones, of which few have anchors."""
    clean, says_action = step < recipe.clean_steps, task == "gqa"
    noise = lessons.Noise() if clean else lessons.Noise(recipe.widen, recipe.jitter)
    forms = [False, True] if clean else [rng.random() < recipe.anchor_share for _ in range(2)]
    return [
        lessons.chain_lesson(film, query, rng, noise, says_action)
        if anchors
        else lessons.direct_lesson(film, query, rng, noise, recipe.one_look, says_action)
        for anchors in forms
    ]


def _frame_targets(film: Film, query: Query) -> torch.Tensor:
    """What the auxiliary heads are to say of each frame token: (96, 9).

    Has it the asked colour, shape, action in either half; does the asked thing so in either half; has it the clue's colour, its shape,
    both. Which of several such events is meant is not told.
    """
    import torch

    found = np.zeros((STATES, len(PLACES), 7), np.float32)
    for scene in film.scenes:
        states = slice(scene.start * STATES_PER_SECOND, scene.end * STATES_PER_SECOND)
        for thing in scene.things:
            cell = found[states, thing.quadrant]
            cell[:, 0] = thing.color == query.thing.color
            cell[:, 1] = thing.shape == query.thing.shape
            for event in thing.events:
                if event.action == query.event.action:
                    acting = slice(int(event.start * STATES_PER_SECOND), int(event.end * STATES_PER_SECOND))
                    found[acting, thing.quadrant, 2] = 1
                    found[acting, thing.quadrant, 3] = thing.name == query.thing.name
            if query.clue:
                cell[:, 4] = thing.color == query.clue.color
                cell[:, 5] = thing.shape == query.clue.shape
                cell[:, 6] = thing.name == query.clue.name
    halves = found.reshape(SECONDS, STATES_PER_SECOND, len(PLACES), 7)
    first, second = halves[:, 0], halves[:, 1]
    columns = [first[..., :2], first[..., 2:3], second[..., 2:3], first[..., 3:4], second[..., 3:4], first[..., 4:]]
    return torch.from_numpy(np.concatenate(columns, -1)).view(SECONDS * len(PLACES), _SEEN)
