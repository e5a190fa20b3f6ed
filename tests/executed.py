"""A run with executed notebooks, made by hand in a moment, for tests of what is written from one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import yaml

from labkit.params import Params
from labkit.views.report.notebook_html import PLOTLY, WIDGET, WIDGETS

# One transparent pixel.
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
SCORES = {"n": 8.0, "miou": 0.5, "r1@0.3": 1.0, "r1@0.5": 0.5, "r1@0.7": 0.25, "anchor_rate": 0.0, "strict_share": 0.0}


def output(**data: Any) -> Any:
    """A displayed value by its forms: `text_html="<b>x</b>"`, `image_png=...`; `plotly` and `widget` stand for theirs."""
    names = {"plotly": PLOTLY, "widget": WIDGET}
    forms = {names.get(name, name.replace("_", "/", 1)): value for name, value in data.items()}
    return nbformat.v4.new_output("display_data", forms)


def stream(text: str, name: str = "stdout") -> Any:
    return nbformat.v4.new_output("stream", name=name, text=text)


def failure(name: str, value: str, trace: str) -> Any:
    return nbformat.v4.new_output("error", ename=name, evalue=value, traceback=[trace])


def words(source: str, **metadata: Any) -> Any:
    return nbformat.v4.new_markdown_cell(source, metadata=metadata)


def code(source: str, *outputs: Any, number: int = 1) -> Any:
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=number)


def notebook(*cells: Any, widgets: Mapping[str, Any] | None = None) -> Any:
    """A notebook of these cells, with saved widgets by their model's id."""
    told: dict[str, Any] = {"language_info": {"name": "python"}}
    if widgets is not None:
        told["widgets"] = {WIDGETS: {"version_major": 2, "version_minor": 0, "state": dict(widgets)}}
    return nbformat.v4.new_notebook(cells=list(cells), metadata=told)


def saved(widget: Any) -> dict[str, Any]:
    """A widget as a notebook saves it: its state, with bytes in base64 beside it."""
    from ipywidgets import Widget

    state: dict[str, Any] = Widget.get_manager_state(widgets=[widget])["state"]
    return {str(key): dict(value) for key, value in state.items()}


def figure(title: str = "A figure", **layout: Any) -> dict[str, Any]:
    return {
        "data": [{"type": "scatter", "x": [1, 2, 3], "y": [2, 1, 3], "name": title}],
        "layout": {"height": 240, "title": {"text": title}, **layout},
    }


def run(folder: Path, notebooks: Mapping[str, Any], finished: bool = True, **changed: Any) -> Path:
    """A run's directory with these notebooks, its manifest and its parameters."""
    folder.mkdir(parents=True)
    params = Params.build({"run": folder.name, **changed})
    (folder / "params.yaml").write_text(yaml.safe_dump(params.as_dict()))
    final = {**SCORES, "miou": 0.75, "anchor_rate": 1.0, "strict_share": 0.875, "iou_first": 0.5, "iou_last": 0.7}
    stages = {
        "01_grpo": {"state": "finished", "seconds": 60.0, "figures": {"base": {"greedy": SCORES}}},
        "02_distill": {"state": "finished", "seconds": 30.0, "figures": {"harvest": {"kept": 20, "yield": 0.25}}},
        "04_grpo_final": {"state": "finished", "seconds": 30.0, "figures": {"grpo_final": {"greedy": final}}},
    }
    if finished:
        stages |= {name: {"state": "finished", "seconds": 0.0, "figures": {}} for name in ("03_sft", "05_analysis")}
    told = {"labkit": "0.1.0", "created": "2026-01-02T03:04:05+00:00", "seed": 0, "data": {}, "stages": stages}
    (folder / "manifest.json").write_text(json.dumps(told))
    for name, made in notebooks.items():
        nbformat.write(made, folder / f"{name}.ipynb")
    return folder
