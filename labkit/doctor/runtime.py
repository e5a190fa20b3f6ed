"""Runtime estimate of each stage: seconds of each part (`labkit.doctor.throughput`) times how often it is done."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.doctor.throughput import Throughput
from labkit.doctor.workload import (
    BYTES_PER_PARAMETER,
    COMPLETION_FRACTION,
    KEPT_FRACTION,
    ModelShape,
    Workload,
    per_process_params,
    traces_per_clip,
)
from labkit.params import Params
from labkit.stages.evaluate import blind_queries
from labkit.stages.harvest import PROMPTS_PER_PART
from labkit.stages.sft import sft_batch_size, sft_steps

NOTEBOOK_SECONDS = 12.0
"""Seconds of a notebook that trains nothing: imports, models, figures. Measured on two CPU cores."""


def stage_seconds(
    shape: ModelShape,
    params: Params,
    workload: Workload,
    throughput: Throughput,
    *,
    harvester: tuple[ModelShape, Throughput] | None = None,
    world: int = 1,
) -> dict[str, dict[str, float]]:
    """Seconds by stage and part. Stages 1 and 3 take all their steps; stage 1 may stop sooner.

    A chain is assumed to be half of `max_new_tokens` long, and the filter to keep two thirds of what it may. `harvester` is
    the model of stage 1 and the harvest where it is another one. The work is assumed to be divided evenly among `world`
    processes; communication is not counted.
    """
    model = _StageTimes(shape, throughput, params, workload, world)
    first = _StageTimes(*harvester, params, workload, world) if harvester else model
    fixed = {"notebook": NOTEBOOK_SECONDS}
    # A clip is decoded at its first use, and cached.
    decoding = (workload.train_clips + workload.test_clips) * (throughput.reading / world + throughput.writing)
    return {
        "grpo": _sum(
            first.grpo(params.grpo_steps),
            model.evaluation("base"),
            first.evaluation(*(("harvester", "grpo") if harvester else ("grpo",))),
            {"clips": decoding},
            fixed,
        ),
        "distill": _sum(first.harvest(), fixed),
        "sft": _sum(model.sft(), model.evaluation("sft"), fixed),
        "grpo_final": _sum(model.grpo(params.final_steps), model.evaluation("grpo_final"), fixed),
        "analysis": _sum(model.ablation(), fixed),
    }


class _StageTimes:
    """Seconds that a model needs for each kind of work."""

    def __init__(
        self, shape: ModelShape, throughput: Throughput, params: Params, workload: Workload, world: int
    ) -> None:
        self.throughput, self.params, self.workload, self.world = throughput, params, workload, world
        self.answer, self.prompt = COMPLETION_FRACTION * params.max_new_tokens, workload.prompt_tokens
        # The fraction of the clips whose features stay in memory.
        all_features = workload.train_clips * workload.video_tokens * shape.hidden * BYTES_PER_PARAMETER[params.dtype]
        self.kept = min(1.0, params.feature_memory * 1e9 / all_features) if all_features else 1.0

    def encoding(self, clips: float, uses: float) -> float:
        """Encoding clips, and again at each further use those whose features were evicted."""
        again = max(0.0, uses - clips) * (1 - self.kept)
        return (min(clips, uses) + again) * self.throughput.vision * self.workload.video_tokens / self.world

    def sampling(self, prompts: float, group: int) -> float:
        return self.throughput.prefill * prompts * self.prompt + self.answer * self.throughput.decoding(
            prompts * group
        )

    def grpo(self, steps: int) -> dict[str, float]:
        p, throughput, own = self.params, self.throughput, per_process_params(self.params, self.world)
        passes = throughput.learning + (throughput.forward if p.beta else 0.0)
        if p.gradient_checkpointing:
            passes += throughput.forward
        tokens = own.prompts_per_step * (self.prompt + p.group_size * self.answer)
        return {
            "sampling": steps * self.sampling(own.prompts_per_step, p.group_size),
            "learning": steps * (tokens * passes + throughput.update),
            "clips": self.encoding(self.workload.train_clips, steps * p.prompts_per_step),
        }

    def harvest(self) -> dict[str, float]:
        harvested = min(self.params.harvest_prompts, self.workload.train)
        parts = harvested / PROMPTS_PER_PART / self.world
        clips = self.workload.train_clips * harvested / max(1, self.workload.train)
        return {
            "sampling": parts * self.sampling(PROMPTS_PER_PART, self.params.harvest_samples),
            "clips": self.encoding(clips, harvested),
        }

    def sft(self) -> dict[str, float]:
        p, workload = self.params, self.workload
        harvested = min(p.harvest_prompts, workload.train)
        traces = KEPT_FRACTION * harvested * p.max_per_query
        whole = max(1, round(traces))
        steps = sft_steps(p.sft_epochs, whole, sft_batch_size(p.sft_batch, whole, self.world) or 1)
        shared = min(p.sft_batch, traces_per_clip(p, workload)) if p.pack_traces else 1.0
        each = workload.video_tokens / shared + self.prompt - workload.video_tokens + self.answer
        passes = self.throughput.learning + (self.throughput.forward if p.gradient_checkpointing else 0.0)
        tokens = p.sft_epochs * traces * each / self.world
        return {
            "learning": tokens * passes + steps * self.throughput.update,
            "clips": self.encoding(workload.train_clips * harvested / max(1, workload.train), p.sft_epochs * traces),
        }

    def evaluation(self, *stages: str) -> dict[str, float]:
        """Of the models of `stages`, whose decodings share a pass over the clips."""
        return _sum(*(self.answering(len(self.params.decodings(stage)), 1.0) for stage in stages))

    def ablation(self) -> dict[str, float]:
        """Black frames and another clip's, greedy."""
        test = self.workload.test
        once = self.answering(1, blind_queries(test, self.params.blind_share) / test if test else 0.0)
        return _sum(once, once)

    def answering(self, times: int, share: float) -> dict[str, float]:
        """Answering a share of the test split some times over the same frames."""
        p, workload = self.params, self.workload
        full, rest = divmod(share * workload.test / self.world, p.eval_batch)
        once = full * self.sampling(p.eval_batch, 1) + (self.sampling(rest, 1) if rest else 0.0)
        clips = share * workload.test_clips
        return {"evaluation": times * once, "clips": self.encoding(clips, times * clips)}


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    whole: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            whole[name] = whole.get(name, 0.0) + value
    return whole
