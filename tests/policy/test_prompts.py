"""What the model is asked, word for word."""

from __future__ import annotations

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.policy.prompts import TEMPLATES, messages, one_line

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
        (PLAIN, "riddle", "prompt 'riddle' is not a template; choose one of query, anchors, answer, options"),
    ],
)
def test_a_template_that_does_not_fit_is_refused(moment, template, says):
    with pytest.raises(LabError, match=says):
        messages(moment, template)
