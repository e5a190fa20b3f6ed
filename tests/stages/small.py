"""The stages in their smallest useful size, on the embedded model: a few steps of a few queries."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from labkit.chain.anchors import render
from labkit.chain.rewards import RewardSpec
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video.frames import FrameCache
from labkit.params import DEFAULTS, Params, names
from labkit.policy.inputs import FrameSampling, Prompt, vision_kwargs
from labkit.policy.model import Policy
from labkit.policy.prompt_source import PromptSource
from labkit.stages import arguments, grpo, sft
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.probes import Probes
from labkit.stages.rollouts import RolloutStore
from tests import tiny

ROOT = Path(__file__).parents[2]
SPEC = RewardSpec()


def unchecked(**changes: Any) -> Params:
    """Parameters that need not be in their ranges, such as a stop condition that always holds."""
    assert changes.keys() <= set(names())
    return DEFAULTS.model_copy(update=changes)


def source(policy: Policy, moments: Sequence[Moment], frames: Path, max_frames: int = 16) -> PromptSource:
    sampling = FrameSampling(1.0, max_frames, 3136, 3136)
    return PromptSource(policy, moments, template="query", sampling=sampling, cache=FrameCache(frames))


def grpo_params(**changes: Any) -> Params:
    """Stops by its condition, which always holds, after as many steps as that looks at: five."""
    values: dict[str, Any] = {
        "run": "small", "grpo_steps": 8, "prompts_per_step": 4, "group_size": 4, "learning_rate": 1e-3, "temperature": 1.0,
        "beta": 0.0,
        "max_new_tokens": 24, "save_steps": 2, "seed": 7, "prompts_per_pass": 2,
        "stop_anchor_rate": -1.0, "stop_progress": -1.0,
    }  # fmt: skip
    return unchecked(**values | changes)


def train_grpo(
    policy: Policy,
    source: Any,
    moments: Sequence[Moment],
    folder: Path,
    on_step: Any = None,
    on_resume: Any = None,
    stage: str = "grpo",
    warmup_steps: int = 1,
    spec: RewardSpec = SPEC,
    probe_every: int = 0,
    **changes: Any,
) -> GrpoResult:
    probes = Probes(moments[:3], source, RolloutStore(folder / "probes"), probe_every, 2) if probe_every else None
    with patch.object(arguments, "WARMUP_STEPS", warmup_steps):
        return grpo.train_grpo(
            policy, source, moments, spec=spec, params=grpo_params(**changes), folder=folder, stage=stage,
            on_step=on_step, on_resume=on_resume, probes=probes,
        )  # fmt: skip


def traces(moments: Sequence[Moment]) -> list[sft.Trace]:
    """Perfect chains, written as the embedded model writes them."""
    made = []
    for moment in moments:
        gold = moment.windows[0]
        text = render([Span(0.0, moment.duration), gold], gold).replace("<", " <").replace(">", "> ")
        made.append(sft.Trace(moment.qid, " ".join(text.split())))
    return made


def train_sft(
    policy: Policy,
    source: Any,
    moments: Sequence[Moment],
    folder: Path,
    on_step: Any = None,
    on_resume: Any = None,
    warmup_steps: int = 1,
    **changes: Any,
) -> sft.SftResult:
    values: dict[str, Any] = {
        "sft_epochs": 2.0, "sft_batch": 4, "sft_learning_rate": 1e-3, "save_steps": 2, "seed": 7,
    }  # fmt: skip
    params = unchecked(**values | changes)
    with patch.object(arguments, "WARMUP_STEPS", warmup_steps):
        return sft.train_sft(
            policy, source, traces(moments), params=params, folder=folder, on_step=on_step, on_resume=on_resume
        )


def train_and_kill(stage: str, world: Path, folder: Path, place: str) -> int:
    """Exit status of `killed.py`: -9 when it was killed."""
    command = [sys.executable, "-m", "tests.stages.killed", stage, str(world), str(folder), place]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def distance(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Length of the difference of two sets of weights."""
    return math.sqrt(sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours))


def farthest(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Largest difference of one weight."""
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def plain_log_probs(model: Any, prompt: Prompt, ids: torch.Tensor) -> torch.Tensor:
    """Of one completion (C,), in a pass of its own: no padding, no packing, no trainer."""
    whole, positions = tiny.append_completion(prompt, ids)
    shown = vision_kwargs([prompt], whole.device)
    out = model(input_ids=whole[None], position_ids=positions[:, None], use_cache=False, **shown)
    return out.logits[0, len(prompt.ids) - 1 : -1].log_softmax(-1).gather(1, ids[:, None])[:, 0]


def untimed(history):
    """The rows of a stage's steps without the processor time that they took, which is another each time."""
    assert all(row["cpu_seconds"] > 0 for row in history)
    return [{name: value for name, value in row.items() if name != "cpu_seconds"} for row in history]
