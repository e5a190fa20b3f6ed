"""Files that other programs leave behind: recognised by what stands in them, read where they can be, or refused by name.

    lmms-eval    samples_*.jsonl (rows of doc, resps, filtered_resps), and inference_results_*.json, an object of
                 "video>>>sentence>>>truth": answer
    ms-swift     the rows of `swift infer`: response, messages, videos

These name no question. An answer is put to the moment of the same video and sentence; where there are several, to the one
whose truth the file repeats, else to them in turn. What can't be put to a moment by what stands in it (logs of training by
TRL, ms-swift and verl), or whose times are no seconds (VTimeLLM), is refused with the name of its program and the next step.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from labkit.data.moments import Moment
from labkit.data.video_index import stem_of
from labkit.scoring.reading_rules import RULES

_ROWS = 'write rows of {"qid": ..., "text": ...} with the qid of each moment'
_SAME = 0.051
"""Seconds by which a truth that a file repeats may differ: labels are copied with one decimal."""


class Refused(ValueError):
    """A file's row that belongs to a known program and can't be scored: which, why, and what to do."""


class NamedAnswer(NamedTuple):
    """An answer whose question is named by video and words; `prompt` where the sentence is only part of the words."""

    program: str
    video: str
    words: str
    text: str
    truth: tuple[float, float] | None = None
    prompt: bool = False

    @property
    def rules(self) -> str:
        """The rules that its program scores by; labkit's where it has none of its own."""
        return self.program if self.program in RULES else "labkit"

    @property
    def name(self) -> str:
        """What a card calls it when no moment has it."""
        return f"{self.video}: {self.words if len(self.words) <= 60 else self.words[:57] + '...'}"


def named_answers(row: Mapping[str, Any]) -> list[NamedAnswer]:
    """The answers of an object that another program wrote; none where it is nobody's. Raises Refused."""
    if any(">>>" in key for key in row):
        return [_inference_result(key, text) for key, text in row.items()]
    if "doc" in row and ("resps" in row or "filtered_resps" in row):
        return [_sample(row)]
    if "response" in row and isinstance(row.get("messages"), list):
        return [_swift(row)]
    _refuse(row)
    return []


def refuse_table(names: Iterable[str]) -> None:
    """Raise Refused for a parquet file with these columns."""
    if {"prompt", "completion"} <= set(names):
        raise Refused(
            f"is a log of completions that TRL wrote while it trained (no column names a question); {_ROWS}, or score the "
            "trained model's own answers"
        )
    raise Refused(f"is a parquet file ({', '.join(list(names)[:6])}); {_ROWS}, one a line")


def match(answers: Sequence[NamedAnswer], moments: Sequence[Moment]) -> Iterator[tuple[str, NamedAnswer]]:
    """Each answer with its moment's qid, or with a name of its own where no moment fits."""
    asked: dict[str, dict[str, list[Moment]]] = defaultdict(lambda: defaultdict(list))
    for moment in moments:
        for video in dict.fromkeys((stem_of(moment.video)[0], stem_of(moment.source_video)[0])):
            asked[video][_plain(moment.query)].append(moment)
    taken: set[str] = set()
    for answer in answers:
        fitting = _fitting(answer, asked.get(answer.video, {}))
        exact = [moment for moment in fitting if answer.truth is not None and _is_truth(answer.truth, moment)]
        found = exact or fitting
        chosen = next((moment for moment in found if moment.qid not in taken), found[0] if found else None)
        if chosen is None:
            yield answer.name, answer
        else:
            taken.add(chosen.qid)
            yield chosen.qid, answer


def _fitting(answer: NamedAnswer, asked: Mapping[str, list[Moment]]) -> list[Moment]:
    words = _plain(answer.words)
    if not answer.prompt:
        return asked.get(words, [])
    # A prompt may hold a short sentence by chance as part of a longer one, so that the longest counts.
    inside = [query for query in asked if query in words]
    return asked[max(inside, key=len)] if inside else []


def _is_truth(truth: tuple[float, float], moment: Moment) -> bool:
    return any(
        abs(window.start - truth[0]) <= _SAME and abs(min(truth[1], moment.duration) - window.end) <= _SAME
        for window in moment.windows
    )


def _inference_result(key: str, text: object) -> NamedAnswer:
    video, _, rest = key.partition(">>>")
    words, _, truth = rest.rpartition(">>>")
    return NamedAnswer("lmms-eval", stem_of(video)[0], words, _text(text), _pair(truth))


def _sample(row: Mapping[str, Any]) -> NamedAnswer:
    doc = row["doc"]
    words = next((doc[name] for name in ("caption", "query", "sentence") if name in doc), None) if _is(doc) else None
    if not isinstance(words, str) or not isinstance(doc.get("video"), str):
        raise Refused(f"is a sample of an lmms-eval task that names no video and sentence; {_ROWS}")
    answer = row.get("filtered_resps") or row.get("resps")
    while isinstance(answer, list) and answer:
        answer = answer[0]
    truth = row.get("target") or doc.get("timestamp")
    return NamedAnswer("lmms-eval", stem_of(doc["video"])[0], words, _text(answer), _pair(truth))


def _swift(row: Mapping[str, Any]) -> NamedAnswer:
    videos, prompts = row.get("videos"), [turn for turn in row["messages"] if _is(turn) and turn.get("role") == "user"]
    words = prompts[-1].get("content") if prompts else None
    if not isinstance(words, str) or not isinstance(videos, list) or not videos or not isinstance(videos[0], str):
        raise Refused(f"is a row of ms-swift's inference without a video and a question; {_ROWS}")
    words, labels = words.replace("<video>", "").strip(), row.get("labels")
    return NamedAnswer("ms-swift", stem_of(videos[0])[0], words, _text(row["response"]), _pair(labels), prompt=True)


def _refuse(row: Mapping[str, Any]) -> None:
    if isinstance(row.get("completion"), list) and "prompt" in row:
        raise Refused(
            f"is a log of completions that ms-swift wrote while it trained (it names no question); {_ROWS}, or give the rows "
            "of `swift infer`"
        )
    if {"input", "output"} <= set(row) and ("score" in row or "gts" in row):
        raise Refused(f"is a log of verl's generations (it names neither question nor video); {_ROWS}")
    if {"video_id", "answer", "task"} <= set(row):
        raise Refused(
            "is VTimeLLM's log, whose times are hundredths of the video; write n / 100 * duration as "
            '{"qid": ..., "windows": [[start, end]]} in seconds'
        )
    if "relevant_windows" in row and "pred_relevant_windows" not in row:
        raise Refused("is a row of annotations, not of predictions; give this file as the moments")


def _pair(value: object) -> tuple[float, float] | None:
    """Two seconds of a pair, or of the text of one."""
    if isinstance(value, str):
        numbers = re.findall(r"\d+(?:\.\d+)?", value)
        return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None
    if isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        return float(value[0]), float(value[1])
    return None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Refused(f"holds {json.dumps(value)[:60]} where the answer's text belongs; {_ROWS}")
    return value


def _plain(words: str) -> str:
    """A sentence without case, doubled blanks and its full stop."""
    return " ".join(words.casefold().split()).rstrip(". ")


def _is(value: object) -> bool:
    return isinstance(value, dict)
