"""What the second edition's base is taught to write: thoughts whose every word is true, with anchors or without, and an answer.

A lesson looks at most once for each span. A direct answer has one opening before it; a chain of anchors first says where the scene is
that the query means, and why, then where the event is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from labkit.embedded.clips import PLACES, STATES_PER_SECOND, Event
from labkit.embedded.second_edition import ORDINALS, SECONDS, Film, Query

WORDS = "beside and there in scene with first second third before after cut that is closer here".split()
"""What lessons and queries of the second edition add to the vocabulary, besides times."""


class Noise(NamedTuple):
    """How far the spans of lessons are off, in seconds."""

    widen: float = 0.0
    """By which an answer is widened at either end."""
    jitter: float = 0.0
    """Standard deviation of what is then added to either end of each span."""


def direct_lesson(
    film: Film, query: Query, rng: np.random.Generator, noise: Noise, one_look: bool = True, says_action: bool = False
) -> str:
    """A thought without anchors, and the answer; `says_action` where the question asks what the thing does.

    With `one_look` the answer is what one look gives: any of the film's events of that thing and kind. Where the query takes one look
    it has only one.
    """
    event = query.event
    if one_look:
        same = [
            other
            for scene in film.scenes
            for thing in scene.things
            for other in thing.events
            if thing.name == query.thing.name and other.action == event.action
        ]
        event = same[int(rng.integers(len(same)))]
    return f"<think> {_opening(query, rng, says_action)} </think> {_answer((event,), rng, noise)}"


def chain_lesson(film: Film, query: Query, rng: np.random.Generator, noise: Noise, says_action: bool = False) -> str:
    """A thought with one to three anchors from coarse to fine, and the answer; each of two spans where the query is for two times.

    `says_action` as in `direct_lesson`.
    """
    anchors = int(rng.choice([1, 2, 3], p=[0.15, 0.65, 0.2]))
    near = _around(film, query, rng, 0.5, 2.0), _near_words(query, rng)
    steps = [(_scene_spans(film, query, rng, noise), _scene_words(film, query, rng)), near]
    if anchors == 3:
        steps.append(
            (_around(film, query, rng, 0.0, 1.0), (("closer", "then more closely", "here")[int(rng.integers(3))], ""))
        )
    if anchors == 1:
        steps = [steps[int(rng.integers(2))]]
    said = "".join(f" {lead} <timestamp> {_written(spans)} </timestamp>{reason}." for spans, (lead, reason) in steps)
    return f"<think> {_opening(query, rng, says_action)}{said} </think> {_answer(query.events, rng, noise)}"


def _opening(query: Query, rng: np.random.Generator, says_action: bool) -> str:
    """A first sentence about the asked thing, of what can be seen at one look."""
    thing, place = query.thing, PLACES[query.thing.quadrant]
    beside = f" beside {query.clue.name}" if query.clue else ""
    if says_action:
        return (f"look at {thing.name}. it {query.event.action}.", f"{thing.name} {query.event.action}.")[
            int(rng.integers(2))
        ]
    return (
        f"look at {thing.name}.",
        f"look at {thing.name}{beside}.",
        f"i see {thing.name} on the {place}.",
        f"{thing.name} is on the {place}.",
        f"look at {thing.name}. it {query.event.action}{beside}.",
    )[int(rng.integers(5))]


def _scene_words(film: Film, query: Query, rng: np.random.Generator) -> tuple[str, str]:
    """What stands before and behind the span of the scene: whose it is, and which."""
    seen = query.clue or query.thing
    lead = (f"{seen.name} is around", f"{seen.name} is in", f"{seen.name} there")[int(rng.integers(3))]
    if query.again:
        return lead, ""
    number = film.scenes.index(query.scene)
    cut = f"after the {ORDINALS[number - 1]} cut" if number else "before the first cut"
    return lead, ("", f", the {ORDINALS[number]} scene", f", {cut}")[int(rng.integers(3))]


def _near_words(query: Query, rng: np.random.Generator) -> tuple[str, str]:
    """What stands before and behind the span around the event."""
    thing = query.thing
    acts, place = f"{thing.name} {query.event.action}", f", on the {PLACES[thing.quadrant]}"
    return ((f"then {acts}", ""), (f"there {acts}", ""), (acts, place), ("then more closely", ""))[
        int(rng.integers(4))
    ]


def _scene_spans(film: Film, query: Query, rng: np.random.Generator, noise: Noise) -> list[tuple[float, float]]:
    scenes = [film.scene_at(event.start) for event in query.events]
    return [jittered(scene.start, scene.end, noise.jitter / 2, rng) for scene in scenes]


def _around(
    film: Film, query: Query, rng: np.random.Generator, least: float, most: float
) -> list[tuple[float, float]]:
    """Each event with a margin, within its scene."""
    spans = []
    for event in query.events:
        scene, (before, after) = film.scene_at(event.start), rng.uniform(least, most, 2)
        start, end = snapped(event.start - before, event.end + after)
        spans.append((max(float(scene.start), start), min(float(scene.end), end)))
    return spans


def _answer(events: Sequence[Event], rng: np.random.Generator, noise: Noise) -> str:
    spans = [jittered(event.start - noise.widen, event.end + noise.widen, noise.jitter, rng) for event in events]
    return f"<answer> {_written(spans)} </answer>"


def _written(spans: Sequence[tuple[float, float]]) -> str:
    return ", ".join(f"{start:.1f} to {end:.1f}" for start, end in spans)


def snapped(start: float, end: float, seconds: int = SECONDS) -> tuple[float, float]:
    """To half seconds within a clip."""
    start, end = (round(second * STATES_PER_SECOND) / STATES_PER_SECOND for second in (start, end))
    return max(0.0, start), min(float(seconds), end)


def jittered(
    start: float, end: float, sigma: float, rng: np.random.Generator, seconds: int = SECONDS
) -> tuple[float, float]:
    """Both ends moved at random; at least a second is left."""
    while True:
        by = rng.normal(0, sigma, 2) if sigma else (0.0, 0.0)
        moved = snapped(start + by[0], end + by[1], seconds)
        if moved[1] - moved[0] >= 1:
            return moved
