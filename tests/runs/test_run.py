"""Runs: whose directory it is, what is finished, and what is left after a kill."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml

from labkit import files
from labkit.errors import LabError, NotebookError
from labkit.files import lock, project_root, replacing, unlock
from labkit.params import DEFAULTS, Params, names, read_params
from labkit.runs.notebooks import BANNER_TAG, run_notebooks
from labkit.runs.run import STAGES, Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with empty notebooks/ and params/, and the working directory in it."""
    root = tmp_path / "project"
    for folder in ("notebooks", "params"):
        (root / folder).mkdir(parents=True)
    monkeypatch.chdir(root)
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.2)
    monkeypatch.setattr(files, "_locks", {})
    return root


def refusal(params: Params) -> str:
    with pytest.raises(LabError) as caught:
        Run.open(params)
    return str(caught.value)


# --- the directory


def test_a_new_run_writes_every_value_and_a_manifest(project):
    run = Run.open(DEFAULTS.replace(run="x", seed=3))
    assert run.path == project / "outputs" / "x"
    assert list(yaml.safe_load((run.path / "params.yaml").read_text())) == list(names())
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert (manifest["seed"], manifest["stages"]) == (3, {})
    assert manifest["versions"]["torch"] != "not installed"


def test_the_root_is_found_from_the_notebooks_folder(project, monkeypatch):
    monkeypatch.chdir(project / "notebooks")
    assert Run.open(DEFAULTS).path == project / "outputs" / "embedded"


def test_without_a_project_the_working_directory_is_the_root(tmp_path):
    assert project_root(tmp_path) == tmp_path


def test_the_same_parameters_open_the_same_run(project):
    run = Run.open(DEFAULTS)
    created = run.manifest["created"]
    assert Run.open(DEFAULTS).manifest["created"] == created


def test_other_parameters_are_refused_with_each_difference(project):
    Run.open(DEFAULTS)
    before = (project / "outputs/embedded/params.yaml").read_bytes()
    message = refusal(DEFAULTS.replace(seed=1, learning_rate=1e-6))
    assert "seed: there 0, here 1" in message
    assert "learning_rate: there 0.0005, here 1e-06" in message
    assert message.count(": there") == 2
    assert "choose another `run` name, or delete the directory" in message
    assert (project / "outputs/embedded/params.yaml").read_bytes() == before


def test_a_run_older_than_a_parameter_had_its_default(project):
    path = Run.open(DEFAULTS).path / "params.yaml"
    path.write_text(path.read_text().replace("\ntask: grounding\n", "\n"))
    assert Run.open(DEFAULTS).path == path.parent
    message = refusal(DEFAULTS.replace(task="gqa", model="embedded-gqa"))
    assert "task: there absent, here gqa" in message


def test_a_run_whose_models_were_all_evaluated_by_sampling_goes_on_with_fewer(project):
    """As runs were by default, whose params.yaml says `true` and knows no `blind_share`."""
    path = Run.open(DEFAULTS).path / "params.yaml"
    text = path.read_text()
    path.write_text(
        text.replace("sampled_evaluation: ends", "sampled_evaluation: true").replace("blind_share: 0.33\n", "")
    )
    assert len(text) - len(path.read_text()) == len("blind_share: 0.33\n")
    assert Run.open(DEFAULTS.replace(blind_share=1)).path == path.parent
    assert read_params(path).sampled_evaluation == "all"


def test_a_parameter_that_labkit_no_longer_knows_is_a_difference(project):
    path = Run.open(DEFAULTS).path / "params.yaml"
    path.write_text(path.read_text() + "warmth: 3\n")
    assert "warmth: there 3, here absent" in refusal(DEFAULTS)


def test_the_comparison_may_change_and_only_the_analysis_is_run_again(project):
    Run.open(DEFAULTS.replace(run="other"))
    run = Run.open(DEFAULTS)
    for stage in STAGES:
        run.start(stage)
        run.finish(stage, {})
    run = Run.open(DEFAULTS.replace(compare=("outputs/other",)))
    assert [run.finished(stage) for stage in STAGES] == [True, True, True, True, False]
    assert yaml.safe_load((run.path / "params.yaml").read_text())["compare"] == ["outputs/other"]


def test_a_run_may_be_moved(project):
    Run.open(DEFAULTS)
    (project / "outputs").rename(project / "archive")
    assert Run.open(DEFAULTS.replace(outputs="archive")).path == project / "archive" / "embedded"


def test_a_directory_that_is_no_run_is_left_alone(project):
    folder = project / "outputs" / "embedded"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("years of work")
    assert "is not a run (it has no manifest.json) and not empty" in refusal(DEFAULTS)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_directory_is_refused(project):
    (project / "outputs").mkdir()
    (project / "outputs" / "embedded").write_text("")
    assert "is a file" in refusal(DEFAULTS)


def test_a_run_killed_before_its_manifest_is_begun_anew(project):
    run = Run.open(DEFAULTS)
    (run.path / "manifest.json").unlink()
    assert Run.open(DEFAULTS).manifest["stages"] == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null"], ids=["empty", "cut", "list", "bare", "null"])
def test_a_damaged_manifest_is_named(project, text):
    (Run.open(DEFAULTS).path / "manifest.json").write_text(text)
    with pytest.raises(LabError, match=r"manifest.json' is damaged"):
        Run.open(DEFAULTS).state("01_grpo")


# --- inputs that are not there


def test_a_model_folder_that_is_no_checkpoint_is_refused(project):
    (project / "weights").mkdir()
    assert "is not a checkpoint" in refusal(DEFAULTS.replace(model="weights"))
    assert "is not a directory" in refusal(DEFAULTS.replace(model="./nowhere"))
    assert not (project / "outputs").exists()


def test_an_unknown_prompt_is_refused_with_the_known_ones(project):
    assert "prompt 'haiku' is not a template; choose one of query" in refusal(DEFAULTS.replace(prompt="haiku"))


def test_a_comparison_with_what_is_no_run_is_refused(project):
    assert "is not a run" in refusal(DEFAULTS.replace(compare=("outputs/none",)))


def data_folder(project: Path, **changes: object) -> Path:
    folder = project / "data"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(b"film")
    row = {"qid": "q1", "video": "v.mp4", "query": "a door opens", "windows": [[1, 2]], "duration": 16.0}
    for split in ("train", "validation", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "test.jsonl").write_text(json.dumps({**row, **changes}) + "\n")
    return folder


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"video": "gone.mp4"}, "gone.mp4"),
        ({"windows": [[2, 1]]}, "line 1"),
        ({"query": ""}, "line 1"),
        ({"duration": "long"}, "line 1"),
    ],
)
def test_bad_data_is_refused_before_the_directory_is_made(project, changes, says):
    data_folder(project, **changes)
    message = refusal(DEFAULTS.replace(data="data"))
    assert says in message
    assert not (project / "outputs").exists()


def test_an_empty_video_and_missing_folders_are_refused(project):
    folder = data_folder(project)
    Run.open(DEFAULTS.replace(data="data"))
    (folder / "v.mp4").write_bytes(b"")
    assert "is empty" in refusal(DEFAULTS.replace(run="y", data="data"))
    (folder / "test.jsonl").unlink()
    assert "test.jsonl" in refusal(DEFAULTS.replace(run="y", data="data"))
    assert "there is no folder" in refusal(DEFAULTS.replace(data="nowhere"))


def test_data_that_changes_under_a_run_is_refused(project):
    run, path = Run.open(DEFAULTS), project / "train.jsonl"
    path.write_text("a")
    run.fingerprint("train", path)
    run.fingerprint("train", path)
    path.write_text("b")
    with pytest.raises(LabError, match="has changed since run 'embedded' began"):
        run.fingerprint("train", path)


# --- stages


def test_a_stage_needs_the_one_before(project):
    run = Run.open(DEFAULTS)
    with pytest.raises(LabError, match=r"03_sft needs 01_grpo, which is new .*run notebooks/01_grpo.ipynb"):
        run.start("03_sft")
    run.start("01_grpo")
    with pytest.raises(LabError, match="02_distill needs 01_grpo, which is running"):
        run.start("02_distill")
    run.finish("01_grpo", {"base": {"greedy": {"miou": 0.5}}})
    assert run.start("02_distill") is False
    assert run.figures("01_grpo") == {"base": {"greedy": {"miou": 0.5}}}


def test_a_finished_stage_stays_as_it_is_when_its_notebook_is_run_again(project):
    run = Run.open(DEFAULTS)
    run.start("01_grpo")
    run.finish("01_grpo", {"miou": 0.5})
    before = run.manifest
    assert run.start("01_grpo") is True
    run.finish("01_grpo", {"miou": 0.9})
    assert run.manifest == before


def test_a_stage_that_does_not_exist_or_has_not_begun_is_a_fault(project):
    run = Run.open(DEFAULTS)
    with pytest.raises(LabError, match="there is no stage '06_party'; the stages are 01_grpo"):
        run.start("06_party")
    with pytest.raises(ValueError, match="has not started"):
        run.finish("01_grpo", {})


def test_figures_may_be_numpy_and_nan(project):
    import numpy as np

    run = Run.open(DEFAULTS)
    run.start("01_grpo")
    run.finish("01_grpo", {"a": np.float64(0.5), "b": float("nan"), "c": [np.int64(3)], 4: (True, None)})
    assert run.figures("01_grpo") == {"a": 0.5, "b": None, "c": [3], "4": [True, None]}


def test_work_that_is_kept_is_done_once(project):
    run, calls = Run.open(DEFAULTS), []

    def work() -> dict[str, float]:
        calls.append(1)
        return {"miou": 0.5}

    assert run.cached_json("01_grpo", "greedy", work) == {"miou": 0.5} == run.cached_json("01_grpo", "greedy", work)
    assert len(calls) == 1


def test_rollouts_stand_in_their_stage(project):
    run = Run.open(DEFAULTS)
    assert run.rollouts("grpo_final").folder == run.path / "04_grpo_final" / "rollouts"
    assert run.rollouts("02_distill").folder == run.rollouts("distill").folder


# --- files and locks


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("f", "old")]


HOLDER = "import sys, time; from pathlib import Path; from labkit.files import lock; lock(Path(sys.argv[1]), 'a test'); print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_a_lock_keeps_others_out_and_does_not_outlive_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.2)
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, cwd=ROOT) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(LabError, match=rf"in use by a test, process {holder.pid} on .*choose another `run` name"):
            lock(path, "me")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    lock(path, "me")
    lock(path, "me")  # a cell run twice
    unlock(path)
    unlock(path)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.EWOULDBLOCK, "is in use by another process"),
        (errno.EACCES, "is in use by another process"),  # flock played by other locks, as on NFS
        (errno.ENOLCK, "lies on a file system that gives no locks"),  # NFS without its lock service
        (errno.ENOSYS, "lies on a file system that gives no locks"),  # Lustre mounted without flock
        (errno.EOPNOTSUPP, "give another `outputs`"),  # the next step is named
    ],
)
def test_a_lock_that_nobody_can_have_is_not_said_to_be_anothers(tmp_path, monkeypatch, error, says):
    def flock(handle: int, how: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files, "LOCK_TIMEOUT", 0.0)
    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LabError) as caught:
        lock(tmp_path / "lock", "me")
    assert str(tmp_path) in str(caught.value) and says in str(caught.value)


# --- the sequence of notebooks, on stand-ins without a model

SETUP = """
from labkit.params import Params
from labkit.runs.run import Run
params = Params.from_notebook(globals())
lab = Run.open(params)
"""


def write_notebooks(project: Path, **bodies: str) -> None:
    for name in STAGES:
        body = bodies.get(name[3:], f"print('work of {name}')")
        cells = [
            nbformat.v4.new_markdown_cell(f"# {name}"),
            nbformat.v4.new_code_cell('run = "embedded"\nseed = 0', metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(SETUP),
            nbformat.v4.new_code_cell(f"done = lab.start('{name}')\nif not done:\n    {body}"),
            nbformat.v4.new_code_cell(f"lab.finish('{name}', {{'n': params.learning_rate}})"),
        ]
        # A kernel of that name need not be installed: the notebook runs in the interpreter that runs labkit.
        kernel = {"name": "not-installed-here", "display_name": "Python 3", "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        nbformat.write(notebook, project / "notebooks" / f"{name}.ipynb")
    (project / "params" / "p.yaml").write_text("run: x\nlearning_rate: 1e-6\n")


@pytest.fixture
def kernels_find_labkit(monkeypatch):
    """The kernels' working directory is the stand-in project, so labkit's own root has to be named."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


def only(project: Path, *names: str) -> None:
    """Call every other stage finished, so that a test starts no kernel for it."""
    run = Run.open(read_params("params/p.yaml"))
    for stage in STAGES:
        if stage not in names:
            run._update(stage, {"state": "finished"})
            (run.path / f"{stage}.ipynb").touch()


def outputs(path: Path) -> list[list[str]]:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return [[output.output_type for output in cell.outputs] for cell in cells]


def states(path: Path) -> list[str]:
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    return [cell.metadata.papermill.status for cell in cells]


def banner(path: Path) -> str:
    cell = nbformat.read(path, 4).cells[0]
    return cell.source if BANNER_TAG in cell.metadata.get("tags", []) else ""


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_the_sequence_runs_all_five_and_then_has_nothing_to_do(project):
    write_notebooks(project)
    lines: list[str] = []
    run = run_notebooks("params/p.yaml", {"seed": "3"}, say=lines.append)
    assert [run.finished(stage) for stage in STAGES] == [True] * 5
    assert run.figures("01_grpo") == {"n": 1e-6}
    assert lines[0] == "[1/5] 01_grpo ..."
    assert lines[1] == "    work of 01_grpo"
    assert lines[-1].startswith("all stages finished in ")
    assert sorted(path.name for path in run.path.glob("*.ipynb")) == [f"{stage}.ipynb" for stage in STAGES]
    assert not list(run.path.glob(".*.ipynb"))

    begin = time.monotonic()
    run_notebooks("params/p.yaml", {"seed": "3"}, say=lines.append)
    assert "[5/5] 05_analysis is finished, skipped" in lines
    assert time.monotonic() - begin < 2


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_a_cell_that_fails_leaves_its_notebook_and_the_rest_goes_on_later(project):
    write_notebooks(project, distill="raise RuntimeError('no disk')")
    only(project, "02_distill", "03_sft")
    with pytest.raises(NotebookError, match=r"02_distill.ipynb, cell \[4\]: RuntimeError: no disk") as caught:
        run_notebooks("params/p.yaml", say=lambda line: None)
    assert not caught.value.user_error
    partial = project / "outputs/x/02_distill.ipynb"
    assert "RuntimeError: no disk" in banner(partial)
    assert states(partial)[-2:] == ["failed", "pending"]
    write_notebooks(project)
    lines: list[str] = []
    run = run_notebooks("params/p.yaml", say=lines.append)
    assert run.finished("05_analysis")
    assert lines[0] == "[1/5] 01_grpo is finished, skipped"
    assert banner(partial) == ""


@pytest.mark.usefixtures("kernels_find_labkit")
def test_bad_input_in_a_cell_is_told_without_a_traceback(project):
    write_notebooks(project, grpo="from labkit.errors import LabError; raise LabError('no such thing')")
    with pytest.raises(NotebookError) as caught:
        run_notebooks("params/p.yaml", say=lambda line: None)
    assert caught.value.user_error
    assert "LabError: no such thing" in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_a_killed_kernel_leaves_no_cell_that_claims_to_have_run(project):
    # The kernel sends what it prints from a thread of its own; killed at once, it may not have sent it yet.
    dying = "print('dying', flush=True); import os, signal, time; time.sleep(2); os.kill(os.getpid(), signal.SIGKILL)"
    write_notebooks(project, grpo=dying)
    with pytest.raises(NotebookError, match="the kernel died"):
        run_notebooks("params/p.yaml", say=lambda line: None)
    partial = project / "outputs/x/01_grpo.ipynb"
    assert "the kernel died" in banner(partial)
    assert states(partial) == ["completed", "completed", "completed", "failed", "pending"]
    assert outputs(partial)[-2:] == [["stream"], []]


@pytest.mark.usefixtures("kernels_find_labkit")
@pytest.mark.slow
def test_the_same_command_goes_on_after_the_whole_thing_was_killed(project):
    write_notebooks(project, distill="print('long work', flush=True); import time; time.sleep(60)")
    only(project, "02_distill", "03_sft")
    command = [sys.executable, "-m", "labkit.cli", "run", "params/p.yaml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "long work" not in (line := process.stdout.readline()):
            assert line, process.communicate()
        second = subprocess.run(command, capture_output=True, text=True)
        assert second.returncode == 2
        assert f"is in use by labkit run, process {process.pid}" in second.stderr
        os.kill(process.pid, signal.SIGKILL)
    write_notebooks(project)
    files.LOCK_TIMEOUT = 5.0  # the killed command's kernel takes a second or two to notice; monkeypatch puts it back
    run = run_notebooks("params/p.yaml", say=lambda line: None)
    assert run.finished("05_analysis")


def test_everything_is_checked_before_any_work(project):
    write_notebooks(project)
    with pytest.raises(LabError, match="unknown parameter 'learning_rat'"):
        run_notebooks("params/p.yaml", {"learning_rat": "1"})
    (project / "notebooks" / "05_analysis.ipynb").unlink()
    with pytest.raises(LabError, match=r"there is no notebook '.*05_analysis.ipynb'"):
        run_notebooks("params/p.yaml")


@pytest.mark.usefixtures("kernels_find_labkit")
def test_a_notebook_that_does_not_finish_its_stage_is_an_error(project):
    write_notebooks(project)
    path = project / "notebooks" / "01_grpo.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells.pop()
    nbformat.write(notebook, path)
    with pytest.raises(LabError, match="did not finish its stage"):
        run_notebooks("params/p.yaml", say=lambda line: None)
