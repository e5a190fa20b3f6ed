"""The report of one notebook for nbconvert: in JupyterLab's export menu, and `jupyter nbconvert --to labkit_report`."""

from __future__ import annotations

from typing import Any

from nbconvert.exporters.exporter import Exporter

from labkit.views.report.notebook_html import read_chapter
from labkit.views.report.report import report_page


class ReportExporter(Exporter):
    """One HTML file of an executed notebook that needs neither kernel nor network; the notebook need not be trusted.

    Not built on nbconvert's HTML templates: those bring JupyterLab's style sheets and ask three networks for scripts.
    """

    export_from_notebook = "labkit report (HTML that works offline)"
    output_mimetype = "text/html"

    def _file_extension_default(self) -> str:
        return ".html"

    def from_notebook_node(
        self, nb: Any, resources: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The page of a notebook, and nbconvert's resources."""
        notebook, known = super().from_notebook_node(nb, resources, **kwargs)
        name = str((known.get("metadata") or {}).get("name") or "notebook")
        chapter = read_chapter(notebook, name)
        return report_page(chapter.title, [chapter]), known
