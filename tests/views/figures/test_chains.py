"""Figures of chains hold the numbers that they claim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.views import answer_places, before_after, funnel, iou_by_step, lengths, r1_curves

CHAIN_FIGURES = [iou_by_step, funnel, r1_curves, lengths, answer_places]


@dataclass(frozen=True)
class Record:
    qid: str
    text: str
    stage: str = "base"
    status: str = "ok"


def moment(qid: str, start: float = 10, end: float = 20, duration: float = 40, video: str = "") -> Moment:
    return Moment(qid, f"/videos/{video or qid}.mp4", "the door opens", (Span(start, end),), duration)


def chain(*spans: tuple[float, float]) -> str:
    """Anchors, then the answer."""
    *anchors, answer = (Span(*span) for span in spans)
    return render(anchors, answer)


def test_iou_by_step_holds_each_steps_mean_of_the_chains_that_have_it() -> None:
    moments = {qid: moment(qid) for qid in "ab"}
    records = [
        Record("a", chain((0, 40), (10, 30), (10, 20))),  # IoU 10/40, 10/20, 1
        Record("b", chain((0, 20), (10, 15))),  # IoU 10/20, then the answer 5/10
    ]
    (line,) = iou_by_step(records, moments).data
    assert list(line.x) == ["anchor 1", "anchor 2", "answer"]
    assert list(line.y) == pytest.approx([(0.25 + 0.5) / 2, 0.5, (1 + 0.5) / 2])
    assert "2 chains" in line.customdata[0] and "1 chain" in line.customdata[1]
    # anchor 2 comes from one video alone, so no interval may be claimed
    assert "one video" in line.customdata[1] and line.error_y.array[1] is None


@pytest.mark.parametrize("figure", [iou_by_step, r1_curves])
def test_figures_of_few_source_videos_say_what_their_intervals_are_worth(figure: Any) -> None:
    clips = {str(k): moment(str(k), video=f"V_{40 * k}.0_{40 * k + 40}.0") for k in range(30)}  # all of one source
    apart = {str(k): moment(str(k)) for k in range(30)}
    records = [Record(str(k), chain((0, 40), (10, 20))) for k in range(30)]
    assert "Only 1 video: nothing can be said" in figure(records, clips).layout.title.subtitle.text.replace(
        "<br>", " "
    )
    assert "Only" not in figure(records, apart).layout.title.subtitle.text
    two = figure(records, {**apart, **{str(k): moment(str(k), video=f"v{k % 2}") for k in range(30)}})
    assert "Only 2 videos" in two.layout.title.subtitle.text.replace("<br>", " ")


def test_a_missing_answer_counts_zero_beside_its_anchors() -> None:
    record = Record("a", "<think><timestamp>10 to 20</timestamp></think>", status="no_answer")
    (line,) = iou_by_step([record], {"a": moment("a")}).data
    assert list(line.y) == [1.0, 0.0]


def test_steps_of_fewer_than_a_twentieth_of_the_chains_are_not_drawn() -> None:
    moments = {str(k): moment(str(k)) for k in range(100)}
    records = [Record(str(k), chain((10, 20), (10, 20)) if k < 4 else chain((10, 20))) for k in range(100)]
    (line,) = iou_by_step(records, moments).data
    assert list(line.x) == ["answer"] and "100 chains" in line.customdata[0]
    assert "4 % have anchors" in line.name


def test_funnel_measures_in_half_lengths_from_the_truths_middle() -> None:
    # truth 10 to 20: middle 15, half length 5
    fig = funnel([Record("a", chain((0, 40), (5, 25), (10, 20)))], {"a": moment("a")})
    start, end = (trace for trace in fig.data if trace.name in ("start", "end"))
    assert list(start.x) == [-3, -2, -1] and list(end.x) == [5, 2, 1]
    assert list(start.y) == ["anchor 1", "anchor 2", "answer"]
    assert fig.layout.yaxis.type == "category"


def test_stages_with_nothing_left_to_draw_are_counted_and_break_nothing() -> None:
    silent = [Record(f"q{k}", "no idea") for k in range(40)] + [Record("q40", "<think><timestamp>1 to 2</timestamp>")]
    asked = {f"q{k}": moment(f"q{k}") for k in range(41)}
    rows = {"base": silent, "sft": [Record("q0", chain((10, 20)))]}
    assert "1 of 2 have nothing left to draw." in funnel(rows, asked).layout.meta["alt"]
    assert "no chains with an anchor or an answer" in funnel({"base": silent}, asked).to_json()
    for draw in (lengths, answer_places):
        assert "1 of 2 have no answer to draw." in draw(rows, asked).layout.meta["alt"]


def test_where_anchors_are_rare_it_is_said_that_all_answers_count() -> None:
    rows = {"base": [Record("a", chain((10, 20)))], "sft": [Record("a", chain((10, 20), (11, 19)))]}
    said = "Where fewer than 5 % have any, the answers of all are shown."
    assert said in iou_by_step(rows, {"a": moment("a")}).layout.meta["alt"]
    assert said not in iou_by_step({"sft": rows["sft"]}, {"a": moment("a")}).layout.meta["alt"]


def test_funnel_has_one_panel_a_stage_in_the_order_of_training() -> None:
    moments = {"a": moment("a")}
    records = [Record("a", chain((10, 20)), stage) for stage in ("grpo_final", "base", "sft", "grpo")]
    titles = [note.text for note in funnel(records, moments).layout.annotations if "with anchors" in note.text]
    assert [title.split("</b>")[0] for title in titles] == ["<b>base", "<b>grpo", "<b>sft", "<b>grpo_final"]


def test_r1_curve_reaches_a_threshold_with_equality_and_counts_what_was_not_answered() -> None:
    moments = {qid: moment(qid) for qid in "abcd"}
    texts = [chain((10, 20)), chain((10, 15)), chain((10, 13)), "no idea"]  # IoU 1, 0.5, 0.3, 0
    records = [Record(qid, text) for qid, text in zip("abcd", texts, strict=True)]
    line = r1_curves(records, moments).data[-1]
    at = dict(zip(line.x, line.y, strict=True))
    assert (at[0.05], at[0.3], at[0.5], at[0.55], at[0.95]) == (75, 75, 50, 25, 25)
    assert "mIoU 45.0 %" in line.name


def test_before_and_after_are_paired_by_query() -> None:
    moments = {qid: moment(qid) for qid in "abcd"}
    before = [Record("a", chain((10, 12))), Record("b", chain((10, 20))), Record("c", chain((10, 15)))]
    after = [Record("c", chain((10, 15))), Record("a", chain((10, 20))), Record("b", chain((10, 19))), Record("d", "")]
    fig = before_after(before, after, moments, ("base", "<b>sft"))  # changes +0.8, -0.1, 0
    (bars,) = (trace for trace in fig.data if trace.type == "bar")
    assert {round(float(x), 1): int(y) for x, y in zip(bars.x, bars.y, strict=True) if y} == {-0.1: 1, 0.0: 1, 0.8: 1}
    caption = fig.layout.meta["alt"]
    assert (
        "Of 3 queries 1 are better by more than 0.05 (33 %), 1 worse, 1 about the same; mean change +0.233" in caption
    )
    assert "Left out for having a chain on one side only: 1" in caption


def test_lengths_are_seconds_and_cut_to_the_clip() -> None:
    fig = lengths([Record("a", chain((30, 70)))], {"a": moment("a", 10, 20, duration=40)})
    dots = fig.data[1]
    assert (list(dots.x), list(dots.y)) == ([10], [10])  # 30 to 70 ends with the clip at 40


def test_places_are_percent_of_the_clip() -> None:
    # truth's middle 15 of 40 s = 37.5 %, answer's middle 31 of 40 s = 77.5 %
    fig = answer_places([Record("a", chain((30, 32)))], {"a": moment("a")})
    counts = fig.data[0].z
    assert sum(map(sum, counts)) == 1 and counts[7][3] == 1  # row: the answer, column: the truth


def test_the_line_of_text_that_stands_for_a_figure_reads_as_text() -> None:
    assert (
        "as the truth? On the dotted line"
        in lengths([Record("a", chain((10, 20)))], {"a": moment("a")}).layout.meta["alt"]
    )


@pytest.mark.parametrize("draw", CHAIN_FIGURES)
def test_no_records_give_an_honest_empty_figure(draw) -> None:  # type: ignore[no-untyped-def]
    assert "Nothing to show" in draw([], {}).layout.title.subtitle.text
    assert "Nothing to show" in draw({"base": []}, {}).layout.title.subtitle.text


def test_nothing_to_pair_gives_an_honest_empty_figure() -> None:
    moments = {qid: moment(qid) for qid in "ab"}
    fig = before_after([Record("a", chain((1, 2)))], [Record("b", chain((1, 2)))], moments)
    assert "no query has a chain both" in fig.layout.title.subtitle.text


@pytest.mark.parametrize(
    "text",
    [
        chain((10, 20)),  # one record is one video: no interval, but a figure
        "",  # a policy that wrote nothing
        "<think>" + "<timestamp>1 to 2</timestamp>" * 500,  # more anchors than anyone draws
        chain((0, 1e300)),  # a number that overflows once it is scaled
    ],
)
@pytest.mark.parametrize("draw", CHAIN_FIGURES)
def test_one_record_of_any_kind_gives_a_figure_that_plotly_can_write(draw, text) -> None:  # type: ignore[no-untyped-def]
    written = draw([Record("a", text)], {"a": moment("a", 10, 10.001)}).to_json()
    assert "Infinity" not in written and "NaN" not in written


@pytest.mark.parametrize("draw", CHAIN_FIGURES)
def test_a_record_of_an_unknown_query_is_named(draw) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LabError, match="qid 'lost', which is not among the 1 moments"):
        draw([Record("lost", chain((1, 2)))], {"a": moment("a")})


@pytest.mark.parametrize("draw", CHAIN_FIGURES)
def test_labels_are_data(draw) -> None:  # type: ignore[no-untyped-def]
    written = draw({"<a href=x>run</a>": [Record("a", chain((10, 20)))]}, {"a": moment("a")}).to_json()
    # a figure may carry the label as a key, but shows it only escaped
    assert "&lt;a href" in written
    shown = (
        written.replace('"offsetgroup":"\\u003ca', "")
        .replace('"legendgroup":"\\u003ca', "")
        .replace('"label":"\\u003ca', "")
    )
    assert "\\u003ca href" not in shown and "<a href" not in shown


def test_what_a_figure_draws_does_not_grow_with_its_chains_and_their_names_are_short() -> None:
    moments = {str(k): moment(str(k), 10, 20 + k % 7) for k in range(3000)}
    for draw in CHAIN_FIGURES:
        drawn, whole = [], []
        for n in (300, 3000):
            figure = draw([Record(q, chain((0, 30), (9, 22))) for q in list(moments)[:n]], moments)
            whole.append(len(figure.to_json()))
            drawn.append(
                len(figure.for_each_trace(lambda trace: trace.update(meta=None)).update_layout(meta=None).to_json())
            )
        assert drawn[1] < 1.5 * drawn[0]
        assert whole[1] - whole[0] < 30 * 2700
