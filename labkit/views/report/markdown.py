"""A run's notebooks as a small folder of markdown and pictures, which GitHub shows and a repository can hold."""

from __future__ import annotations

import base64
import binascii
import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.files import replacing
from labkit.runs.notebooks import BANNER_TAG
from labkit.runs.results import read_results
from labkit.runs.run import STAGES
from labkit.table import Table
from labkit.views.report import sanitize
from labkit.views.report.front import FrontPage, shows_narrowing
from labkit.views.report.notebook_html import PAPERMILL_TAG, QUIET_LINES, join_streams, text_of, to_webp
from labkit.views.report.report import executed, read_notebook, summary

MARK = "<!-- written by labkit publish -->"
PICTURES = "pictures"
_CODE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)((?:(?: {4}|\t)[^\n]*(?:\n|\Z))+)")
_RUNS = re.compile(
    r"(\]\s*\(\s*<?|^\s*\[[^\]]+\]:\s*<?)\s*(?:javascript|vbscript|data):", re.IGNORECASE | re.MULTILINE
)


def publish(run_folder: str | Path, folder: str | Path) -> list[Path]:
    """Write `README.md`, a page for each executed notebook and their pictures into `folder`; returns the files.

    A folder that an earlier call wrote is brought up to date. Raises LabError when `run_folder` holds no run or none
    of its notebooks, and when `folder` holds a README.md of somebody else.
    """
    run_folder, folder = Path(run_folder), Path(folder)
    notebooks = {name: read_notebook(path) for name, path in executed(run_folder).items()}
    page_summary = summary(run_folder)
    _claim(folder)
    pages = {name: _MarkdownPage(notebook, name) for name, notebook in notebooks.items()}
    files = {f"{name}.md": page.text.encode() for name, page in pages.items()}
    files |= {f"{PICTURES}/{file}": data for page in pages.values() for file, data in page.pictures.items()}
    front = FrontPage.of(
        notebooks, {name: page.title for name, page in pages.items()}, read_results(run_folder)["scores"]
    )
    files["README.md"] = _front(run_folder.resolve().name, page_summary, pages, front).encode()
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(data)
    for left in [*(folder / PICTURES).glob("*.webp"), *(folder / f"{stage}.md" for stage in STAGES)]:
        if left.exists() and left.relative_to(folder).as_posix() not in files:
            left.unlink()
    return [folder / name for name in files]


def _claim(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise LabError(f"'{folder}' is a file; name a folder to publish to")
    front = folder / "README.md"
    if front.exists() and not front.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise LabError(f"'{front}' was not written by `labkit publish`; name another folder, or move that file away")


class _MarkdownPage:
    """A notebook as markdown, and its pictures by their files' names."""

    def __init__(self, notebook: Any, name: str) -> None:
        self.name, self.notebook = name, notebook
        self.pictures: dict[str, bytes] = {}
        self.title = name
        self.narrowing = ""
        """The picture of narrowing, where the notebook has one."""
        self.language = str(notebook.metadata.get("language_info", {}).get("name", "python"))
        blocks = [block for cell in notebook.cells for block in self.cell(cell) if block.strip()]
        self.text = "\n\n".join([MARK, *blocks, "[All notebooks of this run](README.md)\n"])

    def cell(self, cell: Any) -> Iterable[str]:
        source = "".join(cell.get("source", ""))
        if cell.cell_type == "markdown":
            if PAPERMILL_TAG in cell.metadata.get("tags", []):
                return  # the error itself stands in its place
            heading = re.match(r"#\s+(.+)", source)
            if heading and self.title == self.name and BANNER_TAG not in cell.metadata.get("tags", []):
                self.title = safe_markdown(heading[1].strip())
            yield safe_markdown(source)
            return
        if cell.cell_type != "code":
            return
        if source.strip():
            yield f"<details><summary>Code</summary>\n\n{_fenced(source, self.language)}\n\n</details>"
        for output in join_streams(cell.get("outputs", [])):
            yield self.output(output)

    def output(self, output: Any) -> str:
        kind = output.get("output_type")
        if kind == "stream":
            text = sanitize.terminal_text("".join(output.get("text", ""))).strip()
            lines = text.splitlines()
            if len(lines) <= QUIET_LINES:
                return _fenced(text, "text") if text else ""
            return f"<details><summary>{len(lines)} printed lines</summary>\n\n{_fenced(text, 'text')}\n\n</details>"
        if kind == "error":
            return _fenced(
                sanitize.terminal_text("\n".join(output.get("traceback", []))) or output.get("evalue", ""), "text"
            )
        data = output.get("data", {})
        if made := self.picture(data):
            return made
        if "text/markdown" in data:
            return safe_markdown(text_of(data, "text/markdown"))
        if "text/html" in data and not text_of(data, "text/html").strip():
            return ""  # a progress bar that has come to its end
        text = text_of(data, "text/plain")
        return _fenced(text, "text") if text.strip() else ""

    def picture(self, data: Mapping[str, Any]) -> str:
        if "image/png" not in data:
            return ""
        try:
            shown = to_webp(base64.b64decode(text_of(data, "image/png")))
        except (ValueError, binascii.Error):
            return ""
        file = f"{self.name}-{len(self.pictures) + 1}.webp"
        self.pictures[file] = shown
        words = " ".join(text_of(data, "text/plain").split()) or "figure"
        shown_there = f"![{safe_markdown(words, words=True)}]({PICTURES}/{file})"
        if shows_narrowing(data):
            self.narrowing = shown_there
        return shown_there


def safe_markdown(source: str, words: bool = False) -> str:
    r"""Markdown in which no HTML and no script address is left; with `words` it is plain text and nothing else.

    >>> safe_markdown("a **b** <script>x()</script> `<i>`")
    'a **b** &lt;script>x()&lt;/script> `<i>`'
    >>> safe_markdown("[x](y) *a*", words=True)
    '\\[x\\](y) \\*a\\*'
    """
    if words:
        return sanitize.escape_markdown(source)
    source = sanitize.safe_text(source)
    parts = _CODE.split(source)
    for at in range(0, len(parts), 2):
        parts[at] = _safe_words(parts[at])
    return "".join(parts)


def _safe_words(text: str) -> str:
    """The same for a piece between two pieces of code; code by indentation is fenced, so that it stays code."""
    pieces = _INDENTED.split(text)
    for at, piece in enumerate(pieces):
        if at % 2:
            pieces[at] = _fenced(textwrap.dedent(piece), "text") + "\n"
        else:
            pieces[at] = _RUNS.sub(r"\1#", re.sub(r"<(?=[a-zA-Z/!?])(?!https?:)", "&lt;", piece))
    return "".join(pieces)


def _fenced(text: str, language: str) -> str:
    """Text as a block of code that nothing in it can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{sanitize.safe_text(text).rstrip()}\n{fence}"


def _front(run: str, page_summary: Mapping[str, Any], pages: Mapping[str, _MarkdownPage], front: FrontPage) -> str:
    """The first page: what the run came to, what it was, its results, and the way to the notebooks."""
    facts = Table(
        "", ("", ""), [[name, safe_markdown(value, words=True)] for name, value in page_summary["facts"]], align="l"
    ).markdown()
    blocks = [MARK, f"# Run {safe_markdown(run, words=True)}"]
    if page_summary["stopped"]:
        blocks.append(f"> **This run is not finished.** {page_summary['stopped']}")
    if front.tiles:
        rows = [
            [sanitize.escape_markdown(t.name), f"**{t.value}**", t.interval or "–", ", ".join(t.beside)]
            for t in front.tiles
        ]
        blocks += [Table("", ("", "score", "95 % interval", "beside"), rows, align="lrrl").markdown(), front.scored]
    if pictures := [picture for page in pages.values() if (picture := page.narrowing)]:
        blocks.append(pictures[-1])
    blocks += [f"### [{each.title}]({each.name}.md)\n\n{safe_markdown(each.markdown)}" for each in front.markdown]
    blocks += ["## The run", facts]
    for table in page_summary["results"]:
        rows = [
            [row["name"], *(f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in row["cells"])]
            for row in table["rows"]
        ]
        blocks += [
            f"## Results, {table['title']}",
            Table("", ("model", *map(sanitize.escape_markdown, table["columns"])), rows, align="lr").markdown(),
        ]
    if page_summary["results"]:
        blocks.append(" ".join(page_summary["legend"].split()) + " Bold: the highest of its column.")
    blocks.append("## Notebooks")
    blocks.append("\n".join(f"- [{page.title}]({name}.md)" for name, page in pages.items()))
    blocks.append("## Parameters")
    rows = [
        [f"`{each['name']}`", safe_markdown(each["value"], words=True), safe_markdown(each["default"], words=True)]
        for each in page_summary["parameters"]
    ]
    changed = Table("", ("differs from the default", "value", "default"), rows, align="l")
    blocks.append(changed.markdown() if rows else "All are the defaults.")
    return "\n\n".join(blocks) + "\n"
