"""Log-probs of a group in one packed forward pass: the prompt once, all its completions behind it, without padding.

    [prompt without its last token] [last token, completion 1 without its last] [last token, completion 2 ...] ...

Each completion attends to the prompt and to itself (`labkit.policy.attention`), and has the positions it would have alone. So
log-probs and gradients are those of one sample at a time, while the prompt, with all its video tokens, is computed once whatever the
group size. Prompts about one clip with a common prefix share the clip in the same way.

Logits are computed in chunks of a few hundred tokens, forward and backward: with a real vocabulary those of one long group would be
larger than the model.

Shapes: L tokens of the packed sequence, C tokens of the longest completion, N predicted tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.attention import Layout, PackedRow, install_attention, no_attention_mask
from labkit.policy.inputs import Prompt, position_ids, vision_kwargs
from labkit.policy.plain import plain_groups

if TYPE_CHECKING:
    import torch

LOGIT_CHUNK = 512
"""Tokens whose logits are in memory at once: 0.3 GB in float32 for a vocabulary of 152,000."""


class PackedGroups(NamedTuple):
    """One packed sequence of prompts and their completions."""

    inputs: dict[str, Any]
    """Arguments of the model, (1, L)."""
    labels: torch.Tensor
    """(L,) the token that each position predicts, -100 where none."""
    mask: torch.Tensor
    """(rows, C) bool: the completions' tokens, right-padded."""

    def log_probs(self, model: Any, temperature: float = 1.0, entropy: bool = False) -> tuple[Any, Any]:
        """Log-probs of the predicted tokens, and the entropies of the distributions they were drawn from.

        Both are (rows, C), 0 at padding; entropies are None unless `entropy`, and carry no gradient. `model` itself is called,
        once, so that its wrappers (LoRA, DDP, FSDP) and their hooks run.
        """
        base = unwrap_model(model)
        install_attention(base)
        predicting = self.labels != -100
        with _log_probs_for_logits(base.get_output_embeddings(), self.labels[predicting], temperature, entropy):
            scores = model(**self.inputs, use_cache=False, logits_to_keep=predicting).logits
        entropies = self._scatter(scores[..., 1].detach().flatten()) if entropy else None
        return self._scatter(scores[..., 0].flatten()), entropies

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def pack_shared_prefix(
    prompts: Sequence[Prompt], completions: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> Any:
    """The groups of several prompts as `PackedGroups`, in one sequence, or as `PlainGroups` where a processor made the prompts.

    completions, mask: (rows, C), right-padded; the first `sizes[0]` rows belong to `prompts[0]`, and so on. Neighbours
    among the prompts that ask about one clip share their common prefix.
    """
    import torch

    if prompts[0].inputs is not None:
        return plain_groups(prompts, completions, mask, sizes)
    device = completions.device
    mask = mask.bool()
    steps = torch.arange(completions.shape[1])
    groups = list(zip(prompts, completions.cpu().split(list(sizes)), mask.cpu().split(list(sizes)), strict=True))
    ids, positions, labels, rows, videos = [], [], [], [], []
    begin = 0
    for end in shared_clip_ends(prompts):
        first = prompts[begin]
        prefix = shared_prefix_length(prompts[begin:end])
        ids.append(first.ids[:prefix])
        positions.append(first.positions[:, :prefix])
        labels.append(torch.full((prefix,), -100))
        suffixes = []
        for prompt, group, valid in groups[begin:end]:
            rest, position = prompt.ids[prefix:], prompt.positions
            for completion, tokens in zip(group, valid, strict=True):
                completion = completion[tokens]
                if len(completion) == 0:
                    continue
                suffixes.append(len(rest) + len(completion) - 1)
                ids += [rest, completion[:-1]]
                positions += [position[:, prefix:], position[:, -1:] + 1 + steps[: len(completion) - 1]]
                labels += [torch.full((len(rest) - 1,), -100), completion]
        rows.append(PackedRow(prefix + suffixes[0]) if len(suffixes) == 1 else PackedRow(prefix, tuple(suffixes)))
        videos.append(first)
        begin = end
    inputs = {
        "input_ids": torch.cat(ids)[None].to(device),
        "position_ids": position_ids(torch.cat(positions, 1)[:, None]).to(device),
        "attention_mask": no_attention_mask(device),
        "layout": Layout(rows),
        **vision_kwargs(videos, device),
    }
    return PackedGroups(inputs, torch.cat(labels).to(device), mask)


def prompt_token_indices(prompts: Sequence[Prompt]) -> list[torch.Tensor]:
    """Indices of each prompt's tokens in what `pack_shared_prefix` makes of prompts with one completion of one token each."""
    import torch

    indices, begin, at = [], 0, 0
    for end in shared_clip_ends(prompts):
        prefix = torch.arange(at, at + shared_prefix_length(prompts[begin:end]))
        at += len(prefix)
        for prompt in prompts[begin:end]:
            rest = len(prompt.ids) - len(prefix)
            indices.append(torch.cat([prefix, torch.arange(at, at + rest)]))
            at += rest
        begin = end
    return indices


def shared_clip_ends(prompts: Sequence[Prompt]) -> Iterator[int]:
    """End index of each run of neighbouring prompts that share a clip."""
    begin = 0
    for at in range(1, len(prompts) + 1):
        if at == len(prompts) or shared_prefix_length([prompts[begin], prompts[at]]) == 0:
            yield at
            begin = at


def shared_prefix_length(prompts: Sequence[Prompt]) -> int:
    """Length of the common prefix of a prompt, or of several about one clip, that leaves each at least one token of its own.

    0 where they have different clips, or differ before the clip ends: a clip's placeholders stay together.
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


def unwrap_model(model: Any) -> Any:
    """The Hugging Face model inside its wrappers: DDP, LoRA."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _log_probs_for_logits(head: Any, labels: torch.Tensor, temperature: float, entropy: bool) -> Iterator[None]:
    """Within the context the output layer returns (N, 2), log-prob and entropy, in the place of (N, V) logits.

    Computed inside the model's own forward, so that FSDP has gathered the layer's weight and finds its gradient.
    """
    import torch

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        log_probs, entropies = _autograd_function().apply(
            hidden.flatten(0, -2), head.weight, labels, temperature, entropy
        )
        return torch.stack([log_probs, entropies], -1)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@functools.cache
def _autograd_function() -> Any:
    import torch

    class LogProbs(torch.autograd.Function):
        """Log-softmax of `hidden @ weight.T / temperature` at the labels; logits are recomputed in the backward pass."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, labels: Any, temperature: float, entropy: bool) -> Any:
            parts = []
            for rows, targets in zip(hidden.split(LOGIT_CHUNK), labels.split(LOGIT_CHUNK), strict=True):
                logits = (rows @ weight.T).float().div_(temperature)
                lse = logits.logsumexp(-1)
                log_probs = logits.gather(1, targets[:, None])[:, 0] - lse
                entropies = torch.zeros_like(lse)
                if entropy:
                    probs = (logits - lse[:, None]).exp_()
                    entropies = lse - probs.mul_(logits).sum(-1)
                parts.append((log_probs, entropies, lse))
            log_probs, entropies, lse = (torch.cat(part) for part in zip(*parts, strict=True))
            ctx.save_for_backward(hidden, weight, labels, lse)
            ctx.temperature = temperature
            ctx.mark_non_differentiable(entropies)
            return log_probs, entropies

        @staticmethod
        def backward(ctx: Any, grad: Any, _: Any) -> Any:
            hidden, weight, labels, lse = ctx.saved_tensors
            d_hidden = torch.empty_like(hidden)
            # Accumulated in float32: in bfloat16 the later chunks would be rounded away.
            d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
            for at in range(0, len(hidden), LOGIT_CHUNK):
                part = slice(at, at + LOGIT_CHUNK)
                d_logits = (hidden[part] @ weight.T).float().div_(ctx.temperature)
                d_logits.sub_(lse[part, None]).exp_().neg_()
                d_logits.scatter_add_(1, labels[part, None], torch.ones_like(lse[part, None]))
                d_logits = d_logits.mul_(grad[part, None] / ctx.temperature).to(hidden.dtype)
                d_hidden[part] = d_logits @ weight
                if d_weight is not None:
                    d_weight += d_logits.T @ hidden[part]
            return d_hidden, None if d_weight is None else d_weight.to(weight.dtype), None, None, None

    return LogProbs
