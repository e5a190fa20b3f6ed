"""Chapters as one HTML file that works from a disk: self-contained, without network requests, and only our own scripts run.

The page forbids itself the network and every script but those named by their hashes, so that even markup which slipped
through could do nothing. Plotly is stored compressed, and is unpacked when the first figure comes into view.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.views.explorer.page import PageWidget
from labkit.views.report.front import FrontPage
from labkit.views.report.notebook_html import Chapter
from labkit.views.report.sanitize import safe_text

HERE = Path(__file__).parent
COMMON_POLICY = (
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "img-src data: blob:",
    "media-src data: blob:",
    "base-uri 'none'",
    "form-action 'none'",
)


class PageLink(NamedTuple):
    """Another page of the same run, by its file's name; without one it is this page."""

    text: str
    file: str = ""


def report_page(
    title: str,
    chapters: Sequence[Chapter],
    *,
    summary: Mapping[str, Any] | None = None,
    links: Sequence[PageLink] = (),
    front: FrontPage | None = None,
) -> str:
    """A whole HTML file of `chapters`; `front`, then `summary`, are what report.html.j2 shows of a run above them."""
    picture = front.picture if front else None
    drawn = [*([picture] if picture else []), *chapters]
    plots = any(chapter.plots for chapter in drawn)
    # A figure that names chains opens them in an explorer, or says where they are.
    explorers = any(chapter.explorers or chapter.holds_chains for chapter in drawn)
    # The explorer's module hands its entry point to the page's own script.
    mount = f"{PageWidget._esm}\nglobalThis.labkit = {{ mountFromState, chainsOf, heldBy, findHeld }};\n"
    scripts = [*([mount] if explorers else []), _read("report.js")]
    hashes = [_hash(each) for each in scripts] + ([_hash(_plotly())] if plots else [])
    policy = "; ".join([*COMMON_POLICY, f"script-src {' '.join(hashes)}"])
    text: str = _template().render(
        title=safe_text(title),
        chapters=chapters,
        whole=summary is not None,
        summary=summary,
        front=front,
        links=links,
        policy=policy,
        style=_style(explorers),
        scripts=scripts,
        plotly=_packed_plotly() if plots else "",
        data={key: value for chapter in drawn for key, value in chapter.data.items()},
    )
    # A lone surrogate of a damaged notebook can't be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.j2")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _style(explorers: bool) -> str:
    sheets = [_read("report.css"), *([PageWidget._css] if explorers else [])]
    return "\n".join(sheets).replace("</", "<\\/")


@functools.cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


@functools.cache
def _packed_plotly() -> str:
    return base64.b64encode(gzip.compress(_plotly().encode(), 9, mtime=0)).decode("ascii")


def _hash(script: str) -> str:
    """A script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"
