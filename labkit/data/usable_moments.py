"""The usable moments of a file of any length, as columns, with every issue that was met on the way to them."""

from __future__ import annotations

import html
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.table import Table

RULES = {
    "malformed row": "a row that lacks what its format asks for cannot be read",
    "duplicate id": "the first row keeps the id",
    "empty query": "there is nothing to be found",
    "options": "which option is the right answer cannot be known",
    "no duration": "the trim window's length is taken, or the video is measured; with neither the row is of no use",
    "clip window": "where trim window and duration differ the shorter holds; without a true window the row is of no use",
    "already cut": "the video at hand is as long as the trim window and ends before it, so that it is read whole",
    "no frame rate": "labels count frames and the file does not say how many make a second: the video is measured",
    "several annotators": "the label is taken that its owners' measure scores best against all of them",
    "window past the video": "most of the trim window lies in the video, which is taken for the whole one: if it is the "
    "clip itself, name it ID_start_end",
    "foreign path": "what lies behind a link or on another system is looked for by its name, in the folder of videos",
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
"""What is done about each kind of fault, and why; whether a row was repaired or dropped says its issue."""


@dataclass(frozen=True, slots=True)
class Issue:
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


Shared = tuple[str, Span | None, str, tuple[str, ...], int | None, bool]
"""What the queries of one video have in common: video, clip, source, options, choice and as_set."""
Fields = tuple[str, str, Sequence[Sequence[float]], float, Shared]
"""What a Moment is made of: qid, query, windows as pairs of seconds, duration, and the rest."""


def made_of(fields: Fields) -> Moment:
    """The moment. Raises BadField."""
    qid, query, windows, duration, (video, *rest) = fields
    return Moment(qid, video, query, tuple([Span(*pair) for pair in windows]), duration, *rest)  # type: ignore[arg-type]


class MomentColumns:
    """Moments of a file of any length, kept as columns; each is made anew, and checked, when it is asked for.

    >>> moments = MomentColumns([("q1", "it blinks", [[1.0, 4.0]], 12.0, ("/videos/a.mp4", None, "", (), None, False))])
    >>> moments[-1].windows, moments[0] is moments[0]
    ((Span(start=1.0, end=4.0),), False)
    """

    def __init__(self, moments: Iterable[Fields]) -> None:
        """Take their fields one by one; what several share is held once where they share the object."""
        self._qids, self._queries, self._shared = qids, queries, shared = list[str](), list[str](), list[Shared]()
        self._durations, self._ends, self._stops = durations, ends, stops = array("d"), array("d"), array("q", [0])
        for qid, query, windows, duration, rest in moments:
            qids.append(qid)
            queries.append(query)
            durations.append(duration)
            for window in windows:
                ends.extend(window)
            stops.append(len(ends))
            shared.append(rest)

    def __len__(self) -> int:
        return len(self._qids)

    def __getitem__(self, k: int) -> Moment:
        k = range(len(self))[k]
        ends = self._ends[self._stops[k] : self._stops[k + 1]]
        windows = list(zip(ends[::2], ends[1::2], strict=True))
        return made_of((self._qids[k], self._queries[k], windows, self._durations[k], self._shared[k]))


class Moments(Sequence[Moment]):
    """The usable moments of a file, in its order, with all that was found wrong on the way.

    `rows` counts the queries that the file holds; `source` names the benchmark or the format, and the file.
    """

    def __init__(
        self, moments: Sequence[Moment] | MomentColumns, rows: int, issues: Sequence[Issue], source: str
    ) -> None:
        """Keep copies; `load_moments` makes one from a file."""
        self._moments = moments if isinstance(moments, MomentColumns) else tuple(moments)
        self.issues = tuple(issues)
        self.rows, self.source = rows, source

    def __len__(self) -> int:
        return len(self._moments)

    @overload
    def __getitem__(self, index: int) -> Moment: ...

    @overload
    def __getitem__(self, index: slice) -> list[Moment]: ...

    def __getitem__(self, index: int | slice) -> Moment | list[Moment]:
        if isinstance(index, slice):
            return [self._moments[k] for k in range(len(self))[index]]
        return self._moments[index]

    def __iter__(self) -> Iterator[Moment]:
        return map(self._moments.__getitem__, range(len(self)))

    def counts(self) -> dict[str, int]:
        """How many issues there are of each kind, in the order of RULES; kinds that did not occur are left out."""
        found = Counter(issue.kind for issue in self.issues)
        return {kind: found[kind] for kind in RULES if kind in found}

    def listing(self, kind: str | None = None) -> str:
        """All issues, or those of one kind, one a line, in the file's order; "" where there are none.

        Raises LabError when `kind` is not a kind of issue.
        """
        if kind is not None and kind not in RULES:
            raise LabError(f"'{kind}' is no kind of issue; the kinds are {', '.join(RULES)}")
        return "\n".join(str(issue) for issue in self.issues if kind in (None, issue.kind))

    def _summary(self) -> list[tuple[str, str, str]]:
        """Count, kind and what was done, a line for each kind and action."""
        found = Counter((issue.kind, issue.action) for issue in self.issues)
        order = sorted(found, key=lambda pair: (list(RULES).index(pair[0]), pair[1]))
        return [(f"{found[pair]:,}", pair[0], f"{pair[1]}: {RULES[pair[0]]}") for pair in order]

    def _heading(self) -> str:
        return f"{len(self):,} usable moments of {self.rows:,} rows"

    def __str__(self) -> str:
        lines = [f"{count:>8}  {kind}, {done}" for count, kind, done in self._summary()]
        return "\n".join([f"{self.source}: {self._heading()}", *lines])

    def __repr__(self) -> str:
        return f"<Moments {self.source}: {self._heading()}, {len(self.issues):,} issues>"

    def _repr_html_(self) -> str:
        title = f"<p><b>{html.escape(self.source)}</b>: {self._heading()}</p>"
        rows = self._summary()
        return title + Table("", (), rows, align="rll")._repr_html_() if rows else title
