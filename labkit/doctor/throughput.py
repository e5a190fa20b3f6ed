"""Throughput of this machine, measured before a run: prefill, decoding, training, vision tower, video decoding.

A small model is loaded and does each part a few times, through the code that a run uses. A larger one is not loaded: its parts are
counted in floating-point operations and bytes, at the speed of a matrix product and a copy of its sizes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from labkit.doctor.workload import (
    BYTES_PER_PARAMETER,
    COMPLETION_FRACTION,
    ModelShape,
    Workload,
    trained_parameters,
)
from labkit.params import Params
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy, torch_threads

MAX_MEASURED_PARAMETERS = 100_000_000
"""Parameters of the largest model that is loaded and measured: loading and a few passes take seconds."""
_MIN_REPEATS, _MIN_SECONDS = 2, 0.4
"""Of each measurement, at least: quick parts are repeated more often."""
MATMUL_EFFICIENCY = 0.5
"""Fraction of a matrix product's speed that a whole model reaches. A rule of thumb, ours; not compared with a large model."""


DATASHEET_EFFICIENCY = 0.3
"""Fraction of a data sheet's operations a second that a pass reaches: 0.21 and 0.30 were measured with a 3B on an H200."""
LAYER_SECONDS = 0.17e-3
"""Seconds of a layer for one more token of all chains on a GPU, beside the reading of its weights: the starts of its kernels.
Measured: 7.4 ms a token of 36 layers on an H200, of which its weights take 1.3 (benchmarks/RESULTS.md), before `fused_decoding`,
which has run on no GPU yet."""
KERNELS_APART = 91 / 49
"""Operations of a layer with an adapter that is not merged, over those of one without (benchmarks/families.py --lora, on the CPU)."""


class Throughput(NamedTuple):
    """Seconds that the parts of a run take on this machine."""

    prefill: float
    """For each token of a prompt."""
    step: float
    """For one token of all chains that are sampled together, however many."""
    row: float
    """What each of those chains adds to it."""
    forward: float
    """For each token of a forward pass without gradients."""
    learning: float
    """For each token of a forward and backward pass."""
    update: float
    """For each step of the optimizer."""
    vision: float
    """For each output token of the vision tower."""
    basis: str
    """How they were measured."""
    reading: float = 0.0
    """For decoding one clip."""
    writing: float = 0.0
    """For rendering one clip of the embedded world."""

    def decoding(self, rows: float) -> float:
        """Seconds for one more token of `rows` chains."""
        return self.step + rows * self.row


def timer_for(device: str, threads: int) -> Callable[[], float]:
    """The timer of measurements: processor time where one thread does all the work, which other programs do not disturb."""
    return time.process_time if device == "cpu" and threads == 1 else time.perf_counter


def measure_throughput(policy: Policy, params: Params, workload: Workload, grid: tuple[int, int, int]) -> Throughput:
    """Time every part at the sizes of the run, on meaningless prompts; `grid` is a clip's, in patches.

    The weights are changed: do not use the policy afterwards.
    """
    with torch_threads(params.threads):
        return _measure_throughput(policy, params, workload, grid)


def _measure_throughput(policy: Policy, p: Params, workload: Workload, grid: tuple[int, int, int]) -> Throughput:
    import numpy as np
    import torch

    from labkit.policy.generate import generate
    from labkit.policy.inputs import ClipPatches, encode_clip, frames_to_patches
    from labkit.policy.packed_logprobs import pack_shared_prefix

    model, without_eos = policy.model, _without_eos(policy)
    count, answer = p.prompts_per_pass or p.prompts_per_step, max(2, round(COMPLETION_FRACTION * p.max_new_tokens))
    prompts = [_prompt(policy, str(index), workload) for index in range(max(count, p.prompts_per_step))]
    one_pass = prompts[:count]

    def timed(work: Callable[[], Any]) -> float:
        return _timed(work, policy.device, p.threads)

    def sample(prompts: list[Prompt], group: int, length: int) -> float:
        return timed(lambda: generate(without_eos, prompts, group, max_new_tokens=length))

    tokens = sum(len(prompt.ids) for prompt in prompts)
    prefill = sample(prompts, 1, 1) / tokens
    few = (sample(prompts[:1], 2, 1 + answer) - sample(prompts[:1], 2, 1)) / answer
    many = (sample(prompts, p.group_size, 1 + answer) - sample(prompts, p.group_size, 1)) / answer
    row = max(0.0, many - few) / max(1, len(prompts) * p.group_size - 2)

    chains = torch.zeros(count * p.group_size, answer, dtype=torch.long, device=policy.device)
    packed = pack_shared_prefix(one_pass, chains, torch.ones_like(chains), [p.group_size] * count)
    packed_tokens = sum(len(prompt.ids) - 1 for prompt in one_pass) + chains.numel()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    model.train()

    def forward_backward() -> None:
        packed.log_probs(model, p.temperature, True)[0].mean().backward()

    def optimizer_step() -> None:
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    def forward_only() -> None:
        with torch.no_grad():
            packed.log_probs(model, p.temperature)

    learning, update, forward = (
        timed(forward_backward) / packed_tokens,
        timed(optimizer_step),
        timed(forward_only) / packed_tokens,
    )
    patch, _, temporal, _ = policy.geometry
    frames = np.zeros((grid[0] * temporal, grid[1] * patch, grid[2] * patch, 3), np.uint8)
    pixels = frames_to_patches(policy, frames)
    vision = timed(lambda: encode_clip(policy, ClipPatches(pixels, grid, 1.0))) / max(1.0, workload.video_tokens)
    return Throughput(
        prefill, max(0.0, few - 2 * row), row, forward, learning, update, vision,
        f"the model itself: each part was timed on {policy.device} just now, with threads = {p.threads}",
    )  # fmt: skip


def estimate_throughput(
    shape: ModelShape, params: Params, operations: float, copied: float, basis: str, gpu: bool
) -> Throughput:
    """The throughput of a model that is not loaded, from the operations a second of its passes and the bytes a second of a copy."""
    bytes_each = BYTES_PER_PARAMETER[params.dtype]
    matrices = shape.layers * shape.layer_parameters + shape.vocab * shape.hidden
    forward = 2 * matrices / operations
    trained = trained_parameters(shape, params)
    # Backwards, activations and weights have a gradient each; below adapters the weights have none.
    learning = forward * (2 if params.lora_rank else 3)
    # Weight, gradient and two moments are read, and all but the gradient written.
    each = 4 if params.lora_rank else bytes_each
    vision = 2 * shape.vision_parameters * shape.geometry.merge**2 / operations
    apart = bool(params.lora_rank) and not params.lora_merge
    starts = shape.layers * LAYER_SECONDS * (KERNELS_APART if apart else 1.0) if gpu else 0.0
    # Matrices of 4 bits that are not merged are made whole for every token: written once and read once more.
    again = 2 if apart and params.quantization == "nf4" else 1
    step = again * shape.text_parameters * bytes_each / copied + starts
    return Throughput(
        forward,
        step,
        forward,
        forward,
        learning,
        7 * each * trained / copied,
        vision,
        basis + "; the model was not loaded",
    )


def measure_operations(shape: ModelShape, params: Params, device: str) -> tuple[float, float, str]:
    """Operations a second that a model reaches on this machine, bytes a second of a copy, and how that is known.

    One matrix product and one copy, at the model's widths and number type, take about a second in all.
    """
    import torch

    dtype = getattr(torch, params.dtype)
    with torch_threads(params.threads):
        rows = 4096 if device == "cuda" else 256
        left = torch.randn(rows, shape.hidden, device=device).to(dtype)
        right = torch.randn(shape.hidden, shape.intermediate, device=device).to(dtype)
        repeats = 20 if device == "cuda" else 1

        def multiply() -> None:
            for _ in range(repeats):
                torch.matmul(left, right)

        seconds = _timed(multiply, torch.device(device), params.threads)
        operations = 2.0 * rows * shape.hidden * shape.intermediate * repeats / seconds
        block = torch.empty(64_000_000 if device == "cuda" else 16_000_000, device=device)
        copied = 2.0 * 4 * block.numel() / _timed(lambda: block.add_(1.0), torch.device(device), params.threads)
    basis = f"operations and bytes, at {operations / 1e12:.2f} TFLOP/s of a matrix product and {copied / 1e9:,.0f} GB/s of a copy, "
    basis += f"both measured on {device} just now, of which a model is taken to reach {MATMUL_EFFICIENCY:.0%}"
    return MATMUL_EFFICIENCY * operations, copied, basis


def _without_eos(policy: Policy) -> Policy:
    """The same policy without end tokens, so that all completions have full length."""

    class WithoutEos(Policy):
        @property
        def eos_ids(self) -> list[int]:
            return []

    return WithoutEos(**{each.name: getattr(policy, each.name) for each in dataclasses.fields(policy)})


def _prompt(policy: Policy, qid: str, workload: Workload) -> Prompt:
    """A prompt of average length, with features of zeros."""
    import torch

    config = policy.base.config
    length, video = max(2, round(workload.prompt_tokens)), round(workload.video_tokens)
    ids = torch.zeros(length, dtype=torch.long)
    ids[-1] = int(policy.tokenizer.eos_token_id)
    ids[1 : 1 + video] = getattr(config, policy.family.video_token)
    shape = policy.family.feature_shape(config)
    features = torch.zeros(video, *shape, dtype=policy.base.dtype, device=policy.device)
    return Prompt(
        qid,
        ids,
        torch.arange(length).expand(1 if policy.family.frames_as_images else 3, -1),
        (1, 1, video),
        1.0,
        features,
    )


def _timed(work: Callable[[], Any], device: Any, threads: int) -> float:
    """Seconds of the quickest repeat, which was disturbed least, after a warm-up."""
    import torch

    timer = timer_for(device.type, threads)
    best, begun, repeats = float("inf"), time.perf_counter(), -1
    while repeats < _MIN_REPEATS or time.perf_counter() - begun < _MIN_SECONDS:
        begin = timer()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        repeats += 1
        if repeats:
            best = min(best, timer() - begin)
    return best
