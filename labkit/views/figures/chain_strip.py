"""One chain over its video: frames along time, the truth, and a bar for each anchor and the answer."""

from __future__ import annotations

import base64
import io
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
from labkit.views.measured_chains import (
    ChainRecord,
    MeasuredChain,
    Records,
    measure_chains,
    measure_groups,
    with_predictions,
)

if TYPE_CHECKING:
    from labkit.data.video.frames import Frames


import re
from collections.abc import Iterable

from numpy.typing import NDArray

from labkit.chain.anchors import option_letter

HEIGHT = 72
"""Pixels of a strip of frames."""
WIDTH = 680
"""Pixels that whole frames of a strip fill side by side; in a wider or narrower figure they lose their edges."""


MOST_BARS = 8
"""Anchors drawn of one chain; a line says how many more there are."""
# Pixels, from the top of a chain's block downwards.
_HEADER, _GAP, _ROW, _AXIS, _LINE, _BETWEEN = 28, 5, 27, 30, 17, 22
_LEFT, _RIGHT = 82, 196
_TITLE_LENGTH = 72
THOUGHT_LINES, THOUGHT_WIDTH = 4, 112
"""Of a thought under its bars: lines, and characters of one."""
_HOVER_LINES, _HOVER_WIDTH = 6, 70
_MOST_SPANS = 4
"""Spans of an anchor or answer that are written out."""


class Film(NamedTuple):
    """Small frames (T, H, W, 3) uint8 and the times (T,) in seconds from the clip's beginning at which they show."""

    rgb: NDArray[np.uint8]
    times: NDArray[np.float64]


def film(moment: Moment) -> Film:
    """As many small frames of a moment's clip as fit side by side in a strip, each from the middle of its place.

    Raises LabError when the video is missing or cannot be read.
    """
    from labkit.data.video.frames import probe, thumbnails

    info = probe(moment.video)
    count = places(info.width / info.height)
    times = (np.arange(count) + 0.5) * moment.duration / count
    # A frame past a file's last one is refused by the reader: annotations often run a little longer than the video.
    shown = times[times + moment.start < info.duration]
    if not len(shown):
        shown = times[:1]  # none is left: the reader says so better than an empty strip would
    width = max(1, min(info.width, round(1.6 * HEIGHT * info.width / info.height)))
    return Film(thumbnails(moment.video, shown + moment.start, width), shown)


def places(aspect: float) -> int:
    """How many frames of an aspect ratio (width / height) stand side by side in a strip."""
    return int(np.clip(round(WIDTH / (HEIGHT * aspect)), 3, 14))


def data_uri(rgb: NDArray[np.uint8]) -> str:
    """A frame as a JPEG inside the figure (a few kB)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def chain_picture(record: ChainRecord, moment: Moment, frames: Film | Frames | None = None) -> style.Figure:
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
    return _blocks(title, caption, [_Block("", measured, film(moment) if frames is None else frames)])


def gallery(
    records: Sequence[ChainRecord] | Answers,
    moments: Mapping[str, Moment] | Sequence[Moment],
    ranks: Mapping[str, float] | None = None,
    *,
    rules: str | None = None,
    title: str = "",
) -> style.Figure:
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
    blocks = []
    for index, name in chosen.items():
        measured = measured_chains[index]
        header = f"{_header(name, measured)} · “{style.plain(measured.moment.query, _TITLE_LENGTH)}”"
        try:
            blocks.append(_Block(header, measured, film(measured.moment)))
        except LabError as error:  # the others are still to be seen
            blocks.append(_Block(f"{header} · {style.plain(str(error), _TITLE_LENGTH)}", measured, None))
    caption = (
        f"Of {style.count(len(measured_chains), 'chain')}, ranked by the answer's IoU. Bars: the anchors in order, then the answer; "
        f"green: the truth. {style.plain(note)}"
    )
    return _blocks(style.plain(title), caption, blocks)


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them.

    >>> _listed(["best", "median", "worst"])
    'best, median and worst'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def through_stages(
    records: Records, moments: Mapping[str, Moment], qid: str, frames: Film | Frames | None = None
) -> style.Figure:
    """One query through the stages: the first chain that each label has for it, over the same video.

    Raises LabError when no record is about the query.
    """
    groups = {label: [r for r in g if r.record.qid == qid] for label, g in measure_groups(records, moments).items()}
    measured_chains = {label: g[0] for label, g in groups.items() if g}
    if not measured_chains:
        raise LabError(f"no record has qid '{qid}'; give the qid of a query that was asked")
    moment = moments[qid]
    shown = [film(moment) if frames is None else frames, *[None] * (len(measured_chains) - 1)]
    blocks = [
        _Block(_header(label, measured), measured, strip)
        for (label, measured), strip in zip(measured_chains.items(), shown, strict=True)
    ]
    caption = "The same query at each stage: later chains should narrow more and end nearer to the truth (green)."
    return _blocks(f"“{style.plain(moment.query, _TITLE_LENGTH)}”", caption, blocks)


def _blocks(title: str, caption: str, blocks: Sequence[_Block]) -> style.Figure:
    inner = sum(block.height for block in blocks) + _BETWEEN * (len(blocks) - 1)
    fig = style.figure(title, caption, inner, left=_LEFT, right=_RIGHT, bottom=12, extra=8, showlegend=False)
    fig.update_layout(barmode="overlay")
    top = 0.0
    for number, block in enumerate(blocks, 1):
        block.draw(fig, "" if number == 1 else str(number), top, inner)
        top += block.height + _BETWEEN
    return fig


class _Block:
    """One chain's part of a figure: header, frames, bars and thought, in pixels below its top."""

    def __init__(self, header: str, measured: MeasuredChain, frames: Film | Frames | None) -> None:
        self.header, self.measured, self.moment, self.frames = header, measured, measured.moment, frames
        self.steps = measured.bars(MOST_BARS)
        drawn = len(self.steps) - 1
        # Later anchors are deeper.
        self.colors = [style.rgba(style.ANCHOR, round(0.58 + 0.42 * (k + 1) / drawn, 2)) for k in range(drawn)]
        self.thought = thought_lines(measured, self.colors)
        self.strip_top = _HEADER if header else 0
        self.bars_top = self.strip_top + (0 if frames is None else HEIGHT + _GAP)
        self.bars_end = self.bars_top + _ROW * (1 + len(self.steps))
        self.height = self.bars_end + _AXIS + _LINE * len(self.thought)

    def paper(self, pixels: float) -> float:
        """Plotly's paper coordinate of a pixel row inside the block."""
        return min(1.0, max(0.0, 1 - (self.top + pixels) / self.inner))

    def note(self, text: str, pixels: float, **place: Any) -> None:
        """A line of text whose top is `pixels` below the block's top."""
        where = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "top", "align": "left", **place}
        self.fig.add_annotation(text=text, yref="paper", y=self.paper(pixels), **where)

    def draw(self, fig: style.Figure, axis: str, top: float, inner: float) -> None:
        """Draw on the figure's axes of that number, `top` pixels below the top of a plot area of `inner` pixels."""
        self.fig, self.top, self.inner = fig, top, inner
        self.x, self.y = f"x{axis}", f"y{axis}"
        if self.header:
            self.note(self.header, 2, xshift=12 - _LEFT, font={"size": 13.5})
        fig.update_layout({f"xaxis{axis}": self.seconds_axis(), f"yaxis{axis}": self.rows_axis()})
        for window in self.moment.windows:
            fig.add_shape(
                type="rect", xref=self.x, yref="paper", x0=window.start, x1=window.end, y0=self.paper(self.bars_end),
                y1=self.paper(self.bars_top), fillcolor=style.rgba(style.TRUTH, 0.16), line_width=0, layer="below",
            )  # fmt: skip
        if self.frames is not None:
            self.draw_strip(self.frames)
        self.draw_bars()
        self.write_figures()
        self.note("<br>".join(self.thought), self.bars_end + _AXIS, xshift=12 - _LEFT)

    def seconds_axis(self) -> dict[str, Any]:
        """Time across."""
        return {
            "range": [0, self.moment.duration],
            "anchor": self.y,
            "domain": [0, 1],
            "ticksuffix": " s",
            "zeroline": False,
            "fixedrange": True,
            "nticks": 12,
        }

    def rows_axis(self) -> dict[str, Any]:
        """One row a name downwards."""
        names = ["truth", *(step.name for step in self.steps)]
        return {
            "range": [len(names) - 0.5, -0.5],
            "anchor": self.x,
            "domain": [self.paper(self.bars_end), self.paper(self.bars_top)],
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "showgrid": False,
            "zeroline": False,
            "fixedrange": True,
            "automargin": False,
            "ticklabelstandoff": 6,
        }

    def draw_strip(self, frames: Film | Frames) -> None:
        """The frames in equal places along time, those outside the truth dimmed."""
        times, moment, top = np.asarray(frames.times, dtype=np.float64), self.moment, self.strip_top
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
                xref=self.x, yref="paper", x=middle, y=self.paper(top + HEIGHT / 2), sizex=slot,
                sizey=HEIGHT / self.inner, xanchor="center", yanchor="middle", sizing="fill",
                opacity=1.0 if inside else 0.6, layer="below",
            )  # fmt: skip
        for window in moment.windows:
            self.fig.add_shape(
                type="rect", xref=self.x, yref="paper", x0=window.start, x1=window.end,
                y0=self.paper(top + HEIGHT + 1), y1=self.paper(top - 1), line={"color": style.TRUTH, "width": 3},
            )  # fmt: skip

    def draw_bars(self) -> None:
        """The truth, each anchor and the answer as bars, with the space between two steps shaded like a funnel."""
        moment = self.moment
        query = "<br>".join(style.plain(line) for line in textwrap.wrap(moment.query[:500], 70))
        bars = [(0, window, style.TRUTH, f"<b>truth</b>: {_times(window)} s<br>{query}") for window in moment.windows]
        previous: tuple[int, Span] | None = None
        for row, step in enumerate(self.steps, 1):
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
            said = "<br>".join([words, *words_before(self.measured, step.anchor)])
            color = style.ANSWER if step.anchor is None else self.colors[step.anchor]
            bars += [(row, part, color, said) for part in clipped.parts]
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
        x, y = [above.start, above.end, below.end, below.start], [a + 0.31, a + 0.31, b - 0.31, b - 0.31]
        style.shade(self.fig, x, y, style.ANCHOR, 0.16, xaxis=self.x, yaxis=self.y)

    def write_figures(self) -> None:
        """Times and IoU of each step to the right of its bar, with a sign for better or worse than the step before."""
        windows = self.moment.windows
        rows = [(f"{_times(windows[0])} s" if len(windows) == 1 else f"{len(windows)} windows", "IoU")]
        if not windows:
            rows = [("not told", "")]
        before: float | None = None
        for step in self.steps:
            if step.span is None:
                rows.append(("none read", "<b>0.00</b>" if windows else ""))
                continue
            outside = clip_span(step.span, self.moment.duration) is None
            value = _compared(step.iou, before) if windows else ""
            several = f"{len(step.span.parts)} spans" if len(step.span.parts) > 1 else f"{_times(step.span)} s"
            rows.append(("outside the clip" if outside else several, value))
            before = step.iou
        for row, (times, value) in enumerate(rows):
            middle = self.bars_top + (row + 0.5) * _ROW
            self.note(times, middle, x=1, yanchor="middle", xshift=12)
            self.note(value, middle, x=1, yanchor="middle", xshift=134)


def _compared(iou: float, before: float | None) -> str:
    if before is None:
        return f"<b>{iou:.2f}</b>"
    mark, color = {0: ("=", style.TEXT), 1: ("▲", style.BETTER), -1: ("▼", style.WORSE)}[step_direction(before, iou)]
    return f'<b>{iou:.2f}</b> <span style="color:{color}">{mark}</span>'


def _times(span: Span) -> str:
    parts = ", ".join(f"{style.seconds(part.start)} to {style.seconds(part.end)}" for part in span.parts[:_MOST_SPANS])
    return f"{parts}, ..." if len(span.parts) > _MOST_SPANS else parts


def _funnels(above: Span, below: Span) -> list[tuple[Span, Span]]:
    """The spans of two steps that a shade joins: each to its own where there are as many, else the whole of both."""
    if len(above.parts) != len(below.parts):
        return [(above, below)]
    return list(zip(above.parts, below.parts, strict=True))


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


class _Word(NamedTuple):
    text: str
    color: str | None = None


def thought_lines(measured: MeasuredChain, colors: Sequence[str]) -> list[str]:
    """The text as at most `THOUGHT_LINES` lines of markup, each anchor as `[a to b s]` in the colour of its bar.

    A chosen option stands as `[B ✓]`, or `[B ✗]` where another one is right.
    Where it is longer, the words before each anchor lose their beginning, so that every anchor stays. Anchors beyond
    `colors` have the text's colour. A text that broke the form keeps its tags: they are what went wrong.
    """
    chain = measured.chain
    marks = [
        (a.begin, a.end, _Word(f"[{_times(a.span)} s]", colors[k] if k < len(colors) else style.TEXT))
        for k, a in enumerate(chain.anchors)
    ]
    if chain.answer is not None and chain.answer_chars is not None:
        marks.append((*chain.answer_chars, _Word(f"[{_times(chain.answer)} s]", style.ANSWER)))
    if chain.option is not None and chain.option_chars is not None:
        right = chain.option == measured.moment.choice
        chosen = f"[{option_letter(chain.option)} {'✓' if right else '✗'}]"
        marks.append((*chain.option_chars, _Word(chosen, style.TRUTH if right else style.WORSE)))
    # a hostile text has thousands: those that four lines can hold
    marks = marks[: THOUGHT_LINES * THOUGHT_WIDTH // 20]
    labels = [label for *_, label in marks]
    tags = chain.status not in ("ok", "no_anchor")
    begins, ends = [0, *(end for _, end, _ in marks)], [*(begin for begin, _, _ in marks), len(chain.text)]
    room = int(0.93 * THOUGHT_LINES * THOUGHT_WIDTH) - sum(len(label.text) + 1 for label in labels)
    share = _share([end - begin for begin, end in zip(begins, ends, strict=True)], room)
    words: list[_Word] = []
    for begin, end, label in zip(begins, ends, [*labels, None], strict=True):
        if label is None:
            words += _words(_head(chain.text[begin:], share), tags)
        else:
            words += [*_words(_tail(chain.text, begin, end, share), tags), label]
    return _lines(words, THOUGHT_WIDTH, THOUGHT_LINES) or ["<i>the model wrote nothing</i>"]


def words_before(measured: MeasuredChain, anchor: int | None) -> list[str]:
    """The words that led to an anchor, or with None to the answer, as lines of markup for hovering."""
    chain = measured.chain
    last = len(chain.anchors) if anchor is None else anchor
    begin = chain.anchors[last - 1].end if last else 0
    if anchor is not None:
        end = chain.anchors[anchor].begin
    else:
        end = chain.answer_chars[0] if chain.answer_chars else len(chain.text)
    share = int(0.93 * _HOVER_LINES * _HOVER_WIDTH)
    return _lines(_words(_tail(chain.text, begin, end, share), tags=False), _HOVER_WIDTH, _HOVER_LINES)


def _share(lengths: Sequence[int], room: int) -> int:
    """How many characters each piece may have, so that all together fit and short ones leave theirs to the long."""
    left = max(0, room)
    for place, length in enumerate(sorted(lengths)):
        share = left // (len(lengths) - place)
        if length > share:
            return share
        left -= length
    return max(lengths)


def _tail(text: str, begin: int, end: int, share: int) -> str:
    """The last `share` characters of a piece, from a whole word on."""
    if end - begin <= share:
        return text[begin:end]
    cut = text[max(begin, end - share) : end] if share > 0 else ""
    return f"… {cut.partition(' ')[2] or cut}"


def _head(text: str, share: int) -> str:
    """The first `share` characters, up to a whole word."""
    if len(text) <= share:
        return text
    return f"{text[:share].rpartition(' ')[0] or text[:share]} …"


def _words(text: str, tags: bool) -> list[_Word]:
    if not tags:
        text = re.sub(r"</?think>", " ", text)
    # a word without end must not run out of the picture
    return [_Word(word[i : i + 60]) for word in text.split() for i in range(0, len(word), 60)]


def _lines(words: Iterable[_Word], width: int, lines: int) -> list[str]:
    rows: list[list[_Word]] = [[]]
    used = 0
    for word in words:
        if used and used + 1 + len(word.text) > width:
            if len(rows) == lines:
                rows[-1].append(_Word("…"))
                break
            rows.append([])
            used = 0
        rows[-1].append(word)
        used += 1 + len(word.text)
    return [" ".join(_marked(word) for word in row) for row in rows if row]


def _marked(word: _Word) -> str:
    text = style.plain(word.text)
    return text if word.color is None else f'<b><span style="color:{word.color}">{text}</span></b>'
