"""Interventions: what a model answers once its anchors are forbidden, forced, edited, or no longer fit what it sees.

All begin with the chains that the model wrote by itself, greedily, one a moment. A text that a model is made to go on with is
tokenized anew; so is the unedited one that an edit is held against, and nothing but the edit differs between the two.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.chain.anchors import parse
from labkit.data.moments import Moment
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.variants import Variant, VariantPrompts
from labkit.stages.evaluate import evaluate
from labkit.stages.rollouts import Rollout

ANCHOR_BEGINS = "<ti"
"""The shortest beginning of `<timestamp>` that no other tag of a chain has: without it no anchor can be written, nor half of one."""
CLOSING = "</think>\n<answer>"
"""What closes a thought and opens an answer, where a model's own chain doesn't say how it writes that."""
_CLOSING = re.compile(r"\s*</think>\s*<answer>")
_TAG = re.compile(r"<timestamp>|</think>|<answer>")
_SENTENCE = re.compile(r"[.!?](?=\s|$)|\n")

Asked = Mapping[str, Any]
"""Arguments of `evaluate`: how answers are decoded, kept and recorded."""


def without_anchors(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], own: Sequence[Rollout], **asked: Any
) -> list[Rollout]:
    """Greedy answers without anchors: the thought is closed where the first would begin, and the answer forced.

    The thought stays up to its last full sentence before the first `<timestamp>`; one without anchors stays whole. What is behind the
    answer the model writes itself. `own` are its chains, one a moment; `asked` are arguments of `evaluate`. One rollout a moment,
    in the moments' order.
    """
    return _each(policy, source, moments, own, closed_thought, asked)


def without_tag(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], **asked: Any
) -> list[Rollout]:
    """Greedy chains in which `<timestamp>` cannot be written: thought and answer are otherwise the model's own.

    It may write times without the tag all the same.
    """
    return evaluate(policy, source, moments, forbid=ANCHOR_BEGINS, **asked).rollouts


def with_anchors(
    policy: Policy, source: Mapping[str, Prompt], moments: Sequence[Moment], own: Sequence[Rollout], **asked: Any
) -> list[Rollout]:
    """Greedy chains with an anchor at least: `<timestamp>` stands behind the thought's own words, and the model goes on.

    The words are those before the chain's first anchor, or all of a thought without one. Otherwise as `without_anchors`.
    """
    return _each(policy, source, moments, own, forced_anchor, asked)


def closed_thought(text: str, anchors: int = 0) -> str:
    r"""How a chain begins whose thought is closed behind its first so many anchors, up to where the answer's times stand.

    >>> closed_thought("<think> I see it. Around <timestamp> 1.0 to 4.0 </timestamp> </think> <answer> 2.0 to 3.0 </answer>")
    '<think> I see it. </think> <answer>'
    >>> closed_thought("<think>I see it <timestamp>1 to 4</timestamp>, or <timestamp>2 to 3</timestamp>", anchors=1)
    '<think>I see it <timestamp>1 to 4</timestamp></think>\n<answer>'
    """
    own = _CLOSING.search(text)
    closing = own[0] if own else CLOSING
    if anchors:
        return text[: parse(text).anchors[anchors - 1].end] + closing
    head = _before_anchors(text)
    ends = [match.end() for match in _SENTENCE.finditer(head)]
    return (head[: ends[-1]] if ends and "<timestamp>" in text else head).rstrip() + closing


def forced_anchor(text: str) -> str:
    """How a chain begins that must have an anchor.

    >>> forced_anchor("<think>I see it.</think><answer>2.0 to 3.0</answer>")
    '<think>I see it. <timestamp>'
    """
    return _before_anchors(text).rstrip() + " <timestamp>"


def _before_anchors(text: str) -> str:
    """A thought up to its first anchor, or to its end."""
    tag = _TAG.search(text)
    head = text[: tag.start()] if tag else text
    return head if head.strip() else "<think>"


def _each(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    own: Sequence[Rollout],
    begun: Any,
    asked: Asked,
) -> list[Rollout]:
    """Ask each moment once, the completion begun as `begun` makes it of its own chain's text."""
    texts = {rollout.qid: rollout.text for rollout in own}
    variants = {moment.qid: Variant(moment.qid, begun(texts[moment.qid])) for moment in moments}
    return evaluate(policy, VariantPrompts(policy, source, variants), moments, **asked).rollouts
