"""The packed policy pass: the prompt once, its whole group behind it, in one row.

    [prompt without its last token] [last token, completion 1 without its last] [last token, completion 2 ...] ...

Each segment attends to the prompt and to itself, and keeps the positions it would have alone. So log-probs and gradients
are those of one sample at a time, while the prompt, with all its video tokens, is read once whatever the group size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from labkit.policy.inputs import Prompt


class Packed(NamedTuple):
    """Model inputs of one row per prompt, and the token that each place predicts, (B, L), -100 where none."""

    inputs: dict[str, Any]
    labels: torch.Tensor
    mask: torch.Tensor
    """(rows, C) bool, the completions' own layout."""

    def log_probs(self, model: Any, temperature: float = 1.0, entropy: bool = False) -> tuple[Any, Any]:
        """Log-probs of the predicted tokens, and the entropies of the distributions they were drawn from.

        Both (rows, C) in the completions' own layout; entropies are None unless asked for, and carry no gradient.
        """
        # No logits for what all rows begin with, the video: a real vocabulary makes them larger than anything else.
        begin = int((self.labels != -100).any(0).nonzero()[0])
        labels = self.labels[:, begin:]
        logits = model(**self.inputs, use_cache=False, logits_to_keep=labels.shape[1]).logits
        shown = labels != -100
        log_probs = (logits[shown].float() / temperature).log_softmax(-1)
        picked = log_probs.gather(1, labels[shown][:, None])[:, 0]
        spread = None
        if entropy:
            flat = log_probs.detach()
            spread = self._scatter(-(flat.exp() * flat).sum(-1))
        return self._scatter(picked), spread

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def pack(prompts: Sequence[Prompt], completions: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]) -> Packed:
    """Put the groups of several prompts into one padded batch.

    completions, mask: (rows, C), right-padded; the first `sizes[0]` rows answer `prompts[0]`, and so on.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from labkit.policy.inputs import vision_kwargs

    device = completions.device
    mask = mask.bool()
    ids, positions, labels, segments = [], [], [], []
    steps = torch.arange(completions.shape[1], device=device)
    for prompt, group, shown in zip(prompts, completions.split(list(sizes)), mask.split(list(sizes)), strict=True):
        head, last = prompt.ids[:-1].to(device), prompt.ids[-1:].to(device)
        place = prompt.positions.to(device)
        shifted = torch.cat([last.expand(len(group), 1), group[:, :-1]], 1)
        number = torch.arange(1, len(group) + 1, device=device)[:, None].expand_as(group)
        after = (place[:, -1, None, None] + steps).expand(-1, len(group), -1)
        ids.append(torch.cat([head, shifted[shown]]))
        positions.append(torch.cat([place[:, :-1], after[:, shown]], 1).T)
        labels.append(torch.cat([torch.full_like(head, -100), group[shown]]))
        segments.append(torch.cat([torch.zeros_like(head), number[shown]]))
    segment = pad_sequence(segments, batch_first=True, padding_value=-1)
    causal = torch.ones(segment.shape[1], segment.shape[1], dtype=torch.bool, device=device).tril()
    allowed = causal & ((segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None]))
    filler = int(prompts[0].ids[-1])  # a text token, whatever the vocabulary
    inputs = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=filler),
        "position_ids": pad_sequence(positions, batch_first=True).permute(2, 0, 1),
        "attention_mask": allowed[:, None],
        **vision_kwargs(prompts, device),
    }
    return Packed(inputs, pad_sequence(labels, batch_first=True, padding_value=-100), mask)
