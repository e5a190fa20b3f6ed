"""Which frames of a clip other programs choose, and which seconds they tell of them.

Their own code says so where it is installed, else the rules of clock_rules.yaml, which name where they were read.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from importlib.metadata import version as _version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labkit.data.video.decoders import FrameClock, Times

log = logging.getLogger(__name__)

RULES = Path(__file__).with_name("clock_rules.yaml")


_PACKAGES = {"transformers": "transformers", "vLLM": "vllm"}
"""Whose code chooses the frames, where it is not qwen-vl-utils'."""


class ToldFrames(NamedTuple):
    """Numbers of the frames that a model is shown, and the seconds that it is told of each temporal patch."""

    numbers: Times
    told: Times
    by: str
    """Whether the program's own code was asked, or its rule."""


def told_by_program(
    way: str, rule: Mapping[str, Any], kind: str, clock: FrameClock, temporal: int, per_second: float | None
) -> ToldFrames:
    """What a program shows and tells of a clip.

    `way` is a key of clock_rules.yaml, `kind` the family's `model_type`, `temporal` the frames of a patch, `per_second` the positions
    that a second has, None where seconds are written into the text.
    """
    total, rate = len(clock.starts), clock.rate
    own = _own_frames(way, rule, kind, total, rate)
    numbers = frame_numbers(rule, total, rate) if own is None else own
    spacing = 1 / rule["told"] if isinstance(rule["told"], int) else total / len(numbers) / rate
    seconds = numbers / rate if rule["told"] == "number" else np.arange(len(numbers), dtype=np.float64) * spacing
    seconds = pad(np.asarray(seconds, np.float64), temporal)
    package = _PACKAGES.get(way, "qwen-vl-utils")
    version = getattr(
        sys.modules.get(package), "__version__", ""
    )  # vLLM's build for CPUs is installed under another name
    by = "rule" if own is None else f"own code, {version or _version(package)}"
    if per_second is None:
        middles = (seconds[::temporal] + seconds[temporal - 1 :: temporal]) / 2
        return ToldFrames(numbers, middles.round(1), by)
    patches, step = len(seconds) // temporal, temporal * spacing
    positions = _transformers_positions(patches, step, per_second) if rule["code"] == "transformers" else None
    if positions is None:
        positions = np.floor(np.arange(patches) * step * per_second)
    elif own is None:
        by = f"rule, positions of transformers {_version('transformers')}"
    return ToldFrames(numbers, positions / per_second, by)


def frame_numbers(rule: Mapping[str, Any], total: int, rate: float) -> Times:
    """The frames that a rule chooses of `total`, `rate` of which are a second.

    >>> frame_numbers({"frames": {"count": 4}, "spread": "ends"}, 10, 5.0)
    array([0., 3., 6., 9.])
    >>> frame_numbers({"frames": {"fps": 2, "least": 4, "most": 768}, "even": True, "spread": "steps"}, 25, 10.0)
    array([ 0.,  6., 12., 18.])
    """
    frames = rule["frames"]
    count = frames.get("count") or max(total / rate * frames["fps"], frames["least"])
    count = int(min(count, frames.get("most", total), total))
    count -= count % 2 if rule.get("even") else 0
    if rule["spread"] == "steps":
        return np.floor(np.arange(count) * (total / count))
    return np.linspace(0, total - 1, count).round()


def pad(values: Times, multiple: int) -> Times:
    """The last value repeated until there is a multiple.

    >>> pad(np.array([0.0, 1.0, 2.0]), 2)
    array([0., 1., 2., 2.])
    """
    return np.append(values, np.repeat(values[-1:], -len(values) % multiple))


def _own_frames(way: str, rule: Mapping[str, Any], kind: str, total: int, rate: float) -> Times | None:
    """The frames that a program's own code chooses; None where it is not installed, or its code has moved."""
    frames, positions = rule["frames"], kind == "qwen2_5_vl"
    try:
        if way == "transformers":
            from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
            from transformers.video_utils import VideoMetadata

            processor: Any = Qwen2VLVideoProcessor() if positions else Qwen3VLVideoProcessor()
            found = processor.sample_frames(VideoMetadata(total_num_frames=total, fps=rate), fps=frames["fps"])
        elif way == "vLLM":
            from vllm.multimodal.video import VIDEO_LOADER_REGISTRY, VideoSourceMetadata, VideoTargetMetadata

            loader = VIDEO_LOADER_REGISTRY.load("qwen2_vl" if positions else "qwen3_vl")
            target = VideoTargetMetadata(num_frames=32, fps=frames["fps"], max_duration=300)
            found = loader.compute_frames_index_to_sample(VideoSourceMetadata(total, rate, total / rate), target)
        else:
            from qwen_vl_utils.vision_process import smart_nframes

            asked = {"nframes": min(frames["count"], total) // 2 * 2} if "count" in frames else {"fps": frames["fps"]}
            found = np.linspace(0, total - 1, smart_nframes(asked, total, rate)).round()
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        log.debug("%s is not asked: %r", way, error)
        return None
    return np.asarray(found, np.float64)


def _transformers_positions(patches: int, step: float, per_second: float) -> Times | None:
    """Temporal positions of Qwen2.5-VL's patches, `step` seconds apart, as the transformers that is installed computes them."""
    from types import SimpleNamespace

    import torch
    from transformers import Qwen2_5_VLModel

    vision = SimpleNamespace(spatial_merge_size=2, tokens_per_second=per_second)
    model: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = lambda *args, **more: Qwen2_5_VLModel.get_vision_position_ids(model, *args, **more)
    ids: Any = torch.zeros(1, patches, dtype=torch.long)
    more: Any = {
        "mm_token_type_ids": ids + 2,  # a token a patch, all of a video
        "video_grid_thw": torch.tensor([[patches, 2, 2]]),
        "second_per_grid_ts": torch.tensor([step]),
    }
    try:
        found = Qwen2_5_VLModel.get_rope_index(model, ids, **more)[0][0, 0]
    except (AttributeError, TypeError) as error:
        log.debug("transformers' positions are not asked: %r", error)
        return None
    return np.asarray(found, np.float64)
