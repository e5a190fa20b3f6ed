"""The packed policy pass: the prompt once, its whole group behind it, in one line without padding.

    [prompt without its last token] [last token, completion 1 without its last] [last token, completion 2 ...] ...

Each continuation attends to the prompt and to itself (`labkit.policy.attention`), and keeps the positions it would have alone.
So log-probs and gradients are those of one sample at a time, while the prompt, with all its video tokens, is read once whatever the
group size. Questions about one clip whose prompts begin alike share the clip in the same way.

Logits exist for a few hundred tokens at a time, forward and backward: with a real vocabulary those of one long group would be larger
than the model.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.attention import Layout, Row, install, no_mask

if TYPE_CHECKING:
    import torch

    from labkit.policy.inputs import Prompt

CHUNK = 512
"""Tokens whose logits exist at once: 0.3 GB in float32 for a vocabulary of 152,000."""


class Packed(NamedTuple):
    """Model inputs of one line, (1, L), and the token that each place predicts, (L,), -100 where none."""

    inputs: dict[str, Any]
    labels: torch.Tensor
    mask: torch.Tensor
    """(rows, C) bool, the completions' own layout."""

    def log_probs(self, model: Any, temperature: float = 1.0, entropy: bool = False) -> tuple[Any, Any]:
        """Log-probs of the predicted tokens, and the entropies of the distributions they were drawn from.

        Both (rows, C) in the completions' own layout; entropies are None unless asked for, and carry no gradient. `model` is
        called itself, once, so that wrappers around it (LoRA, DDP, FSDP) do their part.
        """
        base = bare(model)
        install(base)
        shown = self.labels != -100
        with _scoring(base.get_output_embeddings(), self.labels[shown], temperature, entropy):
            found = model(**self.inputs, use_cache=False, logits_to_keep=shown[None]).logits
        spread = self._scatter(found[..., 1].detach().flatten()) if entropy else None
        return self._scatter(found[..., 0].flatten()), spread

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def pack(prompts: Sequence[Prompt], completions: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]) -> Packed:
    """Put the groups of several prompts into one line.

    completions, mask: (rows, C), right-padded; the first `sizes[0]` rows answer `prompts[0]`, and so on. Neighbours
    among the prompts that ask about one clip share what they have in common.
    """
    import torch

    from labkit.policy.inputs import vision_kwargs

    device = completions.device
    mask = mask.bool()
    steps = torch.arange(completions.shape[1])
    groups = list(zip(prompts, completions.cpu().split(list(sizes)), mask.cpu().split(list(sizes)), strict=True))
    ids, positions, labels, rows, seen = [], [], [], [], []
    begin = 0
    for end in heads_end(prompts):
        first = prompts[begin]
        head = common_head(prompts[begin:end])
        ids.append(first.ids[:head])
        positions.append(first.positions[:, :head])
        labels.append(torch.full((head,), -100))
        tails = []
        for prompt, group, shown in groups[begin:end]:
            rest, place = prompt.ids[head:], prompt.positions
            for completion, there in zip(group, shown, strict=True):
                completion = completion[there]
                if len(completion) == 0:
                    continue
                tails.append(len(rest) + len(completion) - 1)
                ids += [rest, completion[:-1]]
                positions += [place[:, head:], place[:, -1:] + 1 + steps[: len(completion) - 1]]
                labels += [torch.full((len(rest) - 1,), -100), completion]
        rows.append(Row(head + tails[0]) if len(tails) == 1 else Row(head, tuple(tails)))
        seen.append(first)
        begin = end
    inputs = {
        "input_ids": torch.cat(ids)[None].to(device),
        "position_ids": torch.cat(positions, 1)[:, None].to(device),
        "attention_mask": no_mask(device),
        "layout": Layout(rows),
        **vision_kwargs(seen, device),
    }
    return Packed(inputs, torch.cat(labels).to(device), mask)


def line_places(prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """Where each prompt's tokens stand in the line that `pack` makes of prompts with one completion of one token each."""
    import torch

    places, begin, at = [], 0, 0
    for end in heads_end(prompts):
        head = torch.arange(at, at + common_head(prompts[begin:end]))
        at += len(head)
        for prompt in prompts[begin:end]:
            rest = len(prompt.ids) - len(head)
            places.append(torch.cat([head, torch.arange(at, at + rest)]))
            at += rest
        begin = end
    return places


def heads_end(prompts: Sequence[Prompt]) -> Iterator[int]:
    """Where each run of prompts that share a clip ends."""
    begin = 0
    for at in range(1, len(prompts) + 1):
        if at == len(prompts) or common_head([prompts[begin], prompts[at]]) == 0:
            yield at
            begin = at


def common_head(prompts: Sequence[Prompt]) -> int:
    """How many tokens a prompt, or several about one clip, may share; each keeps one token at least of its own.

    0 where they have different clips, or begin to differ before the clip ends: its placeholders cannot be divided.
    """
    first, *others = prompts
    length = len(first.ids) - 1
    for other in others:
        size = min(length, len(other.ids) - 1)
        same = (first.ids[:size] == other.ids[:size]) & (first.positions[:, :size] == other.positions[:, :size]).all(0)
        length = size if same.all() else int((~same).nonzero()[0])
        if other.features is not first.features or not 0 < first.video_end <= length:
            return 0
    return length


def bare(model: Any) -> Any:
    """The Hugging Face model below whatever wraps it: DDP, LoRA."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _scoring(head: Any, labels: torch.Tensor, temperature: float, entropy: bool) -> Iterator[None]:
    """For as long as it lasts, the output layer gives (N, 2), log-prob and entropy, in place of N rows of logits.

    Inside the model's own forward, so that the layer's weight is there whoever shards it, and its gradient where they look for it.
    """
    import torch

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        picked, spread = _function().apply(hidden.flatten(0, -2), head.weight, labels, temperature, entropy)
        return torch.stack([picked, spread], -1)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@functools.cache
def _function() -> Any:
    import torch

    class LogProbs(torch.autograd.Function):
        """Log-softmax of `hidden @ weight.T / temperature` at the labels; logits are made again backward."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, labels: Any, temperature: float, entropy: bool) -> Any:
            parts = []
            for rows, wanted in zip(hidden.split(CHUNK), labels.split(CHUNK), strict=True):
                logits = (rows @ weight.T).float().div_(temperature)
                sums = logits.logsumexp(-1)
                picked = logits.gather(1, wanted[:, None])[:, 0] - sums
                spread = torch.zeros_like(sums)
                if entropy:
                    shares = (logits - sums[:, None]).exp_()
                    spread = sums - shares.mul_(logits).sum(-1)
                parts.append((picked, spread, sums))
            picked, spread, sums = (torch.cat(part) for part in zip(*parts, strict=True))
            ctx.save_for_backward(hidden, weight, labels, sums)
            ctx.temperature = temperature
            ctx.mark_non_differentiable(spread)
            return picked, spread

        @staticmethod
        def backward(ctx: Any, grad: Any, _: Any) -> Any:
            hidden, weight, labels, sums = ctx.saved_tensors
            d_hidden = torch.empty_like(hidden)
            # Summed in float32: bfloat16 would lose what later chunks add.
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            for at in range(0, len(hidden), CHUNK):
                part = slice(at, at + CHUNK)
                pull = (hidden[part] @ weight.T).float().div_(ctx.temperature)
                pull.sub_(sums[part, None]).exp_().neg_()
                pull.scatter_add_(1, labels[part, None], torch.ones_like(sums[part, None]))
                pull = pull.mul_(grad[part, None] / ctx.temperature).to(hidden.dtype)
                d_hidden[part] = pull @ weight
                if d_weight is not None:
                    d_weight += pull.T @ hidden[part]
            return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None

    return LogProbs
