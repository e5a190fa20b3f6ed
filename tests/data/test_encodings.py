"""Films of what people meet, each frame with its number burnt in: no frame but that of its second is shown, by whichever way."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import decoders
from labkit.data.video.frames import FrameCache, Frames, probe, read_frames
from labkit.data.video.probe import check_videos
from labkit.doctor.dataset import video_findings
from labkit.errors import LabError
from labkit.policy.inputs import FrameSampling
from labkit.policy.model import Policy, load_policy
from labkit.policy.prompt_source import PromptSource
from labkit.views.explorer.scrubber import scrub
from labkit.views.explorer.sprites import SheetCache
from tests.data.films import CONSTANT, Encoding, av1_encoder, expected, film, number_of, numbers, turned_midway

NAMES = [
    "H.264 closed 23.976",
    "H.264 closed 25",
    "H.264 closed 30",
    "H.264 closed 50",
    "H.264 closed 59.94",
    "H.264 variable rate",
    "H.264 in Matroska",
    "H.264 fragmented",
    "VP9",
    "HEVC closed",
    "HEVC open (x265's default)",
    "H.264 open",
    "H.264 intra refresh",
    "H.264 in MPEG-TS",
    "H.264 in MPEG-TS named mp4",
    "H.264 in MPEG-TS cut off",
    "MPEG-4 part 2",
    "WMV",
    "H.264 in AVI",
    "MPEG-4 part 2 in AVI",
    "edit list that hides the tail",
    "clock set back",
    "two tracks",
    pytest.param(
        "AV1", marks=pytest.mark.skipif(av1_encoder() is None, reason="LOUD: this PyAV has no AV1 encoder: AV1 is NOT tested")
    ),
]  # fmt: skip
ODD = ("H.264 in AVI", "clock set back")
"""Those of which there is something to tell, whoever reads them."""
MISREAD = ("H.264 intra refresh", "MPEG-4 part 2", "WMV", "two tracks")
EDGE = 0.0055
"""Seconds by which whoever asks keeps off the edge between two frames, which files round to their clocks."""
CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases" / "videos"


def right(encoding: Encoding, times: np.ndarray) -> list[int]:
    return [number % encoding.period for number in expected(encoding.clock, list(times))]


def seconds(encoding: Encoding, step: float) -> np.ndarray:
    """Seconds over the whole film, none of them on the edge between two frames."""
    return np.arange(EDGE, encoding.clock[-1] / 1000, step)


def test_no_encoding_is_forgotten(encoded: dict[str, Encoding]) -> None:
    assert set(encoded) | {"AV1"} == {name if isinstance(name, str) else "AV1" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_way_shows_the_frames_of_their_seconds(
    encoded: dict[str, Encoding], tmp_path: Path, name: str, asked: bool
) -> None:
    encoding = encoded[name]
    path, last = encoding.path, encoding.clock[-1] / 1000
    each = np.array(encoding.clock) / 1000 + 0.0025  # every frame in turn
    for times in (each, seconds(encoding, 0.13), seconds(encoding, 0.5), seconds(encoding, 1.7)):
        frames = read_frames(path, times)
        assert numbers(frames.rgb) == right(encoding, times)
        assert frames.backend == (encoding.backend if asked else "pyav")
        assert bool(frames.note) == (frames.backend == "pyav" if asked else name in ODD)
        assert (frames.times <= times + 1e-3).all()
    times = seconds(encoding, 0.37)
    cached = [FrameCache(tmp_path).get(path, times, (48, 80)).rgb for _ in range(2)]
    assert [numbers(rgb) for rgb in cached] == [right(encoding, times)] * 2
    info = probe(path)
    assert info.duration == pytest.approx(last + 0.04, abs=0.25) and (info.width, info.height) == (160, 96)
    sheet = SheetCache(tmp_path).get(path, last - EDGE, EDGE)
    with av.open(io.BytesIO(sheet.webp)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    tiles = [divmod(k, sheet.columns) for k in range(sheet.frames)]
    shown = [picture[r * 96 : (r + 1) * 96, c * 160 : (c + 1) * 160] for r, c in tiles]
    assert numbers(np.stack(shown)) == right(encoding, EDGE + np.arange(sheet.frames) * sheet.step)
    assert scrub(path)._seconds == info.duration


@pytest.mark.parametrize("name", MISREAD)
def test_decord_would_have_shown_other_frames(encoded: dict[str, Encoding], name: str) -> None:
    # The films are a test of anything only if decord fails on some of them without a word.
    times = seconds(encoded[name], 0.13)
    shown = decoders.decode_with_decord(encoded[name].path, times, None)
    assert shown.note == "" and numbers(shown.rgb) != right(encoded[name], times)


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy("embedded")


@pytest.mark.parametrize("readers", [0, 1])
@pytest.mark.slow
@pytest.mark.usefixtures("decord_asked")
def test_a_run_reads_the_frames_of_their_seconds(
    encoded: dict[str, Encoding], policy: Policy, tmp_path: Path, readers: int
) -> None:
    moments = {
        name: Moment(name, str(each.path), "a bar", (Span(0.0, 1.0),), end - EDGE, clip=Span(EDGE, end))
        for name, each in encoded.items()
        for end in [each.clock[-1] / 1000]
    }
    sampling = FrameSampling(2.0, 32, 28 * 28, 160 * 96)
    source = PromptSource(
        policy, moments.values(), template="query", sampling=sampling, cache=FrameCache(tmp_path), readers=readers
    )
    for name, encoding in encoded.items():
        shown = source.frames_for(name)
        times = np.arange(len(shown.rgb)) / shown.fps + EDGE
        fitting = times < encoding.clock[-1] / 1000  # the last may stand twice
        assert np.array(numbers(shown.rgb))[fitting].tolist() == right(encoding, times[fitting]), name
    assert source.cache.decoded == len({each.path.read_bytes() for each in encoded.values()})  # one content, one entry


@pytest.fixture(scope="module")
def found(encoded: dict[str, Encoding], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[str]]]:
    paths = {name: str(each.path) for name, each in encoded.items()}
    checkups = check_videos(paths.values(), cache=tmp_path_factory.mktemp("cache") / "c.json", processes=1)
    yield {name: [each.kind for each in video_findings({path: checkups[path]})] for name, path in paths.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_doctor_tells_who_reads_a_film_and_why(
    encoded: dict[str, Encoding], found: dict[str, list[str]], name: str
) -> None:
    told = "AV1 video" if name == "AV1" else "read by PyAV because decord shows wrong frames, or may"
    assert (told in found[name]) == (encoded[name].backend == "pyav")
    assert ("clock set back" in found[name]) == (name == "clock set back")


@pytest.mark.parametrize("second", [2.0, 2.5, 3.9, 4.0, 60.0])
def test_what_an_edit_list_hides_is_not_asked_for(encoded: dict[str, Encoding], second: float) -> None:
    # decord counts the hidden frames and hangs when it is asked for one.
    path = encoded["edit list that hides the tail"].path
    if second == 2.0:
        assert numbers(read_frames(path, [second]).rgb) == [49]
        return
    for call in (
        lambda: read_frames(path, [second]),
        lambda: read_frames(path, [0.0], start=second),
        lambda: scrub(path, start=second),
    ):
        with pytest.raises(
            LabError, match=rf"hidden tail.mp4 ends at 2.00 s but is asked for second {second:.2f} on; correct"
        ):
            call()


def test_a_recording_that_is_turned_midway_keeps_one_size(tmp_path: Path) -> None:
    path = turned_midway(tmp_path / "live.webm", 25)
    frames = read_frames(path, [0.0, 0.5, 1.5, 1.9])
    assert frames.rgb.shape == (4, 96, 160, 3) and "changes size or orientation: 2 frames" in frames.note
    assert numbers(frames.rgb[:2]) == [0, 12]
    fitted = frames.rgb[2:, :, 51:109]  # 96 x 160 at 58 x 96, black beside it
    assert (frames.rgb[2:, :, :48] == 0).all() and (frames.rgb[2:, :, 112:] == 0).all()
    assert [number_of(np.rot90(each, -1)) for each in fitted] == [37, 47]
    assert scrub(path)._seconds == pytest.approx(2.0, abs=0.05)


def test_a_title_in_an_old_encoding_is_no_reason_to_refuse_a_film(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", CONSTANT[:50], codec="mpeg4", title="Sommer in Muenchen")
    data = path.read_bytes()
    assert b"Sommer in Muenchen" in data
    path.write_bytes(data.replace(b"Muenchen", b"M\xfcnchen "))
    with pytest.raises(UnicodeDecodeError), av.open(str(path)) as container:
        container.metadata.get("title")
    assert numbers(read_frames(path, [0.0, 1.0]).rgb) == [0, 25] and probe(path).frames == 50
    checkup = check_videos([str(path)], cache=tmp_path / "c.json", processes=1)[str(path)]
    assert (checkup.state, checkup.frames) == ("ok", 50)
    assert scrub(path)._seconds == pytest.approx(2.0, abs=0.05)


def _cases(frames: Frames) -> list[int]:
    """The numbers of the cases' films: eight bars of 20 pixels."""
    rows = frames.rgb[:, 8:24].astype(float).mean(axis=(1, 3))
    return [sum(1 << bit for bit in range(8) if row[20 * bit + 10] > 120) for row in rows]


@pytest.mark.skipif(not CASES.exists(), reason="the cases' videos are NOT CHECKED: ../shared/cases is absent")
@pytest.mark.parametrize(
    ("name", "rate", "frames", "note"),
    [
        ("wmv.wmv", 25.0, 250, "asf"),
        ("two_tracks.mkv", 30000 / 1001, 300, "several video tracks"),
        ("xvid_b.avi", 25.0, 248, "timestamps run backwards: frames are shown in the order of the decoder"),
        ("ts_jump.ts", 25.0, 200, "clock is set back by 3.96 s at second 4.00"),
        ("aspect_live.webm", 25.0, 120, "changes size or orientation"),
    ],
)
@pytest.mark.usefixtures("decord_asked")
def test_the_cases_show_what_is_right(name: str, rate: float, frames: int, note: str, tmp_path: Path) -> None:
    path = CASES / name
    info = probe(path)
    assert info.frames == frames and (info.width, info.height) == (160, 96)
    times = (np.arange(0, frames - 1, 13) + 0.4) / rate
    shown = read_frames(path, times)
    assert note in shown.note
    right = [13 * k % (100 if name == "ts_jump.ts" else 256) for k in range(len(times))]
    whole = times < 2.4 if name == "aspect_live.webm" else times < np.inf  # afterwards it stands on its side
    assert np.array(_cases(shown))[whole].tolist() == np.array(right)[whole].tolist()
    assert np.abs(shown.times - (times - 0.4 / rate)).max() < 2e-3
    assert scrub(path, folder=tmp_path)._seconds == info.duration
    assert FrameCache(tmp_path).get(path, times, (56, 84)).rgb.shape == (len(times), 56, 84, 3)
