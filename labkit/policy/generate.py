"""Sampling of completions: one prefill for each prompt, a decode loop with a shared-prefix KV cache, CUDA graphs.

The decode loop is our own because it is exact and shares a group's prompt (`labkit.policy.kv_cache`): its keys and values are kept
once, rows that have finished leave the batch, and each row has its own random number generator, so that what is sampled for a prompt
depends on neither the rest of the batch nor its size. On a GPU one step is captured as a CUDA graph and replayed.

Shapes: A active rows (completions not finished), V vocabulary.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.policy.adapters import merged
from labkit.policy.attention import install_attention, no_attention_mask
from labkit.policy.decode_pass import DecodePass, can_decode, require_same
from labkit.policy.forbidden_text import ForbiddenText
from labkit.policy.inputs import Prompt, position_ids
from labkit.policy.kv_cache import SharedPrefixCache, cache_argument
from labkit.policy.model import Policy, fsdp_modules
from labkit.policy.packed_logprobs import pack_shared_prefix, prompt_token_indices
from labkit.policy.plain import generate_plainly

if TYPE_CHECKING:
    import torch

COMPACT_FRACTION = 8
"""Finished rows leave the batch once they are at least one in this many: it costs a copy of the generated keys and values."""
GRAPH_COMPACT_FRACTION = 2
"""The same with a CUDA graph, which has to be captured anew."""
FEWEST_ROWS = 4
"""Rows that stay, finished or not: products of fewer are rounded otherwise, and a row would depend on when the others end."""
EOS_CHECK_INTERVAL = 8
"""Steps of a CUDA graph between two checks for finished rows: each one waits for the GPU."""
GRAPH_WIDTH_STEP = 512
"""A CUDA graph attends to a multiple of this many generated tokens, of which those to come are masked."""

_checked: set[type] = set()
"""Classes of models whose compiled pass this process has held against their own modules."""


class Completion(NamedTuple):
    """One sampled completion: token ids (the end token included), their text without special tokens, whether it ended itself."""

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
    forbid: str = "",
) -> list[Completion]:
    """Completions of each prompt, `num` in a row: `result[i * num + k]` is the k-th of `prompts[i]`.

    A completion that a prompt has begun (`Prompt.begun`) is gone on with: its text is whole, its ids are the new ones. Text that is
    to `forbid` is impossible in what is generated, see `labkit.policy.forbidden_text`.

    Sampling is from the full softmax at `temperature`; placeholders of videos and padding are never sampled. The same seed,
    prompt and weights give the same completions, whatever else is in the batch (up to floating-point rounding). Neighbours
    among the prompts that ask about one clip share its prefill where their words follow the video.
    """
    import torch

    if not prompts:
        return []

    def choice(asked: Sequence[Prompt]) -> _TokenChoice:
        uniforms = None if greedy else torch.cat([_uniforms(seed, each.qid, num, max_new_tokens) for each in asked])
        return _TokenChoice(policy, [each for each in asked for _ in range(num)], temperature, uniforms, forbid)

    training = policy.model.training
    policy.model.eval()  # gradient checkpointing refuses a cache in training mode
    try:
        with torch.no_grad(), merged(policy.model) if policy.merge else nullcontext():
            if prompts[0].inputs is None:
                rows = _DecodeLoop(policy, prompts, num, max_new_tokens, choice(prompts)).run()
            else:  # the plain path, prompt by prompt
                plain = [generate_plainly(policy, each, num, max_new_tokens, choice([each])) for each in prompts]
                rows = [row for each in plain for row in each]
    finally:
        policy.model.train(training)
    ends = set(policy.eos_ids)
    rows = [row[: next((at for at, token in enumerate(row, 1) if token in ends), len(row))] for row in rows]
    begun = [_begun(prompt) for prompt in prompts for _ in range(num)]
    whole = [first + row for first, row in zip(begun, rows, strict=True)]
    texts = policy.tokenizer.batch_decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [Completion(ids, text, ids[-1] in ends) for ids, text in zip(rows, texts, strict=True)]


def _begun(prompt: Prompt) -> list[int]:
    """The tokens of the completion that stand in the prompt already."""
    return [int(token) for token in prompt.ids[len(prompt.ids) - prompt.begun :]]


def _uniforms(seed: int, qid: str, num: int, length: int) -> torch.Tensor:
    """(num, length) uniform numbers in [0, 1) for one prompt, from a generator of its own."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{qid}".encode()))
    return torch.rand(num, length, generator=generator)


class _TokenChoice:
    """Which token each row takes: placeholders, padding and forbidden text never, by the rows' own uniform numbers or the largest."""

    def __init__(
        self, policy: Policy, rows: Sequence[Prompt], temperature: float, uniforms: torch.Tensor | None, forbid: str
    ) -> None:
        import torch

        self.temperature = temperature
        self.uniforms = None if uniforms is None else uniforms.to(policy.device)
        self.suppressed = torch.tensor(policy.suppress_tokens, device=policy.device)
        self.forbidden = None
        if forbid:
            begun = policy.tokenizer.batch_decode([_begun(prompt) for prompt in rows])
            self.forbidden = ForbiddenText(policy, forbid, begun)

    def __call__(self, logits: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """Tokens (A, 1) from logits (A, V), as those number `at` (1,) of their rows."""
        import torch

        logits = logits.float().index_fill(-1, self.suppressed, -torch.inf)
        if self.forbidden is not None:
            logits = self.forbidden.mask(logits)
        if self.uniforms is None:
            chosen = logits.argmax(-1, keepdim=True)
        else:
            # Inverse transform sampling: the token at which the cumulative distribution passes the row's uniform number;
            # clamped to the last token that has any mass, since a rounded product may exceed the total.
            cumulative = (logits / self.temperature).softmax(-1).cumsum(-1)
            total = cumulative[:, -1:].contiguous()
            sampled = torch.searchsorted(cumulative, self.uniforms.index_select(1, at) * total, right=True)
            chosen = torch.minimum(sampled, torch.searchsorted(cumulative, total))
        if self.forbidden is not None:
            self.forbidden.follow(chosen)
        return chosen

    def keep_rows(self, index: torch.Tensor) -> None:
        """Drop all rows but these."""
        if self.forbidden is not None:
            self.forbidden.keep_rows(index)
        self.uniforms = None if self.uniforms is None else self.uniforms[index]


class _DecodeLoop:
    """The decode loop: active rows, their cache and generated tokens."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], num: int, length: int, choice: _TokenChoice) -> None:
        """Prefill, and the first token of each row."""
        import torch

        self.model, self.length, self.choice = policy.model, length, choice
        self.ends = torch.tensor(policy.eos_ids, device=policy.device)
        install_attention(policy.base)
        one = torch.ones(len(prompts), 1, dtype=torch.long, device=policy.device)
        packed = pack_shared_prefix(prompts, one, one, [1] * len(prompts))
        self.cache = SharedPrefixCache()
        self.cached = {cache_argument(policy.base): self.cache, "use_cache": True}
        """The model's arguments."""
        keep = packed.labels != -100
        logits = self.model(**packed.inputs, **self.cached, logits_to_keep=keep).logits
        self.cache.start_decoding(prompt_token_indices(prompts), num, length)
        self.active = torch.arange(len(prompts) * num)
        """(A,) indices of the rows that are not finished, on the CPU."""
        self.tokens = torch.zeros(len(self.active), length, dtype=torch.long, device=policy.device)
        self.finished = torch.zeros(len(self.active), dtype=torch.bool, device=policy.device)
        # Positions of the completion follow the prompt's last one.
        last = torch.stack([prompt.positions[:, -1] for prompt in prompts], 1).to(policy.device)
        self.row_to_prompt = torch.arange(len(prompts), device=policy.device).repeat_interleave(num)
        self.last_positions = last[:, self.row_to_prompt, None]
        fused = policy.fused and can_decode(policy.base)
        self.fused = DecodePass(policy.base, self.cache, last, length) if fused else None
        self.completed: dict[int, list[int]] = {}
        self._sample_next(logits.flatten(0, -2).repeat_interleave(num, 0))
        if self.fused is not None and self.fused.compiled:
            self._check_once(type(policy.base))

    def run(self) -> list[list[int]]:
        """The rows' tokens, in their order; what follows the end token has no meaning."""
        # The hooks of sharded modules are no work of the GPU; the fused pass calls none of them.
        use_graph = self.tokens.is_cuda and (self.fused is not None or not fsdp_modules(self.model))
        step: Callable[[], Any] | None = None
        for at in range(1, self.length):
            if not use_graph or at % EOS_CHECK_INTERVAL == 0:
                finished = self.finished.cpu()
                if finished.all():
                    break
                fraction, done = GRAPH_COMPACT_FRACTION if use_graph else COMPACT_FRACTION, int(finished.sum())
                if fraction * done >= len(finished) >= done + FEWEST_ROWS:
                    self._compact(finished)
                    step = None
            if not use_graph:
                self.cache.set_width(at, exact=True)
                self._decode_step()
            elif step is None or at > self.cache.width:
                width = min(-(-at // GRAPH_WIDTH_STEP) * GRAPH_WIDTH_STEP, self.length)
                self._decode_step(width)  # warm-up: libraries allocate their workspaces before a graph is captured
                step = self._capture_graph(width)
            else:
                step()
        self._compact(None)
        return [self.completed[row] for row in range(len(self.completed))]

    def _decode_step(self, width: int = 0) -> None:
        """Feed the newest token of each row and sample the next."""
        at = self.cache.position
        if width:
            self.cache.set_width(width, exact=False)
        logits = self._logits(at) if self.fused is None else self._fused_logits(at)
        at.add_(1)
        self._sample_next(logits)

    def _logits(self, at: torch.Tensor) -> torch.Tensor:
        out = self.model(
            input_ids=self.tokens.index_select(1, at),
            attention_mask=no_attention_mask(at.device),
            position_ids=position_ids(self.last_positions + at + 1),
            logits_to_keep=1,
            **self.cached,
        )
        return out.logits[:, -1]

    def _fused_logits(self, at: torch.Tensor) -> torch.Tensor:
        assert self.fused is not None
        return self.fused(self.tokens.index_select(1, at), at, self.row_to_prompt)

    def _check_once(self, kind: type) -> None:
        """Compile, and hold the first step of a process against the model's own modules: kernels differ from GPU to GPU."""
        if kind in _checked:
            return
        self.cache.set_width(min(GRAPH_WIDTH_STEP, self.length), exact=False)
        expected = self._logits(self.cache.position)
        try:
            found = self._fused_logits(self.cache.position)
        except Exception as error:  # of the compiler, the driver or a kernel
            raise LabError(f"fused decoding cannot be compiled here: {error}; set fused_decoding: false") from error
        require_same(found, expected)
        _checked.add(kind)

    def _sample_next(self, logits: torch.Tensor) -> None:
        at = self.cache.position
        chosen = self.choice(logits, at)
        self.tokens.index_copy_(1, at, chosen)
        self.finished |= (chosen == self.ends).any(-1)

    def _capture_graph(self, width: int) -> Callable[[], Any]:
        import torch

        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._decode_step(width)
        return graph.replay

    def _compact(self, finished: torch.Tensor | None) -> None:
        """Remove the finished rows from the batch and keep their tokens; all rows where `finished` is None."""
        import torch

        leaving = torch.ones(len(self.active), dtype=torch.bool) if finished is None else finished
        tokens = self.tokens.cpu()[leaving].tolist()
        self.completed |= dict(zip(self.active[leaving].tolist(), tokens, strict=True))
        rest = (~leaving).nonzero()[:, 0]
        if finished is not None:
            self.cache.keep_rows(rest)
            index = rest.to(self.tokens.device)
            self.active, self.tokens, self.finished = self.active[rest], self.tokens[index], self.finished[index]
            self.last_positions, self.row_to_prompt = self.last_positions[:, index], self.row_to_prompt[index]
            self.choice.keep_rows(index)
