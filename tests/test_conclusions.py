"""Conclusions say what the figures say, also when they say no, and show the numbers that they follow from."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.metrics import chain_figures
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.clips import COLORS, PLACES
from labkit.embedded.first_edition import make_scene, queried_event, scene_moments
from labkit.embedded.true_words import word_figures
from labkit.runs.results import FrameAblation, ModelEvaluation
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.views.conclusions import (
    Claim,
    Conclusion,
    about_words,
    after_all,
    after_final,
    after_grpo,
    after_harvest,
    after_sft,
)

VIDEOS = 30
MOMENTS = {f"q{n}": Moment(f"q{n}", f"/v/{n}.mp4", "a door opens", (Span(10, 20),), 40.0) for n in range(VIDEOS)}


def evaluated(qid: str, text: str, status: str) -> Rollout:
    return Rollout(
        run="x", stage="base", step=0, qid=qid, sample=0, seed=0, checkpoint="base", text=text, status=status, **UNPAID,
        prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


def model(chain, moments=MOMENTS, sampled=None) -> ModelEvaluation:
    """A model that writes `chain(n)` for the n-th moment."""

    def rows(write):
        return [evaluated(qid, text := write(n), parse(text).status) for n, qid in enumerate(moments)]

    def figures(rollouts):
        chains = [parse(rollout.text) for rollout in rollouts]
        found = chain_figures(chains, [m.windows for m in moments.values()], [m.duration for m in moments.values()])
        found |= word_figures({row.qid: row.text for row in rollouts}, list(moments.values()))
        return {name: None if math.isnan(value) else value for name, value in found.items()}

    greedy = rows(chain)
    told = {"greedy": figures(greedy)}
    if sampled is not None:
        told["sampled"] = figures(rows(sampled))
    return ModelEvaluation(told, greedy, rows(sampled) if sampled else [])


def plain(length: float, without: int = 0):
    """Chains without anchors, whose answers have IoU `length / 10`; the first `without` have none."""
    return lambda n: "no idea" if n < without else render([], Span(10, 10 + length))


def narrowing(length: float):
    return lambda n: render([Span(0, 40), Span(5, 30)], Span(10, 10 + length))


BASE, SFT, FINAL = model(plain(5)), model(narrowing(6)), model(narrowing(9))


def holds(conclusion) -> list[bool | None]:
    return [claim.holds for claim in conclusion.claims]


def test_a_run_that_kept_its_promises():
    conclusion = after_final(BASE, SFT, FINAL, MOMENTS)
    assert holds(conclusion) == [True] * 5
    assert conclusion._repr_markdown_().count("**Yes.**") == 5


def test_where_the_run_began_later_what_is_there_is_compared():
    claims = after_final(None, SFT, FINAL, MOMENTS).claims
    assert [claim.holds for claim in claims] == holds(after_final(SFT, SFT, FINAL, MOMENTS))
    assert "since the model that it began from" in claims[3].text and "base" not in str(claims)
    assert after_sft(BASE, None, SFT, MOMENTS).claims == after_sft(BASE, BASE, SFT, MOMENTS).claims[:2]


def test_a_gain_is_printed_as_it_was_measured_and_not_as_it_was_hoped_for():
    claim = after_final(BASE, SFT, FINAL, MOMENTS).claims[3]
    assert claim.text == "R1@0.7 has gained at least 25 points since the base"
    assert claim.evidence == "greedy R1@0.7 0.0 to 100.0 %, +100.0 (95 % interval +100.0 to +100.0, 30 queries)"
    less = after_final(model(plain(9, without=5)), SFT, FINAL, MOMENTS).claims[3]
    assert less.holds is False and "83.3 to 100.0 %, +16.7 (95 % interval +" in less.evidence


@pytest.mark.parametrize(
    ("before", "after", "better", "says", "why"),
    [
        (plain(5), plain(6), True, "50.0 to 60.0 %, +10.0 (95 % interval +10.0 to +10.0, 30 queries)", "all gained"),
        (plain(6), plain(5), False, "60.0 to 50.0 %, -10.0 (95 % interval -10.0 to -10.0, 30 queries)", "all lost"),
        (plain(6), plain(6), False, "+0.0 (95 % interval +0.0 to +0.0, 30 queries), which may be chance", "nothing moved"),
        (lambda n: plain(5 + n % 2)(n), lambda n: plain(6 - n % 2 if n else 6)(n), False, "which may be chance",
         "half gained, half lost"),
        (plain(5), lambda n: plain(10 if n == 3 else 5)(n), False, "which may be chance", "one query alone"),
    ],
)  # fmt: skip
def test_a_change_counts_where_its_interval_leaves_out_nothing_happened(before, after, better, says, why):
    claim = after_sft(model(before), model(before), model(after), MOMENTS).claims[1]
    assert claim.holds is better and says in claim.evidence, why


def test_a_gain_that_may_be_less_than_was_hoped_for_is_not_said_to_be_reached():
    claim = after_final(model(plain(9, without=9)), SFT, FINAL, MOMENTS).claims[3]
    assert (
        claim.holds is False and "+30.0 (95 % interval +" in claim.evidence and "which may be less" in claim.evidence
    )


def test_one_video_shows_no_change():
    alone = {f"q{n}": Moment(f"q{n}", "/v/0.mp4", "a door opens", (Span(10, 20),), 40.0) for n in range(4)}
    claim = after_sft(*(model(plain(length), alone) for length in (5, 5, 9)), alone).claims[1]
    assert claim.holds is False and "+40.0 on 4 queries, of too few videos for an interval" in claim.evidence


def test_a_model_without_anchors_keeps_none_and_nothing_is_made_up():
    conclusion = after_final(BASE, BASE, BASE, MOMENTS)
    assert holds(conclusion) == [False] * 5
    assert conclusion.claims[2].evidence == "no chain has an anchor"


def test_figures_that_are_missing_never_count_as_success():
    nothing = ModelEvaluation({"greedy": {}}, [], [])
    assert not any(holds(after_final(nothing, nothing, nothing, MOMENTS)))
    assert not any(holds(after_sft(nothing, nothing, nothing, MOMENTS)))


def test_stage_one_is_judged_by_its_sampled_anchors():
    rare = model(plain(5), sampled=lambda n: (narrowing(5) if n < 1 else plain(5))(n))
    half = model(narrowing(8), sampled=lambda n: (narrowing(5) if n < 18 else plain(5))(n))
    history = [{"anchor_rate": 0.9 + 0.01 * k, "strict_share": 0.65} for k in range(10)]
    conclusion = after_grpo(rare, half, GrpoResult(40, "condition", history, 60.0), MOMENTS)
    assert holds(conclusion) == [False, True, True, None]
    assert "18 of 30 (60.0 %) sampled chains have one; 95 % is the target; before: 1 of 30 (3.3 %)" in str(conclusion)
    assert (
        "after 40 steps; stopped by condition: in the last 5 steps 97.0 % of chains had anchors and 65.0 % narrowed"
        in str(conclusion)
    )
    whole = after_grpo(rare, half, GrpoResult(150, "steps", history, 60.0), MOMENTS)
    assert "after 150 steps; all steps were taken" in str(whole)


def test_a_harvest_names_what_took_most():
    conclusion = after_harvest([("format", 10), ("not progressive", 70), ("kept", 20)], 50)
    assert str(conclusion).splitlines() == [
        "yes Traces to learn from: 20 of 100 chains (20.0 %), from 50 queries asked",
        "    Most were dropped for one reason: 'not progressive' took 70 of 80",
    ]
    assert holds(after_harvest([("format", 10), ("kept", 0)], 5)) == [False, None]
    spread = after_harvest([("format", 30), ("not progressive", 40), ("answer off", 35), ("kept", 5)], 50)
    assert "The most frequent reason to drop one: 'not progressive' took 40 of 105" in str(spread)


def test_a_model_that_does_not_look_is_told():
    models = {"base": BASE, "sft": SFT, "grpo_final": FINAL}
    for miou, looks in ((0.26, True), (0.71, False), (math.nan, False)):
        claim = after_all(models, FrameAblation(10, 0.9, {"another clip's": miou}, 0.29), MOMENTS).claims[-1]
        assert claim.holds is looks
        assert "mIoU 90.0 % with them" in claim.evidence and "over 10 queries" in claim.evidence
        assert "at most 59.5 was asked, half the way from the best constant answer (29.0)" in claim.evidence
    claim = after_all(models, FrameAblation(10, 0.15, {"black": 0.15}, 0.29), MOMENTS).claims[-1]
    assert claim.holds is False, "below the constant answer it has shown nothing"
    assert "so nothing is shown" in claim.evidence


def world() -> dict[str, Moment]:
    rows = [row for seed in range(12) for row in scene_moments(make_scene(seed), Path(f"/w/test-00000-{seed}.mp4"))]
    return {row.qid: row for row in rows}


def test_words_are_held_against_the_world_and_counted():
    moments = world()

    def writes(place):
        def chain(n: int) -> str:
            thing, _ = queried_event(list(moments.values())[n]) or pytest.fail("unknown")
            said = PLACES[thing.quadrant] if place is None else place
            return render(
                [Span(0, 15), Span(1, 14)], Span(2, 12), [f"the {thing.color} {thing.shape} on the {said}", "", ""]
            )

        return model(chain, moments)

    claims = {
        claim.text: claim for claim in after_final(writes(None), writes(None), writes("top left"), moments).claims
    }
    right = sum(queried_event(moment)[0].quadrant == 0 for moment in moments.values())
    place = claims["Words for the place in its thoughts are true"]
    assert place.holds is False and claims["Words for the colour in its thoughts are true"].holds is True
    assert f"{right} of {len(moments)} are, {100 * right / len(moments):.1f} % (95 % interval " in place.evidence
    assert f"{100 * right / len(moments):.1f} by chance; 90 % is the target; the base: 100.0 % of" in place.evidence
    assert claims["Distinct thoughts, once object words and numbers are blanked"].evidence == (
        f"1 in {len(moments)} chains; the base: 4"
    )
    assert not any("action" in text or "time" in text for text in claims), "nothing is said of what nobody said"


def test_nothing_is_said_of_words_where_no_simulator_knows():
    assert not any("ords" in claim.text for claim in after_final(BASE, SFT, FINAL, MOMENTS).claims)
    for models in ({"base": BASE, "sft": SFT, "grpo_final": FINAL}, {"grpo_final": FINAL}):
        assert "Not measured: only clips of the embedded world" in str(about_words(models, MOMENTS))


def says(words):
    return lambda n: render([Span(0, 15)], Span(2, 12), [words(n), ""])


@pytest.mark.parametrize(
    ("wrong", "holds", "text", "evidence"),
    [
        (0, True, "Words stayed as true in stage 3, sampled", "colour stayed, 100.0 to 100.0 % (+0.0"),
        (2, False, "Words stayed as true in stage 3, sampled", "colour fell, 100.0 to 50.0 % (-50.0, 95 % interval -"),
        (17, None, "Whether words stayed as true in stage 3 is open, sampled", "colour may have moved, 100.0 to 9"),
    ],
)
def test_words_fell_or_stayed_where_intervals_say_so_and_are_open_elsewhere(wrong, holds, text, evidence):
    moments = {qid: moment for k, (qid, moment) in enumerate(world().items()) if k < 40}
    colors = [(queried_event(moment) or pytest.fail("unknown"))[0].color for moment in moments.values()]
    right = model(says(lambda n: f"the {colors[n]} thing"), moments, says(lambda n: f"the {colors[n]} thing"))
    worse = model(
        says(lambda n: f"the {colors[n]} thing"),
        moments,
        says(lambda n: f"the {other(colors[n]) if wrong and n % wrong == 0 else colors[n]} thing"),
    )
    claim = about_words({"sft": right, "grpo_final": worse}, moments).claims[0]
    assert (claim.text, claim.holds) == (text, holds)
    assert evidence in claim.evidence and "shape" not in claim.evidence, "nothing is said of what nobody said"


def other(color: str) -> str:
    return next(each for each in COLORS if each != color)


def test_a_claim_is_shown_as_it_is_written_whatever_viewer_reads_its_markdown():
    shown = Conclusion([Claim("R1@0.7 rose", True, "a_b *c* <d> $5 [x](y) R1@0.5")])._repr_markdown_()
    assert shown == r"- **Yes.** R1&#64;0.7 rose: a\_b \*c\* &lt;d> \$5 \[x\](y) R1&#64;0.5"
    assert "@" not in shown, "viewers take R1@0.7 for a mail address"
