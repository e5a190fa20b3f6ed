"""What mkdocs cannot know by itself: the page of parameters, made from their fields, and a run's report as a living page."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from labkit.param_fields import GROUPS
from labkit.params import documentation, format_value
from labkit.views.report.report import write_report

NO_RUN = """<!doctype html><meta charset="utf-8"><title>No report</title>
<p>This site was built without a run: <code>labkit run params/embedded.yaml</code>, then <code>make docs</code>.</p>
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the page of parameters, and below `example/` the report of the run that LABKIT_DOCS_RUN names, if it is there."""
    files.append(File.generated(config, "parameters.md", content=parameters_page()))
    run = Path(os.environ.get("LABKIT_DOCS_RUN", ""))
    if not (run / "manifest.json").is_file():
        files.append(File.generated(config, "example/report.html", content=NO_RUN))
        return files
    with tempfile.TemporaryDirectory() as folder:
        for path in write_report(run, folder):
            files.append(File.generated(config, f"example/{path.name}", content=path.read_bytes()))
    return files


def parameters_page() -> str:
    """Every parameter with its default and its meaning, one table for each part of the lab."""
    notes, lines = documentation(), ["# All parameters", ""]
    lines.append("Generated from `labkit/param_fields.py`. Each says whose value its default is.")
    for group in GROUPS:
        lines += ["", f"## {group.__name__.removesuffix('Params')}", "", (group.__doc__ or "").strip(), ""]
        lines += ["| name | default | meaning |", "|---|---|---|"]
        for name, field in group.model_fields.items():
            meaning = " ".join(notes[name].split()).replace("|", "\\|")
            lines.append(f"| `{name}` | `{format_value(field.default)}` | {meaning} |")
    return "\n".join([*lines, ""])
