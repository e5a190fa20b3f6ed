import json

import pytest
import torch

from labkit.errors import LabError
from labkit.policy.model import load_policy, save_policy


def test_the_vision_tower_is_frozen_and_the_language_model_is_not():
    model = load_policy("embedded").base
    assert not any(p.requires_grad for p in model.model.visual.parameters())
    assert all(p.requires_grad for p in model.model.language_model.parameters())


def test_what_is_saved_is_what_is_loaded(tmp_path):
    policy = load_policy("embedded")
    with torch.no_grad():
        policy.base.model.language_model.norm.weight.add_(0.5)
    save_policy(policy, tmp_path / "final")
    again = load_policy(str(tmp_path / "final"))
    ours, theirs = policy.base.state_dict(), again.base.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert again.tokenizer.get_vocab() == policy.tokenizer.get_vocab()


def test_lora_trains_little_and_comes_back_from_its_own_folder(tmp_path):
    policy = load_policy("embedded", lora_rank=4, lora_alpha=8)
    trained = {name: p for name, p in policy.model.named_parameters() if p.requires_grad}
    assert trained and all("lora" in name and "language_model" in name for name in trained)
    with torch.no_grad():
        for weight in trained.values():
            weight.add_(0.1)
    save_policy(policy, tmp_path / "adapter")
    again = load_policy(str(tmp_path / "adapter"))
    theirs = dict(again.model.named_parameters())
    assert all(torch.equal(weight, theirs[name]) and theirs[name].requires_grad for name, weight in trained.items())


def test_what_other_programs_need_of_the_processor_goes_along(tmp_path):
    save_policy(load_policy("embedded"), tmp_path / "base")
    assert not (tmp_path / "base" / "preprocessor_config.json").exists(), "the embedded model has none"
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"patch_size": 14}')
    save_policy(load_policy(str(tmp_path / "base")), tmp_path / "final")
    save_policy(load_policy(str(tmp_path / "final")), tmp_path / "later")
    assert (tmp_path / "later" / "preprocessor_config.json").read_text() == '{"patch_size": 14}'


def test_a_saved_folder_is_never_overwritten(tmp_path):
    policy = load_policy("embedded")
    save_policy(policy, tmp_path / "final")
    with pytest.raises(LabError, match="exists already"):
        save_policy(policy, tmp_path / "final")


def test_what_stands_for_pixels_is_never_written():
    policy = load_policy("embedded")
    never = policy.tokenizer.convert_ids_to_tokens(policy.never_written)
    assert {"<|video_pad|>", "<|image_pad|>", "<pad>"} <= set(never)
    assert not set(policy.never_written) & set(policy.eos_ids)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda folder: None, "is not a checkpoint"),  # an empty directory
        (lambda folder: (folder / "config.json").write_text("{}"), "has no weights"),  # a save that was cut off
        (
            lambda folder: [
                (folder / "config.json").write_text(json.dumps({"model_type": "bert"})),
                (folder / "model.safetensors").write_bytes(b""),
            ],
            "family 'bert', and labkit reads qwen2_vl, qwen2_5_vl, qwen3_vl",
        ),
    ],
)
def test_a_directory_that_is_no_checkpoint_of_ours_is_named(tmp_path, make, named):
    folder = tmp_path / "broken"
    folder.mkdir()
    make(folder)
    with pytest.raises(LabError, match=named) as caught:
        load_policy(str(folder))
    assert "broken" in str(caught.value)


def test_a_path_that_is_not_there_is_no_hub_id():
    with pytest.raises(LabError, match="not a directory"):
        load_policy("./nowhere")
