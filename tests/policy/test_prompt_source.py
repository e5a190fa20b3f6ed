from __future__ import annotations

import gc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from labkit.data.moments import Moment
from labkit.data.video import decode_worker
from labkit.data.video.frames import BlackFrames, FrameCache
from labkit.errors import LabError
from labkit.policy import kept_features, prompt_source
from labkit.policy.inputs import FrameSampling
from labkit.policy.kept_features import tower_digest
from labkit.policy.model import Policy
from labkit.policy.prompt_source import PromptSource, nbytes, prefetch
from tests import tiny

CLIPS, QUERIES = 3, 2


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny.policy()


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> list[Moment]:
    return tiny.moments(tmp_path_factory.mktemp("clips"), clips=CLIPS, per_clip=QUERIES)


@pytest.fixture(autouse=True)
def no_features_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what memory holds and what the tower does is then seen."""
    monkeypatch.setattr(prompt_source, "tower_digest", lambda policy: "")


def source(policy: Policy, moments: Iterable[Moment], cache: FrameCache, **options: Any) -> PromptSource:
    sampling = FrameSampling(1.0, 32, 56 * 56, 56 * 56)
    return PromptSource(policy, moments, template="query", sampling=sampling, cache=cache, **options)


def clip_bytes(policy: Policy, moments: list[Moment], cache: FrameCache) -> int:
    """Of the largest clip's features with all its prompts."""
    whole = source(policy, moments, cache)
    sizes = dict.fromkeys((moment.video for moment in moments), 0)
    for moment in moments:
        prompt = whole[moment.qid]
        sizes[moment.video] = sizes[moment.video] or prompt.features.nbytes
        sizes[moment.video] += prompt.ids.nbytes + prompt.positions.nbytes
    assert sum(sizes.values()) == whole.cached_bytes
    return max(sizes.values())


def test_memory_stays_bounded_and_what_left_is_made_again_from_cached_frames(
    policy: Policy, moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FrameCache(tmp_path)
    whole = source(policy, moments, cache)
    expected = {moment.qid: whole[moment.qid] for moment in moments}
    assert (cache.decoded, whole.encoded) == (CLIPS, CLIPS)
    room = clip_bytes(policy, moments, cache)
    for name in ("decode", "measure"):
        monkeypatch.setattr(decode_worker, name, None)
    tight = source(policy, moments, cache, feature_memory=2 * room / 1e9)
    for epoch in (1, 2):
        for moment in moments:
            prompt = tight[moment.qid]
            assert torch.equal(prompt.features, expected[moment.qid].features)
            assert torch.equal(prompt.ids, expected[moment.qid].ids)
            assert tight.cached_bytes <= 2 * room
        # Two of three clips fit: walking in a circle, the one that comes next has always just left.
        assert tight.encoded == epoch * CLIPS
    assert cache.decoded == CLIPS


def test_features_are_kept_beside_the_frames_for_each_tower(
    policy: Policy, moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_source, "tower_digest", tower_digest)
    cache, qid = FrameCache(tmp_path), moments[0].qid
    first = source(policy, moments, cache)
    features = first[qid].features
    again = source(policy, moments, cache)
    assert torch.equal(again[qid].features, features) and again[qid].grid == first[qid].grid
    assert (first.encoded, again.encoded, cache.hits) == (1, 0, 0)  # not even its frames are read
    (kept,) = tmp_path.glob("*.safetensors")
    whole = kept.read_bytes()
    for damage, why in [
        (whole[:-1], "cut off"),
        (whole[:-8] + bytes(8), "as long as it was, with zeros at its end"),
        (b"", "empty"),
        (save({"features": features}), "of a version that noted no checksum"),
    ]:
        kept.write_bytes(damage)
        damaged = source(policy, moments, cache)
        assert torch.equal(damaged[qid].features, features) and damaged.encoded == 1, why
        assert kept.read_bytes() == whole, f"{why}: it is written again"
    monkeypatch.setattr(kept_features, "FEATURES_FORMAT", kept_features.FEATURES_FORMAT + 1)
    assert source(policy, moments, cache)[qid].features is not None
    assert len([*tmp_path.glob("*.safetensors")]) == 2, "code that makes other features reads no file of before"
    monkeypatch.undo()
    monkeypatch.setattr(prompt_source, "tower_digest", tower_digest)
    black = source(policy, moments, BlackFrames(tmp_path))
    assert not torch.equal(black[qid].features, features)
    with torch.no_grad():
        weight = next(policy.base.model.visual.parameters())
        weight.view(-1)[0] += 1
        try:
            changed = source(policy, moments, cache)
            assert not torch.equal(changed[qid].features, features) and changed.encoded == 1
        finally:
            weight.view(-1)[0] -= 1


def test_what_was_asked_for_last_stays(policy: Policy, moments: list[Moment], tmp_path: Path) -> None:
    cache = FrameCache(tmp_path)
    tight = source(policy, moments, cache, feature_memory=2 * clip_bytes(policy, moments, cache) / 1e9)
    for qid, encoded in [
        ("q0-0", 1),
        ("q1-0", 2),
        ("q0-1", 2),  # clip 0 again: it stays, and clip 1 is now the oldest
        ("q2-0", 3),  # clip 1 leaves
        ("q0-0", 3),
        ("q1-0", 4),
    ]:
        tight[qid]
        assert tight.encoded == encoded, qid


def test_a_clip_larger_than_the_memory_is_kept_until_the_next(
    policy: Policy, moments: list[Moment], tmp_path: Path
) -> None:
    tight = source(policy, moments, FrameCache(tmp_path), feature_memory=1e-9)
    for qid, encoded in [("q0-0", 1), ("q0-1", 1), ("q1-0", 2), ("q0-0", 3)]:
        tight[qid]
        assert tight.encoded == encoded, qid


def test_no_pixels_are_kept(policy: Policy, moments: list[Moment], tmp_path: Path) -> None:
    whole = source(policy, moments, FrameCache(tmp_path))
    for moment in moments:
        whole[moment.qid]
    assert [clip.clip.patches.untyped_storage().nbytes() for clip in whole._encoded_clips.values()] == [0] * CLIPS


def test_readers_give_the_same_prompts_and_this_process_opens_no_video(
    policy: Policy, moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = source(policy, moments, FrameCache(tmp_path / "plain"))
    expected = {moment.qid: plain[moment.qid] for moment in moments}
    for name in ("decode", "measure"):
        monkeypatch.setattr(decode_worker, name, None)
    cache = FrameCache(tmp_path / "ahead")
    ahead = source(policy, moments, cache, readers=2)
    ahead.prefetch([moment.qid for moment in moments[1:]])  # the first is asked for out of the blue
    for moment in moments:
        assert torch.equal(ahead[moment.qid].features, expected[moment.qid].features)
    assert (cache.decoded, cache.hits) == (CLIPS, CLIPS)
    # The next epoch, by a source that has nothing in memory.
    again = source(policy, moments, cache, readers=2)
    again.prefetch([moment.qid for moment in moments])
    for moment in moments:
        again[moment.qid]
    assert (cache.decoded, cache.hits) == (CLIPS, 2 * CLIPS)


def test_a_video_that_readers_cannot_read_is_named_when_it_is_asked_for(
    policy: Policy, moments: list[Moment], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(moments[0].video).read_bytes()[:2000])
    bad = Moment("bad", str(broken), "the square", moments[0].windows, 8.0)
    ahead = source(policy, [bad, moments[0]], FrameCache(tmp_path / "cache"), readers=1)
    ahead.prefetch(["bad", moments[0].qid])
    assert len(ahead[moments[0].qid].ids)
    with pytest.raises(LabError, match="broken.mp4 cannot be opened"):
        ahead["bad"]


def test_black_frames_need_no_frames_ahead(policy: Policy, moments: list[Moment], tmp_path: Path) -> None:
    cache = BlackFrames(tmp_path)
    ahead = source(policy, moments, cache, readers=1)
    ahead.prefetch([moments[0].qid])
    plain = source(policy, moments, BlackFrames(tmp_path / "other"))
    assert torch.equal(ahead[moments[0].qid].features, plain[moments[0].qid].features)
    assert cache.decoded == 0 and not list(tmp_path.glob("*.npz"))


def test_clips_are_told_once_in_the_order_of_their_first_use(
    policy: Policy, moments: list[Moment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = source(policy, moments, FrameCache(tmp_path), readers=1)
    told: list[str] = []
    monkeypatch.setattr(ahead.readers, "schedule", lambda jobs: told.extend(Path(key[0]).stem for key, _ in jobs))
    prefetch(ahead, ["q2-0", "q0-1", "q2-1", "q0-0", "q1-1"])
    assert told == ["clip2", "clip0", "clip1"]
    with pytest.raises(KeyError, match="nobody"):
        prefetch(ahead, ["nobody"])


def test_mappings_without_readers_hear_nothing(policy: Policy, moments: list[Moment], tmp_path: Path) -> None:
    prefetch({}, ["q0-0"])
    plain = source(policy, moments, FrameCache(tmp_path))
    prefetch(plain, ["q0-0"])
    assert plain.cache.decoded == 0


def test_a_source_that_is_dropped_ends_its_readers(policy: Policy, moments: list[Moment], tmp_path: Path) -> None:
    ahead = source(policy, moments, FrameCache(tmp_path), readers=1)
    ahead.prefetch([moment.qid for moment in moments])
    close = ahead.readers.close
    del ahead
    gc.collect()
    assert not close.alive


def test_bytes_of_features_of_any_make_are_counted() -> None:
    features = torch.zeros(4, 8, dtype=torch.bfloat16)  # 64 bytes
    assert nbytes(features) == 64
    assert nbytes({"first": features, "deeper": [features, features]}) == 192
