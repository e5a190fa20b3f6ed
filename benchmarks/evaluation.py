"""An evaluation at scale: what its order saves, what keeping its answers costs, and how many questions a second it asks.

    OMP_NUM_THREADS=1 python benchmarks/evaluation.py [--questions 128]

Order and keeping are measured on made-up moments in the shape of ActivityNet-Captions val_2: 17,031 questions on 4,885 videos of 5
to 240 seconds, 2 frames a second, at most 64. Questions a second are those of the embedded model on the embedded world.
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.completions import Provenance, question_digest
from labkit.stages.evaluate import (
    evaluate,
    evaluate_answers,
    in_evaluation_order,
    read_evaluation,
    read_evaluation_rollouts,
)
from labkit.stages.rollouts import UNPAID, Rollout, RolloutStore

QUESTIONS, VIDEOS, BATCH = 17_031, 4_885, 64
FRAMES, FPS, TOKENS, TEXT = 64, 2.0, 64, 100
"""Frames of a video at most and a second, tokens of a frame, and tokens of a question."""
CHAIN = "<think>it begins <timestamp>1.0 to 9.0</timestamp> or <timestamp>2.0 to 8.0</timestamp></think><answer>2.5 to 8.0</answer>"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=128, help="of the embedded world")
    options = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    moments = made_up()
    for name, ordered in {"as they come": moments, "as they are asked": in_evaluation_order(moments)}.items():
        padded, encoded = order(ordered)
        print(
            f"{name:<18} {padded:.2f} positions computed for each of a prompt, clips met {encoded / VIDEOS:.2f} times"
        )
    with tempfile.TemporaryDirectory() as name:
        keep(moments, Path(name) / "answers")
        asked(options.questions, Path(name))


def made_up() -> list[Moment]:
    drawn = random.Random(0)
    seconds = [round(drawn.uniform(5, 240), 2) for _ in range(VIDEOS)]
    videos = [drawn.randrange(VIDEOS) if number >= VIDEOS else number for number in range(QUESTIONS)]
    drawn.shuffle(videos)
    return [
        Moment(f"q{number}", f"/v{video}.mp4", "a door opens", (Span(1.0, 4.0),), seconds[video])
        for number, video in enumerate(videos)
    ]


def order(moments: list[Moment]) -> tuple[float, int]:
    """Positions of the rectangles that a batch's prompts fill over those of the prompts, and (clip, batch) pairs."""
    lengths = [TEXT + TOKENS * int(min(FRAMES, moment.duration * FPS)) // 2 for moment in moments]
    batches = range(0, len(moments), BATCH)
    filled = sum(max(lengths[begin : begin + BATCH]) * len(lengths[begin : begin + BATCH]) for begin in batches)
    clips = sum(len({moment.video for moment in moments[begin : begin + BATCH]}) for begin in batches)
    return filled / sum(lengths), clips


def keep(moments: list[Moment], folder: Path) -> None:
    """CPU seconds of writing answers in batches, of reading them and of their figures."""
    provenance = Provenance(policy="bench", weights="0", prompts="", max_new_tokens=256).note()
    store, begin = RolloutStore(folder), time.process_time()
    for first in range(0, len(moments), BATCH):
        rollouts = [
            Rollout(
                run="bench", stage="base", step=0, qid=moment.qid, sample=0, seed=0, checkpoint="bench", text=CHAIN,
                status="ok", **UNPAID, prompt_tokens=900, completion_tokens=60, finished=True,
                question=question_digest(moment),
            )
            for moment in moments[first : first + BATCH]
        ]  # fmt: skip
        store.write(0, rollouts, provenance, batch=str(first))
    written, begin = time.process_time() - begin, time.process_time()
    answers = {rollout.qid: rollout for rollout in read_evaluation_rollouts(folder, moments)}
    read, begin = time.process_time() - begin, time.process_time()
    evaluate_answers(answers, moments)
    scored = time.process_time() - begin
    print(
        f"{len(moments):,} answers written in {written:.2f} s, read in {read:.2f} s, figures in {scored:.2f} s of work"
    )


def asked(count: int, folder: Path) -> None:
    """The embedded model, from ready frames: whole, then broken off in the middle and taken up again."""
    from labkit.data.video.frames import FrameCache
    from labkit.embedded.world import write_world
    from labkit.policy.inputs import FrameSampling
    from labkit.policy.model import load_policy
    from labkit.policy.prompt_source import PromptSource

    moments = write_world(folder / "world", train=max(2, count // 4), validation=1, test=1, seed=0, edition=1)[
        "train"
    ][:count]
    policy, cache = load_policy("embedded", device="cpu"), FrameCache(folder / "frames")
    source = PromptSource(policy, moments, template="query", sampling=FrameSampling(1.0, 16, 3136, 3136), cache=cache)
    for moment in moments:
        source[moment.qid]
    begin = time.perf_counter()
    whole = evaluate(policy, source, moments, max_new_tokens=64, folder=folder / "whole", batch_size=16)
    took = time.perf_counter() - begin
    print(f"{len(moments)} questions to the embedded model: {len(moments) / took:.1f} a second")
    for rank in (0, 1):
        evaluate(policy, source, moments, max_new_tokens=64, folder=folder / "two", batch_size=16, shard=(rank, 2))
    same = repr(read_evaluation(folder / "two", moments)) == repr(whole)  # rewards are NaN
    print(f"the same rollouts from two shards: {same}")
    begin = time.perf_counter()
    evaluate(policy, source, moments, max_new_tokens=64, folder=folder / "two", batch_size=16)
    print(f"asked again, all being there: {time.perf_counter() - begin:.2f} s")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
