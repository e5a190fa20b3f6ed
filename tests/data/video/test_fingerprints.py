from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from labkit.data.video import fingerprints
from labkit.data.video.fingerprints import fingerprint
from labkit.data.video.frames import FrameCache
from tests.data.films import CONSTANT, film

SMALL, LARGE = 50_000, 3_000_000


def written(path: Path, size: int) -> Path:
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    return path


@pytest.mark.parametrize("settled", [True, False], ids=["an hour ago", "just now"])
@pytest.mark.parametrize(
    ("size", "place", "length"),
    [
        (SMALL, 0, 1),
        (SMALL, SMALL // 2, 1),  # a small file is read whole
        (SMALL, SMALL - 1, 1),
        (LARGE, 0, 1),
        (LARGE, LARGE // 2, 1),  # a block lies in the very middle
        (LARGE, LARGE - 1, 1),
        (LARGE, LARGE // 3, LARGE // 16),  # of what is this long, some block holds a part
    ],
)
def test_a_change_of_equal_size_and_time_is_seen(
    tmp_path: Path, size: int, place: int, length: int, settled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if settled:
        monkeypatch.setattr(
            fingerprints, "_MIN_FILE_AGE", -1.0
        )  # as if the file had been written long ago: what was read is remembered
    path = written(tmp_path / "a.mp4", size)
    before, stat = fingerprint(path), path.stat()
    data = bytearray(path.read_bytes())
    data[place : place + length] = bytes(255 - byte for byte in data[place : place + length])
    if settled:
        while path.stat().st_ctime_ns == stat.st_ctime_ns:  # one tick of the file system's clock
            path.write_bytes(data)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns and fingerprint(path) != before


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_neither_name_nor_place_nor_time_enters(tmp_path: Path, size: int) -> None:
    path = written(tmp_path / "a.mp4", size)
    first = fingerprint(path)
    copy = tmp_path / "elsewhere" / "b.mkv"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    os.utime(copy, (1, 1))
    assert fingerprint(copy) == first and len(first) == 32
    path.rename(tmp_path / "c.mp4")
    assert fingerprint(tmp_path / "c.mp4") == first


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "_MIN_FILE_AGE", -1.0)
    path = written(tmp_path / "a.mp4", SMALL)
    first = fingerprint(path)
    monkeypatch.setattr(fingerprints.hashlib, "blake2b", None)
    assert fingerprint(path) == first


def test_a_data_folder_that_was_moved_finds_its_frames(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    video = film(tmp_path / "data" / "a.mp4", CONSTANT[:30])
    FrameCache(tmp_path / "frames").get(video, [0.0, 1.0], (48, 80))
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    (tmp_path / "data").rename(tmp_path / "moved")
    for folder in ("copy", "moved"):
        cache = FrameCache(tmp_path / "frames")
        cache.get(tmp_path / folder / "a.mp4", [0.0, 1.0], (48, 80))
        assert (cache.hits, cache.decoded) == (1, 0)
