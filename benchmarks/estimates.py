"""The estimates of `labkit doctor` against what a run takes: memory and processor time of each stage.

Two runs of the embedded lab, smoke.yaml and one of a size between it and the default, each in fresh processes: first
`labkit doctor`, then `labkit run`. Memory is the most that a notebook's kernel held (resident), time the processor time
of all its threads, since wall time wavers with whatever else the machine does. By hand:
`python benchmarks/estimates.py [smoke] [middle]`.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from labkit.doctor.workload import ESTIMATED_STAGES

ROOT = Path(__file__).parents[1]
GOAL = 30.0
"""Percent by which an estimate may be off."""
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {},
    "middle": {
        "world_train": 60, "world_test": 30, "test_limit": 0, "grpo_steps": 20, "final_steps": 20, "prompts_per_step": 8,
        "group_size": 8, "save_steps": 10, "harvest_prompts": 120, "harvest_samples": 8, "sft_epochs": 2, "sft_batch": 16,
        "eval_batch": 64,
    },
}  # fmt: skip
"""What goes on top of smoke.yaml."""


def command(name: str, outputs: str, changes: dict[str, Any], *more: str) -> list[str]:
    """A line of labkit on smoke.yaml with `changes`."""
    given = [word for item in {"outputs": outputs, **changes}.items() for word in ("-p", item[0], str(item[1]))]
    return [sys.executable, "-m", "labkit.cli", name, "params/smoke.yaml", *given, *more]


def watch(line: list[str]) -> list[tuple[float, float]]:
    """Run a line; processor seconds and the most resident bytes of each notebook's kernel, in order."""
    kernels: dict[int, tuple[float, float]] = {}
    run = psutil.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)
    while run.poll() is None:
        for process in run.children():
            try:
                if "ipykernel_launcher" in process.cmdline():
                    spent, held = process.cpu_times(), process.memory_info().rss
                    before = kernels.get(process.pid, (0.0, 0.0))
                    kernels[process.pid] = (spent.user + spent.system, max(before[1], held))
            except psutil.Error:
                continue  # it has just ended
        time.sleep(0.2)
    if run.returncode:
        raise SystemExit(f"the run broke off: {' '.join(line)}")
    return list(kernels.values())


def main() -> None:
    """Print the tables, and end in an error when a stage is off by more than the goal."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "trl"))
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {versions}")
    worst = 0.0
    for size in sys.argv[1:] or SIZES:
        with tempfile.TemporaryDirectory() as outputs:
            doctor = subprocess.run(command("doctor", outputs, SIZES[size], "--json"), cwd=ROOT, capture_output=True)
            estimate = json.loads(doctor.stdout)
            measured = watch(command("run", outputs, SIZES[size]))
        print(
            f"\n| {size} | memory estimated | measured | off | seconds estimated | measured | off |\n|---|---|---|---|---|---|---|"
        )
        seconds, spent = {stage: sum(estimate["stage_seconds"][stage].values()) for stage in ESTIMATED_STAGES}, 0.0
        for stage, (took, held) in zip(ESTIMATED_STAGES, measured, strict=True):
            memory = sum(estimate["memory_bytes"][stage].values())
            off = 100 * (memory / held - 1)
            spent += took
            worst = max(worst, abs(off))
            print(f"| {stage} | {memory / 1e9:.2f} GB | {held / 1e9:.2f} GB | {off:+.0f} % | {seconds[stage]:.1f} | {took:.1f} | "
                  f"{100 * (seconds[stage] / took - 1):+.0f} % |")  # fmt: skip
        off = 100 * (sum(seconds.values()) / spent - 1)
        worst = max(worst, abs(off))
        print(f"| whole run | | | | {sum(seconds.values()):.1f} | {spent:.1f} | {off:+.0f} % |")
    print(f"\nworst of memory by stage and time in all: {worst:.0f} % (goal {GOAL:.0f} %)")
    raise SystemExit(worst > GOAL)


if __name__ == "__main__":
    main()
