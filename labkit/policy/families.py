"""Model families: what differs between the vision-language models that labkit supports, one entry for each.

They are identified by `model_type` in config.json. Qwen's share their special tokens, the order of patches, tokens of
`merge` x `merge` patches, and rotary positions in which whatever follows a vision span follows the span's last position on any axis.
So all of them were trained (Qwen2-VL's report, 2.1; `get_rope_index` up to transformers 4.57); transformers 5 continues from the
frame's side instead, which differs for spans of more than one frame. In the others each frame is an image of one size, and a token's
position is its index.

Whatever has no entry is read by the plain path (`labkit.policy.plain`), through its own processor.

A pixel budget is per frame. In Qwen3-VL's processor it is per clip: n frames have n times the budget, and the same size comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

VIDEO_PAD = "<|video_pad|>"
_QWEN_SPAN = "<|vision_start|>{}<|vision_end|>"

# Pixel statistics of CLIP, which Qwen2-VL's image and video processors normalise with, and of ImageNet, for InternVL's.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)


class Geometry(NamedTuple):
    """How frames become tokens."""

    patch: int = 14
    """Pixels along a patch's side."""
    merge: int = 2
    """Patches along the side of one token."""
    temporal: int = 2
    """Frames of one token."""
    side: int = 0
    """Pixels along the side of every frame, where the tower knows one size alone; 0: any multiple of `patch * merge`."""


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
    geometry: Callable[[Any], Geometry]
    """From the model's config."""
    render_video: Callable[[Sequence[float], int, float], str]
    """What stands for the placeholder: from the middles of the video's temporal patches, in seconds, the number of tokens of each, and
    the clip's seconds."""
    temporal_positions: Callable[[Any, int, float], list[list[int]]] | None = None
    """Temporal rotary positions of the patches, a list for each vision span, relative to the span's first token: from the
    vision config, the number of temporal patches and the seconds between two. None where a token's position is its index."""
    placeholder: str = VIDEO_PAD
    """A video in the text of a chat template."""
    template_span: str = _QWEN_SPAN
    """What stands around it there."""
    video_token: str = "video_token_id"
    """Where the config names the token that features are put in place of."""
    markers: tuple[str, ...] = ()
    """Tokens around the frames that the config does not name; they are never sampled."""
    template_of: str = ""
    """Module of transformers that holds the chat template for videos, where checkpoints have one for images alone."""
    image_batches: bool = False
    """Whether the model takes a batch of sequences of images, (1, T, 3, H, W), and not the images, (T, 3, H, W)."""
    deepstack: bool = False
    """Whether the vision tower also has features that are added to the outputs of the language model's first layers."""

    @property
    def frames_as_images(self) -> bool:
        """Whether each frame is an image of its own, and positions have one axis."""
        return self.temporal_positions is None

    def feature_shape(self, config: Any) -> tuple[int, ...]:
        """Shape of one video token's features: (hidden,), or (1 + deepstack layers, hidden) with deepstack."""
        width = (config.text_config.hidden_size,)
        return (1 + len(config.vision_config.deepstack_visual_indexes), *width) if self.deepstack else width


def qwen_geometry(config: Any) -> Geometry:
    """Of Qwen's: any size, two frames a token."""
    vision = config.vision_config
    return Geometry(vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)


def smolvlm_geometry(config: Any) -> Geometry:
    """Of SmolVLM's: one size, a frame at a time."""
    return Geometry(config.vision_config.patch_size, config.scale_factor, 1, config.vision_config.image_size)


def internvl_geometry(config: Any) -> Geometry:
    """Of InternVL's: one size, a frame at a time."""
    vision = config.vision_config
    return Geometry(vision.patch_size[0], round(1 / config.downsample_ratio), 1, vision.image_size[0])


def video_tokens(middles: Sequence[float], tokens: int, duration: float) -> str:
    """All frames in the template's one vision span, without times.

    >>> video_tokens([0.5, 2.5], 1, 4.0)
    '<|video_pad|><|video_pad|>'
    """
    return VIDEO_PAD * (tokens * len(middles))


def timestamped_spans(middles: Sequence[float], tokens: int, duration: float) -> str:
    """A vision span for each temporal patch, after the time of its middle as text; the template's own span stays around all of them.

    >>> timestamped_spans([0.5, 2.5], 1, 4.0)
    '<0.5 seconds><|vision_start|><|video_pad|><|vision_end|><2.5 seconds><|vision_start|><|video_pad|><|vision_end|>'
    """
    return "".join(f"<{middle:.1f} seconds>{_QWEN_SPAN.format(VIDEO_PAD * tokens)}" for middle in middles)


def clocked_frames(middles: Sequence[float], tokens: int, duration: float) -> str:
    """SmolVLM's: how many frames of how long a video, in words, and each frame behind its minutes and whole seconds.

    >>> clocked_frames([61.5], 1, 90.0).splitlines()[0]
    'You are provided the following series of one frames from a 0:01:30 [H:MM:SS] video.'
    >>> clocked_frames([61.5], 1, 90.0).splitlines()[2]
    'Frame from 01:01:<fake_token_around_image><global-img><image><fake_token_around_image>'
    """
    whole = [int(middle + 1e-6) for middle in middles]
    length = int(duration)
    clock = f"{length // 3600}:{length // 60 % 60:02}:{length % 60:02}"
    frame = "<fake_token_around_image><global-img>" + "<image>" * tokens + "<fake_token_around_image>"
    return (
        f"You are provided the following series of {in_words(len(middles))} frames from a {clock} [H:MM:SS] video.\n"
        + "".join(f"\nFrame from {second // 60:02}:{second % 60:02}:{frame}" for second in whole)
        + "\n\n"
    )


def numbered_frames(middles: Sequence[float], tokens: int, duration: float) -> str:
    """InternVL's: each frame behind its number, without times.

    >>> numbered_frames([0.0, 2.0], 1, 4.0).splitlines()
    ['Frame1: <img><IMG_CONTEXT></img>', 'Frame2: <img><IMG_CONTEXT></img>']
    """
    frame = "<img>" + "<IMG_CONTEXT>" * tokens + "</img>"
    return "\n".join(f"Frame{number}: {frame}" for number in range(1, len(middles) + 1))


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = ".. .. twenty thirty forty fifty sixty seventy eighty ninety".split()


def in_words(number: int) -> str:
    """A number below 10,000 as the package num2words writes it.

    >>> in_words(32), in_words(768), in_words(1001)
    ('thirty-two', 'seven hundred and sixty-eight', 'one thousand and one')
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_SMALL[number % 10]}" if number % 10 else "")
    size, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    rest = number % size
    joint = " and " if rest < 100 else ", "
    return f"{in_words(number // size)} {name}" + (joint + in_words(rest) if rest else "")


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


PLAIN = Family(
    title="model of another family", model_class="AutoModelForImageTextToText", mean=_HALF, std=_HALF,
    geometry=lambda config: Geometry(2, 1, 1), render_video=numbered_frames,
)  # fmt: skip
"""What the plain path takes from here: frames one by one, of any even size, which the model's own processor changes as it needs."""
FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        title="Qwen2-VL", model_class="Qwen2VLForConditionalGeneration", mean=_MEAN, std=_STD, geometry=qwen_geometry,
        render_video=video_tokens, temporal_positions=positions_by_index,
    ),
    "qwen2_5_vl": Family(
        title="Qwen2.5-VL", model_class="Qwen2_5_VLForConditionalGeneration", mean=_MEAN, std=_STD, geometry=qwen_geometry,
        render_video=video_tokens, temporal_positions=positions_in_seconds,
    ),
    "qwen3_vl": Family(
        title="Qwen3-VL", model_class="Qwen3VLForConditionalGeneration", mean=_HALF, std=_HALF, geometry=qwen_geometry,
        render_video=timestamped_spans, temporal_positions=positions_of_single_frames, deepstack=True,
    ),
    "qwen3_5": Family(
        title="Qwen3.5", model_class="Qwen3_5ForConditionalGeneration", mean=_HALF, std=_HALF, geometry=qwen_geometry,
        render_video=timestamped_spans, temporal_positions=positions_of_single_frames,
    ),
    "smolvlm": Family(
        title="SmolVLM2", model_class="SmolVLMForConditionalGeneration", mean=_HALF, std=_HALF, geometry=smolvlm_geometry,
        render_video=clocked_frames, placeholder="<video>", template_span="{}", video_token="image_token_id", image_batches=True,
        markers=("<fake_token_around_image>", "<global-img>"), template_of="transformers.models.smolvlm.processing_smolvlm",
    ),
    "internvl": Family(
        title="InternVL3", model_class="InternVLForConditionalGeneration", mean=_IMAGENET_MEAN, std=_IMAGENET_STD,
        geometry=internvl_geometry, render_video=numbered_frames, placeholder="<video>", template_span="{}",
        video_token="image_token_id", markers=("<img>", "</img>"),
    ),
}  # fmt: skip
"""By `model_type`. Qwen2-VL's positions and InternVL's numbers count frames, not seconds: two clips sampled at different rates look
the same to them, so their answers in seconds are only as good as what they learn about one sampling rate. Keep `fps` fixed, and
`max_frames` above what the longest clip needs. SmolVLM2 reads whole seconds: frames of one second have the same time."""
