"""A click on a figure in a report opens exactly the chains of that point, offline; others are named with what shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit import explore, views
from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views.report.notebook_html import read_chapter
from labkit.views.report.report import report_page
from tests.browser.conftest import CHROMIUM
from tests.browser.pages import WatchedPage, run_in_jupyterlab, write_notebook
from tests.data.films import CONSTANT, film
from tests.executed import code, notebook, output, saved, words

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]
ANSWERS = {"q0": Span(5, 7), "q1": Span(5, 6), "q2": Span(2, 4), "q3": Span(5, 6.5)}
"""The truth is 2 to 4: all but q2's miss it."""


def rollout(qid: str, stage: str) -> Rollout:
    # Half an emoji and a whole one: both languages must count the characters of a text alike.
    text = render([Span(0, 8), Span(0.5, 5)], ANSWERS[qid], ["all 😀", "é \ud83d closer", f"so {stage}"])
    return Rollout(
        run="r", stage=stage, step=0, qid=qid, sample=0, seed=0, checkpoint="m", text=text, status=parse(text).status,
        **UNPAID, prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with the atlas of two stages, of which the explorer holds one, with one chain less."""
    folder = tmp_path_factory.mktemp("clicks")
    video = str(film(folder / "film.mp4", CONSTANT))
    moments = [Moment(qid, video, f"thing {qid}", (Span(2, 4),), 8.0) for qid in ANSWERS]
    records = {stage: [rollout(qid, stage) for qid in ANSWERS] for stage in ("base", "grpo")}
    explorer = explore({"grpo": records["grpo"][1:]}, moments)
    figure = json.loads(views.atlas(records, {moment.qid: moment for moment in moments}).to_json())
    made = notebook(
        words("# Clicks"),
        code("atlas()", output(plotly=figure, text_plain="atlas")),
        code("explore()", output(widget={"model_id": list(saved(explorer))[0]}, text_plain="chains")),
        widgets=saved(explorer),
    )
    path = folder / "page.html"
    path.write_text(report_page("Clicks", [read_chapter(made, "clicks")]), encoding="utf-8")
    return path


@pytest.fixture
def click(open_page: Callable[..., WatchedPage], file: Path) -> Callable[..., Any]:
    """Clicks the bar of a stage, and waits for the dialog that it opens."""

    def click(panel: int, width: int = 1280, scheme: str = "light") -> Any:
        page = open_page(file, 'html[data-ready="yes"]', width, scheme).page
        page.locator("[data-plot]").scroll_into_view_if_needed()
        page.wait_for_selector('[data-plot][data-drawn="yes"] .bars')
        bar = page.locator("[data-plot] .bars").nth(panel).locator(".point path").first
        box = bar.bounding_box()
        page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_selector("dialog.chains[data-chains]")
        return page

    return click


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark")])
def test_a_click_on_a_bar_opens_exactly_its_chains(click: Callable[..., Any], width: int, scheme: str) -> None:
    page = click(1, width, scheme)
    dialog = page.locator("dialog.chains")
    assert dialog.locator("h2").inner_text() == "3 chains: grpo, narrowed elsewhere"
    shown = dialog.locator(".lk-rows .lk-c-query").all_inner_texts()
    assert sorted(shown) == ["thing q1", "thing q3"]
    assert dialog.locator(".lk-chosen").inner_text() == "only 2 chosen chains ×"
    assert "1 of them is not saved on this page: q0." in dialog.locator(".aside").inner_text()
    assert 'lab.read_evaluation("grpo")' in dialog.locator("code").inner_text()
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    page.keyboard.press("ArrowDown")
    assert dialog.locator(".lk-on .lk-c-query").inner_text() in shown, "the keys are the explorer's at once"
    page.keyboard.press("0")
    assert dialog.locator(".lk").get_attribute("data-count") == "3", "all that the page holds"
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog.chains", state="detached")
    page.locator("[data-explorer]").scroll_into_view_if_needed()
    own = page.locator("[data-explorer] .lk")
    own.wait_for()
    assert own.get_attribute("data-count") == "3" and not own.locator(".lk-chosen").is_visible(), "it is as it was"


def test_chains_that_the_page_does_not_hold_are_named_with_what_shows_them(click: Callable[..., Any]) -> None:
    dialog = click(0).locator("dialog.chains")
    assert dialog.locator("h2").inner_text() == "3 chains: base, narrowed elsewhere"
    assert (
        "They are not saved on this page: q0, q1, q3. In a notebook of the run"
        in dialog.locator(".aside").inner_text()
    )
    assert dialog.locator(".lk").count() == 0


SETUP = """
from labkit import explore, explore_figure, read_moments, views
moments = read_moments("moments.jsonl")
texts = ["<answer>2 to 4</answer>", "<answer>5 to 7</answer>", "<answer>5 to 6</answer>"]
from labkit.views.measured_chains import PlainRecord
records = {"mine": [PlainRecord(moment.qid, text) for moment, text in zip(moments, texts)]}
explore_figure(views.atlas(records, {moment.qid: moment for moment in moments}), explore(records, moments))
"""


@pytest.mark.slow
def test_a_click_in_jupyterlab_lists_the_chains_of_the_bar_by_python(server: tuple[str, Path], browser: Any) -> None:
    address, work = server
    write_notebook(work / "clicks.ipynb", SETUP)
    page = run_in_jupyterlab(browser, address, "clicks.ipynb")
    page.wait_for_selector(".bars .point path", timeout=60_000)
    page.wait_for_selector(".lk-explorer")
    page.locator(".bars").first.scroll_into_view_if_needed()
    box = page.locator(".bars .point path").first.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector(".lk-chosen:visible", timeout=20_000)
    assert page.locator(".lk-chosen").inner_text() == "only 2 chosen chains ×"
    assert page.locator(".lk-explorer").get_attribute("data-count") == "2"
    page.close()
