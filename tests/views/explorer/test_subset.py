"""A bounded share of many chains travels with a notebook; the others stay reachable, and nothing is left out unsaid."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from ipywidgets import Widget

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.rollouts import Rollout, RolloutStore
from labkit.views.explorer import subset
from labkit.views.explorer.chain_columns import ChainColumns
from labkit.views.explorer.widget import ChainExplorer, explore
from labkit.views.measured_chains import PlainRecord

GROUP, STEPS = 4, 10
NEAR = Span(3, 7)
MOMENTS = [Moment(f"q{k}", f"/videos/v{k}.mp4", f"thing {k}", (Span(2, 4),), 8.0) for k in range(5)]
WORDS = "the person walks to a door and opens it slowly while light falls into the room before that nothing".split()


def rollout(step: int, qid: str, sample: int, answer: Span = NEAR, words: str = "so") -> Rollout:
    text = render([Span(0, 8), Span(1, 6)], answer, ["far", "near", words])
    return Rollout(
        run="big", stage="grpo", step=step, qid=qid, sample=sample, seed=0, checkpoint="", text=text, status="ok",
        reward_format=1.0, reward_answer=0.5, reward_anchors=0.0, reward_progress=0.0, total=1.5, advantage=0.0,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


@pytest.fixture
def many() -> list[Rollout]:
    """Ten steps of five groups of four, alike but for one that is right and one that is all wrong."""
    made = [rollout(step, m.qid, k) for step in range(1, STEPS + 1) for m in MOMENTS for k in range(GROUP)]
    made[101] = rollout(6, "q0", 1, Span(2, 4), "the perfect one")
    made[150] = rollout(8, "q2", 2, Span(6, 8), "the lost one")
    return made


@pytest.fixture
def bounded(many: list[Rollout], monkeypatch: pytest.MonkeyPatch) -> ChainExplorer:
    monkeypatch.setattr(subset, "MOST_CHAINS", 80)
    return explore(many, MOMENTS, clips=0)


def told(widget: ChainExplorer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress(widget.data))
    return found


def places(widget: ChainExplorer) -> list[int]:
    found: list[int] = told(widget)["left_out"]["places"]
    return found


def test_all_travel_where_they_are_few_and_nothing_is_said(many: list[Rollout]) -> None:
    assert "left_out" not in told(explore(many, MOMENTS, clips=0))


def test_what_travels_is_bounded_whole_groups_of_each_step_with_the_best_and_the_worst(bounded: ChainExplorer) -> None:
    chosen = places(bounded)
    assert len(chosen) == 80 and len(told(bounded)["columns"]["text"]) == 80
    groups = {place // GROUP for place in chosen}
    assert chosen == sorted(GROUP * group + k for group in groups for k in range(GROUP)), "groups are whole"
    assert {place // (GROUP * 5) for place in chosen} == set(range(STEPS)), "each step has its share"
    assert {101, 150} <= set(chosen), "the best and the worst"


def test_what_stayed_behind_is_said_beside_the_table(bounded: ChainExplorer) -> None:
    left = told(bounded)["left_out"]
    assert left["all"] == 200 and left["text"].startswith("80 of 200 chains are saved in this notebook: whole groups")
    assert "the rollouts of run 'big'" in left["text"]
    assert "80 of the chains are saved with it" in repr(bounded)


def test_kept_chains_travel_before_others(many: list[Rollout], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "MOST_CHAINS", 40)
    kept = [rollout(4, "q3", 1, words="worth learning"), rollout(9, "q1", 2, words="this, too")]
    for each in kept:
        many[(each.step - 1) * 20 + int(each.qid[1]) * GROUP + each.sample] = each
    texts = told(explore(many, MOMENTS, clips=0, kept=kept))["columns"]["text"]
    assert all(each.text in texts for each in kept)
    assert not all(each.text in told(explore(many, MOMENTS, clips=0))["columns"]["text"] for each in kept)


def test_one_query_asked_without_end_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "MOST_CHAINS", 30)
    rows = ChainColumns(
        {"sft": [PlainRecord("q0", render([], Span(k % 5, 8))) for k in range(100)]}, {"q0": MOMENTS[0]}
    )
    chosen = subset.choose_subset(rows, 2, {}, most=30)
    assert 2 in chosen and 20 <= len(chosen) <= 30 and chosen[-1] > 90


def test_a_chain_selected_from_python_comes_along_when_it_had_not_travelled(bounded: ChainExplorer) -> None:
    missing = next(place for place in range(200) if place not in places(bounded))
    bounded.selected = missing
    assert missing in places(bounded) and len(places(bounded)) <= 80
    assert bounded.selection is not None and bounded.selection.record.sample == missing % GROUP
    assert len(bounded) == 200 and len(bounded.find(step=3)) == 20, "Python still knows all"


def test_a_page_finds_among_all_what_its_filters_ask_for(bounded: ChainExplorer, many: list[Rollout]) -> None:
    hidden = next(place for place in range(200) if place not in places(bounded))
    many[hidden] = rollout(hidden // 20 + 1, f"q{hidden // GROUP % 5}", hidden % GROUP, words="a needle in here")
    bounded.update(many)
    assert hidden not in places(bounded)
    bounded._answer(None, {"ask": "chains", "filters": {"text": " NEEDLE ", "low": 0, "high": 1, "anchors": "2"}}, [])
    found = told(bounded)
    assert hidden in places(bounded) and found["left_out"]["text"].startswith("1 chain of 200 pass these filters")
    assert set(range(hidden // GROUP * GROUP, hidden // GROUP * GROUP + GROUP)) <= set(places(bounded)), (
        "with its group"
    )
    bounded._answer(None, {"ask": "chains", "filters": {"text": "", "low": 0, "high": 1}}, [])
    assert told(bounded)["left_out"]["text"].startswith("80 of 200 chains are saved")


def test_a_store_is_shown_as_its_rollouts_are_and_may_change_meanwhile(
    many: list[Rollout], bounded: ChainExplorer, tmp_path: Path
) -> None:
    for step in range(1, STEPS + 1):
        RolloutStore(tmp_path).write(step, [each for each in many if each.step == step])
    widget = explore(RolloutStore(tmp_path), MOMENTS, clips=0)
    shutil.rmtree(tmp_path)
    for filters in ({}, {"text": "the lost one"}, {"low": 0.5, "text": "near"}):
        for each in (widget, bounded):
            each._answer(None, {"ask": "chains", "filters": filters}, [])
        assert told(widget) == told(bounded)
    assert widget.rows[150].record == many[150] and [row.record for row in widget.rows] == many
    assert widget.find(step=8, sample=2) == bounded.find(step=8, sample=2) and 150 in widget.find(step=8, sample=2)


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({}, None),
        ({"stage": "sft"}, {1, 2, 3, 4}),
        ({"status": "no_answer"}, set()),
        ({"kind": "right_then_left"}, {2}),
        ({"anchors": "0"}, {0}),
        ({"anchors": "4"}, {3}),
        ({"low": 0.5}, {1}),
        ({"high": 0.3}, {2, 3}),
        ({"regress": "step"}, {2, 3}),  # by a fall of LEAST_GAIN or more: not by 0.02
        ({"regress": "answer"}, {2, 3, 4}),
        ({"regress": "base"}, {2}),
        ({"text": "THING 0"}, {0, 1}),
        ({"text": "v1.mp4"}, {2, 3, 4}),
        ({"text": "nowhere"}, set()),
    ],
    ids=str,
)
def test_the_kernel_filters_as_the_page_does(filters: dict[str, Any], passes: set[int] | None) -> None:
    chains = {
        "base": [PlainRecord("q0", render([], Span(2, 8)))],
        "sft": [
            PlainRecord("q0", render([Span(0, 8), Span(1, 5)], Span(2, 4))),
            PlainRecord("q1", render([Span(1, 5)], Span(5, 8))),
            PlainRecord("q1", render([Span(0, 8), Span(1, 5), Span(0, 8), Span(1, 6)], Span(3, 8))),
            PlainRecord("q1", render([Span(1, 5)], Span(0.9, 5.1))),  # IoU 2/4, then 2/4.2
        ],
    }
    rows = ChainColumns(chains, {m.qid: m for m in MOMENTS})
    found = subset.matching(rows, {"q0": 1 / 3, "q1": 0.1}, filters)
    assert (None if found is None else set(found)) == passes


def test_long_texts_mean_fewer_chains(many: list[Rollout], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subset, "FEWEST_CHAINS", 8)
    monkeypatch.setattr(subset, "MOST_BYTES", 30_000)
    drawn = random.Random(0)
    long = [rollout(r.step, r.qid, r.sample, words="".join(drawn.choices("abcdefghijkl", k=2000))) for r in many]
    widget = explore(long, MOMENTS, clips=0)
    assert len(widget.data) <= 30_000 and 8 <= len(places(widget)) < 40


@pytest.mark.slow
def test_a_notebook_with_two_hundred_thousand_chains_stays_below_fifteen_megabytes() -> None:
    drawn = random.Random(0)
    texts = [" ".join(drawn.choices(WORDS, k=100)) for _ in range(500)]
    made = [
        rollout(k // 400 + 1, f"q{k // 8 % 5}", k % 8, Span(k % 6, 7.5), f"{texts[k % 500]} {drawn.random()}")
        for k in range(200_000)
    ]
    widget = explore(made, MOMENTS, clips=0)
    assert len(widget) == 200_000 and len(places(widget)) == subset.MOST_CHAINS
    state = Widget.get_manager_state(widgets=[widget])
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {"application/vnd.jupyter.widget-state+json": state}})
    assert len(nbformat.writes(notebook)) < 15_000_000
