"""Interventions: what a model answers once its anchors are forbidden, forced, edited, or no longer fit what it sees.

All begin with the chains that a model wrote by itself, greedily, one a moment. Each is asked again in variants, of which a name says
what was done, such as `last shift +1`. A text that a model is made to go on with is tokenized anew; so is the unedited one that
an edit is held against (`last again`), and nothing but the edit differs between the two. What cannot be done to a chain is
left out of that variant, and the reason is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.edits import (
    closed_thought,
    decimals,
    edited_anchor,
    forced_anchor,
    shifted,
    swap_partners,
    widened,
)
from labkit.chain.spans import Span, clip_span
from labkit.data.moments import Moment
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.variants import FrameEdit, Variant, VariantPrompts
from labkit.stages.evaluate import evaluate, read_evaluation_rollouts
from labkit.stages.rollouts import Rollout

ANCHOR_BEGINS = "<ti"
"""The shortest beginning of `<timestamp>` that no other tag of a chain has: without it no anchor can be written, nor half of one."""
SHIFTS = (-2.0, -1.0, 1.0, 2.0)
"""Seconds by which an anchor is shifted, where nobody says otherwise."""
MOST_CUTS = 6
"""Anchors of a chain behind which the thought is closed at most."""
PLACES = ("first", "last")
"""Which anchor is edited: where a chain has only one, it is the last."""
FRAMES = ("hide inside", "hide elsewhere", "hide outside", "shuffle inside", "shuffle outside")
"""What is done to the frames of the last anchor. `elsewhere`: as long a stretch as the anchor, as far from it as the clip allows."""
UNTAGGED = "without the tag"
_SEVERAL = "an anchor of several spans"
PLAN = "plan.json"
"""In the folder of the answers: which variants have all been asked."""


@dataclass
class Plan:
    """Every variant of a set of chains, by the store that its answers go to."""

    texts: dict[str, Variant] = field(default_factory=dict)
    """Begun otherwise. Names are `qid/variant`; those of one question share its prefill."""
    frames: dict[str, Variant] = field(default_factory=dict)
    """Shown other frames."""
    spans: dict[str, Span] = field(default_factory=dict)
    """By name, the span that an edited anchor has now."""
    cut_short: Counter[str] = field(default_factory=Counter)
    """By variant, how many anchors were shifted less far than asked, to the clip's end."""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """By variant, why it was not asked of how many chains."""

    def leave_out(self, variant: str, why: str) -> None:
        """Count a chain of which a variant cannot be asked."""
        self.left_out.setdefault(variant, Counter())[why] += 1

    def digest(self) -> str:
        """Sixteen letters that are others once any variant is."""
        return hashlib.sha256(repr((sorted(self.texts.items()), sorted(self.frames.items()))).encode()).hexdigest()[
            :16
        ]


def plan(own: Sequence[Rollout], moments: Sequence[Moment], shifts: Sequence[float] = SHIFTS) -> Plan:
    """All variants of chains, each beside its moment; `shifts` are seconds, and the largest is what an anchor is widened by."""
    made, widen = Plan(), max(map(abs, shifts), default=0.0)
    chains = {each.qid: parse(each.text, finished=each.finished) for each in own}
    anchored = [moment for moment in moments if chains[moment.qid].anchors and not _has_sets(chains[moment.qid])]
    partners = {
        place: swap_partners({
            moment.qid: (chains[moment.qid].spans[_number(chains[moment.qid], place)], moment.duration, moment.source_video)
            for moment in anchored if place == "last" or len(chains[moment.qid].anchors) > 1
        })
        for place in PLACES
    }  # fmt: skip
    for moment in moments:
        qid, chain = moment.qid, chains[moment.qid]
        made.texts[f"{qid}/closed"] = Variant(qid, closed_thought(chain.text))
        made.texts[f"{qid}/forced"] = Variant(qid, forced_anchor(chain.text))
        for number in range(1, min(len(chain.anchors), MOST_CUTS) + 1):
            made.texts[f"{qid}/cut {number}"] = Variant(qid, closed_thought(chain.text, number))
        for place in PLACES:
            _plan_edits(made, moment, chain, place, shifts, widen, partners[place].get(qid))
        _plan_frames(made, moment, chain)
    return made


def _has_sets(chain: AnchorChain) -> bool:
    return any(len(span.parts) > 1 for span in chain.spans)


def _plan_edits(
    made: Plan, moment: Moment, chain: AnchorChain, place: str, shifts: Sequence[float], widen: float, partner: Span | None
) -> None:  # fmt: skip
    """Variants in which one anchor is another, and one in which it is the same."""
    edits: dict[str, Callable[[Span, int], Span | None]] = {
        f"{place} shift {by:+g}": lambda span, digits, by=by: shifted(span, by, moment.duration, digits)  # type: ignore[misc]
        for by in shifts
    }
    edits[f"{place} widen"] = lambda span, digits: widened(span, widen, moment.duration, digits)
    edits[f"{place} swap"] = lambda span, digits: partner
    if len(chain.anchors) < 1 + (place == "first"):
        for variant in (f"{place} again", *edits):
            made.leave_out(variant, "one anchor, which is the last" if chain.anchors else "no anchor")
        return
    if _has_sets(chain):
        for variant in (f"{place} again", *edits):
            made.leave_out(variant, _SEVERAL)
        return
    number = _number(chain, place)
    anchor = chain.anchors[number]
    made.texts[f"{moment.qid}/{place} again"] = Variant(moment.qid, edited_anchor(chain, number))
    for variant, edit in edits.items():
        by = float(variant.split()[-1]) if " shift " in variant else 0.0
        own_digits = decimals(chain.text[anchor.begin : anchor.end])
        span = edit(anchor.span, max(own_digits, decimals(f"{abs(by):g}")))
        if span is None:
            made.leave_out(variant, "no other query to swap with" if "swap" in variant else "no room in the clip")
            continue
        made.cut_short[variant] += bool(by) and abs(span.start - anchor.span.start - by) > 1e-6
        name = f"{moment.qid}/{variant}"
        made.spans[name] = span
        made.texts[name] = Variant(moment.qid, edited_anchor(chain, number, span))


def _plan_frames(made: Plan, moment: Moment, chain: AnchorChain) -> None:
    """Variants in which the last anchor's frames are others: `answer` goes on behind the anchor, `anew` asks for a whole chain."""
    span = clip_span(chain.spans[-1], moment.duration) if chain.anchors else None
    if span is None or _has_sets(chain):
        why = _SEVERAL if span else "anchor outside of the clip" if chain.anchors else "no anchor"
        for what in FRAMES:
            for asked in ("answer", "anew"):
                made.leave_out(f"{what}, {asked}", why)
        return
    begun = edited_anchor(chain, len(chain.anchors) - 1)
    for what in FRAMES:
        kind, where = what.split()
        target: Span | None = span
        if where == "elsewhere":
            before, behind = Span(0.0, span.length), Span(moment.duration - span.length, moment.duration)
            target = max((before, behind), key=lambda other: abs(other.middle - span.middle))
            target = target if target.end <= span.start or target.start >= span.end else None
        for asked, text in (("answer", begun), ("anew", "")):
            if target is None:
                made.leave_out(f"{what}, {asked}", "no stretch as long beside the anchor")
                continue
            edit = FrameEdit("hide" if kind == "hide" else "shuffle", target, outside=where == "outside")
            made.frames[f"{moment.qid}/{what}, {asked}"] = Variant(moment.qid, text, edit)


def intervene(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    planned: Plan,
    folder: Path,
    *,
    on_batch: Callable[[int], None] | None = None,
    **asked: Any,
) -> None:
    """Ask all variants, and every moment without the tag, into three rollout stores in `folder`; what is there is not asked again.

    `asked` are arguments of `evaluate`; `on_batch` is told how many questions are answered of all.
    """
    before = 0

    def listen(done: int) -> None:
        if on_batch is not None:
            on_batch(before + done)

    for name, variants in (("texts", planned.texts), ("frames", planned.frames)):
        if variants:
            prompts = VariantPrompts(policy, source, variants)
            evaluate(policy, prompts, _asked(variants, moments), folder=folder / name, on_batch=listen, **asked)
            before += len(variants)
    evaluate(policy, source, moments, forbid=ANCHOR_BEGINS, folder=folder / "untagged", on_batch=listen, **asked)


def read_interventions(folder: Path, moments: Sequence[Moment], planned: Plan) -> dict[str, dict[str, Rollout]]:
    """What `intervene` has asked, by variant and qid. Raises LabError where an answer is missing."""
    found: dict[str, dict[str, Rollout]] = {}
    for name, variants in (("texts", planned.texts), ("frames", planned.frames)):
        if not variants:
            continue
        for rollout in read_evaluation_rollouts(folder / name, _asked(variants, moments)):
            qid = variants[rollout.qid].qid
            found.setdefault(rollout.qid[len(qid) + 1 :], {})[qid] = replace(rollout, qid=qid)
    untagged = read_evaluation_rollouts(folder / "untagged", moments)
    return found | {UNTAGGED: {rollout.qid: rollout for rollout in untagged}}


def without_anchors(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], own: Sequence[Rollout], **asked: Any
) -> list[Rollout]:
    """Greedy answers without anchors: each thought is closed where the first would begin (`closed_thought`), the answer forced.

    `own` are the model's chains, one a moment; `asked` are arguments of `evaluate`. One rollout a moment, in the moments' order.
    """
    return _each(policy, source, moments, own, closed_thought, asked)


def without_tag(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], **asked: Any
) -> list[Rollout]:
    """Greedy chains in which `<timestamp>` cannot be written: thought and answer are otherwise the model's own.

    It may write times without the tag all the same.
    """
    return evaluate(policy, source, moments, forbid=ANCHOR_BEGINS, **asked).rollouts


def with_anchors(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], own: Sequence[Rollout], **asked: Any
) -> list[Rollout]:
    """Greedy chains with an anchor at least: `<timestamp>` stands behind the thought's own words (`forced_anchor`).

    Otherwise as `without_anchors`.
    """
    return _each(policy, source, moments, own, forced_anchor, asked)


def _each(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    own: Sequence[Rollout],
    begun: Callable[[str], str],
    asked: Mapping[str, Any],
) -> list[Rollout]:
    texts = {rollout.qid: rollout.text for rollout in own}
    variants = {moment.qid: Variant(moment.qid, begun(texts[moment.qid])) for moment in moments}
    return evaluate(policy, VariantPrompts(policy, source, variants), moments, **asked).rollouts


def _asked(variants: Mapping[str, Variant], moments: Sequence[Moment]) -> list[Moment]:
    """The moments of variants, each under the variant's name."""
    by_qid = {moment.qid: moment for moment in moments}
    return [replace(by_qid[variant.qid], qid=name) for name, variant in variants.items()]


def _number(chain: AnchorChain, place: str) -> int:
    """Which anchor is meant, counted from 0."""
    return 0 if place == "first" else len(chain.anchors) - 1
