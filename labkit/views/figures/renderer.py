"""How figures reach a notebook: alive, as a picture for viewers that run nothing, and as a line of text."""

from __future__ import annotations

import base64
import functools
import io
import logging
import queue
import threading
from collections.abc import Callable
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
    import kaleido

    # Not plotly.io.to_image: it asks for MathJax from a CDN, and warns that a server won't hear of it.
    # JupyterLab shows the picture in its own size until the mouse enters, so a finer one would be a larger one.
    size = {"format": "png", "width": WIDTH, "height": height, "scale": 1}
    return base64.b64encode(reduce_colors(_within(kaleido.calc_fig_sync, fig, opts=size))).decode("ascii")


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
        import kaleido

        # Not through the server, whose caller waits for ever when its thread finds no browser.
        _within(kaleido.calc_fig_sync, {"data": [], "layout": {}}, opts={"format": "png"}, kopts={"mathjax": False})
    except Exception as error:  # whatever the reason, there are no pictures here
        log.info("no static pictures: %r", error)
        return False
    kaleido.start_sync_server(mathjax=False, timeout=_PICTURE_SECONDS, silence_warnings=True)
    return True


def _within(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call with a deadline: a browser that hangs must not hang a run. Raises `queue.Empty` when it is over."""
    box: queue.Queue[tuple[Any, Exception | None]] = queue.Queue(1)

    def work() -> None:
        try:
            box.put((call(*args, **kwargs), None))
        except Exception as error:  # handed to the caller
            box.put((None, error))

    threading.Thread(target=work, daemon=True).start()
    value, error = box.get(timeout=_PICTURE_SECONDS + 5)
    if error is not None:
        raise error
    return value
