"""Several models' predictions side by side: what `labkit explore` prints, and the page that it writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments
from labkit.errors import LabError
from labkit.files import replacing
from labkit.scoring.predictions import Predictions, read_predictions
from labkit.scoring.score_table import labelled, score_table
from labkit.views.explorer import packing
from labkit.views.explorer.packing import StagedChain
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import explore
from labkit.views.text_bars import MARKS, axis, bar

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
    told = [moment for moment in questions if moment.has_truth]
    if told:
        head = str(score_table(found, told, rules=rules))
    else:
        head = "\n".join(["No moment has a truth, so that nothing is scored.", *map(_counted, found, found.values())])
    rows = packing.staged_chains(packing.with_predictions(found, questions, rules)[0], {m.qid: m for m in questions})
    parts = [head, *_queries(rows, list(found), width, ascii_only)]
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


def _counted(label: str, predictions: Predictions) -> str:
    joined = ", ".join(f"{count:,} by {key}" for key, count in predictions.joined.items())
    return f"{label}: {len(predictions.rows):,} answers, joined {joined}"


def _queries(rows: Sequence[StagedChain], labels: Sequence[str], width: int, ascii_only: bool) -> list[str]:
    """The queries on which models are furthest apart, or the worst of one model, as text."""
    by_query: dict[str, dict[str, StagedChain]] = {}
    for row in rows:
        by_query.setdefault(row.measured.moment.qid, {}).setdefault(row.stage, row)  # the first sample

    def spread(answers: dict[str, StagedChain]) -> float:
        ious = [row.measured.answer_iou for row in answers.values()]
        apart = max(ious) - min(ious) if len(labels) > 1 else -ious[0]
        return -math.inf if math.isnan(apart) else apart

    chosen = sorted(by_query.values(), key=spread, reverse=True)[:_QUERIES]
    head = "Where they are furthest apart:" if len(labels) > 1 else "The worst answers:"
    return [head, *(_query(answers, labels, width, ascii_only) for answers in chosen)]


def _query(answers: dict[str, StagedChain], labels: Sequence[str], width: int, ascii_only: bool) -> str:
    full, half, rest = MARKS[ascii_only]
    moment = next(iter(answers.values())).measured.moment
    room = max(10, width - _LABEL - _SPAN)

    def line(label: str, spans: Sequence[Span], mark: str, said: str) -> str:
        short = label if len(label) < _LABEL else f"{label[: _LABEL - 4]}..."
        return f"{short:<{_LABEL}}{bar(spans, moment.duration, room, mark, rest)}  {said}"

    def seconds(spans: Sequence[Span]) -> str:
        return ", ".join(f"{span.start:.1f} to {span.end:.1f} s" for span in spans[:1]) + (
            ", ..." if len(spans) > 1 else ""
        )

    lines = [f'"{moment.query}"  {Path(moment.video).name}, {moment.qid}']
    if moment.has_truth:
        lines.append(line("truth", moment.windows, half, seconds(moment.windows)))
    for label in labels:
        row = answers.get(label)
        if row is None:
            lines.append(line(label, (), full, "not answered"))
            continue
        answer, iou = row.measured.chain.answer, row.measured.answer_iou
        said = "no answer" if answer is None else seconds([answer])
        lines.append(
            line(
                label,
                [] if answer is None else [answer],
                full,
                said if math.isnan(iou) else f"{said:<17}IoU {iou:.2f}",
            )
        )
    return "\n".join([*lines, " " * _LABEL + axis(moment.duration, room)])
