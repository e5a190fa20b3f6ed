"""One step of GRPO, stock TRL's way and labkit's, on the same model, clips and lengths, in one process.

Stock TRL reads the prompt once for each member of a group: its vision tower, prefill and policy pass all see G copies of
the video. labkit reads it once. Most of the tower's work is easily spared, so stock TRL that keeps a clip's features for all
copies stands beside both: what is left is what shared prefixes and the decode loop gain. Means over the steps after a first that
warms up: CPU seconds, or wall seconds on a GPU that was waited for. Clips are noise at model size, made before. Run from the
project's root:

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py
    python benchmarks/grpo_step.py --shape 3b --device cuda --dtype bfloat16 --tokens 2000 4000 --new 256
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import math
import platform
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import transformers
import trl
from accelerate import Accelerator
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from labkit.chain.anchors import parse
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.params import Params
from labkit.policy.inputs import build_prompt, read_clip
from labkit.policy.model import Policy
from labkit.policy.prompt_source import PromptSource
from labkit.stages import grpo
from labkit.stages.arguments import checkpointing_argument
from labkit.stages.experimental import vllm_generation

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.noise import SIDES, Task, flops, made_task  # noqa: E402

STEPS = 3
"""The first one warms up and is not counted."""
PARTS = ("vision", "prefill", "decoding", "vision again", "policy", "other")
"""`vision again` is for the log-probs; `policy` is forward and backward."""
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200 (SXM), by the data sheet."""


class Found(NamedTuple):
    """What one way took."""

    parts: dict[str, float]
    """Seconds."""
    kept: float
    """GB that the policy's forward pass leaves behind for its backward pass."""
    peak: float
    """GB of the GPU's memory, weights and optimizer included; 0 on a CPU."""
    flops: float
    """Of the policy update."""


class Clock:
    """Seconds by part of a step; a part that runs inside another counts as itself alone."""

    def __init__(self, device: str) -> None:
        """It runs from now on."""
        self.cuda = device == "cuda"
        self.steps: list[Counter[str]] = [Counter()]
        self.inside = ["other"]
        self.kept: list[float] = []
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.since = self.now()

    def now(self) -> float:
        """Seconds: wall time once the GPU has caught up, or this process's CPU time."""
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def memory(self) -> float:
        """GB in use: allocated on the GPU, or resident once the allocator has given back what is free."""
        if self.cuda:
            return torch.cuda.memory_allocated() / 1e9
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9

    def weighed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, the forward pass, and what is left behind it."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.steps) > 1:  # the time that weighing takes is counted in no step but the first
                return function(*args, **kwargs)
            before = self.memory()
            found = function(*args, **kwargs)
            self.kept.append(self.memory() - before)
            return found

        return call

    def switch(self) -> None:
        """Book the time since the last switch; while a GPU records a step, nothing runs."""
        if self.cuda and torch.cuda.is_current_stream_capturing():
            return
        now = self.now()
        self.steps[-1][self.inside[-1]] += now - self.since
        self.since = now

    def end_step(self, *_: Any) -> None:
        """A step has ended, the next one begins."""
        self.switch()
        self.steps.append(Counter())

    def timed(self, function: Callable[..., Any], part: Callable[[Any], str]) -> Callable[..., Any]:
        """`function`, its time booked as `part(keyword arguments)`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.switch()
            self.inside.append(part(kwargs))
            try:
                return function(*args, **kwargs)
            finally:
                self.switch()
                self.inside.pop()

        return call

    @contextmanager
    def watching(self, policy: Policy, *rollouts: tuple[Any, str], trainer: type) -> Iterator[None]:
        """Time the parts of a step of `trainer` while the block runs; `rollouts` are where completions are sampled."""
        backbone = policy.base.model

        def pass_of(kwargs: Any) -> str:
            ids = kwargs.get("input_ids")
            reads = (kwargs["inputs_embeds"] if ids is None else ids).shape[1] > 1
            return "prefill" if self.inside[-1] == "decoding" and reads else self.inside[-1]

        def vision_of(_: Any) -> str:
            return "vision again" if self.inside[-1] == "policy" else "vision"

        with ExitStack() as stack:
            for owner, name, part in [
                (type(backbone.visual), "forward", vision_of),
                (type(backbone), "forward", pass_of),
                (trainer, "_compute_loss", lambda _: "policy"),
                (Accelerator, "backward", lambda _: "policy"),
                *((owner, name, lambda _: "decoding") for owner, name in rollouts),
            ]:
                stack.enter_context(patch.object(owner, name, self.timed(getattr(owner, name), part)))
            weighed = self.weighed(trainer._compute_loss)
            stack.enter_context(patch.object(trainer, "_compute_loss", weighed))
            yield

    def found(self, work: float) -> Found:
        """Seconds of each part, the mean over the steps that count, and GB."""
        counted = self.steps[1:STEPS]
        parts = {part: sum(step[part] for step in counted) / len(counted) for part in PARTS}
        peak = torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0
        return Found(parts, max(self.kept), peak, work)


class StockOnVideos(GRPOTrainer):
    """Stock TRL with the video put where stock TRL leaves it out: into generation's inputs and the log-prob pass."""

    def __init__(self, policy: Policy, task: Task, **kwargs: Any) -> None:
        """Every clip's pixels are held ready."""
        self.policy, self.asked = policy, []
        self.clips = {m.qid: read_clip(policy, m, task.frames, task.sampling) for m in task.moments}
        self.ids = {
            m.qid: build_prompt(policy, m, "query", self.clips[m.qid], torch.empty(0)).ids.tolist()
            for m in task.moments
        }
        super().__init__(**kwargs)
        for model in filter(None, (policy.base, self.ref_model)):
            model.model.register_forward_pre_hook(self.add_video, with_kwargs=True)
        self.rows: Sequence[int] = ()

    def videos(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The pixels of these rows' videos, once for each row."""
        clips = [self.clips[self.asked[row]] for row in rows]
        found = {
            "pixel_values_videos": torch.cat([clip.patches for clip in clips]),
            "video_grid_thw": torch.tensor([clip.grid for clip in clips]),
            "second_per_grid_ts": torch.tensor([clip.seconds_per_grid for clip in clips]),
        }
        return {name: value.to(self.policy.device) for name, value in found.items()}

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        self.asked = prompts
        ids, video = [self.ids[qid] for qid in prompts], self.policy.base.config.video_token_id
        kinds = [[2 * (token == video) for token in row] for row in ids]
        return ids, None, {"mm_token_type_ids": kinds, **self.videos(range(len(prompts)))}

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self.rows = range(len(inputs))  # as the reference sees them; TRL shuffles them afterwards
        return {**super()._generate_and_score_completions(inputs), "rows": torch.arange(len(inputs))}

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self.rows = inputs["rows"].tolist()
        return super()._compute_loss(model, inputs)

    def add_video(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The log-prob pass comes with token ids alone; generation has the video, and later a cache."""
        cached = kwargs.get("cache", kwargs.get("past_key_values")) is not None
        if not cached and "pixel_values_videos" not in kwargs:
            kinds = 2 * (kwargs["input_ids"] == self.policy.base.config.video_token_id).int()
            kwargs |= {"mm_token_type_ids": kinds, **self.videos(self.rows)}
        return args, kwargs


def keeping(visual: Any) -> Callable[..., Any]:
    """A `forward` of the vision tower that reads a clip once and repeats its features for all copies, and whenever it comes again."""
    kept: dict[float, Any] = {}

    def call(patches: torch.Tensor, grid_thw: torch.Tensor, **kwargs: Any) -> Any:
        one = patches[: int(grid_thw[0].prod())]
        name = float(one.float().sum())
        if name not in kept:
            kept.clear()
            kept[name] = type(visual).forward(visual, one, grid_thw=grid_thw[:1], **kwargs)  # as it is timed
        return type(kept[name])(**{key: each.repeat(len(grid_thw), 1) for key, each in kept[name].items()})

    return call


def run_stock(task: Task, checkpointing: bool, keep: bool = False) -> Found:
    """A step by stock TRL, or by stock TRL that keeps the features of its clips."""
    policy = task.policy()
    if keep:
        visual = policy.base.model.visual
        visual.forward = keeping(visual)
    clock = Clock(task.device)
    asked = {moment.qid: moment for moment in task.moments}

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip((asked[qid] for qid in prompts), completions, strict=True)
        return [score_chain(parse(text), m.windows, m.duration, RewardSpec()).total for m, text in pairs]

    class Tell(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                clock.end_step()

    limits = {"suppress_tokens": policy.suppress_tokens}
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=task.group, num_generations=task.group,
            max_completion_length=task.tokens, generation_kwargs=limits, beta=0.0, learning_rate=1e-6,
            **{checkpointing_argument(): checkpointing}, bf16=policy.base.dtype == torch.bfloat16,
            use_cpu=task.device == "cpu", save_strategy="no", report_to=[], logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = StockOnVideos(
            policy, task, model=policy.model, processing_class=policy.tokenizer, reward_funcs=[reward],
            args=arguments, train_dataset=Dataset.from_dict({"prompt": list(asked)}), callbacks=[Tell()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with clock.watching(policy, (trainer, "_generate"), trainer=StockOnVideos):
            trainer.train()
    return clock.found(flops(policy, task, task.group))


def run_ours(task: Task, checkpointing: bool) -> Found:
    """The same step by labkit."""
    policy = task.policy()
    clock = Clock(task.device)
    source = PromptSource(policy, task.moments, template="query", sampling=task.sampling, cache=task.frames)  # type: ignore[arg-type]
    params = Params(
        run="benchmark", grpo_steps=STEPS, stop_anchor_rate=1.0, stop_progress=1.0, prompts_per_step=1,
        group_size=task.group, learning_rate=1e-6, temperature=1.0, beta=0.0, max_new_tokens=task.tokens,
        save_steps=STEPS + 1, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        clock.watching(policy, (vllm_generation, "generate"), trainer=grpo.trainer_class()),
        patch.object(grpo, "finish_stage"),  # a model of noise is not worth writing
    ):
        grpo.train_grpo(
            policy, source, task.moments, spec=RewardSpec(), params=params, stage="grpo", folder=Path(folder),
            on_step=clock.end_step,
        )  # fmt: skip
    return clock.found(flops(policy, task, 1))


def attempted(way: Callable[..., Found], task: Task, checkpointing: bool) -> Found | None:
    """None when the GPU's memory does not suffice."""
    try:
        return way(task, checkpointing)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if task.device == "cuda":
            torch.cuda.empty_cache()


def compare(title: str, task: Task, checkpointing: bool) -> None:
    """Print both ways."""
    ours = attempted(run_ours, task, checkpointing)
    baselines = {"stock TRL": run_stock, "features kept": functools.partial(run_stock, keep=True)}
    found = {name: attempted(way, task, checkpointing) for name, way in baselines.items()}
    print(f"\n{title}, gradient checkpointing {'on' if checkpointing else 'off'}")
    for name, way in {**found, "labkit": ours}.items():
        if way is None:
            print(f"{name}: out of memory")
    if ours is None:
        return
    nothing = Found(dict.fromkeys(PARTS, math.nan), math.nan, math.nan, math.nan)
    ways = [ours, *(way or nothing for way in found.values())]
    print(f"{'part':<26}{'labkit':>12}" + "".join(f"{name:>16}{'ratio':>8}" for name in found))
    rows = {f"{part}, s": [way.parts[part] for way in ways] for part in PARTS}
    rows["to first token, s"] = [way.parts["vision"] + way.parts["prefill"] for way in ways]
    rows["whole step, s"] = [sum(way.parts.values()) for way in ways]
    rows["kept for backward, GB"] = [way.kept for way in ways]
    rows["decoding, s/1,000 tokens"] = [1000 * way.parts["decoding"] / (task.group * task.tokens) for way in ways]
    if task.device == "cuda":
        rows["peak memory, GB"] = [way.peak for way in ways]
        rows["policy update, 1 / MFU"] = [way.parts["policy"] * PEAK_FLOPS / way.flops for way in ways]
    for part, (mine, *others) in rows.items():
        print(f"{part:<26}{mine:>12.3f}" + "".join(
            f"{his:>16.3f}" + (f"{his / mine:>7.1f}x" if mine > 5e-4 and his > 0 else f"{'-':>8}") for his in others
        ))  # fmt: skip
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=list(SIDES), default="tiny", help="a model of six layers, or Qwen2.5-VL-3B's shape"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[480, 1600], help="video tokens of a prompt")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--new", type=int, default=100, help="tokens of each completion")
    parser.add_argument("--checkpointing", choices=["on", "off", "both"], default="on", help="on is TRL's default")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL uses transformers' old names
    transformers_logging.disable_progress_bar()
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers, trl))
    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()}, one thread"
    print(f"{machine}, {versions}")
    torch.set_num_threads(1)
    for video_tokens in options.tokens:
        dtype = getattr(torch, options.dtype)
        task = made_task(options.shape, options.device, dtype, video_tokens, options.group, options.new, STEPS)
        title = f"{options.shape}, {options.dtype}, {video_tokens} video tokens, G = {options.group}, {options.new} new tokens"
        for checkpointing in {"on": [True], "off": [False], "both": [True, False]}[options.checkpointing]:
            compare(title, task, checkpointing)


if __name__ == "__main__":
    main()
