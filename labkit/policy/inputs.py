"""Model inputs of a moment: token ids, video patches and features, and rotary positions in true seconds.

Every stage builds its inputs here and nowhere else. Qwen2.5-VL learns absolute time from the rotary positions alone, so a rollout,
its log-probs, SFT and evaluation must have the same positions, or the policy that is trained is not the one that was sampled from.
What differs between model families is in `labkit.policy.families`.

Shapes: P prompt tokens, C completion tokens; T frames of H x W pixels; a video grid is (t, h, w) patches, t of them in time, and
fills t * h * w / 4 tokens.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache, sample_times
from labkit.errors import LabError
from labkit.policy.attention import install_attention
from labkit.policy.families import Family, Geometry
from labkit.policy.model import Policy
from labkit.policy.processors import processor_inputs
from labkit.policy.prompts import messages

if TYPE_CHECKING:
    import numpy as np
    import torch

THOUGHT = "<think>"
"""What a completion begins with."""
VISION_CHUNK = 1024
"""Patches that the vision tower encodes at once on a CPU: with more, activations no longer fit the processor's cache."""


@dataclass
class Prompt:
    """Model inputs of one question about one video."""

    qid: str
    ids: torch.Tensor
    """(P,) token ids; the video's placeholders carry the model's video token."""
    positions: torch.Tensor
    """(3, P) rotary positions: time, height, width; (1, P) of a family whose frames are images."""
    grid: tuple[int, int, int]
    seconds_per_grid: float
    """Seconds between two temporal patches."""
    features: torch.Tensor
    """Output of the frozen vision tower: (t * h * w / 4, hidden), or (t * h * w / 4, 1 + deepstack layers, hidden) of a family
    with deepstack."""
    video_end: int = 0
    """Tokens up to the video's last one: prompts with that prefix in common may share it; 0 where that is not known."""
    begun: int = 0
    """How many of `ids`, the last ones, are the beginning of the completion: it is gone on with, and its text includes them."""
    inputs: dict[str, Any] | None = None
    """What the model's own processor made of the prompt, beside its ids, on the plain path (`labkit.policy.plain`)."""


class FrameSampling(NamedTuple):
    """How frames are sampled from a video."""

    fps: float
    """Frames per second of video."""
    max_frames: int
    """A longer video is sampled more sparsely, so that no more than this many frames are decoded."""
    min_pixels: int
    """Per frame."""
    max_pixels: int
    """Per frame."""
    total_pixels: int = 0
    """Of a clip's frames together, two counted as one; 0 sets no bound."""

    def pixels(self, frames: int) -> float:
        """Pixels of each of so many frames at most. Source: the arithmetic of qwen-vl-utils' fetch_video.

        >>> FrameSampling(2.0, 768, 50176, 602112, 11239424).pixels(100), FrameSampling(2.0, 768, 50176, 602112).pixels(100)
        (224788.48, 602112)
        """
        if not self.total_pixels:
            return self.max_pixels
        return max(min(self.max_pixels, 2 * self.total_pixels / frames), int(1.05 * self.min_pixels))


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """(height, width) of a frame for the model: multiples of `factor` within the pixel budget, aspect ratio kept where possible.

    Source: the arithmetic of Qwen2-VL's processor; Qwen3-VL's gives the same for frames of at least `factor` pixels a side.

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


def patchify(
    rgb: np.ndarray, family: Family, patch: int, merge: int, temporal: int
) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Frames at model size to normalised patches.

    Args:
        rgb: (T, H, W, 3) uint8.
        family: its mean and standard deviation normalise the pixels.
        patch: pixels along a patch's side.
        merge: patches along the side of one token.
        temporal: frames in one patch; an incomplete last patch repeats the last frame.

    Returns:
        (t * h * w, 3 * temporal * patch * patch) float32, ordered as Qwen2-VL's video processor orders them, and (t, h, w).
    """
    import torch

    frames = torch.from_numpy(rgb)
    if missing := -len(frames) % temporal:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    t, h, w = len(frames) // temporal, frames.shape[1] // patch, frames.shape[2] // patch
    blocks = frames.view(t, temporal, h // merge, merge, patch, w // merge, merge, patch, 3)
    # Permuted as bytes: with floats it takes twice as long.
    patches = blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(t * h * w, 3, -1).float()
    mean, std = (torch.tensor(values).mul(255)[:, None] for values in (family.mean, family.std))
    return patches.sub_(mean).div_(std).flatten(1), (t, h, w)


def frames_to_patches(policy: Policy, rgb: np.ndarray) -> torch.Tensor:
    """Input of the vision tower from frames (T, H, W, 3) at model size: patches, or (T, 3, H, W) of a family whose frames are images.

    On the plain path the frames as they are: its processor takes them.
    """
    import torch

    family, geometry = policy.family, policy.geometry
    if policy.processor is not None:
        return torch.from_numpy(rgb)
    if family.frames_as_images:
        mean, std = (torch.tensor(values).mul(255)[:, None, None] for values in (family.mean, family.std))
        return torch.from_numpy(rgb).permute(0, 3, 1, 2).float().sub_(mean).div_(std)
    return patchify(rgb, family, geometry.patch, geometry.merge, geometry.temporal)[0]


def rotary_positions(
    is_video: torch.Tensor, grid: tuple[int, int, int], *, merge: int, temporal_positions: Sequence[Sequence[int]]
) -> torch.Tensor:
    """(3, P) rotary positions of a prompt with one video: time, height, width.

    `temporal_positions`: of the video's patches, a list for each vision span, relative to the span's first token; see
    `Family.temporal_positions`. What follows a span continues from the span's last position on any axis.

    >>> import torch
    >>> rotary_positions(torch.tensor([0, 1, 1, 0]).bool(), (2, 2, 2), merge=2, temporal_positions=[[0, 2]])[0].tolist()
    [0, 1, 3, 4]
    >>> rotary_positions(torch.tensor([0, 1, 0, 1, 0]).bool(), (2, 2, 2), merge=2, temporal_positions=[[0], [0]])[0].tolist()
    [0, 1, 2, 3, 4]

    Raises:
        ValueError: the video's tokens do not fill its grid, or are not in the spans of `temporal_positions`.
    """
    import torch

    t, h, w = grid[0], grid[1] // merge, grid[2] // merge
    where = is_video.nonzero()[:, 0]
    if len(where) != t * h * w:
        raise ValueError(f"the prompt holds {len(where)} video tokens, and a grid of {grid} needs {t * h * w}")
    pieces = []
    done = video_done = free = 0  # tokens with a position, video tokens among them, and the next free position
    for span in temporal_positions:
        first, size = int(where[video_done]), len(span) * h * w
        if int(where[video_done + size - 1]) != first + size - 1:
            raise ValueError(f"the video's tokens are not in {len(temporal_positions)} spans")
        text = torch.arange(free, free + first - done).expand(3, -1)
        axes = torch.meshgrid(torch.tensor(span), torch.arange(h), torch.arange(w), indexing="ij")
        video = torch.stack(axes).flatten(1) + free + first - done
        pieces += [text, video]
        done, video_done, free = first + size, video_done + size, int(video.max()) + 1
    pieces.append(torch.arange(free, free + len(is_video) - done).expand(3, -1))
    return torch.cat(pieces, 1)


class ClipPatches(NamedTuple):
    """Input of the vision tower: a clip as patches."""

    patches: torch.Tensor
    """(t * h * w, D) normalised pixels."""
    grid: tuple[int, int, int]
    seconds_per_grid: float


def frame_times_and_size(
    policy: Policy, moment: Moment, cache: FrameCache, sampling: FrameSampling
) -> tuple[np.ndarray, tuple[int, int]]:
    """Times (T,) of the frames, in seconds from the clip's beginning, and their size (height, width).

    Raises LabError where the model reads frames of one size alone, and the pixel budget is another.
    """
    info, geometry = cache.info(moment.video), policy.geometry
    times = sample_times(moment.duration, sampling.fps, sampling.max_frames, geometry.temporal)
    return times, frame_size(policy.family.title, geometry, info.height, info.width, sampling, len(times))


def frame_size(
    title: str, geometry: Geometry, height: int, width: int, sampling: FrameSampling, frames: int
) -> tuple[int, int]:
    """(height, width) of each of `frames` frames at a model of the family `title`. Raises as `frame_times_and_size`."""
    most = sampling.pixels(frames)
    if not geometry.side:
        return smart_resize(height, width, geometry.patch * geometry.merge, sampling.min_pixels, most)
    pixels = geometry.side**2
    if not sampling.min_pixels <= pixels <= most:
        raise LabError(
            f"{title} reads every frame at {geometry.side}x{geometry.side}, which is {pixels} pixels, and the budget of a frame is "
            f"{sampling.min_pixels} to {most:.0f}; set max_pixels to {pixels} and min_pixels to no more"
            + (", and total_pixels to 0" if sampling.total_pixels else "")
        )
    return geometry.side, geometry.side


def read_clip(policy: Policy, moment: Moment, cache: FrameCache, sampling: FrameSampling) -> ClipPatches:
    """Decode frames of the moment's video, or of its trim window, and cut them into patches.

    Raises:
        LabError: the video is missing, unreadable, or shorter than its trim window.
    """
    times, size = frame_times_and_size(policy, moment, cache, sampling)
    frames = cache.get(moment.video, times, size, moment.start)
    return bare_clip(policy, times, size, sampling)._replace(patches=frames_to_patches(policy, frames.rgb))


def bare_clip(policy: Policy, times: np.ndarray, size: tuple[int, int], sampling: FrameSampling) -> ClipPatches:
    """The clip of these frames without its pixels."""
    import torch

    patch, _, temporal, _ = policy.geometry
    step = float(times[1] - times[0]) if len(times) > 1 else 1.0 / sampling.fps
    return ClipPatches(
        torch.empty(0), (-(-len(times) // temporal), size[0] // patch, size[1] // patch), step * temporal
    )


def patch_middles(patches: int, seconds: float, temporal: int, duration: float) -> list[float]:
    """Middle of each temporal patch, between its first frame and its last, in seconds.

    `seconds` lie between two patches, which hold `temporal` frames each. Where the frames of a clip of `duration` seconds do not fill
    the last patch, the last one is repeated there (`sample_times`), at its own time.

    >>> patch_middles(2, 1.0, 2, 2.0), patch_middles(2, 1.0, 2, 1.5)
    ([0.25, 1.25], [0.25, 1.0])
    """
    last = 1 - 1 / temporal  # offset of the last frame in a patch, in patches
    middles = [(k + k + last) * seconds / 2 for k in range(patches)]
    frames = math.ceil(duration * temporal / seconds - 1e-6)
    if frames < patches * temporal:
        middles[-1] = ((patches - 1) * seconds + (frames - 1) * seconds / temporal) / 2
    return middles


def chat_text(tokenizer: Any, moment: Moment, template: str, chat: str | None = None) -> str:
    """A prompt's text as the tokenizer's chat template, or `chat`, writes it, one placeholder for the video.

    Raises LabError when the tokenizer has no chat template or the prompt does not fit the moment.
    """
    if chat is None and tokenizer.chat_template is None:
        raise LabError(
            "the model's tokenizer has no chat template; copy chat_template.jinja of the published model into its folder"
        )
    return str(
        tokenizer.apply_chat_template(
            messages(moment, template), chat_template=chat, tokenize=False, add_generation_prompt=True
        )
    )


def build_prompt(
    policy: Policy, moment: Moment, template: str, clip: ClipPatches, features: torch.Tensor | None = None
) -> Prompt:
    """Token ids with the clip's placeholders, their positions and the clip's features.

    `features`: of the same clip, where they are computed already.

    Raises:
        LabError: there is not exactly one placeholder for the video in the text of query and chat template.
    """
    import torch

    config, family, (_, merge, temporal, _) = policy.base.config, policy.family, policy.geometry
    t, h, w = clip.grid
    if features is None:
        features = encode_clip(policy, clip)
    middles = patch_middles(t, clip.seconds_per_grid, temporal, moment.duration)
    if policy.processor is not None:
        ids, inputs = processor_inputs(policy.processor, moment.qid, messages(moment, template), features, middles)
        positions = torch.arange(len(ids))[None]
        return Prompt(moment.qid, ids, positions, clip.grid, clip.seconds_per_grid, features, inputs=inputs)
    chat = importlib.import_module(family.template_of).DEFAULT_CHAT_TEMPLATE if family.template_of else None
    text = chat_text(policy.tokenizer, moment, template, chat)
    if text.count(family.placeholder) != 1 or family.template_span.format(family.placeholder) not in text:
        raise LabError(
            f"the prompt of {moment.qid!r} holds {text.count(family.placeholder)} video placeholders instead of one as "
            f"{family.template_span.format(family.placeholder)!r}; check its query {moment.query!r} and the tokenizer's chat template"
        )
    text = text.replace(family.placeholder, family.render_video(middles, h * w // merge**2, moment.duration))
    ids = torch.tensor(policy.tokenizer(text, add_special_tokens=False)["input_ids"])
    is_video = ids == getattr(config, family.video_token)
    if family.temporal_positions is None:
        positions = torch.arange(len(ids))[None]
    else:
        spans = family.temporal_positions(config.vision_config, t, clip.seconds_per_grid)
        positions = rotary_positions(is_video, clip.grid, merge=merge, temporal_positions=spans)
    end = int(is_video.nonzero()[-1]) + 1
    # Templates of models that always think open the thought themselves; it is the completion's beginning all the same.
    opened = text[text.rindex(THOUGHT) :] if text.rstrip().endswith(THOUGHT) else ""
    begun = len(policy.tokenizer(opened, add_special_tokens=False)["input_ids"]) if opened else 0
    return Prompt(moment.qid, ids, positions, clip.grid, clip.seconds_per_grid, features, end, begun)


def begin_completion(policy: Policy, prompt: Prompt, text: str) -> Prompt:
    """The prompt with the completion begun: whatever is generated goes on behind `text`.

    Beginnings of one prompt share its prefill where they stand beside each other, see `labkit.policy.packed_logprobs`. The text is
    tokenized anew: what a model wrote in other tokens than its tokenizer would is the same text, but not the same tokens.
    """
    import torch

    text = not_yet_begun(policy, prompt, text)
    ids = torch.tensor(policy.completion_ids(text), dtype=torch.long)
    following = prompt.positions[:, -1:] + 1 + torch.arange(len(ids))
    return replace(
        prompt, ids=torch.cat([prompt.ids, ids]), positions=torch.cat([prompt.positions, following], 1),
        begun=prompt.begun + len(ids),
    )  # fmt: skip


def not_yet_begun(policy: Policy, prompt: Prompt, text: str) -> str:
    """What is left of a completion's `text` behind what stands in the prompt already, see `Prompt.begun`."""
    if not prompt.begun:
        return text
    begun = policy.tokenizer.decode(prompt.ids[len(prompt.ids) - prompt.begun :])
    return text.removeprefix(begun) if text.startswith(begun) else text.removeprefix(begun.strip()).lstrip()


def encode_clip(policy: Policy, clip: ClipPatches) -> torch.Tensor:
    """Features of a clip from the frozen vision tower, as in `Prompt.features`, on the policy's device."""
    import torch

    if policy.processor is not None:
        return clip.patches
    install_attention(policy.base)
    images = policy.family.frames_as_images
    pairs, height, width = clip.grid
    # In no family does the tower attend from one temporal patch to another.
    chunk = max(1, VISION_CHUNK // (height * width)) if policy.device.type == "cpu" else pairs
    parts = []
    for patches in clip.patches.split(chunk if images else chunk * height * width):
        patches = patches.to(policy.device)
        with torch.no_grad():
            if images:
                pixels = patches[None] if policy.family.image_batches else patches
                output = policy.base.model.get_image_features(pixels, return_dict=True)
            else:
                grid = torch.tensor([[len(patches) // (height * width), height, width]], device=policy.device)
                output = policy.base.model.get_video_features(patches, grid, return_dict=True)
        levels = (output.pooler_output, *output.deepstack_features) if policy.family.deepstack else None
        parts.append(torch.stack([level[0] for level in levels], 1) if levels else torch.cat([*output.pooler_output]))
    return torch.cat(parts)


def position_ids(positions: torch.Tensor) -> torch.Tensor:
    """Positions (axes, B, L) as the model takes them: (B, L) where there is one axis."""
    return positions[0] if len(positions) == 1 else positions


def vision_kwargs(prompts: Sequence[Prompt], device: torch.device) -> dict[str, Any]:
    """Model arguments with the encoded videos of `prompts`, for their placeholders, in this order."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features = [prompt.features.to(device) for prompt in prompts]
    if len(prompts[0].positions) == 1:
        return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=torch.cat(features))}}
    encoded: Any = features  # one tensor per video, which the annotations of these fields do not foresee
    deeper: Any
    if features[0].dim() == 3:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        levels: Any = [[each[:, level] for each in features] for level in range(features[0].shape[1])]
        encoded, *deeper = levels
        video: Any = BaseModelOutputWithDeepstackFeatures(pooler_output=encoded, deepstack_features=deeper)
    else:
        video = BaseModelOutputWithPooling(pooler_output=encoded)
    return {"mm_encoder_outputs": {"video": video}}
