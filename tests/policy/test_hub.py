from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from labkit.embedded.model import WEIGHTS
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.hub import cached_folder, missing_weights, require_model
from labkit.policy.model import load_policy
from labkit.runs.run import check_inputs

NAME = "somebody/some-model"


def checkpoint(folder: Path, *, shards: int = 0, there: int = 0) -> Path:
    """A folder with the embedded model's config and `there` of `shards` weight files; one whole file when 0 are told."""
    folder.mkdir(parents=True)
    for file in WEIGHTS.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, folder)
    names = [f"model-{number}-of-{shards}.safetensors" for number in range(1, shards + 1)]
    if names:
        index = {"metadata": {}, "weight_map": {f"weight {number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in names[:there] if names else ["model.safetensors"]:
        shutil.copy(WEIGHTS / "model.safetensors", folder / name)
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
