"""The benchmark whose ratios the docs quote runs, at a size that takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_step_is_timed_beside_both_baselines() -> None:
    command = [sys.executable, "benchmarks/grpo_step.py", "--tokens", "32", "--new", "4", "--group", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    [whole] = [line for line in done.stdout.splitlines() if line.startswith("whole step")]
    assert len(whole.split()) == 8 and "features kept" in done.stdout  # three ways, two ratios


@pytest.mark.slow
def test_what_a_gpu_is_to_be_asked_is_asked_part_by_part_in_processes(tmp_path: Path) -> None:
    """Of the others `step` and `lora` run below, and the rehearsal in tests/doctor/test_true_vocabulary.py."""
    parts = ["fsdp2", "vllm"]
    command = [sys.executable, "benchmarks/gpu_node.py", "--reduced", "--out", str(tmp_path), "--only", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(results) == ["machine", *parts] and not [each for each in results.values() if "failed" in each], (
        results
    )
    assert (tmp_path / "results.md").read_text(encoding="utf-8").startswith("| part | figure | value |")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # as in the process of a part
def test_what_a_gpu_is_to_be_asked_of_decoding_runs_in_a_reduced_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: of what a part takes in its own, most is imports."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_node
    from labkit.policy.model import torch_threads

    with torch_threads(1):
        step, lora = (gpu_node.PARTS[part](gpu_node.Bench(reduced=True)) for part in ("step", "lora"))
    assert step["greedy tokens alike from the first on"] == "6 of 6"
    assert step["fused"]["kernels a layer"] < step["transformers' layers"]["kernels a layer"]
    assert lora["merged"]["kernels a layer"] < lora["adapter apart"]["kernels a layer"]
    assert json.dumps(step) and json.dumps(lora), "as a part hands it over"


def test_a_part_that_breaks_is_told_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_node

    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no such kernel')", encoding="utf-8")
    monkeypatch.setattr(gpu_node, "__file__", str(broken))
    told = gpu_node.ask("fsdp2", True, tmp_path / "fsdp2.json")
    assert "ended with 1" in told["failed"] and "no such kernel" in told["failed"]
    broken.write_text("import time; time.sleep(60)", encoding="utf-8")
    monkeypatch.setitem(gpu_node.LIMITS, "fsdp2", 0.2)
    assert "past its limit" in gpu_node.ask("fsdp2", False, tmp_path / "fsdp2.json")["failed"]
