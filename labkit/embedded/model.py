"""The embedded base: a tiny, real Qwen2.5-VL that answers on the embedded world.

1.4 million parameters, a vocabulary of whole words, weights shipped with the package. It plays the base model's part: it finds
events, but roughly, and it rarely writes anchors. `recipes.first_base` made it. `write_untrained` writes
the same shape in any model family, with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.embedded.clips import ACTIONS, COLORS, SHAPES, STATES_PER_SECOND
from labkit.embedded.first_edition import STATES
from labkit.errors import LabError
from labkit.policy.families import FAMILIES
from labkit.policy.model import Policy, save_policy

SPECIAL = (
    "<pad>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<timestamp>", "</timestamp>", "<answer>", "</answer>")
TIMES = tuple(f"{state / STATES_PER_SECOND:.1f}" for state in range(STATES + 1))
WORDS = (
    "user assistant when does find is the it to then from about around more closely refine check here look at i see on "
    "in early late middle top bottom left right and , . ?"
).split()
SIDE = 56
"""Pixels of a frame's side as the model reads it: 2 x 2 tokens, one per quadrant, for each second."""
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)


STAMP_WORDS = ("<", ">", "seconds", *(f"{tenth / 10:.1f}" for tenth in range(10 * STATES // STATES_PER_SECOND)))
"""What Qwen3-VL's times between frames are written with."""
_QUARTER = STATES // 4
NEXT_TOKENS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("assistant",): ("<think>",),
    ("<think>", "</timestamp>"): ("<timestamp>", "</think>"),
    ("<timestamp>",): TIMES[:_QUARTER],
    ("</think>",): ("<answer>",),
    ("<answer>",): TIMES[_QUARTER : 2 * _QUARTER],
    TIMES[: 2 * _QUARTER]: ("to",),
    ("to",): TIMES[2 * _QUARTER :],
    TIMES[2 * _QUARTER :]: ("</timestamp>", "</answer>"),
    ("</answer>",): ("<|im_end|>",),
}
"""Words that may stand behind each of some words, all as likely. Starts lie in the first half of a clip and ends in the second, so
that an end is never before its start; about a third of the chains are well formed, since an end may close what was not open."""
CERTAINTY = 12.0
"""Logit of a word that may follow, of 0 for all others."""


MARKERS = {
    "smolvlm": ("<fake_token_around_image>", "<global-img>", "<image>"),
    "internvl": ("<img>", "</img>", "<IMG_CONTEXT>"),
}
"""Special tokens of frames in families that have other ones than Qwen's; the last takes the features."""
_FAMILY_WORDS = {
    "qwen3_vl": STAMP_WORDS,
    "qwen3_5": STAMP_WORDS,
    "smolvlm": ("frame", ":", *(f"{number:02}" for number in range(60))),
    "internvl": tuple(f"frame{number}" for number in range(1, STATES + 1)),
}
"""What a family writes between its frames."""


def build_tokenizer(added: Sequence[str] = (), markers: Sequence[str] = (), placeholder: str = "") -> Any:
    """A word-level tokenizer with Qwen's special tokens; times are single tokens on half seconds.

    `added` words and special `markers` stand behind all others, so that the numbers of those stay as they are. `placeholder`: of a
    video in the chat template, Qwen's by default.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    forms = [form for verb, forms in ACTIONS.items() for form in (verb, *forms)]
    vocabulary = list(dict.fromkeys([*SPECIAL, *TAGS, *TIMES, *COLORS, *SHAPES, *forms, *WORDS, *added, *markers]))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    pieces = Regex(r"</?\w+>|\d+\.\d+|\w+|[^\w\s]")
    core.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="removed", invert=True)
    core.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=[*SPECIAL[2:], *markers],
        padding_side="left",
        model_max_length=1024,
    )
    span = "<|vision_start|><|video_pad|><|vision_end|>"
    tokenizer.chat_template = CHAT_TEMPLATE.replace(span, placeholder) if placeholder else CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, seed: int = 0, family: str = "qwen2_5_vl", tied: bool = True, layers: int = 4) -> Any:
    """The untrained model: vision 2 layers of 96, text 4 `layers` of 128, four heads.

    `tied`: whether the output layer is the table of embeddings. `family`: a name of `labkit.policy.families.FAMILIES`; patches have
    14 pixels a side in all of them, so that a quadrant of the world is one token.
    """
    import torch
    import transformers

    width, heads = 128, 4
    half = width // heads // 2
    text = {
        "vocab_size": embedding_rows(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
        "initializer_range": 0.04,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [half - 2 * (half // 4), half // 4, half // 4],
        },
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<pad>"),
        "tie_word_embeddings": tied,
        **({"head_dim": width // heads} if family in ("qwen3_vl", "internvl") else {}),
    }
    vision: dict[str, Any] = {"fullatt_block_indexes": [0, 1]} if family == "qwen2_5_vl" else {}
    config = family_config(tokenizer, family, text, width=96, heads=4, initializer_range=0.04, **vision)
    config.tie_word_embeddings = tied
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = getattr(transformers, FAMILIES[family].model_class)(config)
    model.generation_config.eos_token_id = text["eos_token_id"]
    model.generation_config.pad_token_id = text["pad_token_id"]
    return model


def family_config(
    tokenizer: Any,
    family: str,
    text: dict[str, Any],
    *,
    width: int,
    heads: int,
    depth: int = 2,
    patch: int = 14,
    **vision: Any,
) -> Any:
    """The config of a small model of any family around a language model's `text` config.

    `width`, `heads` and `depth` are the vision tower's, `vision` what else its config holds; tokens have 2 x 2 patches, and frames of
    one size alone 2 x 2 tokens.
    """
    import transformers

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    config_class = getattr(transformers, FAMILIES[family].model_class).config_class
    if FAMILIES[family].frames_as_images:
        shape: dict[str, Any] = {
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "hidden_size": width,
            "intermediate_size": 2 * width,
        }
        rope = {name: value for name, value in text["rope_parameters"].items() if name != "mrope_section"}
        language = {"smolvlm": "llama", "internvl": "qwen3"}[family]
        own = {"smolvlm": {"scale_factor": 2}, "internvl": {"image_seq_length": 4}}[family]
        return config_class(
            text_config={"model_type": language, **text, "rope_parameters": rope},
            vision_config={**shape, "patch_size": patch, "image_size": 4 * patch, **vision},
            image_token_id=token(MARKERS[family][-1]), pad_token_id=text["pad_token_id"], **own,
        )  # fmt: skip
    shape = {
        "depth": depth,
        "num_heads": heads,
        "patch_size": patch,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    out = text["hidden_size"]
    if family == "qwen3_5":
        layers = [("linear", "full")[layer % 2] + "_attention" for layer in range(text["num_hidden_layers"])]
        sizes = {
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        }
        rope = text["rope_parameters"] | {"partial_rotary_factor": 1.0}
        head = out // text["num_attention_heads"]
        text = {**text, **sizes, "layer_types": layers, "rope_parameters": rope, "head_dim": head}
    if family == "qwen2_vl":
        shape |= {"embed_dim": width, "mlp_ratio": 2, "hidden_size": out}
    else:
        shape |= {"hidden_size": width, "intermediate_size": 2 * width, "out_hidden_size": out}
    if family == "qwen2_5_vl":
        shape |= {"tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": [depth - 1]}
    if family.startswith("qwen3"):
        shape |= {"num_position_embeddings": 64}
    if FAMILIES[family].deepstack:
        shape |= {"deepstack_visual_indexes": [0, depth - 1]}
    return config_class(
        text_config=text, vision_config=shape | vision,
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=bool(text.get("tie_word_embeddings", False)),
    )  # fmt: skip


def embedding_rows(tokenizer: Any) -> int:
    """Rows of the embedding table: a multiple of 16."""
    return math.ceil(len(tokenizer) / 16) * 16


def write_untrained(folder: Path, family: str, seed: int = 0) -> None:
    """Write a model of a family that knows nothing but how a chain is written, to try the whole path in seconds.

    It has the embedded base's shape and words. Its weights are random, but for an output layer that makes a word depend on the
    word before: so its chains can be parsed, scored and harvested, and what they say is chance. Whatever is measured with it
    holds for the code alone.

    Raises:
        LabError: there is no such family, or the folder exists.
    """
    from transformers.utils import logging as transformers_logging

    if family not in FAMILIES:
        raise LabError(f"there is no family {family!r}; take one of {', '.join(FAMILIES)}")
    transformers_logging.disable_progress_bar()
    images = FAMILIES[family].frames_as_images
    tokenizer = build_tokenizer(
        _FAMILY_WORDS.get(family, ()), MARKERS.get(family, ()), FAMILIES[family].placeholder if images else ""
    )
    model = build_model(tokenizer, seed, family, tied=False)
    write_chains(model, tokenizer, ":" if family == "smolvlm" else "assistant")  # what its chat template ends with
    save_policy(Policy(model, tokenizer, family), folder)


def write_chains(model: Any, tokenizer: Any, before: str) -> None:
    """Have a model with random weights write chains behind the word `before`: its output layer makes a word depend on the last one."""
    import torch

    rows = {word: after for words, after in NEXT_TOKENS.items() for word in words}
    rows[before] = rows["assistant"]
    table = model.get_decoder().embed_tokens.weight
    wanted = torch.zeros(len(rows), len(table))
    for row, after in zip(wanted, rows.values(), strict=True):
        row[tokenizer.convert_tokens_to_ids(list(after))] = CERTAINTY
    with torch.no_grad():
        table.normal_()  # wide enough that a word counts for more than what random layers say, and lasts some updates
        words = model.get_decoder().norm(table[tokenizer.convert_tokens_to_ids(list(rows))])
        model.lm_head.weight.copy_((torch.linalg.pinv(words) @ wanted).T)
