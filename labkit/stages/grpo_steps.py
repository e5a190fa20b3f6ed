"""A step of GRPO on record: what was sampled, its figures, and whether they say that a stage may stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import chain_figures
from labkit.chain.question_answering import answering_figures
from labkit.chain.rewards import TERMS, Ledger, RewardSpec, score_chain
from labkit.data.moments import Moment
from labkit.stages.rollouts import Rollout

if TYPE_CHECKING:
    from labkit.stages.grpo import GrpoSettings

WINDOW = 5
"""Steps over which the stop conditions are averaged: one lucky step does not end a stage."""


class Sampled(NamedTuple):
    """One chain that was sampled, and what it earned."""

    qid: str
    sample: int
    """Place in the group, from 0."""
    text: str
    tokens: int
    finished: bool
    chain: AnchorChain
    ledger: Ledger


def judge(moment: Moment, sample: int, text: str, tokens: int, finished: bool, spec: RewardSpec) -> Sampled:
    """Parse and score one completion."""
    chain = parse(text, finished=finished, options=len(moment.options))
    ledger = score_chain(chain, moment.windows, moment.duration, spec, moment.choice)
    return Sampled(moment.qid, sample, text, tokens, finished, chain, ledger)


def paid_terms(moments: Iterable[Moment]) -> tuple[str, ...]:
    """The terms that can earn something: all of them where any moment has options, else all but `option`."""
    return TERMS if any(moment.options for moment in moments) else tuple(term for term in TERMS if term != "option")


def step_figures(sampled: Sequence[Sampled], moments: Mapping[str, Moment], group_size: int) -> dict[str, float]:
    """Figures of one step's rollouts: rewards, anchors, IoU by step of the chain, groups in which all earned the same."""
    totals = [each.ledger.total for each in sampled]
    groups = [totals[i : i + group_size] for i in range(0, len(totals), group_size)]
    asked = [moments[each.qid] for each in sampled]
    windows, chains = [moment.windows for moment in asked], [each.chain for each in sampled]
    figures = chain_figures(chains, windows, [moment.duration for moment in asked])
    figures |= answering_figures(chains, windows, [moment.choice for moment in asked])
    return {
        "total": sum(totals) / len(totals),
        **{f"reward_{t}": sum(each.ledger.terms[t] for each in sampled) / len(sampled) for t in paid_terms(asked)},
        **{key: value for key, value in figures.items() if key != "n"},
        "completion_tokens": sum(each.tokens for each in sampled) / len(sampled),
        "cut_off_share": sum(not each.finished for each in sampled) / len(sampled),
        "zero_variance_groups": sum(max(group) - min(group) < 1e-6 for group in groups),
        "groups": len(groups),
    }


def recorded_figures(
    rollouts: Sequence[Rollout], moments: Mapping[str, Moment], spec: RewardSpec, group_size: int
) -> dict[int, dict[str, float]]:
    """`step_figures` of each step that has been recorded, by step: what a resumed run has behind it."""
    steps: dict[int, list[Sampled]] = {}
    for r in rollouts:
        again = judge(moments[r.qid], r.sample, r.text, r.completion_tokens, r.finished, spec)
        steps.setdefault(r.step, []).append(again)
    return {step: step_figures(sampled, moments, group_size) for step, sampled in steps.items()}


def may_stop(figures: Mapping[int, Mapping[str, float]], step: int, settings: GrpoSettings) -> bool:
    """Whether anchors have become the rule and chains narrow, on average over the last steps up to `step`."""
    rows = [figures[s] for s in range(step - WINDOW + 1, step + 1) if s in figures]
    if len(rows) < WINDOW:
        return False
    rate, strict = (sum(row[key] for row in rows) / WINDOW for key in ("anchor_rate", "strict_share"))
    return rate > settings.stop_anchor_rate and strict > settings.stop_progress
