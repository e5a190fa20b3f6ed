"""Whether the words of thoughts are true, by kind: of each model, and along training beside what is paid and how well it answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from labkit.data.moments import Moment
from labkit.embedded.true_words import KINDS, word_figures
from labkit.runs import results
from labkit.runs.results import DECODINGS, ModelEvaluation
from labkit.table import Table
from labkit.views.figures import style
from labkit.views.figures.training import Curve, curve, share_curve

Rows: TypeAlias = Sequence[Mapping[str, Any]]
Histories: TypeAlias = Mapping[str, Sequence[Mapping[str, Rows]]]
"""By label the runs of one setting, and of each its stages' rows of `labkit.stages.words_by_step.word_history`."""

LEAST_WORDS = 20
"""Where fewer were said within the reach of the smoothing, no line is drawn."""
_ROW = 40
MOST_SETTINGS = 5
"""More lines than there are looks cannot be told apart: of more settings the first are drawn."""
_STAGES = {"grpo": "stage 1", "grpo_final": "stage 3"}
_BESIDE = {"total": "mean reward", "miou": "mIoU of the answers", "distinct_thoughts": "distinct thoughts, of chains"}
_TITLE = "Do the words stay true while spans are paid?"


class _Line(NamedTuple):
    """A line of a panel: all runs of a setting in one stage."""

    label: str
    stage: str
    look: style.Look
    all: Curve
    chance: Curve | None
    runs: list[Curve]


def words_along_training(histories: Histories) -> style.Figure | None:
    """Share of true words by kind over the steps of stages 1 and 3, beside reward, IoU and how much thoughts differ.

    A setting's line is over all words of its runs, and ends where the first of them does; thin lines are single ones where there are
    several. None where nothing says what is true, as on other data than the embedded world.
    """
    undrawn, histories = list(histories)[MOST_SETTINGS:], dict(list(histories.items())[:MOST_SETTINGS])
    stages = [stage for stage in _STAGES if any(run.get(stage) for runs in histories.values() for run in runs)]
    if not stages:
        return None
    panels = {name: lines for name in (*_BESIDE, *KINDS) if (lines := list(_lines(name, histories, stages)))}
    lengths = [
        max(each.steps[-1] for line in panels["miou"] if line.stage == stage for each in (line.all, *line.runs))
        for stage in stages
    ]
    gap = math.ceil(0.05 * sum(lengths))
    begins = dict(zip(stages, np.cumsum([0, *(length + gap for length in lengths)]).tolist(), strict=False))
    several = len({line.label for line in panels["miou"]}) > 1
    fig, places = style.panels(
        [_heading(name, lines, several) for name, lines in panels.items()], _TITLE, _caption(panels["miou"], several, undrawn),
        118, columns=3, gap=0.075, between=96, bottom=96 if several else 60,
    )  # fmt: skip
    named: set[str] = set()
    for (name, lines), (row, col) in zip(panels.items(), places, strict=True):
        for line in lines:
            _draw(fig, line, name, begins[line.stage], several and line.label not in named, several, row=row, col=col)
            named.add(line.label)
        if name != "total":
            fig.update_yaxes(range=[-4, 106], tickvals=[0, 50, 100], ticktext=["0", "50", "100 %"], row=row, col=col)
    # Stage names stand below the numbers: stage 1 may end after a few steps.
    ticks = {1.0: "1"} if lengths[0] > 0.1 * sum(lengths) else {}
    for begin, stage, length in zip(begins.values(), stages, lengths, strict=False):
        ticks[begin + length] = f"{length:.0f}"
        ticks[begin + (1 + length) / 2 + 0.01] = f"<br>{_STAGES[stage]}"
    fig.update_xaxes(
        range=[0, max(ticks) + 1], tickvals=list(ticks), ticktext=list(ticks.values()), tickangle=0, zeroline=False, showgrid=False
    )  # fmt: skip
    for begin in list(begins.values())[1 : len(stages)]:
        fig.add_vline(x=begin - gap / 2 + 0.5, line={"color": style.FAINT, "width": 1})
    return fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"})


def _lines(name: str, histories: Histories, stages: Sequence[str]) -> Iterator[_Line]:
    looks = style.looks(stages) if len(histories) == 1 else style.looks(f"setting {label}" for label in histories)
    for label, runs in histories.items():
        for stage in stages:
            found = [rows for run in runs if (rows := run.get(stage))]
            curves = [_curve(name, rows) for rows in found]
            # Behind the end of one run the mean would be of other runs than before it.
            end = min((rows[-1]["step"] for rows in found), default=0)
            shared = [row for rows in found for row in rows if row["step"] <= end]
            joined = _curve(name, shared)
            if joined is None:
                continue
            look = looks[stage] if len(histories) == 1 else looks[f"setting {label}"]
            chance = None if name in _BESIDE else _curve(name, shared, "chance")
            each = [one for one in curves if one is not None]
            yield _Line(label, stage, look, joined, chance, each if len(each) > 1 else [])


def _curve(name: str, rows: Rows, what: str = "true") -> Curve | None:
    """A panel's quantity over the steps of one run, or of several as one; None where no step has it."""
    steps: dict[float, list[Mapping[str, Any]]] = {}
    for row in rows:
        steps.setdefault(row["step"], []).append(row)
    steps = dict(sorted(steps.items()))
    if name in ("total", "miou"):
        known = {step: [row[name] for row in each if row[name] is not None] for step, each in steps.items()}
        means = [(step, sum(values) / len(values)) for step, values in known.items() if values]
        return curve(means, 1 if name == "total" else 100) if means else None
    whole, part = ("n", "") if name in _BESIDE else (f"said_{name}", f"{what}_{name}")
    wholes = [sum(row[whole] for row in each) for each in steps.values()]
    parts = [sum(row[whole] * (row[part] or 0) if part else row[name] for row in each) for each in steps.values()]
    if not any(wholes):
        return None
    found = share_curve(list(steps), parts, wholes, LEAST_WORDS if part else 0)
    return Curve(found.steps, 100 * found.raw, 100 * found.smooth)


def _draw(
    fig: style.Figure, line: _Line, name: str, begin: float, legend: bool, several: bool, *, row: int, col: int
) -> None:
    where = {"row": row, "col": col, "legendgroup": line.label}
    color, unit = line.look.color, "" if name == "total" else " %"
    label, dash = style.plain(line.label, 60), line.look.dash if several else "solid"
    if line.chance is not None:
        fig.add_scatter(
            x=(begin + line.chance.steps).round(1), y=line.chance.smooth.round(2), mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": color if several else style.TEXT, "width": 1.2, "dash": "dot"}, **where,
        )  # fmt: skip
    for run in line.runs:
        fig.add_scatter(
            x=(begin + run.steps).round(1), y=run.smooth.round(3), mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": style.rgba(color, 0.35), "width": 1}, **where,
        )  # fmt: skip
    if not several and not line.runs:
        fig.add_scatter(
            x=(begin + line.all.steps).round(1), y=line.all.raw.round(3), mode="markers", hoverinfo="skip", showlegend=False,
            marker={"size": 3, "color": style.rgba(color, 0.4)}, **where,
        )  # fmt: skip
    chance: list[float] = [] if line.chance is None else line.chance.smooth.tolist()
    custom = [
        [step, "" if not chance or math.isnan(chance[at]) else f", {chance[at]:.0f} % by chance"]
        for at, step in enumerate(line.all.steps.round(1).tolist())
    ]
    fig.add_scatter(
        x=(begin + line.all.steps).round(1), y=line.all.smooth.round(3), name=label, showlegend=legend, customdata=custom,
        mode="lines" if len(line.all.steps) > 1 else "markers", line={"color": color, "dash": dash, "width": 2.2},
        hovertemplate=f"{label}{', ' if label else ''}{_STAGES[line.stage]}, step %{{customdata[0]}}: {_name(name)} %{{y:.3g}}{unit}"
        "%{customdata[1]}<extra></extra>", **where,
    )  # fmt: skip


def _name(name: str) -> str:
    return _BESIDE.get(name) or f"true words, {KINDS[name]}"


def _heading(name: str, lines: Sequence[_Line], several: bool) -> str:
    """What a panel shows, and under it where each line ends; of one setting also where it began, by stage."""
    ends = {}
    for line in lines:
        values = [value for value in line.all.smooth.tolist() if math.isfinite(value)]
        shown = values[-1:] if several else [*values[:1], *values[-1:]]
        text = " → ".join(f"{value:.2f}" if name == "total" else f"{value:.0f}" for value in shown)
        ends[line.label if several else line.stage] = (text.replace("-", "−") or "few", line.look.color)
    unit = "" if name == "total" else " %"
    parts = [f'<span style="color:{color}"><b>{text}</b>{unit}</span>' for text, color in ends.values()]
    return f"{_name(name)}<br>{'&#160;&#160; '.join(parts)}"


def _caption(lines: Sequence[_Line], several: bool, undrawn: Sequence[str]) -> str:
    single = "" if several else "; dots: single steps"
    if any(line.runs for line in lines):
        single = "; thin lines: single seeds, bold ones all of them, as far as each goes"
    ends = "its last value" if several else "its first and last value"
    return (
        "Thoughts that training sampled; no reward reads a word. Percent of the words said of each kind that are true of what "
        "the clip shows; dotted: what the same words would have, dealt out at random among the training queries. Lines are "
        f"smoothed over all words within reach, and stop where those are fewer than {LEAST_WORDS}; above each {ends}{single}. "
        "Distinct: thoughts that differ once object words and numbers are blanked."
        + " Settings that pay otherwise have rewards of another scale." * several
        + (f" Not drawn: {', '.join(style.plain(label, 40) for label in undrawn)}." if undrawn else "")
    )


def true_words(figures: Mapping[str, Mapping[str, float | None]], title: str = "Are the words true?") -> style.Figure:
    """Share of true words by kind, one line for each label, with a bar where chance is; `figures` are flat ones by label.

    Figures are those of `labkit.embedded.true_words.word_figures`; a label without them is left out, and a kind that no label says.
    """
    shown = {label: each for label, each in figures.items() if "distinct_thoughts" in each}
    if not shown:
        return style.nothing(title, "only clips of the embedded world say what is true of them")
    labels = style.in_stage_order(shown)
    looks = style.looks(labels)
    kinds = [kind for kind in KINDS if any(each.get(f"said_{kind}") for each in shown.values())] or list(KINDS)
    caption = (
        "Words that are true of what the clip shows, in percent of all of their kind. Hollow bars: what the same words would "
        "have, dealt out at random among the queries. Colour and shape stand in the query, and so does the action unless there are "
        "options; the others do not. No reward reads any of them. "
        f"Distinct thoughts, object words and numbers blanked: {_distinct(shown, labels)}."
    )
    fig, places = style.panels(
        [KINDS[kind] for kind in kinds], title, caption, _ROW * len(labels) + 6, columns=min(5, len(kinds)), gap=0.035,
        shared_yaxes=True,
    )  # fmt: skip
    for kind, (row, col) in zip(kinds, places, strict=True):
        where = {"row": row, "col": col, "showlegend": False}
        for place, label in enumerate(labels):
            true, said, chance = (shown[label].get(f"{what}_{kind}") for what in ("true", "said", "chance"))
            if true is None or chance is None or not said:
                none = {"text": "none said", "xanchor": "left", "font": {"size": 10.5}}
                fig.add_annotation(x=0, y=place, row=row, col=col, **none)
                continue
            fig.add_bar(
                x=[100 * chance], y=[place], orientation="h", width=0.42, hoverinfo="skip",
                marker={"color": "rgba(0, 0, 0, 0)", "line": {"color": style.FAINT, "width": 1}}, **where,
            )  # fmt: skip
            fig.add_scatter(
                x=[100 * true], y=[place], mode="markers+text", text=[f"{100 * true:.1f} of {said:,.0f}"],
                textposition="top left" if true > 0.7 else "top center", textfont={"size": 10.5, "color": style.TEXT},
                cliponaxis=False, marker=style.mark(looks[label]),
                hovertemplate=f"{style.plain(label)}: %{{x:.1f}} % of {said:,.0f} true, {100 * chance:.1f} % by chance"
                "<extra></extra>", **where,
            )  # fmt: skip
        fig.update_xaxes(range=[0, 125], tickvals=[0, 50, 100], row=row, col=col, zeroline=False)
    names = [style.plain(label, 40) for label in labels]
    style.name_rows(fig, names, above=0.8)
    return fig.update_layout(barmode="overlay")


def words_table(models: Mapping[str, ModelEvaluation], moments: Mapping[str, Moment]) -> Table | None:
    """Shares of true words by label with intervals by video, counted anew from the answers; None on other data."""
    counted = {
        label: {
            decoding: word_figures({row.qid: row.text for row in rows}, [moments[row.qid] for row in rows])
            | {"n": float(len(rows))}
            for decoding, rows in zip(DECODINGS, (model.greedy, model.sampled), strict=True)
        }
        for label, model in models.items()
    }
    return results.words_table(counted)


def _distinct(shown: Mapping[str, Mapping[str, float | None]], labels: list[str]) -> str:
    return ", ".join(
        f"{style.plain(label, 40)} {shown[label]['distinct_thoughts']:,.0f} of {shown[label]['n']:,.0f}"
        for label in labels
    )
