"""Predictions files: what is read, what is refused, and what comes back as it was written."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.predictions import PredictedRow, Predictions, as_predictions, read_predictions, write_predictions
from labkit.stages.rollouts import UNPAID, Rollout


def written(folder: Path, *rows: object) -> Path:
    path = folder / "predictions.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def test_texts_with_settings_in_the_first_line(tmp_path):
    path = written(
        tmp_path,
        {"settings": {"fps": 2, "model": "m"}},
        {"qid": "q1", "text": "<answer>1 to 2</answer>", "reward": 0.5},
        "",
        {"qid": 7, "text": "", "finished": False},
    )
    got = read_predictions(path)
    assert got.settings == {"fps": 2, "model": "m"}
    assert got.rows == {"q1": PredictedRow("<answer>1 to 2</answer>"), "7": PredictedRow("", finished=False)}
    assert (got.ranked, got.duplicates, got.file) == (False, (), str(path))


def test_windows_under_both_names_with_and_without_scores(tmp_path):
    got = read_predictions(
        written(
            tmp_path,
            {"qid": "a", "windows": [[1, 2.5], [0, 9]]},
            {"qid": "b", "pred_relevant_windows": [[1, 2, 0.9], [3, 4, 0.1]], "pred_saliency_scores": [0.1]},
            {"qid": "c", "windows": []},
        )
    )
    assert got.ranked
    assert got.rows["a"] == PredictedRow(windows=((1.0, 2.5), (0.0, 9.0)))
    assert got.rows["b"] == PredictedRow(windows=((1.0, 2.0), (3.0, 4.0)), scores=(0.9, 0.1))
    assert got.rows["c"] == PredictedRow(windows=())


def test_of_several_rows_on_a_question_the_first_counts(tmp_path):
    got = read_predictions(written(tmp_path, *({"qid": 1, "text": text} for text in "abc"), {"qid": "2", "text": "d"}))
    assert (got.rows["1"].text, got.duplicates) == ("a", ("1", "1"))


def test_an_empty_file_holds_no_answer(tmp_path):
    got = read_predictions(written(tmp_path))
    assert (dict(got.rows), got.ranked) == ({}, False)


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"qid": "q", "text": "t"}\r\n')
    assert read_predictions(path).rows == {"q": PredictedRow("t")}


def test_a_line_separator_inside_a_text_is_no_end_of_a_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"qid": "q", "text": "one\u2028two\x85"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_predictions(path).rows["q"].text == "one\u2028two\x85"


OK = {"qid": "q0", "text": "t"}


@pytest.mark.parametrize(
    ("end", "why"),
    [
        (b'{"qid": "q1", "text": "<answer>1 to', "in the middle of a text"),
        (b'{"qid": "q1", "text": "t"', "one character short"),
        (b"{", "at its first character"),
        ('{"qid": "q1", "text": "\u00e4'.encode()[:-1], "in the middle of a character"),
        (b"\x00" * 512, "a block that was never written"),
    ],
)
def test_a_last_line_that_broke_off_is_left_out_and_known(tmp_path, end, why):
    path = tmp_path / "p.jsonl"
    path.write_bytes(json.dumps(OK).encode() + b"\n" + end)
    got = read_predictions(path)
    assert (list(got.rows), got.cut_line) == (["q0"], 2), why


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([b'{"qid": "q1", "te', json.dumps(OK).encode()], 1),
        ([json.dumps(OK).encode(), b'{"qid": "q1", "te', json.dumps(OK).encode()], 2),
        ([json.dumps(OK).encode(), b'{"qid": "q1", "te', b""], 2),  # a line that ends is no line that broke off
        ([b'{"qid": "q1", "te'], 1),  # no row before it: this may be no predictions file at all
        ([json.dumps(OK).encode(), b'{"qid": "q1"}'], 2),  # whole, and wrong
    ],
)
def test_damage_elsewhere_names_its_line(tmp_path, lines, number):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(LabError, match=rf"p\.jsonl, line {number}: "):
        read_predictions(path)


@pytest.mark.parametrize("form", ["lines", "CR", "list", "indented list", "gzip"])
def test_the_same_rows_in_other_wrappings(tmp_path, form):
    rows = [{"settings": {"fps": 2}}, OK, {"qid": "q1", "output_text": "u"}]
    lines = "\n".join(map(json.dumps, rows))
    data = {
        "lines": lines, "CR": lines.replace("\n", "\r"), "list": json.dumps(rows), "indented list": json.dumps(rows, indent=1),
        "gzip": lines,
    }[form].encode()  # fmt: skip
    path = tmp_path / "p.jsonl"
    path.write_bytes(gzip.compress(data) if form == "gzip" else data)
    got = read_predictions(path)
    assert got.rows == {"q0": PredictedRow("t"), "q1": PredictedRow("u")} and got.settings == {"fps": 2}
    assert as_predictions(rows).rows == got.rows


def test_damaged_gzip_and_other_encodings_are_named(tmp_path):
    (tmp_path / "z").write_bytes(gzip.compress(json.dumps(OK).encode() * 50)[:-20])
    with pytest.raises(LabError, match="its gzip is damaged .*; unzip what is there"):
        read_predictions(tmp_path / "z")
    (tmp_path / "u").write_bytes(json.dumps(OK).encode("utf-16"))
    with pytest.raises(LabError, match="is not UTF-8 text but UTF-16"):
        read_predictions(tmp_path / "u")


ASKED = [
    Moment("m0", "/v/AAAA1.mp4", "someone opens a door.", (Span(2, 8),), 30.0),
    Moment("m1", "/v/AAAA1.mp4", "someone opens a door.", (Span(20, 25),), 30.0),
    Moment("m2", "/v/ID_10.0_40.0.mp4", "a door", (Span(1, 2),), 30.0),
]


@pytest.mark.parametrize(
    ("row", "qid", "why"),
    [
        ({"AAAA1.mp4>>>someone opens a door.>>>[20.0, 25.0]": "t"}, "m1", "of equal questions the one with this truth"),
        ({"AAAA1.mp4>>>Someone opens  a door>>>[0.0, 1.0]": "t"}, "m0", "else the first; case and full stop don't matter"),
        ({"ID.mp4>>>a door>>>[1.0, 2.0]": "t"}, "m2", "a clip by the name of its source video"),
        ({"BBBB2.mp4>>>a door>>>[1.0, 2.0]": "t"}, "BBBB2: a door", "another video: an extra prediction"),
        (
            {"doc": {"video": "x/AAAA1.mp4", "caption": "someone opens a door."}, "target": [20, 25], "resps": [["t"]]},
            "m1", "a sample without filtered answers",
        ),
        (
            {"response": "t", "videos": ["/mnt/AAAA1.mp4"],
             "messages": [{"role": "user", "content": "<video>When does 'Someone opens a door.' happen?"}]},
            "m0", "a question inside a prompt",
        ),
    ],
)  # fmt: skip
def test_answers_of_other_programs_find_their_questions(tmp_path, row, qid, why):
    got = read_predictions(written(tmp_path, row)).on(ASKED)
    assert got.rows == {qid: PredictedRow("t")}, why
    with pytest.raises(LabError, match=r"1 of these predictions have no qid; call on\(moments\) first"):
        write_predictions(tmp_path / "q.jsonl", read_predictions(written(tmp_path, row)))


def test_equal_questions_take_turns_and_a_third_answer_is_a_duplicate(tmp_path):
    key = "AAAA1.mp4>>>someone opens a door.>>>"
    got = read_predictions(written(tmp_path, {f"{key}{n}": f"t{n}" for n in range(3)})).on(ASKED)
    assert {qid: row.text for qid, row in got.rows.items()} == {"m0": "t0", "m1": "t1"} and got.duplicates == ("m0",)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"doc": {"video": "a.mp4"}, "resps": [["t"]]},
            "lmms-eval that names neither a question's id nor its words; write rows of",
        ),
        (
            {"response": "t", "messages": []},
            "ms-swift that names neither a question's id nor its words; write rows of",
        ),
        ({"a>>>b>>>[1, 2]": 3}, "holds 3 where the answer's text belongs; write rows of"),
    ],
)
def test_a_programs_row_that_names_no_question_is_refused(tmp_path, row, message):
    with pytest.raises(LabError, match=rf"line 1: .*{message}"):
        read_predictions(written(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ([1], r"is \[1\], not an object"),
        ({"text": "t"}, "qid = null names no question"),
        ({"qid": "", "text": "t"}, 'qid = "" names no question'),
        ({"qid": True, "text": "t"}, "qid = true names no question"),
        ({"qid": 1.5, "text": "t"}, "qid = 1.5 names no question"),
        ({"qid": "q"}, "holds neither text nor windows; give the answer once"),
        ({"qid": "q", "text": None}, "holds neither text nor windows"),
        ({"qid": "q", "text": "t", "windows": []}, "holds text and windows; give the answer once"),
        ({"qid": "q", "text": 3}, "qid q: text = 3 is not text"),
        ({"qid": "q", "text": "t", "finished": "no"}, 'finished = "no" is neither true nor false'),
        ({"qid": "q", "windows": {}}, "is not a list"),
        ({"qid": "q", "windows": [[1]]}, "mixes forms; write all as"),
        ({"qid": "q", "windows": [1, 2]}, "mixes forms; write all as"),
        ({"qid": "q", "windows": [[1, 2], [1, 2, 0.5]]}, "mixes forms; write all as"),
        ({"qid": "q", "windows": [[1, "2"]]}, r'holds \[1, "2"\]; write plain finite numbers'),
        ({"qid": "q", "windows": [[1, 10**400]]}, "write plain finite numbers"),
        ({"qid": "q", "windows": [[1, True]]}, "write plain finite numbers"),
        ('{"qid": "q", "windows": [[1, NaN]]}', "write plain finite numbers"),
        ('{"qid": "q", "windows": [[1, Infinity]]}', "write plain finite numbers"),
        ({"qid": "q", "windows": [[1, 2]]}, "holds windows while rows before hold text"),
        ({"settings": {}}, "settings are not in the first line; move them to the top"),
    ],
)
def test_a_bad_row_is_named_with_its_line_and_the_next_step(tmp_path, row, message):
    path = written(tmp_path, OK, row)
    with pytest.raises(LabError, match=rf"predictions\.jsonl, line 2: .*{message}"):
        read_predictions(path)


@pytest.mark.parametrize(
    ("rules", "message"), [(3, "rules = 3 is no name of rules"), ("timer", "did you mean 'timer1'")]
)
def test_rules_of_the_first_line_must_be_known(tmp_path, rules, message):
    with pytest.raises(LabError, match=rf"predictions\.jsonl, line 1: {'' if rules == 3 else '.*'}{message}"):
        read_predictions(written(tmp_path, {"settings": {}, "rules": rules}))


def test_settings_must_be_an_object(tmp_path):
    with pytest.raises(LabError, match="line 1: settings = 3 is not an object"):
        read_predictions(written(tmp_path, {"settings": 3}))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(LabError, match=r"gone\.jsonl' can't be read \(No such file.*check the path"):
        read_predictions(tmp_path / "gone.jsonl")
    (tmp_path / "latin").write_bytes(b"\xff\xfe")
    with pytest.raises(LabError, match="is not UTF-8 text"):
        read_predictions(tmp_path / "latin")


@pytest.mark.parametrize(
    "rows",
    [
        {"q1": PredictedRow("a\n\u2028\u00e4\x00"), "q2": PredictedRow("", finished=False)},
        {"q1": PredictedRow(windows=((0.1, 2.0),)), "q2": PredictedRow(windows=())},
        {"q1": PredictedRow(windows=((0.1, 2.0), (5.0, 4.0)), scores=(0.25, 1e-9))},
        {},
    ],
)
def test_what_is_written_is_read_back(tmp_path, rows):
    path = tmp_path / "p.jsonl"
    write_predictions(path, Predictions(rows, {"fps": 2.0}))
    got = read_predictions(path)
    assert (got.rows, got.settings) == (rows, {"fps": 2.0})


def test_settings_given_on_writing_go_before_those_at_hand(tmp_path):
    write_predictions(tmp_path / "p.jsonl", Predictions({}, {"fps": 2}), {"fps": 4})
    assert read_predictions(tmp_path / "p.jsonl").settings == {"fps": 4}


def test_a_notebooks_records_are_predictions(tmp_path):
    def evaluated(qid, text, status):
        return Rollout(
            run="x", stage="base", step=0, qid=qid, sample=0, seed=0, checkpoint="base", text=text, status=status, **UNPAID,
            prompt_tokens=9, completion_tokens=9, finished=status != "cut_off",
        )  # fmt: skip

    answered, cut = evaluated("q1", "<answer>1 to 2</answer>", "ok"), evaluated("q2", "<think>", "cut_off")
    got = as_predictions([answered, cut, answered], {"temperature": 0})
    assert got.rows == {"q1": PredictedRow(answered.text), "q2": PredictedRow("<think>", finished=False)}
    assert (got.duplicates, got.settings) == (("q1",), {"temperature": 0})


def test_a_path_texts_by_qid_and_predictions_are_predictions(tmp_path):
    write_predictions(tmp_path / "p.jsonl", {"q": "t"})
    got = as_predictions(tmp_path / "p.jsonl")
    assert got.rows == as_predictions({"q": "t"}).rows == as_predictions({"q": PredictedRow("t")}).rows
    assert as_predictions(got) is got
    assert as_predictions(got, {"fps": 1}).settings == {"fps": 1}
