"""The true tokenizer of Qwen2.5-VL or Qwen3-VL, and a model's folder without weights around it.

The byte pairs are read where the package dashscope (Apache-2.0) has them, and never copied into the project. Special tokens, their
numbers and the chat template are those of the published checkpoints.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

SPECIALS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
"""From number 151643 on; taken out of texts."""
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>"
).split()
"""From 151657 on; left in texts."""
ADDED_QWEN3 = ["<tool_response>", "</tool_response>", "<think>", "</think>"]
ROWS = 151_936
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and system and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As the checkpoints' own render chats of one turn with a video; Qwen3-VL has no system turn unless one is given."""


def tiktoken_file() -> Path:
    """Qwen's byte pairs. Skips the test where dashscope is not installed."""
    found = importlib.util.find_spec("dashscope")
    if found is None or not found.submodule_search_locations:
        pytest.skip("dashscope IS NOT INSTALLED (pip install -e '.[test]'): THE TRUE VOCABULARY WAS NOT TESTED")
    return Path(found.submodule_search_locations[0]) / "resources" / "qwen.tiktoken"


@functools.cache
def tokenizer(family: str = "qwen2_5_vl") -> Any:
    """The published checkpoints' tokenizer, from their byte pairs."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    lines = tiktoken_file().read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    letters = _letters()
    names = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [tuple(map(names.__getitem__, _halves(token, ranks))) for token in ranks if len(token) > 1]
    made = Qwen2Tokenizer({names[token]: rank for token, rank in ranks.items()}, merges)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    made.eos_token = "<|im_end|>"
    added = ADDED + (ADDED_QWEN3 if family == "qwen3_vl" else [])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    made.chat_template = TEMPLATE.replace("system and ", "" if family == "qwen2_5_vl" else "false and ")
    return made


def _halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that are merged into this one: what its bytes become by the merges that come before its own."""
    parts = [token[place : place + 1] for place in range(len(token))]
    while len(parts) > 2:
        pairs = [ranks.get(left + right, len(ranks)) for left, right in itertools.pairwise(parts)]
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts


def _letters() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def write_folder(folder: Path, family: str = "qwen2_5_vl", made: Any = None, **text: Any) -> Path:
    """Config and tokenizer of the published 3B (Qwen2.5-VL) or 4B (Qwen3-VL) without weights."""
    (made or tokenizer(family)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config(family, **text)), encoding="utf-8")
    generation = {"eos_token_id": [151645, 151643], "pad_token_id": 151643, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return folder


def config(family: str, **text: Any) -> dict[str, Any]:
    """The published config.json, as far as it counts; `text` goes over the language model's part."""
    qwen3 = family == "qwen3_vl"
    language = {
        "vocab_size": ROWS, "hidden_size": 2560 if qwen3 else 2048, "num_hidden_layers": 36,
        "num_attention_heads": 32 if qwen3 else 16, "num_key_value_heads": 8 if qwen3 else 2,
        "intermediate_size": 9728 if qwen3 else 11008, "max_position_embeddings": 262_144 if qwen3 else 128_000,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": True, "eos_token_id": 151645, "bos_token_id": 151643,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6 if qwen3 else 1e6, "mrope_section": [24, 20, 20] if qwen3 else [16, 24, 24],
            **({"mrope_interleaved": True} if qwen3 else {}),
        },
        **({"head_dim": 128} if qwen3 else {}),
    }  # fmt: skip
    vision = {"depth": 24 if qwen3 else 32, "num_heads": 16, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if qwen3:
        vision |= {"hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560, "patch_size": 16,
                   "num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}  # fmt: skip
    else:
        vision |= {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048, "patch_size": 14,
                   "tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}  # fmt: skip
    return {
        "model_type": family, "text_config": language | text, "vision_config": vision, "tie_word_embeddings": True,
        "vision_start_token_id": 151652, "vision_end_token_id": 151653, "image_token_id": 151655, "video_token_id": 151656,
    }  # fmt: skip
