"""How a run ends that something outside ends: a signal, a reader that goes away, a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from labkit.errors import NotebookError, Terminated
from labkit.progress import say, tee
from labkit.runs.notebooks import BANNER_TAG, run_notebooks
from labkit.stages.distributed import preemption
from tests.runs.test_run import kernels_find_labkit, only, project, write_notebooks

__all__ = ["kernels_find_labkit", "project"]
LONG = "print('long work', flush=True); import time; time.sleep(60)"


@contextmanager
def started(folder: Path, reads: bool = True) -> Iterator[subprocess.Popen[str]]:
    """`labkit run` in the middle of its second notebook."""
    process = subprocess.Popen(
        [sys.executable, "-m", "labkit", "run", "params/p.yaml"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        assert process.stdout
        while "long work" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (signal.SIGTERM, 143, "terminated (SIGTERM)"),  # left a hidden .running file and no notebook
        (signal.SIGHUP, 129, "terminated (SIGHUP)"),  # a terminal that is closed
        (signal.SIGINT, 130, "interrupted (Ctrl-C)"),
    ],
)
@pytest.mark.slow
def test_a_signal_leaves_the_notebook_as_far_as_it_came(project, number, code, says):
    write_notebooks(project, distill=LONG)
    only(project, "02_distill")
    with started(project) as process:
        process.send_signal(number)
        assert process.wait(60) == code
        assert process.stderr and "the same command goes on" in process.stderr.read()
    notebook = nbformat.read(project / "outputs/x/02_distill.ipynb", 4)
    assert BANNER_TAG in notebook.cells[0].metadata["tags"] and says in notebook.cells[0].source
    assert "long work" in str([cell.get("outputs") for cell in notebook.cells])
    assert not list((project / "outputs/x").glob(".*.ipynb"))


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_a_run_whose_reader_goes_away_goes_on_and_keeps_its_log(project):
    write_notebooks(project, distill="print('early', flush=True); import time; time.sleep(2); print('late')")
    only(project, "02_distill")
    command = [sys.executable, "-m", "labkit", "run", "params/p.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        while "early" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        process.stdout.close()  # labkit run ... | head
        assert (process.stderr.read(), process.wait(60)) == ("", 0)
    log = (project / "outputs/x/log.txt").read_text()
    assert "late" in log and "all stages finished" in log


def test_a_line_is_in_the_log_before_anybody_hears_it(tmp_path):
    def gone(line: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        tee(tmp_path, gone)("a line")
    assert (tmp_path / "log.txt").read_text().endswith(" a line\n")


def test_a_closed_standard_output_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    say("nobody hears it")


@pytest.mark.parametrize("number", preemption.TERMINATION_SIGNALS)
def test_a_second_signal_does_not_disturb_the_first(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Terminated) as caught, preemption.handle_preemption(tmp_path / "stop"):
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is before


def test_what_was_to_be_ignored_is_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with preemption.handle_preemption(tmp_path / "stop"):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_a_full_disk_in_a_cell_is_told_in_one_line_with_the_next_step(project):
    raising = f"raise OSError({errno.ENOSPC}, 'No space left on device', 'outputs/x/a.parquet')"
    write_notebooks(project, grpo=raising)
    with pytest.raises(NotebookError) as caught:
        run_notebooks("params/p.yaml", say=lambda line: None)
    told = str(caught.value)
    assert "No space left on device: 'outputs/x/a.parquet'; make room there" in told
    assert "Traceback" not in told and not caught.value.user_error
