"""Memory: what one process of a run holds at its fullest, by arithmetic on the model's shape; no weight is loaded.

With several processes on GPUs that is what each GPU needs. `ddp` gives each of them the whole model; `fsdp2` shares out what is
trained, which it keeps in float32 whatever `dtype` says (as accelerate 1.15 prepares it). Source: our own counts;
benchmarks/estimates.py compares them with small runs on a CPU.
"""

from __future__ import annotations

from labkit.doctor.workload import (
    ANSWER_SHARE,
    BYTES,
    CHUNK,
    Load,
    Shape,
    bytes_trained,
    one_process,
    traces_of_a_clip,
    trained_parameters,
)
from labkit.params import Params
from labkit.policy.packed_logprobs import LOGIT_CHUNK

PROCESS = {"cpu": 0.6e9, "cuda build": 0.95e9, "cuda": 0.8e9}
"""Bytes of a process that has imported torch, transformers, TRL and the figures, on Linux: with torch built for CPUs (five
notebooks held 0.53 to 0.63 GB beside their models), and for CUDA, an older measurement whose build was not noted; on a GPU, of its
context and its libraries' workspaces there, a rule of thumb of ours."""
OTHER_PROCESSES = 1.1e9
"""Bytes of the processes around a notebook's (labkit run, Jupyter's kernels, the browser that draws figures)."""


def stage_memory(
    shape: Shape, params: Params, load: Load, device: str, *, harvester: Shape | None = None, world: int = 1
) -> dict[str, dict[str, float]]:
    """Peak bytes of one process by stage and part, on `device` ("cpu" or "cuda"); the parts of a stage stand together.

    Activations are counted by the tensors that a layer keeps for its backward pass; an attention that is written out
    (as on a CPU with a mask) is counted, one that is fused keeps nothing. `harvester` is the model of stage 1 and the
    harvest where it is another one; it is taken to read as many tokens as the model.
    """
    first = _Held(harvester or shape, params, load, device, world)
    model = _Held(shape, params, load, device, world)
    grpo = _largest(*first.grpo(), first.evaluation(), model.evaluation())
    return {
        "grpo": grpo,
        "distill": first.harvest(),
        "sft": _largest(model.sft(), model.evaluation()),
        "grpo_final": _largest(*model.grpo(), model.evaluation()),
        "analysis": model.evaluation(),
    }


def process_bytes(device: str) -> float:
    """Bytes of a process before it has loaded a model, where the model is to lie."""
    import torch

    return PROCESS["cuda build" if device == "cpu" and torch.version.cuda else device]


class _Held:
    """What one process holds of a model in each phase."""

    def __init__(self, shape: Shape, params: Params, load: Load, device: str, world: int) -> None:
        self.shape, self.load, self.device = shape, load, device
        self.params = p = one_process(params, world)
        self.each = BYTES[p.dtype]
        self.shares = world if p.sharding == "fsdp2" else 1
        self.doubled = world > 1 and p.sharding == "ddp"
        self.answer = ANSWER_SHARE * p.max_new_tokens
        text, tower = shape.text_parameters, shape.vision_parameters * self.each
        self.trained = trained_parameters(shape, p) * bytes_trained(p, world) / self.shares
        frozen = tower + (text * self.each / self.shares if p.lora_rank else 0.0)
        self.weights = frozen + self.trained
        self.reference = 0.0 if p.lora_rank or not p.beta else tower + text * self.each / self.shares
        # What a stage that is broken off goes back to (`labkit.stages.start`); on a GPU it lies beside, in the machine's memory.
        self.start = self.trained if device == "cpu" and world == 1 else 0.0
        self.always = {"process": process_bytes(device), "weights": self.weights}

    def gathered(self, whole: bool) -> dict[str, float]:
        """What fsdp2 puts together for a while: all weights to write a chain, or the table of words and two layers."""
        if self.shares == 1:
            return {}
        layers = self.shape.layers * self.shape.layer_parameters
        part = self.shape.text_parameters - layers + 2 * self.shape.layer_parameters
        return {"gathered": (self.shape.text_parameters if whole else part) * float(self.each)}

    def features(self, clips: float) -> dict[str, float]:
        size = clips * self.load.video_tokens * self.shape.hidden * self.shape.levels * self.each
        return {"features": min(size, self.params.feature_memory * 1e9)}

    def training(self) -> dict[str, float]:
        state = {"gradients": (2 if self.doubled else 1) * self.trained, "optimizer": 2 * self.trained}
        start = {"start": self.start} if self.start else {}
        return {**self.always, **state, **start, **self.features(self.load.train_clips), **self.gathered(False)}

    def sampling(self, prompts: float, group: int) -> dict[str, float]:
        """Keys and values of each prompt once and of each chain, and the larger of reading the prompts and choosing words."""
        s, read = self.shape, prompts * self.load.prompt_tokens
        token = s.layers * 2 * s.kv_heads * s.head * self.each
        reading = read * (6 * s.hidden + 3 * s.intermediate) * self.each
        # Logits, probabilities, their sums and a copy, in float32.
        choosing = prompts * group * s.vocab * 4.0 * 4
        return {
            "cache": (read + prompts * group * self.params.max_new_tokens) * token,
            "decoding": max(reading, choosing),
            **self.gathered(True),
        }

    def learning(self, read: float, shown: float, longest: float) -> dict[str, float]:
        """A forward and backward pass over `read` tokens in rows of `longest`, of which `shown` are learnt from."""
        s, each = self.shape, self.each
        layer = (9 * s.hidden + 2 * s.kv_heads * s.head + 4 * s.intermediate) * each
        if each == 2:
            layer += 4 * s.hidden * 4  # norms are computed in float32, and keep it
        attention = 2 * s.heads * longest * each if self.device == "cpu" else 0.0
        kept = s.layers * (layer + attention)
        if self.params.gradient_checkpointing:
            kept = s.layers * s.hidden * each + layer + attention
        # As they come, twice in float32, and the gradient of the last matrix, which is summed in float32.
        logits = min(shown, LOGIT_CHUNK) * s.vocab * (each + 2 * 4)
        logits += 0.0 if self.params.lora_rank else 4.0 * s.vocab * s.hidden
        return {"activations": read * kept + shown * s.hidden * each, "logits": logits}

    def grpo(self) -> list[dict[str, float]]:
        p, training = self.params, {**self.training(), "reference": self.reference}
        if self.reference:
            training.pop("start", None)  # the reference is the start
        prompts, row = p.prompts_per_pass, self.load.prompt_tokens + p.group_size * self.answer
        sampling = self.sampling(p.prompts_per_step, p.group_size)
        shown = prompts * p.group_size * self.answer
        return [{**training, **sampling}, {**training, **self.learning(prompts * row, shown, row)}]

    def sft(self) -> dict[str, float]:
        p, load = self.params, self.load
        batch = min(p.sft_batch, max(1, min(p.harvest_prompts, load.train) * p.max_per_query))
        # Traces of one clip read it once; without `pack_clips` few of a batch are.
        shared = min(batch, traces_of_a_clip(p, load)) if p.pack_clips else 1.0
        row = load.video_tokens + shared * (load.prompt_tokens - load.video_tokens + self.answer)
        return {**self.training(), **self.learning(batch / shared * row, batch * self.answer, row)}

    def evaluation(self) -> dict[str, float]:
        batch = min(self.params.eval_batch, self.load.test)
        return {**self.always, **self.sampling(batch, 1), **self.features(self.load.test_clips)}

    def harvest(self) -> dict[str, float]:
        prompts = min(CHUNK, self.params.harvest_prompts, self.load.train)
        share = min(1.0, self.params.harvest_prompts / max(1, self.load.train))
        sampling = self.sampling(prompts, self.params.harvest_samples)
        return {**self.always, **sampling, **self.features(self.load.train_clips * share)}


def _largest(*phases: dict[str, float]) -> dict[str, float]:
    # They take turns.
    return max(phases, key=lambda phase: sum(phase.values()))
