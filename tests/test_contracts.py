"""What labkit relies on in other libraries beyond their documented API, so that their next release fails here, in words.

labkit overrides, calls or reads each of these. Where one has changed: read what it does now, change the module that is named beside
it, then this table. The versions that are supported are in pyproject.toml.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import fields
from typing import Any

import pytest

# (owner, as module:Class or module; name; its parameters in order as far as labkit relies on them; who relies on it, and for what)
OVERRIDDEN = [
    ("trl:GRPOTrainer", "_prepare_inputs", "self generation_batch", "stages/grpo: a group stays in one forward pass"),
    ("trl:GRPOTrainer", "_generate_and_score_completions", "self inputs", "stages/grpo: records every rollout"),
    (
        "trl:GRPOTrainer",
        "_get_per_token_logps_and_entropies",
        "self model input_ids attention_mask logits_to_keep",
        "stages/grpo: log-probs of packed groups",
    ),
    ("trl:GRPOTrainer", "_send_telemetry", "self", "stages/checkpoints: no usage data is sent"),
    ("trl:SFTTrainer", "_send_telemetry", "self", "stages/checkpoints: no usage data is sent"),
    ("trl:GRPOTrainer", "create_model_card", "self", "stages/checkpoints: none is written"),
    ("trl:SFTTrainer", "create_model_card", "self", "stages/checkpoints: none is written"),
    ("trl:SFTTrainer", "_get_train_sampler", "self train_dataset", "stages/sft: rows in the order given"),
    (
        "trl:SFTTrainer",
        "compute_loss",
        "self model inputs return_outputs num_items_in_batch",
        "stages/sft: the loss of packed traces",
    ),
    ("transformers:Trainer", "_save_checkpoint", "self model trial", "stages/checkpoints: marks complete checkpoints"),
    (
        "transformers:Trainer",
        "_load_from_checkpoint",
        "self resume_from_checkpoint model",
        "stages/checkpoints: loads weights under the names that transformers saves",
    ),
    ("transformers:TrainerCallback", "on_step_end", "self args state control", "stages/distributed/preemption"),
    ("transformers:TrainerCallback", "on_save", "self args state control", "stages/distributed/preemption"),
]
CALLED = [
    ("trl.trainer.utils", "split_tensor_dict", "tensor_dict num_chunks", "stages/grpo: forward passes of one step"),
    (
        "transformers.integrations.sdpa_attention",
        "sdpa_attention_forward",
        "module query key value attention_mask dropout scaling is_causal",
        "policy/attention: attention without a layout",
    ),
    (
        "transformers.masking_utils",
        "sdpa_mask",
        "batch_size q_length kv_length",
        "policy/attention: masks of the attention that labkit registers",
    ),
    (
        "transformers:AttentionInterface",
        "register",
        "key value",
        "policy/attention: registers its attention functions",
    ),
    ("transformers:PretrainedConfig", "get_config_dict", "pretrained_model_name_or_path", "policy/model: model_type"),
    ("peft.tuners.lora:LoraLayer", "get_base_layer", "self", "policy/adapters: the layer below LoRA"),
    ("peft:PeftModel", "get_base_model", "self", "policy/model, policy/packed_logprobs: the model below LoRA"),
    (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLModel",
        "get_video_features",
        "self pixel_values_videos video_grid_thw",
        "policy/inputs: features of the frozen vision tower",
    ),
    (
        "transformers.models.smolvlm.modeling_smolvlm:SmolVLMModel",
        "get_image_features",
        "self pixel_values",
        "policy/inputs: features of frames",
    ),
    (
        "transformers.models.internvl.modeling_internvl:InternVLModel",
        "get_image_features",
        "self pixel_values",
        "policy/inputs: features of frames",
    ),
    ("accelerate:Accelerator", "free_memory", "self", "stages/checkpoints: frees the optimizer of a failed cell"),
    ("torch.distributed.fsdp:FSDPModule", "unshard", "self", "stages/sharding: full weights while it generates"),
    ("torch.distributed.fsdp:FSDPModule", "reshard", "self", "stages/sharding: back to shards"),
    (
        "torch.distributed.fsdp:FSDPModule",
        "set_reshard_after_forward",
        "self reshard_after_forward recurse",
        "stages/sharding: full weights between the tokens of a completion",
    ),
    ("huggingface_hub", "try_to_load_from_cache", "repo_id filename", "policy/model: what was downloaded before"),
]
# (owner, text that must occur in its source, who relies on it): attributes, keys and branches that have no signature.
READ = [
    ("trl:GRPOTrainer", "self._buffered_inputs", "stages/grpo: set in _prepare_inputs, and None between steps"),
    ("trl:GRPOTrainer", "self._step", "stages/grpo: counts the forward passes"),
    ("trl:GRPOTrainer", "self.num_iterations", "stages/grpo: 1"),
    ("trl:GRPOTrainer", "self.ref_model", "stages/grpo: set after __init__ to a frozen copy"),
    ("trl:GRPOTrainer", "self.rollout_func(prompts, self)", "stages/grpo: generates the completions"),
    ("trl:GRPOTrainer", '"advantages"', "stages/grpo: recorded beside each rollout"),
    ("trl:GRPOTrainer", 'add_adapter("ref"', "policy/model: saved checkpoints leave this adapter out"),
    ("trl:GRPOTrainer", "self.vllm_generation", "stages/experimental/vllm_generation: TRL's engine"),
    ("peft.tuners.lora:LoraLayer", "self.lora_variant", "policy/adapters: what is no plain LoRA is not merged"),
    (
        "peft.tuners.lora.layer:Linear",
        "result = result + lora_B(lora_A(dropout(x))) * scaling",
        "policy/adapters: the sum that it merges",
    ),
    ("transformers:Trainer", '"shift_labels"', "stages/sft: by this name all labels of a batch are counted"),
    (
        "accelerate.utils.fsdp_utils:fsdp2_prepare_model",
        "fsdp2_plugin.ignored_modules",
        "stages/sharding: whole towers",
    ),
    ("accelerate:Accelerator", "= self._prepare_fsdp2(", "stages/sharding: the model is sharded before, and left so"),
    (
        "accelerate:Accelerator",
        "self._prepare_one(obj, first_pass=True)",
        "stages/sharding: the optimizer is prepared",
    ),
    ("transformers.utils.generic", '"flash" in', "policy/attention: all windows in one call by the name"),
    (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        "cu_seq_lens_q=",
        "policy/attention: bounds of windows and frames",
    ),
    (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
        ".update(key_states, value_states, self.layer_idx",
        "policy/kv_cache: one call in each layer",
    ),
    (
        "transformers.models.smolvlm.processing_smolvlm",
        "DEFAULT_CHAT_TEMPLATE =",
        "policy/families: SmolVLM2's videos",
    ),
    (
        "transformers.models.qwen3_5.modeling_qwen3_5",
        "mixed_qkv = causal_conv1d_fn(",
        "policy/linear_attention: is wrapped, and gets the layout among its keywords",
    ),
    (
        "transformers.models.qwen3_5.modeling_qwen3_5",
        "core_attn_out, last_recurrent_state = torch_chunk_gated_delta_rule(",
        "policy/linear_attention: is wrapped, and gets the layout among its keywords",
    ),
    ("transformers.utils.hub", "_raise_exceptions_for_missing_entries", "policy/model: None for a missing file"),
    ("transformers.utils.hub", "_raise_exceptions_for_gated_repo", "policy/model: None for a missing file"),
    ("transformers.utils.hub", "_raise_exceptions_for_connection_errors", "policy/model: None for a missing file"),
]
# Arguments by name: (owner, names, who relies on them).
KEYWORDS = [
    ("trl:GRPOTrainer.__init__", "model reward_funcs args train_dataset processing_class rollout_func", "stages/grpo"),
    ("trl:GRPOTrainer._get_per_token_logps_and_entropies", "compute_entropy", "stages/grpo: entropies when wanted"),
    ("peft:PeftModel.save_pretrained", "selected_adapters", "policy/model: without the reference adapter"),
    ("transformers:PreTrainedModel.save_pretrained", "state_dict", "policy/model: weights that were sharded"),
    ("transformers:PreTrainedModel.from_pretrained", "config", "stages/checkpoints: a frozen copy from a state dict"),
    (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLForConditionalGeneration.forward",
        "position_ids attention_mask cache|past_key_values use_cache logits_to_keep",
        "policy/generate, policy/packed_logprobs",
    ),
    (
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl:Qwen2_5_VLModel.forward",
        "mm_encoder_outputs",
        "policy/inputs: encoded videos",
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


def owner_of(path: str) -> Any:
    """The module, class or method of `module:Class.method`."""
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split(".") if names else ():
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(("owner", "name", "parameters", "reason"), OVERRIDDEN + CALLED)
def test_a_hook_takes_what_labkit_passes(owner, name, parameters, reason):
    hook = getattr(owner_of(owner), name, None)
    assert hook is not None, f"{owner} has no {name} any more ({reason})"
    found = " ".join(inspect.signature(hook).parameters)
    assert found == parameters or found.startswith(f"{parameters} "), f"{owner}.{name}({found}): {reason}"


@pytest.mark.parametrize(("owner", "text", "reason"), READ)
def test_an_attribute_or_key_is_still_there(owner, text, reason):
    assert text in inspect.getsource(owner_of(owner)), f"{owner} has no {text} any more ({reason})"


@pytest.mark.parametrize(("owner", "names", "reason"), KEYWORDS)
def test_an_argument_still_has_its_name(owner, names, reason):
    found = set(inspect.signature(owner_of(owner)).parameters)
    missing = [name for name in names.split() if not found & set(name.split("|"))]  # by either name
    assert not missing, f"{owner} takes no {missing} any more ({reason})"


@pytest.mark.parametrize("name", OPERATORS)
def test_an_attention_operator_of_torch_has_the_arguments_that_labkit_passes(name):
    import torch

    schema = getattr(torch.ops.aten, name).default._schema
    assert " ".join(argument.name for argument in schema.arguments) == OPERATORS[name]


@pytest.mark.parametrize("state", ["PartialState", "AcceleratorState", "GradientState"])
def test_accelerate_shares_one_mutable_state_in_a_process(state):
    """stages/distributed/launcher_variables clears these dictionaries in place, and puts them back."""
    shared = getattr(importlib.import_module("accelerate.state"), state)._shared_state
    assert callable(shared.clear) and callable(shared.update) and dict(shared) is not shared


def test_configurations_of_transformers_and_peft_have_a_class_in_common():
    """stages/checkpoints finds by it the configurations that a training may have changed."""
    from peft import LoraConfig
    from transformers import PretrainedConfig
    from transformers.utils import PushToHubMixin

    assert issubclass(PretrainedConfig, PushToHubMixin) and issubclass(LoraConfig, PushToHubMixin)


def test_trainer_arguments_that_decide_the_objective_have_their_names():
    """stages/arguments sets every one of them, whatever TRL's defaults are."""
    from trl import GRPOConfig

    from labkit.stages.arguments import OBJECTIVE

    assert set(OBJECTIVE) <= {field.name for field in fields(GRPOConfig)}
