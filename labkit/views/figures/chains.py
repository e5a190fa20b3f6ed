"""Figures of chains: records in, plotly figure out.

Each function takes records by label (`{"base": predictions, ...}`) or a list of Rollouts, and the moments by qid.
Points are aggregated before they are drawn: what is drawn does not grow with the number of chains, of which a figure only holds the
names (`labkit.views.figures.held_chains`).
Intervals are 95 % intervals, clustered by source video. Model text never gets further than into a parser here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from labkit.chain.anchors import ChainRecord
from labkit.data.moments import Moment
from labkit.scoring.bootstrap import few_videos, mean_interval, mean_intervals
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains
from labkit.views.measured_chains import MeasuredChain, Records, by_stage, measure_chains, measure_groups

MOST_ANCHORS = 6
"""Anchors drawn of a chain; later ones are left out, which the caption then says."""
RARE = 0.05
"""A step that a smaller share of a label's chains has is not drawn: its mean would look as sure as the others."""
MOST_RIDGES = 8
"""Of more times of asking, as many are drawn, spread over the training."""
_CANDIDATES = 40
"""Queries among which the one to show is chosen, spread over those that were asked most often."""
_INNER, _ROW, _FAR = 280, 74, 1000.0
_LOOKS = {"anchor 1": ("#8fbde8", 0.32), "anchor 2": (style.ANCHOR, 0.36), "answer": (style.ANSWER, 0.1)}

_Time: TypeAlias = tuple[str, int]
"""A stage and a step of it; of a harvest, which is no training, all of it."""
_T = TypeVar("_T")

NARROWING = "Do anchors narrow toward the truth?"
"""Title of `funnel`, by which a report finds it for its first page."""


def iou_by_step(records: Records, moments: Mapping[str, Moment]) -> style.Figure:
    """Mean IoU of anchor 1, anchor 2, ... and the answer, for each stage.

    Only chains with anchors count, and at each step those that have it; one that has no answer counts 0 there. Where
    fewer than 5 % of the chains have anchors, the answers of all are shown instead; rarer steps are left out.
    """
    title = "IoU along the chain"
    groups = measure_groups(records, moments)
    if not groups:
        return style.nothing(title, "there are no chains")
    steps, shares = {}, {}
    for label, measured_chains in groups.items():
        anchored = [r for r in measured_chains if r.chain.anchors]
        shares[label] = len(anchored) / len(measured_chains)
        steps[label] = _common(_steps(anchored if shares[label] >= RARE else measured_chains), len(measured_chains))
    names = _named(steps.values())
    caption = (
        "Each step should lie above the one before it. Mean and 95 % interval over the chains with anchors, at each step those "
        "that have it; no answer counts 0. "
        + ("Where fewer than 5 % have any, the answers of all are shown. " if min(shares.values()) < RARE else "")
        + f"{_few_videos(groups)} {_left_out(groups)}"
    )
    fig = style.figure(title, caption, _INNER)
    look, held = style.looks(groups), HeldChains(groups)
    for label, rows in steps.items():
        present = [name for name in names if name in rows]
        values = [[value for value, _ in rows[name]] for name in present]
        means = [float(np.mean(each)) for each in values]
        intervals = [
            mean_interval(each, [measured.moment.source_video for _, measured in rows[name]])
            for each, name in zip(values, present, strict=True)
        ]
        fig.add_scatter(
            x=present,
            y=means,
            name=f"{style.plain(label, 40)} <i>({style.percent(shares[label])} have anchors)</i>",
            mode="lines+markers",
            offsetgroup=label,
            line={"color": look[label].color, "dash": look[label].dash, "width": 2},
            marker={"symbol": look[label].symbol, "size": 9},
            error_y=style.error_bars(means, intervals),
            customdata=[
                f"{style.interval_text(interval, '.3f')}<br>{style.count(len(rows[name]), 'chain')}"
                for name, interval in zip(present, intervals, strict=True)
            ],
            meta=held.points([[measured for _, measured in rows[name]] for name in present], present),
            hovertemplate="%{x}: IoU %{y:.3f}<br>%{customdata}",
        )
    fig.update_layout(scattermode="group", scattergap=0.6)
    fig.update_xaxes(type="category", categoryorder="array", categoryarray=names)
    return held.write(fig.update_yaxes(title_text="mean IoU", range=[0, 1.02], dtick=0.2))


def funnel(records: Records, moments: Mapping[str, Moment]) -> style.Figure:
    """Where anchors and answers start and end, each chain shifted and scaled so that the truth is -1 to 1.

    x = (time - middle of the truth) / half its length; lines are medians, bands hold the middle half of the chains.
    """
    title = NARROWING
    found = measure_groups(records, moments)
    scaled = {label: steps for label, g in found.items() if (steps := _common(_scaled_steps(g), len(g)))}
    groups = {label: found[label] for label in scaled}
    if not groups:
        return style.nothing(title, "there are no chains with an anchor or an answer")
    names = _named(scaled.values())
    titles = [
        f"<b>{style.plain(label, 20)}</b> ({len(g)})<br>"
        f"{style.percent(sum(bool(r.chain.anchors) for r in g) / len(g))} with anchors"
        for label, g in groups.items()
    ]
    caption = (
        "Read downwards: the lines should close in on the green band, the truth. Lines are medians, shades hold the "
        "middle half of the chains; steps that fewer than 5 % of the chains have are left out."
    )
    if bare := len(found) - len(groups):
        caption += f" {bare} of {len(found)} have nothing left to draw."
    fig, places = style.panels(
        titles, title, f"{caption} {_left_out(groups)}", 40 + 56 * len(names), shared_yaxes=True
    )
    reach, held = 2.0, HeldChains(groups)
    for (row, column), steps in zip(places, scaled.values(), strict=True):
        present = [name for name in names if name in steps]
        for side, name, color, symbol in (
            (0, "start", "#c4689f", "triangle-right"),
            (1, "end", style.ANCHOR, "diamond"),
        ):
            low, middle, high = np.array(
                [np.quantile([row[side] for row in steps[n]], (0.25, 0.5, 0.75)) for n in present]
            ).T
            reach = max(reach, *np.abs(low), *np.abs(high))
            shared: dict[str, Any] = {"row": row, "col": column, "legendgroup": name}
            style.shade(fig, [*low, *high[::-1]], [*present, *present[::-1]], color, 0.2, **shared)
            fig.add_scatter(
                x=middle,
                y=present,
                name=name,
                showlegend=(row, column) == (1, 1),
                mode="lines+markers",
                line={"color": color, "width": 2.5},
                marker={"symbol": symbol, "size": 10},
                customdata=[
                    [a, b, style.count(len(steps[n]), "chain")] for a, b, n in zip(low, high, present, strict=True)
                ],
                meta=held.points([[measured for *_, measured in steps[n]] for n in present], present),
                hovertemplate=f"%{{y}}, {name}: %{{x:.2f}} half-lengths<br>middle half %{{customdata[0]:.2f}} to "
                "%{customdata[1]:.2f}<br>%{customdata[2]}<extra></extra>",
                **shared,
            )
        fig.add_vrect(-1, 1, fillcolor=style.TRUTH, opacity=0.16, line_width=0, layer="below", row=row, col=column)
    fig.update_yaxes(type="category", categoryorder="array", categoryarray=names, range=[len(names) - 0.7, -0.3])
    reach = min(reach * 1.08, 12.0)
    fig.update_xaxes(range=[-reach, reach], zeroline=False)
    held.write(fig)
    return fig.add_annotation(
        text="time from the truth's middle, in half-lengths of the truth",
        x=0.5, y=0, xref="paper", yref="paper", yanchor="top", yshift=-24, font={"size": 12.5},
    )  # fmt: skip


def r1_curves(records: Records, moments: Mapping[str, Moment]) -> style.Figure:
    """R1@m over the threshold m for each label, with intervals; the benchmark's three thresholds are marked."""
    title = "R1@m: how many answers are good enough"
    groups = measure_groups(records, moments)
    if not groups:
        return style.nothing(title, "there are no chains")
    caption = "Share of answers whose IoU reaches m; higher is better everywhere. Shades: 95 % interval, by video."
    fig = style.figure(title, f"{caption} {_few_videos(groups)}", _INNER)
    thresholds = np.round(np.arange(0.05, 0.96, 0.05), 2)
    look, held = style.looks(groups), HeldChains(groups)
    for label, measured_chains in groups.items():
        ious = np.array([r.answer_iou for r in measured_chains])
        hits = (ious[:, None] >= thresholds - 1e-9) * 100.0
        videos = [r.moment.source_video for r in measured_chains]
        intervals = [interval.times(100) for interval in mean_intervals(hits / 100.0, videos)]
        shape = look[label]
        if not math.isnan(intervals[0].low):
            low, high = zip(*intervals, strict=True)
            outline = ([*thresholds, *thresholds[::-1]], [*high, *low[::-1]])
            style.shade(fig, *outline, shape.color, 0.16, legendgroup=label)
        fig.add_scatter(
            x=thresholds,
            y=hits.mean(axis=0),
            name=f"{style.plain(label, 40)} <i>(mIoU {100 * ious.mean():.1f} %)</i>",
            legendgroup=label,
            mode="lines+markers",
            line={"color": shape.color, "dash": shape.dash, "width": 2},
            marker={"symbol": shape.symbol, "size": 6},
            customdata=[style.interval_text(interval) for interval in intervals],
            meta=held.points(
                [[each for each, hit in zip(measured_chains, column, strict=True) if hit] for column in hits.T],
                [f"IoU {threshold:g} or more" for threshold in thresholds],
            ),
            hovertemplate="R1@%{x:.2f}: %{y:.1f} %<br>%{customdata}",
        )
    for threshold in (0.3, 0.5, 0.7):
        fig.add_vline(threshold, line={"dash": "dot", "width": 1.2, "color": style.FAINT}, layer="below")
    fig.update_xaxes(title_text="IoU threshold m", range=[0, 1], tickvals=[0, 0.1, 0.3, 0.5, 0.7, 0.9, 1])
    return held.write(fig.update_yaxes(title_text="share of queries", range=[0, 102], ticksuffix=" %"))


def _steps(measured_chains: Sequence[MeasuredChain]) -> dict[str, list[tuple[float, MeasuredChain]]]:
    """By step name: IoU of each chain that has the step, and the chain; a missing answer counts 0."""
    steps: dict[str, list[tuple[float, MeasuredChain]]] = {}
    for measured in measured_chains:
        for bar in measured.bars(MOST_ANCHORS):
            steps.setdefault(bar.name, []).append((bar.iou, measured))
    return steps


def _scaled_steps(measured_chains: Sequence[MeasuredChain]) -> dict[str, list[tuple[float, float, MeasuredChain]]]:
    """By step name: start and end of each chain in half-lengths of the truth, from its middle, and the chain; of sets the whole's."""
    steps: dict[str, list[tuple[float, float, MeasuredChain]]] = {}
    for measured in measured_chains:
        truth = measured.window
        # Of what reaches from end to end: a set's own middle lies elsewhere.
        middle, half = (truth.start + truth.end) / 2, (truth.end - truth.start) / 2
        for bar in measured.bars(MOST_ANCHORS):
            if bar.span is None:
                continue
            ends = [(time - middle) / half for time in (bar.span.start, bar.span.end)]
            # a model may write any number: far out is far out, and no infinity reaches the figure
            start, end = (max(-_FAR, min(_FAR, each)) for each in ends)
            steps.setdefault(bar.name, []).append((start, end, measured))
    return steps


def _named(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the steps that any of the labels has, in order."""
    present = {name for rows in steps for name in rows}
    return [name for name in (*(f"anchor {k + 1}" for k in range(MOST_ANCHORS)), "answer") if name in present]


def _common(steps: dict[str, list[_T]], chains: int) -> dict[str, list[_T]]:
    """The steps that are not rare; the answer always stays."""
    return {name: rows for name, rows in steps.items() if name == "answer" or len(rows) >= RARE * chains}


def _few_videos(groups: Mapping[str, Sequence[MeasuredChain]]) -> str:
    """What to say of the label with the fewest videos, where they are few."""
    return few_videos(min(len({r.moment.source_video for r in chains}) for chains in groups.values()))


def _left_out(groups: Mapping[str, Sequence[MeasuredChain]]) -> str:
    long = sum(len(r.chain.anchors) > MOST_ANCHORS for g in groups.values() for r in g)
    return f"Of {style.count(long, 'long chain')} only the first {MOST_ANCHORS} anchors are drawn." if long else ""


def ridgelines(records: Records, moments: Mapping[str, Moment], qid: str = "") -> style.Figure:
    """Where the samples of one query lay each time it was asked: anchor 1, anchor 2 and the answer, downwards in training.

    A ridge is as high as the share of samples whose span holds that second. `qid` names the query; without it, of those that
    were asked most often, or of 40 spread over them, the one whose answers gained most from the first time to the last.
    """
    title = "Where one query's samples lie, each time it is asked"
    times = _times(records)
    asked = [qid] if qid in times else [] if qid else _most_asked(times)
    if not asked:
        return style.nothing(
            title, f"no chain asks {style.plain(qid)}" if qid else "no query was asked more than once"
        )
    lines = [
        {time: measure_chains(found, moments) for time, found in times[each].items()}
        for each in _spread(asked, _CANDIDATES)
    ]
    line = max(lines, key=_gain)
    moment = next(iter(line.values()))[0].moment
    shown = _spread(list(line), MOST_RIDGES)
    caption = (
        f"“{style.plain(moment.query, 80)}”: read downwards, the ridges should rise within the green band, the truth, and fall "
        "outside. Height: share of the samples whose span holds that second."
    )
    if len(shown) < len(line):
        caption += f" {len(shown)} of {len(line)} times are drawn."
    fig = style.figure(title, caption, _ROW * len(shown), left=150, extra=24)
    seconds = _borders([chain for time in shown for chain in line[time]], moment.duration)
    for row, time in enumerate(shown):
        ground = -float(row)
        fig.add_hline(ground, line={"width": 1, "color": style.GRID}, layer="below")
        for name, (color, opacity) in _LOOKS.items():
            share, count = _share(line[time], name, seconds)
            shared: dict[str, Any] = {
                "x": seconds,
                "legendgroup": name,
                "mode": "lines",
                "line": {"width": 0, "shape": "hv"},
            }
            if count:
                fig.add_scatter(y=np.full(len(seconds), ground), hoverinfo="skip", showlegend=False, **shared)
            fig.add_scatter(
                **shared | {"line": {"width": 2, "color": color, "shape": "hv"}},
                y=ground + 0.9 * share if count else [None] * len(seconds),
                name=name,
                showlegend=row == 0,
                fill="tonexty" if count else None,
                fillcolor=style.rgba(color, opacity),
                customdata=share,
                hovertemplate=f"{name}, second %{{x:.1f}}: %{{customdata:.0%}} of {style.count(len(line[time]), 'sample')}"
                f"<br>{_time_words(time)}<extra></extra>",
            )
    for window in moment.windows:
        fig.add_vrect(window.start, window.end, fillcolor=style.TRUTH, opacity=0.16, line_width=0, layer="below")
    labels = [f"{_time_words(time)}<br><i>IoU {_mean_iou(line[time]):.2f}</i>" for time in shown]
    fig.update_yaxes(
        tickvals=[0.35 - row for row in range(len(shown))], ticktext=labels, range=[0.88 - len(shown), 1.02],
        showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "yref": "paper"})
    return fig.update_xaxes(title_text="seconds of the clip", range=[0, moment.duration])


def _times(records: Records) -> dict[str, dict[_Time, list[ChainRecord]]]:
    """By qid, what was sampled each time that it was asked, in the order of training."""
    groups = by_stage(records)
    stages = style.in_stage_order(stage for stage, _ in groups)
    found: dict[str, dict[_Time, list[ChainRecord]]] = {}
    for stage, record in groups:
        step = 0 if stage == "distill" else getattr(record, "step", 0)
        found.setdefault(record.qid, {}).setdefault((stage, step), []).append(record)

    def in_order(times: Mapping[_Time, list[ChainRecord]]) -> dict[_Time, list[ChainRecord]]:
        return {time: times[time] for time in sorted(times, key=lambda time: (stages.index(time[0]), time[1]))}

    return {qid: in_order(times) for qid, times in found.items()}


def _most_asked(times: Mapping[str, Mapping[_Time, Any]]) -> list[str]:
    most = max(map(len, times.values()), default=0)
    return [qid for qid in sorted(times) if len(times[qid]) == most] if most > 1 else []


def _gain(line: Mapping[_Time, Sequence[MeasuredChain]]) -> float:
    found = list(line.values())
    return _mean_iou(found[-1]) - _mean_iou(found[0])


def _mean_iou(chains: Sequence[MeasuredChain]) -> float:
    return float(np.mean([chain.answer_iou for chain in chains]))


def _spread(items: Sequence[_T], most: int) -> list[_T]:
    """The first, the last, and others between them at equal distances, `most` at most."""
    if len(items) <= most:
        return list(items)
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def _borders(chains: Sequence[MeasuredChain], duration: float) -> Any:
    """The seconds at which a span begins or ends: between two of them no share changes."""
    parts = [part for each in chains for span in each.chain.steps for part in span.parts]
    ends = {end for part in parts for end in (part.start, part.end)}
    return np.array(sorted({0.0, duration, *(end for end in ends if 0 < end < duration)}))


def _share(chains: Sequence[MeasuredChain], name: str, seconds: Any) -> tuple[Any, int]:
    """Of all chains the share whose step of that name holds each second, and how many have such a step."""
    spans = [bar.span for chain in chains for bar in chain.bars(2) if bar.name == name and bar.span]
    held = np.zeros(len(seconds))
    for part in (part for span in spans for part in span.parts):
        held += (seconds >= part.start) & (seconds < part.end)
    return held / len(chains), len(spans)


def _time_words(time: _Time) -> str:
    stage, step = time
    words = {"grpo": "stage 1", "distill": "harvest", "grpo_final": "stage 3"}.get(stage, style.plain(stage, 20))
    return f"{words}, step {step}" if step else words
