"""What the model is asked, word for word."""

from __future__ import annotations

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.policy.prompts import TEMPLATES, messages, one_line, read_template, require_fit

PLAIN = Moment("q1", "/v.mp4", "a door opens", (Span(1.0, 2.0),), 16.0)
ASKED = Moment("q2", "/v.mp4", "what opens?", (Span(1.0, 2.0),), 16.0, options=("a door", "a box"), choice=1)


def text(moment: Moment, template: str) -> str:
    (message,) = messages(moment, template)
    return next(part["text"] for part in message["content"] if part["type"] == "text")


def test_the_embedded_models_read_the_query_and_its_options_on_one_line_before_the_video():
    assert text(PLAIN, "query") == "a door opens"
    assert text(ASKED, "query") == "what opens? A a door B a box" == one_line(ASKED.query, ASKED.options)
    assert [part["type"] for part in messages(ASKED, "query")[0]["content"]] == ["text", "video"]


def test_the_options_stand_on_lines_of_their_own_and_the_right_one_is_not_told():
    lines = text(ASKED, "options").splitlines()
    assert lines[:3] == ["what opens?", "A. a door", "B. a box"]
    assert all(tag in lines[3] for tag in ("<think>", "<timestamp>", "<answer>", "<option>"))
    from_the_other_side = Moment(
        "q2", "/v.mp4", "what opens?", (Span(3.0, 4.0),), 16.0, options=ASKED.options, choice=0
    )
    assert text(from_the_other_side, "options") == text(ASKED, "options")


@pytest.mark.parametrize("template", [name for name in TEMPLATES if name != "options"])
def test_a_query_without_options_fills_every_other_template(template):
    assert "a door opens" in text(PLAIN, template) and "{" not in text(PLAIN, template)


def test_placeholders_in_what_is_asked_stay_as_they_are():
    odd = Moment("q", "/v.mp4", "{options}", (Span(1.0, 2.0),), 16.0, options=("{query}", "b"), choice=0)
    assert text(odd, "options").splitlines()[:3] == ["{options}", "A. {query}", "B. b"]


@pytest.mark.parametrize(
    ("moment", "template", "says"),
    [
        (ASKED, "anchors", "prompt 'anchors' does not fit moment 'q2', which has options; choose options or query"),
        (ASKED, "answer", "choose options or query"),
        (PLAIN, "options", "'q1', which has no options; choose anchors, answer or query"),
        (PLAIN, "riddle", "prompt 'riddle' is not a template; choose one of query, anchors, answer, options, sets"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(moment, template, says):
    with pytest.raises(LabError, match=says):
        messages(moment, template)


OWN = "Look:\n{video}\nOf {duration} s: {{query}} when does {query} happen? {so} { query }"


def test_a_prompt_of_ones_own_puts_the_video_where_it_says():
    odd = Moment("q", "/v.mp4", "{video}{query}", (Span(1.0, 2.0),), 16.25)
    parts = messages(odd, OWN.replace("{so} ", ""))[0]["content"]
    assert [part["type"] for part in parts] == ["text", "video", "text"]
    assert parts[0]["text"] == "Look:\n"
    assert parts[2]["text"] == "\nOf 16.2 s: {query} when does {video}{query} happen? { query }"


@pytest.mark.parametrize(
    ("template", "types"),
    [
        ("When does {query} happen?", ["video", "text"]),  # first, as the models' makers have it
        ("{query}{video}", ["text", "video"]),  # as `query` has it
        ("{video}{query}", ["video", "text"]),
    ],
)
def test_the_parts_of_a_prompt_of_ones_own_are_those_that_hold_something(template, types):
    assert [part["type"] for part in messages(PLAIN, template)[0]["content"]] == types
    if template == "{query}{video}":
        assert messages(PLAIN, template) == messages(PLAIN, "query")


def test_a_prompt_is_read_from_a_file_or_from_the_run_that_kept_it(tmp_path):
    (tmp_path / "my_prompt.txt").write_text("\n{query}?\n\n")
    assert read_template("my_prompt.txt", tmp_path, {}) == "{query}?"
    assert read_template("gone.txt", tmp_path, {"gone.txt": "{query}!"}) == "{query}!"
    assert [read_template(each, tmp_path, {}) for each in ("anchors", "{query}")] == ["anchors", "{query}"]


@pytest.mark.parametrize(
    ("moments", "template", "says"),
    [
        ([PLAIN, ASKED], "{query}", "'q2', which has options; write {options} into it"),
        ([ASKED, PLAIN], "{query} {options}", "'q1', which has no options; take {options} out of it"),
        ([PLAIN, PLAIN, ASKED], "anchors", "does not fit moment 'q2'"),
    ],
)
def test_a_template_is_held_against_all_kinds_of_moments_at_once(moments, template, says):
    with pytest.raises(LabError, match=says):
        require_fit(template, moments)
