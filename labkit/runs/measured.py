"""Measured: what a run found out about the model of a stage, as its folders keep it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from labkit.errors import LabError
from labkit.runs.run import NOTEBOOK_OF


class Prediction(NamedTuple):
    """One chain that a model wrote when it was evaluated."""

    qid: str
    text: str
    status: str


class Measured(NamedTuple):
    """A model on the test split, decoded greedily and, where `sampled_evaluation` says so, by sampling."""

    figures: dict[str, dict[str, float]]
    """By decoding (`greedy`, `sampled`): flat figures, see `labkit.chain.metrics.chain_figures`."""
    greedy: list[Prediction]
    sampled: list[Prediction]


def read_measured(folder: Path, stage: str) -> Measured:
    """What a run measured of a stage's model; raises LabError when it has not come so far."""
    found, notebook = {}, NOTEBOOK_OF.get(stage, "01_grpo")
    for decoding in ("greedy", "sampled"):
        path = folder / notebook / f"{stage}-{decoding}.json"
        if path.is_file():
            found[decoding] = json.loads(path.read_text(encoding="utf-8"))
    if "greedy" not in found:
        raise LabError(f"{stage} has not been evaluated in '{folder}'; run notebooks/{notebook}.ipynb first")
    rows = {decoding: [Prediction(*row) for row in each["predictions"]] for decoding, each in found.items()}
    figures = {decoding: each["figures"] for decoding, each in found.items()}
    return Measured(figures, rows["greedy"], rows.get("sampled", []))
