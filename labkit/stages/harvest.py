"""Harvest: chains sampled from a trained policy, the few that a fresh base should learn from, and why the rest was dropped."""

from __future__ import annotations

import math
import random
import reprlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import many_chain_ious
from labkit.chain.rewards import RewardSpec
from labkit.chain.steps import narrows, step_scores
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.own_code import OwnFunction
from labkit.params import DEFAULTS, Params
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.prompt_source import prefetch
from labkit.stages.completions import UNSHARDED, Provenance, require_same_provenance, score_completion, shard_ranges
from labkit.stages.rollouts import ROWS, Rollout, RolloutStore, gc_paused

PROMPTS_PER_PART = 24
"""Queries that are sampled together and stored as one part: what a kill costs at most."""

REASONS = (
    "unparsed",
    "format",
    "too few anchors",
    "too many anchors",
    "not progressive",
    "answer off",
    "wrong option",
    "duplicate",
    "over the limit per query",
)
"""Why a trace is dropped, in the order in which it is looked for; the first reason found is the trace's.

`wrong option` only where moments have options. Rules of a user's own stand before `duplicate`.
"""
BROKEN = REASONS[:2]
"""Reasons that leave nothing to learn from: the chain cannot be read as one."""


class FilterCount(NamedTuple):
    """A reason and how many traces were dropped for it, or `kept` and how many are left."""

    reason: str
    traces: int


@dataclass(frozen=True, slots=True)
class Harvest:
    """The kept traces, a reason for each dropped one by its key (qid, sample, step), and how many went for each reason."""

    kept: list[Rollout]
    reasons: dict[tuple[str, int, int], str] = field(repr=False)
    filter_counts: list[FilterCount]

    @classmethod
    def of(cls, kept: list[Rollout], reasons: dict[tuple[str, int, int], str], names: Iterable[str]) -> Harvest:
        """With the counts of its reasons, in the order of their `names`."""
        counts = Counter(reasons.values())
        return cls(
            kept, reasons, [*(FilterCount(name, counts[name]) for name in names), FilterCount("kept", len(kept))]
        )

    @property
    def size(self) -> int:
        """Traces that went in: kept and dropped together."""
        return len(self.kept) + len(self.reasons)

    def figures(self) -> dict[str, float]:
        """The counts as flat figures, with what came in and what share was kept."""
        counts = {
            f"dropped: {each.reason}": float(each.traces) for each in self.filter_counts if each.reason != "kept"
        }
        return {"harvested": self.size, **counts, "kept": len(self.kept), "yield": len(self.kept) / max(1, self.size)}


def harvest(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    store: RolloutStore,
    *,
    spec: RewardSpec,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    run: str,
    on_part: Callable[[int, int], None] = lambda done, total: None,
    shard: tuple[int, int] = UNSHARDED,
) -> None:
    """Sample chains of each moment into `store`, a part at a time; parts that are there already are not sampled again.

    A part's number stands as `step` in its rollouts. What is sampled for a query depends on the policy, the seed and
    the query alone, so that a harvest that was killed, or that several processes work on, ends with the same traces.

    `source` holds ready prompts by qid, `spec` is what each trace is scored with, and `samples` are those of each moment. `on_part`
    is told (queries done, all): at first those on disk, and with several processes those of all. `shard` is as
    `evaluate` takes it; `merge_shards` ends the harvest when every process has.
    Raises LabError where the store holds traces of other weights, another decoding or other queries.
    """
    provenance = Provenance.of(
        policy, source, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, samples=samples
    )
    for note in store.provenances():
        provenance.require(note, store.folder)
    parts, done = _parts(moments), _parts_done(store, moments, samples)

    def report() -> None:
        ends = [parts[part] for part in store.steps()]
        on_part(sum(end - begin for begin, end in ends), len(moments))

    if done:
        report()
    mine = set(shard_ranges(len(moments), PROMPTS_PER_PART, shard))
    mine -= {parts[part] for part in done}
    prefetch(source, [moment.qid for begin, end in sorted(mine) for moment in moments[begin:end]])
    for part, (begin, end) in parts.items():
        if (begin, end) not in mine or part in store.steps():
            continue
        begun, part_moments = time.process_time(), moments[begin:end]
        prompts = [source[moment.qid] for moment in part_moments]
        completions = generate(
            policy, prompts, samples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed
        )
        rollouts = []
        for index, completion in enumerate(completions):
            scored = score_completion(
                part_moments[index // samples], index % samples, completion.text, len(completion.ids),
                completion.finished, spec, step=part,
            )  # fmt: skip
            rollouts.append(scored.rollout(
                run=run, stage="distill", step=part, seed=seed, checkpoint=policy.name, advantage=0.0,
                prompt_tokens=len(prompts[index // samples].ids), spec=spec,
            ))  # fmt: skip
        store.write(part, rollouts, provenance.note(), cpu_seconds=round(time.process_time() - begun, 3))
        report()


def harvest_complete(store: RolloutStore, moments: Sequence[Moment], samples: int) -> bool:
    """Whether all traces are there, so that only `merge_shards` is left to do, for which no model is needed.

    Raises LabError for a part that holds anything but its queries' traces.
    """
    return _parts_done(store, moments, samples) == set(_parts(moments))


def merge_shards(store: RolloutStore, moments: Sequence[Moment], samples: int) -> None:
    """End a harvest, once every process has: check that it is complete, and join its parts into one file.

    Raises LabError when a query's traces are missing, or when not all are of one policy and one decoding.
    """
    done = _parts_done(store, moments, samples)
    missing = [part for part in _parts(moments) if part not in done]
    if missing:
        raise LabError(
            f"'{store.folder}' lacks {len(missing)} of {len(_parts(moments))} parts of the harvest (number {missing[0]} "
            "first); run the harvest again, only these will be sampled"
        )
    require_same_provenance(store.provenances(), store.folder)
    store.compact()


def _parts(moments: Sequence[Moment]) -> dict[int, tuple[int, int]]:
    """Parts by number, from 1: which moments [begin, end) each of them asks for."""
    return dict(enumerate(shard_ranges(len(moments), PROMPTS_PER_PART, UNSHARDED), 1))


def _parts_done(store: RolloutStore, moments: Sequence[Moment], samples: int) -> set[int]:
    """Numbers of the parts on disk; raises LabError for one that holds anything but its queries' traces."""
    parts, counts = _parts(moments), store.qid_counts()
    for part, qids in counts.items():
        begin, end = parts.get(part, (0, 0))
        if qids != {moment.qid: samples for moment in moments[begin:end]}:
            raise LabError(
                f"part {part} of '{store.folder}' does not hold {samples} traces of each of the queries that are asked "
                "now; remove the folder to harvest again, or give another one"
            )
    return set(counts)


@gc_paused()
def filter_traces(
    rollouts: Iterable[Rollout],
    moments_by_qid: Mapping[str, Moment],
    params: Params = DEFAULTS,
    filters: Sequence[OwnFunction] = (),
) -> Harvest:
    """Keep the traces that are worth learning from; the result does not depend on the order of `rollouts`.

    Of `params` count `min_anchors` (0 keeps chains without anchors too, as the control does), `max_anchors`, `min_answer_iou` and
    `max_per_query`. Source: that kept traces have several anchors, narrow and are accurate is the TAR-TVG paper's; the numbers and
    the order are our choice.

    A trace is progressive when it narrows from anchor to anchor (`labkit.chain.steps`) and its answer is at least as good as
    its last anchor. Where its moment has options, it must choose the right one. Where a query has several windows, the
    best one counts for each step, as in the rewards. Of one query, traces are ranked by the IoU of their answer, then
    by what their steps are worth, so that an answer that goes on beats one that repeats the last anchor; then the earliest
    sampled wins.

    `filters` are a user's own rules, each named by its function: it is given chain, moment and rollout, and drops what it says False
    to.
    Raises LabError for a rollout of an unknown qid, for two rollouts with the same (qid, sample, step), and for a filter that raises
    or returns anything but True, False, or that and a text; it names the filter and the trace.
    """
    rules = filter_rules(filters)
    reasons: dict[tuple[str, int, int], str] = {}
    candidates: dict[str, list[tuple[tuple[float, ...], Rollout]]] = {}
    stream = iter(rollouts)
    while batch := list(islice(stream, ROWS)):
        moments, chains = [], []
        for rollout in batch:
            key = _key(rollout)
            if key in reasons:
                raise LabError(f"rollout {key} (qid, sample, step) came twice; harvest each folder of rollouts once")
            moment = moments_by_qid.get(rollout.qid)
            if moment is None:
                raise LabError(f"rollout {key} (qid, sample, step) asks for a moment that is not in the moments file")
            # By the moment's own text, of which a million keys hold no copy.
            reasons[moment.qid, rollout.sample, rollout.step] = ""
            moments.append(moment)
            chains.append(parse(rollout.text, finished=rollout.finished, options=len(moment.options)))
        measured = many_chain_ious(
            chains, [moment.targets for moment in moments], [moment.duration for moment in moments]
        )
        for rollout, moment, chain, ious in zip(batch, moments, chains, measured, strict=True):
            reason = _reason(chain, ious, params, moment.choice) or _own_reason(rules, chain, moment, rollout)
            reasons[_key(rollout)] = reason or ""
            if not reason:
                rank = (-ious[-1], -math.fsum(step_scores(ious)) / len(ious), rollout.step, rollout.sample)
                candidates.setdefault(rollout.qid, []).append((rank, rollout))
    kept = []
    for ranked in candidates.values():
        texts: set[str] = set()
        for _, rollout in sorted(ranked, key=lambda pair: pair[0]):
            text = " ".join(rollout.text.split())
            if text in texts:
                reasons[_key(rollout)] = "duplicate"
            elif len(texts) == params.max_per_query:
                reasons[_key(rollout)] = "over the limit per query"
            else:
                texts.add(text)
                kept.append(rollout)
                del reasons[_key(rollout)]
    has_options = any(moment.options for moment in moments_by_qid.values())
    checked = [reason for reason in REASONS if has_options or reason != "wrong option"]
    at = checked.index("duplicate")
    checked[at:at] = rules
    return Harvest.of(sorted(kept, key=lambda rollout: rollout.key), reasons, checked)


@gc_paused()
def draw_traces(rollouts: Iterable[Rollout], filtered: Harvest, seed: int) -> Harvest:
    """As many traces as the filter has kept of `rollouts`, drawn at random from all that can be read.

    Chains of broken form and repetitions of a query's text stay out, good or bad answers do not matter. The draw depends on the
    rollouts and the seed alone, not on their order.
    """
    reasons: dict[tuple[str, int, int], str] = {}
    readable: dict[tuple[str, str], Rollout] = {}
    for rollout in sorted(rollouts, key=lambda rollout: rollout.key):
        reason = filtered.reasons.get(_key(rollout), "")
        if reason in BROKEN:
            reasons[_key(rollout)] = reason
        elif readable.setdefault((rollout.qid, " ".join(rollout.text.split())), rollout) is not rollout:
            reasons[_key(rollout)] = "duplicate"
    drawn = random.Random(seed).sample(list(readable.values()), len(filtered.kept))
    kept = {_key(rollout) for rollout in drawn}
    reasons |= {_key(rollout): "not drawn" for rollout in readable.values() if _key(rollout) not in kept}
    return Harvest.of(sorted(drawn, key=lambda rollout: rollout.key), reasons, (*BROKEN, "duplicate", "not drawn"))


def filter_rules(filters: Sequence[OwnFunction]) -> dict[str, OwnFunction]:
    """A user's filters by the names of their rules in the funnel; raises LabError for a name that is taken."""
    rules: dict[str, OwnFunction] = {}
    for each in filters:
        rule = each.name.replace("_", " ").strip()
        if rule in (*REASONS, *rules, "kept", "sampled", ""):
            raise LabError(f"filters: '{each.reference}' has the name of another rule, '{rule}'; rename the function")
        rules[rule] = each
    return rules


def keeps(returned: Any) -> bool:
    """Whether an own filter keeps a trace; raises LabError unless it returned True or False, or that and a text."""
    kept, reason = returned if isinstance(returned, tuple) and len(returned) == 2 else (returned, "")
    if type(kept).__name__ not in ("bool", "bool_") or not isinstance(reason, str):  # Python's and numpy's
        raise LabError(f"returned {reprlib.repr(returned)}; return True to keep, False to drop, or that and a reason")
    return bool(kept)


def _own_reason(rules: Mapping[str, OwnFunction], chain: AnchorChain, moment: Moment, rollout: Rollout) -> str | None:
    """The first of the user's own rules that drops this trace."""
    for rule, each in rules.items():
        try:
            if not keeps(each.call(chain, moment, rollout)):
                return rule
        except LabError as error:
            where = f"qid {rollout.qid}, step {rollout.step}, sample {rollout.sample}"
            raise LabError(f"filter '{each.reference}', trace of {where}: {error}") from error.__cause__
    return None


def _key(rollout: Rollout) -> tuple[str, int, int]:
    return (rollout.qid, rollout.sample, rollout.step)


def _reason(chain: AnchorChain, ious: Sequence[float], params: Params, choice: int | None) -> str | None:
    """Why this trace alone, whatever the others are, is dropped."""
    if chain.answer is None:
        return "unparsed"
    if chain.status not in ("ok", "no_anchor"):
        return "format"
    if len(chain.anchors) < params.min_anchors:
        return "too few anchors"
    if len(chain.anchors) > params.max_anchors:
        return "too many anchors"
    *anchors, answer = ious
    if not narrows(anchors) or answer < max(ious):
        return "not progressive"
    if answer < params.min_answer_iou:
        return "answer off"
    # A chain of kept form has an option exactly where its moment has options.
    return "wrong option" if chain.option != choice else None
