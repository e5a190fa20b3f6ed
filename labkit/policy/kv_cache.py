"""Shared-prefix KV cache: each prompt's keys and values once, and behind it those that each row generates.

A cache of transformers repeats a prompt for every completion of its group and concatenates all of it for every token. Here the
prompt, with all its video tokens, stays where prefill left it, and a row has keys and values of its generated tokens alone, in
tensors preallocated for all of them: nothing moves from token to token, so that a CUDA graph of one step can be replayed. Of a linear
layer, which has one state of all tokens, each row has a copy that it goes on with.

Shapes: N prompts of at most P tokens, L tokens of the packed prefill; A active rows, M rows of the largest group; H query heads,
K key/value heads of width d, Q = H / K; R preallocated tokens of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.attention import attend_to_own, attend_to_prompts

if TYPE_CHECKING:
    import torch


def cache_argument(model: Any) -> str:
    """The name under which a Hugging Face model takes a cache: `cache`, or `past_key_values` before transformers had that."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class SharedPrefixCache:
    """Passed to a transformers model as its cache: first for the packed prefill of all prompts, then token by token."""

    def __init__(self) -> None:
        """Empty, for prefill."""
        self.prompt_kv: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By layer, keys and values: (1, K, L, d) of the packed prefill, after `start_decoding` (N, K, P, d)."""
        self.generated_kv: dict[int, torch.Tensor] = {}
        """By layer, keys and values: (2, A, K, R, d)."""
        self.convolved: dict[int, torch.Tensor] = {}
        """By linear layer, inputs of its short convolution: (1, D, L) of the prefill, then each row's last ones (A, D, taps)."""
        self.states: dict[int, torch.Tensor] = {}
        """By linear layer, states of its recurrence: (N, H, d, d), then (A, H, d, d)."""
        self.taps = 0
        """Inputs that the convolution looks back on."""
        self.row_to_prompt: torch.Tensor
        """(A,) on the CPU: index of each row's prompt."""
        self.position: torch.Tensor
        """(1,) index in `generated_kv` of the next token."""
        self.prompt_lengths: list[int] = []
        """Tokens of each prompt."""
        self.width = 0
        """Tokens of `generated_kv` that are attended to."""
        self.future_mask: torch.Tensor | None = None
        """(1, 1, 1, width): -inf where nothing is generated yet; None when `width` ends at the newest token."""

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Called by transformers in each layer, with new keys and values (rows, K, tokens, d)."""
        import torch

        if not self.generated_kv:
            self.prompt_kv[layer] = (key, value)
            return key, value
        self.append(layer, torch.stack([key[:, :, 0], value[:, :, 0]]))
        return CacheView(self, layer), None

    def append(self, layer: int, new: torch.Tensor) -> None:
        """Keep keys and values (2, A, K, d) of each row's newest token."""
        self.generated_kv[layer].index_copy_(3, self.position, new[:, :, :, None])

    def get_conv_state(self, layer: int, **_: Any) -> torch.Tensor | None:
        """Called by transformers in each linear layer; its update while decoding is in place."""
        return self.convolved[layer] if self.generated_kv else None

    def get_recurrent_state(self, layer: int, **_: Any) -> torch.Tensor | None:
        """Called by transformers in each linear layer."""
        return self.states[layer] if self.generated_kv else None

    def update_conv_state(self, inputs: torch.Tensor, layer: int, conv_kernel_size: int = 0, **_: Any) -> torch.Tensor:
        """Called by transformers in each linear layer of the prefill."""
        self.convolved[layer], self.taps = inputs, conv_kernel_size - 1
        return inputs

    def update_recurrent_state(self, state: torch.Tensor, layer: int, **_: Any) -> None:
        """Called by transformers in each linear layer; in place while decoding, as a CUDA graph needs it."""
        if self.generated_kv:
            self.states[layer].copy_(state)
        else:
            self.states[layer] = state

    def is_recording_past(self, layer: int) -> bool:
        """Called by transformers: no state is kept for later."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Called by transformers; positions and masks are passed in, so that nothing depends on it."""
        return 0

    def start_decoding(self, token_indices: Sequence[torch.Tensor], group: int, max_new_tokens: int) -> None:
        """After prefill: take each prompt's keys and values, by its indices in the packed sequence, for `group` rows each."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        prefill = next(iter(self.prompt_kv.values()))[0]
        self.prompt_lengths = [len(indices) for indices in token_indices]
        index = pad_sequence(list(token_indices), batch_first=True).to(prefill.device)
        padding = (torch.arange(index.shape[1]) >= torch.tensor(self.prompt_lengths)[:, None]).to(prefill.device)
        self.padding_mask = torch.zeros(index.shape, device=prefill.device).masked_fill_(padding, -torch.inf)[
            :, None, None
        ]
        for layer, inputs in self.convolved.items():
            last = [inputs[0][:, indices[-self.taps :].to(prefill.device)] for indices in token_indices]
            tails = [torch.nn.functional.pad(tail, (self.taps - tail.shape[1], 0)) for tail in last]
            self.convolved[layer] = torch.stack(tails).repeat_interleave(group, 0)
            self.states[layer] = self.states[layer].repeat_interleave(group, 0)
        for layer, pair in self.prompt_kv.items():
            # (1, K, L, d) to (N, K, P, d), a layer at a time, so that the packed tensors are freed as it goes.
            self.prompt_kv[layer] = tuple(x[0][:, index].transpose(0, 1).contiguous() for x in pair)  # type: ignore[assignment]
        rows = len(token_indices) * group
        shape = (2, rows, prefill.shape[1], max_new_tokens, prefill.shape[3])
        self.generated_kv = {layer: prefill.new_zeros(shape) for layer in self.prompt_kv}
        self.position = torch.zeros(1, dtype=torch.long, device=prefill.device)
        self.row_to_prompt = torch.arange(len(token_indices)).repeat_interleave(group)
        self._set_slots()

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Drop all rows but these, given as ascending indices on the CPU, and the prompts that no row has any more."""
        index = rows.to(self.position.device)
        for layer, kv in self.generated_kv.items():
            # To the front, and only what is written already: new tensors for all that is to come would cost more than the copy.
            self.generated_kv[layer] = front = kv[:, : len(index)]
            front[:, :, :, : self.width] = kv[:, index, :, : self.width]
        self.convolved = {layer: inputs[index] for layer, inputs in self.convolved.items()}
        self.states = {layer: state[index] for layer, state in self.states.items()}
        left, self.row_to_prompt = self.row_to_prompt[rows].unique(return_inverse=True)
        if len(left) < len(self.prompt_lengths):
            self.prompt_lengths = [self.prompt_lengths[prompt] for prompt in left.tolist()]
            index = left.to(self.position.device)
            self.padding_mask = self.padding_mask[index]
            self.prompt_kv = {layer: (keys[index], values[index]) for layer, (keys, values) in self.prompt_kv.items()}
        self._set_slots()

    def set_width(self, width: int, exact: bool) -> None:
        """Attend to the first `width` generated tokens: `exact` where the newest one is the last of them."""
        import torch

        self.width = width
        self.future_mask = None
        if not exact:
            future = torch.arange(width, device=self.position.device) > self.position
            kind = next(iter(self.generated_kv.values())).dtype  # as the kernel of a GPU asks for it
            mask = torch.zeros(width, dtype=kind, device=self.position.device).masked_fill_(future, -torch.inf)
            self.future_mask = mask[None, None, None]

    def _set_slots(self) -> None:
        """Index of each row in a padded (N * M) batch, in which a prompt is multiplied with all its rows at once."""
        import torch

        sizes = self.row_to_prompt.bincount()
        self.group = int(sizes.max())
        begin = sizes.cumsum(0) - sizes
        rows = torch.arange(len(self.row_to_prompt))
        slots = self.row_to_prompt * self.group + rows - begin[self.row_to_prompt]
        full = len(slots) == len(sizes) * self.group
        device = self.position.device
        self.slots = None if full else slots.to(device)
        """(A,) where each row stands in the padded batch; None where that is each row's own number."""
        # What stands in the padding is computed and dropped.
        padded = torch.zeros(len(sizes) * self.group, dtype=torch.long).index_copy_(0, slots, rows)
        self.padded_rows = None if full else padded.to(device)
        """(N * M,) row at each place of the padded batch."""

    def attend(self, layer: int, query: torch.Tensor, scale: float, merge: Any = None) -> torch.Tensor:
        """(A, K, Q, d) queries to outputs of the same shape; `merge` is `merge_outputs`, compiled."""
        import torch

        keys, values = self.prompt_kv[layer]
        new_keys, new_values = self.generated_kv[layer][:, :, :, : self.width]
        padded = query if self.padded_rows is None else query[self.padded_rows]
        # (N * M, K, Q, d) to (N, K, M * Q, d): a prompt is multiplied with all its rows at once.
        padded = padded.unflatten(0, (len(keys), self.group)).transpose(1, 2).flatten(2, 3)
        prompt = attend_to_prompts(padded, keys, values, self.prompt_lengths, self.padding_mask, scale)
        if merge is not None:
            own = attend_to_own(query, new_keys, new_values, self.future_mask, scale)
            return merge(*prompt, *own, self.slots, self.group)
        # The prompt's part of each softmax counts as one more key: its score is the log-sum-exp, its value the output.
        out_prompt, lse = (_by_row(x, self.slots, self.group) for x in (prompt[0], prompt[1][..., None]))
        scores = _matmul_float32(query, new_keys.transpose(-1, -2)).mul_(scale)
        if self.future_mask is not None:
            scores += self.future_mask
        weights = torch.cat([lse, scores], -1).softmax(-1).to(query.dtype)
        return out_prompt * weights[..., :1] + weights[..., 1:] @ new_values


def merge_outputs(
    prompt: torch.Tensor, prompt_lse: torch.Tensor, own: torch.Tensor, own_lse: torch.Tensor, slots: Any, group: int
) -> torch.Tensor:
    """Two attentions of the same queries as one: to prompts, (N, K, M * Q, d), and to what the rows have generated, (A, K, Q, d)."""
    prompt, prompt_lse = _by_row(prompt, slots, group), _by_row(prompt_lse[..., None], slots, group)
    share = (prompt_lse - own_lse[..., None]).sigmoid()
    return (prompt * share + own * (1 - share)).to(own.dtype)


def _by_row(x: torch.Tensor, slots: torch.Tensor | None, group: int) -> torch.Tensor:
    """(N, K, M * Q, n) to (A, K, Q, n), without padding."""
    x = x.unflatten(2, (group, -1)).transpose(1, 2).flatten(0, 1)
    return x if slots is None else x[slots]


class CacheView(NamedTuple):
    """The cache of one layer, in the place of the tensor of keys that transformers hands to the attention function."""

    cache: SharedPrefixCache
    layer: int

    def attend(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(A, H, 1, d) queries to (A, 1, H, d) outputs."""
        heads = self.cache.prompt_kv[self.layer][0].shape[1]
        out = self.cache.attend(self.layer, query.unflatten(1, (heads, -1))[:, :, :, 0], scale)
        return out.flatten(1, 2)[:, None]


def _matmul_float32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, K, m, d) @ (B, K, d, n) in float32: scores in bfloat16 would be off by a hundredth."""
    import torch

    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":
        return (left @ right).float()
    flat = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return flat.unflatten(0, left.shape[:2])
