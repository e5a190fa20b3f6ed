"""Scores by hand: figures, intervals, baselines, the card beside them, comparisons, and what the command prints."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import chain_figures
from labkit.chain.question_answering import answering_figures
from labkit.chain.spans import Span, union
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment, write_moments
from labkit.errors import LabError
from labkit.scoring.bootstrap import mean_interval
from labkit.scoring.predictions import PredictedRow, Predictions, as_predictions, write_predictions
from labkit.scoring.reading_rules import RULES
from labkit.scoring.readings import disagreements
from labkit.scoring.score_table import score_text
from labkit.scoring.scores import HEADLINE, compare, score, under_every_rule

REAL = Path(__file__).resolve().parents[2] / ".." / "shared" / "real"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="scores on whole benchmarks are NOT CHECKED: ../shared/real is absent"
)


def moment(qid: str, *windows: tuple[float, float], duration: float = 40.0, video: str = "", **more) -> Moment:
    spans = tuple(Span(*window) for window in windows)
    return Moment(qid, f"/videos/{video or qid}.mp4", "a door opens", spans, duration, **more)


def says(start: float, end: float) -> str:
    return f"<think>near the door</think><answer>{start} to {end}</answer>"


MOMENTS = [
    moment("a", (0, 10), video="v1"),
    moment("b", (10, 30), video="v1"),
    moment("c", (0, 4), (20, 40), video="v2"),
    moment("d", (5, 15), video="v3"),
    moment("e", (30, 40), video="v3"),
]
TEXTS = {
    "a": says(0, 10),  # 1
    "b": says(10, 20),  # 10 of 20 seconds: 0.5
    "c": says(24, 99),  # cut to 24 to 40, 16 of 20: 0.8
    "d": "the middle",  # nothing
    "z": says(0, 40),  # no such question
}  # e has no prediction


def test_every_figure_by_hand():
    got = score(TEXTS, MOMENTS).figures
    expected = {"miou": (1 + 0.5 + 0.8) / 5, "r1@0.3": 3 / 5, "r1@0.5": 3 / 5, "r1@0.7": 2 / 5, "r1@0.9": 1 / 5}
    # As sets c has 16 of 24 seconds, and one of its two windows by IoU 0.8; two answers have as many spans as they should.
    expected |= {"set_miou": (1 + 0.5 + 16 / 24) / 5, "tf1@0.3": (1 + 1 + 2 / 3) / 5, "tf1@0.5": (1 + 1 + 2 / 3) / 5}
    expected |= {"tf1@0.7": (1 + 0 + 2 / 3) / 5, "etf1": (1 + 2 / 3 + 0) / 5, "count_accuracy": 2 / 5}
    assert got == pytest.approx(expected, abs=1e-9)


def test_the_card_counts_what_was_scored_and_what_was_not():
    predictions = Predictions(as_predictions(TEXTS).rows, {"fps": 2, "seed": 7}, ("a", "a"), "p.jsonl")
    card = score(predictions, MOMENTS).protocol
    assert (card.rows, card.listed, card.videos) == (5, 5, 3)
    assert (card.missing, card.extra, card.duplicates) == (1, 1, 2)
    assert card.first == {"missing": ("e",), "extra": ("z",), "duplicates": ("a", "a")}
    assert card.parse_failure_rate == 1 / 4  # of a, b, c and d
    assert card.statuses == {"no_anchor": 3, "no_think": 1}
    lines = dict(card.lines())
    assert lines["missing predictions"] == "1 (e), each counts 0"
    assert lines["threshold"] == "IoU >= m reaches R1@m"
    assert (lines["fps"], lines["max_new_tokens"], lines["seed"]) == ("2", "not stated", "7")
    assert card.as_dict()["settings"]["prompt"] is None


def test_perfect_predictions_score_one_hundred_and_none_score_nothing():
    perfect = score({m.qid: says(m.windows[-1].start, m.windows[-1].end) for m in MOMENTS}, MOMENTS)
    assert {perfect.figures[name] for name in HEADLINE} == {
        1.0
    }  # of c by its second window, as a set it lacks the first
    empty = score({}, MOMENTS)
    assert set(empty.figures.values()) == {0.0}
    assert (empty.protocol.missing, empty.protocol.statuses) == (5, {})
    assert dict(empty.protocol.lines())["nothing read"] == "no prediction"
    assert empty.as_dict()["protocol"]["parse_failure_rate"] is None


def test_predictions_on_other_moments_are_an_error_that_shows_both_kinds_of_ids():
    other = {f"q{n}": says(0, 1) for n in range(5)}
    message = (
        r"none of the 5 predictions is on any of the 5 moments: .* 'q0', 'q1', 'q2', moments are called 'a', 'b', 'c'"
    )
    for attempt in (score, under_every_rule, disagreements):
        with pytest.raises(LabError, match=message):
            attempt(other, MOMENTS)
    assert score({**other, "a": says(0, 10)}, MOMENTS).protocol.extra == 5  # one that fits is enough


def test_columns_hold_each_questions_own_value():
    got = score(TEXTS, MOMENTS)
    assert got.qids == ("a", "b", "c", "d", "e")
    assert got.columns["miou"].tolist() == pytest.approx([1.0, 0.5, 0.8, 0.0, 0.0])
    assert got.columns["r1@0.7"].tolist() == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_intervals_are_clustered_by_source_video():
    got = score(TEXTS, MOMENTS)
    videos = ["v1", "v1", "v2", "v3", "v3"]
    for name, column in got.columns.items():
        alone = mean_interval(column, videos)
        assert got.intervals[name] == pytest.approx(alone, abs=1e-12), name
        assert got.intervals[name].low <= got.figures[name] <= got.intervals[name].high


def test_clips_of_one_source_video_are_no_independent_videos():
    clips = [f"NUsG9BgSes0_{start}.0_{start + 40}.0" for start in (0, 40, 80)]
    asked = [moment(qid, (0, 10), video=clip) for qid, clip in zip("abc", clips, strict=True)]
    texts = {"a": says(0, 10), "b": says(0, 5), "c": says(20, 30)}
    assert score(texts, asked).protocol.videos == 1
    assert math.isnan(score(texts, asked).intervals["miou"].low)
    asked.append(moment("d", (0, 10), video="other_0.0_40.0"))
    assert score(texts, asked).protocol.videos == 2


def test_a_card_of_few_videos_says_what_its_intervals_are_worth():
    got = score(TEXTS, MOMENTS)
    many = score({}, [moment(f"q{n}", (0, 10)) for n in range(20)])
    for text in (str(got), got._repr_html_(), str(compare(got, got)), compare(got, got)._repr_html_()):
        assert "Only 3 videos: intervals of so few are wide on purpose" in text
    assert "Only" not in str(many) and "clustered by 20 source videos" in str(many)


def test_one_video_gives_a_score_without_intervals():
    got = score(TEXTS, MOMENTS[:2])
    assert all(math.isnan(bound) for interval in got.intervals.values() for bound in interval)
    assert got.as_dict()["intervals"]["miou"] == [None, None]
    assert "-" in str(got).splitlines()[1]
    json.dumps(got.as_dict(), allow_nan=False)


def test_figures_are_those_of_an_evaluation_of_the_same_chains():
    texts = {m.qid: TEXTS.get(m.qid, "") for m in MOMENTS}
    chains = [parse(text) for text in texts.values()]
    figures = chain_figures(chains, [m.windows for m in MOMENTS], [m.duration for m in MOMENTS])
    got = score(texts, MOMENTS)
    shared = {name: value for name, value in got.figures.items() if name in figures}
    assert list(shared) == ["miou", "r1@0.3", "r1@0.5", "r1@0.7"]
    assert shared == pytest.approx({name: figures[name] for name in shared}, abs=1e-12)
    assert got.protocol.parse_failure_rate == figures["parse_failure_rate"]


def test_baselines_by_hand():
    train = [moment("t", (0, 20)), moment("u", (0, 10), duration=20)]
    got = score({}, MOMENTS, train=train).baselines
    assert list(got) == ["whole video", "centre half", "best constant", "training prior"]
    # Windows of 10, 20, 20 (the longer of two), 10 and 10 of 40 seconds.
    assert got["whole video"]["miou"] == pytest.approx((10 + 20 + 20 + 10 + 10) / 40 / 5)
    # 10 to 30 against 0-10, 10-30, 20-40, 5-15 and 30-40.
    assert got["centre half"]["miou"] == pytest.approx((0 + 1 + 10 / 30 + 5 / 25 + 0) / 5)
    # Both training windows are the first half: 0 to 20.
    half = (10 / 20 + 10 / 30 + 4 / 20 + 10 / 20 + 0) / 5
    assert got["best constant"]["miou"] == pytest.approx(half)
    assert got["training prior"]["miou"] == pytest.approx(half)
    assert got["best constant"]["r1@0.5"] == 2 / 5
    assert list(score({}, MOMENTS).baselines) == ["whole video", "centre half"]


def test_a_baseline_is_judged_by_the_rules_own_operator():
    # The whole video has IoU 0.5 with b: reached with >=, not with >.
    assert score({}, MOMENTS[1:2]).baselines["whole video"]["r1@0.5"] == 1.0
    assert score({}, MOMENTS[1:2], rules="timer1").baselines["whole video"]["r1@0.5"] == 0.0


def ranked(**rows: list[tuple[float, ...]]) -> Predictions:
    made = {}
    for qid, windows in rows.items():
        scores = tuple(window[2] for window in windows if len(window) == 3)
        made[qid] = PredictedRow(windows=tuple((w[0], w[1]) for w in windows), scores=scores or None)
    return Predictions(made)


def test_ranked_windows_by_hand():
    got = score(
        ranked(
            a=[(0, 10, 0.1), (50, 60, 0.9)],  # first in the file right; by score second
            b=[(10, 30, 0.5)],
            c=[(20, 40, 0.9), (0, 4, 0.8)],
            d=[],
            e=[(40, 30, 1.0), (30, 40, 0.5)],  # the first is no span
        ),
        MOMENTS,
    )
    assert {
        name: got.figures[name] for name in got.figures if name[:3] not in ("set", "tf1", "etf", "cou")
    } == pytest.approx(
        {
            "miou": 3 / 5,
            "r1@0.3": 3 / 5,
            "r1@0.5": 3 / 5,
            "r1@0.7": 3 / 5,
            "r1@0.9": 3 / 5,
            "map": (0.5 + 1 + 1 + 0 + 0.5) / 5,
            "map_short": (0.5 + 0.5 + 0 + 0.5) / 4,  # a, the 4 s of c behind its 20 s, d and e
            "map_middle": (1 + 1) / 2,  # b, and the 20 s of c
            **{f"map@{m}": 3 / 5 for m in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)},
        },
        abs=1e-9,
    )
    assert got.protocol.statuses == {"window": 3, "no window": 1, "start not before end": 1}
    assert got.protocol.parse_failure_rate == 2 / 5
    assert set(got.intervals) == set(got.figures)


def test_qvhighlights_own_rules_leave_windows_as_they_are():
    past = ranked(e=[(30, 60, 0.9)])  # of a video of 40 s
    cut, whole = (score(past, MOMENTS[4:], rules=rules) for rules in (None, "qvhighlights"))
    assert (cut.figures["miou"], whole.figures["miou"]) == pytest.approx((1.0, 10 / 30))
    assert cut.figures["map"] == whole.figures["map"]
    lines = dict(whole.protocol.lines())
    assert (lines["rules"], lines["cut to the video"]) == ("qvhighlights", "no")
    assert "`qvhighlights` are the rules that don't cut it" in cut.protocol.reading
    with pytest.raises(LabError, match="'qvhighlights' take windows, but these predictions hold texts"):
        score(TEXTS, MOMENTS, rules="qvhighlights")


@pytest.mark.parametrize(
    ("texts", "hint"),
    [
        ({"a": "From 0 to 10.", "b": "10 to 20", "c": "no idea"}, "rules 'timer1' find a span in 67 % of them"),
        ({"a": "soon", "b": "", "c": "no idea"}, "no other rule reads more of them"),
        ({"a": says(0, 10), "b": says(10, 20), "c": says(0, 4)}, ""),
    ],
)
def test_where_little_is_read_the_rule_that_reads_more_is_named(texts, hint):
    got = score(texts, MOMENTS)
    assert got.protocol.unread.startswith(hint) and bool(got.protocol.unread) == bool(hint)
    assert hint in str(got).split("\n\n")[0]
    json.dumps(got.as_dict(), allow_nan=False)


def test_windows_need_no_reading_and_are_not_mixed_with_texts():
    with pytest.raises(LabError, match="rules 'timer1' read texts.* leave the rules out"):
        score(ranked(a=[(0, 1)]), MOMENTS, rules="timer1")
    with pytest.raises(LabError, match="hold texts and windows"):
        score({"a": PredictedRow(windows=()), "b": PredictedRow("t")}, MOMENTS)
    with pytest.raises(LabError, match="every rule reads alike"):
        disagreements(ranked(a=[(0, 1)]), MOMENTS)


def test_no_moment_or_one_name_twice_is_an_error():
    with pytest.raises(LabError, match="no moment to score on"):
        score({}, [])
    with pytest.raises(LabError, match="qid 'a' stands 2 times"):
        score({}, [MOMENTS[0], MOMENTS[0]])


OPTIONS = ("blink", "slide", "grow", "spin")


def test_options_by_hand():
    asked = [
        moment("a", (10, 20), options=OPTIONS, choice=1),
        moment("b", (10, 20), options=OPTIONS, choice=1),
        moment("c", (10, 20), options=OPTIONS, choice=1),
        moment("d", (10, 20), options=OPTIONS[:2], choice=1),
        moment("plain", (0, 10)),
    ]
    texts = {
        "a": render([], Span(12, 16), option=1),  # right, all of it evidence
        "b": render([], Span(16, 26), option=1),  # right, 0.4 of it evidence
        "c": render([], Span(10, 20), option=0),  # wrong
        "plain": render([], Span(0, 10)),
    }  # d has no prediction
    got = score(texts, asked)
    expected = {"acc_qa": 2 / 4, "acc_gqa": 1 / 4, "miop": 2.4 / 4, "iop@0.3": 3 / 4, "iop@0.5": 2 / 4}
    assert {name: got.figures[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert got.figures["miou"] == pytest.approx((0.4 + 4 / 16 + 1 + 0 + 1) / 5)
    assert np.isnan(got.columns["acc_qa"][4])
    assert got.baselines["whole video"]["acc_qa"] == pytest.approx((0.25 * 3 + 0.5) / 4)
    chains = [parse(texts.get(m.qid, ""), options=len(m.options)) for m in asked]
    figures = answering_figures(chains, [m.windows for m in asked], [m.choice for m in asked])
    assert {name: got.figures[name] for name in expected} == pytest.approx({name: figures[name] for name in expected})
    assert "acc_qa" not in score(texts, asked, rules="timer1").figures
    json.dumps(got.as_dict(), allow_nan=False)


NEXTGQA = REAL / "nextgqa"


@needs_real
@pytest.mark.parametrize(
    ("share", "letter", "reason"),
    [
        ((0.0, 1.0), 0, "the whole video: IoP is the longest window's share of it"),
        ((1 / 3, 2 / 3), 1, "a middle third, now inside a window, now beside all"),
        (None, None, "the first second of the first window, and the right option: all that there is"),
    ],
)
def test_nextgqas_whole_validation_is_scored_by_its_owners_definitions(share, letter, reason):
    # Counted here from the owners' two files without labkit: of several windows the best, IoP over what was answered, `>=` 0.5.
    with (NEXTGQA / "val.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    evidence = json.loads((NEXTGQA / "gsub_val.json").read_text())
    texts, right, shown = {}, [], []
    for row in rows:
        entry, qid = evidence[row["video_id"]], f"{row['video_id']}-{row['qid']}"
        windows = entry["location"][row["qid"]]
        answer = [row[f"a{k}"] for k in range(5)].index(row["answer"])
        first = windows[0][0], min(windows[0][0] + 1, windows[0][1])
        start, end = first if share is None else (part * entry["duration"] for part in share)
        option = answer if letter is None else letter
        texts[qid] = render([], Span(start, end), option=option)
        right.append(option == answer)
        shown.append(max(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in windows) / (end - start))
    grounded = [iop >= 0.5 for iop in shown]
    got = score(texts, load_moments(NEXTGQA / "val.csv"))
    assert len(rows) == len(texts) == got.protocol.rows == got.protocol.listed == 3358
    expected = {
        "acc_qa": np.mean(right), "acc_gqa": np.mean(np.logical_and(right, grounded)), "miop": np.mean(shown),
        "iop@0.3": np.mean([iop >= 0.3 for iop in shown]), "iop@0.5": np.mean(grounded),
    }  # fmt: skip
    assert {name: got.figures[name] for name in expected} == pytest.approx(expected, abs=1e-9), reason
    counted = {0: (675, 66, 0.2134552), 1: (654, 128, 0.2459760), None: (3358, 3358, 1.0)}[letter]
    assert (sum(right), sum(np.logical_and(right, grounded)), expected["miop"]) == pytest.approx(counted, abs=1e-6)


def test_a_comparison_by_hand():
    first = score({"a": says(0, 10), "b": says(10, 20), "d": says(5, 15)}, MOMENTS)
    second = score({"a": says(0, 5), "b": says(10, 20), "e": says(30, 40)}, MOMENTS)
    paired = compare(first, second)
    assert paired.differences["miou"].value == pytest.approx((0.5 + 0 + 0 + 1 - 1) / 5)
    assert (paired.wins, paired.losses, paired.ties) == (2, 1, 2)
    assert compare(second, first).differences["miou"].value == pytest.approx(-paired.differences["miou"].value)
    assert "of 5 questions the first is better on 2, the second on 1, equal on 2" in str(paired)
    json.dumps(paired.as_dict(), allow_nan=False)
    assert "<table>" in paired._repr_html_()


def test_a_model_does_not_differ_from_itself():
    one = score(TEXTS, MOMENTS)
    for gap in compare(one, one).differences.values():
        assert (gap.value, gap.interval, gap.p) == (0.0, (0.0, 0.0), 1.0)


def test_only_the_same_questions_under_the_same_rules_are_compared():
    with pytest.raises(LabError, match="different questions"):
        compare(score(TEXTS, MOMENTS), score(TEXTS, MOMENTS[:4]))
    with pytest.raises(LabError, match="'labkit', the other under .*'timer1'"):
        compare(score(TEXTS, MOMENTS), score(TEXTS, MOMENTS, rules="timer1"))


CHAIN = "<think><timestamp>0 to 40</timestamp> or <timestamp>2 to 12</timestamp></think><answer>5 to 15</answer>"


def test_one_set_of_texts_under_every_rule():
    got = under_every_rule({"d": CHAIN}, MOMENTS[3:4])
    assert list(got) == list(RULES)
    assert {name: one.figures["miou"] for name, one in got.items()} == {
        name: 1.0 if name in ("labkit", "timer1", "timer1-reward", "videochat-r1", "timelens-reward", "taro") else 0.25
        for name in RULES
    }
    # An IoU of 0.25 or 1 is no matter of operators; the cards still say which it is.
    assert (got["timer1"].protocol.reaches, got["timelens"].protocol.reaches) == (">", ">=")
    assert str(got).splitlines()[len(RULES)].split()[:2] == ["taro", "100.0"]
    assert got._repr_html_().count("<tr") == len(RULES) + 1


def test_predictions_beyond_the_end_are_cut_by_labkit_alone():
    texts = {"e": says(30, 60)}
    got = under_every_rule(texts, MOMENTS[4:])
    assert got["labkit"].figures["miou"] == 1.0
    assert got["timer1"].figures["miou"] == pytest.approx(10 / 30)


def test_disagreements_say_what_a_rule_takes_for_the_answer():
    texts = {
        "a": CHAIN,
        "b": CHAIN,
        "c": says(10, 20) + " (video runs 0.0 to 40.0)",
        "d": "<think></think><answer>00:10 to 00:14</answer>",
    }
    found = {(one.rule, one.kind): one for one in disagreements(texts, MOMENTS)}
    anchor = found["timelens", "an anchor"]
    assert (anchor.count, anchor.qid, anchor.theirs, anchor.ours) == (2, "a", (0.0, 40.0), Span(5.0, 15.0))
    assert found["timer1", "another span"].theirs == (0.0, 40.0)
    assert (found["timer1", "reversed"].theirs, found["timer1", "reversed"].ours) == ((10.0, 0.0), None)
    assert not [rule for rule, _ in found if rule == "labkit"]
    assert len(disagreements(texts, MOMENTS, most=2)) > len(found)
    assert str(anchor).startswith("timelens takes an anchor of the thought for the answer (2 texts), as in a: 0 to 40")


def test_a_rule_that_takes_one_span_of_several_is_told_beside_all_of_them():
    found = {
        (one.rule, one.kind): one for one in disagreements({"a": f"{says(2, 5)[:-9]}, 10 to 20</answer>"}, MOMENTS)
    }
    assert found["timelens-reward", "one of several"].pairs == ("2 to 5, 10 to 20", "2 to 5")
    assert "labkit" not in {rule for rule, _ in found}


def test_a_rule_that_finds_nothing_is_told_from_one_that_finds_another_span():
    (found,) = [one for one in disagreements({"a": "<answer>1  to  2</answer>"}, MOMENTS) if one.rule == "timer1"]
    assert (found.kind, found.theirs) == ("nothing", None)


def test_a_score_is_shown_with_all_that_belongs_to_it():
    got = score(TEXTS, MOMENTS, train=MOMENTS)
    table = str(got).splitlines()
    assert table[0].split("  ")[-1].strip() == "training prior"
    assert table[1].split()[:2] == ["mIoU", "46.0"]
    for text in (str(got), got._repr_html_()):
        assert "not stated" in text and "1 (e), each counts 0" in text
    assert repr(got) == "<Score mIoU 46.0 on 5 questions, rules labkit>"


def test_where_no_table_can_be_shown_stands_what_print_shows():
    """On GitHub, in a terminal, and in the alternative text of an executed notebook."""
    from IPython.lib.pretty import pretty

    moments, texts = [moment("q0", (0, 10))], {"q0": says(0, 5)}
    one, chain = score(texts, moments), render([Span(0, 30)], Span(2, 9))
    for shown in (one, compare(one, one), under_every_rule(texts, moments), disagreements({"q0": chain}, moments)):
        assert pretty(shown) == str(shown), type(shown)


def test_markup_in_names_stays_text():
    page = score({"<script>": "t", "a": "t"}, MOMENTS)._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    write_moments(MOMENTS, tmp_path / "moments.jsonl")
    write_predictions(tmp_path / "p.jsonl", TEXTS, {"fps": 2})
    return str(tmp_path / "p.jsonl"), str(tmp_path / "moments.jsonl")


def test_the_command_prints_the_table_and_the_card(files):
    text = score_text(*files)
    assert text.splitlines()[1].split()[:2] == ["mIoU", "46.0"]
    assert text.splitlines()[0].count("baseline") == 0 and "whole video" in text.splitlines()[0]
    assert "questions scored       5" in text


def test_the_command_prints_json(files):
    got = json.loads(score_text(*files, train=files[1], as_json=True))
    assert got["figures"]["miou"] == pytest.approx(0.46)
    assert set(got) == {"figures", "intervals", "baselines", "protocol"}
    assert got["protocol"]["settings"]["fps"] == 2


def test_the_command_compares_two_files(files, tmp_path):
    write_predictions(tmp_path / "q.jsonl", {"a": says(0, 5)})
    text = score_text(*files, against=tmp_path / "q.jsonl")
    assert "q.jsonl" in text and "+36.0" in text.splitlines()[1]
    got = json.loads(score_text(*files, against=tmp_path / "q.jsonl", as_json=True))
    assert got["paired"]["wins"] == 3 and set(got) == {"first", "second", "paired"}


def test_the_command_puts_all_rules_side_by_side(files):
    text = score_text(*files, rules="all")
    assert [line.split()[0] for line in text.splitlines()[1 : len(RULES) + 1]] == list(RULES)
    got = json.loads(score_text(*files, rules="all", as_json=True))
    assert list(got["rules"]) == list(RULES) and got["disagreements"] == []
    with pytest.raises(LabError, match="goes with neither --against nor --train"):
        score_text(*files, rules="all", against=files[0])
    with pytest.raises(LabError, match="did you mean 'timer1'"):
        score_text(*files, rules="timer")


@needs_real
@pytest.mark.parametrize(
    "file",
    [
        "charades_sta/charades_sta_test.txt",
        "activitynet/val_2.json",
        "qvhighlights/highlight_val_release.jsonl",
        "timer1/tvgbench.json",
    ],
)
@pytest.mark.slow
def test_the_truth_itself_scores_one_hundred_on_a_whole_benchmark(file):
    moments = load_moments(REAL / file)
    best = score({m.qid: render([], m.windows[0]) for m in moments}, moments).figures
    whole = score({m.qid: render([], union(m.windows)) for m in moments}, moments).figures
    of_sets = {name for name in best if name in ("set_miou", "etf1", "count_accuracy") or name.startswith("tf1@")}
    assert bool(of_sets) == ("qvhighlights" in file), "a set is asked for where there are several windows"
    perfect = {name: whole[name] if name in of_sets else best[name] for name in best}
    assert perfect == pytest.approx(dict.fromkeys(best, 1.0), abs=1e-9)
    windows = {m.qid: PredictedRow(windows=tuple((w.start, w.end) for w in m.windows)) for m in moments}
    # Of 1,550 queries of QVHighlights 13 have more truth windows than the 10 predictions that its evaluator looks at.
    most = np.mean([min(10, len(m.windows)) / len(m.windows) for m in moments])
    assert (most == 1.0) == ("qvhighlights" not in file)
    assert score(windows, moments).figures["map"] == pytest.approx(most, abs=1e-9)
    empty = score({}, moments)
    assert set(empty.figures.values()) == {0.0} and empty.protocol.missing == len(moments)
    assert (empty.protocol.listed, empty.protocol.findings) == (moments.rows, moments.counts())


def test_a_benchmark_of_activitynets_size_is_scored_in_under_three_seconds():
    rng = np.random.default_rng(0)
    starts = rng.uniform(0, 100, 17_031)
    moments = [
        moment(f"q{n}", (start, start + 20), duration=120.0, video=f"v{n % 4885}") for n, start in enumerate(starts)
    ]
    texts = {m.qid: render([Span(0, 120)], Span(m.windows[0].start, m.windows[0].end + 3)) for m in moments}
    begin = time.process_time()
    score(texts, moments)
    assert time.process_time() - begin < 3
