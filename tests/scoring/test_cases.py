"""Predictions as people have them: each file of the cases is read, or refused with the name of its program and the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from labkit.chain.anchors import parse
from labkit.data.benchmarks import load_moments
from labkit.errors import LabError
from labkit.scoring.reading_rules import RULES
from labkit.scoring.score_table import score_text
from labkit.scoring.scores import score
from labkit.views.explorer import packing as packing
from labkit.views.measured_chains import measure_chains, with_predictions

CASES = Path(__file__).resolve().parents[2] / ".." / "shared" / "cases" / "predictions"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="predictions of other programs are NOT CHECKED: ../shared/cases is absent"
)
CHARADES, LIGHTHOUSE, WILD = "charades_sta_test.txt", "lighthouse_charades_test.jsonl", "moments.jsonl"

READ = [
    # predictions, moments, rules, mIoU in percent, why
    ("samples_temporal_grounding_charades.jsonl", CHARADES, None, 100.0, "lmms-eval's samples, by its own rule"),
    ("inference_results_temporal_grounding_charades.json", CHARADES, None, 100.0, "lmms-eval's results"),
    ("samples_temporal_grounding_charades.jsonl", CHARADES, "labkit", 0.0, "other rules can be asked for"),
    (
        "msswift_infer_result.jsonl",
        CHARADES,
        None,
        100.0,
        "ms-swift's inference: video and question are in its messages",
    ),
    # 5.9 / 6.1, 4 / 4.2, 5.5 / 5.61, 5.865 / 6, 5.88 / 6.048 and 5.896 / 6.032 seconds; its own log says 0.97 each.
    ("vtimellm_log.txt", CHARADES, None, 97.11937, "hundredths of the video, joined by the number of the sentence"),
    ("verl_1.jsonl", CHARADES, None, 100.0, "verl's generations, whose prompts hold sentences that are asked once"),
    ("lastcut.jsonl", CHARADES, None, 500 / 6, "the line that broke off is a missing answer"),
    ("empty_windows.jsonl", LIGHTHOUSE, None, 500 / 6, "no window is no answer"),
    ("empty_windows.jsonl", LIGHTHOUSE, "qvhighlights", 500 / 6, "under QVHighlights' rules, too"),
    ("reversed_windows.jsonl", LIGHTHOUSE, None, 0.0, "a window that ends before it starts meets nothing"),
]
REFUSED = [
    # predictions, what the message names: the program, and an example of both sides
    ("completions_00001.parquet", r"by TRL\) .* on 'When does it happen\?' .* called 'AAAA1-0'.*someone shuts a door"),
    (
        "msswift_completions.jsonl",
        r"by ms-swift\) is on any of the 6 moments: .*'user When\?'.*write the moments' own qids",
    ),
    ("lighthouse_charades_test.jsonl", "line 1: .*annotations, not of predictions; give this file as the moments"),
    ("charades_sta_test.txt", "line 1: is not JSON"),
    ("Charades_v1_test.csv", "line 1: is not JSON"),
]


@pytest.mark.parametrize(("file", "moments", "rules", "miou", "why"), READ, ids=[f"{r[0]}-{r[2]}" for r in READ])
def test_a_file_that_can_be_scored_is(file, moments, rules, miou, why):
    got = score(CASES / file, load_moments(CASES / moments), rules=rules)
    assert 100 * got.figures["miou"] == pytest.approx(miou, abs=1e-5), why
    assert got.protocol.extra == 0


@pytest.mark.parametrize(("file", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_file_that_cannot_be_scored_is_refused_by_name(file, message):
    with pytest.raises(LabError, match=rf"{file}.*{message}"):
        score(CASES / file, load_moments(CASES / CHARADES))


def test_every_file_of_the_cases_is_in_a_table():
    seen = {row[0] for row in (*READ, *REFUSED)} | {WILD, "preds.jsonl"}
    assert {path.name for path in CASES.iterdir()} <= seen


@pytest.mark.parametrize("file", ["samples_temporal_grounding_charades.jsonl", "msswift_infer_result.jsonl"])
def test_what_a_file_is_decides_and_not_what_it_is_called(file, tmp_path):
    other = tmp_path / "answers.txt"
    other.write_bytes((CASES / file).read_bytes())
    assert score(other, load_moments(CASES / CHARADES)).figures["miou"] == pytest.approx(1.0)


def test_a_line_that_broke_off_is_said():
    got = score(CASES / "lastcut.jsonl", load_moments(CASES / CHARADES))
    assert (got.protocol.missing, got.protocol.first["missing"], got.protocol.cut_line) == (1, ("CCCC3-1",), 6)
    lines = dict(got.protocol.lines())
    assert lines["missing predictions"].endswith("the file broke off in line 6, which was not read")
    assert "broke off in line 6" in str(got).split("\n\n")[0]


def test_reversed_windows_are_told_so():
    got = score(CASES / "reversed_windows.jsonl", load_moments(CASES / LIGHTHOUSE))
    assert "are start and end exchanged?" in str(got).split("\n\n")[0]


def wild() -> dict[str, str]:
    rows = map(json.loads, (CASES / "preds.jsonl").read_text(encoding="utf-8").splitlines())
    return {row["qid"]: row["text"] for row in rows}


def test_where_little_is_read_the_card_says_which_rule_reads_more():
    got = score(CASES / "preds.jsonl", load_moments(CASES / WILD))
    assert got.protocol.parse_failure_rate > 0.8
    assert "rules 'timelens' find a span in" in str(got).split("\n\n")[0]
    page = got._repr_html_()
    assert "Nothing was read in 80 % of the predictions" in page, (
        "37 of 46; two spans with a comma between them are read"
    )


def test_what_labkit_reads_in_the_wild_is_what_its_writer_meant():
    # Two answers are bad_answer, and the first one is read: which one is meant cannot be known from the form.
    truth = {moment.qid: moment.windows[0] for moment in load_moments(CASES / WILD)}
    read = {qid: chain.answer for qid, text in wild().items() if (chain := parse(text)).answer is not None}
    wrong = {qid for qid, answer in read.items() if abs(answer.start - truth[qid].start) > 0.05}
    assert wrong == {"two_answers"}
    assert {"prefilled", "prefilled_x", "ans_eos", "ans_nl", "timestep"} <= set(read)
    assert not {"cut", "no_event"} & set(read)


def test_a_thought_that_the_prompt_opened_keeps_its_anchors():
    texts = wild()
    assert len(parse(texts["prefilled"]).anchors) == 2
    assert (parse(texts["prefilled_x"]).answer.start, parse(texts["ans_eos"]).status) == (12.3, "no_anchor")
    assert RULES["timer1"].anchor_tag == RULES["videochat-r1"].anchor_tag == "timestep"


def test_predictions_on_other_questions_are_an_error_that_shows_both():
    with pytest.raises(LabError, match=r"none of the 46 predictions.*'timelens', .*moments are called 'AAAA1-0'"):
        score_text(CASES / "preds.jsonl", str(CASES / CHARADES))


@pytest.mark.parametrize("file", [row[0] for row in READ])
def test_what_is_scored_can_be_looked_at(file):
    moments = load_moments(CASES / (LIGHTHOUSE if "windows" in file else CHARADES))
    chains, _ = with_predictions(CASES / file, moments)
    rows = measure_chains(chains, {moment.qid: moment for moment in moments})
    ious = {row.moment.qid: row.answer_iou for row in rows}
    got = score(CASES / file, moments)
    expected = dict(zip(got.qids, got.columns["miou"], strict=True))
    assert ious == pytest.approx({qid: expected[qid] for qid in ious})
    packing.pack(rows)
