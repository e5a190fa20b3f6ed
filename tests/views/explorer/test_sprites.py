"""Sheets of frames: the right frame in the right place, made once, never half."""

from __future__ import annotations

import io
import logging
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from labkit.errors import LabError
from labkit.views.explorer import sprites
from labkit.views.explorer.sprites import Sheet, SheetCache, sheet_columns
from tests.data.films import CONSTANT, VARIABLE, expected, film, numbers


def unpacked(sheet: Sheet) -> np.ndarray:
    """The frames of a sheet, in order."""
    with av.open(io.BytesIO(sheet.webp)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    places = [divmod(k, sheet.columns) for k in range(sheet.frames)]
    w, h = sheet.width, sheet.height
    return np.stack([picture[row * h : (row + 1) * h, column * w : (column + 1) * w] for row, column in places])


@pytest.mark.parametrize("milliseconds", [CONSTANT, VARIABLE], ids=["constant rate", "variable rate"])
def test_frame_k_is_what_the_video_shows_at_k_steps(tmp_path: Path, milliseconds: list[int]) -> None:
    sheet = SheetCache().get(film(tmp_path / "a.mp4", milliseconds), duration=5.0)
    assert (sheet.frames, sheet.step, sheet.width, sheet.height) == (10, 0.5, 160, 96)
    assert numbers(unpacked(sheet)) == expected(milliseconds, [k * 0.5 for k in range(10)])


def test_a_trimmed_clip_counts_from_its_own_beginning(tmp_path: Path) -> None:
    sheet = SheetCache().get(film(tmp_path / "a.mp4", CONSTANT), duration=1.5, start=2.0)
    assert numbers(unpacked(sheet)) == expected(CONSTANT, [2.0, 2.5, 3.0])


def test_a_clip_without_duration_ends_with_the_video_and_a_longer_one_too(tmp_path: Path) -> None:
    # 40 frames of 100 ms: 4 s, eight frames at 2 fps
    video = film(tmp_path / "a.mp4", [100 * k for k in range(40)])
    assert SheetCache().get(video).frames == 8
    assert SheetCache().get(video, duration=60.0).frames == 8


def test_a_clip_too_long_for_one_sheet_gets_longer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sprites, "MOST_PIXELS", 4 * 160 * 96)
    sheet = SheetCache().get(film(tmp_path / "a.mp4", CONSTANT), duration=4.0)
    assert (sheet.frames, sheet.step) == (4, 1.0)
    assert numbers(unpacked(sheet)) == expected(CONSTANT, [0, 1, 2, 3])


def test_frames_are_made_small_and_even(tmp_path: Path) -> None:
    # 160 x 96 at 101 pixels would be 101 x 61: neither is even
    sheet = SheetCache().get(film(tmp_path / "a.mp4", CONSTANT), duration=2.0, width=101)
    assert (sheet.width, sheet.height) == (100, 60)
    sheet = SheetCache().get(film(tmp_path / "b.mp4", CONSTANT), duration=2.0, width=98)
    assert (sheet.width, sheet.height) == (98, 60)  # 58.8, rounded to 59, one row repeated


@pytest.mark.parametrize(
    ("count", "width", "height", "columns"),
    [
        (1, 224, 126, 1),  # one frame
        (2, 20, 300, 2),  # never more columns than frames
        (120, 224, 126, 8),  # sqrt(120 * 126 / 224) = 8.2
        (708, 224, 126, 20),  # the most of this size: sqrt(398.3) = 19.96
        (62500, 32, 10, 140),  # the most of a tiny one: sqrt(19531) = 139.8
    ],
)
def test_a_sheet_is_about_square_and_no_side_too_long_for_webp(
    count: int, width: int, height: int, columns: int
) -> None:
    assert sheet_columns(count, width, height) == columns
    assert columns * width < 16_383 and -(-count // columns) * height < 16_383


def test_a_sheet_is_made_once_and_again_when_its_video_changes(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", CONSTANT)
    first = SheetCache(tmp_path / "cache").get(video, 2.0)
    cache = SheetCache(tmp_path / "cache")
    assert cache.get(video, 2.0) == first and (cache.hits, cache.made) == (1, 0)
    cache.get(video, 2.0, width=80)
    cache.get(video, 3.0)
    assert (cache.hits, cache.made) == (1, 2)
    film(video, CONSTANT[:60])
    cache.get(video, 2.0)
    assert cache.made == 3
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".sheet"]


@pytest.mark.parametrize(
    "damage", [b"", b"no header at all", b'{"bytes": 7}\nshort', b'{"frames": 1, "bytes": 2}\nok']
)
def test_a_damaged_sheet_is_made_again(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    video = film(tmp_path / "a.mp4", CONSTANT[:20])
    cache = SheetCache(tmp_path / "cache")
    good = cache.get(video, 1.0)
    (file,) = (tmp_path / "cache").glob("*.sheet")
    file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert cache.get(video, 1.0) == good
    assert "damaged" in caplog.text and cache.made == 2


def test_threads_wait_for_each_other_and_make_a_sheet_once(tmp_path: Path) -> None:
    video = film(tmp_path / "a.mp4", CONSTANT[:50])
    cache = SheetCache(tmp_path / "cache")
    found: list[Sheet] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get(video, 2.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(set(found)) == 1
    assert (cache.made, cache.hits) == (1, 3)


def test_a_video_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="gone.mp4"):
        SheetCache(tmp_path).get(tmp_path / "gone.mp4", 2.0)
    with pytest.raises(LabError, match="ends at"):
        SheetCache(tmp_path).get(film(tmp_path / "a.mp4", CONSTANT[:20]), 2.0, start=600.0)


def test_one_clip_is_sharp_as_long_as_its_frames_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = film(tmp_path / "a.mp4", CONSTANT)  # 160x96, 8 s: 16 frames
    monkeypatch.setattr(sprites, "WIDTH", 40)
    told: list[tuple[int, int]] = []
    for pixels, width in ((10**6, 160), (16 * 80 * 48, 80), (16 * 20 * 12, 40)):
        monkeypatch.setattr(sprites, "MOST_PIXELS", pixels)
        sheet = SheetCache().get(video, 8.0, width=sprites.SHARP_WIDTH, on_progress=lambda *each: told.append(each))
        assert sheet.width == width
    assert sheet.step == 2.0, "smaller than WIDTH they never get: then the steps are longer"
    assert told[-1] == (4, 4)
