"""Can GRPO learn to answer with two spans? The second edition's base on queries for what happens twice, in three steps.

The shipped base has never written two spans. SFT on rough lessons of the simulator (ends off by a second and more, as in its own
pretraining) shows it the form, and GRPO goes on from there. Half of the queries are for what happens once, in the same words, so that
how often has to be seen. So far GRPO unlearns the second span (benchmarks/RESULTS.md). Printed are greedy figures of the test split
after each step, and CPU seconds.
Run from the project's root, on one core:

    OMP_NUM_THREADS=1 python benchmarks/twice.py --steps 120
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np

from labkit.chain.anchors import parse
from labkit.embedded.second_edition import asked_query
from labkit.embedded.world import world_folder, write_world
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.runs.workbench import Workbench
from labkit_recipes.lessons import Noise, chain_lesson

SHOWN = ("miou", "etf1", "count_accuracy", "tf1@0.5", "r1@0.5", "anchor_rate", "strict_share")


def main(clips: int, steps: int, lessons: int, answer_reward: str, outputs: str) -> None:
    """Teach the form, train, and print the figures after each."""
    traces = Path(outputs).resolve() / "twice-lessons.jsonl"
    params = Params(
        run="twice", outputs=outputs, data="world-2-twice", world_train=clips, world_validation=10, world_test=50,
        traces=str(traces), final_steps=steps, answer_reward=answer_reward, probe_queries=0, save_steps=steps,
    )  # fmt: skip
    folder = Path(outputs).resolve() / world_folder(params.as_dict())
    world = write_world(folder, clips, params.world_validation, params.world_test, edition=WORLDS[params.data])
    rng, moments, rows = np.random.default_rng(0), world["train"], []
    for moment in moments[:lessons]:
        film, query = asked_query(moment) or (None, None)
        assert film and query
        rows.append({"qid": moment.qid, "text": chain_lesson(film, query, rng, Noise(1.0, 1.0))})
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bench = Workbench.open(params)
    bench.seed_everything()
    twice = sum(len(moment.windows) == 2 for moment in moments)
    print(f"{len(moments)} training queries, {twice} of them happen twice; {len(rows)} lessons", flush=True)
    report(bench, "base")
    began = time.process_time()
    learnt = [(trace.qid, trace.text) for trace in bench.harvested().kept]
    bench.run_sft(bench.load("base"), lambda event: None, traces=learnt)
    print(f"SFT: {time.process_time() - began:.0f} CPU seconds", flush=True)
    report(bench, "sft")
    began = time.process_time()

    def on_event(event: dict) -> None:
        row = event.get("row")
        if row and row["step"] % 10 == 0:
            keys = ("step", "total", "miou", "anchor_rate")
            print({key: round(row[key], 3) for key in keys if key in row}, flush=True)

    bench.run_grpo(bench.load("sft"), on_event, stage="grpo_final")
    print(f"GRPO, {steps} steps: {time.process_time() - began:.0f} CPU seconds", flush=True)
    report(bench, "grpo_final")


def report(bench: Workbench, stage: str) -> None:
    """Ask the test split greedily, and print figures of all queries, of those that happen twice, and how many spans were given."""
    from labkit.stages.completions import figures_of_chains
    from labkit.stages.evaluate import evaluate

    began, policy, moments = time.process_time(), bench.load(stage), bench.moments("test")
    found = evaluate(policy, bench.source(policy, "test"), moments, max_new_tokens=bench.params.max_new_tokens)
    chains = [parse(rollout.text, finished=rollout.finished) for rollout in found.rollouts]
    for name, wanted in (("all", (1, 2)), ("once", (1,)), ("twice", (2,))):
        rows = [
            (chain, moment) for chain, moment in zip(chains, moments, strict=True) if len(moment.windows) in wanted
        ]
        figures = figures_of_chains([chain for chain, _ in rows], [moment for _, moment in rows])
        spans = Counter(len(chain.answer.parts) if chain.answer else 0 for chain, _ in rows)
        shown = "  ".join(f"{key} {100 * figures[key]:.1f}" for key in SHOWN if key in figures)
        print(f"{stage}, {name} ({len(rows)}): {shown}  spans given {dict(sorted(spans.items()))}", flush=True)
    print(found.rollouts[-1].text, moments[-1].windows, f"{time.process_time() - began:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--lessons", type=int, default=960)
    parser.add_argument("--answer-reward", default="soft_iou")
    parser.add_argument("--outputs", default="outputs/twice")
    chosen = parser.parse_args()
    main(chosen.clips, chosen.steps, chosen.lessons, chosen.answer_reward, chosen.outputs)
