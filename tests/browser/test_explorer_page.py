"""The explorer and the scrubber in a browser, from a file, without kernel and network."""

from __future__ import annotations

import base64
import io
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import chain_ious
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.scoring.predictions import PredictedRow
from labkit.stages.rollouts import Rollout
from labkit.views.explorer.page import module_script, widget_page
from labkit.views.explorer.scrubber import scrub
from labkit.views.explorer.widget import explore
from labkit.views.measured_chains import PlainRecord
from tests.browser.attacks import PAYLOADS
from tests.browser.conftest import CHROMIUM
from tests.browser.pages import WatchedPage, drag_to_twenty_places
from tests.data.films import CONSTANT, expected, film, number_of

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]
DURATION = 8.0
TRUTH = Span(2.0, 4.0)


@pytest.fixture
def look(open_page: Callable[..., WatchedPage], tmp_path: Path) -> Callable[..., WatchedPage]:
    """Opens HTML, once its explorer shows a frame or what else `ready` names of its media."""
    numbers = itertools.count()

    def look(html: str, width: int = 1280, scheme: str = "light", ready: str = "ready") -> WatchedPage:
        file = tmp_path / f"page-{next(numbers)}.html"
        file.write_text(html, encoding="utf-8")
        return open_page(file, f'.lk[data-media="{ready}"]' if ready else ".lk", width, scheme)

    return look


def rollout(qid: str, step: int, sample: int, text: str, stage: str = "grpo", **changes: Any) -> Rollout:
    chain = parse(text)
    breakdown = score_chain(chain, [TRUTH], DURATION, RewardSpec())
    told: dict[str, Any] = {f"reward_{term}": value for term, value in breakdown.terms.items()}
    told |= {"run": "r", "stage": stage, "step": step, "qid": qid, "sample": sample, "seed": 0, "checkpoint": "base"}
    told |= {"text": text, "status": chain.status, "total": breakdown.total, "advantage": 0.0}
    return Rollout(**(told | {"prompt_tokens": 9, "completion_tokens": 20, "finished": True} | changes))


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    folder = tmp_path_factory.mktemp("clips")
    videos = [film(folder / f"film-{k}.mp4", CONSTANT) for k in range(3)]
    return [Moment(f"q{k}", str(video), f"thing {k} happens", (TRUTH,), DURATION) for k, video in enumerate(videos)]


NARROW = render([Span(0, 8), Span(1, 5)], Span(2, 4), ["all of it", "closer", "so"])


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    """Three queries in two stages, four chains each, drawn at random but for the first."""
    generator = np.random.default_rng(0)

    def text() -> str:
        spans = [Span(*sorted(generator.choice(16, 2, replace=False) / 2)) for _ in range(generator.integers(1, 5))]
        return render(spans[:-1], spans[-1], [f"word{generator.integers(9)}" for _ in spans])

    places = itertools.product(["grpo", "grpo_final"], range(3), range(4))
    found = [rollout(f"q{k}", 5, sample, text(), stage) for stage, k, sample in places]
    return [rollout("q0", 5, 0, NARROW), *found[1:-1], rollout("q2", 5, 3, "<think> lost", "grpo_final")]


@pytest.fixture(scope="module")
def html(rollouts: list[Rollout], moments: list[Moment]) -> str:
    return widget_page(
        explore(rollouts, moments, clips=2, kind=lambda chain, windows, duration: "" if chain.answer else "lost")
    )


def test_it_opens_with_the_narrowing_chain_and_its_frame(look: Callable[..., WatchedPage], html: str) -> None:
    shown = look(html)
    assert (shown.root("chain"), shown.root("view"), shown.root("count")) == ("0", "chain", "24")
    assert shown.frame() == expected(CONSTANT, [2.0])[0] and shown.root("frame") == "4"
    assert "all of it 0.0 to 8.0 s closer 1.0 to 5.0 s so" in shown.text(".lk-words")
    bars = shown.page.locator(".lk-tracks .lk-bar")
    assert [bar.get_attribute("aria-label") for bar in bars.all()] == [
        "truth: 2.0 to 4.0 s",
        "anchor 1: 0.0 to 8.0 s, IoU 0.25",
        "anchor 2: 1.0 to 5.0 s, IoU 0.50",
        "answer: 2.0 to 4.0 s, IoU 1.00",
    ]
    assert "step scores 0.50 1.00" in shown.text(".lk-reward-breakdown") and "× 0.75" in shown.text(
        ".lk-reward-breakdown"
    )
    assert "3.88" in shown.text(".lk-side") or "3.87" in shown.text(".lk-side")


def test_a_total_that_no_known_weights_explain_is_shown_without_weights_and_says_so(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    """As rollouts of a store from before they knew what they were paid by."""
    paid = [rollout("q0", 5, sample, NARROW, total=total) for sample, total in enumerate((2.5, 1.5))]
    shown = look(widget_page(explore(paid, moments, clips=1)))
    assert "× ?" in shown.text(".lk-reward-breakdown") and "× 0.75" not in shown.text(".lk-reward-breakdown")
    assert "do not say what they were paid by" in shown.text(".lk-side")


def test_a_step_is_marked_better_from_the_least_gain_on(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    text = render([Span(0, 8), Span(0, 7.9), Span(1, 5)], Span(2, 4))
    shown = look(widget_page(explore([rollout("q0", 5, 0, text)], moments, clips=1)))
    tracks = shown.text(".lk-tracks")
    assert (tracks.count("▲"), tracks.count("="), tracks.count("▼")) == (2, 1, 0)


def test_predictions_of_other_models_show_what_their_rules_read_and_no_reward(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    said = "<think>all <timestep>0.0 to 8.0</timestep></think><answer>2 to 4</answer><|im_end|>"
    shown = look(widget_page(explore({"q0": said, "q1": "It happens from 5 to 6."}, moments, rules="timer1", clips=2)))
    bars = [bar.get_attribute("aria-label") for bar in shown.page.locator(".lk-tracks .lk-bar").all()]
    assert bars[1:] == ["anchor 1: 0.0 to 8.0 s, IoU 0.25", "answer: 2.0 to 4.0 s, IoU 1.00"]
    assert "all 0.0 to 8.0 s" in shown.text(".lk-words") and "2 to 4 s" in shown.text(".lk-words")
    assert "No reward a prediction is not paid" in " ".join(shown.text(".lk-side").split())
    windows = PredictedRow(windows=((2.0, 4.0), (5.0, 6.0)))
    shown = look(widget_page(explore({"q0": windows}, moments, clips=1)))
    assert " ".join(shown.text(".lk-words").split()) == "2 to 4 s 5 to 6"
    shown = look(widget_page(explore({"q0": "From 25 to 50."}, moments, rules="vtimellm", clips=1)))
    assert shown.text(".lk-words") == "From 25 to 50: 2.0–4.0 s.", "hundredths of 8 s"


def test_dragging_to_twenty_places_shows_the_frame_of_each(look: Callable[..., WatchedPage], html: str) -> None:
    shown = look(html)
    drag_to_twenty_places(shown.page, CONSTANT, DURATION)


def test_an_anchor_in_the_words_and_its_bar_light_up_each_other(look: Callable[..., WatchedPage], html: str) -> None:
    shown = look(html)
    chip, bar = shown.page.locator('.lk-words [data-step="1"]'), shown.page.locator('.lk-tracks [data-step="1"]')
    hot = lambda place: "lk-hot" in str(place.get_attribute("class"))  # noqa: E731
    chip.hover()
    assert hot(chip) and hot(bar) and shown.frame() == expected(CONSTANT, [3.0])[0]  # the middle of 1 to 5
    shown.page.locator(".lk-query").hover()
    assert not hot(chip) and not hot(bar) and shown.frame() == expected(CONSTANT, [2.0])[0]
    bar.hover()
    assert hot(chip) and hot(bar)
    chip.click()
    assert shown.page.locator(".lk-slider").get_attribute("aria-valuetext") == "1.0 s"


def test_keys_do_everything_and_never_leave_the_explorer(look: Callable[..., WatchedPage], html: str) -> None:
    shown = look(html)
    shown.page.evaluate(
        "window.leaked = []; for (const kind of ['keydown', 'keyup', 'keypress'])"
        " document.addEventListener(kind, (event) => leaked.push(event.key))"
    )
    time = lambda: shown.page.locator(".lk-slider").get_attribute("aria-valuetext")  # noqa: E731
    shown.page.locator(".lk-table").focus()
    shown.press("Home")
    assert time() == "0.0 s"
    shown.press("ArrowRight", "ArrowRight")
    assert time() == "1.0 s" and shown.frame() == expected(CONSTANT, [1.0])[0]
    shown.press("ArrowLeft")
    assert time() == "0.5 s"
    shown.press("End", "]")
    assert time() == "0.0 s"  # anchor 1
    shown.press("]")
    assert time() == "1.0 s"
    shown.press("[", "[")
    assert time() == "2.0 s"  # round to the answer
    shown.press("Home", "t")
    assert time() == "2.0 s"
    order = [row.get_attribute("data-index") for row in shown.page.locator(".lk-rows .lk-row").all()]
    assert order[0] == "0"
    shown.press("ArrowDown", "j")
    assert shown.root("chain") == order[2]
    shown.press("k", "ArrowUp")
    assert shown.root("chain") == "0"
    shown.press("2")
    assert shown.root("view") == "group"
    shown.press("3")
    assert shown.root("view") == "stages"
    shown.press("1", ">", ">")
    assert shown.page.locator(".lk-speed").input_value() == "4"
    shown.press("Home", " ")
    assert shown.root("playing") == "true"
    shown.page.wait_for_selector('.lk[data-playing="false"]', timeout=10_000)  # 8 s at 4x
    assert time() == "8.0 s"
    shown.press("/")
    shown.page.keyboard.type("thing 1 jk")
    assert shown.root("chain") == "0" and shown.root("count") == "0"
    assert "No chain passes these filters" in shown.text(".lk-empty")
    shown.press("Escape", "0")
    assert shown.root("count") == "24"
    shown.press("?")
    assert shown.page.locator(".lk-dialog").is_visible()
    shown.press("Escape")
    assert not shown.page.locator(".lk-dialog").is_visible()
    assert shown.page.evaluate("leaked") == []


def test_filters_list_what_python_says_they_should(
    look: Callable[..., WatchedPage], html: str, rollouts: list[Rollout]
) -> None:
    shown = look(html)
    chains = [parse(each.text) for each in rollouts]
    ious = [chain_ious(chain, [TRUTH], DURATION) for chain in chains]
    answers = [row[-1] if chain.answer else 0.0 for chain, row in zip(chains, ious, strict=True)]

    def listed() -> set[int]:
        return {int(row.get_attribute("data-index")) for row in shown.page.locator(".lk-rows .lk-row").all()}

    def where(passes: Callable[[int], bool]) -> set[int]:
        return {i for i in range(len(rollouts)) if passes(i)}

    def choose(name: str, value: str) -> None:
        shown.page.locator(f'select[data-filter="{name}"]').select_option(value)

    cases: list[tuple[str, str, Callable[[int], bool]]] = [
        ("stage", "grpo_final", lambda i: rollouts[i].stage == "grpo_final"),
        ("status", "ok", lambda i: chains[i].status == "ok"),
        ("kind", "lost", lambda i: chains[i].answer is None),
        ("anchors", "2", lambda i: len(chains[i].anchors) == 2),
        ("regress", "step", lambda i: any(b < a for a, b in itertools.pairwise(ious[i]))),
        ("regress", "answer", lambda i: max(ious[i], default=0) > answers[i]),
    ]
    for name, value, passes in cases:
        choose(name, value)
        assert listed() == where(passes), (name, value)
        shown.page.get_by_role("button", name="clear").click()
    shown.page.locator('[data-filter="text"]').fill("THING 1")
    assert listed() == where(lambda i: rollouts[i].qid == "q1")
    shown.page.locator('[data-filter="low"]').fill("0.3")
    shown.page.locator('[data-filter="high"]').fill("0.6")
    assert listed() == where(lambda i: rollouts[i].qid == "q1" and 0.3 <= answers[i] <= 0.6)
    shown.page.get_by_role("button", name="clear").click()
    assert listed() == where(lambda i: True)


def test_the_chosen_option_is_a_chip_that_says_whether_it_is_right(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    asked = replace(moments[0], options=("opens", "shuts"), choice=1)
    told = [PlainRecord("q0", render([Span(1, 5)], TRUTH, ["near", "so"], option)) for option in (1, 0)]
    shown = look(widget_page(explore(told, [asked], clips=1)))
    seen = {}
    for place in (0, 1):
        shown.page.locator(f'.lk-row[data-index="{place}"]').click()
        chip = shown.page.locator(".lk-words .lk-choice")
        seen[chip.inner_text()] = chip.get_attribute("title")
    assert seen == {"B ✓": "chosen: B shuts; right", "A ✗": "chosen: A opens; right is B shuts"}
    assert "<option>" not in shown.text(".lk-words")


def test_columns_sort_both_ways(look: Callable[..., WatchedPage], html: str, rollouts: list[Rollout]) -> None:
    shown = look(html)

    def order() -> list[int]:
        return [int(row.get_attribute("data-index")) for row in shown.page.locator(".lk-rows .lk-row").all()]

    totals = [each.total for each in rollouts]
    header = shown.page.locator('[data-column="total"]')
    header.locator("button").click()
    assert [totals[i] for i in order()] == sorted(totals, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    assert [totals[i] for i in order()] == sorted(totals) and header.get_attribute("aria-sort") == "ascending"
    shown.page.locator('[data-column="query"] button').click()
    assert [rollouts[i].qid for i in order()] == sorted(each.qid for each in rollouts)


def test_a_group_stands_from_best_to_worst_and_says_why(
    look: Callable[..., WatchedPage], html: str, rollouts: list[Rollout]
) -> None:
    shown = look(html)
    shown.page.get_by_role("tab", name="Group").click()
    group = [i for i, each in enumerate(rollouts) if each.stage == "grpo" and each.qid == "q0"]
    ranked = sorted(group, key=lambda i: -rollouts[i].total)
    rows = shown.page.locator("[data-row-chain]")
    assert [int(row.get_attribute("data-row-chain")) for row in rows.all()] == ranked
    fall = rollouts[ranked[0]].total - rollouts[ranked[-1]].total
    assert f"From best to worst the reward falls by {fall:.2f}" in shown.text(".lk-why")
    rows.nth(2).locator("button").first.click()
    assert shown.root("chain") == str(ranked[2]) and shown.root("view") == "group"
    assert "rank 3" in shown.text(".lk-words")


@pytest.mark.parametrize("view", ["Group", "Stages"])
def test_among_several_chains_an_anchor_shows_the_frames_of_its_own(
    look: Callable[..., WatchedPage], moments: list[Moment], view: str
) -> None:
    wide, near = (render([Span(*ends)], Span(2, 4)) for ends in ((0, 2), (5, 7)))
    told = [rollout("q0", 5, k, text, stage) for k, (stage, text) in enumerate([("grpo", wide), ("grpo_final", near)])]
    if view == "Group":
        told = [rollout("q0", 5, 0, near), rollout("q0", 5, 1, wide)]
    widget = explore(told, moments, clips=1)
    widget.selected = 1
    shown = look(widget_page(widget))
    shown.page.get_by_role("tab", name=view).click()
    anchor = widget.selection.chain.anchors[0].span  # type: ignore[union-attr]
    shown.page.locator('.lk-words button[data-step="0"]').hover()
    assert shown.frame() == expected(CONSTANT, [anchor.middle])[0]


def test_a_query_is_followed_through_the_stages(look: Callable[..., WatchedPage], html: str) -> None:
    shown = look(html)
    shown.page.get_by_role("tab", name="Stages").click()
    rows = shown.page.locator("[data-row-chain]")
    assert [int(row.get_attribute("data-row-chain")) for row in rows.all()] == [0, 12]
    assert [row.inner_text().split()[0] for row in rows.all()] == ["grpo", "grpo_final"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark")])
def test_models_stand_under_one_timeline_with_what_each_is_worth(
    look: Callable[..., WatchedPage], moments: list[Moment], width: int, scheme: str
) -> None:
    models = {
        "ours": {"q0": "<think></think><answer>2 to 4</answer>", "q1": "<think></think><answer>2 to 4</answer>"},
        "grpo of 7B": {"q0": "<think></think><answer>2 to 8</answer>"},
        "detr": {"q0": PredictedRow(windows=((3.0, 4.0),))},
    }
    shown = look(widget_page(explore(models, moments, clips=1)), width, scheme)
    assert shown.root("view") == "stages" and shown.page.get_by_role("tab", name="Models").is_visible()
    rows = [" ".join(row.inner_text().split()) for row in shown.page.locator("[data-row-chain]").all()]
    assert rows == ["ours IoU 1.00", "grpo of 7B IoU 0.33", "detr IoU 0.50"]
    side = " ".join(shown.text(".lk-side").split())
    assert "ours 2.0–4.0 1.00 – grpo of 7B 2.0–8.0 0.33 \u22120.67 detr 3.0–4.0 0.50 \u22120.50" in side
    assert "fault" in shown.text(".lk-head-rows") and "window" not in shown.text(".lk-rows"), "a window is no fault"
    shown.page.locator('[data-filter="stage"]').select_option("detr")
    assert shown.root("count") == "1"
    shown.page.locator('[data-filter="stage"]').select_option("")
    shown.page.locator(".lk-rows .lk-row", has_text="thing 1").click()
    assert "Not answered by: grpo of 7B, detr." in shown.text(".lk-side")
    assert shown.violations() == []


def test_samples_of_one_model_are_ranked_by_iou_where_nothing_was_paid(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    rows = [{"qid": "q0", "text": f"<think></think><answer>2 to {end}</answer>"} for end in (8, 4, 6)]
    widget = explore(rows, moments, clips=1)
    widget.view = "group"
    shown = look(widget_page(widget))
    ranked = [" ".join(row.inner_text().split()) for row in shown.page.locator("[data-row-chain]").all()]
    assert ranked == ["1 #1 IoU 1.00", "2 #2 IoU 0.50", "3 #0 IoU 0.33"]
    assert "3 answers to this prompt, IoU 0.33 to 1.00." in shown.text(".lk-side")


def test_a_clip_that_did_not_travel_along_says_so_in_its_place(
    look: Callable[..., WatchedPage], html: str, rollouts: list[Rollout], moments: list[Moment]
) -> None:
    shown = look(html)
    held = explore(rollouts, moments, clips=2).clips
    (missing,) = {0, 1, 2} - {int(key) for key in held}
    shown.page.locator('[data-filter="text"]').fill(f"thing {missing}")
    shown.page.locator(".lk-rows .lk-row").first.click()
    shown.page.wait_for_selector('.lk[data-media="none"]')
    assert "frames of 2 clips, not of this one" in shown.text(".lk-note")
    assert shown.page.locator(".lk-tracks .lk-bar").count() >= 1


def test_without_chains_it_says_so(look: Callable[..., WatchedPage], moments: list[Moment]) -> None:
    shown = look(widget_page(explore([], moments)), ready="")
    assert "There are no chains yet." in shown.text(".lk-table-frame") and shown.root("count") == "0"
    shown.page.locator(".lk-table").focus()
    shown.press("ArrowDown", " ", "2", "?", "Escape", "/")
    shown.page.keyboard.type("x")


@pytest.mark.parametrize("height", [1000, 1200])
def test_ten_thousand_chains_keep_about_forty_rows(
    look: Callable[..., WatchedPage], rollouts: list[Rollout], moments: list[Moment], height: int
) -> None:
    many = [rollout(each.qid, step, each.sample, each.text) for step in range(417) for each in rollouts]
    shown = look(widget_page(explore(many, moments, clips=1, height=height)))
    rows = shown.page.locator(".lk-rows .lk-row")
    assert shown.root("count") == "10008" and 20 <= rows.count() <= 40
    shown.page.locator(".lk-table").evaluate("(table) => { table.scrollTop = table.scrollHeight }")
    shown.page.wait_for_function("[...document.querySelectorAll('.lk-rows .lk-row')].at(-1).ariaRowIndex === '10009'")
    assert rows.count() <= 40


def test_no_text_of_a_model_a_query_or_a_file_can_run(
    look: Callable[..., WatchedPage], moments: list[Moment], tmp_path: Path
) -> None:
    assert len(PAYLOADS) == 50
    told, asked = [], []
    for k, payload in enumerate(PAYLOADS):
        video = tmp_path / payload.replace("/", "∕").replace("\x00", "")  # a name can't hold these two
        video.symlink_to(moments[0].video)
        asked.append(Moment(payload, str(video), payload, (TRUTH,), DURATION, options=(payload, "b"), choice=0))
        text = f"<think>{payload} <timestamp>1 to 5</timestamp> {payload}</think><answer>2 to 4</answer>{payload}"
        told.append(rollout(payload, k + 1, 0, text, payload, run=payload))
    widget = explore(told, asked, clips=3, kind=lambda *_: PAYLOADS[3])
    shown = look(widget_page(widget, title=PAYLOADS[1]))
    shown.page.locator(".lk-table").focus()
    for view in "123":
        shown.press(view, "Home")
        for _ in PAYLOADS:
            shown.press("ArrowDown")
        for _ in PAYLOADS:
            shown.press("ArrowUp")
    assert shown.page.evaluate("window.hits") == 0
    for tag in ("script", "img", "iframe", "a", "details", "link", "style", "base", "meta", "video:not(.lk-film)"):
        inside = shown.page.locator(f".lk {tag}").count()
        assert inside == 0, tag
    assert "\u202e" not in shown.page.locator(".lk").inner_text()


@pytest.mark.parametrize("width", [1280, 700])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_out_of_reach_for_anyone(
    look: Callable[..., WatchedPage], html: str, moments: list[Moment], scheme: str, width: int
) -> None:
    shown = look(html, width, scheme)
    shown.page.locator(".lk-table").focus()
    assert shown.violations() == []
    shown.press("2")
    shown.page.locator(".lk-rows .lk-row").nth(5).click()
    assert shown.violations() == []
    shown.press("3")
    assert shown.violations() == []
    shown.press("/")
    shown.page.keyboard.type("lost")
    shown.press("Escape", "1", "ArrowDown")
    assert "lost" in shown.text(".lk-badge") and shown.violations() == []
    shown.press("?")
    assert shown.violations() == []
    assert (
        look(widget_page(scrub(moments[0].video, {"truth": TRUTH, "answer": (1, 2)})), width, scheme).violations()
        == []
    )


def test_a_scrubber_scrubs_and_jumps_to_its_spans(look: Callable[..., WatchedPage], moments: list[Moment]) -> None:
    shown = look(widget_page(scrub(moments[0].video, {"truth": TRUTH, "seen": [(0.5, 1), (6, 7.5)]}, start=1.0)))
    assert shown.frame() == expected(CONSTANT, [1.0])[0]
    shown.page.get_by_role("button", name="seen: 6.0 to 7.5 s").hover()
    shown.page.get_by_role("button", name="seen: 6.0 to 7.5 s").click(position={"x": 5, "y": 5})
    shown.page.locator(".lk-clock").hover()
    assert shown.frame() == expected(CONSTANT, [7.0])[0]
    shown.page.locator(".lk-slider").focus()
    shown.press("Home", "ArrowRight")
    assert shown.frame() == expected(CONSTANT, [1.5])[0]
    assert shown.page.locator(".lk-slider").get_attribute("aria-valuemax") == "7.0"


def test_a_page_plays_the_video_that_lies_beside_it_and_without_it_shows_the_sheet(
    look: Callable[..., WatchedPage], moments: list[Moment], tmp_path: Path
) -> None:
    page = widget_page(scrub(moments[0].video, {"truth": TRUTH}, start=1.0), path=tmp_path / "page-0.html")
    assert str(Path(moments[0].video).parent) not in page, "a path is nobody's business"
    lone = look(page)
    lone.page.wait_for_timeout(400)
    assert (lone.root("film"), lone.root("shows")) == ("none", "sheet")
    (tmp_path / Path(moments[0].video).name).symlink_to(moments[0].video)
    shown = look(page)
    shown.page.wait_for_selector('.lk[data-film="ready"][data-shows="film"]')
    assert shown.violations() == []
    shown.page.locator(".lk-slider").focus()
    for key, second in (("Home", 0.0), ("ArrowRight", 0.5), ("End", 7.0 - 0.04)):
        shown.press(key)
        shown.page.wait_for_function(
            "() => { const film = document.querySelector('.lk').labkit.player.film;"
            " return film.root.dataset.shows === 'film' && !film.video.seeking }"
        )
        picture = Image.open(io.BytesIO(shown.page.locator(".lk-film").screenshot())).convert("RGB")
        assert number_of(np.array(picture)) == expected(CONSTANT, [1.0 + second])[0]


@pytest.mark.parametrize("another", [False, True], ids=["the same clip", "another clip meanwhile"])
def test_a_server_that_has_no_video_is_replaced_by_the_kernel_for_the_clip_that_is_shown(
    look: Callable[..., WatchedPage], html: str, another: bool
) -> None:
    asked = look(html).page.evaluate(
        """async (another) => {
            const { film } = document.querySelector(".lk").labkit.player;
            const asked = [];
            const find = (name) => async (whole) => (asked.push([name, whole]), null);
            let answer;
            window.fetch = () => new Promise((tell) => (answer = tell));
            Object.assign(film, { source: { served: true, src: "gone" }, find: find("first") });
            const failed = film.failed();
            if (another) film.load(find("second"));
            answer({ ok: false });
            await failed;
            await new Promise((tell) => setTimeout(tell, 400));
            return asked;
        }""",
        another,
    )
    assert asked == ([["second", False]] if another else [["first", True]])


def test_a_video_that_came_as_bytes_is_not_sent_again_when_its_clip_is_shown_again(
    look: Callable[..., WatchedPage], html: str
) -> None:
    told = look(html).page.evaluate(
        """async () => {
            const { clips } = document.querySelector(".lk").labkit;
            const sent = [];
            clips.askFilm = async (key) => (sent.push(key), { bytes: new DataView(new ArrayBuffer(9)), start: key + 0.5 });
            const found = [];
            for (const key of [0, 1, 0, 2, 0]) found.push(await clips.film(key, false));
            return { sent, starts: found.map((each) => each.start), same: found[0].src === found[2].src };
        }"""
    )
    assert told == {"sent": [0, 1, 2, 0], "starts": [0.5, 1.5, 0.5, 2.5, 0.5], "same": True}, "two are held"


def test_a_page_that_comes_to_life_keeps_its_filters_beside_a_choice(
    look: Callable[..., WatchedPage], rollouts: list[Rollout], moments: list[Moment]
) -> None:
    widget = explore(rollouts, moments, clips=3)
    widget.chosen, widget.filter = [0, 4, 5, 13], "thing 1"
    shown = look(widget_page(widget))
    assert (shown.root("count"), shown.root("chain")) == ("2", "0") and shown.text(".lk-chosen").startswith("only 4")
    assert shown.page.locator(".lk-search").input_value() == "thing 1"


def test_the_state_that_a_notebook_saves_comes_to_life_too(
    look: Callable[..., WatchedPage], rollouts: list[Rollout], moments: list[Moment]
) -> None:
    widget = explore(rollouts, moments, clips=3)
    state, paths, buffers = split(widget.get_state())
    entry = {
        "state": state,
        "buffers": [
            {"path": path, "encoding": "base64", "data": base64.b64encode(data).decode()}
            for path, data in zip(paths, buffers, strict=True)
        ],
    }
    # What a notebook keeps of clips that were shown before: bytes whose place is gone.
    for path in (["sheets", "7"], ["clips", "7", "sheet"]):
        entry["buffers"].append({"path": path, "encoding": "base64", "data": "aGk="})
    inlined = json.dumps(entry, default=str).replace("<", "\\u003c")
    body = f'<main><div data-labkit><script type="application/json">{inlined}</script></div></main>{module_script()}'
    shown = look(f"<!DOCTYPE html><html lang=en><meta charset=utf-8><title>saved</title><body>{body}</body></html>")
    assert shown.root("chain") == "0" and shown.frame() == expected(CONSTANT, [2.0])[0]


def split(state: dict[str, Any]) -> tuple[dict[str, Any], list[list[str]], list[bytes]]:
    """A widget's state as ipywidgets saves it, its bytes apart."""
    from ipywidgets.widgets.widget import _remove_buffers

    return tuple(_remove_buffers(state))  # type: ignore[return-value]


def test_what_all_chains_share_is_said_once_and_no_column_repeats_it(
    look: Callable[..., WatchedPage], moments: list[Moment]
) -> None:
    alike = [rollout(f"q{k % 3}", 5, k, text) for k, text in enumerate([NARROW, render([Span(0, 4)], Span(1, 4))])]
    shown = look(widget_page(explore(alike, moments)))
    assert "all chains" in shown.text(".lk-about") and "grpo" in shown.text(".lk-about")
    assert "step 5" in shown.text(".lk-about")
    shown = shown.page.locator(".lk-header .lk-cell").evaluate_all(
        "(cells) => cells.map((cell) => cell.dataset.column)"
    )
    assert not {"stage", "step"} & set(shown) and {"query", "iou", "anchors"} <= set(shown)


@pytest.mark.parametrize("width", [1280, 800])
def test_queries_that_begin_alike_can_be_told_apart(
    look: Callable[..., WatchedPage], moments: list[Moment], width: int
) -> None:
    queries = [f"when does the person in the blue coat {verb} the door?" for verb in ("open", "close", "lock")]
    asked = [replace(moment, query=query) for moment, query in zip(moments, queries, strict=True)]
    chains = [rollout(m.qid, 5, k, NARROW, stage) for k, m in enumerate(asked) for stage in ("grpo", "grpo_final")]
    shown = look(widget_page(explore(chains, asked, base=chains[:1])), width)
    cut = "(cells) => cells.filter((cell) => cell.scrollHeight > cell.clientHeight + 2).length"
    assert shown.page.locator(".lk-rows .lk-c-query").evaluate_all(cut) == 0


def test_the_axis_of_a_long_group_stays_in_sight(look: Callable[..., WatchedPage], moments: list[Moment]) -> None:
    spans = [Span(k / 2, k / 2 + 3) for k in range(9)]
    long = render(spans[:-1], spans[-1], ["and so on"] * 9)
    shown = look(widget_page(explore([rollout("q0", 5, k, long) for k in range(12)], moments)))
    shown.press("2")
    panel, axis = (shown.page.locator(each).bounding_box() for each in (".lk-panel", ".lk-axis-row"))
    assert panel and axis and axis["y"] + axis["height"] <= panel["y"] + panel["height"] + 1
    assert shown.page.locator(".lk-panel").evaluate("(panel) => panel.scrollHeight > panel.clientHeight")


def test_a_page_says_which_chains_did_not_travel_and_counts_all(
    look: Callable[..., WatchedPage], moments: list[Moment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labkit.views.explorer.subset.MOST_CHAINS", 8)
    widget = explore([rollout("q0", step, k, NARROW) for step in range(1, 11) for k in range(4)], moments)
    widget.selected = 39
    shown = look(widget_page(widget))
    assert shown.text(".lk-about").endswith("The others are in the rollouts of run 'r'.")
    assert "8 of 40 chains are saved" in shown.text(".lk-about") and shown.text(".lk-count") == "8 of 40"
    assert shown.root("chain") == "39", "places are those in the whole"
    assert shown.page.locator(".lk-about button").count() == 0, "there is no kernel to ask"
