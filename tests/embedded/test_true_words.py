"""What thoughts say is held against the simulator, and only where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.clips import PLACES, Event
from labkit.embedded.first_edition import make_scene, queried_event, render_frames, scene_moments, time_of
from labkit.embedded.true_words import blanked, check_words, thought, word_chances, word_figures
from labkit.embedded.world import clip_seed, write_world


def asked(seed: int = 7) -> list[Moment]:
    return scene_moments(make_scene(seed), Path(f"/world/clips/test-00000-{seed}.mp4"))


def test_each_moment_of_the_world_names_its_thing_and_event():
    for seed in range(80):
        for moment in asked(seed):
            about = queried_event(moment)
            assert about is not None
            thing, event = about
            assert f"the {thing.color} {thing.shape}" in moment.query
            assert moment.windows == (Span(event.start, event.end),)


def test_written_moments_are_known_again_and_nothing_else_stands_in_a_world(tmp_path):
    moments = write_world(tmp_path, 1, 1, 1, seed=3, edition=1)
    assert all(queried_event(moment) for rows in moments.values() for moment in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "clips",
        "test.jsonl",
        "train.jsonl",
        "validation.jsonl",
    ]
    assert str(clip_seed("test", 0, 3)) in moments["test"][0].qid


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"source": "charades-sta"}, "another source"),
        ({"source": ""}, "no source"),
        ({"windows": (Span(0.0, 1.0),)}, "a window that the seed does not draw: the clip is another recipe's"),
        ({"qid": "q1"}, "a name without a seed"),
        ({"qid": "test-00000-7-99"}, "an event that the scene does not have"),
        ({"video": "/films/other.mp4"}, "another clip"),
    ],
)
def test_a_moment_of_anything_else_is_about_nothing_known(changed, why):
    assert queried_event(replace(asked()[0], **changed)) is None, why


def test_a_thing_never_leaves_the_quadrant_that_it_is_said_to_be_in():
    for seed in range(25):
        scene = make_scene(seed)
        for number, thing in enumerate(scene.things):
            alone = replace(scene, things=(thing,), slope=(0.0, 0.0), background=(0.0, 0.0, 0.0))
            row, column = divmod(thing.quadrant, 2)
            frames = render_frames(alone, 56).max(-1) > 60  # above the noise
            frames[:, row * 28 : row * 28 + 28, column * 28 : column * 28 + 28] = False
            assert not frames.any(), (seed, number, PLACES[thing.quadrant])


@pytest.mark.parametrize(
    ("says", "true", "why"),
    [
        (
            "i see the white square on the bottom left",
            {"color": [1], "shape": [1], "place": [1]},
            "all of the asked thing",
        ),
        ("i see the red square on the top right", {"color": [0], "shape": [1], "place": [0]}, "each word by itself"),
        ("bottom, then left", {}, "half a place is none"),
        ("it slides late. it is sliding", {"action": [1, 1], "time": [0]}, "any form of the action"),
        ("it blinks early", {"action": [0], "time": [1]}, "words of the event"),
        ("White  SQUARE", {"color": [1], "shape": [1]}, "case and blanks make no other word"),
        ("reddish squares", {}, "parts of longer words are none"),
    ],
)
def test_words_are_held_against_the_asked_thing_and_event(says, true, why):
    # the white square, bottom left, slides from 2.5 to 6.5 s
    moment = asked()[1]
    about = queried_event(moment)
    assert about is not None and time_of(about[1]) == "early"
    found = check_words({moment.qid: f"<think> {says} </think> <answer> 1.0 to 2.0 </answer> top left red"}, [moment])
    assert {kind: [word.true for word in words] for kind, words in found.items() if words} == true, why


def test_figures_hold_shares_counts_and_what_chance_would_give():
    moments = [moment for seed in range(40) for moment in asked(seed)]
    texts = {}
    for moment in moments:
        thing, _ = queried_event(moment) or pytest.fail("unknown")
        texts[moment.qid] = f"<think>the {thing.color} {thing.shape} on the top left at 1.5</think>"
    figures = word_figures(texts, moments)
    share = sum(queried_event(moment)[0].quadrant == 0 for moment in moments) / len(moments)
    assert figures["true_color"] == figures["true_shape"] == 1.0
    assert figures["said_place"] == len(moments)
    assert figures["true_place"] == pytest.approx(share) == pytest.approx(figures["chance_place"]), "one word for all"
    assert figures["low_place"] < share < figures["high_place"] and figures["high_color"] == 1.0
    assert figures["said_action"] == 0 and figures["true_action"] != figures["true_action"], (
        "a share of nothing is NaN"
    )
    assert figures["distinct_thoughts"] == 1, "only object and number differ"


def test_other_data_have_no_such_figures():
    film = Moment("q", "/v.mp4", "a door opens", (Span(5, 10),), 20.0, source="charades-sta/test")
    assert word_figures({"q": "<think>the red circle</think>"}, [film]) == {}
    mixed = [asked()[0], film]
    assert word_figures({moment.qid: "the red circle" for moment in mixed}, mixed) == {}
    assert word_figures({}, []) == {}


def test_chances_are_shares_of_queries_by_word():
    moments = asked() + asked(8)
    chances = word_chances(moments)
    for kind in ("color", "shape", "place", "action", "time"):
        assert sum(chances[kind].values()) == pytest.approx(1), "one word of each kind is true of each query"
    assert not chances["scene"] and not chances["order"], "the first edition's clips have no cuts"
    colors = [queried_event(moment)[0].color for moment in moments]
    assert chances["color"] == {color: colors.count(color) / len(colors) for color in colors}
    assert word_chances([]) == word_chances([replace(moments[0], source="film")]) == {}


def test_times_of_events_are_told_by_their_middle():
    assert [time_of(Event("grows", *span)) for span in [(3, 7.5), (4, 7), (8, 13), (9, 12.5)]] == [
        "early", "in the middle", "in the middle", "late",
    ]  # fmt: skip


def test_blanked_thoughts_keep_all_but_object_and_numbers():
    text = "<think> I see the red cross on the top left. around <timestamp> 1.0 to 16 </timestamp> </think> <answer>x"
    assert blanked(thought(text)) == "<think> i see the _ _ on the top left. around <timestamp> # to # </timestamp>"
