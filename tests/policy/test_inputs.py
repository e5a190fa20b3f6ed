import numpy as np
import pytest
import torch

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.embedded.world import write_world
from labkit.errors import LabError
from labkit.policy.families import FAMILIES
from labkit.policy.inputs import (
    FrameSampling,
    patchify,
    rotary_positions,
    smart_resize,
    vision_kwargs,
)
from labkit.policy.model import load_policy
from labkit.policy.prompt_source import PromptSource
from labkit.policy.prompts import TEMPLATES, messages
from tests import tiny

SIDE = 56 * 56
QWEN = FAMILIES["qwen2_5_vl"]


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"), 2, 1, 1, edition=1)["train"]


@pytest.fixture(scope="module")
def policy():
    return load_policy("embedded")


def source(policy, moments, folder, fps=2.0, max_frames=64, template="query"):
    sampling = FrameSampling(fps, max_frames, SIDE, SIDE)
    return PromptSource(policy, moments, template=template, sampling=sampling, cache=FrameCache(folder))


@pytest.mark.parametrize("fps", [1, 2, 4])
def test_temporal_positions_are_the_true_seconds(policy, moments, tmp_path, fps):
    prompt = source(policy, moments, tmp_path, fps)[moments[0].qid]
    config = policy.base.config
    shown = prompt.ids == config.video_token_id
    time = prompt.positions[0][shown].float()
    seconds = (time - time[0]) / config.vision_config.tokens_per_second
    frames_per_token = config.vision_config.temporal_patch_size
    expected = torch.arange(16 * fps // frames_per_token).repeat_interleave(4) * frames_per_token / fps
    assert torch.equal(seconds, expected)


def test_text_behind_the_video_goes_on_behind_its_last_position(policy, moments, tmp_path):
    prompt = source(policy, moments, tmp_path)[moments[0].qid]
    where = (prompt.ids == policy.base.config.video_token_id).nonzero()[:, 0]
    last = int(where[-1])
    assert prompt.positions[:, last + 1 :].min() == prompt.positions[:, : last + 1].max() + 1
    ids, positions = tiny.append_completion(prompt, torch.tensor([5, 6, 7]))
    assert len(ids) == positions.shape[1]
    assert (positions[:, -3:] - prompt.positions[:, -1:]).tolist() == [[1, 2, 3]] * 3


def test_positions_before_and_inside_the_video_equal_those_of_transformers(policy, moments, tmp_path):
    """Only the text behind the video differs: transformers 5 restarts it beside the frame's side."""
    prompt = source(policy, moments, tmp_path)[moments[0].qid]
    config, ids = policy.base.config, prompt.ids[None]
    is_video = (ids == config.video_token_id).int()
    theirs, _ = policy.base.model.get_rope_index(
        ids,
        mm_token_type_ids=is_video * 2,
        video_grid_thw=torch.tensor([prompt.grid]),
        second_per_grid_ts=torch.tensor([prompt.seconds_per_grid]),
    )
    last = int(is_video[0].nonzero()[-1])
    assert torch.equal(theirs[:, 0, : last + 1], prompt.positions[:, : last + 1])


def test_a_prompt_without_its_video_is_an_error():
    with pytest.raises(ValueError, match="holds 0 video tokens"):
        rotary_positions(torch.zeros(4, dtype=torch.bool), (1, 2, 2), merge=2, temporal_positions=[[0]])


def test_patches_equal_those_of_transformers_image_processor():
    """Qwen2-VL's image processor treats a picture as a clip of two equal frames."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = np.random.default_rng(0).integers(0, 256, (84, 112, 3), dtype=np.uint8)
    theirs = Qwen2VLImageProcessorPil(do_resize=False)(images=[image], return_tensors="pt")
    ours, grid = patchify(np.stack([image, image]), QWEN, 14, 2, 2)
    assert theirs["image_grid_thw"].tolist() == [list(grid)]
    assert (theirs["pixel_values"] - ours).abs().max() < 1e-5


def test_patches_are_ordered_as_the_merger_reads_them():
    """Each group of four rows is one token: the 28 x 28 pixels of one quadrant."""
    frames = np.zeros((2, 56, 56, 3), np.uint8)
    frames[:, :28, 28:] = 255  # top right
    patches, grid = patchify(frames, QWEN, 14, 2, 2)
    assert grid == (1, 4, 4) and patches.shape == (16, 1176)
    bright = patches.mean(1).view(4, 4)
    assert (bright[1] > 1).all() and (bright[[0, 2, 3]] < 0).all()


def test_an_odd_last_frame_is_repeated():
    frames = np.random.default_rng(1).integers(0, 256, (3, 28, 28, 3), dtype=np.uint8)
    even = np.concatenate([frames, frames[-1:]])
    assert torch.equal(patchify(frames, QWEN, 14, 2, 2)[0], patchify(even, QWEN, 14, 2, 2)[0])


@pytest.mark.parametrize("height", [20, 56, 112, 240, 270, 1080])
@pytest.mark.parametrize("width", [24, 56, 320, 480, 1920])
def test_frame_sizes_equal_those_of_transformers(height, width):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    for low, high in ((3136, 3136), (3136, 100352), (100352, 602112)):
        assert smart_resize(height, width, 28, low, high) == theirs(height, width, 28, low, high)


@pytest.mark.parametrize(
    ("protocol", "frames", "size", "reason"),
    [
        ("timelens", 20, (560, 1008), "20 s at 1 fps would bear 1.1 million pixels a frame: 768 tokens a frame bind"),
        ("timelens", 60, (448, 812), "2 x 14,336 tokens / 60 frames = 477 tokens a frame"),
        ("timelens", 768, (168, 280), "37 tokens a frame are below the least, 64: 5 % above that hold"),
        ("timer1", 60, (224, 392), "2 x 3,584 / 60 = 119 tokens a frame"),
        ("timelens2", 240, (476, 840), "2 x 128,000 / 240 tokens of 32 x 32 do not bind, 640 x 640 a frame do"),
    ],
)
def test_a_protocols_frames_are_as_large_as_its_owners_program_makes_them(protocol, frames, size, reason):
    # By hand after qwen-vl-utils 0.0.14, fetch_video, for a film of 1280 x 720 and sides in multiples of 28.
    from labkit.params import PROTOCOLS

    sampling = FrameSampling(**PROTOCOLS[protocol])
    least, most = sampling.min_pixels, sampling.max_pixels
    theirs = min(most, max(min(768 * 28**2, sampling.total_pixels / frames * 2), int(least * 1.05)))
    assert sampling.pixels(frames) == theirs
    assert smart_resize(720, 1280, 28, least, sampling.pixels(frames)) == size, reason


def test_a_bound_on_the_whole_clip_makes_the_frames_of_long_clips_smaller(policy, moments, tmp_path):
    def size(total: int) -> tuple[int, int, int]:
        sampling = FrameSampling(2.0, 32, 28 * 28, 112 * 112, total)
        prompts = PromptSource(policy, moments, template="query", sampling=sampling, cache=FrameCache(tmp_path))
        return prompts[moments[0].qid].grid

    # 32 frames: 16 pairs, so that 56 x 56 a frame are 16 x 56 x 56 pixels; a grid counts patches of 14 pixels.
    assert [size(total) for total in (0, 16 * 56 * 56, 1)] == [(16, 8, 8), (16, 4, 4), (16, 2, 2)]


def test_each_clip_is_read_and_encoded_once_whatever_the_number_of_its_queries(policy, moments, tmp_path):
    cache = FrameCache(tmp_path)
    prompts = PromptSource(policy, moments, template="query", sampling=FrameSampling(2.0, 32, SIDE, SIDE), cache=cache)
    features = {id(prompts[moment.qid].features) for moment in moments}
    clips = {moment.video for moment in moments}
    assert len(moments) > len(clips) == cache.decoded == len(features)
    again = source(policy, moments, tmp_path, max_frames=32)
    assert again[moments[0].qid].ids.equal(prompts[moments[0].qid].ids)
    assert again.cache.decoded == 0, "the next run finds the frames on disk"


def test_a_trim_window_is_all_that_the_model_sees(policy, moments, tmp_path):
    whole = moments[0]
    cut = Moment("cut", whole.video, whole.query, (Span(0.0, 1.0),), 6.0, clip=Span(4.0, 10.0))
    prompt = source(policy, [cut], tmp_path)["cut"]
    assert prompt.grid[0] == 6
    full = source(policy, [whole], tmp_path)[whole.qid]
    assert torch.allclose(prompt.features, full.features[4 * 4 : 10 * 4], atol=1e-5)


def test_features_stand_in_for_the_pixels_exactly(policy, moments, tmp_path):
    """A forward pass over precomputed features gives the logits of a pass over the patches."""
    from labkit.policy.inputs import read_clip

    prompt = source(policy, moments, tmp_path)[moments[0].qid]
    clip = read_clip(policy, moments[0], FrameCache(tmp_path), FrameSampling(2.0, 64, SIDE, SIDE))
    common = {"input_ids": prompt.ids[None], "position_ids": prompt.positions[:, None]}
    with torch.no_grad():
        ours = policy.base(**common, **vision_kwargs([prompt], policy.device)).logits
        grid = torch.tensor([prompt.grid])
        plain = policy.base(**common, pixel_values_videos=clip.patches, video_grid_thw=grid).logits
    assert (ours - plain).abs().max() < 1e-5


def test_a_missing_video_is_named(policy, tmp_path):
    moment = Moment("q", str(tmp_path / "gone.mp4"), "the red circle", (Span(0.0, 1.0),), 16.0)
    with pytest.raises(LabError, match="gone.mp4"):
        source(policy, [moment], tmp_path / "cache")["q"]


def test_a_query_cannot_smuggle_in_a_second_video(policy, moments, tmp_path):
    odd = Moment("q", moments[0].video, "when <|video_pad|> happens", (Span(0.0, 1.0),), 16.0)
    with pytest.raises(LabError, match="2 video placeholders"):
        source(policy, [odd], tmp_path)["q"]


def test_a_chat_template_without_the_vision_markers_is_refused(policy, moments, tmp_path, monkeypatch):
    bare = policy.tokenizer.chat_template.replace("<|vision_start|>", "").replace("<|vision_end|>", "")
    monkeypatch.setattr(policy.tokenizer, "chat_template", bare)
    with pytest.raises(LabError, match=r"instead of one as '<\|vision_start\|>"):
        source(policy, moments[:1], tmp_path)[moments[0].qid]


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_asks_the_query_once_about_one_video(template):
    options = {"options": ("a", "b"), "choice": 0} if template == "options" else {}
    moment = Moment("q", "/clips/a.mp4", "a {brace} opens", (Span(0.0, 1.0),), 16.0, **options)
    parts = messages(moment, template)[0]["content"]
    assert sorted(part["type"] for part in parts) == ["text", "video"]
    assert next(part["text"] for part in parts if part["type"] == "text").count("a {brace} opens") == 1
