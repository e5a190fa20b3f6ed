"""The embedded base: a tiny, real Qwen2.5-VL that answers on the embedded world.

1.4 million parameters, a vocabulary of whole words, weights shipped with the package. It plays the base model's part: it finds
events, but roughly, and it rarely writes anchors. `labkit.embedded.pretraining` is the recipe that made it. `write_untrained` writes
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
GQA_WORDS = ("<option>", "</option>", "what", "do", "a", "b", "c", "d")
"""What questions with options add to the vocabulary, behind all other words."""
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


def build_tokenizer(added: Sequence[str] = ()) -> Any:
    """A word-level tokenizer with Qwen's special tokens; times are single tokens on half seconds.

    `added` words stand behind all others, so that the numbers of those stay as they are.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    forms = [form for verb, forms in ACTIONS.items() for form in (verb, *forms)]
    vocabulary = list(dict.fromkeys([*SPECIAL, *TAGS, *TIMES, *COLORS, *SHAPES, *forms, *WORDS, *added]))
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
        additional_special_tokens=list(SPECIAL[2:]),
        padding_side="left",
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: Any, seed: int = 0, family: str = "qwen2_5_vl", tied: bool = True, layers: int = 4) -> Any:
    """The untrained model: vision 2 layers of 96, text 4 `layers` of 128, four heads.

    `tied`: whether the output layer is the table of embeddings. `family`: a name of `labkit.policy.families.FAMILIES`; patches have
    14 pixels a side in all of them, so that a quadrant of the world is one token.
    """
    import torch
    import transformers

    def token(name: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(name))

    model_class = getattr(transformers, FAMILIES[family].model_class)
    width, heads = 128, 4
    half = width // heads // 2
    config = model_class.config_class(
        text_config={
            "vocab_size": _embedding_rows(tokenizer),
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
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<pad>"),
            "tie_word_embeddings": tied,
            **({"head_dim": width // heads} if family == "qwen3_vl" else {}),
        },
        vision_config={
            "depth": 2,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.04,
            **_vision_config(family, 96, width),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=tied,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<pad>")
    return model


def _vision_config(family: str, width: int, out: int) -> dict[str, Any]:
    """What the families call their tower's widths, and what only one of them has; `out`: the language model's width."""
    if family == "qwen2_vl":
        return {"embed_dim": width, "mlp_ratio": 2, "hidden_size": out}
    named = {"hidden_size": width, "intermediate_size": 2 * width, "out_hidden_size": out}
    if family == "qwen3_vl":
        return named | {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return named | {"tokens_per_second": 2, "window_size": 112, "fullatt_block_indexes": [0, 1]}


def add_option_words(model: Any, known_words: Sequence[str] = (), seed: int = 0) -> Any:
    """Give a model rows for `GQA_WORDS` behind the `known_words` that its tokenizer was built with, in place; return the tokenizer.

    New rows are drawn wider than the old ones, so that the words are told apart from the first step on.
    """
    import torch

    tokenizer = build_tokenizer((*known_words, *GQA_WORDS))
    known = len(build_tokenizer(known_words))
    if model.config.text_config.vocab_size < len(tokenizer):
        model.resize_token_embeddings(_embedding_rows(tokenizer), mean_resizing=False)
    table = model.model.language_model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise = torch.randn(len(table) - known, table.shape[1], generator=generator)
        table[known:] = 1.5 * table[:known].std() * noise
    return tokenizer


def _embedding_rows(tokenizer: Any) -> int:
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
    import torch
    from transformers.utils import logging as transformers_logging

    if family not in FAMILIES:
        raise LabError(f"there is no family {family!r}; take one of {', '.join(FAMILIES)}")
    transformers_logging.disable_progress_bar()
    tokenizer = build_tokenizer(STAMP_WORDS if family == "qwen3_vl" else ())
    model = build_model(tokenizer, seed, family, tied=False)
    rows = {word: after for words, after in NEXT_TOKENS.items() for word in words}
    table = model.model.language_model.embed_tokens.weight
    wanted = torch.zeros(len(rows), len(table))
    for row, after in zip(wanted, rows.values(), strict=True):
        row[tokenizer.convert_tokens_to_ids(list(after))] = CERTAINTY
    with torch.no_grad():
        table.normal_()  # wide enough that a word counts for more than what random layers say, and lasts some updates
        words = model.model.language_model.norm(table[tokenizer.convert_tokens_to_ids(list(rows))])
        model.lm_head.weight.copy_((torch.linalg.pinv(words) @ wanted).T)
    save_policy(Policy(model, tokenizer, family), folder)
