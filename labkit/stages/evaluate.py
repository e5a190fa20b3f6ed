"""Evaluation: what a policy answers on a split, and the figures that follow.

Thousands of videos are asked about in batches that go to disk as they are answered (`labkit.stages.rollouts`): an evaluation
that was broken off generates only what is missing, and several processes work on one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.chain.anchors import parse
from labkit.data.moments import Moment
from labkit.embedded.true_words import word_figures
from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.prompt_source import prefetch
from labkit.stages.completions import (
    UNSHARDED,
    Provenance,
    figures_of_chains,
    question_digest,
    require_same_provenance,
    shard_ranges,
    unpaid_rollout,
)
from labkit.stages.rollouts import Rollout, RolloutStore, read_file


class Evaluation(NamedTuple):
    """Flat figures and the rollouts that they were computed from, one a moment and in the moments' order.

    The figures are those of `labkit.chain.metrics.chain_figures`; where moments have options, of
    `labkit.chain.question_answering.answering_figures`; and in the embedded world of `labkit.embedded.true_words.word_figures`.
    """

    figures: dict[str, float]
    rollouts: list[Rollout]


def evaluate(policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], **asked: Any) -> Evaluation:
    """Ask a policy for every moment, once: figures of its answers; `asked` are arguments of `answer`, which says how.

    Of a `shard` the evaluation is that of its answers alone; `read_evaluation` puts all together when every process has ended.
    """
    answers = answer(policy, source, moments, **asked)
    return evaluate_answers(answers, [moment for moment in moments if moment.qid in answers])


def answer(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    *,
    greedy: bool = True,
    temperature: float = 1.0,
    max_new_tokens: int,
    batch_size: int = 64,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    folder: str | Path | None = None,
    shard: tuple[int, int] = UNSHARDED,
    run: str = "",
    stage: str = "",
    forbid: str = "",
) -> dict[str, Rollout]:
    """Ask a policy for every moment, once; its answers by qid.

    What is answered depends neither on the batch size nor on the order of the moments nor on how many processes ask: when
    sampling, each moment draws from a stream of its own.

    `source` holds ready prompts by qid. Each batch is written to the rollout store in `folder`, if one is given, once it is answered,
    and what is there already is not generated again. `on_batch` is told the number of answers so far: at first those on disk, and
    with several processes those of all. Of a `shard`, (rank, processes), only every `processes`-th batch is answered. `run` and
    `stage` are for the record; text to `forbid` is as `generate` takes it.
    Raises LabError where `folder` holds answers of other weights, or of another decoding.
    """
    ordered = in_evaluation_order(moments)
    digests = question_digests(ordered)
    batches = [ordered[begin:end] for begin, end in shard_ranges(len(ordered), batch_size, shard)]
    store = None if folder is None else RolloutStore(folder)
    answers: dict[str, Rollout] = {}
    if store is not None:
        provenance = Provenance.of(
            policy, source, max_new_tokens=max_new_tokens, temperature=None if greedy else temperature,
            seed=None if greedy else seed, forbid=forbid,
        )  # fmt: skip
        for note in store.provenances():
            provenance.require(note, store.folder)
        files_read = store.files()
        answers = _to_questions([each for path in files_read for each in read_file(path)], digests)
    if answers and on_batch is not None:
        on_batch(len(answers))
    prefetch(source, [moment.qid for batch in batches for moment in batch if moment.qid not in answers])
    for batch in batches:
        missing = [moment for moment in batch if moment.qid not in answers]
        if not missing:
            continue
        prompts = [source[moment.qid] for moment in missing]
        completions = generate(
            policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy, seed=seed,
            forbid=forbid,
        )  # fmt: skip
        rollouts = []
        for moment, prompt, completion in zip(missing, prompts, completions, strict=True):
            origin: dict[str, Any] = {"run": run, "stage": stage, "seed": seed, "checkpoint": policy.name}
            rollouts.append(unpaid_rollout(moment, prompt, completion, **origin))
        answers |= {rollout.qid: rollout for rollout in rollouts}
        if store is not None:
            # Named by its questions: batches of any size and any process stand side by side.
            name = hashlib.sha256(repr([moment.qid for moment in missing]).encode()).hexdigest()[:16]
            files_read.append(store.write(0, rollouts, provenance.note(), batch=name))
            # What other processes have answered meanwhile.
            new = [path for path in store.files() if path not in files_read]
            answers |= _to_questions([each for path in new for each in read_file(path)], digests)
            files_read += new
        if on_batch is not None:
            on_batch(len(answers))
    return {moment.qid: answers[moment.qid] for batch in batches for moment in batch}


def read_evaluation(folder: str | Path, moments: Sequence[Moment]) -> Evaluation:
    """The evaluation whose rollouts are in `folder`, however many processes generated them.

    Raises LabError when a moment has not been answered, and when the folder holds answers of several policies.
    """
    return evaluate_answers({rollout.qid: rollout for rollout in read_evaluation_rollouts(folder, moments)}, moments)


def read_evaluation_rollouts(folder: str | Path, moments: Sequence[Moment]) -> list[Rollout]:
    """The rollouts of an evaluation in the moments' order. Raises as `read_evaluation`."""
    store = RolloutStore(folder)
    require_same_provenance(store.provenances(), store.folder)
    answers = _to_questions(store.stream(), question_digests(moments))
    missing = [moment.qid for moment in moments if moment.qid not in answers]
    if missing:
        raise LabError(
            f"'{folder}' lacks the answers to {len(missing)} of {len(moments)} questions ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); run the evaluation again, only these will be asked"
        )
    return list(answers.values())


def question_digests(moments: Iterable[Moment]) -> dict[str, str]:
    """`question_digest` by qid."""
    return {moment.qid: question_digest(moment) for moment in moments}


def _to_questions(rollouts: Iterable[Rollout], digests: Mapping[str, str]) -> dict[str, Rollout]:
    """The rollouts that answer the questions of these digests, in their order; not those of a question that has changed since."""
    found = {rollout.qid: rollout for rollout in rollouts if digests.get(rollout.qid) == rollout.question}
    return {qid: found[qid] for qid in digests if qid in found}


def evaluate_answers(answers: Mapping[str, Rollout], moments: Sequence[Moment]) -> Evaluation:
    """The figures of answers, in the moments' order; none where there is no moment."""
    if not moments:
        return Evaluation({}, [])
    rollouts = [answers[moment.qid] for moment in moments]
    chains = [
        parse(rollout.text, finished=rollout.finished, options=len(moment.options))
        for rollout, moment in zip(rollouts, moments, strict=True)
    ]
    figures = figures_of_chains(chains, moments)
    figures |= word_figures({rollout.qid: rollout.text for rollout in rollouts}, moments)
    return Evaluation(figures, rollouts)


BLIND_QUERIES = 100
"""Queries at least that are asked without their frames, where there are so many."""


def blind_queries(queries: int, share: float) -> int:
    """Of how many of a split's queries whole clips are drawn, at least, to be asked without their frames.

    >>> blind_queries(60, 0.33), blind_queries(200, 0.33), blind_queries(600, 0.33)
    (60, 100, 198)
    """
    return min(queries, max(BLIND_QUERIES, math.ceil(share * queries)))


def draw_clips(moments: Sequence[Moment], queries: int) -> list[Moment]:
    """The moments of so many whole videos that they are `queries` or just more, in their order.

    Which they are hangs on the videos' names alone: the same for each run of a split, and those of fewer are among those of more.
    """

    def drawn(video: str) -> tuple[str, str]:
        return hashlib.sha256(Path(video).name.encode()).hexdigest(), video

    counts, chosen = Counter(moment.source_video for moment in moments), set()
    for video in sorted(counts, key=drawn):
        if queries <= 0:
            break
        chosen.add(video)
        queries -= counts[video]
    return [moment for moment in moments if moment.source_video in chosen]


def in_evaluation_order(moments: Sequence[Moment]) -> list[Moment]:
    """Moments so that questions on one clip stand together, and clips of one length do: a batch has little to pad.

    The longest come first, so that what does not fit into memory is known at once and the time left is not underestimated.
    """
    by_qid = {moment.qid: moment for moment in moments}
    if len(by_qid) < len(moments):
        raise ValueError(f"{len(moments)} moments have {len(by_qid)} qids; each may stand there once")

    def sort_key(moment: Moment) -> tuple[float, str, float, str]:
        return (-moment.duration, moment.video, moment.clip.start if moment.clip else 0.0, moment.qid)

    return sorted(moments, key=sort_key)
