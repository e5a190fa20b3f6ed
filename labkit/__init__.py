"""labkit: a notebook lab for temporal video grounding with timestamp anchors (TAR-TVG).

The names below are the lab's public face; each is loaded when it is first used, so that `import labkit` stays quick.

>>> from labkit import Span, parse
>>> parse("<think> <timestamp>2 to 9</timestamp> </think><answer>3 to 8</answer>").answer
Span(start=3.0, end=8.0)
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AnchorChain": "labkit.chain.anchors",
    "ChainExplorer": "labkit.views.explorer.widget",
    "FrameCache": "labkit.data.video.frames",
    "Lab": "labkit.lab",
    "LabError": "labkit.errors",
    "Moment": "labkit.data.moments",
    "Moments": "labkit.data.usable_moments",
    "Params": "labkit.params",
    "RewardSpec": "labkit.chain.rewards",
    "Rollout": "labkit.stages.rollouts",
    "RolloutStore": "labkit.stages.rollouts",
    "Run": "labkit.runs.run",
    "Span": "labkit.chain.spans",
    "ask": "labkit.asker",
    "ask_box": "labkit.asker",
    "chain_figures": "labkit.chain.metrics",
    "compare": "labkit.scoring.scores",
    "conclusions": "labkit.views",
    "disagreements": "labkit.scoring.readings",
    "evaluate_model": "labkit.runs.evaluate_model",
    "examine": "labkit.doctor.checks",
    "explore": "labkit.views.explorer.widget",
    "explore_figure": "labkit.views.explorer.widget",
    "harvest_filter": "labkit.own_code",
    "intervene": "labkit.runs.intervene",
    "iou": "labkit.chain.spans",
    "load_moments": "labkit.data.benchmarks",
    "load_policy": "labkit.policy.model",
    "parse": "labkit.chain.anchors",
    "read_moments": "labkit.data.moments",
    "read_predictions": "labkit.scoring.predictions",
    "render": "labkit.chain.anchors",
    "reward": "labkit.own_code",
    "score": "labkit.scoring.scores",
    "score_chain": "labkit.chain.rewards",
    "score_moment": "labkit.chain.rewards",
    "score_table": "labkit.scoring.score_table",
    "scrub": "labkit.views.explorer.scrubber",
    "under_every_rule": "labkit.scoring.scores",
    "views": "labkit",
    "watch": "labkit.views.explorer.watch",
    "write_predictions": "labkit.scoring.predictions",
    "write_world": "labkit.embedded.world",
}

_MODULES = ("conclusions", "views")

__all__ = list(_HOMES)  # noqa: PLE0604  the keys are strings


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"{home}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
