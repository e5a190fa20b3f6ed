"""How often a 95 % interval holds the truth, and how often the paired test sees a difference where there is none.

Benchmarks are made up whose true figures are known: each video is easy or hard, each query more or less so than its video,
and IoU is what such a query gets, bounded, skewed, and 0 for a part of them as real ones are. Run from the project's root:

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--tries 4000]
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from labkit.scoring.bootstrap import Interval, mean_intervals, paired_differences

VIDEOS = (2, 5, 10, 20, 50, 150)
THRESHOLDS = (0.3, 0.5, 0.7)
NAMES = ("mIoU", *(f"R1@{m}" for m in THRESHOLDS))
Floats = NDArray[np.float64]


class Model(NamedTuple):
    """A model on a benchmark: the share of IoU 0, how skewed the others are, and what of the chance is the video's."""

    zeros: float
    skew: float
    video: float
    unequal: bool = False


MODELS = {
    "middling": Model(0.25, 0.7, 0.3),
    "weak": Model(0.55, 1.5, 0.3),
    "strong": Model(0.05, 0.35, 0.3),
    "videos all or nothing": Model(0.25, 0.7, 0.7),
    "a few videos hold most queries": Model(0.25, 0.7, 0.3, unequal=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=4000, help="made-up benchmarks for each cell")
    tries = parser.parse_args().tries
    print(
        f"95 % intervals of one model, {tries:,} tries a cell: percent that hold the truth, and mean width of mIoU's in points"
    )
    for name, model in MODELS.items():
        print(f"\n{name}: {figures_line(truth(model))}")
        for videos in VIDEOS:
            print(f"{videos:>5} videos  {coverage(model, videos, tries)}")
    print(f"\ntwo equal models, paired: percent of tries with p < 0.05 (two-sided), {tries:,} tries a cell")
    for name, model in MODELS.items():
        print(f"\n{name}")
        for videos in VIDEOS:
            print(f"{videos:>5} videos  {false_alarms(model, videos, tries)}")
    print("\ntwo models that differ (middling less weak), paired: percent of intervals that hold the true difference")
    for videos in VIDEOS:
        print(f"{videos:>5} videos  {paired_coverage(videos, tries)}")


def coverage(model: Model, videos: int, tries: int) -> str:
    """What one line of the first table says; the same tries for every figure."""
    real, rng = truth(model), np.random.default_rng(videos)
    held, width = np.zeros(len(NAMES)), 0.0
    for _ in range(tries):
        queries = owners(model, videos, rng)
        found = mean_intervals(columns(ious(model, difficulty(model, queries, rng))), queries.tolist())
        held += holds(found, real)
        width += found[0].high - found[0].low
    return f"{figures_line(held / tries)}   width {100 * width / tries:.1f}"


def false_alarms(model: Model, videos: int, tries: int) -> str:
    """Two models of equal strength, which find the same queries hard but not the same answers."""
    rng, alarms = np.random.default_rng(videos), np.zeros(len(NAMES))
    for _ in range(tries):
        queries = owners(model, videos, rng)
        ours, theirs = two(model, model, queries, rng)
        alarms += [gap.p < 0.05 for gap in paired_differences(ours, theirs, queries.tolist())]
    return figures_line(alarms / tries)


def paired_coverage(videos: int, tries: int) -> str:
    """Two models of unequal strength."""
    first, second = MODELS["middling"], MODELS["weak"]
    real, rng, held = truth(first) - truth(second), np.random.default_rng(videos), np.zeros(len(NAMES))
    for _ in range(tries):
        queries = owners(first, videos, rng)
        found = paired_differences(*two(first, second, queries, rng), queries.tolist())
        held += holds([gap.interval for gap in found], real)
    return figures_line(held / tries)


def owners(model: Model, videos: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The video of each query: 3.5 queries a video as ActivityNet-Captions has, or from 1 to dozens."""
    counts = np.ceil(rng.lognormal(0.7, 1.2, videos)).astype(int) if model.unequal else 1 + rng.poisson(2.5, videos)
    return np.repeat(np.arange(videos), counts)


def difficulty(model: Model, queries: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """A normal number for each query, `model.video` of its variance shared by the queries of a video."""
    shared = rng.normal(size=queries.max() + 1)[queries]
    return math.sqrt(model.video) * shared + math.sqrt(1 - model.video) * rng.normal(size=len(queries))


def two(first: Model, second: Model, queries: NDArray[np.int64], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Figures of two models on the same queries: half of what is hard is hard for both."""
    both = difficulty(first, queries, rng)
    own = [(both + difficulty(model, queries, rng)) / math.sqrt(2) for model in (first, second)]
    return columns(ious(first, own[0])), columns(ious(second, own[1]))


def ious(model: Model, normal: Floats) -> Floats:
    """IoU of queries from their difficulty."""
    return _ious(model, torch.special.ndtr(torch.from_numpy(normal)).numpy())


def truth(model: Model) -> Floats:
    """The figures over all queries that there could be."""
    return columns(_ious(model, (np.arange(1_000_000) + 0.5) / 1_000_000)).mean(axis=0)


def columns(values: Floats) -> Floats:
    """IoU, and whether it reaches each threshold."""
    return np.stack([values, *(values >= m for m in THRESHOLDS)], axis=1).astype(np.float64)


def holds(found: list[Interval], real: Floats) -> list[bool]:
    """Whether each interval holds the truth."""
    return [low - 1e-9 <= value <= high + 1e-9 for (low, high), value in zip(found, real, strict=True)]


def figures_line(values: Floats) -> str:
    """Percent by figure."""
    return "  ".join(f"{name} {100 * value:5.1f}" for name, value in zip(NAMES, values, strict=True))


def _ious(model: Model, ranks: Floats) -> Floats:
    return np.where(ranks < model.zeros, 0.0, (np.maximum(ranks - model.zeros, 0.0) / (1 - model.zeros)) ** model.skew)


if __name__ == "__main__":
    main()
