"""What the recipes share: the vision half, in which the tower learns to name what each frame token shows; prompts, steps, the end.

The tower then stays frozen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from labkit.embedded.clips import ACTIONS, COLORS, PLACES, SHAPES, STATES_PER_SECOND
from labkit.embedded.model import SIDE
from labkit.policy.families import VIDEO_PAD, positions_in_seconds
from labkit.policy.inputs import rotary_positions

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
    visual: Any, frames: np.ndarray, labels: np.ndarray, recipe: VisionRecipe, seed: int, report: Callable[[str], None]
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


def init_embeddings(model: Any, tokenizer: Any, times: Sequence[str], seconds: int) -> None:
    """Scale a language model's embeddings, and give those of `times`, up to `seconds`, values that say which is near which."""
    import torch

    table = model.model.language_model.embed_tokens.weight
    numbers = torch.tensor(tokenizer.convert_tokens_to_ids(list(times)))
    waves = torch.exp(torch.linspace(0, math.log(24.0), table.shape[1] // 2))
    angles = 2 * torch.linspace(0, seconds / 16, len(times))[:, None] * waves
    places = torch.cat([torch.sin(angles), torch.cos(angles)], 1)
    with torch.no_grad():
        table.mul_(EMBEDDING_SCALE / table.std())
        table[numbers] = places / places.std() * EMBEDDING_SCALE


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


def question_ids(tokenizer: Any, query: str, seconds: int) -> list[int]:
    """Token ids of a query about a clip of so many seconds, four video tokens each, as `build_prompt` of policies writes them."""
    content = [{"type": "text", "text": query}, {"type": "video"}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer(chat.replace(VIDEO_PAD, VIDEO_PAD * 4 * seconds), add_special_tokens=False)["input_ids"])


def clip_positions(config: Any, ids: Any, seconds: int) -> Any:
    """Rotary positions (3, P) of ids (P,) that begin with such a question."""
    ticks = positions_in_seconds(config.vision_config, seconds, 1.0)
    return rotary_positions(ids == config.video_token_id, (seconds, 4, 4), merge=2, temporal_positions=ticks)


class LayerOutput:
    """What a layer of a model's language model has put out last."""

    hidden: torch.Tensor

    def __init__(self, model: Any, number: int) -> None:
        """Hooks the layer until it is closed."""
        self._hook = model.model.language_model.layers[number].register_forward_hook(self._keep)

    def _keep(self, module: Any, inputs: Any, output: Any) -> None:
        self.hidden = output[0] if isinstance(output, tuple) else output

    def close(self) -> None:
        """Remove the hook."""
        self._hook.remove()


def text_rate(step: int, done: float, least: float) -> float:
    """Share of the learning rate in a text step, of which a share is `done`: a rise, a plateau, and a cosine down to `least`."""
    return min(1, (step + 1) / 40) * (
        1 if done < 0.3 else max(least, 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7)))
    )


def write_base(folder: str | Path, name: str, model: Any, tokenizer: Any, recipe: dict[str, Any]) -> Path:
    """Write a trained base, and how it was trained. Raises LabError where `folder` exists."""
    import torch

    from labkit.policy.model import Policy, save_policy

    # Halves the package; float16 keeps more digits than bfloat16 at these small values.
    save_policy(Policy(model.to(torch.float16), tokenizer, name), Path(folder))
    (Path(folder) / "recipe.json").write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
    return Path(folder)
