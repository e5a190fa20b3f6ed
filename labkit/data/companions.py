"""Companions: the two formats whose labels make sense only with a second file that lies beside them.

Charades-STA's txt gives no durations; they are Charades' own, in a csv. NExT-GQA's questions are a csv, their evidence
is a JSON file.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.data.rows import Row, read_table, read_text, short, to_seconds, unrepeated
from labkit.data.video_index import stem_of
from labkit.errors import LabError

DURATIONS = ("Charades_v1_train.csv", "Charades_v1_test.csv")
"""Charades' own tables, with a column length."""
CHARADES = "charades-sta"
"""The source of a moment of Charades-STA, in whatever form."""
QUESTIONS = ("video_id", "question", "answer", "qid", "a0", "a1")
"""Columns that NExT-GQA's questions have."""


def charades(lines: list[tuple[int, str]]) -> Iterator[Row]:
    """Rows of numbered lines of Charades-STA's txt, which holds no durations."""
    count: Counter[str] = Counter()
    for number, line in lines:
        head, mark, sentence = line.partition("##")
        parts = head.split()
        if not mark or len(parts) != 3:
            yield Row(number, "", fault=f"{short(line.strip())} is not 'VIDEO start end##sentence'")
            continue
        video = parts[0]
        stem = stem_of(video)[0]
        yield Row(number, f"{stem}-{count[stem]}", video, sentence, [parts[1:]])
        count[stem] += 1


def with_durations(rows: list[Row], path: Path, durations: str | Path | None) -> list[Row]:
    """The rows, with seconds for those that lack them, of the csv `durations` or else of Charades' own beside `path`.

    What neither knows may yet be measured.
    """
    beside = [path.parent / f"{name}{packed}" for name in DURATIONS for packed in ("", ".gz")]
    lengths: dict[str, float] = {}
    if durations is not None:
        lengths = _lengths(Path(durations))
    elif any(row.duration is None and row.source == CHARADES for row in rows):
        for file in filter(Path.is_file, beside):
            lengths |= _lengths(file)
    return [
        replace(row, duration=lengths.get(stem_of(row.video)[0])) if row.duration is None and lengths else row
        for row in rows
    ]


def _lengths(path: Path) -> dict[str, float]:
    try:
        head, rows = read_table(read_text(path))
    except ValueError as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{path} {error}; give Charades_v1_train.csv or Charades_v1_test.csv") from None
    if not {"id", "length"} <= set(head):
        raise LabError(f"{path} has no columns id and length; give Charades_v1_train.csv or Charades_v1_test.csv")
    read = ((row["id"], to_seconds(row["length"])) for _, row in rows if isinstance(row["id"], str))
    return {stem_of(video)[0]: length for video, length in read if length is not None}


def nextgqa(path: Path, head: tuple[str, ...], numbered: list[tuple[int, dict[str, Any]]]) -> Iterator[Row]:
    """Rows of NExT-GQA's questions, with the evidence of the file beside `path` that knows their videos."""
    evidence = _evidence(path, [row for _, row in numbered])
    letters = sorted(name for name in head if re.fullmatch(r"a\d", name))
    # Published with the answer's text, in NExT-QA's form with its number. An option may be a number itself, so that the
    # file decides, not the row.
    by_number = all(re.fullmatch(r"\d", (row["answer"] or "").strip()) for _, row in numbered)
    for line, row in numbered:
        video, qid = (row["video_id"] or "").strip(), (row["qid"] or "").strip()
        options = [(row[name] or "").strip() for name in letters]
        answer = (row["answer"] or "").strip()
        choice = int(answer) if by_number else options.index(answer) if answer in options else None
        entry = evidence.get(video, {})
        location = entry.get("location")
        windows = location.get(qid) if isinstance(location, dict) else None
        if video and qid:
            yield Row(line, f"{video}-{qid}", video, row["question"], windows, entry.get("duration"),
                      source="nextgqa", options=options, choice=-1 if choice is None else choice)  # fmt: skip
        else:
            yield Row(line, "", fault="video_id or qid missing")


def _evidence(path: Path, rows: list[dict[str, str]]) -> dict[str, dict[str, Any]]:
    """Of the evidence files beside the questions, the one that knows most of their videos."""
    best: dict[str, dict[str, Any]] = {}
    known = 0
    for file in sorted(path.parent.glob("gsub_*.json")):
        try:
            found = json.loads(read_text(file), object_pairs_hook=unrepeated)
        except (ValueError, RecursionError) as error:
            raise LabError(f"{file} is not JSON ({error}); download it again") from None
        if isinstance(found, dict):
            entries = {video: entry for video, entry in found.items() if isinstance(entry, dict)}
            count = sum(row["video_id"] in entries for row in rows)
            if count > known:
                best, known = entries, count
    if not known:
        step = "put gsub_val.json or gsub_test.json beside it (train has no evidence)"
        raise LabError(f"{path}: no evidence for its questions in {path.parent}; {step}")
    return best
