"""A base of any model family that knows nothing but how a chain is written, for trying the whole path in seconds.

Its weights are random, but for an output layer that makes a word depend on the word before: so its chains can be read, scored and
harvested, and what they say is chance. Whatever is measured with it holds for the code alone.
"""

from __future__ import annotations

from pathlib import Path

from labkit.embedded.model import TIMES, build_model, build_tokenizer
from labkit.embedded.world import STATES, STATES_PER_SECOND
from labkit.errors import LabError
from labkit.policy.families import FAMILIES
from labkit.policy.model import Policy, save_policy

STAMP_WORDS = ("<", ">", "seconds", *(f"{tenth / 10:.1f}" for tenth in range(10 * STATES // STATES_PER_SECOND)))
"""What Qwen3-VL's times between frames are written with."""
_QUARTER = STATES // 4
FOLLOWERS: dict[tuple[str, ...], tuple[str, ...]] = {
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


def write_untrained(folder: Path, family: str, seed: int = 0) -> None:
    """Write a model of a family with the embedded lab's shape and words to `folder`.

    Raises:
        LabError: there is no such family, or the folder exists.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    if family not in FAMILIES:
        raise LabError(f"there is no family {family!r}; choose one of {', '.join(FAMILIES)}")
    transformers_logging.disable_progress_bar()
    tokenizer = build_tokenizer(STAMP_WORDS if family == "qwen3_vl" else ())
    model = build_model(tokenizer, seed, family, tied=False)
    rows = {word: after for words, after in FOLLOWERS.items() for word in words}
    table = model.model.language_model.embed_tokens.weight
    wanted = torch.zeros(len(rows), len(table))
    for row, after in zip(wanted, rows.values(), strict=True):
        row[tokenizer.convert_tokens_to_ids(list(after))] = CERTAINTY
    with torch.no_grad():
        table.normal_()  # wide enough that a word counts for more than what random layers say, and lasts some updates
        words = model.model.language_model.norm(table[tokenizer.convert_tokens_to_ids(list(rows))])
        model.lm_head.weight.copy_((torch.linalg.pinv(words) @ wanted).T)
    save_policy(Policy(model, tokenizer, family), folder)
