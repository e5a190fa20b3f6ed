"""The five notebooks, executed on params/smoke.yaml: the whole path, as a person would walk it."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import psutil
import pytest

from labkit.errors import LabError
from labkit.params import read_params
from labkit.runs.notebooks import run_notebooks
from labkit.runs.results import DECODINGS, MODELS, read_results
from labkit.runs.run import STAGES, Run, read_manifest
from labkit.runs.slurm_job import Job, read_job
from labkit.runs.status import read_status
from labkit.scoring.reading_rules import RULES
from labkit.stages.rollouts import RolloutStore

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("notebooks")]


OWN = {
    "rewards": "tests/own_terms.py:boundary=0.5",
    "filters": "tests/own_terms.py:short_thoughts",
    "prompt": "{query}{video}",
}
"""Terms of the user's own; the prompt asks in the words and the order of the built-in `query`."""
OWN_OPTIONS = [word for name, value in OWN.items() for word in ("-p", name, value)]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def smoke(outputs) -> Run:
    """A finished run of smoke.yaml, with a reward, a filter and a prompt of the user's own beside what is built in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_notebooks("params/smoke.yaml", {"outputs": str(outputs), **OWN}, say=lambda line: None)


LAUNCHED = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517",
    "TORCHELASTIC_RUN_ID": "none", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "PMI_SIZE": "2",
    "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "DEEPSPEED_CONFIG": "none",
}  # fmt: skip
"""What torchrun, mpirun and `accelerate launch` put into the environment of what they start."""


def weights(folder: Path, stage: str) -> bytes:
    return (folder / stage / "final" / "model.safetensors").read_bytes()


def shown(path: Path) -> list[dict]:
    return [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_ends_well_and_shows_what_it_did(smoke, stage):
    outputs = shown(smoke.path / f"{stage}.ipynb")
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a reader would stumble over it"
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert kinds.count("application/vnd.plotly.v1+json") >= 3
    assert "text/markdown" in outputs[-1].data, "it closes with what to conclude"
    assert "- **" in outputs[-1].data["text/markdown"]
    assert (smoke.path / f"{stage}.ipynb").stat().st_size < 2_000_000


def test_every_model_is_measured_greedily_and_the_first_and_last_by_sampling_too(smoke):
    results = read_results(smoke.path)
    assert [results["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    assert list(results["models"]) == list(MODELS)
    for model, measured in results["models"].items():
        asked = DECODINGS if model in ("base", "grpo_final") else ("greedy",)
        assert {decoding: measured[decoding]["n"] for decoding in asked} == dict.fromkeys(
            asked, smoke.params.test_limit
        ), model
        assert set(DECODINGS) & set(measured) == set(asked), model
    assert results["harvest"]["harvested"] == smoke.params.harvest_prompts * smoke.params.harvest_samples


def test_the_analysis_shows_card_intervals_baselines_and_rules(smoke):
    tables = [
        output.data["text/html"]
        for output in shown(smoke.path / "05_analysis.ipynb")
        if "text/html" in output.get("data", {})
    ]
    card = next(table for table in tables if "missing predictions" in table)
    for words in ("95 % interval", "whole video", "centre half", "best constant", "training prior", "IoU &gt;= m reaches R1@m",
                  "of several truth windows", "nothing read", "max_new_tokens"):  # fmt: skip
        assert words in card, words
    paired = next(table for table in tables if ">difference" in table)  # not the word in a parameter's explanation
    assert "predictions-grpo_final.jsonl" in paired and "predictions-sft.jsonl" in paired
    rules = next(table for table in tables if "what it does" in table)
    assert all(f">{name}<" in rules for name in RULES)


@pytest.mark.parametrize("stage", ["01_grpo", "02_distill", "05_analysis"])
def test_an_explorer_is_saved_with_its_state(smoke, stage):
    notebook = nbformat.read(smoke.path / f"{stage}.ipynb", 4)
    state = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"]
    views = [
        output.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert views and all(model in state for model in views)


def test_own_terms_are_seen_in_curves_ledger_funnel_and_manifest(smoke):
    assert {"reward_boundary", "reason_boundary"} <= set(smoke.rollouts("grpo").frame().columns)
    assert smoke.manifest["own"]["tests/own_terms.py"]["text"] == (ROOT / "tests/own_terms.py").read_text()
    assert "dropped: short thoughts" in read_results(smoke.path)["harvest"]
    curves, funnel = (
        [json.dumps(output.data.get("application/vnd.plotly.v1+json")) for output in shown(smoke.path / f"{name}.ipynb")
         if "data" in output]
        for name in ("01_grpo", "02_distill")
    )  # fmt: skip
    assert any('"boundary"' in figure for figure in curves) and any("short thoughts" in figure for figure in funnel)
    state = nbformat.read(smoke.path / "01_grpo.ipynb", 4).metadata.widgets
    assert "boundary" in json.dumps([*packed_terms(state)])


def packed_terms(state: dict) -> list[list[str]]:
    """The reward terms of each explorer that a notebook has saved."""
    widgets = state["application/vnd.jupyter.widget-state+json"]["state"].values()
    packed = [each["data"] for widget in widgets for each in widget.get("buffers", []) if each["path"] == ["data"]]
    return [json.loads(gzip.decompress(base64.b64decode(data)))["terms"] for data in packed if data]


def test_every_rollout_is_recorded_once(smoke):
    p = smoke.params
    for stage, steps in (("grpo", p.grpo_steps), ("grpo_final", p.final_steps)):
        rollouts = smoke.rollouts(stage).read()
        assert len({rollout.key for rollout in rollouts}) == len(rollouts) == steps * p.prompts_per_step * p.group_size
        assert {rollout.stage for rollout in rollouts} == {stage}


@pytest.mark.usefixtures("without_pictures")
def test_a_notebook_run_again_loads_and_does_not_train(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks")  # as JupyterLab starts it
    before = {path: path.stat().st_mtime_ns for path in smoke.path.rglob("*") if path.suffix in (".parquet", ".json")}
    command = [sys.executable, "-m", "papermill", "01_grpo.ipynb", str(tmp_path / "again.ipynb"), "--no-progress-bar"]
    command += [
        "-f",
        str(ROOT / "params/smoke.yaml"),
        "-p",
        "outputs",
        str(smoke.path.parent),
        "-k",
        "python3",
        *OWN_OPTIONS,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = {path: path.stat().st_mtime_ns for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"manifest.json"}
    first, again = shown(smoke.path / "01_grpo.ipynb"), shown(tmp_path / "again.ipynb")
    assert again[-1].data["text/markdown"] == first[-1].data["text/markdown"]


@pytest.mark.usefixtures("without_pictures")
def test_one_notebook_runs_by_papermill_alone_and_two_workers_do_what_one_process_does(smoke, outputs, tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/01_grpo.ipynb", str(tmp_path / "out.ipynb")]
    command += [
        "-f",
        "params/smoke.yaml",
        "-p",
        "run",
        "x",
        "-p",
        "outputs",
        str(outputs),
        "-p",
        "processes",
        "2",
        "-p",
        "eval_batch",
        "8",
        "-p",
        "sampled_evaluation",
        "false",
    ]
    command += ["--no-progress-bar", "-k", "python3", *OWN_OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert read_results(outputs / "x")["stages"]["01_grpo"]["state"] == "finished"
    assert read_params(outputs / "x" / "params.yaml").sampled_evaluation == "none"
    assert (outputs / "x" / "logs" / "rank-1.txt").is_file()
    texts = [output["text"] for output in shown(tmp_path / "out.ipynb") if output.get("name") == "stdout"]
    assert "grpo: 2 of 2" in "".join(texts) and "evaluation, greedy: 16 of 16" in "".join(texts)
    alone, shared = smoke.figures("01_grpo"), read_results(outputs / "x")["models"]
    assert shared["base"]["greedy"] == alone["base"]["greedy"]
    assert shared["grpo"]["greedy"]["n"] == alone["grpo"]["greedy"]["n"] == 16
    first, second = (RolloutStore(folder / "01_grpo" / "rollouts").read() for folder in (smoke.path, outputs / "x"))
    step = smoke.params.prompts_per_step * smoke.params.group_size
    assert [(each.key, each.text, each.own) for each in first[:step]] == [
        (each.key, each.text, each.own) for each in second[:step]
    ]
    assert all(each.own["boundary"].reason for each in second)
    assert json.loads((outputs / "x" / "manifest.json").read_text())["data"].keys() >= {"train", "test"}


@pytest.mark.usefixtures("without_pictures")
def test_papermill_under_a_launcher_trains_the_same_weights(smoke, outputs, tmp_path):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "platform.py").write_text("spark = 'a session'\nseed = 7\n")  # names that are no parameters
    command = [
        sys.executable,
        "-m",
        "papermill",
        "notebooks/01_grpo.ipynb",
        str(tmp_path / "out.ipynb"),
        "--inject-paths",
    ]
    command += [
        "-f",
        "params/smoke.yaml",
        "-p",
        "run",
        "launched",
        "-p",
        "outputs",
        str(outputs),
        "-k",
        "python3",
        *OWN_OPTIONS,
    ]
    environment = {**os.environ, **LAUNCHED, "IPYTHONDIR": str(tmp_path / "ipython")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert weights(outputs / "launched", "01_grpo") == weights(smoke.path, "01_grpo")
    assert read_params(outputs / "launched" / "params.yaml").seed == smoke.params.seed


def test_a_mistyped_parameter_ends_before_any_work(outputs, tmp_path):
    command = [sys.executable, "-m", "papermill", "notebooks/01_grpo.ipynb", str(tmp_path / "out.ipynb")]
    command += ["-p", "run", "y", "-p", "outputs", str(outputs), "-p", "learning_rat", "2e-4", "-k", "python3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "did you mean 'learning_rate'" in done.stderr
    assert not (outputs / "y").exists()


# Audited in the kernel before the file gets its name: what is there then is a checkpoint that is not whole, and one before it.
KILL = """
import os, signal, sys
def kill(event, arguments):
    if event == "os.rename" and os.fspath(arguments[1]).endswith(os.environ.get("KILL_BEFORE", "/nothing")):
        for process in (os.getppid(), os.getpid()):
            os.kill(process, signal.SIGKILL)
sys.addaudithook(kill)
"""


@pytest.mark.usefixtures("without_pictures")
def test_a_run_killed_in_stage_1_between_notebooks_and_in_sft_then_stopped_by_the_scheduler_ends_with_the_same_figures(
    smoke, tmp_path, monkeypatch, request
):
    """kill -9 three times, then `labkit submit --local` with notice in stage 4: nothing is lost, doubled or changed.

    Each step is saved here; that a notice alone saves one is held by tests/stages/distributed/test_preemption.py.
    """
    pytest.importorskip("submitit")
    monkeypatch.chdir(ROOT)
    for name, value in LAUNCHED.items():  # neither `labkit run` nor a job hears them
        monkeypatch.setenv(name, value)
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "kill.py").write_text(KILL)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    folder, lines = smoke.path.parent / "killed", tmp_path / "lines.txt"
    params = ["params/smoke.yaml", "-p", "outputs", str(smoke.path.parent), "-p", "run", "killed", *OWN_OPTIONS]

    def begin() -> subprocess.Popen:
        with lines.open("w") as file:
            command = [sys.executable, "-m", "labkit.cli", "run", *params]
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        request.addfinalizer(lambda: kill(process))
        return process

    def wait_until(reached: Callable[[], object], fails: Callable[[], object], log: Path) -> None:
        deadline = time.monotonic() + 900  # a minute as a rule; a machine that others use as well may take many
        while not reached():
            assert time.monotonic() < deadline and not fails(), log.read_text()
            time.sleep(0.05)

    def killed_in(stage: str) -> None:
        with monkeypatch.context() as patch:
            patch.setenv("KILL_BEFORE", f"{stage}/checkpoint-2/labkit_complete")
            assert begin().wait(timeout=900) == -signal.SIGKILL, lines.read_text()
        whole = [path.parent.name for path in (folder / stage).glob("checkpoint-*/labkit_complete")]
        assert whole == ["checkpoint-1"] and (folder / stage / "checkpoint-2").exists()
        assert not (folder / stage / "final").exists()

    killed_in("01_grpo")
    process = begin()
    wait_until(lambda: read_manifest(folder)["stages"]["01_grpo"]["state"] == "finished",
               lambda: process.poll() is not None, lines)  # fmt: skip
    kill(process)
    killed_in("03_sft")

    subprocess.run([sys.executable, "-m", "labkit.cli", "submit", *params, "--local"], check=True)

    def job() -> Job:
        found = read_job(folder)
        assert found is not None
        return found

    def end_job() -> None:
        with contextlib.suppress(LabError, ProcessLookupError, KeyError):
            os.kill(job().details["process"], signal.SIGKILL)

    request.addfinalizer(end_job)

    def failed() -> bool:
        return job().event == "failed"

    wait_until(lambda: any(folder.glob("04_grpo_final/rollouts/*.parquet")), failed, job().log)
    os.kill(job().details["process"], signal.SIGUSR2)
    wait_until(lambda: '"finished"' in (folder / "job.jsonl").read_text(), failed, job().log)

    status, expected, found = read_status(folder), read_results(smoke.path), read_results(folder)
    assert status["job"]["attempts"] == 2
    assert [stage["state"] for stage in status["stages"].values()] == ["finished"] * 5
    assert (found["models"], found["harvest"]) == (expected["models"], expected["harvest"])
    for stage in ("01_grpo", "03_sft", "04_grpo_final"):
        assert weights(folder, stage) == weights(smoke.path, stage)
    for stage in ("grpo", "distill", "grpo_final"):
        frames = [
            run.rollouts(stage).frame().drop(columns=["run", "checkpoint"])
            for run in (smoke, Run(smoke.params, folder, ROOT))
        ]
        assert frames[0].equals(frames[1])


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to the command and to its kernel, where they live."""
    if process.poll() is not None:
        return
    parent = psutil.Process(process.pid)
    for each in [parent, *parent.children(recursive=True)]:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
