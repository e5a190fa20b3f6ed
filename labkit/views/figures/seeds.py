"""Runs beside each other: each seed as a dot, their mean as a mark with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.runs.compare import MANY, Comparison, RunsOfOneTest
from labkit.runs.results import MODELS
from labkit.runs.setting_tables import COMPARED, WORDS
from labkit.runs.settings import Setting
from labkit.views.figures import style

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROW = 26
_FIRST = style.Look(style.TEXT, "diamond", "solid")
_SIDES = {
    1: style.Look(style.BETTER, "triangle-right", "solid"),
    -1: style.Look(style.WORSE, "triangle-left", "solid"),
    0: style.Look(style.NEUTRAL, "circle-open", "solid"),
}
"""How the mean of a setting is drawn, by the side of 0 on which its difference lies."""


def over_seeds(comparison: Comparison | None, decoding: str = "greedy", *, words: bool = False) -> go.Figure | None:
    """Each stage's figures of several runs, or with `words` their shares of true words, a row for each setting.

    None where there is nothing to compare.

    A dot is a seed, a mark the mean over a setting's seeds with Student's 95 % interval, which a single seed has not. Of many
    settings only the final models are drawn, against the first setting's: a mark then says whether the difference, paired by
    seed, has an interval that leaves out 0. Of runs on several test sets the first are drawn, since no others may stand beside them.
    """
    if comparison is None:
        return None
    test = comparison.tests[0]
    first = test.settings[0]
    title = f"True words beside each other, {decoding}" if words else "Runs beside each other, over their seeds"
    shown = {name: test.figures[name] for name in WORDS if name in test.figures} if words else COMPARED
    many = len(test.settings) > MANY
    if not shown:
        return None
    rows = [
        (model, setting)
        for model in (["grpo_final"] if many else MODELS)
        for setting in test.settings
        if any(run.figures(model, decoding) for run in setting.runs)
    ]
    if not rows:
        return style.nothing(title, f"no stage of these runs was evaluated by {decoding} decoding")
    looks = style.looks(f"setting {setting.label}" for setting in test.settings)
    fig, places = style.panels(
        list(shown.values()), title, _caption(comparison, test, many, rows[0][1] is first), _ROW * len(rows) + 10, columns=5, gap=0.03,
        shared_yaxes=True,
    )  # fmt: skip
    names = [_row_name(model, setting, test) for model, setting in rows]
    everywhere = [0.0, 100.0]
    for figure, (row, col) in zip(shown, places, strict=True):
        ends: list[float] = []
        for place, (model, setting) in enumerate(rows):
            known = {seed: 100 * value for seed, value in setting.figure_by_seed(model, decoding, figure).items()}
            if (spread := setting.spread(model, decoding, figure)) is None:
                continue
            gap = setting.less(first, model, decoding, figure) if many and setting is not first else None
            look = looks[f"setting {setting.label}"]
            if many:
                look = _FIRST if setting is first else _SIDES[gap.side if gap else 0]
            fig.add_scatter(
                x=list(known.values()), y=[place + 0.2] * len(known), mode="markers", showlegend=False,
                marker={"size": 5, "color": style.rgba(look.color, 0.55)},
                customdata=[style.plain(setting.by_seed[seed].name, 40) for seed in known],
                hovertemplate=f"%{{customdata}}, {names[place]}: %{{x:.1f}} %<extra></extra>", row=row, col=col,
            )  # fmt: skip
            low, high = (100 * bound for bound in spread.interval)
            ends += [low, high] if spread.varies else []
            ends += known.values()
            between = f"<br>95 % interval {low:.1f} to {high:.1f}, sd {100 * spread.sd:.1f}" if spread.varies else ""
            if gap:
                between += f"<br>{100 * gap.mean:+.1f} against {style.plain(first.label, 30)}, paired by seed"
                between += f" ({100 * gap.interval.low:+.1f} to {100 * gap.interval.high:+.1f})" if gap.varies else ""
            mean = 100 * spread.mean
            fig.add_scatter(
                x=[mean], y=[place - 0.1], mode="markers", showlegend=False,
                marker={"symbol": look.symbol, "size": 9, "color": look.color, "line": {"width": 1.5, "color": look.color}},
                error_x={"type": "data", "array": [high - mean], "thickness": 1.6, "width": 3} if spread.varies else None,
                hovertemplate=f"{names[place]}, mean of {style.count(spread.n, 'seed')}: %{{x:.1f}} %{between}<extra></extra>",
                row=row, col=col,
            )  # fmt: skip
            if many and setting is first:
                fig.add_vline(x=mean, line={"color": style.FAINT, "width": 1, "dash": "dot"}, row=row, col=col)
        everywhere += ends
        if many and ends:
            reach = 0.06 * max(max(ends) - min(ends), 4.0)
            limits = [max(min(ends), -50) - reach, min(max(ends), 150) + reach]
            fig.update_xaxes(range=limits, nticks=4, zeroline=False, row=row, col=col)
    # Intervals of few seeds reach beyond 0 and 100, and are shown to; those of two are far wider than any picture.
    if not many:
        limits = [max(min(everywhere), -50) - 3, min(max(everywhere), 150) + 3]
        fig.update_xaxes(range=limits, tickvals=[0, 50, 100], zeroline=False)
    fig.update_yaxes(range=[len(rows) - 0.4, -0.6], showgrid=False, zeroline=False)
    return fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, col=1)


def _row_name(model: str, setting: Setting, test: RunsOfOneTest) -> str:
    label = style.plain(setting.label, 24)
    if len(test.settings) > MANY:
        return label
    title = setting.runs[0].title(model)
    return f"{title} {label}" if len(test.settings) > 1 else title


def _caption(comparison: Comparison, test: RunsOfOneTest, many: bool, drawn: bool) -> str:
    apart = [run.name for other in comparison.tests[1:] for run in other.runs]
    other = f" On other test data, so not here: {', '.join(style.plain(name, 30) for name in apart)}." if apart else ""
    said = "Percent. Dots: single seeds; marks: their mean, with Student's 95 % interval for other seeds where some differ. "
    if many:
        first = style.plain(test.settings[0].label, 30)
        if not drawn:
            return f"{said}Final models; {first} has none, so that nothing is held against it.{other}"
        return (
            f"{said}Final models; the dotted line is the mean of {first}, and axes begin where the values do. A triangle points to "
            f"the side on which a setting lies whose difference from {first}, paired by seed, has an interval without 0; one in "
            f"twenty does by chance.{other}"
        )
    named = [
        f"{setting.label}: {', '.join(style.plain(run.name, 30) for run in setting.runs)}."
        for setting in test.settings
    ]
    return said + " ".join(named) + other
