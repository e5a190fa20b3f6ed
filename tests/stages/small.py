"""The stages in their smallest useful size, on the embedded model: a few steps of a few queries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.chain.anchors import render
from labkit.chain.rewards import RewardSpec
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import FrameCache
from labkit.policy.inputs import PromptSource, Sampling
from labkit.policy.model import Policy
from labkit.stages import grpo, sft

ROOT = Path(__file__).parents[2]
SPEC = RewardSpec()


def source(policy: Policy, moments: Sequence[Moment], frames: Path) -> PromptSource:
    return PromptSource(
        policy, moments, template="query", sampling=Sampling(1.0, 16, 3136, 3136), cache=FrameCache(frames)
    )


def grpo_settings(**changes: Any) -> grpo.GrpoSettings:
    values: dict[str, Any] = {
        "steps": 5,
        "prompts_per_step": 4,
        "group_size": 4,
        "learning_rate": 1e-3,
        "temperature": 1.0,
        "beta": 0.0,
        "max_new_tokens": 24,
        "save_steps": 2,
        "seed": 7,
        "prompts_per_pass": 2,
        "warmup_steps": 1,
    }
    return grpo.GrpoSettings(**values | changes)


def train_grpo(
    policy: Policy, source: Any, moments: Sequence[Moment], folder: Path, on_step: Any = None, **changes: Any
) -> grpo.GrpoResult:
    return grpo.train_grpo(
        policy, source, moments, spec=SPEC, settings=grpo_settings(**changes), folder=folder, run="small",
        stage="grpo", on_step=on_step,
    )  # fmt: skip


def traces(moments: Sequence[Moment]) -> list[sft.Trace]:
    """Perfect chains, written as the embedded model writes them."""
    made = []
    for moment in moments:
        gold = moment.windows[0]
        anchors = [Span(0.0, moment.duration), gold]
        text = render(anchors, gold).replace("<", " <").replace(">", "> ")
        made.append(sft.Trace(moment.qid, " ".join(text.split())))
    return made


def train_sft(
    policy: Policy, source: Any, moments: Sequence[Moment], folder: Path, on_step: Any = None, **changes: Any
) -> sft.SftResult:
    values: dict[str, Any] = {
        "epochs": 2.0, "batch": 4, "learning_rate": 1e-3, "save_steps": 2, "seed": 7, "warmup_steps": 1,
    }  # fmt: skip
    return sft.train_sft(
        policy, source, traces(moments), settings=sft.SftSettings(**values | changes), folder=folder, on_step=on_step
    )


def train_and_kill(stage: str, world: Path, folder: Path, place: str) -> int:
    """Exit status of `killed.py`: -9 when it was killed."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.stages.killed", stage, str(world), str(folder), place]
    return subprocess.run(command, cwd=ROOT, check=False).returncode
