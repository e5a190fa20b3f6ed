"""The protocol card: nothing that changes a score goes unsaid."""

from __future__ import annotations

import json
import math

from labkit.scoring.protocol import SETTINGS, Protocol


def card(**more) -> Protocol:
    given = {"rules": "labkit", "reading": "the answer", "reaches": ">=", "clips": True, "moments": "m", "rows": 3}
    return Protocol(**given | {"listed": 3} | more)


def test_what_nobody_stated_is_said_to_be_not_stated():
    lines = dict(card(settings={"fps": 2.0, "top_p": 0.9}).lines())
    assert lines["fps"] == "2.0" and lines["top_p"] == "0.9"
    assert [name for name, value in lines.items() if value == "not stated"] == [
        "predictions",
        *(name for name in SETTINGS if name != "fps"),
    ]


def test_usable_and_listed_questions_are_told_apart():
    lines = dict(card(rows=12_404, listed=12_408, findings={"start after end": 4, "point": 1}).lines())
    assert lines["questions scored"] == "12,404 usable of 12,408 in the file"
    assert lines["faults in the moments"] == "start after end 4, point 1"
    assert dict(card().lines())["faults in the moments"] == "none"


def test_counts_name_a_few():
    lines = dict(card(missing=2, extra=5, first={"missing": ("a", "b"), "extra": ("x", "y", "z")}).lines())
    assert lines["missing predictions"] == "2 (a, b), each counts 0"
    assert lines["extra predictions"] == "5 (x, y, z, ...), not scored"
    assert lines["duplicate predictions"] == "0, the first one counts"


def test_long_values_are_folded_under_themselves():
    text = str(card(reading="word " * 60))
    assert max(map(len, text.splitlines())) <= 110
    assert any(line.startswith(" " * 20 + "  word") or line.lstrip().startswith("word") for line in text.splitlines())


def test_the_card_is_plain_json():
    got = json.loads(json.dumps(card(parse_failure_rate=math.nan).as_dict(), allow_nan=False))
    assert got["parse_failure_rate"] is None
    assert set(SETTINGS) <= set(got["settings"])
