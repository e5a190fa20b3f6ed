"""QLoRA: a base of 4 bits is loaded, asked, trained below its adapter, broken off, gone on with, saved and exported, on the CPU."""

import json
from importlib.util import find_spec

import pytest
import torch

from labkit.doctor.memory import NF4_BYTES
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy import adapters
from labkit.policy.adapters import decoder_name, linear_layers, require_nf4, unload
from labkit.policy.generate import generate
from labkit.policy.model import load_policy
from labkit.runs.run import Run
from labkit.stages.completions import weights_digest
from labkit.stages.rollouts import RolloutStore
from tests.stages import small
from tests.stages.small import weights

installed = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="BITSANDBYTES IS NOT INSTALLED: 4 bits were NOT tested"
)


def quantized(name="embedded", **options):
    return load_policy(name, device="cpu", quantization="nf4", **{"lora_rank": 4, **options})


class Interrupted(Exception):
    pass


def interrupt_at(step):
    def on_step(row):
        if row["step"] == step:
            raise Interrupted

    return on_step


@installed
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_language_model_alone_is_in_4_bits_and_the_adapter_in_float32(dtype):
    policy = quantized(dtype=dtype)
    inside, count = decoder_name(policy.base), 0
    for name, weight in policy.base.named_parameters():
        if "lora_" in name:
            assert weight.dtype == torch.float32 and weight.requires_grad
        elif weight.dtype == torch.uint8:
            assert name.startswith(inside)
            count += 1
        else:
            assert weight.dtype == getattr(torch, dtype) and not weight.requires_grad
    assert count == len([name for name in linear_layers(policy.base)[0] if name.endswith("base_layer")]) > 0
    parts = [part for part in policy.base.modules() if hasattr(part, "quant_state")]
    kept = sum(part.weight.numel() + part.quant_state.absmax.numel() for part in parts)
    # Blocks of blocks are not filled in matrices so small: as much again for their float32 and for the code book.
    assert kept <= NF4_BYTES * sum(part.in_features * part.out_features for part in parts) <= 1.05 * kept


@installed
def test_chains_are_those_of_the_adapter_left_apart(source, moments):
    policy, apart = quantized(), quantized(lora_merge=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for (name, ours), theirs in zip(policy.model.named_parameters(), apart.model.parameters(), strict=True):
            if "lora_B" in name:
                theirs.copy_(ours.normal_(0, 0.02))
    prompts = [source[moment.qid] for moment in moments[:4]]
    texts = [[each.text for each in generate(one, prompts, max_new_tokens=40, greedy=True)] for one in (policy, apart)]
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    plain = generate(load_policy("embedded", device="cpu"), prompts, max_new_tokens=40, greedy=True)
    assert texts[0] != [each.text for each in plain]


@installed
@pytest.mark.slow
def test_grpo_learns_is_broken_off_goes_on_and_leaves_the_base_alone(source, moments, tmp_path):
    options = {"grpo_steps": 4, "beta": 0.1, "stop_anchor_rate": 1.0}
    policy = quantized()
    before, digest = weights(policy), weights_digest(policy)
    small.train_grpo(policy, source, moments, tmp_path / "whole", **options)
    after = weights(policy)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and all("lora_" in name and ".default." in name for name in moved)
    policy = quantized()
    assert weights_digest(policy) == digest, "quantized alike each time"
    with pytest.raises(Interrupted):
        small.train_grpo(policy, source, moments, tmp_path / "parts", on_step=interrupt_at(3), **options)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(policy).items())
    history = small.train_grpo(quantized(), source, moments, tmp_path / "parts", **options).history
    assert abs(history[0]["kl"]) < 1e-6 < history[3]["kl"], "held to the base of 4 bits"
    texts = [[row.text for row in RolloutStore(tmp_path / way / "rollouts").read()] for way in ("whole", "parts")]
    assert texts[0] == texts[1]
    files = {path.name for path in (tmp_path / "whole/final").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files and "model.safetensors" not in files
    for way in ("whole", "parts"):
        again = weights(quantized(str(tmp_path / way / "final"), lora_rank=0))
        assert all(torch.equal(weight, again[name]) for name, weight in after.items())


@installed
@pytest.mark.slow
def test_sft_learns_and_what_is_exported_answers_as_it_was_trained(source, moments, tmp_path):
    from transformers import AutoModelForImageTextToText

    policy = quantized()
    result = small.train_sft(policy, source, moments, tmp_path / "sft", sft_epochs=3.0)
    assert result.history[-1]["loss"] < 0.9 * result.history[0]["loss"]
    prompt, ids = source[moments[0].qid], torch.tensor(policy.completion_ids("<think> at"))
    with torch.no_grad():
        expected = small.plain_log_probs(policy.model, prompt, ids)
        unload(policy.model).save_pretrained(tmp_path / "out")
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info.values()) and "quantization_config" not in json.loads(
            (tmp_path / "out/config.json").read_text()
        )
        assert (small.plain_log_probs(model, prompt, ids) - expected).abs().max() < 1e-4


@installed
def test_weights_of_4_bits_are_not_trained_themselves(source, moments, tmp_path, monkeypatch):
    for train in (small.train_grpo, small.train_sft):
        with pytest.raises(LabError, match="weights of 'embedded' are in 4 bits .* set lora_rank"):
            train(quantized(lora_rank=0), source, moments, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LabError, match="quantization: weights in nf4 are not trained themselves; set lora_rank"):
        Run.open(Params(quantization="nf4"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sharding": "fsdp2"}, "quantization: nf4 cannot be sharded by fsdp2"),
        ({"generation": "vllm"}, "quantization: nf4 has not been tried with generation: vllm"),
    ],
)
def test_what_4_bits_do_not_go_with_is_named(values, message):
    with pytest.raises(LabError, match=message):
        Params(quantization="nf4", lora_rank=4, **values)


def test_a_package_or_a_device_that_is_missing_is_one_error(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(adapters, "find_spec", lambda name: None)
        with pytest.raises(
            LabError, match=r"needs bitsandbytes, which is not installed; pip install 'labkit\[qlora\]'"
        ):
            quantized()
    if find_spec("bitsandbytes"):
        with pytest.raises(LabError, match="computes with 4 bits on .*cpu.*, and not on tpu"):
            require_nf4("tpu")
