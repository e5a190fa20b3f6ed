"""Estimates: what those of memory (`labkit.doctor.memory`) and time (`labkit.doctor.runtime`) rest on, and that of the disk.

A model is known by its config and the headers of its weights; no weight is loaded. Source: our own counts. benchmarks/estimates.py
compares what is told with small runs on a CPU; large models on a GPU have not been compared.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.params import Params

STAGES = ("grpo", "distill", "sft", "grpo_final", "analysis")
KEPT_SHARE = 2 / 3
"""Share of `harvest_prompts` x `max_per_query` that the filter keeps: three seeds of the embedded lab kept 0.49 to 0.66."""
ANSWER_SHARE = 0.5
"""Length of a chain in parts of `max_new_tokens`: the embedded lab writes 34 of 64 tokens, its control 18."""
CHUNK = 24
"""Queries that a harvest samples together."""
BYTES = {"float32": 4, "bfloat16": 2}
"""Of a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model by its config and the headers of its weights."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    """Width of a head."""
    intermediate: int
    context: int
    patch: int
    merge: int
    temporal: int
    text_parameters: int
    vision_parameters: int
    levels: int = 1
    """Vectors of a video token: one, and with deepstack one more for each layer that the tower feeds."""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices, which is where the arithmetic is."""
        return self.hidden * (2 * self.head * (self.heads + self.kv_heads) + 3 * self.intermediate)

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on the seven matrices of each layer."""
        h, q, kv, wide = self.hidden, self.heads * self.head, self.kv_heads * self.head, self.intermediate
        return self.layers * rank * (2 * (h + q) + 2 * (h + kv) + 3 * (h + wide))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What the data ask of a model."""

    train: int
    """Training queries."""
    test: int
    train_clips: int
    test_clips: int
    prompt_tokens: float
    """Of a query, video included, on average."""
    longest_prompt: int
    video_tokens: float
    """Of a clip, on average."""
    frame_bytes: float = 0.0
    """Of a clip in the frame cache, on average."""

    def as_dict(self) -> dict[str, float]:
        """Every number by its name."""
        return {name: getattr(self, name) for name in self.__slots__}


def read_shape(folder: Path) -> Shape:
    """The shape of the model in `folder`, from config.json and the weights' headers.

    Raises LabError when the config is missing or not that of a model family that labkit reads.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        text = config.get("text_config") or config
        vision = config["vision_config"]
        shape = {
            "vocab": text["vocab_size"], "hidden": text["hidden_size"], "layers": text["num_hidden_layers"],
            "heads": text["num_attention_heads"], "kv_heads": text["num_key_value_heads"],
            "head": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
            "intermediate": text["intermediate_size"], "context": text.get("max_position_embeddings", 32768),
            "patch": vision.get("patch_size", 16 if "deepstack_visual_indexes" in vision else 14),
            "merge": vision.get("spatial_merge_size", 2), "temporal": vision.get("temporal_patch_size", 2),
        }  # fmt: skip
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LabError(f"'{path}' does not describe a Qwen-VL ({error!r}); give a folder that holds one") from None
    counted = count_parameters(folder)
    if not sum(counted):
        counted = _by_formula(
            shape, text, vision, bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        )
    levels = 1 + len(vision.get("deepstack_visual_indexes", ()))
    return Shape(**shape, text_parameters=counted[0], vision_parameters=counted[1], levels=levels)


def count_parameters(folder: Path) -> tuple[int, int]:
    """Weights of the language model and of the vision tower, by the headers of `*.safetensors`; zeros without any."""
    text = vision = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            sizes = {name: math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__"}
        except (
            OSError,
            ValueError,
            OverflowError,
            AttributeError,
            LookupError,
            TypeError,
            struct.error,
            MemoryError,
        ) as error:
            raise LabError(f"'{path}' has no readable header ({error!r}); copy or download it again") from None
        vision += sum(size for name, size in sizes.items() if "visual" in name)
        text += sum(size for name, size in sizes.items() if "visual" not in name)
    return text, vision


def _by_formula(
    shape: Mapping[str, int], text: Mapping[str, Any], vision: Mapping[str, Any], tied: bool
) -> tuple[int, int]:
    layer = shape["hidden"] * (2 * shape["head"] * (shape["heads"] + shape["kv_heads"]) + 3 * shape["intermediate"])
    words = shape["layers"] * layer + shape["vocab"] * shape["hidden"] * (1 if tied else 2)
    # What the families call their tower's widths; Qwen2.5-VL's has gates, Qwen3-VL's a merger for each layer that it feeds.
    fed = len(vision.get("deepstack_visual_indexes", ()))
    if "embed_dim" in vision:
        width, wide, matrices = vision["embed_dim"], vision["embed_dim"] * vision.get("mlp_ratio", 4), 2
    else:
        width, wide = vision.get("hidden_size", 1280), vision.get("intermediate_size", 3420)
        matrices = 2 if fed else 3
    merged = width * shape["merge"] ** 2
    tower = vision.get("depth", 32) * width * (4 * width + matrices * wide)
    return words, tower + (1 + fed) * merged * (merged + shape["hidden"])


def one_process(params: Params, world: int) -> Params:
    """What one of `world` processes does of each step: the whole step's queries and traces are shared out.

    >>> one = one_process(Params(prompts_per_step=16, prompts_per_pass=2, sft_batch=24), 4)
    >>> one.prompts_per_step, one.prompts_per_pass, one.sft_batch
    (4, 2, 6)
    """
    step = max(1, params.prompts_per_step // world)
    each = params.prompts_per_pass or step
    if step % each:
        each = step
    batch = max(1, params.sft_batch // world)
    return params.replace(processes=1, prompts_per_step=step, prompts_per_pass=each, sft_batch=batch)


def trained_parameters(shape: Shape, params: Params) -> int:
    """Weights that move: the adapters', or all of the language model's."""
    return shape.lora_parameters(params.lora_rank) if params.lora_rank else shape.text_parameters


def bytes_trained(params: Params, world: int) -> int:
    """Bytes of a weight that is trained: adapters, and whatever fsdp2 shares out, are kept in float32."""
    return 4 if params.lora_rank or (world > 1 and params.sharding == "fsdp2") else BYTES[params.dtype]


def traces_of_a_clip(params: Params, load: Load) -> float:
    """Kept traces that have a clip in common, on average; behind a query that comes first only its own can share it."""
    queries = 1.0 if params.prompt == "query" else load.train / max(1, load.train_clips)
    return max(1.0, KEPT_SHARE * params.max_per_query * queries)


def run_disk(
    shape: Shape, params: Params, load: Load, *, harvester: Shape | None = None, world: int = 1
) -> dict[str, float]:
    """Bytes that a run writes at its fullest: two checkpoints of one stage, three final models, frames, rollouts."""
    p, each = params, bytes_trained(params, world)

    def moved(model: Shape) -> float:
        return float(trained_parameters(model, p) * each)

    def saved(model: Shape) -> float:
        return moved(model) + (0.0 if p.lora_rank else model.vision_parameters * BYTES[p.dtype])

    first, copies = harvester or shape, 2 if p.sharding == "fsdp2" and world > 1 else 1
    rollouts = (
        p.grpo_steps + p.final_steps
    ) * p.prompts_per_step * p.group_size + p.harvest_prompts * p.harvest_samples
    text = 4 * ANSWER_SHARE * p.max_new_tokens
    return {
        "frame cache": (load.train_clips + load.test_clips) * load.frame_bytes,
        # A saved checkpoint holds the optimizer's two moments, and under fsdp2 the weights twice, for transformers and for
        # accelerate; a third one is written before the oldest is removed.
        "checkpoints": max(3 * (copies * saved(model) + 2 * moved(model)) for model in (shape, first)),
        "final models": saved(first) + 2 * saved(shape),
        "rollouts": rollouts * (text + 100),
        "notebooks": sum(explorer.notebook for explorer in explorers(p, load)) + 2 * 3e6,  # two have none
    }


class Explorer(NamedTuple):
    """Chains that a notebook lets its reader explore."""

    stage: str
    chains: int
    travelling: int
    """Those of them that are in the notebook itself; the others stay in the stage's rollouts."""
    notebook: float
    """Bytes of the notebook, about: half of a text's length in base64, its clips, and figures."""


def explorers(params: Params, load: Load) -> list[Explorer]:
    """The notebooks that hold an explorer: what travels with them is bounded, see `labkit.views.explorer.travel`."""
    from labkit.views.explorer.travel import MOST_BYTES, MOST_CHAINS, MOST_SHEET_BYTES

    p = params
    chains = {
        "01_grpo": p.grpo_steps * p.prompts_per_step * p.group_size,
        "02_distill": p.harvest_prompts * p.harvest_samples,
        "05_analysis": 4 * load.test,
    }
    each = 60 + 0.25 * 4 * ANSWER_SHARE * p.max_new_tokens  # packed: a quarter of its characters, and its columns
    found = []
    for stage, count in chains.items():
        travelling = int(min(count, MOST_CHAINS, MOST_BYTES / each))
        found.append(Explorer(stage, count, travelling, 4 / 3 * (travelling * each + MOST_SHEET_BYTES) + 1e6))
    return found
