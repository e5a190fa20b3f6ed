"""Runs beside each other: each seed as a dot, their mean as a mark with its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from labkit.runs.compare import Comparison, RunsOfOneTest
from labkit.runs.results import MODELS
from labkit.views.figures import style

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FIGURES = {"miou": "mIoU", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7", "anchor_rate": "anchors", "strict_share": "strict"}
_ROW = 26


def over_seeds(comparison: Comparison | None, decoding: str = "greedy", *, words: bool = False) -> go.Figure | None:
    """Each stage's figures of several runs, or with `words` their shares of true words, a row for each setting.

    None where there is nothing to compare.

    A dot is a seed, a mark the mean over a setting's seeds with Student's 95 % interval, which a single seed has not. Of runs on
    several test sets the first are drawn, since no others may stand beside them.
    """
    if comparison is None:
        return None
    test = comparison.tests[0]
    title = f"True words beside each other, {decoding}" if words else "Runs beside each other, over their seeds"
    shown = {name: each for name, each in test.figures.items() if name.startswith("true_")} if words else _FIGURES
    if not shown:
        return None
    rows = [
        (model, setting)
        for model in MODELS
        for setting in test.settings
        if any(run.figures(model, decoding) for run in setting.runs)
    ]
    if not rows:
        return style.nothing(title, f"no stage of these runs was evaluated by {decoding} decoding")
    looks = style.looks(f"setting {setting.label}" for setting in test.settings)
    fig, places = style.panels(
        list(shown.values()), title, _caption(comparison, test), _ROW * len(rows) + 10, columns=5, gap=0.03,
        shared_yaxes=True,
    )  # fmt: skip
    ends = [0.0, 100.0]
    for figure, (row, col) in zip(shown, places, strict=True):
        for place, (model, setting) in enumerate(rows):
            look = looks[f"setting {setting.label}"]
            known = [
                (run, 100 * value)
                for run in setting.runs
                if (value := run.figures(model, decoding).get(figure)) is not None and math.isfinite(value)
            ]
            spread = setting.spread(model, decoding, figure)
            if spread is None:
                continue
            name = f"{MODELS[model]} {setting.label}" if len(test.settings) > 1 else MODELS[model]
            fig.add_scatter(
                x=[value for _, value in known], y=[place + 0.2] * len(known), mode="markers", showlegend=False,
                marker={"size": 5, "color": style.rgba(look.color, 0.55)}, customdata=[style.plain(run.name, 40) for run, _ in known],
                hovertemplate=f"%{{customdata}}, {name}: %{{x:.1f}} %<extra></extra>", row=row, col=col,
            )  # fmt: skip
            low, high = (100 * bound for bound in spread.interval)
            sure = math.isfinite(low)
            ends += [low, high] if sure else []
            between = f"<br>95 % interval {low:.1f} to {high:.1f}, sd {100 * spread.sd:.1f}" if sure else ""
            mean = 100 * spread.mean
            fig.add_scatter(
                x=[mean], y=[place - 0.1], mode="markers", showlegend=False,
                marker={"symbol": look.symbol, "size": 9, "color": look.color, "line": {"width": 1.5, "color": look.color}},
                error_x={"type": "data", "array": [high - mean], "thickness": 1.6, "width": 3} if sure else None,
                hovertemplate=f"{name}, mean of {style.count(spread.n, 'seed')}: %{{x:.1f}} %{between}<extra></extra>",
                row=row, col=col,
            )  # fmt: skip
    names = [f"{MODELS[model]} {s.label}" if len(test.settings) > 1 else MODELS[model] for model, s in rows]
    # Intervals of few seeds reach beyond 0 and 100, and are shown to; those of two are far wider than any picture.
    fig.update_xaxes(range=[max(min(ends), -50) - 3, min(max(ends), 150) + 3], tickvals=[0, 50, 100], zeroline=False)
    fig.update_yaxes(range=[len(rows) - 0.4, -0.6], showgrid=False, zeroline=False)
    return fig.update_yaxes(tickvals=list(range(len(rows))), ticktext=names, col=1)


def _caption(comparison: Comparison, test: RunsOfOneTest) -> str:
    named = [
        f"{setting.label}: {', '.join(style.plain(run.name, 30) for run in setting.runs)}."
        for setting in test.settings
    ]
    apart = [run.name for other in comparison.tests[1:] for run in other.runs]
    return (
        "Percent. Dots: single seeds; marks: their mean, with Student's 95 % interval for other seeds where there are several. "
        + " ".join(named)
        + (f" On other test data, so not here: {', '.join(style.plain(name, 30) for name in apart)}." if apart else "")
    )
