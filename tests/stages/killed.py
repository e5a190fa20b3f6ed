"""Train in a process of its own that is killed, for real, at a place named on the command line.

python killed.py grpo|sft WORLD FOLDER PLACE
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
from labkit.stages import grpo, sft
from tests.stages import small


def die(*args: Any, **kwargs: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(stage: str, world: Path, folder: Path, place: str) -> None:
    torch.set_num_threads(1)
    moments = read_moments(world / "train.jsonl")
    policy = load_policy("embedded", device="cpu")
    source = small.source(policy, moments, folder.parent / "frames")
    on_step = None
    if place.startswith("step"):
        number = int(place.removeprefix("step"))
        on_step = lambda row: die() if row["step"] == number else None  # noqa: E731
    elif place.startswith("save"):  # the weights of that checkpoint are written, the optimizer is not
        saved, number = [], int(place.removeprefix("save"))
        torch_save = torch.save

        def save(thing: Any, path: Any, *args: Any, **kwargs: Any) -> None:
            if f"checkpoint-{number}" in str(path):
                die()
            saved.append(torch_save(thing, path, *args, **kwargs))

        torch.save = save
    elif place == "end":  # all steps are taken, the model is not written
        grpo.save_policy = sft.save_policy = die
    if stage == "grpo":
        small.train_grpo(policy, source, moments, folder, on_step=on_step)
    else:
        small.train_sft(policy, source, moments, folder, on_step=on_step)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
