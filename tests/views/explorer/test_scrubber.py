"""The scrubber, and where a page is told to find the video behind a clip."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.chain.spans import Span
from labkit.errors import LabError
from labkit.views.explorer.packing import VideoClip
from labkit.views.explorer.page import film_beside, film_for_browser
from labkit.views.explorer.scrubber import scrub
from tests.data.films import CONSTANT, film

TRUTH = Span(2.0, 4.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clip") / "a.mp4", CONSTANT)


def told(widget: Any) -> dict[str, Any]:
    """What the page is given."""
    found: dict[str, Any] = json.loads(gzip.decompress(widget.data))
    return found


def test_a_scrubber_shows_any_spans_over_any_video(clip: Path) -> None:
    widget = scrub(clip, {"seen": [(0, 1), (6, 7.5)], "truth": TRUTH, "answer": [1, 3]})
    assert told(widget) == {
        "name": "a.mp4",
        "duration": 8.0,
        "rows": [
            {"label": "truth", "spans": [[2.0, 4.0]]},
            {"label": "seen", "spans": [[0.0, 1.0], [6.0, 7.5]], "ious": [0.0, 0.0]},
            {"label": "answer", "spans": [[1.0, 3.0]], "ious": [0.3333]},
        ],
    }
    assert widget.clips["0"]["frames"] == 16 and repr(widget) == "Scrubber('a.mp4', 8.0 s)"
    part = told(scrub(clip, [(0, 1), np.array([1.0, 2.0])], start=2.0, duration=3.0))
    assert part["duration"] == 3.0 and [row["label"] for row in part["rows"]] == ["1", "2"]
    assert told(scrub(clip))["rows"] == []
    for one in ((3, 8), Span(3, 8), np.array([3, 8]), np.array([3, 8], np.float32)):
        assert told(scrub(clip, one))["rows"] == [{"label": "1", "spans": [[3.0, 8.0]]}], repr(one)


@pytest.mark.parametrize("span", [(4, 2), (1, 2, 3), ("a", "b"), (float("nan"), 2)])
def test_a_span_that_is_none_is_named(clip: Path, span: Any) -> None:
    with pytest.raises(LabError, match="labelled 'seen' is none"):
        scrub(clip, {"seen": [span]})


def test_a_video_below_the_servers_folder_is_sent_by_the_server(tmp_path: Path) -> None:
    (tmp_path / "my films").mkdir()
    video = tmp_path / "my films" / "a #1.mp4"
    video.write_bytes(b"film")
    clip = VideoClip(str(video), 3.0, 5.0)
    assert film_for_browser(clip, str(tmp_path)) == ({"path": "my%20films/a%20%231.mp4", "start": 3.0}, [])
    assert film_for_browser(clip, str(tmp_path / "elsewhere")) == ({"start": 3.0}, [b"film"]), "bytes, when it is not"
    assert film_for_browser(clip) == ({"start": 3.0}, [b"film"]), "and where there is no server"
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path / "my films")
    inside = VideoClip(str(video), 0.0, 5.0)
    assert film_for_browser(inside, str(linked))[0]["path"] == "a%20%231.mp4", "by whichever name it is below"
    hidden = tmp_path / ".cache" / "a.mp4"
    hidden.parent.mkdir()
    hidden.write_bytes(b"film")
    assert film_for_browser(VideoClip(str(hidden), 0.0, 5.0), str(tmp_path))[1] == [b"film"], (
        "a server refuses hidden ones"
    )


def test_a_video_that_no_browser_gets_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(b"too long")
    monkeypatch.setattr("labkit.views.explorer.page.MOST_FILM_BYTES", 3)
    for path, why in ((video, "not below the folder"), (tmp_path / "b.avi", "do not play .avi"),
                      (tmp_path / "gone.mp4", "No such file")):  # fmt: skip
        found, content = film_for_browser(VideoClip(str(path), 0.0, 5.0))
        assert why in found["why"] and content == []


def test_a_page_is_told_of_a_video_near_by_and_of_others_only_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    rows = [
        # video, page, where the page looks
        ("videos/a b.mp4", "a.html", "videos/a%20b.mp4"),
        ("videos/a.mp4", "outputs/run/a.html", "../../videos/a.mp4"),
        ("../secret/a.mp4", "a.html", "a.mp4"),  # elsewhere: its path is nobody's business
        ("videos/a.mp4", "../a.html", "a.mp4"),
        ("videos/a.wmv", "a.html", None),
    ]
    for video, page, src in rows:
        film = film_beside(VideoClip(str((work / video).resolve()), 1.5, 5.0), (work / page).resolve())
        assert film == (None if src is None else {"src": src, "start": 1.5}), (video, page)


def test_who_asks_a_widget_for_a_video_always_gets_an_answer(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widget = scrub(clip, start=2.0)
    sent: list[Any] = []
    monkeypatch.setattr(widget, "send", lambda message, buffers: sent.append((message, list(map(len, buffers)))))
    for key, root in ((0, str(clip.parent)), (0, ""), (7, ""), ("x", "")):
        widget._answer(None, {"ask": "film", "key": key, "root": root}, [])
    widget._answer(None, "nonsense", [])
    assert sent == [
        ({"film": 0, "path": "a.mp4", "start": 2.0}, []),
        ({"film": 0, "start": 2.0}, [clip.stat().st_size]),
        ({"film": 7, "why": "there is no clip 7 here"}, []),
        ({"film": "x", "why": "there is no clip 'x' here"}, []),
    ]


def test_a_sheet_that_takes_long_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    video = film(tmp_path / "a.mp4", CONSTANT)
    scrub(video)
    assert capsys.readouterr().out == "", "what is made at once says nothing"
    monkeypatch.setattr("labkit.views.explorer.scrubber.QUIET_SECONDS", 0.0)
    scrub(video)
    assert capsys.readouterr().out.startswith("pictures of a.mp4: 16 of 16")
