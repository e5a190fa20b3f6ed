"""A report's first page: the final scores and the notebooks' conclusions, from executed notebooks and the manifest.

The score of the final model with its interval, what each notebook concluded, and one picture of narrowing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from labkit.runs.results import ANSWERED, MODELS, SCORES
from labkit.views.figures.chains import NARROWING
from labkit.views.report.notebook_html import PLOTLY, Chapter, read_chapter, text_of

SCORED = SCORES | ANSWERED
"""Figures that stand on the first page."""

_LINE = re.compile(r"<li>(?:<strong>(?P<word>Yes\.|No\.)</strong> )?(?P<claim>[^<:]+): (?P<evidence>[^<]*)</li>")
"""A claim as `labkit.views.conclusions.Conclusion` writes it."""


class Tile(NamedTuple):
    """One figure of the final model, in percent, with the figures to compare it with."""

    name: str
    value: str
    interval: str
    """Empty where there is none."""
    beside: list[str]
    """What the base has, and what the best constant answer has."""


class NotebookConclusions(NamedTuple):
    """What one notebook concluded, as markdown: a list, a line for each claim."""

    name: str
    title: str
    markdown: str


class FrontPage(NamedTuple):
    """All that the first page shows; each notebook's conclusions and the picture are chapters of their own."""

    scored: str
    """Which model the tiles are of, and on how much."""
    tiles: list[Tile]
    markdown: list[NotebookConclusions]
    conclusions: list[Chapter]
    """The same as markup."""
    picture: Chapter | None

    @classmethod
    def of(cls, notebooks: Mapping[str, Any], titles: Mapping[str, str], scores: Mapping[str, Any]) -> FrontPage:
        """The first page of executed `notebooks` (nbformat 4) and their `titles`, both by name in order."""
        conclusions, chapters = notebook_conclusions(notebooks, titles), []
        for each in conclusions:
            chapter = _chapter(each.name, each.title, {"text/markdown": each.markdown})
            chapter.html = _marked(chapter.html)
            chapters.append(chapter)
        figure = narrowing(notebooks)
        picture = None if figure is None else _chapter(figure[0], titles[figure[0]], figure[1])
        return cls(_scored(scores), tiles(scores), conclusions, chapters, picture)


def _scored(scores: Mapping[str, Any]) -> str:
    models = [model for model in MODELS if model in scores]
    if not models:
        return ""
    card = scores[models[-1]].get("protocol", {})
    on = f", {card['rows']:,} queries of {card['videos']:,} videos" if "rows" in card and "videos" in card else ""
    return f"Greedy answers of the {MODELS[models[-1]]} model to the test split{on}: percent, with 95 % intervals."


def _chapter(name: str, title: str, data: Mapping[str, Any]) -> Chapter:
    """One output of a notebook as a chapter, made harmless as all of them are."""
    import nbformat

    cell = nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", dict(data))])
    chapter = read_chapter(nbformat.v4.new_notebook(cells=[cell]), f"front-{name}")
    chapter.name, chapter.title = name, title
    return chapter


def tiles(scores: Mapping[str, Any]) -> list[Tile]:
    """The score of the last model that was scored; none where none was."""
    models = [model for model in MODELS if model in scores]
    if not models:
        return []
    last, base = scores[models[-1]], scores[models[0]]
    constant = last.get("baselines", {}).get("best constant", {})
    made = []
    for key, name in SCORED.items():
        if (value := last["figures"].get(key)) is None:
            continue
        low, high = last["intervals"].get(key) or (None, None)
        beside = [] if len(models) == 1 else [f"{MODELS[models[0]]} {percent(base['figures'].get(key))}"]
        beside += [f"best constant {percent(constant[key])}"] if key in constant else []
        interval = "" if low is None or high is None else f"{percent(low)} to {percent(high)}"
        made.append(Tile(name, percent(value), interval, beside))
    return made


def notebook_conclusions(notebooks: Mapping[str, Any], titles: Mapping[str, str]) -> list[NotebookConclusions]:
    """Conclusions of notebooks: the markdown output of their last cell with any. A line that an earlier one has is left out.

    A notebook that stopped on the way concludes nothing.
    """
    earlier: set[str] = set()
    conclusions = []
    for name, notebook in notebooks.items():
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.get("source")]
        shown = [text for output in (cells[-1].get("outputs", []) if cells else []) if (text := _markdown(output))]
        lines = [line for text in shown for line in text.splitlines() if line.strip() and line not in earlier]
        earlier |= set(lines)
        if lines:
            conclusions.append(NotebookConclusions(name, titles[name], "\n".join(lines)))
    return conclusions


def narrowing(notebooks: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The newest figure of how chains narrow: its notebook's name, and its output by mime type."""
    for name, notebook in reversed(list(notebooks.items())):
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                if shows_narrowing(data := output.get("data", {})):
                    return name, data
    return None


def shows_narrowing(data: Mapping[str, Any]) -> bool:
    """Whether an output is the figure of narrowing."""
    figure = data.get(PLOTLY) if isinstance(data, dict) else None
    title = figure.get("layout", {}).get("title", {}) if isinstance(figure, dict) else {}
    return isinstance(title, dict) and NARROWING in str(title.get("text", ""))


def _marked(html: str) -> str:
    """A list whose lines carry what came of them, and their evidence apart from what it is evidence of, for the style sheet."""

    def line(found: re.Match[str]) -> str:
        kind = {"Yes.": "yes", "No.": "no"}.get(found["word"] or "", "")
        word = f"<strong>{found['word']}</strong> " if found["word"] else ""
        return f'<li class="{kind}">{word}{found["claim"]}: <span>{found["evidence"]}</span></li>'

    return _LINE.sub(line, html)


def _markdown(output: Any) -> str:
    data = output.get("data", {})
    return text_of(data, "text/markdown") if isinstance(data, dict) else ""


def percent(value: float | None) -> str:
    """A fraction as a page shows it, a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"
