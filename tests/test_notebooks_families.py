"""The five notebooks on tiny models of the other families, which know nothing: the path of smoke.yaml, in its smallest size."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from labkit.embedded.model import write_untrained
from labkit.policy.families import FAMILIES
from labkit.runs.notebooks import run_notebooks
from labkit.runs.results import read_results
from labkit.runs.run import STAGES

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("warm_kernels"), pytest.mark.usefixtures("in_warm_kernels")]
SMALL = {
    "world_train": 3, "world_validation": 1, "world_test": 2, "validation_limit": 2, "test_limit": 4, "grpo_steps": 1,
    "final_steps": 1, "harvest_prompts": 8, "prompts_per_step": 2,
}  # fmt: skip


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"qwen2_5_vl"}))  # which smoke.yaml itself walks
def test_all_five_notebooks_end_well(family, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    write_untrained(tmp_path / "base", family)
    changes = {"outputs": str(tmp_path / "outputs"), "data": "world", "model": str(tmp_path / "base"), **SMALL}
    run = run_notebooks("params/smoke.yaml", changes, say=lambda line: None)
    for stage in STAGES:
        cells = nbformat.read(run.path / f"{stage}.ipynb", 4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert not [output.text for output in outputs if output.get("name") == "stderr"], (
            "a reader would stumble over it"
        )
        assert "text/markdown" in outputs[-1].data, "it closes with what to conclude"
    results = read_results(run.path)
    assert [results["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    assert results["harvest"]["kept"] > 0
