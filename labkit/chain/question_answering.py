"""Grounded question answering: is the option right, and does the answer's span show why.

The figures are NExT-GQA's. Its IoP asks how much of what was shown is evidence, so a narrow answer inside the evidence is
not blamed for what it leaves out, as it is in IoU.
"""

from __future__ import annotations

from collections.abc import Sequence

from labkit.chain.anchors import AnchorChain
from labkit.chain.spans import Span, best_value, meeting

GROUNDED = 0.5
"""IoP from which an answer counts as grounded. Source: NExT-GQA."""


def iop(pred: Span, gold: Span) -> float:
    """Intersection over prediction: the share of `pred` that lies in `gold`; in [0, 1], not symmetric.

    Source: NExT-GQA.

    >>> iop(Span(0, 10), Span(8, 20)), iop(Span(8, 20), Span(0, 10))
    (0.2, 0.16666666666666666)
    """
    return meeting(pred.parts, gold.parts)[0] / pred.length


def answer_iop(chain: AnchorChain, windows: Sequence[Span]) -> float:
    """IoP of the answer with the best window, 0 without an answer.

    Unlike IoU here, the answer is not cut to the video first: NExT-GQA doesn't, and the cut would forgive seconds beyond
    the end. Raises: ValueError when there is no window.

    >>> from labkit.chain.anchors import parse, render
    >>> answer_iop(parse(render([], Span(0, 10))), [Span(30, 40), Span(4, 9)])
    0.5
    """
    return 0.0 if chain.answer is None else best_value(chain.answer, windows, iop)


def answering_figures(
    chains: Sequence[AnchorChain], windows: Sequence[Sequence[Span]], choices: Sequence[int | None]
) -> dict[str, float]:
    """Flat figures of the chains whose moments have options: those with a choice; no key at all when there is none.

    acc_qa             the right option
    acc_gqa            the right option, and IoP of at least 0.5
    miop               mean IoP of the answer; evidence mIoU is `miou` of `chain_figures`
    iop@0.3, iop@0.5   the share that reaches it, with `>=`
    option_rate        an option was read

    A missing answer has IoP 0 and a missing option is wrong; NExT-GQA's own program passes over a question that was not
    answered at all. Chains must have been read with their moments' number of options.
    Raises: ValueError when the three lists differ in length.

    >>> from labkit.chain.anchors import parse, render
    >>> chain = parse(render([], Span(10, 20), option=2), options=4)
    >>> answering_figures([chain, chain], [[Span(12, 40)], [Span(18, 40)]], [2, 2])["acc_gqa"]
    0.5
    >>> answering_figures([chain], [[Span(12, 40)]], [None])
    {}
    """
    if not len(chains) == len(windows) == len(choices):
        raise ValueError(
            f"{len(chains)} chains, {len(windows)} lists of windows, {len(choices)} choices: one for each"
        )
    rows = [
        (chain.option is not None, chain.option == choice, answer_iop(chain, gold))
        for chain, gold, choice in zip(chains, windows, choices, strict=True)
        if choice is not None
    ]
    if not rows:
        return {}

    def share(hits: Sequence[float]) -> float:
        return sum(hits) / len(rows)

    return {
        "acc_qa": share([right for _, right, _ in rows]),
        "acc_gqa": share([right and shown >= GROUNDED for _, right, shown in rows]),
        "miop": share([shown for _, _, shown in rows]),
        "iop@0.3": share([shown >= 0.3 for _, _, shown in rows]),
        "iop@0.5": share([shown >= GROUNDED for _, _, shown in rows]),
        "option_rate": share([chose for chose, _, _ in rows]),
    }
