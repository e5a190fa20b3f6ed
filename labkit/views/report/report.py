"""Reports: a run's executed notebooks as HTML files that open anywhere, without kernel and without network.

One file for each notebook, and one for the run: what it came to on its first page (`labkit.views.report.front`), then its results, its
parameters and all notebooks as chapters.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.files import replacing
from labkit.params import DEFAULTS, documentation, format_value, read_yaml
from labkit.progress import duration
from labkit.quick_imports import quick_nbformat
from labkit.runs.intervene import PAGE
from labkit.runs.results import DECODINGS, LEGEND, MODELS, columns_of, read_results
from labkit.runs.run import STAGES, read_manifest
from labkit.runs.versions import version_text
from labkit.views.explorer.page import PageWidget
from labkit.views.report.front import FrontPage, percent
from labkit.views.report.notebook_html import Chapter, read_chapter
from labkit.views.report.sanitize import safe_text

HERE = Path(__file__).parent
COMMON_POLICY = (
    "default-src 'none'",
    "style-src 'unsafe-inline'",
    "img-src data: blob:",
    "media-src data: blob:",
    "base-uri 'none'",
    "form-action 'none'",
)


class PageLink(NamedTuple):
    """Another page of the same run, by its file's name; without one it is this page."""

    text: str
    file: str = ""


def report_page(
    title: str,
    chapters: Sequence[Chapter],
    *,
    summary: Mapping[str, Any] | None = None,
    links: Sequence[PageLink] = (),
    front: FrontPage | None = None,
) -> str:
    """A whole HTML file of `chapters`; `front`, then `summary`, are what report.html.j2 shows of a run above them."""
    picture = front.picture if front else None
    drawn = [*([picture] if picture else []), *chapters]
    plots = any(chapter.plots for chapter in drawn)
    # A figure that names chains opens them in an explorer, or says where they are.
    explorers = any(chapter.explorers or chapter.holds_chains for chapter in drawn)
    # The explorer's module hands its entry point to the page's own script.
    mount = f"{PageWidget._esm}\nglobalThis.labkit = {{ mountFromState, chainsOf, heldBy, findHeld }};\n"
    scripts = [*([mount] if explorers else []), _read("report.js")]
    plotly_hash, plotly = _plotly() if plots else ("", "")
    hashes = " ".join([*map(_hash, scripts), plotly_hash]).strip()
    policy = "; ".join([*COMMON_POLICY, f"script-src {hashes}"])
    sheets = [_read("report.css"), *([PageWidget._css] if explorers else [])]
    text: str = _template().render(
        title=safe_text(title),
        chapters=chapters,
        whole=summary is not None,
        summary=summary,
        front=front,
        links=links,
        policy=policy,
        style="\n".join(sheets).replace("</", "<\\/"),
        scripts=scripts,
        plotly=plotly,
        data={key: value for chapter in drawn for key, value in chapter.data.items()},
    )
    # A lone surrogate of a damaged notebook can't be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(HERE)
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.j2")


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> tuple[str, str]:
    """Plotly's script as a policy names it, and compressed."""
    from plotly.offline import get_plotlyjs

    source = str(get_plotlyjs())
    return _hash(source), base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode("ascii")


def _hash(script: str) -> str:
    """A script as a content security policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}'"


WHOLE = "report"


def write_report(run_folder: str | Path, output: str | Path | None = None) -> list[Path]:
    """Write `01_grpo.html` and so on beside the executed notebooks of a run, then `report.html` of the whole run.

    They go to the folder `output`, made if it is not there. Without it to the run's own, or, where that may not be written to,
    to RUN-report in the working directory. A run that is still going on, or broke off, gets a report of what there is.
    Returns the files written, the whole one last. Raises LabError when the folder holds no run, none of its notebooks, or a
    damaged one.
    """
    folder = Path(run_folder)
    if output is None:
        target = folder if os.access(folder, os.W_OK) else Path(f"{folder.resolve().name}-report")
    else:
        target = Path(output)
    results = read_results(folder)
    notebooks = {name: read_notebook(path) for name, path in executed(folder).items()}
    files = {name: target / f"{name}.html" for name in (*notebooks, WHOLE)}
    target.mkdir(parents=True, exist_ok=True)
    for name, notebook in notebooks.items():
        chapter = read_chapter(notebook, name)
        _write(files[name], report_page(f"{results['run']} · {chapter.title}", [chapter], links=_links(files, name)))
    seen: set[str] = set()
    chapters = [read_chapter(notebook, name, shift=1, seen=seen) for name, notebook in notebooks.items()]
    whole = report_page(
        f"Run {results['run']}", chapters, summary=summary(folder), links=_links(files, WHOLE),
        front=FrontPage.of(notebooks, {chapter.name: chapter.title for chapter in chapters}, results["scores"]),
    )  # fmt: skip
    _write(files[WHOLE], whole)
    return list(files.values())


def report_text(files: Sequence[Path]) -> str:
    """What was written, a line for each file with its size, as the command line says it.

    >>> report_text([])
    'nothing was written'
    """
    lines = [f"{file}  {file.stat().st_size / 1e6:.1f} MB" for file in files]
    return "\n".join(lines) or "nothing was written"


def executed(folder: Path) -> dict[str, Path]:
    """The executed notebooks of a run in order, by name; raises LabError when there is none."""
    found = {name: folder / f"{name}.ipynb" for name in (*STAGES, PAGE) if (folder / f"{name}.ipynb").is_file()}
    if not found:
        raise LabError(
            f"'{folder}' holds no executed notebook; `labkit run` writes them there, and so does Papermill when it is "
            f"given '{folder / STAGES[0]}.ipynb' to write to"
        )
    return found


def read_notebook(path: Path) -> Any:
    """A notebook as nbformat 4; raises LabError when the file is none."""
    import warnings

    quick_nbformat()
    import nbformat

    try:
        with warnings.catch_warnings():
            # Cells without ids, and the like: other tools' files are read, not mended.
            warnings.simplefilter("ignore")
            return nbformat.reads(path.read_text(encoding="utf-8"), 4)
    except (OSError, ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise LabError(f"'{path}' is no notebook that can be read ({error}); run it again, or remove it") from None


def summary(folder: Path) -> dict[str, Any]:
    """What report.html.j2 shows of a run above its chapters."""
    manifest, results = read_manifest(folder), read_results(folder)
    parameters, defaults = _parameters(folder), DEFAULTS.as_dict()
    stages = results["stages"]
    open_stages = [name for name, entry in stages.items() if entry["state"] not in ("finished", "skipped")]
    seconds = sum(entry["seconds"] or 0 for entry in stages.values())
    queries = {row[decoding]["n"] for row in results["models"].values() for decoding in row if row[decoding]}
    facts = [
        ("model", parameters.get("model", "not recorded")),
        ("data", parameters.get("data", "not recorded")),
        ("test queries", " or ".join(f"{n:,.0f}" for n in sorted(queries)) or "none yet"),
        ("seed", manifest.get("seed", "not recorded")),
        ("begun", str(manifest.get("created", ""))[:16].replace("T", " ")),
        ("time of all stages", duration(seconds)),
        ("labkit", version_text(manifest)),
    ]
    if results["begins"]:
        facts.insert(0, ("begins", results["begins"].rpartition("begins with ")[2].removesuffix(".")))
    if harvest := results["harvest"]:
        kept = f"{harvest.get('kept', 0):,.0f}" if "kept" in harvest else ""
        share = f"{100 * harvest['yield']:.1f} %" if harvest.get("yield") is not None else ""
        facts.insert(-3, ("traces kept", f"{kept} ({share})" if kept and share else kept or share))
    return {
        "facts": [(name, str(value)) for name, value in facts],
        "stopped": f"Open: {', '.join(open_stages)}." if open_stages else "",
        "results": [table for decoding in DECODINGS if (table := _results(results["models"], decoding))],
        "legend": LEGEND,
        "parameters": [
            {
                "name": name,
                "value": format_value(tuple(map(str, value)) if isinstance(value, list) else value),
                "default": format_value(getattr(DEFAULTS, name)) if name in documentation() else "unknown here",
                # What stands between two backticks is code: every second piece.
                "meaning": documentation().get(name, "").split("`"),
            }
            # A run of another version may have some that are unknown here.
            for name, value in parameters.items()
            if defaults.get(name) != value
        ],
    }


def _links(files: Mapping[str, Path], here: str) -> list[PageLink]:
    names = [WHOLE, *(name for name in files if name != WHOLE)]
    return [
        PageLink("the whole run" if name == WHOLE else name, "" if name == here else files[name].name)
        for name in names
    ]


def _parameters(folder: Path) -> dict[str, Any]:
    path = folder / "params.yaml"
    values = read_yaml(path) if path.is_file() else {}
    # A run that was renamed goes by its folder.
    return values | {"run": folder.resolve().name} if "run" in values else values


def _results(models: Mapping[str, Any], decoding: str) -> dict[str, Any] | None:
    """One table of results: models down, figures across in percent, the best of each marked."""
    rows = {label: models[name][decoding] for name, label in MODELS.items() if models.get(name, {}).get(decoding)}
    if not rows:
        return None
    columns = columns_of(models)
    known = {key: {row[key] for row in rows.values() if row.get(key) is not None} for key in columns}
    # Where all are equal none is marked.
    best = {key: max(values) for key, values in known.items() if len(values) > 1}

    def cells(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"text": percent(row.get(key)), "best": key in best and row.get(key) == best[key]} for key in columns]

    return {
        "title": f"{decoding} decoding",
        "columns": list(columns.values()),
        "rows": [{"name": label, "cells": cells(row)} for label, row in rows.items()],
    }


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
