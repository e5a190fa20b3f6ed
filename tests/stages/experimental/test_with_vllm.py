"""vLLM itself writes the rollouts of a stage, on a CPU. Runs where a vLLM that is built for CPUs is installed.

With a vLLM that TRL does not know yet: `pytest -W ignore`, since TRL warns of it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.stages.small import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("vllm") is None, reason="NO vLLM IS INSTALLED: 'generation: vllm' IS TESTED AGAINST A STAND-IN ALONE"
    ),
]


@pytest.mark.parametrize("lora_rank", [0, 4])  # adapters are merged for the engine, and unmerged for the step
def test_vllm_writes_from_the_newest_weights_at_our_positions(tmp_path: Path, lora_rank: int) -> None:
    # In a process of its own: an engine leaves torch's process group and its threads changed.
    command = [sys.executable, "-W", "ignore", "-m", "tests.stages.experimental.with_vllm", tmp_path, str(lora_rank)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    first, *later = found["steps"]
    assert max(first) < 1e-4, "the same log-probs of the same tokens, up to float32's rounding"
    for newest, start in later:
        assert newest < 1e-4, "weights are handed over before each step"
        assert start > 100 * newest, "which can be told from those of the start"
    assert found["positions"], "token by token, with seconds that 24 bits put below a whole position"
    assert found["again"] and found["alone"] and not found["other"], "draws depend on the seed and the query alone"
    assert found["ends"] and all(found["ends"]) and not found["inside"], "a completion ends with the end of turn"
    assert set(found["lengths"]) <= {48} and not found["suppressed"]
