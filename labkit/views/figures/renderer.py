"""How figures reach a notebook: alive, as a picture for viewers that run nothing, and as a line of text."""

from __future__ import annotations

import asyncio
import atexit
import base64
import contextlib
import functools
import io
import logging
import threading
from collections.abc import Coroutine
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

    Probes once a process whether a browser can draw (3 s). Returns 'plotly_mimetype+png' or 'plotly_mimetype'.
    """
    quick_nbformat()  # which plotly loads
    import plotly.io as pio
    from plotly.io.base_renderers import MimetypeRenderer

    # A browser on its way out sends half a message, and the log of it would stand in the notebook as an error. What matters,
    # a picture that could not be drawn, is said by the renderer itself.
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    if not (draws := _browser_works()):
        say("Figures come without static pictures: no Chrome or Chromium was found to draw them.")

    class LabRenderer(MimetypeRenderer):
        """Plotly's own mime type, a PNG where one can be drawn, and the caption as plain text."""

        def __init__(self) -> None:
            self.draws = draws

        def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, Any]:
            bundle: dict[str, Any] = pio.renderers["plotly_mimetype"].to_mimebundle(fig_dict)
            layout = fig_dict.get("layout", {})
            bundle["text/plain"] = str((layout.get("meta") or {}).get("alt", "plotly figure"))
            if self.draws:
                try:
                    bundle["image/png"] = _picture(bundle[_MIMETYPE], layout.get("height", 450))
                except Exception as error:  # a browser that dies must not end a notebook whose training is done
                    self.draws = False
                    log.warning("figures from here on without a static picture: %r", error)
            return bundle

    pio.renderers["labkit"] = LabRenderer()
    pio.renderers.default = "labkit"
    return "plotly_mimetype+png" if draws else "plotly_mimetype"


def _picture(fig: dict[str, Any], height: float) -> str:
    """A figure as PNG in base64."""
    # Not plotly.io.to_image: it asks for MathJax from a CDN, and warns that a server won't hear of it.
    # JupyterLab shows the picture in its own size until the mouse enters, so a finer one would be a larger one.
    size = {"format": "png", "width": WIDTH, "height": height, "scale": 1}
    return base64.b64encode(reduce_colors(_browser().draw(fig, size))).decode("ascii")


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


def _browser_works() -> bool:
    try:
        _browser().draw({"data": [], "layout": {}}, {"format": "png"})
    except Exception as error:  # whatever the reason, there are no pictures here
        log.info("no static pictures: %r", error)
        return False
    return True


@functools.cache
def _browser() -> _Browser:
    return _Browser()


class _Browser:
    """Kaleido's browser on a loop of its own, with a deadline: one that hangs must not hang a run.

    Behind a picture kaleido loads its page anew, which takes as long as the picture: here the next one is drawn meanwhile, on another.
    """

    def __init__(self) -> None:
        """Start it. Raises whatever kaleido raises where there is none, and TimeoutError."""
        import kaleido

        class Behind(kaleido.Kaleido):
            async def _return_kaleido_tab(self, tab: Any) -> None:
                task = asyncio.ensure_future(super()._return_kaleido_tab(tab))
                self._main_render_coroutines.add(task)  # a loop holds its tasks by weak references
                task.add_done_callback(self._main_render_coroutines.discard)

        async def started() -> Any:
            browser = Behind(n=2, mathjax=False, timeout=_PICTURE_SECONDS)
            await browser.open()
            return browser

        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._kaleido = self._wait(started())
        atexit.register(self._close)

    def draw(self, fig: dict[str, Any], size: dict[str, Any]) -> bytes:
        """A figure as PNG. Raises what kaleido raises, and TimeoutError."""
        picture: bytes = self._wait(self._kaleido.calc_fig(fig, opts=size))
        return picture

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return asked.result(_PICTURE_SECONDS + 5)
        finally:
            asked.cancel()

    def _close(self) -> None:
        with contextlib.suppress(Exception):
            asyncio.run_coroutine_threadsafe(self._kaleido.close(), self._loop).result(5)
