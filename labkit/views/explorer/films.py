"""The real video behind a clip: how a browser gets it from a kernel, and from a page that lies beside it.

A clip's sheet of pictures is always there; the video adds its own resolution, every frame and the sound where a browser can play it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from labkit.views.explorer.packing import VideoClip

PLAYED = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".ogv"})
"""Endings of files that some browser plays; of the others, such as .avi and .wmv, the sheet is shown."""
MOST_FILM_BYTES = 32 << 20
"""Of a video that is sent by the kernel: the browser holds all of it in memory."""


def film_for_browser(clip: VideoClip, server_root: str = "") -> tuple[dict[str, Any], list[bytes]]:
    """What a page is answered that asks for a clip's video, and the bytes that go with it.

    `path` is the video's below `server_root`, the folder of the Jupyter server, which then sends it bit by bit; "" is no server. A
    video that lies elsewhere comes as bytes where it has at most `MOST_FILM_BYTES`. Of any other, `why` says why it is not played.
    """
    video = Path(clip.video)
    if video.suffix.lower() not in PLAYED:
        return {"why": f"browsers do not play {video.suffix or 'files without an ending'}"}, []
    if server_root and (path := _below(video, Path(os.path.expanduser(server_root)))):
        return {"path": path, "start": clip.start}, []
    try:
        size = video.stat().st_size
        if size > MOST_FILM_BYTES:
            return {"why": f"{size / 1e6:.0f} MB, and not below the folder of the Jupyter server"}, []
        return {"start": clip.start}, [video.read_bytes()]
    except OSError as error:
        return {"why": str(error.strerror)}, []


def film_beside(clip: VideoClip, page: Path) -> dict[str, Any] | None:
    """Where a page that is written to `page` looks for a clip's video; None where no browser plays it.

    That is where it lies now if both are below the working folder. Otherwise it is beside the page: a path says where somebody's
    files lie, and the name is enough for a page that is sent along with its video.
    """
    video, here = Path(clip.video).absolute(), Path.cwd()
    if video.suffix.lower() not in PLAYED:
        return None
    folder = page.absolute().parent
    near = video.is_relative_to(here) and folder.is_relative_to(here)
    path = os.path.relpath(video, folder) if near else video.name
    return {"src": quote(path.replace(os.sep, "/")), "start": clip.start}


def _below(video: Path, root: Path) -> str:
    """The path of a URL from `root` to a video; "" where it is not below, or where a server refuses it as hidden."""
    for file, folder in ((video.absolute(), root.absolute()), (video.resolve(), root.resolve())):
        if file.is_relative_to(folder):
            parts = file.relative_to(folder).parts
            return "" if any(part.startswith(".") for part in parts) else quote("/".join(parts))
    return ""
