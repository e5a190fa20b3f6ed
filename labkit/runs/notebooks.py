"""The five notebooks of a run: laid out in a project, executed in sequence by Papermill, and passed over where a stage is skipped.

A checkout holds notebooks/ and params/ at its root; a wheel has a copy in labkit/project_files, made when it is built (setup.py).
Papermill alone takes whatever kernel is registered as `python3`, which may belong to another environment; and after a
killed kernel it saves a notebook that calls cells completed that never ran, and shows no error.
"""

from __future__ import annotations

import ast
import builtins
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from labkit.errors import NEXT_STEPS, LabError, NotebookError, Stopped, Terminated
from labkit.files import lock, replacing, unlock
from labkit.params import Params, assigned_names, names, read_params
from labkit.policy.model import SHIPPED
from labkit.progress import duration, tee
from labkit.progress import say as to_stdout
from labkit.quick_imports import quick_nbformat
from labkit.runs.run import STAGES, Run
from labkit.stages.distributed.launcher_variables import launcher_variables
from labkit.stages.distributed.preemption import handle_preemption, stop_requested

BANNER_TAG = "labkit-error"
ANSI_COLORS = re.compile(r"\x1b\[[0-9;]*m")
FORGET = """
(lambda shell: (
    [shell.user_ns.pop(name) for name in set(shell.user_ns) - set(shell.user_ns_hidden)],
    shell.displayhook.flush(),
    setattr(shell, "execution_count", 1),
))(get_ipython())
"""
"""Leaves a kernel without what a notebook has defined, shown and counted. Libraries and the browser stay, and so does what
IPython hides: its own names, and those of a user's startup files, which `reset` would clear under the feet of their functions."""
FORGET_SECONDS = 120


def run_notebooks(
    params_file: str | Path, overrides: Mapping[str, Any] | None = None, say: Callable[[str], None] | None = None
) -> Run:
    """Run the five notebooks in sequence, each by Papermill, into the run's directory; finished ones are skipped.

    `say` takes plain lines of progress; by default they go to standard output. Everything is checked before any work.
    Raises LabError for bad input, NotebookError when a cell fails, and Stopped when SIGUSR2 asked the
    run to stop; the partial notebook is then in the run's directory.
    """
    run = Run.open(read_params(params_file, overrides), check=notebooks_of)
    sources = notebooks_of(run.root)
    lock(run.path / ".sequence.lock", "labkit run")
    try:
        log = tee(run.path, say or to_stdout)
        for launcher, names in launcher_variables(os.environ).items():
            if launcher != "srun":  # which has them in every job
                log(
                    f"ignored: {launcher}'s variables ({', '.join(names)}); the parameters say how many processes work"
                )
        with handle_preemption(run.path / ".stop"), shared_kernel(run.params) as kernel:
            _run_sequence(run, sources, log, kernel)
    finally:
        unlock(run.path / ".sequence.lock")
    return run


def _run_sequence(run: Run, sources: Mapping[str, Path], say: Callable[[str], None], kernel: Any) -> None:
    params, start = run.params, time.monotonic()
    # The defaults stand in the notebooks' own cells or in Params: only what differs needs to be said there.
    given = {name: value for name, value in params.as_dict().items() if name == "run" or name in params.changed()}
    for number, name in enumerate(STAGES, 1):
        begin, target, label = time.monotonic(), run.path / f"{name}.ipynb", f"[{number}/{len(STAGES)}] {name}"
        if run.finished(name) and target.exists():
            say(f"{label} is finished, skipped")
            continue
        if why := run.skipped(name):
            _write_skipped(sources[name], target, why)
            say(f"[{number}/{len(STAGES)}] {why}")
            continue
        say(f"{label} ...")
        try:
            execute(sources[name], target, given, cwd=run.root, say=lambda line: say(f"    {line}"), kernel=kernel)
        except NotebookError:
            if not stop_requested():  # otherwise the error is the stop itself, in this process or in a worker
                raise
        if stop_requested() and not run.finished(STAGES[-1]):
            say(f"{label} stopped as asked")
            raise Stopped(f"run '{params.run}' stopped as asked; the same command goes on from there")
        if not run.finished(name):
            raise LabError(f"'{sources[name]}' did not finish its stage; it must end in run.finish('{name}', ...)")
        say(f"{label} finished in {duration(time.monotonic() - begin)}")
    say(f"all stages finished in {duration(time.monotonic() - start)}; look at {run.path}")


def _write_skipped(source: Path, target: Path, why: str) -> None:
    """What stands for the executed notebook of a stage that is skipped: its heading, and why."""
    import nbformat

    notebook = nbformat.read(source, 4)
    heading = notebook.cells[0].source.splitlines()[0]
    notebook.cells = [nbformat.v4.new_markdown_cell(f"{heading}\n\n{why}")]
    with replacing(target) as draft:
        nbformat.write(notebook, draft)


@contextmanager
def shared_kernel(params: Params) -> Iterator[Any]:
    """A manager of one kernel for all notebooks, whose imports and browser each would pay again; it ends with the block.

    None where the base is not labkit's own: with its kernel goes all that a real model leaves in a GPU's memory.
    """
    if params.model not in SHIPPED:
        yield None
        return
    manager, newest = _kernel_manager_class()(), list[Any]()
    make_client = manager.client

    def only_client(**options: Any) -> Any:  # Papermill leaves the channels of a kernel open that lives on
        while newest:
            newest.pop().stop_channels()
        newest.append(make_client(**options))
        return newest[0]

    manager.client = only_client
    try:
        yield manager
    finally:
        while newest:
            newest.pop().stop_channels()
        if manager.has_kernel:
            from jupyter_core.utils import run_sync

            run_sync(manager.shutdown_kernel)()


async def _forget(kernel: Any) -> None:
    """Leave a kernel as it began, but for what is loaded; one that does not answer any more is started anew."""
    client = kernel.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=FORGET_SECONDS)
        await client.execute(FORGET, silent=True, reply=True, timeout=FORGET_SECONDS)
    except (RuntimeError, TimeoutError):
        await kernel.restart_kernel(now=True)


def execute(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    *,
    cwd: Path,
    say: Callable[[str], None],
    kernel: Any = None,
) -> None:
    """Execute the notebook `source` with `parameters` into `target`, and hand each line that it prints to `say`.

    `kernel`, a manager, is started or used again, and lives on; without it the notebook has a kernel of its own. The notebook
    grows under a temporary name beside `target` and gets its name at the end, also when a cell fails:
    then with a banner on top that says what happened. Raises NotebookError in that case.
    """
    quick_nbformat()  # which papermill loads
    import papermill
    from jupyter_core.utils import run_sync
    from nbclient.exceptions import DeadKernelError

    temporary = target.with_name(f".{target.stem}.running.ipynb")
    lines = _LineWriter(say)
    if kernel is not None and kernel.has_kernel:
        run_sync(_forget)(kernel)
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
            **({"kernel_manager_class": _kernel_manager_class()} if kernel is None else {"km": kernel}),
        )
    except papermill.PapermillExecutionError as error:
        lines.close()
        _add_banner(temporary, f"{error.ename}: {error.evalue}")
        message = f"{target.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}"
        user_error = error.ename == "LabError"
        if trouble := _file_trouble(error.ename, error.evalue):
            message += f"; {trouble}"
        elif not user_error:
            message += "\n" + ANSI_COLORS.sub("", "\n".join(error.traceback))
        raise NotebookError(f"{message}\nthe partial notebook is {target}", user_error) from None
    except DeadKernelError:
        _add_banner(temporary, "the kernel died (killed, or out of memory)")
        raise NotebookError(
            f"{target.name}: the kernel died, as it does when it is killed or runs out of memory; the partial "
            f"notebook is {target}. The same command goes on from the newest checkpoint"
        ) from None
    except BaseException as error:
        _add_banner(temporary, _end_reason(error))
        raise
    finally:
        lines.close()
        if temporary.exists():
            os.replace(temporary, target)
            sign(target, say)


def sign(path: Path, say: Callable[[str], None]) -> None:
    """Trust a notebook that this program wrote, in the user's own database, as `jupyter trust` does.

    JupyterLab shows the widgets and the HTML of no other. A failure is reported in one line to `say`.
    """
    import nbformat
    from nbformat.sign import NotebookNotary

    trusted, why = False, "its signature was not kept"
    try:
        notebook = nbformat.read(path, 4)
        for step in ("sign", "check_signature"):  # a database that cannot be written silently becomes one in memory
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


def _end_reason(error: BaseException) -> str:
    if isinstance(error, Terminated):
        return f"terminated ({error.signal})"
    return "interrupted (Ctrl-C)" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"


def _file_trouble(name: str, value: str) -> str | None:
    """The next step where a cell raised an OSError of the file system, from the error's name and text."""
    match = re.match(r"\[Errno (\d+)\]", value) if isinstance(getattr(builtins, name, None), type) else None
    return NEXT_STEPS.get(int(match[1])) if match else None


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
    """Register labkit's Papermill engine, which saves the true state of each cell, and return its name."""
    from papermill.engines import papermill_engines

    from labkit.runs.papermill_engine import HonestEngine

    papermill_engines.register("labkit", HonestEngine)  # an entry point, too, once labkit is installed
    return "labkit"


def _add_banner(path: Path, what: str) -> None:
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


class _LineWriter:
    """A text stream that passes complete lines to `say`, for a batch log."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text.replace("\r", "\n")).split("\n")
        for line in lines:
            if line.strip():
                self.say(line)
        return len(text)

    def flush(self) -> None:
        """Nothing: a line is passed on when it is complete."""

    def close(self) -> None:
        if self.rest.strip():
            self.say(self.rest)
        self.rest = ""


PARTS = {"notebooks": ("[!.]*.ipynb",), "params": ("[!.]*.yaml", "controls/[!.]*.yaml")}
"""The folders of a project, and what belongs to each."""
_PACKAGE = Path(__file__).parents[1]


def lay_out(folder: str | Path) -> list[Path]:
    """Write notebooks/ and params/ into `folder`, made if it is not there, and return the files.

    Raises LabError, with nothing written, when one of the two is there already or `folder` is no folder, and when this labkit has
    lost them.
    """
    folder = Path(folder)
    home = _PACKAGE / "project_files"
    if not home.is_dir():
        home = _PACKAGE.parent
    sources = {
        name: [file for pattern in patterns for file in sorted((home / name).glob(pattern))]
        for name, patterns in PARTS.items()
    }
    if lost := [name for name, files in sources.items() if not files]:
        raise LabError(f"'{home}' holds no {' and no '.join(lost)}; install labkit again")
    if folder.exists() and not folder.is_dir():
        raise LabError(f"'{folder}' is a file; name a folder")
    if there := [str(folder / name) for name in sources if (folder / name).exists()]:
        raise LabError(f"{' and '.join(map(repr, there))} exist already; name a folder without them")
    written = []
    for name, files in sources.items():
        (folder / name).mkdir(parents=True)
        for source in files:
            target = folder / source.relative_to(home)
            target.parent.mkdir(exist_ok=True)
            with replacing(target) as draft:
                shutil.copyfile(source, draft)  # not the rights of an installed file, which may be read-only
            written.append(target)
    return written


def notebooks_of(root: Path) -> dict[str, Path]:
    """The five notebooks of the project in `root`, by stage; raises LabError when one is not there."""
    sources = {name: root / "notebooks" / f"{name}.ipynb" for name in STAGES}
    for source in sources.values():
        if not source.is_file():
            raise LabError(
                f"there is no notebook '{source}'; run labkit inside a project, such as the one that `labkit new FOLDER` "
                "lays out"
            )
    return sources


class _PassOver(ast.NodeTransformer):
    """Empties each cell that IPython runs, but those of parameters and those that open a lab."""

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.Module):
            return node
        source = ast.unparse(node)
        if "from_notebook" not in source and not _is_of_parameters(node, assigned_names(source)):
            node.body = []
        return node


def _is_of_parameters(cell: ast.Module, assigned: set[str]) -> bool:
    """Whether a cell assigns parameters, and needs nothing of cells that are passed over: a variable may be called like one."""
    found = [each for each in ast.walk(cell) if isinstance(each, ast.Name)]
    read = {each.id for each in found if isinstance(each.ctx, ast.Load)}
    own = assigned | {each.id for each in found if not isinstance(each.ctx, ast.Load)}
    return bool(assigned & set(names())) and read <= {*own, *names(), *dir(builtins)}


def pass_over_cells(why: str) -> None:
    """Say `why` the notebook's stage is skipped, and have its later cells do nothing until a lab is opened anew.

    With no reason they are run as usual; outside of a notebook nothing happens.
    """
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import Markdown, display

    shell = get_ipython()
    if shell is None:
        return
    shell.ast_transformers[:] = [each for each in shell.ast_transformers if not isinstance(each, _PassOver)]
    if why:
        shell.ast_transformers.append(_PassOver())
        display(Markdown(f"**{why}** The cells below do nothing."))
