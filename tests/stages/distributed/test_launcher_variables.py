"""A launcher's variables do not reach training in one process: it neither waits for others nor takes another number type."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from labkit.policy.model import load_policy
from labkit.stages.distributed.launcher_variables import LAUNCHERS, single_process
from tests.stages import small

SETS = [
    # torchrun --nproc-per-node 2: hung for ever, waiting for rank 1
    {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
     "MASTER_PORT": "29511", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_USE_AGENT_STORE": "False"},
    # mpirun -n 2: "MASTER_ADDR env was not set"
    {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
     "OMPI_COMM_WORLD_LOCAL_SIZE": "1", "PMI_RANK": "0", "PMI_SIZE": "2", "PMIX_RANK": "0"},
    # accelerate launch --mixed_precision bf16: other weights
    {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2",
     "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"},
    # a DeepSpeed and srun environment
    {"ACCELERATE_USE_DEEPSPEED": "true", "DEEPSPEED_CONFIG": "none", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _deadline() -> Iterator[None]:
    """What hangs fails instead."""

    def end(*_: object) -> None:
        raise TimeoutError("training waits for processes that nobody has started")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def quiet(source, moments, tmp_path_factory) -> dict[str, torch.Tensor]:
    """Weights that training without a launcher ends with."""
    return _trained(source, moments, tmp_path_factory.mktemp("quiet"))


def _trained(source, moments, folder) -> dict[str, torch.Tensor]:
    policy = load_policy("embedded", device="cpu")
    small.train_sft(policy, source, moments[:4], folder / "sft", sft_epochs=1.0)
    small.train_grpo(policy, source, moments[:4], folder / "grpo", grpo_steps=1, prompts_per_step=2, group_size=2)
    return small.weights(policy)


@pytest.mark.slow
@pytest.mark.parametrize("variables", SETS, ids=["torchrun", "MPI", "accelerate", "DeepSpeed"])
def test_training_under_a_launcher_gives_the_same_weights(quiet, source, moments, tmp_path, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert small.farthest(_trained(source, moments, tmp_path), quiet) == 0
    assert {name: os.environ.get(name) for name in variables} == variables, "they are there again afterwards"


def test_what_training_sets_itself_and_what_accelerate_remembers_do_not_stay(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(PartialState, "_shared_state", {"device": "mine"})
    with single_process():
        assert not PartialState._shared_state
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        PartialState._shared_state["device"] = "its own"
    assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert PartialState._shared_state == {"device": "mine"}


def test_a_worker_keeps_its_numbers_and_nothing_of_the_task_before(monkeypatch, tmp_path):
    monkeypatch.setenv("LABKIT_WORKERS", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    for _ in range(2):
        with single_process():
            assert os.environ["RANK"] == "1" and "ACCELERATE_USE_FSDP" not in os.environ
            assert not PartialState._shared_state
            os.environ["ACCELERATE_USE_FSDP"] = "true"
            PartialState._shared_state["device"] = "sharded"


def test_the_doctor_names_the_variables(monkeypatch):
    from labkit.doctor.environment import launcher_findings

    for patterns in LAUNCHERS.values():
        for pattern in patterns:
            for name in [name for name in os.environ if name.startswith(pattern.rstrip("*"))]:
                monkeypatch.delenv(name)
    assert launcher_findings() == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    (finding,) = launcher_findings()
    assert finding.level == "note" and "torchrun's variables (WORLD_SIZE)" in finding.line()
