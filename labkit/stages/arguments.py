"""What trainers are told: all that decides what is learnt is said here, and nothing of it left to a library's default.

TRL's defaults are those of its version, and some decide the gradient without a trace in the loss, as `use_bias_correction_kl` does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.policy.model import Policy
from labkit.stages.sharding import sharing

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

VLLM_CORRECTION: dict[str, Any] = {
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
}
"""Where vLLM writes: a chain counts by its probability here over that in vLLM, and not at all above 3. TRL's choice."""


def training_arguments(
    policy: Policy,
    folder: Path,
    *,
    seed: int,
    steps: int,
    learning_rate: float,
    warmup_steps: int,
    min_lr_rate: float,
    save_steps: int,
    gradient_checkpointing: bool,
    sharding: str,
) -> dict[str, Any]:
    """What both trainers are told alike.

    The learning rate rises in `warmup_steps` equal parts, of which the first step has one and not none, and falls as a cosine to
    `min_lr_rate` of itself, which the last step has. At most half of the steps are warm-up; a stage of one step has it whole.
    """
    return {
        "output_dir": str(folder),
        "seed": seed,
        "max_steps": steps,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine_warmup_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": min_lr_rate},
        "warmup_steps": max(1, min(warmup_steps, steps // 2)),
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "average_tokens_across_devices": True,
        "activation_checkpointing": gradient_checkpointing,
        "save_strategy": "steps",
        "save_steps": save_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "bf16": str(policy.base.dtype) == "torch.bfloat16",
        "use_cpu": policy.device.type == "cpu",
        "remove_unused_columns": False,
        **sharing(policy, sharding),
    }
