"""A harvest at scale: the filter of 30,000 traces, and whether two processes harvest what one does.

    OMP_NUM_THREADS=1 python benchmarks/harvest.py [--traces 30000] [--prompts 3000] [--processes 2]

Traces are made up: four anchors and a hundred words each, as a large model writes them; they are filtered in a process of their
own, whose memory is the whole of it. The harvest is real: chains of the embedded model, two of each prompt, 12 tokens long,
by processes that know nothing of each other.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from labkit.chain.anchors import parse, render
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.harvest import filter_traces, harvest, merge_shards
from labkit.stages.rollouts import Rollout, RolloutStore

GROUP, SAMPLES = 8, 2
TRUTH = Span(10.0, 20.0)
WORDS = (
    "the person walks to a door and opens it slowly while light falls into room before that nothing happens".split()
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=30_000)
    parser.add_argument("--prompts", type=int, default=3_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, *rest = options.child
        print(json.dumps({"filter": filter_all, "shard": one_shard}[what](*rest)))
        return
    import pyarrow
    import torch

    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, pyarrow {pyarrow.__version__}, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_up(options.traces, folder / "made-up")
        for run in ("first", "second"):
            found = ended(child("filter", folder / "made-up", options.traces))
            print(
                f"{options.traces:,} traces from parquet to the filter, {run} time: {found['wall']:.2f} s, of them "
                f"{found['cpu']:.2f} s of work, goal 2 s; memory of the process {found['peak']:,.0f} MB, goal 1,000 MB; "
                f"{found['kept']:,} kept"
            )
        processes(options.prompts, options.processes, folder)


def made_up(count: int, folder: Path) -> None:
    """Chains of which every third narrows down to the truth, in parts as a harvest writes them."""
    drawn, spec, store = random.Random(0), RewardSpec(), RolloutStore(folder)
    queries = [f"q{number}" for number in range(count // GROUP)]
    for part, begin in enumerate(range(0, len(queries), 24), 1):
        rollouts = [
            made(qid, sample, part, drawn, spec) for qid in queries[begin : begin + 24] for sample in range(GROUP)
        ]
        store.write(part, rollouts)
    store.compact()


def made(qid: str, sample: int, part: int, drawn: random.Random, spec: RewardSpec) -> Rollout:
    ends = [sorted(drawn.sample(range(120), 2)) for _ in range(5)]
    spans = [Span(a / 2, b / 2) for a, b in ends]
    if drawn.random() < 1 / 3:
        spans = [Span(TRUTH.start - off, TRUTH.end + off) for off in (8.0, 5.5, 3.0, 1.5, drawn.random())]
    chain = parse(render(spans[:-1], spans[-1], [" ".join(drawn.choices(WORDS, k=20)) for _ in spans]))
    breakdown = score_chain(chain, [TRUTH], 60.0, spec)
    earned: dict[str, Any] = {f"reward_{term}": value for term, value in breakdown.terms.items()}
    told: dict[str, Any] = {
        "run": "bench",
        "stage": "distill",
        "seed": 0,
        "checkpoint": "base",
        "status": chain.status,
    }
    told |= {
        "step": part,
        "qid": qid,
        "sample": sample,
        "text": chain.text,
        "total": breakdown.total,
        "advantage": 0.0,
    }
    return Rollout(**earned, **told, prompt_tokens=900, completion_tokens=160, finished=True)


def filter_all(folder: str, traces: str) -> dict[str, float]:
    moments = {
        f"q{number}": Moment(f"q{number}", "/v.mp4", "a door opens", (TRUTH,), 60.0)
        for number in range(int(traces) // GROUP)
    }
    wall, cpu = time.perf_counter(), time.process_time()
    filtered = filter_traces(RolloutStore(folder).stream(), moments)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "peak": peak(), "kept": len(filtered.kept)}


def processes(prompts: int, count: int, folder: Path) -> None:
    """The same harvest by one process and by several."""
    from labkit.embedded.world import write_world

    write_world(folder / "world", train=4, validation=1, test=1, seed=0, edition=1)
    stores, took = {}, {}
    for world in (1, count):
        begin = time.perf_counter()
        name = folder / f"by-{world}"
        peaks = [ended(run)["peak"] for run in [
            child("shard", name, folder / "world", prompts, rank, world) for rank in range(world)
        ]]  # fmt: skip
        took[world] = time.perf_counter() - begin
        stores[world] = RolloutStore(name)
        merge_shards(stores[world], asked(folder / "world", prompts)[1], SAMPLES)
        print(f"{prompts:,} prompts by {world}: {took[world]:.0f} s, memory of a process at most {max(peaks):,.0f} MB")
    one, several = stores[1].table(), stores[count].table()
    print(
        f"by {count} the same {len(several):,} traces as by one: {one.equals(several)}; "
        f"time of one over time of {count}: {took[1] / took[count]:.2f}"
    )


def asked(world: Path, prompts: int) -> tuple[list[Moment], list[Moment]]:
    """The moments of a small world, and as many as are wanted: the same again under other names, which draw otherwise."""
    from labkit.data.moments import read_moments

    moments = read_moments(world / "train.jsonl")
    return moments, [
        replace(moments[k % len(moments)], qid=f"{k}/{moments[k % len(moments)].qid}") for k in range(prompts)
    ]


def one_shard(folder: str, world: str, prompts: str, rank: str, count: str) -> dict[str, float]:
    """What one process does."""
    import torch

    from labkit.data.video.frames import FrameCache
    from labkit.policy.inputs import FrameSampling
    from labkit.policy.model import load_policy
    from labkit.policy.prompt_source import PromptSource

    torch.set_num_threads(1)
    policy = load_policy("embedded", device="cpu")
    few, many = asked(Path(world), int(prompts))
    cache = FrameCache(Path(world) / "frames")
    small = PromptSource(policy, few, template="query", sampling=FrameSampling(1.0, 16, 3136, 3136), cache=cache)

    class Renamed(dict[str, Any]):
        def __missing__(self, qid: str) -> Any:
            return replace(small[qid.split("/")[1]], qid=qid)

    harvest(
        policy, Renamed(), many, RolloutStore(folder), spec=RewardSpec(), samples=SAMPLES, temperature=1.0,
        max_new_tokens=12, seed=0, run="bench", shard=(int(rank), int(count)),
    )  # fmt: skip
    return {"peak": peak()}


def peak() -> float:
    """Most memory that this process has had, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(*what: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, __file__, "--child", *map(str, what)], stdout=subprocess.PIPE, text=True)


def ended(run: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = run.communicate()
    if run.returncode:
        raise SystemExit(f"a process ended with {run.returncode}")
    return json.loads(out.splitlines()[-1])


if __name__ == "__main__":
    main()
