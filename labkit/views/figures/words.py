"""Whether the words of thoughts are true: in the embedded world each one can be held against what the clip shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.embedded.true_words import KINDS
from labkit.views.figures import style

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROW = 40


def true_words(figures: Mapping[str, Mapping[str, float | None]], title: str = "Are the words true?") -> go.Figure:
    """Share of true words by kind, one line for each label, with a bar where chance is; `figures` are flat ones by label.

    Figures are those of `labkit.embedded.true_words.word_figures`; a label without them is left out.
    """
    shown = {label: each for label, each in figures.items() if "distinct_thoughts" in each}
    if not shown:
        return style.nothing(title, "only clips of the embedded world say what is true of them")
    labels = style.in_stage_order(shown)
    looks = style.looks(labels)
    caption = (
        "Words that are true of the asked thing and event, in percent of all of their kind. Hollow bars: what the same words would "
        "have, dealt out at random among the queries. Colour and shape stand in the query, and so does the action unless there are "
        "options; place and time do not. No reward reads any of them. "
        f"Distinct thoughts, object words and numbers blanked: {_distinct(shown, labels)}."
    )
    fig, places = style.panels(
        list(KINDS.values()), title, caption, _ROW * len(labels) + 6, columns=5, gap=0.035, shared_yaxes=True
    )
    for kind, (row, col) in zip(KINDS, places, strict=True):
        for place, label in enumerate(labels):
            true, said = shown[label].get(f"true_{kind}"), shown[label].get(f"said_{kind}")
            chance = shown[label].get(f"chance_{kind}")
            if true is None or chance is None or not said:
                fig.add_annotation(
                    x=0, y=place, text="none said", xanchor="left", font={"size": 10.5}, row=row, col=col
                )
                continue
            fig.add_bar(
                x=[100 * chance], y=[place], orientation="h", width=0.42, showlegend=False, hoverinfo="skip",
                marker={"color": "rgba(0, 0, 0, 0)", "line": {"color": style.FAINT, "width": 1}}, row=row, col=col,
            )  # fmt: skip
            fig.add_scatter(
                x=[100 * true], y=[place], mode="markers+text", text=[f"{100 * true:.1f} of {said:,.0f}"],
                textposition="top left" if true > 0.7 else "top center",
                textfont={"size": 10.5, "color": style.TEXT}, showlegend=False, cliponaxis=False,
                marker={"symbol": looks[label].symbol, "size": 9, "color": looks[label].color,
                        "line": {"width": 2, "color": looks[label].color}},
                hovertemplate=f"{style.plain(label)}: %{{x:.1f}} % of {said:,.0f} true, {100 * chance:.1f} % by chance"
                "<extra></extra>", row=row, col=col,
            )  # fmt: skip
        fig.update_xaxes(range=[0, 125], tickvals=[0, 50, 100], row=row, col=col, zeroline=False)
    names = [style.plain(label, 40) for label in labels]
    fig.update_layout(barmode="overlay")
    fig.update_yaxes(range=[len(labels) - 0.4, -0.8], showgrid=False, zeroline=False)
    return fig.update_yaxes(tickvals=list(range(len(labels))), ticktext=names, row=1, col=1)


def _distinct(shown: Mapping[str, Mapping[str, float | None]], labels: list[str]) -> str:
    return ", ".join(
        f"{style.plain(label, 40)} {shown[label]['distinct_thoughts']:,.0f} of {shown[label]['n']:,.0f}"
        for label in labels
    )
