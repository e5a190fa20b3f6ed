"""A completion and the moment that it answers: how the parser reads it, what it earns, its record, and figures of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import chain_figures
from labkit.chain.question_answering import answering_figures
from labkit.chain.rewards import TERMS, OwnValue, RewardBreakdown, RewardSpec, score_moment
from labkit.data.moments import Moment
from labkit.policy.generate import Completion
from labkit.policy.inputs import Prompt
from labkit.stages.provenance import question_digest
from labkit.stages.rollouts import UNPAID, Rollout


class ScoredCompletion(NamedTuple):
    """One sampled completion, how the parser reads it and what it earns."""

    moment: Moment
    sample: int
    """Place in the group, from 0."""
    text: str
    tokens: int
    finished: bool
    chain: AnchorChain
    rewards: RewardBreakdown

    def rollout(self, **origin: Any) -> Rollout:
        """The record; `origin` are the fields that say where it comes from and what the update used."""
        values, reasons = self.rewards.terms, self.rewards.reasons
        terms: dict[str, Any] = {f"reward_{term}": values[term] for term in TERMS}
        terms["own"] = {term: OwnValue(values[term], reasons[term]) for term in values if term not in TERMS}
        return Rollout(
            qid=self.moment.qid, sample=self.sample, text=self.text, status=self.chain.status, **terms,
            total=self.rewards.total, completion_tokens=self.tokens, finished=self.finished, **origin,
        )  # fmt: skip


def score_completion(
    moment: Moment,
    sample: int,
    text: str,
    tokens: int,
    finished: bool,
    spec: RewardSpec,
    *,
    step: int,
    recorded: Mapping[str, OwnValue] | None = None,
) -> ScoredCompletion:
    """Parse and score one completion of a step; what own terms said that is `recorded` is not asked again.

    Raises LabError, which names the term and the chain, where an own term fails.
    """
    chain = parse(text, finished=finished, options=len(moment.options))
    rewards = score_moment(chain, moment, spec, f"step {step}, sample {sample}", recorded)
    return ScoredCompletion(moment, sample, text, tokens, finished, chain, rewards)


def unpaid_rollout(
    moment: Moment, prompt: Prompt, completion: Completion, *, step: int = 0, sample: int = 0, **origin: Any
) -> Rollout:
    """The record of a completion that nothing is paid for; `origin` are the fields that say where it comes from."""
    chain = parse(completion.text, finished=completion.finished, options=len(moment.options))
    return Rollout(
        step=step, qid=moment.qid, sample=sample, text=completion.text, status=chain.status, **UNPAID,
        prompt_tokens=len(prompt.ids), completion_tokens=len(completion.ids), finished=completion.finished,
        question=question_digest(moment), **origin,
    )  # fmt: skip


def figures_of_chains(chains: Sequence[AnchorChain], moments: Sequence[Moment]) -> dict[str, float]:
    """Figures of chains, each beside its moment: `chain_figures`, and `answering_figures` where moments have options."""
    windows = [moment.targets for moment in moments]
    figures = chain_figures(chains, windows, [moment.duration for moment in moments])
    return figures | answering_figures(chains, windows, [moment.choice for moment in moments])
