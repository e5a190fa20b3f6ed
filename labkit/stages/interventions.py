"""Interventions: what a model answers once its anchors are forbidden, forced, edited, or no longer fit what it sees.

All begin with the chains that a model wrote by itself, greedily, one a moment. Each is asked again in variants, of which a name says
what was done, such as `last shift +1`. A text that a model is made to go on with is tokenized anew; so is the unedited one that
an edit is held against (`last again`), and nothing but the edit differs between the two. Two swaps are held against each other: behind
another query's anchor an answer may be another whatever the anchor says, and only where it differs between two of them does it follow.
What cannot be done to a chain is left out of that variant, and the reason is counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.edits import closed_thought, decimals, edited_anchor, forced_anchor, shifted, swap_partners, widened
from labkit.chain.spans import Span, clip_span
from labkit.data.moments import Moment
from labkit.data.video.frames import sample_times
from labkit.policy.inputs import FrameSampling, Prompt
from labkit.policy.model import Policy
from labkit.policy.variants import FrameEdit, Variant, VariantPrompts, frames_within
from labkit.stages.evaluate import answer, read_evaluation_rollouts
from labkit.stages.rollouts import Rollout

PLAN_FORMAT = 2
"""Raise it when a variant of the same name, text and edit would be asked otherwise."""
ANCHOR_BEGINS = "<ti"
"""The shortest beginning of `<timestamp>` that no other tag of a chain has: without it no anchor can be written, nor half of one."""
SHIFTS = (-2.0, -1.0, 1.0, 2.0)
"""Seconds by which an anchor is shifted, where nobody says otherwise."""
MOST_CUTS = 6
"""Anchors of a chain behind which the thought is closed at most."""
PLACES = ("first", "last")
"""Which anchor is edited: where a chain has only one, it is the last."""
FRAMES = ("hide inside", "hide elsewhere", "hide outside", "shuffle inside", "shuffle outside")
"""What is done to the frames of the last anchor. `elsewhere`: as many as the anchor's, as far from them as the clip allows."""
ASKED = ("answer", "anew")
"""What is asked on edited frames: the answer behind the model's own anchors, or a whole chain."""
UNTAGGED = "without the tag"
_SEVERAL = "an anchor of several spans"
_PAIR = 2
"""Frames in one temporal patch at most: a stretch that is shifted by pairs touches as many patches as before."""


@dataclass
class Plan:
    """Every variant of a set of chains, by the store that its answers go to."""

    note: dict[str, Any] = field(default_factory=dict)
    """What decides the variants, as plain data: that of a folder of answers must be the same."""
    texts: dict[str, Variant] = field(default_factory=dict)
    """Begun otherwise. Names are `qid/variant`; those of one question share its prefill."""
    frames: dict[str, Variant] = field(default_factory=dict)
    """Shown other frames."""
    spans: dict[str, Span] = field(default_factory=dict)
    """By name, the span of the anchor that a text ends in."""
    cut_short: Counter[str] = field(default_factory=Counter)
    """By variant, how many anchors were shifted or widened less than asked, to the clip's border."""
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """By variant, why it was not asked of how many chains."""

    def leave_out(self, variant: str, why: str) -> None:
        """Count a chain of which a variant cannot be asked."""
        self.left_out.setdefault(variant, Counter())[why] += 1


def plan(
    own: Sequence[Rollout], moments: Sequence[Moment], sampling: FrameSampling, shifts: Sequence[float] = SHIFTS
) -> Plan:
    """All variants of chains, one a moment, whose frames are sampled so; `shifts` are seconds, of which six digits count.

    By the largest of them an anchor is widened.
    """
    shifts = sorted({float(f"{by:g}") for by in shifts})
    chains = {each.qid: parse(each.text, finished=each.finished) for each in own}
    made = Plan()
    for moment in moments:
        qid, chain = moment.qid, chains[moment.qid]
        made.texts[f"{qid}/closed"] = Variant(qid, closed_thought(chain.text))
        made.texts[f"{qid}/forced"] = Variant(qid, forced_anchor(chain.text))
        for number in range(1, min(len(chain.anchors), MOST_CUTS) + 1):
            made.texts[f"{qid}/cut {number}"] = Variant(qid, closed_thought(chain.text, number))
        _plan_frames(made, moment, chain, sampling)
    for place in PLACES:
        _plan_edits(made, moments, chains, place, shifts)
    texts, variants = ([each.text for each in own], (sorted(made.texts.items()), sorted(made.frames.items())))
    made.note = {
        "format": PLAN_FORMAT, "shifts": shifts, "queries": len(moments), "chains": _digest(texts), "variants": _digest(variants),
    }  # fmt: skip
    return made


def _has_sets(chain: AnchorChain) -> bool:
    return any(len(span.parts) > 1 for span in chain.spans)


def _plan_edits(
    made: Plan, moments: Sequence[Moment], chains: Mapping[str, AnchorChain], place: str, shifts: Sequence[float]
) -> None:
    """Variants in which one anchor is another, and one in which it is the same."""
    names = [*(f"shift {by:+g}" for by in shifts), "widen", "swap"]
    edited: dict[str, tuple[Moment, AnchorChain, int]] = {}
    for moment in moments:
        chain = chains[moment.qid]
        number = 0 if place == "first" else len(chain.anchors) - 1
        if len(chain.anchors) >= 1 + (place == "first"):
            made.texts[f"{moment.qid}/{place} again"] = Variant(moment.qid, edited_anchor(chain, number))
            made.spans[f"{moment.qid}/{place} again"] = chain.spans[number]
        if why := _cannot_edit(chain, place, number, moment.duration):
            for name in names:
                made.leave_out(f"{place} {name}", why)
        else:
            edited[moment.qid] = moment, chain, number
    widen = max(map(abs, shifts), default=0.0)
    partners = swap_partners({
        qid: (chain.spans[number], moment.duration, moment.source_video) for qid, (moment, chain, number) in edited.items()
    })  # fmt: skip
    for qid, (moment, chain, number) in edited.items():
        anchor, duration = chain.anchors[number], moment.duration
        span, digits = anchor.span, decimals(chain.text[anchor.begin : anchor.end])
        spans: dict[str, Span | None] = dict(zip(("swap", "other swap"), partners.get(qid, (None, None)), strict=True))
        for by in shifts:
            to = spans[f"shift {by:+g}"] = shifted(span, by, duration, max(digits, decimals(f"{abs(by):g}")))
            made.cut_short[f"{place} shift {by:+g}"] += to is not None and abs(to.start - span.start - by) > 1e-6
        to = spans["widen"] = widened(span, widen, duration, max(digits, decimals(f"{widen:g}")))
        made.cut_short[f"{place} widen"] += to is not None and abs(to.length - span.length - 2 * widen) > 1e-6
        for name in names:
            if spans[name] is None:
                why = "no two other queries to swap with" if name == "swap" else "no room in the clip"
                made.leave_out(f"{place} {name}", why)
        for name, to in spans.items():
            if to is not None:
                made.texts[f"{qid}/{place} {name}"] = Variant(qid, edited_anchor(chain, number, to))
                made.spans[f"{qid}/{place} {name}"] = to


def _cannot_edit(chain: AnchorChain, place: str, number: int, duration: float) -> str:
    """Why an anchor cannot be edited, "" where it can."""
    if not chain.anchors:
        return "no anchor"
    if place == "first" and len(chain.anchors) < 2:
        return "one anchor, which is the last"
    if _has_sets(chain):
        return _SEVERAL
    return "anchor leaves the clip" if chain.spans[number].end > duration + 1e-6 else ""


def _plan_frames(made: Plan, moment: Moment, chain: AnchorChain, sampling: FrameSampling) -> None:
    """Variants in which the last anchor's frames are others: `answer` goes on behind the anchor, `anew` asks for a whole chain."""
    times = np.unique(sample_times(moment.duration, sampling.fps, sampling.max_frames, _PAIR))
    span = clip_span(chain.spans[-1], moment.duration) if chain.anchors else None
    begun = edited_anchor(chain, len(chain.anchors) - 1) if chain.anchors else ""
    for what in FRAMES:
        kind, where = what.split()
        target, why = span, "anchor outside of the clip" if chain.anchors else "no anchor"
        if _has_sets(chain):
            target, why = None, _SEVERAL
        elif span is not None and where == "elsewhere":
            target, why = stretch_elsewhere(times, span), "no stretch as long beside the anchor"
        elif span is not None:
            many = int((frames_within(times, span) == (where == "inside")).sum())
            if many < 1 + (kind == "shuffle"):
                target, why = None, f"{'one frame' if many else 'no frame'} {where}"
        for asked, text in zip(ASKED, (begun, ""), strict=True):
            if target is None:
                made.leave_out(f"{what}, {asked}", why)
            else:
                edit = FrameEdit("hide" if kind == "hide" else "shuffle", target, outside=where == "outside")
                made.frames[f"{moment.qid}/{what}, {asked}"] = Variant(moment.qid, text, edit)


def stretch_elsewhere(times: NDArray[np.float64], span: Span) -> Span | None:
    """As many frames as a span has, beside it and as far from it as can be; None where they would overlap.

    It is shifted by whole pairs of frames, so that it touches as many temporal patches.

    >>> stretch_elsewhere(np.arange(10.0), Span(1.5, 3.5)), stretch_elsewhere(np.arange(4.0), Span(1.5, 3.5))
    (Span(start=7.0, end=10.0), None)
    """
    inside = np.flatnonzero(frames_within(times, span))
    first, many = int(inside[0]), len(inside)
    begin = max(range(first % _PAIR, len(times) - many + 1, _PAIR), key=lambda at: abs(at - first))
    step = float(times[1] - times[0]) if len(times) > 1 else 0.0
    return Span(float(times[begin]), float(times[begin]) + many * step) if abs(begin - first) >= many else None


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


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

    `asked` are arguments of `answer`; `on_batch` is told how many questions are answered of all.
    """
    before = 0

    def listen(done: int) -> None:
        if on_batch is not None:
            on_batch(before + done)

    for name, variants in (("texts", planned.texts), ("frames", planned.frames)):
        if variants:
            prompts = VariantPrompts(policy, source, variants)
            answer(policy, prompts, _asked(variants, moments), folder=folder / name, on_batch=listen, **asked)
            before += len(variants)
    answer(policy, source, moments, forbid=ANCHOR_BEGINS, folder=folder / "untagged", on_batch=listen, **asked)


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


def _asked(variants: Mapping[str, Variant], moments: Sequence[Moment]) -> list[Moment]:
    """The moments of variants, each under the variant's name."""
    by_qid = {moment.qid: moment for moment in moments}
    return [replace(by_qid[variant.qid], qid=name) for name, variant in variants.items()]
