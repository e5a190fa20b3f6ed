"""Rows: a query as it stands in an annotation file, and the files read into text and objects.

Nothing is judged here: what is missing or ill-typed stays as it is, for `labkit.data.judge` to decide.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError

NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
"""A number as annotation files write it; ASCII digits alone."""


@dataclass(frozen=True, slots=True)
class Row:
    """A query as it stands in a file; fields of type object may hold anything, None where there is nothing.

    `video` is the source video's name, in which `clip` is the trim window; `cut` is the name of a file that holds the
    clip alone, "" where none was published. `path` is the video's path where the file gives it for good. `fault` says
    why the row cannot be read, `unknown` names fields that no moment has.
    """

    line: int | str
    qid: object
    video: str = ""
    query: object = None
    windows: object = None
    duration: object = None
    clip: object = None
    cut: str = ""
    path: str = ""
    source: str = ""
    options: object = None
    choice: object = None
    fault: str = ""
    unknown: tuple[str, ...] = ()


class Table(NamedTuple):
    """A file's format, by its title, and its rows."""

    title: str
    rows: list[Row]


class Unread(str):
    """Stands for a line that is not JSON, and says why."""


class Repeated(ValueError):
    """A key that an object holds twice: Python would keep the last without a word."""


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `json.loads` takes as object_pairs_hook. Raises Repeated."""
    row = dict(pairs)
    if len(row) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Repeated(f"key {name!r} is given twice")
    return row


def read_object(line: str) -> Any:
    """What one line of JSON Lines holds, or Unread."""
    try:
        return json.loads(line, object_pairs_hook=unrepeated)
    except Repeated as error:
        return Unread(error)
    except (ValueError, RecursionError):
        return Unread(f"{short(line.strip())} is not JSON")


def read_text(path: Path) -> str:
    """A file's text, without a byte order mark. Raises LabError when it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise LabError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise LabError(f"annotation file {path} {reason}; correct its path or its access rights") from None


def has(row: Any, *fields: str) -> bool:
    """Whether `row` is an object with these fields."""
    return isinstance(row, dict) and all(field in row for field in fields)


def to_number(text: str | None) -> float | str | None:
    """The number that `text` writes, or the text itself, for the judge to name.

    >>> to_number("24.3"), to_number("24,3")
    (24.3, '24,3')
    """
    return float(text) if text and re.fullmatch(NUMBER, text.strip(), re.ASCII) else text


def short(value: object) -> str:
    """`repr`, cut to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
