from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import pytest

from labkit.data.video import probe
from labkit.data.video.probe import STATES, VideoCheck, check_videos, stat_video
from tests.data.films import CONSTANT, VARIABLE, av1_encoder, cut_off, film, sound


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, films: dict[str, Path]) -> dict[str, Path]:
    """Files that are no videos, or not what they say, by name."""
    folder = tmp_path_factory.mktemp("odd")
    front = film(folder / "front.mp4", CONSTANT, faststart=True, options={"g": "50"})
    made = {
        "index lost": cut_off(films["constant"], folder / "index lost.mp4", 0.5),
        "broken off": cut_off(front, folder / "broken off.mp4", 0.6),
        "broken off mkv": cut_off(film(folder / "whole.mkv", CONSTANT), folder / "broken off.mkv", 0.5),
        "sound": sound(folder / "sound.mp4"),
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "mkv as mp4": folder / "mkv as mp4.mp4",
        "no rights": folder / "no rights.mp4",
        "folder": folder / "folder.mp4",
        "one frame": film(folder / "one frame.mp4", [0]),
    }
    made["empty"].touch()
    made["text"].write_text("once upon a time " * 100)
    shutil.copy(folder / "whole.mkv", made["mkv as mp4"])
    shutil.copy(films["constant"], made["no rights"])
    made["no rights"].chmod(0)
    made["folder"].mkdir()
    return made


@pytest.fixture(scope="module")
def found(
    odd: dict[str, Path], films: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, VideoCheck]:
    files = {**odd, **films, "gone": Path("/nowhere/gone.mp4")}
    results = check_videos(map(str, files.values()), cache=tmp_path_factory.mktemp("cache") / "c.json", processes=1)
    return {name: results[str(path)] for name, path in files.items()}


@pytest.mark.parametrize(
    ("name", "state", "readable"),
    [
        ("constant", "ok", True),
        ("variable", "ok", True),
        ("rotated", "ok", True),
        ("edit list", "ok", True),
        ("one frame", "ok", True),
        ("mkv as mp4", "ok", True),  # FFmpeg goes by the content
        ("index lost", "truncated", False),  # an mp4's index stands at its end
        ("broken off", "truncated", True),  # unless it was put in front
        ("broken off mkv", "truncated", True),  # and Matroska needs none
        ("sound", "audio only", False),
        ("empty", "empty", False),
        ("text", "not a video", False),
        ("folder", "not a video", False),
        ("no rights", "unreadable rights", False),  # for the superuser too, who could read it
        ("gone", "missing", False),
    ],
)
def test_every_file_has_a_state(found: dict[str, VideoCheck], name: str, state: str, readable: bool) -> None:
    assert (found[name].state, found[name].readable) == (state, readable)
    assert found[name].state in STATES


def test_a_whole_film_is_measured(found: dict[str, VideoCheck]) -> None:
    film = found["constant"]
    assert (film.duration, film.fps, film.frames, film.width, film.height) == (8.0, 25.0, 200, 160, 96)
    assert (film.codec, film.rotation, film.variable_rate, film.wrong_suffix) == ("h264", 0, False, "")


def test_the_odd_ones_say_what_is_odd(found: dict[str, VideoCheck]) -> None:
    assert found["variable"].variable_rate
    assert (found["rotated"].rotation, found["rotated"].width, found["rotated"].height) == (90, 96, 160)
    assert found["mkv as mp4"].wrong_suffix == ".mkv"
    assert found["edit list"].backend == "pyav" and "edit list" in found["edit list"].notes[0]
    assert found["edit list"].duration == pytest.approx(5.0, abs=0.05)  # 8 s without the 3 that it hides
    assert 0 < found["broken off"].duration < 8 and 0 < found["broken off mkv"].duration < 8


@pytest.mark.skipif(av1_encoder() is None, reason="LOUD: this PyAV has no AV1 encoder, so AV1 is not tested")
def test_av1_is_named(tmp_path: Path) -> None:
    path = str(film(tmp_path / "a.mp4", CONSTANT[:30], codec=str(av1_encoder())))
    checkup = check_videos([path], cache=tmp_path / "c.json", processes=1)[path]
    assert (checkup.state, checkup.codec, checkup.frames) == ("ok", "av1", 30)


def test_looking_opens_nothing(odd: dict[str, Path]) -> None:
    assert stat_video(odd["text"]).state == "not opened"
    assert [stat_video(odd[name]).state for name in ("empty", "no rights", "folder")] == [
        "empty",
        "unreadable rights",
        "not a video",
    ]
    assert stat_video("/nowhere/gone.mp4").state == "missing"
    assert stat_video("nul\0.mp4").state == "unreadable rights"


SCRIPT = """
import json, sys, time
for line in sys.stdin:
    path = json.loads(line)
    if "hangs" in path:
        time.sleep(60)
    if "dies" in path:
        sys.exit(3)
    print(json.dumps({"state": "ok", "frames": 7}), flush=True)
"""


def test_a_hanging_and_a_dying_decoder_cost_their_own_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_COMMAND", [sys.executable, "-c", SCRIPT])
    paths = [str(tmp_path / f"{name}.mp4") for name in ("a", "hangs", "b", "dies", "c")]
    for path in paths:
        Path(path).write_text(path)
    heard: list[tuple[int, int]] = []
    results = check_videos(
        paths, cache=tmp_path / "c.json", deadline=1.0, processes=1, on_video=lambda *pair: heard.append(pair)
    )
    assert [results[path].state for path in paths] == ["ok", "hangs", "ok", "crashed", "ok"]
    assert results[paths[1]].notes == ("not done after 1 s",)
    assert results[paths[3]].notes == ("the process that opened it ended by exit code 3",)
    assert heard == [(done, 5) for done in range(1, 6)]
    kept = json.loads((tmp_path / "c.json").read_text())["found"]
    assert len(kept) == 3, "what hung or died may do better on a quieter machine: it is opened again"


def test_an_interruption_ends_the_workers_and_keeps_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_COMMAND", [sys.executable, "-c", SCRIPT])
    paths = [str(tmp_path / f"{name}.mp4") for name in ("a", "hangs")]
    for path in paths:
        Path(path).write_text(path)

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        check_videos(paths, cache=tmp_path / "c.json", deadline=60.0, processes=1, on_video=interrupt)
    assert threading.active_count() == before
    assert len(json.loads((tmp_path / "c.json").read_text())["found"]) == 1


def test_a_video_is_opened_once_while_it_stays_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = str(film(tmp_path / "a.mp4", CONSTANT[:50])), tmp_path / "c.json"
    first = check_videos([path, path], cache=cache, processes=1)
    monkeypatch.setattr(probe, "_COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    assert check_videos([path], cache=cache) == first
    film(tmp_path / "a.mp4", CONSTANT[:75])
    assert check_videos([path], cache=cache)[path].state == "crashed", "a changed file is opened again"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "null", '{"heading": 1, "found": {}}'],  # broken off, of another kind, of another version
)
def test_a_damaged_cache_is_made_anew(tmp_path: Path, content: str) -> None:
    path, cache = str(film(tmp_path / "a.mp4", VARIABLE)), tmp_path / "c.json"
    cache.write_text(content)
    assert check_videos([path], cache=cache, processes=1)[path].variable_rate
    assert len(json.loads(cache.read_text())["found"]) == 1
