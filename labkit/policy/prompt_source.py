"""Ready prompts by qid: each clip decoded once, and encoded once while there is room for what came out.

Frames stand on disk, features in bounded memory beside the model. Whoever knows which prompts come next says so by
`expect`, and readers decode their clips meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.data.video.prefetch import PrefetchPool, PrefetchWorker
from labkit.policy.inputs import Clip, Prompt, Sampling, build_prompt, features_of, read_clip, wanted_frames
from labkit.policy.model import Policy

if TYPE_CHECKING:
    import numpy as np


class Footage(NamedTuple):
    """A clip as an engine wants it that has a vision tower of its own."""

    rgb: np.ndarray
    """(T, H, W, 3) uint8, at the model's size."""
    fps: float
    """Frames per second of video, from which the engine counts seconds."""


Key = tuple[str, Span | None, float]
"""What makes a clip: video, trim window, duration."""


@dataclasses.dataclass
class _Kept:
    """A clip without its pixels, and all that was made of it."""

    clip: Clip
    features: Any
    prompts: dict[str, Prompt]


class PromptSource(Mapping[str, Prompt]):
    """Ready prompts by qid, built at first use; each clip is decoded and encoded once whatever the number of its queries.

    What was asked for last stays in memory, up to `feature_memory` GB of features and prompts; what has to leave is
    made again from the cached frames. Prompts that the caller holds are not counted, nor is a clip that fills more than
    that alone. `encoded` counts passes of the vision tower; `cache.decoded` counts clips that were decoded.
    """

    def __init__(
        self,
        policy: Policy,
        moments: Iterable[Moment],
        *,
        template: str,
        sampling: Sampling,
        cache: FrameCache,
        readers: int = 0,
        video_deadline: float = 60.0,
        feature_memory: float = 4.0,
    ) -> None:
        """Nothing is read yet.

        Args:
            policy: who is asked; its vision tower encodes, on its device.
            moments: what can be asked for.
            template: name of the question's template.
            sampling: how a video is looked at.
            cache: where frames are kept.
            readers: processes that decode; 0 decodes in this process, when a prompt is asked for.
            video_deadline: seconds that a reader's clip may stand still.
            feature_memory: GB, of 10**9 bytes.
        """
        self.policy, self.template, self.sampling, self.cache = policy, template, sampling, cache
        self.readers = PrefetchPool(readers, video_deadline) if readers else None
        self.bound = feature_memory * 1e9
        self.encoded = 0
        self.kept_bytes = 0
        self._moments = {moment.qid: moment for moment in moments}
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()

    def __getitem__(self, qid: str) -> Prompt:
        """The prompt with its features.

        Raises KeyError for a qid that is not among the moments, and LabError, which names the video, for one that
        cannot be read, hangs a reader or ends it.
        """
        moment = self._moments[qid]
        key = _key(moment)
        kept = self._kept.get(key) or self._encode(key, moment)
        self._kept.move_to_end(key)
        prompt = kept.prompts.get(qid)
        if prompt is None:
            prompt = kept.prompts[qid] = build_prompt(self.policy, moment, self.template, kept.clip, kept.features)
            self.kept_bytes += nbytes([prompt.ids, prompt.positions])
        while self.kept_bytes > self.bound and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self.kept_bytes -= _size(oldest)
        return prompt

    def __iter__(self) -> Any:
        """The qids."""
        return iter(self._moments)

    def __len__(self) -> int:
        """How many moments."""
        return len(self._moments)

    def footage(self, qid: str) -> Footage:
        """The frames that the prompt's features are made of. Raises as `source[qid]`."""
        moment = self._moments[qid]
        if self.readers is not None:
            self.readers.wait_for(_key(moment), self._job(moment))
        times, size = wanted_frames(self.policy, moment, self.cache, self.sampling)
        frames = self.cache.get(moment.video, times, size, moment.start)
        return Footage(frames.rgb, 1.0 / float(times[1] - times[0]) if len(times) > 1 else self.sampling.fps)

    def expect(self, qids: Iterable[str]) -> None:
        """Tell which prompts come next, in order, as far as is known: readers decode their clips from now on.

        Replaces what was told before. Nothing happens without readers. Raises KeyError for an unknown qid.
        """
        if self.readers is None:
            return
        moments = {_key(moment): moment for moment in reversed([self._moments[qid] for qid in qids])}
        self.readers.schedule(
            (key, self._job(moment)) for key, moment in reversed(moments.items()) if key not in self._kept
        )

    def _encode(self, key: Key, moment: Moment) -> _Kept:
        if self.readers is not None:
            self.readers.wait_for(key, self._job(moment))
        clip = read_clip(self.policy, moment, self.cache, self.sampling)
        features = features_of(self.policy, clip)
        self.encoded += 1
        # Features are all that is needed from here on; a slice alone would keep the pixels' memory.
        kept = self._kept[key] = _Kept(clip._replace(patches=clip.patches[:0].clone()), features, {})
        self.kept_bytes += _size(kept)
        return kept

    def _job(self, moment: Moment) -> functools.partial[None]:
        # Without `self`: a source that is dropped while clips are waiting shall take its readers with it.
        return functools.partial(_decode, self.policy, self.cache, self.sampling, moment)


def expect(source: Mapping[str, Prompt], qids: Iterable[str]) -> None:
    """Tell a `PromptSource` which prompts come next, in order; other mappings have nothing to prepare."""
    if isinstance(source, PromptSource):
        source.expect(qids)


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


def _size(kept: _Kept) -> int:
    """Bytes of the features, and of the prompts without them: all of a clip's prompts share one copy."""
    return nbytes(kept.features) + sum(nbytes([each.ids, each.positions]) for each in kept.prompts.values())


def _key(moment: Moment) -> Key:
    return (moment.video, moment.clip, moment.duration)


def _decode(policy: Policy, cache: FrameCache, sampling: Sampling, moment: Moment, reader: PrefetchWorker) -> None:
    """Have a reader put on disk what `read_clip` will ask the cache for."""
    reader.info(cache, moment.video)
    times, size = wanted_frames(policy, moment, cache, sampling)
    reader.frames(cache, moment.video, times, size, moment.start)
