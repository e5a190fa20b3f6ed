"""How every figure looks, and how model text is made harmless in it.

Figures have a transparent ground and mid-grey text and grid, because a notebook doesn't know whether its reader
uses JupyterLab's light or dark theme. Colours are Okabe and Ito's, two of them darkened for white ground; a line's
dash and marker repeat what its colour says. Green is the truth, in every figure and nowhere else.
"""

from __future__ import annotations

import functools
import html
import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from labkit.scoring.bootstrap import Interval
from labkit.views.report.sanitize import safe_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

Figure: TypeAlias = "go.Figure"
TEXT = "#767c85"
"""About 4.3:1 against white and against JupyterLab's #111111 alike."""
FAINT = "rgba(128, 134, 143, 0.62)"
GRID = "rgba(128, 134, 143, 0.22)"
TRUTH = "#009e73"
ANSWER = "#e07b00"
ANCHOR = "#2f86d1"
BETTER = "#2f86d1"
WORSE = "#d55e00"
NEUTRAL = "#8a919b"

STAGES = ("base", "harvester", "grpo", "distill", "sft", "grpo_final")
"""The order in which stages are drawn; other labels follow in the order in which they come."""
WIDTH = 820
"""Pixels for which figures are composed: a JupyterLab cell on a laptop, file browser open. Alive, they take the cell's."""
_CAPTION_WIDTH = 110


class Look(NamedTuple):
    """A line's colour, marker symbol and dash."""

    color: str
    symbol: str
    dash: str


_LOOKS = {
    "base": Look("#8a919b", "circle-open", "dot"),
    "harvester": Look("#8a919b", "square-open", "dot"),
    "grpo": Look("#4aa5dd", "square", "dash"),
    "distill": Look("#c4689f", "x", "dashdot"),
    "sft": Look("#dd8800", "diamond", "longdash"),
    "grpo_final": Look("#2563b8", "circle", "solid"),
}
_MORE_LOOKS = (
    Look("#d55e00", "triangle-up", "solid"),
    Look("#c4689f", "cross", "dash"),
    Look("#a08a00", "triangle-down", "dashdot"),
    Look("#7b62c9", "star", "longdash"),
    Look("#3a9c9c", "hexagon", "dot"),
)


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label: a stage's own, and the next free one for any other label.

    >>> looks(["base", "plain run"])["plain run"].color
    '#d55e00'
    """
    given: dict[str, Look] = {}
    others = 0
    for label in labels:
        if label in _LOOKS:
            given[label] = _LOOKS[label]
        elif label not in given:
            given[label] = _MORE_LOOKS[others % len(_MORE_LOOKS)]
            others += 1
    return given


def in_order(labels: Iterable[str], order: Sequence[str]) -> list[str]:
    """The different labels, those of `order` first and in that order, then the others as they came."""
    unique = list(dict.fromkeys(labels))
    return [label for label in order if label in unique] + [label for label in unique if label not in order]


def in_stage_order(labels: Iterable[str]) -> list[str]:
    """Labels with the stages first, in the order of training."""
    return in_order(labels, STAGES)


def rgba(color: str, alpha: float) -> str:
    """A hex colour with an opacity, as plotly's `fillcolor` wants it.

    >>> rgba("#009e73", 0.2)
    'rgba(0, 158, 115, 0.2)'
    """
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha:g})"


def plain(text: str, limit: int | None = None) -> str:
    """Text from a model, a query or a file name as plotly text that shows it and can't act.

    Plotly reads a small HTML (`<b>`, `<a href>`, `<span style>`), entities, LaTeX between dollar signs and its own
    `%{...}`: all are escaped, control and direction-changing characters become a replacement mark, line breaks blanks.
    `limit` counts characters before escaping; what is cut off leaves an ellipsis.

    >>> plain("<b>$x$</b> & y")
    '&lt;b&gt;&#36;x&#36;&lt;/b&gt; &amp; y'
    >>> plain("a long thought", limit=7)
    'a long…'
    """
    text = safe_text(re.sub(r"[\t\n\r]+", " ", text))
    if limit is not None and len(text) > limit:
        text = text[: limit - 1].rstrip() + "…"
    return html.escape(text, quote=False).replace("$", "&#36;").replace("%{", "&#37;{")


def seconds(value: float) -> str:
    """A time in seconds to a tenth, or two digits of it where a model wrote an absurd one.

    >>> seconds(12), seconds(1e9)
    ('12.0', '1e+09')
    """
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.2g}"


def error_bars(middle: Sequence[float], intervals: Iterable[Interval]) -> dict[str, Any] | None:
    """Plotly's error bars around values; an interval of which nothing is known leaves its bar out, and none are no bars."""
    pairs = list(zip(middle, intervals, strict=True))
    if all(math.isnan(low) for _, (low, _) in pairs):
        return None
    return {
        "type": "data",
        "array": [None if math.isnan(high) else high - value for value, (_, high) in pairs],
        "arrayminus": [None if math.isnan(low) else value - low for value, (low, _) in pairs],
        "thickness": 1.4,
        "width": 3,
    }


def interval_text(interval: Interval, form: str = ".1f") -> str:
    """An interval as hovering says it.

    >>> interval_text(Interval(31.2, 40))
    '95 % interval 31.2 to 40.0'
    """
    return f"95 % interval {ends}" if (ends := interval.text(form)) else "one video, so no interval"


def name_rows(fig: Figure, names: Sequence[str], *, above: float = 0.6, below: float = 0.4, **where: int) -> None:
    """Names of the rows 0, 1, ... down the left side, with room above the first and below the last."""
    rows = {"tickvals": list(range(len(names))), "ticktext": list(names), "range": [len(names) - below, -above]}
    fig.update_yaxes(**rows, showgrid=False, zeroline=False, **where)


def mark(look: Look, edge: float = 2) -> dict[str, Any]:
    """A marker that stands for a value."""
    return {"symbol": look.symbol, "size": 9, "color": look.color, "line": {"width": edge, "color": look.color}}


def shade(fig: Figure, x: Sequence[Any], y: Sequence[Any], color: str, opacity: float, **where: Any) -> None:
    """A filled shape without an outline, for what lies between two lines."""
    fig.add_scatter(
        x=x, y=y, fill="toself", fillcolor=rgba(color, opacity), line={"width": 0}, mode="lines", hoverinfo="skip",
        showlegend=False, **where,
    )  # fmt: skip


def count(number: int, one: str, many: str = "") -> str:
    """A number with its noun.

    >>> count(1, "chain"), count(1200, "query", "queries")
    ('1 chain', '1,200 queries')
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def percent(share: float, digits: int = 0) -> str:
    """A fraction in percent, as every axis and caption writes it.

    >>> percent(0.825), percent(0.825, 1)
    ('82 %', '82.5 %')
    """
    return f"{100 * share:.{digits}f} %"


def figure(
    title: str,
    caption: str,
    inner: float,
    *,
    left: int = 64,
    right: int = 24,
    bottom: int = 48,
    extra: int = 0,
    **layout: Any,
) -> Figure:
    """An empty figure in the house's look with a plot area `inner` pixels high, and `extra` pixels above that.

    `title` and `caption` are markup (escape data with `plain`). The caption stands under the title, says what to see
    and is wrapped. Both are also kept as plain text in `layout.meta["alt"]`, for static viewers.
    """
    import plotly.graph_objects as go

    caption = " ".join(caption.split())
    lines = textwrap.wrap(caption, _CAPTION_WIDTH, break_long_words=False, break_on_hyphens=False)
    top = 52 + 17 * len(lines) + extra
    height = top + inner + bottom
    return go.Figure(
        layout={
            "template": _template(),
            "height": height,
            "margin": {"l": left, "r": right, "t": top, "b": bottom},
            "title": {
                "text": f"<b>{title}</b>",
                "subtitle": {"text": "<br>".join(lines)},
                "y": 1 - 16 / height,
                "yanchor": "top",
            },
            "meta": {"alt": _alt(title, caption)},
            **layout,
        }
    )


def panels(
    names: Sequence[str],
    title: str,
    caption: str,
    inner: int,
    *,
    columns: int = 4,
    gap: float = 0.025,
    between: int = 84,
    bottom: int = 56,
    **subplots: Any,
) -> tuple[Figure, list[tuple[int, int]]]:
    """A figure with one named panel for each of `names` (markup), and each panel's (row, column).

    `inner` is the height in pixels of one row of panels, `between` the space between two rows.
    """
    from plotly.subplots import make_subplots

    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    height = rows * inner + (rows - 1) * between
    fig = figure(title, caption, height, bottom=bottom, extra=4 + 17 * (1 + max(name.count("<br>") for name in names)))
    make_subplots(
        rows,
        columns,
        figure=fig,
        subplot_titles=list(names),
        horizontal_spacing=gap,
        vertical_spacing=between / height if rows > 1 else 0,
        **subplots,
    )
    fig.update_annotations(font={"size": 12.5, "color": TEXT})
    return fig, [(k // columns + 1, k % columns + 1) for k in range(len(names))]


def nothing(title: str, why: str) -> Figure:
    """An honest figure for input that holds nothing to draw; `why` is markup and says what was missing."""
    fig = figure(title, f"Nothing to show: {why}.", 10, bottom=16)
    return fig.update_xaxes(visible=False).update_yaxes(visible=False)


def _alt(title: str, caption: str) -> str:
    text = f"{title}{'' if title.endswith('?') else '.'} {caption}".replace("<br>", " ")
    return html.unescape(re.sub(r"</?(b|i|span)\b[^>]*>", "", text))


@functools.cache
def _template() -> go.layout.Template:
    import plotly.graph_objects as go

    axis = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": FAINT,
        "tickcolor": FAINT,
        "automargin": True,
        "ticklabelstandoff": 3,
        "title": {"standoff": 8, "font": {"size": 12.5}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": "system-ui, -apple-system, Segoe UI, sans-serif", "size": 12, "color": TEXT},
            "title": {
                "x": 0,
                "xref": "container",
                "xanchor": "left",
                "pad": {"l": 12},
                "font": {"size": 16, "color": TEXT},
                "subtitle": {"font": {"size": 12.5, "color": TEXT}},
            },
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "colorway": [look.color for look in (*_LOOKS.values(), *_MORE_LOOKS)],
            "xaxis": axis,
            "yaxis": axis,
            "hovermode": "closest",
            "hoverlabel": {"align": "left", "font": {"size": 12}, "namelength": -1},
            "legend": {"bgcolor": "rgba(0, 0, 0, 0)", "x": 1.01, "y": 1, "yanchor": "top", "tracegroupgap": 2},
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": FAINT, "activecolor": TEXT},
            "annotationdefaults": {"font": {"color": TEXT, "size": 12}, "showarrow": False},
        }
    )
