"""Figures of training and of whole stages: rewards, loss, the harvest and the stages side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.runs.results import ANSWERED, FrameAblation
from labkit.stages.rollouts import Rollout
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains
from labkit.views.measured_chains import MeasuredChain, measure_chains

MOST_POINTS = 200
"""Steps drawn singly; a longer run is averaged into this many pieces."""

REWARDS = {
    "total": ("total", style.Look(style.TEXT, "circle", "solid")),
    "reward_format": ("format", style.Look("#a08a00", "circle", "dashdot")),
    "reward_answer": ("answer", style.Look(style.ANSWER, "circle", "longdash")),
    "reward_anchors": ("anchors", style.Look(style.ANCHOR, "circle", "dash")),
    "reward_progress": ("progress", style.Look("#c4689f", "circle", "dot")),
    "reward_option": ("option", style.Look("#7b62c9", "circle", "solid")),
}
_OWN = (("#3a9c9c", "dash"), ("#b5552d", "dot"), ("#5a6ea8", "longdash"), ("#8a6d3b", "dashdot"))
"""Looks of a user's own terms, in turn."""
SHARES = {
    "anchor_rate": ("have anchors", style.Look(style.ANCHOR, "circle", "solid")),
    "strict_share": ("narrow strictly", style.Look("#d55e00", "circle", "dash")),
}
_KEPT = "#2563b8"
_COMPARED = {
    "miou": "mIoU",
    "r1@0.5": "R1@0.5",
    "r1@0.7": "R1@0.7",
    "anchor_rate": "anchor rate",
    "strict_share": "strict share",
}


class Curve(NamedTuple):
    """A quantity over steps as it is drawn: where, what each step was, and the line through that."""

    steps: np.ndarray
    raw: np.ndarray
    smooth: np.ndarray


def training_curves(
    records: Sequence[Rollout] | Sequence[Mapping[str, Any]], moments: Mapping[str, Moment] | None = None
) -> style.Figure:
    """Rewards over the steps of one stage, and under them the shares of chains with anchors and of narrowing ones.

    `records` are the stage's Rollouts (then `moments` are needed), or a history: one dict a step with `step` and any
    of total, reward_format, reward_answer, reward_anchors, reward_progress, anchor_rate, strict_share, or
    `reward_NAME` of a term of the user's own.
    Raises LabError when Rollouts come without moments, or a history has none of these.
    """
    title = "What the policy is paid, and how its chains change"
    if not records:
        return style.nothing(title, "no step was recorded")
    rows, chains = _history(records, moments)
    rewards = reward_lines(rows)
    # Rollouts of moments without options have an option's pay, too, of 0.
    drawn = [
        name
        for name in (*rewards, *SHARES)
        if any(_number(row.get(name)) is not None and (name != "reward_option" or row[name]) for row in rows)
    ]
    if not drawn:
        raise LabError(
            f"a training history with the keys {', '.join(map(repr, rows[0]))} has nothing to draw; "
            f"each row needs 'step' and one of {', '.join(map(repr, (*REWARDS, *SHARES)))}"
        )
    steps = len({row["step"] for row in rows})
    caption = f"Dots: each step's mean; lines: smoothed over about {_span(steps)} steps. {_steps_text(rows)}"
    fig, _ = style.panels(
        ["", ""], title, caption, 200, columns=1, between=22, shared_xaxes=True, row_heights=[0.62, 0.38]
    )
    held = HeldChains({"": [each for step in chains.values() for each in step]}) if chains else None
    for name in drawn:
        upper = name in rewards
        label, look = (rewards if upper else SHARES)[name]
        values = [(row["step"], _number(row.get(name))) for row in rows]
        where = {"row": 1, "legend": "legend"} if upper else {"row": 2, "legend": "legend2"}
        drawn_curve = curve(values, 1 if upper else 100)
        draw_curve(fig, drawn_curve, label, look, "" if upper else " %", bold=name == "total", col=1, **where)
        if held:
            fig.data[-1].meta = held.points(*_chains_of_points(values, chains))
    if held:
        held.write(fig)
    fig.update_layout(legend2={"y": 0.34, "x": 1.01, "yanchor": "top", "bgcolor": "rgba(0, 0, 0, 0)"})
    fig.update_layout(legend_title_text="reward", legend2_title_text="share of chains")
    fig.update_yaxes(title_text="mean reward", row=1)
    fig.update_yaxes(title_text="share", range=[-3, 105], dtick=50, ticksuffix=" %", row=2)
    return fig.update_xaxes(title_text="training step", row=2)


def sft_loss(history: Sequence[Mapping[str, Any]]) -> style.Figure:
    """Loss over the steps of SFT; rows without a `loss` (a trainer's summary) are passed over."""
    title = "Loss while the fresh base reads the kept traces"
    losses = [
        (row["step"], loss) for row in history if "step" in row and (loss := _number(row.get("loss"))) is not None
    ]
    if not losses:
        return style.nothing(title, "no step was recorded")
    caption = (
        f"Mean loss per token in nats, from {losses[0][1]:.2f} to {losses[-1][1]:.2f}; "
        f"line: smoothed over about {_span(len(losses))} steps."
    )
    fig = style.figure(title, caption, 220, showlegend=False)
    draw_curve(fig, curve(losses), "loss", style.looks(["sft"])["sft"]._replace(dash="solid"))
    fig.update_xaxes(title_text="training step")
    return fig.update_yaxes(title_text="loss (nats per token)", rangemode="tozero")


def harvest_funnel(funnel: Sequence[tuple[str, int]]) -> style.Figure:
    """How many traces each rule of the harvest dropped, in the order of the rules, and how many are left.

    `funnel` holds (reason, dropped) pairs and ends with ('kept', number kept).
    Raises LabError when the last pair is another one, since then nothing would add up.
    """
    title = "The harvest: from sampled chains to traces"
    total = sum(count for _, count in funnel)
    if not total:
        return style.nothing(title, "no chain was sampled")
    if funnel[-1][0] != "kept":
        raise LabError(
            f"a harvest funnel ends with ('kept', count), not with {funnel[-1]!r}; give Harvest.filter_counts"
        )
    kept = funnel[-1][1]
    names, left, dropped, notes = ["sampled"], [total], [0], [f"{total:,} chains"]
    for reason, count in funnel[:-1]:
        names.append(style.plain(reason, 40))
        left.append(left[-1] - count)
        dropped.append(count)
        notes.append(f"−{count:,}" if count else "none")
    names.append("kept")
    left.append(kept)
    dropped.append(0)
    notes.append(f"{kept:,} traces ({style.percent(kept / total, 1)})")
    most = max(range(len(dropped)), key=dropped.__getitem__)
    fell = (
        f" The rule that drops most is '{names[most]}': {dropped[most]:,} of {total - kept:,}." if total > kept else ""
    )
    caption = f"Each row: what is left after the rule (blue) and what the rule dropped (orange).{fell}"
    fig = style.figure(title, caption, 28 * len(names), right=40, barmode="stack", bargap=0.3, showlegend=False)
    rows = list(range(len(names)))
    colors = [style.NEUTRAL, *[style.ANCHOR] * (len(names) - 2), _KEPT]
    fig.add_bar(
        x=left, y=rows, orientation="h", marker={"color": colors, "line": {"width": 0}}, customdata=names,
        hovertemplate="%{customdata}: %{x:,} left<extra></extra>",
    )  # fmt: skip
    fig.add_bar(
        x=dropped, y=rows, orientation="h", marker={"color": style.WORSE, "line": {"width": 0}}, customdata=names,
        hovertemplate="%{customdata}: %{x:,} dropped<extra></extra>",
    )  # fmt: skip
    for row, (a, b, note) in enumerate(zip(left, dropped, notes, strict=True)):
        fig.add_annotation(x=a + b, y=row, text=note, xanchor="left", xshift=6)
    style.name_rows(fig, names)
    return fig.update_xaxes(title_text="chains", range=[0, total * 1.16], tickformat=",")


def stage_comparison(figures: Mapping[str, Mapping[str, float]]) -> style.Figure:
    """Stages and runs side by side in the figures that matter: mIoU, R1@0.5, R1@0.7, anchors, strict narrowing.

    `figures` holds `labkit.chain.metrics.chain_figures` by label; a figure that is absent or NaN shows as a dash.
    """
    title = "The stages side by side"
    if not figures:
        return style.nothing(title, "no stage was evaluated this way")
    labels = style.in_stage_order(figures)
    names = [style.plain(label, 40) for label in labels]
    look = style.looks(labels)
    sizes = sorted({int(n) for label in labels if (n := _number(figures[label].get("n"))) is not None})
    asked = (
        f", {sizes[0]:,} queries" if len(sizes) == 1 else f", {sizes[0]:,} to {sizes[-1]:,} queries" if sizes else ""
    )
    caption = (
        f"Percent, higher is better{asked}. Anchor rate: chains with an anchor. Strict share: chains of two anchors or "
        "more, each better than the one before. Both are shares of all chains."
    )
    compared = _COMPARED | {k: name for k, name in ANSWERED.items() if any(k in each for each in figures.values())}
    fig, _ = style.panels(
        list(compared.values()), title, caption, 34 * len(labels), columns=len(compared), bottom=36, shared_yaxes=True
    )
    colors = [look[label].color for label in labels]
    for column, key in enumerate(compared, 1):
        values = [_number(figures[label].get(key)) for label in labels]
        percents = [0 if value is None else 100 * value for value in values]
        where: dict[str, Any] = {"y": list(range(len(labels))), "row": 1, "col": column}
        fig.add_bar(
            x=percents, orientation="h", width=0.09, hoverinfo="skip",
            marker={"color": [style.rgba(color, 0.55) for color in colors], "line": {"width": 0}}, **where,
        )  # fmt: skip
        fig.add_scatter(
            x=percents, mode="markers+text", textposition="middle right", textfont={"color": style.TEXT}, cliponaxis=False,
            text=["–" if value is None else f"  {100 * value:.1f}" for value in values],
            marker={"size": 10, "color": colors, "opacity": [0 if value is None else 1 for value in values]},
            customdata=names, hovertemplate=f"%{{customdata}}: {compared[key]} %{{x:.1f}} %<extra></extra>", **where,
        )  # fmt: skip
    style.name_rows(fig, names, above=0.5, below=0.5)
    fig.update_xaxes(range=[0, 145], tickvals=[0, 50, 100])
    return fig.update_layout(showlegend=False)


def blindness(found: FrameAblation) -> style.Figure:
    """Greedy mIoU of a model with the query's own frames against frames of other kinds, and the best constant answer."""
    title = "What is left when the frames are not the query's"
    rows = {"its own frames": found.seeing, **{f"{kind} frames": value for kind, value in found.blind.items()}}
    caption = (
        f"mIoU in percent of the same model on the same {found.queries:,} queries. The line is the best constant answer on "
        "these, which never looks: a model that looks falls to about that level."
    )
    fig = style.figure(title, caption, 34 * len(rows), left=190)
    color = style.looks(["grpo_final"])["grpo_final"].color
    for row, (name, value) in enumerate(rows.items()):
        tone = color if row == 0 else style.rgba(color, 0.45)
        fig.add_bar(
            x=[100 * value], y=[row], orientation="h", marker={"color": tone, "line": {"width": 0}}, showlegend=False,
            hovertemplate=f"{style.plain(name)}: mIoU %{{x:.1f}} %<extra></extra>",
        )  # fmt: skip
    fig.add_vline(x=100 * found.constant, line={"color": style.TEXT, "dash": "dash", "width": 1.5})
    style.name_rows(fig, [f"{style.plain(name)}  <b>{100 * value:.1f}</b>" for name, value in rows.items()])
    highest = 100 * max(found.constant, *rows.values())
    return fig.update_xaxes(title_text="mIoU, percent", range=[0, highest * 1.15 or 1])


def reward_lines(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, style.Look]]:
    """Label and look of the total and of each reward term of a history, a user's own terms behind the others."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("reward_") and key not in REWARDS)
    own = {
        key: (key.removeprefix("reward_"), style.Look(color, "circle", dash))
        for key, (color, dash) in zip(keys, itertools.cycle(_OWN), strict=False)
    }
    return REWARDS | own


def _history(
    records: Sequence[Rollout] | Sequence[Mapping[str, Any]], moments: Mapping[str, Moment] | None
) -> tuple[Sequence[Mapping[str, Any]], dict[int, list[MeasuredChain]]]:
    """The rows of a history, and the chains of each step where the records are rollouts."""
    rollouts = [record for record in records if not isinstance(record, Mapping)]
    if not rollouts:
        return [record for record in records if isinstance(record, Mapping) and "step" in record], {}
    if moments is None:
        raise LabError(
            "training curves from Rollouts need the moments by qid, to see which chains narrow; pass moments="
        )
    steps: dict[int, list[dict[str, float]]] = {}
    chains: dict[int, list[MeasuredChain]] = {}
    for measured, rollout in zip(measure_chains(rollouts, moments), rollouts, strict=True):
        row = {name: getattr(rollout, name) for name in REWARDS}
        row |= {f"reward_{name}": said.value for name, said in rollout.own.items()}
        row |= {"anchor_rate": float(bool(measured.chain.anchors)), "strict_share": float(measured.strict)}
        steps.setdefault(rollout.step, []).append(row)
        chains.setdefault(rollout.step, []).append(measured)
    rows = [
        {"step": step} | {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        for step, rows in sorted(steps.items())
    ]
    return rows, chains


def _chains_of_points(
    values: Iterable[tuple[float, Any]], chains: Mapping[int, list[MeasuredChain]]
) -> tuple[list[list[MeasuredChain]], list[str]]:
    """The chains of each point that `curve` draws of these values, and what it is called."""
    steps = [int(step) for step, value in values if _number(value) is not None]
    pieces = np.array_split(steps, min(MOST_POINTS, len(steps))) if steps else []
    names = [f"step {piece[0]}" if len(piece) == 1 else f"steps {piece[0]} to {piece[-1]}" for piece in pieces]
    return [[each for step in piece.tolist() for each in chains[step]] for piece in pieces], names


def draw_curve(
    fig: style.Figure, drawn: Curve, label: str, look: style.Look, unit: str = "", *, bold: bool = False, **where: Any
) -> None:
    """Add one quantity over steps: faint single steps and a smoothed line."""
    steps, raw = drawn.steps.round(1), drawn.raw.round(4)
    fig.add_scatter(
        x=steps, y=raw, mode="markers", marker={"size": 3.5, "color": style.rgba(look.color, 0.4)}, hoverinfo="skip",
        showlegend=False, legendgroup=label, **where,
    )  # fmt: skip
    fig.add_scatter(
        x=steps, y=drawn.smooth.round(4), name=label, legendgroup=label, mode="lines" if len(steps) > 1 else "markers",
        line={"color": look.color, "dash": look.dash, "width": 3 if bold else 2.2}, customdata=raw,
        hovertemplate=f"step %{{x}}: {label} %{{y:.3g}}{unit}, this step alone %{{customdata:.3g}}{unit}<extra></extra>",
        **where,
    )  # fmt: skip


def curve(values: Iterable[tuple[float, Any]], scale: float = 1) -> Curve:
    """(step, value) pairs as a curve, at most `MOST_POINTS` long; what is no finite number is passed over.

    >>> curve([(1, 0.5), (2, None), (3, 1.0)], scale=100)
    Curve(steps=array([1., 3.]), raw=array([ 50., 100.]), smooth=array([ 50., 100.]))
    """
    numbers = [(step, number) for step, value in values if (number := _number(value)) is not None]
    steps, levels = np.array(numbers, dtype=float).reshape(-1, 2).T
    levels = levels * scale
    smooth = _smoothed(levels, _span(len(levels))) if numbers else levels
    if len(numbers) <= MOST_POINTS:
        return Curve(steps, levels, smooth)
    pieces = np.array_split(np.arange(len(numbers)), MOST_POINTS)
    return Curve(*(np.array([part[piece].mean() for piece in pieces]) for part in (steps, levels, smooth)))


def share_curve(steps: Sequence[float], part: Sequence[float], whole: Sequence[float], least: float = 0) -> Curve:
    """The share that `part` is of `whole` over steps: both are smoothed before one is divided by the other.

    So a step counts by what it holds. NaN where there is nothing, and in the line where `whole` adds up to less than `least` within
    the smoothing's reach.

    >>> share_curve([1, 2, 3], [1, 0, 0], [2, 0, 8]).smooth
    array([0.5, nan, 0. ])
    """
    span = _span(len(steps))
    counts = np.array([part, whole], dtype=float)
    enough = np.convolve(counts[1], np.ones(2 * span - 1), mode="same") >= least
    smooth = np.array([np.where(enough, _smoothed(each, span), 0.0) for each in counts])
    pieces = np.array_split(np.arange(len(steps)), min(MOST_POINTS, len(steps)))
    at = np.array([np.array(steps, dtype=float)[piece].mean() for piece in pieces])
    with np.errstate(invalid="ignore"):
        raw, line = (
            np.divide(*np.array([each[:, piece].sum(axis=1) for piece in pieces]).T) for each in (counts, smooth)
        )
    return Curve(at, raw, line)


def _smoothed(values: np.ndarray, span: int) -> np.ndarray:
    """Mean of the steps up to `span` away on both sides, nearer ones weighing more: unlike a running mean, no lag."""
    weights = np.bartlett(2 * span + 1)[1:-1]
    pad = span - 1
    inside = np.convolve(np.pad(np.ones(len(values)), pad), weights, mode="valid")
    return np.asarray(np.convolve(np.pad(values, pad), weights, mode="valid") / inside)


def _span(steps: int) -> int:
    return max(1, min(20, round(steps / 12)))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float | np.number) and math.isfinite(value) else None


def _steps_text(rows: Sequence[Mapping[str, Any]]) -> str:
    total = [number for row in rows if (number := _number(row.get("total"))) is not None]
    return f"Total: {total[0]:+.2f} at first, {total[-1]:+.2f} at last." if total else ""
