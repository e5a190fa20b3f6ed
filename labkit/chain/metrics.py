"""Metrics of many chains: the field's figures, and those of the anchors.

IoU is a fraction in [0, 1]. Predictions are cut to [0, duration], a missing answer counts 0, of several windows the
best one counts (those that are the truth together are one window, a set), and a threshold is reached with `>=`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from labkit.chain.anchors import STATUSES, AnchorChain
from labkit.chain.span_sets import THRESHOLDS, set_figures
from labkit.chain.spans import Span, SpanSet, best_value, clip_span, iou_array
from labkit.chain.steps import clip_spans, copies, is_step, narrows

Reaches = Literal[">=", ">"]
"""How a threshold is reached: `>=` here, `>` by some of the field's programs."""


def chain_ious(chain: AnchorChain, windows: Sequence[Span], duration: float) -> list[float]:
    """IoU of each step of a chain: its anchors, then its answer if it has one.

    >>> from labkit.chain.anchors import parse, render
    >>> chain_ious(parse(render([Span(0, 20)], Span(0, 10))), [Span(0, 10)], 30.0)
    [0.5, 1.0]
    """
    return [_iou(clip_span(span, duration), windows) for span in chain.steps]


def many_chain_ious(
    chains: Sequence[AnchorChain], windows: Sequence[Sequence[Span]], durations: Sequence[float]
) -> list[list[float]]:
    """`chain_ious` of many chains in one go, to the last bit; one row per chain in the three arguments.

    Raises: ValueError as `chain_ious` does, and when the arguments differ in length.

    >>> from labkit.chain.anchors import parse, render
    >>> many_chain_ious([parse(render([Span(0, 20)], Span(0, 10))), parse("")], [[Span(0, 10)]] * 2, [30.0, 30.0])
    [[0.5, 1.0], []]
    """
    steps = [chain.steps for chain in chains]
    sizes = [len(spans) for spans in steps]
    for row, duration in zip(windows, durations, strict=True):
        if not row or not 0 < duration < math.inf:
            return [
                chain_ious(*row) for row in zip(chains, windows, durations, strict=True)
            ]  # its error says what is wrong
    begins = np.maximum([span.start for spans in steps for span in spans], 0.0)
    ends = np.minimum([span.end for spans in steps for span in spans], np.repeat(durations, sizes))
    ious = np.zeros(len(begins))
    there = begins < ends
    clipped = np.stack([begins, ends], axis=1)[there]
    for k in range(max(map(len, windows), default=0)):
        # A moment with fewer windows is measured against its first again, which changes no maximum.
        kth = [each[k] if k < len(each) else each[0] for each in windows]
        gold = np.repeat([(window.start, window.end) for window in kth], sizes, axis=0)
        ious[there] = np.maximum(ious[there], iou_array(clipped, gold[there]))
    values = ious.tolist()
    found = [values[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    for at, (spans, row) in enumerate(zip(steps, windows, strict=True)):
        if any(
            [type(span) is SpanSet for span in (*spans, *row)]
        ):  # the arrays hold ends, which of a set say too little
            found[at] = chain_ious(chains[at], row, durations[at])
    return found


def answer_iou(chain: AnchorChain, windows: Sequence[Span], duration: float) -> float:
    """IoU of a chain's answer, 0 when it has none.

    >>> from labkit.chain.anchors import parse
    >>> answer_iou(parse("it is at the end"), [Span(0, 10)], 30.0)
    0.0
    """
    return 0.0 if chain.answer is None else _iou(clip_span(chain.answer, duration), windows)


def recall_figures(
    ious: ArrayLike, reaches: Reaches = ">=", thresholds: Sequence[float] = THRESHOLDS
) -> dict[str, float]:
    """MIoU and R1@m of one IoU per query, or of several guesses per query, each query counting the same.

    Raises: ValueError when there is none.

    >>> recall_figures([1.0, 0.5, 0.25, 0.0])
    {'miou': 0.4375, 'r1@0.3': 0.5, 'r1@0.5': 0.5, 'r1@0.7': 0.25}
    """
    values = np.asarray(ious, dtype=np.float64)
    if not values.size:
        raise ValueError("no query to take figures of; give at least one")
    hits = {f"r1@{m}": values >= m if reaches == ">=" else values > m for m in thresholds}
    return {"miou": float(values.mean())} | {name: float(hit.mean()) for name, hit in hits.items()}


def chain_figures(
    chains: Sequence[AnchorChain], windows: Sequence[Sequence[Span]], durations: Sequence[float]
) -> dict[str, float]:
    """All figures of a set of chains under flat names, one row per chain in the three arguments.

    What a good chain does is a share of **all** chains (anchor_rate, two_anchor_rate, strict_share, improved_share,
    non_decreasing_share, answer_improves_share), so that a model without anchors can't look good. What a lazy one
    does is a share of the chains that could: copy_rate of those with an anchor and an answer, anchor_copy_rate of
    those with two anchors. A step and a copy are what `labkit.chain.steps` says: strict_share are the chains of two anchors
    or more that narrow from each to the next, improved_share those that do from the first to the last,
    answer_improves_share those that do from the last anchor to the answer; copy_rate is the share of answers that copy an
    anchor, anchor_copy_rate that of chains with an anchor that copies another. non_decreasing_share takes any step that
    does not lose. iou_first, iou_last, iou_answer and gain are means over the chains with an anchor,
    iou_step_k over those with a k-th one. A mean over nothing is NaN.
    oracle_miou takes each chain's best step; parse_failure_rate is the share without an answer. Where a truth is a
    set of spans there are the figures of `labkit.chain.span_sets.set_figures` too, as means over all chains, and miou is of unions.

    Raises: ValueError when the arguments differ in length or are empty, or a chain has no window to be measured against.
    Source: mIoU and R1@m as published; the chain's figures are our choice.

    >>> from labkit.chain.anchors import parse, render
    >>> truth = Span(0.0, 10.0)
    >>> good = parse(render([Span(0.0, 40.0), Span(0.0, 20.0)], truth))
    >>> figures = chain_figures([good, parse("no idea")], [[truth], [truth]], [40.0, 40.0])
    >>> figures["miou"], figures["strict_share"], figures["gain"], figures["status_no_think"]
    (0.5, 0.5, 0.75, 0.5)
    """
    if not len(chains) == len(windows) == len(durations):
        raise ValueError(f"{len(chains)} chains, {len(windows)} windows, {len(durations)} durations: one row each")
    if not all(windows):
        raise ValueError("no ground-truth window to measure against; an open question has no figures")
    statuses = Counter(chain.status for chain in chains)
    answers, anchors, best, final = [], [], [], []
    answer_copies, anchor_copies = [], []
    for chain, gold, duration in zip(chains, windows, durations, strict=True):
        spans = [clip_span(span, duration) for span in chain.steps]
        ious = [_iou(span, gold) for span in spans]
        found = len(chain.anchors)
        answers.append(0.0 if chain.answer is None else ious[-1])
        final.append(None if chain.answer is None else spans[-1])
        anchors.append(ious[:found])
        best.append(max(ious, default=0.0))
        copied = copies(clip_spans(chain.steps, duration))
        if found and chain.answer is not None:
            answer_copies.append(copied[-1])
        if found > 1:
            anchor_copies.append(any(copied[:found]))

    total = len(chains)
    anchored = [(row, answer) for row, answer in zip(anchors, answers, strict=True) if row]
    several = [row for row in anchors if len(row) > 1]
    improves = sum(
        is_step(row[-1], answer)
        for chain, row, answer in zip(chains, anchors, answers, strict=True)
        if row and chain.answer is not None
    )
    figures = {"n": float(total)} | recall_figures(answers)
    figures |= {
        "anchor_rate": len(anchored) / total,
        "two_anchor_rate": len(several) / total,
        "anchors_mean": sum(map(len, anchors)) / total,
        "iou_first": _mean([row[0] for row, _ in anchored]),
        "iou_last": _mean([row[-1] for row, _ in anchored]),
        "iou_answer": _mean([answer for _, answer in anchored]),
        "gain": _mean([answer - row[0] for row, answer in anchored]),
        "strict_share": sum(map(narrows, several)) / total,
        "improved_share": sum(is_step(row[0], row[-1]) for row in several) / total,
        "non_decreasing_share": sum(all(b >= a for a, b in pairwise(row)) for row in several) / total,
        "answer_improves_share": improves / total,
        "copy_rate": _mean(answer_copies),
        "anchor_copy_rate": _mean(anchor_copies),
        "oracle_miou": _mean(best),
        "parse_failure_rate": sum(chain.answer is None for chain in chains) / total,
    }
    if any([type(window) is SpanSet for gold in windows for window in gold]):
        of_sets = [set_figures(answer, gold) for answer, gold in zip(final, windows, strict=True)]
        figures |= {name: _mean([each[name] for each in of_sets]) for name in of_sets[0]}
    for step in range(max(map(len, anchors))):
        figures[f"iou_step_{step + 1}"] = _mean([row[step] for row in anchors if len(row) > step])
    return figures | {f"status_{name}": statuses[name] / total for name in STATUSES}


def _iou(span: Span | None, windows: Sequence[Span]) -> float:
    return 0.0 if span is None else best_value(span, windows)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
