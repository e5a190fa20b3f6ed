"""Words along training: hand-made rollouts of the embedded world, and the shares that follow from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from labkit.embedded.clips import PLACES
from labkit.embedded.first_edition import make_scene, queried_event, scene_moments
from labkit.embedded.second_edition import ORDINALS, clip_moments, make_film
from labkit.embedded.true_words import KINDS, check_words, word_chances
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore
from labkit.stages.words_by_step import WORDS_FILE, word_history, words_by_step

MOMENTS = scene_moments(make_scene(7), Path("/world/clips/test-00000-7.mp4"))
FIRST, SECOND = MOMENTS[:2]
"""The second asks when the white square, on the bottom left, slides."""

KEPT_BY_OLDER_RULES = json.dumps({"kinds": list(KINDS), "rows": []})


def rollout(step: int, sample: int, text: str, moment=SECOND) -> Rollout:
    return Rollout(
        run="x", stage="grpo", step=step, qid=moment.qid, sample=sample, seed=0, checkpoint="m", text=text, status="ok", **UNPAID,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


def chain(says: str, span: str = "1.0 to 2.0") -> str:
    return f"<think> {says} <timestamp> {span} </timestamp> </think> <answer> {span} </answer>"


ROLLOUTS = [
    rollout(1, 0, chain("the white square on the bottom left")),
    rollout(1, 1, chain("the white square on the bottom left", "3.0 to 4.5")),
    rollout(1, 2, chain("the red square")),
    rollout(2, 0, chain("top right, top right, bottom left")),
    rollout(3, 0, "<answer> 1.0 to 2.0 </answer> bottom left"),
]


def test_each_step_has_the_shares_that_its_own_thoughts_give():
    first, second, third = words_by_step(ROLLOUTS, MOMENTS)
    assert (first["n"], first["said_color"], first["true_color"]) == (3, 3, pytest.approx(2 / 3)), (
        "two of white, white, red"
    )
    assert (first["said_shape"], first["true_shape"], first["true_place"]) == (3, 1, 1)
    assert first["distinct_thoughts"] == 2, "spans and objects tell no thoughts apart"
    assert (second["said_place"], second["true_place"]) == (3, pytest.approx(1 / 3)), "a word said twice counts twice"
    assert (third["said_place"], third["true_place"], third["chance_place"]) == (0, None, None), (
        "an answer is no thought"
    )


def test_chance_is_that_of_the_words_said_among_all_queries_and_not_a_step_s():
    first, second, _ = words_by_step(ROLLOUTS, MOMENTS)
    places = [PLACES[queried_event(moment)[0].quadrant] for moment in MOMENTS]
    right, left = (places.count(place) / len(places) for place in ("top right", "bottom left"))
    assert first["chance_place"] == pytest.approx(left)
    assert second["chance_place"] == pytest.approx((2 * right + left) / 3)
    assert left == word_chances(MOMENTS)["place"]["bottom left"]


def test_a_word_is_held_against_the_scene_of_the_anchor_before_it():
    film = make_film(7)
    asked = clip_moments(film, Path("/world/clips/test-00000-7.mp4"))[0]
    spans = [f"{scene.start}.0 to {scene.end}.0" for scene in film.scenes]
    texts = [
        f"<think> <timestamp> {span} </timestamp> in the {ordinal} scene </think>"
        for span in spans
        for ordinal in ORDINALS
    ]
    rows = words_by_step([rollout(1, at, text, asked) for at, text in enumerate(texts)], [asked])
    each = [check_words({asked.qid: text}, [asked])["scene"][0].true for text in texts]
    assert each == [k == n for k in range(3) for n in range(3)], "same words, other spans: not the same truth"
    assert (rows[0]["said_scene"], rows[0]["true_scene"]) == (9, pytest.approx(1 / 3))


def test_other_data_have_no_rows_and_are_not_read():
    film = dataclasses.replace(FIRST, source="charades-sta")
    assert words_by_step((pytest.fail("read") for _ in [0]), [film, *MOMENTS]) == []
    assert words_by_step(ROLLOUTS, [*MOMENTS, film]) == words_by_step([], []) == words_by_step([], MOMENTS) == []


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "final").mkdir()
    history = [{"step": step, "total": step / 2, "miou": 0.5} for step in (1, 2)]
    result = GrpoResult(3, "steps", history, 1.0)
    (tmp_path / "result.json").write_text(json.dumps(dataclasses.asdict(result)))
    for step in (1, 2, 3):
        RolloutStore(tmp_path / "rollouts").write(step, [each for each in ROLLOUTS if each.step == step])
    return tmp_path


def test_a_history_stands_beside_reward_and_iou_and_is_counted_once(stage):
    rows = word_history(stage, lambda: MOMENTS)
    assert [(row["step"], row["total"], row["miou"], row["n"]) for row in rows] == [
        (1, 0.5, 0.5, 3), (2, 1.0, 0.5, 1), (3, None, None, 1),
    ]  # fmt: skip
    for path in (stage / "rollouts").iterdir():
        path.unlink()
    assert word_history(stage, lambda: pytest.fail("asked for moments")) == rows, "kept beside the result"


@pytest.mark.parametrize("kept", ["{", '{"kinds": ["smell"], "rows": []}', "[]", KEPT_BY_OLDER_RULES])
def test_what_another_version_counted_is_counted_again(stage, kept):
    (stage / WORDS_FILE).write_text(kept)
    assert len(word_history(stage, lambda: MOMENTS)) == 3
    assert json.loads((stage / WORDS_FILE).read_text())["kinds"] == list(KINDS)


def test_nothing_is_written_into_another_run_nor_before_a_stage_has_ended(stage):
    assert len(word_history(stage, lambda: MOMENTS, keep=False)) == 3
    assert word_history(stage, lambda: [dataclasses.replace(FIRST, source="film")]) == []
    (stage / "final").rmdir()
    assert word_history(stage, lambda: pytest.fail("asked for moments")) == []
    assert not (stage / WORDS_FILE).exists()
