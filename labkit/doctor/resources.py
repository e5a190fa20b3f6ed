"""Resource estimates of a run (memory, hours, disk) as tables, figures and findings of the doctor's report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from labkit.data.moments import Moment
from labkit.doctor.dataset import DataReport
from labkit.doctor.environment import Machine, Model, target_machine
from labkit.doctor.findings import DoctorReport, Finding, size_text
from labkit.doctor.memory import OTHER_PROCESSES, main_memory, stage_memory
from labkit.doctor.planned import PlannedGPU
from labkit.doctor.runtime import stage_seconds
from labkit.doctor.throughput import (
    DATASHEET_EFFICIENCY,
    MAX_MEASURED_PARAMETERS,
    Throughput,
    estimate_throughput,
    measure_operations,
    measure_throughput,
    timer_for,
)
from labkit.doctor.workload import (
    KEPT_FRACTION,
    Workload,
    disk_bytes,
    notebook_explorers,
    per_process_params,
)
from labkit.errors import LabError
from labkit.files import under
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.policy.families import Geometry
from labkit.progress import duration
from labkit.runs.run import skipped_stages
from labkit.table import Table

# An estimate above this fraction of the capacity is a warning.
_CAPACITY_WARNING = 0.75
_MEMORY_NEXT_STEPS = {
    "cache": "lower group_size, harvest_samples, eval_batch or max_new_tokens",
    "features": "lower feature_memory",
    "merged adapter": "set lora_merge: false, which samples more slowly",
    "joined weights": "set fused_decoding: false, which samples more slowly",
    "decoding": "lower eval_batch, prompts_per_step, group_size, harvest_samples or max_pixels",
    "gathered": "take a smaller model: to generate, all its weights are gathered on each GPU",
    "process": "give the machine more memory: libraries alone take most of this",
}


def add_resource_estimates(
    report: DoctorReport, params: Params, models: Sequence[Model], workload: Workload, data: DataReport, machine: Machine, root: Path,
    quick: bool, gpu: PlannedGPU | None = None,
) -> None:  # fmt: skip
    """Add the estimates for a run of `models`, the base and the harvester if there is one; without `quick` also the hours.

    Of a `gpu` elsewhere they follow from its data sheet.
    """
    planned, world = target_machine(machine, params)
    shapes = [model.shape for model in models]
    harvester = shapes[1] if len(shapes) > 1 else None
    memory = stage_memory(shapes[0], params, workload, planned.device, harvester=harvester, world=world)
    seconds: dict[str, dict[str, float]] = {}
    throughputs: list[Throughput] = []
    if gpu:
        basis = f"{gpu.name}'s data sheet, of whose operations a model is taken to reach {DATASHEET_EFFICIENCY:.0%}; "
        basis += "reading of videos is not counted"
        rates = DATASHEET_EFFICIENCY * gpu.operations, gpu.bandwidth, basis
        throughputs = [estimate_throughput(shape, params, *rates, gpu=True) for shape in shapes]
    elif not quick and planned is machine:
        throughputs = [_find_throughput(params, model, workload, data, machine, world) for model in models]
    if throughputs:
        other = (shapes[1], throughputs[1]) if harvester else None
        seconds = stage_seconds(shapes[0], params, workload, throughputs[0], harvester=other, world=world)
    skipped = {name.partition("_")[2] for name in skipped_stages(params)}
    memory, seconds = ({name: each[name] for name in each if name not in skipped} for each in (memory, seconds))
    on_cpu = planned.device == "cpu"
    # On a CPU all processes share main memory, those around a notebook's kernel too; a GPU belongs to one process.
    times, others = (world, OTHER_PROCESSES) if on_cpu else (1, 0.0)
    lines = []
    for stage in memory:
        cells = [stage, *_largest_parts(memory[stage], size_text)]
        lines.append((*cells, *_largest_parts(seconds[stage], duration)) if seconds else tuple(cells))
    peak = max(sum(parts.values()) for parts in memory.values())
    head = ["stage", "memory", "most of it"] + (["time", "most of it"] if seconds else [])
    weights = " and ".join(f"{shape.text_parameters + shape.vision_parameters:,}" for shape in shapes)
    note = f"memory: arithmetic on the model's config ({weights} weights); "
    where = f"on each of {world} GPUs" if world > 1 else f"on the {planned.name}"
    note += f"at its peak {size_text(times * peak + others)} with the processes around it" if on_cpu else where
    if seconds:
        whole = sum(sum(parts.values()) for parts in seconds.values())
        note += f"\ntime: {duration(whole)} in all, by {throughputs[0].basis}"
        note += f"\nif stages 1 and 3 take all their steps ({params.grpo_steps} and {params.final_steps}), chains are half of "
        note += f"max_new_tokens long, and {KEPT_FRACTION:.0%} of what the filter may keep is kept"
        note += f"; {world} processes are taken to share the work evenly" if world > 1 else ""
    report.tables.append(Table("estimate", tuple(head), lines, note))
    if not on_cpu:
        largest = max((main_memory(shape, params, world) for shape in shapes), key=lambda told: max(told.values()))
        moments = {name: (*two, two[0] + (world - 1) * two[1]) for name, two in largest.items()}
        rows = [(name, *map(size_text, sizes)) for name, sizes in moments.items()]
        note = "files of weights are mapped beside that, once on each machine, and given up where memory is short"
        head = ["main memory at", "first process", "each other", f"all {world}"]
        report.tables.append(Table("main memory", tuple(head), rows, note))
        report.data["main_memory_bytes"] = {name: sizes[2] for name, sizes in moments.items()}
    disk = disk_bytes(shapes[0], params, workload, harvester=harvester, world=world)
    place = nearest_existing(under(root, params.outputs))
    free = 0.0 if gpu else float(shutil.disk_usage(place).free)
    sizes = [(name, size_text(size)) for name, size in (*disk.items(), *([] if gpu else [("free", free)]))]
    title, note = "disk" if gpu else f"disk at {place}", "at its peak: two saved checkpoints and a third being written"
    report.tables.append(Table(title, ("", "size"), sizes, note))
    report.findings += [
        Finding(
            "note", "chains not in the notebook", each.stage,
            f"samples {each.chains:,} chains, of which about {each.embedded:,} are saved in the notebook "
            f"({size_text(each.notebook)})",
            "open it with a kernel to search the others",
        )
        for each in notebook_explorers(params, workload)
        if each.embedded < each.chains
    ]  # fmt: skip
    held = {stage: {name: times * part for name, part in parts.items()} for stage, parts in memory.items()}
    report.findings += [
        *(each for stage, parts in held.items() for each in _memory_findings(stage, parts, others, planned.memory)),
        *_capacity_findings("disk", "disk", sum(disk.values()), free, "make room, or set `outputs` to another disk"),
    ]
    report.data |= {
        "memory_bytes": memory, "processes": world, "stage_seconds": seconds, "disk_bytes": disk, "load": workload.as_dict(),
        "pace": throughputs[0]._asdict() if throughputs else None,
    }  # fmt: skip


def nearest_existing(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _find_throughput(
    params: Params, model: Model, workload: Workload, data: DataReport, machine: Machine, world: int
) -> Throughput:
    """Throughput of a model on this machine, with decoding of its clips."""
    from labkit.policy.model import load_policy

    vision = model.shape.geometry
    if not model.has_weights or model.shape.text_parameters + model.shape.vision_parameters > MAX_MEASURED_PARAMETERS:
        rates = measure_operations(model.shape, params, machine.device)
        throughput = estimate_throughput(model.shape, params, *rates, gpu=machine.device == "cuda")
    else:
        policy = load_policy(
            str(model.folder), dtype=params.dtype, device=machine.device, lora_rank=params.lora_rank,
            lora_alpha=params.lora_alpha, lora_targets=params.lora_targets,
            lora_merge=params.lora_merge, quantization=params.quantization,
            fused_decoding=params.fused_decoding,
        )  # fmt: skip
        clip = data.clips["train"][0]
        grid = (-(-clip.frames // vision.temporal), clip.size[0] // vision.patch, clip.size[1] // vision.patch)
        throughput = measure_throughput(policy, per_process_params(params, world), workload, grid)
    timer = timer_for(machine.device, params.threads)
    if params.data not in WORLDS:
        readable = [moment for moment in data.moments["train"] if data.videos[moment.video].readable]
        return throughput._replace(reading=_decode_seconds(params, readable, vision))
    from labkit.embedded.world import write_world

    with tempfile.TemporaryDirectory() as folder:
        begin = timer()
        splits = write_world(folder, 2, 1, 1, seed=params.world_seed, edition=WORLDS[params.data])
        writing = (timer() - begin) / 4
        reading = _decode_seconds(params, [moment for split in splits.values() for moment in split], vision)
    return throughput._replace(reading=reading, writing=writing)


def _decode_seconds(params: Params, moments: Sequence[Moment], vision: Geometry) -> float:
    """Seconds of decoding one clip, on average over up to three; wall time, since another process does it."""
    from labkit.data.video.frames import probe, read_frames, sample_times

    seconds: list[float] = []
    for moment in {m.video: m for m in moments}.values():
        times = sample_times(moment.duration, params.fps, params.max_frames, vision.temporal)
        try:
            probe(moment.video)  # starts the process that decodes
            begin = time.perf_counter()
            read_frames(moment.video, times, moment.start)
        except LabError:
            continue  # is among the findings already
        seconds.append(time.perf_counter() - begin)
        if len(seconds) == 3:
            break
    return fmean(seconds) if seconds else 0.0


def _largest_parts(parts: Mapping[str, float], text: Callable[[float], str]) -> list[str]:
    """The sum, and the three largest parts that make a hundredth of it or more."""
    whole = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    return [text(whole), ", ".join(f"{name} {text(part)}" for name, part in largest if part >= 0.01 * whole)]


def _memory_findings(stage: str, parts: Mapping[str, float], others: float, available: float) -> list[Finding]:
    step = "take a smaller model, bfloat16, adapters (lora_rank) or a base of 4 bits below them (quantization: nf4)"
    largest = max(parts, key=lambda part: parts[part])
    if largest in ("activations", "logits"):
        step = "lower sft_batch" if stage == "sft" else "lower prompts_per_pass"
        step += " or set gradient_checkpointing" if largest == "activations" else ""
    elif largest in _MEMORY_NEXT_STEPS:
        step = _MEMORY_NEXT_STEPS[largest]
    needed, merged = sum(parts.values()) + others, parts.get("merged adapter", 0.0)
    if merged and needed - merged < _CAPACITY_WARNING * available:
        step = _MEMORY_NEXT_STEPS["merged adapter"]
    findings = _capacity_findings("memory", f"memory of {stage}", needed, available, step)
    return [each._replace(message=f"{each.message}, most of it {largest}") for each in findings]


def _capacity_findings(kind: str, subject: str, needed: float, available: float, step: str) -> list[Finding]:
    if not available or needed < _CAPACITY_WARNING * available:
        return []
    message = f"may not suffice: about {size_text(needed)} of {size_text(available)}"
    return [Finding("error" if needed > available else "warning", kind, subject, message, step)]
