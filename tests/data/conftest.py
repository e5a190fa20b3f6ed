"""Films that several tests read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.data.video import worker_process
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
