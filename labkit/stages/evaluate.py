"""Evaluation: what a policy answers on a split, and the figures that follow.

Thousands of videos are asked in batches that go to disk as they are answered (`labkit.stages.provenance`): an evaluation that was
broken off asks only what is missing, and several processes share one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from labkit.chain.anchors import parse
from labkit.chain.metrics import answer_iou, chain_figures
from labkit.chain.question_answering import answering_figures
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.true_words import word_figures
from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.prompt_source import prefetch
from labkit.stages.provenance import ALONE, Answer, AnswerStore, Origin, parts_of, question_digest


class Prediction(NamedTuple):
    """One chain and what the parser made of it."""

    qid: str
    text: str
    status: str
    answer: Span | None
    iou: float
    """Of the answer with the best window; 0 without an answer."""
    option: int | None = None
    """The option that was chosen, counted from 0."""


class Evaluation(NamedTuple):
    """Flat figures and the chains that they were taken of, in the moments' order.

    The figures are those of `labkit.chain.metrics.chain_figures`; where moments have options, of
    `labkit.chain.question_answering.answering_figures`; and in the embedded world of `labkit.embedded.true_words.word_figures`.
    """

    figures: dict[str, float]
    predictions: list[Prediction]


def evaluate(
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
    share: tuple[int, int] = ALONE,
) -> Evaluation:
    """Ask a policy for every moment, once.

    What is answered depends neither on the batch size nor on the order of the moments nor on how many processes ask: when
    sampling, each moment draws from a stream of its own.

    Args:
        policy: Who is asked.
        source: Ready prompts by qid; asked for a batch at a time.
        moments: What is asked, each qid once.
        greedy: Decode greedily; otherwise sample at `temperature` with `seed`.
        temperature: Of sampling.
        max_new_tokens: Where an answer is cut off.
        batch_size: Questions that are answered together, and what a kill costs at most.
        seed: Of sampling.
        on_batch: Hears how many are done: first those that were there, and with several processes those of all of them.
        folder: Where each batch goes once it is answered; what is there already is not asked again. Without it nothing is
            written.
        share: (rank, processes): only every `processes`-th batch is asked, and the evaluation is that of these alone;
            `read_evaluation` puts all together when every process has ended.

    Raises:
        LabError: `folder` holds answers of other weights, or of another decoding.
    """
    ordered = in_asking_order(moments)
    parts = [ordered[begin:end] for begin, end in parts_of(len(ordered), batch_size, share)]
    store, answers = None, dict[str, Answer]()
    if folder is not None:
        origin = Origin.of(
            policy, source, max_new_tokens=max_new_tokens, temperature=None if greedy else temperature,
            seed=None if greedy else seed,
        )  # fmt: skip
        store = AnswerStore(folder, origin)
        answers = store.read(ordered)
    if answers and on_batch is not None:
        on_batch(len(answers))
    prefetch(source, [moment.qid for part in parts for moment in part if moment.qid not in answers])
    for part in parts:
        asked = [moment for moment in part if moment.qid not in answers]
        if not asked:
            continue
        completions = generate(
            policy, [source[moment.qid] for moment in asked], max_new_tokens=max_new_tokens, temperature=temperature,
            greedy=greedy, seed=seed,
        )  # fmt: skip
        batch = [
            Answer(moment.qid, completion.text, completion.finished, question_digest(moment))
            for moment, completion in zip(asked, completions, strict=True)
        ]
        answers |= {answer.qid: answer for answer in batch}
        if store is not None:
            store.write(batch)
            if share != ALONE:  # what the others have answered meanwhile
                answers |= store.read(ordered)
        if on_batch is not None:
            on_batch(len(answers))
    mine = {moment.qid for part in parts for moment in part}
    return judge_answers(answers, [moment for moment in moments if moment.qid in mine])


def read_evaluation(folder: str | Path, moments: Sequence[Moment]) -> Evaluation:
    """The evaluation whose answers stand in `folder`, however many processes asked.

    Raises LabError when a moment has not been answered, and when the folder holds answers of several policies.
    """
    answers = AnswerStore(folder).read(moments)
    missing = [moment.qid for moment in moments if moment.qid not in answers]
    if missing:
        raise LabError(
            f"'{folder}' lacks the answers to {len(missing)} of {len(moments)} questions ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); run the evaluation again, only these will be asked"
        )
    return judge_answers(answers, moments)


def judge_answers(answers: Mapping[str, Answer], moments: Sequence[Moment]) -> Evaluation:
    """What answers are worth, in the moments' order; no figures where there is no moment."""
    if not moments:
        return Evaluation({}, [])
    chains = [
        parse(answers[moment.qid].text, finished=answers[moment.qid].finished, options=len(moment.options))
        for moment in moments
    ]
    windows = [moment.windows for moment in moments]
    figures = chain_figures(chains, windows, [moment.duration for moment in moments])
    figures |= answering_figures(chains, windows, [moment.choice for moment in moments])
    figures |= word_figures({qid: answer.text for qid, answer in answers.items()}, moments)
    predictions = [
        Prediction(
            m.qid, chain.text, chain.status, chain.answer, answer_iou(chain, m.windows, m.duration), chain.option
        )
        for m, chain in zip(moments, chains, strict=True)
    ]
    return Evaluation(figures, predictions)


def in_asking_order(moments: Sequence[Moment]) -> list[Moment]:
    """Moments so that questions on one clip stand together, and clips of one length do: a batch has little to pad.

    The longest come first, so that what does not fit into memory is known at once and the time left is not told too short.
    """
    by_qid = {moment.qid: moment for moment in moments}
    if len(by_qid) < len(moments):
        raise ValueError(f"{len(moments)} moments have {len(by_qid)} qids; each may stand there once")

    def place(moment: Moment) -> tuple[float, str, float, str]:
        return (-moment.duration, moment.video, moment.clip.start if moment.clip else 0.0, moment.qid)

    return sorted(moments, key=place)
