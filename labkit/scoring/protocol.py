"""The protocol card: everything that must be equal before two scores may be compared."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from labkit.scoring.answers import joined_by
from labkit.scoring.bootstrap import few_videos

SETTINGS = (
    "model",
    "prompt",
    "thinking",
    "decoding",
    "temperature",
    "max_new_tokens",
    "fps",
    "max_frames",
    "min_pixels",
    "max_pixels",
)
"""What a predictions file should say of how it came to be; what it doesn't say is shown as not stated."""
UNKNOWN = "not stated"


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a score was taken.

    `several` are the questions with several windows, `as_sets` those that ask for all of theirs.

    `rows` are the questions that were scored, each counting the same: the usable ones of the `listed` in the moments' file.
    `missing` have no prediction and count 0; `extra` have no moment and aren't scored; `duplicates` are predictions on a
    question that had one already. `program` wrote the predictions, "" where it is labkit's own form, and `joined` counts them by
    what they were put to their moments by. `parse_failure_rate` is the share of predictions from which no span was read, and
    `statuses` counts how they were read, and `unread` says what to do where little was. `cut_line` is the number of the last
    line of the predictions' file where it broke off. `first` names the first few of `missing`, `extra` and `duplicates`.
    """

    rules: str
    reading: str
    reaches: str
    clips: bool
    moments: str
    rows: int
    listed: int
    findings: Mapping[str, int] = field(default_factory=dict)
    predictions: str = ""
    program: str = ""
    joined: Mapping[str, int] = field(default_factory=dict)
    missing: int = 0
    extra: int = 0
    duplicates: int = 0
    first: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parse_failure_rate: float = 0.0
    statuses: Mapping[str, int] = field(default_factory=dict)
    unread: str = ""
    cut_line: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    level: float = 0.95
    videos: int = 0
    several: int = 0
    as_sets: int = 0

    def lines(self) -> list[tuple[str, str]]:
        """Name and value of each line of the card, for a terminal or a page."""
        scored = f"{self.rows:,}"
        if self.listed != self.rows:
            scored += f" usable of {self.listed:,} in the file"
        found = ", ".join(f"{kind} {count:,}" for kind, count in self.findings.items())
        statuses = ", ".join(f"{name} {count:,}" for name, count in self.statuses.items())
        rate = self.parse_failure_rate
        failures = "no prediction" if math.isnan(rate) else f"{100 * rate:.2f} % of the predictions"
        failures += f"; {self.unread}" if self.unread else ""
        cut = f"; the file broke off in line {self.cut_line:,}, which was not read" if self.cut_line else ""
        lines = [
            ("predictions", self.predictions or UNKNOWN),
            ("written by", self.program or "labkit, or in its form"),
            ("joined to moments", joined_by(self.joined)),
            ("moments", self.moments or UNKNOWN),
            ("questions scored", scored),
            ("faults in the moments", found or "none"),
            ("missing predictions", f"{self._count('missing')}, each counts 0{cut}"),
            ("extra predictions", f"{self._count('extra')}, not scored"),
            ("duplicate predictions", f"{self._count('duplicates')}, the first one counts"),
            ("rules", self.rules),
            ("answer rule", self.reading),
            ("nothing read", failures),
            ("read as", statuses or "no prediction"),
            ("threshold", f"IoU {self.reaches} m reaches R1@m"),
            ("window rule", self._window_rule()),
            ("cut to the video", "yes" if self.clips else "no"),
            ("interval", self._interval()),
        ]
        lines += [(name, _setting_text(self.settings.get(name))) for name in SETTINGS]
        return lines + [(name, _setting_text(value)) for name, value in self.settings.items() if name not in SETTINGS]

    def as_dict(self) -> dict[str, Any]:
        """The card for a program; settings that nobody stated are None, and so is a rate of nothing."""
        card = asdict(self)
        card["settings"] = dict.fromkeys(SETTINGS) | dict(self.settings)
        if math.isnan(self.parse_failure_rate):
            card["parse_failure_rate"] = None
        return card

    def __str__(self) -> str:
        lines = self.lines()
        width = max(len(name) for name, _ in lines)
        return "\n".join(
            textwrap.fill(
                value,
                110,
                initial_indent=f"{name:<{width}}  ",
                subsequent_indent=" " * (width + 2),
                break_on_hyphens=False,
            )
            for name, value in lines
        )

    def _window_rule(self) -> str:
        best = "of several truth windows the best one counts"
        if not self.several:
            return best
        by_set = f"set mIoU, tF1, C-Acc and EtF1: all windows as one set ({self.several:,} questions have several)"
        if not self.as_sets:
            return f"mIoU and R1: {best}; {by_set}"
        asked = f"as the questions ask, {self.as_sets:,} of {self.rows:,} for all windows as one set"
        return f"mIoU and R1: {asked}; best mIoU: {best}; {by_set}"

    def _interval(self) -> str:
        clusters = (
            f"{100 * self.level:g} %, clustered by {self.videos:,} source video{'' if self.videos == 1 else 's'}"
        )
        return f"{clusters}. {few}" if (few := few_videos(self.videos)) else clusters

    def _count(self, what: str) -> str:
        count, examples = getattr(self, what), self.first.get(what, ())
        if not examples:
            return f"{count:,}"
        return f"{count:,} ({', '.join(examples)}{', ...' if count > len(examples) else ''})"


def _setting_text(value: object) -> str:
    return UNKNOWN if value is None else str(value)
