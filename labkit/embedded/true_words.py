"""True words: what a thought says, held against the simulator that made the clip.

No reward reads a thought's words, so nothing keeps them true. In the embedded world each of them can be checked: the seed in a clip's
name draws the scene again, and with it colour, shape and place of the thing that the query asks about, what it does in the
asked event, and when. Other data have no such record, so there are no such figures for them.

A word speaks of the **asked** thing and event, whichever thing the thought names: a thought is about its query. Colour and
shape stand in the query and can be copied from there, and so can the action in grounding; place and time cannot.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from labkit.data.moments import Moment
from labkit.embedded.world import ACTIONS, COLORS, PLACES, SHAPES, TIMES_OF_CLIP, Event, Thing, queried_event, time_of
from labkit.scoring.bootstrap import mean_interval

_WORDS: dict[str, dict[str, str]] = {
    "color": {color: color for color in COLORS},
    "shape": {shape: shape for shape in SHAPES},
    "place": {place: place for place in PLACES},
    "action": {form: action for action, forms in ACTIONS.items() for form in (action, *forms)},
    "time": {time: time for time in TIMES_OF_CLIP},
}
"""By kind: each word as written, and its meaning."""
KINDS = {"color": "colour", "shape": "shape", "place": "place", "action": "action", "time": "time"}
"""Kinds of words by the names that figures carry, and what tables call them."""
_ANY = {
    kind: re.compile(rf"\b(?:{'|'.join(sorted(words, key=len, reverse=True))})\b") for kind, words in _WORDS.items()
}
_OBJECT = re.compile(rf"\b(?:{'|'.join([*COLORS, *SHAPES])})\b")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


class Word(NamedTuple):
    """A word of a thought that says something of the asked thing or event."""

    says: str
    true: bool
    qid: str
    video: str


def check_words(texts: Mapping[str, str], moments: Sequence[Moment]) -> dict[str, list[Word]]:
    """The words of all thoughts by kind, held against what each moment asks about; `texts` are chains' by qid.

    Empty unless every moment is of the embedded world. A place is one word ("top left"); "left" alone is none.
    """
    asked = [queried_event(moment) for moment in moments]
    words: dict[str, list[Word]] = {kind: [] for kind in KINDS}
    for moment, about in zip(moments, asked, strict=True):
        if about is None:
            return {}
        truth, text = _truth(*about), thought(texts[moment.qid])
        for kind, pattern in _ANY.items():
            meanings = [_WORDS[kind][word] for word in pattern.findall(text)]
            words[kind] += [Word(word, word == truth[kind], moment.qid, moment.video) for word in meanings]
    return words if moments else {}


def word_figures(texts: Mapping[str, str], moments: Sequence[Moment]) -> dict[str, float]:
    """Flat figures of what thoughts say; `texts` are chains' by qid. Empty unless every moment is of the embedded world.

    `said_<kind>` counts the words of a kind in all thoughts; `true_<kind>` is the share of them that is true, `low_<kind>` and
    `high_<kind>` its 95 % interval by whole videos; `chance_<kind>` is the share that would be if the same words were dealt out at
    random among all queries. They are NaN where none was said, the interval also where there is but one video. Kinds are those of
    `KINDS`. `distinct_thoughts` counts the thoughts that differ once words for the object (colour and shape) and numbers are blanked.

    Source: our choice.
    """
    words = check_words(texts, moments)
    if not words:
        return {}
    chances, figures = word_chances(moments), {}
    for kind, found in words.items():
        figures[f"said_{kind}"] = float(len(found))
        figures[f"true_{kind}"] = sum(word.true for word in found) / len(found) if found else math.nan
        dealt = sum(chances[kind].get(word.says, 0.0) for word in found)
        figures[f"chance_{kind}"] = dealt / len(found) if found else math.nan
        ends = (
            mean_interval([word.true for word in found], [word.video for word in found]) if found else 2 * (math.nan,)
        )
        figures[f"low_{kind}"], figures[f"high_{kind}"] = ends
    distinct = {blanked(thought(texts[moment.qid])) for moment in moments}
    return figures | {"distinct_thoughts": float(len(distinct))}


def word_chances(moments: Sequence[Moment]) -> dict[str, dict[str, float]]:
    """By kind and word, the share of moments of which it is true; empty unless every moment is of the embedded world."""
    asked = [queried_event(moment) for moment in moments]
    truths = [_truth(*about) for about in asked if about is not None]
    if not truths or len(truths) < len(asked):
        return {}
    counts = {kind: Counter(truth[kind] for truth in truths) for kind in KINDS}
    return {kind: {word: n / len(truths) for word, n in each.items()} for kind, each in counts.items()}


def thought(text: str) -> str:
    r"""What a chain says before its answer, in lower case and with single blanks.

    >>> thought("<think> I see the red\ncircle. </think> <answer> 1.0 to 2.0 </answer>")
    '<think> i see the red circle.'
    """
    return " ".join(text.partition("</think>")[0].partition("<answer>")[0].lower().split())


def blanked(text: str) -> str:
    """A thought without its object and its numbers.

    >>> blanked("the red circle blinks early. around <timestamp> 1.0 to 2.5 </timestamp>")
    'the _ _ blinks early. around <timestamp> # to # </timestamp>'
    """
    return _NUMBER.sub("#", _OBJECT.sub("_", text))


def _truth(thing: Thing, event: Event) -> dict[str, str]:
    """What is true of the asked thing in the asked event, by kind of word."""
    return {
        "color": thing.color,
        "shape": thing.shape,
        "place": PLACES[thing.quadrant],
        "action": event.action,
        "time": time_of(event),
    }
