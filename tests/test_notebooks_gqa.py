"""The five notebooks on params/smoke_gqa.yaml: the same path with questions that have options."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from labkit.runs.notebooks import run_notebooks
from labkit.runs.results import read_results
from labkit.runs.run import STAGES, Run

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("warm_kernels")]


@pytest.fixture(scope="module")
def smoke(in_warm_kernels, tmp_path_factory) -> Run:
    """A finished run of smoke_gqa.yaml."""
    outputs = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run_notebooks("params/smoke_gqa.yaml", {"outputs": str(outputs)}, say=lambda line: None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_ends_well(smoke, stage):
    cells = nbformat.read(smoke.path / f"{stage}.ipynb", 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "a reader would stumble over it"
    assert "text/markdown" in outputs[-1].data, "it closes with what to conclude"


def test_every_model_is_measured_on_its_options(smoke):
    results = read_results(smoke.path)
    assert [results["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    for model, figures in results["models"].items():
        assert set(figures) == ({"greedy", "sampled"} if model in ("base", "grpo_final") else {"greedy"})
        for decoding, found in figures.items():
            assert 0 <= found["acc_gqa"] <= found["acc_qa"] <= found["option_rate"] <= 1, (model, decoding)
            assert found["miop"] >= found["miou"], "IoP is IoU or more"
    assert "dropped: wrong option" in results["harvest"]


def test_rollouts_carry_the_option_and_its_pay(smoke):
    rollouts = smoke.rollouts("grpo").read()
    assert {rollout.reward_option for rollout in rollouts} == {0.0, 1.0}
    assert any("<option>" in rollout.text for rollout in rollouts)
