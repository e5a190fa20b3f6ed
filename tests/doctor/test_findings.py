from __future__ import annotations

import json

from labkit.doctor.findings import MAX_SHOWN, DoctorReport, Finding
from labkit.table import Table


def report(*findings: Finding) -> DoctorReport:
    return DoctorReport(
        "doctor: run 'x'", list(findings), [Table("disk", ("", "size"), [("frames", "10 MB"), ("free", "7 GB")])]
    )


MISSING = [Finding("error", "missing video", f"video {k}.mp4", "is not there", "put it there") for k in range(7)]


def test_an_error_alone_makes_a_run_fail() -> None:
    assert report().exit_code == 0
    assert report(Finding("warning", "a", "b", "c"), Finding("note", "a", "b", "c")).exit_code == 0
    assert report(Finding("note", "a", "b", "c"), MISSING[0]).exit_code == 1


def test_the_verdict_counts() -> None:
    assert report().verdict() == "nothing to report: a run can start"
    assert report(Finding("warning", "a", "b", "c")).verdict() == "1 warning: a run can start"
    found = report(*MISSING, Finding("note", "a", "b", "c"))
    assert found.verdict() == "7 errors, 1 note: a run would fail"


def test_the_text_groups_kinds_and_shows_the_first_of_many() -> None:
    # Kinds that came in turn stand together, in the order in which they first came.
    text = str(report(MISSING[0], Finding("error", "rights", "video r.mp4", "may not be read"), *MISSING[1:]))
    lines = text.splitlines()
    begin = lines.index("errors")
    assert lines[begin + 1] == "  missing video (7)"
    assert lines[begin + 2] == "    video 0.mp4 is not there; put it there"
    assert lines[begin + 2 + MAX_SHOWN] == f"    and {7 - MAX_SHOWN} more; --json lists them all"
    assert lines[begin + 3 + MAX_SHOWN : begin + 5 + MAX_SHOWN] == ["  rights", "    video r.mp4 may not be read"]
    assert lines[-1] == "8 errors: a run would fail"


def test_numbers_stand_to_the_right_and_words_to_the_left() -> None:
    rows = [("a", "1,000", "x"), ("long", "7", "yes")]
    text = str(DoctorReport("t", tables=[Table("T", ("name", "n", "word"), rows, "one\ntwo")]))
    assert text.split("\n\n")[1].splitlines() == [
        "T",
        "  name      n  word",
        "  a     1,000  x",
        "  long      7  yes",
        "  one",
        "  two",
    ]


def test_a_table_without_heads_or_rows_is_text_too() -> None:
    assert "T\n  a  b" in str(DoctorReport("t", tables=[Table("T", ("", ""), [("a", "b")])]))
    assert "T\n  name" in str(DoctorReport("t", tables=[Table("T", ("name",), [])]))


def test_html_escapes_what_files_are_called() -> None:
    name = "<script>alert(1)</script>"
    found = DoctorReport(name, [Finding("error", name, name, name)], [Table(name, (name,), [(name,)], name)])
    assert "<script>" not in found._repr_html_()
    assert found._repr_html_().count("&lt;script&gt;") == 8


def test_a_program_gets_everything() -> None:
    found = report(*MISSING)
    found.data["videos"] = {"a.mp4": {"state": "ok"}}
    told = json.loads(json.dumps(found.as_dict()))
    assert len(told["findings"]) == 7 and told["exit_code"] == 1
    assert told["findings"][0] == MISSING[0]._asdict()
    assert told["videos"]["a.mp4"]["state"] == "ok"
    assert told["tables"][0]["rows"] == [["frames", "10 MB"], ["free", "7 GB"]]
