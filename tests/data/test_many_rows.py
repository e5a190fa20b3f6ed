"""Files of many rows: read line by line, each object parsed once, and held as columns. All else is as for small files."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data import annotations as forms
from labkit.data import rows
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment
from labkit.errors import LabError

OURS = [
    {"qid": f"q{k}", "video": f"v{k // 10}.mp4", "query": f"it blinks {k}", "windows": [[1.0, 4.0]], "duration": 9.0}
    for k in range(3000)
]
LABELS = ["video,start,end,sentence,duration", *(f"AB{k:03d}.mp4,1,4,it blinks,9" for k in range(50))]


def lines(path: Path, objects: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in objects))
    return path


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Counter[str]:
    calls: Counter[str] = Counter()
    real: Callable[..., Any] = getattr(module, name)

    def call(*given: Any) -> Any:
        calls[name] += 1
        return real(*given)

    monkeypatch.setattr(module, name, call)
    return calls


def test_an_object_is_parsed_once_and_a_video_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = lines(tmp_path / "m.jsonl", OURS)
    parsed = counted(monkeypatch, forms, "read_object")
    looked = counted(monkeypatch, rows, "local_path")
    moments = load_moments(file)
    assert len(moments) == moments.rows == 3000
    assert parsed["read_object"] <= 3000 + forms.HEAD + 1  # of which the first tells that there are lines
    assert looked["local_path"] == 300


def test_a_row_takes_few_bytes_while_it_is_read_and_afterwards(tmp_path: Path) -> None:
    file = lines(tmp_path / "m.jsonl", OURS)
    load_moments(file)
    tracemalloc.start()
    moments = load_moments(file)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Before, 1,450 bytes were held and 2,070 the most; some are for the 500 rows that are at hand together.
    assert len(moments) == 3000 and held < 3000 * 300 and peak < 3000 * 300 + 1_000_000


@pytest.mark.parametrize(
    ("change", "kinds", "reason"),
    [
        ({}, [], "nothing to settle"),
        ({"qid": "q0"}, ["duplicate id"], "seen before"),
        ({"qid": " "}, ["malformed row"], "no name"),
        ({"video": ""}, ["malformed row"], "no video"),
        ({"video": "a\0.mp4"}, ["malformed row"], "no path"),
        ({"video": "s3://a/b.mp4"}, ["foreign path"], "looked for by its name"),
        ({"query": " "}, ["empty query"], "nothing to find"),
        ({"query": "\ud83d"}, ["malformed row"], "half a character"),
        ({"windows": [[1, 10]]}, ["end past the clip"], "cut"),
        ({"windows": [[1, 2], [3, 3]]}, ["point"], "the second of two"),
        ({"windows": [[1, True]]}, ["malformed row"], "no number"),
        ({"duration": 1e9}, ["no duration"], "no length of a video"),
        ({"clip": [3, 14]}, ["clip window"], "does not fit the duration"),
        ({"options": ["a", "b"]}, ["options"], "which one is right?"),
        ({"weight": 1}, ["unknown field"], "not used"),
        ({"source": None}, [], "may be null"),
    ],
)
def test_a_row_that_is_nearly_plain_is_cleaned_like_any_other(
    tmp_path: Path, change: dict[str, Any], kinds: list[str], reason: str
) -> None:
    moments = load_moments(lines(tmp_path / "m.jsonl", [OURS[0], OURS[1] | change]))
    assert (list(moments.counts()), moments.rows) == (kinds, 2), reason


def test_moments_are_as_the_file_has_them_however_they_are_asked_for(tmp_path: Path) -> None:
    several = OURS[1] | {"windows": [[1, 4], [6.5, 9.0]], "options": ["a", "b"], "choice": 1, "source": "mine"}
    moments = load_moments(lines(tmp_path / "m.jsonl", [OURS[0], several, OURS[2] | {"clip": [10.0, 19.0]}]))
    video = str(tmp_path / "v0.mp4")
    whole = [
        Moment("q0", video, "it blinks 0", (Span(1.0, 4.0),), 9.0),
        Moment("q1", video, "it blinks 1", (Span(1, 4), Span(6.5, 9.0)), 9.0, None, "mine", ("a", "b"), 1),
        Moment("q2", video, "it blinks 2", (Span(1.0, 4.0),), 9.0, Span(10.0, 19.0)),
    ]
    assert list(moments) == whole and moments[1:] == whole[1:] and moments[-1] == whole[2] and moments[1] in moments
    with pytest.raises(IndexError):
        moments[3]


@pytest.mark.parametrize(
    ("later", "title", "reason"),
    [
        ({"vid": "a_1.0_9.0", "qid": 8, "query": "it", "relevant_windows": [[1, 2]]}, "m", "an earlier form"),
        ({"video": "b.mp4", "caption": "it", "timestamp": [1, 2]}, "m", "rows without a source take the file's name"),
        ({"video": "b.mp4", "start": 1, "end": 2, "query": "it"}, "moments", "a later form does not count"),
    ],
)  # fmt: skip
def test_a_form_that_only_a_later_object_shows_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: dict[str, Any], title: str, reason: str
) -> None:
    file = lines(tmp_path / "m.jsonl", [OURS[0], OURS[1], later | {"duration": 9.0}])
    told = str(load_moments(file))
    monkeypatch.setattr(forms, "HEAD", 1)
    assert str(load_moments(file)) == told and told.startswith(title), reason
    with pytest.raises(LabError) as strict:
        load_moments(file, strict=True)
    monkeypatch.undo()
    with pytest.raises(LabError) as before:
        load_moments(file, strict=True)
    assert str(strict.value) == str(before.value)


def test_what_all_videos_tell_about_a_source_is_heeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("\n".join(LABELS))
    monkeypatch.setattr(forms, "HEAD", 1)
    # One id of five characters may be Charades'; fifty that begin alike are somebody's own.
    assert {moment.source for moment in load_moments(file)} == {"mine"}
    file.write_text("\n".join([*LABELS, "ZZ9ZZ.mp4,1,4,it blinks,9"]))
    assert {moment.source for moment in load_moments(file)} == {"charades-sta"}


def test_a_table_that_breaks_off_late_is_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m.csv"
    file.write_text("qid,video,query,windows\n" + "q,a.mp4,it,1\n" * 3 + f'"{"x" * 200_000}"\n')
    monkeypatch.setattr(forms, "HEAD", 1)
    with pytest.raises(LabError, match="is no annotation file that labkit knows"):
        load_moments(file)


@pytest.mark.parametrize(
    ("line", "found", "reason"),
    [
        ('{"qid": 123456789012345678901234567890}', {"qid": 123456789012345678901234567890}, "a long id keeps its digits"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice", "the last must not win"),
        ('{"a": {"b": 1, "b": 2}}', "key 'b' is given twice", "also inside"),
        ('{"a": "b: c"}', {"a": "b: c"}, "a colon in a text is no name"),
        ('{"a": NaN}', "{'a': nan}", "Python's own way to write it"),
        ('{"a": "\\ud83d"}', {"a": "\ud83d"}, "half a character is told by its row"),
        ("{", "'{' is not JSON", "said as ever"),
        ("[1, 2]", [1, 2], "whatever it is"),
    ],
)  # fmt: skip
def test_a_line_is_read_alike_however_quickly(line: str, found: object, reason: str) -> None:
    read = rows.read_object(line)
    assert (str(read) if isinstance(found, str) else read) == found, reason


def test_line_ends_may_change_anywhere_in_a_file(tmp_path: Path) -> None:
    long = "x" * (1 << 20)  # more than is looked at before the first row
    (tmp_path / "rows.csv").write_text(f"a,b\n{long},1\nlast,2\r\n", newline="")
    assert list(rows.text_lines(tmp_path / "rows.csv")[0]) == ["a,b\n", f"{long},1\n", "last,2\n"]
