"""Pictures in a smaller form."""

from __future__ import annotations

import base64
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from labkit.views.report.notebook_html import MOST_PIXELS, SMALL, smaller_image, to_webp
from tests.executed import PNG


def png_of(rgba: np.ndarray) -> bytes:
    file = BytesIO()
    Image.fromarray(rgba).save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_a_picture_keeps_its_transparency_and_shrinks() -> None:
    rgba = np.zeros((40, 60, 4), np.uint8)
    rgba[10:20, 10:20] = (0, 158, 115, 255)
    webp = to_webp(png_of(rgba))
    assert webp[:4] == b"RIFF" and webp[8:12] == b"WEBP"
    again = np.asarray(Image.open(BytesIO(webp)).convert("RGBA"))
    assert (again[..., 3] == rgba[..., 3]).all() and (again[15, 15] == rgba[15, 15]).all()


def test_what_is_no_picture_is_said() -> None:
    with pytest.raises(ValueError, match="not a picture"):
        to_webp(b"no")


def test_a_picture_that_claims_to_be_huge_is_left_alone() -> None:
    png = bytearray(base64.b64decode(PNG))
    png[16:24] = struct.pack(">II", MOST_PIXELS, 2)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    with pytest.raises(ValueError, match="40,000,000 pixels are too many"):
        to_webp(bytes(png))


def test_a_page_gets_the_smaller_form() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 60, 4), np.uint8)
    large = png_of(noise)
    assert len(large) > SMALL
    kind, data = smaller_image(base64.b64encode(large).decode())
    assert kind == "image/webp" and len(base64.b64decode(data)) < len(large)
    assert smaller_image(PNG) == ("image/png", PNG), "too small to be worth it"
    broken = base64.b64encode(b"x" * 2 * SMALL).decode()
    assert smaller_image(broken) == ("image/png", broken)
