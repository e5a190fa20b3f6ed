"""Tables of text, as a terminal, a notebook and a page of Markdown show them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Table:
    """A title, column heads, rows of the same length, and a note below them; all but the rows may be empty.

    `align` has an "l" or "r" for each column, of which the last one holds for all further columns. Without it columns of numbers
    are aligned to the right. What stands between two backticks is code in HTML.

    >>> print(Table("", ("", "mIoU"), [("base", "31.5"), ("final", "-")], align="lr"))
           mIoU
    base   31.5
    final     -
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    align: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The table for a program."""
        return {name: value for name, value in asdict(self).items() if name != "align"}

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = self._sides()
        margin = "  " if self.title else ""

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(cells, widths, sides, strict=True)
            )
            return (margin + "  ".join(padded)).rstrip()

        notes = [f"{margin}{part}" for part in self.note.splitlines()]
        return "\n".join([*filter(None, [self.title]), *map(line, lines), *notes])

    def _repr_html_(self) -> str:
        styles = [f"text-align:{'right;white-space:nowrap' if side == 'r' else 'left'}" for side in self._sides()]

        def line(cells: Sequence[str], tag: str) -> str:
            parts = (
                f'<{tag} style="{style}">{_code(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        head = line(self.head, "th") if any(self.head) else ""
        title = f"<b>{html.escape(self.title)}</b>" if self.title else ""
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"{title}<table>{head}{''.join(line(row, 'td') for row in self.rows)}</table>{note}"

    def markdown(self) -> str:
        """Head and rows, whose cells are Markdown."""
        rule = [{"l": ":--", "r": "--:"}[side] for side in self._sides()]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in [self.head, rule, *self.rows])

    def _lines(self) -> list[Sequence[str]]:
        return [*([self.head] if any(self.head) else []), *self.rows]

    def _sides(self) -> list[str]:
        """One of "l" and "r" for each column."""
        if self.align:
            count = len(self.head or next(iter(self.rows), ()))
            return list(self.align.ljust(count, self.align[-1]))[:count]
        rows = self.rows or [self.head]
        return ["r" if all(cell[:1].isdigit() for cell in column) else "l" for column in zip(*rows, strict=True)]


def repr_pretty(shown: object, printer: Any, cycle: bool) -> None:
    """`_repr_pretty_` of a class with HTML of its own: a front end without HTML shows what `print` shows, not the repr."""
    printer.text(str(shown))


def _code(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))


def percent(value: float | None) -> str:
    """A fraction as a table's percent, "-" where there is none.

    >>> percent(0.8251), percent(None), percent(math.nan)
    ('82.5', '-', '-')
    """
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"
