"""Every family against its own plain model and its makers' processor: nothing that is shared or skipped changes a number."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from labkit.chain.anchors import parse
from labkit.cli import main
from labkit.data.video.frames import FrameCache
from labkit.doctor.workload import read_model_shape
from labkit.errors import LabError
from labkit.policy import inputs
from labkit.policy.adapters import add_lora
from labkit.policy.families import FAMILIES, VIDEO_PAD, in_words, timestamped_spans
from labkit.policy.generate import generate
from labkit.policy.inputs import (
    FrameSampling,
    begin_completion,
    encode_clip,
    frames_to_patches,
    patchify,
    position_ids,
    read_clip,
    rotary_positions,
    vision_kwargs,
)
from labkit.policy.model import Policy, ignore_renames, load_policy, save_policy
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import PromptSource
from labkit.policy.prompts import messages
from labkit.stages.checkpoints import load_weights
from labkit.stages.sft import collate
from tests import tiny

QWEN = [name for name, family in FAMILIES.items() if not family.frames_as_images]
LENGTHS = [[7, 1, 5], [2, 4]]
"""Completions of two prompts of different lengths."""


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def policy(request):
    return tiny.policy(family=request.param)


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    return tiny.moments(tmp_path_factory.mktemp("clips"), clips=2)


@pytest.fixture(scope="module")
def prompts(policy, moments, tmp_path_factory):
    source = tiny.source(policy, moments, tmp_path_factory.mktemp("frames"))
    return [source[moments[i].qid] for i in (0, 3)]


@pytest.fixture(scope="module")
def completions():
    lengths = torch.tensor([n for group in LENGTHS for n in group])
    ids = torch.randint(20, 380, (len(lengths), int(lengths.max())), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids * mask, mask


@pytest.mark.parametrize(
    ("at_once", "reason"), [(1, "a pair of frames at a time"), (48, "pieces that do not come out even")]
)
def test_a_long_clip_is_encoded_in_pieces_as_it_would_be_at_once(policy, monkeypatch, at_once, reason):
    patch, merge, temporal, side = policy.geometry
    height, width = (side or tokens * patch * merge for tokens in (2, 3))
    rgb = torch.randint(
        0, 256, (5 * temporal, height, width, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    ).numpy()
    grid = (5, height // patch, width // patch)
    clip = SimpleNamespace(patches=frames_to_patches(policy, rgb), grid=grid)
    whole = encode_clip(policy, clip)
    monkeypatch.setattr(inputs, "VISION_CHUNK", at_once)
    pieces = encode_clip(policy, clip)
    assert grid[0] == 5 and whole.shape == pieces.shape
    assert (whole - pieces).abs().max() < 1e-6, reason


def logits_of(policy, prompt, completion):
    """Logits (C, V) of each token of a completion, from one whole pass without cache, padding or neighbours."""
    ids, positions = tiny.append_completion(prompt, completion)
    shown = vision_kwargs([prompt], ids.device)
    out = policy.model(input_ids=ids[None], position_ids=position_ids(positions[:, None]), use_cache=False, **shown)
    return out.logits[0, len(prompt.ids) - 1 : -1]


def one_at_a_time(policy, prompts, ids, mask):
    owners = [prompt for prompt, group in zip(prompts, LENGTHS, strict=True) for _ in group]
    rows = []
    for prompt, row, shown in zip(owners, ids, mask, strict=True):
        table = logits_of(policy, prompt, row[shown]).log_softmax(-1)
        rows.append(table.gather(1, row[shown][:, None])[:, 0])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def packed(policy, prompts, ids, mask):
    return pack_shared_prefix(prompts, ids, mask, [len(group) for group in LENGTHS]).log_probs(policy.model)[0]


def gradients(policy, logps, mask):
    policy.model.zero_grad()
    (logps * torch.linspace(-1, 1, len(mask))[:, None] * mask).sum().backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", ["plain", "checkpointed", "lora"])
def test_log_probs_and_gradients_equal_one_sample_at_a_time(policy, prompts, completions, case):
    ids, mask = completions
    if case == "lora":
        inner = tiny.policy(family=policy.base.config.model_type)
        with ignore_renames():
            policy = Policy(add_lora(inner.model, 4, 8, 0), inner.tokenizer, "tiny")
        with torch.no_grad():
            for name, weight in policy.model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.1)
    plain = one_at_a_time(policy, prompts, ids, mask)
    expected = gradients(policy, plain, mask)
    if case == "checkpointed":
        tiny.checkpoint_activations(policy.model, True)
        policy.model.train()
    try:
        logps = packed(policy, prompts, ids, mask)
        found = gradients(policy, logps, mask)
    finally:
        policy.model.eval()
        if case == "checkpointed":
            tiny.checkpoint_activations(policy.model, False)
    assert (logps - plain).abs().max() < 1e-4
    assert found.keys() == expected.keys() and not any(re.search("visual|vision", name) for name in found)
    assert max(each.abs().max() for each in expected.values()) > 0.1
    assert max((found[name] - expected[name]).abs().max() for name in found) < 1e-4


def test_greedy_answers_are_those_of_a_plain_pass_and_of_transformers(policy, prompts):
    together = generate(policy, prompts, max_new_tokens=16, greedy=True)
    for prompt, completion in zip(prompts, together, strict=True):
        with torch.no_grad():
            logits = logits_of(policy, prompt, torch.tensor(completion.ids))
        logits[:, policy.suppress_tokens] = -torch.inf
        assert logits.argmax(-1).tolist() == completion.ids
        theirs = policy.model.generate(
            input_ids=prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None],
            position_ids=position_ids(prompt.positions[:, None]), max_new_tokens=16, do_sample=False, pad_token_id=policy.pad_id,
            eos_token_id=policy.eos_ids, suppress_tokens=policy.suppress_tokens,
            **vision_kwargs([prompt], prompt.ids.device),
        )  # fmt: skip
        assert theirs[0, len(prompt.ids) :].tolist() == completion.ids


def test_a_group_is_sampled_alike_alone_and_in_a_batch(policy, prompts):
    together = generate(policy, prompts, 3, max_new_tokens=8, seed=3)
    assert together == [one for prompt in prompts for one in generate(policy, [prompt], 3, max_new_tokens=8, seed=3)]


def test_features_stand_in_for_the_pixels_exactly(policy, moments, prompts, tmp_path):
    """Deepstack's included: a pass over the patches computes all of them."""
    prompt, side = prompts[0], 4 * policy.geometry.patch
    clip = read_clip(policy, moments[0], FrameCache(tmp_path), FrameSampling(1.0, 32, side * side, side * side))
    assert prompt.features.shape[1:] == policy.family.feature_shape(policy.base.config)
    common = {"input_ids": prompt.ids[None], "position_ids": position_ids(prompt.positions[:, None])}
    if policy.family.frames_as_images:
        pixels = {"pixel_values": clip.patches[None] if policy.family.image_batches else clip.patches}
    else:
        pixels = {"pixel_values_videos": clip.patches, "video_grid_thw": torch.tensor([prompt.grid])}
    with torch.no_grad():
        ours = policy.base(**common, **vision_kwargs([prompt], policy.device)).logits
        plain = policy.base(**common, **pixels).logits
        blind = dataclasses.replace(prompt, features=prompt.features.flip(0))
        other = policy.base(**common, **vision_kwargs([blind], policy.device)).logits
    assert (ours - plain).abs().max() < 1e-4
    assert (ours - other)[0, -1].abs().max() > 0.1, "the frames matter"


def test_positions_equal_those_of_transformers_up_to_the_text_behind_a_long_span(policy, prompts):
    """transformers 5 restarts text at the frame's side, which is behind the span only where a span is one frame."""
    for prompt in prompts:
        if policy.family.frames_as_images:
            assert prompt.positions.tolist() == [list(range(len(prompt.ids)))], "what transformers takes without any"
            continue
        ids, is_video = prompt.ids[None], (prompt.ids == policy.base.config.video_token_id)[None].int()
        extra = {}
        if policy.base.config.model_type == "qwen2_5_vl":
            extra["second_per_grid_ts"] = torch.tensor([prompt.seconds_per_grid])
        theirs, _ = policy.base.model.get_rope_index(
            ids, mm_token_type_ids=is_video * 2, video_grid_thw=torch.tensor([prompt.grid]), **extra
        )
        last = int(is_video[0].nonzero()[-1])
        assert torch.equal(theirs[:, 0, : last + 1], prompt.positions[:, : last + 1])
        behind = prompt.positions[:, last + 1 :]
        assert behind[:, 0].tolist() == [int(prompt.positions[:, : last + 1].max()) + 1] * 3
        if policy.family.render_video is timestamped_spans:
            assert torch.equal(theirs[:, 0], prompt.positions)


def test_positions_of_two_spans_by_hand():
    """text, text, a frame of 1 x 2 tokens, text, a frame, text; a frame is as long as its longer side."""
    is_video = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0]).bool()
    found = rotary_positions(is_video, (2, 2, 4), merge=2, temporal_positions=[[0], [0]])
    assert found.tolist() == [
        [0, 1, 2, 2, 4, 5, 5, 7],  # time
        [0, 1, 2, 2, 4, 5, 5, 7],  # height
        [0, 1, 2, 3, 4, 5, 6, 7],  # width
    ]


def test_spans_that_the_prompt_does_not_have_are_an_error():
    with pytest.raises(ValueError, match="2 spans"):
        rotary_positions(torch.tensor([0, 1, 0, 1]).bool(), (2, 2, 2), merge=2, temporal_positions=[[0, 1]] * 2)


PROCESSORS = {
    "qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor",
    "qwen3_5": "Qwen3VLProcessor", "smolvlm": "SmolVLMProcessor", "internvl": "InternVLProcessor",
}  # fmt: skip


@pytest.mark.parametrize("fps", [0.8, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_prompt_is_that_of_its_makers_processor_token_by_token(family, fps, moments, tmp_path, monkeypatch):
    """All of it: the chat template, the markers around the video, times, and what follows; only pixels are not theirs here."""
    import transformers
    from transformers.models.smolvlm import processing_smolvlm

    monkeypatch.setattr(processing_smolvlm, "num2words", in_words)  # a package for one line of one processor
    policy = tiny.policy(family=family)
    moment = dataclasses.replace(moments[1], duration=7.0)
    prompt = tiny.source(policy, [moment], tmp_path, fps=fps)[moment.qid]
    frames, entry = prompt.grid[0] * policy.geometry.temporal, FAMILIES[family]
    processor = object.__new__(getattr(transformers, PROCESSORS[family]))
    tokens = {"smolvlm": ("<video>", "<image>"), "internvl": ("<video>", "<IMG_CONTEXT>")}.get(
        family, (VIDEO_PAD, "<|image_pad|>")
    )
    vars(processor).update(
        video_token=tokens[0], image_token=tokens[1], image_seq_len=4, image_seq_length=4,
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token="<|vision_start|>", vision_end_token="<|vision_end|>", start_image_token="<img>",
        end_image_token="</img>", fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
    )  # fmt: skip
    seconds = prompt.seconds_per_grid / policy.geometry.temporal
    read = round(moment.duration / seconds)  # where that is odd, their processor repeats the last one itself
    shown = SimpleNamespace(
        fps=1 / seconds,
        frames_indices=list(range(read)),
        timestamps=[k * seconds for k in range(read)],
        duration=7.0,
    )
    video = {
        "video_grid_thw": torch.tensor([prompt.grid]), "video_metadata": [shown], "pixel_values": torch.zeros(1, frames),
        "pixel_values_videos": torch.zeros(1, frames),
    }  # fmt: skip
    chat = processing_smolvlm.DEFAULT_CHAT_TEMPLATE if family == "smolvlm" else None
    text = policy.tokenizer.apply_chat_template(
        messages(moment, "query"), chat_template=chat, tokenize=False, add_generation_prompt=True
    )
    (theirs,), _ = processor.get_text_with_replacements(
        [text], videos_replacements=[processor.replace_video_token(video, 0)]
    )
    assert policy.tokenizer(theirs, add_special_tokens=False)["input_ids"] == prompt.ids.tolist()
    assert (prompt.ids == getattr(policy.base.config, entry.video_token)).sum() == prompt.features.shape[0]


def test_qwen3_reads_the_seconds_of_its_frames(moments, tmp_path):
    policy = tiny.policy(family="qwen3_vl")
    prompt = tiny.source(policy, moments, tmp_path, fps=2.0)[moments[0].qid]
    text = policy.tokenizer.decode(prompt.ids)
    frame = "<|vision_start|>" + 4 * VIDEO_PAD + "<|vision_end|>"
    assert (
        "".join(f"<{second}.2 seconds>{frame}" for second in range(8)) in text
    )  # 0 and 0.5 s have their middle at 0.25
    assert text.count("<|vision_start|>") == 9, "and the template's own around all of them"


def test_patches_and_sizes_equal_those_of_qwen3s_processor():
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor, smart_resize

    rgb = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    theirs, *grid = Qwen3VLVideoProcessor.patchify(None, pixels[None], 16, 2, 2)
    ours, ours_grid = patchify(rgb, FAMILIES["qwen3_vl"], 16, 2, 2)
    assert ours_grid == tuple(grid)
    assert (ours - theirs[0]).abs().max() < 1e-6

    from labkit.policy.inputs import smart_resize as ours_size

    for height, width in ((32, 48), (240, 320), (270, 480), (1080, 1920), (1920, 1080)):
        for low, high in ((4096, 4096), (4096, 131072), (131072, 786432)):
            for frames in (2, 32):
                clip = smart_resize(frames, height, width, 2, 32, frames * low, frames * high)
                assert ours_size(height, width, 32, low, high) == clip


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_is_saved_is_what_is_loaded(family, rank, tmp_path):
    base = tiny.policy(family=family)
    save_policy(base, tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"), lora_rank=rank)
    assert policy.family is FAMILIES[family]
    trained = {name: weight for name, weight in policy.model.named_parameters() if weight.requires_grad}
    assert trained and not any(re.search("visual|vision|projector|connector", name) for name in trained)
    if rank:
        # Seven matrices of each of two layers, or eight of a linear one, two factors each.
        assert len(trained) == 2 * (15 if family == "qwen3_5" else 14) and all(
            re.search("language_model|text_model", name) for name in trained
        )
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.1)
    save_policy(policy, tmp_path / "final")
    again = load_policy(str(tmp_path / "final"))
    theirs = dict(again.model.named_parameters())
    assert all(torch.equal(weight, theirs[name]) for name, weight in policy.model.named_parameters())
    assert {name for name in theirs if theirs[name].requires_grad} == set(trained)
    if not rank:
        load_weights(base.model, tmp_path / "final")
        assert all(torch.equal(weight, theirs[name]) for name, weight in base.model.named_parameters())


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_untrained_base_writes_chains(family, moments, tmp_path):
    assert main(["base", str(tmp_path / "base"), "--untrained", "--family", family]) == 0
    policy = load_policy(str(tmp_path / "base"))
    prompt = tiny.source(policy, moments, tmp_path / "frames")[moments[0].qid]
    if family == "qwen3_vl":
        assert "< 0.5 seconds >" in policy.tokenizer.decode(prompt.ids), "the times between frames are words it has"
    chains = [parse(completion.text) for completion in generate(policy, [prompt], 32, max_new_tokens=64)]
    assert sum(chain.status in ("ok", "no_anchor") for chain in chains) > 4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--untrained", "--family", "bert"], ", ".join(FAMILIES)),  # the families are listed
        (["--family", "qwen3_vl"], "--untrained"),  # the recipe is for one family
    ],
)
def test_a_base_that_cannot_be_made_is_refused(options, named, tmp_path, capsys):
    assert main(["base", str(tmp_path / "base"), *options]) == 2
    assert named in capsys.readouterr().err


SHAPES = {
    "qwen2_vl": (1536, 28, 12, 2, 8960, {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "hidden_size": 1536}),  # 2B
    "qwen2_5_vl": (
        2048, 36, 16, 2, 11008,
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048},
    ),  # 3B
    "qwen3_vl": (
        2560, 36, 32, 8, 9728,
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560,
         "deepstack_visual_indexes": [5, 11, 17]},
    ),  # 4B, whose heads are wider than their share of the model
    "smolvlm": (
        960, 32, 15, 5, 2560,
        {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "image_size": 512, "patch_size": 16},
    ),  # 500M
    "internvl": (896, 24, 14, 2, 4864, {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096}),  # 1B
}  # fmt: skip
"""Hidden, layers, heads, heads of keys, intermediate, and the tower, at the size of a published model."""


@pytest.mark.parametrize("family", sorted(SHAPES))
def test_a_model_without_weights_is_counted_as_transformers_builds_it(family, tmp_path):
    import transformers

    hidden, layers, heads, kv_heads, intermediate, vision = SHAPES[family]
    text = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": 151936,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "tie_word_embeddings": True,
    }  # fmt: skip
    if FAMILIES[family].frames_as_images:
        text |= {"model_type": {"smolvlm": "llama", "internvl": "qwen2"}[family], "pad_token_id": 0}
    model_class = getattr(transformers, FAMILIES[family].model_class)
    config = model_class.config_class(text_config=text, vision_config=vision, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    shape = read_model_shape(tmp_path)
    with torch.device("meta"):
        model = model_class(config)
    towers = sum(weight.numel() for tower in Policy(model, None, "").towers for weight in tower.parameters())
    assert shape.text_parameters == pytest.approx(sum(p.numel() for p in model.parameters()) - towers, rel=1e-3)
    assert shape.vision_parameters == pytest.approx(towers, rel=2e-2)  # patches, positions and biases are not counted
    assert shape.geometry == FAMILIES[family].geometry(config)


def test_frames_of_one_size_are_read_at_that_size_alone(moments, tmp_path):
    policy = tiny.policy(family="smolvlm")
    for low, high in ((3136, 3135), (3137, 4000)):  # 56 x 56 is too large, or too small
        sampling = FrameSampling(1.0, 8, low, high)
        source = PromptSource(policy, moments, template="query", sampling=sampling, cache=FrameCache(tmp_path))
        with pytest.raises(LabError, match="SmolVLM2 reads every frame at 56x56.*set max_pixels to 3136"):
            source[moments[0].qid]


def test_a_thought_that_the_template_opens_is_the_completions_beginning(moments, tmp_path):
    """As of Qwen3-VL's and Qwen3.5's checkpoints that always think: text behind it is the chain's, and no trace opens it again."""
    policy = tiny.policy(family="qwen3_5")
    policy.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    source = tiny.source(policy, moments, tmp_path)
    prompt = source[moments[0].qid]
    assert policy.tokenizer.decode(prompt.ids[-prompt.begun :]) == "<think>\n"
    (completion,) = generate(policy, [prompt], max_new_tokens=4, greedy=True)
    assert completion.text.startswith("<think>\n") and len(completion.ids) <= 4
    for text in (
        "<think>\n at first",
        "<think> at first",
    ):  # as it was written here, and by a harvester of another family
        rows = [{"qid": prompt.qid, "text": text}]
        learnt = policy.tokenizer.decode(collate(policy, source, rows)["labels"][0])
        assert learnt.strip() == "at first<|im_end|>"
    begun = begin_completion(policy, prompt, "<think>\n at")
    assert policy.tokenizer.decode(begun.ids[-begun.begun :]) == "<think>\n at"
