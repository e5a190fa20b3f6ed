"""Files of other programs, with their own ids, in another order and with a row missing: recognised, joined, scored, shown."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.data.usable_moments import Moments
from labkit.errors import LabError
from labkit.scoring.predictions import PredictedRow, read_predictions, write_predictions
from labkit.scoring.programs import PROGRAMS
from labkit.scoring.readings import disagreements
from labkit.scoring.score_table import labelled, score_table, score_text
from labkit.scoring.scores import score
from labkit.views.explorer import packing
from labkit.views.measured_chains import measure_chains, with_predictions

MOMENTS = [
    Moment("door", "/v/AAAA1.mp4", "someone shuts a door.", (Span(2, 8),), 30.0),
    Moment("cup", "/v/BBBB2.mp4", "a woman lifts a cup.", (Span(0, 5),), 25.0),
    Moment("laptop", "/v/AAAA1.mp4", "someone opens a laptop.", (Span(10, 14),), 30.0),
    Moment("sits", "/v/CCCC3.mp4", "a man sits down.", (Span(3, 9),), 31.0),
]


class Asked(NamedTuple):
    """An answer as a program's writer sees it: its own number of the question, and the number within its video."""

    place: int
    number: int
    video: str
    query: str
    truth: list[float]
    duration: float
    said: list[float]


# Backwards, and without the last question. IoU 2 / 6, 5 / 10 and 6 / 6: mIoU is (1/3 + 1/2 + 1 + 0) / 4.
ANSWERS = [
    Asked(1, 1, "AAAA1", "someone opens a laptop.", [10.0, 14.0], 30.0, [12.0, 16.0]),
    Asked(2, 0, "BBBB2", "a woman lifts a cup.", [0.0, 5.0], 25.0, [0.0, 10.0]),
    Asked(0, 0, "AAAA1", "someone shuts a door.", [2.0, 8.0], 30.0, [2.0, 8.0]),
]
MIOU = (1 / 3 + 1 / 2 + 1) / 4
THOUGHT = "<think>Roughly <timestep>0.00 to 20.00</timestep>.</think>"


UNREADABLE = "I cannot tell."


def to(a: Asked) -> str:
    return f"{a.said[0]:.2f} to {a.said[1]:.2f}"


def chain(a: Asked) -> str:
    return f"{THOUGHT}<answer>{to(a)}</answer>" if a.said else UNREADABLE


def happens(a: Asked) -> str:
    return f"The event happens in {a.said[0]} - {a.said[1]} seconds." if a.said else UNREADABLE


def spans(a: Asked) -> list[list[float]]:
    return [a.said] if a.said else []


def lines(row: Callable[[Asked], object]) -> bytes:
    return "".join(json.dumps(row(each)) + "\n" for each in ANSWERS).encode()


def document(row: Callable[[Asked], dict[str, object]], indent: int | None = 1) -> bytes:
    return json.dumps({key: value for each in ANSWERS for key, value in row(each).items()}, indent=indent).encode()


def key(a: Asked) -> str:
    return f"{a.video}.mp4>>>{a.query}>>>{a.truth}"


def table(rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows: list[dict[str, object]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data)
    return data.getvalue()


def vlmeval(a: Asked) -> dict[str, object]:
    return {
        "index": a.place, "video": a.video, "question": a.query.rstrip("."), "duration": a.duration,
        "gt_span": str(a.truth), "gt_start": a.truth[0], "gt_end": a.truth[1], "prediction": happens(a),
    }  # fmt: skip


def sample(doc: dict[str, object], a: Asked, text: str) -> dict[str, object]:
    return {"doc_id": a.place, "doc": doc, "target": a.truth, "resps": [[text]], "filtered_resps": [text]}


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def prompt(a: Asked) -> str:
    return f"Please find the event described by the sentence '{a.query}', and give its times."


class Case(NamedTuple):
    """What a program writes, what it must be known as, joined by and read under, and why it reads so."""

    program: str
    data: Callable[[], bytes]
    rules: str
    joined: str
    why: str


VIDEOCHAT = {"ans": [0, 1], "iou": 0.5}
CASES = {
    "Time-R1": Case(
        "Time-R1",
        lambda: lines(lambda a: {"qid": f"charades_{a.place}", "pred": a.said, "target": a.truth, "duration": a.duration,
                                 "output_text": chain(a) + "<|im_end|>"}),
        "timer1", "place and truth", "it numbers a benchmark's questions video by video",
    ),
    "VideoChat-R1": Case(
        "VideoChat-R1",
        lambda: lines(lambda a: {"video_path": f"p2:s3://bucket/{a.video}.mp4", "query": a.query, "answer": chain(a),
                                 "timestamp": a.said or [None, None], "iou": 0.5, "ans": a.truth}),
        "videochat-r1", "video and query", "ans is the truth, timestamp what it read itself",
    ),
    "VideoChat-R1.5": Case(
        "VideoChat-R1.5",
        lambda: lines(lambda a: {"video_path": f"/d/{a.video}.mp4", "query": a.query, "timestamp": spans(a), "iou": 0.5,
                                 "ans": a.truth,
                                 "answer": f"<answer>[({a.said[0]}, {a.said[1]})]</answer>" if a.said else UNREADABLE}),
        "videochat-r1.5", "video and query", "a list of spans in the answer",
    ),
    "TimeLens, one document": Case(
        "TimeLens",
        lambda: document(lambda a: {key(a): {"timestamps": [[9, 9]], "answers": happens(a), "duration": a.duration}}),
        "timelens", "video and query", "the text counts, not the seconds that its script has rounded",
    ),
    "TimeLens, of each GPU": Case(
        "TimeLens",
        lambda: json.dumps([{key(a): {"timestamps": spans(a), "answers": happens(a)}} for a in ANSWERS]).encode(),
        "timelens", "video and query", "a list of objects of one key",
    ),
    "TimeLens, spans alone": Case(
        "TimeLens", lambda: lines(lambda a: {key(a): {"timestamps": spans(a)}}),
        "qvhighlights", "video and query", "either may be given; the first span as it stands",
    ),
    "TimeLens, filter": Case(
        "TimeLens",
        lambda: lines(lambda a: {"source": "x", "video_path": f"videos/{a.video}.mp4", "duration": a.duration, "query": a.query,
                                 "span": [a.truth], "pred": spans(a), "answer": happens(a), "iou": 0.5}),
        "timelens", "video and query", "what its difficulty filter dumps",
    ),
    "TimeLens2, json": Case(
        "TimeLens2", lambda: json.dumps([vlmeval(a) for a in ANSWERS]).encode(),
        "timelens", "video and query", "VLMEvalKit's table as records",
    ),
    "TimeLens2, tsv": Case(
        "TimeLens2", lambda: table([vlmeval(a) for a in ANSWERS]),
        "timelens", "video and query", "VLMEvalKit's table",
    ),
    "TimeLens2, rollouts": Case(
        "TimeLens2",
        lambda: lines(lambda a: {"video": f"/d/{a.video}.mp4", "query": a.query, "span": [a.truth],
                                 "rollouts": [str(spans(a)), "[[0, 1]]"]}),
        "timelens", "video and query", "of the samples of a question the first counts",
    ),
    "TaRO": Case(
        "TaRO",
        lambda: lines(lambda a: {
            "original_data": {"qid": f"test{a.place + 7}", "query": a.query, "vid": a.video, "video_file": f"{a.video}.mp4",
                              "duration": a.duration, "relevant_windows": [a.truth]},
            "model_output": (f"{THOUGHT}\n<answer>\n{a.said[0]:.2f}s to {a.said[1]:.2f}s\n</answer><|im_end|>" if a.said
                             else UNREADABLE),
            "predicted_start": next(iter(a.said), None), "pred_relevant_window": a.said, "relevant_windows": [a.truth]}),
        "taro", "video and query", "ids of its own beside the video and the query",
    ),
    "lmms-eval, samples": Case(
        "lmms-eval",
        lambda: lines(lambda a: sample({"video": f"{a.video}.mp4", "caption": a.query, "timestamp": a.truth}, a, happens(a))),
        "lmms-eval", "video and query", "the question is in doc",
    ),
    "lmms-eval, TimeLens' samples": Case(
        "lmms-eval, TimeLens tasks",
        lambda: lines(lambda a: sample({"video_path": f"charades/{a.video}.mp4", "query": a.query, "span": [a.truth]}, a, happens(a))),
        "lmms-eval-timelens", "video and query", "known by the span in doc",
    ),
    "lmms-eval, submission": Case(
        "lmms-eval", lambda: document(lambda a: {key(a): happens(a)}, indent=4),
        "lmms-eval", "video and query", "texts under keys, where TimeLens has objects",
    ),
    "moment_detr": Case(
        "moment_detr, lighthouse",
        lambda: lines(lambda a: {"qid": 9000 + a.place, "query": a.query, "vid": a.video,
                                 "pred_relevant_windows": [[*a.said, 0.9], [0, 1, 0.1]] if a.said else [],
                                 "pred_saliency_scores": [0.5] * 75}),
        "qvhighlights", "video and query", "its qids are not these moments': video and query are",
    ),
    "VTimeLLM": Case(
        "VTimeLLM",
        lambda: lines(lambda a: {"video_id": a.video, "task": "grounding", "query_id": 0, "info": {"sentence_id": a.number},
                                 "answer": {"door": "From 10 to 30", "cup": "From 00 to 40", "laptop": "From 40 to 60",
                                            "down": UNREADABLE}[
                                     a.query.split()[-1].rstrip(".")]}),
        "vtimellm", "video and number", "10 to 30 hundredths of 30 s are 3 to 9 s, so that the IoU are 5/7, 5/10 and 2/8",
    ),
    "ms-swift, infer": Case(
        "ms-swift",
        lambda: lines(lambda a: {"response": chain(a), "labels": None, "videos": [f"/mnt/{a.video}.mp4"],
                                 "messages": [turn("system", "x"), turn("user", f"<video>{prompt(a)}"), turn("assistant", "x")]}),
        "labkit", "video and query", "the query is inside a prompt",
    ),
    "ms-swift, training": Case(
        "ms-swift",
        lambda: (json.dumps({"step": ["1"] * len(ANSWERS),
                             "prompt": [f"<|im_start|>user\n<video>{prompt(a)}<|im_end|>" for a in ANSWERS],
                             "completion": [chain(a) for a in ANSWERS], "IouORM": [1.0] * len(ANSWERS)}) + "\n").encode(),
        "labkit", "query alone", "columns, whose prompts name no video; each of these queries is asked once",
    ),
    "TRL": Case(
        "TRL",
        lambda: parquet([{"step": 1, "prompt": [turn("user", prompt(a))], "completion": [turn("assistant", chain(a))],
                          "reward": 1.0, "advantage": 0.0} for a in ANSWERS]),
        "labkit", "query alone", "conversations in Parquet",
    ),
    "TRL, texts": Case(
        "TRL",
        lambda: parquet([{"step": 1, "prompt": prompt(a), "completion": chain(a), "qid": {
                            "AAAA1": "door", "BBBB2": "cup", "CCCC3": "sits"}[
                            a.video] if a.number == 0 else "laptop"} for a in ANSWERS]),
        "labkit", "qid", "a column of one's own that names the moments",
    ),
    "verl": Case(
        "verl",
        lambda: lines(lambda a: {"input": f"user\n{prompt(a)}\nassistant\n", "output": chain(a), "gts": a.truth,
                                 "score": 1.0, "step": 1}),
        "labkit", "query alone", "prompts of training",
    ),
    "LLaMA-Factory": Case(
        "LLaMA-Factory", lambda: lines(lambda a: {"prompt": prompt(a), "predict": chain(a), "label": "x"}),
        "labkit", "query alone", "prompts",
    ),
}  # fmt: skip


def write(folder: Path, case: str, name: str = "x.dat") -> Path:
    path = folder / name
    path.write_bytes(CASES[case].data())
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_programs_file_is_scored_and_explored_under_its_own_rules(tmp_path, case):
    program, _, rules, joined, why = CASES[case]
    path = write(tmp_path, case)
    got = score(path, MOMENTS)
    card = got.protocol
    expected = (5 / 7 + 5 / 10 + 2 / 8) / 4 if case == "VTimeLLM" else MIOU
    assert got.figures["miou"] == pytest.approx(expected, abs=1e-4), why
    assert (card.program, card.rules, card.joined) == (program, rules, {joined: 3}), why
    assert (card.missing, card.extra, card.first["missing"]) == (1, 0, ("sits",))
    chains, note = with_predictions(path, MOMENTS)
    rows = measure_chains(chains, {moment.qid: moment for moment in MOMENTS})
    first = {row.moment.qid: row.answer_iou for row in reversed(rows)}
    assert sum(first.values()) / 4 == pytest.approx(expected, abs=1e-4), why
    assert note == ""
    packing.pack(rows)


@pytest.mark.parametrize("case", CASES)
def test_an_answer_in_which_its_program_read_nothing_counts_as_unread(tmp_path, monkeypatch, case):
    unread = Asked(3, 0, "CCCC3", "a man sits down.", [3.0, 9.0], 31.0, [])
    # Behind an answer that was read: the file's form is known by then, and must stay the same.
    monkeypatch.setitem(globals(), "ANSWERS", [*ANSWERS[:2], unread, ANSWERS[2]])
    got = score(write(tmp_path, case), MOMENTS)
    card = got.protocol
    assert (card.program, card.joined, card.missing) == (CASES[case].program, {CASES[case].joined: 4}, 0)
    assert (card.parse_failure_rate, got.columns["miou"][got.qids.index("sits")]) == (1 / 4, 0.0)


def test_every_program_has_a_case():
    assert {program.name for program in PROGRAMS} == {case.program for case in CASES.values()}


@pytest.mark.parametrize("case", ["Time-R1", "lmms-eval, submission", "TimeLens2, tsv"])
def test_gzip_changes_nothing(tmp_path, case):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(CASES[case].data()))
    assert score(path, MOMENTS).figures["miou"] == pytest.approx(MIOU, abs=1e-4)


def moment(qid: str, video: str, query: str, span: tuple[float, float] = (2, 8), duration: float = 30.0) -> Moment:
    return Moment(qid, f"/v/{video}.mp4", query, (Span(*span),), duration)


def timer1(qid: str, target: list[float], duration: float | None = 30.0) -> dict[str, object]:
    return {"qid": qid, "pred": [1, 2], "target": target, "duration": duration, "output_text": "1 to 2"}


def detr(qid: object, video: str, query: str) -> dict[str, object]:
    return {"qid": qid, "vid": video, "query": query, "pred_relevant_windows": [[1, 2]]}


def log(text: str, **more: object) -> dict[str, object]:
    return {"input": text, "output": "o", "step": 1, **more}


def logged(video: str, number: int) -> dict[str, object]:
    return {
        "video_id": video,
        "task": "grounding",
        "query_id": 0,
        "info": {"sentence_id": number},
        "answer": "From 10 to 30",
    }


NUMBERS = [moment("1", "A", "he sits"), moment("2", "B", "he sits", (9, 12))]
TWINS = [moment("a", "A", "he sits"), moment("b", "B", "he sits", (9, 12)), moment("c", "A", "he sits down", (4, 5))]


@pytest.mark.parametrize(
    ("row", "moments", "where", "why"),
    [
        (detr("b", "B", "he sits"), TWINS, ("b", "qid"), "the id, with which video and query agree"),
        (detr("b", "A", "he sits"), TWINS, ("a", "video and query"), "an id of another video is another file's"),
        (detr("b", "B", "she runs"), TWINS, ("b (2)", ""), "an id of another query, and a query that nobody asked"),
        (detr(7, "A", "He sits, down!"), TWINS, ("c", "video and query"), "case and punctuation don't matter"),
        (detr(7, "a", "he sits"), TWINS, ("7", ""), "a video's name does"),
        (log("When is it that he sits down? Think."), TWINS, ("c", "query alone"), "the longest query in a prompt"),
        (log("When is it that he sits?"), TWINS, ("When is it that he sits?", ""), "asked of two videos, and nothing tells which"),
        (log("When is it that he sits?", gts=[9.0, 12.0]), TWINS, ("b", "query alone"), "the truth tells which"),
        (log("Then he sits.down"), TWINS, ("c", "query alone"), "a stop parts words"),
        (log("the sits"), TWINS, ("the sits", ""), "a part of a word is none"),
        (detr("b", "B_cut", "he sits"), TWINS, ("b", "qid"), "a video that was renamed, as no moment's is called"),
        (detr("b", "B_cut", "she runs"), TWINS, ("b (2)", ""), "the same with other words"),
        (timer1("a", [2.0, 8.0]), TWINS, ("a", "qid"), "the id, and the truth that it repeats"),
        (timer1("a", [9.0, 12.0]), TWINS, ("a (2)", ""), "an id of another truth is another file's"),
        (timer1("a", [9.0, 12.0]), [replace(TWINS[0], windows=())], ("a", "qid"), "where no truth is known, none says otherwise"),
        (timer1("1", [9.0, 12.0]), NUMBERS, ("2", "place and truth"), "the place, not the id, by the truth"),
        (timer1("x_2", [9.0, 12.0]), TWINS, ("b", "place and truth"), "video by video: both of A come first"),
        (timer1("x_1", [9.0, 12.0]), TWINS, ("b", "place and truth"), "or row by row, as the file has them"),
        (timer1("x_0", [9.0, 12.0]), TWINS, ("x_0", ""), "the truth of another place"),
        (timer1("x_2", [9.0, 12.0], 44.0), TWINS, ("x_2", ""), "a video of another length"),
        (timer1("x_2", [9.0, 12.0], None), TWINS, ("b", "place and truth"), "no length is given"),
        (timer1("x_3", [9.0, 12.0]), TWINS, ("x_3", ""), "one row further"),
        (logged("A", 1), TWINS, ("c", "video and number"), "the second of A"),
        (logged("A", 1), [moment("A-1", "A", "he sits")], ("A-1", "video and number"), "by its own number"),
        (logged("A", 0), [moment("A-1", "A", "he sits")], ("A: query 0", ""), "the first was left out: a place says nothing"),
        (logged("A", 0), Moments(TWINS, 4, [], "f"), ("A: query 0", ""), "nor where rows were dropped"),
        (timer1("x_3", [9.0, 12.0]), Moments(TWINS, 4, [], "f"), ("b", "place and truth"), "one row was dropped before it"),
    ],
)  # fmt: skip
def test_an_answer_is_joined_by_the_surest_key(tmp_path, row, moments, where, why):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row) + "\n", encoding="utf-8")
    got = read_predictions(path).on(moments)
    assert (list(got.rows), dict(got.joined)) == ([where[0]], {where[1]: 1} if where[1] else {}), why


def test_samples_of_a_question_are_kept_to_look_at_and_the_first_counts(tmp_path):
    got = read_predictions(write(tmp_path, "TimeLens2, rollouts")).on(MOMENTS)
    assert got.rows["door"] == PredictedRow("[[2.0, 8.0]]") and list(got.more["door"]) == [PredictedRow("[[0, 1]]")]
    assert sorted(got.duplicates) == ["cup", "door", "laptop"]


@pytest.mark.parametrize("case", ["lmms-eval, samples", "VTimeLLM", "moment_detr", "TRL"])
def test_what_was_joined_is_written_under_the_moments_own_qids_and_scores_the_same(tmp_path, case):
    got = read_predictions(write(tmp_path, case))
    write_predictions(tmp_path / "own.jsonl", got.on(MOMENTS))
    own = read_predictions(tmp_path / "own.jsonl")
    assert (set(own.rows), own.rules) == ({"door", "cup", "laptop"}, CASES[case].rules)
    assert score(own, MOMENTS).figures == score(got, MOMENTS).figures


@pytest.mark.parametrize("rules", ["timelens", "labkit"])
def test_hundredths_of_the_video_are_never_read_as_seconds(tmp_path, rules):
    path = write(tmp_path, "VTimeLLM")
    with pytest.raises(
        LabError, match=rf"rules '{rules}' read seconds, .*VTimeLLM\) are hundredths .* or name vtimellm"
    ):
        score(path, MOMENTS, rules=rules)
    with pytest.raises(LabError, match="hundredths of the video, which rules vtimellm alone read"):
        disagreements(path, MOMENTS)


def test_all_rules_of_hundredths_are_the_one_that_reads_them_and_said(tmp_path):
    write_moments(MOMENTS, tmp_path / "m.jsonl")
    path = write(tmp_path, "VTimeLLM")
    text = score_text(path, str(tmp_path / "m.jsonl"), rules="all")
    assert "vtimellm  36.6" in text and "hundredths of the video, which the other rules would take for seconds" in text
    assert set(json.loads(score_text(path, str(tmp_path / "m.jsonl"), rules="all", as_json=True))["rules"]) == {
        "vtimellm"
    }
    beside = str(score_table({"ours": {"door": "2 to 8"}, "theirs": path}, MOMENTS))
    assert "not compared with it: theirs." in beside, "no rules that would read both alike"
    little = {"door": "From 2 to 8", "cup": "From 0 to 5"}
    assert "the other rules read seconds" in score(little, MOMENTS, rules="vtimellm").protocol.unread


def test_files_that_count_from_0_are_put_together_without_loss(tmp_path):
    path = tmp_path / "x.jsonl"
    rows = [detr(0, "A", "he sits"), detr(0, "B", "he sits"), detr(0, "A", "he sits")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    got = read_predictions(path).on(TWINS)
    assert (list(got.rows), dict(got.joined), got.duplicates) == (["a", "b"], {"video and query": 2}, ("a",))


def test_answers_that_meet_on_one_moment_are_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(detr(n, "A", "he sits")) + "\n" for n in (7, 8)), encoding="utf-8")
    assert read_predictions(path).on(TWINS).duplicates == ("a",)


def test_what_little_is_read_of_is_counted_among_the_answers_that_have_a_moment():
    texts = {"door": UNREADABLE, "cup": UNREADABLE, "else": "<answer>1 to 2</answer>"}
    assert with_predictions(texts, MOMENTS)[1].startswith("Nothing was read in 2 of 2 predictions")


BAD = [
    # what stands in the file, what the message says, why
    (b'{"alpha": 1, "beta": 2}\n', r"line 1: has the fields 'alpha', 'beta', by which .*labkit's qid .*Time-R1.*verl",
     "nothing known"),
    (lines(vlmeval) + b'{"qid": "door", "text": "t"}\n', "line 4: is a row of labkit while rows before are of TimeLens2", "mixed"),
    (document(lambda a: {key(a): happens(a)})[:-9], "line 1: is not JSON", "a document that was cut"),
    (b"id,length\nAAAA1,30\n", r"line 1: is not JSON .*read are labkit's own rows and files of TimeLens, .*verl", "a table by commas"),
    (b"PK\x03\x04...", "an Excel table or a zip; save it as tsv", "VLMEvalKit's own default"),
    (b"PAR1 but no more", "is a Parquet file that can't be read", "Parquet that was cut"),
    (b"video\tquestion\tprediction\nA\tq\t" + b"x" * 200_000 + b"\n", r"larger than field limit .*; save it as json", "a long cell"),
    (b'{"qid": "q", "vid": "A", "query": "x", "pred_relevant_windows": [[1]]}\n', "mixes forms; write all", "half a window"),
    (b'{"video_id": "A", "task": "grounding", "query_id": 0, "answer": 5}\n', "neither a question's id nor its words", "no sentence"),
    (b'{"prompt": "p", "completion": 5}\n', "holds 5 where the answer's text belongs", "a number for a text"),
    (json.dumps({"original_data": {"qid": "q"}, "model_output": {}}).encode(), "holds {} where the answer's", "an object for a text"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message", "why"), BAD, ids=[row[2] for row in BAD])
def test_a_file_that_cannot_be_read_says_what_is_in_it_and_what_to_do(tmp_path, data, message, why):
    path = tmp_path / "x.dat"
    path.write_bytes(data)
    with pytest.raises(LabError, match=rf"x\.dat.*{message}"):
        read_predictions(path)


def test_where_none_is_joined_both_sides_are_shown(tmp_path):
    other = [moment("k0", "KITCHEN", "she cooks")]
    message = (
        r"none of the 3 predictions of .*x\.dat \(by VideoChat-R1\) .* on 'AAAA1: someone opens a laptop\.', .*"
        r"the first is on video 'AAAA1' and asks 'someone opens .*called 'k0' \(the first is on video 'KITCHEN' and asks 'she cooks'\)"
    )
    with pytest.raises(LabError, match=message):
        score(write(tmp_path, "VideoChat-R1"), other)


@pytest.mark.parametrize("case", ["Time-R1", "moment_detr", "VideoChat-R1"])
def test_a_last_line_that_broke_off_is_a_missing_answer_and_said(tmp_path, case):
    path = tmp_path / "x.jsonl"
    path.write_bytes(CASES[case].data()[:-30])
    got = score(path, MOMENTS).protocol
    assert (got.cut_line, got.missing) == (3, 2)
    assert "the file broke off in line 3, which was not read" in str(got)


def test_another_task_of_vtimellms_log_is_counted_and_not_scored(tmp_path):
    path = tmp_path / "log.txt"
    more = {"video_id": "AAAA1", "task": "captioning", "query_id": 0, "answer": "[]"}
    path.write_bytes(CASES["VTimeLLM"].data() + json.dumps(more).encode() + b"\n")
    got = score(path, MOMENTS).protocol
    assert (got.extra, got.first["extra"], got.missing) == (1, ("AAAA1: captioning",), 1)


def test_several_files_are_a_row_each_and_compared_with_the_first_under_the_same_rules(tmp_path):
    files = {name: write(tmp_path, name, f"{n}.jsonl") for n, name in enumerate(["Time-R1", "TaRO", "moment_detr"])}
    own = score_table(files, MOMENTS)
    assert own.paired() == {}
    assert "Read under other rules than the first, and so not compared with it: TaRO, moment_detr" in str(own)
    alike = score_table({"first": {"door": "2 to 8"}, "second": files["Time-R1"]}, MOMENTS, rules="timer1")
    gap = alike.paired()["second"].differences["miou"]
    assert gap.value == pytest.approx(MIOU - 1 / 4)
    text = str(alike)
    assert "+20.8" in text and "whole video" in text
    assert "written by Time-R1; joined 3 by place and truth; 1 moment unanswered." in text
    assert set(alike.as_dict()["paired"]) == {"second"} and "<table>" in alike._repr_html_()
    with pytest.raises(LabError, match="gone: predictions 'gone.jsonl' can't be read"):
        score_table({"gone": "gone.jsonl"}, MOMENTS)


def test_the_command_takes_several_files(tmp_path):
    write_moments(MOMENTS, tmp_path / "m.jsonl")
    files = [write(tmp_path, "Time-R1", "a.jsonl"), write(tmp_path, "TRL", "b.parquet")]
    text = score_text(files, str(tmp_path / "m.jsonl"))
    assert text.splitlines()[1].startswith("a ") and text.splitlines()[2].startswith("b ")
    assert set(json.loads(score_text(files, str(tmp_path / "m.jsonl"), as_json=True))["files"]) == {"a", "b"}
    with pytest.raises(LabError, match="several files go with neither"):
        score_text(files, str(tmp_path / "m.jsonl"), against=files[0])


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        (["out/ours.jsonl", "other.txt"], ["ours", "other"]),
        (["r1/charades/tg_0_1.jsonl", "sft/charades/tg_0_1.jsonl"], ["r1/charades/tg_0_1", "sft/charades/tg_0_1"]),
        (["same.jsonl", "same.jsonl"], ["same (1)", "same (2)"]),
        (["a/ours.jsonl", "a/ours.json"], ["ours.jsonl", "ours.json"]),
    ],
)
def test_files_are_called_by_what_tells_them_apart(files, labels):
    found = list(labelled(files))
    assert found == labels


def test_long_labels_are_cut_where_they_are_alike():
    labels = [f"qwen2.5-vl-3b-charades-anchors-seed{seed}" for seed in (1, 2)]
    lines = str(score_table({label: {"door": "2 to 8"} for label in labels}, MOMENTS)).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [
        "qwen2.5-vl-3b-...s-anchors-seed1",
        "qwen2.5-vl-3b-...s-anchors-seed2",
    ]


def test_a_file_of_many_rows_takes_the_memory_of_what_is_kept(tmp_path):
    # Each row carries 8 kB that nobody reads, 16 MB in all; what is kept is under 1 MB.
    path = tmp_path / "x.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for n in range(2000):
            file.write(json.dumps(detr(n, "A", f"query {n}") | {"pred_saliency_scores": "x" * 8000}) + "\n")
    read_predictions(write(tmp_path, "moment_detr"))  # what is loaded once
    tracemalloc.start()
    got = read_predictions(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(got.rows) == 2000 and peak < 4e6
