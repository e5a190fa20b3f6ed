from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from labkit.data.video_index import VideoFolder
from labkit.errors import LabError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("abc", "abc.mp4", "a name without a suffix"),
        ("abc", "deep/er/abc.webm", "another suffix, at any depth"),
        ("./dataset/x/abc.mp4", "abc.mkv", "the published folder and suffix do not bind"),
        ("s13-d21.avi", "s13-d21.avi", "TACoS has avi files"),
        ("ID_210.0_360.0", "ID_210.0_360.0.mp4", "a number's point is no suffix"),
        ("abc", "abc.MP4", "capitals"),
        *(("abc", f"abc.{suffix}", "by its bare name") for suffix in ("m4v", "ts", "wmv", "flv", "mpg", "mpeg", "TS")),
        ("caf\u00e9", "cafe\u0301.mp4", "composed in the file, taken apart on the disk"),
        ("cafe\u0301.mp4", "caf\u00e9.mp4", "the other way round"),
    ],
)
def test_a_video_is_found_by_its_base_name(tmp_path: Path, name: str, file: str, reason: str) -> None:
    touch(tmp_path / file, tmp_path / "other.mp4", tmp_path / "abc.txt", tmp_path / ".hidden" / "abc.mp4")
    assert VideoFolder(tmp_path).find(name) == (str(tmp_path / file), True, ()), reason


@pytest.mark.parametrize(
    ("name", "expected"), [("abc", "abc.mp4"), ("x/abc.mkv", "abc.mkv"), ("ID_0.0_150.0", "ID_0.0_150.0.mp4")]
)
def test_a_video_that_is_not_there_has_the_path_where_it_is_expected(tmp_path: Path, name: str, expected: str) -> None:
    assert VideoFolder(tmp_path / "none").find(name) == (str(tmp_path / "none" / expected), False, ())


def test_of_two_by_one_name_the_published_suffix_wins_and_the_other_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "abc.mp4", tmp_path / "abc.webm", tmp_path / "old" / "abc.mp4")
    folder = VideoFolder(tmp_path)
    assert folder.find("abc.webm").path == str(tmp_path / "abc.webm")
    assert folder.find("abc") == (
        str(tmp_path / "abc.mp4"),
        True,
        (str(tmp_path / "old/abc.mp4"), str(tmp_path / "abc.webm")),
    )


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "disk" / "abc.mp4")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "far").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "videos")
    assert VideoFolder(tmp_path / "videos").find("abc") == (str(tmp_path / "videos/far/abc.mp4"), True, ())


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="needs an account whose rights are checked")
def test_a_folder_that_may_not_be_looked_into_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0)
    try:
        with pytest.raises(LabError, match="shut cannot be looked into"):
            VideoFolder(tmp_path).find("abc")
    finally:
        (tmp_path / "shut").chmod(0o700)


def test_ten_thousand_videos_are_indexed_in_well_under_a_second(tmp_path: Path) -> None:
    for part in range(10):
        (tmp_path / str(part)).mkdir()
        for k in range(1000):
            (tmp_path / str(part) / f"{part}-{k}.mp4").touch()
    begun = time.perf_counter()
    folder = VideoFolder(tmp_path)
    assert all(folder.find(f"{part}-{k}").there for part in range(10) for k in range(1000))
    assert time.perf_counter() - begun < 1.0
