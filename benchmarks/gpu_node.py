"""What a GPU is to be asked first, in one go and within 15 minutes of an H200: each part in a process of its own with its time limit.

What fails is told and the next part goes on. Results are written as JSON, and as a table that can be put into RESULTS.md.

    python benchmarks/gpu_node.py --out $OUT
    OMP_NUM_THREADS=1 python benchmarks/gpu_node.py --reduced --out /tmp/gpu_node    # on a CPU, in minutes: that it runs

Seconds are wall time with a GPU that was waited for, processor time on a CPU; weights are random, clips are noise.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

LIMITS = {"step": 260, "lora": 130, "fsdp2": 120, "vllm": 120, "rehearsal": 110}
"""Seconds of each part, in the order in which they are asked: 740 in all."""
RANK = 64
"""Of the adapter."""


class Bench:
    """The shape that is measured, on a GPU or reduced."""

    def __init__(self, reduced: bool) -> None:
        """Nothing is loaded yet."""
        self.reduced, self.device, self.new = (True, "cpu", 6) if reduced else (False, "cuda", 256)

    @functools.cached_property
    def task(self) -> Any:
        """What is measured, for the parts that ask for it."""
        import torch

        from benchmarks.noise import made_task

        if not self.reduced:
            return made_task("3b", self.device, torch.bfloat16, 4000, 8, self.new, 3)
        torch.set_num_threads(1)
        return made_task("tiny", self.device, torch.float32, 64, 8, self.new, 3)

    def prompts(self, policy: Any) -> list[Any]:
        """One prompt."""
        from labkit.policy.prompt_source import PromptSource

        task = self.task
        source = PromptSource(policy, task.moments, template="query", sampling=task.sampling, cache=task.frames)  # type: ignore[arg-type]
        return [source[task.moments[0].qid]]

    def now(self) -> float:
        """Seconds."""
        import torch

        if self.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def token(self, policy: Any, prompts: list[Any]) -> dict[str, float]:
        """Milliseconds of one more token of the group, and kernels (on a CPU: operations) of a layer for it."""
        from labkit.policy.generate import generate

        def seconds(length: int) -> float:
            begin = self.now()
            generate(policy, prompts, self.task.group, max_new_tokens=length, seed=1)
            return self.now() - begin

        seconds(self.new)  # compiles
        each = 1000 * (min(seconds(self.new) for _ in range(2)) - min(seconds(1) for _ in range(2))) / (self.new - 1)
        return {"ms a token": each, "kernels a layer": self.kernels(policy, prompts)}

    def kernels(self, policy: Any, prompts: list[Any]) -> float:
        """Of one step without a graph, over the number of layers: those of the head and the choice of tokens are in it."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        from labkit.policy import generate as module
        from labkit.policy.adapters import merged

        choice = module._TokenChoice(policy, [each for each in prompts for _ in range(self.task.group)], 1.0, None, "")
        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self.device == "cuda" else [])
        model = policy.model if policy.merge else torch.nn.Module()  # in which there is nothing to merge
        with torch.no_grad(), merged(model):
            loop = module._DecodeLoop(policy, prompts, self.task.group, self.new, choice)
            loop._decode_step(self.new)
            with profile(activities=kinds) as seen:
                loop._decode_step(self.new)
        events = seen.events() or []
        wanted = torch.autograd.DeviceType.CUDA if self.device == "cuda" else torch.autograd.DeviceType.CPU
        leaves = [each for each in events if each.device_type == wanted and not each.cpu_children]
        return len(leaves) / len(policy.base.get_decoder().layers)


def step(bench: Bench) -> dict[str, Any]:
    """A step of GRPO by parts, decoded by transformers' layers and by the fused pass; and whether both write the same."""
    from benchmarks.grpo_step import run_ours
    from labkit.policy.generate import generate

    found: dict[str, Any] = {}
    policy, chains = bench.task.policy(), []
    for name, fused in (("transformers' layers", False), ("fused", True)):
        each = replace(policy, fused=fused)
        prompts = bench.prompts(each)
        chains.append(generate(each, prompts, 1, max_new_tokens=bench.new, greedy=True)[0].ids)
        figures = bench.token(each, prompts)
        done = run_ours(bench.task._replace(policy=lambda each=each: each), True)
        found[name] = {**figures, **done.parts, "whole step": sum(done.parts.values()), "peak memory, GB": done.peak}
        gc.collect()
    same = next((at for at, pair in enumerate(zip(*chains, strict=True)) if pair[0] != pair[1]), bench.new)
    found["greedy tokens alike from the first on"] = f"{same} of {bench.new}"
    return found


def lora(bench: Bench) -> dict[str, Any]:
    """Decoding with an adapter: as PEFT computes it, merged, and merged and fused."""
    import torch

    from labkit.policy.adapters import add_lora
    from labkit.policy.model import ignore_renames

    plain = bench.task.policy()
    prompts = bench.prompts(plain)
    with ignore_renames():
        policy = replace(plain, model=add_lora(plain.model, RANK, 2 * RANK, 0))
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    ways = {"adapter apart": (False, False), "merged": (True, False), "merged, fused": (True, True)}
    return {name: bench.token(replace(policy, merge=m, fused=f), prompts) for name, (m, f) in ways.items()}


def fsdp2(bench: Bench) -> dict[str, Any]:
    """Sampling, a pass and an update of a model that FSDP2 shards over one process; how many CUDA graphs were recorded."""
    import torch
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from labkit.policy import generate as module
    from labkit.policy.packed_logprobs import pack_shared_prefix
    from labkit.stages.sharding import summon_full_params

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        backend = "gloo" if bench.device == "cpu" else "nccl"
        init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
        policy = bench.task.policy()
        prompts, kind, model = bench.prompts(policy), policy.base.dtype, policy.model
        tower = {weight for each in policy.towers for weight in each.parameters()}
        model.get_decoder().float()  # as accelerate keeps what is trained
        options = {"mesh": init_device_mesh(bench.device, (1,)), "mp_policy": MixedPrecisionPolicy(param_dtype=kind)}
        for layer in model.get_decoder().layers:
            fully_shard(layer, **options)
        fully_shard(model, ignored_params=tower, **options)
        recorded, record = [], module._DecodeLoop._capture_graph

        def counted(loop: Any, width: int) -> Any:
            recorded.append(width)
            return record(loop, width)

        with patch.object(module._DecodeLoop, "_capture_graph", counted):
            for name in ("sampling, first", "sampling"):
                begin = bench.now()
                with summon_full_params(model):
                    chains = module.generate(policy, prompts, bench.task.group, max_new_tokens=bench.new, seed=1)
                found[f"{name}, s"] = bench.now() - begin
        begin = bench.now()
        ids = torch.tensor([each.ids for each in chains], device=policy.device)
        packed = pack_shared_prefix(prompts, ids, torch.ones_like(ids), [len(ids)])
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
        packed.log_probs(model)[0].mean().neg().backward()
        optimizer.step()
        found |= {"pass and update, s": bench.now() - begin, "graphs recorded": len(recorded)}
        if bench.device == "cuda":
            found["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
        destroy_process_group()
    return found


def vllm(bench: Bench) -> dict[str, Any]:
    """Whether vLLM loads a small model as labkit saves it, and continues a text greedily as labkit does."""
    if find_spec("vllm") is None:
        return {"left out": "vllm is not installed here"}
    import torch
    from vllm import LLM, SamplingParams

    from labkit.policy.model import Policy, save_policy
    from tests import tiny

    made = tiny.policy(hidden=256, layers=2)
    prompt = made.tokenizer("When does the square reach the right border?")["input_ids"]
    with torch.no_grad():
        theirs = made.model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None)
    with tempfile.TemporaryDirectory() as folder:
        save_policy(Policy(made.model, made.tokenizer, "tiny"), Path(folder) / "model")
        engine = LLM(
            f"{folder}/model", dtype="float32", max_model_len=512, gpu_memory_utilization=0.2, enforce_eager=True,
            limit_mm_per_prompt={"image": 0, "video": 0},
        )  # fmt: skip
        options = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)
        (answer,) = engine.generate([{"prompt_token_ids": prompt}], options, use_tqdm=False)
    same = sum(a == b for a, b in zip(answer.outputs[0].token_ids, theirs[0, len(prompt) :].tolist(), strict=True))
    return {"greedy tokens alike": f"{same} of 16"}


def rehearsal(bench: Bench) -> dict[str, Any]:
    """Every stage for one step with Qwen2.5-VL's own vocabulary, as `labkit doctor --rehearse` does it."""
    if find_spec("dashscope") is None:
        return {"left out": "dashscope, which has the true vocabulary, is not installed here"}
    from labkit.chain.spans import Span
    from labkit.data.moments import Moment, write_moments
    from labkit.doctor.checks import examine
    from labkit.params import read_params
    from tests.data.films import film
    from tests.true_vocabulary import write_folder

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        path = film(root / "film.mp4", range(0, 12_000 if bench.reduced else 36_000, 100))
        windows = [Span(1.0 + k, 4.0 + k) for k in range(6)]
        asked = [
            Moment(f"film-{k}", str(path), "a person opens the door", (window,), 12.0 if bench.reduced else 35.0)
            for k, window in enumerate(windows)
        ]
        for split in ("train", "validation", "test"):
            write_moments(asked, root / "data" / f"{split}.jsonl")
        few: dict[str, Any] = {
            "prompts_per_step": 2, "group_size": 2, "harvest_samples": 2, "sft_batch": 2, "eval_batch": 2, "probe_queries": 0,
            "threads": 1, "readers": 0, "model": str(write_folder(root / "3b")), "data": str(root / "data"),
            "outputs": str(root / "outputs"), **({"dtype": "float32"} if bench.reduced else {}),
        }  # fmt: skip
        report = examine(read_params("params/qwen2.5-vl-3b-lora.yaml", few), quick=True, rehearsed=True)
    stages = {each["stage"]: f"{each['seconds']:.1f} s" for each in report.data["rehearsal"]}
    return stages | {"findings": [str(each) for each in report.findings if each.kind == "rehearsal"]}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "step": step, "lora": lora, "fsdp2": fsdp2, "vllm": vllm, "rehearsal": rehearsal,
}  # fmt: skip


def ask(part: str, reduced: bool, file: Path) -> dict[str, Any]:
    """What a part found in its own process, or how it ended without an answer."""
    command = [sys.executable, __file__, "--part", part, "--out", str(file), *(["--reduced"] if reduced else [])]
    begin = time.monotonic()
    try:
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=LIMITS[part] * (4 if reduced else 1))
        failed = "" if done.returncode == 0 else f"ended with {done.returncode}: {done.stderr[-1500:]}"
    except subprocess.TimeoutExpired:
        failed = f"ran past its limit of {LIMITS[part]} s"
    found: dict[str, Any] = {"failed": failed} if failed else json.loads(file.read_text(encoding="utf-8"))
    return {**found, "wall, s": round(time.monotonic() - begin, 1)}


def table(results: dict[str, Any]) -> str:
    """All figures as Markdown."""
    lines = ["| part | figure | value |", "|---|---|---|"]
    for part, found in results.items():
        for name, value in found.items():
            rows = value.items() if isinstance(value, dict) else [("", value)]
            for inner, figure in rows:
                text = f"{figure:,.3f}" if isinstance(figure, float) else " ".join(str(figure).split())
                lines.append(f"| {part} | {name}{': ' if inner else ''}{inner} | {text.replace('|', '/')} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduced", action="store_true", help="a tiny model on the CPU: that the script runs")
    parser.add_argument("--out", type=Path, default=Path("gpu_node"), help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts alone")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:  # the process of one part
        warnings.filterwarnings("ignore", category=FutureWarning)  # TRL uses transformers' old names
        os.chdir(Path(__file__).parents[1])
        found = PARTS[options.part](Bench(options.reduced))
        options.out.write_text(json.dumps(found), encoding="utf-8")
        return
    import torch

    if not options.reduced and not torch.cuda.is_available():
        parser.error("there is no GPU here; --reduced runs the same parts on a CPU in a small shape")
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out.resolve()
    results: dict[str, Any] = {"machine": {
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none", "torch": torch.__version__
    }}  # fmt: skip
    for part in options.only:
        results[part] = ask(part, options.reduced, folder / f"{part}.json")
        # After each: what has been measured is there, whatever becomes of the rest.
        (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (folder / "results.md").write_text(table(results) + "\n", encoding="utf-8")
        print(f"{part}: {results[part]}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
