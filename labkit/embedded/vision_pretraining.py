"""The vision half of pretraining: the tower learns to name what each frame token shows, and then stays frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.embedded.clips import ACTIONS, COLORS, PLACES, SHAPES, STATES_PER_SECOND
from labkit.embedded.model import SIDE

if TYPE_CHECKING:
    import torch

KINDS = ("colour", "shape", "action", "action", "place")
"""What is named of a token: the action in either half of its second. Labels may leave the place out."""
_NAMES = (1 + len(COLORS), 1 + len(SHAPES), 1 + len(ACTIONS), 1 + len(ACTIONS), len(PLACES))
FEATURE_SCALE, EMBEDDING_SCALE = 0.3, 0.1
"""Standard deviations of features and of embeddings; at the usual ones the text never attends to the video."""


class VisionRecipe(NamedTuple):
    """How the tower is trained."""

    steps: int
    batch: int
    """Pairs of frames."""
    rate: float


def train_vision(
    visual: Any,
    frames: np.ndarray,
    labels: np.ndarray,
    recipe: VisionRecipe,
    seed: int,
    report: Callable[[str], None],
) -> torch.Tensor:
    """Teach the vision tower to name what each token shows, freeze it, and return the features of all clips (N, tokens, width).

    frames: (N, states, 56, 56, 3) uint8. labels: (N, seconds, 4, K) numbers of the first K of `KINDS`, 0 being none of it.
    """
    import torch
    from torch.nn.functional import cross_entropy

    rng = np.random.default_rng(seed)
    sizes = list(_NAMES[: labels.shape[-1]])
    head = torch.nn.Linear(visual.config.out_hidden_size, sum(sizes))
    matrices = [p for p in visual.parameters() if p.ndim == 2]
    others = [p for p in visual.parameters() if p.ndim != 2] + list(head.parameters())
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.rate, weight_decay=0.0),
    ]
    pairs = frames.reshape(-1, STATES_PER_SECOND, SIDE, SIDE, 3)
    targets = torch.from_numpy(labels.reshape(-1, 4, len(sizes)))
    for step in range(recipe.steps):
        rate = min(1, (step + 1) / 20) * max(0.02, 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        chosen = rng.integers(0, len(pairs), recipe.batch)
        scores = head(_encode_frames(visual, pairs[chosen])).split(sizes, -1)
        losses = [cross_entropy(s.flatten(0, 1), targets[chosen][..., k].flatten()) for k, s in enumerate(scores)]
        optimizer_step(optimizers, recipe.rate * rate, torch.stack(losses).sum())
        if step % 50 == 49 or step == recipe.steps - 1:
            hits = [(s.argmax(-1) == targets[chosen][..., k]).float().mean().item() for k, s in enumerate(scores)]
            report(f"vision {step + 1}: " + " ".join(f"{n} {h:.3f}" for n, h in zip(KINDS, hits, strict=False)))
    visual.requires_grad_(False)
    features = encode_clips(visual, frames)
    with torch.no_grad():
        scale = FEATURE_SCALE / features.std()
        visual.merger.mlp[2].weight.mul_(scale)
        visual.merger.mlp[2].bias.mul_(scale)
    return features * scale


def encode_clips(visual: Any, frames: np.ndarray) -> torch.Tensor:
    """What the vision tower makes of all clips (N, states, 56, 56, 3): (N, tokens, width)."""
    import torch

    by_clip = frames.reshape(len(frames), -1, STATES_PER_SECOND, SIDE, SIDE, 3)
    with torch.no_grad():
        return torch.cat([_encode_frames(visual, clip)[None].flatten(1, 2) for clip in by_clip])


def _encode_frames(visual: Any, rgb: np.ndarray) -> torch.Tensor:
    """(N, 2, 56, 56, 3) -> (N, 4, width), each pair of frames a clip of its own."""
    import torch

    from labkit.policy.families import FAMILIES
    from labkit.policy.inputs import patchify

    patches, _ = patchify(rgb.reshape(-1, SIDE, SIDE, 3), FAMILIES["qwen2_5_vl"], 14, 2, 2)
    grid = torch.tensor([[1, 4, 4]]).repeat(len(rgb), 1)
    return visual(patches, grid_thw=grid).pooler_output.view(len(rgb), 4, -1)


def scale_embeddings(model: Any) -> None:
    """Set the scale of a language model's embeddings, in place."""
    import torch

    table = model.model.language_model.embed_tokens.weight
    with torch.no_grad():
        table.mul_(EMBEDDING_SCALE / table.std())


def optimizer_step(
    optimizers: Sequence[torch.optim.Optimizer],
    rate: float,
    loss: torch.Tensor,
    clipped: Sequence[torch.nn.Parameter] = (),
) -> None:
    """One step of several optimizers at a learning rate, the gradients of `clipped` bounded."""
    import torch

    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
    loss.backward()
    if clipped:
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
    for optimizer in optimizers:
        optimizer.step()
