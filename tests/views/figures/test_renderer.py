"""How figures reach a notebook, with a browser, without one, and with one that dies."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from typing import Any

import plotly.io as pio
import pytest

from labkit.views.figures import renderer as display
from labkit.views.figures import style

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
    def no_browser(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no browser here")

    monkeypatch.setattr(display, "_within", no_browser)
    assert display.setup() == "plotly_mimetype"
    made = bundle()
    assert set(made) == {LAB, "text/plain"}
    assert made["text/plain"] == "A <title>. what to see"


def test_a_browser_that_dies_costs_the_picture_not_the_notebook(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def dying(*args: Any, **kwargs: Any) -> bytes:
        calls.append(1)
        raise RuntimeError("browser closed")

    monkeypatch.setattr(display, "_browser_works", lambda: True)
    monkeypatch.setattr(display, "_within", dying)
    display.setup()
    assert [set(bundle()), set(bundle())] == [{LAB, "text/plain"}] * 2
    assert len(calls) == 1 and "without a static picture" in caplog.text  # it isn't asked again for each figure


def test_a_browser_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import queue
    import threading

    monkeypatch.setattr(display, "_PICTURE_SECONDS", -4.9)
    never = threading.Event()
    with pytest.raises(queue.Empty):
        display._within(never.wait)
    never.set()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine: figures carry no picture here")
@pytest.mark.slow
def test_with_a_browser_figures_carry_a_picture() -> None:
    import kaleido

    try:
        assert display.setup() == "plotly_mimetype+png"
        made = bundle()
    finally:
        kaleido.stop_sync_server(silence_warnings=True)
    assert set(made) == {LAB, "text/plain", "image/png"}
    assert base64.b64decode(made["image/png"]).startswith(b"\x89PNG")


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
