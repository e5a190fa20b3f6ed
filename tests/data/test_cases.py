"""Every file of cases/annotations, small ones shaped after what people met in public, with what is right about it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from labkit.data.benchmarks import load_moments, moments_text
from labkit.data.usable_moments import Moments
from labkit.errors import LabError
from tests.data.films import film

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases"
cases = pytest.mark.skipif(not CASES.is_dir(), reason="the cases are NOT CHECKED: ../shared/cases is absent")

DOOR, CUP, LAPTOP = "someone shuts a door.", "a woman lifts a cup.", "someone opens a laptop."
CHARADES = [f"AAAA1-0 {DOOR} 2-8 of 30", f"BBBB2-0 {CUP} 0-5.5 of 25.5", f"AAAA1-1 {LAPTOP} 10-14 of 30"]


class Read(NamedTuple):
    """What a file is read as: its title, its moments' one source, a line a moment, and the issues by kind."""

    title: str
    source: str
    moments: list[str]
    counts: dict[str, int] = {}  # noqa: RUF012


def own(*qids: str) -> Read:
    return Read("moments", "", [f"{qid} a door opens 2-8 of 30" for qid in qids])


FILES: list[tuple[str, Read | str, str]] = [
    ("anet_short.json", Read("ActivityNet-Captions", "activitynet", [
        "v_short-0 A man runs. 0.01-0.02 of 12.2", "v_short-1 Hands are washed. 0-0.5 of 12.2",
        "v_short-2 All of it. 0.01-12.2 of 12.2", "v_short-3 The end. 11-12.2 of 12.2",
    ], {"point": 1, "end past the clip": 2}), "a label of 10 ms is one; a point is widened, what overshoots is cut"),
    ("anet_video_duration.json", Read("ActivityNet-Captions", "activitynet", [f"v_aa-0 {DOOR} 2-8 of 30"]),
     "another name of duration, in the form that video-language programs pass around"),
    ("bom/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES), "a mark belongs to no id"),
    ("crlf/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES), "no sentence ends in \\r"),
    ("mac_cr/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES), "three lines, not one"),
    ("tab/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES), "any blank parts the columns"),
    ("mp4_in_txt/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES),
     "its ids are Charades' without the suffix, so that durations and predictions find them"),
    ("semicolon_csv/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES),
     "spreadsheets of half of Europe part cells so"),
    ("utf16/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", CHARADES),
     "its mark says how to read it; the encoding stands beside the title"),
    ("two_hashes/charades_sta_test.txt", Read("Charades-STA txt", "charades-sta", [
        "AAAA1-0 someone ##shuts a door. 2-8 of 30", *CHARADES[1:]]), "the first mark parts, a later one is text"),
    ("latin1/charades_sta_test.txt", "line 2: not UTF-8; save .* looks like Latin-1: iconv -f ISO-8859-1",
     "named, not guessed: a wrong guess would show wrong letters"),
    ("no_csv/charades_sta_test.txt", r"no duration 3; .*put Charades_v1_train.csv .* or give durations= \(--durations\)",
     "the text form holds no durations"),
    ("charades_sta_test.txt.gz", "no duration 3; .*put Charades_v1_train.csv", "unpacked; durations are missing as above"),
    *((f"{folder}/Charades_v1_test.csv", "holds durations, no annotations; give the file of queries",
       "the other file of the two")
      for folder in ("bom", "crlf", "latin1", "mac_cr", "mp4_in_txt", "semicolon_csv", "tab", "two_hashes", "utf16")),
    ("charades-timelens.json", Read("TimeLens-Bench", "timelens-bench/charades-sta", [
        CHARADES[0], CHARADES[2], CHARADES[1]]), "Charades' videos under TimeLens' labels: not Charades-STA"),
    ("timelens-100k.jsonl", Read("TimeLens-100K", "timelens-100k/didemo", [CHARADES[0], CHARADES[2]]),
     "a moment an event; the file says where each video comes from"),
    ("clock_windows.jsonl", Read("moments", "", ["a x 2-8 of 30"]), "minutes and seconds as a clock shows them"),
    ("str_numbers.jsonl", Read("moments", "", ["a x 2-8 of 30"]), "numbers as text, as many programs write them"),
    ("flat_window.jsonl", Read("moments", "", ["a x 2-8 of 30"]), "one window without a list around it is that window"),
    ("int_qid.jsonl", own("7", "8"), "a number is a name"),
    ("own_array.json", own("a", "b"), "a JSON list of our rows"),
    ("own_crlf_bom.jsonl", own("a"), "written on Windows"),
    ("own_extra.jsonl", own("a")._replace(counts={"unknown field": 2}), "what is not used is said"),
    ("win_paths.jsonl", own(*"abcdefg")._replace(counts={"foreign path": 1}),
     "links and other systems' paths leave the name to look by"),
    ("no_duration.jsonl", "no duration 1; .*add the seconds of each video as duration, or give the folder of the videos",
     "without the video nobody knows it"),
    ("md_charades.jsonl", Read("charades-sta", "charades-sta", [f"11 {DOOR} 2-8 of 30"]),
     "Charades in QVHighlights' form, as moment-DETR's heirs read it"),
    ("qvh_126.jsonl", Read("QVHighlights", "qvhighlights", ["8737 kids play ball in a yard. 0-16 of 126"]),
     "a clip may be shorter than the 150 s in its name"),
    ("qvh_negative.jsonl", Read("QVHighlights", "qvhighlights", ["1 a lady is dancing. 0-16 of 150"], {"no window": 1}),
     "a query of nothing has no window to be found: dropped and counted"),
    ("qvh_test.jsonl", "holds no relevant_windows: its labels are not published; use train or val", "no labels"),
    ("timer1_filtered.json", Read("TimeRFT", "timerft/didemo", ["my|didemo|AAAA1|a door a door 2-8 of 30"]),
     "Time-R1's own rows, with what its filter adds"),
    ("timer1_rows.jsonl", Read("TimeRFT", "timerft/didemo", ["my|didemo|AAAA1|a door a door 2-8 of 30"]),
     "the same as JSON Lines"),
    ("tvg_edit.json", Read("charades-sta", "charades-sta", [
        f"AAAA1-{k} a door 2-8 of 30" for k in range(6)]),
     "somebody's own edit: not TVGBench, and six ways to write one answer"),
    ("frames.json", "no frame rate 1; .*labels count frames .*; give the folder of the videos, of which it is then measured",
     "frames without a rate are no seconds"),
    ("lmms_charades.json", "no duration 2; .*put Charades_v1_train.csv", "lmms-eval's rows have no durations"),
    ("labels.csv", "no duration 1; .*durations=", "people's own table; a comma in quotes is text"),
    ("labels.tsv", "no duration 1; .*durations=", "the same, by tabs"),
    ("msswift_grpo.jsonl", "holds chats .*ms-swift.*give the annotation file", "times stand in sentences"),
    ("sharegpt.json", "holds ShareGPT conversations.*give the annotation file", "times stand in sentences"),
]  # fmt: skip


def lines(moments: Moments) -> list[str]:
    return [
        f"{m.qid} {m.query} {', '.join(f'{w.start:g}-{w.end:g}' for w in m.windows)} of {m.duration:g}"
        for m in moments
    ]


@cases
@pytest.mark.parametrize(("file", "right", "reason"), FILES, ids=[row[0] for row in FILES])
def test_each_case_is_read_right_or_refused_by_its_name(file: str, right: Read | str, reason: str) -> None:
    path = CASES / "annotations" / file
    if isinstance(right, str):
        with pytest.raises(LabError, match=right) as caught:
            load_moments(path)
        assert path.name in str(caught.value), reason
        return
    moments = load_moments(path)
    assert lines(moments) == right.moments, reason
    assert (moments.counts(), {moment.source for moment in moments}) == (right.counts, {right.source}), reason
    assert moments.source.startswith(f"{right.title} ("), reason
    assert {Path(moment.video).stem for moment in moments} <= {
        "AAAA1", "BBBB2", "a", "v_aa", "v_short", "bPxxxxxxxxM_660.0_810.0", "cQxxxxxxxxM_60.0_210.0",
    }  # fmt: skip


@cases
def test_no_case_is_left_out() -> None:
    files = {
        str(path.relative_to(CASES / "annotations")) for path in (CASES / "annotations").rglob("*") if path.is_file()
    }
    assert files == {file for file, *_ in FILES}


@cases
@pytest.mark.parametrize("file", ["charades_sta_test.txt.gz", "lmms_charades.json", "labels.csv", "labels.tsv"])
def test_durations_may_be_given_to_whatever_lacks_them(file: str) -> None:
    moments = load_moments(
        CASES / "annotations" / file, durations=CASES / "annotations" / "tab" / "Charades_v1_test.csv"
    )
    said = {"labels.csv": ["AAAA1-0 someone shuts a door, twice 2-8 of 30"]}
    plain = [line.replace(". ", " ") for line in CHARADES]
    right = {"charades_sta_test.txt.gz": CHARADES, "lmms_charades.json": plain[:2], "labels.tsv": plain[:1]} | said
    assert lines(moments) == right[file]
    assert {moment.source for moment in moments} == {"charades-sta"}


@cases
def test_frames_are_seconds_by_the_videos_own_rate(tmp_path: Path) -> None:
    film(tmp_path / "AAAA1.mp4", range(0, 8000, 40))
    moments = load_moments(CASES / "annotations" / "frames.json", videos=tmp_path)
    assert lines(moments) == ["AAAA1_0 What did I do with the cup? 1.456-3.42 of 8"], "frames 36.4 and 85.5 at 25 fps"
    assert moments[0].source == "frames" and moments.counts() == {"no duration": 1, "no frame rate": 1}


def test_tacos_counts_frames_and_is_not_charades(tmp_path: Path) -> None:
    entry = {"timestamps": [[252, 504.0]], "sentences": ["He washes a carrot."], "fps": 25.2, "num_frames": 5040}
    (tmp_path / "test.json").write_text(json.dumps({"s13-d21.avi": entry}))
    moments = load_moments(tmp_path / "test.json")
    assert lines(moments) == ["s13-d21-0 He washes a carrot. 10-20 of 200"]
    assert (moments[0].source, Path(moments[0].video).name) == ("tacos", "s13-d21.avi")
    (tmp_path / "test.json").write_text(json.dumps({"AAAA1": entry}))
    assert (load_moments(tmp_path / "test.json")[0].source, lines(moments)) == ("test", lines(moments))
    (tmp_path / "test.json").write_text(json.dumps({"s13-d21": entry | {"fps": 0}}))
    with pytest.raises(LabError, match="no frame rate"):
        load_moments(tmp_path / "test.json")


@cases
def test_another_benchmark_in_qvhighlights_form_is_called_what_it_is() -> None:
    moments = load_moments(CASES / "predictions" / "lighthouse_charades_test.jsonl")
    assert [moment.source for moment in moments] == ["charades-sta"] * 6
    assert moments.source.startswith("charades-sta (") and len({moment.source_video for moment in moments}) == 3


def test_what_no_benchmark_owns_bears_its_files_name(tmp_path: Path) -> None:
    row = {"qid": 1, "query": "x", "duration": 30, "vid": "kitchen cam", "relevant_windows": [[2, 8]]}
    (tmp_path / "my set.v2.jsonl").write_text(json.dumps(row))
    moments = load_moments(tmp_path / "my set.v2.jsonl")
    assert moments[0].source == "my set" and moments.source.startswith("my set (")


@cases
@pytest.mark.parametrize(
    "file",
    [
        "preds.jsonl", "empty_windows.jsonl", "lastcut.jsonl", "samples_temporal_grounding_charades.jsonl", "verl_1.jsonl",
        "inference_results_temporal_grounding_charades.json", "vtimellm_log.txt", "msswift_infer_result.jsonl",
        "msswift_completions.jsonl",
    ],
)  # fmt: skip
def test_predictions_given_as_moments_are_told_to_be_predictions(file: str) -> None:
    with pytest.raises(
        LabError, match=f"{file} holds predictions.*`labkit score PREDICTIONS --moments FILE` scores them"
    ):
        load_moments(CASES / "predictions" / file)


@cases
def test_what_was_read_is_written_as_moments(tmp_path: Path) -> None:
    source = tmp_path / "timelens-100k.jsonl"
    shutil.copy(CASES / "annotations" / source.name, source)
    moments_text(source, write=tmp_path / "own.jsonl")
    assert lines(load_moments(tmp_path / "own.jsonl")) == lines(load_moments(source))
