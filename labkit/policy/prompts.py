"""Prompt templates: the text around the video.

A comparison is worth nothing unless both sides have the same prompt: the same base model's R1@0.5 on Charades moves by tens of
points with the prompt alone. So a template has a name, the name is a parameter, and it is in every run's params.yaml; the text of
one's own file is in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from labkit.chain.anchors import option_letter
from labkit.data.moments import Moment
from labkit.errors import LabError

ANCHORS = (
    'To find when "{query}" happens in this video, narrow it down in steps. First think inside <think> </think>: name a rough time '
    "span as <timestamp>start to end</timestamp>, look at its borders again, and give a tighter one in a second "
    "<timestamp>start to end</timestamp>. Then answer with the exact span as <answer>start to end</answer>. All times are seconds "
    "from the beginning of the video, with one decimal."
)
ANSWER = (
    'When does "{query}" happen in this video? Think inside <think> </think>, then answer with <answer>start to end</answer>, in '
    "seconds from the beginning of the video, with one decimal."
)
OPTIONS = (
    "{query}\n{options}\nFirst find the part of this video that shows it, and narrow it down in steps. Think inside <think> </think>: "
    "name a rough time span as <timestamp>start to end</timestamp>, look at its borders again, and give a tighter one in a second "
    "<timestamp>start to end</timestamp>. Then give the exact span of the evidence as <answer>start to end</answer>, and last the "
    "letter of the right option as <option>letter</option>. All times are seconds from the beginning of the video, with one decimal."
)
TEMPLATES: dict[str, str] = {"query": "{query}", "anchors": ANCHORS, "answer": ANSWER, "options": OPTIONS}
"""By name. `query`: the bare query, and its options if it has any, before the video, for models trained on one task only, such as the
embedded ones. `anchors`: the two-step anchor prompt (our words). `answer`: the same without anchors, for controls. `options`: the two
steps to the evidence, then a choice, for grounded question answering (our words)."""


def messages(moment: Moment, template: str) -> list[dict[str, Any]]:
    """Chat messages with one video part.

    Under `query` the text comes first, so that the model reads the frames knowing what to look for; the others follow
    Qwen2.5-VL's habit and put the video first. Source: our choice.

    >>> from labkit.chain.spans import Span
    >>> moment = Moment("q1", "/clips/a.mp4", "a door opens", (Span(1.0, 2.0),), 16.0)
    >>> [part["type"] for part in messages(moment, "query")[0]["content"]]
    ['text', 'video']

    Raises:
        LabError: there is no such template, or it does not fit the moment, which has options or has none.
    """
    if template not in TEMPLATES:
        raise LabError(f"prompt {template!r} is not a template; choose one of {', '.join(TEMPLATES)}")
    if template != "query" and bool(moment.options) != (template == "options"):
        has, fitting = ("options", "options") if moment.options else ("no options", "anchors, answer")
        raise LabError(
            f"prompt {template!r} does not fit moment {moment.qid!r}, which has {has}; choose {fitting} or query"
        )
    words = one_line(moment.query, moment.options) if template == "query" else moment.query
    # In one pass, so that a query that holds a placeholder stays as it is.
    values = {
        "{query}": words,
        "{options}": "\n".join(f"{letter}. {text}" for letter, text in lettered(moment.options)),
    }
    filled = re.sub("|".join(map(re.escape, values)), lambda match: values[match[0]], TEMPLATES[template])
    text = {"type": "text", "text": filled}
    video = {"type": "video", "video": moment.video}
    return [{"role": "user", "content": [text, video] if template == "query" else [video, text]}]


def one_line(query: str, options: Sequence[str]) -> str:
    """A query with its options behind it, as the embedded models read it.

    >>> one_line("what does it do?", ["blink", "slide"])
    'what does it do? A blink B slide'
    """
    return " ".join([query, *(f"{letter} {text}" for letter, text in lettered(options))])


def lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with its letter."""
    return [(option_letter(number), text) for number, text in enumerate(options)]
