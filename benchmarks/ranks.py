"""What each of two processes holds while it trains, against what `labkit doctor` tells.

A model of 90 million random weights (365 MB in float32) in the embedded world, on CPUs: GRPO with a KL reference by one process, by
two under `ddp` and under `fsdp2`, all weights and LoRA, each in fresh processes. The bytes of weights, reference, gradients and the
optimizer's state are counted, shards as what the process holds of them; memory is resident, at its peak. Each stage is broken off
and called again, and what reading its checkpoint takes is told too. By hand: `python benchmarks/ranks.py [how ...]`.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from labkit.doctor.memory import process_bytes, stage_memory  # noqa: E402
from labkit.doctor.workload import Workload, read_model_shape  # noqa: E402
from labkit.embedded.world import write_world  # noqa: E402
from labkit.params import DEFAULTS  # noqa: E402
from labkit.stages.distributed.launch import end_workers, launch  # noqa: E402
from labkit.stages.distributed.process_group import serve  # noqa: E402

GOAL = 30.0
"""Percent by which what is told may be off."""
SETTINGS: dict[str, tuple[int, dict[str, Any]]] = {
    f"{how}, {what}": (1 if how == "one" else 2, {"sharding": "ddp" if how == "one" else how, "lora_rank": rank})
    for what, rank in (("all weights", 0), ("LoRA", 8))
    for how in ("one", "ddp", "fsdp2")
}
GRPO: dict[str, Any] = {
    "grpo_steps": 2, "prompts_per_step": 2, "prompts_per_pass": 1, "group_size": 2, "max_new_tokens": 8, "save_steps": 1, "beta": 0.04,
}  # fmt: skip
PARTS = ("weights", "reference", "gradients", "optimizer")


def make_model(folder: Path) -> None:
    """Save random weights of a middling shape with the embedded model's tokenizer and tower."""
    import torch
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration

    from labkit.policy.model import SHIPPED

    shutil.copytree(SHIPPED["embedded"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(folder)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 1024, 2816, 8
    text.num_attention_heads, text.num_key_value_heads, text.layer_types = 16, 4, ["full_attention"] * 8
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    config.vision_config.out_hidden_size = 1024
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


def resident(reset: bool = False) -> dict[str, int]:
    """Bytes of this process: now and at its peak since the last reset, and those that are its own and in no file."""
    names = {"VmRSS:": "now", "VmHWM:": "peak", "RssAnon:": "own"}
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {names[words[0]]: 1024 * int(words[1]) for words in lines if words and words[0] in names}
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return found


def work(task: Any, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """As a worker: load the model, train it, and say what that took of memory."""
    import torch

    from labkit.data.moments import read_moments
    from labkit.policy.model import load_policy
    from labkit.stages.distributed.process_group import all_gather_object
    from labkit.stages.sharding import is_sharded
    from tests.stages import several, small

    torch.set_num_threads(1)
    model, world, folder, changes, ends = task
    rank = changes.pop("lora_rank")
    sharded = is_sharded(changes["sharding"])
    if sharded:
        several.shard_on_cpus()
    small.grpo.trainer_class()  # what is imported is no part of what is loaded
    before = resident(reset=True)
    figures, seen = {"process": before["now"], "mapped": before["now"] - before["own"]}, {}
    policy = load_policy(model, device="cpu", lora_rank=rank, whole=not sharded)
    figures["load"] = resident()["peak"] - figures["process"]
    moments = read_moments(Path(world) / "train.jsonl")
    source = small.source(policy, moments, Path(folder) / "frames")
    figures["tokens"] = len(source[moments[0].qid].ids)
    resume(small.grpo.trainer_class(), figures)
    try:
        with several.watched(policy, seen), several.pytest.MonkeyPatch.context() as patch:
            if ends:
                several.end_in(ends, False, patch)
            small.train_grpo(policy, source, moments, Path(folder) / "stage", lora_rank=rank, **GRPO, **changes)
    except several.Broken:
        pass
    now = resident()
    # Pages of mapped files that have been read are counted, though the system drops them where memory is short.
    mapped = now["now"] - now["own"] - figures.pop("mapped")
    figures["peak"] = max(now["peak"], figures.pop("before", 0)) - max(0, mapped)
    return {"ranks": all_gather_object([figures]), **seen}


def resume(trainer: Any, figures: dict[str, Any]) -> None:
    """Have what reading a checkpoint takes noted: of memory beyond that before, at its peak."""
    names = ("_load_from_checkpoint", "_load_optimizer_and_scheduler")
    first, last = (getattr(trainer, name) for name in names)

    def weights(self: Any, checkpoint: str, *rest: Any) -> None:
        figures["before"] = resident()["peak"]
        figures["resume"] = -resident(reset=True)["now"]
        first(self, checkpoint, *rest)

    def optimizer(self: Any, checkpoint: str | None) -> None:
        last(self, checkpoint)
        if checkpoint:
            figures["resume"] += resident()["peak"]

    for name, method in zip(names, (weights, optimizer), strict=True):
        setattr(trainer, name, method)


def told(model: Path, changes: dict[str, Any], world: int, tokens: int) -> dict[str, float]:
    """What the doctor tells of such a stage."""
    load = Workload(
        train=13, test=3, train_clips=3, test_clips=1, prompt_tokens=tokens, longest_prompt=tokens, video_tokens=tokens
    )
    params = DEFAULTS.replace(**GRPO, **changes)
    return stage_memory(read_model_shape(model), params, load, "cpu", world=world)["grpo"]


def main() -> None:
    """Print the tables, and end in an error where something is off by more than the goal."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "accelerate", "trl"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions}; MB of each process, told / measured\n")
    head = [*PARTS, "peak", "to load", "to resume"]
    print(f"| | {' | '.join(head)} |\n|---|{'---|' * len(head)}")
    worst = 0.0
    with tempfile.TemporaryDirectory() as made:
        model, world = Path(made) / "model", Path(made) / "world"
        make_model(model)
        write_world(world, 3, 1, 1, edition=1)
        for name in sys.argv[1:] or SETTINGS:
            count, changes = SETTINGS[name]
            folder = Path(made) / name
            command = [sys.executable, __file__, "worker"]
            runs = []
            for ends in (2, 0):
                task = [str(model), str(world), str(folder), changes, ends]
                runs.append(launch(command, count, folder / "logs", task, cwd=ROOT))
                end_workers()
            foretold = told(model, changes, count, runs[0]["ranks"][0]["tokens"])
            rows = {part: (foretold.get(part, 0.0), [each[part] for each in runs[0]["bytes"]]) for part in PARTS}
            own = sum(foretold.values()) - process_bytes("cpu")
            peaks = [each["peak"] - each["process"] for each in runs[0]["ranks"]]
            rows["peak"] = own, peaks
            cells = []
            for expected, found in rows.values():
                off = max((abs(100 * (expected / each - 1)) for each in found if each), default=0.0)
                worst = max(worst, off)
                cells.append(f"{expected / 1e6:.0f} / {', '.join(f'{each / 1e6:.0f}' for each in found)}")
            cells += [", ".join(f"{each['load'] / 1e6:.0f}" for each in runs[0]["ranks"])]
            cells += [", ".join(f"{each['resume'] / 1e6:.0f}" for each in runs[1]["ranks"])]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"\nworst: {worst:.0f} % (goal {GOAL:.0f} %)")
    raise SystemExit(worst > GOAL)


if __name__ == "__main__":
    serve(work, "cpu") if sys.argv[1:] == ["worker"] else main()
