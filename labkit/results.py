"""Results: every stage's figures at a glance, from a run's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.runs import STAGES, read_manifest
from labkit.versions import version_text

MODELS = {"base": "base", "grpo": "stage 1", "sft": "sft", "grpo_final": "final"}
"""The models that are evaluated, in the order in which they come to be, and what the table calls them."""
DECODINGS = ("greedy", "sampled")
COLUMNS = {
    "miou": "mIoU",
    "r1@0.3": "R1@0.3",
    "r1@0.5": "R1@0.5",
    "r1@0.7": "R1@0.7",
    "anchor_rate": "anchors",
    "strict_share": "strict",
    "iou_first": "first",
    "iou_last": "last",
    "iou_answer": "answer",
}
ANSWERED = {"acc_qa": "Acc@QA", "acc_gqa": "Acc@GQA"}
"""Columns beside these where moments have options."""
LEGEND = (
    "All in percent. anchors: chains with an anchor. strict: with two or more, each better than the one before.\n"
    "first, last, answer: mean IoU of the first anchor, the last anchor and the answer, of the chains with anchors."
)


def read_results(folder: str | Path) -> dict[str, Any]:
    """What a run has reported so far: `run`, `labkit` (version, commit), `stages` (state and seconds), `models` and `harvest`.

    `models` holds, by model and decoding, the flat figures of `labkit.chain.metrics.chain_figures`; IoU is a fraction.
    Raises LabError when `folder` holds no run.
    """
    manifest = read_manifest(folder)
    figures = {name: entry.get("figures", {}) for name, entry in manifest["stages"].items()}
    models: dict[str, Any] = {}
    for model in MODELS:
        for stage in figures.values():
            if model in stage:
                models[model] = stage[model]
    return {
        "run": Path(folder).resolve().name,
        "labkit": {key: manifest[key] for key in ("labkit", "commit", "changed") if key in manifest},
        "stages": {
            name: {key: manifest["stages"].get(name, {}).get(key) for key in ("state", "seconds")} for name in STAGES
        },
        "models": models,
        "harvest": figures.get("02_distill", {}).get("harvest", {}),
    }


def results_text(results: Mapping[str, Any]) -> str:
    """The same as plain text: one table for each decoding, the harvest's funnel, and how long each stage took."""
    blocks = [f"run {results['run']}"]
    columns = columns_of(results["models"])
    for decoding in DECODINGS:
        rows = [
            [label, *(_percent(results["models"][model][decoding].get(key)) for key in columns)]
            for model, label in MODELS.items()
            if results["models"].get(model, {}).get(decoding)
        ]
        if rows:
            queries = {row[decoding]["n"] for row in results["models"].values() if row.get(decoding)}
            title = f"{decoding}, {' or '.join(f'{n:.0f}' for n in sorted(queries))} queries"
            blocks.append(_table([["", *columns.values()], *rows], title))
    if results["harvest"]:
        rows = [[name, f"{count:g}"] for name, count in results["harvest"].items() if name != "yield"]
        blocks.append(_table(rows, f"harvest, {100 * results['harvest']['yield']:.1f} % kept"))
    states = [
        [name, entry["state"] or "not run", "" if entry["seconds"] is None else f"{entry['seconds']:.0f} s"]
        for name, entry in results["stages"].items()
    ]
    blocks.append(_table(states, "stages"))
    blocks.append(f"labkit {version_text(results['labkit'])}")
    if results["models"]:
        blocks.append(LEGEND)
    return "\n\n".join(blocks)


def columns_of(models: Mapping[str, Any]) -> dict[str, str]:
    """Figures that tables show of these models, with their titles."""
    found = {key for decodings in models.values() for figures in decodings.values() for key in figures or ()}
    return COLUMNS | {key: title for key, title in ANSWERED.items() if key in found}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(rows: list[list[str]], title: str) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for name, *cells in rows:
        right = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  " + "  ".join([name.ljust(widths[0]), *right]).rstrip())
    return "\n".join([title, *lines])
