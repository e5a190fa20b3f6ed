"""Interventions on fake models whose answers are known, so that every figure can be computed by hand."""

import json
import math

import pytest

from labkit import views
from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.policy.inputs import FrameSampling
from labkit.runs.intervene import both_ways, intervene, require_same_plan
from labkit.runs.interventions import Interventions
from labkit.scoring.bootstrap import Difference, Interval
from labkit.stages.interventions import UNTAGGED, plan
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views import conclusions

SECOND_BY_SECOND = FrameSampling(1.0, 32, 56 * 56, 56 * 56)


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
    planned = plan(own, moments, SECOND_BY_SECOND, shifts)
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


def give_up_unless_own(chain, frames):
    """Copies an anchor of its own, and answers the middle of the clip behind any other: that says nothing of where the other is."""
    own = [parse(each.text).spans for each in OWN]
    return copy_last(chain, frames) if chain.spans in own + [spans[:1] for spans in own] else Span(9.0, 11.0)


@pytest.mark.parametrize(
    ("answer", "shifted", "widened", "words"),
    [
        (copy_last, 1.0, 1.0, "follows all the way, as far as can be told"),
        (lambda chain, frames: Span(5, 9), 0.0, 0.0, "is not shown to follow"),
        (half_of_last, 0.5, 0.0, "follows part of the way"),
    ],
    ids=["copies the last anchor", "ignores anchors", "goes half the way"],
)
def test_the_slope_says_how_far_an_answer_follows(answer, shifted, widened, words):
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
    assert f"When the last anchor is shifted, the answer {words}: " in str(conclusions.after_interventions(found))


def test_an_answer_that_gives_up_behind_any_edit_does_not_follow():
    """Over the movement from a query's own anchor it would seem to, as anchors are swapped towards the middle on average."""
    follows = ask_fake(MOMENTS, OWN, give_up_unless_own).follows
    assert follows["last swap"].slope.value == 0.0 and follows["last swap"].slope.n == 8
    assert follows["last shift"].slope.value == 0.0


def test_anchors_at_the_borders_that_can_be_shifted_inwards_alone_follow_no_more_for_it():
    """Over all shifts an answer that gives up would follow by far more than 1: 7 s inwards for each second or two."""
    ends = [Span(0.0, 4.0), Span(16.0, 20.0)]
    own = [rollout(m.qid, render([ends[k % 2]], ends[k % 2])) for k, m in enumerate(MOMENTS)]
    found = ask_fake(
        MOMENTS, own, lambda chain, frames: ends[0] if chain.spans[-1:] == (ends[0],) else Span(9, 11), [-2, -1, 1, 2]
    )
    shift = found.follows["last shift"]
    assert shift.slope.value == 0.0 and shift.slope.n == 16 and shift.left_out == {"no room in the clip": 16}
    alone = ask_fake(MOMENTS, own, copy_last).follows["last shift"]
    assert alone.slope.n == 0 and alone.left_out == {"no room in the clip": 8, "no other shift to hold it against": 8}


def test_an_answer_is_cut_to_the_clip_before_its_movement_is_taken():
    found = ask_fake(MOMENTS, OWN, lambda chain, frames: Span(chain.spans[-1].start, 9000.0) if chain.spans else None)
    assert found.follows["last shift"].slope.value == pytest.approx(0.5), "its end stays at the clip's"
    beyond = ask_fake(MOMENTS, OWN, lambda chain, frames: Span(30.0, 40.0)).follows["last shift"]
    assert beyond.slope.n == 0 and beyond.left_out == {"no answer in the clip": 16}


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
    moments = [moment(number) for number in range(6)]
    own = [
        rollout("q0", render([], Span(3, 9))),  # no anchor
        rollout("q1", render([Span(0, 20)], Span(3, 9))),  # fills the clip; one anchor, so that none is the first
        rollout("q2", render([Span(0.5, 12), Span(3, 19.5)], Span(3, 9))),  # less room than a second
        rollout("q3", "<think>"),  # cut off in the thought
        rollout("q4", render([Span(1, 9), Span(3, 9)], Span(3, 9))),
        rollout("q5", render([Span(25, 30), Span(15, 21)], Span(3, 9))),  # one outside of the clip, one that leaves it
    ]
    found = ask_fake(moments, own, lambda chain, frames: chain.spans[-1] if chain.spans else None)
    last, first = found.follows["last shift"], found.follows["first shift"]
    assert (
        last.left_out == {"no anchor": 4, "no room in the clip": 2, "anchor leaves the clip": 2} and last.slope.n == 4
    )
    assert last.cut_short == 1, "q2 by half a second to the right"
    assert first.left_out == {"no anchor": 4, "one anchor, which is the last": 2, "anchor leaves the clip": 2}
    assert first.cut_short == 1
    widen = found.follows["last widen"]
    assert widen.left_out == {"no anchor": 2, "no room in the clip": 1, "anchor leaves the clip": 1}
    assert widen.cut_short == 1 and widen.slope.n == 2, "q2 by half a second at its end"
    assert found.follows["last swap"].slope.n == 3
    assert found.follows["first swap"].left_out["no two other queries to swap with"] == 2
    frames = found.frames
    assert frames["hide elsewhere, answer"].left_out == {"no anchor": 2, "no stretch as long beside the anchor": 2}
    assert frames["hide outside, anew"].left_out == {"no anchor": 2, "no frame outside": 1}, (
        "an edit that changes nothing"
    )
    assert frames["hide inside, answer"].unread == 0 and frames["hide inside, answer"].n == 4
    assert found.scores["forbidden: thought closed"].figures["miou"] == 0.0, "an answer that cannot be read counts 0"
    unread = ask_fake(moments, own, lambda chain, frames: None)
    assert (
        unread.follows["last shift"].slope.n == 0
        and unread.follows["last shift"].left_out["no answer in the clip"] == 4
    )
    assert unread.frames["hide inside, answer"].unread == 4 and [step.unread for step in unread.steps] == [3, 3, 3]
    assert str(unread) and "there is no edit of which both answers can be read" in str(
        conclusions.after_interventions(unread)
    )


def test_an_anchor_of_several_spans_is_left_out_and_counted():
    sets = "<think><timestamp>1.0 to 4.0, 8.0 to 9.0</timestamp></think>\n<answer>3.0 to 9.0</answer>"
    assert len(parse(sets).spans[0].parts) == 2
    found = ask_fake(MOMENTS, [rollout(MOMENTS[0].qid, sets), *OWN[1:]], lambda chain, frames: Span(5, 9))
    assert found.follows["last widen"].left_out == {"an anchor of several spans": 1}
    assert found.frames["shuffle inside, anew"].left_out == {"an anchor of several spans": 1}


def test_frames_that_can_be_edited_of_no_chain_are_still_counted():
    own = [rollout(m.qid, render([Span(0, 20)], Span(3, 9))) for m in MOMENTS]  # each anchor fills its clip
    found = ask_fake(MOMENTS, own, copy_last)
    assert found.frames["hide elsewhere, anew"].left_out == {"no stretch as long beside the anchor": 8}
    assert "hide outside, answer" in str(found) and "8 no frame outside" in str(found) and "nan" not in str(found)
    assert views.frames_edited(found).to_dict()["data"]


def test_without_any_anchor_the_rest_is_said():
    own = [rollout(m.qid, render([], Span(3, 9))) for m in MOMENTS]
    found = ask_fake(MOMENTS, own, copy_last)
    assert not found.steps and not found.null and not found.frames
    assert "none of its own chains has an anchor" in str(conclusions.after_interventions(found))
    assert [table.title for table in found.tables()] == ["anchors forbidden and forced"]


@pytest.mark.parametrize(
    ("low", "high", "words", "holds"),
    [
        (math.nan, math.nan, "is not shown to follow", None),  # too few videos
        (-0.9, -0.7, "moves the other way", False),
        (-0.02, 0.05, "does not follow", False),
        (-0.3, 0.9, "is not shown to follow", None),  # it may, and it may not
        (0.02, 0.09, "hardly follows", False),
        (0.15, 0.26, "follows less than half the way", True),
        (0.3, 0.8, "follows part of the way", True),
        (0.51, 0.63, "follows more than half the way", True),
        (0.9, 1.05, "follows all the way, as far as can be told", True),
        (1.2, 1.9, "goes further than the anchor", True),
    ],
)
def test_what_is_said_of_a_slope_follows_from_its_interval(low, high, words, holds):
    assert conclusions.follow_words(Interval(low, high)) == (words, holds)


TEXT = "Behind it answers are {} than before"


@pytest.mark.parametrize(
    ("value", "interval", "hoped", "claim"),
    [
        (0.1, (0.05, 0.15), "better", "yes Behind it answers are better than before: mIoU +10.0 (95 % interval +5.0 to +15.0)"),
        (0.1, (0.05, 0.15), "worse", "NO  Behind it answers are better than before: mIoU +10.0 (95 % interval +5.0 to +15.0)"),
        (-0.1, (-0.15, -0.05), "better", "NO  Behind it answers are worse than before: mIoU -10.0 (95 % interval -15.0 to -5.0)"),
        (-0.1, (-0.15, -0.05), "worse", "yes Behind it answers are worse than before: mIoU -10.0 (95 % interval -15.0 to -5.0)"),
        (0.1, (-0.05, 0.25), "better", "    Behind it answers are neither better nor worse, as far as can be told, than before: "
         "mIoU +10.0 (95 % interval -5.0 to +25.0), which may be chance"),
        (-0.0, (-0.0, -0.0), "better", "NO  Behind it answers are the same as before: mIoU +0.0 (95 % interval +0.0 to +0.0)"),
        (0.1, (math.nan, math.nan), "better", "    Behind it answers are neither better nor worse, as far as can be told, than "
         "before: mIoU +10.0, of too few videos for an interval"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_change_follows_from_its_interval(value, interval, hoped, claim):
    said = conclusions._changed(TEXT, Difference(value, Interval(*interval), 0.5), hoped)
    assert str(conclusions.Conclusion([said])) == claim


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (None, None),  # nothing has been asked
        ({}, None),  # the same again
        ({"shifts": [-2.0, 2.0]}, r"shifts: there \[-2.0, 2.0\], here \[-1.0, 1.0\]"),
        ({"queries": 100}, "queries: there 100, here 8"),  # another --limit
        ({"chains": "0" * 16, "variants": "1" * 16}, "chains: there 0000"),  # another model
        ({"format": 1}, "of another version of labkit; remove the folder"),
        ("{", "is damaged"),
        ("texts alone", "of another version of labkit"),  # broken off by a version that noted nothing before
    ],
)
def test_a_folder_of_other_interventions_is_refused_by_name(tmp_path, kept, named):
    note = plan(OWN, MOMENTS, SECOND_BY_SECOND, [-1.0, 1.0]).note
    if kept == "texts alone":
        (tmp_path / "texts").mkdir()
    elif kept is not None:
        text = kept if kept == "{" else json.dumps(note | kept)
        (tmp_path / "plan.json").write_text(text)
    if named is None:
        require_same_plan(tmp_path, note)
        assert json.loads((tmp_path / "plan.json").read_text()) == note
    else:
        with pytest.raises(LabError, match=named):
            require_same_plan(tmp_path, note)


@pytest.mark.parametrize(
    "own", [OWN, [rollout(m.qid, render([], Span(3, 9))) for m in MOMENTS]], ids=["anchors", "none"]
)
def test_every_figure_draws_what_there_is(own):
    found = ask_fake(MOMENTS, own, half_of_last)
    for draw in (
        views.anchors_forbidden, views.answer_follows, views.answer_by_step, views.frames_edited, views.shuffled_null
    ):  # fmt: skip
        assert draw(found).to_dict()["data"] or own is not OWN


@pytest.mark.parametrize(
    ("text", "values"), [("1,2", [-2.0, -1.0, 1.0, 2.0]), ("0.5", [-0.5, 0.5]), ("2,-2", [-2.0, 2.0])]
)
def test_shifts_go_both_ways(text, values):
    assert both_ways(text) == values


@pytest.mark.parametrize("text", ["", "1;2", "0", "1,nan", "inf", "-1e999"])
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
