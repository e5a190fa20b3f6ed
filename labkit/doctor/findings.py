"""Findings of the doctor, each with a next step, and its report of them with tables, as text, HTML and JSON."""

from __future__ import annotations

import html
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from labkit.table import Table

LEVELS = ("error", "warning", "note")
"""error: a run would fail. warning: a run would go on, with something lost or wrong. note: worth knowing."""
MAX_SHOWN = 5
"""Findings of one kind that are shown in full."""


class Finding(NamedTuple):
    """One finding of the doctor: an error, a warning or a note."""

    level: str
    """One of LEVELS."""
    kind: str
    """What sort of thing, such as "missing video": findings of one kind are shown together."""
    subject: str
    """What it is about: a package, a parameter, a file, a question."""
    message: str
    next_step: str = ""

    def line(self) -> str:
        """The finding as one line.

        >>> Finding("error", "missing video", "a.mp4", "is not there", "put it there").line()
        'a.mp4 is not there; put it there'
        """
        return f"{self.subject} {self.message}" + (f"; {self.next_step}" if self.next_step else "")


@dataclass
class DoctorReport:
    """The findings, tables and figures of `labkit doctor`."""

    title: str
    findings: list[Finding] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    """Figures for a program, which no table shows in full."""

    @property
    def exit_code(self) -> int:
        """1 when a run would fail, otherwise 0."""
        return int(any(finding.level == "error" for finding in self.findings))

    def of(self, level: str) -> list[Finding]:
        """Findings of a level."""
        return [finding for finding in self.findings if finding.level == level]

    def verdict(self) -> str:
        """The report in one sentence."""
        counts = Counter(finding.level for finding in self.findings)
        counted = ", ".join(_plural(counts[level], level) for level in LEVELS if counts[level]) or "nothing to report"
        return f"{counted}: {'a run would fail' if self.exit_code else 'a run can start'}"

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "title": self.title,
            "exit_code": self.exit_code,
            "verdict": self.verdict(),
            "findings": [finding._asdict() for finding in self.findings],
            "tables": [table.as_dict() for table in self.tables],
            **self.data,
        }

    def __str__(self) -> str:
        blocks = [self.title, *map(str, self.tables)]
        for level in LEVELS:
            if findings := self.of(level):
                lines = [f"{level}s"]
                for kind, group in _by_kind(findings):
                    lines += [f"  {kind} ({len(group)})" if len(group) > 1 else f"  {kind}"]
                    lines += [f"    {finding.line()}" for finding in group[:MAX_SHOWN]]
                    if len(group) > MAX_SHOWN:
                        lines.append(f"    and {len(group) - MAX_SHOWN} more; --json lists them all")
                blocks.append("\n".join(lines))
        return "\n\n".join([*blocks, self.verdict()])

    def _repr_html_(self) -> str:
        blocks = [f"<h4>{html.escape(self.title)}</h4>", *(table._repr_html_() for table in self.tables)]
        for level in LEVELS:
            for kind, group in _by_kind(self.of(level)):
                rows = "".join(f"<li>{html.escape(finding.line())}</li>" for finding in group[:MAX_SHOWN])
                more = f"<li>and {len(group) - MAX_SHOWN} more</li>" if len(group) > MAX_SHOWN else ""
                blocks.append(f"<b>{level}: {html.escape(kind)}</b> ({len(group)})<ul>{rows}{more}</ul>")
        return "".join([*blocks, f"<p><b>{html.escape(self.verdict())}</b></p>"])


def _by_kind(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    """Findings by kind, kinds in the order in which they first came."""
    order = {kind: place for place, kind in enumerate(dict.fromkeys(finding.kind for finding in findings))}
    ordered = sorted(findings, key=lambda finding: order[finding.kind])
    return [(kind, list(group)) for kind, group in itertools.groupby(ordered, key=lambda finding: finding.kind)]


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("s" if count != 1 else "")


def size_text(count: float) -> str:
    """Bytes as people read them.

    >>> size_text(512), size_text(2.5e6), size_text(7.8e10)
    ('512 B', '2.5 MB', '78 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.1f} {unit}" if count < 10 and unit != "B" else f"{count:,.0f} {unit}"
        count /= 1000
    raise AssertionError
