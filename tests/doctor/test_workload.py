from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from labkit.doctor.memory import LOGIT_CHUNK, PROCESS, main_memory, stage_memory
from labkit.doctor.runtime import stage_seconds
from labkit.doctor.throughput import Throughput
from labkit.doctor.workload import (
    ModelShape,
    Workload,
    count_parameters,
    disk_bytes,
    notebook_explorers,
    read_model_shape,
    traces_per_clip,
    trained_parameters,
)
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.families import Geometry
from labkit.policy.model import SHIPPED

SMALL = ModelShape(
    vocab=100, hidden=8, layers=2, heads=2, kv_heads=1, head=4, intermediate=16, context=64, geometry=Geometry(),
    text_parameters=2000, vision_parameters=500,
)  # fmt: skip
LOAD = Workload(
    train=10, test=5, train_clips=2, test_clips=1, prompt_tokens=50, longest_prompt=60, video_tokens=16, frame_bytes=100,
)  # fmt: skip
PARAMS = Params(
    prompts_per_step=2, prompts_per_pass=2, group_size=4, max_new_tokens=20, grpo_steps=3, final_steps=5, beta=0.0, eval_batch=4,
    harvest_prompts=6, harvest_samples=2, max_per_query=1, sft_epochs=2.0, sft_batch=2,
)  # fmt: skip
PACE = Throughput(
    prefill=1e-3, step=0.01, row=1e-3, forward=1e-3, learning=2e-3, update=0.1, vision=1e-3, basis="", reading=0.5,
    writing=0.25,
)  # fmt: skip


def changed(**values: Any) -> Params:
    return Params.build(PARAMS.as_dict() | values)


def test_the_embedded_model_is_read_without_its_weights() -> None:
    shape = read_model_shape(SHIPPED["embedded"])
    assert (shape.hidden, shape.layers, shape.heads, shape.kv_heads, shape.intermediate) == (128, 4, 4, 4, 384)
    assert (shape.geometry, shape.context) == (Geometry(14, 2, 2), 1024)
    # 112 words and 4 layers of 128: (4 x 128 + 3 x 384) x 128 each, 3 biases and 2 norms; a last norm
    assert shape.text_parameters == 112 * 128 + 4 * (128 * (4 * 128 + 3 * 384) + 5 * 128) + 128


# The numbers of Qwen's own config.json; the weights are those that the hub counts in their headers.
@pytest.mark.parametrize(
    ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocab", "tied", "weights"),
    [
        (2048, 36, 16, 2, 11008, 151936, True, 3_754_622_976),  # 3B
        (3584, 28, 28, 4, 18944, 152064, False, 8_292_166_656),  # 7B
    ],
)
def test_a_model_without_weights_is_counted_by_its_config(
    tmp_path: Path, hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocab: int, tied: bool,
    weights: int,
) -> None:  # fmt: skip
    config = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab,
        "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "tie_word_embeddings": tied,
        "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    shape = read_model_shape(tmp_path)
    assert shape.text_parameters + shape.vision_parameters == pytest.approx(weights, rel=1e-3)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"vision_config": {}}'])
def test_a_folder_that_describes_no_model_is_an_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(LabError, match="does not describe a model of a known family"):
        read_model_shape(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"1234", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{", b"\x02" + b"\0" * 7 + b"[]"],
)
def test_weights_without_a_header_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(LabError, match="copy or download it again"):
        count_parameters(tmp_path)


def test_matrices_are_counted() -> None:
    # q and o 8 x 8, k and v 8 x 4, gate, up and down 8 x 16
    assert SMALL.layer_parameters == 2 * 64 + 2 * 32 + 3 * 128
    # of rank r: r x (in + out) for each of them, in 2 layers
    assert SMALL.lora_parameters(4) == 2 * 4 * (2 * 16 + 2 * 12 + 3 * 24)


def test_memory_by_hand() -> None:
    memory = stage_memory(SMALL, PARAMS, LOAD, "cpu")
    grpo = memory["grpo"]
    assert grpo["weights"] == 4 * 2500
    assert (grpo["gradients"], grpo["optimizer"], grpo["reference"]) == (4 * 2000, 8 * 2000, 0)
    # What a broken-off stage goes back to: the reference, where there is one, and elsewhere than on a CPU beside the device.
    assert grpo["start"] == 4 * 2000 and "start" not in stage_memory(SMALL, PARAMS, LOAD, "cuda")["grpo"]
    held = stage_memory(SMALL, changed(beta=0.1), LOAD, "cpu")["grpo"]
    assert "start" not in held and held["reference"] > 0
    # 2 clips of 16 tokens of 8 numbers
    assert grpo["features"] == 2 * 16 * 8 * 4
    # 2 rows of 50 + 4 x 10 tokens; a token of a layer keeps 9 x 8 + 2 x 4 + 4 x 16 numbers, and 2 x 90 weights a head;
    # the last layer's 8 numbers of the 80 chosen tokens
    assert grpo["activations"] == 2 * 90 * 2 * ((72 + 8 + 64) * 4 + 2 * 2 * 90 * 4) + 80 * 8 * 4
    # 80 chosen tokens: 100 logits as they are and twice in float32, and the gradient of the matrix of 100 x 8
    assert grpo["logits"] == 80 * 100 * 12 + 4 * 100 * 8
    # 6 queries of 50 tokens, once, and 2 chains of 20 for each; 2 layers with a key and a value of 4 numbers
    assert memory["distill"]["cache"] == 6 * (50 + 2 * 20) * 2 * 2 * 4 * 4
    # 300 tokens are read at once: 6 x 8 + 3 x 16 numbers each, more than the logits of 12 chains
    assert memory["distill"]["decoding"] == 300 * (48 + 48) * 4
    assert "optimizer" not in memory["distill"] and "optimizer" in memory["sft"]


def test_a_stage_takes_what_its_largest_phase_takes() -> None:
    # Thousands of queries evaluated at once need more than training does; the optimizer is not there then.
    grpo = stage_memory(SMALL, changed(eval_batch=4096), replace(LOAD, test=5000), "cpu")["grpo"]
    assert grpo["cache"] == 4096 * 70 * 2 * 2 * 4 * 4 and "optimizer" not in grpo
    assert stage_memory(SMALL, changed(eval_batch=4096), LOAD, "cpu")["grpo"].keys() >= {"optimizer"}, (
        "5 queries in all"
    )
    # 200 chains a query: their cache is larger than what one query's pass keeps.
    sampling = changed(group_size=200, prompts_per_step=100, prompts_per_pass=1, max_new_tokens=4)
    assert {"cache", "optimizer"} <= set(stage_memory(SMALL, sampling, LOAD, "cuda")["grpo"])


@pytest.mark.parametrize(
    ("change", "part", "factor"),
    [
        ({"prompts_per_pass": 1}, "logits", (40 * 12 + 32) / (80 * 12 + 32)),  # the matrix has a gradient all the same
        ({"prompts_per_pass": 1}, "activations", 1 / 2),
        ({"dtype": "bfloat16"}, "weights", 1 / 2),
        ({"group_size": 8}, "logits", (160 * 12 + 32) / (80 * 12 + 32)),
        ({"lora_rank": 4}, "optimizer", 4 * 256 / 2000),
    ],
)
def test_memory_follows_the_parameters(change: dict[str, Any], part: str, factor: float) -> None:
    before, after = (stage_memory(SMALL, params, LOAD, "cuda")["grpo"] for params in (PARAMS, changed(**change)))
    assert after[part] == pytest.approx(factor * before[part])


def test_checkpointing_saves_activations_and_costs_a_pass() -> None:
    saving = changed(gradient_checkpointing=True)
    deep = ModelShape(**{name: getattr(SMALL, name) for name in SMALL.__slots__} | {"layers": 20})
    before, after = (stage_memory(deep, params, LOAD, "cuda")["grpo"]["activations"] for params in (PARAMS, saving))
    assert after < before / 5
    before, after = (stage_seconds(SMALL, params, LOAD, PACE)["grpo"]["learning"] for params in (PARAMS, saving))
    assert after - before == pytest.approx(3 * 180 * 1e-3)


def test_kl_needs_a_second_model_or_a_second_adapter() -> None:
    assert stage_memory(SMALL, changed(beta=0.1), LOAD, "cpu")["grpo"]["reference"] == 4 * 2000  # not the tower
    assert stage_memory(SMALL, changed(beta=0.1, lora_rank=4), LOAD, "cpu")["grpo"]["reference"] == 4 * 1024


def test_lora_on_some_layers_and_a_base_of_4_bits_by_hand() -> None:
    # q_proj is 8 x 8 and v_proj 8 x 4, in two layers
    some = {"lora_rank": 4, "lora_targets": ("q_proj", "v_proj")}
    assert trained_parameters(SMALL, changed(**some)) == 2 * 4 * (16 + 12)
    half = {"dtype": "bfloat16", "quantization": "nf4"}
    memory = stage_memory(SMALL, changed(**some, **half), LOAD, "cuda")["distill"]
    assert memory["merged adapter"] == 2 * (64 + 32) * 2
    matrices = 2 * SMALL.layer_parameters
    beside = (2000 - matrices) * 2 + 500 * 2 + 4 * 2 * 4 * (16 + 12)
    assert memory["weights"] == pytest.approx(matrices * (0.5 + 1 / 64 + 1 / 4096) + beside)


def test_a_merged_adapter_is_a_copy_of_what_it_is_on_while_chains_are_sampled() -> None:
    layers = 2 * SMALL.layer_parameters * 2
    for change, size in (({}, layers), ({"lora_merge": False}, None)):
        memory = stage_memory(SMALL, changed(dtype="bfloat16", lora_rank=4, **change), LOAD, "cuda")
        assert memory["distill"].get("merged adapter") == size
    assert "merged adapter" not in stage_memory(SMALL, changed(dtype="bfloat16"), LOAD, "cuda")["distill"]


def test_joined_weights_are_copies_while_chains_are_sampled() -> None:
    """2 layers of 8 inputs: q, k and v have (2 + 2 x 1) heads of 4 outputs, gate and up 16 each, in bfloat16."""
    for device, change, size in (
        ("cuda", {}, 2 * 8 * 48 * 2),
        ("cpu", {}, 2 * 8 * 16 * 2),
        ("cuda", {"fused_decoding": False}, None),
    ):
        assert (
            stage_memory(SMALL, changed(dtype="bfloat16", **change), LOAD, device)["distill"].get("joined weights")
            == size
        )


def test_logits_exist_for_some_tokens_at_a_time() -> None:
    memory = stage_memory(SMALL, changed(group_size=256, lora_rank=4), LOAD, "cuda")["grpo"]
    assert 2 * 256 * 10 > LOGIT_CHUNK
    assert memory["logits"] == LOGIT_CHUNK * 100 * 12, "below adapters the last matrix has no gradient"


def test_features_are_kept_as_far_as_there_is_room() -> None:
    # 2 clips of 512 bytes
    tight = changed(feature_memory=5e-7)
    assert stage_memory(SMALL, tight, LOAD, "cuda")["grpo"]["features"] == 500
    # Of 6 uses in 3 steps the first of each clip encodes it, and of the other 4 those that were not kept do; so does of the base's
    # two decodings the second.
    kept = 500 / 1024
    before, after = (stage_seconds(SMALL, params, LOAD, PACE)["grpo"]["clips"] for params in (PARAMS, tight))
    assert after - before == pytest.approx((4 + 1) * (1 - kept) * 16e-3)


@pytest.mark.parametrize(
    ("change", "weights", "gradients", "buckets"),
    [
        ({}, 2500 * 2, 2000 * 2, 0),  # each process has it all
        ({"sharding": "ddp"}, 2500 * 2, 2000 * 2, 2000 * 2),
        # 4 bytes of each trained weight, by 4 processes; the frozen tower is whole
        ({"sharding": "fsdp2"}, 500 * 2 + 2000, 2000, 0),
        # adapters of 1024 weights; the frozen 2000 are shared out as well
        ({"sharding": "fsdp2", "lora_rank": 4}, 500 * 2 + 2000 * 2 / 4 + 1024, 1024, 0),
    ],
)
def test_processes_share_what_they_train(
    change: dict[str, Any], weights: float, gradients: float, buckets: float
) -> None:
    params = changed(dtype="bfloat16", prompts_per_step=8, **change)
    grpo = stage_memory(SMALL, params, LOAD, "cuda", world=4 if change else 1)["grpo"]
    assert (grpo["weights"], grpo["gradients"], grpo.get("buckets", 0)) == (weights, gradients, buckets)
    assert grpo["optimizer"] == 2 * gradients


@pytest.mark.parametrize(
    ("world", "change", "resuming", "ending", "reason"),
    [
        (1, {}, (2 * 4000, 0), 5000, "the optimizer is read into main memory; one file of 2500 weights is written"),
        (4, {"sharding": "ddp"}, (0, 0), 5000, "each reads to its GPU, tensor by tensor"),
        (4, {"sharding": "fsdp2"}, (4000, 4000), 9000, "a quarter of two moments; 2000 weights in float32, 500 of the tower"),
        (4, {"sharding": "fsdp2", "lora_rank": 4}, (2048, 2048), 4096, "adapters of 1024 weights alone"),
    ],
)  # fmt: skip
def test_main_memory_follows_what_a_process_reads_and_writes(
    world: int, change: dict[str, Any], resuming: tuple[float, float], ending: float, reason: str
) -> None:
    told = main_memory(SMALL, changed(dtype="bfloat16", **change), world)
    first, other = told["loading"]
    assert first == other == PROCESS["cuda build"]
    assert (told["resuming"][0] - first, told["resuming"][1] - other) == resuming, reason
    assert told["the end of a stage"] == (first + ending, other), reason


def test_what_answers_is_whole_in_each_process() -> None:
    params = changed(sharding="fsdp2", dtype="bfloat16")
    assert stage_memory(SMALL, params, LOAD, "cuda", world=4)["analysis"]["weights"] == 2 * 2500


def test_processes_share_the_steps_but_not_an_evaluation_batch() -> None:
    params = changed(prompts_per_step=8, prompts_per_pass=0)
    one, four = (stage_memory(SMALL, params, LOAD, "cuda", world=world) for world in (1, 4))
    assert four["grpo"]["activations"] == one["grpo"]["activations"] / 2, "one takes two passes"
    assert four["analysis"] == one["analysis"]
    alone, shared = (stage_seconds(SMALL, params, replace(LOAD, test=16), PACE, world=world) for world in (1, 4))
    assert shared["grpo"]["learning"] == pytest.approx(3 * (180 * 2e-3 + 0.1)), "2 of 8 queries each"
    assert shared["sft"]["evaluation"] == pytest.approx(alone["sft"]["evaluation"] / 4)
    assert shared["distill"]["sampling"] == pytest.approx(alone["distill"]["sampling"] / 4)


def test_a_harvester_is_trained_and_asked_in_the_first_two_stages() -> None:
    large = replace(SMALL, text_parameters=20_000)
    own, other = (stage_memory(SMALL, PARAMS, LOAD, "cpu", harvester=model) for model in (None, large))
    assert other["grpo"]["weights"] == 4 * 20_500 and other["distill"]["weights"] == 4 * 20_500
    assert all(other[stage] == own[stage] for stage in ("sft", "grpo_final", "analysis"))
    slow = PACE._replace(learning=20e-3, prefill=2e-3)
    seconds = stage_seconds(SMALL, PARAMS, LOAD, PACE, harvester=(large, slow))
    assert seconds["grpo"]["learning"] == pytest.approx(3 * (180 * 20e-3 + 0.1))
    # Four evaluations of 0.5 s, the base's twice; the harvester's, before and after, read 5 prompts at half the throughput.
    assert seconds["grpo"]["evaluation"] == pytest.approx(4 * 0.5 + 2 * 5 * 50 * 1e-3)
    assert seconds["grpo_final"] == stage_seconds(SMALL, PARAMS, LOAD, PACE)["grpo_final"]
    disk = disk_bytes(SMALL, PARAMS, LOAD, harvester=large)
    assert disk["final models"] == 4 * (20_500 + 2 * 2500)
    assert disk["checkpoints"] == 3 * 4 * (3 * 20_000 + 500), "those of the larger model"
    shared = disk_bytes(SMALL, changed(sharding="fsdp2"), LOAD, harvester=large, world=2)
    assert shared["checkpoints"] == disk["checkpoints"], "in shards"


def test_traces_of_one_clip_read_it_once() -> None:
    packed = changed(pack_traces=True, max_per_query=3, sft_batch=6)
    # 10 queries on 2 clips, of whose traces two thirds of 3 are kept; behind the query only its own
    assert traces_per_clip(packed.replace(prompt="anchors"), LOAD) == pytest.approx(10)
    assert traces_per_clip(packed, LOAD) == pytest.approx(2)
    apart, together = (
        stage_memory(SMALL, packed.replace(pack_traces=pack), LOAD, "cuda")["sft"] for pack in (False, True)
    )
    layers = 2 * (72 + 8 + 64) * 4
    assert apart["activations"] == 3 * 60 * layers + 30 * 8 * 4, "the six in two passes"
    assert together["activations"] == pytest.approx(1.5 * (16 + 2 * 44) * layers + 30 * 8 * 4)


def test_seconds_by_hand() -> None:
    seconds = stage_seconds(SMALL, PARAMS, LOAD, PACE)
    grpo = seconds["grpo"]
    # 2 prompts of 50 tokens read, then 10 tokens for 8 chains
    assert grpo["sampling"] == pytest.approx(3 * (2 * 50 * 1e-3 + 10 * (0.01 + 8 * 1e-3)))
    # 2 x (50 + 4 x 10) tokens and an update
    assert grpo["learning"] == pytest.approx(3 * (180 * 2e-3 + 0.1))
    # the base greedily and by sampling, and the trained one greedily: a batch of 4 and one of 1
    each = (4 * 50 * 1e-3 + 10 * (0.01 + 4e-3)) + (50 * 1e-3 + 10 * (0.01 + 1e-3))
    assert grpo["evaluation"] == pytest.approx(3 * each)
    # 3 clips are drawn and decoded, once for all stages; 2 are encoded for training, and one for each model, both decodings of it
    assert grpo["clips"] == pytest.approx(3 * (0.25 + 0.5) + (2 + 2) * 16e-3)
    assert seconds["grpo_final"]["clips"] == pytest.approx((2 + 1) * 16e-3)
    assert seconds["analysis"]["clips"] == pytest.approx(2 * 16e-3), "other frames each time"
    # 6 of the 24 queries that a harvest samples together, 2 chains each
    assert seconds["distill"]["sampling"] == pytest.approx(6 / 24 * (24 * 50 * 1e-3 + 10 * (0.01 + 48e-3)))
    # 2/3 of 6 traces, twice: 480 tokens in 4 steps
    assert seconds["sft"]["learning"] == pytest.approx(480 * 2e-3 + 4 * 0.1)
    assert seconds["analysis"]["evaluation"] == pytest.approx(2 * each)


def test_few_traces_take_the_steps_that_they_will_take() -> None:
    """2/3 of 3 x 10 traces are 20, of which 8 processes take 16 a step: 3 x 20 / 16 steps, and one process 3 of 20."""
    params = changed(harvest_prompts=10, max_per_query=3, sft_epochs=3.0, sft_batch=64, pack_traces=False)
    for world, steps in ((1, 3), (8, 4)):
        seconds = stage_seconds(SMALL, params, LOAD, PACE, world=world)["sft"]["learning"]
        assert seconds == pytest.approx(3 * 20 * 60 * 2e-3 / world + steps * 0.1)


def test_kl_costs_a_pass_and_a_sampled_evaluation_as_much_as_a_greedy_one() -> None:
    before = stage_seconds(SMALL, PARAMS, LOAD, PACE)
    kl = stage_seconds(SMALL, changed(beta=0.1), LOAD, PACE)
    assert kl["grpo"]["learning"] - before["grpo"]["learning"] == pytest.approx(3 * 180 * 1e-3)
    times = {"none": (2, 1, 1), "ends": (3, 1, 2), "all": (4, 2, 2)}  # base and grpo, sft, grpo_final
    each = before["sft"]["evaluation"]
    for which, counts in times.items():
        seconds = stage_seconds(SMALL, changed(sampled_evaluation=which), LOAD, PACE)
        found = [seconds[stage]["evaluation"] for stage in ("grpo", "sft", "grpo_final")]
        assert found == pytest.approx([count * each for count in counts])
        assert seconds["analysis"] == before["analysis"], "blind passes are greedy"


def test_blind_passes_are_of_a_third_of_the_queries_from_300_on() -> None:
    """All of 60, 100 of 200 and 198 of 600, twice: whole batches of 4, each as long as the one that `test_seconds_by_hand` counts."""
    batch = 4 * 50 * 1e-3 + 10 * (0.01 + 4e-3)
    rest = 2 * 50 * 1e-3 + 10 * (0.01 + 2e-3)
    for queries, seconds in ((60, 15 * batch), (200, 25 * batch), (600, 49 * batch + rest)):
        found = stage_seconds(SMALL, PARAMS, replace(LOAD, test=queries), PACE)["analysis"]
        assert found["evaluation"] == pytest.approx(2 * seconds)


def test_disk_by_hand() -> None:
    disk = disk_bytes(SMALL, PARAMS, LOAD)
    assert disk["frame cache"] == 3 * 100
    # of weights that are trained the optimizer has two moments: 3 x 2000, and the frozen tower
    assert disk["checkpoints"] == 3 * 4 * (3 * 2000 + 500)
    assert disk["final models"] == 3 * 4 * 2500
    lora = disk_bytes(SMALL, changed(lora_rank=4), LOAD)
    assert lora["final models"] == 3 * 4 * SMALL.lora_parameters(4), "an adapter is saved alone"


def test_notebooks_of_a_large_run_stay_small_and_what_does_not_travel_is_counted() -> None:
    large = changed(grpo_steps=775, prompts_per_step=32, group_size=8, max_new_tokens=768)
    first, harvest, analysis = notebook_explorers(large, LOAD)
    assert first.chains == 198_400 and first.embedded < 12_001 and first.notebook < 15e6
    assert harvest.embedded == harvest.chains == 12 and analysis.embedded == 4 * LOAD.test
    # by hand: all 12 chains at 60 bytes and a quarter of 4 x 768 / 2 letters, clips of 2.5 MB, all a third larger in base64
    assert harvest.notebook == pytest.approx(4 / 3 * (12 * (60 + 384) + 2.5e6) + 1e6)
