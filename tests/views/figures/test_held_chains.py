"""A figure's points say which chains they hold, and a click on one lists exactly these in the explorer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from labkit import explore, explore_figure, views
from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.scores import score
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views.figures.held_chains import MOST_NAMED, HeldChains, held_by, text_digest
from labkit.views.measured_chains import measure_chains

MOMENTS = [Moment(f"q{k}", f"/v/{k}.mp4", "a door opens", (Span(5, 10),), 20.0) for k in range(4)]
BY_QID = {moment.qid: moment for moment in MOMENTS}
ANSWERS = {"q0": Span(5, 10), "q1": Span(5, 7.5), "q2": Span(4, 14), "q3": Span(15, 18)}
"""IoU 1, 0.5, 0.5 and 0."""


def rollout(qid: str, answer: Span, step: int = 0, sample: int = 0, stage: str = "grpo", run: str = "r") -> Rollout:
    text = render([Span(2, 13), Span(8, 19)], answer)
    return Rollout(
        run=run, stage=stage, step=step, qid=qid, sample=sample, seed=0, checkpoint="m", text=text, status=parse(text).status,
        **UNPAID, prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


RECORDS = {
    "base": [rollout(qid, Span(0, 20), stage="base") for qid in ANSWERS],
    "grpo": [rollout(qid, answer) for qid, answer in ANSWERS.items()],
}


def points(figure: Any) -> dict[tuple[int, str], list[tuple[str, str]]]:
    """(label, qid) of the chains of each point, by trace and the point's name."""
    found = {}
    for trace, drawn in enumerate(figure.data):
        for point, _ in enumerate((drawn.meta or {}).get("held", ())):
            name = drawn.meta.get("names", [str(point)] * 99)[point]
            at = divmod(point, drawn.meta["columns"]) if "columns" in drawn.meta else point
            found[trace, name] = [(key.label, key.qid) for key in held_by(figure, trace, at)]
    return found


def labelled(label: str, *qids: str) -> list[tuple[str, str]]:
    return [(label, qid) for qid in qids]


@pytest.mark.parametrize(
    ("figure", "name", "holds"),
    [
        (views.atlas(RECORDS, BY_QID), "wrong extent", labelled("base", *ANSWERS)),
        (views.r1_curves(RECORDS, BY_QID), "IoU 0.5 or more", labelled("grpo", "q0", "q1", "q2")),
        (views.r1_curves(RECORDS, BY_QID), "IoU 0.55 or more", labelled("grpo", "q0")),
        (views.iou_by_step(RECORDS, BY_QID), "anchor 2", labelled("grpo", *ANSWERS)),
        (views.funnel(RECORDS, BY_QID), "answer", labelled("grpo", *ANSWERS)),
        (views.lengths(RECORDS, BY_QID), "2", labelled("grpo", "q2")),
        (views.answer_places(RECORDS, BY_QID), "truth about 35 %, answer about 85 % of the video", labelled("grpo", "q3")),
        (views.before_after(RECORDS["base"], RECORDS["grpo"], BY_QID, ("base", "grpo")), "IoU 0.2 to 0.3, then 0.0 to 0.1",
         [("base", "q3"), ("grpo", "q3")]),
        (views.before_after(RECORDS["base"], RECORDS["grpo"], BY_QID, ("base", "grpo")), "IoU changed by about +0.8",
         [("base", "q0"), ("grpo", "q0")]),
        (views.scoreboard({label: score(r, MOMENTS) for label, r in RECORDS.items()}), "those that count for R1@0.7",
         labelled("grpo", "q0")),
        (views.training_curves([rollout("q1", Span(5, 8), step, sample) for step in (1, 2) for sample in (0, 1)], BY_QID),
         "step 2", labelled("", "q1", "q1")),
    ],
)  # fmt: skip
def test_a_point_holds_the_chains_that_it_is_made_of(figure: Any, name: str, holds: list[tuple[str, str]]) -> None:
    found = [each for (_, named), each in points(figure).items() if named == name]
    assert holds in found


def test_what_points_hold_is_their_count() -> None:
    figure = views.atlas(RECORDS, BY_QID)
    for trace, drawn in enumerate(figure.data):
        if drawn.meta:
            assert [len(held_by(figure, trace, at)) for at in range(len(drawn.meta["held"]))] == drawn.meta["counts"]
    assert held_by(figure, 0, 0) == [], "the line from which bars grow holds nothing"


def test_a_figure_of_very_many_chains_names_every_so_many_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_NAMED >= 150 * 96, "the default run's training is named whole"
    monkeypatch.setattr("labkit.views.figures.held_chains.MOST_NAMED", 3)
    chains = measure_chains(RECORDS["grpo"], BY_QID)
    held = HeldChains({"grpo": chains})
    meta = held.points([chains])
    figure = held.write(views.atlas(RECORDS, BY_QID))
    assert meta["counts"] == [4] and figure.layout.meta["chains"]["qids"] == ["q0", "q2"]


def test_a_text_with_half_an_emoji_has_a_digest_as_any_other() -> None:
    assert len({text_digest(text) for text in ("a", "a\ud83d", "a\U0001f600", "")}) == 4


def test_a_figure_with_named_chains_stays_small_json() -> None:
    figure = views.atlas(RECORDS, BY_QID)
    assert json.loads(figure.to_json())["layout"]["meta"]["chains"]["step"] == 0, (
        "what is the same of all is said once"
    )


def click(box: Any, trace: int, point: int) -> None:
    from plotly.callbacks import InputDeviceState, Points

    figure = box.children[0]
    state = InputDeviceState(ctrl=False, alt=False, shift=False, meta=False, button=0, buttons=1)
    drawn = figure.data[trace]
    drawn._dispatch_on_click(Points(point_inds=[point], xs=[0], ys=[0], trace_name="", trace_index=trace), state)


def test_a_click_in_a_notebook_lists_the_chains_of_that_point() -> None:
    figure, explorer = views.atlas(RECORDS, BY_QID), explore(RECORDS, MOMENTS)
    box = explore_figure(figure, explorer)
    bars = [at for at, drawn in enumerate(figure.data) if drawn.type == "bar"]
    click(box, bars[1], list(figure.data[bars[1]].meta["names"]).index("narrowed elsewhere"))
    assert [explorer.rows[place].record for place in explorer.chosen] == [RECORDS["grpo"][3]]
    assert explorer.chosen == [7] and explorer.page_state()["chosen"] == [7]
    assert box.children[1].value == ""
    explorer.chosen = []
    with pytest.raises(LabError, match="chain 99 is not among the 8"):
        explorer.chosen = [99]


def test_chains_that_an_explorer_does_not_have_are_refused_by_the_next_step() -> None:
    from labkit.views.explorer.widget import places_of

    figure = views.atlas(RECORDS, BY_QID)
    bars = [at for at, drawn in enumerate(figure.data) if drawn.type == "bar"]
    keys = held_by(figure, bars[0], list(figure.data[bars[0]].meta["names"]).index("wrong extent"))
    elsewhere = explore([rollout(qid, answer, run="other") for qid, answer in ANSWERS.items()], MOMENTS)
    with pytest.raises(LabError, match="explore the records that the figure was made from"):
        places_of(elsewhere, keys)
    box = explore_figure(figure, elsewhere)
    click(box, bars[0], list(figure.data[bars[0]].meta["names"]).index("wrong extent"))
    assert "of this point is in the explorer; explore the records" in box.children[1].value, "a line says it"
    with pytest.raises(LabError, match="don't say which chains"):
        explore_figure(views.sft_loss([{"step": 1, "loss": 1.0}]), elsewhere)


def test_chosen_chains_that_were_not_saved_are_packed_in_the_place_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.views.explorer.subset.MOST_CHAINS", 4)
    explorer = explore([rollout(qid, Span(5, 6 + step % 4), step) for step in range(1, 6) for qid in ANSWERS], MOMENTS)
    away = sorted(set(range(20)) - set(explorer._places))[:2]
    before = explorer._places
    explorer.chosen = away
    assert set(away) <= set(explorer._places)
    assert np.all(np.diff(explorer._places) > 0)
    explorer.selected = explorer._places[0]
    explorer.chosen = []
    assert len(explorer._places) == len(before) and not set(away) <= set(explorer._places), "all are back"


def test_a_search_among_all_while_a_choice_stands_looks_among_the_chosen_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.views.explorer.subset.MOST_CHAINS", 4)
    explorer = explore([rollout(qid, Span(5, 6 + step % 4), step) for step in range(1, 6) for qid in ANSWERS], MOMENTS)
    explorer.chosen = [1, 6, 17]
    explorer._answer(None, {"ask": "chains", "filters": {"low": 0.5}}, [])
    ious = [explorer.rows[place].answer_iou for place in explorer.chosen]
    assert ious == [0.4, 0.6, 0.4]
    assert set(explorer._places) - {explorer.selected} == {6}


def test_a_choice_ends_where_other_chains_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.views.explorer.subset.MOST_CHAINS", 4)
    many = [rollout(qid, Span(5, 6 + step % 4), step) for step in range(1, 6) for qid in ANSWERS]
    explorer = explore(many, MOMENTS)
    explorer.chosen = [17, 18, 19]
    explorer.update(many[:8])
    assert explorer.chosen == [] and len(explorer._places) == 4 and len(explorer) == 8
    assert explorer.selected in explorer._places
