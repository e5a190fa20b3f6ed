"""The rule for each kind of fault, by hand-made rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.chain.spans import Span
from labkit.data.cleaning import RowCleaner, repair_window
from labkit.data.moments import Moment
from labkit.data.rows import Row
from labkit.data.usable_moments import RULES
from labkit.data.video_index import VideoFolder
from labkit.errors import LabError
from tests.data.films import CONSTANT, film


def row(**changed: Any) -> Row:
    values: dict[str, Any] = {
        "line": 1,
        "qid": "q1",
        "video": "a",
        "query": "she sits",
        "windows": [[1, 4]],
        "duration": 12,
    }
    return Row(**(values | changed))


def cleaner(folder: Path, *, strict: bool = False) -> RowCleaner:
    return RowCleaner(folder / "file.json", VideoFolder(folder), strict)


def cleaned(folder: Path, *rows: Row) -> tuple[list[Moment | None], list[tuple[str, str]]]:
    bench = cleaner(folder)
    return [bench.moment(one) for one in rows], [(issue.kind, issue.action) for issue in bench.issues]


@pytest.mark.parametrize(
    ("window", "mended", "kinds", "reason"),
    [
        ((1, 4), (1, 4), (), "nothing is wrong"),
        ((0, 12), (0, 12), (), "the whole clip"),
        ((8, 7), None, ("start after end",), "which end is wrong cannot be known"),
        ((38, 13), None, ("start after end",), "reversed and past the end: reversed counts"),
        ((12, 14), None, ("start past the end",), "begins where the clip ends"),
        ((12, 12), None, ("start past the end",), "a point where the clip ends"),
        ((40, 50), None, ("start past the end",), "outside"),
        ((-5, -1), None, ("before the clip",), "outside on the other side"),
        ((-5, 0), None, ("before the clip",), "ends where the clip begins"),
        ((5, 5), (4.5, 5.5), ("point",), "half a second to each side"),
        ((0, 0), (0, 0.5), ("point",), "at the beginning, inside the clip"),
        ((11.75, 11.75), (11.25, 12), ("point",), "near the end, inside the clip"),
        ((3, 12.001), (3, 12), (), "a millisecond is rounding, and is cut without a word"),
        ((3, 12.0011), (3, 12), ("end past the clip",), "more is a fault"),
        ((3, 8178), (3, 12), ("end past the clip",), "however much"),
        ((-0.0005, 3), (0, 3), (), "rounding at the beginning"),
        ((-0.5, 3), (0, 3), ("negative start",), "cut to 0"),
        ((-2, 15), (0, 12), ("negative start", "end past the clip"), "both ends"),
    ],
)
def test_a_label_is_mended_by_rule(
    window: tuple[float, float], mended: tuple[float, float] | None, kinds: tuple[str, ...], reason: str
) -> None:
    assert repair_window(*window, 12.0) == (None if mended is None else Span(*mended), kinds), reason


seconds = st.floats(-1e6, 1e6)


@given(seconds, seconds, st.floats(1e-3, 1e6))
def test_a_mended_label_lies_in_its_clip_and_mending_it_again_changes_nothing(
    start: float, end: float, duration: float
) -> None:
    span, kinds = repair_window(start, end, duration)
    assert set(kinds) <= set(RULES)
    if span is None:
        assert len(kinds) == 1
    else:
        assert 0 <= span.start < span.end <= duration
        assert repair_window(span.start, span.end, duration) == (span, ())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.builds(
            row, qid=st.sampled_from(["a", "b", "", 3, None]) | anything, query=st.just("x") | anything,
            windows=st.lists(st.lists(seconds, min_size=2, max_size=2), max_size=3) | anything,
            duration=st.floats(0, 100) | anything, clip=st.none() | st.lists(seconds, min_size=2, max_size=2) | anything,
            options=st.none() | st.just(["a", "b"]) | anything, choice=st.none() | st.integers(-1, 3),
            video=st.sampled_from(["a.mp4", "", "b"]), cut=st.sampled_from(["", "c"]),
        ), max_size=6,
    )
)  # fmt: skip
def test_whatever_a_row_holds_it_is_a_moment_or_one_dropped_finding(rows: list[Row]) -> None:
    bench = cleaner(Path("/nowhere"))
    for one in rows:
        before = len(bench.issues)
        moment = bench.moment(one)
        new = bench.issues[before:]
        assert sum(issue.action == "dropped" for issue in new) == (moment is None)
        assert all(issue.note.endswith(RULES[issue.kind]) for issue in new)


def test_of_several_labels_each_is_judged(tmp_path: Path) -> None:
    bench = cleaner(tmp_path)
    moment = bench.moment(row(windows=[[1, 4], [8, 7], [10, 13], "x"]))
    assert moment is not None and moment.windows == (Span(1, 4), Span(10, 12))
    assert [(issue.kind, issue.action, issue.value) for issue in bench.issues] == [
        ("end past the clip", "repaired", "[10, 13] of 12 s"),
        ("start after end", "repaired", "[8, 7] of 12 s"),
        ("malformed row", "repaired", "x of 12 s"),
    ]
    assert bench.issues[1].note == "this label is left out, the others stand; which end is wrong cannot be known"


def test_when_no_label_is_left_the_row_is_dropped_once(tmp_path: Path) -> None:
    moments, found = cleaned(tmp_path, row(windows=[[8, 7], [13, 14]], duration=None, clip=[30, 42]))
    # The duration that was found for it does not count: nothing came of the row.
    assert (moments, found) == ([None], [("start after end", "dropped")])


def test_the_first_row_keeps_an_id_and_a_query_must_say_something(tmp_path: Path) -> None:
    moments, found = cleaned(tmp_path, row(), row(line=2), row(line=3, qid="q2", query=" \n"), row(line=4, qid=3))
    assert [moment and moment.qid for moment in moments] == ["q1", None, None, "3"]
    assert found == [("duplicate id", "dropped"), ("empty query", "dropped")]


def test_a_missing_duration_is_measured(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", CONSTANT)
    (tmp_path / "b.mp4").write_bytes(b"no film")
    durations = [None, 0, -3, float("nan"), float("inf"), "twelve", True]
    rows = [row(line=k, qid=k, duration=duration) for k, duration in enumerate(durations)]
    moments, found = cleaned(tmp_path, *rows, row(video="b", qid="b", duration=0), row(video="c", qid="c", duration=0))
    assert [moment and moment.duration for moment in moments] == [8.0] * 7 + [None, None]
    assert found == [("no duration", "repaired")] * 7 + [("no duration", "dropped")] * 2


def test_a_missing_duration_of_a_cut_file_is_its_trim_windows_until_it_can_be_measured(tmp_path: Path) -> None:
    cut = row(cut="a_30_42", clip=[30, 42], duration=None)
    (moment,), found = cleaned(tmp_path, cut)
    assert (
        moment is not None
        and (moment.duration, moment.clip) == (12.0, None)
        and found == [("no duration", "repaired")]
    )
    film(tmp_path / "a_30_42.mp4", CONSTANT)
    (moment,), found = cleaned(tmp_path, cut)
    assert (
        moment is not None and (moment.duration, moment.clip) == (8.0, None) and found == [("no duration", "repaired")]
    )


@pytest.mark.parametrize(
    ("clip", "duration", "kept", "length", "found", "reason"),
    [
        ([30, 42], 12, (30, 42), 12, [], "they agree"),
        ([30, 42.04], 12, (30, 42.04), 12, [], "they agree to half a frame"),
        ([30, 42], None, (30, 42), 12, [("no duration", "repaired")], "the window says how long it is"),
        ([30, 60], 12, (30, 42), 12, [("clip window", "repaired")], "the video ended inside the window"),
        ([30, 40], 12, (30, 40), 10, [("clip window", "repaired")], "the window is the shorter"),
        ([42, 30], 12, None, 0, [("clip window", "dropped")], "no window"),
        ([30, 30], 12, None, 0, [("clip window", "dropped")], "no window"),
        ([-3, 9], 12, None, 0, [("clip window", "dropped")], "begins before the video"),
        ([30, None], 12, None, 0, [("clip window", "dropped")], "one end is missing"),
        ("30-42", 12, None, 0, [("clip window", "dropped")], "no pair"),
    ],
)
def test_trim_window_and_duration_are_made_to_agree(
    tmp_path: Path, clip: Any, duration: Any, kept: tuple[float, float] | None, length: float, found: Any, reason: str
) -> None:
    (moment,), issues = cleaned(tmp_path, row(clip=clip, duration=duration))
    assert issues == found, reason
    if kept is None:
        assert moment is None
    else:
        assert moment is not None and moment.clip is not None
        assert (moment.clip, moment.duration) == (Span(*kept), length), reason
        assert moment.start == 30


def test_labels_are_judged_by_the_clip_as_it_was_mended(tmp_path: Path) -> None:
    (moment,), found = cleaned(tmp_path, row(clip=[30, 40], duration=12, windows=[[8, 11]]))
    assert moment is not None and moment.windows == (Span(8, 10),)
    assert found == [("clip window", "repaired"), ("end past the clip", "repaired")]


@pytest.mark.parametrize(
    ("clip", "kept", "reason"),
    [
        ([30, 38], None, "8 s long as the window, and over before it: the file is the clip"),
        ([1, 8], (1, 8), "the window lies inside the file"),
        ([4, 12], None, "the file ends inside the window but is as long as it"),
        ([0, 8], (0, 8), "from second 0 on both readings show the same"),
        ([30, 50], (30, 50), "not as long as the window: not to be decided here"),
    ],
)
def test_a_file_that_holds_the_clip_alone_is_not_cut_twice(tmp_path: Path, clip: Any, kept: Any, reason: str) -> None:
    film(tmp_path / "a.mp4", CONSTANT)
    (moment,), found = cleaned(tmp_path, row(clip=clip, duration=clip[1] - clip[0]))
    assert moment is not None and moment.clip == (None if kept is None else Span(*kept)), reason
    assert found == ([("already cut", "noted")] if kept is None else [])


@pytest.mark.parametrize(
    ("clip", "label", "kept", "reason"),
    [
        (
            [2.5, 10.5],
            [1, 4],
            (2.5, 10.5),
            "most of the window and the label lie in the whole video: it overshoots the end",
        ),
        ([2.5, 10.5], [4, 8], (2.5, 10.5), "a label's end may overshoot with its window"),
        ([2.5, 10.5], [6.6, 7], None, "in the whole video the label would lie behind its end: it is the clip"),
        ([4, 12], [1, 4], None, "half of the window behind the end is no overshooting"),
    ],
)
def test_a_whole_video_whose_window_overshoots_its_end_is_not_taken_for_the_clip(
    tmp_path: Path, clip: list[float], label: list[float], kept: Any, reason: str
) -> None:
    film(tmp_path / "a.mp4", CONSTANT)
    (moment,), found = cleaned(tmp_path, row(clip=clip, duration=8, windows=[label]))
    assert moment is not None and moment.clip == (None if kept is None else Span(*kept)), reason
    assert found == ([("already cut", "noted")] if kept is None else [("window past the video", "noted")])


def test_who_has_cut_some_videos_has_cut_them_all(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        film(tmp_path / name, CONSTANT)
    either = row(clip=[2.5, 10.5], duration=8)
    rows = [either, row(qid="q2", video="b", clip=[30, 38], duration=8)]
    whole = [row(qid="q3", video="c", clip=[1, 5], duration=4), row(qid="q4", video="c", clip=[2, 6], duration=4)]
    for all_rows, clip in ((rows, None), (rows + whole, Span(2.5, 10.5))):
        moment = RowCleaner(tmp_path / "file", VideoFolder(tmp_path), False, all_rows).moment(either)
        assert moment is not None and moment.clip == clip


def test_a_clip_alone_may_be_named_by_its_window(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "a_2.5_10.5.mp4").touch()
    (moment,), found = cleaned(tmp_path, row(clip=[2.5, 10.5], duration=8))
    assert moment is not None and (Path(moment.video).name, moment.clip) == ("a_2.5_10.5.mp4", None) and found == []


def test_half_a_character_is_told_without_being_printed(tmp_path: Path) -> None:
    bench = cleaner(tmp_path)
    assert [
        bench.moment(row(qid="\ud83d")),
        bench.moment(row(query="\ud83d")),
        bench.moment(row(qid="q2", source="\ud83d")),
    ] == [None] * 3
    assert all("half a character" in str(issue) and str(issue).encode() for issue in bench.issues)


def test_a_video_that_cannot_be_opened_is_left_to_the_doctor(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no film")
    (moment,), found = cleaned(tmp_path, row(clip=[30, 42]))
    assert moment is not None and (moment.clip, found) == (Span(30, 42), [])


@pytest.mark.parametrize(
    ("options", "choice", "kept"),
    [
        (None, None, True),
        (["a", "b"], 1, True),
        (["a", "b"], 2, False),
        (["a", "b"], -1, False),
        (["a", "b"], None, False),
        (["a", "a"], 0, False),
        (["a"], 0, False),
        (["a", " "], 0, False),
        (["a", 5], 0, False),
        ([], 0, False),
        ("ab", 0, False),
        (list("abcdefghi"), 0, False),
    ],
)
def test_a_question_must_have_one_right_answer_among_its_options(
    tmp_path: Path, options: Any, choice: Any, kept: bool
) -> None:
    (moment,), found = cleaned(tmp_path, row(options=options, choice=choice))
    assert (moment is not None, found) == (kept, [] if kept else [("options", "dropped")])


def test_strict_names_file_line_value_and_what_to_do(tmp_path: Path) -> None:
    bench = cleaner(tmp_path, strict=True)
    assert bench.moment(row()) is not None
    with pytest.raises(LabError) as caught:
        bench.moment(row(line="row 5", qid="q2", windows=[[8, 7]]))
    assert str(caught.value) == (
        f"{tmp_path}/file.json, row 5: q2: start after end ([8, 7] of 12 s), dropped: which end is wrong cannot be known; "
        "correct the row, or read the file without strict"
    )


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    bench = cleaner(tmp_path)
    assert bench.moment(row(windows=[[8, 7]] * 10_000)) is None
    assert len(bench.issues[0].value) < 200 and json.dumps(bench.issues[0].value)
