"""Scores to be believed: each with its interval, what a blind answer gets, and what other people's rules would say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.scoring.bootstrap import few_videos
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from labkit.scoring.scores import Score

_ROW = 30
_COLUMNS = {"miou": "mIoU", "r1@0.3": "R1@0.3", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}


class _Row(NamedTuple):
    """One line of a board; `figures` and `bounds` are fractions by the figure's name."""

    name: str
    look: style.Look
    figures: Mapping[str, float]
    bounds: Mapping[str, Sequence[float]]
    score: Score | None = None
    label: str = ""


def scoreboard(scores: Mapping[str, Score], title: str = "Scores beside answers that never look") -> go.Figure:
    """Each score with its interval, above them what the trivial baselines get on the same queries."""
    if not scores:
        return style.nothing(title, "there are no scores")
    first = next(iter(scores.values()))
    grey = style.Look(style.NEUTRAL, "line-ns-open", "dot")
    rows = [_Row(f"<i>{style.plain(name)}</i>", grey, figures, {}) for name, figures in first.baselines.items()]
    looks = style.looks(scores)
    rows += [_Row(style.plain(name, 40), looks[name], s.figures, s.intervals, s, name) for name, s in scores.items()]
    caption = (
        f"Percent, {style.count(first.protocol.rows, 'query', 'queries')}. Bars: 95 % interval, by video. In italics "
        "what an answer gets that never saw the video; a model whose bar reaches down to it has shown nothing."
        + (f" {note}" if (note := few_videos(first.protocol.videos)) else "")
    )
    held = HeldChains.of_questions({name: score.qids for name, score in scores.items()})
    return held.write(_board(title, caption, rows, held))


def under_rules(scores: Mapping[str, Score], title: str = "The same chains under other people's rules") -> go.Figure:
    """One set of chains scored under every reading rule; `scores` by the rule's name, labkit's first."""
    if not scores:
        return style.nothing(title, "there are no scores")
    ours = style.Look("#2563b8", "circle", "solid")
    theirs = style.Look("#c4689f", "diamond", "dash")
    rows = [
        _Row(style.plain(name), ours if name == "labkit" else theirs, s.figures, s.intervals)
        for name, s in scores.items()
    ]
    miou = {name: 100 * score.figures["miou"] for name, score in scores.items()}
    caption = (
        "Not a word of the chains differs between rows: only which span a rule takes for the answer, and whether a threshold "
        f"is reached with > or >=. {_span_of(miou)} {few_videos(next(iter(scores.values())).protocol.videos)}"
    ).rstrip()
    return _board(title, caption, rows)


def _span_of(miou: Mapping[str, float]) -> str:
    """How far apart the rules are, in words."""
    low, high = min(miou, key=miou.__getitem__), max(miou, key=miou.__getitem__)
    if f"{miou[low]:.1f}" == f"{miou[high]:.1f}":
        return f"mIoU is {miou[low]:.1f} under each of them."
    return f"mIoU goes from {miou[low]:.1f} ({style.plain(low)}) to {miou[high]:.1f} ({style.plain(high)})."


def _board(title: str, caption: str, rows: Sequence[_Row], held: HeldChains | None = None) -> go.Figure:
    """One panel a figure, one line a row: the value as a mark with its bar, and the number beside it."""
    fig, places = style.panels(
        list(_COLUMNS.values()), title, caption, _ROW * len(rows) + 6, shared_yaxes=True, gap=0.045
    )
    for key, (row, col) in zip(_COLUMNS, places, strict=True):
        values = [100 * line.figures[key] for line in rows]
        ends = [100 * line.bounds[key][1] for line in rows if key in line.bounds]
        for place, (line, value) in enumerate(zip(rows, values, strict=True)):
            low, high = (100 * bound for bound in line.bounds.get(key, (line.figures[key],) * 2))
            known = key in line.bounds and low == low  # a single video gives no interval: NaN
            between = f"<br>95 % interval {low:.1f} to {high:.1f}" if known else ""
            fig.add_scatter(
                x=[value], y=[place], mode="markers+text", text=[f"  {value:.1f}"], textposition="top center",
                textfont={"size": 10.5, "color": style.TEXT}, showlegend=False, cliponaxis=False,
                marker={"symbol": line.look.symbol, "size": 9, "color": line.look.color,
                        "line": {"width": 2, "color": line.look.color}},
                error_x={"type": "data", "array": [high - value], "arrayminus": [value - low], "thickness": 1.6, "width": 3}
                if known else None,
                meta=_held(held, line, key),
                hovertemplate=f"{line.name}: {_COLUMNS[key]} %{{x:.1f}} %{between}<extra></extra>", row=row, col=col,
            )  # fmt: skip
        top = max([*values, *(end for end in ends if end == end), 1.0])
        fig.update_xaxes(range=[0, top * 1.12], row=row, col=col, zeroline=False)
    names = [line.name for line in rows]
    fig.update_yaxes(range=[len(rows) - 0.5, -0.8], showgrid=False, zeroline=False)
    return fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, row=1, col=1)


def _held(held: HeldChains | None, line: _Row, key: str) -> dict[str, Any] | None:
    """The chains behind a mark: all that were asked, or of R1@m those that reach m."""
    if held is None or line.score is None:
        return None
    reach = [at for at, value in enumerate(line.score.columns[key]) if key == "miou" or value > 0]
    return held.questions([reach], line.label, ["" if key == "miou" else f"those that count for {_COLUMNS[key]}"])
