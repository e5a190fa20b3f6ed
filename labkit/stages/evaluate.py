"""Evaluation: what a policy answers on a split, and the figures that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from labkit.chain.anchors import parse
from labkit.chain.answering import answering_figures
from labkit.chain.metrics import answer_iou, chain_figures
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.sources import expect


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

    The figures are those of `labkit.chain.metrics.chain_figures` and, where moments have options, of
    `labkit.chain.answering.answering_figures`.
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
) -> Evaluation:
    """Ask a policy for every moment, once.

    What is answered depends neither on the batch size nor, when sampling, on the order of the moments: each draws from a stream
    of its own. `on_batch` hears how many are done.
    """
    completions = []
    expect(source, [moment.qid for moment in moments])
    for begin in range(0, len(moments), batch_size):
        prompts = [source[moment.qid] for moment in moments[begin : begin + batch_size]]
        completions += generate(
            policy, prompts, max_new_tokens=max_new_tokens, temperature=temperature, greedy=greedy, seed=seed
        )
        if on_batch is not None:
            on_batch(len(completions))
    chains = [
        parse(completion.text, finished=completion.finished, options=len(moment.options))
        for moment, completion in zip(moments, completions, strict=True)
    ]
    windows = [moment.windows for moment in moments]
    figures = chain_figures(chains, windows, [moment.duration for moment in moments])
    figures |= answering_figures(chains, windows, [moment.choice for moment in moments])
    predictions = [
        Prediction(
            m.qid, chain.text, chain.status, chain.answer, answer_iou(chain, m.windows, m.duration), chain.option
        )
        for m, chain in zip(moments, chains, strict=True)
    ]
    return Evaluation(figures, predictions)
