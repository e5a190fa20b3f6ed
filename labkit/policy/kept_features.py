"""Features of clips on disk, beside the frames that they were computed from: on a CPU the tower's pass costs more than reading them.

Stages, notebooks and runs whose towers are the same share them. On a GPU nothing is kept: there the pass is quick, and features of a
real model are as large as its frames.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.files import replacing
from labkit.policy.model import Policy

if TYPE_CHECKING:
    import torch

FEATURES_FORMAT = 2
"""Part of every file's name: raise it when `labkit.policy.inputs` would make other features of the same frames and tower."""

log = logging.getLogger(__name__)


def tower_digest(policy: Policy) -> str:
    """What features follow from beside the frames: the tower's weights and shape, the family, and what computes.

    "" on a GPU and on the plain path, where nothing is kept.
    """
    import torch
    import transformers

    if policy.device.type != "cpu" or policy.processor is not None:
        return ""
    versions = (FEATURES_FORMAT, torch.__version__, transformers.__version__)
    computing = (*versions, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    digest = hashlib.blake2b(digest_size=20)
    family, config = policy.family, policy.base.config
    pixels = (config.model_type, family.mean, family.std, family.deepstack)
    digest.update(f"{computing} {pixels} {config.vision_config.to_json_string()}".encode())
    weights = [item for tower in policy.towers for item in tower.state_dict().items()]
    for name, weight in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def kept_features(file: Path, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What is in `file`, or what `compute` returns, which then is in `file`. A damaged file is written again."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load, save

    try:
        kept = load(file.read_bytes())
        if _checksum(kept["features"]) == int(kept["crc32"]):
            return kept["features"]
        log.warning("%s is damaged (its checksum is another); encoding its clip again", file)
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError) as error:
        log.warning("%s is damaged (%s); encoding its clip again", file, error)
    features = compute().contiguous()
    with replacing(file) as draft:
        draft.write_bytes(save({"features": features, "crc32": torch.tensor(_checksum(features))}))
    return features


def _checksum(features: torch.Tensor) -> int:
    """Of the bytes: safetensors has none, and a machine that crashed may leave a file as long as it should be, with zeros in it."""
    import torch

    return zlib.crc32(features.reshape(-1).view(torch.uint8).numpy().data)
