"""How figures reach a notebook, with a browser, without one, and with one that dies."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import Iterator
from typing import Any

import plotly.io as pio
import pytest

from labkit.views.figures import renderer as display
from labkit.views.figures import style

PNG = b"\x89PNG"
EMPTY: dict[str, Any] = {"data": [], "layout": {}}
LAB = "application/vnd.plotly.v1+json"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture(autouse=True)
def fresh_setup() -> Iterator[None]:
    renderer = pio.renderers.default
    display.setup.cache_clear()
    yield
    display.setup.cache_clear()
    pio.renderers.default = renderer


def bundle() -> dict[str, Any]:
    fig = style.figure("A &lt;title&gt;", "what to <b>see</b>", 100)
    made: dict[str, Any] = pio.renderers["labkit"].to_mimebundle(fig.to_dict())
    return made


def test_without_a_browser_figures_are_alive_and_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_browser() -> None:
        raise RuntimeError("no browser here")

    monkeypatch.setattr(display, "Browser", no_browser)
    assert display.setup() == "plotly_mimetype"
    made = bundle()
    assert set(made) == {LAB, "text/plain"}
    assert made["text/plain"] == "A <title>. what to see"


def test_a_browser_that_dies_costs_the_picture_not_the_notebook(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    class Dying:
        def draw(self, *args: Any) -> bytes:
            calls.append(1)
            raise RuntimeError("browser closed")

    monkeypatch.setattr(display, "Browser", Dying)
    display.setup()
    assert [set(bundle()), set(bundle())] == [{LAB, "text/plain"}] * 2
    assert len(calls) == 1 and "without a static picture" in caplog.text  # it isn't asked again for each figure


@pytest.fixture(scope="module")
def browser() -> Iterator[display.Browser]:
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine: figures carry no picture here")
    opened = display.Browser()
    yield opened
    opened.close()


@pytest.mark.slow
def test_a_browser_that_hangs_is_given_up(browser: display.Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_PICTURE_SECONDS", 0.1)
    with pytest.raises(TimeoutError):
        browser.wait(asyncio.sleep(30))
    monkeypatch.undo()
    assert browser.draw(EMPTY, 100).startswith(PNG)


@pytest.mark.slow
def test_with_a_browser_figures_carry_a_picture(browser: display.Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "Browser", lambda: browser)
    assert display.setup() == "plotly_mimetype+png"
    made = bundle()
    assert set(made) == {LAB, "text/plain", "image/png"}
    assert base64.b64decode(made["image/png"]).startswith(PNG)


@pytest.mark.slow
def test_a_picture_does_not_depend_on_those_before_it_nor_on_one_that_failed(browser: display.Browser) -> None:
    tall = style.figure("A title", "what to see", 400).to_dict()
    first = [browser.draw(tall, 400), browser.draw(EMPTY, 100)]
    with pytest.raises(Exception, match="is not valid JSON|Error"):
        browser.draw({"data": [{"type": "scatter", "x": 5, "transforms": 7}], "layout": 3}, 100)
    assert [browser.draw(tall, 400), browser.draw(EMPTY, 100)] == first


@pytest.mark.slow
def test_its_page_is_kept_from_one_picture_to_the_next(browser: display.Browser) -> None:
    loads: list[Any] = []
    (tab,) = browser._kaleido.tabs.values()

    async def count(event: Any) -> None:
        loads.append(event)

    tab.subscribe("Page.loadEventFired", count)
    for _ in range(3):
        browser.draw(EMPTY, 100)
    assert not loads


def test_the_theme_suits_light_and_dark_paper() -> None:
    def luminance(color: str) -> float:
        parts = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    fig = style.figure("t", "c", 100)
    assert fig.layout.template.layout.paper_bgcolor == "rgba(0, 0, 0, 0)"
    for paper in ("#ffffff", "#111111"):
        assert contrast(style.TEXT, paper) > 4
        lines = [look.color for look in style.looks([*style.STAGES, "a", "b", "c", "d", "e"]).values()]
        for color in (*lines, style.TRUTH, style.ANSWER, style.ANCHOR, style.WORSE):
            assert contrast(color, paper) > 2.5, (color, paper)


def test_stages_differ_without_colour_too() -> None:
    given = style.looks(style.STAGES).values()
    assert len({(look.symbol, look.dash) for look in given}) == len(style.STAGES)
