"""How long a score takes: a benchmark's moments and a predictions file, from disk to the printed table, on one core.

Seconds are CPU seconds of this process, the least of a few runs. Without a file the moments are made up: 17,031 questions
on 4,885 videos, as ActivityNet-Captions val_2 has. Run from the project's root:

    OMP_NUM_THREADS=1 python benchmarks/scoring.py [--moments FILE_OR_NAME]
"""

from __future__ import annotations

import argparse
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment, write_moments
from labkit.scoring.predictions import PredictedRow, Predictions, read_predictions, write_predictions
from labkit.scoring.readings import disagreements
from labkit.scoring.score_table import score_text
from labkit.scoring.scores import compare, score, under_every_rule

QUESTIONS, VIDEOS = 17_031, 4_885
RUNS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", help="annotation file or name; made up without one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.moments is None:
            source = str(folder / "moments.jsonl")
            write_moments(made_up(folder), source)
        else:
            source = options.moments
        moments = load_moments(source)
        print(
            f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}"
        )
        print(f"{moments.source}: {len(moments):,} questions, {len({m.video for m in moments}):,} videos\n")

        texts, windows = folder / "texts.jsonl", folder / "windows.jsonl"
        write_predictions(texts, {m.qid: chain(m, seed) for seed, m in enumerate(moments)})
        write_predictions(windows, Predictions({m.qid: ranked(m, seed) for seed, m in enumerate(moments)}))
        answers, others = read_predictions(texts), read_predictions(windows)
        report("labkit score, from files to the printed table", lambda: score_text(texts, source))
        report("  of this: moments read", lambda: load_moments(source))
        report("  of this: predictions read", lambda: read_predictions(texts))
        report("  of this: scored", lambda: score(answers, moments))
        report("ten ranked windows each, with mAP", lambda: score(others, moments))
        report("with baselines of a training set of that size", lambda: score(answers, moments, train=moments))
        one = score(answers, moments)
        report("two scores compared", lambda: compare(one, one))
        report("the same texts under all eight rules", lambda: under_every_rule(answers, moments))
        report("texts read differently found", lambda: disagreements(answers, moments))


def report(what: str, work: Callable[[], object]) -> None:
    seconds = []
    for _ in range(RUNS):
        begin = time.process_time()
        work()
        seconds.append(time.process_time() - begin)
    print(f"{what:<62} {min(seconds):6.2f} s")
    sys.stdout.flush()


def made_up(folder: Path) -> list[Moment]:
    rng = random.Random(0)
    moments = []
    for number in range(QUESTIONS):
        start = rng.uniform(0, 100)
        video = str(folder / "videos" / f"v{number % VIDEOS}.mp4")
        window = Span(round(start, 2), round(start + rng.uniform(1, 20), 2))
        moments.append(Moment(f"q{number}", video, "a door opens", (window,), 120.0))
    return moments


def chain(moment: Moment, seed: int) -> str:
    """Two anchors and an answer near the truth, with a sentence between them."""
    rng = random.Random(seed)
    window = moment.windows[0]
    spans = [Span(max(0.0, window.start - off), window.end + off) for off in (rng.uniform(0, 9), rng.uniform(0, 4))]
    answer = Span(round(max(0.0, window.start - rng.uniform(0, 2)), 1), round(window.end + rng.uniform(0.1, 2), 1))
    return render(spans, answer, ["It seems to be about here:", "or rather, looking again,", "which fits."])


def ranked(moment: Moment, seed: int) -> PredictedRow:
    rng = random.Random(seed)
    window = moment.windows[0]
    ends = [(window.start + rng.gauss(0, 4), window.end + rng.gauss(0, 4)) for _ in range(10)]
    return PredictedRow(windows=tuple(ends), scores=tuple(rng.random() for _ in ends))


if __name__ == "__main__":
    main()
