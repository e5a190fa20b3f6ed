"""Workload of a run: the model's shape, the data's sizes, and the disk space that a run needs.

The estimates of memory (`labkit.doctor.memory`) and time (`labkit.doctor.runtime`) rest on these. A model's shape comes from its
config and the headers of its weights; no weight is loaded. Source: our own counts. benchmarks/estimates.py compares the estimates
with small runs on a CPU; large models on a GPU have not been compared.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.families import FAMILIES, Geometry
from labkit.runs.run import STAGES
from labkit.stages.arguments import items_per_pass

ESTIMATED_STAGES = tuple(name.partition("_")[2] for name in STAGES)
"""`grpo`, `distill` and so on: the keys of all estimates."""
KEPT_FRACTION = 2 / 3
"""Fraction of `harvest_prompts` x `max_per_query` that the filter keeps: the embedded lab kept 0.49 to 0.66 on its first edition
(three seeds) and 0.80 on its second."""
COMPLETION_FRACTION = 0.5
"""Average length of a completion as a fraction of `max_new_tokens`: the embedded lab writes 26 to 37 of 64 tokens."""
BYTES_PER_PARAMETER = {"float32": 4, "bfloat16": 2}
"""By `dtype`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A model's sizes, from its config and the headers of its weights."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    """Width of a head."""
    intermediate: int
    context: int
    geometry: Geometry
    text_parameters: int
    vision_parameters: int
    levels: int = 1
    """Feature vectors of a video token: one, and with deepstack one more for each layer."""

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(inputs * outputs for inputs, outputs in self.matrices())

    def matrices(self, names: Sequence[str] = ()) -> list[tuple[int, int]]:
        """Inputs and outputs of the matrices of a layer that have these names, or of all seven."""
        h, q, kv, wide = self.hidden, self.heads * self.head, self.kv_heads * self.head, self.intermediate
        sizes = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h)}
        sizes |= {"gate_proj": (h, wide), "up_proj": (h, wide), "down_proj": (wide, h)}
        return [size for name, size in sizes.items() if name in names or not names]

    def adapted_parameters(self, names: Sequence[str]) -> int:
        """Parameters of the matrices that LoRA is on."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.matrices(names))

    def lora_parameters(self, rank: int, names: Sequence[str] = ()) -> int:
        """Parameters of LoRA on matrices of these names, or on all seven of each layer."""
        return self.layers * rank * sum(map(sum, self.matrices(names)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Sizes of the data as the model reads them."""

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


def read_model_shape(folder: Path) -> ModelShape:
    """The shape of the model in `folder`, from config.json and the headers of its safetensors.

    Raises LabError when the config is missing or not of a supported model family.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        family = FAMILIES.get(config.get("model_type"))
        if family and family.frames_as_images:  # whose files leave out what is transformers' default
            import transformers

            made = transformers.AutoConfig.from_pretrained(folder)
            return shape_of_config(made.to_dict(), count_parameters(folder), family.geometry(made))
        return shape_of_config(config, count_parameters(folder))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise LabError(
            f"'{path}' does not describe a model of a known family ({error!r}); give a folder that holds one"
        ) from None


def shape_of_config(
    config: Mapping[str, Any], counted: tuple[int, int] = (0, 0), geometry: Geometry | None = None
) -> ModelShape:
    """The shape that a config.json describes; weights that were not `counted` (text, vision) follow from its widths.

    Raises KeyError for what the config lacks.
    """
    text, vision = config.get("text_config") or config, config["vision_config"]
    if geometry is None:
        patch = vision.get("patch_size", 16 if "deepstack_visual_indexes" in vision else 14)
        geometry = Geometry(patch, vision.get("spatial_merge_size", 2), vision.get("temporal_patch_size", 2))
    shape = {
        "vocab": text["vocab_size"], "hidden": text["hidden_size"], "layers": text["num_hidden_layers"],
        "heads": text["num_attention_heads"], "kv_heads": text["num_key_value_heads"],
        "head": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "intermediate": text["intermediate_size"], "context": text.get("max_position_embeddings", 32768),
    }  # fmt: skip
    if not sum(counted):
        tied = bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings"))
        counted = _by_formula(shape | {"merge": geometry.merge}, text, vision, tied)
    levels = 1 + len(vision.get("deepstack_visual_indexes", ()))
    return ModelShape(
        **shape, geometry=geometry, text_parameters=counted[0], vision_parameters=counted[1], levels=levels
    )


def count_parameters(folder: Path) -> tuple[int, int]:
    """Parameters of the language model and of the vision tower, by the headers of `*.safetensors`; zeros without any."""
    text = vision = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            sizes = {name: math.prod(each["shape"]) for name, each in header.items() if name != "__metadata__"}
        except (
            OSError, ValueError, OverflowError, AttributeError, LookupError, TypeError, struct.error, MemoryError
        ) as error:  # fmt: skip
            raise LabError(f"'{path}' has no readable header ({error!r}); copy or download it again") from None
        towers = sum(size for name, size in sizes.items() if re.search("visual|vision_|connector|projector", name))
        vision += towers
        text += sum(sizes.values()) - towers
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
    if "num_hidden_layers" in vision:  # frames as images, whose tokens are projected as they are
        return words, vision["num_hidden_layers"] * width * (4 * width + 2 * wide) + merged * shape["hidden"]
    tower = vision.get("depth", 32) * width * (4 * width + matrices * wide)
    return words, tower + (1 + fed) * merged * (merged + shape["hidden"])


def per_process_params(params: Params, world: int) -> Params:
    """The parameters as one of `world` processes has them: each step's queries and traces are divided among them.

    >>> one = per_process_params(Params(prompts_per_step=16, prompts_per_pass=2, sft_batch=24), 4)
    >>> one.prompts_per_step, one.prompts_per_pass, one.sft_batch
    (4, 2, 6)
    """
    step = max(1, params.prompts_per_step // world)
    each = params.prompts_per_pass or items_per_pass(params.prompts_per_step, world) or step
    if step % each:
        each = step
    batch = max(1, params.sft_batch // world)
    return params.replace(processes=1, prompts_per_step=step, prompts_per_pass=each, sft_batch=batch)


def trained_parameters(shape: ModelShape, params: Params) -> int:
    """Trainable parameters: LoRA's, or all of the language model's."""
    return shape.lora_parameters(params.lora_rank, params.lora_targets) if params.lora_rank else shape.text_parameters


def bytes_per_trained_parameter(params: Params, world: int) -> int:
    """Bytes of a trainable parameter: LoRA and what fsdp2 shards are in float32."""
    return 4 if params.lora_rank or (world > 1 and params.sharding == "fsdp2") else BYTES_PER_PARAMETER[params.dtype]


def traces_per_clip(params: Params, workload: Workload) -> float:
    """Kept traces of one clip that can share its prefix, on average; where the query precedes the video, those of one query."""
    queries = 1.0 if params.prompt == "query" else workload.train / max(1, workload.train_clips)
    return max(1.0, KEPT_FRACTION * params.max_per_query * queries)


def disk_bytes(
    shape: ModelShape, params: Params, workload: Workload, *, harvester: ModelShape | None = None, world: int = 1
) -> dict[str, float]:
    """Peak disk space of a run, in bytes: checkpoints of one stage, three final models, frames, rollouts."""
    p, each = params, bytes_per_trained_parameter(params, world)

    def trained_bytes(model: ModelShape) -> float:
        return float(trained_parameters(model, p) * each)

    def saved_bytes(model: ModelShape) -> float:
        return trained_bytes(model) + (0.0 if p.lora_rank else model.vision_parameters * BYTES_PER_PARAMETER[p.dtype])

    first = harvester or shape
    rollouts = (
        p.grpo_steps + p.final_steps
    ) * p.prompts_per_step * p.group_size + p.harvest_prompts * p.harvest_samples
    text = 4 * COMPLETION_FRACTION * p.max_new_tokens
    return {
        "frame cache": (workload.train_clips + workload.test_clips) * workload.frame_bytes,
        # A saved checkpoint holds the optimizer's two moments; a third one is written before the oldest is removed.
        "checkpoints": max(3 * (saved_bytes(model) + 2 * trained_bytes(model)) for model in (shape, first)),
        "final models": saved_bytes(first) + 2 * saved_bytes(shape),
        "rollouts": rollouts * (text + 100),
        "notebooks": sum(explorer.notebook for explorer in notebook_explorers(p, workload)) + 2 * 3e6,  # two have none
    }


class NotebookExplorer(NamedTuple):
    """Size of the explorer that is saved in a notebook."""

    stage: str
    chains: int
    embedded: int
    """Those of them that are saved in the notebook itself; the others are read from the stage's rollouts."""
    notebook: float
    """Bytes of the notebook, about: half of a text's length in base64, its clips, and figures."""


def notebook_explorers(params: Params, workload: Workload) -> list[NotebookExplorer]:
    """The notebooks that hold an explorer: what is saved in them is bounded, see `labkit.views.explorer.subset`."""
    from labkit.views.explorer.subset import MOST_BYTES, MOST_CHAINS, MOST_SHEET_BYTES

    p = params
    chains = {
        "01_grpo": p.grpo_steps * p.prompts_per_step * p.group_size,
        "02_distill": p.harvest_prompts * p.harvest_samples,
        "05_analysis": 4 * workload.test,
    }
    each = (
        60 + 0.25 * 4 * COMPLETION_FRACTION * p.max_new_tokens
    )  # packed: a quarter of its characters, and its columns
    explorers = []
    for stage, count in chains.items():
        embedded = int(min(count, MOST_CHAINS, MOST_BYTES / each))
        explorers.append(NotebookExplorer(stage, count, embedded, 4 / 3 * (embedded * each + MOST_SHEET_BYTES) + 1e6))
    return explorers
