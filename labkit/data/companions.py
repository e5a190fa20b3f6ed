"""Companions: the two formats whose labels make sense only with a second file that lies beside them.

Charades-STA's txt gives no durations; they are Charades' own, in a csv. NExT-GQA's questions are a csv, their evidence
is a JSON file.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from labkit.data.rows import Row, read_text, short, to_number, unrepeated
from labkit.errors import LabError

DURATIONS = ("Charades_v1_train.csv", "Charades_v1_test.csv")
"""Charades' own tables, with a column length."""


def charades(lines: list[tuple[int, str]], durations: dict[str, float]) -> Iterator[Row]:
    """Rows of numbered lines of Charades-STA's txt; a video that `durations` lacks has none."""
    count: Counter[str] = Counter()
    for number, line in lines:
        head, mark, sentence = line.partition("##")
        parts = head.split()
        if not mark or len(parts) != 3:
            yield Row(number, "", fault=f"{short(line.strip())} is not 'VIDEO start end##sentence'")
            continue
        video = parts[0]
        yield Row(
            number, f"{video}-{count[video]}", video, sentence, [[to_number(parts[1]), to_number(parts[2])]],
            durations.get(video), source="charades-sta",
        )  # fmt: skip
        count[video] += 1


def charades_durations(path: Path, durations: str | Path | None) -> dict[str, float]:
    """Seconds by video, of the csv `durations` or of those beside `path`; without any they may yet be measured."""
    beside = [path.parent / name for name in DURATIONS]
    lengths: dict[str, float] = {}
    for file in [file for file in beside if file.is_file()] if durations is None else [Path(durations)]:
        lengths |= _lengths(file)
    return lengths


def _lengths(path: Path) -> dict[str, float]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    if not {"id", "length"} <= set(reader.fieldnames or ()):
        raise LabError(f"{path} has no columns id and length; give Charades_v1_train.csv or Charades_v1_test.csv")
    read = ((row["id"], to_number(row["length"])) for row in reader)
    return {video: length for video, length in read if isinstance(length, float)}


def nextgqa(path: Path, text: str) -> Iterator[Row]:
    """Rows of NExT-GQA's questions, with the evidence of the file beside `path` that knows their videos."""
    reader = csv.DictReader(io.StringIO(text, newline=""))
    numbered = [(reader.line_num, row) for row in reader]
    evidence = _evidence(path, [row for _, row in numbered])
    letters = sorted(name for name in reader.fieldnames or () if re.fullmatch(r"a\d", name))
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
