"""Prompt templates: the text around the video.

A comparison is worth nothing unless both sides have the same prompt: the same base model's R1@0.5 on Charades moves by tens of
points with the prompt alone. So a template has a name, the name is a parameter, and it is in every run's params.yaml; the text of
one's own file is in the manifest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.chain.anchors import option_letter
from labkit.data.moments import Moment
from labkit.errors import LabError, nearest
from labkit.own_code import own_text, text_digest

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
SETS = (
    'To find every time that "{query}" happens in this video, narrow it down in steps. First think inside <think> </think>: name the '
    "rough time spans, all of them in one <timestamp>start to end, start to end</timestamp>, look at their borders again, and give "
    "tighter ones in a second <timestamp>start to end, start to end</timestamp>. Then answer with the exact spans as "
    "<answer>start to end, start to end</answer>, or with one span where it happens once. All times are seconds from the beginning of "
    "the video, with one decimal."
)
TEMPLATES: dict[str, str] = {
    "query": "{query}",
    "anchors": ANCHORS,
    "answer": ANSWER,
    "options": OPTIONS,
    "sets": SETS,
}
"""By name. `query`: the bare query, and its options if it has any, before the video, for models trained on one task only, such as the
embedded ones. `anchors`: the two-step anchor prompt (our words). `answer`: the same without anchors, for controls. `options`: the two
steps to the evidence, then a choice, for grounded question answering (our words). `sets`: the two steps where something may happen
several times (our words)."""
PLACEHOLDERS = ("query", "options", "duration", "video")
"""What a prompt of one's own may hold in braces: the query, which it must; the options, each on a line behind its letter; the clip's
seconds, with one decimal; and where the video stands, which is otherwise first."""
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{(\w+)\}")


def messages(moment: Moment, template: str) -> list[dict[str, Any]]:
    """Chat messages with one video part.

    Under `query` the text comes first, so that the model reads the frames knowing what to look for; the others follow
    Qwen2.5-VL's habit and put the video first. Source: our choice.

    >>> from labkit.chain.spans import Span
    >>> moment = Moment("q1", "/clips/a.mp4", "a door opens", (Span(1.0, 2.0),), 16.0)
    >>> [part["type"] for part in messages(moment, "query")[0]["content"]]
    ['text', 'video']

    `template` is the name of one, or the text of one's own (`read_template`), in which the video stands at `{video}`, or first.

    Raises:
        LabError: there is no such template, or it does not fit the moment, which has options or has none.
    """
    require_template(template)
    own = template not in TEMPLATES
    asks_options = "options" in placeholders(template) if own else template == "options"
    if template != "query" and bool(moment.options) != asks_options:
        raise LabError(_misfit(template, moment))
    values = {
        "query": one_line(moment.query, moment.options) if template == "query" else moment.query,
        "options": "\n".join(f"{letter}. {text}" for letter, text in lettered(moment.options)),
        "duration": f"{moment.duration:.1f}",
    }
    video = {"type": "video", "video": moment.video}
    if template == "query":
        before, behind = TEMPLATES[template], ""
    else:
        before, behind = _around_video(TEMPLATES.get(template, template))
    texts = [{"type": "text", "text": _filled(text, values)} if text else None for text in (before, behind)]
    return [{"role": "user", "content": [part for part in (texts[0], video, texts[1]) if part]}]


def read_template(prompt: str, root: Path | None, kept: Mapping[str, str]) -> str:
    """The parameter `prompt` as `messages` takes it: a template's name, or the text of a file under `root` or of itself.

    A run that is gone on with has `kept` the text by the file's name. Raises LabError when there is no such template or file,
    or its placeholders are not those that there are.
    """
    if not is_file(prompt):
        require_template(prompt)
        return prompt
    try:
        text = own_text(prompt, root, kept).strip()
        require_template(text)
    except LabError as error:
        raise LabError(f"prompt '{prompt}': {error}") from None
    return text


def is_file(prompt: str) -> bool:
    """Whether the parameter `prompt` names a file, and is neither a template's name nor a text.

    >>> is_file("my_prompt.txt"), is_file("anchors"), is_file("When does {query} happen?")
    (True, False, False)
    """
    return prompt not in TEMPLATES and bool(re.fullmatch(r"[^{}\n]*\.\w{1,8}", prompt))


def placeholders(text: str) -> list[str]:
    """The names in a text's placeholders; `{{name}}` is none, but stands for `{name}`.

    >>> placeholders("{video}When does {query} happen? Answer as {{start}}.")
    ['video', 'query']
    """
    return [match[2] for match in _PLACEHOLDER.finditer(text) if match[2]]


def require_template(template: str) -> None:
    """Raise LabError for what is neither a template's name nor a text with `{query}` and known placeholders."""
    if template in TEMPLATES:
        return
    if not re.search(r"[\s{]", template):
        raise LabError(
            f"prompt {template!r} is not a template; choose one of {', '.join(TEMPLATES)}, name a text file (my_prompt.txt), "
            "or write the text itself, with {query} in it"
        )
    named = placeholders(template)
    if unknown := [name for name in named if name not in PLACEHOLDERS]:
        near = nearest(unknown[0], PLACEHOLDERS)
        known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
        raise LabError(
            f"prompt has the placeholder {{{unknown[0]}}}; "
            + (f"did you mean {{{near}}}?" if near else f"there are {known}; text in braces is written {{{{so}}}}")
        )
    if "query" not in named:
        raise LabError("prompt has no {query}, the place of what is asked; write it in")
    if named.count("video") > 1:
        raise LabError(f"prompt has {{video}} {named.count('video')} times; the video stands in one place")


def require_fit(template: str, moments: Iterable[Moment]) -> None:
    """Raise LabError where a template does not fit one of the moments, which have options or have none."""
    for moment in {bool(moment.options): moment for moment in moments}.values():
        messages(moment, template)


def template_label(template: str) -> str:
    """A short name of a template: its own, or one that is another once the text is.

    >>> template_label("anchors"), template_label("When does {query} happen?")
    ('anchors', 'own prompt a83c87c227390612')
    """
    return template if template in TEMPLATES else f"own prompt {text_digest(template)}"


def query_precedes_video(template: str) -> bool:
    """Whether prompts of different queries about one clip differ before its video already, and so share no prefix.

    >>> query_precedes_video("query"), query_precedes_video("anchors"), query_precedes_video("{query}: when?{video}")
    (True, False, True)
    """
    return template == "query" or "query" in placeholders(_around_video(TEMPLATES.get(template, template))[0])


def _around_video(text: str) -> tuple[str, str]:
    """What stands before the video and what behind it; all of it where the text does not say."""
    found = [match for match in _PLACEHOLDER.finditer(text) if match[2] == "video"]
    return (text[: found[0].start()], text[found[0].end() :]) if found else ("", text)


def _filled(text: str, values: Mapping[str, str]) -> str:
    # In one pass, so that a query that holds a placeholder stays as it is.
    return _PLACEHOLDER.sub(lambda match: values[match[2]] if match[2] else f"{{{match[1]}}}", text)


def _misfit(template: str, moment: Moment) -> str:
    has = "options" if moment.options else "no options"
    if template not in TEMPLATES:
        step = "write {options} into it" if moment.options else "take {options} out of it"
        return f"prompt does not fit moment {moment.qid!r}, which has {has}; {step}"
    fitting = "options" if moment.options else "anchors, answer"
    return f"prompt {template!r} does not fit moment {moment.qid!r}, which has {has}; choose {fitting} or query"


def one_line(query: str, options: Sequence[str]) -> str:
    """A query with its options behind it, as the embedded models read it.

    >>> one_line("what does it do?", ["blink", "slide"])
    'what does it do? A blink B slide'
    """
    return " ".join([query, *(f"{letter} {text}" for letter, text in lettered(options))])


def lettered(options: Sequence[str]) -> list[tuple[str, str]]:
    """Each option with its letter."""
    return [(option_letter(number), text) for number, text in enumerate(options)]
