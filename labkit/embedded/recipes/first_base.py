"""Pretraining: the recipe that made the embedded base.

The base is weak on purpose. Its labels come from the simulator, which knows what every frame shows; they are widened and
shaken so that reinforcement has something to gain, and about one thought in twelve carries noisy anchors, after any opening,
so that reinforcement has something to find.

Two halves: the vision tower learns to name colour, shape and action in each frame and then stays frozen. The language model
learns to answer, at first with no thought at all; auxiliary heads that say which frame tokens match the query are what makes
it look at the video (their weights are thrown away, the checkpoint is a plain Hugging Face model).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.embedded.clips import ACTIONS, COLORS, PLACES, SHAPES, STATES_PER_SECOND, Event, Thing, action_at, is_shown
from labkit.embedded.first_edition import SECONDS, STATES, Scene, grounding_query, make_scene, render_frames, time_of
from labkit.embedded.model import SIDE, TIMES, build_model, build_tokenizer
from labkit.embedded.recipes.lessons import jittered, snapped
from labkit.embedded.recipes.shared import (
    LayerOutput,
    VisionRecipe,
    clip_positions,
    init_embeddings,
    optimizer_step,
    question_ids,
    text_rate,
    train_vision,
    write_base,
)
from labkit.embedded.world import clip_seed

if TYPE_CHECKING:
    import torch


class Recipe(NamedTuple):
    """How the base is trained; the defaults made the weights that ship."""

    clips: int = 4000
    vision_steps: int = 300
    vision_batch: int = 320
    """Pairs of frames."""
    vision_rate: float = 3e-3
    text_steps: int = 480
    text_batch: int = 24
    text_rate: float = 2e-3
    answers_only: float = 0.5
    """Share of the text steps that train on answers without a thought."""
    heads: float = 0.8
    """Share of the text steps that have the auxiliary heads' help."""
    widen: float = 1.5
    """Seconds by which labels are widened at either end."""
    jitter: float = 1.75
    """Standard deviation in seconds of what is then added to either end."""
    anchor_share: float = 0.08
    """Share of thoughts that carry anchors."""


class Clips(NamedTuple):
    """What the recipe trains on."""

    scenes: list[Scene]
    frames: np.ndarray
    """(N, 32, 56, 56, 3) uint8."""
    labels: np.ndarray
    """(N, 16, 4, 4): per second and quadrant 1 + index of colour, shape, and the action in either half of the second; 0 is none."""


def make_clips(count: int, seed: int) -> Clips:
    """Render the recipe's own scenes, from seeds that no split uses."""
    from labkit.data.video.frames import resize

    scenes: list[Scene] = []
    index = 0
    while len(scenes) < count:
        scene = make_scene(clip_seed("base", index, seed))
        index += 1
        if any(thing.events for thing in scene.things):
            scenes.append(scene)
    frames = np.stack([resize(render_frames(scene), (SIDE, SIDE)) for scene in scenes])
    return Clips(scenes, frames, np.stack([frame_labels(scene) for scene in scenes]))


def frame_labels(scene: Scene) -> np.ndarray:
    """(16, 4, 4) as in `Clips.labels`, for one scene."""
    labels = np.zeros((SECONDS, 4, 4), np.int64)
    for thing in scene.things:
        for state in range(STATES):
            second, half = divmod(state, STATES_PER_SECOND)
            if is_shown(thing, state):
                labels[second, thing.quadrant, 0] = 1 + list(COLORS).index(thing.color)
                labels[second, thing.quadrant, 1] = 1 + SHAPES.index(thing.shape)
            action = action_at(thing, state)
            if action:
                labels[second, thing.quadrant, 2 + half] = 1 + list(ACTIONS).index(action)
    return labels


def train_base(
    folder: str | Path,
    *,
    seed: int = 0,
    recipe: Recipe | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train the base from nothing and write it to `folder`, in about ten minutes on one CPU core.

    Raises:
        LabError: `folder` exists already.
    """
    recipe = recipe or Recipe()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    clips = make_clips(recipe.clips, seed)
    report(f"{len(clips.scenes)} clips rendered")
    vision = VisionRecipe(recipe.vision_steps, recipe.vision_batch, recipe.vision_rate)
    features = train_vision(model.model.visual, clips.frames, clips.labels, vision, seed, report)
    init_embeddings(model, tokenizer, TIMES, SECONDS)
    train_text(model, tokenizer, clips, features, recipe, seed, report)
    return write_base(folder, "embedded", model, tokenizer, {"seed": seed, **recipe._asdict()})


def train_text(
    model: Any,
    tokenizer: Any,
    clips: Clips,
    features: torch.Tensor,
    recipe: Recipe,
    seed: int,
    report: Callable[[str], None],
) -> None:
    """Teach the language model to answer queries about the clips."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

    rng = np.random.default_rng(seed + 1)
    width = model.config.text_config.hidden_size
    heads = torch.nn.Linear(width, 6 + SECONDS)
    weights = [p for p in model.parameters() if p.requires_grad] + list(heads.parameters())
    optimizer = torch.optim.AdamW(weights, lr=recipe.text_rate, betas=(0.9, 0.98), weight_decay=0.01)
    middle = LayerOutput(model, 1)
    frame_second = torch.arange(SECONDS).repeat_interleave(4)
    askable = [i for i, scene in enumerate(clips.scenes) for thing in scene.things if thing.events]
    losses: list[float] = []
    for step in range(recipe.text_steps):
        done = step / recipe.text_steps
        rate = text_rate(step, done, least=0.03)
        chosen = rng.choice(askable, recipe.text_batch)
        thought = done >= recipe.answers_only
        batch = [draw_target(clips.scenes[i], rng, recipe, thought) for i in chosen]
        rows = _collate(model, tokenizer, batch, features[chosen])
        output = model.model(**rows.inputs).last_hidden_state
        taught = rows.labels != -100
        scores, words = model.lm_head(output[:, :-1][taught[:, 1:]]), rows.labels[:, 1:][taught[:, 1:]]
        loss = cross_entropy(scores, words)
        losses.append(loss.item())
        if done < recipe.heads:
            seen = heads(middle.hidden[rows.is_video].view(len(batch), SECONDS * 4, -1))
            match = torch.stack(
                [_frame_targets(clips.labels[i], *target[:2]) for i, target in zip(chosen, batch, strict=True)]
            )
            loss = loss + binary_cross_entropy_with_logits(seen[..., :6], match, pos_weight=torch.tensor(3.0))
            loss = loss + 0.3 * cross_entropy(seen[..., 6:].flatten(0, 1), frame_second.repeat(len(batch)))
        optimizer_step([optimizer], recipe.text_rate * rate, loss, weights)
        if step % 40 == 39 or step == recipe.text_steps - 1:
            report(f"text {step + 1}: loss {np.mean(losses[-40:]):.3f}")
    middle.close()


class Batch(NamedTuple):
    """A padded batch of prompts with their completions."""

    inputs: dict[str, Any]
    labels: torch.Tensor
    is_video: torch.Tensor


def _collate(model: Any, tokenizer: Any, batch: list[Target], features: torch.Tensor) -> Batch:
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    config = model.config
    ids, labels, positions = [], [], []
    for _, _, query, completion in batch:
        prompt = question_ids(tokenizer, query, SECONDS)
        answer = tokenizer(completion, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        row = torch.tensor(prompt + answer)
        ids.append(row)
        labels.append(torch.tensor([-100] * len(prompt) + answer))
        positions.append(clip_positions(config, row, SECONDS).T)
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    encoded: Any = list(features)  # one tensor per video, which the annotation of the field does not foresee
    video = BaseModelOutputWithPooling(pooler_output=encoded)
    inputs = {
        "input_ids": padded,
        "attention_mask": (padded != tokenizer.pad_token_id).long(),
        "position_ids": pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        "mm_encoder_outputs": {"video": video},
        "use_cache": False,
    }
    return Batch(inputs, pad_sequence(labels, batch_first=True, padding_value=-100), padded == config.video_token_id)


def _frame_targets(labels: np.ndarray, thing: Thing, event: Event) -> torch.Tensor:
    """(64, 6) for each frame token: has it the query's colour, its shape, its action in either half, and is it the event."""
    import torch

    found = np.zeros((SECONDS, 4, 6), np.float32)
    found[..., 0] = labels[..., 0] == 1 + list(COLORS).index(thing.color)
    found[..., 1] = labels[..., 1] == 1 + SHAPES.index(thing.shape)
    found[..., 2:4] = labels[..., 2:4] == 1 + list(ACTIONS).index(event.action)
    times = np.arange(STATES) / STATES_PER_SECOND
    found[:, thing.quadrant, 4:] = ((times >= event.start) & (times < event.end)).reshape(SECONDS, 2)
    return torch.from_numpy(found).view(SECONDS * 4, 6)


Target = tuple[Thing, Event, str, str]
"""What is asked for, the query, the completion."""


def draw_target(scene: Scene, rng: np.random.Generator, recipe: Recipe, thought: bool) -> Target:
    """A query about one of a scene's events, and the completion to train on."""
    events = [(thing, event) for thing in scene.things for event in thing.events]
    thing, event = events[int(rng.integers(0, len(events)))]
    query = grounding_query(thing, event, int(rng.integers(0, 3)))
    return thing, event, query, make_completion(thing, event, rng, recipe, thought)


def make_completion(thing: Thing, event: Event, rng: np.random.Generator, recipe: Recipe, thought: bool = True) -> str:
    """A completion in the base's own style: a free thought, now and then with noisy anchors, and a rough answer."""
    start, end = jittered(event.start - recipe.widen, event.end + recipe.widen, recipe.jitter, rng, SECONDS)
    words = ""
    if thought:
        words = _opening(thing, event, rng)
        if rng.random() < recipe.anchor_share:
            words += _anchors(event, rng)
    return f"<think> {words} </think> <answer> {start:.1f} to {end:.1f} </answer>"


def _opening(thing: Thing, event: Event, rng: np.random.Generator) -> str:
    name = f"the {thing.color} {thing.shape}"
    when = time_of(event)
    return (
        f"look at {name}. it {event.action} {when}.",
        f"i see {name} on the {PLACES[thing.quadrant]}.",
        f"{name} {event.action} {when}.",
    )[int(rng.integers(0, 3))]


def _anchors(event: Event, rng: np.random.Generator) -> str:
    """One to three anchors, the first one wide; they need not get better."""
    text = ""
    for number in range(int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))):
        lead = ("around", "then more closely", "refine")[number]
        if number == 0:
            before, after = rng.uniform(0.5, 4.0, 2)
            start, end = snapped(event.start - before, event.end + after, SECONDS)
        else:
            start, end = jittered(event.start, event.end, 1.5, rng, SECONDS)
        text += f" {lead} <timestamp> {start:.1f} to {end:.1f} </timestamp>."
    return text
