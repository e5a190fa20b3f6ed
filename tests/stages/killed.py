"""Train in a process of its own that is killed, for real, at a place named on the command line.

python -m tests.stages.killed grpo|sft WORLD FOLDER step3|save4
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from labkit.data.moments import read_moments
from labkit.policy.model import load_policy
from tests.stages import small


def main(stage: str, world: Path, folder: Path, place: str) -> None:
    torch.set_num_threads(1)
    moments = read_moments(world / "train.jsonl")
    policy = load_policy("embedded", device="cpu")
    source = small.source(policy, moments, folder.parent / "frames")
    kind, number = place[:4], int(place[4:])

    def on_step(row: dict[str, Any]) -> None:
        if kind == "step" and row["step"] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def save(thing: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if kind == "save" and f"checkpoint-{number}" in str(path):  # the weights are written, the optimizer is not
            os.kill(os.getpid(), signal.SIGKILL)
        torch_save(thing, path, *args, **kwargs)

    torch_save, torch.save = torch.save, save
    if stage == "grpo":
        small.train_grpo(policy, source, moments, folder, on_step=on_step, probe_every=3)
    else:
        small.train_sft(policy, source, moments, folder, on_step=on_step)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
