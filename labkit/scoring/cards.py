"""How scores look: in a terminal, and in a notebook."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labkit.scoring.average_precision import AP_THRESHOLDS
from labkit.scoring.bootstrap import few_videos

if TYPE_CHECKING:
    from labkit.scoring.bootstrap import Interval
    from labkit.scoring.contrasts import Disagreement
    from labkit.scoring.scores import Paired, Score

TITLES = {
    "miou": "mIoU",
    "r1@0.3": "R1@0.3",
    "r1@0.5": "R1@0.5",
    "r1@0.7": "R1@0.7",
    "r1@0.9": "R1@0.9",
    "map": "mAP",
    "map_short": "mAP short, to 10 s",
    "map_middle": "mAP middle, to 30 s",
    "map_long": "mAP long",
    **{f"map@{m}": f"mAP@{m}" for m in AP_THRESHOLDS},
    "acc_qa": "Acc@QA",
    "acc_gqa": "Acc@GQA",
    "miop": "mIoP",
    "iop@0.3": "IoP@0.3",
    "iop@0.5": "IoP@0.5",
}
"""What figures are called where people read them."""


def printed(shown: object, printer: Any, cycle: bool) -> None:
    """As `_repr_pretty_` of a class: a viewer without HTML shows what `print` shows."""
    printer.text(str(shown))


def score_card(score: Score) -> str:
    """A score's table, then its protocol card."""
    return f"{_text(_score_rows(score))}\n{_score_note(score)}\n\n{score.protocol}"


def score_card_html(score: Score) -> str:
    """The same for a notebook."""
    return _html(_score_rows(score), _score_note(score)) + _html(
        [["protocol", ""], *map(list, score.protocol.lines())]
    )


def paired_card(paired: Paired) -> str:
    """Both models' figures, their difference, and how many questions each wins."""
    return f"{_text(_paired_rows(paired))}\n{_paired_note(paired)}"


def paired_card_html(paired: Paired) -> str:
    """The same for a notebook."""
    return _html(_paired_rows(paired), _paired_note(paired))


def rules_card(scores: Mapping[str, Score]) -> str:
    """One set of texts under each rule, line by line, and below what each rule does."""
    notes = "\n".join(f"{name}: {score.protocol.reading}" for name, score in scores.items())
    return f"{_text(_rule_rows(scores))}\n(percent)\n\n{notes}"


def rules_card_html(scores: Mapping[str, Score]) -> str:
    """The same for a notebook, with what each rule does in its own line."""
    head, *rows = _rule_rows(scores)
    notes = [score.protocol.reading for score in scores.values()]
    return _html(
        [[*head, "what it does"], *([*row, note] for row, note in zip(rows, notes, strict=True))], "percent", 1
    )


def disagreements_html(found: Sequence[Disagreement]) -> str:
    """Texts that rules read differently, a line for each rule and kind."""
    if not found:
        return "<p>Every rule reads every text as labkit does.</p>"
    rows = [["rules", "texts", "labkit", "there", "an example of what it does"]]
    return _html([*rows, *([each.rule, f"{each.count:,}", *each.pairs, each.account] for each in found)], "", 1)


def _score_rows(score: Score) -> list[list[str]]:
    level = f"{100 * score.protocol.level:g} % interval"
    rows = [["", "score", level, *score.baselines]]
    for name, value in score.figures.items():
        blind = [_percent(figures.get(name, math.nan)) for figures in score.baselines.values()]
        rows.append([TITLES.get(name, name), _percent(value), _between(score.intervals.get(name)), *blind])
    return rows


def _score_note(score: Score) -> str:
    """What to know before believing the table."""
    card = score.protocol
    notes = [few_videos(card.videos)]
    if card.unread:
        notes.append(f"Nothing was read in {100 * card.parse_failure_rate:.0f} % of the predictions: {card.unread}.")
    if card.cut_line:
        notes.append(f"The predictions' file broke off in line {card.cut_line:,}.")
    return " ".join(filter(None, ["Percent.", *notes]))


def _paired_rows(paired: Paired) -> list[list[str]]:
    level = f"{100 * paired.first.protocol.level:g} % interval"
    rows = [["", "first", "second", "difference", level, "p"]]
    for name, gap in paired.differences.items():
        low, high = gap.interval
        between = "-" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
        figures = [_percent(score.figures[name]) for score in (paired.first, paired.second)]
        p = "-" if math.isnan(gap.p) else "<0.001" if gap.p < 0.001 else f"{gap.p:.3f}"
        rows.append([TITLES.get(name, name), *figures, f"{100 * gap.value:+.1f}", between, p])
    return rows


def _paired_note(paired: Paired) -> str:
    first, second = (score.protocol.predictions or "not stated" for score in (paired.first, paired.second))
    return (
        f"first: {first}, second: {second}. Percent; of {paired.first.protocol.rows:,} questions the first is better on "
        f"{paired.wins:,}, the second on {paired.losses:,}, equal on {paired.ties:,} (by IoU). p is two-sided. "
        f"{few_videos(paired.first.protocol.videos)}"
    ).rstrip()


def _rule_rows(scores: Mapping[str, Score]) -> list[list[str]]:
    names = ("miou", "r1@0.3", "r1@0.5", "r1@0.7")
    rows = [["rules", *(TITLES[name] for name in names), "threshold", "nothing read"]]
    for rule, score in scores.items():
        figures = [_percent(score.figures[name]) for name in names]
        rows.append([rule, *figures, score.protocol.reaches, _percent(score.protocol.parse_failure_rate)])
    return rows


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _between(interval: Interval | None) -> str:
    if interval is None or math.isnan(interval.low):
        return "-"
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join(lines)


def _html(rows: Sequence[Sequence[str]], note: str = "", prose: int = 0) -> str:
    """A table whose first row is its head; the first cell of a row is its name, and the last `prose` ones are sentences."""
    lines = []
    for number, row in enumerate(rows):
        tag, cells = "td" if number else "th", []
        for place, cell in enumerate(row):
            sentence = place == 0 or place >= len(row) - prose or len(row) == 2
            style = "text-align:left" if sentence else "text-align:right;white-space:nowrap"
            text = html.escape(cell)
            if place >= len(row) - prose:  # what stands between two backticks is code
                text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
            cells.append(f'<{tag} style="{style}">{text}</{tag}>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>" + (f"<p>{html.escape(note)}</p>" if note else "")
