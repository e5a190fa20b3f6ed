"""Peak memory of one process of a run, by arithmetic on the model's shape; no weight is loaded.

With several processes on GPUs that is what each GPU needs. Under `ddp` each of them holds the whole model; `fsdp2` shards the
trained parameters, which it keeps in float32 whatever `dtype` is (as accelerate 1.15 prepares it). Source: our own counts;
benchmarks/estimates.py compares them with small runs on a CPU.
"""

from __future__ import annotations

from labkit.doctor.workload import (
    BYTES_PER_PARAMETER,
    COMPLETION_FRACTION,
    ModelShape,
    Workload,
    bytes_per_trained_parameter,
    per_process_params,
    traces_per_clip,
    trained_parameters,
)
from labkit.params import Params
from labkit.policy.packed_logprobs import LOGIT_CHUNK
from labkit.stages.arguments import items_per_pass
from labkit.stages.harvest import PROMPTS_PER_PART

PROCESS = {"cpu": 0.6e9, "cuda build": 0.95e9, "cuda": 0.8e9}
"""Bytes of a process that has imported torch, transformers, TRL and the figures, on Linux: with torch built for CPUs (five
notebooks held 0.53 to 0.63 GB beside their models), and for CUDA, an older measurement whose build was not noted; on a GPU, of its
context and its libraries' workspaces there, a rule of thumb of ours."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in 4 bits: its own, its share of a block's scale in 8 bits, and of a float32 for 256 of these."""
OTHER_PROCESSES = 1.1e9
"""Bytes of the processes around a notebook's (labkit run, Jupyter's kernels, the browser that draws figures)."""


def stage_memory(
    shape: ModelShape,
    params: Params,
    workload: Workload,
    device: str,
    *,
    harvester: ModelShape | None = None,
    world: int = 1,
) -> dict[str, dict[str, float]]:
    """Peak bytes of one process by stage and part, on `device` ("cpu" or "cuda"); the parts of a stage are held at the same time.

    Activations are counted by the tensors that a layer keeps for its backward pass; an attention that is written out
    (as on a CPU with a mask) is counted, one that is fused keeps nothing. `harvester` is the model of stage 1 and the
    harvest where it is another one; it is taken to read as many tokens as the model.
    """
    first = _PeakMemory(harvester or shape, params, workload, device, world)
    model = _PeakMemory(shape, params, workload, device, world)
    grpo = _largest(*first.grpo(), first.evaluation(), model.evaluation())
    return {
        "grpo": grpo,
        "distill": first.harvest(),
        "sft": _largest(model.sft(), model.evaluation()),
        "grpo_final": _largest(*model.grpo(), model.evaluation()),
        "analysis": model.evaluation(),
    }


def main_memory(shape: ModelShape, params: Params, world: int) -> dict[str, tuple[float, float]]:
    """Bytes of main memory of the first process and of each other, by moment, while the model is on GPUs.

    Files of weights are mapped, and the system keeps of them what it has room for: `load_policy` takes what it needs to its GPU.
    Under `fsdp2` each process writes and reads its own shards, through main memory; the first one writes what a stage ends with.
    """
    each, trained = BYTES_PER_PARAMETER[params.dtype], float(trained_parameters(shape, params))
    tower = 0.0 if params.lora_rank else shape.vision_parameters * each
    kept = trained * bytes_per_trained_parameter(params, world)
    process, shards = PROCESS["cuda build"], world if params.sharding == "fsdp2" else 1
    if shards == 1:
        saved, read = kept + tower, 0.0 if world > 1 else 2 * kept
        first, other = {"a checkpoint": saved, "resuming": read, "the end of a stage": saved}, {}
    else:
        part = max(kept / shards + tower, 2 * kept / shards)  # first the weights, then the optimizer's two moments
        first = {"a checkpoint": part, "resuming": part, "the end of a stage": kept + tower}
        other = {"a checkpoint": part, "resuming": part}
    return {name: (process + first.get(name, 0.0), process + other.get(name, 0.0)) for name in ("loading", *first)}


def process_bytes(device: str) -> float:
    """Bytes of a process before it has loaded a model, on the model's device."""
    import torch

    return PROCESS["cuda build" if device == "cpu" and torch.version.cuda else device]


class _PeakMemory:
    """What one process holds in memory in each phase."""

    def __init__(self, shape: ModelShape, params: Params, workload: Workload, device: str, world: int) -> None:
        self.shape, self.workload, self.device = shape, workload, device
        self.params = p = per_process_params(params, world)
        self.traces_per_pass = max(1, items_per_pass(params.sft_batch, world))
        self.bytes_each = BYTES_PER_PARAMETER[p.dtype]
        self.world, self.num_shards = world, world if p.sharding == "fsdp2" else 1
        self.answer = COMPLETION_FRACTION * p.max_new_tokens
        tower = shape.vision_parameters * self.bytes_each
        layers = shape.layers * shape.layer_parameters
        each = NF4_BYTES if p.quantization == "nf4" else self.bytes_each
        text = layers * each + (shape.text_parameters - layers) * self.bytes_each
        self.trained = trained_parameters(shape, p) * bytes_per_trained_parameter(p, world) / self.num_shards
        frozen = tower + (text / self.num_shards if p.lora_rank else 0.0)
        self.weights = frozen + self.trained
        # Of the KL reference, a copy of the adapter or of the language model: the vision tower is the model's own.
        copied = self.trained if p.lora_rank else text / self.num_shards
        self.reference = copied if p.beta else 0.0
        # A copy of the initial weights, to restore after an interrupt (`labkit.stages.checkpoints`); with a GPU it is in main memory.
        self.start = self.trained if device == "cpu" and world == 1 else 0.0
        adapted = shape.adapted_parameters(p.lora_targets) if p.lora_rank and p.lora_merge else 0
        self.merged = float(adapted * self.bytes_each)
        # Not with adapters: what is merged lies together already, and what is left apart is not decoded so.
        self.joins = p.fused_decoding and not p.lora_rank
        self.always = {"process": process_bytes(device), "weights": self.weights}
        # What only answers is whole in each process, in `dtype`.
        adapter = self.trained * self.num_shards if p.lora_rank else 0.0
        self.answering = {**self.always, "weights": tower + text + adapter}

    def gathered(self, all_layers: bool) -> dict[str, float]:
        """Parameters that fsdp2 gathers at a time: all of them to sample, or the embeddings and two layers to train."""
        if self.num_shards == 1:
            return {}
        layers = self.shape.layers * self.shape.layer_parameters
        part = self.shape.text_parameters - layers + 2 * self.shape.layer_parameters
        return {"gathered": (self.shape.text_parameters if all_layers else part) * float(self.bytes_each)}

    def features(self, clips: float) -> dict[str, float]:
        size = clips * self.workload.video_tokens * self.shape.hidden * self.shape.levels * self.bytes_each
        return {"features": min(size, self.params.feature_memory * 1e9)}

    def training(self) -> dict[str, float]:
        state = {"gradients": self.trained, "optimizer": 2 * self.trained}
        more = {"start": self.start} if self.start else {}
        if self.world > 1 and self.params.sharding == "ddp":
            more["buckets"] = self.trained  # in which DDP sends gradients
        return {**self.always, **state, **more, **self.features(self.workload.train_clips), **self.gathered(False)}

    def joined_weights(self) -> float:
        """Copies of q, k and v as one matrix a layer, and on a GPU of gate and up (`labkit.policy.decode_pass`)."""
        s = self.shape
        wide = 2 * s.intermediate if self.device == "cuda" else 0
        return s.layers * s.hidden * ((s.heads + 2 * s.kv_heads) * s.head + wide) * float(self.bytes_each)

    def sampling(self, prompts: float, group: int) -> dict[str, float]:
        """The KV cache, of each prompt once and of each completion, and the larger of prefill and sampling."""
        s, prompt_tokens = self.shape, prompts * self.workload.prompt_tokens
        bytes_per_token = s.layers * 2 * s.kv_heads * s.head * self.bytes_each
        prefill = prompt_tokens * (6 * s.hidden + 3 * s.intermediate) * self.bytes_each
        # Logits, probabilities, their sums and a copy, in float32.
        sampling = prompts * group * s.vocab * 4.0 * 4
        return {
            "cache": (prompt_tokens + prompts * group * self.params.max_new_tokens) * bytes_per_token,
            "decoding": max(prefill, sampling),
            **({"joined weights": self.joined_weights()} if self.joins else {}),
            **({"merged adapter": self.merged} if self.merged else {}),
        }

    def learning(self, tokens: float, loss_tokens: float, longest: float) -> dict[str, float]:
        """A forward and backward pass over `tokens` in rows of `longest`, of which `loss_tokens` have a loss."""
        s, bytes_each = self.shape, self.bytes_each
        layer = (9 * s.hidden + 2 * s.kv_heads * s.head + 4 * s.intermediate) * bytes_each
        if bytes_each == 2:
            layer += 4 * s.hidden * 4  # norms are computed in float32, and keep it
        attention = 2 * s.heads * longest * bytes_each if self.device == "cpu" else 0.0
        kept = s.layers * (layer + attention)
        if self.params.gradient_checkpointing:
            kept = s.layers * s.hidden * bytes_each + layer + attention
        # In `dtype`, twice in float32, and the gradient of the output matrix, which is accumulated in float32.
        logits = min(loss_tokens, LOGIT_CHUNK) * s.vocab * (bytes_each + 2 * 4)
        logits += 0.0 if self.params.lora_rank else 4.0 * s.vocab * s.hidden
        return {"activations": tokens * kept + loss_tokens * s.hidden * bytes_each, "logits": logits}

    def grpo(self) -> list[dict[str, float]]:
        p, training = self.params, {**self.training(), "reference": self.reference}
        if self.reference and not p.lora_rank:
            training.pop("start", None)  # the reference model is that copy
        prompts, row = p.prompts_per_pass, self.workload.prompt_tokens + p.group_size * self.answer
        sampling = self.sampling(p.prompts_per_step, p.group_size)
        loss_tokens = prompts * p.group_size * self.answer
        return [
            {**training, **sampling, **self.gathered(True)},
            {**training, **self.learning(prompts * row, loss_tokens, row)},
        ]

    def sft(self) -> dict[str, float]:
        p, workload = self.params, self.workload
        batch = min(self.traces_per_pass, max(1, min(p.harvest_prompts, workload.train) * p.max_per_query))
        # Traces of one clip share its tokens; without `pack_traces` few of a batch do.
        shared = min(batch, traces_per_clip(p, workload)) if p.pack_traces else 1.0
        row = workload.video_tokens + shared * (workload.prompt_tokens - workload.video_tokens + self.answer)
        return {**self.training(), **self.learning(batch / shared * row, batch * self.answer, row)}

    def evaluation(self) -> dict[str, float]:
        batch = min(self.params.eval_batch, self.workload.test)
        return {**self.answering, **self.sampling(batch, 1), **self.features(self.workload.test_clips)}

    def harvest(self) -> dict[str, float]:
        prompts = min(PROMPTS_PER_PART, self.params.harvest_prompts, self.workload.train)
        share = min(1.0, self.params.harvest_prompts / max(1, self.workload.train))
        sampling = self.sampling(prompts, self.params.harvest_samples)
        return {**self.answering, **sampling, **self.features(self.workload.train_clips * share)}


def _largest(*phases: dict[str, float]) -> dict[str, float]:
    # Phases follow each other: the largest is the peak.
    return max(phases, key=lambda phase: sum(phase.values()))
