"""Train as one of several workers, on the models of `tests.stages.small`, so that they can be compared with one process.

python -m tests.stages.several grpo|sft WORLD FOLDER CHANGES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from labkit.data.moments import read_moments
from labkit.policy.model import load_policy
from labkit.worker import joined
from tests.stages import small


def main(stage: str, world: Path, folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(1)
    moments = read_moments(world / "train.jsonl")
    policy = load_policy("embedded", device="cpu", lora_rank=changes.pop("lora_rank", 0))
    source = small.source(policy, moments, folder.parent / "frames")
    train = small.train_grpo if stage == "grpo" else small.train_sft
    result = train(policy, source, moments, folder, **changes)
    return {"steps": result.steps, "history": result.history}


if __name__ == "__main__":
    with joined(Path(sys.argv[3]) / "logs") as report:
        report({"result": main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))})
