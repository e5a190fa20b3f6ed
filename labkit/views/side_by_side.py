"""Several models' predictions side by side: what `labkit explore` prints, and the page that it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.files import replacing
from labkit.scoring.answers import joined_by
from labkit.scoring.predictions import Predictions, read_predictions
from labkit.scoring.score_table import both_ends, labelled, score_table
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import explore
from labkit.views.measured_chains import MeasuredChain, measure_chains, with_predictions
from labkit.views.text_bars import BarLines

_QUERIES = 3
"""Queries that are shown as text."""
_LABEL = 26
_SPAN = 30


def explore_files(
    files: Sequence[str | Path],
    moments: str,
    *,
    videos: str | None = None,
    rules: str | None = None,
    html: str | Path | None = None,
    ascii_only: bool = False,
    width: int = 110,
) -> str:
    """Score the files in one table, show the queries on which they are furthest apart as bars, and write a page to `html`.

    Raises: LabError as `labkit.score`, and where the page can't be written.
    """
    questions = load_moments(moments, videos=videos)
    found = {label: read_predictions(path).on(questions) for label, path in labelled(files).items()}
    chains, _ = with_predictions(found, questions, rules)
    rows = measure_chains(chains, {moment.qid: moment for moment in questions})
    parts = [_scores(found, questions, rules), *_queries(rows, list(found), width, ascii_only)]
    if html is None:
        parts.append(
            "--html PAGE.html writes a page to look through all of them, which needs neither kernel nor network."
        )
    else:
        of = Path(moments).name if Path(moments).is_file() else moments  # no path of somebody's disk in a page
        title = ", ".join(found) if len(found) < 4 else f"{len(found)} models"
        page = widget_page(explore(found, questions, rules=rules), f"{title} on {of}", path=html)
        try:
            with replacing(html) as draft:
                draft.write_text(page, encoding="utf-8")
        except OSError as error:
            raise LabError(f"'{html}' cannot be written ({error.strerror}); give another file") from None
        parts.append(f"{html}: {len(rows):,} chains, {len(page) / 1e6:.1f} MB; opens in any browser.")
    return "\n\n".join(parts)


def _scores(found: Mapping[str, Predictions], questions: Sequence[Moment], rules: str | None) -> str:
    """The table over the moments that have a truth, and how many answers aren't scored because theirs has none."""
    told = [moment for moment in questions if moment.has_truth]
    unknown = {moment.qid for moment in questions if not moment.has_truth}
    if not told:
        return "\n".join(["No moment has a truth, so that nothing is scored.", *map(_counted, found, found.values())])
    table = str(score_table({label: _without(each, unknown) for label, each in found.items()}, told, rules=rules))
    if not unknown:
        return table
    shown = sum(qid in unknown for each in found.values() for qid in each.rows)
    return (
        f"{table}\n\n{len(unknown):,} of the {len(questions):,} moments have no truth: the {shown:,} answers to them are shown "
        "and not scored."
    )


def _without(predictions: Predictions, qids: set[str]) -> Predictions:
    rows = {qid: row for qid, row in predictions.rows.items() if qid not in qids}
    return replace(predictions, rows=rows, duplicates=tuple(qid for qid in predictions.duplicates if qid not in qids))


def _counted(label: str, predictions: Predictions) -> str:
    return f"{label}: {len(predictions.rows):,} answers, joined {joined_by(predictions.joined)}"


def _queries(rows: Sequence[MeasuredChain], labels: Sequence[str], width: int, ascii_only: bool) -> list[str]:
    """The queries on which models are furthest apart, or the worst of one model, as text; without truths the first ones."""
    by_query: dict[str, dict[str, MeasuredChain]] = {}
    for row in rows:
        by_query.setdefault(row.moment.qid, {}).setdefault(row.stage, row)  # the first sample

    def spread(answers: dict[str, MeasuredChain]) -> float:
        ious = [row.answer_iou for row in answers.values()]
        return max(ious) - min(ious) if len(labels) > 1 else -ious[0]

    told = [each for each in by_query.values() if next(iter(each.values())).moment.has_truth]
    chosen = (sorted(told, key=spread, reverse=True) or list(by_query.values()))[:_QUERIES]
    head = "The first queries:"
    if told:
        head = "Where they are furthest apart:" if len(labels) > 1 else "The worst answers:"
    return [head, *(_query(answers, labels, width, ascii_only) for answers in chosen)]


def _query(answers: dict[str, MeasuredChain], labels: Sequence[str], width: int, ascii_only: bool) -> str:
    moment = next(iter(answers.values())).moment
    bars = BarLines(moment.duration, width, _LABEL, _SPAN, ascii_only)

    def seconds(spans: Sequence[Span]) -> str:
        return ", ".join(f"{span.start:.1f} to {span.end:.1f} s" for span in spans[:1]) + (
            ", ..." if len(spans) > 1 else ""
        )

    lines = [f'"{moment.query}"  {Path(moment.video).name}, {moment.qid}']
    if moment.has_truth:
        lines.append(bars.line("truth", moment.windows, seconds(moment.windows), sure=False))
    for label in labels:
        row, short = answers.get(label), both_ends(label, _LABEL - 1)
        if row is None:
            lines.append(bars.line(short, (), "not answered"))
            continue
        answer, iou = row.chain.answer, row.answer_iou
        said = "no answer" if answer is None else seconds(answer.parts)
        said = said if math.isnan(iou) else f"{said:<17}IoU {iou:.2f}"
        lines.append(bars.line(short, [] if answer is None else [answer], said))
    return "\n".join([*lines, bars.axis()])
