"""A stage of GRPO on the screen while it runs: its panels, and the chains of its newest step in the explorer.

Watching must not cost what is watched: a monitor times itself, and draws only while that stays below a small share of
the time gone by. At the end it always draws.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment
from labkit.runs.trackers import TrackedChain
from labkit.stages.rollouts import Rollout, RolloutStore
from labkit.views.explorer.sprites import SheetCache
from labkit.views.explorer.still import draw_still
from labkit.views.explorer.widget import ChainExplorer, explore
from labkit.views.figures import style
from labkit.views.figures.renderer import setup
from labkit.views.figures.style import count
from labkit.views.figures.training import REWARDS, SHARES, Curve, curve, draw_curve, reward_lines
from labkit.views.measured_chains import measure_chains

SHARE = 0.015
"""Of the time gone by, the most that is drawn in."""
EVERY = 10.0
"""Seconds, at least, between two changes of the chains that are shown: somebody may be reading them."""
CLIPS = 6
"""Clips that a saved notebook holds with the chains of the last step."""


class Monitor:
    """Shows how a stage goes; call it with the row of each step, and `end` with all of them.

    Outside of a notebook it does nothing. It never ends a training: what goes wrong in it is logged, and it stops.
    """

    def __init__(
        self,
        stage: str,
        steps: int,
        store: RolloutStore,
        moments: Sequence[Moment],
        *,
        spec: RewardSpec | None = None,
        folder: str | Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`steps` are those to come; `store` holds the stage's rollouts of `moments`, paid by `spec`.

        `folder` keeps the clips' pictures, as `explore` does.
        """
        self.stage, self.steps, self.store, self.clock = stage, steps, store, clock
        self.rows: list[Mapping[str, Any]] = []
        self.why = ""
        self.spent = 0.0
        """Seconds that drawing took while the stage ran."""
        self.costs = {"panels": 0.01, "chains": 0.1}
        """What each took last, or at first a guess, in seconds."""
        self.shown = _in_notebook()
        if self.shown:
            # Both have their places now, above all that is printed while the stage runs.
            self._panels = _place(f"{stage}: waiting for the first step")
            self._chains = _place(f"{stage}: the chains of its newest step will stand here")
            self.explorer = explore([], moments, spec=spec, folder=folder, clips=0)
            self.explorer.view = "group"
        self.begin, self.changed = clock(), -EVERY

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of steps that were taken before."""
        self.rows = list(rows)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take the row of a step, and show it as soon as that is cheap enough."""
        self.rows.append(row)
        if self._may("panels"):
            self._timed("panels", self._show_panels)
        if self._may("chains") and self.clock() - self.changed >= EVERY:
            self._timed("chains", self._show_chains)

    def end(self, rows: Sequence[Mapping[str, Any]], why: str = "") -> None:
        """Show all steps as figures are shown, with a picture for viewers that run nothing.

        `why` says what ended the stage before all of its steps were taken.
        """
        self.rows, self.why = list(rows), why
        if self.shown:
            self._draw_safely(self._show_end)

    def _may(self, what: str) -> bool:
        return self.shown and self.spent + self.costs[what] <= SHARE * (self.clock() - self.begin)

    def _timed(self, what: str, draw: Callable[[], None]) -> None:
        begin = self.clock()
        self._draw_safely(draw)
        self.costs[what] = self.clock() - begin
        self.spent += self.costs[what]

    def _draw_safely(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # whatever it is: hours of training are worth more than a look at them
            self.shown = False
            logging.getLogger("labkit.views").warning("%s goes on without being shown: %r", self.stage, error)

    def _show_panels(self) -> None:
        text = f"{self.stage}: step {self.rows[-1]['step']} of {self.steps}"
        self._panels.update({"text/html": panels_svg(self.rows, self.steps), "text/plain": text}, raw=True)

    def _show_chains(self) -> None:
        first = not len(self.explorer)
        self.explorer.update(self.store.newest())
        if first:  # from then on the widget changes by itself
            self._chains.update(**_bundle(self.explorer, poster=False), raw=True)
        self.changed = self.clock()

    def _show_end(self) -> None:
        import plotly.io as pio

        setup()
        figure = panels_figure(f"{self.stage}, {count(len(self.rows), 'step')}", self.rows, self.why)
        self._panels.update(pio.renderers["labkit"].to_mimebundle(figure.to_dict()), raw=True)
        self.explorer.update(self.store.newest(), clips=CLIPS)
        self._chains.update(**_bundle(self.explorer, poster=True), raw=True)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None


def _place(text: str) -> Any:
    """A place in the output of the running cell, for what comes later."""
    from IPython.display import display

    return display({"text/plain": text}, raw=True, display_id=True)


def _bundle(explorer: ChainExplorer, poster: bool) -> dict[str, Any]:
    """What a notebook shows of a widget, as a display takes it; the poster takes as long as a step."""
    data, metadata = explorer.bundle(explorer._poster() if poster else None)
    return {"obj": data, "metadata": metadata}


def tracked_chains(rollouts: Sequence[Rollout], moments: Sequence[Moment], sheets: Path) -> list[TrackedChain]:
    """The best, the median and the worst of a step's rollouts by the IoU of the answer; `sheets` keeps the clips' pictures."""
    rows = measure_chains(rollouts, {moment.qid: moment for moment in moments})
    order = sorted(range(len(rows)), key=lambda at: (-rows[at].answer_iou, at))
    cache, shown = SheetCache(sheets), []
    for name, place in {"best": 0, "median": len(order) // 2, "worst": -1}.items() if order else ():
        row = rows[order[place]]
        moment = row.moment
        sheet, problem = cache.get_or_problem(moment.video, moment.duration, moment.start)
        caption = f"step {rollouts[0].step}: the {name} of {len(rows):,} chains"
        picture = draw_still(rows, order[place], sheet, caption, problem)
        text = f"{moment.query}\n{row.record.text}\nIoU {row.answer_iou:.2f}"
        shown.append(TrackedChain(name, text, picture))
    return shown


class Panel(NamedTuple):
    """One panel: what stands above it, and its lines by their names in a history."""

    title: str
    lines: Mapping[str, tuple[str, style.Look]]
    place: tuple[int, float, float]
    """Its row, and where across the whole width it begins and ends."""
    range: tuple[float, float] | None = None
    """None: what the lines need."""
    percent: bool = False


PANELS = (
    Panel("mean reward by term", REWARDS, (1, 0.0, 0.46)),
    Panel(
        "IoU of each step, in chains with anchors",
        {
            "iou_first": ("first", style.Look("#4aa5dd", "circle", "dot")),
            "iou_last": ("last anchor", style.Look("#2563b8", "circle", "dash")),
            "iou_answer": ("answer", style.Look(style.ANSWER, "circle", "solid")),
        },
        (1, 0.55, 1.0),
        (0, 1),
    ),
    Panel("share of chains that", SHARES, (2, 0.0, 0.27), (0, 100), percent=True),
    Panel("entropy of a token", {"entropy": ("nats", style.Look("#3a9c9c", "circle", "solid"))}, (2, 0.365, 0.635)),
    Panel(
        "groups that teach nothing",
        {"silent_share": ("all earn the same", style.Look("#7b62c9", "circle", "solid"))},
        (2, 0.73, 1.0),
        (0, 100),
        percent=True,
    ),
)
_STROKES = {"solid": "", "dash": "6 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "10 4"}
_SAMPLES = {"solid": "━", "dash": "╍", "dot": "┅", "dashdot": "╍·", "longdash": "━╸"}
_LEFT, _ACROSS, _RIGHT = 44, 740, 36
"""Pixels of a picture's width: the numbers of the first panel, all panels, and room for names that are longer than theirs."""
_ABOVE, _INNER, _BELOW = 60, 130, 28
"""Pixels of a row of panels: names, panels, steps."""


class PanelLine(NamedTuple):
    """A line of a panel."""

    label: str
    look: style.Look
    curve: Curve


def panels_figure(title: str, history: Sequence[Mapping[str, Any]], why: str = "") -> style.Figure:
    """The panels of a stage that has ended; `history` has a row a step, as `GrpoResult.history`, `why` says what ended it."""
    drawn = [list(_lines(panel, history)) for panel in PANELS]
    if not any(drawn):
        return style.nothing(style.plain(title), "no step was recorded")
    caption = f"{style.plain(why[:1].upper() + why[1:])}. " if why else ""
    caption += (
        "Dots: each step; lines: smoothed, and the number is where a line ends. The policy learns nothing from a group whose "
        "chains all earned the same, and explores no more once the entropy is gone."
    )
    headings = [_heading(panel, lines) for panel, lines in zip(PANELS, drawn, strict=True)]
    grid = [[{}, None, {}], [{}, {}, {}]]
    fig, _ = style.panels(headings, style.plain(title), caption, 150, columns=3, between=92, specs=grid)
    for number, (panel, lines) in enumerate(zip(PANELS, drawn, strict=True), 1):
        _, begin, end = panel.place
        axes = {"xaxis": f"x{number}", "yaxis": f"y{number}"}
        unit = " %" if panel.percent else ""
        for label, look, drawn_curve in lines:
            draw_curve(fig, drawn_curve, label, look, unit, bold=label == "total", **axes)
        fig.update_layout({f"xaxis{number}": {"domain": (begin, end)}})
        fig.layout.annotations[number - 1].update(x=begin, xanchor="left", align="left")
        limits: dict[str, Any] = {"nticks": 6, "rangemode": "tozero"}
        if panel.range is not None:
            low, high = panel.range
            limits = {"dtick": (high - low) / 2, "range": [low - 0.03 * high, 1.05 * high]}
        fig.update_layout({f"yaxis{number}": {"ticksuffix": unit, **limits}})
    fig.update_xaxes(title_text="training step", row=2)
    return fig.update_layout(showlegend=False, margin_r=_RIGHT)


def panels_svg(history: Sequence[Mapping[str, Any]], steps: int) -> str:
    """The panels of a stage that is to take `steps` steps, as HTML that can be drawn after every one of them."""
    parts = []
    for panel in PANELS:
        row, begin, end = panel.place
        x, y = _LEFT + begin * _ACROSS, row * (_ABOVE + _INNER + _BELOW) - _INNER - _BELOW
        drawn = _panel_svg(panel, list(_lines(panel, history)), (end - begin) * _ACROSS, steps)
        parts.append(f'<g transform="translate({x:.1f} {y})">{drawn}</g>')
    width, height = _LEFT + _ACROSS + _RIGHT, 2 * (_ABOVE + _INNER + _BELOW)
    font = "font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:11.5px"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="width:100%;max-width:{width}px;{font}" fill="{style.TEXT}" '
        f'role="img" aria-label="rewards and chains over the training steps">{"".join(parts)}</svg>'
    )


def _lines(panel: Panel, history: Sequence[Mapping[str, Any]]) -> Iterator[PanelLine]:
    lines = reward_lines(history) if panel.lines is REWARDS else panel.lines
    for name, (label, look) in lines.items():
        found = curve(((row["step"], _value(row, name)) for row in history), 100 if panel.percent else 1)
        if len(found.steps):
            yield PanelLine(label, look, found)


def _value(row: Mapping[str, Any], name: str) -> Any:
    if name != "silent_share":
        return row.get(name)
    return row["zero_variance_groups"] / row["groups"] if row.get("groups") else None


def _heading(panel: Panel, lines: Sequence[PanelLine]) -> str:
    """What a panel of a figure shows, and under it its lines with the value at which each ends."""
    rows = [
        "  ".join(
            f'<span style="color:{each.look.color}">{_SAMPLES[each.look.dash]} {each.label}</span> <b>{_ending(panel, each)}</b>'
            for each in row
        )
        for row in _wrapped(panel, lines, (panel.place[2] - panel.place[1]) * style.WIDTH)
    ]
    return "<br>".join([panel.title, *(rows or ["no step has a value"])])


def _wrapped(panel: Panel, lines: Sequence[PanelLine], width: float) -> list[list[PanelLine]]:
    """The names of lines in as many rows as they need; letters are taken for wide ones."""
    rows: list[list[PanelLine]] = []
    left = 0.0
    for each in lines:
        needed = 7.2 * len(f"{each.label} {_ending(panel, each)}") + 26
        if not rows or needed > left:
            rows.append([])
            left = width + _RIGHT
        rows[-1].append(each)
        left -= needed
    return rows


def _ending(panel: Panel, line: PanelLine) -> str:
    last = line.curve.smooth[-1]
    return f"{last:.0f} %" if panel.percent else f"{last:.2f}".replace("-", "−")


def _panel_svg(panel: Panel, lines: Sequence[PanelLine], width: float, steps: int) -> str:
    """A panel of the quick picture, its upper left corner at 0, 0; names stand above that."""
    values = [value for line in lines for value in (*line.curve.raw, *line.curve.smooth)]
    if panel.range is None:
        ticks = _ticks(min([0.0, *values]), max([0.1, *values]))
    else:
        ticks = [panel.range[0], sum(panel.range) / 2, panel.range[1]]
    low, high = ticks[0], ticks[-1]

    def x(step: float) -> float:
        return width * (step - 1) / max(1, steps - 1)

    def y(value: float) -> float:
        return _INNER * (high - value) / (high - low)

    rows = _wrapped(panel, lines, width)
    parts = [f'<text y="{-8 - 15 * len(rows)}">{panel.title}</text>']
    parts += [f'<text y="{-8 - 15 * (len(rows) - at)}">{_names(panel, row)}</text>' for at, row in enumerate(rows, 1)]
    for tick in ticks:
        text = f"{tick:g}".replace("-", "−") + (" %" if panel.percent else "")
        parts.append(f'<path d="M0 {y(tick):.1f}H{width:.1f}" stroke="{style.GRID}"/>')
        parts.append(f'<text x="-6" y="{y(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    for step in dict.fromkeys((1, (1 + steps) // 2, steps)):
        parts.append(f'<text x="{x(step):.1f}" y="{_INNER + 18}" text-anchor="middle">{step}</text>')
    for label, look, (at, raw, smooth) in lines:
        dots = "".join(f"M{x(step):.1f} {y(value):.1f}h0" for step, value in zip(at, raw, strict=True))
        line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in zip(at, smooth, strict=True))
        faint = 'stroke-opacity=".4" stroke-width="3" stroke-linecap="round"'
        stroke = f'stroke-width="{2.6 if label == "total" else 2}" stroke-dasharray="{_STROKES[look.dash]}"'
        parts.append(f'<path d="{dots}" stroke="{look.color}" {faint}/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{look.color}" {stroke}/>')
    return "".join(parts)


def _names(panel: Panel, lines: Sequence[PanelLine]) -> str:
    return " ".join(
        f'<tspan fill="{each.look.color}" dx="{6 if at else 0}">{_SAMPLES[each.look.dash]} {each.label}</tspan>'
        f' <tspan font-weight="600">{_ending(panel, each)}</tspan>'
        for at, each in enumerate(lines)
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round values from `low` or below to `high` or above.

    >>> _ticks(0, 0.7), _ticks(-0.9, 3.3)
    ([0.0, 0.2, 0.4, 0.6, 0.8], [-1.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    """
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(each for each in (1, 2, 5, 10) if each * power >= rough)
    return [round(k * step, 9) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]
