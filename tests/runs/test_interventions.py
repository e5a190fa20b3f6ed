"""Interventions on fake models whose answers are known, so that every figure can be computed by hand, and on a real one."""

import json
import math

import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.runs.intervene import both_ways, intervene
from labkit.runs.interventions import Interventions
from labkit.stages.interventions import UNTAGGED, plan
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views import conclusions


def moment(number, start=4.0, end=8.0, duration=20.0):
    return Moment(f"q{number}", f"/v{number}.mp4", "it opens", (Span(start, end),), duration)


def rollout(qid, text):
    return Rollout(
        run="r", stage="s", step=0, qid=qid, sample=0, seed=0, checkpoint="fake", text=text, status=parse(text).status,
        prompt_tokens=1, completion_tokens=1, finished=True, **UNPAID,
    )  # fmt: skip


def ask_fake(moments, own, answer, shifts=(-1.0, 1.0)):
    """Interventions on a model that writes no anchor behind what it is given, and answers `answer(chain so far, frame edit)`."""
    texts = {each.qid: each.text for each in own}
    planned = plan(own, moments, shifts)
    variants = {UNTAGGED: {m.qid: rollout(m.qid, render([], answer(parse(""), None))) for m in moments}}
    for name, variant in {**planned.texts, **planned.frames}.items():
        begun = variant.begun or texts[variant.qid].split("</think>")[0]
        if begun.endswith("<timestamp>"):
            begun += "1.0 to 9.0</timestamp>"
        span = answer(parse(begun), variant.frames)
        closing = "" if begun.endswith("<answer>") else "</think>\n<answer>"
        written = "" if span is None else f"{span.start} to {span.end}</answer>"
        what = name.removeprefix(f"{variant.qid}/")
        variants.setdefault(what, {})[variant.qid] = rollout(variant.qid, begun + closing + written)
    return Interventions("fake", moments, own, variants, planned)


MOMENTS = [moment(number, 4.0 + number, 8.0 + number) for number in range(8)]
OWN = [
    rollout(m.qid, render([Span(2.0 + k, 12.0 + k), Span(3.0 + k, 9.0 + k)], Span(3.0 + k, 9.0 + k)))
    for k, m in enumerate(MOMENTS)
]


def copy_last(chain, frames):
    return chain.spans[-1] if chain.spans else Span(0.0, 20.0)


def half_of_last(chain, frames):
    """Goes half as far as the last anchor: its middle is the mean of the anchor's and 10."""
    middle = (copy_last(chain, frames).middle + 10.0) / 2
    return Span(middle - 1, middle + 1)


@pytest.mark.parametrize(
    ("answer", "shifted", "widened"),
    [(copy_last, 1.0, 1.0), (lambda chain, frames: Span(5, 9), 0.0, 0.0), (half_of_last, 0.5, 0.0)],
    ids=["copies the last anchor", "ignores anchors", "goes half the way"],
)
def test_the_slope_says_how_far_an_answer_follows(answer, shifted, widened):
    found = ask_fake(MOMENTS, OWN, answer)
    follow = found.follows["last shift"]
    assert follow.slope.value == pytest.approx(shifted) and follow.slope.n == 16 and follow.slope.videos == 8
    assert follow.slope.interval.low < shifted < follow.slope.interval.high
    assert [(dose.asked, dose.moved, round(dose.followed, 6), dose.n) for dose in follow.doses] == [
        (-1.0, -1.0, -shifted, 8), (1.0, 1.0, shifted, 8),
    ]  # fmt: skip
    assert found.follows["last swap"].slope.value == pytest.approx(shifted)
    assert found.follows["last widen"].slope.value == pytest.approx(widened)
    # The text behind the first anchor is written anew, and these models write no other anchor.
    assert found.follows["first shift"].slope.value == pytest.approx(shifted)
    text = str(conclusions.after_interventions(found))
    assert ("yes The answer follows the last anchor" in text) == (shifted > 0)


def test_steps_null_and_what_it_costs_are_those_computed_by_hand():
    found = ask_fake(MOMENTS, OWN, copy_last)
    assert found.anchored == 8 and found.step_queries == 8
    # Behind no anchor 0 to 20 (4 of 20 s); behind the first 10 s that hold the truth; behind the second 6 s of which 4 are right, and
    # one before the truth begins: 4 of 6.
    assert [round(step.miou, 6) for step in found.steps] == [0.2, 0.4, round(4 / 6, 6)]
    assert [round(step.gain.value, 6) for step in found.steps[1:]] == [0.2, round(4 / 6 - 0.4, 6)]
    assert math.isnan(found.steps[0].anchor_miou) and found.steps[2].anchor_miou == pytest.approx(4 / 6)
    assert found.against_own("closed").differences["miou"].value == pytest.approx(4 / 6 - 0.2)
    assert found.null["strict_share"].observed == 1.0 and found.null["strict_share"].mean < 0.8
    assert found.null["iou_last"].observed == pytest.approx(4 / 6) and found.null["iou_last"].p < 0.05
    told = json.dumps(found.as_dict())
    assert "NaN" not in told and json.loads(told)["follows"]["last shift"]["slope"]["value"] == pytest.approx(1.0)
    assert {table.title.split()[0] for table in found.tables()} == {"anchors", "how", "thought", "frames", "chains"}


def test_a_model_that_looks_inside_its_anchor_alone_loses_only_there():
    def answer(chain, frames):
        seen = frames is None or frames.outside or frames.span != chain.spans[-1]
        return chain.spans[-1] if seen and chain.spans else Span(0.0, 20.0)

    found = ask_fake(MOMENTS, OWN, answer)
    assert found.frames["hide inside, answer"].difference.value == pytest.approx(0.2 - 4 / 6)
    assert found.frames["hide outside, answer"].difference.value == 0.0
    assert found.frames["hide elsewhere, anew"].difference.value == 0.0
    assert found.elsewhere["answer"].interval.high < 0


def test_what_cannot_be_done_is_left_out_and_counted():
    moments = [moment(number) for number in range(5)]
    own = [
        rollout("q0", render([], Span(3, 9))),  # no anchor
        rollout("q1", render([Span(0, 20)], Span(3, 9))),  # fills the clip; one anchor, so that none is the first
        rollout("q2", render([Span(0.5, 12), Span(3, 19.5)], Span(3, 9))),  # less room than a second
        rollout("q3", "<think>"),  # cut off in the thought
        rollout("q4", render([Span(1, 9), Span(3, 9)], Span(3, 9))),
    ]
    found = ask_fake(moments, own, lambda chain, frames: chain.spans[-1] if chain.spans else None)
    last, first = found.follows["last shift"], found.follows["first shift"]
    assert last.left_out == {"no anchor": 4, "no room in the clip": 2} and last.slope.n == 4
    assert last.cut_short == 1, "q2 by half a second to the right"
    assert first.left_out == {"no anchor": 4, "one anchor, which is the last": 2} and first.cut_short == 1
    assert found.follows["last widen"].left_out == {"no anchor": 2, "no room in the clip": 1}
    assert found.frames["hide elsewhere, answer"].left_out == {
        "no anchor": 2,
        "no stretch as long beside the anchor": 2,
    }
    assert found.scores["forbidden: thought closed"].figures["miou"] == 0.0, "an answer that cannot be read counts 0"
    unread = ask_fake(moments, own, lambda chain, frames: None)
    assert unread.follows["last shift"].slope.n == 0 and unread.follows["last shift"].left_out["no answer"] == 4
    assert str(unread) and conclusions.after_interventions(unread).claims


def test_without_any_anchor_the_rest_is_said():
    own = [rollout(m.qid, render([], Span(3, 9))) for m in MOMENTS]
    found = ask_fake(MOMENTS, own, copy_last)
    assert not found.steps and not found.null and not found.frames
    assert "none of its own chains has an anchor" in str(conclusions.after_interventions(found))
    assert [table.title for table in found.tables()] == ["anchors forbidden and forced"]


@pytest.mark.parametrize(
    ("text", "values"), [("1,2", [-2.0, -1.0, 1.0, 2.0]), ("0.5", [-0.5, 0.5]), ("2,-2", [-2.0, 2.0])]
)
def test_shifts_go_both_ways(text, values):
    assert both_ways(text) == values


@pytest.mark.parametrize("text", ["", "1;2", "0", "1,nan", "inf"])
def test_what_is_no_shift_is_refused(text):
    with pytest.raises(LabError, match="shifts .*give seconds"):
        both_ways(text)


def test_a_model_needs_moments_and_a_run_has_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="'embedded' is no run's folder; say what the model is asked with --moments"):
        intervene("embedded")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    with pytest.raises(LabError, match="is a run, which is asked about its own test split"):
        intervene(str(tmp_path / "run"), "world/test")
