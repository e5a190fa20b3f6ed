"""The programs whose files of predictions are read: what each is recognised by, where its answers stand, and its rules.

A row is recognised by its fields, never by the file's name; PROGRAMS is the whole table, the narrower shapes first. What a row
calls its video, its sentence or its truth goes by a few names that all programs share. Source: the programs' own writers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from labkit.data.video_index import stem_of
from labkit.scoring.answers import BadRow, PredictedRow, QuestionName, ranked_row, shorten

Row = Mapping[str, Any]
NEXT_STEP = 'write rows of {"qid": ..., "text": ...} with the qid of each moment'
_VIDEOS = ("video", "video_path", "video_file", "vid", "video_id", "videos")
_WORDS = ("query", "sentence", "caption", "question")
_PROMPTS = ("prompt", "messages", "input")
_TRUTHS = ("target", "timestamp", "span", "gt_span", "gts", "labels", "label", "solution", "relevant_windows", "gt")
_TAGS = re.compile(r"<(?:video|image)>|<\|\w+\|>")


class Program(NamedTuple):
    """A program's file of predictions: a row has all of `fields` and `fits`; `answer` names the field of the text.

    `inner` is the field whose object names the question. `expand` gives a row's rows where it holds several. `windows` is a field of
    spans that counts where there is no text. `rules` are the reading rules of the program's own evaluation, for texts or windows.
    """

    name: str
    file: str
    fields: tuple[str, ...]
    answer: tuple[str, ...]
    rules: str = "labkit"
    inner: str = ""
    truth: tuple[str, ...] = _TRUTHS
    words: tuple[str, ...] = _WORDS
    windows: str = ""
    fits: Callable[[Row], bool] = lambda row: True
    expand: Callable[[Row], Iterator[Row]] = lambda row: iter((row,))


def _keyed(row: Row) -> Iterator[Row]:
    """The rows of "video>>>sentence>>>truth": answer."""
    for key, value in row.items():
        video, _, rest = key.partition(">>>")
        words, _, truth = rest.rpartition(">>>")
        yield {"video": video, "query": words, "target": truth} | (value if _is(value) else {"answers": value})


def _columns(row: Row) -> Iterator[Row]:
    """The rows of an object that holds a column for each field."""
    count = len(row["completion"])
    columns = {name: value for name, value in row.items() if isinstance(value, list) and len(value) == count}
    yield from ({name: column[k] for name, column in columns.items()} for k in range(count))


def _is(value: object) -> bool:
    return isinstance(value, dict)


def _has_keys(row: Row, of_objects: bool) -> bool:
    return bool(row) and all(">>>" in key for key in row) and _is(next(iter(row.values()))) == of_objects


def _is_nested(row: Row) -> bool:
    stamps = row["timestamp"]
    return isinstance(stamps, list) and (not stamps or isinstance(stamps[0], list))  # none: nothing was read


PROGRAMS = (
    Program("TimeLens", "predictions, json or jsonl", (), ("answers", "answer"), "timelens", windows="timestamps",
            expand=_keyed, fits=lambda row: _has_keys(row, True)),
    Program("lmms-eval", "submissions/inference_results_*.json", (), ("answers",), "lmms-eval",
            expand=_keyed, fits=lambda row: _has_keys(row, False)),
    Program("lmms-eval, TimeLens tasks", "samples_timelens_*.jsonl", ("doc", "resps"), ("filtered_resps", "resps"),
            "lmms-eval-timelens", "doc", fits=lambda row: _is(row["doc"]) and "span" in row["doc"]),
    Program("lmms-eval", "samples_*.jsonl", ("doc", "resps"), ("filtered_resps", "resps"), "lmms-eval", "doc"),
    Program("Time-R1", "tg_*.jsonl", ("qid", "pred", "target", "output_text"), ("output_text",), "timer1"),
    Program("VideoChat-R1.5", "checkpoint.jsonl", ("video_path", "query", "answer", "timestamp", "ans"), ("answer",),
            "videochat-r1.5", truth=("ans",), fits=_is_nested),
    Program("VideoChat-R1", "eval_logs/*.jsonl", ("video_path", "query", "answer", "timestamp", "ans"), ("answer",),
            "videochat-r1", truth=("ans",)),
    Program("TimeLens", "difficulty filter, jsonl", ("video_path", "query", "span", "pred", "answer"), ("answer",),
            "timelens", truth=("span",)),
    Program("TimeLens2", "rollouts, jsonl", ("query", "rollouts"), ("rollouts",), "timelens"),
    Program("TimeLens2", "evaluation by VLMEvalKit, json or tsv", ("video", "question", "prediction"), ("prediction",),
            "timelens"),
    Program("TaRO", "results_rank_*.jsonl", ("original_data", "model_output"), ("model_output",), "taro",
            "original_data"),
    Program("moment_detr, lighthouse", "*_preds.jsonl, *_submission.jsonl", ("qid", "vid", "query",
            "pred_relevant_windows"), (), "qvhighlights", windows="pred_relevant_windows"),
    Program("VTimeLLM", "log of its evaluation", ("video_id", "task", "query_id", "answer"), ("answer",), "vtimellm",
            truth=(), fits=lambda row: row["task"] == "grounding"),
    Program("VTimeLLM", "log, other tasks", ("video_id", "task", "query_id", "answer"), ("answer",), "vtimellm",
            truth=(), words=("task",)),
    Program("ms-swift", "swift infer, jsonl", ("response", "messages"), ("response",)),
    Program("ms-swift", "completions.jsonl of training", ("completion",), ("completion",), expand=_columns,
            fits=lambda row: isinstance(row["completion"], list) and not any(map(_is, row["completion"]))),
    Program("TRL", "completions_*.parquet of training", ("prompt", "completion"), ("completion",)),
    Program("verl", "generations of training, jsonl", ("input", "output", "step"), ("output",)),
    Program("LLaMA-Factory", "generated_predictions.jsonl", ("prompt", "predict", "label"), ("predict",)),
)  # fmt: skip


def recognise(row: Row) -> Program | None:
    """The program that wrote a row, by its fields; None where none of PROGRAMS did. Raises BadRow for an annotation."""
    for program in PROGRAMS:
        if all(field in row for field in program.fields) and program.fits(row):
            return program
    if "relevant_windows" in row and "pred_relevant_windows" not in row:
        raise BadRow("is a row of annotations, not of predictions; give this file as the moments")
    return None


def named_answers(row: Row, program: Program) -> Iterator[tuple[QuestionName, tuple[PredictedRow, ...]]]:
    """A row's answers with what names their questions, the samples of one question together. Raises BadRow."""
    for each in program.expand(row):
        inner = each.get(program.inner)
        named = {**each, **inner} if isinstance(inner, dict) else each
        name = _name(named, program)
        if not (name.qid or name.words or name.number is not None):
            raise BadRow(f"is a row of {program.name} that names neither a question's id nor its words; {NEXT_STEP}")
        yield name, _answers(each, program)


def looked_for() -> str:
    """The shapes that a row was compared with, for a message."""
    return ", ".join(dict.fromkeys(program.name for program in PROGRAMS))


def _name(row: Row, program: Program) -> QuestionName:
    qid = row.get("qid")
    words = next((row[name] for name in program.words if isinstance(row.get(name), str)), "")
    prompt = "" if words else next((text for name in _PROMPTS if (text := _asked(row.get(name)))), "")
    video = next((video for name in _VIDEOS if (video := _video(row.get(name)))), "")
    duration, info = row.get("duration"), row.get("info")
    number = info.get("sentence_id") if isinstance(info, dict) else None
    return QuestionName(
        qid=str(qid) if isinstance(qid, str | int) and not isinstance(qid, bool) else "",
        video=stem_of(video)[0],
        words=words or prompt,
        truth=next((truth for name in program.truth if (truth := _pair(row.get(name)))), None),
        duration=float(duration) if isinstance(duration, int | float) else None,
        number=number if type(number) is int else None,
        prompt=not words,
    )


def _answers(row: Row, program: Program) -> tuple[PredictedRow, ...]:
    for name in program.answer:
        if row.get(name) not in (None, []):
            return tuple(map(PredictedRow, _texts(row[name])))
    if program.windows and row.get(program.windows) is not None:
        return (ranked_row(program.windows, row[program.windows]),)
    if any(name in row for name in program.answer):
        return (PredictedRow(""),)  # a cell that was left empty: nothing was answered
    raise BadRow(f"is a row of {program.name} without an answer; {NEXT_STEP}")


def _texts(value: object) -> list[str]:
    """The texts of a text, of the last message of a conversation, or of lists of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(map(_is, value)):
        return _texts(value[-1].get("content", value[-1].get("text")))
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    raise BadRow(f"holds {shorten(value)} where the answer's text belongs; {NEXT_STEP}")


def _asked(value: object) -> str:
    """The words of a prompt: a text, or the last message of the user."""
    if isinstance(value, list):
        turns = [turn.get("content") for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        value = turns[-1] if turns else ""
        if isinstance(value, list):  # parts of a message, of which some are videos
            value = " ".join(str(part.get("text") or "") for part in value if isinstance(part, dict))
    return _TAGS.sub(" ", value).strip() if isinstance(value, str) else ""


def _video(value: object) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    if isinstance(value, dict):
        value = value.get("video") or value.get("path") or ""
    return value if isinstance(value, str) else ""


def _pair(value: object) -> tuple[float, float] | None:
    """Two seconds of a pair, of a list with one pair in it, or of the text of one."""
    if isinstance(value, str):
        numbers = re.findall(r"\d+(?:\.\d+)?", value[:200])
        return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None
    if isinstance(value, list) and len(value) == 1:
        return _pair(value[0])
    if isinstance(value, list) and len(value) == 2 and all(type(end) in (int, float) for end in value):
        return float(value[0]), float(value[1])
    return None
