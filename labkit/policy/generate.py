"""A group of completions from one vision pass and one prefill per prompt.

The decode loop is our own because it is exact, short and quicker than `model.generate` here: rows that have ended leave the
batch, masks are built once, and each row draws from its own stream of random numbers, so that what is sampled for a prompt
depends on neither its neighbours nor the batch size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from labkit.policy.inputs import Prompt
    from labkit.policy.model import Policy

DROP_SHARE = 8
"""Ended rows leave the batch once they are at least one in this many: leaving costs a copy of the cache."""


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
    prompt and weights give the same completions, whatever else stands in the batch (up to floating-point rounding).
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
            rows = _decode(policy, prompts, num, max_new_tokens, temperature, draws)
    finally:
        policy.model.train(training)
    texts = policy.tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ends = set(policy.eos_ids)
    return [Completion(ids, text, ids[-1] in ends) for ids, text in zip(rows, texts, strict=True)]


def _draws(seed: int, qid: str, num: int, length: int) -> torch.Tensor:
    """Uniform numbers in [0, 1) for one prompt, shape (num, length), from the prompt's own stream."""
    import torch

    stream = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{qid}".encode()))
    return torch.rand(num, length, generator=stream)


def _decode(
    policy: Policy, prompts: Sequence[Prompt], num: int, length: int, temperature: float, draws: torch.Tensor | None
) -> list[list[int]]:
    import torch

    from labkit.policy.inputs import left_pad, vision_kwargs

    model, device = policy.model, policy.device
    suppressed = torch.tensor(policy.never_written, device=device)
    ends = torch.tensor(policy.eos_ids, device=device)

    def pick(logits: torch.Tensor, at: int) -> torch.Tensor:
        logits = logits.float().index_fill(-1, suppressed, -torch.inf)
        if draws is None:
            return logits.argmax(-1)
        # The token at which the distribution function passes the row's own number; never one behind the last that has
        # any mass, to where a product that is rounded up would lead.
        mass = (logits / temperature).softmax(-1).cumsum(-1)
        whole = mass[:, -1:].contiguous()
        found = torch.searchsorted(mass, draws[alive, at, None] * whole, right=True)
        return torch.minimum(found, torch.searchsorted(mass, whole))[:, 0]

    ids = left_pad([p.ids for p in prompts], policy.pad_id).to(device)
    mask = left_pad([torch.ones_like(p.ids) for p in prompts], 0).to(device)
    positions = left_pad([p.positions for p in prompts], 0).to(device)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **vision_kwargs(prompts, device),
    )
    cache, logits = out.cache, out.logits[:, -1].repeat_interleave(num, 0)
    cache.batch_repeat_interleave(num)
    seen = torch.nn.functional.pad(mask.bool(), (0, length), value=True).repeat_interleave(num, 0)[:, None, None]
    behind = positions[..., -1:].repeat_interleave(num, 1)  # text goes on behind the video's last position
    alive = torch.arange(len(prompts) * num, device=device)
    tokens = torch.zeros(len(alive), length, dtype=torch.long, device=device)
    lengths = torch.full_like(alive, length)
    width = ids.shape[1]
    for at in range(length):
        chosen = pick(logits, at)
        tokens[alive, at] = chosen
        ended = torch.isin(chosen, ends) & (lengths[alive] == length)
        lengths[alive[ended]] = at + 1
        running = lengths[alive] == length
        if at + 1 == length or not running.any():
            break
        if DROP_SHARE * int((~running).sum()) >= len(alive):
            keep = running.nonzero()[:, 0]
            alive, chosen, seen, behind = alive[keep], chosen[keep], seen[keep], behind[:, keep]
            cache.batch_select_indices(keep)
        out = model(
            input_ids=chosen[:, None],
            attention_mask=seen[..., : width + at + 1],
            position_ids=behind + at + 1,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[:, -1]
    return [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
