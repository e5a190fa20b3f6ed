"""One answer of a model, what it names its question by, and how it is joined to a moment.

labkit's own rows name a moment's qid. Other programs number their questions anew, or name a video and a sentence, or only
repeat the prompt. An answer is joined by the first of KEYS that leads to one moment; what leads to none stays by itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from labkit.data.moments import Moment
from labkit.data.video_index import stem_of

KEYS = ("qid", "video and query", "video and number", "query alone", "place and truth")
"""What answers are joined by, the surest first: the moment's own qid, unless the video, query or truth beside it says
otherwise; video and sentence; the number of a video's sentence; a sentence that only one moment asks, where no video is
named; and the place of a numbered question in its benchmark, where truth and duration agree."""
_SAME_TRUTH = 0.051
"""Seconds by which a truth that a file repeats may differ: labels are copied with one decimal."""
_SAME_DURATION = 0.5
"""The same of a duration, which some tables round."""
_WORD = re.compile(r"\w+")
_NUMBERED = re.compile(r"(?:.*[^0-9])?([0-9]{1,9})")


def joined_by(joined: Mapping[str, int]) -> str:
    """How many answers were joined by which of KEYS, in words.

    >>> joined_by({"qid": 3, "query alone": 1}), joined_by({})
    ('3 by qid, 1 by query alone', 'none')
    """
    return ", ".join(f"{count:,} by {key}" for key, count in joined.items()) or "none"


class BadRow(ValueError):
    """What is wrong with one row of predictions, and what to do; the reader puts file and line in front."""


@dataclass(frozen=True, slots=True)
class PredictedRow:
    """One answer: a text, or ranked windows as [start, end] in seconds in the file's order.

    `scores` are the windows' own, None when the file gave none and the order is the rank.
    """

    text: str | None = None
    windows: tuple[tuple[float, float], ...] | None = None
    scores: tuple[float, ...] | None = None
    finished: bool = True


class QuestionName(NamedTuple):
    """What a row names its question by; `video` is the file's stem, `words` the sentence, or with `prompt` what holds it.

    `number` counts the sentences of a video from 0. `truth` and `duration` are in seconds.
    """

    qid: str = ""
    video: str = ""
    words: str = ""
    truth: tuple[float, float] | None = None
    duration: float | None = None
    number: int | None = None
    prompt: bool = False

    @property
    def label(self) -> str:
        """What a card calls it when no moment has it."""
        if self.qid:
            return self.qid
        words = f"query {self.number}" if self.number is not None else " ".join(self.words.split())
        words = words if len(words) <= 60 else f"{words[:57]}..."
        return f"{self.video}: {words}" if self.video else words


def plain(words: str) -> str:
    """A sentence's words without case and punctuation.

    >>> plain("Someone  opens a door.")
    'someone opens a door'
    """
    return " ".join(_WORD.findall(words.casefold()))


def join(names: Iterable[QuestionName], moments: Sequence[Moment]) -> Iterator[tuple[str | None, str]]:
    """For each name the qid of its moment and the key of KEYS that led there; None and "" where no moment fits.

    Equal questions take turns. A video's name may be that of a clip or of the video that the clip was cut from.
    """
    asked, taken = _Asked(moments), set[str]()
    for name in names:
        for key, fitting in asked.fitting(name):
            found = [
                moment for moment in fitting if name.truth is not None and _is_truth(name.truth, moment)
            ] or fitting
            if key == "query alone" and len(found) != 1:
                continue
            # Who names a place names each place once.
            again = found[0] if found and key != "place and truth" else None
            chosen = next((moment for moment in found if moment.qid not in taken), again)
            if chosen is not None:
                taken.add(chosen.qid)
                yield chosen.qid, key
                break
        else:
            yield None, ""


class _Asked:
    """Moments by all that an answer may name them by."""

    def __init__(self, moments: Sequence[Moment]) -> None:
        self._moments = moments
        self._by_qid = {moment.qid: moment for moment in moments}
        self._dropped = max(0, getattr(moments, "rows", len(moments)) - len(moments))

    def fitting(self, name: QuestionName) -> Iterator[tuple[str, list[Moment]]]:
        """Moments that a name fits, by each key in turn; those of "query alone" must be one."""
        of_video = self._by_video.get(name.video, []) if name.video else []
        own = self._by_qid.get(name.qid)
        if own is not None and self._agrees(own, name):
            yield "qid", [own]
        if of_video and name.words:
            yield "video and query", _asking(of_video, name)
        if of_video and name.number is not None:
            numbered = self._by_qid.get(f"{name.video}-{name.number}")
            # Where rows were dropped, or the moments say their own numbers, a place says nothing.
            told = self._dropped or any(re.fullmatch(rf"{re.escape(name.video)}-\d+", each.qid) for each in of_video)
            by_place = [] if told else of_video[name.number : name.number + 1]
            yield "video and number", [numbered] if numbered is not None else by_place
        if name.words and not name.video:
            yield "query alone", self._with_words(name)
        if name.truth is not None and not name.words and (match := _NUMBERED.fullmatch(name.qid)):
            yield "place and truth", self._at_place(int(match[1]), name, name.truth)

    def _agrees(self, moment: Moment, name: QuestionName) -> bool:
        """Whether nothing that a row names beside its id says that it means another question than this moment.

        A video that no moment has may be this one under another name, where the words agree.
        """
        asks = bool(name.words and _asking([moment], name))
        if name.video and name.video not in _stems(moment) and (not asks or name.video in self._by_video):
            return False
        if name.truth is not None and not asks and moment.has_truth and not _is_truth(name.truth, moment):
            return False
        return asks or not name.words

    @cached_property
    def _by_video(self) -> Mapping[str, list[Moment]]:
        found: dict[str, list[Moment]] = defaultdict(list)
        for moment in self._moments:
            for stem in _stems(moment):
                found[stem].append(moment)
        return dict(found)

    @cached_property
    def _by_words(self) -> Mapping[str, list[Moment]]:
        found: dict[str, list[Moment]] = defaultdict(list)
        for moment in self._moments:
            if words := plain(moment.query):
                found[words].append(moment)
        return dict(found)

    @cached_property
    def _lengths(self) -> Mapping[tuple[str, ...], set[int]]:
        """How many words the queries have that begin with one or two words, so that a prompt is walked through once."""
        found: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for words in self._by_words:
            each = words.split(" ")
            found[tuple(each[:2])].add(len(each))
        return dict(found)

    @cached_property
    def _in_prompt(self) -> dict[str, list[Moment]]:
        return {}

    def _with_words(self, name: QuestionName) -> list[Moment]:
        if not name.prompt:
            return self._by_words.get(plain(name.words), [])
        if name.words not in self._in_prompt:
            words, longest = plain(name.words).split(" "), ""
            for begin in range(len(words)):
                for head in (words[begin : begin + 2], words[begin : begin + 1]):
                    for length in self._lengths.get(tuple(head), ()):
                        query = " ".join(words[begin : begin + length])
                        if len(query) > len(longest) and query in self._by_words:
                            longest = query
            self._in_prompt[name.words] = self._by_words.get(longest, [])
        return self._in_prompt[name.words]

    @cached_property
    def _places(self) -> list[Moment]:
        """Moments in the order of videos, as programs number them: all of the first video, then all of the next."""
        groups: dict[str, list[Moment]] = defaultdict(list)
        for moment in self._moments:
            groups[moment.video].append(moment)
        return [moment for group in groups.values() for moment in group]

    def _at_place(self, place: int, name: QuestionName, truth: tuple[float, float]) -> list[Moment]:
        """Moments at a place, counted video by video or in the file's order, whose truth and duration agree."""

        def agrees(moment: Moment) -> bool:
            known = name.duration is None or abs(moment.duration - name.duration) <= _SAME_DURATION
            return known and _is_truth(truth, moment)

        # Rows that were dropped on reading have moved the others forward, by so many places at most.
        places = [place - moved for moved in range(self._dropped + 1)]
        near = [order[at] for at in places for order in (self._places, self._moments) if 0 <= at < len(order)]
        return [moment for moment in dict.fromkeys(near) if agrees(moment)]


def _stems(moment: Moment) -> list[str]:
    return list(dict.fromkeys((stem_of(moment.video)[0], stem_of(moment.source_video)[0])))


def _asking(moments: Iterable[Moment], name: QuestionName) -> list[Moment]:
    """Those of the moments that ask a name's words; of a prompt the longest query in it counts, which may hold another."""
    words = plain(name.words)
    if not name.prompt:
        return [moment for moment in moments if plain(moment.query) == words]
    queries = {moment.qid: plain(moment.query) for moment in moments}
    longest = max((query for query in queries.values() if query and f" {query} " in f" {words} "), key=len, default="")
    return [moment for moment in moments if longest and queries[moment.qid] == longest]


def _is_truth(truth: tuple[float, float], moment: Moment) -> bool:
    return any(
        abs(window.start - truth[0]) <= _SAME_TRUTH and abs(min(truth[1], moment.duration) - window.end) <= _SAME_TRUTH
        for window in moment.windows
    )


def ranked_row(what: str, value: object) -> PredictedRow:
    """A row of ranked windows; `what` names the question and the field. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow(f"{what} = {shorten(value)} is not a list; write [[start, end], ...] in seconds")
    lengths = {len(window) if isinstance(window, list) else 0 for window in value}
    if not lengths <= {2, 3} or len(lengths) > 1:
        step = "write all as [start, end] or all as [start, end, score]"
        raise BadRow(f"{what} = {shorten(value)} mixes forms; {step}")
    for window in value:
        for number in window:
            if (
                isinstance(number, bool)
                or not isinstance(number, int | float)
                or not abs(number) <= sys.float_info.max
            ):
                raise BadRow(f"{what} holds {shorten(window)}; write plain finite numbers")
    windows = tuple((float(window[0]), float(window[1])) for window in value)
    scores = tuple(float(window[2]) for window in value) if lengths == {3} else None
    return PredictedRow(windows=windows, scores=scores)


def shorten(value: object) -> str:
    """A value as JSON, cut to a length that a message can hold."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
