"""The explorer as a picture that needs no browser."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.views.explorer.sprites import SheetCache
from labkit.views.explorer.still import WIDTH, draw_still
from labkit.views.explorer.widget import explore
from labkit.views.measured_chains import PlainRecord, measure_chains
from tests.data.films import CONSTANT, film

GREEN, BLUE, ORANGE = (0, 158, 115), (47, 134, 209), (224, 123, 0)


@pytest.fixture
def moment(tmp_path: Path) -> Moment:
    return Moment("q", str(film(tmp_path / "a.mp4", CONSTANT)), "the door opens", (Span(2, 4),), 8.0)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def columns_of(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Where across the right-hand part, in shares of the timeline's width, a colour is drawn in rows of a bar's height."""
    rows = (picture[:, 800:] == color).all(axis=-1)
    row = rows[rows.sum(axis=1).argmax()]
    return np.flatnonzero(row)


def test_truth_and_answer_lie_over_the_same_seconds(moment: Moment) -> None:
    rows = measure_chains({"sft": [PlainRecord("q", render([Span(0, 8)], Span(2, 4)))]}, {"q": moment})
    picture = pixels(draw_still(rows, 0, SheetCache().get(moment.video, 8.0), "1 chain"))
    assert picture.shape[1] == 2 * WIDTH
    truth, answer, anchor = (columns_of(picture, color) for color in (GREEN, ORANGE, BLUE))
    assert abs(truth[0] - answer[0]) <= 1 and abs(truth[-1] - answer[-1]) <= 1
    assert len(anchor) == pytest.approx(4 * len(truth), rel=0.02), "8 seconds against 2"


def test_the_frame_is_that_of_the_answer(moment: Moment) -> None:
    rows = measure_chains({"sft": [PlainRecord("q", render([], Span(start, 8))) for start in (1, 6)]}, {"q": moment})
    sheet = SheetCache().get(moment.video, 8.0)
    first, second = (pixels(draw_still(rows, at, sheet, "2 chains"))[170:440, 770:1200] for at in (0, 1))
    assert (first != second).any(), "another second, another frame"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "a model that wrote nothing"),
        ("<think>no end", "no answer"),
        (render([Span(k / 4, 8) for k in range(12)], Span(9, 12)), "many anchors, an answer behind the end"),
        ("\u202e漢字 😀 \ud800 <script>" * 200, "characters that no font has"),
    ],
)
def test_any_chain_can_be_drawn(moment: Moment, text: str, why: str) -> None:
    rows = measure_chains({"sft": [PlainRecord("q", text)]}, {"q": moment})
    assert draw_still(rows, 0, None, "1 chain", "its video is gone").startswith(b"\x89PNG"), why


def test_a_video_that_is_gone_leaves_the_rest_of_the_picture(tmp_path: Path) -> None:
    gone = Moment("q", str(tmp_path / "gone.mp4"), "the door opens", (Span(2, 4),), 8.0)
    data, _ = explore([PlainRecord("q", render([], Span(2, 4)))], [gone])._repr_mimebundle_()
    assert "image/png" in data


def test_without_chains_there_is_no_picture(moment: Moment) -> None:
    data, _ = explore([], [moment])._repr_mimebundle_()
    assert "image/png" not in data
