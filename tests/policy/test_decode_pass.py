"""The fused pass of decoding against transformers' own layers, over the same shared-prefix cache."""

import dataclasses
import shutil

import pytest
import torch

from labkit.errors import LabError
from labkit.policy import decode_pass
from labkit.policy import generate as module
from labkit.policy.adapters import add_lora
from labkit.policy.generate import generate
from labkit.policy.model import Policy, ignore_renames
from tests import tiny

KNOWN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "internvl"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


def asked(policy, clips):
    moments = tiny.moments(clips)
    source = tiny.source(policy, moments, clips / f"frames-{policy.base.config.model_type}")
    return [source[moment.qid] for moment in moments]


@pytest.fixture
def logits(monkeypatch):
    """The logits of all steps, as the choice of tokens gets them."""
    seen = []
    real = module._TokenChoice.__call__

    def keep(self, given, at):
        seen.append(given.clone())
        return real(self, given, at)

    monkeypatch.setattr(module._TokenChoice, "__call__", keep)
    return seen


def both_ways(policy, prompts, logits, **options):
    """Completions and logits of the fused pass, then of transformers' layers."""
    answers = []
    for fused in (True, False):
        logits.clear()
        done = generate(dataclasses.replace(policy, fused=fused), prompts, 3, max_new_tokens=20, seed=2, **options)
        answers.append((done, list(logits)))
    return answers


@pytest.mark.parametrize("family", KNOWN)
def test_each_family_samples_what_its_own_layers_would(family, clips, logits):
    policy = tiny.policy(family=family)
    assert decode_pass.can_decode(policy.base)
    (fused, mine), (plain, theirs) = both_ways(policy, asked(policy, clips), logits)
    assert fused == plain
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(mine, theirs, strict=True))


def test_half_precision_rounds_as_the_models_own_layers_do(clips, logits):
    policy = tiny.policy()
    policy.model.to(torch.bfloat16)
    (_, mine), (_, theirs) = both_ways(policy, asked(policy, clips), logits, greedy=True)
    apart = (mine[1].float().log_softmax(-1) - theirs[1].float().log_softmax(-1)).abs().max()
    assert apart < 0.1  # logits are about 10 wide, and bfloat16 keeps 8 bits of them


def test_what_was_learnt_is_in_the_next_samples(clips, logits):
    """Joined weights are copies: an optimizer writes into the originals in between."""
    policy = tiny.policy()
    prompts = asked(policy, clips)
    before = generate(policy, prompts, 3, max_new_tokens=20, seed=2)
    with torch.no_grad():
        for layer in policy.base.get_decoder().layers:
            for linear in decode_pass._linears(layer):
                linear.weight.add_(torch.randn_like(linear.weight), alpha=0.02)
    (fused, _), (plain, _) = both_ways(policy, prompts, logits)
    assert fused == plain != before


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_is_in_the_samples_merged_or_not(merge, clips, logits):
    plain = tiny.policy()
    with ignore_renames():
        policy = Policy(add_lora(plain.model, 4, 32, 0), plain.tokenizer, "lora", merge=merge)
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    assert not decode_pass.can_decode(policy.base)  # its modules do more than multiply, until they are merged
    (fused, _), (own, _) = both_ways(policy, asked(policy, clips), logits)
    assert fused == own


@pytest.mark.parametrize(
    "change",
    [
        lambda text: setattr(text, "hidden_act", "gelu"),  # SwiGLU alone is computed
        lambda text: text.rope_parameters.update(rope_type="dynamic"),  # whose angles depend on the length so far
    ],
)
def test_another_decoder_goes_through_its_own_modules(change):
    policy = tiny.policy()
    change(policy.base.get_decoder().config)
    assert not decode_pass.can_decode(policy.base)
    assert not decode_pass.can_decode(tiny.policy(family="qwen3_5").base)


def test_a_compiled_pass_that_answers_otherwise_is_refused():
    expected = torch.randn(4, 50)
    decode_pass.require_same(expected + 0.01 * torch.randn(4, 50), expected)
    with pytest.raises(LabError, match=r"otherwise than the model does: 0\.\d\d of .*fused_decoding: false"):
        decode_pass.require_same(expected.flip(0), expected)


def test_where_nothing_can_be_compiled_the_message_says_what_to_set(clips, monkeypatch):
    monkeypatch.setattr(decode_pass, "can_compile", lambda device: True)
    monkeypatch.setattr(module, "_checked", set())

    def broken(*functions):
        def fail(*args):
            raise RuntimeError("no compiler")

        return [fail] * len(functions)

    monkeypatch.setattr(decode_pass, "_compiled", broken)
    policy = tiny.policy()
    with pytest.raises(LabError, match="cannot be compiled here: no compiler; set fused_decoding: false"):
        generate(policy, asked(policy, clips)[:1], max_new_tokens=4)


def compiled_as(monkeypatch, wrap):
    monkeypatch.setattr(decode_pass, "can_compile", lambda device: True)
    monkeypatch.setattr(decode_pass, "_compiled", wrap)
    monkeypatch.setattr(module, "_checked", set())


@pytest.mark.parametrize("family", KNOWN)
def test_what_a_gpu_would_compile_samples_the_same(family, clips, logits, monkeypatch):
    """Gate and up as one product, and two softmaxes merged by their log-sum-exp, here without the compiler."""
    compiled_as(monkeypatch, lambda *functions: functions)
    policy = tiny.policy(family=family)
    (fused, mine), (plain, theirs) = both_ways(policy, asked(policy, clips), logits)
    assert fused == plain
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(mine, theirs, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU")
def test_compiled_layers_sample_the_same_from_few_kernels(clips, logits, monkeypatch):
    """torch.compile itself, on the CPU: one graph for all layers, no break in it, and the kernels that it makes of each function."""
    from torch._dynamo.utils import counters
    from torch._inductor import metrics

    compiled_as(monkeypatch, lambda *functions: tuple(torch.compile(function) for function in functions))
    torch._dynamo.reset()
    metrics.reset()
    counters.clear()
    policy = tiny.policy()
    prompts = asked(policy, clips)
    (fused, mine), (plain, theirs) = both_ways(policy, prompts[:1], logits)
    assert fused == plain
    assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(mine, theirs, strict=True))
    assert counters["stats"]["unique_graphs"] == 3  # before, merge, after, whatever the number of layers
    assert not counters["graph_break"]
    assert metrics.generated_kernel_count <= 13  # C++ counts the rest of a vectorized loop as one more
