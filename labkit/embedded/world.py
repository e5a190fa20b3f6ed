"""The embedded world: small video files in which things happen at known times.

A clip shows two or three coloured shapes, one in each quadrant it uses, for 16 seconds. Now and then a shape blinks, slides, bounces,
grows, or is there only for a while; each such event, 2 to 8 seconds long and on half-second borders, is a moment to be found by its
sentence. Shapes of one clip often share colour, form or action, so that a query is only answered by reading all three.

The same clips carry a second task, grounded question answering: what a shape does, with four options, and when.

Everything follows from the seed. The splits draw from disjoint ranges of seeds, and so does the embedded base's own training.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.errors import LabError
from labkit.files import replacing

SECONDS = 16
STATES_PER_SECOND = 2
STATES = SECONDS * STATES_PER_SECOND
"""What a clip shows changes at half seconds only."""
FRAMES_PER_STATE = 2
SIDE = 112
"""Pixels of a clip's side; the embedded model reads it at half of that."""

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "purple": (170, 60, 200),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross")
ACTIONS = {
    "blinks": ("blink", "blinking"),
    "slides": ("slide", "sliding"),
    "bounces": ("bounce", "bouncing"),
    "grows": ("grow", "growing"),
    "appears": ("appear", "visible"),
}
"""Each with the two forms that queries use."""

PLACES = ("top left", "top right", "bottom left", "bottom right")
"""Words for the quadrants, by their numbers. A thing never leaves its own, whatever it does."""
TIMES_OF_CLIP = ("early", "in the middle", "late")
"""Words for when an event is, by its middle."""
SOURCE = "embedded world"
"""What moments of this world say of where they come from."""

OPTIONS = 4
"""Options of a question: one that the thing does, and three that it does not."""

Task = Literal["grounding", "gqa"]

SEEDS_PER_SPLIT = 10**9
SPLITS = {"train": 0, "validation": 1, "test": 2, "base": 3}
"""Number of each split's range of seeds; `base` is where the embedded model's own training draws from."""


@dataclass(frozen=True, slots=True)
class Event:
    """One action of one thing, in seconds."""

    action: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape; lengths are fractions of the frame's side."""

    color: str
    shape: str
    quadrant: int
    """Place in `PLACES`."""
    x: float
    y: float
    radius: float
    brightness: float
    phase: int
    """Which half of a blink, slide or bounce comes first."""
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """All that a clip shows."""

    seed: int
    things: tuple[Thing, ...]
    background: tuple[float, float, float]
    slope: tuple[float, float]
    """Brightness over the frame's width and height."""


def scene_seed(split: str, index: int, seed: int = 0) -> int:
    """Seed of a split's clip. Ranges of different splits never meet; within a split, `seed` names one of 1,000 worlds.

    >>> scene_seed("test", 3, seed=2)
    2002000003
    """
    if not 0 <= seed < 1000:
        raise LabError(f"world_seed is {seed}; give a whole number from 0 to 999")
    if not 0 <= index < 10**6:
        raise LabError(f"a split of the embedded world holds at most 1,000,000 clips, and clip {index} was asked for")
    return SPLITS[split] * SEEDS_PER_SPLIT + seed * 10**6 + index


def make_scene(seed: int) -> Scene:
    """Draw a scene."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 4))
    quadrants = rng.permutation(4)[:count]
    colors, shapes = _looks(rng, count)
    shared = str(rng.choice(list(ACTIONS)))
    things = []
    for color, shape, quadrant in zip(colors, shapes, quadrants, strict=True):
        column, row = int(quadrant) % 2, int(quadrant) // 2
        things.append(
            Thing(
                color=color,
                shape=shape,
                quadrant=int(quadrant),
                x=0.25 + 0.5 * column + rng.uniform(-0.036, 0.036),
                y=0.25 + 0.5 * row + rng.uniform(-0.036, 0.036),
                radius=rng.uniform(0.107, 0.134),
                brightness=rng.uniform(0.85, 1.0),
                phase=int(rng.integers(0, 2)),
                events=_events(rng, shared),
            )
        )
    grey = rng.uniform(20, 110)
    background = tuple(float(grey + rng.uniform(-12, 12)) for _ in range(3))
    slope = (float(rng.uniform(-22, 22)), float(rng.uniform(-22, 22)))
    return Scene(seed, tuple(things), (background[0], background[1], background[2]), slope)


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
    """One or two events that neither overlap nor touch; most things do what the others do too."""
    first = shared if rng.random() < 0.7 else str(rng.choice(list(ACTIONS)))
    actions = [first]
    others = [action for action in ACTIONS if action not in (first, "appears")]
    if first != "appears" and rng.random() < 0.7:
        actions.append(str(rng.choice(others)))
    free = np.ones(STATES, bool)
    longest = (8 if len(actions) == 1 else 6) * STATES_PER_SECOND
    events = []
    for action in actions:
        for _ in range(12):  # a place may not be found beside a long first event; the thing then does one thing less
            length = int(rng.integers(2 * STATES_PER_SECOND, longest + 1))
            start = int(rng.integers(0, STATES - length + 1))
            if free[max(0, start - 1) : start + length + 1].all():
                free[start : start + length] = False
                events.append(Event(action, start / STATES_PER_SECOND, (start + length) / STATES_PER_SECOND))
                break
    return tuple(events)


def render_frames(scene: Scene, side: int = SIDE) -> np.ndarray:
    """The scene's states, one per half second: (32, side, side, 3) uint8."""
    rng = np.random.default_rng(scene.seed + 1)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    ground = np.array(scene.background, np.float32) + (x * scene.slope[0] + y * scene.slope[1])[..., None]
    frames = np.repeat(ground[None], STATES, 0)
    for thing in scene.things:
        color = np.array(COLORS[thing.color], np.float32) * thing.brightness
        for state in range(STATES):
            place = _place(thing, state)
            if place is not None:
                inside = _FORMS[thing.shape](x - place[0], y - place[1], place[2])
                frames[state][inside] = color
    frames += 4 * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames, 0, 255).astype(np.uint8)


def action_at(thing: Thing, state: int) -> str | None:
    """What the thing does during a half second."""
    time = state / STATES_PER_SECOND
    return next((event.action for event in thing.events if event.start <= time < event.end), None)


def is_shown(thing: Thing, state: int) -> bool:
    """Whether the thing is there during a half second; a blinking thing is."""
    appears = any(event.action == "appears" for event in thing.events)
    return not appears or action_at(thing, state) == "appears"


def _place(thing: Thing, state: int) -> tuple[float, float, float] | None:
    """Middle and radius during a half second, None when nothing is to be seen."""
    action, flip = action_at(thing, state), (state + thing.phase) % 2
    if not is_shown(thing, state) or (action == "blinks" and flip):
        return None
    shift = 0.08 if flip else -0.08
    return (
        thing.x + (shift if action == "slides" else 0),
        thing.y + (shift if action == "bounces" else 0),
        thing.radius * (1.55 if action == "grows" else 1),
    )


_FORMS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda x, y, r: x * x + y * y <= r * r,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) <= r * 0.85,
    "triangle": lambda x, y, r: (y <= r * 0.8) & (y >= -r) & (abs(x) <= (y + r) * 0.55),
    "cross": lambda x, y, r: (np.minimum(abs(x), abs(y)) <= r * 0.33) & (np.maximum(abs(x), abs(y)) <= r),
}


def grounding_query(thing: Thing, event: Event, form: int) -> str:
    """A query for an event, in one of three forms.

    >>> thing = Thing("red", "circle", 0, 0.25, 0.25, 0.1, 1.0, 0, (Event("blinks", 2.0, 5.0),))
    >>> [grounding_query(thing, thing.events[0], form) for form in range(3)]
    ['when does the red circle blink?', 'find when the red circle is blinking', 'the red circle is blinking when?']
    """
    name = f"the {thing.color} {thing.shape}"
    verb, participle = ACTIONS[event.action]
    return (f"when does {name} {verb}?", f"find when {name} is {participle}", f"{name} is {participle} when?")[form]


class Question(NamedTuple):
    """What is asked; where there are options, `options[choice]` is right."""

    text: str
    options: tuple[str, ...] = ()
    choice: int | None = None


def option_question(thing: Thing, event: Event, rng: np.random.Generator) -> Question:
    """What the thing does: the event's action among four options, the other three being nothing that it ever does.

    A thing with two events is asked about twice in the same words; the options say which event is meant.

    >>> thing = Thing("red", "circle", 0, 0.25, 0.25, 0.1, 1.0, 0, (Event("blinks", 2.0, 5.0),))
    >>> option_question(thing, thing.events[0], np.random.default_rng(0))
    Question(text='what does the red circle do?', options=('appear', 'blink', 'bounce', 'grow'), choice=1)
    """
    done = {each.action for each in thing.events}
    others = [action for action in ACTIONS if action not in done]
    actions = [event.action, *(str(action) for action in rng.choice(others, OPTIONS - 1, replace=False))]
    order = [actions[int(place)] for place in rng.permutation(OPTIONS)]
    options = tuple(ACTIONS[action][0] for action in order)
    return Question(f"what does the {thing.color} {thing.shape} do?", options, order.index(event.action))


def moments_file(folder: Path, split: str, task: Task = "grounding") -> Path:
    """Where a world's questions of a split stand: `train.jsonl`, or `train-gqa.jsonl`."""
    return folder / (f"{split}.jsonl" if task == "grounding" else f"{split}-{task}.jsonl")


def write_world(
    folder: str | Path,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    task: Task = "grounding",
) -> dict[str, list[Moment]]:
    """Write clips (`clips/*.mp4`) and the moments file of each split, see `moments_file`; return the moments by split.

    A clip that is already there is kept, and each moments file is written after its clips: a call that was killed is
    finished by the same call.

    Args:
        folder: made if it is not there.
        train: clips in the split, about four queries each.
        validation: as `train`.
        test: as `train`.
        seed: 0 to 999.
        progress: called with (clips done, clips in all).
        task: what is asked; the clips are the same.

    Raises:
        LabError: a count or the seed is out of range.
    """
    folder = Path(folder).resolve()
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise LabError(f"the embedded world's {split} split is to hold {count} clips; give at least 1")
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    done, moments = 0, {}
    for split, count in counts.items():
        rows: list[Moment] = []
        for index in range(count):
            scene = make_scene(scene_seed(split, index, seed))
            path = folder / "clips" / f"{split}-{index:05d}-{scene.seed}.mp4"
            if not path.exists():
                with replacing(path) as draft:
                    _write_mp4(draft, render_frames(scene))
            rows += scene_moments(scene, path, task)
            done += 1
            if progress:
                progress(done, sum(counts.values()))
        write_moments(rows, moments_file(folder, split, task))
        moments[split] = rows
    return moments


def scene_moments(scene: Scene, path: Path, task: Task = "grounding") -> list[Moment]:
    """One moment per event; its query's form, or its options, are drawn from the scene's seed."""
    rng = np.random.default_rng(scene.seed + 2 if task == "grounding" else [scene.seed, 3])
    events = [(thing, event) for thing in scene.things for event in thing.events]
    moments: list[Moment] = []
    for number, (thing, event) in enumerate(events):
        if task == "gqa":
            question = option_question(thing, event, rng)
        else:
            question = Question(grounding_query(thing, event, int(rng.integers(0, 3))))
        window = Span(event.start, event.end)
        moments.append(
            Moment(f"{path.stem}-{number}", str(path), question.text, (window,), float(SECONDS),
                   source=SOURCE, options=question.options, choice=question.choice)
        )  # fmt: skip
    return moments


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
    named = _CLIP.fullmatch(moment.qid)
    if moment.source != SOURCE or named is None or not moment.video.endswith(f"{named['clip']}.mp4"):
        return None
    scene = _known_scene(int(named["seed"]))
    events = [(thing, event) for thing in scene.things for event in thing.events]
    if int(named["number"]) >= len(events):
        return None
    thing, event = events[int(named["number"])]
    return (thing, event) if moment.windows == (Span(event.start, event.end),) else None


_CLIP = re.compile(r"(?P<clip>[a-z]+-\d{5,}-(?P<seed>\d+))-(?P<number>\d+)", re.ASCII)


@functools.lru_cache(1024)
def _known_scene(seed: int) -> Scene:
    return make_scene(seed)


def _write_mp4(path: Path, states: np.ndarray) -> None:
    """H.264, each state shown for half a second."""
    import av

    rate = STATES_PER_SECOND * FRAMES_PER_STATE
    with av.open(str(path), "w", format="mp4") as container:
        # The same seed gives the same file, byte for byte: one thread, a fixed preset, and no macroblock tree, which
        # in clips of this size reads memory that nobody has written (a fifth of them came out otherwise now and then).
        options = {"preset": "veryfast", "crf": "18", "threads": "1", "mbtree": "0"}
        stream = container.add_stream("libx264", rate=Fraction(rate), options=options)
        stream.width, stream.height, stream.pix_fmt = states.shape[2], states.shape[1], "yuv420p"
        for state in states:
            for _ in range(FRAMES_PER_STATE):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(state, format="rgb24")))
        container.mux(stream.encode())
