"""Pictures of single chains: what they show, and that model text can't act in them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.views import Film, chain_picture, film, gallery, through_stages
from labkit.views.figures.style import plain

FILM = Film(np.full((6, 36, 64, 3), 99, np.uint8), np.arange(6.0) * 6 + 3)
MOMENT = Moment("q", "/videos/q.mp4", "the door opens", (Span(10, 20),), 36.0)


@dataclass(frozen=True)
class Record:
    qid: str
    text: str
    status: str = "ok"


def bars(fig: Any, number: int = 0) -> list[tuple[float, float]]:
    bar = [trace for trace in fig.data if trace.type == "bar"][number]
    return [(start, start + length) for start, length in zip(bar.base, bar.x, strict=True)]


def words(fig: Any) -> str:
    """Everything that the figure can show as text."""
    shown = [fig.layout.title.text, fig.layout.title.subtitle.text, *(note.text for note in fig.layout.annotations)]
    shown += [text for trace in fig.data for text in trace.hovertext or ()]
    return "\n".join(shown)


def test_the_picture_has_a_bar_for_the_truth_each_anchor_and_the_answer() -> None:
    text = render([Span(0, 36), Span(5, 25)], Span(10, 22), ["at first", "then", "so"])
    fig = chain_picture(Record("q", text), MOMENT, FILM)
    assert bars(fig) == [(10, 20), (0, 36), (5, 25), (10, 22)]
    assert list(fig.layout.yaxis.ticktext) == ["truth", "anchor 1", "anchor 2", "answer"]
    shown = [note.text for note in fig.layout.annotations]
    # IoU 10/36, 10/20, 10/12
    assert "<b>0.28</b>" in shown and any(note.startswith("<b>0.50</b>") and "▲" in note for note in shown)
    hover = [trace for trace in fig.data if trace.type == "bar"][0].hovertext
    assert hover[1].endswith("<br>at first") and hover[2].endswith("<br>then") and hover[3].endswith("<br>so")


@pytest.mark.parametrize(
    ("option", "mark", "why"),
    [
        (1, "[B ✓]", "the right one"),
        (0, "[A ✗]", "another one"),
        (None, "", "none was chosen"),
    ],
)
def test_the_chosen_option_stands_behind_the_answer_and_says_whether_it_is_right(
    option: int | None, mark: str, why: str
) -> None:
    asked = replace(MOMENT, options=("opens", "shuts"), choice=1)
    shown = words(chain_picture(Record("q", render([Span(5, 25)], Span(10, 22), option=option)), asked, FILM))
    assert re.findall(r"\[[A-Z] .\]", shown) == [mark] * bool(mark), why
    assert "&lt;option&gt;" not in shown


def test_bars_end_with_the_clip_and_what_lies_outside_has_none() -> None:
    fig = chain_picture(Record("q", render([Span(30, 99)], Span(50, 60))), MOMENT, FILM)
    assert bars(fig) == [(10, 20), (30, 36)]
    assert "outside the clip" in words(fig) and "30.0 to 99.0 s" in words(fig)


def test_frames_stand_along_time_and_those_outside_the_truth_are_dim() -> None:
    fig = chain_picture(Record("q", ""), MOMENT, FILM)
    places = [(image.x, image.opacity) for image in fig.layout.images]
    assert len(places) == 5 and places[0] == (3.6, 0.6)
    assert [x for x, opacity in places if opacity == 1] == pytest.approx([10.8, 18.0])
    assert all(image.source.startswith("data:image/jpeg;base64,/9j/") for image in fig.layout.images)


def test_nothing_is_shown_where_the_video_has_ended() -> None:
    short = Film(FILM.rgb[:2], FILM.times[:2])  # frames at 3 and 9 s of 36
    assert len(chain_picture(Record("q", ""), MOMENT, short).layout.images) == 2
    assert not chain_picture(Record("q", ""), MOMENT, Film(FILM.rgb[:0], FILM.times[:0])).layout.images


def test_a_broken_form_is_named_and_its_tags_are_shown() -> None:
    fig = chain_picture(Record("q", "<think>hm <timestamp>4 to</timestamp>"), MOMENT, FILM)
    assert "Status <b>no_think</b>" in words(fig) and "none read" in words(fig)
    assert "&lt;timestamp&gt;4 to&lt;/timestamp&gt;" in words(fig)


def test_a_long_thought_keeps_every_anchor() -> None:
    thoughts = ["word " * 200 + "one", "word " * 300 + "two", "three", "end " * 90]
    text = render([Span(1, 9), Span(2, 8), Span(3, 7)], Span(4, 6), thoughts)
    thought = chain_picture(Record("q", text), MOMENT, FILM).layout.annotations[-1].text
    order = [thought.index(part) for part in ("one", "[1.0 to 9.0 s]", "two", "[2.0 to 8.0 s]", "[3.0 to 7.0 s]")]
    assert order == sorted(order) and "[4.0 to 6.0 s]" in thought
    assert thought.count("<br>") <= 3


def test_anchors_beyond_the_drawn_ones_are_counted() -> None:
    fig = chain_picture(Record("q", render([Span(k, k + 1) for k in range(11)], Span(10, 20))), MOMENT, FILM)
    assert len(bars(fig)) == 10 and "Not drawn: 3 more anchors" in words(fig)


OURS = re.compile(r'</?(b|i|br|span)>|<br>|<span style="color:(#[0-9a-f]{6}|rgba\([0-9., ]+\))">')
HOSTILE = [
    "<b>bold</b><script>alert(1)</script>",  # markup
    '<a href="javascript:alert(1)">x</a><span style="color:red">',  # what plotly would let through
    "&lt;b&gt; &amp; &#60;",  # entities show as they were written
    "$\\frac{1}{2}$ and $x$",  # MathJax
    "%{meta.alt} %{x} %{customdata[0]}",  # plotly's own templates
    "\x00\x07\u202eevil\ud800",  # control and direction characters, half a surrogate pair
    "x" * 100_000,  # one word without end
]


@pytest.mark.parametrize("payload", HOSTILE)
def test_text_in_thought_and_query_is_shown_and_does_nothing(payload: str) -> None:
    text = f"<think>{payload} <timestamp>5 to 25</timestamp> {payload}</think><answer>10 to 20</answer> {payload}"
    asked = Moment(
        "q", "/videos/q.mp4", payload.replace("\x00", "").replace("\ud800", "") or "x", (Span(10, 20),), 36.0
    )
    fig = through_stages({payload: [Record("q", text)]}, {"q": asked}, "q", FILM)
    shown = OURS.sub("", words(fig))
    assert "<" not in shown and "$" not in shown and "%{" not in shown
    assert not re.search("[\x00-\x08\u202a-\u202e\ud800-\udfff]", shown)
    assert all(len(line) < 400 for line in re.split("<br>|\n", words(fig)))
    fig.to_json().encode()


def test_what_is_escaped_reads_as_it_was_written() -> None:
    import html

    for payload in HOSTILE[:5]:
        assert html.unescape(plain(payload)) == payload


def test_a_megabyte_of_text_draws_at_once() -> None:
    text = "<think>" + "<timestamp>1 to 2</timestamp>" * 20_000 + "word " * 100_000
    begin = time.perf_counter()
    chain_picture(Record("q", text), MOMENT, FILM)
    assert time.perf_counter() - begin < 5


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Two seconds of film, dark then bright."""
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(16):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 if k < 8 else 220, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_film_reads_frames_along_the_clip(video: Path) -> None:
    moment = Moment("q", str(video), "it turns bright", (Span(1, 2),), 2.0)
    shown = film(moment)
    assert len(shown.rgb) == len(shown.times) > 3 and shown.rgb.shape[3] == 3
    means = shown.rgb.mean(axis=(1, 2, 3))
    assert (means[shown.times < 0.95] < 60).all() and (means[shown.times > 1.05] > 180).all()


def test_film_of_a_trimmed_clip_begins_where_the_clip_begins(video: Path) -> None:
    shown = film(Moment("q", str(video), "it turns bright", (Span(0, 0.5),), 1.0, clip=Span(1, 2)))
    assert (shown.rgb.mean(axis=(1, 2, 3)) > 180).all() and 0 < shown.times[0] < 0.2


def test_a_missing_video_is_an_error_that_names_it() -> None:
    with pytest.raises(LabError, match="q.mp4"):
        chain_picture(Record("q", ""), MOMENT)


def test_gallery_shows_best_median_and_worst(video: Path) -> None:
    moments = {q: Moment(q, str(video), f"query {q}", (Span(1, 2),), 2.0) for q in "abc"}
    answers = {"a": Span(1, 1.5), "b": Span(0, 0.5), "c": Span(1, 2)}
    fig = gallery([Record(q, render([], answers[q])) for q in "abc"], moments)
    headers = [note.text for note in fig.layout.annotations if "“" in note.text]
    assert ["query c" in headers[0], "query a" in headers[1], "query b" in headers[2]] == [True] * 3
    assert headers[0].startswith("<b>best</b>") and "IoU 1.00" in headers[0] and "IoU 0.50" in headers[1]
    assert [bars(fig, k)[1] for k in range(3)] == [(1, 2), (1, 1.5), (0, 0.5)]


def test_gallery_takes_what_score_takes(video: Path) -> None:
    asked = [Moment(qid, str(video), "the door opens", (Span(1, 2),), 4.0) for qid in ("a", "b")]
    fig = gallery(
        {"a": "from 1 to 2", "b": "<think><timestep>0 to 3</timestep></think> 2 to 3"}, asked, rules="timer1"
    )
    assert "Of 2 chains" in words(fig) and (0, 3) in bars(fig, 1)
    unread = gallery({"a": "from 1 to 2"}, {moment.qid: moment for moment in asked})
    assert "rules 'timer1' find a span in 100 % of them" in plain(words(unread)).replace("&#39;", "'")


def test_a_gallery_is_headed_by_what_it_shows(video: Path) -> None:
    moments = {q: Moment(q, str(video), "a query", (Span(1, 2),), 2.0) for q in "ab"}
    records = [Record("a", render([], Span(1, 2))), Record("b", render([], Span(0, 0.5)))]
    for ranks, title in [
        (None, "Best, median and worst of the chains"),
        ({"luckiest": 1.0, "typical": 0.5}, "Luckiest and typical of the chains"),
        ({"median of the base": 0.5}, "Median of the base of the chains"),
    ]:
        assert f"<b>{title}</b>" in gallery(records, moments, ranks).layout.title.text
    assert "<b>Mine</b>" in gallery(records, moments, {"top": 1}, title="Mine").layout.title.text


def test_a_gallery_outlives_a_video_that_cannot_be_read(video: Path, tmp_path: Path) -> None:
    moments = {
        "a": Moment("a", str(video), "it", (Span(1, 2),), 4.0),
        "b": Moment("b", "/gone.mp4", "it", (Span(1, 2),), 4.0),
    }
    fig = gallery([Record("a", render([], Span(1, 2))), Record("b", render([], Span(3, 4)))], moments)
    assert "gone.mp4 is not there" in words(fig) and len(fig.layout.images) > 0


def test_gallery_of_one_chain_draws_it_once_under_all_names(video: Path) -> None:
    moments = {"a": Moment("a", str(video), "query", (Span(1, 2),), 2.0)}
    fig = gallery([Record("a", render([], Span(1, 2)))], moments)
    assert len([trace for trace in fig.data if trace.type == "bar"]) == 1
    assert "best, median, worst" in words(fig)


def test_gallery_of_nothing_says_so_and_a_wrong_rank_is_an_error() -> None:
    assert "Nothing to show" in gallery([], {}).layout.title.subtitle.text
    with pytest.raises(LabError, match="rank 'top' of a gallery is 2"):
        gallery([], {}, {"top": 2})


def test_one_query_through_the_stages_in_their_order() -> None:
    records = {"sft": [Record("q", render([], Span(10, 20)))], "base": [Record("q", render([], Span(0, 20)))]}
    fig = through_stages(records, {"q": MOMENT}, "q", FILM)
    assert [bars(fig, k)[1] for k in range(2)] == [(0, 20), (10, 20)]
    with pytest.raises(LabError, match="no record has qid 'lost'"):
        through_stages(records, {"q": MOMENT}, "lost", FILM)
