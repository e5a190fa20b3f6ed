"""Hours: what a run takes, stage by stage: what `labkit.doctor.throughput` measured of the parts, times how often they are done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from labkit.doctor.workload import ANSWER_SHARE, BYTES, CHUNK, KEPT_SHARE, Load, Shape, one_process, traces_of_a_clip
from labkit.params import Params
from labkit.stages.sft import sft_batch_size, sft_steps

if TYPE_CHECKING:
    from labkit.doctor.throughput import Pace

NOTEBOOK_SECONDS = 12.0
"""Seconds of a notebook that trains nothing: imports, models, figures. Measured on two CPU cores."""


def stage_seconds(
    shape: Shape,
    params: Params,
    load: Load,
    pace: Pace,
    *,
    harvester: tuple[Shape, Pace] | None = None,
    world: int = 1,
) -> dict[str, dict[str, float]]:
    """Seconds by stage and part. Stages 1 and 3 take all their steps; stage 1 may stop sooner.

    A chain is taken to be half of `max_new_tokens` long, and the filter to keep two thirds of what it may. `harvester` is
    the model of stage 1 and the harvest where it is another one. `world` processes share the work out evenly; what they
    tell each other is not counted.
    """
    model = _Timed(shape, pace, params, load, world)
    first = _Timed(*harvester, params, load, world) if harvester else model
    fixed = {"notebook": NOTEBOOK_SECONDS}
    # The first to see a clip decodes it, for all.
    decoding = (load.train_clips + load.test_clips) * (pace.reading / world + pace.writing)
    return {
        "grpo": _sum(
            first.grpo(params.grpo_steps),
            model.evaluation(1),
            first.evaluation(2 if harvester else 1),
            {"clips": decoding},
            fixed,
        ),
        "distill": _sum(first.harvest(), fixed),
        "sft": _sum(model.sft(), model.evaluation(1), fixed),
        "grpo_final": _sum(model.grpo(params.final_steps), model.evaluation(1), fixed),
        # Two blind passes of the final model, greedy alone.
        "analysis": _sum(model.evaluation(2, greedy=True), fixed),
    }


class _Timed:
    """What a model takes for each kind of work, in seconds."""

    def __init__(self, shape: Shape, pace: Pace, params: Params, load: Load, world: int) -> None:
        self.pace, self.params, self.load, self.world = pace, params, load, world
        self.answer, self.prompt = ANSWER_SHARE * params.max_new_tokens, load.prompt_tokens
        # A clip's features are made once and kept, as far as there is room for them.
        all_features = load.train_clips * load.video_tokens * shape.hidden * BYTES[params.dtype]
        self.kept = min(1.0, params.feature_memory * 1e9 / all_features) if all_features else 1.0

    def looking(self, clips: float, uses: float) -> float:
        """To encode clips, and again at each further use those that could not be kept."""
        again = max(0.0, uses - clips) * (1 - self.kept)
        return (min(clips, uses) + again) * self.pace.vision * self.load.video_tokens / self.world

    def sampling(self, prompts: float, group: int) -> float:
        return self.pace.prefill * prompts * self.prompt + self.answer * self.pace.decoding(prompts * group)

    def grpo(self, steps: int) -> dict[str, float]:
        p, pace, own = self.params, self.pace, one_process(self.params, self.world)
        passes = pace.learning + (pace.forward if p.beta else 0.0)
        if p.gradient_checkpointing:
            passes += pace.forward
        tokens = own.prompts_per_step * (self.prompt + p.group_size * self.answer)
        return {
            "sampling": steps * self.sampling(own.prompts_per_step, p.group_size),
            "learning": steps * (tokens * passes + pace.update),
            "clips": self.looking(self.load.train_clips, steps * p.prompts_per_step),
        }

    def harvest(self) -> dict[str, float]:
        harvested = min(self.params.harvest_prompts, self.load.train)
        parts = harvested / CHUNK / self.world
        clips = self.load.train_clips * harvested / max(1, self.load.train)
        return {
            "sampling": parts * self.sampling(CHUNK, self.params.harvest_samples),
            "clips": self.looking(clips, harvested),
        }

    def sft(self) -> dict[str, float]:
        p, load = self.params, self.load
        harvested = min(p.harvest_prompts, load.train)
        traces = KEPT_SHARE * harvested * p.max_per_query
        whole = max(1, round(traces))
        steps = sft_steps(p.sft_epochs, whole, sft_batch_size(p.sft_batch, whole, self.world) or 1)
        shared = min(p.sft_batch, traces_of_a_clip(p, load)) if p.pack_clips else 1.0
        each = load.video_tokens / shared + self.prompt - load.video_tokens + self.answer
        passes = self.pace.learning + (self.pace.forward if p.gradient_checkpointing else 0.0)
        tokens = p.sft_epochs * traces * each / self.world
        return {
            "learning": tokens * passes + steps * self.pace.update,
            "clips": self.looking(load.train_clips * harvested / max(1, load.train), p.sft_epochs * traces),
        }

    def evaluation(self, models: int, greedy: bool = False) -> dict[str, float]:
        p, test = self.params, self.load.test / self.world
        decodings = models * (2 if p.sampled_evaluation and not greedy else 1)
        full, rest = divmod(test, p.eval_batch)
        once = full * self.sampling(p.eval_batch, 1) + (self.sampling(rest, 1) if rest else 0.0)
        # Each evaluation looks at the clips for itself.
        return {
            "evaluation": decodings * once,
            "clips": decodings * self.looking(self.load.test_clips, self.load.test_clips),
        }


def _sum(*parts: Mapping[str, float]) -> dict[str, float]:
    whole: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            whole[name] = whole.get(name, 0.0) + value
    return whole
