"""Costs: memory, hours and disk of a run, as tables, figures and findings of the doctor's report."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from labkit.data.moments import Moment
from labkit.doctor.dataset import Inspection, Vision
from labkit.doctor.environment import Machine, Model, planned_for
from labkit.doctor.memory import OTHER_PROCESSES, stage_memory
from labkit.doctor.report import Finding, Report, size_text
from labkit.doctor.runtime import stage_seconds
from labkit.doctor.workload import KEPT_SHARE, STAGES, Load, explorers, one_process, run_disk
from labkit.errors import LabError
from labkit.files import under
from labkit.params import Params
from labkit.progress import duration
from labkit.table import Table

if TYPE_CHECKING:
    from labkit.doctor.throughput import Pace

# From this share of what there is, an estimate may well be wrong about fitting.
_TIGHT = 0.75
_MEMORY_STEPS = {
    "cache": "lower group_size, harvest_samples, eval_batch or max_new_tokens",
    "features": "lower feature_memory",
    "decoding": "lower eval_batch, prompts_per_step, group_size, harvest_samples or max_pixels",
    "gathered": "take a smaller model: all its weights are put together to write a chain",
    "process": "give the machine more memory: libraries alone take most of this",
}


def add_costs(
    report: Report, params: Params, models: Sequence[Model], load: Load, found: Inspection, machine: Machine, root: Path,
    quick: bool,
) -> None:  # fmt: skip
    """Add what a run of `models`, the base and its harvester if it has one, will cost; without `quick` hours too."""
    planned, world = planned_for(machine, params)
    shapes = [model.shape for model in models]
    harvester = shapes[1] if len(shapes) > 1 else None
    memory = stage_memory(shapes[0], params, load, planned.device, harvester=harvester, world=world)
    seconds: dict[str, dict[str, float]] = {}
    paces: list[Pace] = []
    if not quick and planned is machine:
        paces = [_pace(params, model, load, found, machine, world) for model in models]
        other = (shapes[1], paces[1]) if harvester else None
        seconds = stage_seconds(shapes[0], params, load, paces[0], harvester=other, world=world)
    on_cpu = planned.device == "cpu"
    # On a CPU all processes share one memory, and those around a notebook's as well; a GPU belongs to one.
    times, others = (world, OTHER_PROCESSES) if on_cpu else (1, 0.0)
    lines = []
    for stage in STAGES:
        cells = [stage, *_most(memory[stage], size_text)]
        lines.append((*cells, *_most(seconds[stage], duration)) if seconds else tuple(cells))
    peak = max(sum(parts.values()) for parts in memory.values())
    head = ["stage", "memory", "most of it"] + (["time", "most of it"] if seconds else [])
    weights = " and ".join(f"{shape.text_parameters + shape.vision_parameters:,}" for shape in shapes)
    note = f"memory: arithmetic on the model's config ({weights} weights); "
    where = f"on each of {world} GPUs" if world > 1 else f"on the {planned.name}"
    note += f"at its peak {size_text(times * peak + others)} with the processes around it" if on_cpu else where
    if seconds:
        whole = sum(sum(parts.values()) for parts in seconds.values())
        note += f"\ntime: {duration(whole)} in all, by {paces[0].basis}"
        note += f"\nif stages 1 and 3 take all their steps ({params.grpo_steps} and {params.final_steps}), chains are half of "
        note += f"max_new_tokens long, and {KEPT_SHARE:.0%} of what the filter may keep is kept"
        note += f"; {world} processes are taken to share the work evenly" if world > 1 else ""
    report.tables.append(Table("estimate", tuple(head), lines, note))
    disk = run_disk(shapes[0], params, load, harvester=harvester, world=world)
    place = existing(under(root, params.outputs))
    free = float(shutil.disk_usage(place).free)
    sizes = [(name, size_text(size)) for name, size in (*disk.items(), ("free", free))]
    report.tables.append(
        Table(f"disk at {place}", ("", "size"), sizes, "at its fullest, with two checkpoints and one more")
    )
    report.findings += [
        Finding(
            "note", "chains that do not travel", each.stage,
            f"samples {each.chains:,} chains, of which about {each.travelling:,} travel with the notebook "
            f"({size_text(each.notebook)})",
            "open it with a kernel to search the others",
        )
        for each in explorers(params, load)
        if each.travelling < each.chains
    ]  # fmt: skip
    held = {stage: {name: times * part for name, part in parts.items()} for stage, parts in memory.items()}
    report.findings += [
        *(each for stage, parts in held.items() for each in _tight_memory(stage, parts, others, planned.memory)),
        *_tight("disk", "disk", sum(disk.values()), free, "make room, or set `outputs` to another disk"),
    ]
    report.data |= {
        "memory_bytes": memory, "processes": world, "stage_seconds": seconds, "disk_bytes": disk, "load": load.as_dict(),
        "pace": paces[0]._asdict() if paces else None,
    }  # fmt: skip


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())


def _pace(params: Params, model: Model, load: Load, found: Inspection, machine: Machine, world: int) -> Pace:
    """How fast this machine is at it, measured."""
    from labkit.doctor.throughput import SMALL, clock_for, count_out, rehearse
    from labkit.policy.model import load_policy

    vision = Vision(model.shape.patch, model.shape.merge, model.shape.temporal)
    if not model.whole or model.shape.text_parameters + model.shape.vision_parameters > SMALL:
        pace = count_out(model.shape, params, machine.device)
    else:
        policy = load_policy(
            str(model.folder), dtype=params.dtype, device=machine.device, lora_rank=params.lora_rank,
            lora_alpha=params.lora_alpha,
        )  # fmt: skip
        clip = found.clips["train"][0]
        grid = (-(-clip.frames // vision.temporal), clip.size[0] // vision.patch, clip.size[1] // vision.patch)
        pace = rehearse(policy, one_process(params, world), load, grid)
    clock = clock_for(machine.device, params.threads)
    if params.data != "world":
        readable = [moment for moment in found.moments["train"] if found.videos[moment.video].readable]
        return pace._replace(reading=_reading(params, readable, vision))
    from labkit.embedded.world import write_world

    with tempfile.TemporaryDirectory() as folder:
        begin = clock()
        splits = write_world(folder, 2, 1, 1, seed=params.world_seed)
        writing = (clock() - begin) / 4
        reading = _reading(params, [moment for split in splits.values() for moment in split], vision)
    return pace._replace(reading=reading, writing=writing)


def _reading(params: Params, moments: Sequence[Moment], vision: Vision) -> float:
    """Seconds for decoding one clip, on average over up to three; of the wall, since another process does it."""
    from labkit.data.video.frames import probe, read_frames, sample_times

    seconds: list[float] = []
    for moment in {m.video: m for m in moments}.values():
        times = sample_times(moment.duration, params.fps, params.max_frames, vision.temporal)
        try:
            probe(moment.video)  # starts the process that decodes
            begin = time.perf_counter()
            read_frames(moment.video, times, moment.start)
        except LabError:
            continue  # the inspection has told it
        seconds.append(time.perf_counter() - begin)
        if len(seconds) == 3:
            break
    return fmean(seconds) if seconds else 0.0


def _most(parts: Mapping[str, float], text: Callable[[float], str]) -> list[str]:
    """The sum, and the three largest parts that make a hundredth of it or more."""
    whole = sum(parts.values())
    largest = sorted(parts.items(), key=lambda part: -part[1])[:3]
    return [text(whole), ", ".join(f"{name} {text(part)}" for name, part in largest if part >= 0.01 * whole)]


def _tight_memory(stage: str, parts: Mapping[str, float], others: float, there: float) -> list[Finding]:
    step = "take a smaller model, bfloat16 or adapters (lora_rank)"
    largest = max(parts, key=lambda part: parts[part])
    if largest in ("activations", "logits"):
        step = "lower sft_batch" if stage == "sft" else "lower prompts_per_pass"
        step += " or set gradient_checkpointing" if largest == "activations" else ""
    elif largest in _MEMORY_STEPS:
        step = _MEMORY_STEPS[largest]
    found = _tight("memory", f"memory of {stage}", sum(parts.values()) + others, there, step)
    return [each._replace(message=f"{each.message}, most of it {largest}") for each in found]


def _tight(kind: str, subject: str, needed: float, there: float, step: str) -> list[Finding]:
    if not there or needed < _TIGHT * there:
        return []
    message = f"may not suffice: about {size_text(needed)} of {size_text(there)}"
    return [Finding("error" if needed > there else "warning", kind, subject, message, step)]
