"""The plain path: log-probs and samples of any image-text-to-text model of transformers, through its own inputs, cache and attention.

Nothing is shared. Each completion is a pass of its own over its prompt and all its frames, and sampling is transformers' `generate`
with our choice of tokens. So it is as correct as the model's own code, for models that `labkit.policy.families` does not know, and
slower: by the group size and the vision tower's cost.

Shapes: P prompt tokens, C tokens of the longest completion, V vocabulary, G completions of a prompt.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import LabError
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy, fsdp_modules
from labkit.policy.processors import PER_TOKEN

if TYPE_CHECKING:
    import torch


class PlainGroups(NamedTuple):
    """Prompts and their completions, one pass for each completion."""

    rows: list[tuple[Prompt, torch.Tensor]]
    """Each completion (C,) without padding, and its prompt."""
    mask: torch.Tensor
    """(rows, C) bool: the completions' tokens, right-padded."""

    def log_probs(self, model: Any, temperature: float = 1.0, entropy: bool = False) -> tuple[Any, Any]:
        """As `labkit.policy.packed_logprobs.PackedGroups.log_probs`; `model` itself is called, once for each completion."""
        import torch

        log_probs = [torch.zeros(0, device=self.mask.device)]
        entropies = list(log_probs)
        for prompt, completion in self.rows:
            logits = completion_logits(model, prompt, completion).div(temperature)
            table = logits.log_softmax(-1)
            log_probs.append(table.gather(1, completion[:, None])[:, 0])
            if entropy:
                with torch.no_grad():
                    entropies.append(-(table.exp() * table).sum(-1))
        return self._scatter(torch.cat(log_probs)), self._scatter(torch.cat(entropies)) if entropy else None

    def _scatter(self, values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)


def plain_groups(
    prompts: Sequence[Prompt], completions: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> PlainGroups:
    """As `labkit.policy.packed_logprobs.pack_shared_prefix`, of prompts that a processor made."""
    mask = mask.bool()
    owners = [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    rows = [
        (prompt, completion[shown])
        for prompt, completion, shown in zip(owners, completions, mask, strict=True)
        if shown.any()
    ]
    return PlainGroups(rows, mask)


def completion_logits(model: Any, prompt: Prompt, completion: torch.Tensor) -> torch.Tensor:
    """Logits (C, V) in float32 of each token of a completion (C,), from one pass without a cache."""
    import torch

    ids = torch.cat([prompt.ids.to(completion.device), completion[:-1]])
    some = {"logits_to_keep": len(completion)} if _takes(model, "logits_to_keep") else {}
    out = model(input_ids=ids[None], **model_inputs(prompt, len(ids), completion.device), use_cache=False, **some)
    return out.logits[0, -len(completion) :].float()


def model_inputs(prompt: Prompt, length: int, device: Any) -> dict[str, Any]:
    """What the processor made of a prompt, for `length` tokens: those behind it are text."""
    import torch

    made = {}
    for name, value in (prompt.inputs or {}).items():
        if name in PER_TOKEN:
            value = torch.nn.functional.pad(value, (0, length - value.shape[1]), value=int(name == "attention_mask"))
        made[name] = value.to(device) if hasattr(value, "to") else value
    return made


def generate_plainly(
    policy: Policy,
    prompt: Prompt,
    rows: int,
    length: int,
    choose: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> list[list[int]]:
    """Token ids of `rows` completions of one prompt; `choose` maps logits (rows, V) and the token's number (1,) to tokens (rows, 1).

    Raises LabError where the weights are sharded over processes.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessor

    base = policy.base
    if fsdp_modules(policy.model):
        raise LabError(
            f"sharding: fsdp2 is not for models without shared prefixes, such as {policy.name!r}; use sharding: ddp"
        )

    class Choose(LogitsProcessor):
        at = torch.zeros(1, dtype=torch.long, device=policy.device)

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            chosen = choose(scores, self.at)
            self.at = self.at + 1
            return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)

    ids = prompt.ids[None].to(policy.device)
    # A checkpoint's own settings, such as a penalty of repetitions, would fill in what is not set here.
    theirs, base.generation_config = base.generation_config, GenerationConfig()
    try:
        with torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):
            out = base.generate(
                input_ids=ids, **model_inputs(prompt, ids.shape[1], policy.device), logits_processor=[Choose()],
                generation_config=GenerationConfig(
                    max_new_tokens=length, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_return_sequences=rows,
                    eos_token_id=policy.eos_ids or None, pad_token_id=policy.pad_id,
                ),
            )  # fmt: skip
    finally:
        base.generation_config = theirs
    return [list(map(int, row[ids.shape[1] :])) for row in out]


def _takes(model: Any, name: str) -> bool:
    while hasattr(model, "module"):
        model = model.module
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return name in inspect.signature(base.forward).parameters
