"""A real Charades video, where the checkout's neighbour holds it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labkit.data.video import decoders
from labkit.data.video.frames import FrameCache, probe, read_frames, sample_times

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real"
VIDEO = REAL / "videos" / "OHOFG.mp4"

pytestmark = pytest.mark.skipif(
    not VIDEO.exists(), reason=f"the real Charades video is NOT CHECKED: ../shared/real/videos/{VIDEO.name} is absent"
)


def test_its_true_length_is_measured() -> None:
    info = probe(VIDEO)
    assert (info.width, info.height, info.frames) == (640, 360, 335)
    assert info.duration == pytest.approx(35.14, abs=0.01)  # Charades' own table says 35.04
    assert info.fps == pytest.approx(9.53, abs=0.01)


@pytest.mark.slow
def test_decord_and_pyav_show_the_same_frames_at_the_same_seconds() -> None:
    wanted = sample_times(35.04, 1.0, 64)
    one, other = decoders.decode_with_decord(VIDEO, wanted, None), decoders.decode_with_pyav(VIDEO, wanted, None)
    assert one.times == pytest.approx(other.times, abs=1e-4)
    assert np.abs(one.rgb.astype(int) - other.rgb).mean() < 0.5
    # A frame stays for 0.105 s: what is on screen at a second came on at most that long before.
    assert (wanted - one.times < 0.106).all() and (one.times <= wanted + 1e-3).all()


def test_a_trim_window_shows_what_the_whole_video_shows(asked: bool) -> None:
    # "a person is eating some food": 22.3 to 33.0 s.
    times = sample_times(33.0 - 22.3, 2.0, 32)
    window, whole = read_frames(VIDEO, times, start=22.3), read_frames(VIDEO, times + 22.3)
    assert np.array_equal(window.rgb, whole.rgb)
    assert np.allclose(window.times + 22.3, whole.times)
    assert (window.backend, window.note) == ("decord" if asked else "pyav", "")


def test_it_is_decoded_once(tmp_path: Path) -> None:
    times = sample_times(35.04, 2.0, 32)
    cache = FrameCache(tmp_path)
    first, second = (cache.get(VIDEO, times, (56, 84)) for _ in range(2))
    assert (cache.decoded, cache.hits) == (1, 1)
    assert first.rgb.shape == (32, 56, 84, 3) and np.array_equal(first.rgb, second.rgb)
