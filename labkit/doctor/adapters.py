"""What LoRA will be on: the layers by name, their number and share of the weights, and what is wrong with the choice."""

from __future__ import annotations

from collections import Counter
from typing import Any

from labkit.doctor.environment import Model
from labkit.doctor.findings import DoctorReport, Finding
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.adapters import linear_layers, lora_targets, require_nf4, skeleton
from labkit.table import Table


def add_adapter_report(report: DoctorReport, params: Params, model: Model, planned: bool) -> None:
    """Add a table of the layers that get an adapter, or have one, and findings; of a `planned` model only its config is known."""
    if params.quantization == "nf4":
        try:
            if not params.lora_rank:
                raise LabError("quantization: weights in nf4 are not trained themselves; set lora_rank, such as 64")
            if not planned:
                require_nf4(params.device)
        except LabError as error:
            report.findings.append(Finding("error", "quantization", "quantization:", str(error).partition(": ")[2]))
    if not params.lora_rank or not (model.folder / "config.json").is_file():
        return
    bare = skeleton(str(model.folder))
    try:
        touched = _touched(bare, params, model)
    except LabError as error:
        report.findings.append(Finding("error", "lora_targets", "lora_targets:", str(error).partition(": ")[2]))
        return
    others = [name for name in linear_layers(bare)[1] if bare.get_submodule(name) is not bare.get_output_embeddings()]
    beside = [name for name in touched if name in others]
    report.tables.append(_table(bare, touched, params, [] if beside else others))
    subject, step = (
        f"adapter {model.adapter}",
        "merge it into a model of its own, and put a new one on that (lora_rank)",
    )
    if not touched:
        message = "names no layer that its base has, so nothing would be adapted or trained"
        report.findings.append(Finding("error", "adapter", subject, message, step))
    elif beside:
        message = f"is on {len(beside)} layers beside the language model ({beside[0]}), which are used and not trained"
        report.findings.append(Finding("warning", "adapter", subject, message, step))


def _touched(bare: Any, params: Params, model: Model) -> list[str]:
    """Names of the modules with an adapter: a checkpoint's own, or those that the parameters choose."""
    from peft import LoraConfig, PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    if model.adapter is None:
        config = LoraConfig(target_modules=lora_targets(bare, params.lora_targets))
    else:
        config = PeftConfig.from_pretrained(str(model.adapter))
    return [name for name, _ in bare.named_modules() if name and check_target_module_exists(config, name)]


def _table(bare: Any, touched: list[str], params: Params, others: list[str]) -> Table:
    layers, sizes, added = Counter[str](), Counter[str](), Counter[str]()
    for name in touched:
        kind, weight = name.rpartition(".")[2], bare.get_submodule(name).weight
        layers[kind] += 1
        sizes[kind] += weight.numel()
        added[kind] += params.lora_rank * sum(weight.shape)
    whole = sum(weight.numel() for weight in bare.parameters())
    rows = [
        (kind, f"{layers[kind]:,}", f"{sizes[kind]:,}", f"{100 * sizes[kind] / whole:.1f} %", f"{added[kind]:,}")
        for kind in sorted(layers)
    ]
    trained = added.total()
    note = f"rank {params.lora_rank} on {layers.total():,} layers, {100 * sizes.total() / whole:.1f} % of {whole:,} weights; "
    note += f"{trained:,} are trained, {100 * trained / whole:.2g} %"
    if alike := sorted({name.rpartition(".")[2] for name in others} & set(layers)):
        note += f"\nlayers beside the language model that have such a name stay as they are: {', '.join(alike)}"
    return Table("LoRA", ("layer", "number", "weights", "of all", "adapter"), rows, note, align="lr")
