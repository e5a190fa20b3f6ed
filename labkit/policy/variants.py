"""Variants of a question: its completion begun with a text, and its frames edited before the vision tower sees them.

An intervention changes one thing of what a model reads and asks again. A variant has a name of its own, so that several of one
question stand beside each other among the prompts of an evaluation; those that differ in their text alone share one prefill.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from labkit.chain.spans import Span
from labkit.policy.inputs import ClipPatches, Prompt, begin_completion, encode_clip, frames_to_patches
from labkit.policy.model import Policy
from labkit.policy.prompt_source import PromptSource, prefetch

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FrameEdit:
    """What is done to the frames inside a span, or to those outside of it."""

    what: Literal["hide", "shuffle"]
    """`hide`: black in their place. `shuffle`: the same frames in another order."""
    span: Span
    """Seconds from the clip's beginning."""
    outside: bool = False
    """The frames outside of the span, and not those inside."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One question as it is asked otherwise."""

    qid: str
    """Of the question."""
    begun: str = ""
    """How the completion begins."""
    frames: FrameEdit | None = None


class VariantPrompts(Mapping[str, Prompt]):
    """Prompts of variants by their names, made from those of a source; a name is its prompt's qid."""

    def __init__(self, policy: Policy, source: Mapping[str, Prompt], variants: Mapping[str, Variant]) -> None:
        """Only of a `PromptSource` can frames be edited."""
        self.policy, self.source, self.variants = policy, source, variants
        self._newest: tuple[tuple[str, FrameEdit], torch.Tensor] | None = None

    def __getitem__(self, name: str) -> Prompt:
        """The prompt of a variant. Raises as the source does."""
        variant = self.variants[name]
        prompt = replace(self.source[variant.qid], qid=name)
        if variant.frames is not None:
            assert isinstance(self.source, PromptSource)
            features = self._features(self.source, variant.qid, variant.frames, prompt)
            prompt = replace(self.source.with_features(variant.qid, features), qid=name)
        return begin_completion(self.policy, prompt, variant.begun) if variant.begun else prompt

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.variants)

    def __len__(self) -> int:
        """How many variants."""
        return len(self.variants)

    def prefetch(self, names: Iterable[str]) -> None:
        """As `PromptSource.prefetch`."""
        prefetch(self.source, dict.fromkeys(self.variants[name].qid for name in names))

    def digest(self) -> str:
        """Sixteen letters that are others once any variant is."""
        return hashlib.sha256(repr(sorted(self.variants.items(), key=lambda item: item[0])).encode()).hexdigest()[:16]

    def _features(self, source: PromptSource, qid: str, edit: FrameEdit, prompt: Prompt) -> torch.Tensor:
        """Features of the edited clip; the newest are kept, since two variants of them follow each other."""
        if self._newest is None or self._newest[0] != (qid, edit):
            shown = source.frames_for(qid)
            rgb = edit_frames(shown.rgb, shown.times, edit, seed=zlib.crc32(qid.encode()))
            clip = ClipPatches(frames_to_patches(self.policy, rgb), prompt.grid, prompt.seconds_per_grid)
            self._newest = (qid, edit), encode_clip(self.policy, clip)
        return self._newest[1]


def frames_within(times: NDArray[np.float64], span: Span) -> NDArray[np.bool_]:
    """Which frames are shown in a span, (T,): a frame stands for the time until the next one; `times` are in seconds, from 0.

    >>> frames_within(np.array([0.0, 0.5, 1.0, 1.5]), Span(0.5, 1.2)).tolist()
    [False, True, True, False]
    """
    step = times[1] - times[0] if len(times) > 1 else np.inf
    return np.asarray((times < span.end - 1e-6) & (times + step > span.start + 1e-6))


def edit_frames(
    rgb: NDArray[np.uint8], times: NDArray[np.float64], edit: FrameEdit, seed: int = 0
) -> NDArray[np.uint8]:
    """Frames (T, H, W, 3) edited as said, the others as they were; no frame that is shuffled stays where it was if it can move."""
    inside = frames_within(times, edit.span)
    chosen = np.flatnonzero(~inside if edit.outside else inside)
    edited = rgb.copy()
    if edit.what == "hide":
        edited[chosen] = 0
    elif len(chosen) > 1:
        order = np.random.default_rng(seed).permutation(chosen)
        edited[order] = rgb[np.roll(order, 1)]  # one cycle through all of them
    return edited
