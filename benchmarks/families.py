"""Exactness and cost of every family's shared prefixes, on tiny models: the table of docs/families.md; or of its merged adapter.

python benchmarks/families.py
python benchmarks/families.py --lora
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).parents[1]))
from labkit.data.video.frames import FrameCache
from labkit.policy.adapters import add_lora, merged
from labkit.policy.families import FAMILIES
from labkit.policy.generate import generate
from labkit.policy.inputs import FrameSampling, Prompt, position_ids, read_clip, vision_kwargs
from labkit.policy.model import Policy, ignore_renames
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import PromptSource
from tests import tiny

GROUP, LENGTH = 8, 32


def gradients(policy: Policy, log_probs: torch.Tensor) -> list[torch.Tensor]:
    """Of every trained weight, of a sum with a weight for each row."""
    policy.model.zero_grad()
    (log_probs * torch.linspace(-1, 1, len(log_probs))[:, None]).sum().backward()
    return [weight.grad.clone() for weight in policy.model.parameters() if weight.grad is not None]


def one_at_a_time(policy: Policy, prompts: list[Prompt], ids: torch.Tensor) -> torch.Tensor:
    """Log-probs (rows, C) from a whole pass for each completion."""
    rows = []
    for row, completion in enumerate(ids):
        prompt = prompts[row // (len(ids) // len(prompts))]
        whole, positions = tiny.append_completion(prompt, completion)
        logits = policy.model(
            input_ids=whole[None], position_ids=position_ids(positions[:, None]), use_cache=False,
            **vision_kwargs([prompt], whole.device),
        ).logits  # fmt: skip
        rows.append(logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1).gather(1, completion[:, None])[:, 0])
    return torch.stack(rows)


def step_seconds(policy: Policy, prompts: list[Prompt]) -> float:
    """Processor time of sampling a group for each prompt and learning from it, the better of two."""
    best = float("inf")
    ids = torch.randint(20, 300, (GROUP * len(prompts), LENGTH))
    for _ in range(2):
        begin = time.process_time()
        generate(policy, prompts, GROUP, max_new_tokens=LENGTH, seed=1)
        gradients(
            policy,
            pack_shared_prefix(prompts, ids, torch.ones_like(ids), [GROUP] * len(prompts)).log_probs(policy.model)[0],
        )
        best = min(best, time.process_time() - begin)
    return best


def line(name: str, folder: Path) -> str:
    """A row of the table."""
    policy = tiny.policy(family=name)
    moments = tiny.moments(folder, clips=2)
    side = 4 * policy.geometry.patch
    sampling = FrameSampling(4.0, 32, side * side, side * side)
    source = PromptSource(policy, moments, template="query", sampling=sampling, cache=FrameCache(folder))
    asked = [moments[0], moments[3]]
    prompts = [source[moment.qid] for moment in asked]
    ids = torch.randint(20, 380, (6, 9), generator=torch.Generator().manual_seed(0))
    plain = one_at_a_time(policy, prompts, ids)
    expected = gradients(policy, plain)
    shared = pack_shared_prefix(prompts, ids, torch.ones_like(ids), [3, 3]).log_probs(policy.model)[0]
    found = gradients(policy, shared)
    worst = max(float((a - b).abs().max()) for a, b in zip(expected, found, strict=True))
    largest = max(float(a.abs().max()) for a in expected)
    same = 0
    for prompt, ours in zip(prompts, generate(policy, prompts, max_new_tokens=16, greedy=True), strict=True):
        theirs = policy.model.generate(
            input_ids=prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None], max_new_tokens=16, do_sample=False,
            position_ids=position_ids(prompt.positions[:, None]), pad_token_id=policy.pad_id, eos_token_id=policy.eos_ids,
            suppress_tokens=policy.suppress_tokens, **vision_kwargs([prompt], prompt.ids.device),
        )  # fmt: skip
        same += theirs[0, len(prompt.ids) :].tolist() == ours.ids
    unshared = []
    for prompt, moment in zip(prompts, asked, strict=True):
        clip = read_clip(policy, moment, FrameCache(folder), sampling)
        unshared.append(dataclasses.replace(prompt, inputs=plain_inputs(policy, prompt, clip)))
    ratio = step_seconds(policy, unshared) / step_seconds(policy, prompts)
    return (
        f"| {policy.family.title} | {float((plain - shared).detach().abs().max()):.1e} | {worst:.1e} of {largest:.1f} | {same} of 2 | "
        f"{ratio:.1f} ({len(prompts[0].ids)} tokens) |"
    )


class Kernels(TorchDispatchMode):
    """Counts operations of torch that compute or move numbers; views do neither."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        views = any(each.alias_info and not each.alias_info.is_write for each in func._schema.returns)
        self.count += not views
        return func(*args, **kwargs or {})


def adapted(family: str, **shape: int) -> Policy:
    """A tiny model of a family whose adapter of rank 16 does something."""
    made = tiny.policy(family=family, **shape)
    with ignore_renames():
        model = add_lora(made.model, 16, 32, 0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.05)
    return Policy(model.eval(), made.tokenizer, "tiny")


def lora_line(family: str, folder: Path) -> str:
    """A row of the table of merged adapters: left apart, merged, and merged in the fused pass."""
    asked = tiny.moments(folder, clips=2)[:2]
    counts = []
    for layers in (2, 4):
        policy = adapted(family, hidden=256, layers=layers)
        source = tiny.source(policy, asked, folder / f"{layers}")
        prompts = [source[moment.qid] for moment in asked]
        ways = [
            dataclasses.replace(policy, merge=merge, fused=fused)
            for merge, fused in ((False, False), (True, False), (True, True))
        ]
        for way in ways:
            for new in (2, 3):  # one token more is one decoding step
                with Kernels() as kernels:
                    generate(way, prompts, max_new_tokens=new, seed=1)
                counts.append(kernels.count)
    kernels_of = [(counts[at + 7] - counts[at + 6] - counts[at + 1] + counts[at]) / 2 for at in (0, 2, 4)]
    texts = [
        generate(way, prompts, 4, max_new_tokens=LENGTH, seed=2)
        + generate(way, prompts, max_new_tokens=LENGTH, greedy=True)
        for way in ways
    ]
    same = sum(ours == theirs for ours, theirs in zip(texts[0], texts[2], strict=True))
    ids = torch.randint(20, 300, (2, LENGTH))
    packed = pack_shared_prefix(prompts, ids, torch.ones_like(ids), [1, 1])
    with torch.no_grad():
        before = packed.log_probs(policy.model)[0]
        with merged(policy.model):
            worst = float((packed.log_probs(policy.model)[0] - before).abs().max())
    seconds: list[float] = []
    for way in ways:
        times = []
        for _ in range(3):
            begin = time.process_time()
            generate(way, prompts, GROUP, max_new_tokens=2 * LENGTH, seed=1)
            times.append(time.process_time() - begin)
        seconds.append(min(times))
    return (
        f"| {policy.family.title} | {worst:.1e} | {same} of {len(texts[0])} | "
        + " | ".join(f"{count:g}" for count in kernels_of)
        + f" | {seconds[0] / seconds[1]:.2f} | {seconds[0] / seconds[2]:.2f} |"
    )


def plain_inputs(policy: Policy, prompt: Prompt, clip: Any) -> dict[str, Any]:
    """The prompt's pixels as its makers' processor hands them over; positions are transformers' own then."""
    mask = {"attention_mask": torch.ones(1, len(prompt.ids), dtype=torch.long)}
    if policy.family.frames_as_images:
        return mask | {"pixel_values": clip.patches[None] if policy.family.image_batches else clip.patches}
    is_video = (prompt.ids == policy.base.config.video_token_id)[None].int()
    grid = {"pixel_values_videos": clip.patches, "video_grid_thw": torch.tensor([prompt.grid])}
    extra = (
        {"second_per_grid_ts": torch.tensor([prompt.seconds_per_grid])}
        if policy.base.config.model_type == "qwen2_5_vl"
        else {}
    )
    return mask | grid | extra | {"mm_token_type_ids": is_video * 2}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--lora"]:
        print(
            "| family | log-prob | chains alike | operations a layer: apart | merged | fused | merged, times as fast | fused |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for family in FAMILIES:
            with tempfile.TemporaryDirectory() as place:
                print(lora_line(family, Path(place)), flush=True)
        sys.exit()
    print("| family | log-prob | gradient | greedy as transformers' | plain path, one step |\n|---|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as place:
            print(line(family, Path(place)), flush=True)
