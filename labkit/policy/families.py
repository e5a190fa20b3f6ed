"""Model families: what differs between the vision-language models that labkit supports, one entry for each.

They are identified by `model_type` in config.json, and share the rest: Qwen's special tokens, the order of patches, tokens of
`merge` x `merge` patches, the names of the language model's layers, and rotary positions in which whatever follows a vision span
follows the span's last position on any axis. So all of them were trained (Qwen2-VL's report, 2.1; `get_rope_index` up to
transformers 4.57); transformers 5 continues from the frame's side instead, which differs for spans of more than one frame.

A pixel budget is per frame. In Qwen3-VL's processor it is per clip: n frames have n times the budget, and the same size comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

VIDEO_PAD = "<|video_pad|>"
PLACEHOLDER = f"<|vision_start|>{VIDEO_PAD}<|vision_end|>"
"""A video in the text of a chat template."""

# Pixel statistics of CLIP, which Qwen2-VL's image and video processors normalise with.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family encodes a video: its text, its rotary positions, its pixels."""

    title: str
    """As it was published."""
    model_class: str
    """Name of the model's class in transformers."""
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1]: its processor's image mean."""
    std: tuple[float, float, float]
    render_video_tokens: Callable[[Sequence[float], int], str]
    """Text of a video: from the middles of its temporal patches, in seconds, and the number of tokens of each."""
    temporal_positions: Callable[[Any, int, float], list[list[int]]]
    """Temporal rotary positions of the patches, a list for each vision span, relative to the span's first token: from the
    vision config, the number of temporal patches and the seconds between two."""
    deepstack: bool = False
    """Whether the vision tower also has features that are added to the outputs of the language model's first layers."""

    def feature_shape(self, config: Any) -> tuple[int, ...]:
        """Shape of one video token's features: (hidden,), or (1 + deepstack layers, hidden) with deepstack."""
        width = (config.text_config.hidden_size,)
        return (1 + len(config.vision_config.deepstack_visual_indexes), *width) if self.deepstack else width


def single_video_span(middles: Sequence[float], tokens: int) -> str:
    """All frames in one vision span, without times.

    >>> single_video_span([0.5, 2.5], 1)
    '<|vision_start|><|video_pad|><|video_pad|><|vision_end|>'
    """
    return PLACEHOLDER.replace(VIDEO_PAD, VIDEO_PAD * (tokens * len(middles)))


def timestamped_spans(middles: Sequence[float], tokens: int) -> str:
    """A vision span for each temporal patch, after the time of its middle as text.

    Source: Qwen3-VL's processor as published (transformers 4.57). It replaces the template's whole
    placeholder by this; that of transformers 5 leaves the template's own markers around it.

    >>> timestamped_spans([0.5, 2.5], 1)
    '<0.5 seconds><|vision_start|><|video_pad|><|vision_end|><2.5 seconds><|vision_start|><|video_pad|><|vision_end|>'
    """
    return "".join(f"<{middle:.1f} seconds>{PLACEHOLDER.replace(VIDEO_PAD, VIDEO_PAD * tokens)}" for middle in middles)


def positions_in_seconds(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """True seconds times the config's `tokens_per_second`, rounded down.

    >>> from types import SimpleNamespace
    >>> positions_in_seconds(SimpleNamespace(tokens_per_second=2), 4, 0.75)
    [[0, 1, 3, 4]]
    """
    # A hair above, so that 0.1 * 3 * 10 counts as 3 and not as 2.999...
    return [[int(k * seconds * vision.tokens_per_second + 1e-6) for k in range(patches)]]


def positions_by_index(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """The index of the patch, whatever the seconds between two.

    >>> positions_by_index(None, 3, 0.75)
    [[0, 1, 2]]
    """
    return [list(range(patches))]


def positions_of_single_frames(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """All 0: each patch is a span of its own, and its time is in the text.

    >>> positions_of_single_frames(None, 3, 0.75)
    [[0], [0], [0]]
    """
    return [[0]] * patches


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        title="Qwen2-VL", model_class="Qwen2VLForConditionalGeneration", mean=_MEAN, std=_STD,
        render_video_tokens=single_video_span, temporal_positions=positions_by_index,
    ),
    "qwen2_5_vl": Family(
        title="Qwen2.5-VL", model_class="Qwen2_5_VLForConditionalGeneration", mean=_MEAN, std=_STD,
        render_video_tokens=single_video_span, temporal_positions=positions_in_seconds,
    ),
    "qwen3_vl": Family(
        title="Qwen3-VL", model_class="Qwen3VLForConditionalGeneration", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        render_video_tokens=timestamped_spans, temporal_positions=positions_of_single_frames, deepstack=True,
    ),
}  # fmt: skip
"""By `model_type`. Qwen2-VL's positions count patches, not seconds: two clips sampled at different rates look the same to it, so its
answers in seconds are only as good as what it learns about one sampling rate. Keep `fps` fixed, and `max_frames` above what the
longest clip needs."""
