"""A Papermill engine, `papermill --engine labkit`, and a filter of Papermill's warnings about parameters that labkit knows.

Papermill imports this module by its entry point, whichever engine is asked for.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from typing import Any

from labkit.progress import fold_progress


def __getattr__(name: str) -> Any:
    """`HonestEngine`, made when it is asked for: Papermill asks while it is itself being imported."""
    if name == "HonestEngine":
        return _engine()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _engine() -> type:
    from papermill.engines import NBClientEngine

    class HonestEngine(NBClientEngine):
        """Executes as Papermill does; when the kernel is lost, it leaves cells marked as what they are.

        A notebook whose parameters were injected shows them once, and of a work's progress the last line.
        """

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> None:
            """Execute all cells; raises what the client raised."""
            _hide_defaults(nb_man.nb)
            _save_before_code(nb_man)
            try:
                super().execute_managed_notebook(nb_man, kernel_name, **options)
            except BaseException:
                broken = False
                for cell in nb_man.nb.cells:
                    status = cell.metadata.get("papermill", {})
                    if broken:
                        status.update(status="pending", exception=None)
                    elif cell.cell_type == "code" and not _answered(cell):
                        status.update(status="failed", exception=True)
                        broken = True
                _fold_progress(nb_man.nb)
                nb_man.save()
                # Papermill marks every cell completed on its way out; it must not, now that this is said.
                nb_man.notebook_complete = lambda: None
                raise
            _fold_progress(nb_man.nb)

    return HonestEngine


def _save_before_code(nb_man: Any) -> None:
    """Have a notebook written when a code cell begins, so that all before it is on disk, and by Papermill's clock within long cells.

    Papermill writes all of it twice a cell, and twice a cell of text.
    """
    save = nb_man.save

    def saving(method: Callable[..., None], begins: bool) -> Callable[..., None]:
        def call(cell: Any, *args: Any, **options: Any) -> None:
            nb_man.save = save if begins and cell.cell_type == "code" else lambda **_: None
            try:
                method(cell, *args, **options)
            finally:
                nb_man.save = save

        return call

    nb_man.cell_start = saving(nb_man.cell_start, begins=True)
    nb_man.cell_complete = saving(nb_man.cell_complete, begins=False)


def _answered(cell: Any) -> bool:
    """Whether the kernel reported the end of this cell; its number, which comes first, says only that it began."""
    return "shell.execute_reply" in cell.metadata.get("execution", {}) or not cell.source.strip()


def _hide_defaults(notebook: Any) -> None:
    """Fold the cell of defaults away where the values in force stand in a cell below it; a click opens it."""
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "injected-parameters" in tags and "parameters" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {**cell.metadata.get("jupyter", {}), "source_hidden": True}


def _fold_progress(notebook: Any) -> None:
    """Leave the last line of each work's progress: what a batch log needs, a reader below a finished monitor does not."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stdout":
                output.text = fold_progress(output.text)


class KnownParameters(logging.Filter):
    """Keeps Papermill from calling labkit's parameters unknown: one file serves five notebooks, whose first cells name few.

    Their second cells refuse the names that labkit does not know either.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be logged."""
        found = re.fullmatch(r"Passed unknown parameter: (\w+)", record.getMessage())
        if not found:
            return True
        from labkit.params import names

        return found[1] not in names()


logging.getLogger("papermill").addFilter(KnownParameters())
