"""The page of an asked question: chains over the video, and nothing that only a truth could say."""

from __future__ import annotations

import pytest

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from tests.asked import asked_chains
from tests.browser.conftest import CHROMIUM
from tests.data.films import CONSTANT, film

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]
TEXTS = (
    render([Span(1, 7), Span(2, 6)], Span(2, 5)),
    render([], Span(4, 6)),
    "<think>no idea",
    render([], Span(9, 12)),
)


def asked(folder, texts):
    film(folder / "film.mp4", CONSTANT)
    return asked_chains(folder, texts)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark")])
def test_several_chains_stand_side_by_side_without_a_score(open_page, tmp_path, width, scheme):
    asked(tmp_path, TEXTS).save(tmp_path / "answer.html")
    shown = open_page(tmp_path / "answer.html", ".lk[data-media=ready]", width, scheme)
    assert shown.page.locator("h1").inner_text() == "“a door opens” in film.mp4"
    assert shown.page.locator(".lk-thin-row").count() == 4
    for view in ("group", "chain"):
        shown.page.locator(f"[data-tab={view}]").click()
        said = shown.text(".lk")
        assert "No truth, no score" in said and "greedy" in said
        assert not any(word in said for word in ("IoU", "reward", "truth ", "NaN", "null", "undefined"))
        assert shown.page.locator(".lk-band, .lk-funnel polygon, .lk-truth, .lk-bar-note").count() == 0
    assert not shown.page.locator("[data-tab=stages]").is_visible()
    shown.page.locator(".lk-row[data-index='3']").click()
    shown.press("t", "a", "Enter", "]", "s", "r", "2", "3", "1")  # keys about a truth do nothing, and break nothing
    assert "outside the video" in shown.text(".lk-panel")


def test_one_chain_has_the_page_for_itself(open_page, tmp_path):
    asked(tmp_path, TEXTS[:1]).save(tmp_path / "answer.html")
    shown = open_page(tmp_path / "answer.html", ".lk[data-media=ready]")
    assert not shown.page.locator(".lk-table-frame").is_visible() and not shown.page.locator(".lk-tabs").is_visible()
    assert [row.inner_text() for row in shown.page.locator(".lk-end").all()] == ["1.0–7.0", "2.0–6.0", "2.0–5.0"]
    shown.page.locator(".lk-chip").nth(1).click()
    assert shown.frame() == 50, "second 2 of a film of 25 frames a second"
