"""Text that a model cannot write, whatever its tokenizer: every token that would complete it is masked.

A tag such as `<timestamp>` is one token in some vocabularies and three or more in others, and its characters may be cut into tokens in
many ways. So it isn't tokens that are forbidden, but characters: a row is in state k when its text ends in the first k characters of
the forbidden text (Knuth, Morris and Pratt's automaton), and a token is impossible where it would lead to the end. What
is left of the distribution is what the model would have written otherwise.

Shapes: A active rows, V vocabulary, S characters of the forbidden text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.policy.model import Policy

if TYPE_CHECKING:
    import torch


class ForbiddenText:
    """The states of some rows, and the tokens that each of them may not write."""

    def __init__(self, policy: Policy, text: str, beginnings: Sequence[str]) -> None:
        """`beginnings` is what stands in each row already; upper and lower case are one.

        Raises ValueError where the text stands at the end of a beginning, or is empty.
        """
        import torch

        text = text.lower()
        self.end = len(text)
        states = [_next(text, 0, beginning) for beginning in beginnings]
        if self.end in states:
            raise ValueError(f"{text!r} stands already in what a model is to go on with")
        rows = policy.base.get_output_embeddings().weight.shape[0]
        self.table = torch.tensor(_table(policy.tokenizer, text, rows), device=policy.device)
        """(S, V) the state behind a token; S where it would complete the text."""
        self.states = torch.tensor(states, device=policy.device)
        """(A,)"""

    def mask(self, logits: torch.Tensor) -> torch.Tensor:
        """(A, V) logits, -inf where a token would complete the text."""
        import torch

        return logits.masked_fill(self.table[self.states] == self.end, -torch.inf)

    def follow(self, chosen: torch.Tensor) -> None:
        """Go on behind the tokens (A, 1) that were chosen; in place, as a CUDA graph needs it."""
        self.states.copy_(self.table[self.states, chosen[:, 0]])

    def keep_rows(self, index: torch.Tensor) -> None:
        """Drop all rows but these."""
        self.states = self.states[index]


@functools.lru_cache(maxsize=2)  # of a vocabulary of 152,000 it takes a second
def _table(tokenizer: Any, text: str, rows: int) -> list[list[int]]:
    """The state behind each token in each state; rows of an output layer beyond the vocabulary have no text."""
    known = min(len(tokenizer), rows)
    # Special tokens are taken out of texts, so that what stands before one is followed by what stands behind it.
    tokens = tokenizer.batch_decode(
        [[token] for token in range(known)], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return [[_next(text, state, token) for token in tokens] + [0] * (rows - known) for state in range(len(text))]


def _next(text: str, state: int, token: str) -> int:
    """The state behind a token; `len(text)` where the text is in it, or is completed by it.

    >>> _next("<ti", 0, "a <"), _next("<ti", 1, "think"), _next("<ti", 1, "timestamp"), _next("<ti", 2, "<t")
    (1, 0, 3, 2)
    """
    written = text[:state] + token.lower()
    if text in written:
        return len(text)
    return next((size for size in range(len(text) - 1, 0, -1) if written.endswith(text[:size])), 0)
