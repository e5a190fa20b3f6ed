"""The world's second edition: what is asked has one answer, half of it takes two looks, and every word can be checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from labkit.chain.anchors import parse
from labkit.chain.spans import Span, iou, union
from labkit.embedded.clips import PLACES, clip_and_number
from labkit.embedded.recipes import lessons
from labkit.embedded.recipes.second_base import frame_labels
from labkit.embedded.second_edition import (
    LASTING_ACTIONS,
    SECONDS,
    SOURCES,
    all_queries,
    asked_query,
    clip_moments,
    make_film,
    queries,
    query_text,
    render_frames,
    repeated_queries,
)
from labkit.embedded.true_words import check_words, word_figures
from labkit.embedded.world import clip_seed, write_world
from labkit.errors import LabError

FILMS = [make_film(seed) for seed in range(120)]


def moments_of(seed: int):
    return clip_moments(make_film(seed), Path(f"/w/test-00000-{seed}.mp4"))


def test_a_film_has_three_scenes_without_gaps_and_one_thing_in_all_of_them():
    for film in FILMS:
        borders = [border for scene in film.scenes for border in (scene.start, scene.end)]
        assert borders == [0, borders[1], borders[1], borders[3], borders[3], SECONDS]
        assert len({scene.things[0].name for scene in film.scenes}) == 1
        assert len({scene.things[1].name for scene in film.scenes}) == 3
        for scene in film.scenes:
            assert len(set(scene.names)) == len(scene.names), "no two things of a scene look alike"
            assert len({thing.quadrant for thing in scene.things}) == len(scene.things)
            for thing in scene.things:
                for event in thing.events:
                    assert scene.start <= event.start < event.end <= scene.end
                    assert event.end - event.start >= 2 and event.action in LASTING_ACTIONS


def test_a_query_that_takes_one_look_is_about_something_that_happens_once():
    for film in FILMS:
        for query in (query for query in all_queries(film) if query.clue is None):
            assert same_events(film, query) == [query.event]


def test_a_query_that_takes_two_looks_needs_its_clue():
    for film in FILMS:
        for query in (query for query in all_queries(film) if query.clue is not None):
            same = same_events(film, query)
            assert query.event in same and len(same) > 1, "it happens in another scene too"
            assert [event for event in same if query.scene.start <= event.start < query.scene.end] == [query.event]
            assert [scene for scene in film.scenes if query.clue.name in scene.names] == [query.scene]


def test_whoever_ignores_the_relation_finds_less_than_half_of_the_hard_half():
    hard = [(film, query) for film in FILMS for query in queries(film) if query.clue is not None]
    by_first, by_guess = [], []
    for film, query in hard:
        same = same_events(film, query)
        by_first.append(same[0] == query.event)
        by_guess.append(1 / len(same))
    assert len(hard) >= 200
    assert np.mean(by_first) < 0.5 and np.mean(by_guess) < 0.5


def test_half_of_the_queries_take_two_looks_and_no_sentence_stands_twice():
    kinds = [query.clue is not None for film in FILMS for query in queries(film)]
    assert len(kinds) > 3.9 * len(FILMS) and np.mean(kinds) == pytest.approx(0.5, abs=0.02)
    for film in FILMS:
        texts = [query_text(query, 0) for query in queries(film)]
        assert len(set(texts)) == len(texts)


def test_the_same_seed_draws_the_same_film_and_splits_share_none():
    assert make_film(7) == make_film(7) and (render_frames(make_film(7), 28) == render_frames(make_film(7), 28)).all()
    drawn = {split: [make_film(clip_seed(split, index)) for index in range(5)] for split in ("train", "test")}
    assert not set(map(repr, drawn["train"])) & set(map(repr, drawn["test"]))


def test_frames_show_what_the_labels_say():
    film = FILMS[0]
    frames, labels = render_frames(film, 56).astype(int), frame_labels(film)
    for scene in film.scenes:
        for thing in scene.things:
            row, column = divmod(thing.quadrant, 2)
            shown = frames[2 * scene.start : 2 * scene.end, 28 * row : 28 * row + 28, 28 * column : 28 * column + 28]
            bright = (shown.max((1, 2)) - shown.min((1, 2))).max(-1)
            assert np.median(bright) > 60, thing.name
            assert (labels[scene.start : scene.end, thing.quadrant, :2] > 0).all()
    assert (labels[..., 4] == np.arange(4)).all()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"source": "embedded world"}, "the first edition's"),
        ({"windows": (Span(0.0, 1.0),)}, "a window that the seed does not draw"),
        ({"qid": "q1"}, "a name without a seed"),
        ({"qid": "test-00000-7-99"}, "a query that the film does not have"),
        ({"video": "/films/other.mp4"}, "another clip"),
    ],
)
def test_a_moment_of_anything_else_is_about_nothing_known(changed, why):
    moment = moments_of(7)[0]
    film, query = asked_query(moment) or pytest.fail("unknown")
    assert (
        film == make_film(7) and moment.windows == query.windows and clip_and_number(moment, SOURCES[False]) == (7, 0)
    )
    assert asked_query(replace(moment, **changed)) is None, why


@pytest.mark.parametrize("lesson", [lessons.direct_lesson, lessons.chain_lesson])
def test_every_word_of_every_lesson_is_true(lesson):
    rng, said = np.random.default_rng(0), dict.fromkeys(("color", "shape", "place", "action", "scene", "order"), 0)
    for seed in range(60):
        moments = moments_of(seed)
        for moment in moments:
            film, query = asked_query(moment) or pytest.fail("unknown")
            for _ in range(4):
                text = lesson(film, query, rng, lessons.Noise(1.0, 1.0))
                for kind, words in check_words({moment.qid: text}, [moment]).items():
                    assert all(word.true for word in words), (text, moment.query, words)
                    said[kind] = said.get(kind, 0) + len(words)
    expected = {"color", "shape", "place", "action"} | (
        {"scene", "order"} if lesson is lessons.chain_lesson else set()
    )
    assert {kind for kind, number in said.items() if number} == expected


def test_lessons_vary():
    rng, texts, moments = np.random.default_rng(0), {}, [moment for seed in range(125) for moment in moments_of(seed)]
    for moment in moments[:500]:
        film, query = asked_query(moment) or pytest.fail("unknown")
        texts[moment.qid] = lessons.chain_lesson(film, query, rng, lessons.Noise())
    assert word_figures(texts, moments[:500])["distinct_thoughts"] > 150


def test_words_speak_of_the_thing_named_last_in_the_scene_of_the_last_anchor():
    moment = next(moment for moment in moments_of(0) if "beside" in moment.query)
    film, query = asked_query(moment) or pytest.fail("unknown")
    scene, other = query.scene, next(scene for scene in film.scenes if scene is not query.scene)
    assert query.clue is not None
    there = next(thing for thing in other.things if thing.name == query.thing.name)
    number = ("first", "second", "third")[film.scenes.index(other)]
    cases = [
        (f"{query.clue.name} is on the {PLACES[query.clue.quadrant]}", [True], "a thing in its own scene"),
        (f"{query.thing.name} is on the {PLACES[query.thing.quadrant]}", [True], "the asked thing in the asked scene"),
        (
            f"<timestamp> {other.start} to {other.end} </timestamp> {query.thing.name}, {PLACES[there.quadrant]}",
            [True],
            "where it is in the scene of the anchor",
        ),
        (
            f"<timestamp> {other.start} to {other.end} </timestamp> {query.clue.name}, {PLACES[query.clue.quadrant]}",
            [False],
            "not there",
        ),
    ]
    for said, true, why in cases:
        words = check_words({moment.qid: f"<think> {said} </think>"}, [moment])
        assert [word.true for word in words["place"]] == true, (said, why)
    said = f"<timestamp> {other.start} to {other.end} </timestamp>, the {number} scene. <timestamp> {scene.start} to {scene.end}"
    words = check_words({moment.qid: f"<think> {said} </timestamp>, the {number} scene </think>"}, [moment])
    assert [word.true for word in words["scene"]] == [True, False], "each of its own anchor"
    absent = next(
        name for name in ("the purple cross", "the green square") if all(name not in s.names for s in film.scenes)
    )
    words = check_words({moment.qid: f"<think> i see {absent} </think>"}, [moment])
    assert not words["color"][0].true and not words["shape"][0].true, "no such thing is shown"


def test_what_no_edition_has_is_refused(tmp_path):
    with pytest.raises(LabError, match="edition 1 of the embedded world has no questions of task gqa; take edition 2"):
        write_world(tmp_path, 1, 1, 1, task="gqa", edition=1)
    with pytest.raises(LabError, match="edition is 4"):
        write_world(tmp_path, 1, 1, 1, edition=4)


def test_a_world_is_written_with_clips_of_24_seconds(tmp_path):
    moments = write_world(tmp_path, 1, 1, 1)
    assert [len(rows) for rows in moments.values()] == [4, 4, 4]
    assert all(Path(row.video).exists() and row.duration == SECONDS for rows in moments.values() for row in rows)


def same_events(film, query):
    """All events of the asked thing and kind in the film."""
    return [
        event
        for scene in film.scenes
        for thing in scene.things
        for event in thing.events
        if thing.name == query.thing.name and event.action == query.event.action
    ]


# --- what happens twice

TWICE = [make_film(seed, twice=True) for seed in range(60)]


def test_what_is_asked_for_twice_happens_twice_and_in_the_words_of_what_happens_once():
    for film in TWICE:
        asked = queries(film)
        repeated = [query for query in asked if query.again]
        assert repeated and all(query.clue is None for query in asked)
        for query in asked:
            assert same_events(film, query) == list(query.events)
        assert {query_text(query, 0).split()[:2] == ["when", "does"] for query in asked} == {True}


def test_a_moment_that_happens_twice_asks_for_both_windows_as_one_set():
    moments = [moment for film in TWICE for moment in clip_moments(film, Path(f"/w/test-00000-{film.seed}.mp4"))]
    assert all(moment.as_set for moment in moments)
    assert {len(moment.windows) for moment in moments} == {1, 2}
    assert [len(moment.targets[0].parts) for moment in moments] == [len(moment.windows) for moment in moments]
    for moment in moments:
        film, query = asked_query(moment)
        assert film.twice and query.windows == moment.windows
    assert asked_query(replace(moments[-1], windows=moments[-1].windows[:1])) is None


def test_a_lesson_for_both_times_has_both_in_each_anchor_and_in_the_answer():
    rng = np.random.default_rng(0)
    for film in TWICE[:20]:
        for query in repeated_queries(film):
            chain = parse(lessons.chain_lesson(film, query, rng, lessons.Noise()))
            assert chain.status == "ok" and chain.answer == union(query.windows)
            assert all(iou(span, union(query.windows)) > 0 for span in chain.spans)


def test_the_second_edition_is_what_it_was():
    assert not any(query.again for film in FILMS for query in queries(film))
    assert not any(moment.as_set for moment in moments_of(7))
