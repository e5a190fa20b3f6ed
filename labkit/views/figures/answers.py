"""Figures of answers against the truth: records in, plotly figure out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from labkit.chain.spans import Span, clip_span
from labkit.data.moments import Moment
from labkit.scoring.bootstrap import Interval
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains
from labkit.views.measured_chains import ChainRecord, MeasuredChain, Records, measure_chains, measure_groups

MOST_POINTS = 150
"""Chains drawn as single dots in a panel; medians are always of all."""
_TENTHS = np.arange(1, 10) / 10
"""Borders between ten bins from 0 to 1."""
SAME = 0.05
"""IoU changes up to this size count as no change."""


def before_after(
    before: Sequence[ChainRecord],
    after: Sequence[ChainRecord],
    moments: Mapping[str, Moment],
    names: tuple[str, str] = ("before", "after"),
) -> style.Figure:
    """The same queries before and after: IoU against IoU, and the distribution of the change.

    Several chains of one query count by their mean. Queries that only one side has are left out and counted.
    """
    first, second = style.plain(names[0], 30), style.plain(names[1], 30)
    title = f"The same queries: {first} against {second}"
    # Both sides may have one name: a blank tells their chains apart.
    labels = (names[0], f" {names[1]}" if names[0] == names[1] else names[1])
    groups = {label: measure_chains(side, moments) for label, side in zip(labels, (before, after), strict=True)}
    by_query = [_by_query(chains) for chains in groups.values()]
    old, new = (
        {qid: float(np.mean([each.answer_iou for each in chains])) for qid, chains in side.items()}
        for side in by_query
    )
    both = [qid for qid in old if qid in new]
    if not both:
        return style.nothing(title, f"no query has a chain both in {first} and in {second}")
    x, y = (np.array([ious[qid] for qid in both]) for ious in (old, new))
    change = y - x
    better, worse = int(np.sum(change > SAME)), int(np.sum(change < -SAME))
    unpaired = len(set(old) ^ set(new))
    caption = (
        f"Of {style.count(len(both), 'query', 'queries')} {better} are better by more than {SAME} "
        f"({style.percent(better / len(both))}), "
        f"{worse} worse, {len(both) - better - worse} about the same; mean change {change.mean():+.3f}."
        + (f" Left out for having a chain on one side only: {unpaired}." if unpaired else "")
    )
    titles = ["above the line: better; size: queries", "change of IoU"]
    fig, _ = style.panels(titles, title, caption, 310, columns=2, gap=0.11)
    held = HeldChains(groups)

    def chains_of(chosen: Any) -> list[MeasuredChain]:
        """Both sides' chains of the chosen queries."""
        return [each for at in np.flatnonzero(chosen) for side in by_query for each in side[both[at]]]

    across, down = np.digitize([x, y], _TENTHS + 1e-9)  # on a border is below it, whatever its last bit is
    cells = sorted(set(zip(across.tolist(), down.tolist(), strict=True)))
    inside = [(across == i) & (down == j) for i, j in cells]
    counts = [int(each.sum()) for each in inside]
    fig.add_scatter(
        x=[(i + 0.5) / 10 for i, _ in cells],
        y=[(j + 0.5) / 10 for _, j in cells],
        mode="markers",
        marker={
            "size": [4 + 24 * (n / max(counts)) ** 0.5 for n in counts],
            "color": [_color(j - i) for i, j in cells],
            "opacity": 0.85,
            "line": {"width": 0},
        },
        customdata=[[n, i / 10, (i + 1) / 10, j / 10, (j + 1) / 10] for n, (i, j) in zip(counts, cells, strict=True)],
        meta=held.points(
            map(chains_of, inside),
            [f"IoU {i / 10:.1f} to {(i + 1) / 10:.1f}, then {j / 10:.1f} to {(j + 1) / 10:.1f}" for i, j in cells],
        ),
        hovertemplate="%{customdata[0]} queries<br>before %{customdata[1]:.1f} to %{customdata[2]:.1f}, "
        "after %{customdata[3]:.1f} to %{customdata[4]:.1f}<extra></extra>",
        row=1,
        col=1,
    )
    _diagonal(fig, 1, 1.2, style.FAINT, row=1, col=1)
    edges = np.round(np.arange(-1.05, 1.06, 0.1), 2)
    middles = np.round((edges[:-1] + edges[1:]) / 2, 1)
    slots = np.digitize(change, edges) - 1
    changed = [slots == slot for slot in range(len(middles))]
    fig.add_bar(
        x=middles,
        y=[int(each.sum()) for each in changed],
        width=0.088,
        marker={"color": [_color(m) for m in middles]},
        meta=held.points(map(chains_of, changed), [f"IoU changed by about {m:+.1f}" for m in middles]),
        hovertemplate="change about %{x:+.1f}: %{y} queries<extra></extra>",
        row=1,
        col=2,
    )
    fig.update_xaxes(title_text=f"IoU, {first}", range=[0, 1], row=1, col=1)
    fig.update_yaxes(title_text=f"IoU, {second}", range=[0, 1], row=1, col=1)
    fig.update_xaxes(title_text=f"IoU {second} minus IoU {first}", range=[-1.05, 1.05], row=1, col=2)
    fig.update_yaxes(title_text="queries", row=1, col=2)
    return held.write(fig.update_layout(showlegend=False))


def lengths(records: Records, moments: Mapping[str, Moment]) -> style.Figure:
    """Length of the answer against length of the truth, in seconds: binned medians over single chains."""
    title = "Are answers as long as the truth?"
    groups, bare = _answered(records, moments)
    if not groups:
        return style.nothing(title, "there are no chains with an answer")
    caption = (
        "On the dotted line the answer has the right length. Large marks: median and middle half of a fifth of the "
        "chains; dots: single chains." + bare
    )
    fig, places = style.panels(_titles(groups), title, caption, 230, shared_yaxes=True)
    top = max(span.length for g in groups.values() for chain in g for span in _spans(chain)) * 1.06
    look, held = style.looks(groups), HeldChains(groups)
    for (row, column), (label, chains) in zip(places, groups.items(), strict=True):
        truth, given = np.array([[span.length for span in _spans(chain)] for chain in chains]).T
        chosen = np.linspace(0, len(truth) - 1, min(MOST_POINTS, len(truth))).round().astype(int)
        where: dict[str, Any] = {"row": row, "col": column}
        _diagonal(fig, top, 1.4, style.TRUTH, **where)
        fig.add_scatter(
            x=truth[chosen].round(2),
            y=given[chosen].round(2),
            mode="markers",
            marker={"size": 4, "color": style.rgba(look[label].color, 0.4)},
            meta=held.points([[chains[at]] for at in chosen]),
            hovertemplate="truth %{x:.1f} s, answer %{y:.1f} s<extra></extra>",
            **where,
        )
        bins = [b for b in np.array_split(np.argsort(truth, kind="stable"), 5) if len(b)]
        low, middle, high = np.array([np.quantile(given[b], (0.25, 0.5, 0.75)) for b in bins]).T
        fig.add_scatter(
            x=[float(np.median(truth[b])) for b in bins],
            y=middle,
            error_y=style.error_bars(middle, map(Interval, low, high)),
            mode="lines+markers",
            line={"color": look[label].color, "width": 2},
            marker={"size": 9, "symbol": look[label].symbol},
            meta=held.points(
                [[chains[at] for at in b] for b in bins],
                [f"truth about {np.median(truth[b]):.1f} s long" for b in bins],
            ),
            hovertemplate="truth about %{x:.1f} s: median answer %{y:.1f} s<extra></extra>",
            **where,
        )
        fig.update_xaxes(title_text="true length (s)", **where)
    fig.update_xaxes(range=[0, top], showticklabels=True)
    fig.update_yaxes(range=[0, top])
    return held.write(fig.update_yaxes(title_text="answer's length (s)", col=1).update_layout(showlegend=False))


def answer_places(records: Records, moments: Mapping[str, Moment]) -> style.Figure:
    """Where in the video answers fall against where the truth lies, middles in percent of the duration."""
    title = "Where answers fall against the truth"
    groups, bare = _answered(records, moments)
    if not groups:
        return style.nothing(title, "there are no chains with an answer")
    caption = (
        "On the diagonal the model found the moment; a level stripe is one place answered whatever was asked. "
        "Stronger colour: more chains." + bare
    )
    fig, places = style.panels(_titles(groups), title, caption, 230, gap=0.035, between=104, shared_yaxes=True)
    held, percents = HeldChains(groups), np.arange(5, 100, 10)
    for (row, column), chains in zip(places, groups.values(), strict=True):
        middles = np.array([[span.middle / chain.moment.duration for span in _spans(chain)] for chain in chains]).T
        across, down = np.digitize(middles, _TENTHS)
        cells = [np.flatnonzero((across == i) & (down == j)) for j in range(10) for i in range(10)]
        where: dict[str, Any] = {"row": row, "col": column}
        fig.add_heatmap(
            x=percents,
            y=percents,
            z=np.reshape([len(cell) for cell in cells], (10, 10)).tolist(),
            colorscale=[[0, style.rgba(style.ANCHOR, 0)], [0.02, style.rgba(style.ANCHOR, 0.12)], [1, style.ANCHOR]],
            zmin=0,
            showscale=False,
            xgap=1,
            ygap=1,
            meta=held.points(
                [[chains[at] for at in cell] for cell in cells],
                [f"truth about {x} %, answer about {y} % of the video" for y in percents for x in percents],
            )
            | {"columns": 10},
            hovertemplate="truth about %{x:.0f} %, answer about %{y:.0f} % of the video: %{z} chains<extra></extra>",
            **where,
        )
        _diagonal(fig, 100, 1.6, style.TRUTH, **where)
    fig.update_xaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100], showgrid=False, title_text="truth (% of the clip)")
    fig.update_yaxes(range=[0, 100], tickvals=[0, 25, 50, 75, 100], showgrid=False)
    return held.write(fig.update_yaxes(title_text="answer (% of the clip)", col=1).update_layout(showlegend=False))


def _titles(groups: Mapping[str, Sequence[object]]) -> list[str]:
    return [f"<b>{style.plain(label, 24)}</b><br>{style.count(len(g), 'answer')}" for label, g in groups.items()]


def _diagonal(fig: style.Figure, top: float, width: float, color: str, *, row: int, col: int) -> None:
    """The dotted line from (0, 0) to (top, top), on which both axes say the same."""
    line = {"dash": "dot", "width": width, "color": color}
    fig.add_scatter(x=[0, top], y=[0, top], mode="lines", line=line, hoverinfo="skip", row=row, col=col)


def _color(change: float) -> str:
    return style.BETTER if change > 0 else style.WORSE if change < 0 else style.NEUTRAL


def _spans(chain: MeasuredChain) -> list[Span]:
    """The truth, and the answer as far as it lies in the clip, if any of it does."""
    answer = chain.chain.answer and clip_span(chain.chain.answer, chain.moment.duration)
    return [chain.window, answer] if answer else []


def _answered(records: Records, moments: Mapping[str, Moment]) -> tuple[dict[str, list[MeasuredChain]], str]:
    """By label every chain that has an answer within the clip; how many labels have none."""
    read = measure_groups(records, moments)
    groups = {label: answered for label, chains in read.items() if (answered := list(filter(_spans, chains)))}
    bare = len(read) - len(groups)
    return groups, f" {bare} of {len(read)} have no answer to draw." if bare else ""


def _by_query(measured_chains: Sequence[MeasuredChain]) -> dict[str, list[MeasuredChain]]:
    found: dict[str, list[MeasuredChain]] = {}
    for measured in measured_chains:
        found.setdefault(measured.record.qid, []).append(measured)
    return found
