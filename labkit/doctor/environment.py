"""Environment checks: Python, packages, machine, launcher variables and the model's files."""

from __future__ import annotations

import json
import os
import platform
import sys
import tomllib
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from labkit.data.video.worker_process import available_cores
from labkit.doctor.findings import Finding, size_text
from labkit.doctor.workload import ModelShape, read_model_shape
from labkit.errors import LabError
from labkit.files import under
from labkit.params import Params
from labkit.stages.distributed.launcher_variables import launcher_variables
from labkit.table import Table

_PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
# Memory limits of a container: cgroup v2 and v1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


# Load average per core above which timings are unreliable.
_BUSY_LOAD = 0.75
BFLOAT16_MIN_LEARNING_RATE = 1e-4
"""Learning rate below which AdamW's steps are rounded away in bfloat16: of weights of 0.02, 100 steps on the CPU moved 89 % as far as
in float32 at 1e-4, 15 % at 1e-5 and 1.4 % at 1e-6."""


class Model(NamedTuple):
    """The model that the parameters name, as far as it is on this machine."""

    folder: Path
    shape: ModelShape
    lora_rank: int
    """Of the checkpoint's own LoRA adapter; 0 without."""
    tokenizer: Any
    has_weights: bool
    """Whether all of its weights are on this machine."""
    adapter: Path | None = None
    """The folder of its adapter, of which `folder` is the base."""


class Machine(NamedTuple):
    """The device that the model would run on."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    memory: float
    """Bytes of the device in all, 0 where unknown."""
    cores: int
    """CPU cores that this process may use."""
    bfloat16: bool
    """Whether the device supports it natively."""
    gpus: int = 0
    """Visible to torch."""


def requirements(pyproject: Path = _PYPROJECT) -> tuple[str, list[str]]:
    """`requires-python` and dependencies of labkit: from the checkout's pyproject.toml, otherwise as installed."""
    try:
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        if project["name"] == "labkit":
            return project["requires-python"], list(project["dependencies"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        pass  # installed without its checkout
    try:
        return metadata.metadata("labkit")["Requires-Python"] or "", metadata.requires("labkit") or []
    except metadata.PackageNotFoundError:
        return "", []


def package_findings(python: str, packages: list[str]) -> list[Finding]:
    """Whether this Python and the packages of this environment are in the ranges that labkit needs.

    >>> package_findings(">=3.11", ["numpy>=1000"])[0].message.split(" is")[0]
    'needs >=1000; this'
    """
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    findings = []
    if not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        findings.append(Finding("error", "python", "python", f"must be {python}; this is {platform.python_version()}",
                             "make an environment with another one"))  # fmt: skip
    for text in packages:
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        step = f'pip install "{needed.name}{needed.specifier}"'
        subject = f"package {needed.name}"
        try:
            installed = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            findings.append(
                Finding("error", "package", subject, f"needs {needed.specifier}; it is not installed", step)
            )
            continue
        if not needed.specifier.contains(installed, prereleases=True):
            message = f"needs {needed.specifier}; this is {installed}, with which labkit was not tested"
            findings.append(Finding("warning", "package", subject, message, step))
    return findings


def find_machine(wanted: str) -> Machine:
    """The device that the parameter `device` selects on this machine; the CPU where a GPU is wanted and there is none."""
    import torch

    cores = available_cores()
    if wanted != "cpu" and torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory
        name, count = torch.cuda.get_device_name(0), torch.cuda.device_count()
        return Machine("cuda", name, float(memory), cores, torch.cuda.is_bf16_supported(), count)
    return Machine("cpu", f"{platform.machine()}, {cores} cores", _memory(), cores, False)


def target_machine(machine: Machine, params: Params) -> tuple[Machine, int]:
    """The device and the number of processes that the run is meant for, even where that GPU is not on this machine.

    Nothing is known of such a GPU: its memory is 0.
    """
    if params.device == "cuda" and machine.device != "cuda":
        return Machine("cuda", "GPU of another machine", 0.0, machine.cores, True), max(1, params.processes)
    return machine, params.processes or max(1, machine.gpus)


def machine_findings(machine: Machine, params: Params) -> list[Finding]:
    """Whether the parameters fit the machine."""
    findings = []
    if params.device == "cuda" and machine.device != "cuda":
        step = "set device: auto, or install torch with CUDA on a machine with a GPU"
        findings.append(Finding("error", "device", "device = cuda:", "torch sees no GPU", step))
    if 0 < machine.gpus < params.processes:
        message = f"but this machine has {machine.gpus} GPU" + "s" * (machine.gpus > 1)
        findings.append(Finding("warning", "processes", f"processes = {params.processes}", message,
                             "set 0 for as many as there are, or send the run to nodes that have so many"))  # fmt: skip
    planned, world = target_machine(machine, params)
    trains_bfloat16 = not params.lora_rank and not (world > 1 and params.sharding == "fsdp2")
    rate = min(params.learning_rate, params.sft_learning_rate)
    if params.dtype == "bfloat16" and trains_bfloat16 and rate < BFLOAT16_MIN_LEARNING_RATE:
        message = "updates this small are rounded away where bfloat16 weights are trained themselves"
        step = "set lora_rank, or sharding: fsdp2 on several GPUs (both train float32), or dtype: float32"
        findings.append(Finding("warning", "rounding", f"learning rate {rate:g}:", message, step))
    if params.dtype == "bfloat16" and not planned.bfloat16:
        message = f"is slow on this {machine.device}, or emulated"
        findings.append(Finding("warning", "dtype", "dtype = bfloat16", message, "set dtype: float32"))
    if params.generation == "vllm" and (planned.device == "cpu" or find_spec("vllm") is None):
        kind = "error" if planned is machine else "warning"
        findings.append(Finding(kind, "generation", "generation = vllm", "needs a GPU, and vLLM installed beside it",
                             "pip install \"trl[vllm]\" there, or set generation: hf"))  # fmt: skip
    if params.threads > machine.cores:
        message = f"but this process may use {machine.cores} cores"
        findings.append(
            Finding("warning", "threads", f"threads = {params.threads}", message, f"set {machine.cores} or less")
        )
    return findings


def load_findings(machine: Machine) -> list[Finding]:
    """Whether other programs keep this machine busy."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load <= _BUSY_LOAD * machine.cores:
        return []
    message = f"has a load of {load:.1f} on {machine.cores} cores: a run beside that takes longer than this estimate"
    return [Finding("note", "busy machine", "this machine", message, "estimate again when it is idle")]


def launcher_findings() -> list[Finding]:
    """Whether a launcher's variables (torchrun, accelerate, MPI, SLURM) are set in this process."""
    return [
        Finding("note", "launcher", f"{launcher}'s variables ({', '.join(names)})",
                "are set here; a run ignores them, its parameters say how many processes it has and which dtype",
                "start labkit without a launcher" if launcher in ("torchrun", "MPI") else "nothing needs to be done")
        for launcher, names in launcher_variables(os.environ).items()
    ]  # fmt: skip


def machine_table(machine: Machine, packages: list[str], findings: list[Finding]) -> Table:
    """Versions and device."""
    bad = sum(finding.kind == "package" for finding in findings)
    names = ("torch", "transformers", "trl", "peft")
    lines = [
        ("python", platform.python_version() + f" on {sys.platform}"),
        (
            "packages",
            f"{len(packages)} required, {bad} missing or out of range" if bad else f"all {len(packages)} in range",
        ),
        ("", ", ".join(f"{name} {metadata.version(name)}" for name in names if _installed(name))),
        ("device", f"{machine.device}: {machine.name}"),
        ("memory", size_text(machine.memory) if machine.memory else "unknown"),
    ]
    return Table("machine", ("", ""), lines)


def find_model(name: str, root: Path) -> tuple[Model | None, list[Finding]]:
    """The model `name` on this machine, and findings about what would keep a run from loading it.

    None without its config and tokenizer, which suffice to estimate what it costs.
    """
    from labkit.policy.families import FAMILIES
    from labkit.policy.model import (
        SHIPPED,
        cached_folder,
        check_checkpoint,
        download_hint,
        is_offline,
        is_path,
        missing_weights,
        summarize_names,
    )
    from labkit.policy.processors import require_image_text

    subject = f"model {name}"
    folder = SHIPPED.get(name) or under(root, name)
    findings: list[Finding] = []
    rank = 0
    try:
        if not folder.is_dir() and not is_path(name):
            cached = cached_folder(name)
            if cached is None or missing_weights(cached):
                message = (
                    "is not on this machine" if cached is None else f"lacks {summarize_names(missing_weights(cached))}"
                )
                message += ", and HF_HUB_OFFLINE is set" if is_offline() else "; a run would download it"
                findings.append(
                    Finding("error" if is_offline() else "warning", "model", subject, message, download_hint(name))
                )
            if cached is None:
                return None, findings
            folder = cached
        elif (folder / "config.json").is_file() and (lost := missing_weights(folder)):
            findings.append(
                Finding("error", "model", subject, f"lacks {summarize_names(lost)}", "copy it again, completely")
            )
        else:
            check_checkpoint(folder)
        own, own_adapter = folder, None
        if (folder / "adapter_config.json").is_file():
            adapter = read_json(folder / "adapter_config.json")
            rank, base = int(adapter.get("r", 0)), str(adapter.get("base_model_name_or_path", ""))
            own_adapter = folder
            folder = Path(base) if Path(base).is_dir() else cached_folder(base) or folder / base
        family = read_json(folder / "config.json").get("model_type")
        if family not in FAMILIES:
            require_image_text(family, name)
            message = (
                f"is of the family {family!r}, which is read by the plain path: nothing is shared, and a step of GRPO takes about "
                "3 to 5 times as long (8 completions, tiny models, benchmarks/families.py); hours and memory are not estimated"
            )
            step = f"for shared prefixes take one of {', '.join(FAMILIES)}"
            return None, [*findings, Finding("warning", "model", subject, message, step)]
        return Model(
            folder, read_model_shape(folder), rank, _tokenizer(own), not missing_weights(folder), own_adapter
        ), findings
    except LabError as error:
        return None, [*findings, Finding("error", "model", subject + ":", str(error))]
    except Exception as error:
        # Tokenizers raise bare Exceptions on damaged files.
        message = f"cannot be read ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
        return None, [*findings, Finding("error", "model", subject, message, "copy or download it again")]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; raises LabError when it is not there or none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise LabError(f"'{path}' cannot be read ({error}); copy or download the model again") from None


def _tokenizer(folder: Path) -> Any:
    from labkit.policy.model import tokenizer_class

    return tokenizer_class(folder).from_pretrained(str(folder), local_files_only=True)


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _memory() -> float:
    """Bytes of main memory that this process may use, 0 where unknown."""
    limits = []
    try:
        limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    except (AttributeError, ValueError, OSError):
        pass  # not on Windows
    for path in _LIMITS:
        try:
            limits.append(float(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # not in a container, or without a limit ("max")
    return min(limits, default=0.0)
