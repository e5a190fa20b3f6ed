"""Conclusions say what the figures say, also when they say no."""

from __future__ import annotations

import math

from labkit.conclusions import after_all, after_final, after_grpo, after_harvest, after_sft
from labkit.stages.grpo import GrpoResult

BASE = {"greedy": {"miou": 0.57, "r1@0.7": 0.25, "anchor_rate": 0.0, "strict_share": 0.0, "iou_first": None}}
SFT = {"greedy": {**BASE["greedy"], "miou": 0.70, "r1@0.7": 0.54, "anchor_rate": 1.0}}
FINAL = {
    "greedy": {
        "miou": 0.73, "r1@0.7": 0.63, "anchor_rate": 1.0, "strict_share": 0.9, "iou_first": 0.47, "iou_last": 0.61,
        "iou_answer": 0.73,
    }
}  # fmt: skip


def holds(conclusion) -> list[bool | None]:
    return [claim.holds for claim in conclusion.claims]


def test_a_run_that_kept_its_promises():
    conclusion = after_final(BASE, SFT, FINAL)
    assert holds(conclusion) == [True] * 5
    assert "greedy R1@0.7 0.250 to 0.630" in str(conclusion)
    assert conclusion._repr_markdown_().count("**Yes.**") == 5


def test_a_model_without_anchors_keeps_none_and_nothing_is_made_up():
    conclusion = after_final(BASE, BASE, BASE)
    assert holds(conclusion) == [False] * 5
    assert conclusion.claims[2].evidence == "no chain has an anchor"


def test_figures_that_are_missing_never_count_as_success():
    nothing = {"greedy": {}}
    assert not any(holds(after_final(nothing, nothing, nothing)))
    assert not any(holds(after_sft(nothing, nothing, nothing)))


def test_stage_one_is_judged_by_its_sampled_anchors():
    rare = {**BASE, "sampled": {**BASE["greedy"], "anchor_rate": 0.04}}
    half = {"greedy": {**SFT["greedy"], "anchor_rate": 1.0}, "sampled": {**SFT["greedy"], "anchor_rate": 0.6}}
    conclusion = after_grpo(rare, half, GrpoResult(40, "condition", [], 60.0))
    assert holds(conclusion) == [False, True, True, None]
    assert "sampled anchor rate 0.040 to 0.600" in str(conclusion)
    assert "after 40 steps, by condition" in str(conclusion)


def test_a_harvest_names_what_took_most():
    conclusion = after_harvest([("format", 10), ("not progressive", 70), ("kept", 20)], 50)
    assert str(conclusion).splitlines() == [
        "yes Traces to learn from: 20 of 100 chains, from 50 queries asked",
        "    Most were dropped for one reason: 'not progressive' took 70 of 80",
    ]
    assert holds(after_harvest([("format", 10), ("kept", 0)], 5)) == [False, None]
    spread = after_harvest([("format", 30), ("not progressive", 40), ("answer off", 35), ("kept", 5)], 50)
    assert "The most frequent reason to drop one: 'not progressive' took 40 of 105" in str(spread)


def test_a_model_that_does_not_look_is_told():
    models = {"base": BASE, "sft": SFT, "grpo_final": FINAL}
    assert holds(after_all(models, 0.29, {"another clip's": 0.26}))[-1] is True
    assert holds(after_all(models, 0.29, {"another clip's": 0.71}))[-1] is False
    assert holds(after_all(models, 0.29, {"another clip's": math.nan}))[-1] is False
    blind = {**models, "grpo_final": {"greedy": {**FINAL["greedy"], "miou": 0.15}}}
    assert holds(after_all(blind, 0.29, {"black": 0.15}))[-1] is False, (
        "below the constant answer it has shown nothing"
    )
