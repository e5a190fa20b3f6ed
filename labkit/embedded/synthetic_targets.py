"""Lessons: what the embedded base is taught to say, and how roughly."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from labkit.chain.anchors import option_letter
from labkit.embedded.world import PLACES, SECONDS, Event, Question, Scene, Task, Thing, ask, ask_what, time_of
from labkit.policy.prompts import one_line


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
    shake: float = 1.75
    """Standard deviation in seconds of what is then added to either end."""
    anchor_share: float = 0.08
    """Share of thoughts that carry anchors."""
    drill_steps: int = 0
    """Steps of short drills before the first lesson, see `labkit.embedded.option_warmup`; where questions have options."""
    drills: int = 0
    """Drills in one of these steps; half as many, every other one long, beside each batch of lessons."""
    choice_weight: float = 0.0
    """How much the letter of the right option counts, besides being one word of many."""


GQA = Recipe(
    clips=1500,
    vision_steps=0,
    text_steps=400,
    text_rate=1e-3,
    answers_only=0.0,
    drill_steps=500,
    drills=24,
    choice_weight=1.0,
)
"""How the base's grown copy is taught questions with options; it made the weights that ship."""

Lesson = tuple[Thing, Event, str, str]
"""What is asked for, the query, the completion."""


def draw_lesson(
    scene: Scene, rng: np.random.Generator, recipe: Recipe, thought: bool, task: Task = "grounding"
) -> Lesson:
    """A query about one of a scene's events, and the completion that is taught for it."""
    events = [(thing, event) for thing in scene.things for event in thing.events]
    thing, event = events[int(rng.integers(0, len(events)))]
    if task == "gqa":
        asked = ask_what(thing, event, rng)
        completion = teach(thing, event, rng, recipe, thought) + choose(asked)
        return thing, event, one_line(asked.text, asked.options), completion
    return thing, event, ask(thing, event, int(rng.integers(0, 3))), teach(thing, event, rng, recipe, thought)


def choose(asked: Question) -> str:
    """What follows the answer where there are options."""
    return "" if asked.choice is None else f" <option> {option_letter(asked.choice).lower()} </option>"


def teach(thing: Thing, event: Event, rng: np.random.Generator, recipe: Recipe, thought: bool = True) -> str:
    """A completion in the base's own style: a free thought, now and then with noisy anchors, and a rough answer."""
    start, end = _shaken(event.start - recipe.widen, event.end + recipe.widen, recipe.shake, rng)
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
            start, end = _snapped(event.start - before, event.end + after)
        else:
            start, end = _shaken(event.start, event.end, 1.5, rng)
        text += f" {lead} <timestamp> {start:.1f} to {end:.1f} </timestamp>."
    return text


def _snapped(start: float, end: float) -> tuple[float, float]:
    """To half seconds within the clip."""
    return max(0.0, round(start * 2) / 2), min(float(SECONDS), round(end * 2) / 2)


def _shaken(start: float, end: float, sigma: float, rng: np.random.Generator) -> tuple[float, float]:
    """Both ends moved at random; at least a second is left."""
    while True:
        moved = _snapped(start + rng.normal(0, sigma), end + rng.normal(0, sigma))
        if moved[1] - moved[0] >= 1:
            return moved
