"""Notebooks: one executed by Papermill, in this very interpreter, with an honest file left behind when it fails.

Papermill alone takes whatever kernel is registered as `python3`, which may belong to another environment. And after a
killed kernel the saved notebook calls cells completed that never ran, and shows no error.
"""

from __future__ import annotations

import builtins
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from labkit.errors import NEXT_STEPS, Terminated

BANNER_TAG = "labkit-error"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class NotebookError(RuntimeError):
    """A notebook stopped before its end; `user_error` tells bad input from a fault of the code."""

    def __init__(self, message: str, user_error: bool = False) -> None:
        """`message` names the notebook, the cell and what was raised there."""
        super().__init__(message)
        self.user_error = user_error


def execute(
    source: Path, target: Path, parameters: Mapping[str, Any], *, cwd: Path, say: Callable[[str], None]
) -> None:
    """Execute the notebook `source` with `parameters` into `target`, and hand each line that it prints to `say`.

    The notebook grows under a temporary name beside `target` and gets its name at the end, also when a cell fails:
    then with a banner on top that says what happened. Raises NotebookError in that case.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    temporary = target.with_name(f".{target.stem}.running.ipynb")
    lines = _Lines(say)
    # One params file serves all five notebooks; their second cells check the names, so Papermill need not.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("papermill.translators").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            source,
            temporary,
            parameters=dict(parameters),
            engine_name=_register_engine(),
            progress_bar=False,
            cwd=cwd,
            stdout_file=lines,
            stderr_file=lines,
            coalesce_streams=True,
            kernel_manager_class=_kernel_manager_class(),
        )
    except papermill.PapermillExecutionError as error:
        lines.close()
        _mark(temporary, f"{error.ename}: {error.evalue}")
        message = f"{target.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        user_error = error.ename == "LabError"
        if trouble := _file_trouble(error.ename, error.evalue):
            message += f"; {trouble}"
        elif not user_error:
            message += "\n" + COLOURS.sub("", "\n".join(error.traceback))
        raise NotebookError(f"{message}\nwhat it had reached is in {target}", user_error) from None
    except DeadKernelError:
        _mark(temporary, "the kernel died (killed, or out of memory)")
        raise NotebookError(
            f"{target.name}: the kernel died, as it does when it is killed or runs out of memory; what it had reached "
            f"is in {target}. The same command goes on from the newest checkpoint"
        ) from None
    except BaseException as error:
        _mark(temporary, _how_it_ended(error))
        raise
    finally:
        lines.close()
        if temporary.exists():
            os.replace(temporary, target)
            sign(target, say)


def sign(path: Path, say: Callable[[str], None]) -> None:
    """Trust a notebook that this program wrote, in the user's own database, as `jupyter trust` does.

    JupyterLab shows the widgets and the HTML of no other. What keeps it from being signed is one line to `say`.
    """
    import nbformat
    from nbformat.sign import NotebookNotary

    trusted, why = False, "its signature was not kept"
    try:
        notebook = nbformat.read(path, 4)
        for step in ("sign", "check_signature"):  # a database that cannot be written is one in memory, without a word
            notary = NotebookNotary()
            try:
                trusted = bool(getattr(notary, step)(notebook))
            finally:
                notary.store.close()
    except Exception as error:  # a home that is read-only, a locked or broken database: the notebook is none the worse
        why = str(error)
    if not trusted:
        say(
            f"{path.name} is not signed ({why}); JupyterLab shows its explorers after: jupyter trust {quote(str(path))}"
        )


def _how_it_ended(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return f"ended from outside ({error.signal})"
    return "interrupted (Ctrl-C)" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _file_trouble(name: str, value: str) -> str | None:
    """The next step where a cell was ended by an OSError of the file system, from its name and text."""
    found = re.match(r"\[Errno (\d+)\]", value) if isinstance(getattr(builtins, name, None), type) else None
    return NEXT_STEPS.get(int(found[1])) if found else None


def _kernel_manager_class() -> type:
    """A kernel manager that starts this interpreter, whatever kernels are installed and whatever they are called."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=50"]
            return KernelSpec(argv=argv, display_name="Python 3", language="python")

    return ThisInterpreter


def _register_engine() -> str:
    """Papermill's name of the engine that keeps the saved notebook honest, and easy to read."""
    from papermill.engines import papermill_engines

    from labkit.runs.papermill_engine import HonestEngine

    papermill_engines.register("labkit", HonestEngine)  # an entry point, too, once labkit is installed
    return "labkit"


def _mark(path: Path, what: str) -> None:
    """Put a banner on top of a notebook that stopped."""
    import nbformat

    if not path.exists():
        return
    notebook = nbformat.read(path, 4)
    text = what.strip().replace("`", "'").splitlines()
    cell = nbformat.v4.new_markdown_cell(
        f"> **This run stopped:** `{text[0] if text else 'unknown'}`\n>\n> Cells below the last output did not run.",
        metadata={"tags": [BANNER_TAG]},
    )
    notebook.cells.insert(0, cell)
    nbformat.write(notebook, path)


class _Lines:
    """A text stream that hands on whole lines, for a batch log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text.replace("\r", "\n")).split("\n")
        for line in lines:
            if line.strip():
                self.say(line)
        return len(text)

    def flush(self) -> None:
        """Nothing: a line is handed on when it is whole."""

    def close(self) -> None:
        if self.rest.strip():
            self.say(self.rest)
        self.rest = ""
