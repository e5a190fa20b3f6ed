"""Can GRPO learn to answer with two spans? The second edition's base on queries for what happens twice, in three steps.

The shipped base has never written two spans. SFT on rough lessons of the simulator (ends off by a second and more, as in its own
pretraining) shows it the form, and GRPO goes on from there with the rewards of the parameters. Half of the queries are for what
happens once, in the same words, so that how often has to be seen.

Whether GRPO keeps the second span is decided by what writing one is worth in the samples that it begins with, those that cannot be
read included, and that hangs on the warm-up: `--lessons 1` is too few (benchmarks/RESULTS.md). So it is printed first: reward and
advantage of the first steps' chains by whether the first anchor, and the answer, go on to a second span. Then follow the chains that
training sampled, greedy figures of the test split after each step, and what GRPO changed of them, paired by query.
`--once` is the share of the queries for what happens once that GRPO trains on: the fewer, the sooner the second span is learnt, and
the more often it is given where there is none. Parameters are changed with -p. Run from the project's root, on one core:

    OMP_NUM_THREADS=1 python benchmarks/twice.py
    OMP_NUM_THREADS=1 python benchmarks/twice.py --once 0 --steps 40 -p run only-twice
    OMP_NUM_THREADS=1 python benchmarks/twice.py --once 0.5 --steps 48 -p run wasserstein -p answer_reward wasserstein
    OMP_NUM_THREADS=1 python benchmarks/twice.py --lessons 1 -p run short-warm-up
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.chain.anchors import parse
from labkit.chain.metrics import chain_figures
from labkit.data.moments import Moment, write_moments
from labkit.embedded.recipes.lessons import Noise, chain_lesson
from labkit.embedded.second_edition import asked_query
from labkit.embedded.world import world_folder, write_world
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.runs.workbench import Workbench
from labkit.scoring.bootstrap import paired_differences
from labkit.stages.evaluate import evaluate
from labkit.stages.rollouts import Rollout

SHOWN = ("miou", "etf1", "count_accuracy", "tf1@0.5", "r1@0.5", "anchor_rate", "strict_share")
PAIRED = ("miou", "etf1", "count_accuracy")
FIRST_STEPS = 4
"""Of GRPO, whose chains say what a second span is worth to begin with."""
DECISIONS = {
    "first anchor": re.compile(r"^(?:(?!<timestamp>).)*<timestamp>\s*[\d.]+ to [\d.]+\s*(,)?", re.DOTALL),
    "answer": re.compile(r"<answer>\s*[\d.]+ to [\d.]+\s*(,)?"),
}
"""Where a chain that has written one span goes on to a second, or doesn't."""


def main(clips: int, steps: int, lessons: int, once: float, outputs: str, changes: dict[str, str]) -> None:
    """Teach the form, train, and print the figures after each."""
    place = Path(outputs).resolve()
    shared = {
        "outputs": outputs,
        "data": "world-2-twice",
        "world_train": clips,
        "world_validation": 10,
        "world_test": 50,
    }
    world = write_world(
        place / world_folder(Params.build(shared).as_dict()), clips, 10, 50, edition=WORLDS[shared["data"]]
    )
    began, warm_up = time.process_time(), taught(place, world["train"], lessons, shared)
    print(f"base and SFT: {time.process_time() - began:.0f} CPU seconds", flush=True)
    before = report(warm_up, "sft")
    rng = np.random.default_rng(1)
    asked = {each.qid: each for each in world["train"] if len(each.windows) == 2 or rng.random() < once}
    for split in ("train", "validation", "test"):
        write_moments(
            asked.values() if split == "train" else world[split], place / f"once-{once:g}" / f"{split}.jsonl"
        )
    params = Params.build({
        **shared, "run": "twice", "data": str(place / f"once-{once:g}"), "sft_model": warm_up.model_name("sft"),
        "final_steps": steps, "probe_queries": 0, "save_steps": steps, **changes,
    })  # fmt: skip
    bench = Workbench.open(params)
    bench.seed_everything()
    twice = sum(len(each.windows) == 2 for each in asked.values())
    print(
        f"GRPO on {len(asked)} queries, {twice} of them happen twice; answer_reward {params.answer_reward}", flush=True
    )
    began = time.process_time()
    bench.run_grpo(bench.load("sft"), lambda event: None, stage="grpo_final")
    print(f"GRPO, {steps} steps: {time.process_time() - began:.0f} CPU seconds", flush=True)
    sampled = list(bench.rollouts("grpo_final").read())
    worth_of_a_second_span([row for row in sampled if row.step <= FIRST_STEPS], asked)
    along_training(sampled, asked, steps)
    changed(before, report(bench, "grpo_final"), world["test"])


def taught(place: Path, moments: Sequence[Moment], lessons: int, shared: dict[str, Any]) -> Workbench:
    """The run of the warm-up: SFT of the base on rough lessons for all queries, those of what happens once included."""
    traces, rng, rows = place / f"lessons-{lessons}.jsonl", np.random.default_rng(0), []
    for moment in moments:
        film, query = asked_query(moment) or (None, None)
        assert film and query
        rows += [{"qid": moment.qid, "text": chain_lesson(film, query, rng, Noise(1.0, 1.0))} for _ in range(lessons)]
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bench = Workbench.open(Params.build({**shared, "run": f"warm-up-{lessons}", "traces": str(traces)}))
    bench.seed_everything()
    report(bench, "base")
    learnt = [(trace.qid, trace.text) for trace in bench.harvested().kept]
    bench.run_sft(bench.load("base"), lambda event: None, traces=learnt)
    return bench


def worth_of_a_second_span(sampled: Sequence[Rollout], asked: dict[str, Moment]) -> None:
    """Print what chains earned that went on to a second span, and those that did not, read or not."""
    for times in (2, 1):
        for name, decision in DECISIONS.items():
            earned = defaultdict(list)
            for row in sampled:
                if len(asked[row.qid].windows) == times and (found := decision.search(row.text)):
                    earned["two spans" if found[1] else "one span"].append(
                        (row.total, row.advantage, row.reward_answer == -1)
                    )
            shown = "; ".join(
                "{}: {} chains, reward {:.2f}, advantage {:+.2f}, unread {:.0f} %".format(
                    kind, len(rows), *np.mean(rows, 0)[:2], 100 * np.mean(rows, 0)[2]
                )
                for kind, rows in sorted(earned.items())
            )
            print(f"steps 1 to {FIRST_STEPS}, happens {times}x, {name}: {shown}", flush=True)


def along_training(sampled: Sequence[Rollout], asked: dict[str, Moment], steps: int) -> None:
    """Print figures of the chains that training sampled, by eighths of it."""
    size = max(1, steps // 8)
    for first in range(1, steps + 1, size):
        for times in (2, 1):
            rows = [r for r in sampled if first <= r.step < first + size and len(asked[r.qid].windows) == times]
            if not rows:
                continue
            reward, figures = np.mean([r.total for r in rows]), figures_of(rows, [asked[r.qid] for r in rows])
            when = f"steps {first} to {first + size - 1}, happens {times}x"
            print(f"{when}: {len(rows)} chains, reward {reward:.2f}  {figures}", flush=True)


def figures_of(rows: Sequence[Rollout], moments: Sequence[Moment]) -> str:
    """Figures of chains in percent, and how many spans their answers have."""
    chains = [parse(row.text, finished=row.finished) for row in rows]
    figures = chain_figures(chains, [each.targets for each in moments], [each.duration for each in moments])
    spans = Counter(len(chain.answer.parts) if chain.answer else 0 for chain in chains)
    shown = "  ".join(f"{key} {100 * figures[key]:.1f}" for key in SHOWN if key in figures)
    return f"{shown}  spans given {dict(sorted(spans.items()))}"


def report(bench: Workbench, stage: str) -> list[Rollout]:
    """Ask the test split greedily, and print figures of all queries, of those that happen twice, and how many spans were given."""
    began, policy, moments = time.process_time(), bench.load(stage), bench.moments("test")
    found = evaluate(policy, bench.source(policy, "test"), moments, max_new_tokens=bench.params.max_new_tokens)
    for name, wanted in (("all", (1, 2)), ("once", (1,)), ("twice", (2,))):
        rows, those = zip(
            *[pair for pair in zip(found.rollouts, moments, strict=True) if len(pair[1].windows) in wanted],
            strict=True,
        )
        print(f"{stage}, {name} ({len(rows)}): {figures_of(rows, those)}", flush=True)
    print(found.rollouts[-1].text, moments[-1].windows, f"{time.process_time() - began:.0f} CPU seconds", flush=True)
    return found.rollouts


def changed(before: Sequence[Rollout], after: Sequence[Rollout], moments: Sequence[Moment]) -> None:
    """Print what GRPO changed, in points, paired by query with 95 % intervals by video."""

    def values(row: Rollout, moment: Moment) -> list[float]:
        figures = chain_figures([parse(row.text, finished=row.finished)], [moment.targets], [moment.duration])
        return [figures.get(key, 0.0) for key in PAIRED]  # sets' figures are not asked for where there is one span

    for name, times in (("twice", 2), ("once", 1)):
        those = [at for at, moment in enumerate(moments) if len(moment.windows) == times]
        pair = [[values(rows[at], moments[at]) for at in those] for rows in (after, before)]
        found = paired_differences(*pair, [moments[at].video for at in those])
        shown = "  ".join(
            f"{key} {100 * each.value:+.1f} ({100 * each.interval.low:+.1f} to {100 * each.interval.high:+.1f})"
            for key, each in zip(PAIRED, found, strict=True)
            if times == 2 or key == "miou"
        )
        print(f"GRPO changed, {name} ({len(those)}): {shown}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lessons", type=int, default=4, help="rough lessons for each training query")
    parser.add_argument(
        "--once", type=float, default=1.0, help="share of the queries for what happens once that GRPO keeps"
    )
    parser.add_argument("--outputs", default="outputs/twice")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="a parameter")
    chosen = parser.parse_args()
    main(chosen.clips, chosen.steps, chosen.lessons, chosen.once, chosen.outputs, dict(chosen.p))
