"""The rows of a predictions file, one after another, however they are wrapped: JSON Lines, a JSON document, tsv, Parquet, gzip.

Lines and Parquet are streamed: a file of a hundred thousand rows takes no more memory than what is kept of its rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from labkit.errors import LabError
from labkit.scoring.answers import BadRow, shorten
from labkit.scoring.programs import looked_for

_BATCH = 256
"""Rows of a Parquet file that are in memory at once."""
_EXCEL = b"PK\x03\x04"


class FileRow(NamedTuple):
    """A row of a file: where it stands there, and its object; the line that broke off has none, and is the last one."""

    where: str
    row: dict[str, Any] | None
    number: int = 0


def file_rows(path: Path) -> Iterator[FileRow]:
    """Rows of a file in its order.

    Raises: LabError that names the file, and line or row, for what can't be read.
    """
    try:
        yield from _rows(path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise LabError(
            f"predictions '{path}': its gzip is damaged ({error}); unzip what is there and give that"
        ) from None
    except OSError as error:
        raise LabError(f"predictions '{path}' can't be read ({error.strerror}); check the path") from None


def _rows(path: Path) -> Iterator[FileRow]:
    with _opened(path) as file:
        start = file.read(4)
        if start == b"PAR1":
            yield from _parquet(path)
            return
        if start == _EXCEL:
            raise LabError(
                f"predictions '{path}' is an Excel table or a zip; save it as tsv (VLMEvalKit: PRED_FORMAT=tsv)"
            )
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise LabError(f"predictions '{path}' is not UTF-8 text but UTF-16; save it as UTF-8")
        file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)
        first = _first_line(file)
        text = first.strip()
        if text.startswith((b"[", b"{")) and not _is_object(text):
            # A document over several lines; or JSON Lines whose first line is damaged, which the lines then say.
            document = _document(first + file.read())
            if document is not None:
                yield from (FileRow(f"row {k}", _checked(path, f"row {k}", row)) for k, row in enumerate(document))
                return
            file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)
            first = _first_line(file)
        elif b"\t" in text and not text.startswith(b"{"):
            yield from _table(path, first, file)
            return
        yield from _lines(path, first, file)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not zipped:
            yield file
            return
        with gzip.GzipFile(fileobj=file) as unzipped:
            # A buffer, so that lines aren't put together byte by byte.
            yield io.BufferedReader(unzipped, 1 << 16)


def _first_line(file: IO[bytes]) -> bytes:
    """The first line that holds text."""
    line = b"\n"
    while line and not line.strip():
        line = file.readline()
    return line


def _lines(path: Path, first: bytes, file: IO[bytes]) -> Iterator[FileRow]:
    """Rows of JSON Lines. Not splitlines(), which also splits at characters that may stand inside a text."""
    file.seek(0)
    lines: Iterator[bytes] = iter(file)
    if b"\r" in first.rstrip() and not first.endswith(b"\n"):  # CR alone ended lines once
        lines = iter(file.read().replace(b"\r", b"\n").splitlines(keepends=True))
    seen = False
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            row = _object(line)
        except BadRow as fault:
            # What a killed evaluation leaves: the last line, which has no end.
            if line.endswith(b"\n") or not seen:
                known = "" if seen else f" (read are labkit's own rows and files of {looked_for()})"
                raise LabError(f"{path}, line {number}: {fault}{known}") from None
            yield FileRow(f"line {number}", None, number)
            return
        seen = True
        yield FileRow(f"line {number}", row, number)


def _parquet(path: Path) -> Iterator[FileRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=_BATCH):
            for row in batch.to_pylist():
                yield FileRow(f"row {number}", row)
                number += 1
    except pyarrow.ArrowException as error:
        raise LabError(f"predictions '{path}' is a Parquet file that can't be read ({error}); write it anew") from None


def _table(path: Path, first: bytes, file: IO[bytes]) -> Iterator[FileRow]:
    """Rows of a table by tabs with a head; cells that are empty are None."""
    text = io.TextIOWrapper(file, "utf-8", newline="")
    try:
        head = first.decode("utf-8-sig").rstrip("\r\n").split("\t")
        for number, row in enumerate(csv.DictReader(text, head, delimiter="\t")):
            yield FileRow(f"row {number}", {str(name): value or None for name, value in row.items()})
    except UnicodeDecodeError as error:
        raise LabError(f"predictions '{path}' is a table that can't be read ({error}); save it as UTF-8") from None
    except csv.Error as error:
        raise LabError(
            f"predictions '{path}' is a table that can't be read ({error}); save it as json (VLMEvalKit: PRED_FORMAT=json)"
        ) from None
    finally:
        text.detach()  # whoever opened the file closes it


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _document(data: bytes) -> list[Any] | None:
    """The rows of one JSON list, or one object over several lines; None where it is no JSON."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else [found]


def _checked(path: Path, where: str, row: object) -> dict[str, Any]:
    try:
        return row if isinstance(row, dict) else _no_object(row)
    except BadRow as fault:
        raise LabError(f"{path}, {where}: {fault}") from None


def _object(line: bytes) -> dict[str, Any]:
    try:
        try:
            row = orjson.loads(line)
        except ValueError:  # NaN, half a character, or a fault that json words better
            row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRow(f"is not UTF-8 text ({error.reason}); write it as JSON Lines") from None
    except RecursionError:
        raise BadRow("is nested too deeply; write one object a line") from None
    except ValueError as error:
        raise BadRow(f"is not JSON ({error}); write one object a line") from None
    return row if isinstance(row, dict) else _no_object(row)


def _no_object(row: object) -> dict[str, Any]:
    raise BadRow(f'is {shorten(row)}, not an object; write {{"qid": ..., "text": ...}}')
