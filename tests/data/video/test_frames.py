from __future__ import annotations

import logging
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.data.video import decoders
from labkit.data.video.frames import FrameCache, probe, read_frames, resize, sample_times, thumbnails
from labkit.errors import LabError
from tests.data.films import CONSTANT, VARIABLE, expected, film, numbers, painted, remux, sound

TIMES = [0.0, 0.01, 0.04, 0.3, 0.5, 0.999, 1.0, 1.02, 1.777, 2.5]
KINDS = [
    # film, times of its frames, number of the first frame shown, decoder where decord is asked
    ("constant", CONSTANT, 0, "decord"),
    ("variable", VARIABLE, 0, "decord"),
    ("late clock", CONSTANT[:75], 0, "decord"),  # its first frame is stamped 5 s
    ("edit list", CONSTANT, 75, "pyav"),  # cut at 3 s inside a group of pictures: decord's indices are off by a second
]


@pytest.fixture(scope="module")
def slow_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame a second, 150 s."""
    return film(tmp_path_factory.mktemp("slow") / "slow.mp4", [1000 * k for k in range(150)], options={"g": "12"})


@pytest.mark.parametrize(
    ("duration", "fps", "most", "times", "reason"),
    [
        (2.0, 2.0, 32, [0, 0.5, 1, 1.5], "fits"),
        (2.4, 2.0, 32, [0, 0.5, 1, 1.5, 2, 2], "the fifth frame is its own partner: the last second is seen"),
        (3.0, 1.0, 32, [0, 1, 2, 2], "three seconds at one a second"),
        (1.0, 1.0, 32, [0, 0.5], "one step holds both frames"),
        (16.0, 2.0, 32, [k / 2 for k in range(32)], "the embedded lab's clips: nothing is added where nothing is odd"),
        (3.5, 2.0, 7, [0, 3.5 / 6, 7 / 6, 1.75, 14 / 6, 17.5 / 6], "seven would need an eighth: six are spread"),
        (2.6, 2.0, 32, [0, 0.5, 1, 1.5, 2, 2.5], "the sixth frame lies inside the clip"),
        (2.0 + 1e-9, 2.0, 32, [0, 0.5, 1, 1.5], "rounding in the annotation adds no frame"),
        (8.0, 2.0, 4, [0, 2, 4, 6], "the limit spreads the frames over the whole clip"),
        (9.0, 1.0, 7, [0, 1.5, 3, 4.5, 6, 7.5], "a limit that is no multiple is rounded down"),
        (0.3, 1.0, 32, [0, 0.15], "two frames even of a clip shorter than one step, both inside it"),
    ],
)
def test_sampling_follows_the_clock(duration: float, fps: float, most: int, times: list[float], reason: str) -> None:
    assert sample_times(duration, fps, most) == pytest.approx(times), reason


@settings(deadline=None)
@given(
    duration=st.floats(0.05, 5000),
    fps=st.floats(0.1, 30),
    pairs=st.integers(1, 400),
    multiple=st.sampled_from([1, 2, 4]),
)
def test_sampled_times_are_even_and_inside_the_clip(duration: float, fps: float, pairs: int, multiple: int) -> None:
    times = sample_times(duration, fps, pairs * multiple, multiple)
    assert len(times) % multiple == 0 and multiple <= len(times) <= pairs * multiple
    assert times[0] == 0 and times[-1] < duration
    seen = np.unique(times)
    assert (
        len(times) - len(seen) < multiple and (times[len(seen) :] == times[-1]).all()
    )  # the last one fills its patch
    steps = np.diff(seen)
    assert np.allclose(steps, steps[:1])
    if len(seen) > 1:
        assert duration - seen[-1] <= steps[0] + 1e-4  # and no more than a step is left behind it
    if len(seen) > multiple:
        assert steps[0] >= 1 / fps - 1e-6  # never denser than asked for


@pytest.mark.parametrize(
    ("duration", "fps", "most"), [(0.0, 2.0, 8), (float("nan"), 2.0, 8), (3.0, 0.0, 8), (3.0, 2.0, 1)]
)
def test_sampling_refuses_what_gives_no_frames(duration: float, fps: float, most: int) -> None:
    with pytest.raises(ValueError, match="must"):
        sample_times(duration, fps, most)


@pytest.mark.parametrize(("kind", "clock", "first", "backend"), KINDS, ids=[row[0] for row in KINDS])
def test_the_frame_shown_at_a_true_second_is_read(
    films: dict[str, Path], kind: str, clock: list[int], first: int, backend: str, asked: bool
) -> None:
    want = expected(clock, TIMES, first)
    frames = read_frames(films[kind], TIMES)
    assert numbers(frames.rgb) == want
    assert frames.times == pytest.approx([(clock[k] - clock[first]) / 1000 for k in want], abs=1e-4)
    assert frames.backend == (backend if asked else "pyav")
    assert ("edit list" in frames.note) == (kind == "edit list" and asked)
    assert numbers(decoders.decode_with_pyav(films[kind], np.array(TIMES), None).rgb) == want


@pytest.mark.parametrize(
    ("times", "backend", "reason"),
    [
        (np.arange(20) / 2, "pyav", "two a second"),
        (np.arange(300) / 2, "pyav", "two a second of a long film: 149.5 - 600 s"),
        (np.arange(0.0, 150.0, 2.0), "pyav", "one in 2 s of it: 148 - 150 s"),
        (np.arange(0.0, 60.0, 5.0), "pyav", "one in 5 s of a short film: 55 - 24 s, less than the check costs"),
        (np.arange(0.0, 150.0, 5.0), "decord", "one in 5 s of a long one: 145 - 60 s"),
        (100 + np.arange(20) / 2, "decord", "a window late in a film: 109.5 - 40 s"),
        (np.array([62.0]), "pyav", "one frame: 62 - 2 s"),
        (np.array([62.01]), "decord", "one frame: 62.01 - 2 s, more than a minute"),
        (np.array([63.0, 63.0]), "decord", "a time that stands twice is one frame: 63 - 2 s"),
    ],
)
def test_decord_is_asked_where_more_than_a_minute_can_be_left_out(
    slow_film: Path, tmp_path: Path, times: np.ndarray, backend: str, reason: str
) -> None:
    cache = FrameCache(tmp_path)
    frames = cache.get(slow_film, times, (96, 160))
    assert (frames.backend, frames.note) == (backend, ""), reason
    assert numbers(frames.rgb) == [int(time) for time in times]
    assert len(list(tmp_path.glob("*.decord"))) == (backend == "decord"), "nothing is checked that is not asked"


def test_mean_rate_would_have_read_other_frames(films: dict[str, Path]) -> None:
    # The film is a test of anything only if the common shortcut fails on it.
    rate = probe(films["variable"]).fps
    assert [int(time * rate) for time in TIMES] != expected(VARIABLE, TIMES)


@pytest.mark.parametrize("kind", ["constant", "variable", "late clock", "rotated"])
def test_decord_and_pyav_agree(films: dict[str, Path], kind: str) -> None:
    wanted = np.arange(0, 2.9, 0.13)
    one, other = (read(films[kind], wanted, None) for read in (decoders.decode_with_decord, decoders.decode_with_pyav))
    assert one.rgb.shape == other.rgb.shape
    assert np.abs(one.rgb.astype(int) - other.rgb).max() <= 1
    assert one.times == pytest.approx(other.times, abs=1e-4)


@pytest.mark.parametrize("angle", [90, -90, 180])
@pytest.mark.parametrize("missing", [False, True], ids=["decord", "pyav"])
@pytest.mark.usefixtures("in_this_process", "decord_asked")
def test_a_rotated_film_stands_upright(
    films: dict[str, Path], tmp_path: Path, angle: int, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remux(films["constant"], tmp_path / "turned.mp4", rotate=angle)
    if missing:
        monkeypatch.setitem(sys.modules, "decord", None)
    lying = read_frames(films["constant"], [1.0]).rgb[0]
    assert np.abs(read_frames(path, [1.0]).rgb[0].astype(int) - np.rot90(lying, angle // 90)).max() <= 1
    info = probe(path)
    assert (info.width, info.height) == ((96, 160) if abs(angle) == 90 else (160, 96))


@pytest.mark.usefixtures("in_this_process", "decord_asked")
def test_pyav_takes_over_where_decord_is_not_installed(
    films: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)
    frames = read_frames(films["variable"], TIMES)
    assert frames.backend == "pyav" and "ModuleNotFoundError" in frames.note
    assert numbers(frames.rgb) == expected(VARIABLE, TIMES)


@pytest.mark.usefixtures("decord_asked")
def test_av1_is_read_by_pyav(tmp_path: Path) -> None:
    try:
        av.codec.Codec("libsvtav1", "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip("this PyAV has no AV1 encoder (libsvtav1) to make the film with")
    options = {"preset": "10", "svtav1-params": "lp=1"}
    path = film(tmp_path / "av1.mp4", CONSTANT[:75], codec="libsvtav1", options=options)
    frames = read_frames(path, TIMES)
    assert numbers(frames.rgb) == expected(CONSTANT, TIMES)
    assert frames.backend == "pyav" and frames.note.startswith("decord is not trusted with av1")
    assert os.sched_getscheduler(0) == os.SCHED_OTHER, "making the film has changed this process's priority"


@pytest.mark.parametrize("start", [0.0, 3.0, 3.39])
@pytest.mark.parametrize("kind", ["constant", "variable"])
@pytest.mark.usefixtures("asked")
def test_a_trim_window_shows_its_own_frames(films: dict[str, Path], kind: str, start: float) -> None:
    clock, length = (CONSTANT if kind == "constant" else VARIABLE), 4.0
    times = sample_times(length, 2.0, 32)
    frames = read_frames(films[kind], times, start=start)
    want = expected(clock, list(times + start))
    assert numbers(frames.rgb) == want
    assert frames.times == pytest.approx([clock[k] / 1000 - start for k in want], abs=1e-4)
    # Only the frame that is already on screen when the window opens may have come on before it.
    assert (frames.times[1:] > 0).all() and (frames.times < length).all()


@pytest.mark.usefixtures("asked")
def test_times_may_repeat_and_come_in_any_order(films: dict[str, Path]) -> None:
    times = [2.5, 0.0, 1.0, 1.0, 0.3]
    for kind, clock, first, _ in KINDS:
        assert numbers(read_frames(films[kind], times).rgb) == expected(clock, times, first)


@pytest.mark.parametrize("times", [[], [[0.0]], [-0.1], [float("nan")]])
def test_times_that_are_none_are_refused(films: dict[str, Path], times: list[Any]) -> None:
    with pytest.raises(ValueError, match="one row of seconds"):
        read_frames(films["constant"], times)


@pytest.mark.parametrize("kind", ["constant", "edit list"])
@pytest.mark.usefixtures("asked")
def test_times_past_the_end_show_the_last_frame_and_say_so(
    films: dict[str, Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    frames = read_frames(films[kind], [1.0, 7.99, 20.0, 30.0])
    assert numbers(frames.rgb)[2:] == [199, 199]
    late = 2 if kind == "constant" else 3  # what is left of the cut film is 5 s
    assert f"{late} of 4 times lie past the end" in frames.note
    assert "past the end" in caplog.text and str(films[kind]) in caplog.text


@pytest.mark.parametrize("kind", ["constant", "edit list"])
@pytest.mark.usefixtures("asked")
def test_a_window_behind_the_video_is_an_error(films: dict[str, Path], kind: str) -> None:
    with pytest.raises(
        LabError, match=r"ends at [58]\.00 s but is asked for second 20\.00 on; correct the clip's window"
    ):
        read_frames(films[kind], [0.0, 1.0], start=20.0)


@pytest.mark.usefixtures("asked")
def test_a_film_of_one_frame_is_read(tmp_path: Path) -> None:
    path = film(tmp_path / "one.mp4", [0])
    assert numbers(read_frames(path, [0.0, 0.01]).rgb) == [0, 0]
    assert probe(path).frames == 1


@pytest.mark.usefixtures("asked")
def test_a_truncated_film_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    path = film(tmp_path / "truncated.mp4", CONSTANT, faststart=True)
    with av.open(str(path)) as container:
        cut = min(
            packet.pos for packet in container.demux(video=0) if packet.pts and packet.pts * packet.time_base > 4
        )
    os.truncate(path, cut + 5)
    times = [0.0, 1.0, 2.0, 7.0]
    frames = read_frames(path, times)
    assert numbers(frames.rgb)[:3] == expected(CONSTANT, times[:3])
    assert frames.times[3] < 6  # the time of the frame that is shown, not the time asked for
    assert frames.backend == "pyav" and "1 of 4 times lie past the end" in frames.note
    assert 3 < probe(path).duration < 6


@pytest.mark.usefixtures("asked")
def test_damage_in_the_middle_is_left_out_not_papered_over(tmp_path: Path) -> None:
    path = film(tmp_path / "damaged.mp4", CONSTANT, options={"g": "25"})
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.dts is not None]
        hurt = [(packet.pos, packet.size) for packet in packets if 2.0 <= float(packet.pts * packet.time_base) < 2.9]
    data = bytearray(path.read_bytes())
    for position, size in hurt:
        data[position : position + size] = bytes((k * 7919) % 251 for k in range(size))
    path.write_bytes(data)
    times = [0.0, 1.5, 2.5, 3.5, 5.0]
    frames = read_frames(path, times)
    read = numbers(frames.rgb)
    assert [read[k] for k in (0, 1, 3, 4)] == expected(CONSTANT, [0.0, 1.5, 3.5, 5.0])
    assert frames.times[2] == pytest.approx(CONSTANT[read[2]] / 1000, abs=1e-4) and read[2] < 62
    assert "damaged in" in frames.note


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """Every kind of file that shows nothing, with words that the message must hold."""
    whole = film(folder / "whole.mp4", CONSTANT[:50]).read_bytes()
    made = {
        "missing": (b"", "is not there; put the file there"),
        "empty": (b"", "is empty (0 bytes); copy or download it again"),
        "zeros": (bytes(5000), "cannot be opened"),
        "text": (b'{"qid": "q1"}\n' * 50, "cannot be opened"),
        "index lost": (whole[: len(whole) // 2], "cannot be opened"),  # truncated where the index stands at the end
    }
    files = {}
    for name, (data, words) in made.items():
        files[name] = (folder / f"{name}.mp4", words)
        if name != "missing":
            files[name][0].write_bytes(data)
    files["sound only"] = (sound(folder / "sound.mp4"), "holds no pictures (only audio)")
    files["folder"] = (folder / "folder.mp4", "cannot be read (Is a directory)")
    files["folder"][0].mkdir()
    return files


@pytest.mark.parametrize("kind", ["missing", "empty", "zeros", "text", "index lost", "sound only", "folder"])
@pytest.mark.usefixtures("asked")
def test_a_file_that_shows_nothing_is_named(tmp_path: Path, kind: str) -> None:
    path, words = _bad_files(tmp_path)[kind]
    for call in (lambda: read_frames(path, [0.0]), lambda: probe(path), lambda: thumbnails(path, [0.0], 32)):
        with pytest.raises(LabError) as caught:
            call()
        assert str(path) in str(caught.value) and words in str(caught.value) and "; " in str(caught.value)


def test_probe_measures_the_packets(films: dict[str, Path]) -> None:
    rows = [
        ("constant", 8.0, 25.0, 200),
        ("variable", VARIABLE[-1] / 1000, 101 / (VARIABLE[-1] / 1000), 101),
        ("late clock", 3.0, 25.0, 75),
        ("edit list", 5.0, 25.0, 125),  # the second of pre-roll is not shown and not counted
    ]
    for kind, duration, fps, frames in rows:
        info = probe(films[kind])
        assert info.duration == pytest.approx(duration, abs=0.05), kind
        assert info.fps == pytest.approx(fps, rel=0.01), kind
        assert (info.width, info.height, info.frames) == (160, 96, frames), kind


@pytest.mark.usefixtures("in_this_process", "decord_asked")
def test_no_reader_outlives_its_call(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import decord

    readers: list[weakref.ref[Any]] = []

    class Watched(decord.VideoReader):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            assert kwargs["num_threads"] == 1
            super().__init__(*args, **kwargs)
            readers.append(weakref.ref(self))

    thumbnails(films["constant"], TIMES, 80)  # held against PyAV here, if no test did it before
    monkeypatch.setattr(decord, "VideoReader", Watched)
    monkeypatch.setattr(decoders, "_CHUNK", 3)
    thumbnails(films["constant"], TIMES, 80)
    assert len(readers) == 3  # eight different frames, three at a time
    assert all(reader() is None for reader in readers)


@pytest.mark.usefixtures("in_this_process", "decord_asked")
def test_frames_made_small_in_parts_are_the_same(films: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.arange(0, 4, 0.04)
    whole = resize(read_frames(films["constant"], times).rgb, (48, 80))
    assert np.array_equal(thumbnails(films["constant"], times, 80), whole)  # 100 frames: two parts
    monkeypatch.setitem(sys.modules, "decord", None)
    assert np.abs(thumbnails(films["constant"], times, 80).astype(int) - whole).max() <= 1


def test_thumbnails_keep_the_proportions(films: dict[str, Path]) -> None:
    assert thumbnails(films["constant"], [0.0, 1.0], 50).shape == (2, 30, 50, 3)
    assert thumbnails(films["rotated"], [0.0], 48).shape == (1, 80, 48, 3)


@pytest.mark.parametrize("size", [(28, 28), (56, 84), (33, 71), (192, 320)])
def test_resize_is_torchs_bicubic_with_antialias(size: tuple[int, int]) -> None:
    import torch

    rgb = np.random.default_rng(0).integers(0, 256, (3, 96, 160, 3), np.uint8)
    planes = torch.from_numpy(rgb).permute(0, 3, 1, 2).contiguous()
    plain = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
    small = resize(rgb, size)
    assert small.dtype == np.uint8 and small.flags.c_contiguous
    assert np.array_equal(small, plain.permute(0, 2, 3, 1).numpy())


def test_resize_is_pillows_bicubic() -> None:
    # The processors' other engine: Pillow rounds in fixed point, so the last bit may differ.
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (it is in the extra `test`)")
    rgb = np.stack([painted(k) for k in (3, 700)])
    small = resize(rgb, (28, 56))
    for ours, frame in zip(small, rgb, strict=True):
        theirs = np.asarray(image.fromarray(frame).resize((56, 28), image.Resampling.BICUBIC))
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_resize_leaves_frames_of_that_size_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 28, 56, 3), np.uint8)
    assert np.array_equal(resize(rgb, (28, 56)), rgb)


@pytest.mark.usefixtures("asked")
def test_a_sound_film_is_read_without_a_word(films: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert read_frames(films["constant"], TIMES).note == ""
    assert caplog.text == ""
