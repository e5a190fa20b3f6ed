"""Model families: what differs between the vision-language models that labkit reads, one entry for each.

They are told apart by `model_type` in config.json, and share the rest: Qwen's special tokens, the order of patches, tokens of
`merge` x `merge` patches, the names of the language model's layers, and rotary positions in which whatever follows a vision span
goes on behind the span's last position on any axis. So all of them were trained (Qwen2-VL's report, 2.1; `get_rope_index` up to
transformers 4.57); transformers 5 goes on at the frame's side instead, which differs for spans of more than one frame.

A pixel budget is told for one frame. Qwen3-VL's processor tells it for a whole clip: n frames have n times the budget, and the same
size comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

VIDEO_PAD = "<|video_pad|>"
PLACEHOLDER = f"<|vision_start|>{VIDEO_PAD}<|vision_end|>"
"""How a chat template writes a video."""

_MEAN, _STD = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)  # of CLIP, which trained on them


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family reads a video."""

    title: str
    """As its makers write it."""
    model_class: str
    """Name of the model's class in transformers."""
    mean: tuple[float, float, float]
    """Of red, green and blue in [0, 1], as its processor normalises them."""
    std: tuple[float, float, float]
    write: Callable[[Sequence[float], int], str]
    """What stands in the text for a video: from the middles of its temporal patches, in seconds, and the tokens of each."""
    ticks: Callable[[Any, int, float], list[list[int]]]
    """Temporal positions of the patches, a list for each vision span, counted from the span's first token: from the vision
    tower's config, the number of temporal patches and the seconds between two."""
    deepstack: bool = False
    """Whether the tower has features for the first layers of the language model too, which are added to their outputs."""

    def feature_shape(self, config: Any) -> tuple[int, ...]:
        """Shape of one video token's features: (hidden,), or (1 + layers fed, hidden) with deepstack."""
        width = (config.text_config.hidden_size,)
        return (1 + len(config.vision_config.deepstack_visual_indexes), *width) if self.deepstack else width


def one_span(middles: Sequence[float], tokens: int) -> str:
    """All frames in one vision span; nothing is said about time.

    >>> one_span([0.5, 2.5], 1)
    '<|vision_start|><|video_pad|><|video_pad|><|vision_end|>'
    """
    return PLACEHOLDER.replace(VIDEO_PAD, VIDEO_PAD * (tokens * len(middles)))


def stamped_spans(middles: Sequence[float], tokens: int) -> str:
    """A vision span for each temporal patch, behind the time of its middle in words.

    Source: Qwen3-VL's processor as published (transformers 4.57). It puts this in the place of the template's whole
    placeholder; that of transformers 5 leaves the template's own markers around it.

    >>> stamped_spans([0.5, 2.5], 1)
    '<0.5 seconds><|vision_start|><|video_pad|><|vision_end|><2.5 seconds><|vision_start|><|video_pad|><|vision_end|>'
    """
    return "".join(f"<{middle:.1f} seconds>{PLACEHOLDER.replace(VIDEO_PAD, VIDEO_PAD * tokens)}" for middle in middles)


def second_ticks(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """True time: seconds times the config's `tokens_per_second`, rounded down.

    >>> from types import SimpleNamespace
    >>> second_ticks(SimpleNamespace(tokens_per_second=2), 4, 0.75)
    [[0, 1, 3, 4]]
    """
    # A hair above, so that 0.1 * 3 * 10 counts as 3 and not as 2.999...
    return [[int(k * seconds * vision.tokens_per_second + 1e-6) for k in range(patches)]]


def index_ticks(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """The number of the patch, whatever the seconds between two.

    >>> index_ticks(None, 3, 0.75)
    [[0, 1, 2]]
    """
    return [list(range(patches))]


def stamped_ticks(vision: Any, patches: int, seconds: float) -> list[list[int]]:
    """Each patch is a span of its own, and the time stands in the text.

    >>> stamped_ticks(None, 3, 0.75)
    [[0], [0], [0]]
    """
    return [[0]] * patches


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        title="Qwen2-VL", model_class="Qwen2VLForConditionalGeneration", mean=_MEAN, std=_STD, write=one_span, ticks=index_ticks
    ),
    "qwen2_5_vl": Family(
        title="Qwen2.5-VL", model_class="Qwen2_5_VLForConditionalGeneration", mean=_MEAN, std=_STD, write=one_span,
        ticks=second_ticks,
    ),
    "qwen3_vl": Family(
        title="Qwen3-VL", model_class="Qwen3VLForConditionalGeneration", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        write=stamped_spans, ticks=stamped_ticks, deepstack=True,
    ),
}  # fmt: skip
"""By `model_type`. Qwen2-VL counts patches and never hears of seconds: two clips sampled at different rates look the same to it, so
its answers in seconds are only as good as what it learns about one sampling rate. Keep `fps` fixed, and `max_frames` above what the
longest clip needs."""
