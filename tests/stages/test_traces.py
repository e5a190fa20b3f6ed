"""Traces from elsewhere: which are learnt from, which are dropped and why, and which files are none."""

from __future__ import annotations

import json

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.stages.traces import import_traces, read_traces

MOMENTS = [Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(10, 20),), 40.0) for n in range(3)]
CHAIN = "<think> <timestamp>5 to 30</timestamp> </think> <answer>10 to 20</answer>"


def write(folder, rows):
    path = folder / "traces.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_what_cannot_be_learnt_is_counted_and_the_rest_kept_as_it_is(tmp_path, capsys):
    rows = [
        {"settings": {"fps": 2}},  # of a predictions file
        {"qid": "q0", "text": f"{CHAIN}<|im_end|>\n", "model": "other"},  # its end is not learnt twice
        {"qid": "q0", "text": CHAIN.replace("> <", ">  <")},  # but for blanks the same
        {"qid": "q0", "text": "<answer>11 to 20</answer>"},  # another one of the same moment, without a thought
        {"qid": "q9", "text": CHAIN},  # asks for a moment that is not there
        "",
        {"qid": "q1", "text": "somewhere in the middle"},  # no answer to be read
        {"qid": "q2", "text": CHAIN},  # another moment may have the same text
    ]
    found = import_traces(write(tmp_path, rows), MOMENTS, "x")
    assert [(row.qid, row.sample, row.text) for row in found.kept] == [
        ("q0", 0, CHAIN), ("q0", 2, "<answer>11 to 20</answer>"), ("q2", 5, CHAIN)
    ]  # fmt: skip
    assert found.filter_counts == [("no such moment", 1), ("unparsed", 1), ("duplicate", 1), ("kept", 3)]
    assert found.figures()["yield"] == 0.5 and found.size == 6
    said = (
        "traces: 3 of 6 in 'traces.jsonl' are learnt from; 1 no such moment (the first: 'q9'), 1 unparsed, 1 duplicate"
    )
    assert capsys.readouterr().out.strip() == said


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds none; write"),
        (["{"], "line 1: '{' is not JSON; write"),
        ([{"qid": "q0", "text": CHAIN}, [1]], "line 2: is no object"),
        ([{"text": CHAIN}], "qid = None names no moment"),
        ([{"qid": "q0", "text": 3}], "text = '3' is no text"),
        (
            [{"qid": "q0", "windows": [[1, 2]]}],
            "text = 'None' is no text",
        ),  # predictions of spans alone teach no chain
    ],
)
def test_a_file_of_no_traces_is_refused_by_line(rows, message, tmp_path):
    with pytest.raises(LabError, match=message):
        read_traces(write(tmp_path, rows))


@pytest.mark.parametrize("content", [b"PAR1" + bytes(20) + b"PAR1", '{"qid": "é"}'.encode("latin-1")])
def test_a_file_that_is_no_text_names_the_parameter_and_what_to_write(content, tmp_path):
    (tmp_path / "traces.jsonl").write_bytes(content)
    with pytest.raises(LabError, match=r"traces: '.*traces.jsonl' is not JSON Lines in UTF-8 .*; write "):
        read_traces(tmp_path / "traces.jsonl")


def test_traces_of_another_split_are_refused(tmp_path):
    with pytest.raises(
        LabError, match="none of the 1 traces .* asks for a training moment \\(there 'test-1', here 'q0'\\)"
    ):
        import_traces(write(tmp_path, [{"qid": "test-1", "text": CHAIN}]), MOMENTS, "x")
