"""One chain over its video: frames along time, the truth, and a bar for each anchor and the answer."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.chain.spans import Span, clip_span
from labkit.chain.steps import step_direction
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.predictions import Answers
from labkit.views.figures import style
from labkit.views.figures.frames import HEIGHT as _STRIP
from labkit.views.figures.frames import Film, data_uri, film, places
from labkit.views.figures.thoughts import thought_lines, words_before
from labkit.views.measured_chains import (
    ChainRecord,
    MeasuredChain,
    Records,
    measure_chains,
    measure_groups,
    with_predictions,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from labkit.data.video.frames import Frames

MOST_BARS = 8
"""Anchors drawn of one chain; a line says how many more there are."""
# Pixels, from the top of a chain's block downwards.
_HEADER, _GAP, _ROW, _AXIS, _LINE, _BETWEEN = 28, 5, 27, 30, 17, 22
_LEFT, _RIGHT = 82, 196
_TITLE_LENGTH = 72


def chain_picture(record: ChainRecord, moment: Moment, frames: Film | Frames | None = None) -> go.Figure:
    """One chain over its video: the frames, the truth in green, a bar for each anchor and the answer, and the thought.

    `frames` are those to choose from; without them they are read from the video. Hover a bar for the words before it.
    """
    measured = measure_chains([record], {moment.qid: moment})[0]
    caption = _remarks(measured) + (
        f"IoU of the answer: <b>{measured.answer_iou:.2f}</b>. "
        "Anchor by anchor, the bars should close in on the truth (green)."
        if moment.has_truth
        else "Nobody has said when it happens: there is no truth, and no IoU."
    )
    title = f"“{style.plain(moment.query, _TITLE_LENGTH)}”"
    return _blocks(title, caption, [("", measured, film(moment) if frames is None else frames)])


def gallery(
    records: Sequence[ChainRecord] | Answers,
    moments: Mapping[str, Moment] | Sequence[Moment],
    ranks: Mapping[str, float] | None = None,
    *,
    rules: str | None = None,
    title: str = "",
) -> go.Figure:
    """Several chains over their videos, one under the other, chosen by their rank in the answer's IoU.

    `ranks` names places between 0 (worst) and 1 (best); None means best, median and worst. Among chains of equal IoU
    the one that gained most since its first anchor stands higher. Without a `title` the names of the ranks are the
    title. Frames are read from the moments' videos. Whatever `labkit.score` takes is shown as its `rules` read it.
    """
    by_qid = moments if isinstance(moments, Mapping) else {moment.qid: moment for moment in moments}
    chains, note = with_predictions(records, list(by_qid.values()), rules)
    ranks = {"best": 1.0, "median": 0.5, "worst": 0.0} if ranks is None else ranks
    if wrong := [name for name, rank in ranks.items() if not 0 <= rank <= 1]:
        raise LabError(f"rank '{wrong[0]}' of a gallery is {ranks[wrong[0]]}; give a place from 0 (worst) to 1 (best)")
    if not title:
        names = _listed(list(ranks))
        title = f"{names[:1].upper()}{names[1:]} of the chains" if names else "Chains"
    measured_chains = sorted(measure_chains(chains, by_qid), key=lambda r: (r.answer_iou, _gain(r), r.record.qid))
    if not measured_chains or not ranks:
        return style.nothing(style.plain(title), "there are no chains")
    chosen: dict[int, str] = {}
    for name, rank in ranks.items():
        index = round(rank * (len(measured_chains) - 1))
        # with one or two chains several ranks fall on the same one, which is drawn once under all its names
        chosen[index] = f"{chosen[index]}, {name}" if index in chosen else name
    blocks: list[tuple[str, MeasuredChain, Film | Frames | None]] = []
    for index, name in chosen.items():
        measured = measured_chains[index]
        header = f"{_header(name, measured)} · “{style.plain(measured.moment.query, _TITLE_LENGTH)}”"
        try:
            frames = film(measured.moment)
        except LabError as error:  # the others are still to be seen
            frames, header = None, f"{header} · {style.plain(str(error), _TITLE_LENGTH)}"
        blocks.append((header, measured, frames))
    caption = (
        f"Of {style.count(len(measured_chains), 'chain')}, ranked by the answer's IoU. Bars: the anchors in order, then the answer; "
        f"green: the truth. {style.plain(note)}"
    ).rstrip()
    return _blocks(style.plain(title), caption, blocks)


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    >>> _listed(["best", "median", "worst"])
    'best, median and worst'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def through_stages(
    records: Records, moments: Mapping[str, Moment], qid: str, frames: Film | Frames | None = None
) -> go.Figure:
    """One query through the stages: the first chain that each label has for it, over the same video.

    Raises LabError when no record is about the query.
    """
    groups = {label: [r for r in g if r.record.qid == qid] for label, g in measure_groups(records, moments).items()}
    measured_chains = {label: g[0] for label, g in groups.items() if g}
    if not measured_chains:
        raise LabError(f"no record has qid '{qid}'; give the qid of a query that was asked")
    moment = moments[qid]
    blocks: list[tuple[str, MeasuredChain, Film | Frames | None]] = []
    for label, measured in measured_chains.items():
        blocks.append((_header(label, measured), measured, None))
    header, first, _ = blocks[0]
    blocks[0] = (header, first, film(moment) if frames is None else frames)
    caption = "The same query at each stage: later chains should narrow more and end nearer to the truth (green)."
    return _blocks(f"“{style.plain(moment.query, _TITLE_LENGTH)}”", caption, blocks)


def _blocks(title: str, caption: str, blocks: Sequence[tuple[str, MeasuredChain, Film | Frames | None]]) -> go.Figure:
    thoughts = [thought_lines(measured, _colors(measured)) for _, measured, _ in blocks]
    heights = [
        (_HEADER if header else 0)
        + (0 if frames is None else _STRIP + _GAP)
        + _ROW * _rows(measured)
        + _AXIS
        + _LINE * len(thought)
        for (header, measured, frames), thought in zip(blocks, thoughts, strict=True)
    ]
    inner = sum(heights) + _BETWEEN * (len(blocks) - 1)
    fig = style.figure(title, caption, inner, left=_LEFT, right=_RIGHT, bottom=12, extra=8, showlegend=False)
    fig.update_layout(barmode="overlay")
    top = 0.0
    for number, ((header, measured, frames), thought, height) in enumerate(
        zip(blocks, thoughts, heights, strict=True), 1
    ):
        _Block(fig, number, top, inner).draw(header, measured, frames, thought)
        top += height + _BETWEEN
    return fig


class _Block:
    """One chain's part of a figure, `top` pixels below the top of a plot area of `inner` pixels."""

    def __init__(self, fig: go.Figure, number: int, top: float, inner: float) -> None:
        self.fig, self.top, self.inner = fig, top, inner
        suffix = "" if number == 1 else str(number)
        self.x, self.y = f"x{suffix}", f"y{suffix}"
        self.axes = (f"xaxis{suffix}", f"yaxis{suffix}")

    def paper(self, pixels: float) -> float:
        """Plotly's paper coordinate of a pixel row inside the block."""
        return min(1.0, max(0.0, 1 - (self.top + pixels) / self.inner))

    def note(self, text: str, pixels: float, **place: Any) -> None:
        """A line of text whose top is `pixels` below the block's top."""
        where = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "top", "align": "left", **place}
        self.fig.add_annotation(text=text, yref="paper", y=self.paper(pixels), **where)

    def draw(self, header: str, measured: MeasuredChain, frames: Film | Frames | None, thought: Sequence[str]) -> None:
        """Draw header, frames, truth, bars, figures and thought, from top to bottom."""
        moment, steps = measured.moment, _steps(measured)
        strip = _HEADER if header else 0
        bars = strip + (0 if frames is None else _STRIP + _GAP)
        end = bars + _rows(measured) * _ROW
        if header:
            self.note(header, 2, xshift=12 - _LEFT, font={"size": 13.5})
        self.add_axes(moment.duration, ["truth", *(step.name for step in steps)], bars, end)
        for window in moment.windows:
            box = {"type": "rect", "xref": self.x, "yref": "paper", "x0": window.start, "x1": window.end}
            ends = {"y0": self.paper(end), "y1": self.paper(bars)}
            self.fig.add_shape(fillcolor=style.rgba(style.TRUTH, 0.16), line_width=0, layer="below", **ends, **box)
        if frames is not None:
            self.strip(frames, moment, strip)
        self.bars(measured, steps)
        self.figures(measured, steps, bars)
        self.note("<br>".join(thought), end + _AXIS, xshift=12 - _LEFT)

    def add_axes(self, duration: float, names: Sequence[str], top: float, end: float) -> None:
        """Time across, one row a name downwards, between two pixel rows."""
        seconds = {
            "range": [0, duration],
            "anchor": self.y,
            "domain": [0, 1],
            "ticksuffix": " s",
            "zeroline": False,
            "fixedrange": True,
            "nticks": 12,
        }
        rows = {
            "range": [len(names) - 0.5, -0.5],
            "anchor": self.x,
            "domain": [self.paper(end), self.paper(top)],
            "tickvals": list(range(len(names))),
            "ticktext": list(names),
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "automargin": False,
            "ticklabelstandoff": 6,
        }
        self.fig.update_layout({self.axes[0]: seconds, self.axes[1]: rows})

    def strip(self, frames: Film | Frames, moment: Moment, top: float) -> None:
        """The frames in equal places along time, those outside the truth dimmed."""
        times = np.asarray(frames.times, dtype=np.float64)
        if not len(times):
            return
        height, width = frames.rgb.shape[1:3]
        slot = moment.duration / places(width / height)
        for place in range(places(width / height)):
            middle = (place + 0.5) * slot
            nearest = int(np.abs(times - middle).argmin())
            if abs(times[nearest] - middle) > slot:
                continue  # the video is shorter than its annotation says: nothing is shown where nothing was seen
            inside = not moment.has_truth or any(
                w.start < middle + slot / 2 and middle - slot / 2 < w.end for w in moment.windows
            )
            # In a figure wider than it was composed for a frame fills its place and loses its edges: no gaps.
            self.fig.add_layout_image(
                source=data_uri(frames.rgb[nearest]),
                xref=self.x, yref="paper", x=middle, y=self.paper(top + _STRIP / 2), sizex=slot,
                sizey=_STRIP / self.inner, xanchor="center", yanchor="middle", sizing="fill",
                opacity=1.0 if inside else 0.6, layer="below",
            )  # fmt: skip
        for window in moment.windows:
            self.fig.add_shape(
                type="rect", xref=self.x, yref="paper", x0=window.start, x1=window.end,
                y0=self.paper(top + _STRIP + 1), y1=self.paper(top - 1), line={"color": style.TRUTH, "width": 3},
            )  # fmt: skip

    def bars(self, measured: MeasuredChain, steps: Sequence[_StepRow]) -> None:
        """The truth, each anchor and the answer as bars, with the space between two steps shaded like a funnel."""
        moment = measured.moment
        query = "<br>".join(style.plain(line) for line in textwrap.wrap(moment.query[:500], 70))
        bars = [(0, window, style.TRUTH, f"<b>truth</b>: {_times(window)} s<br>{query}") for window in moment.windows]
        previous: tuple[int, Span] | None = None
        for row, step in enumerate(steps, 1):
            clipped = step.span and clip_span(step.span, moment.duration)
            if step.span is None or clipped is None:
                previous = None
                continue
            if previous is not None and moment.has_truth:
                for upper, lower in _funnels(previous[1], clipped):
                    self.funnel((previous[0], upper), (row, lower))
            previous = (row, clipped)
            words = f"<b>{step.name}</b>: {_times(step.span)} s" + (
                f", IoU {step.iou:.3f}" if moment.has_truth else ""
            )
            said = "<br>".join([words, *words_before(measured, step.anchor)])
            bars += [(row, part, step.color, said) for part in clipped.parts]
        self.fig.add_bar(
            base=[span.start for _, span, _, _ in bars],
            x=[span.length for _, span, _, _ in bars],
            y=[row for row, _, _, _ in bars],
            orientation="h",
            width=[0.3 if row == 0 else 0.62 for row, _, _, _ in bars],
            marker={"color": [color for _, _, color, _ in bars], "cornerradius": 4, "line": {"width": 0}},
            hovertext=[text for _, _, _, text in bars],
            hoverinfo="text",
            xaxis=self.x,
            yaxis=self.y,
        )

    def funnel(self, upper: tuple[int, Span], lower: tuple[int, Span]) -> None:
        """The shade between two steps."""
        (a, above), (b, below) = upper, lower
        self.fig.add_scatter(
            x=[above.start, above.end, below.end, below.start],
            y=[a + 0.31, a + 0.31, b - 0.31, b - 0.31],
            fill="toself",
            fillcolor=style.rgba(style.ANCHOR, 0.16),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
            xaxis=self.x,
            yaxis=self.y,
        )

    def figures(self, measured: MeasuredChain, steps: Sequence[_StepRow], top: float) -> None:
        """Times and IoU of each step to the right of its bar, with a sign for better or worse than the step before."""
        windows = measured.moment.windows
        rows = [(f"{_times(windows[0])} s" if len(windows) == 1 else f"{len(windows)} windows", "IoU")]
        if not windows:
            rows = [("not told", "")]
        before: float | None = None
        for step in steps:
            if step.span is None:
                rows.append(("none read", "<b>0.00</b>" if windows else ""))
                continue
            outside = clip_span(step.span, measured.moment.duration) is None
            value = _compared(step.iou, before) if windows else ""
            several = f"{len(step.span.parts)} spans" if len(step.span.parts) > 1 else f"{_times(step.span)} s"
            rows.append(("outside the clip" if outside else several, value))
            before = step.iou
        for row, (times, value) in enumerate(rows):
            middle = top + (row + 0.5) * _ROW
            self.note(times, middle, x=1, yanchor="middle", xshift=12)
            self.note(value, middle, x=1, yanchor="middle", xshift=134)


class _StepRow(NamedTuple):
    """A row of the picture; `anchor` is the anchor's place in the chain, None for the answer."""

    name: str
    span: Span | None
    iou: float
    color: str
    anchor: int | None


def _steps(measured: MeasuredChain) -> list[_StepRow]:
    """The drawn anchors, then the answer, whose span is None when none was read."""
    chain, colors = measured.chain, _colors(measured)
    steps = [
        _StepRow(f"anchor {k + 1}", anchor.span, iou, color, k)
        for k, (anchor, iou, color) in enumerate(zip(chain.anchors, measured.anchor_ious, colors, strict=False))
    ]
    return [*steps, _StepRow("answer", chain.answer, measured.answer_iou, style.ANSWER, None)]


def _colors(measured: MeasuredChain) -> list[str]:
    """Colours of the anchors that are drawn; later ones are deeper."""
    drawn = min(len(measured.chain.anchors), MOST_BARS)
    return [style.rgba(style.ANCHOR, round(0.58 + 0.42 * (k + 1) / drawn, 2)) for k in range(drawn)]


def _compared(iou: float, before: float | None) -> str:
    if before is None:
        return f"<b>{iou:.2f}</b>"
    mark, color = {0: ("=", style.TEXT), 1: ("▲", style.BETTER), -1: ("▼", style.WORSE)}[step_direction(before, iou)]
    return f'<b>{iou:.2f}</b> <span style="color:{color}">{mark}</span>'


def _times(span: Span) -> str:
    return ", ".join(f"{style.seconds(part.start)} to {style.seconds(part.end)}" for part in span.parts)


def _funnels(above: Span, below: Span) -> list[tuple[Span, Span]]:
    """The spans of two steps that a shade joins: each to its own where there are as many, else the whole of both."""
    if len(above.parts) != len(below.parts):
        return [(above, below)]
    return list(zip(above.parts, below.parts, strict=True))


def _rows(measured: MeasuredChain) -> int:
    return 2 + min(len(measured.chain.anchors), MOST_BARS)


def _gain(measured: MeasuredChain) -> float:
    return measured.answer_iou - measured.ious[0] if measured.chain.anchors else 0.0


def _header(name: str, measured: MeasuredChain) -> str:
    value = f"IoU {measured.answer_iou:.2f}" if measured.moment.has_truth else "no truth, no IoU"
    return f"<b>{style.plain(name, 40)}</b>: {_remarks(measured)}{value}"


def _remarks(measured: MeasuredChain) -> str:
    """What the picture does not show: a broken form, of which only what could be read is drawn, and further anchors."""
    status = "" if measured.chain.status == "ok" else f"Status <b>{measured.chain.status}</b>. "
    more = len(measured.chain.anchors) - MOST_BARS
    return status + (f"Not drawn: {style.count(more, 'more anchor')}. " if more > 0 else "")
