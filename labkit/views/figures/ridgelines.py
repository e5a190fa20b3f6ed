"""One query's samples each time that a training asked it: where its anchors and its answers lay, as ridgelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np

from labkit.chain.anchors import ChainRecord
from labkit.data.moments import Moment
from labkit.views.figures import style
from labkit.views.measured_chains import MeasuredChain, Records, by_stage, measure_chains, step_names

MOST_RIDGES = 8
"""Of more times of asking, as many are drawn, spread over the training."""
_CANDIDATES = 40
"""Queries among which the one to show is chosen, spread over those that were asked most often."""
_ROW = 74
_LOOKS = {"anchor 1": ("#8fbde8", 0.32), "anchor 2": (style.ANCHOR, 0.36), "answer": (style.ANSWER, 0.1)}

_Item = TypeVar("_Item")
_Time: TypeAlias = tuple[str, int]
"""A stage and a step of it; of a harvest, which is no training, all of it."""


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
                f"<br>{_named(time)}<extra></extra>",
            )
    for window in moment.windows:
        fig.add_vrect(window.start, window.end, fillcolor=style.TRUTH, opacity=0.16, line_width=0, layer="below")
    labels = [f"{_named(time)}<br><i>IoU {_mean_iou(line[time]):.2f}</i>" for time in shown]
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

    def order(time: _Time) -> tuple[int, int]:
        return stages.index(time[0]), time[1]

    return {qid: {time: each[time] for time in sorted(each, key=order)} for qid, each in found.items()}


def _most_asked(times: Mapping[str, Mapping[_Time, Any]]) -> list[str]:
    most = max(map(len, times.values()), default=0)
    return [qid for qid in sorted(times) if len(times[qid]) == most] if most > 1 else []


def _gain(line: Mapping[_Time, Sequence[MeasuredChain]]) -> float:
    found = list(line.values())
    return _mean_iou(found[-1]) - _mean_iou(found[0])


def _mean_iou(chains: Sequence[MeasuredChain]) -> float:
    return float(np.mean([chain.answer_iou for chain in chains]))


def _spread(items: Sequence[_Item], most: int) -> list[_Item]:
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
    place = None if name == "answer" else step_names(2).index(name)
    held, count = np.zeros(len(seconds)), 0
    for each in chains:
        anchors = each.chain.anchors
        span = each.chain.answer if place is None else anchors[place].span if place < len(anchors) else None
        if span is not None:
            for part in span.parts:
                held += (seconds >= part.start) & (seconds < part.end)
            count += 1
    return held / len(chains), count


def _named(time: _Time) -> str:
    stage, step = time
    words = {"grpo": "stage 1", "distill": "harvest", "grpo_final": "stage 3"}.get(stage, style.plain(stage, 20))
    return f"{words}, step {step}" if step else words
