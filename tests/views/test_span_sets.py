"""Chains of several spans, drawn: a bar for each span of a step, and words that name all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span, union
from labkit.data.moments import Moment
from labkit.views import Film, chain_picture
from labkit.views.explorer.packing import anchor_columns, answer_column, pack
from labkit.views.explorer.still import draw_still
from labkit.views.figures.chains import _borders, _share, funnel
from labkit.views.measured_chains import measure_chains
from labkit.views.text_bars import bar

FILM = Film(np.full((6, 36, 64, 3), 99, np.uint8), np.arange(6.0) * 6 + 3)
WINDOWS = (Span(4, 8), Span(20, 28))
MOMENT = Moment("q", "/videos/q.mp4", "the door opens", WINDOWS, 36.0, as_set=True)
TEXT = render([Span(0, 36), union([Span(2, 10), Span(18, 30)])], union([Span(4, 8), Span(21, 28)]))


@dataclass(frozen=True)
class Record:
    qid: str
    text: str
    status: str = "ok"


def drawn(fig: Any) -> list[tuple[int, float, float]]:
    trace = next(trace for trace in fig.data if trace.type == "bar")
    return [(row, start, start + length) for row, start, length in zip(trace.y, trace.base, trace.x, strict=True)]


def test_the_picture_has_a_bar_for_each_span_of_a_step() -> None:
    fig = chain_picture(Record("q", TEXT), MOMENT, FILM)
    assert drawn(fig) == [(0, 4, 8), (0, 20, 28), (1, 0, 36), (2, 2, 10), (2, 18, 30), (3, 4, 8), (3, 21, 28)]
    shown = [note.text for note in fig.layout.annotations]
    assert shown.count("2 spans") == 2 and "2 windows" in shown
    assert any("[4.0 to 8.0, 21.0 to 28.0 s]" in note for note in shown)
    funnels = [trace.x for trace in fig.data if trace.type == "scatter"]
    # One for the whole clip to both spans together, then each span to its own.
    assert funnels == [(0, 36, 30, 2), (2, 10, 8, 4), (18, 30, 28, 21)]


def test_measured_chains_are_measured_against_the_set() -> None:
    measured = measure_chains([Record("q", TEXT)], {"q": MOMENT})[0]
    assert measured.ious == [12 / 36, 12 / 20, 11 / 12] and measured.window == union(WINDOWS)


def test_a_page_gets_the_spans_of_a_set_and_of_a_plain_span_what_it_got() -> None:
    chain = parse(TEXT)
    wide, near = anchor_columns(chain)
    assert len(wide) == 4 and near[:2] == [2, 30] and near[4] == [[2, 10], [18, 30]]
    column = answer_column(chain)
    assert column is not None and column[4] == [[4, 8], [21, 28]]
    assert TEXT[column[2] : column[3]] == "<answer>4.0 to 8.0, 21.0 to 28.0</answer>"


def test_text_ridgelines_and_pictures_leave_the_gap_empty() -> None:
    assert bar([union([Span(0, 2), Span(6, 8)])], 10.0, 10, "#", ".") == "##....##.."
    chains = measure_chains([Record("q", TEXT)], {"q": MOMENT})
    seconds = _borders(chains, 36.0)
    share, count = _share(chains, "answer", seconds)
    assert count == 1 and seconds[share > 0].tolist() == [4.0, 21.0]
    rows = measure_chains([Record("q", TEXT)], {"q": MOMENT})
    assert draw_still(rows, 0, None, "1 chain").startswith(b"\x89PNG") and pack(rows).rows == rows


def test_the_funnel_measures_a_set_as_a_whole_so_that_the_truth_is_its_band() -> None:
    # From 4 to 28: middle 16, half length 12. The set's own middle, 22, would put the truth itself beside the band.
    fig = funnel([Record("q", render([Span(4, 16)], union(WINDOWS)))], {"q": MOMENT})
    start, end = (trace for trace in fig.data if trace.name in ("start", "end"))
    assert list(start.x) == [-1, -1] and list(end.x) == [0, 1]
