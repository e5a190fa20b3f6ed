"""Harvest: chains sampled from a trained policy, the few that a fresh base should learn from, and why the rest was dropped."""

from __future__ import annotations

import functools
import math
import random
import reprlib
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

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
from labkit.stages.rollout_spool import RolloutSpool, SpooledRollouts
from labkit.stages.rollouts import ROWS, Rollout, RolloutStore, gc_paused

Column: TypeAlias = "NDArray[Any]"

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


class _Found(NamedTuple):
    """Traces by their keys: where each stands among all, its query, counted in the order of qids, its sample and its step."""

    place: Column
    query: Column
    sample: Column
    step: Column


class Reasons(Mapping[tuple[str, int, int], str]):
    """Why each dropped trace was dropped, by its key (qid, sample, step); a trace takes 25 bytes, dropped or kept.

    `names` are the reasons that there are.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Of no trace yet."""
        self._names = ["", *names]
        self._queries: dict[str, int] = {}
        # Of each trace in turn: query, sample and step, and the place of its reason among the names, 0 where it is kept.
        self._keys, self._codes = array("q"), array("b")

    def add(self, key: tuple[str, int, int], reason: str) -> None:
        """Note the next trace, and its reason, "" where it is kept."""
        qid, *numbers = key
        self._keys.extend((self._queries.setdefault(qid, len(self._queries)), *numbers))
        self._codes.append(self._names.index(reason))

    def drop(self, place: int, reason: str) -> None:
        """Give the trace that came at a place a reason."""
        self._codes[place] = self._names.index(reason)

    def kept(self) -> _Found:
        """The traces that have no reason yet."""
        at = np.flatnonzero(np.frombuffer(self._codes.tobytes(), np.int8) == 0)
        return _Found(at, *self._columns()[:, at])

    def require_once(self) -> None:
        """Raise LabError where a trace came twice."""
        columns = self._columns()
        order = np.lexsort(columns)
        again = order[1:][(np.diff(columns[:, order]) == 0).all(axis=0)]
        if len(again):
            key = self._key(int(again.min()))
            raise LabError(f"rollout {key} (qid, sample, step) came twice; harvest each folder of rollouts once")

    def counts(self) -> list[FilterCount]:
        """How many traces went for each reason."""
        found = Counter(self._codes)
        return [FilterCount(name, found[code]) for code, name in enumerate(self._names) if code]

    def _columns(self) -> Column:
        keys = np.array(self._keys, dtype=np.int64).reshape(-1, 3).T
        rank = np.empty(len(self._queries), dtype=np.int64)
        rank[[self._queries[qid] for qid in sorted(self._queries)]] = np.arange(len(rank))
        keys[0] = rank[keys[0]]
        return keys

    def _key(self, place: int) -> tuple[str, int, int]:
        query, sample, step = self._keys[3 * place : 3 * place + 3]
        return self._qids[query], sample, step

    @functools.cached_property
    def _qids(self) -> list[str]:
        return list(self._queries)

    @functools.cached_property
    def _places(self) -> dict[tuple[str, int, int], int]:
        return {self._key(place): place for place, code in enumerate(self._codes) if code}

    def __getitem__(self, key: tuple[str, int, int]) -> str:
        return self._names[self._codes[self._places[key]]]

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._codes) - self._codes.count(0)


@dataclass(frozen=True, slots=True)
class Harvest:
    """The kept traces, a reason for each dropped one by its key (qid, sample, step), and how many went for each reason.

    Many kept traces stand outside of memory, and are read when they are gone through.
    """

    kept: Sequence[Rollout]
    reasons: Reasons = field(repr=False)

    @property
    def filter_counts(self) -> list[FilterCount]:
        """The traces that were dropped for each reason, in the order in which it is looked for, and last those that are `kept`."""
        return [*self.reasons.counts(), FilterCount("kept", len(self.kept))]

    @property
    def size(self) -> int:
        """Traces that went in: kept and dropped together."""
        return len(self.kept) + len(self.reasons)

    def figures(self) -> dict[str, float]:
        """The counts as flat figures, with what came in and what share was kept."""
        counts = {f"dropped: {each.reason}": float(each.traces) for each in self.reasons.counts()}
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
    has_options = any(moment.options for moment in moments_by_qid.values())
    names = [reason for reason in REASONS if has_options or reason != "wrong option"]
    at = names.index("duplicate")
    names[at:at] = rules
    reasons, spool, texts, worth = Reasons(names), RolloutSpool(), array("q"), array("d")
    stream = iter(rollouts)
    while batch := list(islice(stream, ROWS)):
        moments, chains, passed = [], [], []
        for rollout in batch:
            moment = moments_by_qid.get(rollout.qid)
            if moment is None:
                raise LabError(
                    f"rollout {_key(rollout)} (qid, sample, step) asks for a moment that is not in the moments file"
                )
            moments.append(moment)
            chains.append(parse(rollout.text, finished=rollout.finished, options=len(moment.options)))
        measured = many_chain_ious(
            chains, [moment.targets for moment in moments], [moment.duration for moment in moments]
        )
        for rollout, moment, chain, ious in zip(batch, moments, chains, measured, strict=True):
            reason = _reason(chain, ious, params, moment.choice) or _own_reason(rules, chain, moment, rollout)
            reasons.add(_key(rollout), reason or "")
            if not reason:
                worth.extend((ious[-1], math.fsum(step_scores(ious)) / len(ious)))
                texts.append(_text_hash(rollout))
                passed.append(rollout)
        spool.extend(passed)
    reasons.require_once()
    found = reasons.kept()
    best, gained = np.reshape(worth, (-1, 2)).T
    order = np.lexsort((found.sample, found.step, -gained, -best, found.query))
    return Harvest(_by_key(spool, found, _distinct(reasons, found, order, texts, params.max_per_query)), reasons)


@gc_paused()
def draw_traces(rollouts: Iterable[Rollout], filtered: Harvest, seed: int) -> Harvest:
    """As many traces as the filter has kept of `rollouts`, drawn at random from all that can be read.

    Chains of broken form and repetitions of a query's text stay out, good or bad answers do not matter. The draw depends on the
    rollouts and the seed alone, not on their order.
    """
    reasons, spool, texts = Reasons((*BROKEN, "duplicate", "not drawn")), RolloutSpool(), array("q")

    def whole() -> Iterator[Rollout]:
        for rollout in rollouts:
            reason = filtered.reasons.get(_key(rollout), "")
            reasons.add(_key(rollout), reason if reason in BROKEN else "")
            if reason not in BROKEN:
                texts.append(_text_hash(rollout))
                yield rollout

    spool.extend(whole())
    found = reasons.kept()
    readable = _distinct(reasons, found, np.lexsort((found.sample, found.step, found.query)), texts, len(texts))
    readable.sort(key=lambda place: (found.step[place], found.query[place], found.sample[place]))
    drawn = random.Random(seed).sample(readable, len(filtered.kept))
    for place in set(readable).difference(drawn):
        reasons.drop(found.place[place], "not drawn")
    return Harvest(_by_key(spool, found, drawn), reasons)


def _text_hash(rollout: Rollout) -> int:
    """Tells a text from a query's others, whatever its blanks are."""
    return hash(" ".join(rollout.text.split()))


def _distinct(reasons: Reasons, found: _Found, order: Column, texts: Sequence[int], most: int) -> list[int]:
    """Of each query the first `most` traces of different text, in an order that is by query; the others are dropped."""
    chosen: list[int] = []
    for _, places in groupby(order.tolist(), key=found.query.__getitem__):
        seen = set[int]()
        for place in places:
            if texts[place] in seen:
                reasons.drop(found.place[place], "duplicate")
            elif len(seen) == most:
                reasons.drop(found.place[place], "over the limit per query")
            else:
                seen.add(texts[place])
                chosen.append(place)
    return chosen


def _by_key(spool: RolloutSpool, found: _Found, places: Sequence[int]) -> Sequence[Rollout]:
    """Traces of a spool in the order of their keys; few of them as a list."""
    at = np.array(places, dtype=np.int64)
    ordered = SpooledRollouts(spool, at[np.lexsort((found.sample[at], found.query[at], found.step[at]))].tolist())
    return list(ordered) if len(ordered) <= ROWS else ordered


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
