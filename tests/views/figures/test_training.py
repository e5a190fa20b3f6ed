"""Figures of training and of stages hold the numbers that they claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.stages.rollouts import Rollout
from labkit.views import harvest_funnel, sft_loss, stage_comparison, training_curves
from labkit.views.figures.training import MOST_POINTS, _smoothed

MOMENT = Moment("q", "/videos/q.mp4", "the door opens", (Span(10, 20),), 40.0)


def rollout(step: int, text: str, total: float = 0.0) -> Rollout:
    return Rollout(
        run="r", stage="grpo", step=step, qid="q", sample=0, seed=0, checkpoint="", text=text, status="ok",
        reward_format=1.0, reward_answer=0.5, reward_anchors=-1.0, reward_progress=0.0, total=total, advantage=0.0,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


def by_name(fig: Any) -> dict[str, Any]:
    return {trace.name: trace for trace in fig.data if trace.name}


def test_training_curves_average_the_rollouts_of_a_step() -> None:
    narrowing = render([Span(0, 40), Span(5, 25)], Span(10, 20))
    copying = render([Span(5, 25), Span(5, 25)], Span(10, 20))
    bare = render([], Span(10, 20))
    records = [rollout(1, narrowing, 2.0), rollout(1, bare, 1.0), rollout(2, copying, 4.0), rollout(2, narrowing, 5.0)]
    lines = by_name(training_curves(records, {"q": MOMENT}))
    # two steps: nothing is smoothed
    assert list(lines["total"].x) == [1, 2] and list(lines["total"].y) == [1.5, 4.5]
    assert list(lines["have anchors"].y) == [50, 100] and list(lines["narrow strictly"].y) == [50, 50]
    assert list(lines["anchors"].y) == [-1, -1]


def test_the_pay_for_an_option_is_drawn_where_there_is_one() -> None:
    history = [{"step": 1, "total": 1.0, "reward_option": 0.25}, {"step": 2, "total": 2.0, "reward_option": 0.5}]
    assert list(by_name(training_curves(history))["option"].y) == [0.25, 0.5]
    assert "option" not in by_name(training_curves([rollout(1, "", 1.0)], {"q": MOMENT})), "0 in every chain"


@pytest.mark.parametrize(("kind", "titles"), [("options", {"Acc@QA", "Acc@GQA"}), ("sets", {"EtF1", "C-Acc"})])
def test_figures_of_options_and_of_sets_are_compared_where_there_are_some(kind: str, titles: set[str]) -> None:
    keys = {"options": ("acc_qa", "acc_gqa"), "sets": ("etf1", "count_accuracy")}[kind]
    fig = stage_comparison({"base": {"miou": 0.5, **dict.fromkeys(keys, 0.25)}, "sft": {"miou": 0.6}})
    assert titles <= {annotation.text for annotation in fig.layout.annotations}
    assert not titles & {
        annotation.text for annotation in stage_comparison({"base": {"miou": 0.5}}).layout.annotations
    }


def test_training_curves_read_a_history_and_pass_over_what_it_lacks() -> None:
    history = [{"step": 1, "total": 1.0, "anchor_rate": 0.25}, {"step": 2, "total": math.nan, "anchor_rate": 0.75}]
    lines = by_name(training_curves(history))
    assert list(lines["total"].y) == [1.0] and list(lines["have anchors"].y) == [25, 75]
    assert "progress" not in lines


def test_a_history_of_other_keys_is_an_error_that_says_which_are_read() -> None:
    with pytest.raises(
        LabError, match="'step', 'entropy' has nothing to draw; each row needs 'step' and one of 'total'"
    ):
        training_curves([{"step": 1, "entropy": 2.0}])


def test_rollouts_without_moments_are_an_error_that_says_what_to_pass() -> None:
    with pytest.raises(LabError, match="pass moments="):
        training_curves([rollout(1, "x")])


def test_long_runs_are_averaged_into_pieces() -> None:
    lines = by_name(training_curves([{"step": k, "total": 1.0} for k in range(5000)]))
    assert len(lines["total"].x) == MOST_POINTS and set(lines["total"].y) == {1.0}


def test_smoothing_keeps_a_level_and_a_slope() -> None:
    line = np.arange(40.0)
    assert _smoothed(np.ones(9), 5) == pytest.approx(np.ones(9))
    assert _smoothed(line, 5)[5:-5] == pytest.approx(line[5:-5])  # no lag
    # triangle 1, 2, 1 over 4; at an end only the weights inside count
    assert _smoothed(np.array([0.0, 4.0, 0.0]), 2) == pytest.approx([4 / 3, 2, 4 / 3])


def test_loss_is_drawn_and_a_trainers_summary_row_is_not() -> None:
    history = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 0.5}, {"step": 2, "train_loss": 1.5}]
    fig = sft_loss(history)
    assert list(by_name(fig)["loss"].y) == [2.5, 0.5]
    assert "from 2.50 to 0.50" in fig.layout.meta["alt"]


def test_harvest_rows_add_up() -> None:
    fig = harvest_funnel([("unparsed", 30), ("not progressive", 0), ("answer <off>", 50), ("kept", 20)])
    left, dropped = fig.data
    assert list(left.x) == [100, 70, 70, 20, 20] and list(dropped.x) == [0, 30, 0, 50, 0]
    notes = [note.text for note in fig.layout.annotations]
    assert notes == ["100 chains", "−30", "none", "−50", "20 traces (20.0 %)"]
    assert list(fig.layout.yaxis.ticktext)[3] == "answer &lt;off&gt;"
    assert "The rule that drops most is 'answer <off>': 50 of 80." in fig.layout.meta["alt"]


def test_a_harvest_that_keeps_everything_blames_no_rule() -> None:
    assert "Most fall" not in harvest_funnel([("unparsed", 0), ("kept", 20)]).layout.meta["alt"]


def test_a_funnel_that_does_not_end_with_what_was_kept_is_an_error() -> None:
    with pytest.raises(LabError, match="ends with \\('kept', count\\), not with \\('format', 2\\)"):
        harvest_funnel([("kept", 1), ("format", 2)])


def test_comparison_is_in_percent_and_shows_a_dash_for_what_is_not_known() -> None:
    figures = {"sft": {"miou": 0.5, "r1@0.7": 0.25, "n": 8.0}, "base": {"miou": 0.125, "strict_share": math.nan}}
    fig = stage_comparison(figures)
    markers = [trace for trace in fig.data if trace.type == "scatter"]
    assert list(fig.layout.yaxis.ticktext) == ["base", "sft"]
    assert list(markers[0].x) == [12.5, 50] and list(markers[0].text) == ["  12.5", "  50.0"]
    assert list(markers[2].text) == ["–", "  25.0"] and list(markers[4].text) == ["–", "–"]
    assert "8 queries" in fig.layout.meta["alt"]


@pytest.mark.parametrize(
    ("draw", "empty"), [(training_curves, []), (sft_loss, []), (harvest_funnel, []), (stage_comparison, {})]
)
def test_nothing_gives_an_honest_empty_figure(draw, empty) -> None:  # type: ignore[no-untyped-def]
    assert "Nothing to show" in draw(empty).layout.title.subtitle.text
