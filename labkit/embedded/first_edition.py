"""The embedded world's first edition: clips of one scene, whose queries take one look.

A clip shows two or three coloured shapes for 16 seconds, see `labkit.embedded.clips`. Now and then one blinks, slides, bounces, grows,
or is there only for a while; each such event, 2 to 8 seconds long and on half-second borders, is a moment to be found by its sentence.
Shapes of one clip often share colour, form or action, so that a query is only answered by reading all three.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.clips import (
    ACTIONS,
    COLORS,
    PLACES,
    SHAPES,
    SIDE,
    STATES_PER_SECOND,
    Event,
    Thing,
    add_noise,
    clip_and_number,
    draw_background,
    draw_thing,
    paint_background,
    paint_thing,
    place_events,
    sentence,
)

SECONDS = 16
STATES = SECONDS * STATES_PER_SECOND
TIMES_OF_CLIP = ("early", "in the middle", "late")
"""Words for when an event is, by its middle."""
SOURCE = "embedded world"
"""What moments of this world say of where they come from."""


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a clip shows."""

    seed: int
    things: tuple[Thing, ...]
    background: tuple[float, float, float]
    slope: tuple[float, float]
    """Brightness over the frame's width and height."""


@functools.lru_cache(1024)
def make_scene(seed: int) -> Scene:
    """Draw a scene."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4))
    quadrants = rng.permutation(4)[:count]
    colors, shapes = _looks(rng, count)
    shared = str(rng.choice(list(ACTIONS)))
    things = [
        draw_thing(rng, color, shape, int(quadrant), lambda: _events(rng, shared))
        for color, shape, quadrant in zip(colors, shapes, quadrants, strict=True)
    ]
    return Scene(seed, tuple(things), *draw_background(rng))


def _looks(rng: np.random.Generator, count: int) -> tuple[list[str], list[str]]:
    """Colours and shapes, no two things alike; in two of three clips they share one of both."""
    sharing = int(rng.integers(0, 3))
    while True:
        colors = [str(c) for c in rng.choice(list(COLORS), count)]
        shapes = [str(s) for s in rng.choice(SHAPES, count)]
        if sharing == 1:
            colors = colors[:1] * count
        if sharing == 2:
            shapes = shapes[:1] * count
        if len(set(zip(colors, shapes, strict=True))) == count:
            return colors, shapes


def _events(rng: np.random.Generator, shared: str) -> tuple[Event, ...]:
    """One or two events; most things do what the others do too."""
    first = shared if rng.random() < 0.7 else str(rng.choice(list(ACTIONS)))
    actions = [first]
    others = [action for action in ACTIONS if action not in (first, "appears")]
    if first != "appears" and rng.random() < 0.7:
        actions.append(str(rng.choice(others)))
    return place_events(rng, actions, STATES, (8 if len(actions) == 1 else 6) * STATES_PER_SECOND)


def render_frames(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The scene's states, one per half second: (32, side, side, 3) uint8."""
    rng = np.random.default_rng(scene.seed + 1)
    frames = np.repeat(paint_background(side, scene.background, scene.slope)[None], STATES, 0)
    for thing in scene.things:
        paint_thing(frames, thing)
    return add_noise(frames, rng)


def grounding_query(thing: Thing, event: Event, form: int) -> str:
    """A query for an event, in one of three forms.

    >>> thing = Thing("red", "circle", 0, 0.25, 0.25, 0.1, 1.0, 0, (Event("blinks", 2.0, 5.0),))
    >>> [grounding_query(thing, thing.events[0], form) for form in range(3)]
    ['when does the red circle blink?', 'find when the red circle is blinking', 'the red circle is blinking when?']
    """
    return sentence(thing, event, form)


def scene_moments(scene: Scene, path: Path) -> list[Moment]:
    """One moment per event; the form of its query is drawn from the scene's seed."""
    rng = np.random.default_rng(scene.seed + 2)
    events = [(thing, event) for thing in scene.things for event in thing.events]
    return [
        Moment(
            f"{path.stem}-{number}",
            str(path),
            grounding_query(thing, event, int(rng.integers(0, 3))),
            (Span(event.start, event.end),),
            float(SECONDS),
            source=SOURCE,
        )
        for number, (thing, event) in enumerate(events)
    ]


def time_of(event: Event) -> str:
    """Which of `TIMES_OF_CLIP` an event's middle lies in.

    >>> time_of(Event("blinks", 2.0, 5.0)), time_of(Event("blinks", 6.0, 9.0))
    ('early', 'in the middle')
    """
    middle = (event.start + event.end) / 2
    return TIMES_OF_CLIP[0] if middle < 5.5 else TIMES_OF_CLIP[2] if middle > 10.5 else TIMES_OF_CLIP[1]


def queried_event(moment: Moment) -> tuple[Thing, Event] | None:
    """The thing and the event that a moment of this world asks about, drawn again from the seed in its clip's name.

    None for any other moment, and for one whose window is not what the seed draws: its clip then shows something else.

    >>> moment = scene_moments(make_scene(7), Path("/world/clips/test-00000-7.mp4"))[1]
    >>> thing, event = queried_event(moment)
    >>> f"{thing.color} {thing.shape}, {PLACES[thing.quadrant]}, {event.action}; {moment.query}"
    'white square, bottom left, slides; the white square is sliding when?'
    """
    named = clip_and_number(moment, SOURCE)
    if named is None:
        return None
    scene = make_scene(named[0])
    events = [(thing, event) for thing in scene.things for event in thing.events]
    if named[1] >= len(events):
        return None
    thing, event = events[named[1]]
    return (thing, event) if moment.windows == (Span(event.start, event.end),) else None


class SceneFacts(NamedTuple):
    """What is true of what a moment asks about."""

    thing: Thing
    event: Event

    def truths(self, name: str = "", second: float | None = None) -> dict[str, frozenset[str]]:
        """By kind of word, the words that are true of the asked thing and event, whichever thing is named and whenever."""
        thing, event = self.thing, self.event
        said = {
            "color": thing.color,
            "shape": thing.shape,
            "place": PLACES[thing.quadrant],
            "action": event.action,
            "time": time_of(event),
        }
        return {kind: frozenset([word]) for kind, word in said.items()}


def facts(moment: Moment) -> SceneFacts | None:
    """What can be said of a moment's clip; None for a moment that is not of this world."""
    about = queried_event(moment)
    return about and SceneFacts(*about)
