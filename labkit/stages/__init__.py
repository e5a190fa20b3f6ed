"""How it learns: rollouts, GRPO, distillation, SFT, evaluation."""
