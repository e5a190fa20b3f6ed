"""What labkit takes for granted of other libraries' private parts, so that their next release fails here, in words.

labkit overrides or calls each of these with the parameters below. Where one has changed: read what it does now, mend the place
that is named beside it, then this table.
"""

from __future__ import annotations

import importlib
import inspect

import pytest

HOOKS = [
    # (owner, name, parameters that labkit relies on, in order, who relies on it)
    ("trl:GRPOTrainer", "_prepare_inputs", "self generation_batch", "stages/grpo: keeps a group in one pass"),
    ("trl:GRPOTrainer", "_generate_and_score_completions", "self inputs", "stages/grpo: records every rollout"),
    (
        "trl:GRPOTrainer",
        "_get_per_token_logps_and_entropies",
        "self model input_ids attention_mask logits_to_keep",
        "stages/grpo: log-probs of a packed group; called with compute_entropy by name",
    ),
    ("trl.trainer.utils", "split_tensor_dict", "tensor_dict num_chunks", "stages/grpo: passes of one step"),
    ("transformers:Trainer", "_save_checkpoint", "self model trial", "stages/checkpoints: marks complete checkpoints"),
    (
        "transformers:Trainer",
        "_load_from_checkpoint",
        "self resume_from_checkpoint model",
        "stages/checkpoints: loads weights under the names that transformers saves",
    ),
    ("trl:GRPOTrainer", "_send_telemetry", "self", "stages/checkpoints: a run tells nobody about itself"),
    ("trl:GRPOTrainer", "create_model_card", "self", "stages/checkpoints: writes none"),
    (
        "transformers.integrations.sdpa_attention",
        "sdpa_attention_forward",
        "module query key value attention_mask dropout scaling is_causal",
        "policy/attention: what is asked where no layout is set",
    ),
    (
        "transformers.masking_utils",
        "sdpa_mask",
        "batch_size q_length kv_length",
        "policy/attention: masks of the attention that labkit registers",
    ),
]

OPERATORS = {  # (name, arguments as torch's schema names them); policy/attention calls them for their log-sum-exp
    "_scaled_dot_product_flash_attention": "query key value dropout_p is_causal return_debug_mask scale",
    "_scaled_dot_product_flash_attention_backward": "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k "
    "dropout_p is_causal philox_seed philox_offset scale",
    "_scaled_dot_product_flash_attention_for_cpu": "query key value dropout_p is_causal attn_mask scale",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "grad_out query key value out logsumexp dropout_p is_causal "
    "attn_mask scale",
}


@pytest.mark.parametrize(("owner", "name", "parameters", "reason"), HOOKS, ids=[hook[1] for hook in HOOKS])
def test_a_hook_of_another_library_takes_what_labkit_hands_it(owner, name, parameters, reason):
    module, _, cls = owner.partition(":")
    home = importlib.import_module(module)
    hook = getattr(getattr(home, cls) if cls else home, name, None)
    assert hook is not None, f"{owner} has no {name} any more ({reason})"
    found = " ".join(inspect.signature(hook).parameters)
    assert found == parameters or found.startswith(f"{parameters} "), f"{owner}.{name}({found}): {reason}"


def test_entropies_are_still_asked_for_by_name():
    import trl

    assert "compute_entropy" in inspect.signature(trl.GRPOTrainer._get_per_token_logps_and_entropies).parameters


@pytest.mark.parametrize("name", OPERATORS)
def test_an_attention_operator_of_torch_has_the_arguments_that_labkit_passes(name):
    import torch

    schema = getattr(torch.ops.aten, name).default._schema
    assert " ".join(argument.name for argument in schema.arguments) == OPERATORS[name]


def test_qwen_models_take_encoded_videos_and_ready_positions():
    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

    names = set(inspect.signature(qwen.Qwen2_5_VLForConditionalGeneration.forward).parameters)
    inner = set(inspect.signature(qwen.Qwen2_5_VLModel.forward).parameters)
    for name in ("position_ids", "attention_mask", "logits_to_keep", "mm_encoder_outputs"):
        assert name in names | inner, f"forward takes no {name} any more (policy/inputs, policy/packed_logprobs)"
