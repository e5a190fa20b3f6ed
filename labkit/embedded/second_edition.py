"""The embedded world's second edition: clips of three scenes, half of whose queries take two looks.

A clip of 24 seconds has three scenes with cuts between them. One thing is in all of them, in one place, and does the same in two or
three; each scene also holds a thing that is in no other. So "when does the red circle blink beside the yellow square?" takes two
looks: where the yellow square is, and when the red circle blinks there. The other half of the queries are about something that happens
once in a clip, and take one look: "when does the yellow square grow?".

Asked otherwise (`world-2-twice`), the thing does the same in exactly two scenes, and the query is for both times: an answer of two
spans. Half of its queries are still about something that happens once, in the same words, so that how often has to be seen.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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

SECONDS = 24
STATES = SECONDS * STATES_PER_SECOND
SCENES = 3
SHORTEST, LONGEST = 6, 10
"""Seconds of a scene."""
SOURCES = {False: "embedded world, second edition", True: "embedded world, second edition, twice"}
"""What moments of this world say of where they come from, by whether what happens twice is asked for."""
ORDINALS = ("first", "second", "third")
OPTIONS = 4
"""Of a question with options."""
LASTING_ACTIONS = tuple(action for action in ACTIONS if action != "appears")
"""What things do here: all of them are there for the whole scene."""

Look = tuple[str, str]
"""Colour and shape; no two things of a scene share both."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown between two cuts, from second `start` to `end`."""

    start: int
    end: int
    things: tuple[Thing, ...]
    """First the one that is in all scenes, then the one that is in this scene alone, then perhaps one that looks like the first."""
    background: tuple[float, float, float]
    slope: tuple[float, float]

    @property
    def names(self) -> list[str]:
        """What the things are called."""
        return [thing.name for thing in self.things]


@dataclass(frozen=True, slots=True)
class Film:
    """All that a clip shows."""

    seed: int
    scenes: tuple[Scene, ...]
    twice: bool = False
    """Whether queries are for both times of what happens twice, in place of those that take two looks."""

    def scene_at(self, second: float) -> Scene:
        """The scene that is shown at a second; the last one behind the end."""
        return next((scene for scene in self.scenes if second < scene.end), self.scenes[-1])


class Query(NamedTuple):
    """What is asked: an event of a thing in a scene, and the thing beside it that tells this scene from the others."""

    scene: Scene
    thing: Thing
    event: Event
    clue: Thing | None = None
    """None where the thing does this in one scene only: the query takes one look."""
    again: Event | None = None
    """The second time, where the query is for both."""

    @property
    def events(self) -> tuple[Event, ...]:
        """What is asked for: one event, or two."""
        return (self.event,) if self.again is None else (self.event, self.again)

    @property
    def windows(self) -> tuple[Span, ...]:
        """When that is."""
        return tuple(Span(event.start, event.end) for event in self.events)


@functools.lru_cache(1024)
def make_film(seed: int, twice: bool = False) -> Film:
    """Draw a film; `twice`, one in which the thing of all scenes does the same in exactly two."""
    rng = np.random.default_rng([2, seed])
    lengths = _scene_lengths(rng)
    recurring, clues = _looks(rng)
    asked, home = str(rng.choice(LASTING_ACTIONS)), int(rng.integers(4))
    acting = rng.random(SCENES) < 0.85
    while acting.sum() != 2 if twice else acting.sum() < 2:
        acting = rng.random(SCENES) < 0.85
    scenes, start = [], 0
    for number, length in enumerate(lengths):
        looks = [recurring, clues[number]]
        if rng.random() < 0.5:
            looks.append(_like(rng, recurring, {recurring, *clues}))
        quadrants = [home, *rng.permutation([quadrant for quadrant in range(4) if quadrant != home])]
        plans = [_actions(rng, asked, role, bool(acting[number])) for role in range(len(looks))]
        things = tuple(
            draw_thing(
                rng, color, shape, int(quadrant), functools.partial(_events, rng, actions, start, start + length)
            )
            for (color, shape), quadrant, actions in zip(looks, quadrants, plans, strict=False)
        )
        scenes.append(Scene(start, start + length, things, *draw_background(rng)))
        start += length
    return Film(seed, tuple(scenes), twice)


def _scene_lengths(rng: np.random.Generator) -> list[int]:
    while True:
        lengths = [int(n) for n in rng.integers(SHORTEST, LONGEST + 1, SCENES)]
        if sum(lengths) == SECONDS:
            return lengths


def _looks(rng: np.random.Generator) -> tuple[Look, list[Look]]:
    """How the recurring thing looks, and the thing of each scene; in two of three films those share colour or shape."""
    sharing = int(rng.integers(0, 3))
    recurring, first = _look(rng), _look(rng)
    clues: list[Look] = []
    while len(clues) < SCENES:
        color, shape = _look(rng)
        look = (first[0] if sharing == 1 else color, first[1] if sharing == 2 else shape)
        if look != recurring and look not in clues:
            clues.append(look)
    return recurring, clues


def _look(rng: np.random.Generator) -> Look:
    return str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))


def _like(rng: np.random.Generator, look: Look, taken: set[Look]) -> Look:
    """A look that shares colour or shape with another."""
    while True:
        color, shape = _look(rng)
        like = (look[0], shape) if rng.random() < 0.5 else (color, look[1])
        if like not in taken:
            return like


def _actions(rng: np.random.Generator, asked: str, role: int, acting: bool) -> list[str]:
    """What a thing does in a scene: the recurring one what is asked about, when it is `acting`, and now and then something else."""
    if role == 0:
        others = [action for action in LASTING_ACTIONS if action != asked]
        also = [str(rng.choice(others))] if not acting or rng.random() < 0.4 else []
        return [asked] * acting + also
    if rng.random() < (0.7 if role == 1 else 1.0):
        return [asked if rng.random() < 0.4 else str(rng.choice(LASTING_ACTIONS))]
    return []


def _events(rng: np.random.Generator, actions: list[str], start: int, end: int) -> tuple[Event, ...]:
    longest = (5 if len(actions) == 1 else 3) * STATES_PER_SECOND
    return place_events(rng, actions, (end - start) * STATES_PER_SECOND, longest, start)


def render_frames(film: Film, side: int = SIDE) -> np.ndarray:
    """The film's states, one per half second: (48, side, side, 3) uint8."""
    frames = np.empty((STATES, side, side, 3), np.float32)
    for scene in film.scenes:
        first = scene.start * STATES_PER_SECOND
        shown = frames[first : scene.end * STATES_PER_SECOND]
        shown[:] = paint_background(side, scene.background, scene.slope)
        for thing in scene.things:
            paint_thing(shown, thing, first)
    return add_noise(frames, np.random.default_rng([2, film.seed, 1]))


def all_queries(film: Film) -> list[Query]:
    """Every query that has one answer, in the film's order."""
    events = [(scene, thing, event) for scene in film.scenes for thing in scene.things for event in thing.events]
    times = Counter((thing.name, event.action) for _, thing, event in events)
    scenes = Counter(thing.name for scene in film.scenes for thing in scene.things)
    found = []
    for scene, thing, event in events:
        if times[thing.name, event.action] == 1:
            found.append(Query(scene, thing, event))
        elif sum(other.action == event.action for other in thing.events) == 1:
            clues = [clue for clue in scene.things if clue is not thing and scenes[clue.name] == 1]
            found += [Query(scene, thing, event, clue) for clue in clues]
    return found


def repeated_queries(film: Film) -> list[Query]:
    """Every query for both times of what a thing does exactly twice, in the film's order."""
    found: dict[tuple[str, str], list[Query]] = {}
    for scene in film.scenes:
        for thing in scene.things:
            for event in thing.events:
                found.setdefault((thing.name, event.action), []).append(Query(scene, thing, event))
    return [both[0]._replace(again=both[1].event) for both in found.values() if len(both) == 2]


def queries(film: Film) -> list[Query]:
    """Up to two queries that take one look and two that take two, or are for two times, drawn from the film's seed."""
    rng = np.random.default_rng([2, film.seed, 2])
    found = all_queries(film)
    one, two = ([query for query in found if (query.clue is None) == easy] for easy in (True, False))
    if film.twice:
        two = repeated_queries(film)
    return [kind[int(at)] for kind in (one, two) for at in rng.permutation(len(kind))[:2]]


def query_text(query: Query, form: int) -> str:
    """A query's sentence, in one of three forms.

    >>> query = queries(make_film(0))[-1]
    >>> query_text(query, 0)
    'when does the red triangle slide beside the yellow triangle?'
    >>> query_text(query, 2)
    'beside the yellow triangle the red triangle is sliding when?'
    """
    return sentence(query.thing, query.event, form, f"beside {query.clue.name}" if query.clue else "")


class OptionQuestion(NamedTuple):
    """A question with options, of which `options[choice]` is right."""

    text: str
    options: tuple[str, ...]
    choice: int


def option_question(film: Film, query: Query, rng: np.random.Generator) -> OptionQuestion:
    """What the asked thing does, with four options; the other three it does not do there.

    A thing that is in several scenes is asked about beside one that is in this scene alone, and what it does in other scenes comes
    first among the wrong options. A thing with two events in a scene may be asked about twice in the same words; the options say which
    event is meant.

    >>> film = make_film(0)
    >>> option_question(film, queries(film)[-1], np.random.default_rng(0)).text
    'what does the red triangle do beside the yellow triangle?'
    """
    name, clue = query.thing.name, query.clue
    scenes = Counter(other for scene in film.scenes for other in scene.names)
    if clue is None and scenes[name] > 1:
        clue = next(thing for thing in query.scene.things if scenes[thing.name] == 1)
    acts = [
        (scene, event.action)
        for scene in film.scenes
        for thing in scene.things
        if thing.name == name
        for event in thing.events
    ]
    here = {action for scene, action in acts if scene is query.scene}
    elsewhere = {action for _, action in acts} - here
    others = [str(action) for action in rng.permutation(list(ACTIONS)) if action not in here]
    others.sort(key=lambda action: action not in elsewhere)
    order = [str(action) for action in rng.permutation([query.event.action, *others[: OPTIONS - 1]])]
    return OptionQuestion(
        f"what does {name} do{f' beside {clue.name}' if clue else ''}?",
        tuple(ACTIONS[action][0] for action in order),
        order.index(query.event.action),
    )


def clip_moments(film: Film, path: Path, task: str = "grounding") -> list[Moment]:
    """The film's moments; the form of each query, or its options, are drawn from the film's seed."""
    rng = np.random.default_rng([2, film.seed, 3 if task == "grounding" else 4])
    moments = []
    for number, query in enumerate(queries(film)):
        choice: dict[str, Any] = {}
        if task == "gqa":
            text, choice["options"], choice["choice"] = option_question(film, query, rng)
        else:
            text = query_text(query, int(rng.integers(0, 3)))
        name, seconds, source = f"{path.stem}-{number}", float(SECONDS), SOURCES[film.twice]
        moments.append(
            Moment(name, str(path), text, query.windows, seconds, source=source, as_set=film.twice, **choice)
        )
    return moments


def asked_query(moment: Moment) -> tuple[Film, Query] | None:
    """The film and the query of a moment of this world, drawn again from the seed in its clip's name.

    None for any other moment, and for one whose window is not what the seed draws: its clip then shows something else.
    """
    twice = moment.source == SOURCES[True]
    named = clip_and_number(moment, SOURCES[twice])
    if named is None:
        return None
    film, found = _asked_film(named[0], twice)
    if named[1] >= len(found) or moment.windows != found[named[1]].windows:
        return None
    return film, found[named[1]]


@functools.lru_cache(1024)
def _asked_film(seed: int, twice: bool) -> tuple[Film, tuple[Query, ...]]:
    film = make_film(seed, twice)
    return film, tuple(queries(film))


class FilmFacts(NamedTuple):
    """What is true of a moment's film, thing by thing and scene by scene."""

    film: Film
    query: Query

    def truths(self, name: str = "", second: float | None = None) -> dict[str, frozenset[str]]:
        """By kind of word, the words that are true of a thing in the scene that is shown at a second.

        No name: the asked thing, or where that is not shown, any. No second: the asked scene, or the one that the named thing is in.
        A thing that is not there has nothing true of it but the scene's number and the cuts around it.
        """
        film, query = self.film, self.query
        name = name or query.thing.name
        candidates = [film.scene_at(second)] if second is not None else [query.scene, *film.scenes]
        scene = next((scene for scene in candidates if name in scene.names), candidates[0])
        number = film.scenes.index(scene)
        thing = next((thing for thing in scene.things if thing.name == name), None)
        cuts = [f"after the {ORDINALS[cut]} cut" for cut in range(number)]
        cuts += [f"before the {ORDINALS[cut]} cut" for cut in range(number, SCENES - 1)]
        return {
            "color": frozenset([thing.color] if thing else []),
            "shape": frozenset([thing.shape] if thing else []),
            "place": frozenset([PLACES[thing.quadrant]] if thing else []),
            "action": frozenset(event.action for event in thing.events) if thing else frozenset(),
            "scene": frozenset([f"{ORDINALS[number]} scene"]),
            "order": frozenset(cuts),
        }


def facts(moment: Moment) -> FilmFacts | None:
    """What can be said of a moment's clip; None for a moment that is not of this world."""
    about = asked_query(moment)
    return about and FilmFacts(*about)
