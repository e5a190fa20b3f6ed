"""Keys and values of a group that answers: each prompt's kept once, and behind it each row's own.

A cache of transformers repeats a prompt for every member of its group and copies all of it for every token. Here the prompt, with all
its video tokens, stays where the first pass left it, and a row owns no more than the tokens that it writes, in room that is there
from the start: nothing moves from token to token, so that a GPU may replay one recorded step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.attention import over_prompts

if TYPE_CHECKING:
    import torch


class SharedCache:
    """Goes through a transformers model as `cache`: first over the line of all prompts, then token by token.

    N prompts of at most P tokens, A rows that write, K key heads of width d.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.prompts: list[tuple[torch.Tensor, torch.Tensor]] = []
        """By layer, keys and values: (1, K, L, d) of the line, after `divide` (N, K, P, d)."""
        self.own: list[tuple[torch.Tensor, torch.Tensor]] = []
        """By layer, keys and values: (A, K, room, d)."""
        self.owners: torch.Tensor
        """(A,) on the CPU: whose row it is."""
        self.at: torch.Tensor
        """(1,) where in a row's own room the next token goes."""
        self.lengths: list[int] = []
        """Tokens of each prompt."""
        self.width = 0
        """How much of a row's own room is looked at."""
        self.unseen: torch.Tensor | None = None
        """(1, 1, 1, width): -inf where nothing is written yet; None when `width` ends at the newest token."""

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any) -> tuple[Any, Any]:
        """What transformers calls in each layer, with keys and values (rows, K, tokens, d)."""
        if not self.own:
            self.prompts.append((key, value))
            return key, value
        for room, new in zip(self.own[layer], (key, value), strict=True):
            room.index_copy_(2, self.at, new)
        return Reach(self, layer), None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Transformers asks; positions and masks are ours, so that nothing depends on the answer."""
        return 0

    def divide(self, places: Sequence[torch.Tensor], group: int, room: int) -> None:
        """Go over to writing: `places` of each prompt's tokens in the line, `group` rows each, `room` tokens a row."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        line = self.prompts[0][0]
        self.lengths = [len(place) for place in places]
        index = pad_sequence(list(places), batch_first=True).to(line.device)
        beyond = (torch.arange(index.shape[1]) >= torch.tensor(self.lengths)[:, None]).to(line.device)
        self.padding = torch.zeros(index.shape, device=line.device).masked_fill_(beyond, -torch.inf)[:, None, None]
        for layer, pair in enumerate(self.prompts):
            # (1, K, L, d) to (N, K, P, d), a layer at a time: the line's own are let go of as it goes.
            self.prompts[layer] = tuple(x[0][:, index].transpose(0, 1).contiguous() for x in pair)  # type: ignore[assignment]
        rows = len(places) * group
        shape = (rows, line.shape[1], room, line.shape[3])
        self.own = [(line.new_zeros(shape), line.new_zeros(shape)) for _ in self.prompts]
        self.at = torch.zeros(1, dtype=torch.long, device=line.device)
        self.owners = torch.arange(len(places)).repeat_interleave(group)
        self._arrange()

    def keep(self, rows: torch.Tensor) -> None:
        """Let all rows go but these, given as ascending indices on the CPU, and the prompts that no row asks for."""
        index = rows.to(self.at.device)
        self.own = [tuple(x[index] for x in pair) for pair in self.own]  # type: ignore[misc]
        left, self.owners = self.owners[rows].unique(return_inverse=True)
        if len(left) < len(self.lengths):
            self.lengths = [self.lengths[prompt] for prompt in left.tolist()]
            index = left.to(self.at.device)
            self.padding = self.padding[index]
            self.prompts = [tuple(x[index] for x in pair) for pair in self.prompts]  # type: ignore[misc]
        self._arrange()

    def look(self, width: int, exact: bool) -> None:
        """Set what is seen of the rows' own tokens: `exact` where the newest one is the last of `width`."""
        import torch

        self.width = width
        self.unseen = None
        if not exact:
            later = torch.arange(width, device=self.at.device) > self.at
            self.unseen = torch.zeros(width, device=self.at.device).masked_fill_(later, -torch.inf)[None, None, None]

    def _arrange(self) -> None:
        """Rows in a rectangle, prompts x members: the shape in which a prompt is multiplied with all its rows at once."""
        import torch

        members = self.owners.bincount()
        self.members = int(members.max())
        begin = members.cumsum(0) - members
        slots = self.owners * self.members + torch.arange(len(self.owners)) - begin[self.owners]
        full = len(slots) == len(members) * self.members
        self.slots = None if full else slots.to(self.at.device)


class Reach(NamedTuple):
    """All that the rows may look at in one layer, where transformers would have a tensor of keys."""

    cache: SharedCache
    layer: int

    def attend(self, query: torch.Tensor, scale: float) -> torch.Tensor:
        """(A, H, 1, d) queries to (A, 1, H, d) outputs."""
        import torch

        cache = self.cache
        keys, values = cache.prompts[self.layer]
        own_keys, own_values = (x[:, :, : cache.width] for x in cache.own[self.layer])
        prompts, heads, length, width = keys.shape
        query = query.view(len(query), heads, -1, width)
        shares = query.shape[2]  # query heads of one key head

        def together(x: torch.Tensor) -> torch.Tensor:
            """(A, K, Q, n) to (N, K, members * Q, n)."""
            if cache.slots is not None:
                x = x.new_zeros(prompts * cache.members, *x.shape[1:]).index_copy_(0, cache.slots, x)
            return x.unflatten(0, (prompts, cache.members)).transpose(1, 2).flatten(2, 3)

        def apart(x: torch.Tensor) -> torch.Tensor:
            """The way back."""
            x = x.unflatten(2, (cache.members, shares)).transpose(1, 2).flatten(0, 1)
            return x if cache.slots is None else x[cache.slots]

        # The prompt's part of each softmax counts as one more key, its log-sum, whose value is what it came to.
        seen, sums = over_prompts(together(query), keys, values, cache.lengths, cache.padding, scale)
        own = _product(query, own_keys.transpose(-1, -2)).mul_(scale)
        if cache.unseen is not None:
            own += cache.unseen
        weights = torch.cat([apart(sums[..., None]), own], -1).softmax(-1).to(query.dtype)
        out = apart(seen) * weights[..., :1] + weights[..., 1:] @ own_values
        return out.flatten(1, 2)[:, None]


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(B, K, m, d) @ (B, K, d, n) in float32: scores in bfloat16 would be off by a hundredth."""
    import torch

    if left.dtype == torch.float32:
        return left @ right
    if left.device.type == "cpu":
        return (left @ right).float()
    flat = torch.bmm(left.flatten(0, 1), right.flatten(0, 1), out_dtype=torch.float32)
    return flat.unflatten(0, left.shape[:2])
