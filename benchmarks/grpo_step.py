"""One step of GRPO, stock TRL's way and labkit's, on the same model, clips and lengths, in one process.

Stock TRL reads the prompt once for each member of a group: its vision tower, prefill and policy pass all see G copies of
the video. labkit reads it once. Seconds are CPU seconds of this process, means over the steps after a first one that warms
up; decoding of frames is done before. Run from the project's root:

    OMP_NUM_THREADS=1 python benchmarks/grpo_step.py
"""

from __future__ import annotations

import argparse
import functools
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
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import FrameCache
from labkit.data.world import write_world
from labkit.params import Params
from labkit.policy.inputs import Sampling, build_prompt, read_clip
from labkit.policy.model import Policy, load_policy
from labkit.policy.sources import PromptSource
from labkit.stages import grpo

STEPS = 4
"""The first one warms up and is not counted."""
PARTS = ("vision", "prefill", "decoding", "vision again", "reference", "policy", "other")
"""`vision again` is for the log-probs; `reference` the pass that KL is taken against; `policy` forward and backward."""
TOKENS_PER_PAIR = 16
"""Video tokens of two frames of 112 x 112 pixels."""


class Task(NamedTuple):
    """What both ways do."""

    policy: Callable[[], Policy]
    moments: list[Moment]
    sampling: Sampling
    frames: Path
    prompts: int
    group: int
    tokens: int
    beta: float


class Endless(Policy):
    """A policy that never ends an answer, so that both ways write as many tokens."""

    @property
    def never_written(self) -> list[int]:
        """The end of an answer too."""
        return sorted({*super().never_written, *self.eos_ids})


class Clock:
    """CPU seconds by part of a step; a part that runs inside another counts as itself alone."""

    def __init__(self) -> None:
        """It runs from now on."""
        self.steps: list[Counter[str]] = [Counter()]
        self.inside = ["other"]
        self.since = time.process_time()

    def switch(self) -> None:
        """Book the time since the last switch."""
        now = time.process_time()
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
            return "vision again" if self.inside[-1] in ("policy", "reference") else "vision"

        def log_probs_of(_: Any) -> str:
            return "policy" if self.inside[-1] == "policy" else "reference"

        with ExitStack() as stack:
            for owner, name, part in [
                (type(backbone.visual), "forward", vision_of),
                (type(backbone), "forward", pass_of),
                (trainer, "_compute_loss", lambda _: "policy"),
                (trainer, "_get_per_token_logps_and_entropies", log_probs_of),
                (Accelerator, "backward", lambda _: "policy"),
                *((owner, name, lambda _: "decoding") for owner, name in rollouts),
            ]:
                stack.enter_context(patch.object(owner, name, self.timed(getattr(owner, name), part)))
            yield

    def mean(self) -> dict[str, float]:
        """Seconds of each part, the mean over the steps that count."""
        counted = self.steps[1:STEPS]
        return {part: sum(step[part] for step in counted) / len(counted) for part in PARTS}


class StockOnVideos(GRPOTrainer):
    """Stock TRL with the video put where stock TRL leaves it out: into generation's inputs and the log-prob pass."""

    def __init__(self, policy: Policy, task: Task, **kwargs: Any) -> None:
        """Every clip's pixels are held ready."""
        cache = FrameCache(task.frames)
        self.policy, self.asked = policy, []
        self.clips = {m.qid: read_clip(policy, m, cache, task.sampling) for m in task.moments}
        self.ids = {m.qid: build_prompt(policy, m, "query", self.clips[m.qid]).ids.tolist() for m in task.moments}
        super().__init__(**kwargs)
        for model in filter(None, (policy.base, self.ref_model)):
            model.model.register_forward_pre_hook(self.add_video, with_kwargs=True)
        self.rows: Sequence[int] = ()

    def videos(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The pixels of these rows' videos, once for each row."""
        clips = [self.clips[self.asked[row]] for row in rows]
        return {
            "pixel_values_videos": torch.cat([clip.patches for clip in clips]),
            "video_grid_thw": torch.tensor([clip.grid for clip in clips]),
            "second_per_grid_ts": torch.tensor([clip.seconds_per_grid for clip in clips]),
        }

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


def run_stock(task: Task, checkpointing: bool) -> dict[str, float]:
    """Seconds of each part."""
    policy, clock = task.policy(), Clock()
    asked = {moment.qid: moment for moment in task.moments}
    rows = task.prompts * task.group

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        pairs = zip((asked[qid] for qid in prompts), completions, strict=True)
        return [score_chain(parse(text), m.windows, m.duration, RewardSpec()).total for m, text in pairs]

    class Tell(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" in logs:
                clock.end_step()

    limits = {"suppress_tokens": policy.never_written}
    with tempfile.TemporaryDirectory() as folder:
        arguments = GRPOConfig(
            output_dir=folder, max_steps=STEPS, per_device_train_batch_size=rows, num_generations=task.group,
            max_completion_length=task.tokens, generation_kwargs=limits, beta=task.beta, learning_rate=1e-5,
            activation_checkpointing=checkpointing, bf16=False, use_cpu=True, save_strategy="no", report_to=[],
            logging_steps=1, disable_tqdm=True,
        )  # fmt: skip
        trainer = StockOnVideos(
            policy, task, model=policy.model, processing_class=policy.tokenizer, reward_funcs=[reward],
            args=arguments, train_dataset=Dataset.from_dict({"prompt": list(asked)}), callbacks=[Tell()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        with clock.watching(policy, (trainer, "_generate"), trainer=StockOnVideos):
            trainer.train()
    return clock.mean()


def run_ours(task: Task, checkpointing: bool) -> dict[str, float]:
    """Seconds of each part."""
    policy, clock = task.policy(), Clock()
    source = PromptSource(
        policy, task.moments, template="query", sampling=task.sampling, cache=FrameCache(task.frames)
    )
    settings = grpo.GrpoSettings(
        steps=STEPS, prompts_per_step=task.prompts, group_size=task.group, learning_rate=1e-5, temperature=1.0, beta=task.beta,
        max_new_tokens=task.tokens, save_steps=STEPS + 1, seed=0, gradient_checkpointing=checkpointing,
    )  # fmt: skip
    with (
        tempfile.TemporaryDirectory() as folder,
        clock.watching(policy, (grpo, "generate"), trainer=grpo.trainer_class()),
    ):
        grpo.train_grpo(
            policy, source, task.moments, spec=RewardSpec(), settings=settings, folder=Path(folder), run="benchmark",
            stage="grpo", on_step=clock.end_step,
        )  # fmt: skip
    return clock.mean()


def compare(title: str, task: Task) -> None:
    """Print both ways, without and with gradient checkpointing."""
    for checkpointing in (False, True):
        stock, ours = run_stock(task, checkpointing), run_ours(task, checkpointing)
        whole = sum(stock.values()), sum(ours.values())
        print(f"\n{title}, gradient checkpointing {'on' if checkpointing else 'off'}")
        print(f"{'part':<22}{'stock TRL s':>12}{'share':>8}{'labkit s':>12}{'share':>8}{'ratio':>8}")
        rows = [(part, stock[part], ours[part]) for part in PARTS]
        rows.append(("to first token", *(way["vision"] + way["prefill"] for way in (stock, ours))))
        rows.append(("whole step", *whole))
        for part, theirs, mine in rows:
            shares = theirs / whole[0], mine / whole[1]
            ratio = f"{theirs / mine:>7.1f}x" if mine > 5e-4 else f"{'-':>8}"
            print(f"{part:<22}{theirs:>12.3f}{shares[0]:>8.0%}{mine:>12.3f}{shares[1]:>8.0%}{ratio}")


def tiny_task(folder: Path, video_tokens: int, group: int) -> Task:
    """One query about one random clip a step, and a random model of six layers."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests import tiny

    pairs = max(1, round(video_tokens / TOKENS_PER_PAIR))
    seconds, frames = pairs / 2, 2 * pairs
    moments = []
    folder.mkdir()
    for number in range(STEPS):  # a clip of its own for each step: no features are left over from the step before
        video = tiny.write_clip(folder / f"{number}.mp4", seconds=seconds, size=112, seed=number)
        query = "the square reaches the right border"
        moments.append(Moment(f"q{number}", str(video), query, (Span(0.0, seconds / 2),), seconds))

    def policy() -> Policy:
        plain = tiny.policy(hidden=256, layers=6, vision_depth=6)
        return Endless(plain.model, plain.tokenizer, plain.name)

    return Task(policy, moments, Sampling(4.0, frames, 112**2, 112**2), folder / "frames", 1, group, 100, 0.0)


def embedded_task(folder: Path) -> Task:
    """The embedded lab's own step, by its own defaults."""
    p = Params()
    moments = write_world(folder, STEPS * p.prompts_per_step // 3, 1, 1)["train"]
    sampling = Sampling(p.fps, p.max_frames, p.min_pixels, p.max_pixels)
    policy = functools.partial(load_policy, "embedded", device="cpu")
    frames = folder / "frames"
    return Task(policy, moments, sampling, frames, p.prompts_per_step, p.group_size, p.max_new_tokens, p.beta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=480, help="video tokens of a prompt (default: %(default)s)")
    parser.add_argument("--group", type=int, default=8, help="completions of a prompt (default: %(default)s)")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # TRL uses transformers' old names
    transformers_logging.disable_progress_bar()
    versions = ", ".join(f"{package.__name__} {package.__version__}" for package in (torch, transformers, trl))
    print(f"{platform.machine()}, one thread, {versions}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        task = tiny_task(Path(name) / "tiny", options.tokens, options.group)
        compare(
            f"tiny model, about {options.tokens} video tokens, G = {options.group}, {task.tokens} new tokens", task
        )
        task = embedded_task(Path(name) / "world")
        compare(f"embedded model, {task.prompts} prompts, G = {task.group}, up to {task.tokens} new tokens", task)


if __name__ == "__main__":
    main()
