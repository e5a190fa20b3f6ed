"""How other people's programs read an answer out of a text, so that one set of chains can be scored their way.

The programs of the field disagree about what a model said: some take the first pair of numbers in a text, some the
last, some look into the answer only, and thresholds are reached with `>` here and `>=` there. Each rule below is written
anew from what those programs do, and reads any text in linear time, which their own patterns do not.

A rule's pair may be reversed (start after end) where its program lets that pass; such a pair overlaps nothing. What no
program could use as seconds (infinity, or a number with several dots) is read as nothing.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import TypeVar

from labkit.chain.anchors import parse
from labkit.chain.metrics import Reaches
from labkit.chain.spans import Span, union
from labkit.errors import LabError, nearest

Pair = tuple[float, float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadingRule:
    """One program's way from a text to a span, and from IoU to R1@m.

    `read` gives start and end in seconds as the program takes them, or None; `clips` says whether predictions are cut
    to the video; `note` is what to know when its scores differ from ours. `anchor_tag` is the tag that anchors of its
    models stand in, which labkit's own rewards never pay for. With `windows` a rule is for ranked windows and reads no text. With
    `hundredths` its pair is in hundredths of the video. With `any_numbers` it takes any two numbers for an answer, so that what it
    finds in other models' texts says little. With `read_set` a rule takes several spans for one
    answer, and `read` gives the first start and the last end of them.
    """

    name: str
    title: str
    read: Callable[[str], Pair | None]
    reaches: Reaches
    clips: bool
    note: str
    anchor_tag: str = "timestamp"
    windows: bool = False
    hundredths: bool = False
    any_numbers: bool = False
    read_set: Callable[[str], Span | None] | None = None

    def read_seconds(self, text: str, duration: float) -> Pair | None:
        """What the rule reads in a text, in seconds of a video of that length."""
        pair = self.read(text)
        return (pair[0] * duration / 100, pair[1] * duration / 100) if pair is not None and self.hundredths else pair


def find_rule(name: str) -> ReadingRule:
    """The rule of that name.

    Raises: LabError that lists the names.

    >>> find_rule("timer1").reaches
    '>'
    """
    known = {**RULES, **FILE_RULES}
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f"did you mean {near!r}? " if near else ""
    raise LabError(f"rules {name!r}: {hint}choose one of {', '.join(known)}")


# A pattern that begins with digits is tried at each digit of a run and walks the rest of it each time, so that a megabyte
# of digits would take days. Beginning only where no digit stands before, and never giving back what was taken (++), finds the
# same pairs: behind a shorter number there is always a digit or a dot, and no pattern goes on with one.
_NUMBER = r"(?<!\d)(\d++\.?+\d*+)"
_DECIMAL = r"(?<!\d)(\d++(?:\.\d++)?+)"
_SECOND = r"(\d++\.?+\d*+)"
_TO_OR_AND = rf"{_NUMBER} (?:to|and) {_SECOND}"

_SPACED = re.compile(_TO_OR_AND)
_SPACED_ANY_CASE = re.compile(_TO_OR_AND, re.IGNORECASE)

_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}:\d{2}(?:\.\d+)?|\d{1,2}:\d{2}(?:\.\d+)?)\b")
_DASHED = re.compile(rf"{_NUMBER}\s*+-\s*+{_SECOND}")
_WORDED = re.compile(rf"{_NUMBER}\s++to\s++{_SECOND}")
_LONE_NUMBER = re.compile(r"\b(\d++\.\d++|\d++)\b")
_THOUGHT_THEN_ANSWER = re.compile(r"</think>\s*+<answer>")

_HUNDREDTHS = re.compile(r"(\d{2}) (?:to|and) (\d{2})")
_DECIMAL_NUMBER = re.compile(r"\d++(?:\.\d++)?+")
_BRACKETED = re.compile(r"[\[(]\s*+(\d++(?:\.\d++)?+)\s*+,\s*+(\d++(?:\.\d++)?+)\s*+[\])]")

_TIME = r"(\d++(?::\d\d)*+(?:\.\d++)?+)"
_UNIT = r"\s*+(?:s|secs?|seconds?)?+\s*+"
_INTERVAL = re.compile(
    rf"(?<![\d.:]){_TIME}{_UNIT}(?:[-–—~]|\bto\b|\band\b)\s*+{_TIME}|[\[(]\s*+{_TIME}{_UNIT},\s*+{_TIME}{_UNIT}[\])]"
)

_LMMS_EXAMPLE = "a specific example is : 20.8 - 30.0 seconds"
_LMMS_CLOCKS = re.compile(r"\b(\d{1,2}:\d{2}(?::\d{2})?)\s*+[–-]\s*+(\d{1,2}:\d{2}(?::\d{2})?)\b")
_LMMS_DASHED = re.compile(rf"{_DECIMAL}\s*+[–-]\s*+(\d++(?:\.\d++)?+)")
_LMMS_CLOCK = re.compile(r"\b(\d{1,2}:\d{2}(?::\d{2})?)\b")
_LMMS_UNITS = re.compile(rf"{_DECIMAL}\s*+(?:s\s*+)?+[–-]\s*+(\d++(?:\.\d++)?+)")


def _labkit(text: str) -> Pair | None:
    answer = parse(text).answer
    return None if answer is None else (answer.start, answer.end)


def _last_spaced(text: str) -> Pair | None:
    last = _last(_SPACED.finditer(text))
    return None if last is None else _pair(last[1], last[2])


def _last_in_last_answer(text: str) -> Pair | None:
    content = _last(_answers(text)) or ""
    last = _last(_SPACED_ANY_CASE.finditer(content))
    return None if last is None else _pair(last[1], last[2])


def _last(found: Iterator[T]) -> T | None:
    kept = deque(found, maxlen=1)
    return kept[0] if kept else None


def _answers(text: str) -> Iterator[str]:
    """What stands in each closed `<answer>`, in order."""
    begin = text.find("<answer>")
    while begin >= 0:
        end = text.find("</answer>", begin)
        if end < 0:
            return
        yield text[begin + len("<answer>") : end]
        begin = text.find("<answer>", end)


def _timelens(text: str) -> Pair | None:
    text = text.lower()
    clocks = [match[1] for match in islice(_CLOCK.finditer(text), 2)]
    if len(clocks) == 2:
        return _finite(clock_seconds(clocks[0]), clock_seconds(clocks[1]))
    found = _DASHED.search(text) or _WORDED.search(text)
    if found:
        return _pair(found[1], found[2])
    lone = [match[1] for match in islice(_LONE_NUMBER.finditer(text), 2)]
    return _pair(*lone) if len(lone) == 2 else None


def _timelens_reward(text: str) -> Pair | None:
    content = text
    if text.startswith("<think>"):
        opening = _THOUGHT_THEN_ANSWER.search(text)
        closing = text.find("</answer>", opening.end()) if opening else -1
        if opening and closing >= 0:
            content = text[opening.end() : closing]
    return _timelens(content.lower().replace("to", "-"))


def _taro(text: str) -> Pair | None:
    last = deque((match[0] for match in _DECIMAL_NUMBER.finditer(text)), maxlen=2)
    pair = _pair(*last) if len(last) == 2 else None
    return pair if pair is None or pair[0] <= pair[1] else (pair[1], pair[0])


def _vtimellm(text: str) -> Pair | None:
    found = _HUNDREDTHS.search(text)
    return None if found is None else _pair(found[1], found[2])


def _bracketed(text: str) -> Pair | None:
    found = _BRACKETED.search(next(_answers(text), text))
    return None if found is None else _pair(found[1], found[2])


def _intervals(text: str) -> Span | None:
    behind = text.rpartition("</think>")[2]
    found = _INTERVAL.finditer(next(_answers(behind), behind).lower())
    pairs = [_finite(*(clock_seconds(end) for end in match.groups() if end)) for match in found]
    spans = [Span(*pair) for pair in pairs if pair is not None and pair[0] < pair[1]]
    return union(spans) if spans else None


def _ends(text: str) -> Pair | None:
    found = _intervals(text)
    return None if found is None else (found.start, found.end)


def _lmms_charades(text: str) -> Pair | None:
    sentences = re.split(r"[!?\n]", text.lower().replace(_LMMS_EXAMPLE, "").replace("to", "-"))
    # Where a sentence speaks of a start or an end, only such sentences are looked at.
    naming = [sentence for sentence in sentences if any(word in sentence for word in ("start", "end", "happen"))]
    pair = _first_lmms(naming or sentences)
    # The one program that turns a reversed pair around.
    return pair if pair is None or pair[1] > pair[0] else (pair[1], pair[0])


def _first_lmms(sentences: Sequence[str]) -> Pair | None:
    for sentence in sentences:
        if found := _LMMS_CLOCKS.search(sentence):
            return _finite(clock_seconds(found[1]), clock_seconds(found[2]))
    for sentence in sentences:
        if found := _LMMS_DASHED.search(sentence):
            return _pair(found[1], found[2])
    clocks = [match[1] for sentence in sentences for match in islice(_LMMS_CLOCK.finditer(sentence), 2)]
    if len(clocks) > 1:
        return _finite(clock_seconds(clocks[0]), clock_seconds(clocks[1]))
    # The first number of each sentence, so that a start and an end in two sentences make a pair.
    lone = [match[1] for sentence in sentences if (match := _LONE_NUMBER.search(sentence))]
    if len(lone) > 1:
        return _pair(lone[0], lone[1])
    for sentence in sentences:
        if found := _LMMS_UNITS.search(sentence):
            return _pair(found[1], found[2])
    return None


def clock_seconds(clock: str) -> float:
    """Seconds of a number, or of a clock's hours, minutes and seconds.

    >>> clock_seconds("1:02:03.5"), clock_seconds("7")
    (3723.5, 7.0)
    """
    seconds = 0.0
    for part in clock.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _pair(start: str, end: str) -> Pair | None:
    return _finite(float(start), float(end))


def _finite(start: float, end: float) -> Pair | None:
    return (start, end) if math.isfinite(start) and math.isfinite(end) else None


_ALL = (
    ReadingRule("labkit", "labkit, everywhere", _labkit, ">=", True,
        "Reads the closed <answer> behind the thought and nothing else; what is no span in seconds is counted, not guessed."),
    ReadingRule("timer1", "Time-R1, evaluation", _last_spaced, ">", False,
        "Takes the last `a to b` or `a and b` anywhere: a cut-off thought is scored by its last anchor, and a remark "
        "behind the answer replaces it. An IoU equal to the threshold does not reach it.",
        anchor_tag="timestep"),
    ReadingRule("timer1-reward", "Time-R1, training reward", _last_in_last_answer, ">", False,
        "Takes the last `a to b` or `a and b` in the last <answer>: another program than its evaluation.",
        anchor_tag="timestep"),
    ReadingRule("videochat-r1", "VideoChat-R1, evaluation", _last_spaced, ">=", False,
        "Reads as Time-R1's evaluation does, with the other threshold operator.",
        anchor_tag="timestep"),
    ReadingRule("timelens", "TimeLens, evaluation", _timelens, ">=", False,
        "Takes the first pair of the whole text (clock times, else `a - b`, else `a to b`, else the first two numbers): "
        "a chain is scored by its first and widest anchor. Copies of its script also round both ends to whole seconds, which "
        "is left out here."),
    ReadingRule("timelens-reward", "TimeLens, training reward", _timelens_reward, ">=", False,
        "Takes the first pair of the <answer> when a thought and an answer open the text, else of the whole text."),
    ReadingRule("lmms-eval", "lmms-eval, Charades-STA task", _lmms_charades, ">=", False,
        "Takes the first pair of the sentences that speak of a start or an end (`to` is read as a dash), turns it around "
        "when reversed, and stops generation at 50 tokens, where few chains have come to their answer."),
    ReadingRule("lmms-eval-timelens", "lmms-eval, TimeLens tasks", _timelens, ">=", False,
        "Reads as TimeLens' evaluation does, and stops generation at 50 tokens."),
    ReadingRule("taro", "TaRO, evaluation", _taro, ">=", False,
        "Takes the last two numbers of the whole text, whatever stands between them, and turns them around when reversed.",
        anchor_tag="timestep", any_numbers=True),
)  # fmt: skip

RULES: Mapping[str, ReadingRule] = MappingProxyType({rule.name: rule for rule in _ALL})
"""Every rule that reads texts by name, ours first. Source: the projects' own programs, read in 2025 and 2026."""

_OF_FILES = (
    ReadingRule("intervals", "labkit, the field's ways to write several spans", _ends, ">=", True,
        "Takes every pair in the first <answer> behind the thought, or behind it without one (`[[a, b], [c, d]]`, `a - b, c - d`, "
        "`between a and b seconds, and from c to d`, clock times) as one set; a pair that is reversed is left out.",
        read_set=_intervals),
    ReadingRule("window-set", "labkit, windows as one set", lambda text: None, ">=", True,
        "All windows of a row are one answer, whatever their order and scores.",
        windows=True),
    ReadingRule("qvhighlights", "QVHighlights, standalone evaluation", lambda text: None, ">=", False,
        "The first window of each question in the file is its answer, not cut to the video.",
        windows=True),
    ReadingRule("vtimellm", "VTimeLLM, evaluation", _vtimellm, ">=", False,
        "Takes the first two-digit `a to b` or `a and b`, in hundredths of the video. Its own log rounds each IoU to two decimals.",
        hundredths=True),
    ReadingRule("videochat-r1.5", "VideoChat-R1.5, evaluation", _bracketed, ">=", False,
        "Takes the first `(a, b)` of the first <answer>, or of the text without one. Of several spans the first counts here, where "
        "its evaluation takes the IoU of their union."),
)  # fmt: skip

FILE_RULES: Mapping[str, ReadingRule] = MappingProxyType({rule.name: rule for rule in _OF_FILES})
"""Rules for the files of one program, which no other model's answers are written for, and two of ours that read sets. Ranked windows
are also read by labkit's own rules, which cut the first window to the video before R1."""
