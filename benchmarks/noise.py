"""What the benchmarks of a GRPO step work on: models that know nothing and clips of noise.

Neither weights nor videos are fetched; shapes and lengths are those of the real ones.
"""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.policy.inputs import FrameSampling, build_prompt, read_clip
from labkit.policy.model import Policy

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import tiny  # noqa: E402

SIDES = {"tiny": 112, "3b": 280}
"""Pixels of a clip's side: 16 and 100 tokens for two frames."""


class Noise:
    """A frame cache of clips that exist nowhere."""

    def __init__(self, side: int) -> None:
        """Frames of `side` x `side` pixels."""
        self.side = side
        self.folder, self.files = Path(tempfile.mkdtemp()), itertools.count()
        weakref.finalize(self, shutil.rmtree, self.folder)

    def info(self, video: str) -> Any:
        """Height and width."""
        return SimpleNamespace(height=self.side, width=self.side)

    def file_beside(self, *_: Any) -> Path:
        """A new file each time, so that no features are found that an earlier step has left."""
        return self.folder / f"{next(self.files)}.safetensors"

    def get(self, video: str, times: Sequence[float], size: tuple[int, int], offset: float) -> Any:
        """The same noise for the same name."""
        rng = np.random.default_rng(zlib.crc32(video.encode()))
        return SimpleNamespace(rgb=rng.integers(0, 256, (len(times), *size, 3), dtype=np.uint8))


class Task(NamedTuple):
    """What both ways do."""

    policy: Callable[[], Policy]
    moments: list[Moment]
    sampling: FrameSampling
    frames: Noise
    group: int
    tokens: int
    device: str


class Endless(Policy):
    """A policy that never ends an answer, so that both ways write as many tokens."""

    @property
    def suppress_tokens(self) -> list[int]:
        """The end of an answer too."""
        return sorted({*super().suppress_tokens, *self.eos_ids})


def flops(policy: Policy, task: Task, copies: int) -> float:
    """Of a forward and a backward pass over what one way reads, `copies` of the prompt; what is computed twice counts once.

    6 for each weight and token, the output layer's for the completions alone, and 12 for each pair of tokens that sees one
    another, each layer and each unit of width.
    """
    text = policy.base.model.language_model
    weights = sum(weight.numel() for weight in text.layers.parameters())
    clip = read_clip(policy, task.moments[0], task.frames, task.sampling)  # type: ignore[arg-type]
    prompt = len(build_prompt(policy, task.moments[0], "query", clip, torch.empty(0)).ids)
    written = task.group * task.tokens
    pairs = copies * prompt**2 / 2 + written * prompt + written * task.tokens / 2
    head = policy.base.lm_head.weight.numel()
    width = policy.base.config.text_config.hidden_size
    return 6 * (weights * (copies * prompt + written) + head * written) + 12 * pairs * width * len(text.layers)


def made_policy(shape: str, device: str, dtype: torch.dtype) -> Policy:
    """A random model that never ends an answer."""
    if shape == "tiny":
        plain = tiny.policy(hidden=256, layers=6, vision_depth=6)
        return Endless(plain.model.to(device, dtype), plain.tokenizer, plain.name)
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = tiny.tokenizer()
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    # Source: config.json of Qwen/Qwen2.5-VL-3B-Instruct.
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
            "intermediate_size": 11008, "vocab_size": 151936, "max_position_embeddings": 128000,
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6},
            "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31], "out_hidden_size": 2048, "tokens_per_second": 2,
        },
        tie_word_embeddings=True,
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(text) for name, text in names.items()},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.model.visual.requires_grad_(False)
    return Endless(model.eval(), tokenizer, "3b")


def made_task(
    shape: str, device: str, dtype: torch.dtype, video_tokens: int, group: int, new: int, steps: int
) -> Task:
    """One query about one clip of its own a step, so that no features are left over from the step before."""
    side = SIDES[shape]
    pairs = max(1, round(video_tokens / (side // 28) ** 2))
    seconds, query = pairs / 2, "the square reaches the right border"
    moments = [Moment(f"q{n}", f"/noise/{n}.mp4", query, (Span(0.0, seconds / 2),), seconds) for n in range(steps)]
    sampling = FrameSampling(4.0, 2 * pairs, side**2, side**2)
    policy = functools.partial(made_policy, shape, device, dtype)
    return Task(policy, moments, sampling, Noise(side), group, new, device)
