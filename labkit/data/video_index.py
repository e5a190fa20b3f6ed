"""Folders of videos: which file goes by a name, whatever its suffix and wherever below the folder it lies."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from labkit.errors import LabError

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts", ".wmv", ".flv", ".mpg", ".mpeg", ".mts", ".m2ts", ".ogv", ".3gp",
)  # fmt: skip
"""What a video file ends in; of several by one name the earlier is taken, after the published one."""

_FOREIGN_PATH = re.compile(r"[A-Za-z]:[\\/]|\\\\|(?!file:)[A-Za-z][A-Za-z0-9+.-]+://")
_CLOCK = r"(\d+):(\d\d):(\d\d[:.]\d+)"
_SECONDS = re.compile(r"(.+)_(\d+\.\d+)_(\d+\.\d+)", re.ASCII)
_CLOCKS = re.compile(rf"(.+)_{_CLOCK}_{_CLOCK}", re.ASCII)


class VideoFile(NamedTuple):
    """A video's path, whether it is there, and the other files that go by its name."""

    path: str
    there: bool
    others: tuple[str, ...] = ()


class VideoFolder:
    """An index of a folder's videos by base name; the folder is walked once, when the first name is looked up.

    A folder that isn't there holds no video: paths are then where the videos would be expected.
    """

    def __init__(self, folder: str | Path, implied: bool = False) -> None:
        """Look below `folder`, through links as well; `implied` says that nobody has named it."""
        self.path, self.implied = os.path.abspath(folder), implied
        self._index: dict[str, list[str]] | None = None

    def find(self, name: str) -> VideoFile:
        """The file that goes by `name`, of which folders and suffix may differ; else `name`, or name.mp4, in here."""
        stem, suffix = stem_of(name)
        if self._index is None:
            self._index = {}
            for path in _videos(self.path):
                self._index.setdefault(_composed(stem_of(path)[0]), []).append(path)
        candidates = self._index.get(_composed(stem))
        if not candidates:
            return VideoFile(os.path.join(self.path, stem + (suffix or ".mp4")), False)

        def rank(path: str) -> tuple[bool, int, str]:
            own = os.path.splitext(path)[1].lower()
            return own != (suffix or ".mp4").lower(), SUFFIXES.index(own), path

        best, *others = sorted(candidates, key=rank) if len(candidates) > 1 else candidates
        return VideoFile(best, True, tuple(others))


@lru_cache(1 << 12)
def stem_of(name: str) -> tuple[str, str]:
    """A video's base name, and its suffix if it has one; folders are left out.

    >>> stem_of("./videos/KWZSA.mp4"), stem_of("NUsG9BgSes0_210.0_360.0")
    (('KWZSA', '.mp4'), ('NUsG9BgSes0_210.0_360.0', ''))
    """
    base = name.replace("\\", "/").rpartition("/")[2]
    stem, suffix = os.path.splitext(base)
    return (stem, suffix) if suffix.lower() in SUFFIXES else (base, "")


def is_foreign_path(video: str) -> bool:
    r"""Whether a video's path is a link, or one of Windows where there are none: its name is all that can be used.

    >>> is_foreign_path("s3://bucket/a.mp4"), is_foreign_path("C:\\data\\a.mp4"), is_foreign_path("file:///data/a.mp4")
    (True, True, False)
    """
    return _FOREIGN_PATH.match(video) is not None and os.name != "nt"


def local_path(video: str, folder: str | Path) -> str:
    r"""The absolute path that a file in `folder` means by `video`: as it stands, or as this machine writes it.

    Home, variables and file:// are resolved; backslashes, and accents in their other spelling (a Mac takes letters with
    accents apart), are tried where the path as it stands is not there.

    >>> local_path("file:///data/a%20b.mp4", "/here"), local_path("clips\\a.mp4", "/here")
    ('/data/a b.mp4', '/here/clips/a.mp4')
    """
    if video.startswith("file:"):
        video = unquote(urlsplit(video).path)
    path = os.path.abspath(os.path.join(folder, os.path.expandvars(os.path.expanduser(video))))
    if path.isascii() and "\\" not in video or os.path.exists(path):
        return path
    slashed = path if video.startswith("/") else path.replace("\\", "/")
    spelled = (unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))
    return next((other for other in spelled if os.path.exists(other)), slashed)


def _composed(name: str) -> str:
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def trim_window(stem: str) -> tuple[str, float, float] | None:
    """The source video's name and the trim window in seconds, where a clip's name states them as its authors do.

    Numbers without a decimal point are left alone: take_1_2 is nobody's window.

    >>> trim_window("NUsG9BgSes0_210.0_360.0"), trim_window("4jujh_00:00:39:000_00:01:24:700"), trim_window("take_1_2")
    (('NUsG9BgSes0', 210.0, 360.0), ('4jujh', 39.0, 84.7), None)
    """
    if match := _SECONDS.fullmatch(stem):
        begin, end = float(match[2]), float(match[3])
    elif match := _CLOCKS.fullmatch(stem):
        begin, end = _clock(*match.groups()[1:4]), _clock(*match.groups()[4:7])
    else:
        return None
    return (match[1], begin, end) if begin < end else None


def _clock(hours: str, minutes: str, seconds: str) -> float:
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds.replace(":", "."))


def walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Every folder from `folder` down with the names of its files, sorted; links are followed, but never in a circle.

    Raises LabError when a folder may not be looked into.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                listed = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise LabError(f"folder {here} cannot be looked into ({error.strerror}); correct its rights") from None
        waiting.extend(os.path.join(here, name) for name, is_folder in reversed(listed) if is_folder)
        yield here, [name for name, is_folder in listed if not is_folder]


def _videos(folder: str) -> Iterator[str]:
    for here, names in walk(folder):
        yield from (os.path.join(here, name) for name in names if name.lower().endswith(SUFFIXES))
