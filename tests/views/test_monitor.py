"""A stage is shown while it runs, at a cost that is bounded, and its last state stays behind."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.rollouts import Rollout, RolloutStore
from labkit.views import monitor as views
from labkit.views.monitor import EVERY, PANELS, SHARE, Monitor, panels_figure, panels_svg
from tests.data.films import CONSTANT, film

PLOTLY, WIDGET = "application/vnd.plotly.v1+json", "application/vnd.jupyter.widget-view+json"


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Place:
    """An output of a cell: everything that stood there."""

    def __init__(self, text: str) -> None:
        self.shown: list[dict[str, Any]] = [{"text/plain": text}]

    def update(self, obj: dict[str, Any], raw: bool, metadata: dict[str, Any] | None = None) -> None:
        assert raw
        self.shown.append(obj)


def row(step: int, **changes: float) -> dict[str, Any]:
    told = {"step": step, "total": 1.0 + step, "reward_format": 0.5, "anchor_rate": 0.25, "strict_share": 0.125}
    told |= {
        "iou_first": 0.25,
        "iou_last": 0.5,
        "iou_answer": 0.75,
        "entropy": 0.4,
        "zero_variance_groups": 1,
        "groups": 4,
    }
    return told | changes


def rollout(step: int, sample: int) -> Rollout:
    text = render([Span(0, 8), Span(1, 5)], Span(2, 4 + sample))
    return Rollout(
        run="r", stage="grpo", step=step, qid="q", sample=sample, seed=0, checkpoint="", text=text, status="ok",
        reward_format=1.0, reward_answer=0.5, reward_anchors=0.0, reward_progress=0.0, total=1.5, advantage=0.0,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> RolloutStore:
    return RolloutStore(tmp_path / "rollouts")


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """The places of a notebook's cell, without the notebook."""
    made: list[Place] = []
    monkeypatch.setattr(views, "_in_notebook", lambda: True)
    monkeypatch.setattr(views, "_place", lambda text: made.append(Place(text)) or made[-1])
    monkeypatch.setattr("labkit.views.figures.renderer._open_browser", lambda: None)
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(store: RolloutStore, tmp_path: Path, clock: Clock) -> Callable[[], Monitor]:
    clip = film(tmp_path / "a.mp4", CONSTANT)
    moments = [Moment("q", str(clip), "the door opens", (Span(2.0, 4.0),), 8.0)]

    def made() -> Monitor:
        return Monitor("grpo", 20, store, moments, folder=tmp_path / "sheets", clock=clock)

    return made


def listed(monitor: Monitor) -> list[int]:
    """The steps of the chains that the explorer holds."""
    found: list[int] = json.loads(gzip.decompress(monitor.explorer.data))["columns"]["step"]
    return found


def take(monitor: Monitor, store: RolloutStore, step: int) -> None:
    store.write(step, [rollout(step, sample) for sample in range(3)])
    monitor(row(step))


def test_each_step_moves_the_panels_and_now_and_then_the_chains(
    watch: Callable[[], Monitor], store: RolloutStore, places: list[Place], clock: Clock
) -> None:
    monitor = watch()
    panels, chains = places
    assert "waiting" in panels.shown[0]["text/plain"]
    for step in (1, 2, 3, 4):
        clock.now += 7.0
        take(monitor, store, step)
        # 0.1 s for chains fit in once 6.7 s have gone by, and the next ones follow EVERY (10) seconds later
        assert listed(monitor) == [{1: 1, 2: 1, 3: 3, 4: 3}[step]] * 3
    assert [shown["text/plain"] for shown in panels.shown[1:]] == [f"grpo: step {k} of 20" for k in (1, 2, 3, 4)]
    assert [set(shown) for shown in chains.shown[1:]] == [{WIDGET, "text/plain"}], "the widget stands once, no poster"
    assert monitor.explorer.view == "group" and len(monitor.explorer.clips) == 1


def test_drawing_takes_no_more_than_its_share(
    watch: Callable[[], Monitor], places: list[Place], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = iter([0.05, 0.4, *[0.02] * 1000])
    monkeypatch.setattr(Monitor, "_show_panels", lambda self: setattr(clock, "now", clock.now + next(costs)))
    monkeypatch.setattr(Monitor, "_show_chains", lambda self: setattr(clock, "now", clock.now + 0.3))
    monitor = watch()
    for step in range(1, 400):
        clock.now += 0.5
        before = monitor.spent
        monitor(row(step))
        # a drawing may cost more than the one before it: that much, the first time 0.04 s and then 0.35 s, may be over
        assert monitor.spent == before or monitor.spent <= SHARE * clock.now + 0.4
    assert 0.8 * SHARE < monitor.spent / clock.now <= SHARE


def test_the_end_is_always_drawn_as_figures_are(
    watch: Callable[[], Monitor], store: RolloutStore, places: list[Place]
) -> None:
    monitor = watch()
    take(monitor, store, 1)  # no time has gone by
    take(monitor, store, 2)
    assert [len(place.shown) for place in places] == [1, 1]
    store.compact()
    monitor.end([row(1), row(2)])
    panels, chains = (place.shown[-1] for place in places)
    assert panels["text/plain"].startswith("grpo, 2 steps. ") and PLOTLY in panels
    assert {WIDGET, "image/png", "text/plain"} == set(chains) and listed(monitor) == [2, 2, 2]


def test_a_stage_that_had_ended_shows_its_last_state_at_once(
    watch: Callable[[], Monitor], store: RolloutStore, places: list[Place]
) -> None:
    store.write(7, [rollout(7, 0)])
    store.compact()
    monitor = watch()
    monitor.end([row(step) for step in range(1, 8)])
    assert places[0].shown[-1]["text/plain"].startswith("grpo, 7 steps") and listed(monitor) == [7]


def test_a_stage_that_stopped_by_condition_says_so_at_its_end(
    watch: Callable[[], Monitor], places: list[Place]
) -> None:
    watch().end([row(1), row(2)], "stopped by condition: anchors are the rule")
    assert "grpo, 2 steps. Stopped by condition: anchors are the rule." in places[0].shown[-1]["text/plain"]


def test_steps_from_before_a_run_was_killed_are_shown_too(watch: Callable[[], Monitor], places: list[Place]) -> None:
    monitor = watch()
    monitor.resume([row(1), row(2)])
    monitor(row(3))
    assert [each["step"] for each in monitor.rows] == [1, 2, 3]


def test_outside_of_a_notebook_nothing_is_shown(watch: Callable[[], Monitor], clock: Clock) -> None:
    monitor = watch()
    clock.now += 100
    monitor(row(1))
    monitor.end([row(1)])
    assert not monitor.shown and monitor.spent == 0


def test_what_goes_wrong_ends_the_view_and_not_the_training(
    watch: Callable[[], Monitor], places: list[Place], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = watch()
    clock.now += 2
    with caplog.at_level(logging.WARNING, "labkit.views"):
        monitor({"loss": 1.0})  # a row without its step
        monitor(row(2))
    assert caplog.messages == ["grpo goes on without being shown: KeyError('step')"]


def test_watching_draws_no_random_numbers(
    watch: Callable[[], Monitor], store: RolloutStore, places: list[Place], clock: Clock
) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    monitor = watch()
    for step in (1, 2):
        clock.now += 20 + EVERY
        take(monitor, store, step)
    monitor.end([row(1), row(2)])
    after = random.getstate(), np.random.get_state(), torch.get_rng_state()
    assert repr(before) == repr(after)
    assert len(places[1].shown) == 3


def test_panels_hold_every_quantity_of_a_history() -> None:
    fig = panels_figure("grpo", [row(1, zero_variance_groups=4), row(2)])
    lines = {trace.name: list(trace.y) for trace in fig.data if trace.name}
    assert lines == {
        "total": [2, 3], "format": [0.5, 0.5], "first": [0.25, 0.25], "last anchor": [0.5, 0.5], "answer": [0.75, 0.75],
        "have anchors": [25, 25], "narrow strictly": [12.5, 12.5], "nats": [0.4, 0.4], "all earn the same": [100, 25],
    }  # fmt: skip
    assert len(fig.layout.annotations) == len(PANELS)
    assert "<b>25 %</b>" in fig.layout.annotations[-1].text  # where the line ends


def test_a_history_without_steps_or_without_numbers_is_drawn_as_what_it_is() -> None:
    assert "no step was recorded" in panels_figure("grpo", []).layout.meta["alt"]
    nothing = {name: float("nan") for name in row(1)} | {"step": 1, "groups": 0}
    assert "no step was recorded" in panels_figure("grpo", [nothing]).layout.meta["alt"]
    for history in ([], [nothing], [row(1)]):
        assert "nan" not in panels_svg(history, 1)


def test_the_quick_panels_put_a_value_where_it_belongs() -> None:
    drawn = panels_svg([row(1, iou_answer=0.0), row(11, iou_answer=1.0)], steps=21)
    lines = re.findall(r'<polyline points="([^"]*)" fill="none" stroke="#e07b00"', drawn)
    # 0 lies at the bottom (130), 1 at the top; step 11 of 1 to 21 half way through the 333 pixels
    assert lines == ["0.0,130.0 166.5,0.0"]


def test_the_quick_panels_are_quick_and_small_after_a_thousand_steps() -> None:
    history = [row(step) for step in range(1, 1001)]
    assert len(base64.b64encode(panels_svg(history, 1000).encode())) < 200_000
