"""Ready prompts by qid: each clip decoded once and encoded once, whatever the number of its queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import FrameCache
from labkit.policy.inputs import Clip, Prompt, Sampling, build_prompt, features_of, read_clip
from labkit.policy.model import Policy

if TYPE_CHECKING:
    import torch


class PromptSource(Mapping[str, Prompt]):
    """Ready prompts by qid: built at first use, each clip decoded once and encoded once whatever the number of its queries.

    Features stay in memory: t * h * w / 4 vectors of the language model's width per clip, 32 KB for the embedded model.
    """

    def __init__(
        self, policy: Policy, moments: Iterable[Moment], *, template: str, sampling: Sampling, cache: FrameCache
    ) -> None:
        """Nothing is read yet."""
        self.policy, self.template, self.sampling, self.cache = policy, template, sampling, cache
        self._moments = {moment.qid: moment for moment in moments}
        self._prompts: dict[str, Prompt] = {}
        self._clips: dict[tuple[str, Span | None, float], tuple[Clip, torch.Tensor]] = {}

    def __getitem__(self, qid: str) -> Prompt:
        """The prompt with its features. Raises KeyError for a qid that is not among the moments."""
        if qid not in self._prompts:
            moment = self._moments[qid]
            key = (moment.video, moment.clip, moment.duration)
            if key not in self._clips:
                clip = read_clip(self.policy, moment, self.cache, self.sampling)
                # Features are all that is needed from here on, and they are much smaller than the pixels.
                self._clips[key] = (clip._replace(patches=clip.patches[:0]), features_of(self.policy, clip))
            clip, features = self._clips[key]
            self._prompts[qid] = build_prompt(self.policy, moment, self.template, clip, features)
        return self._prompts[qid]

    def __iter__(self) -> Any:
        """The qids."""
        return iter(self._moments)

    def __len__(self) -> int:
        """How many moments."""
        return len(self._moments)
