"""Trainer configurations: all that decides what is learnt is set here, and nothing of it left to a library's default.

TRL's defaults are those of its version, and some decide the gradient without a trace in the loss, as `use_bias_correction_kl` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.stages.distributed.process_group import process_rank
from labkit.stages.experimental.vllm_generation import vllm_options
from labkit.stages.sharding import sharding_arguments

WARMUP_STEPS = 10
"""Equal rises by which the learning rate reaches its height; the first step has the first of them."""

OBJECTIVE: dict[str, Any] = {
    # One update for each rollout, by the policy that wrote it: every ratio is 1, and no clipping binds.
    "num_iterations": 1,
    "epsilon": 0.2,
    "epsilon_high": None,  # as epsilon
    "delta": None,
    "importance_sampling_level": "token",
    "off_policy_mask_threshold": None,
    # (total - mean) / standard deviation within the group, of the weighted sum of the terms. GRPO's own, and Time-R1's.
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    # The mean over all tokens of the step, however it is divided into passes and processes. DAPO's; ours.
    "loss_type": "dapo",
    # A chain that was cut off has no answer, and pays for it.
    "mask_truncated_completions": False,
    # The KL term is GRPO's: r - log r - 1 of each token, r = reference / policy, with its own gradient (1 - r) * grad log policy.
    # Source: DeepSeekMath, eq. 4, and Time-R1's trainer. TRL would multiply it by policy / sampler: equal in value, as this ratio
    # is 1, but with the gradient -log r * grad log policy, that of the reverse KL (DeepSeek-V3.2).
    "use_bias_correction_kl": False,
    "sync_ref_model": False,  # the reference is the stage's start, always
    # Nothing is paid for entropy, and all tokens are learnt from.
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "top_entropy_quantile": 1.0,
    # What is learnt from is the distribution that was sampled from: without dropout, and with no token cut away.
    "disable_dropout": True,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "cast_lm_head_to_fp32": False,  # labkit's own log-probs are in float32
    "router_aux_loss_coef": 0.0,  # no family of ours has experts
}
"""GRPO as labkit means it, by the names of `trl.GRPOConfig`, beside what its parameters say."""


def grpo_config(
    policy: Policy,
    source: Mapping[str, Prompt],
    folder: Path,
    params: Params,
    *,
    steps: int,
    seed: int,
    reward_weights: Sequence[float],
    prompts_per_pass: int,
) -> Any:
    """The `trl.GRPOConfig` of a stage of `steps` steps, each process passing `prompts_per_pass` groups at a time.

    Raises LabError where vLLM is asked for and cannot be used.
    """
    from trl import GRPOConfig

    passes = params.prompts_per_step // (process_rank().world_size * prompts_per_pass)
    vllm = vllm_options(policy, source, params.max_new_tokens) if params.generation == "vllm" else {}
    return GRPOConfig(
        **_common_arguments(policy, folder, params, steps, seed, params.learning_rate, min_lr_rate=0.1),
        **OBJECTIVE,
        per_device_train_batch_size=prompts_per_pass * params.group_size,
        gradient_accumulation_steps=passes,
        steps_per_generation=passes,
        num_generations=params.group_size,
        shuffle_dataset=False,  # `shuffled_order` has shuffled, epoch by epoch, in a way that a resumed run repeats
        adam_beta2=0.95,
        weight_decay=0.0,
        temperature=params.temperature,
        beta=params.beta if policy.has_adapter else 0.0,  # see VideoGRPOTrainer
        reward_weights=list(reward_weights),
        max_completion_length=params.max_new_tokens,
        # Vectorized kernels round the elements behind the last whole vector otherwise, and how long the longest chain is depends on
        # how a step is divided: so there are none.
        pad_to_multiple_of=64,
        **vllm,
    )


def sft_config(policy: Policy, folder: Path, params: Params, *, steps: int, seed: int, batch: int) -> Any:
    """The `trl.SFTConfig` of `steps` steps of `batch` traces, which all processes share."""
    from trl import SFTConfig

    world = process_rank().world_size
    each = items_per_pass(batch, world)
    return SFTConfig(
        **_common_arguments(policy, folder, params, steps, seed, params.sft_learning_rate, min_lr_rate=0.05),
        per_device_train_batch_size=each,
        gradient_accumulation_steps=batch // (world * each),
        adam_beta2=0.98,
        weight_decay=0.01,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
    )


def items_per_pass(size: int, world: int) -> int:
    """Of a step's `size` queries or traces, those of one pass of one of `world` processes; one alone takes two passes, if it can.

    Then one process and two add up the same two gradients, and learn the same weights to the last bit.

    >>> items_per_pass(12, 1), items_per_pass(12, 2), items_per_pass(12, 3), items_per_pass(37, 1)
    (6, 6, 4, 37)
    """
    return size // 2 if world == 1 and size % 2 == 0 else size // world


def checkpointing_argument() -> str:
    """What transformers' training arguments call activation checkpointing: by this name, or before it had that, by the older one."""
    from transformers import TrainingArguments

    names = {field.name for field in fields(TrainingArguments)}
    return "activation_checkpointing" if "activation_checkpointing" in names else "gradient_checkpointing"


def _common_arguments(
    policy: Policy, folder: Path, params: Params, steps: int, seed: int, learning_rate: float, *, min_lr_rate: float
) -> dict[str, Any]:
    """What both trainers' configurations have in common.

    The learning rate rises in `WARMUP_STEPS` equal parts, of which the first step has one and not none, and falls as a cosine to
    `min_lr_rate` of itself, which the last step has. At most half of the steps are warm-up; a stage of one step has it whole.

    Raises LabError where the weights that would be trained are in 4 bits.
    """
    if getattr(policy.base, "is_quantized", False) and not policy.has_adapter:
        raise LabError(f"the weights of {policy.name!r} are in 4 bits and are not trained themselves; set lora_rank")
    return {
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": min_lr_rate},
        "warmup_steps": max(1, min(WARMUP_STEPS, steps // 2)),
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "average_tokens_across_devices": True,
        checkpointing_argument(): params.gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": params.save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "bf16": str(policy.base.dtype) == "torch.bfloat16",
        "use_cpu": policy.device.type == "cpu",
        "remove_unused_columns": False,
        **sharding_arguments(policy, params.sharding),
    }
