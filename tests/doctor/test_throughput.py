from __future__ import annotations

import time

import pytest
import torch

from labkit.doctor import throughput
from labkit.doctor.workload import Workload, read_model_shape
from labkit.params import Params
from labkit.policy.generate import generate
from labkit.policy.model import SHIPPED, load_policy

PARAMS = Params(prompts_per_step=2, group_size=2, max_new_tokens=8)
LOAD = Workload(train=4, test=2, train_clips=1, test_clips=1, prompt_tokens=40, longest_prompt=44, video_tokens=16)
SECONDS = ("prefill", "forward", "learning", "update", "vision")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "_MIN_SECONDS", 0.0)
    monkeypatch.setattr(throughput, "_MIN_REPEATS", 1)


def test_every_part_of_a_small_model_is_timed() -> None:
    threads = torch.get_num_threads()
    measured = throughput.measure_throughput(load_policy("embedded", device="cpu"), PARAMS, LOAD, (4, 4, 4))
    assert all(getattr(measured, part) > 0 for part in SECONDS)
    assert measured.decoding(4) == measured.step + 4 * measured.row >= measured.step
    assert "the model itself" in measured.basis and "cpu" in measured.basis
    assert torch.get_num_threads() == threads


def test_one_thread_is_timed_by_its_own_work() -> None:
    assert throughput.timer_for("cpu", 1) is time.process_time
    # The processor time of several threads is their sum, and that of a GPU is nobody's.
    assert throughput.timer_for("cpu", 2) is throughput.timer_for("cuda", 1) is time.perf_counter


def test_a_rehearsed_chain_has_no_end() -> None:
    policy = load_policy("embedded", device="cpu")
    prompts = [throughput._prompt(policy, str(k), LOAD) for k in range(2)]
    assert [len(prompt.ids) for prompt in prompts] == [40, 40]
    completions = generate(throughput._without_eos(policy), prompts, 3, max_new_tokens=50)
    assert {len(completion.ids) for completion in completions} == {50}


def test_adapters_are_rehearsed_too() -> None:
    policy = load_policy("embedded", device="cpu", lora_rank=2)
    assert throughput.measure_throughput(policy, PARAMS, LOAD, (4, 4, 4)).learning > 0


def test_a_large_model_is_counted_not_loaded() -> None:
    shape, threads = read_model_shape(SHIPPED["embedded"]), torch.get_num_threads()
    rates = throughput.measure_operations(shape, PARAMS, "cpu")
    measured = throughput.estimate_throughput(shape, PARAMS, *rates, gpu=False)
    assert all(getattr(measured, part) > 0 for part in SECONDS)
    assert measured.learning == pytest.approx(3 * measured.forward)
    assert "not loaded" in measured.basis and "TFLOP/s" in measured.basis
    adapted = throughput.estimate_throughput(shape, Params(lora_rank=4), *rates, gpu=False)
    assert adapted.learning == pytest.approx(2 * adapted.forward)
    assert torch.get_num_threads() == threads
