"""NotebookConclusions: what a reader should take home from a stage, computed from its figures and never written beforehand.

What a claim says follows from the numbers that stand behind it: a change counts where its interval, by whole videos over
the same queries, leaves out 0, and a threshold stands beside what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from labkit.chain.steps import LEAST_GAIN
from labkit.data.moments import Moment
from labkit.embedded.true_words import KINDS, check_words
from labkit.runs.interventions import EDITS, Follow, Interventions
from labkit.runs.results import FrameAblation, ModelEvaluation
from labkit.scoring.bootstrap import Difference, Interval, mean_interval, paired_differences
from labkit.stages.interventions import PLACES, UNTAGGED
from labkit.stages.rollouts import Rollout
from labkit.views.report.sanitize import escape_markdown

if TYPE_CHECKING:
    from labkit.scoring.scores import Paired
    from labkit.stages.grpo_steps import GrpoResult

ENOUGH_ANCHORS = 0.95
"""Share of chains with anchors from which on they are the rule."""
ENOUGH_STRICT = 0.8
"""Share of chains that narrow from which on narrowing is the rule."""
ENOUGH_GAIN = 0.25
"""What R1@0.7 is to gain from the base to the final model, on the embedded lab."""
ENOUGH_TRUE = 0.9
"""Share of true words of a kind from which on a thought's words may be believed."""

HARDLY = 0.1
"""Seconds that an answer moves for each second of an anchor, up to which it hardly follows."""
STAYED = 0.05
"""Words of a kind stayed as true where the interval of their change lies within so much of none."""


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
            f"- {marks[claim.holds]}{escape_markdown(claim.text)}: {escape_markdown(claim.evidence)}"
            for claim in self.claims
        )
        return "\n".join(lines)

    def __str__(self) -> str:
        marks = {True: "yes", False: "NO ", None: "   "}
        return "\n".join(f"{marks[claim.holds]} {claim.text}: {claim.evidence}" for claim in self.claims)

    def __repr__(self) -> str:
        return str(self)


Moments = Mapping[str, Moment]
"""The test split, by qid."""


def after_grpo(start: ModelEvaluation, grpo: ModelEvaluation, training: GrpoResult, moments: Moments) -> Conclusion:
    """Stage 1: have anchors become the rule, and have the answers got better since its start?"""
    decoding = _shared_decoding(start, grpo)
    return Conclusion(
        [
            _anchored("Anchors have become the rule", start, grpo, decoding),
            _better("Answers have got better", "miou", start, grpo, moments),
            _better("More answers are close", "r1@0.7", start, grpo, moments),
            *_words_kept("stage 1", start, grpo, moments),
            Claim("Stage 1 ended", None, f"after {training.steps} steps; {training.end_reason}"),
        ]
    )


def after_harvest(filter_counts: Sequence[tuple[str, int]], queries: int) -> Conclusion:
    """Stage 2, first half: how much of the harvest is worth learning from, and what most of the rest lacked."""
    total, kept = sum(count for _, count in filter_counts), filter_counts[-1][1]
    share = f" ({100 * kept / total:.1f} %)" if total else ""
    claims = [
        Claim("Traces to learn from", kept > 0, f"{kept:,} of {total:,} chains{share}, from {queries:,} queries asked")
    ]
    reason, most = max(filter_counts[:-1], key=lambda row: row[1])
    if most:
        text = (
            "Most were dropped for one reason" if 2 * most > total - kept else "The most frequent reason to drop one"
        )
        claims.append(Claim(text, None, f"'{reason}' took {most:,} of {total - kept:,}"))
    return Conclusion(claims)


def after_sft(
    base: ModelEvaluation, grpo: ModelEvaluation | None, sft: ModelEvaluation, moments: Moments
) -> Conclusion:
    """Stage 2, second half: has a fresh base learnt the form, and how does it stand to the harvester, where there was one?"""
    claims = [
        _anchored("A fresh base has learnt anchors from traces alone", base, sft, "greedy"),
        _better("It answers better than the base", "miou", base, sft, moments),
    ]
    if grpo is None:
        return Conclusion(claims)
    claims.append(
        _better("It answers better than the model that wrote the traces, greedily", "miou", grpo, sft, moments)
    )
    if "sampled" in sft.figures and "sampled" in grpo.figures:
        claims.append(_better("And sampled", "miou", grpo, sft, moments, "sampled"))
    return Conclusion(claims)


def after_final(
    base: ModelEvaluation | None, sft: ModelEvaluation, final: ModelEvaluation, moments: Moments
) -> Conclusion:
    """Stage 3: are the chains what the method promises, and are their words true where that can be checked?

    Without a `base`, as where the run began with an `sft_model`, they are held against that.
    """
    first_model, since = (sft, "the model that it began from") if base is None else (base, "the base")
    now = final.figures["greedy"]
    first, last, answer = (_value(now, key) for key in ("iou_first", "iou_last", "iou_answer"))
    strict = _value(now, "strict_share")
    return Conclusion(
        [
            _anchored("Chains have anchors", first_model, final, "greedy"),
            Claim(
                "They narrow", strict >= ENOUGH_STRICT,
                f"{_of(now, 'strict_share')} greedy chains gain at least {LEAST_GAIN:g} IoU from anchor to anchor; "
                f"{100 * ENOUGH_STRICT:.0f} % is the target",
            ),
            Claim(
                "Each step is better than the one before on average",
                first < last < answer,
                "no chain has an anchor" if math.isnan(first) else
                f"mean IoU {first:.3f} at the first anchor, {last:.3f} at the last, {answer:.3f} in the answer, over the "
                f"{_count(now, 'anchor_rate'):,} chains with anchors",
            ),
            _better(
                f"R1@0.7 has gained at least {100 * ENOUGH_GAIN:.0f} points since {since}", "r1@0.7", first_model, final, moments,
                least=ENOUGH_GAIN,
            ),
            _better(f"Stage 3 adds to {'what it began from' if base is None else 'SFT'}", "miou", sft, final, moments),
            *_words_kept("stage 3", sft, final, moments),
            *_words(base, final, moments),
        ]
    )  # fmt: skip


def after_all(models: Mapping[str, ModelEvaluation], frames: FrameAblation, moments: Moments) -> Conclusion:
    """The whole run: the method's promises, and whether the final model looks at the video."""
    claims = list(after_final(models.get("base"), models["sft"], models["grpo_final"], moments).claims)
    seeing, constant = frames.seeing, frames.constant
    # Half the way between the constant answer and what it reaches with the right frames, or below. A model that does
    # not even reach the constant answer has shown nothing.
    most = constant + 0.5 * (seeing - constant)
    for kind, miou in frames.blind.items():
        asked = (
            f"at most {100 * most:.1f} was asked, half the way from the best constant answer ({100 * constant:.1f})"
            if seeing > constant
            else f"the best constant answer has {100 * constant:.1f}, so nothing is shown"
        )
        claims.append(
            Claim(
                f"It needs the query's own frames ({kind} instead)",
                seeing > constant and miou <= most,
                f"mIoU {100 * seeing:.1f} % with them, {100 * miou:.1f} % with these, over {frames.queries:,} queries; {asked}",
            )
        )
    return Conclusion(claims)


def about_words(models: Mapping[str, ModelEvaluation], moments: Moments) -> Conclusion:
    """Whether a thought's words are true, where that can be checked, and whether each stage has left them so."""
    stages = {
        "stage 1, since the base": ("base", "grpo"),
        "SFT, since the base": ("base", "sft"),
        "stage 3": ("sft", "grpo_final"),
    }
    claims = []
    for stage, (before, after) in stages.items():
        if before in models and after in models:
            claims += _words_kept(stage, models[before], models[after], moments)
    claims += _words(models.get("base"), models["grpo_final"], moments)
    return Conclusion(
        claims or [Claim("Not measured", None, "only clips of the embedded world say what is true of them")]
    )


def _words_kept(stage: str, before: ModelEvaluation, after: ModelEvaluation, moments: Moments) -> list[Claim]:
    """Whether words stayed as true through a stage, by kind over the queries whose thoughts say words of it before and after."""
    decoding = _shared_decoding(before, after)
    first, second = (_true_by_query(_rollouts(model, decoding), moments) for model in (before, after))
    parts, fell, open_ = [], False, False
    for kind in first if second else ():
        if not (shared := [qid for qid in first[kind] if qid in second[kind]]):
            continue
        ours, theirs = ([[each[kind][qid]] for qid in shared] for each in (second, first))
        gap = paired_differences(ours, theirs, [moments[qid].source_video for qid in shared])[0]
        low, high = gap.interval
        stayed = -STAYED <= low and high <= STAYED
        word = "fell" if high < 0 else "rose" if low > 0 else "stayed" if stayed else "may have moved"
        fell, open_ = fell or high < 0, open_ or word == "may have moved"
        shares = " to ".join(f"{100 * sum(row[0] for row in each) / len(each):.1f}" for each in (theirs, ours))
        interval = "" if math.isnan(low) else f", {_interval(gap.interval, '+.1f')}"
        parts.append(f"{KINDS[kind]} {word}, {shares} % ({100 * gap.value:+.1f}{interval}; {len(shared):,} queries)")
    if not parts:
        return []
    holds = False if fell else None if open_ else True
    text = (
        f"Words stayed as true in {stage}" if holds is not None else f"Whether words stayed as true in {stage} is open"
    )
    return [Claim(f"{text}, {decoding}", holds, "; ".join(parts))]


def _true_by_query(rollouts: Sequence[Rollout], moments: Moments) -> dict[str, dict[str, float]]:
    """By kind and qid, the share of true words of the thoughts that say any."""
    asked = [moments[row.qid] for row in rollouts if row.qid in moments]
    found: dict[str, dict[str, float]] = {}
    for kind, words in check_words({row.qid: row.text for row in rollouts}, asked).items():
        said: dict[str, list[bool]] = {}
        for word in words:
            said.setdefault(word.qid, []).append(word.true)
        found[kind] = {qid: sum(each) / len(each) for qid, each in said.items()}
    return found


def after_interventions(found: Interventions) -> Conclusion:
    """Do anchors cause the answer? What each intervention says, in words that its interval allows."""
    claims = [
        _changed(f"{how}, its answers are {{}}", _turned(found.against_own(condition)), hoped="worse")
        for condition, how in (
            ("closed", "Without anchors, its thought closed where the first would begin"),
            (UNTAGGED, "With the tag alone made impossible"),
        )
    ]
    if found.anchored < len(found.moments):
        claims.append(_changed("With an anchor forced, its answers are {}", _turned(found.against_own("forced"))))
    if not found.anchored:
        return Conclusion([*claims, Claim("Nothing was edited", None, "none of its own chains has an anchor")])
    claims += [_follows(place, edit, found.follows[f"{place} {edit}"]) for place in reversed(PLACES) for edit in EDITS]
    claims += [
        _changed(f"Behind anchor {step.anchors} answers are {{}} than before it", step.gain)
        for step in found.steps
        if step.gain
    ]
    for asked, gap in found.elsewhere.items():
        what = "answers behind the own anchors" if asked == "answer" else "chains asked anew"
        claims.append(
            _changed(f"Without the anchor's frames {what} are {{}} than without as many elsewhere", gap, hoped="worse")
        )
    if null := found.null.get("strict_share"):
        own = null.observed > null.high
        claims.append(
            Claim(
                "Chains narrow towards their own query, and not towards any"
                if own
                else "Chains narrow no more than towards any query",
                own,
                f"{100 * null.observed:.1f} % narrow; dealt to other queries {100 * null.mean:.1f} % would (95 % of shuffles: "
                f"{100 * null.low:.1f} to {100 * null.high:.1f})",
            )
        )
    return Conclusion(claims)


def _turned(paired: Paired) -> Difference:
    """MIoU of the second less the first."""
    value, (low, high), p = paired.differences["miou"]
    return Difference(-value, Interval(-high, -low), p)


def _changed(text: str, gap: Difference, hoped: Literal["better", "worse"] = "better") -> Claim:
    """A claim on a change of mIoU, whose word says the interval: nothing is shown where it holds 0, or where there is none."""
    low, high = gap.interval
    word = "better" if low > 0 else "worse" if high < 0 else "the same" if low == high else ""
    text = text.replace(" than ", " as ") if word == "the same" else text
    words = word or "neither better nor worse, as far as can be told,"
    return Claim(text.format(words).strip(","), word == hoped if word else None, _points(gap.value, low, high))


def _follows(place: str, edit: str, follow: Follow) -> Claim:
    """Whether the answer goes where an edited anchor goes, and how far."""
    value, interval, n, _ = follow.slope
    words, holds = follow_words(interval)
    evidence = {
        "shift": f"it moves {value:.2f} s for each second of the anchor",
        "swap": f"it moves {value:.2f} s for each second between two other queries' anchors",
        "widen": f"its length changes by {value:.2f} s for each second of the anchor's",
    }[edit]
    known = f"95 % interval {ends}" if (ends := interval.text(".2f")) else "too few videos for an interval"
    return Claim(
        f"When the {place} anchor is {EDITS[edit]}, the answer {words}",
        holds,
        f"{evidence} ({known}, {n:,} edits)" if n else "there is no edit of which both answers can be read",
    )


def follow_words(interval: Interval) -> tuple[str, bool | None]:
    """What may be said of a slope by its interval, and whether that is following.

    >>> [follow_words(Interval(*ends))[0] for ends in [(0.15, 0.26), (-0.02, 0.04), (-0.2, 0.9)]]
    ['follows less than half the way', 'does not follow', 'is not shown to follow']
    """
    low, high = interval
    if math.isnan(low):
        return "is not shown to follow", None
    if high < 0:
        return "moves the other way", False
    if low <= 0:
        return ("does not follow", False) if high <= HARDLY else ("is not shown to follow", None)
    if high <= HARDLY:
        return "hardly follows", False
    if low > 1:
        return "goes further than the anchor", True
    if low > 0.5:
        return "follows all the way, as far as can be told" if high >= 1 else "follows more than half the way", True
    return "follows less than half the way" if high < 0.5 else "follows part of the way", True


def _points(value: float, low: float, high: float) -> str:
    """A change of mIoU in points with its interval, and whether it may be chance."""
    value, low, high = (0.0 if abs(each) < 5e-4 else each for each in (value, low, high))  # no -0.0
    if math.isnan(low):
        return f"mIoU {100 * value:+.1f}, of too few videos for an interval"
    interval = Interval(low, high)
    return f"mIoU {100 * value:+.1f} ({_interval(interval, '+.1f')}){_chance(interval) if low < high else ''}"


def _words(base: ModelEvaluation | None, final: ModelEvaluation, moments: Moments) -> list[Claim]:
    """What thoughts say, held against the simulator; nothing where there is none."""
    now, before = final.figures["greedy"], base.figures["greedy"] if base else {}
    if "distinct_thoughts" not in now or not moments:
        return []
    claims = []
    for kind, words in check_words({row.qid: row.text for row in final.greedy}, list(moments.values())).items():
        if not words:
            continue
        interval = mean_interval([word.true for word in words], [word.video for word in words])
        true = sum(word.true for word in words)
        evidence = f"{true:,} of {len(words):,} are, {100 * true / len(words):.1f} %"
        evidence += "" if math.isnan(interval.low) else f" ({_interval(interval)})"
        evidence += f", {100 * _value(now, f'chance_{kind}'):.1f} by chance; {100 * ENOUGH_TRUE:.0f} % is the target"
        if before.get(f"said_{kind}"):
            evidence += f"; the base: {100 * _value(before, f'true_{kind}'):.1f} % of {before[f'said_{kind}']:,.0f}"
        claims.append(
            Claim(f"Words for the {KINDS[kind]} in its thoughts are true", true >= ENOUGH_TRUE * len(words), evidence)
        )
    distinct = f"{now['distinct_thoughts']:,.0f} in {_value(now, 'n'):,.0f} chains"
    if "distinct_thoughts" in before:
        distinct += f"; the base: {before['distinct_thoughts']:,.0f}"
    return [*claims, Claim("Distinct thoughts, once object words and numbers are blanked", None, distinct)]


def _shared_decoding(*models: ModelEvaluation) -> str:
    """Sampled chains, which say more of a habit, where all models have some."""
    return "sampled" if all(model.sampled for model in models) else "greedy"


def _rollouts(model: ModelEvaluation, decoding: str) -> Sequence[Rollout]:
    return model.greedy if decoding == "greedy" else model.sampled


def _better(
    text: str,
    key: str,
    before: ModelEvaluation,
    after: ModelEvaluation,
    moments: Moments,
    decoding: str = "greedy",
    least: float = 0.0,
) -> Claim:
    """Whether a figure rose by more than chance explains, or by `least` at least, over the same queries."""
    from labkit.scoring.predictions import as_predictions
    from labkit.scoring.scores import compare, score

    name = {"miou": "mIoU", "r1@0.7": "R1@0.7"}[key]
    asked = [_rollouts(model, decoding) for model in (before, after)]
    if not moments or not all(asked):
        return Claim(text, False, f"there is no {decoding} {name} of both")
    first, second = (score(as_predictions(rollouts, {}), list(moments.values())) for rollouts in asked)
    gap = compare(second, first).differences[key]
    low, high = gap.interval
    queries = f"{len(first.qids):,} queries"
    evidence = f"{decoding} {name} {100 * first.figures[key]:.1f} to {100 * second.figures[key]:.1f} %, {100 * gap.value:+.1f}"
    if math.isnan(low):
        evidence += f" on {queries}, of too few videos for an interval"
    else:
        evidence += f" ({_interval(gap.interval, '+.1f')}, {queries}){_chance(gap.interval)}"
    if least and low < least <= gap.value:
        evidence += ", which may be less"
    return Claim(text, low >= least if least else low > 0, evidence)


def _interval(interval: Interval, form: str = ".1f") -> str:
    """An interval of fractions, in percent."""
    return f"95 % interval {interval.times(100).text(form)}"


def _chance(interval: Interval) -> str:
    return ", which may be chance" if interval.low <= 0 <= interval.high else ""


def _anchored(text: str, before: ModelEvaluation, after: ModelEvaluation, decoding: str) -> Claim:
    now, then = after.figures[decoding], before.figures.get(decoding, {})
    evidence = f"{_of(now, 'anchor_rate')} {decoding} chains have one; {100 * ENOUGH_ANCHORS:.0f} % is the target"
    if "anchor_rate" in then:
        evidence += f"; before: {_of(then, 'anchor_rate')}"
    return Claim(text, _value(now, "anchor_rate") >= ENOUGH_ANCHORS, evidence)


def _of(figures: Mapping[str, float | None], key: str) -> str:
    """A share of all chains, with its count."""
    share = _value(figures, key)
    if math.isnan(share) or math.isnan(_value(figures, "n")):
        return "an unknown share of"
    return f"{_count(figures, key):,} of {_value(figures, 'n'):,.0f} ({100 * share:.1f} %)"


def _count(figures: Mapping[str, float | None], key: str) -> int:
    return round(_value(figures, key) * _value(figures, "n"))


def _value(figures: Mapping[str, float | None], key: str) -> float:
    """A figure, NaN where there was nothing to take it of: every comparison with it is then false."""
    value = figures.get(key)
    return float("nan") if value is None else float(value)
