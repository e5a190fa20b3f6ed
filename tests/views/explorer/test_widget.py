"""What the explorer tells a page, and what Python can ask and say."""

from __future__ import annotations

import base64
import gzip
import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.anchors import render
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.predictions import PredictedRow, read_predictions, write_predictions
from labkit.scoring.scores import score
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import ChainExplorer, explore
from labkit.views.measured_chains import PlainRecord
from tests.data.films import CONSTANT, film

TRUTH = Span(2.0, 4.0)
GOOD = render([Span(0, 8), Span(1, 5)], Span(2, 4), ["somewhere", "closer", "so"])
"""IoU 2/8, 2/4, 1."""
LOST = render([Span(1, 5)], Span(5, 8))
"""IoU 2/4, 0."""
WEIGHTS = {"format": 1.0, "answer": 2.0, "anchors": 0.5, "progress": 0.5, "option": 1.0}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("clip") / "a.mp4", CONSTANT)


@pytest.fixture
def moments(clip: Path) -> list[Moment]:
    asked = [("q1", "the door opens"), ("q2", "she sits down")]
    return [Moment(qid, str(clip), query, (TRUTH,), 8.0) for qid, query in asked]


def rollout(text: str = GOOD, spec: RewardSpec | None = None, **changes: Any) -> Rollout:
    """A rollout as a stage writes it, its reward computed."""
    from labkit.chain.anchors import parse

    chain = parse(text)
    breakdown = score_chain(chain, [TRUTH], 8.0, spec or RewardSpec(WEIGHTS))
    told: dict[str, Any] = {f"reward_{term}": value for term, value in breakdown.terms.items()}
    told |= {"run": "r", "stage": "grpo", "step": 3, "qid": "q1", "sample": 0, "seed": 0, "checkpoint": "base"}
    told |= {"text": text, "status": chain.status, "total": breakdown.total, "advantage": 0.5}
    return Rollout(**(told | {"prompt_tokens": 9, "completion_tokens": 20, "finished": True} | changes))


def told(widget: Any) -> dict[str, Any]:
    """What the page is given."""
    found: dict[str, Any] = json.loads(gzip.decompress(widget.data))
    return found


def test_a_page_is_told_spans_characters_and_ious(moments: list[Moment]) -> None:
    page = told(explore([rollout()], moments, clips=0))
    columns = page["columns"]
    assert columns["ious"] == [[0.25, 0.5, 1.0]]
    assert [anchor[:2] for anchor in columns["anchors"][0]] == [[0, 8], [1, 5]]
    assert columns["answer"][0][:2] == [2, 4]
    begin, end = columns["anchors"][0][1][2:]
    assert GOOD[begin:end] == "<timestamp>1.0 to 5.0</timestamp>"
    begin, end = columns["answer"][0][2:]
    assert GOOD[begin:end] == "<answer>2.0 to 4.0</answer>"
    assert page["moments"] == [
        {"qid": "q1", "query": "the door opens", "video": "a.mp4", "clip": 0, "windows": [[2.0, 4.0]]}
        | {"duration": 8.0, "start": 0.0, "base": None}
    ]


def test_places_in_a_text_count_as_a_page_counts(moments: list[Moment]) -> None:
    # A page counts UTF-16 units: the emoji is two, é one, and the lone surrogate one.
    text = render([Span(1, 5)], Span(2, 4), ["😀 é \ud83d", "b"])
    columns = told(explore([rollout(text)], moments, clips=0))["columns"]
    units = text.encode("utf-16-le", "surrogatepass")
    begin, end = columns["anchors"][0][0][2:]
    assert units[2 * begin : 2 * end].decode("utf-16-le") == "<timestamp>1.0 to 5.0</timestamp>"
    begin, end = columns["answer"][0][2:]
    assert units[2 * begin : 2 * end].decode("utf-16-le") == "<answer>2.0 to 4.0</answer>"


def test_weights_and_reasons_are_told_only_where_they_explain_what_was_recorded(moments: list[Moment]) -> None:
    paid = RewardSpec(WEIGHTS)
    page = told(explore([rollout(spec=paid)], moments, spec={"grpo": paid}, clips=0))
    shown = {term: weight for term, weight in WEIGHTS.items() if term != "option"}  # no moment has options
    assert page["weights"] == [shown] and page["columns"]["weighed"] == [1]
    reasons = [page["names"]["reason"][k] for k in page["columns"]["reasons"][0]]
    assert reasons == ["form kept, 2 anchors", "soft_iou 1.000", "soft IoU 0.250 0.500", "step scores 0.50 1.00"]
    # format 1, answer 1, anchors (1 * 1/4 + 2 * 1/2) / 3, progress (1/2 + 1) / 2; 1 + 2 + 5/24 + 3/8
    assert page["columns"]["earned"][0] == [1, 1, 0.4167, 0.75] and page["columns"]["total"] == [3.5833]

    other = told(explore([rollout(spec=paid)], moments, spec=RewardSpec(answer="timer1", min_anchors=3), clips=0))
    assert other["columns"]["weighed"] == [0] and other["weights"] == []
    reasons = [other["names"]["reason"][k] for k in other["columns"]["reasons"][0]]
    assert reasons[0] == "" and reasons[2:] == ["soft IoU 0.250 0.500", "step scores 0.50 1.00"]


def test_rollouts_of_a_store_explain_themselves(moments: list[Moment], tmp_path: Path) -> None:
    """Two stages of other weights than the default, handed in as they were read, and nothing else."""
    specs = {"grpo": RewardSpec(WEIGHTS), "grpo_final": RewardSpec({**WEIGHTS, "progress": 3.0}, "iou")}
    rollouts = []
    for stage, spec in specs.items():
        store = RolloutStore(tmp_path / stage)
        store.write(3, [replace(rollout(spec=spec, stage=stage, sample=k), spec=spec) for k in range(2)])
        rollouts += store.read()
    page = told(explore(rollouts, moments, clips=0))
    assert page["columns"]["weighed"] == [1, 1, 2, 2]
    assert [weights["progress"] for weights in page["weights"]] == [WEIGHTS["progress"], 3.0]
    # What is on record comes before what is assumed.
    assert told(explore(rollouts, moments, spec=RewardSpec(), clips=0))["columns"]["weighed"] == [1, 1, 2, 2]


def test_rollouts_that_do_not_say_what_they_were_paid_by_are_shown_without_weights(moments: list[Moment]) -> None:
    page = told(explore([rollout(spec=RewardSpec(WEIGHTS))], moments, clips=0))
    assert page["columns"]["weighed"] == [0] and page["weights"] == []
    default = told(explore([rollout(spec=RewardSpec())], moments, clips=0))
    assert default["columns"]["weighed"] == [1], "the default run's own totals"


def test_a_reward_that_is_no_number_is_told_as_none(moments: list[Moment]) -> None:
    page = told(explore([rollout(advantage=float("nan"))], moments, clips=0))
    assert page["columns"]["advantage"] == [None]


def evaluated(qid: str, text: str, status: str) -> Rollout:
    return rollout(text, qid=qid, status=status, step=0, stage="", run="", **UNPAID)


@pytest.mark.parametrize("record", [PlainRecord, evaluated], ids=["of a table", "of an evaluation"])
def test_chains_that_nobody_paid_get_the_reward_that_would_have_been_paid(moments: list[Moment], record: Any) -> None:
    widget = explore({"sft": [record("q2", GOOD, "ok")], "base": [record("q2", LOST, "ok")]}, moments, clips=0)
    page = told(widget)
    plain = explore(
        {"sft": [PlainRecord("q2", GOOD, "ok")], "base": [PlainRecord("q2", LOST, "ok")]}, moments, clips=0
    )
    assert page == told(plain)
    assert page["names"]["stage"] == ["base", "sft"] and page["columns"]["stage"] == [1, 0]
    assert page["columns"]["total"][0] == pytest.approx(1 + 2 + 0.75 * 5 / 12 + 0.75 * 0.75, abs=1e-4)
    assert page["columns"]["advantage"] == [None, None] and page["moments"][0]["base"] == 0.0


WORDS = {"q1": "From 2 to 4.", "q2": "<think><timestep>1 to 5</timestep></think><answer>5 to 8</answer>"}


@pytest.mark.parametrize("form", ["path", "str", "predictions", "texts", "rows", "by stage"])
def test_what_score_takes_can_be_looked_at(moments: list[Moment], tmp_path: Path, form: str) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"qid": qid, "text": text} for qid, text in WORDS.items()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: Any = {
        "path": file, "str": str(file), "predictions": read_predictions(file), "texts": WORDS, "rows": rows,
        "by stage": {"mine": file, "theirs": read_predictions(file)},
    }[form]  # fmt: skip
    widget = explore(given, moments, rules="timer1", clips=0)
    columns = told(widget)["columns"]
    times = 2 if form == "by stage" else 1
    assert columns["ious"] == [[1.0], [0.5, 0.0]] * times, "the last pair of a text, and other models' anchors"
    assert columns["answer"][0][2:] == [5, 11], "where Time-R1's program found it"
    assert columns["total"] == [None, None] * times and set(columns["earned"][0]) == {None}
    assert widget.selection.moment.qid == "q1"


def test_several_files_stand_side_by_side_and_open_where_they_are_furthest_apart(
    moments: list[Moment], tmp_path: Path
) -> None:
    near = {"q1": "<think></think><answer>2 to 4</answer>", "q2": "<think></think><answer>2 to 4</answer>"}
    far = {"q1": "<think></think><answer>2 to 4</answer>", "q2": "<think></think><answer>4 to 8</answer>"}
    for name, texts in (("near", near), ("far", far)):
        write_predictions(tmp_path / f"{name}.jsonl", texts)
    widget = explore([tmp_path / "near.jsonl", str(tmp_path / "far.jsonl")], moments, clips=0)
    page = told(widget)
    assert (page["sources"], page["names"]["stage"], widget.view) == (["near", "far"], ["near", "far"], "stages")
    assert widget.selection.moment.qid == "q2"
    ious = {moment["qid"]: moment["base"] for moment in page["moments"]}
    assert ious == {"q1": 1.0, "q2": page["columns"]["ious"][1][0]}, "the first file is what others are compared with"
    assert "sources" not in told(explore([tmp_path / "near.jsonl"], moments, clips=0))


def test_ranked_windows_show_their_first_and_list_all(moments: list[Moment]) -> None:
    windows = PredictedRow(windows=((2.0, 4.0), (5.0, 8.0)), scores=(0.5, 0.25))
    columns = told(explore({"q1": windows, "q2": PredictedRow(windows=())}, moments, clips=0))["columns"]
    assert columns["text"] == ["2 to 4, score 0.5\n5 to 8, score 0.25", ""]
    assert columns["answer"] == [[2.0, 4.0, 0, 6], None] and columns["ious"] == [[1.0], []]


def test_rules_that_do_not_cut_to_the_video_show_the_iou_that_they_score(moments: list[Moment]) -> None:
    past = {"q1": PredictedRow(windows=((3.0, 13.0),))}  # of a clip of 8 s
    for rules, iou in ((None, 1 / 6), ("qvhighlights", 1 / 11)):
        shown = told(explore(past, moments, rules=rules, clips=0))["columns"]["ious"]
        assert shown == [[pytest.approx(iou, abs=1e-4)]]
        assert score(past, moments, rules=rules).columns["miou"][0] == pytest.approx(iou)


def test_chains_on_record_keep_their_rewards_unless_rules_are_named(moments: list[Moment]) -> None:
    assert told(explore([rollout()], moments, clips=0))["columns"]["total"] != [None]
    read = told(explore([rollout(), rollout(LOST)], moments, rules="timer1", clips=0))["columns"]
    assert (read["total"], read["sample"]) == ([None, None], [0, 1]), (
        "of two answers the first is the one that is scored"
    )
    assert read["ious"][0] == [1.0]


def test_where_little_is_read_the_explorer_says_which_rule_reads_more(
    moments: list[Moment], caplog: pytest.LogCaptureFixture
) -> None:
    widget = explore({"q1": "From 2 to 4.", "q2": "5 to 8"}, moments, clips=0)
    told_note = "Nothing was read in 2 of 2 predictions: rules 'timer1' find a span in 100 % of them"
    assert told_note in caplog.text + getattr(widget, "hint", "")


def test_predictions_on_other_moments_are_refused_here_too(moments: list[Moment]) -> None:
    with pytest.raises(LabError, match="none of the 1 predictions is on any of the 2 moments"):
        explore({"other": "2 to 4"}, moments)


def test_the_base_model_is_a_stage_that_others_are_compared_with(moments: list[Moment]) -> None:
    half = render([], Span(2, 8))  # IoU 2/6
    page = told(
        explore(
            [rollout(), rollout(qid="q2")], moments, base=[PlainRecord("q1", half), PlainRecord("q1", LOST)], clips=0
        )
    )
    assert page["columns"]["stage"] == [1, 1, 0, 0]
    assert [moment["base"] for moment in page["moments"]] == [0.1667, None]


def test_a_table_says_the_same_as_the_rollouts_it_holds(moments: list[Moment], tmp_path: Path) -> None:
    rollouts = [rollout(), rollout(LOST, sample=1)]
    store = RolloutStore(tmp_path)
    store.write(3, rollouts)
    widget = explore(store.frame(), moments, clips=0)
    assert told(widget) == told(explore(rollouts, moments, clips=0))
    widget.selected = 1
    assert widget.selection is not None and widget.selection.record == rollouts[1]


def test_a_table_of_predictions_needs_qid_and_text(moments: list[Moment]) -> None:
    import pandas

    table = pandas.DataFrame({"qid": ["q1"], "text": [GOOD], "stage": ["sft"]})
    assert told(explore(table, moments, clips=0))["names"]["stage"] == ["sft"]
    with pytest.raises(LabError, match="columns qid and text; this one has qid, words"):
        explore(pandas.DataFrame({"qid": ["q1"], "words": [GOOD]}), moments)


def test_a_chain_of_an_unknown_moment_is_an_error(moments: list[Moment]) -> None:
    with pytest.raises(LabError, match="'q9'"):
        explore([rollout(qid="q9")], moments)


def test_it_opens_with_the_chain_that_narrows_most(moments: list[Moment]) -> None:
    widget = explore([rollout(LOST), rollout(render([Span(2, 5)], Span(2, 4))), rollout(GOOD)], moments, clips=0)
    assert widget.selected == 2
    assert explore([], moments, clips=0).selected == -1 and explore([], moments, clips=0).selection is None


def test_the_selection_is_read_set_and_observed(moments: list[Moment]) -> None:
    rollouts = [rollout(), rollout(LOST, qid="q2", sample=4)]
    widget = explore(rollouts, moments, clips=0)
    heard: list[int] = []
    widget.observe(lambda change: heard.append(change["new"]), "selected")
    (widget.selected,) = widget.find(qid="q2", stage="grpo", sample=4)
    assert heard == [1]
    chosen = widget.selection
    assert chosen is not None and chosen.record is rollouts[1] and chosen.moment is moments[1]
    assert chosen.chain.answer == Span(5, 8) and len(widget) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("selected", 2, "chain 2 is not among the 2"),
        ("selected", -2, "give 0 to 1"),
        ("stage", "grpo_last", "'grpo'"),  # the error lists the stages there are
        ("kind", "bored", "'right_then_left'"),
        ("view", "table", "'group'"),
    ],
)
def test_what_cannot_be_shown_is_refused(moments: list[Moment], name: str, value: object, said: str) -> None:
    widget = explore([rollout(), rollout(LOST)], moments, clips=0)
    before = getattr(widget, name)
    with pytest.raises(LabError, match=re.escape(said)):
        setattr(widget, name, value)
    assert getattr(widget, name) == before


def test_kinds_come_from_the_function_handed_in(moments: list[Moment]) -> None:
    def kind(chain: Any, windows: Any, duration: float) -> str:
        return "lost" if chain.answer.start >= windows[0].end and duration == 8.0 else ""

    page = told(explore([rollout(), rollout(LOST)], moments, kind=kind, clips=0))
    assert page["names"]["kind"] == ["", "lost"] and page["columns"]["kind"] == [0, 1]


def test_kinds_are_those_of_the_failure_atlas_in_its_order_with_what_they_mean(moments: list[Moment]) -> None:
    page = told(explore([rollout("nothing"), rollout(GOOD), rollout(LOST), rollout("cut", finished=False)], moments))
    assert page["names"]["kind"] == ["no_answer", "right_then_left", ""]
    assert page["columns"]["kind"] == [0, 2, 1, 0]
    assert page["meanings"]["right_then_left"] == "an anchor was right, the answer is not"


def several(tmp_path: Path, texts: dict[str, str]) -> tuple[list[Rollout], list[Moment]]:
    """A moment and a rollout for each text, on a video of its own."""
    moments = [Moment(qid, str(film(tmp_path / f"{qid}.mp4", CONSTANT[:30])), qid, (TRUTH,), 8.0) for qid in texts]
    return [rollout(text, qid=qid) for qid, text in texts.items()], moments


def test_clips_of_the_first_the_worst_the_best_and_the_most_regressed_travel_along(tmp_path: Path) -> None:
    texts = {
        "dull": render([Span(2, 5)], Span(2, 5)),  # IoU 2/3 twice
        "told": GOOD,  # the one to open with
        "worst": render([Span(6, 7)], Span(6, 7)),
        "best": render([Span(2, 4)], Span(2, 4)),  # 1, like GOOD's, which has its clip already
        "regressed": render([Span(2, 4)], Span(2, 8)),  # from 1 to 1/3
    }
    rollouts, moments = several(tmp_path, texts)
    names = list(texts)

    def embedded(clips: int) -> set[str]:
        return {names[int(key)] for key in explore(rollouts, moments, clips=clips).clips}

    assert embedded(1) == {"told"}
    assert embedded(2) == {"told", "worst"}
    assert embedded(4) == {"told", "worst", "best", "regressed"}
    assert embedded(20) == set(texts)


def test_a_missing_video_is_said_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labkit.views.figures.renderer.setup", lambda: "plotly_mimetype+png")
    gone = Moment("q1", str(tmp_path / "gone.mp4"), "the door opens", (TRUTH,), 8.0)
    widget = explore([rollout()], [gone])
    assert "gone.mp4" in widget.clips["0"]["error"]
    assert "text/plain" in widget._repr_mimebundle_()[0]


def sent(widget: ChainExplorer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    messages: list[tuple[Any, Any]] = []
    monkeypatch.setattr(widget, "send", lambda content, buffers=None: messages.append((content, buffers)))
    return messages


def test_a_clip_that_is_asked_for_is_answered(
    moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = explore([rollout()], moments, clips=0, folder=tmp_path)
    messages = sent(widget, monkeypatch)
    widget._answer(widget, {"ask": "clip", "key": 0}, [])
    *before, (content, buffers) = messages
    assert before and all(set(each) == {"making", "share"} for each, _ in before), "how far it is, and then all of it"
    assert (content["clip"], content["frames"], content["step"]) == (0, 16, 0.5)
    assert buffers[0][:4] == b"RIFF" and buffers[0][8:12] == b"WEBP"


@pytest.mark.parametrize("key", [9, -1, "0", None, {"a": 1}])
def test_a_clip_that_is_not_there_is_answered_too(
    moments: list[Moment], key: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = explore([rollout()], moments, clips=0)
    messages = sent(widget, monkeypatch)
    widget._answer(widget, {"ask": "clip", "key": key}, [])
    assert messages == [({"clip": key, "error": f"there is no clip {key!r} in this explorer"}, [])]


@pytest.mark.parametrize("message", [None, "clip", 3, [], {}, {"ask": "rows"}])
def test_other_messages_are_none_of_its_business(
    moments: list[Moment], message: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = explore([rollout()], moments, clips=0)
    messages = sent(widget, monkeypatch)
    widget._answer(widget, message, [])
    assert messages == []


def test_asking_from_many_threads_while_chains_are_replaced(
    moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widget = explore([rollout()], moments, clips=0, folder=tmp_path)
    messages = sent(widget, monkeypatch)

    def ask() -> None:
        for _ in range(20):
            widget._answer(widget, {"ask": "clip", "key": 0}, [])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for step in range(10):
        widget.update([rollout(step=step + 1), rollout(LOST, step=step + 1, sample=1)])
    for thread in threads:
        thread.join()
    messages = [each for each in messages if "making" not in each[0]]
    assert len(messages) == 80 and all(buffers and "error" not in content for content, buffers in messages)


def test_an_update_shows_other_chains_and_lifts_a_stage_that_is_gone(moments: list[Moment]) -> None:
    widget = explore([rollout(), rollout(LOST)], moments, clips=0)
    widget.stage, widget.filter, widget.kind = "grpo", "door", "right_then_left"
    widget.selected = 1
    widget.update([rollout(stage="grpo_final", step=9)])
    assert (widget.selected, widget.stage, widget.kind, widget.filter) == (0, "", "", "door")
    assert told(widget)["columns"]["step"] == [9] and list(widget.clips) == ["0"]


def test_it_names_itself_and_offers_a_line_and_a_picture_to_viewers_that_run_nothing(moments: list[Moment]) -> None:
    widget = explore([rollout(), rollout(LOST)], moments)
    assert repr(widget) == "ChainExplorer(2 chains of 1 query, 1 clip inside)"
    data, metadata = widget._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG"), "drawn without any browser"
    assert metadata["image/png"] == {"width": 960} and data["text/plain"].startswith("ChainExplorer(2 chains")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_the_state_of_a_page_is_json_that_cannot_end_its_script(moments: list[Moment], clip: Path) -> None:
    evil = "</script><script>alert(1)</script><!-- {{7*7}}"
    moment = Moment("q1", str(clip), evil, (TRUTH,), 8.0)
    widget = explore([rollout(f"<think>{evil}</think>", stage=evil)], [moment])
    html = widget_page(widget, title=evil)
    state = re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert state and json.loads(state[1])["shows"] == "explorer"
    # the page's own two scripts, and nothing that a text brought along
    assert html.count("</script") == 2 and html.count("<script") == 2 and "<!--" not in html
    assert "<title>&lt;/script&gt;" in html


def test_a_choice_is_in_the_ledger_where_there_is_one(moments: list[Moment]) -> None:
    asked = [replace(moment, options=("opens", "shuts"), choice=1) for moment in moments]
    text = "<think> <timestamp>1 to 6</timestamp> </think> <answer>2 to 4</answer> <option>B</option>"
    page = told(explore([PlainRecord("q1", text)], asked, clips=0))
    assert page["terms"][-1] == "option"
    assert page["columns"]["earned"][0][-1] == 1.0
    assert page["columns"]["option"] == [1]
    assert [text[begin:end] for begin, end in page["columns"]["option_chars"]] == ["<option>B</option>"]
    assert page["moments"][0]["options"] == ["opens", "shuts"]
