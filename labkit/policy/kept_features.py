"""Features of clips on disk, beside the frames that they were computed from: on a CPU the tower's pass costs more than reading them.

Stages, notebooks and runs whose towers are the same share them. On a GPU nothing is kept: there the pass is quick, and features of a
real model are as large as its frames.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.files import replacing
from labkit.policy.model import Policy

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)


def tower_digest(policy: Policy) -> str:
    """What features follow from beside the frames: the tower's weights and shape, the family, and what computes.

    "" on a GPU and on the plain path, where nothing is kept.
    """
    import torch

    if policy.device.type != "cpu" or policy.processor is not None:
        return ""
    digest = hashlib.blake2b(digest_size=20)
    computing = (torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    digest.update(
        f"{policy.base.config.model_type} {computing} {policy.base.config.vision_config.to_json_string()}".encode()
    )
    weights = [item for tower in policy.towers for item in tower.state_dict().items()]
    for name, weight in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def kept_features(file: Path, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What is in `file`, or what `compute` returns, which then is in `file`. A damaged file is written again."""
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        return load(file.read_bytes())["features"]
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError) as error:
        log.warning("%s is damaged (%s); encoding its clip again", file, error)
    features = compute()
    with replacing(file) as draft:
        draft.write_bytes(save({"features": features.contiguous()}))
    return features
