"""Scores to be believed: each with its interval, what a blind answer gets, what other people's rules say, and other seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.runs.compare import MANY, Comparison, RunsOfOneTest
from labkit.runs.results import MODELS, SCORES
from labkit.runs.settings import COMPARED, WORDS, Setting
from labkit.scoring.bootstrap import Interval, few_videos
from labkit.views.figures import style
from labkit.views.figures.held_chains import HeldChains

if TYPE_CHECKING:
    from labkit.scoring.scores import Score

_ROW = 30


_RUN_ROW = 26
_FIRST = style.Look(style.TEXT, "diamond", "solid")
_SIDES = {
    1: style.Look(style.BETTER, "triangle-right", "solid"),
    -1: style.Look(style.WORSE, "triangle-left", "solid"),
    0: style.Look(style.NEUTRAL, "circle-open", "solid"),
}
"""How the mean of a setting is drawn, by the side of 0 on which its difference lies."""


_UNKNOWN = Interval(math.nan, math.nan)


class _Row(NamedTuple):
    """One line of a board; `figures` and `bounds` are fractions by the figure's name."""

    name: str
    look: style.Look
    figures: Mapping[str, float]
    bounds: Mapping[str, Interval]
    score: Score | None = None
    label: str = ""


def scoreboard(scores: Mapping[str, Score], title: str = "Scores beside answers that never look") -> style.Figure:
    """Each score with its interval, above them what the trivial baselines get on the same queries."""
    if not scores:
        return style.nothing(title, "there are no scores")
    first = next(iter(scores.values()))
    grey = style.Look(style.NEUTRAL, "line-ns-open", "dot")
    rows = [_Row(f"<i>{style.plain(name)}</i>", grey, figures, {}) for name, figures in first.baselines.items()]
    looks = style.looks(scores)
    rows += [_Row(style.plain(name, 40), looks[name], s.figures, s.intervals, s, name) for name, s in scores.items()]
    caption = (
        f"Percent, {style.count(first.protocol.rows, 'query', 'queries')}. Bars: 95 % interval, by video. In italics "
        "what an answer gets that never saw the video; a model whose bar reaches down to it has shown nothing."
        f" {few_videos(first.protocol.videos)}"
    )
    held = HeldChains.of_questions({name: score.qids for name, score in scores.items()})
    return held.write(_board(title, caption, rows, held))


def under_rules(
    scores: Mapping[str, Score], title: str = "The same chains under other people's rules"
) -> style.Figure:
    """One set of chains scored under every reading rule; `scores` by the rule's name, labkit's first."""
    if not scores:
        return style.nothing(title, "there are no scores")
    ours = style.Look("#2563b8", "circle", "solid")
    theirs = style.Look("#c4689f", "diamond", "dash")
    rows = [
        _Row(style.plain(name), ours if name == "labkit" else theirs, s.figures, s.intervals)
        for name, s in scores.items()
    ]
    miou = {name: 100 * score.figures["miou"] for name, score in scores.items()}
    videos = next(iter(scores.values())).protocol.videos
    caption = (
        "Not a word of the chains differs between rows: only which span a rule takes for the answer, and whether a threshold "
        f"is reached with > or >=. {_span_of(miou)} {few_videos(videos)}"
    )
    return _board(title, caption, rows)


def _span_of(miou: Mapping[str, float]) -> str:
    """How far apart the rules are, in words."""
    low, high = min(miou, key=miou.__getitem__), max(miou, key=miou.__getitem__)
    if f"{miou[low]:.1f}" == f"{miou[high]:.1f}":
        return f"mIoU is {miou[low]:.1f} under each of them."
    return f"mIoU goes from {miou[low]:.1f} ({style.plain(low)}) to {miou[high]:.1f} ({style.plain(high)})."


def _board(title: str, caption: str, rows: Sequence[_Row], held: HeldChains | None = None) -> style.Figure:
    """One panel a figure, one line a row: the value as a mark with its bar, and the number beside it."""
    fig, places = style.panels(
        list(SCORES.values()), title, caption, _ROW * len(rows) + 6, shared_yaxes=True, gap=0.045
    )
    for key, (row, col) in zip(SCORES, places, strict=True):
        values = [100 * line.figures[key] for line in rows]
        intervals = [line.bounds.get(key, _UNKNOWN).times(100) for line in rows]
        for place, (line, value, interval) in enumerate(zip(rows, values, intervals, strict=True)):
            between = f"<br>95 % interval {ends}" if (ends := interval.text()) else ""
            fig.add_scatter(
                x=[value], y=[place], mode="markers+text", text=[f"  {value:.1f}"], textposition="top center",
                textfont={"size": 10.5, "color": style.TEXT}, showlegend=False, cliponaxis=False,
                marker=style.mark(line.look), error_x=style.error_bars([value], [interval]), meta=_held(held, line, key),
                hovertemplate=f"{line.name}: {SCORES[key]} %{{x:.1f}} %{between}<extra></extra>", row=row, col=col,
            )  # fmt: skip
        top = max([*values, *(interval.high for interval in intervals if interval.text()), 1.0])
        fig.update_xaxes(range=[0, top * 1.12], row=row, col=col, zeroline=False)
    style.name_rows(fig, [line.name for line in rows], above=0.8, below=0.5)
    return fig


def _held(held: HeldChains | None, line: _Row, key: str) -> dict[str, Any] | None:
    """The chains behind a mark: all that were asked, or of R1@m those that reach m."""
    if held is None or line.score is None:
        return None
    reach = [at for at, value in enumerate(line.score.columns[key]) if key == "miou" or value > 0]
    return held.questions([reach], line.label, ["" if key == "miou" else f"those that count for {SCORES[key]}"])


def over_seeds(comparison: Comparison | None, decoding: str = "greedy", *, words: bool = False) -> style.Figure | None:
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
    caption = _runs_caption(comparison, test, many, rows[0][1] is first)
    fig, places = style.panels(
        list(shown.values()), title, caption, _RUN_ROW * len(rows) + 10, columns=5, gap=0.03, shared_yaxes=True
    )
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
            interval = spread.interval.times(100) if spread.varies else _UNKNOWN
            ends += [*interval, *known.values()] if spread.varies else known.values()
            between = f"<br>95 % interval {interval.text()}, sd {100 * spread.sd:.1f}" if spread.varies else ""
            if gap:
                between += f"<br>{100 * gap.mean:+.1f} against {style.plain(first.label, 30)}, paired by seed"
                between += f" ({gap.interval.times(100).text('+.1f')})" if gap.varies else ""
            mean = 100 * spread.mean
            fig.add_scatter(
                x=[mean], y=[place - 0.1], mode="markers", showlegend=False,
                marker=style.mark(look, 1.5), error_x=style.error_bars([mean], [interval]),
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
    style.name_rows(fig, names)
    return fig


def _row_name(model: str, setting: Setting, test: RunsOfOneTest) -> str:
    label = style.plain(setting.label, 24)
    if len(test.settings) > MANY:
        return label
    title = setting.runs[0].title(model)
    return f"{title} {label}" if len(test.settings) > 1 else title


def _runs_caption(comparison: Comparison, test: RunsOfOneTest, many: bool, drawn: bool) -> str:
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
