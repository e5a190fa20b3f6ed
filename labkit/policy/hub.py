"""Hub: which of a model's files are on this machine, and how to fetch the others, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from labkit.errors import LabError
from labkit.files import under


def is_path(name: str) -> bool:
    """Whether a model's name can only be a folder's.

    >>> is_path("./models/mine"), is_path("Qwen/Qwen2.5-VL-3B-Instruct")
    (True, False)
    """
    return name.startswith((".", "/", "~"))


def require_model(name: str, root: Path, parameter: str = "model") -> None:
    """Check before any work that a model can be had: a look at its folder, nothing is loaded or fetched.

    `name` is one that ships with labkit, a folder (relative to `root` or absolute) or a hub id. Raises LabError that
    begins with `parameter` when a folder is no checkpoint or lacks weights, and when a hub's model is not whole on this
    machine while nothing may be fetched (HF_HUB_OFFLINE).
    """
    from labkit.embedded.model import SHIPPED

    folder = under(root, name)
    if name in SHIPPED:
        return
    if folder.is_dir() or is_path(name):
        check_checkpoint(folder)
        if lost := missing_weights(folder):
            raise LabError(f"{parameter}: '{folder}' lacks {listed(lost)}; copy it again, whole")
        return
    cached = cached_folder(name)
    if offline() and (cached is None or missing_weights(cached)):
        what = "is not on this machine" if cached is None else f"lacks {listed(missing_weights(cached))}"
        raise LabError(f"{parameter}: {name!r} {what}, and HF_HUB_OFFLINE forbids to fetch it; {fetch_step(name)}")


def check_checkpoint(folder: Path) -> None:
    """Raise LabError unless `folder` looks like what `save_pretrained` writes: a config and weights."""
    if not folder.is_dir():
        raise LabError(f"model {str(folder)!r} is not a directory; give a folder that holds a checkpoint, or a hub id")
    names = {path.name for path in folder.iterdir()}
    if not names & {"config.json", "adapter_config.json"}:
        raise LabError(
            f"model {str(folder)!r} is not a checkpoint: it holds no config.json and no adapter_config.json; "
            "give the folder that save_pretrained wrote, such as outputs/RUN/01_grpo/final"
        )
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        raise LabError(
            f"model {str(folder)!r} has no weights (*.safetensors); an interrupted save leaves such a folder, take another"
        )


def cached_folder(name: str) -> Path | None:
    """The folder of a hub's model as far as it was fetched before; None when not even its config was.

    Raises LabError when `name` is no hub id.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise LabError(f"'{name}' is neither a folder nor a hub id ({error})") from None
    return Path(path).parent if isinstance(path, str) else None


def missing_weights(folder: Path) -> list[str]:
    """Names of the weight files that a checkpoint should have and has not; a download that broke off leaves such a folder."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            raise LabError(f"'{index}' cannot be read ({error!r}); copy or download it again") from None
        return sorted(name for name in named if not (folder / name).is_file())
    if any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        return []
    return ["model.safetensors"]


def offline() -> bool:
    """Whether nothing may be fetched: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def fetch_step(name: str) -> str:
    """What to do for a hub's model that is not here.

    >>> fetch_step("Qwen/Qwen2.5-VL-3B-Instruct")
    "fetch it with 'hf download Qwen/Qwen2.5-VL-3B-Instruct' where there is a network, or give a local folder"
    """
    return f"fetch it with 'hf download {name}' where there is a network, or give a local folder"


def listed(names: list[str]) -> str:
    """The first of some files and how many more there are.

    >>> listed(["a", "b", "c"])
    'a and 2 other files'
    """
    more = len(names) - 1
    return names[0] + (f" and {more} other file{'s' if more > 1 else ''}" if more else "")
