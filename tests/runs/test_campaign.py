"""Campaigns: many runs by one command, which skips, goes on, and names what failed without waiting for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from labkit.cli import main
from labkit.errors import LabError
from labkit.files import project_root
from labkit.params import read_params
from labkit.runs import campaign
from labkit.runs.campaign import Planned, plan, run_campaign
from labkit.runs.run import STAGES, Run
from tests.stages.small import ROOT

WORK = """
import json, pathlib, sys, time
folder, what = pathlib.Path(sys.argv[1]), sys.argv[2]
name = folder.name
print("at work", flush=True)
if what == "fail":
    sys.exit("labkit: the harvest kept no trace" + 60 * "\\na line of the traceback")
if what == "crash":
    sys.exit(3)
if what == "hang":
    time.sleep(600)
folder.mkdir()
(folder / "params.yaml").write_text(f"run: {name}\\nseed: {name[-1]}\\n")
(folder / "manifest.json").write_text(json.dumps({"stages": {"05_analysis": {"state": "finished"}}, "data": {}}))
"""
"""A run of no work, by the name of its file."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params").mkdir()
    (tmp_path / "notebooks").mkdir()
    for stage in STAGES:
        (tmp_path / "notebooks" / f"{stage}.ipynb").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(campaign, "POLL_SECONDS", 0.02)

    def command(self: Planned) -> list[str]:
        return [sys.executable, "-c", WORK, str(self.folder), self.file.stem]

    monkeypatch.setattr(Planned, "command", command)
    return tmp_path


def params_file(project: Path, name: str, **values: str) -> Path:
    path = project / "params" / f"{name}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {"run": name, **values}.items()))
    return path


def test_runs_come_seed_by_seed_behind_those_that_they_count_from(project):
    params_file(project, "a", budget_of="default-seed{seed}", pace_of="z-seed{seed}", sft_model="base")
    params_file(project, "default")
    params_file(project, "z", budget_of="default-seed{seed}", sft_model="base")
    runs = plan(["params"], [0, 3], {"final_steps": "7"})
    assert [each.folder.name for each in runs] == [
        "default-seed0", "z-seed0", "a-seed0", "default-seed3", "z-seed3", "a-seed3",
    ]  # fmt: skip
    assert runs[0].overrides == {"run": "default-seed0", "seed": "0", "final_steps": "7"}
    assert runs[1].overrides == {"run": "z-seed0", "seed": "0"}, "steps that are counted are not given"


def test_a_finished_run_is_skipped_and_a_failed_one_holds_up_those_alone_that_need_it(project, capsys):
    for name in ("fine", "fail"):
        params_file(project, name)
    params_file(project, "needs", budget_of="fail-seed{seed}", sft_model="base")
    assert main(["campaign", "params", "--seeds", "0,1"]) == 1
    out = capsys.readouterr().out
    assert "2 runs are finished, 4 failed:" in out
    assert "fail-seed1: the harvest kept no trace (" in out and "fail-seed1.log" in out
    assert "needs-seed1: it counts its steps from fail-seed1, which failed" in out
    assert main(["campaign", "params/fine.yaml", "--seeds", "0,1,2", "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert "fine-seed0 is finished, skipped" in out and "fine-seed2 finished in" in out
    assert "3 runs are finished, 0 failed" in out


def test_what_went_wrong_is_of_the_last_attempt(project):
    file = params_file(project, "crash")
    log = project / "outputs" / "campaign" / "crash-seed0.log"
    log.parent.mkdir(parents=True)
    log.write_text("labkit: an earlier attempt's trouble\n")
    result = run_campaign([file], [0], {}, say=lambda line: None)
    assert result.failed == {"crash-seed0": f"exit code 3 ({log})"}
    assert "an earlier attempt" in log.read_text() and "--- labkit campaign: 20" in log.read_text()


def test_runs_may_stand_in_several_folders_and_two_campaigns_not_in_one(project, monkeypatch):
    files = [params_file(project, "here"), params_file(project, "there", outputs="elsewhere")]
    assert run_campaign(files, [0], {}, say=lambda line: None).finished == ["here-seed0", "there-seed0"]
    assert (project / "elsewhere" / "there-seed0" / "manifest.json").is_file()
    monkeypatch.setattr("labkit.files.LOCK_TIMEOUT", 0.1)
    at = "pathlib.Path('elsewhere/campaign/.lock').resolve()"
    hold = (
        f"import time, labkit.files, pathlib; labkit.files.lock({at}, 'a campaign'); print(flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], cwd=project, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(LabError, match="elsewhere/campaign' is in use by a campaign, process"):
            run_campaign(files, [0], {}, say=lambda line: None)
        other.kill()


def test_a_campaign_looks_once_at_each_run(project, monkeypatch):
    for number in range(6):
        params_file(project, f"fine{number}")
    looked: list[str] = []
    finished = Planned.finished.fget
    monkeypatch.setattr(Planned, "finished", property(lambda self: looked.append(self.name) or finished(self)))
    assert len(run_campaign(["params"], [0], {}, say=lambda line: None).finished) == 6
    assert all(looked.count(name) == 2 for name in looked), "before it, and when it has ended"


def test_a_run_that_is_there_needs_no_other_and_one_whose_last_page_shows_others_is_not_finished(project):
    params_file(project, "a", budget_of="default-seed{seed}", sft_model="base")
    run = read_params(project / "params" / "a.yaml", {"run": "a-seed0", "final_steps": 7})
    folder = project / "outputs" / "a-seed0"
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(run.as_dict()))
    (folder / "manifest.json").write_text(json.dumps({"stages": {"05_analysis": {"state": "finished"}}, "data": {}}))
    (planned,) = plan(["params/a.yaml"], [0], {})
    assert planned.needs == () and planned.finished, "its steps were counted, and its default may have gone"
    (planned,) = plan(["params/a.yaml"], [0], {"compare": "outputs/a-seed0"})
    assert not planned.finished


def test_a_run_by_other_own_code_is_not_taken_for_a_finished_one(project):
    (project / "mine.py").write_text("def extra(chain, moment, spec):\n    return 1.0\n")
    file = params_file(project, "fine", rewards="{mine.py:extra: 0.5}")
    Run.open(read_params(file, {"run": "fine-seed0"}))
    plan([file], [0], {})
    (project / "mine.py").write_text("def extra(chain, moment, spec):\n    return 0.0\n")
    with pytest.raises(LabError, match=r"is a run of other parameters \(text of mine.py\)"):
        plan([file], [0], {})


def test_a_run_that_hangs_is_ended_at_the_time_limit(project, monkeypatch):
    monkeypatch.setattr(campaign, "minutes", lambda text: 0.01)
    result = run_campaign([params_file(project, "hang")], [0, 1], {}, say=lambda line: None)
    assert list(result.failed) == ["hang-seed0", "hang-seed1"] and result.finished == []
    assert "it was ended at its time limit, 1 s; the same command goes on" in result.failed["hang-seed0"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": {"run": "x"}, "b": {"run": "x"}}, r"a.yaml' and '.*b.yaml' both make the run x-seed0; give each"),
        (
            {"a": {"budget_of": "other-seed{seed}", "sft_model": "base"}},
            "counts its steps from run '.*other-seed0', which is neither",
        ),
        (
            {
                name: {"budget_of": f"{other}-seed{{seed}}", "sft_model": "base"}
                for name, other in (("a", "b"), ("b", "a"))
            },
            "counts its steps from a run that counts its own from it",
        ),
        ({"a": {"beta": "none"}}, "beta: 'none' is not a number"),
        (
            {"default": {}, "a": {"budget_of": "default-seed{seed}", "final_steps": "9"}},
            "final_steps is given, and budget_of computes it; leave it out",
        ),
        (
            {
                "default": {},
                "p": {"budget_of": "default-seed{seed}", "sft_model": "base", "beta": "0.1"},
                "q": {"budget_of": "default-seed{seed}", "sft_model": "base", "pace_of": "p-seed{seed}"},
            },
            "q-seed0: pace_of names p-seed0, which has other parameters: beta",
        ),
        ({}, "'params' holds no params file"),
    ],
)
def test_what_cannot_be_is_said_before_any_work(files, message, project):
    for name, values in files.items():
        params_file(project, name, **values)
    with pytest.raises(LabError, match=message):
        run_campaign(["params"], [0], {}, say=lambda line: None)
    assert not (project / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0,1,0"], "seeds: 0 is given twice"),
        (["--seeds", "0,²"], "seeds: '0,²' must be whole numbers"),  # a digit to Python, and no number
        (["-p", "seed", "3"], "seed: a campaign gives it to each run itself"),
        (["-p", "run", "x"], "run: a campaign gives it to each run itself"),
        (["--jobs", "0"], "jobs: 0 runs at a time make none"),
    ],
)
def test_what_a_campaign_gives_itself_is_not_taken(arguments, message, project, capsys):
    params_file(project, "fine")
    assert main(["campaign", "params", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_of_other_parameters_is_not_taken_for_a_finished_one(project):
    file = params_file(project, "fine")
    Run.open(read_params(file, {"run": "fine-seed0", "beta": 0.5}))
    with pytest.raises(LabError, match=r"fine-seed0' is a run of other parameters \(beta\)"):
        plan([file], [0], {})


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "params" / "controls").glob("*.yaml")))
def test_each_control_is_named_by_its_file_and_says_what_it_is_for(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = ROOT / "params" / "controls" / f"{name}.yaml"
    params = read_params(file)
    assert (params.run, params.outputs) == (name, "outputs/controls")
    assert [line[:2] for line in file.read_text().splitlines()[:2]] == ["# ", "# "]
    assert params.budget_of == ("" if name == "default" else "default-seed{seed}")


def test_all_controls_make_one_campaign(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    runs = plan(["params/controls"], range(5), {"outputs": str(tmp_path)})
    assert len(runs) == 5 * 16 and runs[0].folder.name == "default-seed0" and project_root() == ROOT


def test_a_campaign_that_is_asked_to_stop_passes_it_on_and_ends(project):
    script = "import sys; from labkit.cli import main; sys.exit(main(['campaign', 'params']))"
    params_file(project, "fine")
    stub = project / "labkit_run.py"
    stub.write_text("import signal\nprint('at work', flush=True)\nsignal.pause()\n")
    patch = f"import sys; from labkit.runs.campaign import Planned; Planned.command = lambda self: [sys.executable, {str(stub)!r}]; "
    log = project / "outputs" / "campaign" / "fine-seed0.log"
    with subprocess.Popen([sys.executable, "-c", patch + script], cwd=project, stderr=subprocess.PIPE) as process:
        while not (log.exists() and log.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR2)
        assert b"the same command goes on from there" in process.communicate()[1]
    assert process.returncode == os.EX_TEMPFAIL
