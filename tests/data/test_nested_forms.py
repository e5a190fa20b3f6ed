"""Forms with several queries an object: read by their owners' rules, bad rows counted.

TimeLens2's chats are read from real rows; of TimeLens-100K's and TimeLens2's other forms, Ego4D-NLQ, TACoS, DiDeMo and HiREST no
real row is at hand: the files here are of our own make, shaped after their owners' loaders.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments, moments_text, write_timelens_bench
from labkit.data.moments import Moment, download_command, read_moments, write_moments
from labkit.data.nested_forms import times_in
from labkit.errors import LabError
from tests.data.films import film
from tests.data.test_annotations import as_json, as_lines, faults
from tests.data.test_benchmarks import QVHIGHLIGHTS, REAL, TEST, real

CHATS = REAL / "timelens2" / "timelens-100k_over180_sft_first150.jsonl"

SHOWN = {"type": "video_url", "video_url": {"url": "hirest/k_c/", "processed_video_length": 722, "processed_fps": 4.0}}
FORMAT = "Format your answer exactly as an array of pairs, e.g.: [[start, end]]."


def chat(*turns: str, shown: Any = SHOWN, **more: Any) -> dict[str, Any]:
    """A row of TimeLens2's: the video and a question, then its answer and further pairs."""
    first = [shown, {"type": "text", "text": f"<VIDEO_CONTEXT>\n{turns[0]}"}] if shown else turns[0]
    texts = [first, *turns[1:]]
    messages = [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(texts)]
    return {"id": 0, "messages": messages} | more


def event(query: str = "a door opens", span: Any = ((2, 8),)) -> dict[str, Any]:
    return {"query": query, "span": span}


HUNDRED: dict[str, Any] = {"source": "didemo", "video_path": "didemo/a@N0.mov", "duration": 30.0, "events": [event()]}
FLAT = {"source": "cosmo_cap", "data_type": "grounding", "video_path": "/v/cosmo_cap/b.mp4", "duration": 30.0, "query": "a door opens",
        "span": [[2.0, 8.0], [10, 14]], "pred": [[0, 3]], "answer": "0 - 3", "iou": 0.1}  # fmt: skip
RAW = {"video_id": "c", "annotations": [{"text": "a door opens", "timestamps": [[2, 8], [10, 14]]}]}


def ego4d(*queries: Any, **clip: Any) -> dict[str, Any]:
    annotations = [{"annotation_uid": "ann", "language_queries": list(queries)}]
    entry = {"clip_uid": "clip", "video_start_sec": 100.0, "video_end_sec": 580.0, "annotations": annotations} | clip
    return {"version": "1", "date": "x", "videos": [{"video_uid": "vid", "split": "val", "clips": [entry]}]}


ASKED: dict[str, Any] = {
    "clip_start_sec": 17.3, "clip_end_sec": 27.3, "video_start_sec": 117.3, "video_end_sec": 127.3,
    "query": "what did I pick from the fridge?", "template": "Objects: ...",
}  # fmt: skip
STEPS = [
    {"index": 0, "heading": "zero the scale", "absolute_bounds": [25, 36]},
    {"index": 1, "heading": "rinse", "absolute_bounds": [88, 92]},
]
CLEAN = {"relevant": True, "clip": True, "v_duration": 250.47, "bounds": [25, 92], "steps": STEPS}
DIDEMO: dict[str, Any] = {
    "annotation_id": 7, "description": "a dog runs", "video": "1@N0_ab.mov", "num_segments": 6, "times": [[1, 1]] * 4,
}  # fmt: skip


def told(path: Path, **options: Any) -> list[tuple[str, str, list[tuple[float, float]], float]]:
    return [(m.qid, m.query, [(w.start, w.end) for w in m.windows], m.duration) for m in load_moments(path, **options)]


# TimeLens


@real
def test_real_chats_of_timelens2_are_749_questions_about_150_videos() -> None:
    rows = [json.loads(line) for line in CHATS.read_text().splitlines()]
    moments = load_moments(CHATS, strict=True)
    assert len(rows) == 150 == len({moment.video for moment in moments})
    assert len(moments) == moments.rows == sum(len(row["messages"]) // 2 for row in rows) == 749
    # In all 25 ways to write an answer: none is one of two spans, none ends past its video.
    assert {len(moment.windows) for moment in moments} == {1} and moments.counts() == {}
    assert Counter(moment.source for moment in moments) == {
        "timelens2/hirest": 444, "timelens2/internvid_vtime": 215, "timelens2/cosmo_cap": 75, "timelens2/queryd": 10,
        "timelens2/didemo": 5,
    }  # fmt: skip
    first = moments[0]
    assert (first.qid, first.query, first.windows, first.duration) == (
        "53819037@N00_8893941905_0a957d015a-0", "When can we see a woman in a green jacket speaking into a megaphone?",
        (Span(169, 179),), 180.5,
    )  # fmt: skip
    assert not any("ormat" in moment.query and "[start" in moment.query for moment in moments)
    clock = next(moment for moment in moments if moment.qid == "KyurrDqkXIs-1")
    said = next(row for row in rows if "KyurrDqkXIs" in json.dumps(row))["messages"][3]["content"]
    assert times_in(said) is not None and clock.windows[0].length > 0


@pytest.mark.parametrize(
    ("text", "times", "reason"),
    [
        ("[[0.0, 5.0], [9, 12]]", [["0.0", "5.0"], ["9", "12"]], "lists"),
        ("Time intervals: 1.0 - 2.0, 5 - 9", [["1.0", "2.0"], ["5", "9"]], "a minus is no sign"),
        ("10-15, 20-25", [["10", "15"], ["20", "25"]], "without blanks"),
        ("Between 110.0 and 118.0 seconds, and between 1 and 2 seconds.", [["110.0", "118.0"], ["1", "2"]], "two 'and's"),
        ("[[00:03:46, 00:03:52]]", [["00:03:46", "00:03:52"]], "hours, minutes, seconds"),
        ("Start: 1s, End: 2s; Start: 3s, End: 4s", [["1", "2"], ["3", "4"]], "units and labels"),
        ("<10.0, 14.0>", [["10.0", "14.0"]], "angles"),
        ("", [], "no span: the row is dropped for its window"),
        ("[[1, 2], [3]]", None, "an end is missing"),
        ("The second goal: 10 - 14", None, "a text: its numbers may be anything"),
        ("Not in the video.", None, "an answer without times"),
        ("12 to ٣٤ seconds", None, "digits of other scripts are no times here"),
    ],
)  # fmt: skip
def test_an_answer_is_times_and_the_words_around_them(text: str, times: Any, reason: str) -> None:
    assert times_in(text) == times, reason


@pytest.mark.parametrize(
    ("text", "query", "reason"),
    [
        (f"When does it rain?\n{FORMAT}", "When does it rain?", "how to answer stands below"),
        (f'Given the query: "where was\nthe box?". Return it.\n{FORMAT}', "where was the box?", "a template's quoted query"),
        (f'Watch the video and identify when the query is answered: "what was on it"\n{FORMAT}', "what was on it", "no full stop"),
        ('When does the sign "No entry" appear?', 'When does the sign "No entry" appear?', "quotes of the query itself"),
        ("Please find the visual event described by the sentence 'a dog's bowl', determining its starting and ending times.",
         "a dog's bowl", "TimeLens' own prompt"),
    ],
)  # fmt: skip
def test_a_question_is_taken_out_of_its_prompt(tmp_path: Path, text: str, query: str, reason: str) -> None:
    assert told(as_lines(tmp_path / "a.jsonl", chat(text, "[[2, 8]]")))[0][1] == query, reason


def test_chats_of_timelens2_in_both_of_its_forms(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "a.jsonl", chat("one?", "2 - 8", "two?", "[[10, 14], [0:20, 0:25]]"))
    assert told(path) == [("k_c-0", "one?", [(2, 8)], 180.5), ("k_c-1", "two?", [(10, 14), (20, 25)], 180.5)]
    moments = load_moments(path)
    assert moments.source.startswith("TimeLens2 (") and Path(moments[0].video).name == "k_c.mp4"
    assert download_command(moments[0].source) == "'hf download MCG-NJU/TimeLens2-93K --repo-type dataset'"
    public = as_lines(tmp_path / "b.jsonl", chat("one?", "2 - 8", shown=None, video_id="v1"))
    (tmp_path / "length.csv").write_text("id,length\nv1,30\n")
    assert told(public, durations=tmp_path / "length.csv") == [("v1-0", "one?", [(2, 8)], 30)]


@pytest.mark.parametrize(
    ("row", "says", "reason"),
    [
        (chat("a?", "never"), "answer 'never' is not times alone, in pairs", "no times"),
        (chat("a?", "5"), "answer '5' is not times alone, in pairs", "half a span"),
        (chat("a?", "[[8, 2]]"), "start after end", "a reversed span"),
        (chat("a?", "[[190, 200]]"), "start past the end", "behind the video's end"),
        (chat("a?", ""), "no window", "an empty answer"),
        (chat("a?"), "question 'a?' has no answer".replace("'a?'", r"'<VIDEO_CONTEXT>\\na\?'"), "a question left open"),
        (chat("a?", "1 - 2") | {"messages": ["x"]}, "holds chats .* that name no video", "nothing names a video"),
        (chat("a?", "1 - 2", video_id="v") | {"messages": ["x"]}, "message 'x' is neither a question nor its answer", "no message"),
        (chat("a?", "1 - 2", video_id="v") | {"messages": 5}, "message 5 is neither", "no list of messages"),
        (HUNDRED | {"events": [{"query": "x"}]}, "event .* has no query and span", "an event without span"),
        (HUNDRED | {"events": 5}, "event 5 has no query and span", "no list of events"),
        (HUNDRED | {"video_path": None}, "video_path missing", "no video"),
        (FLAT | {"span": None}, "span missing", "flat, without span"),
        (FLAT | {"span": [[1, 2, 3]]}, "malformed row", "three ends"),
        (RAW | {"annotations": [{"text": "x"}]}, "event .* has no text and timestamps", "TimeLens2's raw form"),
        (RAW, "no duration", "TimeLens2's raw form has none, and no video is there"),
        (DIDEMO | {"times": "0-1"}, "times '0-1' are not pairs of a first and a last chunk", "no list of chunks"),
        (DIDEMO | {"times": []}, "no window", "nobody marked it"),
        (DIDEMO | {"times": [[2, 1]]}, "are not pairs of a first", "reversed chunks"),
        (DIDEMO | {"times": [[0, 0], [1.5, 2]]}, "are not pairs of a first", "half a chunk: never read as seconds"),
        (DIDEMO | {"num_segments": "six"}, "no duration", "how long it was shown is not known"),
        (DIDEMO | {"description": None}, "description missing", "no query"),
    ],
)  # fmt: skip
def test_a_bad_row_of_lines_is_said(tmp_path: Path, row: Any, says: str, reason: str) -> None:
    with pytest.raises(LabError, match=says):
        load_moments(as_lines(tmp_path / "rows.jsonl", row))
        raise AssertionError(reason)


def test_timelens_100k_is_read_flat_and_by_video(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "timelens-100k.jsonl", HUNDRED | {"events": [event(), event("b", [3, 4])]}, HUNDRED)
    assert [row[0:3] for row in told(path)] == [
        ("a@N0-0", "a door opens", [(2, 8)]), ("a@N0-1", "b", [(3, 4)]), ("a@N0-2", "a door opens", [(2, 8)]),
    ]  # fmt: skip
    flat = load_moments(as_lines(tmp_path / "flat.jsonl", FLAT))
    assert (flat[0].windows, flat[0].source) == ((Span(2, 8), Span(10, 14)), "timelens-100k/cosmo_cap"), (
        "all spans, in order"
    )
    grouped = load_moments(as_lines(tmp_path / "grpo.jsonl", HUNDRED | {"source": "timelens2_93k"}))
    assert grouped[0].source == "timelens2"
    film(tmp_path / "c.mp4", range(0, 20000, 40))
    raw = load_moments(as_lines(tmp_path / "raw.jsonl", RAW), videos=tmp_path)
    assert (raw[0].windows, raw[0].duration, raw.counts()) == ((Span(2, 8), Span(10, 14)), 20.0, {"no duration": 1})


def test_timelens_bench_knows_clips_of_qvhighlights(tmp_path: Path) -> None:
    entry = {"duration": 150.0, "spans": [[2, 8]], "queries": ["a door opens"]}
    path = as_json(tmp_path / "qvhighlights-timelens.json", {"NUsG_210.0_360.0": entry})
    (moment,) = load_moments(path)
    assert (Path(moment.video).name, moment.clip, moment.source) == (
        "NUsG_210.0_360.0.mp4", None, "timelens-bench/qvhighlights",
    )  # fmt: skip
    (tmp_path / "NUsG.mkv").touch()
    (moment,) = load_moments(path, videos=tmp_path)
    assert (Path(moment.video).name, moment.clip, moment.qid) == ("NUsG.mkv", Span(210, 360), "NUsG_210.0_360.0-0")


@pytest.mark.parametrize("name", ["timelens-bench/charades", "charades-timelens", "Charades-TimeLens"])
def test_timelens_bench_is_found_by_its_name_and_its_files(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("LABKIT_DATA", str(tmp_path))
    as_json(tmp_path / "charades-timelens.json", {"AO8RW": {"duration": 9, "spans": [[1, 2]], "queries": ["x"]}})
    assert load_moments(name)[0].source == "timelens-bench/charades-sta"


# Ego4D-NLQ, HiREST, DiDeMo


@pytest.mark.parametrize(
    ("files", "video", "clip", "reason"),
    [
        ([], "clip.mp4", None, "the published clip is expected"),
        (["clip.mp4", "vid.mp4"], "clip.mp4", None, "the clip needs no trimming"),
        (["vid.mp4"], "vid.mp4", Span(100, 580), "the whole video is there: its window is looked at"),
    ],
)
def test_ego4d_nlq_counts_seconds_of_the_clip(
    tmp_path: Path, files: list[str], video: str, clip: Any, reason: str
) -> None:
    for file in files:
        (tmp_path / file).touch()
    (moment,) = load_moments(as_json(tmp_path / "nlq_val.json", ego4d(ASKED)), videos=tmp_path)
    assert moment == Moment(
        "clip-ann-0", str(tmp_path / video), str(ASKED["query"]), (Span(17.3, 27.3),), 480.0, clip, "ego4d-nlq"
    ), reason


def test_ego4d_nlq_counts_what_its_owners_pass_over(tmp_path: Path) -> None:
    unasked, unlabelled = {**ASKED, "query": None}, {"query": "where was it?"}
    point = ASKED | {"clip_end_sec": 17.3}
    tree = ego4d(ASKED, unasked, unlabelled, point, "x")
    tree["videos"].append({"video_uid": "other", "clips": [{"clip_uid": "c2", "annotations": 5}]})
    path = as_json(tmp_path / "nlq_val.json", tree)
    assert faults(path) == [
        ("empty query", "dropped", "videos[0].clips[0].annotations[0].language_queries[1]", "clip-ann-1"),
        ("no window", "dropped", "videos[0].clips[0].annotations[0].language_queries[2]", "clip-ann-2"),
        ("point", "repaired", "videos[0].clips[0].annotations[0].language_queries[3]", "clip-ann-3"),
        ("malformed row", "dropped", "videos[0].clips[0].annotations[0].language_queries[4]", ""),
        ("malformed row", "dropped", "videos[1].clips[0]", ""),
    ]
    assert load_moments(path).rows == 6


@pytest.mark.parametrize(
    ("document", "says", "reason"),
    [
        (ego4d(ASKED, video_end_sec=None), "clip window", "where the clip lies cannot be known"),
        ({"version": "1", "videos": {}}, "has no list of videos", "no tree"),
        (ego4d() | {"videos": [{"clips": [{"annotations": [{}]}]}]}, "has no list of language_queries", "another of its tasks"),
        (ego4d({"query": "where?"}), "no window 1", "its test split has no labels"),
        ({"Bake": {"a.mp4": CLEAN | {"bounds": None, "steps": []}}}, "no window|malformed", "no bounds"),
        ({"Bake": {"a.mp4": CLEAN | {"clip": False, "steps": []}}}, "no window 1", "all of the video: nothing to be found"),
        ({"Bake": {"a.mp4": CLEAN | {"relevant": False, "steps": []}}}, "no window 1", "a video that does not show it"),
        ({"a": {"duration": 9, "spans": 5, "queries": []}}, "has no lists of spans and queries", "TimeLens-Bench"),
        ({"a": {"duration": 9, "spans": [[5, 2]], "queries": ["x"]}}, "start after end", "TimeLens-Bench, reversed"),
    ],
)  # fmt: skip
def test_a_bad_document_is_said(tmp_path: Path, document: Any, says: str, reason: str) -> None:
    with pytest.raises(LabError, match=says):
        load_moments(as_json(tmp_path / "file.json", document))
        raise AssertionError(reason)


def test_hirest_asks_for_the_moment_in_the_video_and_for_steps_in_the_moment(tmp_path: Path) -> None:
    whole = {"relevant": True, "clip": False, "v_duration": 54, "bounds": [0, 0], "steps": []}
    bad = CLEAN | {"steps": [{"heading": "x"}, {"heading": "y", "absolute_bounds": 5}]}
    path = as_json(
        tmp_path / "all_data_val.json", {"Clean a Brush": {"a.mp4": CLEAN, "b.mp4": whole}, "Bake": {"c.mp4": bad}}
    )
    moments = load_moments(path)
    assert moments.source.startswith("HiREST (")
    assert [(m.qid, m.query, m.windows, m.duration, m.clip, m.source) for m in moments[:3]] == [
        ("a-0", "Clean a Brush", (Span(25, 92),), 250.47, None, "hirest/moment"),
        ("a-1", "zero the scale", (Span(0, 11),), 67.0, Span(25, 92), "hirest/step"),
        ("a-2", "rinse", (Span(63, 67),), 67.0, Span(25, 92), "hirest/step"),
    ]
    assert faults(path) == [
        ("no window", "dropped", "key Clean a Brush, b.mp4", "b-0"),
        ("malformed row", "dropped", "key Bake, c.mp4[0]", "c-1"),
        ("malformed row", "dropped", "key Bake, c.mp4[1]", "c-2"),
    ]


@pytest.mark.parametrize(
    ("times", "window", "reason"),
    [
        ([[1, 1]] * 4, (5, 10), "both ends included: chunk 1 is seconds 5 to 10"),
        ([[0, 0], [0, 0], [0, 1], [5, 5]], (0, 5), "means of the best three: (1 + 1 + 1/2) / 3 against (1/2 + 1/2 + 1) / 3"),
        ([[0, 1], [0, 0], [1, 1], [4, 4]], (0, 10), "(1 + 1/2 + 1/2) / 3 against (1 + 1/2 + 0) / 3"),
        ([[3, 3], [2, 2]], (15, 20), "a tie: the first"),
    ],
)  # fmt: skip
def test_of_didemos_annotators_the_window_that_its_measure_scores_best(
    tmp_path: Path, times: list[list[int]], window: tuple[float, float], reason: str
) -> None:
    path = as_json(tmp_path / "val_data.json", [DIDEMO | {"times": times}])
    assert told(path) == [("7", "a dog runs", [window], 30.0)], reason
    differ = {"several annotators": 1} if len({tuple(pair) for pair in times}) > 1 else {}
    assert load_moments(path).counts() == {"no duration": 1} | differ


@pytest.mark.parametrize(
    ("seconds", "clip", "window", "reason"),
    [
        (28.2, Span(0, 28.2), (25, 28.2), "the last chunk ends with the video"),
        (40, Span(0, 30), (25, 30), "of longer videos annotators saw the first 30 s"),
    ],
)
def test_didemo_is_the_first_chunks_of_its_video(
    tmp_path: Path, seconds: float, clip: Span, window: Any, reason: str
) -> None:
    film(tmp_path / "1@N0_ab.mp4", range(0, round(seconds * 1000), 40))
    (moment,) = load_moments(as_json(tmp_path / "val_data.json", [DIDEMO | {"times": [[5, 5]] * 3}]), videos=tmp_path)
    assert (moment.clip, moment.windows, moment.duration) == (clip, (Span(*window),), clip.end), reason


# What is written


@real
@pytest.mark.parametrize(
    ("file", "written", "left"),
    [
        (TEST, 3720, {}),
        (CHATS, 749, {}),
        (QVHIGHLIGHTS, 1020, {"several windows, where the form has one span a query": 530}),
    ],
)
def test_real_moments_in_timelens_benchs_form(tmp_path: Path, file: Path, written: int, left: dict[str, int]) -> None:
    moments = load_moments(file)
    assert Counter(write_timelens_bench(moments, tmp_path / "new.json")) == left
    again = load_moments(tmp_path / "new.json", strict=True)
    assert len(again) == written
    kept = Counter((Path(m.video).name, m.query, m.windows, m.duration) for m in moments if len(m.windows) == 1)
    assert Counter((Path(m.video).name, m.query, m.windows, m.duration) for m in again) == kept


def moment(qid: str = "q", video: str = "/v/a.mp4", **changed: Any) -> Moment:
    fields = {"query": "x", "windows": (Span(1, 2),), "duration": 9.0} | changed
    return Moment(qid, video, **fields)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (moment(windows=(Span(1, 2), Span(3, 4))), "several windows"),
        (moment(clip=Span(10, 19)), "a part of its video"),
        (moment(options=("a", "b"), choice=0), "options"),
        (moment(video="/w/a.mp4"), "another video by the same name"),
        (moment(duration=8.0), "another duration"),
    ],
)
def test_what_timelens_bench_cannot_hold_is_left_out_and_said(tmp_path: Path, odd: Moment, why: str) -> None:
    write_moments([moment("first"), odd], tmp_path / "own.jsonl")
    said = moments_text(tmp_path / "own.jsonl", write=tmp_path / "new.json", form="timelens-bench")
    assert said.splitlines()[-2].startswith("1 moments written to") and f"1  left out: {why}" in said.splitlines()[-1]
    with pytest.raises(LabError, match=rf"1 of 2 moments do not fit .*first 'q' \({why}"):
        moments_text(tmp_path / "own.jsonl", write=tmp_path / "strict.json", form="timelens-bench", strict=True)
    assert not (tmp_path / "strict.json").exists()
    if "another" not in why:
        with pytest.raises(LabError, match="1 of 1 moments do not fit.*write labkit's own form"):
            write_timelens_bench([odd], tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"form": "timelens"}, "form = 'timelens' is none that labkit writes; the forms are labkit, timelens-bench"),
        ({"form": "timelens-bench"}, r"no file is named; add write= \(--write\)"),
        ({"form": "timelens-bench", "write": "/proc/nowhere/x.json"}, "cannot be written"),
    ],
)
def test_a_form_that_cannot_be_written_is_said(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    write_moments([moment()], tmp_path / "own.jsonl")
    with pytest.raises(LabError, match=says):
        moments_text(tmp_path / "own.jsonl", **options)


def test_every_form_is_written_as_moments(tmp_path: Path) -> None:
    files = [
        as_lines(tmp_path / "chat.jsonl", chat("one?", "2 - 8, 9 - 12")), as_lines(tmp_path / "100k.jsonl", HUNDRED, FLAT),
        as_json(tmp_path / "nlq_val.json", ego4d(ASKED)), as_json(tmp_path / "hirest.json", {"Bake": {"a.mp4": CLEAN}}),
        as_json(tmp_path / "didemo.json", [DIDEMO]),
    ]  # fmt: skip
    for file in files:
        moments_text(file, write=tmp_path / "own.jsonl")
        assert read_moments(tmp_path / "own.jsonl") == list(load_moments(file)), file.name
