"""Ridgelines hold the shares that they claim, of the query that tells most."""

from __future__ import annotations

from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.views import ridgelines
from tests.views.explorer.test_watch import probe

MOMENTS = {qid: Moment(qid, f"/videos/{qid}.mp4", f"door {qid}", (Span(2, 4),), 8.0) for qid in "abc"}
A = [
    probe("a", 1, Span(0, 8)),
    probe("a", 1, Span(4, 8), Span(0, 4), sample=1),
    probe("a", 9, Span(0, 8), Span(2, 4), stage="grpo_final"),
]


def ridge(figure: Any, name: str, row: int) -> dict[float, float]:
    """The height of a ridge behind each border of a span."""
    line = [trace for trace in figure.data if trace.name == name][row]
    return dict(zip(line.x, line.customdata, strict=True))


def test_a_ridge_is_the_share_of_samples_that_hold_a_second() -> None:
    figure = ridgelines(A, MOMENTS, "a")
    answer, anchor = ridge(figure, "answer", 0), ridge(figure, "anchor 1", 0)
    assert (answer[0.0], answer[4.0]) == (1.0, 0.5), "0 to 8 and 0 to 4; one of both from second 4 on"
    assert (anchor[0.0], anchor[4.0]) == (0.0, 0.5), "of both samples, though one has no anchor"
    assert [label.split("<br>")[0] for label in figure.layout.yaxis.ticktext] == ["stage 1, step 1", "stage 3, step 9"]
    assert "IoU 0.38" in figure.layout.yaxis.ticktext[0], "2/8 and 2/4"
    assert {(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.fillcolor} >= {(2, 4)}, "the truth"


def test_of_those_asked_most_often_the_one_that_gained_most_is_shown() -> None:
    others = [probe("b", 1, Span(2, 4)), probe("b", 5, Span(2, 4)), probe("c", 1, Span(2, 4))]
    assert "door a" in ridgelines([*others, *A], MOMENTS).layout.title.subtitle.text
    harvested = [probe("c", part, Span(0, 8), stage="distill") for part in (1, 2, 3)]
    assert "door a" in ridgelines([*harvested, *A], MOMENTS).layout.title.subtitle.text, "a harvest is one time"


def test_of_very_many_queries_the_last_counts_as_much_as_the_first() -> None:
    many = {f"q{k:02}": Moment(f"q{k:02}", "/videos/a.mp4", f"door {k:02}", (Span(2, 4),), 8.0) for k in range(50)}
    chains = [probe(qid, step, Span(0, 8)) for qid in many for step in (1, 2)]
    gained = probe("q49", 2, Span(2, 4))
    assert "door 49" in ridgelines([*chains[:-1], gained], many).layout.title.subtitle.text


def test_many_times_are_drawn_as_eight_with_the_first_and_the_last() -> None:
    figure = ridgelines([probe("a", step, Span(2, 4)) for step in range(1, 21)], MOMENTS)
    labels = figure.layout.yaxis.ticktext
    assert len(labels) == 8 and "step 1<" in labels[0] and "step 20<" in labels[-1]
    assert "8 of 20 times are drawn" in figure.layout.title.subtitle.text.replace("<br>", " ")


@pytest.mark.parametrize(("qid", "said"), [("", "no query was asked more than once"), ("z", "no chain asks z")])
def test_where_there_is_nothing_it_says_so(qid: str, said: str) -> None:
    figure = ridgelines([probe("c", 1, Span(2, 4))], MOMENTS, qid)
    assert said in str(figure.to_dict())
