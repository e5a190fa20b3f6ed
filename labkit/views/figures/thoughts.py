"""What models write: a chain's text as markup for a figure, and whether the words of thoughts are true."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from labkit.chain.anchors import option_letter
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.true_words import KINDS, word_figures
from labkit.runs import results
from labkit.runs.results import DECODINGS, ModelEvaluation
from labkit.table import Table
from labkit.views.figures import style
from labkit.views.measured_chains import MeasuredChain

if TYPE_CHECKING:
    import plotly.graph_objects as go

LINES = 4
WIDTH = 112
_HOVER_LINES, _HOVER_WIDTH = 6, 70
_MOST_SPANS = 4
"""Spans of an anchor or answer that are written out."""
_ROW = 40


class _Word(NamedTuple):
    text: str
    color: str | None = None


def thought_lines(measured: MeasuredChain, colors: Sequence[str]) -> list[str]:
    """The text as at most `LINES` lines of markup, each anchor as `[a to b s]` in the colour of its bar.

    A chosen option stands as `[B ✓]`, or `[B ✗]` where another one is right.
    Where it is longer, the words before each anchor lose their beginning, so that every anchor stays. Anchors beyond
    `colors` have the text's colour. A text that broke the form keeps its tags: they are what went wrong.
    """
    chain = measured.chain
    marks = [
        (a.begin, a.end, _times(a.span, colors[k] if k < len(colors) else style.TEXT))
        for k, a in enumerate(chain.anchors)
    ]
    if chain.answer is not None and chain.answer_chars is not None:
        marks.append((*chain.answer_chars, _times(chain.answer, style.ANSWER)))
    if chain.option is not None and chain.option_chars is not None:
        right = chain.option == measured.moment.choice
        chosen = f"[{option_letter(chain.option)} {'✓' if right else '✗'}]"
        marks.append((*chain.option_chars, _Word(chosen, style.TRUTH if right else style.WORSE)))
    # a hostile text has thousands: those that four lines can hold
    marks = marks[: LINES * WIDTH // 20]
    labels = [label for *_, label in marks]
    tags = chain.status not in ("ok", "no_anchor")
    begins, ends = [0, *(end for _, end, _ in marks)], [*(begin for begin, _, _ in marks), len(chain.text)]
    room = int(0.93 * LINES * WIDTH) - sum(len(label.text) + 1 for label in labels)
    share = _share([end - begin for begin, end in zip(begins, ends, strict=True)], room)
    words: list[_Word] = []
    for begin, end, label in zip(begins, ends, [*labels, None], strict=True):
        if label is None:
            words += _words(_head(chain.text[begin:], share), tags)
        else:
            words += [*_words(_tail(chain.text, begin, end, share), tags), label]
    return _lines(words, WIDTH, LINES) or ["<i>the model wrote nothing</i>"]


def _times(span: Span, color: str) -> _Word:
    parts = ", ".join(f"{style.seconds(part.start)} to {style.seconds(part.end)}" for part in span.parts[:_MOST_SPANS])
    return _Word(f"[{parts}{', ...' if len(span.parts) > _MOST_SPANS else ''} s]", color)


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


def true_words(figures: Mapping[str, Mapping[str, float | None]], title: str = "Are the words true?") -> go.Figure:
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
    return fig.update_yaxes(tickvals=list(range(len(labels))), ticktext=names, col=1)


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
