"""What labkit brings to Papermill."""

from __future__ import annotations

import logging
from pathlib import Path

import nbformat
import psutil
import pytest

from labkit.errors import NotebookError
from labkit.params import DEFAULTS
from labkit.runs.notebooks import execute, shared_kernel, sign
from labkit.runs.papermill_engine import KnownParameters
from tests.browser.pages import write_notebook

CELL = """
from labkit.progress import Progress
class Clock:
    now = 0.0
    def __call__(self):
        Clock.now += 20
        return Clock.now
print("begins")
progress = Progress("grpo", 5, Clock())
for step in range(1, 6):
    progress(step)
print("ends")
"""


@pytest.mark.parametrize(
    ("message", "logged", "why"),
    [
        ("Passed unknown parameter: learning_rate", False, "one file serves all notebooks"),
        ("Passed unknown parameter: learning_rat", True, "really unknown"),
        ("Executing notebook with kernel: python3", True, "anything else"),
    ],
)
def test_papermill_calls_only_those_parameters_unknown_that_are(message: str, logged: bool, why: str) -> None:
    record = logging.LogRecord("papermill", logging.WARNING, "", 0, message, None, None)
    assert KnownParameters().filter(record) == logged, why
    assert any(isinstance(each, KnownParameters) for each in logging.getLogger("papermill").filters)


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One with parameters and a work that tells its progress."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    write_notebook(tmp_path / "in.ipynb", "run = 'x'", CELL)
    made = nbformat.read(tmp_path / "in.ipynb", 4)
    made.cells[0].metadata.tags = ["parameters"]
    nbformat.write(made, tmp_path / "in.ipynb")
    return tmp_path / "in.ipynb"


def test_a_batch_log_has_every_line_and_the_notebook_the_last_of_each_work(notebook: Path) -> None:
    said: list[str] = []
    out = notebook.with_name("out.ipynb")
    execute(notebook, out, {"run": "y"}, cwd=notebook.parent, say=said.append)
    assert [line.split(",")[0] for line in said if line.startswith("grpo")] == [f"grpo: {k} of 5" for k in range(1, 6)]
    cells = nbformat.read(out, 4).cells
    text = "".join(o.text for cell in cells for o in cell.get("outputs", []) if o.output_type == "stream")
    assert [line.split(",")[0] for line in text.splitlines()] == ["begins", "grpo: 5 of 5", "ends"]
    assert cells[0].metadata.jupyter.source_hidden and "injected-parameters" in cells[1].metadata.tags


@pytest.mark.slow
def test_a_notebook_is_written_when_a_code_cell_begins_with_all_that_was_shown_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    look = "import nbformat\n[cell.get('outputs') for cell in nbformat.read('.out.running.ipynb', 4).cells]"
    write_notebook(tmp_path / "in.ipynb", "print('shown')", look)
    made = nbformat.read(tmp_path / "in.ipynb", 4)
    made.cells[1:1] = [nbformat.v4.new_markdown_cell("text") for _ in range(3)]
    nbformat.write(made, tmp_path / "in.ipynb")
    written = []
    monkeypatch.setattr(
        "papermill.engines.write_ipynb", lambda nb, path: (written.append(1), nbformat.write(nb, path))
    )
    execute(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {}, cwd=tmp_path, say=print)
    assert len(written) == 1 + 2 + 1  # at the start, two code cells, at the end
    cells = nbformat.read(tmp_path / "out.ipynb", 4).cells
    assert "shown" in cells[-1].outputs[0].data["text/plain"]
    assert all(cell.metadata.papermill.status == "completed" for cell in cells)


@pytest.mark.slow
def test_notebooks_share_a_kernel_and_nothing_that_they_define(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    startup = tmp_path / "ipython/profile_default/startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("import string\ndef mine(): return string.digits[:2]\n")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    cells = {
        "first": "import os\nleft = _left = mine()\nos.getpid()",
        "second": "import os\n({'left', '_left'} & set(globals()), mine(), os.getpid())",  # a startup file's function works on
    }
    shown = []
    with shared_kernel(DEFAULTS) as kernel:
        for name, cell in cells.items():
            write_notebook(tmp_path / f"{name}.ipynb", cell)
            out = tmp_path / f"{name}-out.ipynb"
            execute(tmp_path / f"{name}.ipynb", out, {}, cwd=tmp_path, say=lambda line: None, kernel=kernel)
            shown.append(nbformat.read(out, 4).cells[-1])
    pid = shown[0].outputs[0].data["text/plain"]
    assert shown[1].outputs[0].data["text/plain"] == f"(set(), '01', {pid})"
    assert [cell.execution_count for cell in shown] == [1, 1]
    assert not psutil.pid_exists(int(pid)), "it ends with the sequence"
    with shared_kernel(DEFAULTS.replace(model="Qwen/Qwen2.5-VL-3B-Instruct")) as kernel:
        assert kernel is None, "a real model's memory goes with its kernel"


@pytest.mark.slow
def test_a_kernel_that_died_between_two_notebooks_is_replaced(tmp_path: Path) -> None:
    write_notebook(tmp_path / "in.ipynb", "import os\nos.getpid()")
    pids = []
    with shared_kernel(DEFAULTS) as kernel:
        for _ in range(2):
            execute(
                tmp_path / "in.ipynb", tmp_path / "out.ipynb", {}, cwd=tmp_path, say=lambda line: None, kernel=kernel
            )
            pids.append(int(nbformat.read(tmp_path / "out.ipynb", 4).cells[-1].outputs[0].data["text/plain"]))
            if len(pids) == 1:
                psutil.Process(pids[0]).kill()
    assert pids[0] != pids[1]


@pytest.mark.slow
def test_what_was_executed_is_trusted_by_its_user_and_by_nobody_else(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbformat.sign import NotebookNotary

    def trusted(path: Path) -> bool:
        notary = NotebookNotary()
        try:
            return bool(notary.check_signature(nbformat.read(path, 4)))
        finally:
            notary.store.close()

    out = tmp_path / "out.ipynb"
    execute(notebook, out, {}, cwd=tmp_path, say=lambda line: None)
    assert trusted(out) and not trusted(notebook)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "another user's"))
    assert not trusted(out)
    write_notebook(notebook, "1 / 0")
    with pytest.raises(NotebookError):
        execute(notebook, out, {}, cwd=tmp_path, say=lambda line: None)
    assert trusted(out), "what a failed run leaves behind is its own, too"


def test_a_signature_that_cannot_be_kept_is_one_line_and_no_error(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(notebook))  # a file, where a folder is needed
    said: list[str] = []
    sign(notebook, said.append)
    assert len(said) == 1 and said[0].startswith("in.ipynb is not signed") and "jupyter trust" in said[0]
