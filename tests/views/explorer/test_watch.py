"""A query as it learns: which chains are shown in which order, and the picture that needs no browser."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views.explorer.still import WIDTH
from labkit.views.explorer.watch import learnt_lines, watch
from tests.data.films import CONSTANT, film

GREEN_BAND, ORANGE, BLUE = (212, 239, 231), (224, 123, 0), (176, 209, 239)
WIDE, NEAR, TRUTH = Span(0, 8), Span(1, 5), Span(2, 4)


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    video = film(tmp_path_factory.mktemp("clips") / "a.mp4", CONSTANT)
    return [Moment(qid, str(video), f"the door opens {qid}", (TRUTH,), 8.0) for qid in ("learns", "stays")]


def probe(qid: str, step: int, *spans: Span, stage: str = "grpo", sample: int = 0) -> Rollout:
    return Rollout(
        run="r", stage=stage, step=step, qid=qid, sample=sample, seed=0, checkpoint="base", status="ok", **UNPAID,
        text=render(list(spans[:-1]), spans[-1]), prompt_tokens=9, completion_tokens=20, finished=True,
    )  # fmt: skip


@pytest.fixture
def rollouts() -> list[Rollout]:
    """One query gains from IoU 0.25 to 1, the other keeps 1; in no order."""
    return [
        probe("learns", 0, WIDE, TRUTH, stage="grpo_final"),
        probe("stays", 0, TRUTH),
        probe("learns", 10, WIDE, NEAR),
        probe("learns", 0, WIDE),
        probe("stays", 10, TRUTH),
        probe("learns", 10, TRUTH, sample=1),
        probe("learns", 2, WIDE),
    ]


def test_chains_stand_in_the_order_of_training_one_a_step(rollouts: list[Rollout], moments: list[Moment]) -> None:
    shown = watch(rollouts, moments)
    assert learnt_lines(shown._rows) == {"learns": [3, 6, 2, 0], "stays": [1, 4]}
    assert [(row.stage, row.record.step) for row in shown.line()] == [  # type: ignore[attr-defined]
        ("grpo", 0), ("grpo", 2), ("grpo", 10), ("grpo_final", 0),
    ]  # fmt: skip
    assert repr(shown) == "QueryWatch(2 queries at 4 steps of training)"


def test_it_opens_at_the_end_of_the_query_that_learnt_most_or_at_the_one_named(rollouts: Any, moments: Any) -> None:
    assert watch(rollouts, moments).selected == 0
    named = watch(rollouts, moments, qid="stays")
    assert named.selected == 4 and named.selection is not None and named.selection.moment.qid == "stays"


@pytest.mark.parametrize(
    ("chains", "qid", "said"),
    [
        ([], "", "no chain to watch; give the rollouts of probe queries"),
        ([probe("stays", 0, TRUTH)], "learns", "'learns' was not asked in these rollouts; they ask stays"),
        ([probe("gone", 0, TRUTH)], "", "'gone', which is not among the 2 moments"),
    ],
)
def test_what_cannot_be_watched_is_an_error(moments: list[Moment], chains: Any, qid: str, said: str) -> None:
    with pytest.raises(LabError, match=said):
        watch(chains, moments, qid=qid)


def where(picture: np.ndarray, color: tuple[int, int, int], rows: slice) -> np.ndarray:
    """Where across the timeline a colour is drawn in some rows of pixels."""
    return np.flatnonzero((picture[rows, : 2 * (WIDTH - 150)] == color).all(axis=-1).any(axis=0))


def test_the_picture_shows_truth_answer_and_anchor_over_their_seconds(rollouts: Any, moments: list[Moment]) -> None:
    shown = watch(rollouts, moments)
    whole, first = (np.asarray(Image.open(io.BytesIO(shown.picture(k))).convert("RGB")) for k in (None, 1))
    assert whole.shape == first.shape and whole.shape[1] == 2 * WIDTH
    last = slice(whole.shape[0] - 2 * 84 - 2 * 20, whole.shape[0] - 2 * 84)
    truth = where(whole, GREEN_BAND, slice(290, None))
    answer, anchor = (where(whole, color, last) for color in (ORANGE, BLUE))
    assert abs(truth[0] - answer[0]) <= 1 and abs(truth[-1] - answer[-1]) <= 1
    assert anchor[-1] - anchor[0] == pytest.approx(4 * (truth[-1] - truth[0]), rel=0.02), "8 seconds against 2"
    assert not len(where(first, BLUE, slice(290, None))), "the first chain has no anchor, and the others come later"


def test_a_notebook_holds_a_picture_and_words_for_viewers_that_run_nothing(rollouts: Any, moments: Any) -> None:
    data, _ = watch(rollouts, moments)._repr_mimebundle_()
    assert data["text/plain"].startswith("QueryWatch(2 queries") and "image/png" in data


def test_a_query_without_truth_has_its_picture_without_iou(tmp_path: Path) -> None:
    asked = Moment("stays", str(tmp_path / "gone.mp4"), "the door opens", (), 8.0)
    shown = watch([probe("stays", 0, TRUTH), probe("stays", 2, WIDE, TRUTH)], [asked])
    picture = np.asarray(Image.open(io.BytesIO(shown.picture())).convert("RGB"))
    edge = picture[-2 * (84 + 40) : -2 * (84 - 25), 2 * (WIDTH - 130) : -4]
    assert edge.size and (edge == 255).all(), "neither dots nor a scale"


@pytest.mark.parametrize("samples", [1, 2])
def test_no_step_of_the_query_that_is_shown_stays_behind(
    moments: list[Moment], samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.views.explorer.subset.MOST_CHAINS", 4)
    rollouts = [probe("learns", step, NEAR, sample=k) for step in range(10) for k in range(samples)]
    shown = watch([*rollouts, *(probe("stays", step, NEAR) for step in range(3))], moments, qid="learns")
    page = json.loads(gzip.decompress(shown.data))
    assert sorted(set(page["columns"]["step"])) == list(range(10))
    assert page["left_out"]["text"].startswith("1 of 2 queries are saved in this notebook")
    shown.selected = shown.find(qid="stays")[-1]
    page = json.loads(gzip.decompress(shown.data))
    assert page["columns"]["step"] == [0, 1, 2], "the others come when they are chosen"


def test_a_video_that_is_gone_leaves_the_rest_of_the_picture(tmp_path: Path) -> None:
    gone = Moment("stays", str(tmp_path / "gone.mp4"), "the door opens", (TRUTH,), 8.0)
    assert watch([probe("stays", 0, TRUTH)], [gone]).picture().startswith(b"\x89PNG")
