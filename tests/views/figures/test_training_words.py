"""Words along training as curves: shares are of the words said, and nothing is drawn where nothing is known."""

from __future__ import annotations

import numpy as np
import pytest

from labkit.embedded.true_words import KINDS
from labkit.views import words_along_training
from labkit.views.figures.training import share_curve

KIND, OTHER = list(KINDS)[:2]


def row(step: int, said: int, true: float | None) -> dict[str, float | None]:
    nothing = {f"{what}_{kind}": None for kind in KINDS for what in ("true", "chance")}
    nothing |= {f"said_{kind}": 0 for kind in KINDS}
    known = {f"said_{KIND}": said, f"true_{KIND}": true, f"chance_{KIND}": 0.25 if said else None}
    return {"step": step, "n": 8, "distinct_thoughts": 2, "total": 1.0, "miou": 0.5} | nothing | known


def lines(fig, xaxis: str) -> list:
    return [trace for trace in fig.data if trace.xaxis == xaxis and trace.hoverinfo != "skip"]


def test_a_smoothed_share_is_of_all_words_in_reach_and_absent_where_they_are_few():
    # 24 steps are smoothed over 2 to both sides with weights 1/2, 1, 1/2.
    part, whole = [0.0] * 24, [0.0] * 24
    part[3], whole[3], whole[4] = 30, 30, 90
    found = share_curve(range(24), part, whole, 20)
    assert found.raw[3:5].tolist() == [1, 0] and np.isnan(found.raw[2])
    assert found.smooth[2:6].tolist() == [1, pytest.approx(30 / (30 + 45)), pytest.approx(15 / (15 + 90)), 0]
    assert np.isnan(found.smooth[[1, 6]]).all()
    assert np.isnan(share_curve(range(24), part, whole, 121).smooth).all()
    long = share_curve(range(400), [1] * 400, [4] * 400)
    assert len(long.steps) == 200 and set(long.raw) == set(long.smooth) == {0.25}


def test_kinds_that_are_said_have_panels_beside_reward_and_iou():
    rows = [row(step, 40, 0.75) for step in (1, 2, 3)]
    fig = words_along_training({"": [{"grpo": rows, "grpo_final": rows[:2]}]})
    names = [note.text.split("<br>")[0] for note in fig.layout.annotations]
    assert names == [
        "mean reward",
        "mIoU of the answers",
        "distinct thoughts, of chains",
        f"true words, {KINDS[KIND]}",
    ]
    stage_1, stage_3 = lines(fig, "x4")
    assert list(stage_1.y) == [75] * 3 and list(stage_3.y) == [75] * 2
    assert min(stage_3.x) > max(stage_1.x), "stage 3 stands behind stage 1"
    assert [list(trace.y) for trace in fig.data if trace.xaxis == "x4" and trace.line.dash == "dot"] == [
        [25] * 3,
        [25] * 2,
    ]
    assert "75 → 75" in fig.layout.annotations[3].text and not fig.layout.showlegend


def test_settings_pool_the_words_of_their_seeds():
    seeds = [[row(step, 30, 1.0) for step in (1, 2)], [row(step, 90, 0.0) for step in (1, 2)]]
    fig = words_along_training({"A: beta 0.04": [{"grpo": each} for each in seeds], "B: <b>": [{"grpo": seeds[0]}]})
    first, second = lines(fig, "x4")
    assert list(first.y) == [25, 25], "30 of 120 words, and not the mean of 100 and 0 %"
    assert list(second.y) == [100, 100]
    thin = [list(trace.y) for trace in fig.data if trace.xaxis == "x4" and trace.line.width == 1]
    assert thin == [[100, 100], [0, 0]], "single seeds"
    legend = [trace.name for trace in fig.data if trace.showlegend]
    assert legend == ["A: beta 0.04", "B: &lt;b&gt;"]


def test_behind_the_end_of_a_seed_the_others_are_drawn_alone():
    short, long = [row(step, 30, 1.0) for step in (1, 2)], [row(step, 30, 0.0) for step in (1, 2, 3)]
    fig = words_along_training({"": [{"grpo": short}, {"grpo": long}]})
    (whole,) = lines(fig, "x4")
    assert list(whole.y) == [50, 50] and max(fig.layout.xaxis4.tickvals) == 3
    assert [len(trace.y) for trace in fig.data if trace.xaxis == "x4" and trace.line.width == 1] == [2, 3]


def test_a_setting_without_stage_1_stands_in_the_legend_and_one_that_cannot_be_told_apart_in_the_caption():
    rows = [row(step, 30, 1.0) for step in (1, 2)]
    settings = {"whole": [{"grpo": rows, "grpo_final": rows}]} | {f"no. {k}": [{"grpo_final": rows}] for k in range(5)}
    fig = words_along_training(settings)
    assert [trace.name for trace in fig.data if trace.showlegend] == ["whole", *(f"no. {k}" for k in range(4))]
    assert fig.layout.meta["alt"].endswith("Not drawn: no. 4.")


def test_few_words_make_no_line_and_nothing_known_no_figure():
    fig = words_along_training({"": [{"grpo": [row(step, 3, 1.0) for step in (1, 2)]}]})
    assert np.isnan(np.array(lines(fig, "x4")[0].y, dtype=float)).all() and "few" in fig.layout.annotations[3].text
    assert words_along_training({}) is None
    assert words_along_training({"": [{"grpo": []}]}) is None
