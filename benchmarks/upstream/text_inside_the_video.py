"""transformers 5 gives the text behind a video positions that lie inside the video's own, for Qwen2-VL and Qwen2.5-VL.

Needs torch and transformers; no weights, no network, no processor. The exit code is 1 where the fault shows, 0 where it does not.

    python benchmarks/upstream/text_inside_the_video.py

Both models were trained with text that goes on behind the video's last position on any axis (Qwen2-VL's report, section 2.1), and
so transformers computed it up to 4.57. `get_rope_index` of 5.x goes on from the frame's side instead, which is the same for one
image, and earlier than the video's last second for most videos. The same function tells `generate` to go on behind the last
position, so that the prompt's last token and the first generated one lie far apart.
"""

from __future__ import annotations

import sys

import torch
import transformers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel

SIDE, PATCHES, SECONDS, BEHIND = 8, 60, 1.0, 5
"""Tokens along a frame's side, temporal patches, seconds between two, and tokens of text behind the video."""


def main() -> int:
    """Print where the text stands."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    rotary = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    text = {**sizes, "intermediate_size": 16, "vocab_size": 32, "rope_parameters": rotary}
    small = {"depth": 1, "hidden_size": 16, "num_heads": 2}
    shown = False
    print(
        f"transformers {transformers.__version__}, a video of {PATCHES} s: {PATCHES} patches of {SIDE} x {SIDE} tokens"
    )
    for model_class, config_class, vision in (
        (Qwen2_5_VLModel, Qwen2_5_VLConfig, {**small, "out_hidden_size": 16, "tokens_per_second": 2}),
        (Qwen2VLModel, Qwen2VLConfig, {**small, "embed_dim": 16, "mlp_ratio": 1}),
    ):
        model = model_class(config_class(text_config=text, vision_config=vision))
        video = PATCHES * SIDE * SIDE
        kinds = torch.tensor([[0] + [2] * video + [0] * BEHIND])
        more = {"second_per_grid_ts": torch.tensor([SECONDS])} if model_class is Qwen2_5_VLModel else {}
        positions, deltas = model.get_rope_index(
            torch.zeros_like(kinds),
            mm_token_type_ids=kinds,
            video_grid_thw=torch.tensor([[PATCHES, 2 * SIDE, 2 * SIDE]]),
            **more,
        )
        last, first, end = (int(positions[0, 0, at]) for at in (video, video + 1, -1))
        generated = kinds.shape[1] + int(deltas)
        fault = first <= last
        shown |= fault
        print(
            f"{model_class.__name__}: the video ends at position {last}, the text behind it begins at {first} and ends at {end}, "
            f"the first generated token gets {generated}: {'INSIDE THE VIDEO' if fault else 'behind it'}"
        )
    return int(shown)


if __name__ == "__main__":
    sys.exit(main())
