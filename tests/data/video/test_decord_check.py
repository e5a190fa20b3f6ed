"""What is found out about decord on a file, and how long that is believed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.data.video import decoders, decord_check
from labkit.data.video.decord_check import reason_against_decord
from labkit.data.video.fingerprints import fingerprint
from labkit.data.video.frames import FrameCache, read_frames
from tests.data.films import CONSTANT, film, numbers

GOP = {"g": "12", "keyint_min": "12", "sc_threshold": "0"}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, in_this_process: None, decord_asked: None) -> None:
    monkeypatch.setattr(decord_check, "_known", {})


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return film(tmp_path / "clip.mp4", CONSTANT[:60], options=GOP)


class Shifted:
    """A decord that shows the frame beside the one asked for, at some places."""

    def __init__(self, real: Any, wrong: range, by: int) -> None:
        self.real, self.wrong, self.by = real, wrong, by

    def __len__(self) -> int:
        return len(self.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def get_batch(self, places: list[int]) -> Any:
        last = len(self.real) - 1
        moved = [min(max(0, place + self.by), last) if place in self.wrong else place for place in places]
        frames = {place: self.real.get_batch([place]).asnumpy()[0] for place in sorted(set(moved))}

        class Batch:
            def asnumpy(self) -> np.ndarray:
                return np.stack([frames[place] for place in moved])

        return Batch()


@pytest.mark.parametrize(
    ("wrong", "by", "reason"),
    [
        (range(60), 1, "every frame but the last"),
        (range(60), -1, "every frame but the first"),
        (range(12, 60), -1, "from the second key frame on"),
        (range(59, 60), -1, "the last frame"),
        (range(47, 48), -2, "the frame before the last key frame"),
        (range(26, 27), -1, "a frame behind a key frame"),
    ],
)
def test_a_decord_that_shows_other_frames_is_found_out(
    clip: Path, monkeypatch: pytest.MonkeyPatch, wrong: range, by: int, reason: str
) -> None:
    reader = decoders.decord_reader
    monkeypatch.setattr(decoders, "decord_reader", lambda path: Shifted(reader(path), wrong, by))
    assert reason_against_decord(clip, "key", None).startswith("decord shows wrong frames (at "), reason
    frames = read_frames(clip, [0.0, 1.0, 2.3])
    assert frames.backend == "pyav" and "decord shows wrong frames" in frames.note
    assert numbers(frames.rgb) == [0, 25, 57]


def test_other_colours_are_no_other_frames(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = decoders.upright

    def paler(*args: Any) -> np.ndarray:
        return (upright(*args) * 0.9 + 6).astype(np.uint8)

    monkeypatch.setattr(decoders, "upright", paler)
    assert reason_against_decord(clip, "key", None) == ""


def test_a_verdict_is_reached_once_and_kept_with_the_content(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FrameCache(tmp_path / "cache")
    cache.get(clip, [0.0], (48, 80))
    (kept,) = cache.folder.glob("*.decord")
    assert kept.stem == fingerprint(clip) and json.loads(kept.read_text())["distrust"] == ""
    monkeypatch.setattr(decord_check, "_check", None)
    cache.get(clip, [1.0], (48, 80))  # from memory
    monkeypatch.setattr(decord_check, "_known", {})
    copy = shutil.copy(clip, tmp_path / "copy.mp4")
    assert (
        FrameCache(tmp_path / "cache").get(copy, [2.0], (48, 80)).backend == "decord"
    )  # another process, another name


@pytest.mark.parametrize("content", ["{", "[]", '{"heading": {"format": 0}, "distrust": "old"}', '{"heading": 1}'])
def test_a_verdict_of_other_versions_or_a_damaged_one_is_reached_anew(
    clip: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "key.decord").write_text(content)
    assert reason_against_decord(clip, "key", tmp_path) == ""
    assert json.loads((tmp_path / "key.decord").read_text())["heading"] == decord_check._cache_key()


def test_a_missing_decord_is_not_the_files_fault(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "decord", None)
        with pytest.raises(ImportError):
            reason_against_decord(clip, "key", tmp_path)
    assert not list(tmp_path.glob("*.decord")) and reason_against_decord(clip, "key", tmp_path) == ""


def test_packets_decide_without_a_call_of_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "decord_reader", None)
    path = film(tmp_path / "a.ts", CONSTANT[:30], options=GOP)
    assert "mpegts" in reason_against_decord(path, "key", None)
