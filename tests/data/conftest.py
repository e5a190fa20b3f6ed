"""Films that several tests read, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.films import CONSTANT, VARIABLE, film, remux


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
