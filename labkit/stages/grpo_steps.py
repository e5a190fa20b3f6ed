"""Steps of GRPO: the figures of a step, the stop condition, and how a stage ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from labkit.chain.rewards import TERMS, RewardSpec
from labkit.data.moments import Moment
from labkit.param_fields import GrpoParams
from labkit.params import Params
from labkit.stages.completions import ScoredCompletion, figures_of_chains, score_completion
from labkit.stages.rollouts import Rollout

WINDOW = 5
"""Steps over which the stop conditions are averaged: one lucky step does not end a stage."""


def stage_params(params: Params, stage: str) -> Params:
    """Parameters as `grpo` or `grpo_final` reads them.

    The final stage takes `final_steps`, all of them: it starts where the stop condition holds already.
    """
    if stage != "grpo_final":
        return params
    return params.replace(grpo_steps=params.final_steps, stop_anchor_rate=1.0, stop_progress=1.0)


@dataclass(frozen=True)
class GrpoResult:
    """How a stage went; the model stands in `final/`, the rollouts in `rollouts/`."""

    steps: int
    stopped_by: str
    """`steps` when all were taken, `condition` when the stop conditions held."""
    history: list[dict[str, Any]]
    """One row a step: figures of its rollouts and of its update."""
    seconds: float
    """Time of training, without what earlier attempts took before they were killed."""

    @property
    def end_reason(self) -> str:
        """Why there were no more steps, in words: what the last steps were like where their figures ended the stage."""
        if self.stopped_by != "condition":
            return "all steps were taken"
        rows = self.history[-WINDOW:]
        if not rows:
            return "stopped by condition"
        rate, strict = (sum(row[key] for row in rows) / len(rows) for key in ("anchor_rate", "strict_share"))
        return (
            f"stopped by condition: in the last {len(rows)} steps {100 * rate:.1f} % of chains had anchors and "
            f"{100 * strict:.1f} % narrowed"
        )


def reward_terms(moments: Iterable[Moment], terms: Iterable[str] = TERMS) -> tuple[str, ...]:
    """Those of `terms` that can earn something: all of them where any moment has options, else all but `option`."""
    has_options = any(moment.options for moment in moments)
    return tuple(term for term in terms if has_options or term != "option")


def step_figures(completions: Sequence[ScoredCompletion], group_size: int) -> dict[str, float]:
    """Figures of one step's rollouts: rewards, anchors, IoU by step of the chain, groups in which all earned the same."""
    totals = [each.rewards.total for each in completions]
    groups = [totals[i : i + group_size] for i in range(0, len(totals), group_size)]
    moments = [each.moment for each in completions]
    figures = figures_of_chains([each.chain for each in completions], moments)
    return {
        "total": sum(totals) / len(totals),
        **{
            f"reward_{t}": sum(each.rewards.terms[t] for each in completions) / len(completions)
            for t in reward_terms(moments, completions[0].rewards.terms)
        },
        **{key: value for key, value in figures.items() if key != "n"},
        "completion_tokens": sum(each.tokens for each in completions) / len(completions),
        "cut_off_share": sum(not each.finished for each in completions) / len(completions),
        "zero_variance_groups": sum(max(group) - min(group) < 1e-6 for group in groups),
        "groups": len(groups),
    }


def recorded_figures(
    rollouts: Iterable[Rollout], moments: Mapping[str, Moment], spec: RewardSpec, group_size: int
) -> dict[int, dict[str, float]]:
    """`step_figures` of each step of rollouts that come by step, as a store's do: what a resumed run has behind it."""

    def again(r: Rollout) -> ScoredCompletion:
        asked = moments[r.qid]
        return score_completion(
            asked, r.sample, r.text, r.completion_tokens, r.finished, spec, step=r.step, recorded=r.own
        )

    by_step = groupby(rollouts, key=attrgetter("step"))
    return {step: step_figures([again(each) for each in group], group_size) for step, group in by_step}


def should_stop(figures: Mapping[int, Mapping[str, float]], step: int, params: GrpoParams) -> bool:
    """Whether anchors have become the rule and chains narrow, on average over the last steps up to `step`."""
    rows = [figures[s] for s in range(step - WINDOW + 1, step + 1) if s in figures]
    if len(rows) < WINDOW:
        return False
    rate, strict = (sum(row[key] for row in rows) / WINDOW for key in ("anchor_rate", "strict_share"))
    return rate > params.stop_anchor_rate and strict > params.stop_progress
