"""Findings: what was wrong with an annotation file, row by row, and the moments that are left to use.

Every kind of fault has one rule, stated in RULES and repeated in each finding's note. A row is repaired only where the
repair can't be argued about, and dropped otherwise; nothing disappears uncounted:
usable moments + findings with action "dropped" = rows of the file.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from labkit.data.moments import Moment
from labkit.errors import LabError

RULES = {
    "malformed row": "a row that lacks what its format asks for cannot be read",
    "duplicate id": "the first row keeps the id",
    "empty query": "there is nothing to be found",
    "options": "the right answer cannot be told among the options",
    "no duration": "the trim window's length is taken, or the video is measured; with neither the row is of no use",
    "clip window": "where trim window and duration differ the shorter holds; without a true window the row is of no use",
    "already cut": "the video at hand is as long as the trim window and ends before it, so that it is read whole",
    "no frame rate": "labels count frames and the file does not say how many make a second: the video is measured",
    "window past the video": "most of the trim window lies in the video, which is taken for the whole one: if it is the "
    "clip itself, name it ID_start_end",
    "path of elsewhere": "what lies behind a link or on another system is looked for by its name, in the folder of videos",
    "no window": "there is no label",
    "start after end": "which end is wrong cannot be known",
    "start past the end": "the label begins where the clip has ended, or later",
    "before the clip": "the label ends where the clip begins, or before",
    "point": "a label without a length is widened by 0.5 s to each side, inside the clip",
    "negative start": "the label is cut to begin with the clip",
    "end past the clip": "the label is cut to the clip's duration",
    "unknown field": "a moment has no such field, so that it is not used",
    "duplicate video names": "of several files by one name the one with the published suffix is used, or else the first",
}
"""What is done about each kind of fault, and why; whether a row was repaired or dropped says its finding."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault of one row: what it is, what became of it, and where it stands.

    `kind` is one of RULES. `action` is "repaired" (the moment is used), "dropped" (it is not), or "noted" (nothing had to
    be done). `line` is the line of a text file, counted from 1; in a JSON file it is the row or key, counted from 0.
    """

    kind: str
    action: str
    file: str
    line: int | str
    qid: str
    value: str
    note: str

    @property
    def place(self) -> str:
        """File and line, as a message names them."""
        return f"{self.file}, {f'line {self.line}' if isinstance(self.line, int) else self.line}"

    def __str__(self) -> str:
        name = f"{self.qid}: " if self.qid else ""
        return f"{self.place}: {name}{self.kind} ({self.value}), {self.action}: {self.note}"


class Moments(Sequence[Moment]):
    """The usable moments of a file, in its order, with all that was found wrong on the way.

    `rows` counts the queries that the file holds; `source` names the benchmark or the format, and the file.
    """

    def __init__(self, moments: Sequence[Moment], rows: int, findings: Sequence[Finding], source: str) -> None:
        """Keep copies; `load_moments` makes one from a file."""
        self._moments, self.findings = tuple(moments), tuple(findings)
        self.rows, self.source = rows, source

    def __len__(self) -> int:
        return len(self._moments)

    @overload
    def __getitem__(self, index: int) -> Moment: ...

    @overload
    def __getitem__(self, index: slice) -> list[Moment]: ...

    def __getitem__(self, index: int | slice) -> Moment | list[Moment]:
        return list(self._moments[index]) if isinstance(index, slice) else self._moments[index]

    def __iter__(self) -> Iterator[Moment]:
        return iter(self._moments)

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind, in the order of RULES; kinds that did not occur are left out."""
        found = Counter(finding.kind for finding in self.findings)
        return {kind: found[kind] for kind in RULES if kind in found}

    def listing(self, kind: str | None = None) -> str:
        """All findings, or those of one kind, one a line, in the file's order; "" where there are none.

        Raises LabError when `kind` is not a kind of finding.
        """
        if kind is not None and kind not in RULES:
            raise LabError(f"'{kind}' is no kind of finding; the kinds are {', '.join(RULES)}")
        return "\n".join(str(finding) for finding in self.findings if kind in (None, finding.kind))

    def _summary(self) -> list[tuple[str, str, str]]:
        """Count, kind and what was done, a line for each kind and action."""
        found = Counter((finding.kind, finding.action) for finding in self.findings)
        order = sorted(found, key=lambda pair: (list(RULES).index(pair[0]), pair[1]))
        return [(f"{found[pair]:,}", pair[0], f"{pair[1]}: {RULES[pair[0]]}") for pair in order]

    def _heading(self) -> str:
        return f"{len(self):,} usable moments of {self.rows:,} rows"

    def __str__(self) -> str:
        lines = [f"{count:>8}  {kind}, {done}" for count, kind, done in self._summary()]
        return "\n".join([f"{self.source}: {self._heading()}", *lines])

    def __repr__(self) -> str:
        return f"<Moments {self.source}: {self._heading()}, {len(self.findings):,} findings>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><td style="text-align:right">{count}</td><td style="text-align:left">{kind}</td>'
            f'<td style="text-align:left">{done}</td></tr>'
            for count, kind, done in self._summary()
        )
        title = f"<p><b>{html.escape(self.source)}</b>: {self._heading()}</p>"
        return f"{title}<table>{rows}</table>" if rows else title
