"""A GRPO stage whose rollouts are written by vLLM itself, and what can be held against it, as JSON on the last line.

python -m tests.stages.experimental.with_vllm FOLDER LORA_RANK
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from labkit.data.moments import read_moments
from labkit.data.video.frames import FrameCache
from labkit.embedded.world import write_world
from labkit.params import DEFAULTS
from labkit.policy.inputs import FrameSampling
from labkit.policy.model import Policy, load_policy, save_policy
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import PromptSource
from labkit.runs.export import write_processor
from labkit.stages import grpo
from labkit.stages.experimental import vllm_generation
from labkit.stages.experimental.vllm_generation import Generations, generate_rollouts, generate_with_vllm
from tests.stages import small


def log_probs(policy: Policy, prompts: list[Any], written: Generations, num: int) -> torch.Tensor:
    """Of each written token where what may not be sampled has no part: (all tokens,)."""
    rows = [torch.tensor(each.ids) for each in written.completions]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    packed = pack_shared_prefix(prompts, pad(rows), pad([torch.ones_like(row) for row in rows]), [num] * len(prompts))
    packed.log_probs(policy.model)  # installs labkit's attention
    at = packed.labels != -100
    with torch.no_grad():
        logits = policy.model(**packed.inputs, use_cache=False, logits_to_keep=at).logits[0]
    logits[:, policy.suppress_tokens] = -torch.inf
    return logits.log_softmax(-1).gather(1, packed.labels[at][:, None])[:, 0]


def main(folder: Path, lora_rank: int) -> dict[str, Any]:
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    import vllm
    import vllm._custom_ops
    from trl.generation import vllm_generation as trl_vllm

    torch.set_num_threads(1)
    write_world(folder / "world", 3, 1, 1, edition=1)
    moments = read_moments(folder / "world" / "train.jsonl")
    embedded = load_policy("embedded", device="cpu")
    save_policy(embedded, folder / "model")
    write_processor(embedded, DEFAULTS, folder / "model")  # of a pixel budget below that of the frames here
    load = partial(load_policy, str(folder / "model"), device="cpu", lora_rank=lora_rank)
    policy, start = load(), load()
    # Two frames last 2.1 s, which in 24 bits is a hair less: the sixth patch would come before its position, 21.
    sampling = FrameSampling(1 / 1.05, 16, 12544, 12544)
    source = PromptSource(policy, moments, template="query", sampling=sampling, cache=FrameCache(folder / "frames"))
    seen: dict[str, Any] = {"steps": []}
    kept: list[Any] = []

    def watched(trainer: Any, num: int, **options: Any) -> Generations:
        written = generate_rollouts(trainer, num, **options)
        told = torch.tensor([value for row in written.log_probs or [] for value in row])
        off = [log_probs(each, trainer.asked, written, num).sub(told).abs().max() for each in (trainer.policy, start)]
        seen["steps"].append([float(each) for each in off])
        kept[:] = [trainer.vllm_generation.llm, options]
        return written

    with (
        # Built for CPUs, it packs linear layers' weights when it loads them; those cannot be replaced.
        patch.object(vllm._custom_ops, "_supports_onednn", False),
        patch.object(vllm_generation, "require_vllm", lambda policy: None),
        patch.object(trl_vllm, "LLM", partial(vllm.LLM, dtype="float32", enforce_eager=True)),
        patch.object(grpo, "generate_rollouts", watched),
    ):
        small.train_grpo(
            policy,
            source,
            moments,
            folder / "run",
            grpo_steps=3,
            generation="vllm",
            learning_rate=3e-3 if lora_rank else 3e-4,
            max_new_tokens=48,
        )
    engine, options = kept
    model = engine.llm_engine.model_executor.driver_worker.model_runner.model
    positions: list[Any] = []

    def spied(tokens: list[int], features: list[Any]) -> Any:
        found = type(model).get_mrope_input_positions(model, tokens, features)
        positions.append((list(tokens), found[0].tolist()))
        return found

    prompts = [source[moment.qid] for moment in (moments[0], moments[-1])]
    write = partial(generate_with_vllm, engine, policy, frames_for=source.frames_for, num=3, max_new_tokens=48)
    with patch.object(model, "get_mrope_input_positions", spied):
        first = write(prompts=prompts, temperature=1.0, seed=3)
    ours = [(prompt.ids.tolist(), prompt.positions.tolist()) for prompt in prompts]
    again, other = (write(prompts=prompts, temperature=1.0, seed=seed) for seed in (3, 4))
    alone = write(prompts=prompts[1:], temperature=1.0, seed=3)
    hot = write(prompts=prompts, temperature=2.0, seed=3)
    return seen | {
        "positions": bool(positions) and all(each in ours for each in positions),
        "again": first.completions == again.completions,
        "other": first.completions == other.completions,
        "alone": first.completions[3:] == alone.completions,
        "ends": [each.ids[-1] in policy.eos_ids for each in first.completions if each.finished],
        "inside": [token for each in first.completions for token in each.ids[:-1] if token in policy.eos_ids],
        "lengths": [len(each.ids) for each in hot.completions if not each.finished],
        "suppressed": [token for each in hot.completions for token in each.ids if token in policy.suppress_tokens],
        "vllm": vllm.__version__,
    }  # fmt: skip


if __name__ == "__main__":
    sys.stdout.write(f"\n{json.dumps(main(Path(sys.argv[1]), int(sys.argv[2])))}\n")
