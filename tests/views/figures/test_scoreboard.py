"""Boards of scores: what stands on them, and that nothing in a name can run."""

from __future__ import annotations

import pytest

from labkit import views
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.scoring.readings import disagreements
from labkit.scoring.scores import score, under_every_rule

MOMENTS = [Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(0, 10),), 40.0) for n in range(4)]
TEXT = "<think> <timestamp>0 to 20</timestamp> </think><answer>0 to 8</answer>"


def marks(fig):
    """By panel, the values from top to bottom."""
    panels: dict[str, list[float]] = {}
    for trace in fig.data:
        panels.setdefault(trace.xaxis or "x", []).append(round(trace.x[0], 6))
    return list(panels.values())


def test_a_board_has_the_baselines_above_and_a_line_for_each_score():
    scores = {"one": score({"q0": TEXT, "q1": TEXT}, MOMENTS), "two": score({}, MOMENTS)}
    fig = views.scoreboard(scores)
    # Whole video 10/40, centre half 0, then 0.8 on two of four, then nothing.
    assert marks(fig)[0] == [25.0, 0.0, 40.0, 0.0]
    assert list(fig.layout.yaxis.ticktext) == ["<i>whole video</i>", "<i>centre half</i>", "one", "two"]
    assert "4 queries" in fig.layout.meta["alt"] or "4 queries" in str(fig.layout.annotations)


def test_boards_of_few_videos_say_what_their_bars_are_worth():
    few, rules = {"one": score({"q0": TEXT}, MOMENTS)}, under_every_rule({"q0": TEXT}, MOMENTS)
    for fig in (views.scoreboard(few), views.under_rules(rules)):
        assert "Only 4 videos: intervals of so few are wide on purpose" in fig.layout.title.subtitle.text.replace(
            "<br>", " "
        )
    many = [Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(0, 10),), 40.0) for n in range(20)]
    assert "Only" not in views.scoreboard({"one": score({"q0": TEXT}, many)}).layout.title.subtitle.text


def test_a_score_of_one_video_has_no_bar():
    alone = score({"q0": TEXT}, MOMENTS[:1])
    assert all(trace.error_x.array is None for trace in views.scoreboard({"one": alone}).data)


def test_the_same_chains_under_every_rule():
    rules = under_every_rule({moment.qid: TEXT for moment in MOMENTS}, MOMENTS)
    by_rule = dict(zip(rules, marks(views.under_rules(rules))[0], strict=True))
    assert by_rule["labkit"] == 80.0, "the answer, 0 to 8"
    assert by_rule["timelens"] == 50.0, "the first anchor, 0 to 20"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TEXT, "mIoU goes from 50.0 (timelens) to 80.0 (labkit)."),
        ("<think>so</think><answer>0 to 8</answer>", "mIoU is 80.0 under each of them."),
    ],
)
def test_the_caption_says_how_far_apart_the_rules_are(text, says):
    fig = views.under_rules(under_every_rule({moment.qid: text for moment in MOMENTS}, MOMENTS))
    assert says in fig.layout.meta["alt"].replace("<br>", " ")


def test_names_are_text():
    fig = views.scoreboard({"<b>bold</b>": score({}, MOMENTS)})
    assert "<b>bold" not in fig.to_json()


@pytest.mark.parametrize("board", [views.scoreboard, views.under_rules])
def test_no_score_is_said(board):
    assert "no scores" in str(board({}).to_dict())


def test_tables_of_rules_and_of_texts_escape_what_a_model_wrote():
    hostile = {"q0": f"<img src=x onerror=alert(1)> {TEXT}"}
    rules, texts = under_every_rule(hostile, MOMENTS), disagreements(hostile, MOMENTS)
    assert "timelens" in rules._repr_html_() and "first and widest anchor" in rules._repr_html_()
    assert "<img" not in texts._repr_html_() and "&lt;img" in texts._repr_html_()
    assert "0 to 20" in str(texts)
    assert "as labkit does" in disagreements({}, MOMENTS)._repr_html_()
