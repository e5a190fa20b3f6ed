"""A widget that a page without kernel and network shows just as well, and that page."""

from __future__ import annotations

import base64
import functools
import html
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote as shell_quote
from typing import Any
from urllib.parse import quote

import anywidget
import traitlets

from labkit.views.explorer.packing import VideoClip
from labkit.views.explorer.still import WIDTH as STILL_WIDTH
from labkit.views.report.sanitize import script_json

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

    def _poster(self) -> bytes | None:
        """A still picture for viewers that run nothing; None where there is none."""
        return None

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return self.bundle(self._poster(), **kwargs)

    def bundle(self, picture: bytes | None, **kwargs: Any) -> Any:
        """The widget as a notebook takes it, and what viewers show that run nothing: a line of text, and the picture."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        data["text/plain"] = f"{self!r}. Alive in JupyterLab, once the notebook is trusted, and in the report."
        if picture:
            data["image/png"] = base64.b64encode(picture).decode("ascii")
            metadata = {**metadata, "image/png": {"width": STILL_WIDTH}}
        return data, metadata

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
    state = script_json(widget.page_state(None if path is None else Path(path)))
    named = html.escape(title)
    told = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{named}</title>'
    ground = ":root{color-scheme:light dark}body{margin:16px;font:14px system-ui,sans-serif}h1{font-size:18px}"
    ground += "main>p{margin:6px 0;opacity:.8}"
    return (
        f'<!DOCTYPE html><html lang="en"><head>{head}<style>{ground}\n{PageWidget._css}</style></head><body><main>'
        f'<h1>{named}</h1>{told}<div data-labkit><script type="application/json">{state}</script></div></main>'
        f"{module_script()}</body></html>"
    )


@functools.cache
def module_script() -> str:
    """The ES module as an inline script that mounts every state in the page; needed once a page."""
    return f'<script type="module">{PageWidget._esm}\nmountAll(document);\n</script>'


def _as_json(value: Any) -> Any:
    if isinstance(value, (bytes, memoryview)):
        return base64.b64encode(value).decode("ascii")
    return {key: _as_json(each) for key, each in value.items()} if isinstance(value, dict) else value


_SAVE_STATE = re.compile(r'"saveState"\s*:\s*true')
_MANAGER = "@jupyter-widgets/jupyterlab-manager"
_LABKIT_OVERRIDES = Path(__file__).parents[3] / "share/jupyter/lab/settings/overrides.d/labkit.json"
PLAYED = frozenset({".mp4", ".m4v", ".mov", ".webm", ".mkv", ".ogv"})
"""Endings of files that some browser plays; of the others, such as .avi and .wmv, the sheet is shown."""
MOST_FILM_BYTES = 32 << 20
"""Of a video that is sent by the kernel: the browser holds all of it in memory."""


def film_for_browser(clip: VideoClip, server_root: str = "") -> tuple[dict[str, Any], list[bytes]]:
    """What a page is answered that asks for a clip's video, and the bytes that go with it.

    `path` is the video's below `server_root`, the folder of the Jupyter server, which then sends it bit by bit; "" is no server. A
    video that lies elsewhere comes as bytes where it has at most `MOST_FILM_BYTES`. Of any other, `why` says why it is not played.
    """
    video = Path(clip.video)
    if video.suffix.lower() not in PLAYED:
        return {"why": f"browsers do not play {video.suffix or 'files without an ending'}"}, []
    if server_root and (path := _below(video, Path(os.path.expanduser(server_root)))):
        return {"path": path, "start": clip.start}, []
    try:
        size = video.stat().st_size
        if size > MOST_FILM_BYTES:
            return {"why": f"{size / 1e6:.0f} MB, and not below the folder of the Jupyter server"}, []
        return {"start": clip.start}, [video.read_bytes()]
    except OSError as error:
        return {"why": str(error.strerror)}, []


def film_beside(clip: VideoClip, page: Path) -> dict[str, Any] | None:
    """Where a page that is written to `page` looks for a clip's video; None where no browser plays it.

    That is where it lies now if both are below the working folder. Otherwise it is beside the page: a path says where somebody's
    files lie, and the name is enough for a page that is sent along with its video.
    """
    video, here = Path(clip.video).absolute(), Path.cwd()
    if video.suffix.lower() not in PLAYED:
        return None
    folder = page.absolute().parent
    near = video.is_relative_to(here) and folder.is_relative_to(here)
    path = os.path.relpath(video, folder) if near else video.name
    return {"src": quote(path.replace(os.sep, "/")), "start": clip.start}


def _below(video: Path, root: Path) -> str:
    """The path of a URL from `root` to a video; "" where it is not below, or where a server refuses it as hidden."""
    for file, folder in ((video.absolute(), root.absolute()), (video.resolve(), root.resolve())):
        if file.is_relative_to(folder):
            parts = file.relative_to(folder).parts
            return "" if any(part.startswith(".") for part in parts) else quote("/".join(parts))
    return ""


def saving_hint() -> str:
    """What to do so that this environment's JupyterLab saves widgets with a notebook; "" where it does, or isn't here.

    A plain install brings the setting along, an editable one cannot. The reader's own settings count, too.
    """
    lab = Path(os.environ.get("JUPYTERLAB_DIR") or Path(sys.prefix, "share/jupyter/lab"))
    if not lab.is_dir():
        return ""  # the kernel of a JupyterLab that lives elsewhere, whose settings cannot be seen from here
    from jupyter_core.paths import jupyter_config_dir

    own = os.environ.get("JUPYTERLAB_SETTINGS_DIR") or Path(jupyter_config_dir(), "lab/user-settings")
    files = [
        *(lab / "settings").glob("overrides.json*"),
        *(lab / "settings").glob("overrides.d/*.json*"),
        *Path(own, _MANAGER).glob("plugin.jupyterlab-settings"),
    ]
    if any(_SAVE_STATE.search(file.read_text(encoding="utf-8", errors="replace")) for file in files):
        return ""
    target = lab / "settings/overrides.d"
    how = (
        f"mkdir -p {shell_quote(str(target))} && cp {shell_quote(str(_LABKIT_OVERRIDES))} {shell_quote(str(target))}"
        if _LABKIT_OVERRIDES.is_file()
        else f"pip install labkit into {sys.prefix}"
    )
    return f"JupyterLab saves notebooks without what widgets show; to keep it, once: {how}"


@functools.cache
def saving_hint_of_server() -> str:
    """The same, where somebody works in JupyterLab; "" in a batch, whose notebooks keep their widgets anyway."""
    return saving_hint() if "JPY_SESSION_NAME" in os.environ else ""
