"""Films that several tests read, written once."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labkit.data.video import decode_worker, prefetch, worker_process
from labkit.data.video.worker_process import WorkerProcess
from tests.data.films import CONSTANT, VARIABLE, Encoding, encodings, film, remux


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One film of each kind that is read, by name; made once."""
    folder = tmp_path_factory.mktemp("films")
    made = {
        "constant": film(folder / "constant.mp4", CONSTANT, options={"g": "50"}),
        "variable": film(folder / "variable.mp4", VARIABLE),
        "late clock": film(folder / "late clock.mkv", [5000 + t for t in CONSTANT[:75]]),
    }
    made["rotated"] = remux(made["constant"], folder / "rotated.mp4", rotate=90)
    made["edit list"] = remux(made["constant"], folder / "edit list.mp4", cut=3.0)
    return made


@pytest.fixture(scope="session")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Encoding]:
    """Films of the encodings that people meet, by name; made once."""
    return encodings(tmp_path_factory.mktemp("encodings"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos are decoded here, where a test can replace the decoders."""
    monkeypatch.setattr(worker_process, "in_worker", lambda: True)


def _asking(module: str) -> list[str]:
    """The command of a worker that asks decord for any frames."""
    code = f"""
from labkit.data.video import decode_worker, worker_process
from labkit.data.video.{module} import _handle
decode_worker.SKIPPED = -float("inf")
worker_process.serve(_handle)
"""
    return [sys.executable, "-c", code]


@pytest.fixture(scope="session")
def asking_worker() -> Iterator[WorkerProcess]:
    """The process of `decord_asked`, for all tests."""
    worker = WorkerProcess(_asking("decode_worker"), 60.0)
    yield worker
    worker.end()


@pytest.fixture
def decord_asked(monkeypatch: pytest.MonkeyPatch, asking_worker: WorkerProcess) -> None:
    """decord is asked for any frames, so that short films test it: here, in the process that decodes, and in readers ahead."""
    monkeypatch.setattr(decode_worker, "SKIPPED", -math.inf)
    monkeypatch.setattr(decode_worker._State, "worker", asking_worker)
    monkeypatch.setattr(prefetch, "_COMMAND", _asking("prefetch"))


@pytest.fixture(params=[True, False], ids=["decord asked", "PyAV alone"])
def asked(request: pytest.FixtureRequest) -> bool:
    """Whether decord is asked; a test runs with each."""
    if request.param:
        request.getfixturevalue("decord_asked")
    return bool(request.param)
