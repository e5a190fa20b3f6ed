"""The fields of the parameters: a pydantic model for each part of the lab, every field with a default and a range.

The string under each field says what it is, its unit, and where its value comes from: the paper (TAR-TVG), Time-R1's
recipe (the nearest open one), or ours. The paper's full text, its prompt included, is public (arXiv 2508.07683); we have not read
it, only public summaries of it. Most defaults are ours: they fit a model of 1.4 million parameters.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

WORLDS = {"world": 1, "world-2": 2, "world-2-twice": 3}
"""The embedded world's editions by the names that `data` has for them."""
FIRST_EDITION_MODELS = ("embedded",)
"""Bases that know the words of the first edition alone."""

AnswerReward = Literal["soft_iou", "iou", "timer1", "f1", "wasserstein"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


class ParamGroup(BaseModel):
    """Parameters of one part of the lab: typed, checked, frozen."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _undo_yaml(cls, value: Any, info: ValidationInfo) -> Any:
        """What YAML 1.1 and a command line make of a value, as it was meant; what cannot be meant is a ValueError."""
        field = cls.model_fields[str(info.field_name)]
        kind: Any = field.annotation
        if value is None:
            raise ValueError("has no value; give one, or delete the line for the default")
        if get_origin(kind) is dict:
            return own_weights(value)
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError(f"{value!r} is not {'a whole number' if kind is int else 'a number'}")
        if kind is str and type(value) is int:
            return str(
                value
            )  # `run: 7` is meant as a name; `run: no` and `run: 1.10` have already lost what was written
        if not isinstance(value, str):
            return value
        if kind is int:
            with suppress(ValueError):
                return float(value)  # 1e3 is text in YAML 1.1
        if kind is str and field.default and not value.strip():
            raise ValueError(f"is empty; give a value, or delete the line for the default {field.default}")
        if get_origin(kind) is tuple:  # on a command line: -p compare outputs/a,outputs/b
            parts = (part.strip(" '\"") for part in value.strip(" []").split(","))
            return tuple(part for part in parts if part)
        return value


def own_weights(value: Any) -> dict[str, float]:
    """Own terms with their weights, of a mapping, a list or a text; raises ValueError for anything else.

    >>> own_weights("my_rewards.py:boundary=0.5, my_rewards.py:early")
    {'my_rewards.py:boundary': 0.5, 'my_rewards.py:early': 1.0}
    """
    if isinstance(value, str):
        named = [part.strip(" '\"") for part in value.strip(" []").split(",")]
        value = {
            part.rpartition("=")[0] or part: part.rpartition("=")[2] if "=" in part else 1.0 for part in named if part
        }
    if isinstance(value, (list, tuple)):
        value = dict.fromkeys(value, 1.0)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not terms with their weights; write FILE.py:NAME: WEIGHT, a line each")
    weights = {}
    for term, weight in value.items():
        try:
            number = math.nan if isinstance(weight, bool) else float(weight)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 100:
            raise ValueError(f"the weight of {term} is {weight!r}; give a number in [0, 100]")
        weights[str(term).strip()] = number
    return weights


class RunParams(ParamGroup):
    """Which run this is and what it runs on."""

    run: str = Field("embedded", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Name of the run: its directory under `outputs`. Letters, digits, dot, dash, underscore. Ours."""
    outputs: str = "outputs"
    """Folder of all runs, relative to the project's root or absolute. Ours."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of everything that is drawn while training and sampling: the order of queries, chains, LoRA's beginning, in each stage
    other numbers; the world has its own. Ours."""
    threads: int = Field(1, ge=1, le=256)
    """CPU threads of torch. One is the fastest for the embedded model. Ours."""
    processes: int = Field(1, ge=0, le=1024)
    """Processes that train, evaluate and harvest, one GPU each; 0 is one for each visible GPU, 1 works in the notebook
    itself. `prompts_per_step` and `sft_batch` are those of all, and what is learnt does not depend on their number. A stage
    that was broken off goes on with any number, but under `fsdp2` not with one after several, or several after one. Ours."""
    second_process: bool = True
    """Where a second core is idle when the embedded lab starts, have two processes share its work, as `processes` of 2 would; what is
    learnt and answered is the same to the last bit. Ours."""
    report_to: tuple[Tracker, ...] = ()
    """Trackers that get each step's figures and some chains while stages train: `tensorboard`, `wandb`, `trackio`, or several. None:
    nothing is imported. May change within a run. Ours."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """What several processes share: `ddp` gives each the whole model, `fsdp2` a part of weights, gradients and optimizer, whole
    only while chains are sampled. Ours."""


class ModelParams(ParamGroup):
    """Who answers."""

    model: str = "embedded-2"
    """The base: `embedded-2`, `embedded-gqa` for task `gqa`, or `embedded` for data `world`; a local folder; or a hub id of a
    Qwen2-VL, Qwen2.5-VL or Qwen3-VL. Paper: Qwen2.5-VL-3B and 7B."""
    harvester: str = ""
    """Another base for stage 1 and the harvest, whose chains `model` learns from; empty: `model` itself. Paper: a 7B harvests
    for a 3B in its second version."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of weights and activations. Time-R1: bfloat16; float32 is faster for the embedded model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes the GPU when there is one. Ours."""
    fused_decoding: bool = True
    """Decode with q, k and v as one product, and on a GPU with Triton with gate and up as one and compiled layers: faster, the same
    chains but for rounding, for a copy of those weights while chains are sampled. Off, transformers' layers decode. Ours."""
    lora_rank: int = Field(0, ge=0, le=1024)
    """Rank of the LoRA adapters; 0 trains all weights (the vision tower stays frozen, as in Time-R1). Ours."""
    lora_alpha: int = Field(32, ge=1, le=4096)
    """Scale of the LoRA adapters. Ours."""
    lora_targets: tuple[str, ...] = ()
    """Linear layers of the language model that get an adapter, by name, such as `q_proj,v_proj`; none: all of them. Those of the
    vision tower never do. Ours."""
    lora_merge: bool = True
    """Merge the adapter while chains are sampled, which is faster and takes a copy of the adapted matrices in `dtype` meanwhile; the
    base itself is never written to. Ours."""
    quantization: Literal["none", "nf4"] = "none"
    """`nf4` keeps the language model's linear layers in 4 bits below the adapter (QLoRA), for GPUs of 24 GB; asks for `lora_rank` to
    train, and for the package's extra `qlora`. Embeddings and the vision tower keep `dtype`. Ours."""
    prompt: str = "query"
    """The question: a template's name (query, anchors, answer, options, sets), a text file of your own such as `my_prompt.txt`, or the
    text itself. Your own holds `{query}`, and may hold `{video}`, `{duration}` and `{options}`. Ours: the paper's prompt is
    public, and we have not read it."""


class StartParams(ParamGroup):
    """Where a run begins, if not with stage 1: at most one of these, and the notebooks before it are skipped.

    `base` means `model` itself, where a model is asked for: what reinforcement or SFT alone make of it.
    """

    grpo_model: str = ""
    """A model of your own that has the habit of anchors already, a folder or hub id: 02_distill harvests from it. Ours."""
    traces: str = ""
    """Traces of your own or of another program, JSON Lines of `qid` (of a training query) and `text`: 03_sft learns from them
    as they are. Ours."""
    sft_model: str = ""
    """A fine-tuned model of your own, a folder or hub id: 04_grpo_final goes on from it. Ours."""


class DataParams(ParamGroup):
    """What is asked and what is seen."""

    data: str = "world-2"
    """`world-2`, the embedded world, half of whose queries take two looks; `world-2-twice`, where half of them are for something that
    happens twice, an answer of two spans; `world`, its first edition, where one look is enough; or
    a folder with train.jsonl, validation.jsonl and test.jsonl. Ours."""
    task: Literal["grounding", "gqa"] = "grounding"
    """What the first edition of the embedded world asks: when something happens, or what happens with options to choose from and the
    evidence to be shown (grounded question answering). In a folder of data the moments say it themselves. Ours."""
    world_train: int = Field(300, ge=1, le=1_000_000)
    """Training clips of the embedded world, about 4 queries each. Ours."""
    world_validation: int = Field(40, ge=1, le=1_000_000)
    """Validation clips. Ours."""
    world_test: int = Field(150, ge=1, le=1_000_000)
    """Test clips. Ours."""
    world_seed: int = Field(0, ge=0, le=999)
    """Seed of the world, apart from `seed`, so that runs of several seeds see the same clips. Ours."""
    fps: float = Field(2.0, gt=0, le=60)
    """Frames seen per second of video. Time-R1: 2."""
    max_frames: int = Field(48, ge=2, le=4096)
    """Frames seen of one clip at most; longer clips are sampled more thinly. Ours."""
    min_pixels: int = Field(3136, ge=784, le=16_777_216)
    """Pixels of one frame at least, after resizing. Ours: 56 x 56, the embedded world's size."""
    max_pixels: int = Field(3136, ge=784, le=16_777_216)
    """Pixels of one frame at most. Ours; Time-R1 bounds the whole video, at 3584 x 28 x 28."""
    total_pixels: int = Field(0, ge=0, le=10_000_000_000)
    """Pixels of a clip's frames together at most, two frames counted as one, as qwen-vl-utils counts: frames of longer clips are made
    smaller, down to `min_pixels`. 0 sets no bound. Ours; Time-R1: 3584 x 28 x 28."""
    readers: int = Field(0, ge=0, le=256)
    """Processes that decode the clips to come ahead of their use, for each process that trains; 0 decodes where the model
    is, when a clip is needed. One that resizes takes 0.25 GB. Ours."""
    video_deadline: float = Field(60.0, gt=0, le=86_400)
    """Seconds that the decoding of a clip may stand still before its process is ended and the clip named. Ours."""
    feature_memory: float = Field(4.0, gt=0, le=1024)
    """GB of clips' features that are kept beside the model; what has to leave is made again from cached frames. Ours."""
    train_limit: int = Field(0, ge=0)
    """Use the first so many training queries; 0 means all. Ours."""
    validation_limit: int = Field(0, ge=0)
    """The same for validation. Ours."""
    test_limit: int = Field(0, ge=0)
    """The same for test. Ours."""


class RewardParams(ParamGroup):
    """What is paid. The terms are the paper's, their weights ours."""

    format_weight: float = Field(1.0, ge=0, le=100)
    """Weight of the form: one think block with anchors inside, then one answer. Ours."""
    answer_weight: float = Field(2.0, ge=0, le=100)
    """Weight of the answer's overlap with the truth in stage 1. Ours."""
    anchors_weight: float = Field(0.75, ge=0, le=100)
    """Weight of the anchors' overlap, later ones counting more, none more than the answer. 0 turns the term off. Ours: as much
    as progress, so that lowering a first anchor costs."""
    progress_weight: float = Field(0.75, ge=0, le=100)
    """Weight of each step coming closer to the truth: in full from a gain of 0.1 IoU and from an anchor of IoU 0.5 on, in
    proportion below. 0 turns the term off. Ours: at twice the weight, chains that narrow less than others earn too little."""
    answer_reward: AnswerReward = "soft_iou"
    """How the answer is measured. Paper: soft IoU; `iou` is clamped at 0; `timer1` is Time-R1's. For answers of several
    spans, of which soft IoU and IoU take the union, also `f1` (OMTG's, matched span to span) and `wasserstein` (TimeLens2's: by
    how far its seconds lie off)."""
    min_anchors: int = Field(2, ge=0, le=16)
    """Anchors that a chain needs. Paper: two works best in its ablation. 0 is the control that asks for none."""
    max_anchors: int = Field(4, ge=0, le=16)
    """More anchors than this earn nothing more and are not distilled; 0 is the control that pays the form without anchors alone.
    Ours."""
    final_answer_weight: float = Field(2.0, ge=0, le=100)
    """`answer_weight` of stage 3. Ours."""
    final_progress_weight: float = Field(0.75, ge=0, le=100)
    """`progress_weight` of stage 3. Ours. A first anchor can be made too bad for it: from a tie at IoU 0.8, lowering it by 0.1
    gains most, by 0.6 nothing (`labkit.chain.rewards` shows the sum)."""
    option_weight: float = Field(1.0, ge=0, le=100)
    """Weight of choosing the right option, in both stages; counts only where questions have options. Ours."""
    rewards: dict[str, float] = Field({})
    """Reward terms of your own and their weights: `{"my_rewards.py:boundary": 0.5}`, on a command line
    `my_rewards.py:boundary=0.5`; without a weight 1. They are paid in all stages. Ours: none."""
    final_rewards: dict[str, float] = Field({})
    """Weights that terms of `rewards` have in stage 3, where they are others there. Ours."""


class GrpoParams(ParamGroup):
    """Stages 1 and 3: GRPO."""

    grpo_steps: int = Field(150, ge=1)
    """Steps of stage 1 at most; it stops sooner by the two conditions below. Ours."""
    final_steps: int = Field(120, ge=1)
    """Steps of stage 3. Ours."""
    budget_of: str = ""
    """A finished run whose rollouts this one spends too: a run's name in `outputs`, or its folder; `{seed}` in it is this run's seed.
    Stage 1 then takes as many steps as that run's did, and stage 3 what is left of that run's rollouts, all harvests counted:
    `grpo_steps`, `stop_anchor_rate` and `final_steps` are computed when the run is made. Empty: they are as given. Ours."""
    pace_of: str = ""
    """A finished run of these parameters, by whose processor time a step stage 3 gets as many steps as the run of `budget_of` had
    processor time for, in training and harvest: equal processor time in the place of equal rollouts. Ours."""
    prompts_per_step: int = Field(12, ge=1, le=4096)
    """Queries of one step. Ours."""
    group_size: int = Field(8, ge=2, le=256)
    """Rollouts of one query. Time-R1: 8."""
    learning_rate: float = Field(5e-4, gt=0, le=1)
    """Step size of AdamW in stages 1 and 3: reached in ten equal rises, the first step's included, then down to a tenth by a cosine.
    Ours; Time-R1: 1e-6 at 7B."""
    temperature: float = Field(1.0, gt=0, le=5)
    """Sampling temperature of rollouts, harvest and sampled evaluation. Time-R1: 1.0."""
    beta: float = Field(0.04, ge=0, le=10)
    """Weight of the KL term to the stage's start: r - log r - 1 of each token, r = start / policy, with its own gradient, as in GRPO
    and Time-R1 (TRL would weigh it by the sampler). Ours: without it, words that no reward reads decay."""
    max_new_tokens: int = Field(64, ge=4, le=32_768)
    """Tokens of one chain at most. Ours; a real model needs 512 or more, 200 cuts anchors off."""
    stop_anchor_rate: float = Field(0.95, ge=0, le=1)
    """Stage 1 stops when more sampled chains than this have anchors and the next holds too. 1 means never. Ours."""
    stop_progress: float = Field(0.5, ge=0, le=1)
    """Share of sampled chains that gain at least 0.05 IoU from anchor to anchor, from which stage 1 stops. 1 means never. Ours: where
    0.6 get better by any amount."""
    prompts_per_pass: int = Field(0, ge=0, le=4096)
    """Queries of one process's forward and backward pass, a divisor of its part of `prompts_per_step`; 0 is all of that part of
    several processes, and half of one's, which so learns the same to the last bit as two do. Less takes less memory. Ours."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them, in stages 1 to 3: for models that fill a GPU. Ours."""
    generation: Literal["hf", "vllm"] = "hf"
    """Who writes the rollouts of stages 1 and 3: labkit's own decoding, or vLLM (experimental). Ours."""
    probe_queries: int = Field(8, ge=0, le=1024)
    """Validation queries asked greedily before the first step, while stages 1 and 3 train, and at their end, so that one can watch
    them learn; nothing is learnt or chosen from them. 0 asks none. Ours."""
    probe_every: int = Field(15, ge=1)
    """Steps between two times of asking them; the first times, they are asked after 1, 2, 4, 8 ... steps. Ours: less than 2 % of a
    stage's time."""
    save_steps: int = Field(25, ge=1)
    """Steps between two checkpoints: what a kill costs at most. Ours."""


class DistillParams(ParamGroup):
    """Stage 2, first half: harvest and filter. The paper keeps about 30,000 traces."""

    harvest_prompts: int = Field(800, ge=1)
    """Training queries that are harvested, at most as many as there are. Ours."""
    harvest_samples: int = Field(8, ge=1, le=1024)
    """Chains sampled for each of them. Ours."""
    min_answer_iou: float = Field(0.5, ge=0, le=1)
    """IoU that the answer of a kept trace reaches. Ours."""
    max_per_query: int = Field(3, ge=1, le=1024)
    """Traces kept of one query, the best first. Ours."""
    trace_choice: Literal["filter", "random"] = "filter"
    """What SFT learns from: the traces that pass the `filter`, or as many drawn at `random` from all that can be read, the control for
    what the filter is worth. Ours."""
    filters: tuple[str, ...] = ()
    """Rules of your own that a trace has to pass, such as `my_filters.py:short_thoughts`, asked behind those above. Ours: none."""


class SftParams(ParamGroup):
    """Stage 2, second half: SFT of a fresh base on the kept traces."""

    sft_epochs: float = Field(3.0, gt=0, le=1000)
    """Passes over the traces. Ours."""
    sft_batch: int = Field(24, ge=1, le=4096)
    """Traces of one step; where fewer are kept, as many of them as divide evenly among `processes`. Ours."""
    sft_learning_rate: float = Field(5e-4, gt=0, le=1)
    """Step size of AdamW: reached in ten equal rises, the first step's included, then down to a twentieth by a cosine. Ours."""
    pack_traces: bool = True
    """Put traces that share a prefix into one batch, where it is read once: those of one clip, or where the query precedes the video,
    those of one query. The order is less random. Ours."""


class EvaluateParams(ParamGroup):
    """How it is measured."""

    eval_batch: int = Field(64, ge=1, le=4096)
    """Queries answered at once; does not change the answers. Ours."""
    sampled_evaluation: Literal["none", "ends", "all"] = "ends"
    """Which models are evaluated by sampling too, since greedy decoding hides rare anchors. `ends` are the final model and the base,
    or in its place the `sft_model` that the run goes on from; `all` are those of stage 1 and SFT too, and a `harvester` before its
    training. May change within a run. Ours."""
    blind_share: float = Field(0.33, gt=0, le=1)
    """Share of the test queries, by whole clips and 100 at least, that 05_analysis asks without their frames; always the same ones of
    a test split. May change within a run. Ours."""
    compare: tuple[str, ...] = ()
    """Other run directories that 05_analysis shows beside this one, or folders of many, relative to the root or absolute. Ours."""

    @field_validator("sampled_evaluation", mode="before")
    @classmethod
    def _was_true_or_false(cls, value: Any) -> Any:
        """What files of earlier versions say: every model, or none."""
        words = dict.fromkeys(("true", "yes", "on"), "all") | dict.fromkeys(("false", "no", "off"), "none")
        return words.get(str(value).lower(), value)


GROUPS: tuple[type[ParamGroup], ...] = (
    RunParams,
    ModelParams,
    StartParams,
    DataParams,
    RewardParams,
    GrpoParams,
    DistillParams,
    SftParams,
    EvaluateParams,
)
