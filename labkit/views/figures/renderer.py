"""How figures reach a notebook: alive, as a picture for viewers that run nothing, and as a line of text."""

from __future__ import annotations

import asyncio
import atexit
import base64
import functools
import io
import logging
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from labkit.progress import say
from labkit.quick_imports import quick_nbformat
from labkit.views.figures.style import WIDTH, Figure

log = logging.getLogger("labkit.views")
_MIMETYPE = "application/vnd.plotly.v1+json"
_PICTURE_SECONDS = 60


def show(*figures: Figure) -> None:
    """Show figures in a notebook: alive where plotly runs, as a picture and a line of text where it doesn't.

    The picture needs a browser for kaleido; without one the figures are still alive in JupyterLab and VS Code.
    """
    from plotly.io import show as show_one

    setup()
    for fig in figures:
        show_one(fig)


@functools.cache
def setup() -> str:
    """Make figures that end a cell show as by `show`, and say which mime types they will carry.

    Opens a browser once a process, if there is one that can draw (2 s). Returns 'plotly_mimetype+png' or 'plotly_mimetype'.
    """
    quick_nbformat()  # which plotly loads
    import plotly.io as pio
    from plotly.io.base_renderers import MimetypeRenderer

    # A browser on its way out sends half a message, and the log of it would stand in the notebook as an error. What matters,
    # a picture that could not be drawn, is said by the renderer itself.
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    browser = _open_browser()
    if browser is None:
        say("Figures come without static pictures: no Chrome or Chromium was found to draw them.")

    class LabRenderer(MimetypeRenderer):
        """Plotly's own mime type, a PNG where one can be drawn, and the caption as plain text."""

        def __init__(self) -> None:
            self.browser = browser

        def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
            bundle: dict[str, Any] = pio.renderers["plotly_mimetype"].to_mimebundle(fig_dict)
            layout = fig_dict.get("layout", {})
            bundle["text/plain"] = str((layout.get("meta") or {}).get("alt", "plotly figure"))
            if self.browser is not None:
                try:
                    bundle["image/png"] = _picture(self.browser, bundle[_MIMETYPE], layout.get("height", 450))
                except Exception as error:  # a browser that dies must not end a notebook whose training is done
                    self.browser = None
                    log.warning("figures from here on without a static picture: %r", error)
            return bundle

    pio.renderers["labkit"] = LabRenderer()
    pio.renderers.default = "labkit"
    return "plotly_mimetype" if browser is None else "plotly_mimetype+png"


class Browser:
    """A headless browser that draws figures one after another; opened once, it works on a thread of its own.

    Every call has a deadline, since a browser that hangs must not hang a run, and raises TimeoutError when it is over.
    """

    def __init__(self) -> None:
        """Open the browser. Raises whatever kaleido raises, also where there is none."""
        from kaleido import Kaleido

        class Page(Kaleido):
            """Keeps its page: kaleido loads plotly anew behind each figure, which takes as long as drawing it."""

            async def _return_kaleido_tab(self, tab: Any) -> None:
                await self.tabs_ready.put(tab)

        # No MathJax: it would come from a CDN.
        self._kaleido = Page(mathjax=False, timeout=_PICTURE_SECONDS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.wait(self._kaleido.__aenter__())
        atexit.register(self.close)

    def draw(self, fig: dict[str, Any], height: float) -> bytes:
        """A figure as PNG, `height` pixels high."""
        # JupyterLab shows the picture in its own size until the mouse enters, so a finer one would be a larger one.
        size = {"format": "png", "width": WIDTH, "height": height, "scale": 1}
        png: bytes = self.wait(self._kaleido.calc_fig(fig, opts=size))
        return png

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Have the browser's thread do something, and wait for it."""
        done = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return done.result(_PICTURE_SECONDS)
        except TimeoutError:
            done.cancel()
            raise

    def close(self) -> None:
        """End the browser."""
        atexit.unregister(self.close)
        with suppress(Exception):  # it is gone already
            self.wait(self._kaleido.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PICTURE_SECONDS)
        self._loop.close()


def _open_browser() -> Browser | None:
    try:
        return Browser()
    except Exception as error:  # whatever the reason, there are no pictures here
        log.info("no static pictures: %r", error)
        return None


def _picture(browser: Browser, fig: dict[str, Any], height: float) -> str:
    """A figure as PNG in base64."""
    return base64.b64encode(reduce_colors(browser.draw(fig, height))).decode("ascii")


def reduce_colors(png: bytes) -> bytes:
    """The same PNG in 256 colours, transparent where it was: a fifth of the bytes, which are most of a notebook's."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        if picture.mode == "P":  # chosen by whoever drew it
            return png
        few = picture.convert("RGBA").quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()
