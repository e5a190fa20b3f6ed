"""A run that is planned for elsewhere: known sizes in the place of a GPU, a model or data that are not on this machine."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.probe import VideoCheck
from labkit.doctor.dataset import DataReport, clip_cost
from labkit.doctor.environment import Machine, Model, find_model
from labkit.doctor.findings import Finding
from labkit.doctor.workload import shape_of_config
from labkit.errors import LabError, nearest
from labkit.params import Params
from labkit.policy.families import Geometry
from labkit.policy.model import is_path

SIZES = Path(__file__).with_name("known_sizes.yaml")


class PlannedGPU(NamedTuple):
    """A GPU by its maker's data sheet."""

    name: str
    memory: float
    """Bytes."""
    operations: float
    """A second, of a dense product in bfloat16."""
    bandwidth: float
    """Bytes a second."""


@functools.cache
def known_sizes() -> dict[str, Any]:
    """What known_sizes.yaml holds: `gpus`, `models` and `data`."""
    import yaml

    sizes: dict[str, Any] = yaml.safe_load(SIZES.read_text(encoding="utf-8"))
    return sizes


def find_gpus(text: str) -> tuple[PlannedGPU, int]:
    """The GPU and how many of them `h100x8` or `h100` names; raises LabError for an unknown one.

    >>> find_gpus("h100x8")[0].name, find_gpus("h100x8")[1], find_gpus("4090")[1]
    ('H100 80 GB', 8, 1)
    """
    gpus = known_sizes()["gpus"]
    name, times, count = text.lower().rpartition("x")
    if not times:
        name, count = count, "1"
    if name not in gpus or not count.isdecimal() or not int(count):
        near = f" (nearest: {close})" if (close := nearest(name, gpus)) else ""
        raise LabError(
            f"--gpu {text!r} is not known{near}; write one of {', '.join(gpus)}, with x8 behind it for eight of them"
        )
    sheet = gpus[name]
    return PlannedGPU(sheet["name"], sheet["memory"], sheet["operations"], sheet["bandwidth"]), int(count)


def planned_machine(gpu: PlannedGPU, count: int, threads: int) -> Machine:
    """The machine with these GPUs, taken to have the cores for as many threads."""
    return Machine("cuda", gpu.name, gpu.memory, threads, True, count)


def find_planned_model(name: str, root: Path) -> tuple[Model | None, list[Finding]]:
    """The model `name` on this machine or, by its hub id, as its known config describes it, without tokenizer and weights."""
    model, findings = find_model(name, root)
    if model is not None or is_path(name):
        return model, findings
    models = known_sizes()["models"]
    key = next((each for each in models if f"{each.lower()}-" in f"{Path(name).name.lower()}-"), None)
    if key is None:
        message = f"is not on this machine and none of the known sizes ({', '.join(models)})"
        return None, [
            Finding("error", "model", f"model {name}", message, "give a folder with its config.json and tokenizer")
        ]
    shape = shape_of_config(models[key])
    note = Finding(
        "note", "model", f"model {name}", f"is not on this machine: {key}'s config as labkit knows it stands for it"
    )
    return Model(Path(), shape, 0, None, False), [note]


def known_data(params: Params, vision: Geometry) -> DataReport:
    """Data of a known benchmark's size, all clips alike."""
    known = known_sizes()["data"]
    seconds, check = known["seconds"], VideoCheck("ok", width=known["width"], height=known["height"])
    moment = Moment("known", "/known.mp4", known["query"], (Span(0.0, seconds / 3),), seconds)
    data = DataReport()
    for split, sizes in known["splits"].items():
        queries = min(sizes["queries"], getattr(params, f"{split}_limit") or sizes["queries"])
        clips = -(-sizes["clips"] * queries // sizes["queries"])
        data.queries[split], data.moments[split] = queries, [moment]
        data.clips[split] = [clip_cost(seconds, check, params, vision)] * clips
    message = f"is not on this machine: clips and queries of {known['name']}'s number and mean length stand for it"
    data.findings.append(Finding("note", "data", f"data = {params.data}", message))
    return data
