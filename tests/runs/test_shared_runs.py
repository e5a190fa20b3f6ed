"""Runs that several people or processes open: at once, one after another in a group, copied, renamed or read only."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

from labkit import files
from labkit.cli import main
from labkit.errors import LabError
from labkit.files import locked
from labkit.params import DEFAULTS, read_params
from labkit.progress import tee
from labkit.runs.results import read_results
from labkit.runs.run import STAGES, Run
from labkit.runs.versions import source_version, version_text
from tests import executed


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "project"
    for folder in ("notebooks", "params"):
        (root / folder).mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.3)
    monkeypatch.setattr(files, "_locks", {})
    return root


# --- at once


def _start(number: int, barrier, held, told) -> None:
    """What a notebook does in its first and last cell; the winner stays until the other has been refused."""
    params = DEFAULTS.replace(run=f"x{number}")
    barrier.wait()
    try:
        run = Run.open(params)
        run.start("01_grpo")
        held.wait(120)
        run.finish("01_grpo", {"n": os.getpid()})
        told.put("finished")
    except LabError as error:
        told.put(f"refused: {error}")
        held.set()
    except Exception as error:
        told.put(f"{type(error).__name__}: {error}")
        held.set()


@pytest.mark.slow
def test_of_two_notebooks_that_start_a_new_run_at_once_one_finishes_and_one_is_refused(project):
    context = multiprocessing.get_context("fork")
    for number in range(12):  # 7 of 12 winners failed in their last cell: the loser had wiped their entry
        barrier, held, told = context.Barrier(2), context.Event(), context.Queue()
        both = [context.Process(target=_start, args=(number, barrier, held, told)) for _ in range(2)]
        for each in both:
            each.start()
        words = sorted(told.get(timeout=180) for _ in both)
        for each in both:
            each.join()
        assert words[0] == "finished" and "is in use by a notebook" in words[1], (number, words)
        assert Run.open(DEFAULTS.replace(run=f"x{number}")).finished("01_grpo")


def test_whoever_waited_for_a_stage_that_another_finished_has_nothing_to_do(project, monkeypatch):
    run, other = Run.open(DEFAULTS), Run.open(DEFAULTS)
    run.start("01_grpo")
    run.finish("01_grpo", {"n": 1})
    states = iter([False, True])  # as it is asked before and behind the lock
    monkeypatch.setattr(Run, "finished", lambda self, name: next(states, True))
    assert other.start("01_grpo") is True
    assert run.manifest["stages"]["01_grpo"]["figures"] == {"n": 1}, "it was not begun again"


def test_a_manifest_is_not_written_while_another_writes_it(project, monkeypatch):
    monkeypatch.setattr("labkit.runs.run.MANIFEST_LOCK_TIMEOUT", 0.3)
    run = Run.open(DEFAULTS)
    context = multiprocessing.get_context("fork")
    files._locks.clear()
    ready, go = context.Event(), context.Event()

    def hold() -> None:
        with locked(run.path / ".manifest.lock", "another"):
            ready.set()
            go.wait(20)

    holder = context.Process(target=hold)
    holder.start()
    assert ready.wait(20)
    with pytest.raises(LabError, match="in use by another"):
        run.start("01_grpo")
    go.set()
    holder.join()
    assert run.start("01_grpo") is False


# --- in a group


def _second_user(told) -> None:
    """Goes on with the run as somebody who shares only a group with the first."""
    os.setgroups([GROUP])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    os.umask(0o002)
    try:
        params = read_params("outputs/x/params.yaml")
        run = Run.open(params)
        with locked(run.path / ".sequence.lock", "labkit run"):
            run.start("02_distill")
            run.cached_json("02_distill", "greedy", lambda: {"n": 1})
            tee(run.path, lambda line: None)("a line")
            run.finish("02_distill", {"n": 1})
        told.put(run.state("02_distill"))
    except BaseException as error:
        told.put(repr(error))


GROUP, NOBODY = 54321, 65534


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_files_have_the_rights_that_the_umask_leaves(project, mask):
    before = os.umask(mask)
    try:
        run = Run.open(DEFAULTS)
        run.start("01_grpo")
        run.cached_json("01_grpo", "greedy", lambda: {"n": 1})
    finally:
        os.umask(before)
    found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.path.rglob("*") if path.is_file()}
    assert {".stage.lock", ".manifest.lock", "manifest.json", "greedy.json"} <= set(found)
    assert found == dict.fromkeys(found, 0o666 & ~mask)


@pytest.mark.skipif(os.geteuid() != 0, reason="LOUD: needs root to become a second user; a group's run is not tested")
@pytest.mark.parametrize("closed", [False, True], ids=["group may write", "locks of an older labkit, 0644"])
def test_a_second_user_of_a_group_folder_goes_on(project, monkeypatch, closed):
    home = Path(tempfile.mkdtemp())  # pytest's own folders are shut to others
    home.chmod(0o755)
    shared = home / "shared"
    for folder in (shared, shared / "notebooks", shared / "params"):
        folder.mkdir()
        os.chown(folder, -1, GROUP)
        folder.chmod(0o2775)
    monkeypatch.chdir(shared)
    before = os.umask(0o002)
    try:
        run = Run.open(DEFAULTS.replace(run="x"))
        with locked(run.path / ".sequence.lock", "labkit run"):
            tee(run.path, lambda line: None)("a line")
            run.start("01_grpo")
            run.finish("01_grpo", {"n": 1})
        if closed:
            for lock in run.path.glob(".*.lock"):
                lock.chmod(0o644)
        # A fork has all modules loaded already: the interpreter itself may lie where a second user may not look.
        context = multiprocessing.get_context("fork")
        told = context.Queue()
        other = context.Process(target=_second_user, args=(told,))
        other.start()
        assert told.get(timeout=60) == "finished"
        other.join()
        run.start("03_sft")  # and the first goes on after the second
    finally:
        os.umask(before)
        files.unlock(run.path / ".stage.lock")
        monkeypatch.undo()
        shutil.rmtree(home)


# --- renamed, copied, moved, read only


@pytest.fixture
def run(project) -> Run:
    made = Run.open(DEFAULTS.replace(run="x", seed=3))
    made.start("01_grpo")
    made.finish("01_grpo", {"n": 1})
    return made


def test_a_renamed_run_goes_on_under_its_new_name(run):
    run.path.rename(run.path.parent / "y")
    again = Run.open(DEFAULTS.replace(run="y", seed=3))
    assert again.finished("01_grpo")
    assert yaml.safe_load((again.path / "params.yaml").read_text())["run"] == "y"
    with pytest.raises(LabError, match="seed: there 3, here 4"):
        Run.open(DEFAULTS.replace(run="y", seed=4))


def test_the_params_file_of_a_copied_run_means_the_copy(run, tmp_path):
    for copy in (run.path.parent / "copy", tmp_path / "elsewhere" / "moved"):
        shutil.copytree(run.path, copy)
        params = read_params(copy / "params.yaml")
        assert Run.open(params).path == copy.resolve()
        assert Run.open(params).finished("01_grpo")
    assert read_params(run.path / "params.yaml") == run.params


def test_a_read_only_run_is_reported_elsewhere(tmp_path, monkeypatch, capsys):
    folder = executed.run(tmp_path / "theirs" / "x", {"01_grpo": executed.notebook(executed.words("# One"))})
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folder), "-o", "mine/report"]) == 0
    assert sorted(path.name for path in Path("mine/report").iterdir()) == ["01_grpo.html", "report.html"]
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    assert main(["report", str(folder)]) == 0
    assert "x-report/report.html" in capsys.readouterr().out
    assert not list(folder.glob("*.html"))


@pytest.mark.parametrize(
    "arguments", [["run"], ["doctor", "--quick"], ["submit", "--local"]], ids=lambda each: each[0]
)
def test_without_notebooks_every_command_says_so_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    Path("p.yaml").write_text("run: x\n")
    assert main([arguments[0], "p.yaml", *arguments[1:]]) != 0  # the doctor saw nothing wrong, the run left a folder
    told = capsys.readouterr()
    assert "there is no notebook" in told.out + told.err and "`labkit new FOLDER`" in told.out + told.err
    assert [path.name for path in tmp_path.iterdir()] == ["p.yaml"]


# --- paths and versions


@pytest.mark.parametrize("name", ["outputs", "data", "model", "harvester", "compare"])
def test_a_path_of_the_parameters_may_begin_with_home(project, monkeypatch, tmp_path, name):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    value = ("~/there",) if name == "compare" else "~/there"
    params = DEFAULTS.replace(**{name: value})
    if name == "outputs":
        assert Run.open(params).path == tmp_path / "home" / "there" / "embedded"
    else:
        with pytest.raises(LabError, match=str(tmp_path / "home" / "there")):
            Run.open(params)
    assert not list(project.rglob("~*"))


def test_everything_of_a_run_stands_under_outputs_in_home(project, monkeypatch, tmp_path):
    from labkit.lab import Lab

    monkeypatch.setenv("HOME", str(tmp_path))
    lab = Lab.open(DEFAULTS.replace(outputs="~/runs", world_train=1, world_validation=1, world_test=1))
    lab.moments("test")
    assert lab.sheets == tmp_path / "runs" / "sheets" and lab.frame_cache.folder == tmp_path / "runs" / "frames"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"embedded", "world-2-1-1-1-seed0", "frames"}
    assert not list(project.rglob("~*"))


def test_the_manifest_names_the_commit_and_local_changes(tmp_path):
    def git(*command: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=tmp_path, check=True)

    if shutil.which("git") is None:
        pytest.skip("LOUD: there is no git here")
    source_version.cache_clear()
    assert source_version(tmp_path) == {}, "a wheel"
    git("init", "-q")
    (tmp_path / "labkit").mkdir()
    (tmp_path / "labkit" / "a.py").write_text("a = 1")
    git("add", ".")
    git("commit", "-qm", "a")
    for text, changed in (("a = 1", False), ("a = 2", True)):
        (tmp_path / "labkit" / "a.py").write_text(text)
        source_version.cache_clear()
        found = source_version(tmp_path)
        assert len(found["commit"]) == 40 and found["changed"] is changed
    (tmp_path / "outputs").mkdir()  # what runs write is no change of the code
    assert version_text({"labkit": "0.1.0", **found}).endswith("with local changes")


def test_results_report_and_manifest_tell_the_version(project, capsys, monkeypatch):
    monkeypatch.setattr("labkit.runs.run.source_version", lambda: {"commit": "914270c" * 5, "changed": True})
    run = Run.open(DEFAULTS.replace(run="x"))
    run.start(STAGES[0])
    assert run.manifest["commit"] == run.manifest["stages"]["01_grpo"]["commit"] == "914270c" * 5
    assert main(["results", "outputs/x"]) == 0
    assert ", commit 914270c with local changes" in capsys.readouterr().out
    assert read_results(run.path)["labkit"]["changed"] is True
