from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment, read_moments, require_videos, write_moments
from labkit.errors import LabError

GOOD: dict[str, Any] = {
    "qid": "q1",
    "video": "clips/a.mp4",
    "query": "she opens the door",
    "windows": [[1.0, 4.5]],
    "duration": 12.0,
}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != field}


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def moment(**changed: Any) -> Moment:
    values = {"qid": "q1", "video": "/v/a.mp4", "query": "q", "windows": (Span(1.0, 4.0),), "duration": 12.0}
    return Moment(**(values | changed))


def test_a_file_is_read_as_it_says(tmp_path: Path) -> None:
    full = GOOD | {"qid": "q2", "windows": [[0, 3], [5, 12]], "clip": [30, 42], "source": "ours", "duration": 12}
    path = write(tmp_path / "moments.jsonl", GOOD, full)
    video = str(tmp_path / "clips" / "a.mp4")
    assert read_moments(path) == [
        Moment("q1", video, "she opens the door", (Span(1.0, 4.5),), 12.0),
        Moment("q2", video, "she opens the door", (Span(0.0, 3.0), Span(5.0, 12.0)), 12.0, Span(30.0, 42.0), "ours"),
    ]
    assert [row.start for row in read_moments(str(path))] == [0.0, 30.0]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "a byte order mark, and no newline at the end"),
        (json.dumps(GOOD).encode() + b"\r\n\r\n", "written on Windows"),
        (b"\n  \n" + json.dumps(GOOD).encode() + b"\n\n", "lines without text"),
        (b"\r\r".join([json.dumps(GOOD).encode(), b""]), "lines of an old Mac"),
        (json.dumps(GOOD | {"clip": None, "source": ""}).encode(), "what may be left out is there"),
        (json.dumps(GOOD | {"windows": [[1, 12.0004]]}).encode(), "a label rounded up by less than a millisecond"),
        (json.dumps(GOOD | {"clip": [3.0, 15.04]}).encode(), "a trim window cut at a frame's border"),
    ],
)
def test_harmless_differences_are_accepted(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "moments.jsonl"
    path.write_bytes(data)
    assert [row.qid for row in read_moments(path)] == ["q1"], reason


# Each row: the bad line, field, value as quoted, what is wrong, next step, and why it must not pass.
BAD = [
    (b"{", "line", "'{'", "is not JSON", "write one object a line", "broken off"),
    (b"[1, 2]", "line", "[1, 2]", "is not a JSON object", "write one object a line", "a list"),
    (b'"text"', "line", "'text'", "is not a JSON object", "write one object a line", "a bare string"),
    (b"[" * 100_000, "line", "'[[", "is not JSON", "write one object a line", "nested beyond reading"),
    (b'{"qid": "\xff"}', "line", "b'", "is not UTF-8", "save the file as UTF-8", "another encoding"),
    (b'{"qid": "a", "qid": "b"}', "qid", "'b'", "is given twice", "keep one", "JSON would take the last in silence"),
    (without("qid"), "qid", "None", "is missing", "add it", "nothing to call it"),
    (without("video"), "video", "None", "is missing", "add it", "nothing to look at"),
    (without("query"), "query", "None", "is missing", "add it", "nothing to find"),
    (without("windows"), "windows", "None", "is missing", "add it", "no truth"),
    (without("duration"), "duration", "None", "is missing", "add it", "no length to spread frames over"),
    (GOOD | {"clips": [0, 12]}, "clips", "[0, 12]", "is not a field", "did you mean 'clip'?", "a trim window lost"),
    (GOOD | {"zzz": 1}, "zzz", "1", "is not a field", "the fields are qid, video", "unknown without a neighbour"),
    (GOOD | {"qid": 7}, "qid", "7", "is not text", 'write it as "qid": "..."', "7 and '7' would be two names"),
    (GOOD | {"qid": " "}, "qid", "' '", "is empty", "fill it in", "a name nobody can read"),
    (GOOD | {"video": ""}, "video", "''", "is empty", "fill it in", "would be the folder itself"),
    (GOOD | {"video": None}, "video", "None", "is not text", 'write it as "video": "..."', "null"),
    (
        GOOD | {"video": "a\0.mp4"},
        "video",
        "'/",
        "is no absolute path",
        "resolve it",
        "no file system has such a name",
    ),
    (GOOD | {"query": " \t"}, "query", "' \\t'", "is empty", "fill it in", "only blanks"),
    (GOOD | {"query": ["a"]}, "query", "['a']", "is not text", 'write it as "query": "..."', "a list"),
    (
        GOOD | {"query": "a \ud83d"},
        "query",
        "'a \\ud83d'",
        "holds half a character",
        "write the character",
        "unprintable",
    ),
    (GOOD | {"qid": "\udc80"}, "qid", "'\\udc80'", "holds half a character", "write the character", "likewise"),
    (GOOD | {"source": "\ud83d"}, "source", "'\\ud83d'", "holds half a character", "write the character", "likewise"),
    (
        GOOD | {"options": ["a", "\ud83d"], "choice": 0},
        "options",
        "'\\ud83d'",
        "holds half a character",
        "write",
        "likewise",
    ),
    (GOOD | {"\ud83d": 1}, "\\ud83d", "1", "is not a field", "the fields are", "a name that cannot be printed"),
    (
        GOOD | {"video": "s3://b/a.mp4"},
        "video",
        "'s3://b/a.mp4'",
        "is a link, or a path of an",
        "--videos DIR",
        "a link",
    ),
    (GOOD | {"video": r"C:\v\a.mp4"}, "video", "'C:", "or a path of another system", "--videos DIR", "Windows' own"),
    (
        {"qid": "a", "text": "2 to 8"},
        "line",
        "{'qid': 'a'",
        "is a prediction, not a moment",
        "`labkit score",
        "a prediction",
    ),
    (
        {"qid": 1, "query": "x", "vid": "v", "pred_relevant_windows": []},
        "line",
        "{",
        "is a prediction",
        "`labkit score",
        "QVHighlights' submission",
    ),
    (GOOD | {"source": 3}, "source", "3", "is not text", "write it as text", "a number"),
    (GOOD | {"windows": []}, "windows", "[]", "holds no window", "write at least one", "an event that never happens"),
    (GOOD | {"windows": [1, 4]}, "windows", "[1, 4]", "is not a list of windows", "write [[start, end]", "no nesting"),
    (GOOD | {"windows": "1-4"}, "windows", "'1-4'", "is not a list of windows", "write [[start, end]", "text"),
    (GOOD | {"windows": [[1, 2, 3]]}, "windows", "[1, 2, 3]", "is not a pair", "write [start, end]", "three numbers"),
    (GOOD | {"windows": [[1, 2], 5]}, "windows", "5", "is not a pair", "write [start, end]", "the second one"),
    (GOOD | {"windows": [["1", 2]]}, "windows", "['1', 2]", "is not a number", "write plain", "a number as text"),
    (GOOD | {"windows": [[True, 2]]}, "windows", "[True, 2]", "is not a number", "write plain", "true is no second"),
    (GOOD | {"windows": [[4, 4]]}, "windows", "[4, 4]", "does not end after its start", "start below end", "empty"),
    (
        GOOD | {"windows": [[5, 4]]},
        "windows",
        "[5, 4]",
        "does not end after its start",
        "start below end",
        "backwards",
    ),
    (GOOD | {"windows": [[-1, 4]]}, "windows", "[-1.0, 4.0]", "starts before the clip", "count seconds", "negative"),
    (GOOD | {"windows": [[1, 13]]}, "windows", "[1.0, 13.0]", "ends past the clip (12.0 s)", "cut the", "too long"),
    (GOOD | {"duration": 0}, "duration", "0.0", "is not a length", "above 0", "no time at all"),
    (GOOD | {"duration": -3}, "duration", "-3.0", "is not a length", "above 0", "negative"),
    (GOOD | {"duration": "12"}, "duration", "'12'", "is not a number", "write plain", "text"),
    (GOOD | {"duration": None}, "duration", "None", "is not a number", "write plain", "null"),
    (GOOD | {"duration": float("nan")}, "duration", "nan", "is not a number", "write plain", "Python's own NaN"),
    (GOOD | {"duration": float("inf")}, "duration", "inf", "is not a number", "write plain", "endless"),
    (GOOD | {"duration": 10**400}, "duration", "1000", "is not a number", "write plain", "more than a float holds"),
    (GOOD | {"clip": [3]}, "clip", "[3]", "is not a pair", "write [start, end]", "one number"),
    (GOOD | {"clip": [15, 3]}, "clip", "[15, 3]", "does not end after", "start below end", "backwards"),
    (GOOD | {"clip": [-1, 11]}, "clip", "[-1.0, 11.0]", "starts before the video", "count seconds", "negative"),
    (GOOD | {"as_set": "yes"}, "as_set", "'yes'", "is neither true nor false", "write one", "a word"),
    (GOOD | {"as_set": 1}, "as_set", "1", "is neither true nor false", "write one", "a number"),
    (GOOD | {"clip": [0, 9]}, "clip", "[0.0, 9.0]", "is 9 s long but duration is 12 s", "own length", "contradiction"),
]


@pytest.mark.parametrize(("line", "field", "value", "wrong", "step", "reason"), BAD, ids=[row[-1] for row in BAD])
def test_a_bad_line_is_named_with_field_value_and_next_step(
    tmp_path: Path, line: Any, field: str, value: str, wrong: str, step: str, reason: str
) -> None:
    path = write(tmp_path / "moments.jsonl", GOOD | {"qid": "fine"}, line, GOOD | {"qid": "also fine"})
    with pytest.raises(LabError) as caught:
        read_moments(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 2: {field} = {value}"), reason
    assert wrong in message and step in message.split(wrong)[1], reason
    assert len(message) < len(str(path)) + 350 and "\n" not in message, "one line that a terminal can hold"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[" + json.dumps(GOOD).encode() + b"]", "is not a JSON object"),
        (b"AAAAA 1 2##she sits\n", "is not JSON"),
        (b'{"qid": "q", "query": "x", "vid": "v", "relevant_windows": [[1, 2]], "duration": 9}', "is not a field"),
        (gzip.compress(json.dumps(GOOD).encode()), "is gzip, no UTF-8 text"),
        (json.dumps(GOOD).encode("utf-16"), "is UTF-16, no UTF-8 text"),
    ],
    # Gzip writes the time of day.
    ids=["a list", "Charades-STA", "QVHighlights", "gzip", "UTF-16"],
)
def test_another_annotation_file_comes_with_the_command_that_makes_moments_of_it(
    tmp_path: Path, data: bytes, words: str
) -> None:
    path = tmp_path / "moments.jsonl"
    path.write_bytes(data)
    with pytest.raises(
        LabError, match=f"line 1: .*{words}.*`labkit moments FILE --write NEW.jsonl` makes moments of it"
    ):
        read_moments(path)


def test_a_repeated_qid_names_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "moments.jsonl", GOOD, GOOD | {"qid": "q2"}, b"", GOOD)
    with pytest.raises(LabError, match="line 4: qid = 'q1' was used before, on line 1; give every question a name"):
        read_moments(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "is not there; correct its path"),
        (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
        (lambda path: path.touch(), "holds no moment; write one JSON object a line with qid, video"),
        (lambda path: path.write_text("\n \n"), "holds no moment; write one JSON object"),
    ],
    ids=["missing", "a folder", "empty", "only blank lines"],
)
def test_a_file_without_moments_is_named(tmp_path: Path, make: Any, words: str) -> None:
    path = tmp_path / "moments.jsonl"
    make(path)
    with pytest.raises(LabError) as caught:
        read_moments(path)
    assert f"moments file {path} {words}" in str(caught.value)


seconds = st.floats(0, 5000, allow_nan=False)


@st.composite
def moments(draw: st.DrawFn) -> list[Moment]:
    made = []
    for qid in draw(
        st.lists(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip), min_size=1, unique=True)
    ):
        duration = draw(st.floats(0.5, 5000))
        bounds = draw(st.lists(st.floats(0, duration), min_size=2, max_size=2, unique=True).map(sorted))
        begin = draw(st.none() | seconds)
        made.append(
            Moment(
                qid=qid,
                video=draw(st.sampled_from(["/elsewhere/b.mp4", "/HERE/a.mp4", "/HERE/deep/ü c.mp4"])),
                query=draw(st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)),
                windows=(Span(*bounds),),
                duration=duration,
                clip=None if begin is None else Span(begin, begin + duration),
                source=draw(st.text(st.characters(codec="utf-8"))),
            )
        )
    return made


@settings(deadline=None)
@given(rows=moments())
@pytest.mark.slow
def test_what_is_written_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, rows: list[Moment]) -> None:
    folder = tmp_path_factory.mktemp("moments")
    rows = [dataclasses.replace(row, video=row.video.replace("/HERE", str(folder))) for row in rows]
    write_moments(rows, folder / "moments.jsonl")
    assert read_moments(folder / "moments.jsonl") == rows


def test_a_folder_with_its_videos_can_be_moved(tmp_path: Path) -> None:
    here = tmp_path / "here"
    inside, outside = str(here / "clips" / "a.mp4"), str(tmp_path / "here too" / "b.mp4")
    write_moments([moment(video=inside), moment(qid="q2", video=outside)], here / "moments.jsonl")
    assert str(tmp_path / "here" / "clips") not in (here / "moments.jsonl").read_text()
    here.rename(tmp_path / "there")
    read = read_moments(tmp_path / "there" / "moments.jsonl")
    assert [row.video for row in read] == [str(tmp_path / "there" / "clips" / "a.mp4"), outside]


@pytest.mark.parametrize(
    ("written", "meant", "reason"),
    [
        ("clips\\a.mp4", "HERE/clips/a.mp4", "written on Windows"),
        ("clips/caf\u00e9.mp4", "HERE/clips/cafe\u0301.mp4", "a Mac takes letters with accents apart"),
        ("file:///v/a%20b.mp4", "/v/a b.mp4", "as a browser shows it"),
        ("~/v/a.mp4", "HOME/v/a.mp4", "home"),
        ("$HOME/v/a.mp4", "HOME/v/a.mp4", "a variable"),
        ("back\\slash.mp4", "HERE/back\\slash.mp4", "a file that is called so"),
    ],
)
def test_a_video_is_found_where_another_system_wrote_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: str, meant: str, reason: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "clips").mkdir()
    for name in ("clips/a.mp4", "clips/cafe\u0301.mp4", "back\\slash.mp4"):
        (tmp_path / name).touch()
    path = write(tmp_path / "moments.jsonl", GOOD | {"video": written})
    right = meant.replace("HERE", str(tmp_path)).replace("HOME", str(tmp_path / "home"))
    assert read_moments(path)[0].video == load_moments(path)[0].video == right, reason


def test_a_relative_path_of_the_file_gives_absolute_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "moments.jsonl", GOOD | {"video": "../v/a.mp4"})
    monkeypatch.chdir(tmp_path)
    assert read_moments("moments.jsonl")[0].video == str(tmp_path.parent / "v" / "a.mp4")
    write_moments([moment(video=str(tmp_path / "a.mp4"))], "again.jsonl")
    assert '"video": "a.mp4"' in Path("again.jsonl").read_text()


@pytest.mark.parametrize(("rows", "words"), [([], "no moment"), ([moment(), moment()], "'q1' is given twice")])
def test_a_file_that_could_not_be_read_back_is_not_written(tmp_path: Path, rows: list[Moment], words: str) -> None:
    path = write(tmp_path / "moments.jsonl", GOOD)
    with pytest.raises(ValueError, match=words):
        write_moments(rows, path)
    assert [row.query for row in read_moments(path)] == ["she opens the door"]
    assert os.listdir(tmp_path) == ["moments.jsonl"]


def test_a_moment_made_in_code_is_checked_too() -> None:
    with pytest.raises(ValueError, match=r"windows = \[1.0, 4.0\] ends past the clip \(3.0 s\)"):
        moment(duration=3.0)
    with pytest.raises(ValueError, match="video = 'a.mp4' is no absolute path"):
        moment(video="a.mp4")


@pytest.mark.parametrize(
    ("video", "source", "reason"),
    [
        ("/v/abc_60.0_210.0.mp4", "/v/abc", "QVHighlights' name of a clip"),
        ("/v/abc_00:00:39:000_00:01:24:700.mp4", "/v/abc", "TimeRFT's"),
        ("/v/abc.mp4", "/v/abc", "a whole video"),
        ("/v/take_1_2.mp4", "/v/take_1_2", "numbers that are no seconds"),
        ("/v/abc_9.0_2.0.mp4", "/v/abc_9.0_2.0", "no window: it ends before it begins"),
        ("/w/abc.mp4", "/w/abc", "another folder's video of the same name is another video"),
    ],
)
def test_a_moment_knows_its_untrimmed_video(video: str, source: str, reason: str) -> None:
    assert moment(video=video).source_video == source, reason


def test_missing_and_empty_videos_are_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "good.mp4").write_bytes(b"x")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    good = [moment(qid=f"g{k}", video=str(tmp_path / "good.mp4")) for k in range(3)]
    require_videos(good)
    for name, reason in (("gone", "is not there"), ("empty", "is empty"), ("folder", "is not a file")):
        with pytest.raises(LabError) as caught:
            require_videos([*good, moment(qid="bad", video=str(tmp_path / f"{name}.mp4"))])
        assert str(caught.value).startswith(
            f"video {tmp_path}/{name}.mp4 of question 'bad' {reason}; put the file there"
        )


@pytest.mark.parametrize(
    ("source", "command"),
    [
        ("charades-sta", "wget https://.*Charades_v1_480.zip"),
        ("tvgbench/anet", "hf download Boshenxx/TimeR1-Dataset"),  # a part of a benchmark
        ("qvhighlights", "qvhilights_videos.tar.gz"),
        (
            "timelens-bench/charades-sta",
            "hf download TencentARC/TimeLens-Bench",
        ),  # which ships the videos with its labels
        ("mine", "moments file$"),  # nobody knows where to
    ],
)
def test_missing_videos_of_a_benchmark_come_with_the_command_that_fetches_them(
    tmp_path: Path, source: str, command: str
) -> None:
    with pytest.raises(LabError, match=command):
        require_videos([moment(video=str(tmp_path / "gone.mp4"), source=source)])


def test_the_first_of_several_bad_videos_is_named_and_the_others_counted(tmp_path: Path) -> None:
    rows = [moment(qid=f"q{k}", video=str(tmp_path / f"{k // 2}.mp4")) for k in range(6)]
    with pytest.raises(
        LabError, match=r"0\.mp4 of question 'q0' is not there \(and 2 other videos are missing or empty\)"
    ):
        require_videos(rows)


def test_windows_that_are_asked_for_together_are_measured_as_one_set(tmp_path: Path) -> None:
    windows = (Span(1.0, 4.0), Span(6.0, 9.0))
    apart, together = moment(windows=windows), moment(qid="q2", windows=windows, as_set=True)
    assert apart.targets == windows and [target.parts for target in together.targets] == [windows]
    assert moment(as_set=True).targets == moment().targets == (Span(1.0, 4.0),)
    write_moments([apart, together], tmp_path / "moments.jsonl")
    assert [row.targets for row in read_moments(tmp_path / "moments.jsonl")] == [apart.targets, together.targets]
    assert ["as_set" in line for line in (tmp_path / "moments.jsonl").read_text().splitlines()] == [False, True]
