"""What a cluster made is opened on laptops: the reading half where nothing is that only POSIX has.

The commands run in one process whose Python is like that of Windows for labkit's own code (tests/laptop/sitecustomize.py), and so do
the processes that it starts. On a Mac and on Windows they run as they are (the nightly job does that).
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from tests.data.films import CONSTANT, film
from tests.executed import code, notebook, output, run

ROOT = Path(__file__).parents[1]
REFUSED = re.compile(r'[<>:"|?*\\\\]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
"""Names of files that Windows refuses."""
QIDS = ("v1>12.5##a: what? *b*", "nul", "a\\b|c.")


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(map(str, (ROOT / "tests/laptop", ROOT) if sys.platform == "linux" else (ROOT,)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="it is what Linux plays")
def test_the_laptop_of_these_tests_is_none_that_has_posix(tmp_path: Path) -> None:
    for line in ("import fcntl", "from os import fork", "import signal; signal.SIGHUP", "import decord"):
        ended = python(f"exec(compile({line!r}, 'x', 'exec'), {{'__file__': '/x/labkit/asks.py'}})", tmp_path)
        assert ended.returncode == 1 and re.search("ModuleNotFound|ImportError|AttributeError", ended.stderr), line


@pytest.mark.slow
def test_every_module_is_imported_without_posix(tmp_path: Path) -> None:
    ended = python(
        """
import importlib, pkgutil, labkit
for each in pkgutil.walk_packages(labkit.__path__, "labkit."):
    if each.name not in ("labkit.stages.experimental.vllm_generation",):
        importlib.import_module(each.name)
""",
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr


def test_locks_are_had_and_seen_without_posix(tmp_path: Path) -> None:
    ended = python(
        """
from pathlib import Path
from labkit import files
path = Path("some.lock")
assert not files.is_locked(path)
with files.locked(path, "a notebook"):
    assert files.is_locked(path) and path.read_text().startswith("a notebook, process ")
    held, files._locks = files._locks, {}
    try:
        files.lock(path, "another", timeout=0.0)
    except files.LabError as error:
        assert "in use by a notebook, process" in str(error)
    else:
        raise AssertionError("two had it")
    files._locks = held
assert not files.is_locked(path)
""",
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr


OPENED = ("trackers.open", "self.open")
"""What is opened and is no file."""


def in_the_machines_own_encoding(call: ast.Call) -> bool:
    """Whether a call reads or writes text, and doesn't say how: `open`, and those of a Path."""
    if any(each.arg in ("encoding", None) for each in call.keywords):
        return False
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    if name != "open":
        return {"read_text": 0, "write_text": 1}.get(str(name)) == len(call.args)
    given = [*call.args[:2], *(each.value for each in call.keywords if each.arg == "mode")]
    modes = [str(each.value) for each in given if isinstance(each, ast.Constant)]
    mode = next((each for each in modes if re.fullmatch("[rwxa][bt+]*", each)), "")
    if isinstance(call.func, ast.Name):
        return "b" not in mode
    if ast.unparse(call.func) in OPENED:
        return False
    # Of what else has an `open` (gzip, PIL), only a mode tells that it is text; a Path's needs no more than that.
    path = not call.args or (isinstance(call.args[0], ast.Constant) and call.args[0].value == mode)
    return "t" in mode or path and "b" not in mode


@pytest.mark.parametrize(
    ("line", "bare"),
    [
        ("open(path)", True),
        ("open(path, 'rb')", False),
        ("open(path, encoding='utf-8')", False),
        ("path.open()", True),
        ("path.open('w')", True),
        ("path.open(mode='a+')", True),
        ("path.open('rb')", False),
        ("path.open('w', encoding='utf-8')", False),
        ("path.read_text()", True),
        ("path.write_text(text)", True),
        ("path.write_text(text, 'utf-8')", False),
        ("gzip.open(path, 'rt')", True),
        ("gzip.open(path)", False),  # bytes, unlike open
        ("Image.open(path)", False),  # no text at all
    ],
)
def test_a_call_is_seen_that_leaves_the_encoding_to_the_machine(line: str, bare: bool) -> None:
    (call,) = (each for each in ast.walk(ast.parse(line)) if isinstance(each, ast.Call))
    assert in_the_machines_own_encoding(call) == bare


def test_texts_are_read_and_written_as_utf_8_whatever_the_machine_prefers() -> None:
    found = []
    for path in sorted((ROOT / "labkit").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and in_the_machines_own_encoding(call):
                found.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert found == []


@pytest.mark.slow
def test_what_a_cluster_made_is_read_on_a_laptop(tmp_path: Path) -> None:
    film(tmp_path / "a film.mp4", CONSTANT)
    asked = [Moment(qid, str(tmp_path / "a film.mp4"), f"“thing” {qid} ☃", (Span(2, 4),), 8.0) for qid in QIDS]
    write_moments(asked, tmp_path / "moments.jsonl")
    rows = [{"qid": qid, "text": render([Span(0, 8)], Span(2, 4 + k), ["far ☃", "so"])} for k, qid in enumerate(QIDS)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "predictions.jsonl").write_text(lines, encoding="utf-8", newline="\r\n")
    run(tmp_path / "run", {"01_grpo": notebook(code("x", output(text_plain="“☃”")))})
    commands = [
        ["score", "predictions.jsonl", "--moments", "moments.jsonl"],
        ["score", "predictions.jsonl", "--moments", "moments.jsonl", "--json"],
        ["moments", "moments.jsonl", "--write", "again.jsonl"],
        ["explore", "predictions.jsonl", "--moments", "moments.jsonl", "--html", "explored.html"],
        ["results", "run"],
        ["report", "run", "-o", "report"],
        ["status", "run"],
        ["ask", "a film.mp4", "the red circle", "-p", "max_frames", "4", "--html", "asked.html"],
    ]
    ended = python(
        f"from labkit.cli import main\nfor each in {commands!r}:\n    assert main(each) == 0, each", tmp_path
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    for page in ("explored.html", "asked.html"):
        text = (tmp_path / page).read_text(encoding="utf-8")
        assert '"sheets":{"0":"' in text and "cannot be shown" not in text, f"PyAV drew the film of {page}"
    assert (tmp_path / "report/report.html").is_file()
    refused = [str(path) for path in tmp_path.rglob("*") if REFUSED.search(path.name)]
    assert refused == []
