"""A query as it learns in a browser, from a file, without kernel and network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.watch import watch
from tests.browser.attacks import PAYLOADS
from tests.browser.conftest import CHROMIUM
from tests.browser.pages import WatchedPage
from tests.data.films import CONSTANT, film
from tests.views.explorer.test_watch import probe

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two queries: one learns in two stages, the other is hostile and keeps its answer."""
    folder = tmp_path_factory.mktemp("watch")
    video = film(folder / "film.mp4", CONSTANT)
    moments = [
        Moment(qid, str(video), query, (Span(2, 4),), 8.0) for qid, query in (("q0", "door"), ("q1", PAYLOADS[0]))
    ]
    near = [Span(0, 8), Span(1, 5), Span(2, 4)]
    rollouts = [
        probe("q0", 0, Span(0, 8)), probe("q0", 4, *near[:2]), probe("q0", 9, *near),
        probe("q0", 0, *near[1:], stage="grpo_final"), probe("q1", 0, Span(2, 4)), probe("q1", 4, Span(2, 4)),
    ]  # fmt: skip
    page = folder / "watch.html"
    page.write_text(widget_page(watch(rollouts, moments), path=page), encoding="utf-8")
    return page


def chain(shown: WatchedPage) -> int:
    return int(shown.root("chain"))


def test_steps_are_walked_played_hovered_and_chosen(open_page: Callable[..., WatchedPage], file: Path) -> None:
    shown = open_page(file, '.lk[data-media="ready"]')
    page: Any = shown.page
    assert chain(shown) == 3 and page.locator(".lk-thin-row").count() == 4, "it opens with all that was learnt"
    stages = page.locator(".lk-watch-stage").all_inner_texts()
    assert [text.split(":")[0] for text in stages] == ["stage 1", "stage 2", "stage 3"], "SFT is a break"
    assert page.locator(".lk-thin-row").nth(2).locator(".lk-bar").count() == 3, "two anchors and the answer"
    page.locator(".lk-query").click()
    shown.press("Home")
    assert chain(shown) == 0 and page.locator(".lk-thin-row.lk-later").count() == 3
    shown.press("ArrowDown")
    assert chain(shown) == 1 and "0.0 to 8.0 s" in shown.text(".lk-words")
    page.locator(".lk-thin-row").nth(2).hover()
    assert "2.0 to 4.0 s" in shown.text(".lk-words") and chain(shown) == 1, "a look at another row's thought"
    page.locator(".lk-clock, .lk-watch-where").first.hover()
    page.get_by_role("button", name="play the training").click()
    page.wait_for_function("document.querySelector('.lk').dataset.chain === '3'", timeout=15_000)
    page.wait_for_function("document.querySelector('.lk').dataset.playing === 'false'", timeout=15_000)
    page.locator(".lk-watch-choice").select_option(index=1)
    assert chain(shown) == 5 and PAYLOADS[0][:12] in shown.text(".lk-query")
    page.get_by_role("button", name="step 0").click()
    assert chain(shown) == 4


def test_the_video_beside_the_page_is_shown_over_its_sheet_and_its_sound_can_be_turned_off(
    open_page: Callable[..., WatchedPage], file: Path
) -> None:
    shown = open_page(file, '.lk[data-film="ready"][data-shows="film"]')
    sound = shown.page.get_by_role("button", name="sound off")
    assert sound.is_visible()
    shown.page.locator(".lk-query").click()
    shown.press("m")
    assert shown.page.evaluate("document.querySelector('.lk-film').muted") is True
    shown.page.locator(".lk-chip").first.click()
    shown.page.wait_for_function(
        "() => { const film = document.querySelector('.lk-film');"
        " return document.querySelector('.lk').dataset.shows === 'film' && !film.seeking && film.currentTime < 1.1 }"
    )
    assert shown.page.evaluate("document.querySelector('.lk-film').currentTime") == pytest.approx(1, abs=0.01)


def test_frames_that_are_being_made_say_how_far_they_are(open_page: Callable[..., WatchedPage], file: Path) -> None:
    shown = open_page(file, '.lk[data-media="ready"]')
    shown.page.evaluate(
        """() => {
            const watch = document.querySelector(".lk").labkit;
            delete watch.clips.stored[0];
            watch.clips.decoded.clear();
            watch.clips.ask = () => new Promise(() => {});
            watch.open(0);
            watch.clips.share(0, 0.25);
        }"""
    )
    assert shown.text(".lk-note").startswith("The pictures are being made: 25 %")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (800, "light")])
def test_it_is_within_everybody_s_reach_and_fits(
    open_page: Callable[..., WatchedPage], file: Path, width: int, scheme: str
) -> None:
    shown = open_page(file, '.lk[data-media="ready"]', width, scheme)
    assert shown.violations() == []
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
