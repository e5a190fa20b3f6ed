"""What a large run costs: 100,000 queries and 1,000,000 rollouts through everything that reads them, and a tenth of both.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--queries 100000] [--samples 10] [--only moments store ...]

Chains are made up: four anchors and a hundred words each, some thousand different ones that are repeated. Every part is done in a
process of its own, which tells the processor seconds and by how much its memory grew at most over what its imports had taken.
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
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas  # noqa: F401, so that no part is charged for what all import
import pyarrow.parquet  # noqa: F401
from harvest import made

from labkit import load_moments, score
from labkit.chain.rewards import RewardSpec
from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.doctor.dataset import inspect_folder
from labkit.params import Params
from labkit.policy.families import Geometry
from labkit.stages.completions import question_digest
from labkit.stages.evaluate import evaluate_answers, read_evaluation_rollouts
from labkit.stages.harvest import filter_traces
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import explore

QUERIES_OF_A_VIDEO, QUERIES_OF_A_PART, KINDS = 10, 24, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        part, folder, queries, samples = options.child
        before, cpu = resident(), time.process_time()
        said = PARTS[part](Path(folder), int(queries), int(samples))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([time.process_time() - cpu, peak - before, said]))
        return
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    sizes = (options.queries // 10, options.queries)
    print("| part | " + " | ".join(f"{n:,} queries: s | MB" for n in sizes) + " | |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for part in options.only:
            cells = []
            for queries in sizes:
                folder = Path(name) / str(queries)
                folder.mkdir(exist_ok=True)
                seconds, megabytes, said = child(part, folder, queries, options.samples)
                cells.append(f"{seconds:.1f} | {megabytes:,.0f}")
            print(f"| {part} | " + " | ".join(cells) + f" | {said} |", flush=True)


def child(part: str, folder: Path, queries: int, samples: int) -> tuple[float, float, str]:
    what = [sys.executable, __file__, "--child", part, str(folder), str(queries), str(samples)]
    out = subprocess.run(what, stdout=subprocess.PIPE, text=True, check=True).stdout
    return tuple(json.loads(out.splitlines()[-1]))


def resident() -> float:
    """Memory of this process now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def moments_of(folder: Path, queries: int) -> list[Moment]:
    return [
        Moment(f"q{k}", str(folder / "videos" / f"v{k // QUERIES_OF_A_VIDEO}.mp4"), "a door opens", (Span(10.0, 20.0),), 60.0)
        for k in range(queries)
    ]  # fmt: skip


def rollouts_of(queries: int, samples: int) -> Iterator[list[Rollout]]:
    """The rollouts of each part in turn."""
    drawn, spec = random.Random(0), RewardSpec()
    kinds = [replace(made("q", 0, 0, drawn, spec), spec=spec) for _ in range(KINDS)]
    for part, begin in enumerate(range(0, queries, QUERIES_OF_A_PART), 1):
        yield [
            replace(kinds[(k * samples + sample) % KINDS], step=part, qid=f"q{k}", sample=sample)
            for k in range(begin, min(queries, begin + QUERIES_OF_A_PART))
            for sample in range(samples)
        ]


def moments(folder: Path, queries: int, samples: int) -> str:
    """`load_moments` of as many rows as there are rollouts."""
    file = folder / "rows.jsonl"
    with file.open("w") as opened:
        for k in range(queries * samples):
            row = {
                "qid": f"q{k}",
                "video": f"videos/v{k // QUERIES_OF_A_VIDEO}.mp4",
                "query": f"the person opens door number {k}",
            }
            opened.write(json.dumps(row | {"windows": [[10.25, 20.5]], "duration": 60.5, "source": "mine"}) + "\n")
    cpu, before = time.process_time(), resident()
    found = load_moments(file)
    took = time.process_time() - cpu
    return f"{len(found):,} rows; reading alone {took:.1f} s, which then hold {resident() - before:,.0f} MB"


def store(folder: Path, queries: int, samples: int) -> str:
    """Write every part, and join them."""
    kept = RolloutStore(folder / "rollouts")
    for part, rollouts in enumerate(rollouts_of(queries, samples), 1):
        kept.write(part, rollouts)
    parts = len(kept.steps())
    kept.compact()
    return f"{parts:,} parts written and joined, {kept.files()[0].stat().st_size / 1e6:.0f} MB"


def stream(folder: Path, queries: int, samples: int) -> str:
    """Go through all of them."""
    return f"{sum(1 for _ in RolloutStore(folder / 'rollouts').stream()):,} rollouts read"


def funnel(folder: Path, queries: int, samples: int) -> str:
    by_qid = {moment.qid: moment for moment in moments_of(folder, queries)}
    found = filter_traces(RolloutStore(folder / "rollouts").stream(), by_qid)
    return f"{len(found.kept):,} of {found.size:,} traces kept"


def explorer(folder: Path, queries: int, samples: int) -> str:
    widget = explore(RolloutStore(folder / "rollouts"), moments_of(folder, queries), clips=0)
    page = len(widget_page(widget).encode())
    return f"{widget!r}; the page has {page / 1e6:.1f} MB"


def evaluation(folder: Path, queries: int, samples: int) -> str:
    """An evaluation's figures from its store, a rollout a query."""
    asked = moments_of(folder, queries)
    kept = RolloutStore(folder / "evaluation")
    if not kept.files():
        texts = [rollout for part in rollouts_of(queries, 1) for rollout in part]
        kept.write(0, [
            replace(each, step=0, question=question_digest(moment), spec=None, **UNPAID)
            for each, moment in zip(texts, asked, strict=True)
        ])  # fmt: skip
    cpu = time.process_time()
    found = evaluate_answers({each.qid: each for each in read_evaluation_rollouts(kept.folder, asked)}, asked)
    return f"{len(found.rollouts):,} answers; reading and measuring {time.process_time() - cpu:.1f} s"


def scores(folder: Path, queries: int, samples: int) -> str:
    """`labkit.score` of a text a query: figures, intervals, baselines and the protocol card."""
    asked = moments_of(folder, queries)
    answers = {each.qid: each.text for part in rollouts_of(queries, 1) for each in part}
    cpu = time.process_time()
    text = str(score(answers, asked))
    return f"{len(answers):,} answers; scoring {time.process_time() - cpu:.1f} s, {len(text.splitlines())} lines"


def doctor(folder: Path, queries: int, samples: int) -> str:
    """Rows, videos (looked for, not decoded) and costs of a data folder."""
    asked = moments_of(folder, queries)
    (folder / "videos").mkdir(exist_ok=True)
    for video in {moment.video for moment in asked}:
        Path(video).write_bytes(b"1")
    write_moments(asked, folder / "train.jsonl")
    for split in ("validation", "test"):
        write_moments(asked[:100], folder / f"{split}.jsonl")
    cpu = time.process_time()
    found = inspect_folder(folder, Params(run="bench"), Geometry(), quick=True, cache=folder / "cache")
    return f"{found.queries['train']:,} rows, {len(found.videos):,} videos; looking {time.process_time() - cpu:.1f} s"


PARTS: dict[str, Callable[[Path, int, int], str]] = {
    each.__name__: each for each in (moments, store, stream, funnel, explorer, evaluation, scores, doctor)
}

if __name__ == "__main__":
    main()
