"""Estimates: what a run will ask of memory, disk and time, before it begins.

Memory is arithmetic on the model's own config and the headers of its weights; no weight is loaded. Time is what
`labkit.doctor.rehearsal` measured of the model's parts on this machine, times how often a run does them. Source: our own counts.
Of the embedded lab's default run (2 cores, 1 thread, 120 steps of stage 1) they tell 8 min 45 s to 9 min 5 s and 2.5 GB, where
9 min 24 s and 2.5 GB were measured; they have not been compared with a large model on a GPU.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.params import Params

if TYPE_CHECKING:
    from labkit.doctor.rehearsal import Pace

STAGES = ("grpo", "distill", "sft", "grpo_final", "analysis")
KEPT_SHARE = 2 / 3
"""Share of `harvest_prompts` x `max_per_query` that the filter keeps: three seeds of the embedded lab kept 0.49 to 0.66."""
ANSWER_SHARE = 0.5
"""Length of a chain in parts of `max_new_tokens`: the embedded lab writes 34 of 64 tokens, its control 18."""
CHUNK = 24
"""Queries that a harvest samples together."""
PROCESS = {"cpu": 0.95e9, "cuda": 0.8e9}
"""Bytes of a process that has imported torch, transformers and TRL, measured on Linux; on a GPU, of its context and its
libraries' workspaces there, which is ours by rule of thumb."""
OTHER_PROCESSES = 1.1e9
"""Bytes of the processes around a notebook's (labkit run, Jupyter's kernels, the browser that draws figures)."""
NOTEBOOK_SECONDS = 12.0
"""Seconds of a notebook that trains nothing: imports, models, figures. Measured on two CPU cores."""
_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A Qwen2.5-VL by its config and the headers of its weights."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int
    patch: int
    merge: int
    temporal: int
    text_parameters: int
    vision_parameters: int

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices, which is where the arithmetic is."""
        return self.hidden * (2 * self.hidden + 2 * self.kv_heads * self.head + 3 * self.intermediate)

    def lora_parameters(self, rank: int) -> int:
        """Weights of adapters on the seven matrices of each layer."""
        h, kv, wide = self.hidden, self.kv_heads * self.head, self.intermediate
        return self.layers * rank * (4 * h + 2 * (h + kv) + 3 * (h + wide))


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
    return Shape(**shape, text_parameters=counted[0], vision_parameters=counted[1])


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
    head = text.get("head_dim") or shape["hidden"] // shape["heads"]
    layer = shape["hidden"] * (2 * head * (shape["heads"] + shape["kv_heads"]) + 3 * shape["intermediate"])
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


def stage_memory(shape: Shape, params: Params, load: Load, device: str) -> dict[str, dict[str, float]]:
    """Peak bytes by stage and part, on `device` ("cpu" or "cuda"); the parts of a stage stand at its peak together.

    Activations are counted by the tensors that a layer keeps for its backward pass; an attention that is written out
    (as on a CPU with a mask) is counted, one that is fused keeps nothing.
    """
    p, each = params, _BYTES[params.dtype]
    weights = (shape.text_parameters + shape.vision_parameters) * each
    # Adapters are kept in float32.
    trained = 4 * shape.lora_parameters(p.lora_rank) if p.lora_rank else shape.text_parameters * each
    answer = ANSWER_SHARE * p.max_new_tokens
    prompt = load.prompt_tokens
    copies = weights if p.beta and not p.lora_rank else 0.0
    always = {"process": PROCESS[device], "weights": weights + (trained if p.lora_rank else 0.0)}
    train_features = load.train_clips * load.video_tokens * shape.hidden * each
    test_features = load.test_clips * load.video_tokens * shape.hidden * each

    def cache(prompts: float, group: int) -> float:
        # One layer's cache is copied whole while it grows by a token.
        tokens = prompts * group * (prompt + p.max_new_tokens)
        return tokens * (shape.layers + 1) * 2 * shape.kv_heads * shape.head * each

    def backward(rows: float, length: float, shown: float) -> dict[str, float]:
        layer = (9 * shape.hidden + 2 * shape.kv_heads * shape.head + 4 * shape.intermediate) * each
        if each == 2:
            layer += 4 * shape.hidden * 4  # norms are computed in float32, and keep it
        attention = 2 * shape.heads * length * each if device == "cpu" else 0.0
        kept = shape.layers * (layer + attention)
        if p.gradient_checkpointing:
            kept = shape.layers * shape.hidden * each + layer + attention
        return {"activations": rows * length * kept, "logits": shown * shape.vocab * (each + 4 * 4)}

    def largest(*phases: dict[str, float]) -> dict[str, float]:
        # They take turns.
        return max(phases, key=lambda phase: sum(phase.values()))

    features = {"features": train_features + test_features}
    training = {**always, "gradients": trained, "optimizer": 2 * trained, **features}
    evaluation = {**always, "cache": cache(p.eval_batch, 1), **features}
    rows = p.prompts_per_pass or p.prompts_per_step
    grpo = largest(
        {**training, "reference": copies, "cache": cache(p.prompts_per_step, p.group_size)},
        {
            **training,
            "reference": copies,
            **backward(rows, prompt + p.group_size * answer, rows * p.group_size * answer),
        },
        evaluation,
    )
    harvested = min(p.harvest_prompts, load.train)
    batch, whole = min(p.sft_batch, max(1, harvested * p.max_per_query)), prompt + answer
    return {
        "grpo": grpo,
        "distill": {**always, "cache": cache(min(CHUNK, harvested), p.harvest_samples),
                    "features": train_features * min(1.0, harvested / max(1, load.train))},
        # SFT has logits for every token of its rows.
        "sft": largest({**training, **backward(batch, whole, batch * whole)}, evaluation),
        "grpo_final": grpo,
        # The blind passes see other clips than their own: features of two sources at a time.
        "analysis": {**always, "cache": cache(p.eval_batch, 1), "features": 2 * test_features},
    }  # fmt: skip


def stage_seconds(shape: Shape, params: Params, load: Load, pace: Pace) -> dict[str, dict[str, float]]:
    """Seconds by stage and part. Stages 1 and 3 take all their steps; stage 1 may stop sooner.

    A chain is taken to be half of `max_new_tokens` long, and the filter to keep two thirds of what it may.
    """
    p, answer = params, ANSWER_SHARE * params.max_new_tokens
    prompt = load.prompt_tokens

    def sampling(prompts: int, group: int) -> float:
        return pace.prefill * prompts * prompt + answer * pace.decoding(prompts * group)

    def evaluation(models: int) -> float:
        decodings = models * (2 if p.sampled_evaluation else 1)
        full, rest = divmod(load.test, p.eval_batch)
        return decodings * (full * sampling(p.eval_batch, 1) + (sampling(rest, 1) if rest else 0.0))

    def looking(clips: int) -> float:
        return clips * pace.vision * load.video_tokens

    def grpo(steps: int) -> dict[str, float]:
        tokens = p.prompts_per_step * (prompt + p.group_size * answer)
        passes = pace.learning + (pace.forward if p.beta or p.lora_rank else 0.0)
        if p.gradient_checkpointing:
            passes += pace.forward
        return {
            "sampling": steps * sampling(p.prompts_per_step, p.group_size),
            "learning": steps * (tokens * passes + pace.update),
        }

    harvested = min(p.harvest_prompts, load.train)
    traces = KEPT_SHARE * harvested * p.max_per_query
    steps = max(1, round(p.sft_epochs * traces / p.sft_batch))
    sft_tokens = p.sft_epochs * traces * (prompt + answer)
    fixed = {"notebook": NOTEBOOK_SECONDS}
    clips = load.train_clips + load.test_clips
    return {
        # The first to see a clip decodes it, for all.
        "grpo": {**grpo(p.grpo_steps), "evaluation": evaluation(2),
                 "clips": looking(clips) + clips * (pace.reading + pace.writing), **fixed},
        "distill": {"sampling": harvested / CHUNK * sampling(CHUNK, p.harvest_samples),
                    "clips": looking(round(load.train_clips * harvested / max(1, load.train))), **fixed},
        "sft": {"learning": sft_tokens * pace.learning + steps * pace.update, "evaluation": evaluation(1),
                "clips": looking(clips), **fixed},
        "grpo_final": {**grpo(p.final_steps), "evaluation": evaluation(1), "clips": looking(clips), **fixed},
        # Two blind passes of the final model, greedy alone.
        "analysis": {"evaluation": evaluation(2) / (2 if p.sampled_evaluation else 1), "clips": looking(load.test_clips),
                     **fixed},
    }  # fmt: skip


def run_disk(shape: Shape, params: Params, load: Load) -> dict[str, float]:
    """Bytes that a run writes at its fullest: two checkpoints of one stage, three final models, frames, rollouts."""
    p, each = params, _BYTES[params.dtype]
    trained = 4 * shape.lora_parameters(p.lora_rank) if p.lora_rank else shape.text_parameters * each
    saved = trained if p.lora_rank else trained + shape.vision_parameters * each
    # A saved checkpoint holds the optimizer's two moments; a third one is written before the oldest is removed.
    checkpoints = 3 * (saved + 2 * trained)
    rollouts = (
        p.grpo_steps + p.final_steps
    ) * p.prompts_per_step * p.group_size + p.harvest_prompts * p.harvest_samples
    text = 4 * ANSWER_SHARE * p.max_new_tokens
    return {
        "frame cache": (load.train_clips + load.test_clips) * load.frame_bytes,
        "checkpoints": checkpoints,
        "final models": 3 * saved,
        "rollouts and notebooks": rollouts * (text + 100) + 5e6 * 5,
    }
