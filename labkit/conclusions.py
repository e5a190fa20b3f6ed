"""Conclusions: what a reader should take home from a stage, computed from its figures and never written beforehand."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from labkit.chain.steps import LEAST_GAIN

if TYPE_CHECKING:
    from labkit.stages.grpo import GrpoResult

ENOUGH_ANCHORS = 0.95
"""Share of chains with anchors from which on they are the rule."""
ENOUGH_STRICT = 0.8
"""Share of chains that narrow from which on narrowing is the rule."""
ENOUGH_GAIN = 0.25
"""What R1@0.7 gains from the base to the final model, on the embedded lab."""


class Claim(NamedTuple):
    """What was hoped for, whether it came true (None: nothing was hoped), and the figures behind it."""

    text: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True, slots=True, repr=False)
class Conclusion:
    """Claims that show in a notebook as a list, and print as lines."""

    claims: Sequence[Claim]

    def _repr_markdown_(self) -> str:
        marks = {True: "**Yes.** ", False: "**No.** ", None: ""}
        lines = (
            f"- {marks[claim.holds]}{claim.text}: {html.escape(claim.evidence, quote=False)}" for claim in self.claims
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        marks = {True: "yes", False: "NO ", None: "   "}
        return "\n".join(f"{marks[claim.holds]} {claim.text}: {claim.evidence}" for claim in self.claims)

    def __repr__(self) -> str:
        return str(self)


Figures = Mapping[str, Mapping[str, float | None]]
"""Flat figures by decoding, as `Lab.measure` gives them."""


def after_grpo(start: Figures, grpo: Figures, training: GrpoResult) -> Conclusion:
    """Stage 1: have anchors become the rule, and have the answers got better since its start?"""
    decoding = "sampled" if "sampled" in grpo else "greedy"
    rate = _value(grpo[decoding], "anchor_rate")
    return Conclusion(
        [
            Claim(
                "Anchors have become the rule", rate >= ENOUGH_ANCHORS, _change("anchor_rate", decoding, start, grpo)
            ),
            _better("Answers have got better", "miou", start, grpo),
            _better("More answers are close", "r1@0.7", start, grpo),
            Claim("Stage 1 stopped", None, f"after {training.steps} steps, by {training.stopped_by}"),
        ]
    )


def after_harvest(funnel: Sequence[tuple[str, int]], queries: int) -> Conclusion:
    """Stage 2, first half: how much of the harvest is worth learning from, and what most of the rest lacked."""
    total, kept = sum(count for _, count in funnel), funnel[-1][1]
    claims = [Claim("Traces to learn from", kept > 0, f"{kept} of {total} chains, from {queries} queries asked")]
    reason, most = max(funnel[:-1], key=lambda row: row[1])
    if most:
        text = (
            "Most were dropped for one reason" if 2 * most > total - kept else "The most frequent reason to drop one"
        )
        claims.append(Claim(text, None, f"'{reason}' took {most} of {total - kept}"))
    return Conclusion(claims)


def after_sft(base: Figures, grpo: Figures, sft: Figures) -> Conclusion:
    """Stage 2, second half: has a fresh base learnt the form, and how does it stand to the harvester?"""
    rate = _value(sft["greedy"], "anchor_rate")
    claims = [
        Claim(
            "A fresh base has learnt anchors from traces alone",
            rate >= ENOUGH_ANCHORS,
            _change("anchor_rate", "greedy", base, sft),
        ),
        _better("It answers better than the base", "miou", base, sft),
        _better("It answers better than the model that wrote the traces, greedily", "miou", grpo, sft),
    ]
    if "sampled" in sft and "sampled" in grpo:
        claims.append(_better("And sampled", "miou", grpo, sft, "sampled"))
    return Conclusion(claims)


def after_final(base: Figures, sft: Figures, final: Figures) -> Conclusion:
    """Stage 3: are the chains what the method promises?"""
    now = final["greedy"]
    first, last, answer = (_value(now, key) for key in ("iou_first", "iou_last", "iou_answer"))
    gain = _value(now, "r1@0.7") - _value(base["greedy"], "r1@0.7")
    rate, strict = _value(now, "anchor_rate"), _value(now, "strict_share")
    return Conclusion(
        [
            Claim("Chains have anchors", rate >= ENOUGH_ANCHORS, f"{rate:.1%} of greedy chains"),
            Claim(
                "They narrow", strict >= ENOUGH_STRICT,
                f"{strict:.1%} gain at least {LEAST_GAIN:g} IoU from anchor to anchor",
            ),
            Claim(
                "Each step is better than the one before on average",
                first < last < answer,
                "no chain has an anchor" if math.isnan(first) else
                f"mean IoU {first:.3f} at the first anchor, {last:.3f} at the last, {answer:.3f} in the answer",
            ),
            Claim(
                f"R1@0.7 has gained {ENOUGH_GAIN:.2f} since the base", gain >= ENOUGH_GAIN,
                _change("r1@0.7", "greedy", base, final),
            ),
            _better("Stage 3 adds to SFT", "miou", sft, final),
        ]
    )  # fmt: skip


def after_all(models: Mapping[str, Figures], constant: float, blind: Mapping[str, float]) -> Conclusion:
    """The whole run: the method's promises, and whether the final model looks at the video.

    `constant` is the mIoU of the best constant answer; `blind` holds the final model's mIoU on frames that are not the
    query's, by kind.
    """
    claims = list(after_final(models["base"], models["sft"], models["grpo_final"]).claims)
    seeing = _value(models["grpo_final"]["greedy"], "miou")
    for kind, miou in blind.items():
        # Half the way between the constant answer and what it reaches with the right frames, or below. A model that does
        # not even reach the constant answer has shown nothing.
        looks = seeing > constant and miou <= constant + 0.5 * (seeing - constant)
        claims.append(
            Claim(
                f"It needs the query's own frames ({kind} instead)",
                looks,
                f"mIoU {seeing:.3f} with them, {miou:.3f} with these; the best constant answer has {constant:.3f}",
            )
        )
    return Conclusion(claims)


def _better(text: str, key: str, before: Figures, after: Figures, decoding: str = "greedy") -> Claim:
    holds = _value(after[decoding], key) > _value(before[decoding], key)
    return Claim(text, holds, _change(key, decoding, before, after))


def _change(key: str, decoding: str, before: Figures, after: Figures) -> str:
    name = {"miou": "mIoU", "r1@0.7": "R1@0.7", "anchor_rate": "anchor rate"}[key]
    return f"{decoding} {name} {_value(before[decoding], key):.3f} to {_value(after[decoding], key):.3f}"


def _value(figures: Mapping[str, float | None], key: str) -> float:
    """A figure, NaN where there was nothing to take it of: every comparison with it is then false."""
    value = figures.get(key)
    return float("nan") if value is None else float(value)
