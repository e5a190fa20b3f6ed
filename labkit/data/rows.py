"""Rows: a query as it stands in an annotation file, and the files read into text, tables and objects.

Nothing is checked here: what is missing or ill-typed stays as it is, for `labkit.data.cleaning` to decide.
"""

from __future__ import annotations

import csv
import gc
import gzip
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from labkit.data.video_index import is_foreign_path, local_path, stem_of
from labkit.errors import LabError

NUMBER = r"[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?"
"""A number as annotation files write it; ASCII digits alone."""
CLOCK = r"(?:\d+:)?\d?\d:\d\d(?:\.\d+)?"
"""Hours, minutes and seconds as a clock shows them; hours may be left out."""
TIME = rf"(?:{CLOCK}|{NUMBER})"
"""A number of seconds, or minutes and seconds as a clock shows them."""
_WHOLE_TIME = re.compile(TIME, re.ASCII)
_DECIMAL_COMMA = re.compile(r"\d+,\d+", re.ASCII)

# What a file of another kind begins with, and what it is.
_GZIP = b"\x1f\x8b"
_BINARY = {b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive", b"\x89HDF": "HDF5", b"\x80": "a Python pickle"}
_MARKED = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_NAMES = {"ISO-8859-1": "Latin-1", "WINDOWS-1252": "Windows-1252"}


T = TypeVar("T")


@dataclass(frozen=True)
class Again(Generic[T]):
    """What is made anew each time that it is gone through, so that rows of a file of any length are never held at once."""

    begin: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.begin()


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause Python's cyclic garbage collector: among a million young objects it takes a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@dataclass(slots=True)
class Row:
    """A query as it stands in a file; fields of type object may hold anything, None where there is nothing.

    `video` is the source video's name, in which `clip` is the trim window; `cut` is the name of a file that holds the
    clip alone, "" where none was published. `path` is the video's path where the file gives it for good. `fault` says
    why the row cannot be read, `unknown` names fields that no moment has. `rate` is None where windows are in seconds;
    where they count frames it is the frames of a second, or "" when the file does not say. `noted` is a kind of issue that
    the reader has met and settled.
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
    rate: object = None
    noted: str = ""


class _Plain(NamedTuple):
    line: int | str
    qid: str
    video: str
    query: str
    windows: Any
    duration: Any
    path: str
    source: str


class PlainRow(_Plain):
    """Stands for a Row of which nothing is to be settled: ASCII texts, windows in order and inside the clip, no trim window.

    Most rows of a large file are plain ones. Whoever takes a Row may be given one; its other fields are as where a file has none.
    """

    __slots__ = ()
    clip = options = choice = rate = None
    cut = fault = noted = ""
    unknown = ()


_SECONDS = frozenset((float, int))


def is_plain(windows: Any, duration: Any) -> bool:
    """Whether windows are as most are, numbers of seconds in order and inside the clip."""
    if type(windows) is not list or not windows or type(duration) not in _SECONDS or duration >= 1e9:
        return False
    for window in windows:
        if type(window) is not list or len(window) != 2:
            return False
        start, end = window
        if type(start) not in _SECONDS or type(end) not in _SECONDS or not 0 <= start < end <= duration:
            return False
    return True


@dataclass
class RowFile:
    """What a reader knows of its file beside the row: its path, how often a video was asked about, and where videos lie."""

    path: Path = Path()
    asked: Counter[str] = field(default_factory=Counter)
    paths: dict[str, str] = field(default_factory=dict)

    def qid(self, video: str) -> str:
        """The next question's id of a video, where the file gives none."""
        stem = stem_of(video)[0]
        self.asked[stem] += 1
        return f"{stem}-{self.asked[stem] - 1}"

    def local(self, video: str) -> str:
        """The path that the file means by `video`; "" where it is one of another system."""
        if video not in self.paths:
            self.paths[video] = "" if is_foreign_path(video) else local_path(video, os.path.dirname(self.path))
        return self.paths[video]


class AnnotationFile(NamedTuple):
    """A file's rows, its format or benchmark as `title`, and its encoding."""

    title: str
    rows: Iterable[Row]
    encoding: str = "UTF-8"


class InvalidLine(str):
    """Stands for a line that is not JSON, and says why."""


class RepeatedKey(ValueError):
    """A key that an object holds twice: Python would keep the last without a word."""


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What `json.loads` takes as object_pairs_hook. Raises RepeatedKey."""
    row = dict(pairs)
    if len(row) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise RepeatedKey(f"key {name!r} is given twice")
    return row


def read_object(line: str) -> Any:
    """What one line of JSON Lines holds, or InvalidLine."""
    try:
        row = orjson.loads(line)
        # No name can stand there twice where there are no more colons than names; orjson makes long numbers floats, ids too.
        if type(row) is dict and line.count(":") == len(row) and type(row.get("qid")) is not float:
            if "annotation_id" not in row and "sample_id" not in row:
                return row
    except ValueError:
        pass  # NaN, half a character, or a fault that json words better
    try:
        return json.loads(line, object_pairs_hook=refuse_repeated_keys)
    except RepeatedKey as error:
        return InvalidLine(error)
    except (ValueError, RecursionError):
        return InvalidLine(f"{short(line.strip())} is not JSON")


def read_text(path: Path) -> str:
    """A file's text; see `read_encoded`."""
    return read_encoded(path)[0]


def read_encoded(path: Path) -> tuple[str, str]:
    r"""A file's text without a byte order mark, its lines ended by "\n", and its encoding.

    Gzip is unpacked, UTF-16 and UTF-32 are read where a byte order mark states them. Raises LabError that names what the
    file is when it cannot be read or holds another encoding.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(_GZIP):
            raw = gzip.decompress(raw)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LabError(f"{path} is gzip that cannot be unpacked ({error}); download it again") from None
    except OSError as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise LabError(f"annotation file {path} {reason}; correct its path or its access rights") from None
    if kind := _begun(raw, _BINARY):
        raise LabError(f"{path} is {kind}, no text; give the annotations as their authors publish them")
    encoding = _begun(raw, _MARKED)
    try:
        text = raw.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as error:
        if encoding:
            raise LabError(f"{path} is {encoding} that breaks off ({error.reason}); download it again") from None
        if b"\0" in raw[:1000] and not _encoding(raw).startswith("UTF-16"):
            raise LabError(f"{path} is no text; give the annotations as their authors publish them") from None
        line, kind = raw[: error.start].count(b"\n") + 1, _encoding(raw)
        command = f"iconv -f {kind} -t UTF-8 '{path.name}' > new"
        wrong = f"not UTF-8; save the file as UTF-8 (it looks like {_NAMES.get(kind, kind)}: {command})"
        raise LabError(f"{path}, line {line}: {wrong}") from None
    if not encoding and "\0" in text[:1000]:
        kind = _encoding(raw)
        if kind.startswith("UTF-16"):
            raise LabError(f"{path} is {kind} without a byte order mark; save the file as UTF-8")
    text = text.replace("\r\n", "\n")
    # The ends of lines on old Macs, and in what spreadsheets export there.
    return (text if "\n" in text else text.replace("\r", "\n")), encoding or "UTF-8"


def text_lines(path: Path) -> tuple[Iterable[str], str]:
    r"""A file's lines as `read_encoded` would give them, each with its "\n", and its encoding.

    Plain UTF-8, gzip or not, is read line by line each time that the lines are gone through; other files are held. Raises
    what `read_encoded` raises, which may be when the lines are gone through.
    """
    opened: Callable[..., Any] = open
    head = b""
    try:
        with open(path, "rb") as packed:
            opened = gzip.open if packed.read(2) == _GZIP else open
        with opened(path, "rb") as file:
            head = file.read(1 << 20)
    except (OSError, EOFError, zlib.error):
        pass  # `read_encoded` says what is wrong
    if b"\n" not in head or b"\0" in head or _begun(head, _BINARY | _MARKED):
        text, encoding = read_encoded(path)
        return Again(lambda: (match[0] for match in re.finditer(r".*\n|.+", text))), encoding

    def lines() -> Iterator[str]:
        try:
            with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
                yield from (line.replace("\r\n", "\n") for line in file)
        except (UnicodeDecodeError, OSError, EOFError, zlib.error):
            read_encoded(path)
            raise

    return Again(lines), "UTF-8"


def binary_kind(raw: bytes) -> str:
    """What a file is, by its first bytes, where these are not of UTF-8 text; else ""."""
    return _begun(raw, {_GZIP: "gzip"} | _BINARY | _MARKED)


def _begun(raw: bytes, kinds: dict[bytes, str]) -> str:
    return next((kind for begin, kind in kinds.items() if raw.startswith(begin)), "")


def printable(text: str) -> str:
    """`text` with what no terminal can show, half a character, as its code."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _encoding(raw: bytes) -> str:
    """What bytes that are no UTF-8 are likely to be."""
    head = raw[:2000]
    for zeros, kind in ((head[1::2], "UTF-16LE"), (head[::2], "UTF-16BE")):
        if zeros and zeros.count(0) > len(zeros) / 2:
            return kind
    if not any(0x80 <= byte < 0xA0 for byte in raw):
        return "ISO-8859-1"
    for encoding in ("WINDOWS-1252", "GB18030"):
        try:
            raw.decode(encoding)
        except UnicodeDecodeError:
            continue
        return encoding
    return "ISO-8859-1"


def read_table(lines: Iterable[str]) -> tuple[tuple[str, ...], Iterator[tuple[int, dict[str, Any]]]]:
    r"""Column names, and rows by their line, of a table whose cells are parted by comma, semicolon or tab.

    A cell that a row lacks is None. Raises csv.Error when the lines are no table, which may be at any of them.

    >>> names, rows = read_table(["id;length\n", "AMT7R;30,08"])
    >>> names, list(rows)
    (('id', 'length'), [(2, {'id': 'AMT7R', 'length': '30.08'})])
    """
    lines = iter(lines)
    head = next((line for line in lines if line != "\n"), "")
    delimiter = max(",;\t", key=head.count)
    reader = csv.DictReader(chain([head], lines), delimiter=delimiter)
    names = tuple(name.strip() for name in reader.fieldnames or ())
    reader.fieldnames = names

    def rows() -> Iterator[tuple[int, dict[str, Any]]]:
        for row in reader:
            # Where cells are parted by semicolons the comma is the decimal point.
            cells = {name: _decimal(cell) for name, cell in row.items()} if delimiter == ";" else row
            yield reader.line_num, cells

    return names, rows()


def _decimal(cell: Any) -> Any:
    return cell.replace(",", ".") if isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell.strip()) else cell


def has(row: Any, *fields: str) -> bool:
    """Whether `row` is an object with these fields."""
    return isinstance(row, dict) and all(field in row for field in fields)


def to_seconds(value: object) -> float | None:
    """A number, the text of one, or a clock's minutes and seconds; None for all else.

    >>> to_seconds("24.3"), to_seconds("01:02:03.5"), to_seconds("24,3"), to_seconds(True)
    (24.3, 3723.5, None, None)
    """
    if (type(value) is float or type(value) is int) and -1e9 < value < 1e9:
        return float(value)
    if isinstance(value, str) and _WHOLE_TIME.fullmatch(value.strip()):
        *clock, last = value.strip().split(":")
        minutes = 0
        for part in clock:
            minutes = minutes * 60 + int(part)
        value = minutes * 60 + float(last)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        return float(value)
    return None


def short(value: object) -> str:
    """`repr`, cut to what a message can hold."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-15:]}"
