from __future__ import annotations

from pathlib import Path

import pytest

from labkit.doctor import throughput
from labkit.doctor.checks import examine
from labkit.doctor.planned import find_gpus, known_sizes
from labkit.doctor.workload import shape_of_config
from labkit.errors import LabError
from labkit.params import Params, read_params

PARAMS = Path(__file__).parents[2] / "params"


# The weights that the headers on the hub add up to.
@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("Qwen2.5-VL-3B", 3_754_622_976),
        ("Qwen2.5-VL-7B", 8_292_166_656),
        ("Qwen2.5-VL-32B", 33_452_718_336),
        ("Qwen2.5-VL-72B", 73_410_777_344),
        ("Qwen3-VL-2B", 2_127_532_032),
        ("Qwen3-VL-4B", 4_437_815_808),
        ("Qwen3-VL-8B", 8_767_123_696),
    ],
)
def test_a_known_model_has_the_weights_of_its_files(model: str, weights: int) -> None:
    shape = shape_of_config(known_sizes()["models"][model])
    assert shape.text_parameters + shape.vision_parameters == pytest.approx(weights, rel=3e-3)


def test_an_h200_is_estimated_within_30_percent_of_what_was_measured_on_one() -> None:
    # benchmarks/RESULTS.md: a 3B, 4,000 video tokens, G = 8, 256 new tokens, checkpointing: seconds of one step's parts
    shape, (gpu, _) = shape_of_config(known_sizes()["models"]["Qwen2.5-VL-3B"]), find_gpus("h200")
    rates = throughput.DATASHEET_EFFICIENCY * gpu.operations, gpu.bandwidth, ""
    told = throughput.estimate_throughput(shape, Params(dtype="bfloat16"), *rates, gpu=True)
    assert 256 * told.decoding(8) == pytest.approx(2.013, rel=0.3)
    assert 4000 * told.prefill == pytest.approx(0.062, rel=0.4)  # rounded to 0.06: launches count here
    assert (4000 + 8 * 256) * (told.learning + told.forward) == pytest.approx(0.399, rel=0.3)


@pytest.mark.parametrize(
    ("name", "gpus"),
    [("qwen2.5-vl-3b-lora", 1), ("qwen2.5-vl-3b", 8), ("qwen2.5-vl-7b", 8), ("harvest-7b-train-3b", 8)],
)
def test_a_run_is_planned_without_gpu_weights_and_data(name: str, gpus: int) -> None:
    report = examine(read_params(PARAMS / f"{name}.yaml"), gpu=f"h100x{gpus}")
    assert report.exit_code == 0, str(report)
    assert report.data["processes"] == gpus and sum(report.data["stage_seconds"]["grpo"].values()) > 60
    assert f"planned for {gpus} x H100 80 GB" in str(report) and "Charades-STA" in str(report)


def test_main_memory_is_that_of_the_larger_of_two_models() -> None:
    params = read_params(PARAMS / "harvest-7b-train-3b.yaml")
    both, large, small = (
        examine(params.replace(**change), gpu="h100x8").data["main_memory_bytes"]
        for change in ({}, {"model": params.harvester, "harvester": ""}, {"harvester": ""})
    )
    assert both == large and both["resuming"] > small["resuming"]


def test_what_does_not_fit_the_gpu_is_an_error() -> None:
    params = read_params(PARAMS / "qwen2.5-vl-7b.yaml")
    report = examine(params, gpu="4090x8")
    assert report.exit_code == 1
    assert {finding.kind for finding in report.of("error")} == {"memory"}


def test_a_model_that_is_neither_here_nor_known_is_an_error() -> None:
    report = examine(Params(model="nobody/has-made-this", data="data/charades"), gpu="h100")
    assert any("none of the known sizes" in finding.message for finding in report.of("error"))


@pytest.mark.parametrize("text", ["h10", "h100x", "h100x0", "x8", "h100xx8", ""])
def test_an_unknown_gpu_is_refused_by_name(text: str) -> None:
    with pytest.raises(LabError, match="write one of a100"):
        find_gpus(text)
