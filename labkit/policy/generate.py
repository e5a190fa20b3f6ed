"""A group of completions from one vision pass and one prefill per prompt.

The decode loop is our own because it is exact and shares what a group has in common (`labkit.policy.kv_cache`): a prompt's keys and
values are kept once, rows that have ended leave, and each row draws from its own stream of random numbers, so that what is sampled for
a prompt depends on neither its neighbours nor the batch size. On a GPU one step is recorded and replayed: nothing waits for Python.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.policy.attention import install, no_mask
from labkit.policy.kv_cache import SharedCache
from labkit.policy.packed_logprobs import line_places, pack

if TYPE_CHECKING:
    import torch

    from labkit.policy.inputs import Prompt
    from labkit.policy.model import Policy

DROP_SHARE = 8
"""Ended rows leave the batch once they are at least one in this many: leaving costs a copy of what the rows have written."""
DROP_SHARE_RECORDED = 2
"""The same where a step is recorded, which has to be done anew."""
LOOK_EVERY = 8
"""Recorded steps between two looks at who has ended: to look is to wait for the GPU."""
WIDEN_BY = 512
"""Recorded steps look at a multiple of this many own tokens, written or not."""


class Completion(NamedTuple):
    """One sampled answer: token ids (the end token included), their text without special tokens, and whether it ended."""

    ids: list[int]
    text: str
    finished: bool


def generate(
    policy: Policy,
    prompts: Sequence[Prompt],
    num: int = 1,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    greedy: bool = False,
    seed: int = 0,
) -> list[Completion]:
    """Completions of each prompt, `num` in a row: `result[i * num + k]` is the k-th of `prompts[i]`.

    Sampling is from the full softmax at `temperature`; tokens that stand for pixels or padding are never produced. The same seed,
    prompt and weights give the same completions, whatever else stands in the batch (up to floating-point rounding). Neighbours among
    the prompts that ask about one clip share the pass over it where their words stand behind the video.
    """
    import torch

    if not prompts:
        return []
    draws = None
    if not greedy:
        draws = torch.cat([_draws(seed, prompt.qid, num, max_new_tokens) for prompt in prompts]).to(policy.device)
    training = policy.model.training
    policy.model.eval()  # gradient checkpointing refuses a cache in training mode
    try:
        with torch.no_grad():
            rows = _Writing(policy, prompts, num, max_new_tokens, temperature, draws).run()
    finally:
        policy.model.train(training)
    ends = set(policy.eos_ids)
    rows = [row[: next((at for at, token in enumerate(row, 1) if token in ends), len(row))] for row in rows]
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [Completion(ids, text, ids[-1] in ends) for ids, text in zip(rows, texts, strict=True)]


def _draws(seed: int, qid: str, num: int, length: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for one prompt, shape (num, length), from the prompt's own stream."""
    import torch

    stream = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{qid}".encode()))
    return torch.rand(num, length, generator=stream)


class _Writing:
    """Rows that are being written, one token of each at a time."""

    def __init__(
        self,
        policy: Policy,
        prompts: Sequence[Prompt],
        num: int,
        length: int,
        temperature: float,
        draws: torch.Tensor | None,
    ) -> None:
        """Read the prompts and choose the first token of each row."""
        import torch

        self.model, self.length, self.temperature, self.draws = policy.model, length, temperature, draws
        self.suppressed = torch.tensor(policy.never_written, device=policy.device)
        self.ends = torch.tensor(policy.eos_ids, device=policy.device)
        install(policy.base)
        one = torch.ones(len(prompts), 1, dtype=torch.long, device=policy.device)
        line = pack(prompts, one, one, [1] * len(prompts))
        self.cache = SharedCache()
        keep = (line.labels != -100)[None]
        logits = self.model(**line.inputs, cache=self.cache, use_cache=True, logits_to_keep=keep).logits
        self.cache.divide(line_places(prompts), num, length)
        self.alive = torch.arange(len(prompts) * num)
        """Which rows are left, on the CPU."""
        self.tokens = torch.zeros(len(self.alive), length, dtype=torch.long, device=policy.device)
        self.ended = torch.zeros(len(self.alive), dtype=torch.bool, device=policy.device)
        # Text goes on behind the video's last position.
        behind = torch.stack([prompt.positions[:, -1:] for prompt in prompts], 1).to(policy.device)
        self.behind = behind.repeat_interleave(num, 1)
        self.done: dict[int, list[int]] = {}
        self._choose(logits.flatten(0, -2).repeat_interleave(num, 0))

    def run(self) -> list[list[int]]:
        """The rows' tokens, in their order; behind the end token anything may stand."""
        recorded = self.tokens.is_cuda and not any(
            hasattr(weight, "device_mesh") for weight in self.model.parameters()
        )
        step: Callable[[], Any] | None = None
        for at in range(1, self.length):
            if not recorded or at % LOOK_EVERY == 0:
                ended = self.ended.cpu()
                if ended.all():
                    break
                if (DROP_SHARE_RECORDED if recorded else DROP_SHARE) * int(ended.sum()) >= len(ended):
                    self._leave(ended)
                    step = None
            if not recorded:
                self.cache.look(at, exact=True)
                self._advance()
            elif step is None or at > self.cache.width:
                width = min(-(-at // WIDEN_BY) * WIDEN_BY, self.length)
                self._advance(width)  # once by hand: libraries set themselves up
                step = self._record(width)
            else:
                step()
        self._leave(None)
        return [self.done[row] for row in range(len(self.done))]

    def _advance(self, width: int = 0) -> None:
        """Read the newest token of each row and choose the next."""
        at = self.cache.at
        if width:
            self.cache.look(width, exact=False)
        out = self.model(
            input_ids=self.tokens.index_select(1, at),
            attention_mask=no_mask(at.device),
            position_ids=self.behind + at + 1,
            cache=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        at.add_(1)
        self._choose(out.logits[:, -1])

    def _choose(self, logits: torch.Tensor) -> None:
        import torch

        at = self.cache.at
        logits = logits.float().index_fill(-1, self.suppressed, -torch.inf)
        if self.draws is None:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            # The token at which the distribution function passes the row's own number; never one behind the last that has
            # any mass, to where a product that is rounded up would lead.
            mass = (logits / self.temperature).softmax(-1).cumsum(-1)
            whole = mass[:, -1:].contiguous()
            found = torch.searchsorted(mass, self.draws.index_select(1, at) * whole, right=True)
            chosen = torch.minimum(found, torch.searchsorted(mass, whole))
        self.tokens.index_copy_(1, at, chosen)
        self.ended |= (chosen == self.ends).any(-1)

    def _record(self, width: int) -> Callable[[], Any]:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._advance(width)
        return graph.replay

    def _leave(self, ended: torch.Tensor | None) -> None:
        """Put away the rows that have ended, or all."""
        import torch

        leaving = torch.ones(len(self.alive), dtype=torch.bool) if ended is None else ended
        gone = self.tokens.cpu()[leaving].tolist()
        self.done |= dict(zip(self.alive[leaving].tolist(), gone, strict=True))
        rest = (~leaving).nonzero()[:, 0]
        if ended is not None:
            self.cache.keep(rest)
            index = rest.to(self.tokens.device)
            self.alive, self.tokens, self.ended = self.alive[rest], self.tokens[index], self.ended[index]
            self.behind = self.behind[:, index]
            self.draws = None if self.draws is None else self.draws[index]
