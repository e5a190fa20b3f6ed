from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labkit.data.video import decode_worker
from labkit.data.video.frames import FrameCache, Frames, probe, read_frames, resize
from labkit.errors import LabError
from tests.data.films import CONSTANT, film, numbers

TIMES = [0.0, 0.5, 1.0, 1.5]
SIZE = (48, 80)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return film(tmp_path / "clip.mp4", CONSTANT[:75])


def same(one: Frames, other: Frames) -> bool:
    return np.array_equal(one.rgb, other.rgb) and np.array_equal(one.times, other.times) and one[2:] == other[2:]


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a video was opened")

    for name in ("decode", "measure"):
        monkeypatch.setattr(decode_worker, name, refuse)


def test_no_clip_is_decoded_twice(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache(tmp_path / "cache")
    first = cache.get(clip, TIMES, SIZE)
    assert (cache.hits, cache.decoded) == (0, 1)
    assert np.array_equal(first.rgb, resize(read_frames(clip, TIMES).rgb, SIZE))
    assert numbers(first.rgb) == [0, 12, 25, 37]
    forbid_decoding(monkeypatch)
    assert same(cache.get(clip, np.array(TIMES), SIZE), first)
    assert (cache.hits, cache.decoded) == (1, 1)
    # The next run, with a cache of its own on the same folder.
    later = FrameCache(tmp_path / "cache")
    assert same(later.get(str(clip), TIMES, SIZE), first)
    assert (later.hits, later.decoded) == (1, 0)


@pytest.mark.parametrize(
    ("times", "size", "start", "reason"),
    [
        (TIMES[:3], SIZE, 0.0, "fewer frames"),
        ([0.0, 0.5, 1.0, 1.4], SIZE, 0.0, "another second"),
        (TIMES, (24, 40), 0.0, "another size"),
        (TIMES, (80, 48), 0.0, "height and width swapped"),
        (TIMES, SIZE, 0.5, "another trim window"),
    ],
)
def test_another_request_is_another_entry(
    clip: Path, tmp_path: Path, times: list[float], size: tuple[int, int], start: float, reason: str
) -> None:
    cache = FrameCache(tmp_path / "cache")
    cache.get(clip, TIMES, SIZE)
    frames = cache.get(clip, times, size, start)
    assert cache.decoded == 2, reason
    assert same(frames, cache.get(clip, times, size, start)) and cache.hits == 1
    assert numbers(frames.rgb) == numbers(read_frames(clip, times, start).rgb)
    assert np.allclose(frames.times, read_frames(clip, times, start).times)


def test_a_changed_film_is_decoded_again(clip: Path, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    before = cache.get(clip, TIMES, SIZE)
    assert cache.info(clip).frames == 75
    film(clip, CONSTANT[1:60:2])  # the same path, other pictures
    after = cache.get(clip, TIMES, SIZE)
    assert cache.decoded == 2 and numbers(after.rgb) != numbers(before.rgb)
    assert cache.info(clip).frames == 30


@pytest.mark.parametrize("harm", ["cut in half", "a byte turned", "emptied", "another file's format"])
def test_a_damaged_entry_is_decoded_again_and_mended(
    clip: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FrameCache(tmp_path / "cache")
    first = cache.get(clip, TIMES, SIZE)
    (entry,) = cache.folder.glob("*.npz")
    data = bytearray(entry.read_bytes())
    if harm == "a byte turned":
        data[len(data) // 2] ^= 255
    entry.write_bytes({"cut in half": data[: len(data) // 2], "emptied": b"", "a byte turned": data}.get(harm, b"{}"))
    assert same(cache.get(clip, TIMES, SIZE), first)
    assert cache.decoded == 2 and "damaged" in caplog.text
    assert same(cache.get(clip, TIMES, SIZE), first) and cache.hits == 1


def test_a_half_written_entry_is_never_read(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache(tmp_path / "cache")

    def killed(out: Any, **arrays: Any) -> None:
        out.write(b"PK half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.get(clip, TIMES, SIZE)
    assert list(cache.folder.iterdir()) == []
    # A writer that was killed outright leaves its temporary file; nobody takes it for an entry.
    leftover = cache.folder / f".{'0' * 40}.npz.1.tmp"
    leftover.write_bytes(b"PK half of it")
    assert numbers(cache.get(clip, TIMES, SIZE).rgb) == [0, 12, 25, 37]
    assert len(list(cache.folder.glob("*.npz"))) == 1


def _fill(clip: Path, folder: Path, barrier: Any) -> None:
    cache = FrameCache(folder)
    resize(read_frames(clip, TIMES).rgb, SIZE)  # imports are done before the start
    for round_ in range(20):
        barrier.wait(60)
        assert numbers(cache.get(clip, [0.0, 80.0 + round_ * 1.6], SIZE).rgb) == [0, 50 + round_]


@pytest.mark.slow
def test_two_processes_may_write_the_same_entry(tmp_path: Path) -> None:
    clip = film(
        tmp_path / "clip.mp4", [1600 * k for k in range(75)]
    )  # two frames, more than a minute apart: decord is asked
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    barrier = context.Barrier(2)
    workers = [context.Process(target=_fill, args=(clip, tmp_path / "cache", barrier)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cache = FrameCache(tmp_path / "cache")
    for round_ in range(20):
        assert numbers(cache.get(clip, [0.0, 80.0 + round_ * 1.6], SIZE).rgb) == [0, 50 + round_]
    assert (cache.hits, cache.decoded) == (20, 0)
    assert (
        len(list(cache.folder.iterdir())) == 21
    )  # whether decord is right stands beside them, and no temporary file is left


def test_info_is_probed_once(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = FrameCache(tmp_path / "cache").info(clip)
    assert info == probe(clip)
    forbid_decoding(monkeypatch)
    assert FrameCache(tmp_path / "cache").info(clip) == info


def test_damaged_info_is_measured_again(clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = FrameCache(tmp_path / "cache")
    info = cache.info(clip)
    (entry,) = cache.folder.glob("*.json")
    entry.write_text('{"duration": 3')
    assert cache.info(clip) == info and "damaged" in caplog.text
    assert FrameCache(cache.folder).info(clip) == info


@pytest.mark.parametrize(("name", "words"), [("missing.mp4", "is not there"), ("empty.mp4", "is empty")])
def test_a_bad_video_is_named_and_leaves_no_entry(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty.mp4").touch()
    cache = FrameCache(tmp_path / "cache")
    for call in (lambda: cache.get(tmp_path / name, TIMES, SIZE), lambda: cache.info(tmp_path / name)):
        with pytest.raises(LabError, match=f"{name} {words}"):
            call()
    assert list(cache.folder.iterdir()) == [] and cache.decoded == 0


@pytest.mark.usefixtures("decord_asked")
def test_the_note_is_kept_with_the_frames(films: dict[str, Path], tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    first = cache.get(films["edit list"], TIMES, SIZE)
    again = cache.get(films["edit list"], TIMES, SIZE)
    assert again.backend == "pyav" and "edit list" in again.note and same(first, again)


def test_frames_can_be_changed_without_harm_to_the_cache(clip: Path, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    cache.get(clip, TIMES, SIZE).rgb[:] = 0
    second = cache.get(clip, TIMES, SIZE).rgb
    second[:] = 0
    assert cache.get(clip, TIMES, SIZE).rgb.max() > 200


def test_the_cache_says_what_it_did(clip: Path, tmp_path: Path) -> None:
    cache = FrameCache(tmp_path / "cache")
    cache.get(clip, TIMES, SIZE)
    assert repr(cache).endswith("hits=0, decoded=1)")
