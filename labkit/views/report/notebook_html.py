"""A notebook as a chapter of an HTML page: its cells as sanitized HTML, and the JSON data of its figures and explorers."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import re
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit.runs.notebooks import BANNER_TAG
from labkit.views.report import sanitize
from labkit.views.report.sanitize import Heading, escape_html

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGETS = "application/vnd.jupyter.widget-state+json"
PICTURES = ("image/svg+xml", "image/png", "image/webp", "image/jpeg", "image/gif")
QUIET_LINES = 3
"""Printed text of more lines is folded away: a training's progress is long, and nobody reads it twice."""
PAPERMILL_TAG = "papermill-error-cell-tag"
_STOPPED = (
    '<div class="words banner" role="note"><p><strong>This notebook stopped</strong> at the cell that shows an error; '
    "those below it did not run.</p></div>"
)
WIDGET_KINDS = ("explorer", "scrubber", "watch")
ALIVE = frozenset(
    "bar barpolar box candlestick carpet contour funnel funnelarea heatmap histogram histogram2d histogram2dcontour image "
    "indicator ohlc pie sankey scatter scatterpolar scatterternary sunburst table treemap icicle violin waterfall".split()
)
"""Plotly's traces that need neither a map from the network nor WebGL, whose shaders want to compile code."""
MOST_PIXELS = 20_000_000
"""A larger picture is left as it is: a small file may claim to be one that no memory could hold."""
SMALL = 8_000
"""Bytes of a PNG that isn't worth another form."""
_QUALITY = 76


@dataclass(slots=True)
class Chapter:
    """A notebook's cells as markup; `data` are the JSON texts by the key under which the markup asks for them."""

    name: str
    title: str = ""
    html: str = ""
    headings: list[Heading] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    plots: bool = False
    explorers: bool = False
    holds_chains: bool = False
    """Whether a figure's points say which chains they hold."""
    stopped: bool = False
    headed: bool = False
    """Whether a heading of its own says its title."""


def read_chapter(notebook: Any, name: str, *, shift: int = 0, seen: set[str] | None = None) -> Chapter:
    """A notebook (nbformat 4) as a chapter, its headings sunk by `shift`; `name` keeps its addresses apart from others'.

    Nothing of the notebook is trusted: a widget is drawn by this package's own code or not at all. `seen` holds the
    tables of a page, which a chapter adds its own to: one that stands there already, as the parameters do, is folded.
    """
    return _Writer(notebook, name, shift, set() if seen is None else seen).chapter()


class _Writer:
    """Writes one chapter, cell by cell."""

    def __init__(self, notebook: Any, name: str, shift: int, seen: set[str]) -> None:
        self.notebook, self.shift, self.seen = notebook, shift, seen
        self.made = Chapter(name)
        self.answers = 0
        self.has_banner = any(BANNER_TAG in cell.metadata.get("tags", []) for cell in notebook.cells)
        self.prefix = f"{sanitize.slug(name)}-"
        self.language = str(notebook.metadata.get("language_info", {}).get("name", "python"))
        states = notebook.metadata.get("widgets", {})
        self.models: Mapping[str, Any] = states.get(WIDGETS, {}).get("state", {}) if isinstance(states, dict) else {}

    def chapter(self) -> Chapter:
        parts = [self.cell(cell) for cell in self.notebook.cells]
        self.made.html = "\n".join(part for part in parts if part)
        first = next((each.text for each in self.made.headings if each.level == 1), "")
        self.made.title, self.made.headed = first or self.made.name, bool(first)
        return self.made

    def cell(self, cell: Any) -> str:
        source = "".join(cell.get("source", ""))
        if cell.cell_type == "markdown":
            return self.words(source, cell)
        if cell.cell_type != "code":
            return f"<pre>{escape_html(source)}</pre>" if source.strip() else ""
        outputs = [made for output in join_streams(cell.get("outputs", [])) if (made := self.output(output))]
        failed = any(output.get("output_type") == "error" for output in cell.get("outputs", []))
        listing = self.listing(source, cell.get("execution_count"), failed) if source.strip() else ""
        return f'<div class="cell">{listing}{"".join(outputs)}</div>' if listing or outputs else ""

    def words(self, source: str, cell: Any) -> str:
        tags = cell.metadata.get("tags", [])
        if PAPERMILL_TAG in tags:
            # It puts two of its own, of which one is enough, and none where the lab's own says more.
            repeated, self.made.stopped = self.made.stopped, True
            return "" if repeated or self.has_banner else _STOPPED
        made = sanitize.render_markdown(
            source, prefix=self.prefix, shift=self.shift, attachments=cell.get("attachments")
        )
        taken = {each.anchor for each in self.made.headings}
        self.made.headings += [each for each in made.headings if each.anchor not in taken]
        if BANNER_TAG in tags:
            self.made.stopped = True
            return f'<div class="words banner" role="note">{made.html}</div>'
        return f'<div class="words">{made.html}</div>'

    def listing(self, source: str, number: Any, failed: bool) -> str:
        lines = [line for line in source.splitlines() if line.strip()]
        first = next((line for line in lines if not line.startswith(("#", "from ", "import "))), lines[0])
        counted = f" [{number:d}]" if isinstance(number, int) else ""
        return (
            f'<details class="code"{" open" if failed else ""}><summary><span>Code{counted}</span> '
            f"<code>{escape_html(first.strip()[:160])}</code></summary>"
            f"{_scrolled(sanitize.highlight_code(source, self.language), 'code')}</details>"
        )

    def output(self, output: Any) -> str:
        kind = output.get("output_type")
        if kind == "stream":
            return _stream_html("".join(output.get("text", "")), output.get("name") == "stderr")
        if kind == "error":
            trace = sanitize.terminal_text("\n".join(output.get("traceback", []))) or str(output.get("evalue", ""))
            name = escape_html(f"{output.get('ename', 'Error')}: {output.get('evalue', '')}"[:400])
            return f'<div class="output failed"><p role="note"><strong>{name}</strong></p>{_pre(trace, "traceback")}</div>'
        data = output.get("data", {})
        made = self.shown(data) if isinstance(data, dict) else ""
        return f'<div class="output">{made}</div>' if made else ""

    def shown(self, data: Mapping[str, Any]) -> str:
        """What says most about a value and can be shown: alive, as sanitize, as a picture, as text."""
        if PLOTLY in data and (made := self.plot(data)):
            return made
        if WIDGET in data:
            return self.widget(data)
        shown = text_of(data, "text/html")
        if shown.lstrip().startswith("<progress"):
            return ""  # where a bar stood still when its work was stopped; the printed lines say so too
        if shown.startswith("<svg"):
            # The panels of a stage that was stopped: markup that a page takes as a picture alone.
            data = {**data, "image/svg+xml": shown}
        elif (made := sanitize.sanitize_html(shown)) and _tells(made):
            return self.table(made)
        if made := _poster(data):
            return f"<figure>{made}</figure>"
        if text_of(data, "text/markdown").strip():
            # Headings of an output are not the chapter's.
            self.answers += 1
            prefix = f"{self.prefix}output-{self.answers}-"
            return f'<div class="words">{sanitize.render_markdown(text_of(data, "text/markdown"), prefix=prefix, shift=2).html}</div>'
        if latex := text_of(data, "text/latex").strip().strip("$"):
            return sanitize.latex_to_mathml(latex, display=True)
        if "application/json" in data:
            return _pre(json.dumps(data["application/json"], indent=1, ensure_ascii=False), "data")
        # A progress bar that has come to its end leaves empty HTML, which means: show nothing.
        text = "" if "text/html" in data and not shown.strip() else text_of(data, "text/plain")
        return _pre(text, "value") if text.strip() else ""

    def table(self, made: str) -> str:
        if made not in self.seen:
            self.seen.add(made)
            return _scrolled(made, "table")
        return f'<details class="code"><summary><span>The same table as above</span></summary>{_scrolled(made, "table")}</details>'

    def plot(self, data: Mapping[str, Any]) -> str:
        figure = data[PLOTLY]
        if not isinstance(figure, dict) or not _alive(figure):
            return ""
        self.made.plots = True
        meta = figure.get("layout", {}).get("meta")
        self.made.holds_chains |= isinstance(meta, dict) and "chains" in meta
        key = self.keep(sanitize.script_json({"data": figure["data"], "layout": figure.get("layout", {})}))
        height = figure.get("layout", {}).get("height")
        height = height if isinstance(height, (int, float)) and 0 < height < 5000 else 450
        return (
            f'<figure class="plot" data-plot="{key}" style="min-height: {height:.0f}px" role="group" '
            f'aria-label="{_caption(data)}">{_poster(data) or _pre(text_of(data, "text/plain"), "caption")}'
            '<div class="live" hidden></div></figure>'
        )

    def widget(self, data: Mapping[str, Any]) -> str:
        view = data[WIDGET]
        model = self.models.get(str(view.get("model_id"))) if isinstance(view, dict) else None
        poster = _poster(data)
        if model is None or not _ours(model):
            if poster:
                return f"<figure>{poster}</figure>"
            name = model.get("model_name") if isinstance(model, dict) else None
            what = str(name).removesuffix("Model") if name else "widget"
            return f'<p class="aside">A control stood here ({escape_html(what)}): it is alive in JupyterLab alone.</p>'
        self.made.explorers = True
        state = {name: value for name, value in model["state"].items() if not name.startswith("_")}
        buffers = [each for each in model.get("buffers", []) if _current(each, state)]
        key = self.keep(sanitize.script_json({"state": state, "buffers": buffers}))
        still = poster or f'<p class="aside">{escape_html(text_of(data, "text/plain") or "Chains to explore.")}</p>'
        height = {"explorer": 720, "watch": 640}.get(str(state.get("shows")), 200)
        return (
            f'<figure class="explorer" data-explorer="{key}" style="min-height: {height}px">{still}'
            '<div class="live" hidden></div></figure>'
        )

    def keep(self, text: str) -> str:
        """A key for a JSON text; the same text, such as an explorer shown twice, keeps its key."""
        new = f"{self.prefix}{len(self.made.data)}"
        key = next((key for key, known in self.made.data.items() if known == text), new)
        self.made.data[key] = text
        return key


def _current(buffer: Any, state: Mapping[str, Any]) -> bool:
    """Whether bytes belong to the state as it ended: a notebook keeps those of every clip that was ever shown."""
    path = buffer.get("path") if isinstance(buffer, dict) else None
    if not isinstance(path, list) or not path:
        return False
    return len(path) == 1 or str(path[1]) in (state.get("clips") or {})


def join_streams(outputs: list[Any]) -> list[Any]:
    """Outputs with adjacent pieces of one stream joined."""
    joined: list[Any] = []
    for output in outputs:
        last = joined[-1] if joined else {}
        streams = last.get("output_type") == output.get("output_type") == "stream"
        if streams and last.get("name") == output.get("name"):
            joined[-1] = {**last, "text": "".join(last["text"]) + "".join(output["text"])}
        else:
            joined.append(output)
    return joined


def _stream_html(text: str, trouble: bool) -> str:
    text = sanitize.terminal_text(text).strip("\n")
    lines = text.splitlines()
    if not text.strip():
        return ""
    label = "messages" if trouble else "printed"
    if len(lines) <= QUIET_LINES:
        return f'<div class="output">{_pre(text, label)}</div>'
    summary = (
        f"<summary><span>{label.capitalize()}, {len(lines)} lines</span> <code>{escape_html(lines[-1][:160])}</code>"
    )
    return f'<details class="code">{summary}</summary>{_pre(text, label)}</details>'


def _pre(text: str, label: str) -> str:
    return _scrolled(f"<pre>{escape_html(text)}</pre>", label)


def _scrolled(made: str, label: str) -> str:
    return f"{sanitize.scroll_box(label)}{made}</div>"


def _tells(made: str) -> bool:
    """Whether markup shows anything: an emptied progress bar doesn't."""
    return bool(re.sub(r"<(?!img\b|hr\b)[^>]*>|\s|&nbsp;", "", made))


def text_of(data: Mapping[str, Any], kind: str) -> str:
    """What an output says in one of its forms, which may be a list of lines; "" when it has no such form."""
    value = data.get(kind, "")
    return "".join(map(str, value)) if isinstance(value, (str, list)) else ""


def _caption(data: Mapping[str, Any]) -> str:
    return escape_html(" ".join(text_of(data, "text/plain").split())[:600] or "figure")


def _poster(data: Mapping[str, Any]) -> str:
    """The picture beside an output, when there is one."""
    for kind in PICTURES:
        if kind not in data:
            continue
        kind, shown = smaller_image(text_of(data, kind)) if kind == "image/png" else (kind, text_of(data, kind))
        if address := sanitize.image_data_url(kind, shown):
            return f'<img class="poster" loading="lazy" alt="{_caption(data)}" src="{address}">'
    return ""


def _ours(model: Any) -> bool:
    """Whether a saved widget is one that js/index.js draws."""
    state = model.get("state") if isinstance(model, dict) else None
    return isinstance(state, dict) and model.get("model_module") == "anywidget" and state.get("shows") in WIDGET_KINDS


def _alive(figure: Mapping[str, Any]) -> bool:
    """Whether plotly can draw a figure with nothing but what it holds."""
    traces, layout = figure.get("data"), figure.get("layout", {})
    if not isinstance(traces, list) or not isinstance(layout, dict):
        return False
    if not all(isinstance(trace, dict) and trace.get("type", "scatter") in ALIVE for trace in traces):
        return False
    sources = [each.get("source", "") for each in [*traces, *layout.get("images", [])] if isinstance(each, dict)]
    return all(str(source).startswith("data:image/") or not source for source in sources)


@functools.lru_cache(256)
def smaller_image(png: str) -> tuple[str, str]:
    """A PNG in base64 as the smaller of itself and a WebP: mime type and base64."""
    try:
        raw = base64.b64decode(png, validate=False)
        made = to_webp(raw) if len(raw) > SMALL else raw
    except (ValueError, binascii.Error):
        return "image/png", png
    return ("image/webp", base64.b64encode(made).decode("ascii")) if len(made) < len(raw) else ("image/png", png)


def to_webp(png: bytes) -> bytes:
    """A picture as WebP with its transparency: without loss, unless that is half as large again, as frames of a video are.

    Raises ValueError when `png` is no picture.
    """
    from PIL import Image

    try:
        # Opened means that its head was read: what it claims to be is known before it is decoded.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(png), formats=("PNG",)) as opened:
            if (pixels := opened.width * opened.height) > MOST_PIXELS:
                raise ValueError(f"its {pixels:,} pixels are too many")
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError, struct.error, Image.DecompressionBombError) as error:  # it is none, or cut off
        raise ValueError(f"not a picture: {error}") from None
    exact, close = io.BytesIO(), io.BytesIO()
    picture.save(exact, "WEBP", lossless=True, quality=90, method=4)
    picture.save(close, "WEBP", quality=_QUALITY, method=4)
    smaller = 3 * close.tell() < 2 * exact.tell()
    return (close if smaller else exact).getvalue()
