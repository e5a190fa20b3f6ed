import json
from pathlib import Path

import numpy as np
import pytest

from labkit.data.moments import read_moments
from labkit.data.video.frames import read_frames
from labkit.embedded.clips import ACTIONS, COLORS, FRAMES_PER_STATE, Event, Thing, write_mp4
from labkit.embedded.first_edition import (
    SECONDS,
    STATES,
    Scene,
    grounding_query,
    make_scene,
    render_frames,
)
from labkit.embedded.second_edition import asked_query, clip_moments, make_film, option_question, queries
from labkit.embedded.world import SPLITS, clip_seed, moments_file, write_world
from labkit.errors import LabError

GREY = (60.0, 60.0, 60.0)


def scene_with(*events: Event, **changes) -> Scene:
    fields = {"color": "red", "shape": "square", "quadrant": 0, "x": 0.25, "y": 0.25, "radius": 0.12}
    thing = Thing(**{**fields, **changes}, brightness=1.0, phase=0, events=events)
    return Scene(5, (thing,), GREY, (0.0, 0.0))


def shown_at_middle(scene: Scene, state: int) -> bool:
    """Whether the thing's own middle has its colour during a half second."""
    return bool(np.abs(render_frames(scene, 112)[state, 28, 28].astype(int) - COLORS["red"]).max() < 30)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    for folder in ("a", "b"):
        write_world(tmp_path / folder, 2, 1, 1, seed=3, edition=1)
    write_world(tmp_path / "c", 2, 1, 1, seed=4, edition=1)
    first, again, other = (sorted((tmp_path / f / "clips").glob("*.mp4")) for f in "abc")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in again]
    assert not {p.read_bytes() for p in first} & {p.read_bytes() for p in other}


@pytest.mark.slow
def test_a_clip_comes_out_the_same_whatever_stood_in_memory_before(tmp_path):
    clips = {index: render_frames(make_scene(clip_seed("test", index, 0))) for index in (1, 15, 36, 66)}
    noise = np.random.default_rng(0).integers(0, 255, clips[1].shape, dtype=np.uint8)
    found: dict[int, set[bytes]] = {index: set() for index in clips}
    for number in range(8):
        for index, states in clips.items():
            write_mp4(tmp_path / "noise.mp4", np.roll(noise, 7 * number + index, axis=2))  # leaves its memory behind
            write_mp4(tmp_path / "clip.mp4", states)
            found[index].add((tmp_path / "clip.mp4").read_bytes())
    assert [len(files) for files in found.values()] == [1, 1, 1, 1]


def test_splits_never_share_a_seed():
    seeds = [clip_seed(split, index, seed) for split in SPLITS for index in (0, 999_999) for seed in (0, 999)]
    assert len(set(seeds)) == len(seeds)
    ranges = sorted((clip_seed(s, 0, 0), clip_seed(s, 999_999, 999)) for s in SPLITS)
    assert all(end < start for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False))


def test_the_moments_file_says_what_the_video_shows(tmp_path):
    moments = write_world(tmp_path, 3, 1, 1, edition=1)["train"]
    assert read_moments(tmp_path / "train.jsonl") == moments
    line = json.loads((tmp_path / "train.jsonl").read_text().splitlines()[0])
    assert line["video"].startswith("clips/"), "a world can be moved"
    states = read_frames(moments[0].video, np.arange(STATES) / 2).rgb.astype(int)
    drawn = render_frames(make_scene(clip_seed("train", 0))).astype(int)
    assert np.abs(states - drawn).mean() < 6, "H.264 loses little"
    assert np.abs(states - np.roll(drawn, 1, 0)).mean() > np.abs(states - drawn).mean()


def test_a_clip_is_16_seconds_of_h264(tmp_path):
    import av

    video = write_world(tmp_path, 1, 1, 1, edition=1)["train"][0].video
    with av.open(video) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert sum(1 for _ in container.decode(stream)) == SECONDS * 2 * FRAMES_PER_STATE


@pytest.mark.parametrize("seed", range(60))
def test_events_lie_on_half_seconds_last_2_to_8_and_never_touch(seed):
    for thing in make_scene(seed).things:
        spans = sorted((event.start, event.end) for event in thing.events)
        assert all(2 <= end - start <= 8 and start * 2 % 1 == 0 and end * 2 % 1 == 0 for start, end in spans)
        assert all(end < start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_no_two_things_of_a_clip_look_alike_so_every_query_has_one_answer():
    for seed in range(300):
        scene = make_scene(seed)
        assert len({(t.color, t.shape) for t in scene.things}) == len(scene.things)
        queries = [grounding_query(thing, event, 0) for thing in scene.things for event in thing.events]
        assert len(set(queries)) == len(queries)


@pytest.mark.parametrize(
    ("action", "during", "outside", "why"),
    [
        ("blinks", [True, False, True, False], True, "half the time it is away"),
        ("appears", [True, True, True, True], False, "it is there only then"),
    ],
)
def test_actions_are_seen_in_the_frames(action, during, outside, why):
    scene = scene_with(Event(action, 4.0, 6.0))
    assert [shown_at_middle(scene, state) for state in range(8, 12)] == during, why
    assert shown_at_middle(scene, 2) is outside, why


def test_a_killed_writer_is_finished_by_the_same_call(tmp_path):
    write_world(tmp_path, 2, 1, 1, edition=1)
    whole = {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")}
    clip = next((tmp_path / "clips").glob("train-00001*"))
    clip.unlink()
    (tmp_path / "test.jsonl").unlink()
    write_world(tmp_path, 2, 1, 1, edition=1)
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*.*")} == whole


# --- questions with options


def test_the_options_are_one_thing_that_is_done_there_and_three_that_are_not():
    elsewhere = 0
    for seed in range(300):
        film = make_film(seed)
        for query in queries(film):
            asked = option_question(film, query, np.random.default_rng(seed))
            things = [
                (scene, thing) for scene in film.scenes for thing in scene.things if thing.name == query.thing.name
            ]
            assert (" beside " in asked.text) == (len(things) > 1), "one that is in several scenes needs a clue"
            here = {
                ACTIONS[each.action][0] for scene, thing in things if scene is query.scene for each in thing.events
            }
            others = {ACTIONS[each.action][0] for _, thing in things for each in thing.events} - here
            assert len(set(asked.options)) == 4
            assert [option in here for option in asked.options] == [n == asked.choice for n in range(4)]
            assert asked.options[asked.choice] == ACTIONS[query.event.action][0]
            assert len(others & set(asked.options)) == min(3, len(others)), (
                "who looks in another scene finds an option there"
            )
            elsewhere += bool(others)
    assert elsewhere > 300


def test_a_clue_names_a_thing_that_is_in_one_scene_alone():
    for seed in range(100):
        film = make_film(seed)
        for query in queries(film):
            text = option_question(film, query, np.random.default_rng(0)).text
            if " beside " in text:
                clue = text.split(" beside ")[1].rstrip("?")
                assert [scene for scene in film.scenes if clue in scene.names] == [query.scene]


def test_the_right_option_stands_in_all_places_alike():
    moments = [m for seed in range(400) for m in clip_moments(make_film(seed), Path(f"/{seed}.mp4"), "gqa")]
    shares = np.bincount([moment.choice for moment in moments], minlength=4) / len(moments)
    # 1,600 questions: one standard deviation is 0.011.
    assert np.abs(shares - 0.25).max() < 0.045


def test_each_question_shows_its_event_and_is_known_again():
    for seed in range(100):
        film = make_film(seed)
        moments = clip_moments(film, Path(f"/test-00000-{seed}.mp4"), "gqa")
        assert [m.windows for m in moments] == [query.windows for query in queries(film)]
        assert [asked_query(moment) for moment in moments] == [(film, query) for query in queries(film)]


def test_both_tasks_share_the_clips_and_stand_in_files_of_their_own(tmp_path):
    grounding = write_world(tmp_path, 2, 1, 1)
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*.*")}
    gqa = write_world(tmp_path, 2, 1, 1, task="gqa")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    assert {path.name for path in tmp_path.glob("*.jsonl")} == {
        "train.jsonl", "validation.jsonl", "test.jsonl", "train-gqa.jsonl", "validation-gqa.jsonl", "test-gqa.jsonl",
    }  # fmt: skip
    assert read_moments(moments_file(tmp_path, "train", "gqa")) == gqa["train"]
    assert [m.windows for m in gqa["train"]] == [m.windows for m in grounding["train"]]
    assert all(m.options and not g.options for m, g in zip(gqa["train"], grounding["train"], strict=True))


@pytest.mark.parametrize(
    ("counts", "seed", "named"),
    [((0, 1, 1), 0, "train split is to hold 0"), ((1, 1, 1), 1000, "world_seed is 1000"), ((1, 1, 1), -1, "-1")],
)
def test_impossible_worlds_are_refused(tmp_path, counts, seed, named):
    with pytest.raises(LabError, match=named):
        write_world(tmp_path, *counts, seed=seed)
