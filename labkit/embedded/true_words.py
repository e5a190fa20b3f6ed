"""True words: what a thought says, held against the simulator that made the clip.

No reward reads a thought's words, so nothing keeps them true. In the embedded world each of them can be checked: the seed in a clip's
name draws it again, and with it who is where, what each thing does, in which scene and between which cuts. Other data have no such
record, so there are no such figures for them.

A word speaks of what stands before it in the thought: the thing that was named last, in the scene of the anchor that was written last;
before any, of the asked thing in the asked event. In the first edition all words speak of the asked thing and event. Colour and shape
stand in the query and can be copied from there, and so can the action in grounding; the others cannot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from labkit.data.moments import Moment
from labkit.embedded.clips import ACTIONS, COLORS, PLACES, SHAPES
from labkit.embedded.first_edition import TIMES_OF_CLIP, SceneFacts
from labkit.embedded.second_edition import ORDINALS, FilmFacts
from labkit.embedded.world import facts
from labkit.scoring.bootstrap import mean_interval

_WORDS: dict[str, dict[str, str]] = {
    "color": {color: color for color in COLORS},
    "shape": {shape: shape for shape in SHAPES},
    "place": {place: place for place in PLACES},
    "action": {form: action for action, forms in ACTIONS.items() for form in (action, *forms)},
    "time": {time: time for time in TIMES_OF_CLIP},
    "scene": {f"{ordinal} scene": f"{ordinal} scene" for ordinal in ORDINALS},
    "order": {
        text: text for ordinal in ORDINALS[:-1] for text in (f"before the {ordinal} cut", f"after the {ordinal} cut")
    },
}
"""By kind: each word as written, and its meaning."""
KINDS = {
    "color": "colour",
    "shape": "shape",
    "place": "place",
    "action": "action",
    "time": "time",
    "scene": "scene",
    "order": "before or after",
}
"""Kinds of words by the names that figures carry, and what tables call them."""
_SPAN = r"<timestamp>\s*(?P<start>\d+(?:\.\d+)?)\s*to\s*(?P<end>\d+(?:\.\d+)?)\s*</timestamp>"
_NAME = rf"the (?P<name_color>{'|'.join(COLORS)}) (?P<name_shape>{'|'.join(SHAPES)})"
_SAID = re.compile(
    "|".join(
        [
            _SPAN,
            rf"\b{_NAME}\b",
            *(
                rf"\b(?P<{kind}>{'|'.join(sorted(words, key=len, reverse=True))})\b"
                for kind, words in sorted(_WORDS.items(), key=lambda item: -max(map(len, item[1])))
            ),
        ]
    )
)
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
    known = [facts(moment) for moment in moments]
    words: dict[str, list[Word]] = {kind: [] for kind in KINDS}
    for moment, about in zip(moments, known, strict=True):
        if about is None:
            return {}
        for kind, says, true in _said(thought(texts[moment.qid]), about):
            words[kind].append(Word(says, true, moment.qid, moment.video))
    return words if moments else {}


def _said(text: str, about: SceneFacts | FilmFacts) -> Iterator[tuple[str, str, bool]]:
    """Kind, meaning and truth of each word in a thought."""
    name, second = "", None
    for found in _SAID.finditer(text):
        if found["start"]:
            second = (float(found["start"]) + float(found["end"])) / 2
        elif found["name_color"]:
            name = found[0]
            truths = about.truths(name, second)
            yield "color", found["name_color"], found["name_color"] in truths["color"]
            yield "shape", found["name_shape"], found["name_shape"] in truths["shape"]
        else:
            kind = found.lastgroup or ""
            says = _WORDS[kind][found[0]]
            yield kind, says, says in about.truths(name, second).get(kind, ())


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
    known = [about for about in map(facts, moments) if about is not None]
    if not known or len(known) < len(moments):
        return {}
    truths = [about.truths() for about in known]
    return {
        kind: {
            word: share
            for word in dict.fromkeys(_WORDS[kind].values())
            if (share := sum(word in truth.get(kind, ()) for truth in truths) / len(truths))
        }
        for kind in KINDS
    }


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
