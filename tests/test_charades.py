"""The five notebooks on the real Charades video: real frames, real sentences, real lengths."""

from __future__ import annotations

import csv
from pathlib import Path

import nbformat
import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.runs.notebooks import run_notebooks
from labkit.runs.results import read_results
from labkit.runs.run import STAGES

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared" / "real"
VIDEO = REAL / "videos" / "OHOFG.mp4"
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("warm_kernels"), pytest.mark.usefixtures("in_warm_kernels")]


def real_moments() -> list[Moment]:
    """The six queries of OHOFG in Charades-STA's test file, with the length that Charades gives."""
    with open(REAL / "charades_sta" / "Charades_v1_test.csv", newline="", encoding="utf-8") as file:
        length = next(float(row["length"]) for row in csv.DictReader(file) if row["id"] == "OHOFG")
    moments = []
    for line in (REAL / "charades_sta" / "charades_sta_test.txt").read_text(encoding="utf-8").splitlines():
        place, query = line.split("##")
        video, start, end = place.split()
        if video == "OHOFG":
            window = Span(float(start), min(float(end), length))
            moments.append(
                Moment(f"OHOFG-{len(moments)}", str(VIDEO), query, (window,), length, source="Charades-STA")
            )
    return moments


def test_all_five_notebooks_run_on_a_real_video(tmp_path, monkeypatch):
    if not VIDEO.exists():
        pytest.skip(f"THE REAL VIDEO IS ABSENT ({VIDEO}): the path on real input was NOT tested")
    moments = real_moments()
    assert len(moments) == 6
    for split in ("train", "validation", "test"):
        write_moments(moments, tmp_path / "data" / f"{split}.jsonl")
    monkeypatch.chdir(ROOT)
    overrides = {"outputs": str(tmp_path / "outputs"), "data": str(tmp_path / "data")}
    run = run_notebooks("tests/charades.yaml", overrides, say=lambda line: None)
    results = read_results(run.path)
    assert [results["stages"][stage]["state"] for stage in STAGES] == ["finished"] * 5
    assert all(results["models"][model]["greedy"]["n"] == 6 for model in results["models"])
    rollouts = run.rollouts("grpo").read()
    assert len(rollouts) == 2 * 3 * 4
    assert {rollout.qid for rollout in rollouts} <= {moment.qid for moment in moments}
    assert all(rollout.prompt_tokens > 200 for rollout in rollouts), "64 real frames are many tokens"
    for stage in STAGES:
        cells = nbformat.read(run.path / f"{stage}.ipynb", 4).cells
        assert not [o for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]
