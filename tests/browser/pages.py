"""Pages in a browser: one that records what it asked for, the frame on a canvas, a notebook that runs in JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from tests.data.films import BITS, expected


class WatchedPage:
    """A page without a network, and all that it asked the network for or had to complain about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.trouble: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.trouble.append(str(error)))
        page.on("dialog", lambda dialog: (self.trouble.append(dialog.message), dialog.dismiss()))
        page.route("**/*", self._route)
        page.add_init_script("window.hits = 0; window.hit = () => { window.hits += 1; };")

    def _route(self, route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            self.requests.append(route.request.url)
            route.abort()

    def root(self, name: str) -> str:
        """An attribute that the explorer keeps for tests."""
        return str(self.page.locator(".lk").get_attribute(f"data-{name}"))

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def frame(self) -> int:
        """The number painted into the frame that is shown."""
        return frame_shown(self.page)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def scroll_through(self) -> list[str]:
        """Go down the page, so that all of it has been in view; what became of its figures."""
        for _ in range(200):
            self.page.mouse.wheel(0, 600)
            self.page.wait_for_timeout(20)
            if self.page.evaluate("scrollY + innerHeight >= document.documentElement.scrollHeight - 2"):
                break
        self.page.wait_for_function(
            "[...document.querySelectorAll('[data-plot], [data-explorer]')]"
            ".every((each) => ['yes', 'failed'].includes(each.dataset.drawn))",
            timeout=30_000,
        )
        drawn: list[str] = self.page.evaluate(
            "[...document.querySelectorAll('[data-plot], [data-explorer]')].map((each) => each.dataset.drawn)"
        )
        return drawn

    def violations(self) -> list[str]:
        """What axe-core finds out of reach for somebody."""
        from axe_playwright_python.sync_playwright import Axe

        found = Axe().run(self.page).response["violations"]
        return [f"{each['id']}: {node['html'][:160]}" for each in found for node in each["nodes"]]


def frame_shown(page: Any, where: str = ".lk-canvas") -> int:
    """The number painted into the frame of the first player of a page, read from its canvas, or from a video."""
    row = page.evaluate(
        """([bits, where]) => {
            const shown = document.querySelector(where);
            const canvas = new OffscreenCanvas(shown.videoWidth ?? shown.width, shown.videoHeight ?? shown.height);
            const context = canvas.getContext("2d", {willReadFrequently: true});
            context.drawImage(shown, 0, 0);
            const pixels = context.getImageData(0, Math.floor(canvas.height / 6), canvas.width, 1).data;
            return Array.from({length: bits}, (_, bit) => pixels[4 * Math.floor((bit + 0.5) * canvas.width / bits)]);
        }""",
        [BITS, where],
    )
    return sum(1 << bit for bit, value in enumerate(row) if value > 120)


def drag_to_twenty_places(page: Any, milliseconds: list[int], duration: float) -> None:
    """Drag the first player's scrub bar there and back, and find the right frame in the pixels each time.

    `milliseconds` are those of the film that is shown from its beginning; a sheet holds a frame for each half second.
    """
    slider = page.locator(".lk-slider").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    page.mouse.move(box["x"] + 1, box["y"] + 20)
    page.mouse.down()
    for share in (np.arange(20) * 7 % 20 + 0.37) / 20:
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 20)
        assert float(slider.get_attribute("aria-valuenow")) == pytest.approx(share * duration, abs=0.02)
        assert frame_shown(page) == expected(milliseconds, [np.floor(share * duration / 0.5) * 0.5])[0]
    page.mouse.up()


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of code cells, not yet run."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    made = [nbformat.v4.new_code_cell(cell.strip()) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)


def run_in_jupyterlab(browser: Any, address: str, name: str) -> Any:
    """A page of JupyterLab with a notebook of which all cells are being run."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/workspaces/{Path(name).stem}-live/tree/{name}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000
    )
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    return page
