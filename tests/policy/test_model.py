from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.model import SHIPPED, cached_folder, load_policy, missing_weights, require_model, save_policy
from labkit.runs.run import check_inputs
from tests import tiny

NAME = "somebody/some-model"


def checkpoint(folder: Path, *, shards: int = 0, there: int = 0) -> Path:
    """A folder with the embedded model's config and `there` of `shards` weight files; one whole file when 0 are told."""
    folder.mkdir(parents=True)
    for file in SHIPPED["embedded"].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    names = [f"model-{number}-of-{shards}.safetensors" for number in range(1, shards + 1)]
    if names:
        index = {"metadata": {}, "weight_map": {f"weight {number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names[:there] if names else ["model.safetensors"]:
        shutil.copy(SHIPPED["embedded"] / "model.safetensors", folder / name)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, which may not be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def fetched(cache: Path, **how: int) -> Path:
    """The model in the cache, as `hf download` leaves it."""
    repository = cache / "models--somebody--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    return checkpoint(repository / "snapshots" / "abc", **how)


def test_the_vision_tower_is_frozen_and_the_language_model_is_not():
    model = load_policy("embedded").base
    assert not any(p.requires_grad for p in model.model.visual.parameters())
    assert all(p.requires_grad for p in model.model.language_model.parameters())


def test_a_family_that_an_older_transformers_cannot_read_is_refused(tmp_path, monkeypatch):
    import transformers

    tiny.policy(family="smolvlm").model.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers, "__version__", "5.20.2")
    with pytest.raises(LabError, match=r"needs transformers 5\.21 or newer, and this is 5\.20\.2"):
        load_policy(str(tmp_path))


def test_weights_begin_where_torch_has_them_begin_wherever_they_begin_in_the_file(tmp_path):
    """A product of one row with a weight that begins elsewhere is rounded otherwise, and so is all that is trained from it."""
    policy = load_policy("embedded", device="cpu")
    for length in range(8):  # of a name in the file's header, behind which the weights begin
        save_policy(policy, tmp_path / str(length), {"x" * length: torch.zeros(1), **policy.model.state_dict()})
    again = [load_policy(str(tmp_path / str(length)), device="cpu") for length in range(8)]
    assert {weight.data_ptr() % 64 for policy in again for weight in policy.model.parameters()} == {0}


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
    never = policy.tokenizer.convert_ids_to_tokens(policy.suppress_tokens)
    assert {"<|video_pad|>", "<|image_pad|>", "<pad>"} <= set(never)
    assert not set(policy.suppress_tokens) & set(policy.eos_ids)


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
            "family 'bert', in which transformers has no model that reads images",
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


@pytest.mark.parametrize(
    ("shards", "there", "missing"),
    [
        (0, 0, []),  # one file, no index
        (2, 2, []),
        (2, 1, ["model-2-of-2.safetensors"]),  # a download that broke off
        (2, 0, ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]),
    ],
)
def test_weights_that_an_index_names_must_be_there(
    tmp_path: Path, shards: int, there: int, missing: list[str]
) -> None:
    folder = checkpoint(tmp_path / "model", shards=shards, there=there)
    assert missing_weights(folder) == missing


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 1}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    folder = checkpoint(tmp_path / "model", shards=2, there=2)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(LabError, match=r"index\.json' cannot be read .*; copy or download it again"):
        missing_weights(folder)


def test_a_model_of_the_hub_that_is_not_here_comes_with_the_command_that_fetches_it(cache: Path) -> None:
    command = rf"HF_HUB_OFFLINE forbids .*'hf download {NAME}'"
    with pytest.raises(LabError, match=rf"^model: '{NAME}' is not on this machine, and {command}"):
        require_model(NAME, cache)
    fetched(cache, shards=3, there=1)
    with pytest.raises(LabError, match=rf"lacks model-2-of-3\.safetensors and 1 other file, and {command}"):
        require_model(NAME, cache)


def test_a_model_that_was_fetched_whole_is_found(cache: Path) -> None:
    folder = fetched(cache)
    assert cached_folder(NAME) == folder
    require_model(NAME, cache)


def test_with_a_network_a_run_may_fetch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    require_model(NAME, cache)


def test_a_name_that_is_no_hub_id_is_refused(cache: Path) -> None:
    with pytest.raises(LabError, match="neither a folder nor a hub id"):
        require_model("a b/c", cache)


@pytest.mark.parametrize("parameter", ["model", "harvester"])
def test_a_run_is_refused_before_any_work(tmp_path: Path, parameter: str) -> None:
    folder = checkpoint(tmp_path / "model", shards=2, there=1)
    with pytest.raises(LabError, match=rf"^{parameter}: .* lacks model-2-of-2\.safetensors; copy it again, whole"):
        check_inputs(Params.build({parameter: str(folder)}), tmp_path)


def test_loading_says_the_same(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(LabError, match=rf"{NAME!r} could not be loaded: .*[^.]; fetch it with 'hf download {NAME}'"):
        load_policy(NAME)
    folder = checkpoint(tmp_path / "model", shards=2, there=1)
    with pytest.raises(LabError, match="could not be loaded: .*; copy it again, whole"):
        load_policy(str(folder))
