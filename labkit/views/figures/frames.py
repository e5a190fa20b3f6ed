"""The few small frames that a picture shows of a video."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labkit.data.moments import Moment

HEIGHT = 72
"""Pixels of a strip of frames."""
WIDTH = 680
"""Pixels that whole frames of a strip fill side by side; in a wider or narrower figure they lose their edges."""


class Film(NamedTuple):
    """Small frames (T, H, W, 3) uint8 and the times (T,) in seconds from the clip's beginning at which they show."""

    rgb: NDArray[np.uint8]
    times: NDArray[np.float64]


def film(moment: Moment) -> Film:
    """As many small frames of a moment's clip as fit side by side in a strip, each from the middle of its place.

    Raises LabError when the video is missing or cannot be read.
    """
    from labkit.data.video.frames import probe, thumbnails

    info = probe(moment.video)
    count = places(info.width / info.height)
    times = (np.arange(count) + 0.5) * moment.duration / count
    # A frame past a file's last one is refused by the reader: annotations often run a little longer than the video.
    shown = times[times + moment.start < info.duration]
    if not len(shown):
        shown = times[:1]  # none is left: the reader says so better than an empty strip would
    width = max(1, min(info.width, round(1.6 * HEIGHT * info.width / info.height)))
    return Film(thumbnails(moment.video, shown + moment.start, width), shown)


def places(aspect: float) -> int:
    """How many frames of an aspect ratio (width / height) stand side by side in a strip."""
    return int(np.clip(round(WIDTH / (HEIGHT * aspect)), 3, 14))


def data_uri(rgb: NDArray[np.uint8]) -> str:
    """A frame as a JPEG inside the figure (a few kB)."""
    import base64
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
