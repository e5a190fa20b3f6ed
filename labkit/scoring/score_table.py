"""Several models' predictions in one table, a row for each, and what `labkit score` prints.

    labkit.score_table({"ours": "ours.jsonl", "Time-R1": "tg_0_1.jsonl"}, labkit.load_moments("charades-sta/test"))

Each is read under the rules of the program that wrote it, or all under those that are named. The others are compared with the
first question by question, where both are read under the same rules.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.answers import joined_by
from labkit.scoring.bootstrap import few_videos
from labkit.scoring.predictions import Answers, read_predictions
from labkit.scoring.reading_rules import find_rule
from labkit.scoring.readings import Disagreements, disagreements
from labkit.scoring.scores import HEADLINE, TITLES, Paired, Score, between, compare, gap_cells, score, under_every_rule
from labkit.table import Table, percent, repr_pretty

_LONGEST = 32
"""Characters of a label in a table."""


class ScoreTable(dict[str, Score]):
    """Scores by label, the first of which the others are compared with; a table in a notebook, and lines in a terminal."""

    def paired(self) -> dict[str, Paired]:
        """Each other score less the first, as far as both are under the same rules."""
        (_, first), *others = self.items()
        rules = first.protocol.rules
        return {label: compare(each, first) for label, each in others if each.protocol.rules == rules}

    def as_dict(self) -> dict[str, Any]:
        """Everything for a program; what can't be compared has no entry in `paired`."""
        return {
            "files": {label: each.as_dict() for label, each in self.items()},
            "paired": {label: each.as_dict() for label, each in self.paired().items()},
        }

    def __str__(self) -> str:
        return "\n\n".join([str(self._table()), *(f"{label}\n{joining(each)}" for label, each in self.items())])

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        notes = Table("", (), [(label, joining(each)) for label, each in self.items()], align="l")
        return self._table()._repr_html_() + notes._repr_html_()

    def _table(self) -> Table:
        first, paired = next(iter(self.values())), self.paired()
        level = f"{100 * first.protocol.level:g} %"
        gaps = ("less first", level, "p") if paired else ()
        head = ("", "rules", *(TITLES[name] for name in HEADLINE), f"{level} of mIoU", *gaps)
        rows = []
        for label, each in self.items():
            gap = paired[label].differences["miou"] if label in paired else None
            less = ("-", "-", "-") if gap is None else gap_cells(gap)
            figures = [percent(each.figures[name]) for name in HEADLINE]
            rows.append(
                (
                    both_ends(label, _LONGEST),
                    each.protocol.rules,
                    *figures,
                    between(each.intervals["miou"]),
                    *less[: len(gaps)],
                )
            )
        for name, baseline in first.baselines.items():
            rows.append(
                (name, "", *(percent(baseline.get(each, math.nan)) for each in HEADLINE), "", *[""] * len(gaps))
            )
        return Table("", head, rows, self._note(paired), align="llr")

    def _note(self, paired: Mapping[str, Paired]) -> str:
        card = next(iter(self.values())).protocol
        notes = [f"Percent, of {card.rows:,} questions."]
        if paired:
            notes[0] += " `less first` is the difference of mIoU from the first, question by question."
        apart = [label for label in list(self)[1:] if label not in paired]
        if apart:
            hundredths = any(find_rule(each.protocol.rules).hundredths for each in self.values())
            alike = "" if hundredths else "; --rules NAME reads all alike"
            notes.append(
                f"Read under other rules than the first, and so not compared with it: {', '.join(apart)}{alike}."
            )
        notes.append(few_videos(card.videos))
        return "\n".join(filter(None, notes))


def joining(scored: Score) -> str:
    """Who wrote a file, how its answers were joined, and what was left over, in a line or two.

    Also what to know where little was read, or where the file broke off.
    """
    card = scored.protocol
    parts = [f"written by {card.program}" if card.program else "labkit's own form", f"joined {joined_by(card.joined)}"]
    if card.extra:
        parts.append(f"{card.extra:,} have no moment")
    if card.duplicates:
        parts.append(f"{card.duplicates:,} came again, the first of a question counts")
    parts.append(
        f"{card.missing:,} moment{'' if card.missing == 1 else 's'} unanswered"
        if card.missing
        else "every moment answered"
    )
    if card.cut_line:
        parts.append(f"the file broke off in line {card.cut_line:,}")
    line = "; ".join(parts) + "."
    if card.unread:
        line += f" Nothing was read in {100 * card.parse_failure_rate:.0f} % of the answers: {card.unread}."
    return line


def score_table(
    predictions: Mapping[str, Answers],
    moments: Sequence[Moment],
    *,
    rules: str | None = None,
    train: Sequence[Moment] | None = None,
) -> ScoreTable:
    """Score several models' predictions on the same moments, by label.

    Raises: LabError as `labkit.score`, with the label of the predictions in front.

    >>> from labkit.chain.spans import Span
    >>> moments = [Moment("q1", "/v/a.mp4", "a door opens", (Span(0, 10),), 40.0)]
    >>> got = score_table({label: {"q1": f"<answer>0 to {end}</answer>"} for label, end in {"a": 10, "b": 5}.items()}, moments)
    >>> got.paired()["b"].differences["miou"].value
    -0.5
    """
    if not predictions:
        raise LabError("no predictions to score; give at least one")
    found = ScoreTable()
    for label, each in predictions.items():
        try:
            found[label] = score(each, moments, rules=rules, train=train)
        except LabError as error:
            raise LabError(f"{label}: {error}") from None
    return found


def both_ends(label: str, most: int) -> str:
    """A label of at most so many characters, cut in its middle: labels begin with a folder, and end with what differs.

    >>> both_ends("charades/qwen2.5-vl-3b/seed1", 20)
    'charades...-3b/seed1'
    """
    kept = most - 3
    return label if len(label) <= most else f"{label[: kept // 2]}...{label[kept // 2 - kept :]}"


def labelled(files: Sequence[str | Path]) -> dict[str, Path]:
    """Files by the shortest names that tell them apart: the stem, with suffix or folders where two are called alike.

    >>> list(labelled(["a/tg_0_1.jsonl", "b/tg_0_1.jsonl", "ours.jsonl"]))
    ['a/tg_0_1', 'b/tg_0_1', 'ours']
    """
    paths = [Path(file) for file in files]
    stems = Counter((path.parent, path.stem) for path in {path.absolute() for path in paths})
    parts = [
        (*path.parts[1:-1], path.name if stems[path.parent, path.stem] > 1 else path.stem)
        for path in (path.absolute() for path in paths)
    ]
    deep = [1] * len(paths)
    while True:
        labels = ["/".join(part[-depth:]) for part, depth in zip(parts, deep, strict=True)]
        called = {label: {part for part, each in zip(parts, labels, strict=True) if each == label} for label in labels}
        alike = [k for k, label in enumerate(labels) if len(called[label]) > 1 and deep[k] < len(parts[k])]
        if not alike:
            break
        for k in alike:
            deep[k] += 1
    again, counts, found = Counter[str](), Counter(labels), {}
    for label, path in zip(labels, paths, strict=True):
        again[label] += 1
        found[label if counts[label] == 1 else f"{label} ({again[label]})"] = path
    return found


def score_text(
    predictions: str | Path | Sequence[str | Path],
    moments: str,
    *,
    videos: str | None = None,
    rules: str | None = None,
    train: str | None = None,
    against: str | Path | None = None,
    as_json: bool = False,
) -> str:
    """What `labkit score` prints; `moments` and `train` are files or names, `rules` may be "all", of one file.

    Raises: LabError for what can't be read or doesn't go together.
    """
    files = [predictions] if isinstance(predictions, str | Path) else list(predictions)
    questions = load_moments(moments, videos=videos)
    seen = None if train is None else load_moments(train, videos=videos)
    if len(files) > 1:
        if rules == "all" or against is not None:
            raise LabError(
                "several files go with neither --against nor '--rules all'; the first is what others are compared with"
            )
        table = score_table(labelled(files), questions, rules=rules, train=seen)
        return json.dumps(table.as_dict(), indent=1) if as_json else str(table)
    answers = read_predictions(files[0])
    if rules == "all":
        if against is not None or train is not None:
            raise LabError("'--rules all' goes with neither --against nor --train; name one of the rules for them")
        scores = under_every_rule(answers, questions)
        texts = disagreements(answers, questions) if len(scores) > 1 else Disagreements()
        if as_json:
            parts = {name: one.as_dict() for name, one in scores.items()}
            return json.dumps({"rules": parts, "disagreements": [asdict(text) for text in texts]}, indent=1)
        return "\n\n".join([str(scores), *map(str, texts), str(next(iter(scores.values())).protocol)])
    first = score(answers, questions, rules=rules, train=seen)
    if against is None:
        return json.dumps(first.as_dict(), indent=1) if as_json else str(first)
    second = score(read_predictions(against), questions, rules=rules, train=seen)
    paired = compare(first, second)
    if as_json:
        both = {"first": first.as_dict(), "second": second.as_dict(), "paired": paired.as_dict()}
        return json.dumps(both, indent=1)
    return f"{paired}\n\nfirst\n\n{first}\n\nsecond\n\n{second}"


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
