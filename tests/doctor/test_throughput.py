from __future__ import annotations

import time

import pytest
import torch

from labkit.doctor import throughput
from labkit.doctor.workload import Load, read_shape
from labkit.params import Params
from labkit.policy.generate import generate
from labkit.policy.model import SHIPPED, load_policy

PARAMS = Params(prompts_per_step=2, group_size=2, max_new_tokens=8)
LOAD = Load(train=4, test=2, train_clips=1, test_clips=1, prompt_tokens=40, longest_prompt=44, video_tokens=16)
SECONDS = ("prefill", "forward", "learning", "update", "vision")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_PATIENCE", 0.0)
    monkeypatch.setattr(throughput, "_GOES", 1)


def test_every_part_of_a_small_model_is_timed() -> None:
    threads = torch.get_num_threads()
    pace = throughput.rehearse(load_policy("embedded", device="cpu"), PARAMS, LOAD, (4, 4, 4))
    assert all(getattr(pace, part) > 0 for part in SECONDS)
    assert pace.decoding(4) == pace.step + 4 * pace.row >= pace.step
    assert "the model itself" in pace.basis and "cpu" in pace.basis
    assert torch.get_num_threads() == threads


def test_one_thread_is_timed_by_its_own_work() -> None:
    assert throughput.clock_for("cpu", 1) is time.process_time
    # The processor time of several threads is their sum, and that of a GPU is nobody's.
    assert throughput.clock_for("cpu", 2) is throughput.clock_for("cuda", 1) is time.perf_counter


def test_a_rehearsed_chain_has_no_end() -> None:
    policy = load_policy("embedded", device="cpu")
    prompts = [throughput._prompt(policy, str(k), LOAD) for k in range(2)]
    assert [len(prompt.ids) for prompt in prompts] == [40, 40]
    completions = generate(throughput._endless(policy), prompts, 3, max_new_tokens=50)
    assert {len(completion.ids) for completion in completions} == {50}


def test_adapters_are_rehearsed_too() -> None:
    policy = load_policy("embedded", device="cpu", lora_rank=2)
    assert throughput.rehearse(policy, PARAMS, LOAD, (4, 4, 4)).learning > 0


def test_a_large_model_is_counted_not_loaded() -> None:
    shape, threads = read_shape(SHIPPED["embedded"]), torch.get_num_threads()
    pace = throughput.count_out(shape, PARAMS, "cpu")
    assert all(getattr(pace, part) > 0 for part in SECONDS)
    assert pace.learning == pytest.approx(3 * pace.forward)
    assert "not loaded" in pace.basis and "TFLOP/s" in pace.basis
    adapted = throughput.count_out(shape, Params(lora_rank=4), "cpu")
    assert adapted.learning == pytest.approx(2 * adapted.forward)
    assert torch.get_num_threads() == threads
