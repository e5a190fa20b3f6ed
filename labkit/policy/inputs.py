"""From a moment to what the model reads: token ids, patches, and temporal positions in true seconds.

Every stage builds its inputs here and nowhere else. Qwen2.5-VL learns absolute time from the rotary positions alone, so a rollout,
its log-probs, SFT and evaluation must see the same clock, or the policy that is trained is not the one that answered.

Shapes: P prompt tokens; a video grid is (t, h, w) patches, t of them in time, and fills t * h * w / 4 tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.data.moments import Moment
from labkit.data.video import FrameCache, sample_times
from labkit.errors import LabError
from labkit.policy.attention import install
from labkit.policy.model import Policy
from labkit.policy.prompts import messages

if TYPE_CHECKING:
    import numpy as np
    import torch

VIDEO_PAD = "<|video_pad|>"

# Pixel statistics of CLIP, which Qwen2-VL's image and video processors normalise with.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class Prompt:
    """One question about one video, ready for the model."""

    qid: str
    ids: torch.Tensor
    """(P,) token ids; the video's placeholders carry the model's video token."""
    positions: torch.Tensor
    """(3, P) rotary positions: time, height, width."""
    grid: tuple[int, int, int]
    seconds_per_grid: float
    """Seconds between two temporal patches."""
    features: torch.Tensor
    """(t * h * w / 4, hidden) what the frozen vision tower makes of the clip."""
    video_end: int = 0
    """Tokens up to the video's last one: prompts that begin alike that far may share it; 0 where that is not known."""


class Sampling(NamedTuple):
    """How a video is looked at."""

    fps: float
    """Frames per second of video."""
    max_frames: int
    """A longer video is sampled more sparsely, so that no more than this many frames are read."""
    min_pixels: int
    """Per frame."""
    max_pixels: int
    """Per frame."""


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Size of a frame for the model: multiples of `factor`, within the pixel budget, aspect ratio kept as well as that allows.

    Source: the arithmetic of Qwen2-VL's processor.

    >>> smart_resize(270, 480, factor=28, min_pixels=3136, max_pixels=100352)
    (224, 420)
    """
    if min(height, width) < 1:
        raise LabError(f"a frame of {height}x{width} pixels cannot be resized; check the video")
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def patchify(rgb: np.ndarray, patch: int, merge: int, temporal: int) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Frames at model size to normalised patches.

    Args:
        rgb: (T, H, W, 3) uint8.
        patch: pixels along a patch's side.
        merge: patches along the side of one token.
        temporal: frames in one patch; an incomplete last patch repeats the last frame.

    Returns:
        (t * h * w, 3 * temporal * patch * patch) float32, ordered as Qwen2-VL's video processor orders them, and (t, h, w).
    """
    import torch

    frames = torch.from_numpy(rgb).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(values).mul(255)[:, None, None] for values in (MEAN, STD))
    frames = frames.sub_(mean).div_(std)
    if missing := -len(frames) % temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = len(frames) // temporal, frames.shape[2] // patch, frames.shape[3] // patch
    blocks = frames.view(t, temporal, 3, h // merge, merge, patch, w // merge, merge, patch)
    blocks = blocks.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return blocks.reshape(t * h * w, 3 * temporal * patch * patch), (t, h, w)


def rotary_positions(
    is_video: torch.Tensor,
    grid: tuple[int, int, int],
    *,
    merge: int,
    tokens_per_second: float,
    seconds_per_grid: float,
) -> torch.Tensor:
    """(3, P) rotary positions of a prompt with one video.

    A frame's temporal position is its time in seconds times `tokens_per_second`, rounded down, counted from the video's first token.
    Text behind the video goes on after the video's last position on any axis, as Qwen2.5-VL was trained; `transformers` 5 restarts
    it at the frame's side instead, where it would run into the later frames.

    >>> import torch
    >>> positions = rotary_positions(torch.tensor([0, 1, 1, 0]).bool(), (2, 2, 2), merge=2, tokens_per_second=2, seconds_per_grid=1.0)
    >>> positions[0].tolist()
    [0, 1, 3, 4]
    """
    import torch

    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    where = is_video.nonzero()[:, 0]
    if len(where) != t * h * w:
        raise ValueError(f"the prompt holds {len(where)} video tokens, and a grid of {grid} needs {t * h * w}")
    first, last = int(where[0]), int(where[-1])
    # A hair above, so that 0.1 * 3 * 10 counts as 3 and not as 2.999...
    seconds = torch.arange(t, dtype=torch.float64) * seconds_per_grid
    time = (seconds * tokens_per_second + 1e-6).floor().long()
    axes = torch.meshgrid(time, torch.arange(h), torch.arange(w), indexing="ij")
    video = torch.stack(axes).flatten(1) + first
    before = torch.arange(first).expand(3, -1)
    after = torch.arange(len(is_video) - last - 1).expand(3, -1) + int(video.max()) + 1
    return torch.cat([before, video, after], 1)


class Clip(NamedTuple):
    """A video as the vision tower reads it."""

    patches: torch.Tensor
    """(t * h * w, D) normalised pixels."""
    grid: tuple[int, int, int]
    seconds_per_grid: float


def read_clip(policy: Policy, moment: Moment, cache: FrameCache, sampling: Sampling) -> Clip:
    """Sample the moment's video, or its trim window, and cut it into patches.

    Raises:
        LabError: the video is missing, unreadable, or shorter than its trim window.
    """
    vision = policy.base.config.vision_config
    temporal, merge = vision.temporal_patch_size, vision.spatial_merge_size
    info = cache.info(moment.video)
    size = smart_resize(info.height, info.width, vision.patch_size * merge, sampling.min_pixels, sampling.max_pixels)
    times = sample_times(moment.duration, sampling.fps, sampling.max_frames, temporal)
    frames = cache.get(moment.video, times, size, moment.start)
    patches, grid = patchify(frames.rgb, vision.patch_size, merge, temporal)
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0 / sampling.fps
    return Clip(patches, grid, step * temporal)


def build_prompt(
    policy: Policy, moment: Moment, template: str, clip: Clip, features: torch.Tensor | None = None
) -> Prompt:
    """The question as token ids around the clip's placeholders, with its positions and the clip's features.

    `features`: those of the same clip, when another question about it has already computed them.

    Raises:
        LabError: the query or the chat template spoils the one placeholder for the video.
    """
    import torch

    config = policy.base.config
    merge = config.vision_config.spatial_merge_size
    text = policy.tokenizer.apply_chat_template(messages(moment, template), tokenize=False, add_generation_prompt=True)
    if text.count(VIDEO_PAD) != 1:
        raise LabError(
            f"the prompt of {moment.qid!r} holds {text.count(VIDEO_PAD)} video placeholders instead of one; "
            f"check its query {moment.query!r} and the tokenizer's chat template"
        )
    tokens = math.prod(clip.grid) // merge**2
    ids = torch.tensor(
        policy.tokenizer(text.replace(VIDEO_PAD, VIDEO_PAD * tokens), add_special_tokens=False)["input_ids"]
    )
    positions = rotary_positions(
        ids == config.video_token_id,
        clip.grid,
        merge=merge,
        tokens_per_second=config.vision_config.tokens_per_second,
        seconds_per_grid=clip.seconds_per_grid,
    )
    if features is None:
        features = features_of(policy, clip)
    end = int((ids == config.video_token_id).nonzero()[-1]) + 1
    return Prompt(moment.qid, ids, positions, clip.grid, clip.seconds_per_grid, features, end)


def features_of(policy: Policy, clip: Clip) -> torch.Tensor:
    """What the frozen vision tower makes of a clip: (t * h * w / merge**2, hidden), on the policy's device."""
    import torch

    install(policy.base)
    grid = torch.tensor([clip.grid], device=policy.device)
    with torch.no_grad():
        found = policy.base.model.get_video_features(clip.patches.to(policy.device), grid, return_dict=True)
    return found.pooler_output[0]


def vision_kwargs(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
    """Model arguments that put the videos of `prompts`, in their order, where their placeholders stand."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features = [prompt.features.to(device) for prompt in prompts]
    encoded: Any = features  # one tensor per video, which the annotation of the field does not foresee
    return {"mm_encoder_outputs": {"video": BaseModelOutputWithPooling(pooler_output=encoded)}}


def with_completion(prompt: Prompt, completion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (P + C,) and positions (3, P + C) of a prompt and the completion (C,) that follows it."""
    import torch

    following = prompt.positions[:, -1:] + 1 + torch.arange(len(completion))
    return torch.cat([prompt.ids, completion]), torch.cat([prompt.positions, following], 1)


def left_pad(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """Stack (..., L) tensors of unequal length to (..., N, longest), padded in front."""
    import torch

    longest = max(row.shape[-1] for row in rows)
    pad = torch.nn.functional.pad
    return torch.stack([pad(row, (longest - row.shape[-1], 0), value=value) for row in rows], dim=-2)
