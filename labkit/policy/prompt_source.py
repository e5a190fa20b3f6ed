"""Prompts by qid: each clip decoded once, and encoded once as long as its features stay in the cache.

Frames are cached on disk, on a CPU features too (`labkit.policy.kept_features`), and features in bounded memory on the model's device
(least recently used first out). `prefetch` names the
prompts that come next, and readers decode their clips in the background.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.data.video.prefetch import PrefetchPool, PrefetchWorker
from labkit.policy.inputs import (
    ClipPatches,
    FrameSampling,
    Prompt,
    bare_clip,
    build_prompt,
    encode_clip,
    frame_times_and_size,
    read_clip,
)
from labkit.policy.kept_features import kept_features, tower_digest
from labkit.policy.model import Policy
from labkit.policy.prompts import require_fit

if TYPE_CHECKING:
    import numpy as np
    import torch


class ClipFrames(NamedTuple):
    """Frames of a clip, to be edited, or for an engine with a vision tower of its own, such as vLLM."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8, at the model's size."""
    fps: float
    """Frames per second of video, from which the engine computes seconds."""
    times: np.ndarray
    """(T,) seconds from the clip's beginning at which each is shown; what fills up the last patch repeats the last one."""


ClipKey = tuple[str, Span | None, float]
"""What identifies a clip: video, trim window, duration."""


@dataclasses.dataclass
class _EncodedClip:
    """A clip without its pixels, its features and its prompts."""

    clip: ClipPatches
    features: Any
    prompts: dict[str, Prompt]


class PromptSource(Mapping[str, Prompt]):
    """Prompts by qid, built at first use; each clip is decoded and encoded once whatever the number of its queries.

    A least-recently-used cache: up to `feature_memory` GB of features and prompts stay in memory, and what was evicted is
    encoded again from the cached frames, or read again. Prompts that the caller holds are not counted, nor is a clip that exceeds the
    limit alone. `encoded` counts passes of the vision tower; `cache.decoded` counts clips that were decoded.
    """

    def __init__(
        self,
        policy: Policy,
        moments: Iterable[Moment],
        *,
        template: str,
        sampling: FrameSampling,
        cache: FrameCache,
        readers: int = 0,
        video_deadline: float = 60.0,
        feature_memory: float = 4.0,
    ) -> None:
        """Nothing is decoded yet; raises LabError for a template that does not fit the moments.

        Args:
            policy: its vision tower encodes, on its device.
            moments: those that prompts are made of.
            template: name of the question's template, or the text of one's own.
            sampling: how frames are sampled.
            cache: of decoded frames.
            readers: processes that decode; 0 decodes in this process, when a prompt is needed.
            video_deadline: seconds without progress after which a reader's clip is given up.
            feature_memory: GB, of 10**9 bytes.
        """
        self.policy, self.template, self.sampling, self.cache = policy, template, sampling, cache
        self.readers = PrefetchPool(readers, video_deadline) if readers else None
        self.max_bytes = feature_memory * 1e9
        self.encoded = 0
        self.cached_bytes = 0
        self._moments = {moment.qid: moment for moment in moments}
        require_fit(template, self._moments.values())
        self._encoded_clips: OrderedDict[ClipKey, _EncodedClip] = OrderedDict()
        self._tower = tower_digest(policy)

    def __getitem__(self, qid: str) -> Prompt:
        """The prompt with its features.

        Raises KeyError for a qid that is not among the moments, and LabError, which names the video, for a video that
        cannot be decoded, or on which a reader hangs or crashes.
        """
        moment = self._moments[qid]
        key = _key(moment)
        encoded = self._encoded_clips.get(key) or self._encode(key, moment)
        self._encoded_clips.move_to_end(key)
        prompt = encoded.prompts.get(qid)
        if prompt is None:
            prompt = encoded.prompts[qid] = build_prompt(
                self.policy, moment, self.template, encoded.clip, encoded.features
            )
            self.cached_bytes += nbytes([prompt.ids, prompt.positions])
        while self.cached_bytes > self.max_bytes and len(self._encoded_clips) > 1:
            _, oldest = self._encoded_clips.popitem(last=False)
            self.cached_bytes -= _size(oldest)
        return prompt

    def __iter__(self) -> Any:
        """The qids."""
        return iter(self._moments)

    def __len__(self) -> int:
        """How many moments."""
        return len(self._moments)

    def with_features(self, qid: str, features: torch.Tensor) -> Prompt:
        """The prompt with other features of the same clip, such as those of edited frames. Raises as `source[qid]`."""
        prompt = self[qid]
        clip = ClipPatches(features, prompt.grid, prompt.seconds_per_grid)
        return build_prompt(self.policy, self._moments[qid], self.template, clip, features)

    def frames_for(self, qid: str) -> ClipFrames:
        """The frames of the prompt's features. Raises as `source[qid]`."""
        moment = self._moments[qid]
        if self.readers is not None:
            self.readers.wait_for(_key(moment), self._decode_task(moment))
        times, size = frame_times_and_size(self.policy, moment, self.cache, self.sampling)
        frames = self.cache.get(moment.video, times, size, moment.start)
        fps = 1.0 / float(times[1] - times[0]) if len(times) > 1 else self.sampling.fps
        return ClipFrames(frames.rgb, fps, times)

    def prefetch(self, qids: Iterable[str]) -> None:
        """Decode the clips of the prompts that come next, in this order, in the background.

        Replaces the previous call's. Nothing happens without readers. Raises KeyError for an unknown qid.
        """
        if self.readers is None:
            return
        moments = {_key(moment): moment for moment in reversed([self._moments[qid] for qid in qids])}
        self.readers.schedule(
            (key, self._decode_task(moment))
            for key, moment in reversed(moments.items())
            if key not in self._encoded_clips
        )

    def _encode(self, key: ClipKey, moment: Moment) -> _EncodedClip:
        if self.readers is not None:
            self.readers.wait_for(key, self._decode_task(moment))
        times, size = frame_times_and_size(self.policy, moment, self.cache, self.sampling)

        def encode() -> torch.Tensor:
            self.encoded += 1
            return encode_clip(self.policy, read_clip(self.policy, moment, self.cache, self.sampling))

        if self._tower:
            file = self.cache.file_beside(moment.video, times, size, moment.start, f".{self._tower}.safetensors")
            features = kept_features(file, encode)
        else:
            features = encode()
        clip = bare_clip(self.policy, times, size, self.sampling)
        encoded = self._encoded_clips[key] = _EncodedClip(clip, features, {})
        self.cached_bytes += _size(encoded)
        return encoded

    def _decode_task(self, moment: Moment) -> functools.partial[None]:
        # Without `self`: a source that is garbage-collected while clips are queued must end its readers.
        return functools.partial(_decode, self.policy, self.cache, self.sampling, moment)


@runtime_checkable
class _Prefetching(Protocol):
    def prefetch(self, qids: Iterable[str]) -> None: ...


def prefetch(source: Mapping[str, Prompt], qids: Iterable[str]) -> None:
    """Prefetch the clips of these prompts, in order, if the mapping can, as a `PromptSource` does."""
    if isinstance(source, _Prefetching):
        source.prefetch(qids)


def nbytes(value: Any) -> int:
    """Bytes of all tensors and arrays in a value, its fields and items.

    >>> import numpy as np
    >>> nbytes([np.zeros(3), (np.zeros((2, 2), np.uint8), "text")])
    28
    """
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if dataclasses.is_dataclass(value):
        return sum(nbytes(getattr(value, field.name)) for field in dataclasses.fields(value))
    if isinstance(value, Mapping):
        return sum(map(nbytes, value.values()))
    return sum(map(nbytes, value)) if isinstance(value, (list, tuple)) else 0


def _size(encoded: _EncodedClip) -> int:
    """Bytes of the features, and of the prompts without them: all of a clip's prompts share one copy."""
    return nbytes(encoded.features) + sum(nbytes([each.ids, each.positions]) for each in encoded.prompts.values())


def _key(moment: Moment) -> ClipKey:
    return (moment.video, moment.clip, moment.duration)


def _decode(
    policy: Policy, cache: FrameCache, sampling: FrameSampling, moment: Moment, reader: PrefetchWorker
) -> None:
    """In a reader: put the frames that `read_clip` needs into the cache."""
    reader.info(cache, moment.video)
    times, size = frame_times_and_size(policy, moment, cache, sampling)
    reader.frames(cache, moment.video, times, size, moment.start)
