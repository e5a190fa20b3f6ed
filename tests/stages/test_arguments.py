"""Nothing that decides what is learnt is left to a default of TRL, which may be another in its next version."""

from __future__ import annotations

from dataclasses import fields

import pytest
import transformers
import trl

from labkit.stages.arguments import OBJECTIVE
from labkit.stages.experimental.vllm_generation import IMPORTANCE_SAMPLING

SAID_BY_PARAMETERS = {
    "beta", "learning_rate", "max_completion_length", "num_generations", "remove_unused_columns", "reward_weights",
    "shuffle_dataset", "steps_per_generation", "temperature", "use_vllm", "vllm_mode", "vllm_max_model_length",
}  # fmt: skip
WITHOUT_EFFECT = {
    "how a model is loaded, and labkit gives one": ("model_init_kwargs", "trust_remote_code"),
    "TRL sees no prompt, and pads for Neuron alone": ("chat_template_kwargs", "pad_to_multiple_of"),
    "labkit writes the rollouts": (
        "cache_implementation", "ds3_gather_for_generation", "generation_batch_size", "generation_kwargs",
        "max_tool_calling_iterations", "num_generations_eval", "transformers_continuous_batching_config",
        "use_transformers_continuous_batching", "use_transformers_paged",
    ),
    "of other losses": (
        "sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_neg", "vespo_k_pos", "vespo_lambda_neg",
        "vespo_lambda_pos",
    ),
    "of what is switched off": (
        "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min", "entropy_target", "ref_model_mixup_alpha",
        "ref_model_sync_steps",
    ),
    "how vLLM runs": (
        "vllm_enable_sleep_mode", "vllm_gpu_memory_utilization", "vllm_group_port", "vllm_importance_sampling_cap", "vllm_model_impl",
        "vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout",
        "vllm_structured_outputs_regex", "vllm_tensor_parallel_size",
    ),
    "what is logged": (
        "log_completions", "log_completions_hub_repo", "log_multimodal", "log_unique_prompts", "num_completions_to_print",
    ),
}  # fmt: skip


def test_every_option_of_trl_is_said_or_known_to_do_nothing():
    """A new version of TRL fails here until somebody has looked at what it added."""
    common = {field.name for field in fields(transformers.TrainingArguments)}
    own = {field.name for field in fields(trl.GRPOConfig)} - common
    said = OBJECTIVE.keys() | IMPORTANCE_SAMPLING.keys() | SAID_BY_PARAMETERS
    idle = [name for names in WITHOUT_EFFECT.values() for name in names]
    assert own - said - set(idle) == set()
    assert set(idle) <= own and not said & set(idle), "the table names only what there is"


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("use_bias_correction_kl", False, "GRPO's and Time-R1's KL term; TRL's default has another gradient"),
        ("loss_type", "dapo", "the mean over the step's tokens does not depend on how it is divided"),
        ("scale_rewards", "group", "GRPO's advantage"),
        ("num_iterations", 1, "a rollout is learnt from once, by the policy that wrote it"),
        ("disable_dropout", True, "log-probs are those of the policy that wrote"),
    ],
)
def test_the_objective_is(name, value, reason):
    assert OBJECTIVE[name] == value, reason
