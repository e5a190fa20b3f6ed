"""The policy model: where its files are, loading, LoRA, freezing the vision tower, saving.

A policy is a Hugging Face vision-language model with its tokenizer. The vision tower is always frozen, so that a clip's features can
be computed once and shared by rollouts, log-probs, SFT and evaluation. Which of a model's files are on this machine is looked up
before any work, and an error says how to download the others.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.files import apply_umask, under
from labkit.policy.adapters import add_lora, nf4_arguments
from labkit.policy.families import FAMILIES, PLAIN, Family, Geometry
from labkit.policy.processors import load_processor, require_image_text

if TYPE_CHECKING:
    import torch

_EMBEDDED = Path(__file__).parents[1] / "embedded"
SHIPPED = {
    "embedded-2": _EMBEDDED / "second_weights",
    "embedded": _EMBEDDED / "weights",
    "embedded-gqa": _EMBEDDED / "gqa_weights",
}
"""Folders of the tiny models that ship with labkit, as `save_pretrained` wrote them, by the name under which they are loaded."""

PROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
"""The processor's files of a checkpoint: labkit reads them on the plain path alone, vLLM and other programs do."""
RECENT = ("smolvlm", "qwen3_5")
"""Families that need transformers 5.21: before, one fails on their frames, the other keeps its states elsewhere."""
_VISION_TOKENS = (
    "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "image_token_index", "boi_token_id",
    "eoi_token_id",
)  # fmt: skip
"""What configs call the tokens of frames."""


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer and the name that it was loaded under."""

    model: Any
    """The model of one of the families, such as a `Qwen2_5_VLForConditionalGeneration`, or a `PeftModel` around one."""
    tokenizer: Any
    name: str
    """Path or hub id, kept as provenance in every rollout."""
    processor: Any = None
    """The model's own processor where it is read by the plain path, see `labkit.policy.plain`."""
    merge: bool = True
    """Whether an adapter is merged while chains are sampled, see `labkit.policy.adapters`."""
    fused: bool = True
    """Whether tokens are decoded by `labkit.policy.decode_pass`, where it knows the model, and not by transformers' modules."""

    @property
    def base(self) -> Any:
        """The Hugging Face model itself, below LoRA if there is any."""
        return self.model.get_base_model() if self.has_adapter else self.model

    @property
    def has_adapter(self) -> bool:
        """Whether the model is a `PeftModel`, of which only the LoRA adapter is trained."""
        return hasattr(self.model, "get_base_model")

    @property
    def family(self) -> Family:
        """How this model encodes a video."""
        return FAMILIES[self.base.config.model_type] if self.processor is None else PLAIN

    @property
    def geometry(self) -> Geometry:
        """How frames become this model's tokens."""
        return self.family.geometry(self.base.config)

    @property
    def towers(self) -> list[Any]:
        """The frozen modules: all beside the language model, such as the vision tower and what projects its features."""
        decoder = self.base.get_decoder()
        return [part for part in self.base.base_model.children() if part is not decoder]

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return self.base.device

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end a completion: the end of the assistant's turn, and those of the model's generation config."""
        ids = self.base.generation_config.eos_token_id
        configured = ids if isinstance(ids, list) else [] if ids is None else [ids]
        return sorted({self.tokenizer.eos_token_id, *configured})

    @property
    def pad_id(self) -> int:
        """Token id of padding; never sampled."""
        pad = self.tokenizer.pad_token_id
        return self.tokenizer.eos_token_id if pad is None else pad

    def completion_ids(self, text: str) -> list[int]:
        """Token ids of a completion's text, in which no token is special: what a model spelt out letter by letter stays that."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    @property
    def suppress_tokens(self) -> list[int]:
        """Token ids that are never sampled: placeholders of images and videos, padding."""
        config = self.base.config
        ids: set[Any] = {getattr(config, name, None) for name in _VISION_TOKENS}
        ids |= {self.tokenizer.convert_tokens_to_ids(marker) for marker in self.family.markers}
        return sorted((ids - {None, self.tokenizer.unk_token_id}) | ({self.pad_id} - set(self.eos_ids)))


ALIGNMENT = 64
"""Bytes of which torch's own tensors begin at a multiple."""


def load_policy(
    name: str,
    *,
    dtype: str = "float32",
    device: str = "auto",
    lora_rank: int = 0,
    lora_alpha: int = 32,
    lora_targets: Sequence[str] = (),
    lora_merge: bool = True,
    fused_decoding: bool = True,
    quantization: str = "none",
    seed: int = 0,
    whole: bool = True,
) -> Policy:
    """Load a policy, ready to train, with its vision tower frozen.

    Args:
        name: `embedded-2`, `embedded` or `embedded-gqa` (the tiny models that ship with labkit), a directory, or a hub id.
        dtype: `float32` or `bfloat16`.
        device: `auto` takes the first GPU if there is one.
        lora_rank: 0 trains every weight of the language model; above, LoRA of that rank on its linear layers.
        lora_alpha: LoRA's scale is `lora_alpha / lora_rank`.
        lora_targets: names of the layers that get an adapter; none: all.
        lora_merge: merge an adapter while chains are sampled.
        fused_decoding: decode by `labkit.policy.decode_pass` where it knows the model.
        quantization: `nf4` keeps the language model's linear layers in 4 bits, below an adapter that is trained.
        seed: Of the initial values of LoRA's matrices; the global random state is untouched.
        whole: False moves only the frozen modules to the device, for `labkit.stages.sharding.shard_model`, which takes a part of the
            others from the files that they are mapped from.

    Raises:
        LabError: the directory is not a checkpoint, its model family is not supported, a target is no layer of its language model,
            or 4 bits cannot be had here.
    """
    import torch
    import transformers
    from packaging.version import Version
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # one bar per load and save drowns a notebook's own lines

    source = str(SHIPPED.get(name, name))
    local = Path(source)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if local.exists() or source.startswith((".", "/", "~")):
        check_checkpoint(local)
    adapter = _is_adapter(source)
    if adapter and local.is_dir():
        _require_adapter_base(local, Path.cwd())
    try:
        origin = adapter_base(source) if adapter else source
        kind = transformers.PretrainedConfig.get_config_dict(origin)[0].get("model_type")
        if kind not in FAMILIES:
            require_image_text(kind, name)
        if kind in RECENT and Version(transformers.__version__) < Version("5.21"):
            raise LabError(
                f"model {name!r} needs transformers 5.21 or newer, and this is {transformers.__version__}; install it"
            )
        processor = None if kind in FAMILIES else load_processor(origin, name)
        tokenizer = tokenizer_class(local).from_pretrained(source, padding_side="left")
        number = getattr(torch, dtype)
        fewer = nf4_arguments(origin, number, device) if quantization == "nf4" else {}
        model: Any = getattr(transformers, FAMILIES.get(str(kind), PLAIN).model_class).from_pretrained(
            origin, dtype=number, attn_implementation="sdpa", **fewer
        )
    except OSError as error:
        step = "copy it again, whole" if local.exists() else download_hint(name)
        raise LabError(
            f"model {name!r} could not be loaded: {str(error).splitlines()[0].rstrip('.')}; {step}"
        ) from error
    with ignore_renames():
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, source, is_trainable=True)
        elif lora_rank:
            model = add_lora(model, lora_rank, lora_alpha, seed, lora_targets)
    policy = Policy(
        (model.to(device) if whole else model).eval(), tokenizer, name, processor, lora_merge, fused_decoding
    )
    if fewer:  # now that the adapter is made for it; TRL would train what it takes for such a model in bfloat16
        policy.base.is_loaded_in_4bit = False
    for tower in policy.towers:
        tower.to(device).requires_grad_(False)
    for weight in model.parameters() if whole else ():
        # Mapped from a file, it begins where it does there, and the product of one row with it is rounded by where it begins.
        if weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()
    return policy


def fsdp_modules(model: Any) -> list[Any]:
    """The modules of a model that FSDP2 shards, also while its weights are whole; none in a single process."""
    from torch.distributed import is_available, is_initialized

    if not (is_available() and is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def save_policy(policy: Policy, folder: Path, state: dict[str, Any] | None = None) -> None:
    """Write the weights (only the adapter's under LoRA), the tokenizer and the processor's files; `load_policy(folder)` loads them.

    `state` holds the weights where the model itself has only a shard of them.

    Atomic: the folder appears whole or not at all; a killed save leaves a folder with another name behind.
    """
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    # Otherwise PEFT also saves the adapter that TRL keeps as its reference.
    adapters = {"selected_adapters": ["default"]} if policy.has_adapter else {}
    policy.model.save_pretrained(draft, state_dict=state, **adapters)
    (policy.processor or policy.tokenizer).save_pretrained(draft)
    copy_processor(policy, draft)
    apply_umask(draft)
    if folder.exists():
        raise LabError(
            f"{folder} exists already; a checkpoint is never overwritten, choose another folder or delete it"
        )
    draft.rename(folder)


def copy_processor(policy: Policy, folder: Path) -> None:
    """Copy the files of the processor that the policy was loaded with, as far as they are there."""
    from transformers.utils import cached_file

    if not policy.base.name_or_path:
        return  # made here, not loaded
    for name in PROCESSOR_FILES:
        found = cached_file(
            policy.base.name_or_path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if found is not None:
            shutil.copyfile(found, folder / name)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads of the CPU within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def ignore_renames() -> Iterator[None]:
    """Ignore the deprecation warnings of TRL and PEFT calling transformers by a name it has changed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`\w*gradient_checkpointing\w*` is deprecated", FutureWarning)
        yield


def is_path(name: str) -> bool:
    """Whether a model's name is a folder and cannot be a hub id.

    >>> is_path("./models/mine"), is_path("Qwen/Qwen2.5-VL-3B-Instruct")
    (True, False)
    """
    return name.startswith((".", "/", "~"))


def require_model(name: str, root: Path, parameter: str = "model") -> None:
    """Check before any work that a model can be loaded, by its files; nothing is loaded or downloaded.

    `name` is one that ships with labkit, a folder (relative to `root` or absolute) or a hub id. Raises LabError that
    begins with `parameter` when a folder is no checkpoint or lacks weights, and when a hub's model is not completely on
    this machine while HF_HUB_OFFLINE forbids downloads.
    """
    folder = under(root, name)
    if name in SHIPPED:
        return
    if folder.is_dir() or is_path(name):
        check_checkpoint(folder)
        if lost := missing_weights(folder):
            raise LabError(f"{parameter}: '{folder}' lacks {summarize_names(lost)}; copy it again, whole")
        _require_adapter_base(folder, root)
        return
    cached = cached_folder(name)
    if is_offline() and (cached is None or missing_weights(cached)):
        what = "is not on this machine" if cached is None else f"lacks {summarize_names(missing_weights(cached))}"
        raise LabError(f"{parameter}: {name!r} {what}, and HF_HUB_OFFLINE forbids to fetch it; {download_hint(name)}")


def check_checkpoint(folder: Path) -> None:
    """Raise LabError unless `folder` holds a config and weights, as `save_pretrained` writes them."""
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
    """The folder of a hub's model in the local cache, complete or not; None when not even its config is there.

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
    """Weight files that a checkpoint lacks, as after an interrupted download."""
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


def is_offline() -> bool:
    """Whether downloads are forbidden: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def download_hint(name: str) -> str:
    """How to get a hub's model that is not on this machine.

    >>> download_hint("Qwen/Qwen2.5-VL-3B-Instruct")
    "fetch it with 'hf download Qwen/Qwen2.5-VL-3B-Instruct' where there is a network, or give a local folder"
    """
    return f"fetch it with 'hf download {name}' where there is a network, or give a local folder"


def summarize_names(names: list[str]) -> str:
    """The first of some files and the number of the others.

    >>> summarize_names(["a", "b", "c"])
    'a and 2 other files'
    """
    more = len(names) - 1
    return names[0] + (f" and {more} other file{'s' if more > 1 else ''}" if more else "")


def adapter_base(source: str) -> str:
    """The model that the LoRA adapter in a folder, or of a hub id, was trained on: a folder or a hub id."""
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(source).base_model_name_or_path)


def tokenizer_class(folder: Path) -> Any:
    """What transformers chooses, but for whole words, such as the toy's: for Qwen3.5 it would split them by that family's own rule."""
    import transformers

    file = folder / "tokenizer.json"
    of_words = file.is_file() and b'"WordLevel"' in file.read_bytes()
    return transformers.PreTrainedTokenizerFast if of_words else transformers.AutoTokenizer


def _is_adapter(source: str) -> bool:
    if os.path.isdir(source):
        return os.path.isfile(os.path.join(source, "adapter_config.json"))
    from huggingface_hub.errors import HFValidationError
    from transformers.utils import cached_file

    try:
        found = cached_file(
            source, "adapter_config.json", _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
    except (OSError, HFValidationError):
        return False  # what is wrong with the name is said when its configuration is looked for
    return found is not None


def _require_adapter_base(folder: Path, root: Path) -> None:
    """Raise LabError where `folder` holds an adapter whose base is visibly not there."""
    if not _is_adapter(str(folder)):
        return
    base = adapter_base(str(folder))
    try:
        require_model(base, root, "its base")
    except LabError as error:
        raise LabError(
            f"'{folder}' is an adapter of the model '{base}', which cannot be loaded ({error}); put that model there, or "
            f"write where it lies as base_model_name_or_path into '{folder / 'adapter_config.json'}'"
        ) from None
