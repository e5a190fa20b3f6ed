"""Small files of every format, as their owners write them, and what becomes of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment, read_moments, write_moments
from labkit.errors import LabError

QV: dict[str, Any] = {
    "qid": 7, "query": "A girl cooks.", "duration": 150, "vid": "abc_-D_60.0_210.0", "relevant_windows": [[10, 30], [82, 150]],
    "relevant_clip_ids": [5], "saliency_scores": [[1, 1, 2]],
}  # fmt: skip
TVG: dict[str, Any] = {
    "path": "./dataset/timer1/videos/tvgbench_data/KWZSA.mp4", "question": " a person sat. ", "answer": "13.4-28.1",
    "start": None, "end": None, "duration": 30.12, "dataset_name": "charades", "bins": {"dataset": "charades"},
}  # fmt: skip
RFT: dict[str, Any] = {
    "video": "./dataset/timer1/videos/timerft_data/QtWT8rxUuNk.mp4", "duration": 93.2932, "timestamp": [1.0, 4.0],
    "sentence": "A purple hanger.", "qid": "my|cosmo|QtWT8rxUuNk|A purple hanger.", "video_start": None, "video_end": None,
    "difficulty": 50.0, "pred": [0.0, 3.0],
}  # fmt: skip
CUT = RFT | {
    "video": "./x/4jujh_qhEc_00:00:39:000_00:01:24:700.mp4", "duration": 45.7, "timestamp": [34.9, 41.9],
    "qid": "my|internvid-vtime|4jujh_qhEc|a statue", "video_start": 39.0, "video_end": 84.7,
}  # fmt: skip
OURS: dict[str, Any] = {
    "qid": "q1", "video": "clips/a.mp4", "query": "she opens the door", "windows": [[1.0, 4.5]], "duration": 12.0,
}  # fmt: skip
QA = ["video_id", "frame_count", "width", "height", "question", "answer", "qid", "type", "a0", "a1", "a2", "a3", "a4"]
ASKED = [
    "4010",
    "997",
    "640",
    "480",
    "what did he do, then",
    "sit",
    "6",
    "TN",
    "run",
    "sit",
    "sing",
    "wave, twice",
    "jump",
]
EVIDENCE = {"4010": {"duration": 33, "location": {"6": [[1.2, 5.8], [20.0, 33.5]], "0": [[3, 4]]}, "fps": 29.97}}


def as_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def as_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def nextgqa(folder: Path, *rows: list[str], evidence: Any = EVIDENCE) -> Path:
    with (folder / "val.csv").open("w", newline="") as file:
        csv.writer(file).writerows([QA, *rows])
    as_json(folder / "gsub_val.json", evidence)
    return folder / "val.csv"


def faults(path: Path, **options: Any) -> list[tuple[str, str, int | str, str]]:
    return [(f.kind, f.action, f.line, f.qid) for f in load_moments(path, **options).issues]


def test_charades_text(tmp_path: Path) -> None:
    (tmp_path / "Charades_v1_train.csv").write_text(
        'id,script,length\n3MSZA,"a long, long\nscript with ""marks""",30.96\nAMT7R,,30.08\n'
    )
    path = tmp_path / "any name"
    path.write_bytes(
        "3MSZA 24.3 30.4##she said 1##2\u2028.\r\nAMT7R 4 12.5##b.\r\n\r\n3MSZA 1.0 2.0## c. \r\n".encode()
    )
    videos = tmp_path / "videos"
    assert list(load_moments(path)) == [
        Moment("3MSZA-0", str(videos / "3MSZA.mp4"), "she said 1##2\u2028.", (Span(24.3, 30.4),), 30.96, source="charades-sta"),
        Moment("AMT7R-0", str(videos / "AMT7R.mp4"), "b.", (Span(4, 12.5),), 30.08, source="charades-sta"),
        Moment("3MSZA-1", str(videos / "3MSZA.mp4"), "c.", (Span(1, 2),), 30.96, source="charades-sta"),
    ]  # fmt: skip


def test_a_bad_line_of_charades_text_is_dropped_and_shifts_no_id(tmp_path: Path) -> None:
    (tmp_path / "Charades_v1_test.csv").write_text("id,length\nAAAAA,30\n")
    path = tmp_path / "test.txt"
    path.write_text(
        "AAAAA 1 2##a\nAAAAA 3 4 no mark\nAAAAA 5##b\nAAAAA 5 6,5##c\nAAAAA ٥ 6##d\nAAAAA inf 1e999##e\nAAAAA 7 8##f\nBBBBB 1 2##g\n"
    )
    assert [moment.qid for moment in load_moments(path)] == ["AAAAA-0", "AAAAA-4"]
    assert faults(path) == [
        ("malformed row", "dropped", 2, ""),
        ("malformed row", "dropped", 3, ""),
        ("malformed row", "dropped", 4, "AAAAA-1"),
        ("malformed row", "dropped", 5, "AAAAA-2"),
        ("malformed row", "dropped", 6, "AAAAA-3"),
        ("no duration", "dropped", 8, "BBBBB-0"),
    ]
    assert "'AAAAA 3 4 no mark' is not 'VIDEO start end##sentence'" in load_moments(path).listing()


def test_captions_json(tmp_path: Path) -> None:
    entry = {"duration": 55.15, "timestamps": [[0, 4.14], [4.14, 33.36]], "sentences": ["Two men.", " One man.\n"]}
    path = as_json(tmp_path / "a.json", {"v_uq": entry, "v_e": {"duration": 1, "timestamps": [], "sentences": []}})
    moments = load_moments(path, videos=tmp_path)
    assert list(moments) == [
        Moment("v_uq-0", str(tmp_path / "v_uq.mp4"), "Two men.", (Span(0, 4.14),), 55.15, source="activitynet"),
        Moment("v_uq-1", str(tmp_path / "v_uq.mp4"), "One man.", (Span(4.14, 33.36),), 55.15, source="activitynet"),
    ]
    assert moments.source.startswith("ActivityNet-Captions (") and moments.issues == ()
    assert load_moments(as_json(tmp_path / "b.json", {"3MSZA": entry}))[0].source == "charades-sta"


def test_captions_without_a_partner_are_dropped(tmp_path: Path) -> None:
    content = {
        "v_a": {"duration": 9, "timestamps": [[0, 4], [4, 9]], "sentences": ["a"]},
        "v_b": {"duration": 9, "timestamps": [[0, 4]], "sentences": ["a", "b"]},
        "v_c": {"duration": 9, "timestamps": None, "sentences": []},
        "v_d": 5,
        "v_e": {"duration": 9, "timestamps": [[0, 4], "x", [1], [1, True]], "sentences": ["a", "b", "c", "d"]},
        "v_f": {"duration": 9, "timestamps": [[0, 4]], "sentences": [None]},
    }
    path = as_json(tmp_path / "a.json", content)
    assert [moment.qid for moment in load_moments(path)] == ["v_a-0", "v_b-0", "v_e-0"]
    dropped = [
        "key v_a[1]",
        "key v_b[1]",
        "key v_c",
        "key v_d",
        "key v_e[1]",
        "key v_e[2]",
        "key v_e[3]",
        "key v_f[0]",
    ]
    assert [(kind, action, line) for kind, action, line, _ in faults(path)] == [
        ("malformed row", "dropped", line) for line in dropped
    ]


@pytest.mark.parametrize(
    ("files", "video", "clip", "reason"),
    [
        ([], "abc_-D_60.0_210.0.mp4", None, "nothing is there: the published file is expected"),
        (["abc_-D_60.0_210.0.mkv"], "abc_-D_60.0_210.0.mkv", None, "the published file holds the clip alone"),
        (["abc_-D.mp4"], "abc_-D.mp4", Span(60, 210), "the source video is trimmed"),
        (
            ["abc_-D.mp4", "abc_-D_60.0_210.0.mp4"],
            "abc_-D_60.0_210.0.mp4",
            None,
            "of both the file that needs no trimming",
        ),
    ],
)
def test_qvhighlights(tmp_path: Path, files: list[str], video: str, clip: Span | None, reason: str) -> None:
    (tmp_path / "videos").mkdir()
    for file in files:
        (tmp_path / "videos" / file).touch()
    windows = (Span(10, 30), Span(82, 150))
    path = as_lines(tmp_path / "val.jsonl", QV)
    assert list(load_moments(path)) == [
        Moment("7", str(tmp_path / "videos" / video), "A girl cooks.", windows, 150.0, clip, "qvhighlights")
    ], reason


def test_qvhighlights_ids_may_end_in_mp4(tmp_path: Path) -> None:
    (tmp_path / "abc_-D.mp4").touch()
    path = as_lines(tmp_path / "val.jsonl", QV | {"vid": "abc_-D_60.0_210.0.mp4"})
    (moment,) = load_moments(path, videos=tmp_path)
    assert (Path(moment.video).name, moment.clip, moment.source) == ("abc_-D.mp4", Span(60, 210), "qvhighlights")


def test_a_qvhighlights_clip_ends_where_its_video_ended(tmp_path: Path) -> None:
    # 39 of 1,550 clips of the validation set are shorter than the 150 s that their names say.
    (tmp_path / "abc_-D.mp4").touch()
    row = QV | {"duration": 126, "relevant_windows": [[100, 126]]}
    moments = load_moments(as_lines(tmp_path / "val.jsonl", row), videos=tmp_path)
    assert (moments[0].clip, moments[0].duration) == (Span(60, 186), 126.0)
    assert moments.issues[0].value == "60 to 210 is 150 s, duration 126"


def test_bad_lines_of_qvhighlights_are_dropped(tmp_path: Path) -> None:
    rows = [
        QV, "{broken", "[1, 2]", '{"qid": 8, "qid": 9, "vid": "x", "query": "y"}', {"qid": 9, "vid": "x"},
        QV | {"qid": True}, QV | {"qid": 10, "relevant_windows": []}, QV, QV | {"qid": 11, "vid": "no window in here"},
    ]  # fmt: skip
    path = as_lines(tmp_path / "val.jsonl", *rows)
    assert faults(path) == [
        ("malformed row", "dropped", 2, ""),
        ("malformed row", "dropped", 3, ""),
        ("malformed row", "dropped", 4, ""),
        ("malformed row", "dropped", 5, ""),
        ("malformed row", "dropped", 6, ""),
        ("no window", "dropped", 7, "10"),
        ("duplicate id", "dropped", 8, "7"),
    ]
    listing = load_moments(path).listing()
    for told in ("is not JSON", "is not an object", "'qid' is given twice", "query missing", "first on line 1"):
        assert told in listing
    assert load_moments(path)[-1].clip is None


def test_tvgbench(tmp_path: Path) -> None:
    hirest = TVG | {"path": "x/-_Mg.mkv", "start": 53.0, "end": 152.5, "duration": 99.5, "answer": "9.94437 - 4.5e1"}
    ego = {name: value for name, value in TVG.items() if name != "dataset_name"} | {"bins": {"dataset": "egonlq"}}
    path = as_json(tmp_path / "bench", [TVG, hirest, ego | {"answer": "5.1 or 6"}, ego | {"answer": 5}, ego])
    videos = tmp_path / "videos"
    windows = (Span(13.4, 28.1),)
    assert list(load_moments(path)) == [
        Moment("tvgbench-000", str(videos / "KWZSA.mp4"), "a person sat.", windows, 30.12, None, "tvgbench/charades"),
        Moment("tvgbench-001", str(videos / "-_Mg.mkv"), "a person sat.", (Span(9.94437, 45),), 99.5, Span(53, 152.5),
               "tvgbench/charades"),
        Moment("tvgbench-004", str(videos / "KWZSA.mp4"), "a person sat.", windows, 30.12, None, "tvgbench/egonlq"),
    ]  # fmt: skip
    assert faults(path) == [
        ("malformed row", "dropped", "row 2", "tvgbench-002"),
        ("malformed row", "dropped", "row 3", "tvgbench-003"),
    ]


def test_timerft(tmp_path: Path) -> None:
    whole = RFT | {"qid": "my|howto100m|W|x", "video_start": 0, "video_end": 93.2932}
    path = as_json(tmp_path / "rows", [RFT, whole, {"video": "x.mp4"}, "x", RFT])
    assert list(load_moments(path, videos=tmp_path)) == [
        Moment(str(RFT["qid"]), str(tmp_path / "QtWT8rxUuNk.mp4"), "A purple hanger.", (Span(1, 4),), 93.2932, None,
               "timerft/cosmo"),
        Moment("my|howto100m|W|x", str(tmp_path / "QtWT8rxUuNk.mp4"), "A purple hanger.", (Span(1, 4),), 93.2932,
               Span(0, 93.2932), "timerft/howto100m"),
    ]  # fmt: skip
    assert [fault[:3] for fault in faults(path)] == [
        ("malformed row", "dropped", "row 2"), ("malformed row", "dropped", "row 3"), ("duplicate id", "dropped", "row 4"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "video", "clip", "reason"),
    [
        ([], "4jujh_qhEc_00:00:39:000_00:01:24:700.mp4", None, "its name says that it is the clip"),
        (["4jujh_qhEc.mp4"], "4jujh_qhEc.mp4", Span(39, 84.7), "the source video is there instead, and is trimmed"),
    ],
)
def test_a_timerft_file_that_was_cut_is_not_cut_twice(
    tmp_path: Path, files: list[str], video: str, clip: Span | None, reason: str
) -> None:
    for file in files:
        (tmp_path / file).touch()
    (moment,) = load_moments(as_json(tmp_path / "rows", [CUT]), videos=tmp_path)
    assert (moment.video, moment.clip) == (str(tmp_path / video), clip), reason


def test_a_timerft_name_that_contradicts_its_window_is_dropped(tmp_path: Path) -> None:
    path = as_json(tmp_path / "rows", [RFT, CUT | {"video_start": 30.0}])
    assert faults(path) == [("malformed row", "dropped", "row 1", CUT["qid"])]
    assert "the video's name says 39 to 84.7 s, its trim window 30.0 to 84.7" in load_moments(path).listing()


def test_nextgqa(tmp_path: Path) -> None:
    moments = load_moments(nextgqa(tmp_path, ASKED))
    assert list(moments) == [
        Moment("4010-6", str(tmp_path / "videos" / "4010.mp4"), "what did he do, then", (Span(1.2, 5.8), Span(20, 33)), 33.0,
               source="nextgqa", options=("run", "sit", "sing", "wave, twice", "jump"), choice=1)
    ]  # fmt: skip
    # Its durations are whole seconds, so that evidence up to the last frame may end later.
    assert moments.counts() == {"end past the clip": 1}
    write_moments(moments, tmp_path / "ours.jsonl")
    assert read_moments(tmp_path / "ours.jsonl") == list(moments)


@pytest.mark.parametrize(
    ("answers", "choices", "reason"),
    [
        (["3", "0"], [3, 0], "every answer is a number: they are the options' numbers"),
        (["1", "two"], [2, 0], "one is a text: all are texts, even where options are numbers"),
    ],
)
def test_nextgqa_answers_are_texts_or_numbers_by_file(
    tmp_path: Path, answers: list[str], choices: list[int], reason: str
) -> None:
    rows = [["4010", "", "", "", "how many", answer, qid, "TC", "two", "3", "1", "none", "many"]
            for answer, qid in zip(answers, ("6", "0"), strict=True)]  # fmt: skip
    assert [moment.choice for moment in load_moments(nextgqa(tmp_path, *rows))] == choices, reason


def test_nextgqa_rows_without_answer_or_evidence_are_dropped(tmp_path: Path) -> None:
    def row(**changed: str) -> list[str]:
        return [changed.get(name, value) for name, value in zip(QA, ASKED, strict=True)]

    path = nextgqa(
        tmp_path, row(), row(qid="0", answer="fly"), row(qid="99"), row(qid="1", video_id=""), row(qid="0", a2="sit"), ["4010"],
        evidence={"4010": EVIDENCE["4010"], "4011": 5},
    )  # fmt: skip
    assert faults(path)[1:] == [
        ("options", "dropped", 3, "4010-0"),
        ("no window", "dropped", 4, "4010-99"),
        ("malformed row", "dropped", 5, ""),
        ("duplicate id", "dropped", 6, "4010-0"),
        ("malformed row", "dropped", 7, ""),
    ]


def test_nextgqa_takes_the_evidence_that_knows_its_videos(tmp_path: Path) -> None:
    path = nextgqa(tmp_path, ASKED, evidence={"9": EVIDENCE["4010"]})
    with pytest.raises(
        LabError, match=r"no evidence for its questions in .*; put gsub_val.json or gsub_test.json beside it"
    ):
        load_moments(path)
    as_json(tmp_path / "gsub_test.json", EVIDENCE)
    assert len(load_moments(path)) == 1
    (tmp_path / "gsub_test.json").write_text("{")
    with pytest.raises(LabError, match="gsub_test.json is not JSON"):
        load_moments(path)


def test_our_own_jsonl_reads_as_read_moments_reads_it(tmp_path: Path) -> None:
    full = OURS | {
        "qid": "q2", "windows": [[0, 3], [5, 12]], "clip": [30, 42], "source": "ours", "options": ["a", "b"], "choice": 1,
        "video": "/elsewhere/b.mp4",
    }  # fmt: skip
    path = as_lines(tmp_path / "moments.jsonl", OURS, full)
    assert list(load_moments(path)) == read_moments(path)
    single = as_lines(tmp_path / "single.jsonl", OURS)
    assert list(load_moments(single)) == read_moments(single)


def test_our_own_jsonl_is_read_leniently(tmp_path: Path) -> None:
    rows = [
        OURS, OURS | {"qid": "q2", "windows": [[3, 13]]}, OURS | {"qid": "q3", "video": 5}, OURS | {"qid": "q4", "quary": "x"},
        OURS | {"qid": "q5", "options": ["a", "b"]}, OURS | {"qid": "q6", "quary": "x", "video": ""}, {"qid": "q7"},
        OURS | {"qid": "q8", "query": "\ud83d"}, OURS | {"qid": "q9", "video": "\0"},
    ]  # fmt: skip
    path = as_lines(tmp_path / "moments.jsonl", *rows)
    assert [moment.qid for moment in load_moments(path)] == ["q1", "q2", "q4"]
    assert faults(path) == [
        ("end past the clip", "repaired", 2, "q2"),
        ("malformed row", "dropped", 3, "q3"),
        ("unknown field", "noted", 4, "q4"),
        ("options", "dropped", 5, "q5"),
        ("malformed row", "dropped", 6, "q6"),
        ("malformed row", "dropped", 7, "q7"),
        ("malformed row", "dropped", 8, "q8"),
        ("malformed row", "dropped", 9, "q9"),
    ]


def test_videos_of_our_own_jsonl_may_be_looked_for_elsewhere(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "moments.jsonl", OURS)
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "a.webm").touch()
    assert load_moments(path)[0].video == str(tmp_path / "clips" / "a.mp4")
    assert load_moments(path, videos=tmp_path / "other")[0].video == str(tmp_path / "other" / "deep" / "a.webm")


def test_two_videos_by_one_name_are_noted_once(tmp_path: Path) -> None:
    for file in ("KWZSA.mp4", "KWZSA.mkv"):
        (tmp_path / file).touch()
    path = as_json(tmp_path / "bench", [TVG, TVG])
    assert load_moments(path, videos=tmp_path, strict=True)[1].video == str(tmp_path / "KWZSA.mp4")
    assert faults(path, videos=tmp_path) == [("duplicate video names", "noted", "row 0", "tvgbench-000")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no row; download it again"),
        (b" [ ]\n", "holds no row|no annotation file"),
        (b"{}", "holds no row"),
        (b'{"v_a": {"duration": 9, "timestamps": [[0, 4]', r"is not JSON \(.*\); download it again"),
        (b'[{"path": "a"', r"is not JSON"),
        (b'{"v_a": {"timestamps": [], "sentences": []},\n"v_a": {}}', r"key 'v_a' is given twice in one object"),
        (
            b'{"qid": 1, "query": "x", "vid": "a_0.0_150.0", "duration": 150}\n',
            r"no relevant_windows: its labels are not pub",
        ),
        (
            b'{"qid": "a", "text": "<think>"}\n',
            r"holds predictions \(qid, text\), no annotations; `labkit score PREDICTIONS",
        ),
        (b"some,thing,else\n1,2,3\n", "is no annotation file"),
        (b"5", r"is no annotation file that labkit knows \(Charades-STA, "),
        (b"[[[1]]]", "is no annotation file"),
        (b"[" * 100_000, "is not JSON"),
        (b"AAAAA 1 2##caf\xe9\n", "line 1: not UTF-8; save the file as UTF-8"),
        (b"\x00\x01\x02", "is no annotation file"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(LabError, match=message):
        load_moments(tmp_path / "file")
    with pytest.raises(LabError, match=f"{tmp_path}/file"):
        load_moments(tmp_path / "file")


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf" + json.dumps(OURS).encode() + b"\r\n")
    assert len(load_moments(tmp_path / "file")) == 1
