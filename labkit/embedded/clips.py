"""Clips of the embedded world: coloured shapes that act, one in each quadrant, drawn and written as small H.264 files.

What both editions of the world share; what happens in a clip, and what is asked about it, is theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from labkit.data.moments import Moment

STATES_PER_SECOND = 2
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

    @property
    def name(self) -> str:
        """As queries and thoughts call it."""
        return f"the {self.color} {self.shape}"


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


def paint_background(size: int, background: tuple[float, float, float], slope: tuple[float, float]) -> np.ndarray:
    """A background of one colour that grows lighter over the frame's width and height: (size, size, 3) float32."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    return np.array(background, np.float32) + (x * slope[0] + y * slope[1])[..., None]


def paint_thing(frames: np.ndarray, thing: Thing, first_state: int = 0) -> None:
    """Draw a thing into frames (states, side, side, 3), in place; `first_state` is the clip's state of the first one."""
    side = frames.shape[1]
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    color = np.array(COLORS[thing.color], np.float32) * thing.brightness
    shown: dict[tuple[float, float, float], list[int]] = {}
    for state in range(len(frames)):
        if place := _place(thing, first_state + state):
            shown.setdefault(place, []).append(state)
    for (middle, height, radius), states in shown.items():  # a few, most of them in many states
        rows, columns = np.nonzero(_FORMS[thing.shape](x - middle, y - height, radius))
        frames[np.array(states)[:, None], rows, columns] = color


def add_noise(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The frames with a little noise, as uint8."""
    frames += 4 * rng.standard_normal(frames.shape, dtype=np.float32)
    return np.clip(frames, 0, 255).astype(np.uint8)


def draw_thing(
    rng: np.random.Generator, color: str, shape: str, quadrant: int, events: Callable[[], tuple[Event, ...]]
) -> Thing:
    """A thing somewhere within its quadrant; its events are drawn last."""
    column, row = quadrant % 2, quadrant // 2
    return Thing(
        color=color,
        shape=shape,
        quadrant=quadrant,
        x=0.25 + 0.5 * column + rng.uniform(-0.036, 0.036),
        y=0.25 + 0.5 * row + rng.uniform(-0.036, 0.036),
        radius=rng.uniform(0.107, 0.134),
        brightness=rng.uniform(0.85, 1.0),
        phase=int(rng.integers(0, 2)),
        events=events(),
    )


def draw_background(rng: np.random.Generator) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """A dark colour, and how it grows lighter."""
    grey = rng.uniform(20, 110)
    background = tuple(float(grey + rng.uniform(-12, 12)) for _ in range(3))
    return (background[0], background[1], background[2]), (float(rng.uniform(-22, 22)), float(rng.uniform(-22, 22)))


def place_events(
    rng: np.random.Generator, actions: Sequence[str], states: int, longest: int, first: float = 0.0
) -> tuple[Event, ...]:
    """Events of 2 seconds to `longest` states that neither overlap nor touch, in so many states from second `first` on.

    A place may not be found beside a long first event; the thing then does one thing less.
    """
    free = np.ones(states, bool)
    events = []
    for action in actions:
        for _ in range(12):
            length = int(rng.integers(2 * STATES_PER_SECOND, longest + 1))
            start = int(rng.integers(0, states - length + 1))
            if free[max(0, start - 1) : start + length + 1].all():
                free[start : start + length] = False
                events.append(
                    Event(action, first + start / STATES_PER_SECOND, first + (start + length) / STATES_PER_SECOND)
                )
                break
    return tuple(events)


def sentence(thing: Thing, event: Event, form: int, beside: str = "") -> str:
    """When a thing does something, `beside` another: a question, an order, or a statement that ends in a question."""
    verb, participle = ACTIONS[event.action]
    return (
        f"when does {thing.name} {verb} {beside}".rstrip() + "?",
        f"find when {thing.name} is {participle} {beside}".rstrip(),
        f"{beside} {thing.name} is {participle} when?".lstrip(),
    )[form]


def write_mp4(path: Path, states: np.ndarray) -> None:
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


_CLIP = re.compile(r"(?P<clip>[a-z]+-\d{5,}-(?P<seed>\d+))-(?P<number>\d+)", re.ASCII)


def clip_and_number(moment: Moment, source: str) -> tuple[int, int] | None:
    """The seed of a moment's clip and the query's number, from its qid; None for a moment that is not from `source`."""
    named = _CLIP.fullmatch(moment.qid)
    if moment.source != source or named is None or not moment.video.endswith(f"{named['clip']}.mp4"):
        return None
    return int(named["seed"]), int(named["number"])
