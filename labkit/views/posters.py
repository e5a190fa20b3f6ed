"""Figures' pictures as WebP, a quarter of the PNGs' size: without loss where that is small, as it is for lines and bars."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import struct
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

MOST_PIXELS = 20_000_000
"""A larger picture is left as it is: a small file may claim to be one that no memory could hold."""
SMALL = 8_000
"""Bytes of a PNG that isn't worth another form."""
_QUALITY = 76


@functools.lru_cache(256)
def compact(png: str) -> tuple[str, str]:
    """A PNG in base64 as the smaller of itself and a WebP: mime type and base64."""
    try:
        raw = base64.b64decode(png, validate=False)
        made = to_webp(raw) if len(raw) > SMALL else raw
    except (ValueError, binascii.Error):
        return "image/png", png
    return ("image/webp", base64.b64encode(made).decode("ascii")) if len(made) < len(raw) else ("image/png", png)


def to_webp(png: bytes) -> bytes:
    """A picture as WebP with its transparency: without loss, unless that is half as large again, as frames of a video are.

    Raises ValueError when `png` is no picture.
    """
    import av

    if _pixels(png) > MOST_PIXELS:
        raise ValueError(f"its {_pixels(png):,} pixels are too many")
    try:
        with av.open(io.BytesIO(png), "r", format="png_pipe", metadata_errors="ignore") as container:
            frame = next(container.decode(video=0))
    except (av.error.FFmpegError, StopIteration) as error:
        raise ValueError(f"not a picture: {error}") from None
    exact = _encode(frame, "bgra", {"lossless": "1", "quality": "90"})
    close = _encode(frame, "yuva420p", {"quality": str(_QUALITY)})
    return close if 3 * len(close) < 2 * len(exact) else exact


def _pixels(png: bytes) -> int:
    """How many pixels a PNG says that it has; 0 for what is none."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        return 0
    width, height = struct.unpack(">II", png[16:24])
    return int(width * height)


def _encode(frame: Any, kind: str, options: Mapping[str, str]) -> bytes:
    import av

    codec: Any = av.CodecContext.create("libwebp", "w")
    codec.width, codec.height = frame.width, frame.height
    codec.pix_fmt, codec.time_base = kind, Fraction(1, 25)
    codec.options = {"compression_level": "4", **options}
    return b"".join(bytes(packet) for packet in [*codec.encode(frame.reformat(format=kind)), *codec.encode(None)])
