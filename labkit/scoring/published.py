"""Published figures of a benchmark, to stand beside a score and never in one table with it: each has a protocol of its own.

They are data: published.yaml, which says of each what is known of its protocol and where it was read.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from labkit.data.moments import Moment
from labkit.scoring.scores import HEADLINE, TITLES
from labkit.table import Table

_TRAINING_FILE = re.compile(r"train[^/\\]*$")


def published_figures(moments: Sequence[Moment]) -> Table | None:
    """What others have published on the benchmark that all these moments come from; None where nothing is known of it.

    Nor where these are more than its test split holds, or of a file that is called one for training.

    >>> from labkit.chain.spans import Span
    >>> asked = [Moment("q1", "/v/AO8RW.mp4", "a door opens", (Span(0, 10),), 40.0, source="charades-sta")]
    >>> published_figures(asked).title
    'Published on Charades-STA, test (3,720 questions; here 1): each is another protocol'
    """
    sources = {moment.source for moment in moments}
    benchmark = _published().get(next(iter(sources))) if len(sources) == 1 else None
    if benchmark is None:
        return None
    questions = benchmark.get("questions")
    trained_on = _TRAINING_FILE.search(getattr(moments, "source", "")) is not None
    if trained_on or (questions and getattr(moments, "rows", len(moments)) > questions):
        return None
    counted = f" ({questions:,} questions; here {len(moments):,})" if questions and questions != len(moments) else ""
    rows = [
        (
            row["model"],
            *(f"{row[name]:.1f}" if name in row else "-" for name in HEADLINE),
            row["protocol"],
            row["read in"],
        )
        for row in benchmark["rows"]
    ]
    return Table(
        f"Published on {benchmark['name']}{counted}: each is another protocol",
        ("", *(TITLES[name] for name in HEADLINE), "protocol, as far as it is known", "read in"),
        rows,
        "Percent. Not to be compared with the score above line by line: prompts, frames and what is read as the answer differ,\n"
        "and each of them moves such figures by as much as the rows differ. Ask those models here to compare.",
        "lrrrrl",
    )


@functools.cache
def _published() -> dict[str, Any]:
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found
