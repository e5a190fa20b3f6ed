"""A widget that a page without kernel and network shows just as well, and that page."""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from labkit.views.explorer.films import film_beside, film_for_browser
from labkit.views.explorer.packing import VideoClip
from labkit.views.explorer.still import WIDTH as STILL_WIDTH

HERE = Path(__file__).parent
MODULES = (
    "core", "chains", "stages", "clips", "film", "player", "table", "chain", "keys", "held", "explorer", "scrubber",
    "watch", "index",
)  # fmt: skip
"""The ES modules of js/, each behind those that it imports."""


def _compact(source: str) -> str:
    """JavaScript or CSS without its comments on lines of their own, and without indentation: every saved notebook holds it."""
    bare = re.sub(r"^\s*(?:/\*.*?\*/|//[^\n]*)", "", source, flags=re.DOTALL | re.MULTILINE)
    return "\n".join(line for each in bare.split("\n") if (line := each.strip()))


def _bundle() -> str:
    """The modules as one ES module, which has nothing to fetch: one scope, without imports, with the exports of the last."""
    sources = [(HERE / "js" / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    inner = [re.sub(r"^import .*|^export ", "", source, flags=re.MULTILINE) for source in sources[:-1]]
    return "\n".join(map(_compact, [*inner, re.sub(r"^import .*", "", sources[-1], flags=re.MULTILINE)]))


class PageWidget(anywidget.AnyWidget):
    """A widget whose whole state a page without a kernel can mount, too."""

    page_traits: tuple[str, ...] = ("shows", "data", "clips", "sheets", "height")
    """Names of the traits that a page needs."""
    # Paths would make anywidget watch the files; what is shown must not change while it is looked at.
    _esm = _bundle()
    _css = _compact((HERE / "explorer.css").read_text(encoding="utf-8"))

    shows = traitlets.Unicode().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    clips = traitlets.Dict().tag(sync=True)
    """How each clip's sheet of pictures is laid out, or what is wrong with the clip, by its key."""
    sheets = traitlets.Dict().tag(sync=True)
    """The sheets themselves, by the same keys. A notebook keeps the bytes of every state that it has ever seen: beside each
    other they lie in a place that is always there, and those of clips that are gone are never looked at."""
    height = traitlets.Int(700).tag(sync=True)
    hint = traitlets.Unicode().tag(sync=True)
    """A grey line for whoever works with a kernel; a page without one does not get it."""

    def __init__(self, **traits: Any) -> None:
        """Take the traits' values, and answer what pages ask."""
        super().__init__(**traits)
        self.on_msg(self._answer)

    @property
    def clip_sources(self) -> Sequence[VideoClip]:
        """The clips by the key that a page asks with."""
        return ()

    def _answer(self, _: Any, message: Any, __: Any) -> None:
        """A page asks for the video behind a clip, and always gets an answer."""
        if not isinstance(message, dict) or message.get("ask") != "film":
            return
        key, clips = message.get("key"), self.clip_sources
        if isinstance(key, int) and 0 <= key < len(clips):
            found, buffers = film_for_browser(clips[key], str(message.get("root") or ""))
        else:
            found, buffers = {"why": f"there is no clip {key!r} here"}, []
        self.send({"film": key, **found}, buffers)

    def page_state(self, page: Path | None = None) -> dict[str, Any]:
        """All that `mountFromState` of js/index.js needs to draw this widget, as JSON can hold it.

        A state for the file `page` says, too, where that looks for the videos.
        """
        ours = [name for name, trait in self.traits(sync=True).items() if name in self.page_traits]
        state = {name: _as_json(getattr(self, name)) for name in ours}
        if page is not None:
            films = {str(key): film_beside(clip, page) for key, clip in enumerate(self.clip_sources)}
            state["films"] = {key: film for key, film in films.items() if film}
        return state


def widget_page(
    widget: PageWidget, title: str = "labkit", notes: Sequence[str] = (), path: str | Path | None = None
) -> str:
    """A whole HTML page around a widget, for a file that is opened without kernel and network; `notes` stand below its title.

    A page that will lie at `path` plays the videos that lie there, too, and shows their sheets where they don't.
    """
    named = html.escape(title)
    told = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{named}</title>'
    ground = ":root{color-scheme:light dark}body{margin:16px;font:14px system-ui,sans-serif}h1{font-size:18px}"
    ground += "main>p{margin:6px 0;opacity:.8}"
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head}<style>{ground}\n{PageWidget._css}</style></head><body><main>'
        f"<h1>{named}</h1>{told}{widget_fragment(widget, path)}</main>{module_script()}</body></html>"
    )


def widget_fragment(widget: PageWidget, path: str | Path | None = None) -> str:
    """A widget's state as an element of a page; `module` anywhere behind it brings all fragments to life."""
    # Inside a script element only "<" could end it or open a comment: JSON has another way to write it.
    state = json.dumps(widget.page_state(None if path is None else Path(path)), allow_nan=False).replace(
        "<", "\\u003c"
    )
    return f'<div data-labkit><script type="application/json">{state}</script></div>'


@functools.cache
def module_script() -> str:
    """The ES module as an inline script that mounts every fragment of the page; needed once a page."""
    return f'<script type="module">{PageWidget._esm}\nmountAll(document);\n</script>'


def _as_json(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode("ascii")
    return {key: _as_json(each) for key, each in value.items()} if isinstance(value, dict) else value


def with_still(bundle: Any, text: str, poster: Callable[[], bytes | None] | None = None) -> Any:
    """A widget's bundle with what viewers show that run nothing: a still picture, and a line of text."""
    if bundle is None:
        return None
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    data["text/plain"] = f"{text}. Alive in JupyterLab, once the notebook is trusted, and in the report."
    if poster is not None and (picture := poster()):
        data["image/png"] = base64.b64encode(picture).decode("ascii")
        metadata = {**metadata, "image/png": {"width": STILL_WIDTH}}
    return data, metadata
