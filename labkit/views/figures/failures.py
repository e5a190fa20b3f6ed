"""The failure atlas: every wrong chain in one named class, and how often each class occurs in each stage.

The classes don't overlap and leave nothing out. A chain is right exactly when it counts for R1 at the same threshold,
so that a share of the atlas and a score never contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from labkit.chain.spans import iou
from labkit.chain.steps import COPY_IOU, CORRECT_IOU, clip_spans, copies
from labkit.data.moments import Moment
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains
from labkit.views.measured_chains import MeasuredChain, Records, measure_groups

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "cut_off": "the token limit came before the answer",
        "no_answer": "nothing could be read as an answer",
        "past_the_end": "most of the answer lies behind the end of the clip",
        "copied_anchor": "the answer, or an anchor, repeats an earlier anchor",
        "right_then_left": "an anchor was right, the answer is not",
        "too_few_spans": "the answer meets the truth in fewer spans than it happens",
        "too_many_spans": "the answer meets the truth in more spans than it happens",
        "wrong_extent": "the right event: the answer meets the truth, but begins or ends at the wrong time",
        "narrowed_elsewhere": "the answer is shorter than the first anchor by more than a copy, and misses the truth",
        "never_narrowed": "the answer misses the truth, and nothing was narrowed on the way",
    }
)
"""What each class of failure means."""
KINDS = tuple(MEANINGS)
_OF_SETS = ("too_few_spans", "too_many_spans")
"""The classes of failure, in the order in which they are looked for; the first one that fits is the chain's.

First what left nothing to judge, then what went wrong on the way, then where the answer lies.
"""
_ROW = 46
"""Pixels of a class in the figure: a line of words, and the bars under it."""


def failure_kind(measured: MeasuredChain, *, right: float = CORRECT_IOU) -> str:
    """What is wrong with a chain, one of `KINDS`; "" when its answer reaches the IoU `right` with the best window.

    A chain is judged as it is scored: cut to the clip. So an answer that is complete and right stays right where the
    text behind it was cut off, and an answer that only ends behind the clip is judged by what lies inside. Where nobody has told
    the truth, only what is wrong whatever the truth is has a class.
    Source: our choice.
    """
    chain, ious, moment = measured.chain, measured.ious, measured.moment
    answer = chain.answer
    if answer is None:
        return "cut_off" if chain.status == "cut_off" else "no_answer"
    value = ious[-1]
    if value >= right:
        return ""
    if answer.middle > moment.duration:
        return "past_the_end"
    if math.isnan(value):
        return ""
    spans = clip_spans(chain.steps, moment.duration)
    if any(copies(spans)):
        return "copied_anchor"
    if max(ious) >= right:
        return "right_then_left"
    if value > 0:
        happens = len(max(moment.targets, key=lambda window: iou(answer, window)).parts)
        found = len(answer.parts)
        return "too_few_spans" if found < happens else "too_many_spans" if found > happens else "wrong_extent"
    # A span inside another has their ratio of lengths as IoU: what is longer than this would be a copy in its place.
    return "narrowed_elsewhere" if spans[-1].length < COPY_IOU * spans[0].length else "never_narrowed"


def by_failure(chains: Iterable[MeasuredChain], *, right: float = CORRECT_IOU) -> dict[str, list[MeasuredChain]]:
    """The chains that are right ("", first) and those of each class, in the order of `KINDS`; none too."""
    found: dict[str, list[MeasuredChain]] = {kind: [] for kind in ("", *KINDS)}
    for each in chains:
        found[failure_kind(each, right=right)].append(each)
    return found


def atlas(records: Records, moments: Mapping[str, Moment], *, right: float = CORRECT_IOU) -> style.Figure:
    """Counts of the classes of failure, a panel for each stage; classes that no chain falls into are only named.

    Bars are shares of all chains of the stage, right ones included, so that stages with fewer failures look like it.
    """
    title = "Failure atlas: how wrong chains go wrong"
    groups = measure_groups(records, moments)
    classed = {label: by_failure(chains, right=right) for label, chains in groups.items()}
    counts = {label: {kind: len(found) for kind, found in each.items()} for label, each in classed.items()}
    if not counts:
        return style.nothing(title, "there are no chains")
    rows = [kind for kind in KINDS if any(each[kind] for each in counts.values())]
    if not rows:
        chains = style.count(sum(each[""] for each in counts.values()), "chain")
        return style.nothing(title, f"of {chains} every answer reaches IoU {right:g}")
    titles = [
        f"<b>{style.plain(label, 22)}</b><br>{style.percent(1 - each[''] / sum(each.values()))} of "
        f"{sum(each.values()):,} wrong"
        for label, each in counts.items()
    ]
    fig, places = style.panels(
        titles,
        title,
        _caption(counts, rows, right),
        _ROW * len(rows),
        columns=5,
        gap=0.05,
        bottom=30,
        shared_yaxes=True,
    )
    look = style.looks(counts)
    held = HeldChains(groups)
    hover = "%{customdata[0]}: %{customdata[1]:,} of %{customdata[2]:,} chains (%{x:.1f} %)<extra></extra>"
    highest = 0.0
    for (row, column), (label, each) in zip(places, counts.items(), strict=True):
        total = sum(each.values())
        shares = [100 * each[kind] / total for kind in rows]
        highest = max(highest, *shares)
        where: dict[str, Any] = {"row": row, "col": column}
        # A line from which the bars grow, with gaps, so that none crosses the words.
        fig.add_scatter(
            x=[x for _ in rows for x in (0, 0, None)],
            y=[y for place in range(len(rows)) for y in (place - 0.26, place + 0.26, None)],
            mode="lines",
            line={"color": style.FAINT, "width": 1},
            hoverinfo="skip",
            **where,
        )
        fig.add_bar(
            x=shares,
            y=list(range(len(rows))),
            width=0.36,
            orientation="h",
            marker={"color": look[label].color, "line": {"width": 0}},
            text=[f"{each[kind]:,}" for kind in rows],
            textposition="outside",
            textfont={"color": style.TEXT},
            cliponaxis=False,
            customdata=[[spoken(kind), each[kind], total] for kind in rows],
            meta=held.points([classed[label][kind] for kind in rows], [*map(spoken, rows)]),
            hovertemplate=hover,
            **where,
        )
        # A bar of two chains is two pixels wide: its end can be met, too.
        fig.add_scatter(
            x=shares, y=list(range(len(rows))), mode="markers", marker={"size": 20, "color": "rgba(0, 0, 0, 0)"},
            customdata=fig.data[-1].customdata, meta=fig.data[-1].meta, hovertemplate=hover, cliponaxis=False, **where,
        )  # fmt: skip
        if column == 1:
            for place, kind in enumerate(rows):
                fig.add_annotation(
                    text=f"<b>{spoken(kind)}</b>  {MEANINGS[kind]}", x=0, y=place - 0.42, xanchor="left",
                    **where,
                )  # fmt: skip
    fig.update_xaxes(range=[0, highest * 1.3], ticksuffix=" %", nticks=4, showgrid=False, zeroline=False)
    fig.update_yaxes(range=[len(rows) - 0.7, -0.7], showticklabels=False, showgrid=False, zeroline=False)
    return held.write(fig.update_layout(showlegend=False, margin_l=18))


def spoken(kind: str) -> str:
    """A class as a reader sees it.

    >>> spoken("past_the_end"), spoken("")
    ('past the end', 'right')
    """
    return kind.replace("_", " ") or "right"


def _caption(counts: Mapping[str, Mapping[str, int]], rows: Sequence[str], right: float) -> str:
    # Of the stages the last is the product; without stages, whatever came last.
    label = next((stage for stage in reversed(style.STAGES) if stage in counts), [*counts][-1])
    last = counts[label]
    wrong, most = sum(last[kind] for kind in rows), max(last[kind] for kind in rows)
    often = " and ".join(f"'{spoken(kind)}'" for kind in rows if last[kind] == most)
    most_often = f" Most often in {style.plain(label, 40)}, among {wrong:,} wrong: {often}." if wrong else ""
    absent = [spoken(kind) for kind in KINDS if kind not in (*rows, *_OF_SETS)]
    return (
        f"Bars: share of all chains; numbers: chains. Wrong is an answer below IoU {right:g}; a wrong chain stands in the "
        f"first class that fits.{most_often}" + (f" No chain falls into: {', '.join(absent)}." if absent else "")
    )
