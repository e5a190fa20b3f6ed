"""What is seen in a browser: the frame on a canvas, and a notebook that runs in JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

from tests.data.films import BITS, expected


def frame_shown(page: Any) -> int:
    """The number painted into the frame of the first player of a page, read from its canvas."""
    row = page.evaluate(
        """(bits) => {
            const shown = document.querySelector(".lk-canvas");
            const canvas = new OffscreenCanvas(shown.width, shown.height);
            const context = canvas.getContext("2d", {willReadFrequently: true});
            context.drawImage(shown, 0, 0);
            const pixels = context.getImageData(0, Math.floor(canvas.height / 6), canvas.width, 1).data;
            return Array.from({length: bits}, (_, bit) => pixels[4 * Math.floor((bit + 0.5) * canvas.width / bits)]);
        }""",
        BITS,
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


def started(browser: Any, address: str, name: str) -> Any:
    """A page of JupyterLab with a notebook of which all cells are being run."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/workspaces/{Path(name).stem}-live/tree/{name}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_function(
        "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000
    )
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    return page
