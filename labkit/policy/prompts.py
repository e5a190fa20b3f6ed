"""The question templates: what the model is asked, before and beside the video.

A comparison is worth nothing unless both sides are asked in the same words: the same base model's R1@0.5 on Charades moves by tens of
points with the prompt alone. So a template has a name, the name is a parameter, and it stands in every run's params.yaml.
"""

from __future__ import annotations

from typing import Any

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
TEMPLATES: dict[str, str] = {"query": "{query}", "anchors": ANCHORS, "answer": ANSWER}
"""By name. `query`: the bare query, before the video, for models trained on one task only, such as the embedded one. `anchors`: the
two-step anchor prompt (our words). `answer`: the same without anchors, for controls."""


def messages(moment: Moment, template: str) -> list[dict[str, Any]]:
    """Chat messages with one video part.

    Under `query` the text comes first, so that the model reads the frames knowing what to look for; the others follow
    Qwen2.5-VL's habit and put the video first. Source: our choice.

    >>> from labkit.chain.spans import Span
    >>> moment = Moment("q1", "/clips/a.mp4", "a door opens", (Span(1.0, 2.0),), 16.0)
    >>> [part["type"] for part in messages(moment, "query")[0]["content"]]
    ['text', 'video']
    """
    if template not in TEMPLATES:
        raise LabError(f"prompt {template!r} is not a template; choose one of {', '.join(TEMPLATES)}")
    text = {"type": "text", "text": TEMPLATES[template].replace("{query}", moment.query)}
    video = {"type": "video", "video": moment.video}
    return [{"role": "user", "content": [text, video] if template == "query" else [video, text]}]
