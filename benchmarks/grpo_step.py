"""One GRPO step, ours against stock TRL's way, on the same model and clips in one process.

Stock's way is what `GRPOTrainer` does for images and would have to do for videos, which it drops: pixels, prompt and policy pass
repeated for each member of a group. It runs here inside our trainer, through the two functions that differ, so that rewards,
loss and optimizer are the same. Every completion has the same length in both.

    python benchmarks/grpo_step.py
"""

from __future__ import annotations

import argparse
import collections
import functools
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import trl

from labkit.chain.rewards import RewardSpec
from labkit.data.video import FrameCache
from labkit.data.world import write_world
from labkit.policy import generate as generation
from labkit.policy.inputs import Prompt, PromptSource, Sampling, left_pad, read_clip
from labkit.policy.model import Policy, load_policy
from labkit.policy.packed import pack
from labkit.stages import grpo

SIZES = {
    "default: 2 fps, 56 pixels": Sampling(2.0, 32, 56 * 56, 56 * 56),
    "long: 4 fps, 112 pixels": Sampling(4.0, 64, 112 * 112, 112 * 112),
}
PARTS = ("vision", "generation", "policy forward", "policy backward", "rest")


class Endless(Policy):
    """A policy whose answers all run to the token limit, so that both ways write as much."""

    eos_ids = ()


class Clock:
    """Seconds by part; a part inside another counts for itself alone."""

    def __init__(self, device: str) -> None:
        """The clock runs from here."""
        self.cuda = device == "cuda"
        self.seconds: collections.Counter[str] = collections.Counter()
        self.stack: list[str] = []
        self.since = self.now()

    def now(self) -> float:
        """Seconds since some moment; on a GPU, after all its work."""
        if not self.cuda:
            return time.process_time()  # other processes on the machine do not count
        torch.cuda.synchronize()
        return time.perf_counter()

    def switch(self) -> None:
        """Give the time since the last switch to the part under way."""
        now = self.now()
        self.seconds[self.stack[-1] if self.stack else "rest"] += now - self.since
        self.since = now

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, its time counted for `part`."""

        @functools.wraps(function)  # transformers reads the signature of what it calls
        def call(*args: Any, **options: Any) -> Any:
            self.switch()
            self.stack.append(part)
            try:
                return function(*args, **options)
            finally:
                self.switch()
                self.stack.pop()

        return call


class Repeated(NamedTuple):
    """The policy pass of stock's way: prompt and pixels once for each member of a group."""

    inputs: dict[str, Any]
    completions: torch.Tensor
    mask: torch.Tensor

    def log_probs(self, model: Any, temperature: float = 1.0, entropy: bool = False) -> tuple[Any, Any]:
        """As `Packed.log_probs`."""
        length = self.completions.shape[1]
        logits = model(**self.inputs, use_cache=False, logits_to_keep=length + 1).logits[:, :-1].float() / temperature
        table = logits.log_softmax(-1)
        picked = table.gather(2, self.completions[..., None])[..., 0] * self.mask
        flat = table.detach()
        return picked, -(flat.exp() * flat).sum(-1) * self.mask


class StockWay:
    """What replaces `generate` and `pack`; `clips` holds the pixels by qid."""

    def __init__(self, clips: dict[str, Any], device: torch.device) -> None:
        """Nothing is computed yet."""
        self.clips, self.device = clips, device

    def rows(self, prompts: Sequence[Prompt], sizes: Sequence[int], pad: int) -> dict[str, Any]:
        """Model inputs of the prompts, each repeated for its group, pixels included."""
        each = [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
        return {
            "input_ids": left_pad([p.ids for p in each], pad).to(self.device),
            "attention_mask": left_pad([torch.ones_like(p.ids) for p in each], 0).to(self.device),
            "position_ids": left_pad([p.positions for p in each], 0).to(self.device),
            "pixel_values_videos": torch.cat([self.clips[p.qid].patches for p in each]).to(self.device),
            "video_grid_thw": torch.tensor([p.grid for p in each], device=self.device),
        }

    def generate(self, policy: Policy, prompts: Sequence[Prompt], num: int, **options: Any) -> list[Any]:
        """As `labkit.policy.generate.generate`, by transformers' own."""
        torch.manual_seed(options["seed"])
        rows = self.rows(prompts, [num] * len(prompts), policy.pad_id)
        length = options["max_new_tokens"]
        policy.model.eval()
        with torch.no_grad():
            written = policy.model.generate(
                **rows, max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0,
                temperature=options["temperature"], suppress_tokens=policy.never_written, pad_token_id=policy.pad_id,
            )[:, rows["input_ids"].shape[1] :]  # fmt: skip
        policy.model.train()
        return [generation.Completion(ids, policy.tokenizer.decode(ids), False) for ids in written.tolist()]

    def pack(
        self, prompts: Sequence[Prompt], completions: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
    ) -> Repeated:
        """As `labkit.policy.packed.pack`."""
        rows = self.rows(prompts, sizes, 0)
        steps = 1 + torch.arange(completions.shape[1], device=self.device)
        rows["position_ids"] = torch.cat([rows["position_ids"], rows["position_ids"][..., -1:] + steps], -1)
        rows["input_ids"] = torch.cat([rows["input_ids"], completions], 1)
        rows["attention_mask"] = torch.cat([rows["attention_mask"], mask], 1)
        return Repeated(rows, completions, mask)


def measure(way: str, world: Any, sampling: Sampling, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Mean seconds a step by part, the first step left out."""
    loaded = load_policy("embedded", device=args.device)
    policy = Endless(loaded.model, loaded.tokenizer, loaded.name)
    clock = Clock(policy.device.type)
    cache = FrameCache(folder / "frames")
    # Decoding is the same for both ways and cached: pixels are at hand before the clock starts.
    clips = {moment.qid: read_clip(policy, moment, cache, sampling) for moment in world}

    tower = policy.base.model
    tower.get_video_features = clock.timed("vision", tower.get_video_features)
    stock = StockWay(clips, policy.device)

    class Source(PromptSource):
        """Nothing is kept from one step to the next: a real split is seldom seen twice."""

        def __getitem__(self, qid: str) -> Prompt:
            if len(self._prompts) >= args.prompts:
                self._prompts.clear()
                self._clips.clear()
            return super().__getitem__(qid)

    source = Source(policy, world, template="query", sampling=sampling, cache=cache)
    if way == "stock":
        # The features that our prompts carry are not used, so they must not be paid for.
        source = {qid: source[qid] for qid in source}
    steps: list[collections.Counter[str]] = []

    def on_step(row: dict[str, Any]) -> None:
        clock.switch()
        steps.append(clock.seconds)
        clock.seconds = collections.Counter()

    settings = grpo.GrpoSettings(
        steps=args.steps + 1, prompts_per_step=args.prompts, group_size=args.group, learning_rate=1e-5,
        temperature=1.0, beta=0.0, max_new_tokens=args.tokens, save_steps=10_000, seed=0,
        prompts_per_pass=args.prompts_per_pass, gradient_checkpointing=args.checkpointing,
    )  # fmt: skip
    real = grpo.generate, grpo.pack
    trainer = grpo.trainer_class()
    methods = trainer._get_per_token_logps_and_entropies, trainer.create_accelerator_and_postprocess
    create = trainer.create_accelerator_and_postprocess

    def with_timed_backward(self: Any) -> None:
        create(self)
        self.accelerator.backward = clock.timed("policy backward", self.accelerator.backward)

    try:
        grpo.generate = clock.timed("generation", generation.generate if way == "ours" else stock.generate)
        grpo.pack = pack if way == "ours" else stock.pack
        trainer._get_per_token_logps_and_entropies = clock.timed("policy forward", methods[0])
        trainer.create_accelerator_and_postprocess = with_timed_backward
        clock.since = clock.now()
        grpo.train_grpo(
            policy, source, world, spec=RewardSpec(), settings=settings, folder=folder / way, run="benchmark",
            stage="grpo", on_step=on_step,
        )  # fmt: skip
    finally:
        grpo.generate, grpo.pack = real
        trainer._get_per_token_logps_and_entropies, trainer.create_accelerator_and_postprocess = methods
    return {part: sum(step[part] for step in steps[1:]) / (len(steps) - 1) for part in PARTS}


def largest_difference(world: Any, sampling: Sampling, args: argparse.Namespace, folder: Path) -> float:
    """Of the log-probs that the two ways give to the same completions."""
    policy = load_policy("embedded", device=args.device)
    source = PromptSource(policy, world, template="query", sampling=sampling, cache=FrameCache(folder / "frames"))
    clips = {moment.qid: read_clip(policy, moment, source.cache, sampling) for moment in world}
    prompts = [source[moment.qid] for moment in world[:2]]
    written = generation.generate(policy, prompts, 3, max_new_tokens=args.tokens)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(c.ids) for c in written], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(c.ids) for c in written])[:, None]
    both = ids.to(policy.device), mask.to(policy.device)
    with torch.no_grad():
        ours, _ = pack(prompts, *both, [3, 3]).log_probs(policy.model)
        stock, _ = StockWay(clips, policy.device).pack(prompts, *both, [3, 3]).log_probs(policy.model)
    return float((ours - stock).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", type=int, default=8, help="rollouts of one query")
    parser.add_argument("--prompts", type=int, default=4, help="queries of one step")
    parser.add_argument("--prompts-per-pass", type=int, default=1, help="queries of one forward and backward pass")
    parser.add_argument("--tokens", type=int, default=48, help="length of every completion")
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that is not")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, TRL's default")
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.simplefilter("ignore", FutureWarning)  # TRL and transformers about each other

    print(
        f"GRPO step, {args.prompts} queries x {args.group} rollouts of {args.tokens} tokens, embedded model, {args.device}, "
        f"{'with' if args.checkpointing else 'no'} activation checkpointing"
    )
    print(
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, trl {trl.__version__}"
    )
    unit = "seconds a step" if args.device == "cuda" else "CPU seconds a step, one thread"
    with tempfile.TemporaryDirectory() as temporary:
        world = write_world(Path(temporary) / "world", 6, 1, 1)["train"]
        for number, (name, sampling) in enumerate(SIZES.items()):
            folder = Path(temporary) / str(number)
            apart = largest_difference(world, sampling, args, folder)
            ways = {way: measure(way, world, sampling, args, folder) for way in ("stock", "ours")}
            totals = {way: sum(parts.values()) for way, parts in ways.items()}
            print(f"\n{name}; log-probs differ by {apart:.1e} at most; {unit}")
            print(f"{'part':16} {'stock':>8} {'share':>7} {'ours':>8} {'share':>7} {'ratio':>7}")
            for part in PARTS:
                row = [(ways[way][part], ways[way][part] / totals[way]) for way in ways]
                ratio = row[0][0] / row[1][0]
                print(f"{part:16} {row[0][0]:8.3f} {row[0][1]:7.1%} {row[1][0]:8.3f} {row[1][1]:7.1%} {ratio:6.1f}x")
            print(
                f"{'whole step':16} {totals['stock']:8.3f} {1:7.1%} {totals['ours']:8.3f} {1:7.1%} "
                f"{totals['stock'] / totals['ours']:6.1f}x"
            )


if __name__ == "__main__":
    main()
