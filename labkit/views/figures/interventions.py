"""Do anchors cause the answer? One figure for each intervention: `labkit.runs.interventions.Interventions` in, plotly figure out.

Intervals are 95 % intervals, by video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from labkit.runs.interventions import EDITS, Interventions
from labkit.scoring.baselines import SHUFFLED_FIGURES
from labkit.scoring.bootstrap import Interval, few_videos
from labkit.stages.interventions import FRAMES, PLACES
from labkit.views.figures import style
from labkit.views.figures.scoreboard import scoreboard

_INNER = 270
_ROW = 30
_NO_ANCHORS = "none of the model's own chains has an anchor"


def anchors_forbidden(found: Interventions) -> style.Figure:
    """The model by itself, with anchors forbidden in two ways, and forced, beside answers that never look."""
    return scoreboard(found.scores, "Anchors forbidden and forced")


def answer_follows(found: Interventions) -> style.Figure:
    """How far the answer moves when the last, or the first, anchor is moved; and the slope of every edit."""
    title = "Does the answer follow an edited anchor?"
    if not found.anchored:
        return style.nothing(title, _NO_ANCHORS)
    names = [*(f"{place} anchor shifted" for place in reversed(PLACES)), "slope of every edit"]
    caption = (
        "Left, middle: seconds that the answer's middle moves when an anchor is shifted and the rest is written anew; on the dashed "
        "line it goes as far as the anchor. Right: its movement over the anchor's (widened: lengths; swapped: between two "
        "swaps). 1 follows fully, 0 stays. " + few_videos(found.videos)
    )
    fig, places = style.panels(names, title, caption, _INNER, columns=3, gap=0.14)
    ends = [0.5]
    for (row, col), place in zip(places[:2], reversed(PLACES), strict=True):
        doses = found.follows[f"{place} shift"].doses
        reach = max([1.0, *(abs(dose.moved) for dose in doses)])
        ends.append(reach)
        line: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "row": row, "col": col}
        fig.add_scatter(
            x=[-reach, reach], y=[-reach, reach], line={"dash": "dash", "color": style.NEUTRAL, "width": 1.4}, **line
        )
        fig.add_scatter(x=[-reach, reach], y=[0, 0], line={"color": style.FAINT, "width": 1}, **line)
        moved, followed = [dose.moved for dose in doses], [dose.followed for dose in doses]
        fig.add_scatter(
            x=moved, y=followed, mode="lines+markers", showlegend=False,
            line={"color": style.ANCHOR, "width": 2}, marker={"size": 9, "color": style.ANCHOR},
            error_y=style.error_bars(followed, [dose.interval for dose in doses]),
            customdata=[
                [f"{dose.asked:+g}", style.count(dose.n, "chain"), style.interval_text(dose.interval, ".2f")] for dose in doses
            ],
            hovertemplate="asked %{customdata[0]} s, moved %{x:.2f} s<br>answer: %{y:.2f} s, %{customdata[2]}"
            "<br>%{customdata[1]}<extra></extra>",
            row=row, col=col,
        )  # fmt: skip
        fig.update_xaxes(title_text="anchor moved, s", zeroline=False, row=row, col=col)
    most = 1.12 * max(ends)
    for row, col in places[:2]:
        fig.update_xaxes(range=[-most, most], row=row, col=col).update_yaxes(
            range=[-most, most], zeroline=False, row=row, col=col
        )
    fig.update_yaxes(title_text="answer moved, s", title_standoff=2, row=1, col=1)
    row, col = places[2]
    labels = {f"{place} {edit}": f"{place}, {done}" for place in reversed(PLACES) for edit, done in EDITS.items()}
    rows = [
        (labels[name], each.slope.value, each.slope.interval,
         f"{style.count(each.slope.n, 'edit')}, {sum(each.left_out.values()):,} left out")
        for name in labels if not math.isnan((each := found.follows[name]).slope.value)
    ]  # fmt: skip
    _dots(fig, rows, row, col, style.ANCHOR, 2)
    for x, dash in ((0, "solid"), (1, "dash")):
        fig.add_vline(x, line={"dash": dash, "width": 1.3, "color": style.NEUTRAL}, layer="below", row=row, col=col)
    bounds = [bound for _, value, interval, _ in rows for bound in (value, *interval) if math.isfinite(bound)]
    return fig.update_xaxes(
        range=[min(-0.25, *bounds) - 0.1, max(1.25, *bounds) + 0.1], zeroline=False, row=row, col=col
    )


def answer_by_step(found: Interventions) -> style.Figure:
    """IoU of the answer when the thought is closed behind no anchor, one, two, ...; and of these anchors themselves."""
    title = "What does each anchor add?"
    if not (steps := found.steps):
        return style.nothing(title, _NO_ANCHORS)
    caption = (
        "The thought is closed behind so many of the model's own anchors, and the answer forced: "
        f"{style.count(found.step_queries, 'query', 'queries')} whose chains have as many. The line of answers should rise; "
        "beside it the anchors themselves. " + few_videos(found.videos)
    )
    fig = style.figure(title, caption, _INNER)
    places = [step.anchors for step in steps]
    values = [100 * step.miou for step in steps]
    fig.add_scatter(
        x=places, y=values, name="answer", mode="lines+markers", line={"color": style.ANSWER, "width": 2.5}, marker={"size": 10},
        error_y=style.error_bars(values, [step.interval.times(100) for step in steps]),
        customdata=[style.interval_text(step.interval.times(100), ".2f") for step in steps],
        hovertemplate="behind %{x} anchors: mIoU %{y:.1f} %<br>%{customdata}<extra></extra>",
    )  # fmt: skip
    fig.add_scatter(
        x=places[1:], y=[100 * step.anchor_miou for step in steps[1:]], name="anchor itself", mode="lines+markers",
        line={"color": style.ANCHOR, "dash": "dot", "width": 2}, marker={"size": 9, "symbol": "diamond"},
        hovertemplate="anchor %{x}: mIoU %{y:.1f} %<extra></extra>",
    )  # fmt: skip
    fig.update_xaxes(
        title_text="anchors before the thought is closed", tickvals=places, range=[-0.3, places[-1] + 0.3]
    )
    return fig.update_yaxes(title_text="mean IoU", range=[0, 102], ticksuffix=" %")


def frames_edited(found: Interventions) -> style.Figure:
    """What hiding or shuffling the last anchor's frames costs, or those around it."""
    title = "Which frames does the answer rest on?"
    if not any(change.n for change in found.frames.values()):
        return style.nothing(title, "none of the model's own chains ends with an anchor in the clip")
    caption = (
        "Change of mIoU, in points, when frames inside the last anchor are black or in another order, or those outside; elsewhere are "
        "as many beside it, as far away as the clip allows. Where the anchor says what counts, only inside costs. "
        + few_videos(found.videos)
    )
    names = {"answer": "answer asked behind the model's own anchors", "anew": "whole chain asked anew"}
    fig, places = style.panels(
        list(names.values()), title, caption, _ROW * len(FRAMES) + 10, columns=2, gap=0.05, shared_yaxes=True
    )
    ends = [0.0]
    for (row, col), asked in zip(places, names, strict=True):
        changes = [(what, change) for what in FRAMES if (change := found.frames[f"{what}, {asked}"]).n]
        rows = [
            (what, 100 * each.difference.value, each.difference.interval.times(100),
             f"mIoU {100 * each.before:.1f} to {100 * each.miou:.1f} %, {style.count(each.n, 'query', 'queries')}")
            for what, each in changes
        ]  # fmt: skip
        _dots(fig, rows, row, col, style.ANCHOR, 1)
        ends += [bound for _, value, interval, _ in rows for bound in (value, *interval) if math.isfinite(bound)]
        fig.add_vline(0, line={"width": 1.3, "color": style.NEUTRAL}, layer="below", row=row, col=col)
    fig.update_xaxes(range=[min(ends) - 4, max(ends) + 4], zeroline=False)
    return fig


def shuffled_null(found: Interventions) -> style.Figure:
    """The chains' figures beside those of the same chains dealt to other queries."""
    title = "Would chains narrow towards anything?"
    if not found.null:
        return style.nothing(title, "fewer than two chains have an anchor")
    caption = (
        "Marks: the chains as they are. Bars: the middle 95 % of 1,000 shuffles in which each chain is dealt to another query, which "
        "leaves habits of place and length, and nothing of the query. Marks should lie far to the right of the bars."
    )
    fig = style.figure(title, caption, _ROW * len(found.null) + 14, left=150)
    for place, (name, null) in enumerate(found.null.items()):
        low, mean, high, here = (100 * value for value in (null.low, null.mean, null.high, null.observed))
        fig.add_scatter(
            x=[low, high], y=[place, place], mode="lines", line={"color": style.rgba(style.NEUTRAL, 0.55), "width": 12},
            showlegend=place == 0, name="dealt to other queries", legendgroup="null",
            hovertemplate=f"shuffled: {mean:.1f} % on average, {low:.1f} to {high:.1f}<extra></extra>",
        )  # fmt: skip
        fig.add_scatter(
            x=[here], y=[place], mode="markers", marker={"size": 11, "color": style.ANCHOR, "symbol": "diamond"},
            showlegend=place == 0, name="as they are", legendgroup="own",
            hovertemplate=f"{SHUFFLED_FIGURES[name]}: {here:.1f} %, p = {null.p:.3f}<extra></extra>",
        )  # fmt: skip
    style.name_rows(fig, [SHUFFLED_FIGURES[name] for name in found.null])
    return fig.update_xaxes(title_text="mean IoU, and share of chains", range=[0, 102], ticksuffix=" %")


def _dots(
    fig: style.Figure, rows: Sequence[tuple[str, float, Interval, str]], row: int, col: int, color: str, digits: int
) -> None:  # fmt: skip
    """A line for each row: name, value, interval and what else there is to say."""
    values = [value for _, value, _, _ in rows]
    fig.add_scatter(
        x=values, y=list(range(len(rows))), mode="markers+text", showlegend=False, marker={"size": 9, "color": color},
        error_x=style.error_bars(values, [interval for _, _, interval, _ in rows]),
        text=[f"{round(value, digits) + 0.0:.{digits}f}" for value in values],
        textposition="top center",
        textfont={"size": 11, "color": style.TEXT},
        customdata=[[name, style.interval_text(interval, f".{digits}f"), more] for name, _, interval, more in rows],
        hovertemplate=f"%{{customdata[0]}}: %{{x:.{digits}f}}, %{{customdata[1]}}<br>%{{customdata[2]}}<extra></extra>",
        row=row, col=col,
    )  # fmt: skip
    style.name_rows(fig, [name for name, *_ in rows], above=0.8, row=row, col=col)
