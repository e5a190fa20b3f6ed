"""LoRA merged for the time of sampling: the same chains, fewer kernels, and a base that nobody has written to."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from labkit.policy.adapters import add_lora, merged, merged_linear
from labkit.policy.decode_pass import _weights, can_decode
from labkit.policy.families import FAMILIES
from labkit.policy.generate import generate
from labkit.policy.inputs import position_ids, vision_kwargs
from labkit.policy.model import Policy, ignore_renames, load_policy
from tests import tiny


def adapted(spread=0.1, config=None, **shape):
    """A tiny policy whose adapter does something; by PEFT's own `config` where it is not labkit's."""
    from peft import LoraConfig, get_peft_model

    made = tiny.policy(**shape)
    with ignore_renames():
        if config is None:
            model = add_lora(made.model, 4, 8, 0)
        else:
            model = get_peft_model(made.model, LoraConfig(r=4, lora_alpha=8, **config))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                weight.normal_(0, spread)
            if "modules_to_save.default" in name or "lora_magnitude" in name:
                weight.mul_(1.1)
    return Policy(model.eval(), made.tokenizer, "tiny")


def prompts_of(policy, folder):
    moments = tiny.moments(folder, clips=2)
    source = tiny.source(policy, moments, folder / "frames")
    return [source[moments[at].qid] for at in (0, 3)]


def last_logits(policy, prompt):
    with torch.no_grad():
        return policy.model(
            input_ids=prompt.ids[None], position_ids=position_ids(prompt.positions[:, None]), use_cache=False,
            **vision_kwargs([prompt], policy.device),
        ).logits[0]  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts operations of torch: about as many kernels does a GPU start."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **kwargs or {})


def operations(policy, prompt):
    with Counter() as counter:
        last_logits(policy, prompt)
    return counter.count


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_merged_adapter_writes_what_the_adapter_writes(family, tmp_path):
    policy = adapted(family=family)
    prompts = prompts_of(policy, tmp_path)
    apart = dataclasses.replace(policy, merge=False)
    before = {name: (weight, weight.clone()) for name, weight in policy.model.named_parameters()}
    asked = {"max_new_tokens": 16, "greedy": True}, {"num": 3, "max_new_tokens": 8, "seed": 3}
    for how in asked:
        assert generate(policy, prompts, **how) == generate(apart, prompts, **how)
    plain = tiny.policy(family=family)
    assert generate(policy, prompts, **asked[0]) != generate(plain, prompts, **asked[0]), "the adapter matters"
    expected, cost = last_logits(policy, prompts[0]).log_softmax(-1), operations(policy, prompts[0])
    with merged(policy.model) as count:
        assert count == 2 * (7.5 if family == "qwen3_5" else 7), "every linear layer of both, eight in a linear one"
        assert (last_logits(policy, prompts[0]).log_softmax(-1) - expected).abs().max() < 5e-4
        assert operations(policy, prompts[0]) < cost
        if can_decode(policy.base):
            for layer in policy.base.get_decoder().layers:
                weights, attention, mlp = _weights(layer, joined=True), layer.self_attn, layer.mlp
                qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
                assert torch.equal(weights.qkv, torch.cat(qkv)) and weights.qkv.data_ptr() == qkv[0].data_ptr()
                assert weights.gate_up[0].data_ptr() == mlp.gate_proj.weight.data_ptr(), "no copy of the copy"
                assert torch.equal(weights.gate_up[0], torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
    after = dict(policy.model.named_parameters())
    assert list(after) == list(before), "names and order"
    assert all(after[name] is weight and torch.equal(weight, then) for name, (weight, then) in before.items())


@pytest.mark.parametrize(
    ("config", "count", "reason"),
    [
        ({"target_modules": r".*language_model.*(q_proj|v_proj)"}, 4, "of two layers"),
        ({"target_modules": r".*language_model.*q_proj", "use_rslora": True}, 2, "alpha over the root of the rank"),
        ({"target_modules": r".*language_model.*q_proj", "lora_bias": True}, 2, "a bias of its own"),
        ({"target_modules": r".*language_model.*q_proj", "use_dora": True}, 0, "is no sum of two: stays as it is"),
        ({"target_modules": r".*(q_proj|embed_tokens)"}, 2, "an adapted embedding stays, too"),
        ({"target_modules": r".*language_model.*q_proj", "modules_to_save": ["lm_head"]}, 2, "the head is trained whole"),
        ({"target_modules": r".*language_model.*q_proj", "modules_to_save": ["embed_tokens"]}, 2, "and the embeddings"),
        ({"target_modules": r".*visual.*(qkv|proj)"}, 10, "the tower's are merged if anybody asks"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*tied:UserWarning")
def test_what_else_an_adapter_may_be_is_merged_or_left_as_it_is(config, count, reason, tmp_path):
    policy = adapted(config=config)
    (prompt, _) = prompts_of(policy, tmp_path)
    expected = last_logits(policy, prompt)
    before = {name: (weight, weight.data_ptr()) for name, weight in policy.model.named_parameters()}
    with merged(policy.model) as found:
        assert found == count, reason
        assert (last_logits(policy, prompt) - expected).abs().max() < 1e-4, reason
    after = dict(policy.model.named_parameters())
    assert all(after[name] is weight and weight.data_ptr() == at for name, (weight, at) in before.items())
    apart = dataclasses.replace(policy, merge=False)
    how = {"max_new_tokens": 12, "greedy": True}
    assert generate(policy, [prompt], **how) == generate(apart, [prompt], **how)


def test_only_the_active_adapter_is_merged_and_none_where_it_is_taken_off(tmp_path):
    """As the KL reference is asked: by a second adapter, or by the base below."""
    policy = adapted()
    (prompt, _) = prompts_of(policy, tmp_path)
    base = last_logits(tiny.policy(), prompt)
    policy.model.add_adapter("ref", policy.model.peft_config["default"])
    with merged(policy.model):
        assert (last_logits(policy, prompt) - base).abs().max() > 0.1
    policy.model.set_adapter("ref")  # whose second matrix is still 0
    with merged(policy.model) as count:
        assert count == 14 and torch.equal(last_logits(policy, prompt), base)
    policy.model.set_adapter("default")
    with policy.model.disable_adapter(), merged(policy.model) as count:
        assert count == 0 and torch.equal(last_logits(policy, prompt), base)


def test_it_is_taken_out_though_sampling_fails(tmp_path):
    policy = adapted()
    names = [name for name, _ in policy.model.named_modules()]
    with pytest.raises(KeyboardInterrupt), merged(policy.model):
        raise KeyboardInterrupt
    assert [name for name, _ in policy.model.named_modules()] == names


def test_bfloat16_keeps_what_a_young_adapter_has_learnt():
    """To the nearest, four fifths of changes below the last bit of the weights would be rounded away."""
    policy = adapted(spread=1e-4, hidden=256)
    policy.base.to(torch.bfloat16)
    layer = policy.base.get_decoder().layers[0].mlp.down_proj
    for part in (layer.lora_A, layer.lora_B):
        part.float()
    weight = layer.get_base_layer().weight.detach().float()
    delta = layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()

    def kept(made):
        return float(((made.float() - weight) * delta).sum() / (delta * delta).sum())

    assert kept((weight + delta).bfloat16()) < 0.4
    with torch.no_grad():
        made = merged_linear(layer)
        assert made.weight.dtype == torch.bfloat16 and kept(made.weight) == pytest.approx(1, abs=0.1)
        assert (made.weight.float() - weight - delta).abs().max() <= 2**-7 * (weight + delta).abs().max()
        assert torch.equal(merged_linear(layer).weight, made.weight), "chance that is the same each time"
        layer.lora_B["default"].weight.zero_()
        assert torch.equal(merged_linear(layer).weight.float(), weight), "nothing learnt: the base itself"


def test_a_model_without_an_adapter_is_as_it_was():
    with merged(load_policy("embedded", device="cpu").model) as count:
        assert count == 0
