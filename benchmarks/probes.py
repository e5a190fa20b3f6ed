"""What probe queries cost a stage of GRPO: seconds of a step and of a time of asking, side by side in one training.

A tiny world at default parameters; probes are asked after every second step, so that both kinds of work meet the same machine. The
share of a stage follows from how often it asks by default. CPU seconds, which do not depend on who else works there, and wall
seconds. Run from the project's root:

    OMP_NUM_THREADS=1 python benchmarks/probes.py --steps 12
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from labkit.lab import Lab
from labkit.params import DEFAULTS, Params
from labkit.stages.probes import Probes, due


def clocks() -> tuple[float, float]:
    """CPU and wall seconds."""
    return time.process_time(), time.perf_counter()


def timed(work: Callable[..., Any], into: list[tuple[float, float]]) -> Callable[..., Any]:
    """`work`, whose CPU and wall seconds are kept."""

    def run(*arguments: Any) -> Any:
        begin = clocks()
        result = work(*arguments)
        into.append((clocks()[0] - begin[0], clocks()[1] - begin[1]))
        return result

    return run


def main(steps: int) -> None:
    """Train, and print seconds and shares."""
    asked: list[tuple[float, float]] = []
    stamps: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab.open(Params(
            run="probes", outputs=folder, world_train=12, world_validation=12, world_test=1, grpo_steps=steps,
            probe_every=2, stop_anchor_rate=1.0, save_steps=steps,
        ))  # fmt: skip
        lab.seed_everything()
        with patch.object(Probes, "ask", timed(Probes.ask, asked)):
            lab.run_grpo(lab.load("base"), lambda event: stamps.append(clocks()), stage="grpo")
    # A step's stamp is taken before its probes are asked or after: two steps in a row hold one time of asking.
    pairs = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(stamps[1::2], stamps[3::2], strict=False)]
    times = sum(due(step, DEFAULTS.probe_every) for step in range(DEFAULTS.grpo_steps)) + 1
    for unit, name in enumerate(("CPU", "wall")):
        # The first time of asking decodes and encodes the clips, which is done once a stage.
        first, later = asked[0][unit], sorted(each[unit] for each in asked[1:])[len(asked) // 2 - 1]
        step = sorted((pair[unit] - later) / 2 for pair in pairs)[len(pairs) // 2]
        cost = first + (times - 1) * later
        share = cost / (DEFAULTS.grpo_steps * step)
        sys.stdout.write(
            f"{name}: a step {step:.2f} s, the first time of asking {first:.2f} s, another {later:.2f} s; {times} times in "
            f"{DEFAULTS.grpo_steps} steps are {100 * share:.2f} % of the stage, with/without {1 + share:.4f}\n"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of the training (default: %(default)s)")
    main(parser.parse_args().steps)
