"""Contrasts: texts in which another rule finds another answer than labkit's, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.chain.anchors import AnchorChain, parse
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.cards import disagreements_html, printed
from labkit.scoring.marks import asked
from labkit.scoring.predictions import Answers
from labkit.scoring.reading_rules import RULES, Pair

KINDS = {
    "an anchor": "takes an anchor of the thought for the answer",
    "another span": "takes numbers that are neither the answer nor an anchor",
    "reversed": "takes a start that isn't before its end, which overlaps nothing",
    "nothing": "finds nothing where there is an answer",
}
"""What a rule does that labkit's doesn't."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A text that a rule reads in another way than labkit does; `count` such texts were found for this rule and kind."""

    rule: str
    kind: str
    count: int
    qid: str
    text: str
    ours: Pair | None
    theirs: Pair | None

    @property
    def pairs(self) -> tuple[str, str]:
        """What labkit reads in the text, and what the rule does."""
        return _shown(self.ours), _shown(self.theirs)

    @property
    def account(self) -> str:
        """What the rule does, and the text."""
        return f"{KINDS[self.kind]}, as in {self.qid}: {_short(self.text)}"

    def __str__(self) -> str:
        ours, theirs = self.pairs
        return (
            f"{self.rule} {KINDS[self.kind]} ({self.count:,} texts), as in {self.qid}: {theirs} instead of {ours}\n"
            f"    {_short(self.text)}"
        )


class Disagreements(list[Disagreement]):
    """Disagreements that show as a table in a notebook and print as lines."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    _repr_pretty_ = printed

    def _repr_html_(self) -> str:
        return disagreements_html(self)


def disagreements(predictions: Answers, moments: Sequence[Moment], *, most: int = 1) -> Disagreements:
    """Up to `most` examples for each rule and kind, rules in their order, then the most frequent kind first.

    Only texts on the moments' questions are looked at.
    Raises: LabError for ranked windows, which need no reading.

    >>> from labkit.chain.spans import Span
    >>> moments = [Moment("q1", "/v/a.mp4", "a door opens", (Span(0, 10),), 40.0)]
    >>> text = "<think><timestamp>0 to 30</timestamp></think><answer>2 to 9</answer>"
    >>> [(found.rule, found.theirs) for found in disagreements({"q1": text}, moments)]
    [('timelens', (0.0, 30.0)), ('lmms-eval', (0.0, 30.0)), ('lmms-eval-timelens', (0.0, 30.0))]
    """
    answers = asked(predictions, moments)
    if answers.ranked:
        raise LabError("these predictions hold windows, which every rule reads alike; give texts")
    rows = [(moment.qid, row) for moment in moments if (row := answers.rows.get(moment.qid)) is not None]
    chains = [(qid, parse(row.text or "", finished=row.finished)) for qid, row in rows]
    found = Disagreements()
    for rule in RULES.values():
        examples: dict[str, list[tuple[str, AnchorChain, Pair | None]]] = {}
        counts: Counter[str] = Counter()
        for qid, chain in chains:
            theirs = rule.read(chain.text)
            kind = _kind(chain, theirs)
            if kind:
                counts[kind] += 1
                examples.setdefault(kind, []).append((qid, chain, theirs))
        for kind, count in counts.most_common():
            found += [
                Disagreement(rule.name, kind, count, qid, chain.text, _answer(chain), theirs)
                for qid, chain, theirs in examples[kind][:most]
            ]
    return found


def _kind(chain: AnchorChain, theirs: Pair | None) -> str:
    if theirs == _answer(chain):
        return ""
    if theirs is None:
        return "nothing"
    if theirs[0] >= theirs[1]:
        return "reversed"
    return "an anchor" if theirs in [(span.start, span.end) for span in chain.spans] else "another span"


def _answer(chain: AnchorChain) -> Pair | None:
    return None if chain.answer is None else (chain.answer.start, chain.answer.end)


def _shown(pair: Pair | None) -> str:
    return "nothing" if pair is None else f"{pair[0]:g} to {pair[1]:g}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-95:]}"
