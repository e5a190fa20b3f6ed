"""Figures' pictures as WebP, a quarter of the PNGs' size: without loss where that is small, as it is for lines and bars."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import struct

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
    from PIL import Image

    if _pixels(png) > MOST_PIXELS:
        raise ValueError(f"its {_pixels(png):,} pixels are too many")
    try:
        with Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError, struct.error) as error:  # what Pillow raises for a file that is none, or cut off
        raise ValueError(f"not a picture: {error}") from None
    exact, close = io.BytesIO(), io.BytesIO()
    picture.save(exact, "WEBP", lossless=True, quality=90, method=4)
    picture.save(close, "WEBP", quality=_QUALITY, method=4)
    smaller = 3 * close.tell() < 2 * exact.tell()
    return (close if smaller else exact).getvalue()


def _pixels(png: bytes) -> int:
    """How many pixels a PNG says that it has; 0 for what is none."""
    if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
        return 0
    width, height = struct.unpack(">II", png[16:24])
    return int(width * height)
