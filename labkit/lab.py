"""The lab: what a notebook asks of a run, in one word each.

A notebook stays a narrative because everything that needs a loop, a path or a guard is done here: data written once,
models loaded from the stage that made them, long work done once and loaded when the notebook is run again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment, read_moments, require_videos
from labkit.data.world import moments_file, write_world
from labkit.errors import LabError
from labkit.progress import Progress
from labkit.runs import NOTEBOOK_OF, Run, read_manifest

if TYPE_CHECKING:
    from labkit.data.video import FrameCache
    from labkit.policy.model import Policy
    from labkit.policy.sources import PromptSource
    from labkit.scoring.predictions import Predictions
    from labkit.scoring.scores import Score
    from labkit.stages.distill import Harvest
    from labkit.stages.grpo import GrpoResult
    from labkit.stages.rollouts import Rollout
    from labkit.stages.sft import SftResult


class Prediction(NamedTuple):
    """One chain that a model wrote when it was evaluated."""

    qid: str
    text: str
    status: str


class Measured(NamedTuple):
    """A model on the test split, decoded greedily and, where `sampled_evaluation` says so, by sampling."""

    figures: dict[str, dict[str, float]]
    """By decoding (`greedy`, `sampled`): flat figures, see `labkit.chain.metrics.chain_figures`."""
    greedy: list[Prediction]
    sampled: list[Prediction]


class Lab(Run):
    """A run with its data, models and stages at hand; open it with `Lab.open(params)`."""

    def begin(self, name: str) -> bool:
        """Claim the run for a notebook, as `Run.begin`; set torch's threads and the seed, and quiet the libraries."""
        import warnings

        import torch
        from transformers import logging, set_seed

        finished = super().begin(name)
        torch.set_num_threads(self.params.threads)
        set_seed(self.params.seed)
        # What the libraries plan to rename is nothing that the reader of a notebook can do anything about.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
        logging.set_verbosity_error()
        return finished

    def moments(self, split: str) -> list[Moment]:
        """The moments of `train`, `validation` or `test`; the embedded world is written when it is not there yet."""
        path = moments_file(self._data(), split, self.params.task if self.params.data == "world" else "grounding")
        self.fingerprint(split, path)
        moments = read_moments(path)[: getattr(self.params, f"{split}_limit") or None]
        require_videos(moments)
        return moments

    def policy(self, stage: str = "base") -> Policy:
        """The `base`, the `harvester` before its training (the base, where none is named), or what a stage ended with."""
        from labkit.policy.model import load_policy

        p = self.params
        name = (p.harvester or p.model) if stage == "harvester" else p.model
        if stage not in ("base", "harvester"):
            name = str(self.path / NOTEBOOK_OF[stage] / "final")
            if not Path(name).is_dir():
                raise LabError(f"there is no model '{name}'; run notebooks/{NOTEBOOK_OF[stage]}.ipynb first")
        elif (self.root / Path(name).expanduser()).is_dir():
            name = str(self.resolve(name))
        return load_policy(name, dtype=p.dtype, device=p.device, lora_rank=p.lora_rank, lora_alpha=p.lora_alpha)

    def source(self, policy: Policy, split: str) -> PromptSource:
        """Ready prompts of a split for a policy, by qid."""
        return self._source(policy, self.moments(split))

    @property
    def sheets(self) -> Path:
        """Where explorers keep the pictures of clips; all runs share them."""
        return self.root / self.params.outputs / "sheets"

    def rewards(self, final: bool = False) -> RewardSpec:
        """What is paid in stage 1, or in the final stage."""
        p = self.params
        weights = {
            "format": p.format_weight,
            "answer": p.final_answer_weight if final else p.answer_weight,
            "anchors": p.anchors_weight,
            "progress": p.final_progress_weight if final else p.progress_weight,
            "option": p.option_weight,
        }
        progress = p.final_progress_reward if final else p.progress_reward
        return RewardSpec(weights, p.answer_reward, progress, p.min_anchors, p.max_anchors)

    def measure(self, stage: str, policy: Policy) -> Measured:
        """Evaluate a policy on the test split, once: called again, it reads what was measured.

        `stage` names the model: base, grpo, sft or grpo_final.
        """
        decodings = ("greedy", "sampled") if self.params.sampled_evaluation else ("greedy",)
        for decoding in decodings:
            work = functools.partial(self._evaluate, policy, self.moments("test"), decoding)
            self.keep(NOTEBOOK_OF.get(stage, "01_grpo"), f"{stage}-{decoding}", work)
        return self.measured(stage)

    def measured(self, stage: str) -> Measured:
        """What `measure` found out about a stage's model."""
        return read_measured(self.path, stage)

    def blind(self, policy: Policy) -> dict[str, float]:
        """Greedy mIoU of a policy on frames that are not the query's, by kind: what it can do without looking.

        Black frames always; another clip's, where the test split has more than one.
        """
        from labkit.data.video import BlackFrames

        moments = self.moments("test")
        videos = sorted({moment.video for moment in moments})
        black = BlackFrames(self._cache().folder)
        kinds = {"black": functools.partial(self._evaluate, policy, moments, "greedy", cache=black)}
        if len(videos) > 1:
            other = dict(zip(videos, videos[1:] + videos[:1], strict=True))
            swapped = [dataclasses.replace(moment, video=other[moment.video], clip=None) for moment in moments]
            kinds["another clip's"] = functools.partial(self._evaluate, policy, swapped, "greedy")
        return {
            kind: float(self.keep("05_analysis", f"blind-{kind.split()[0]}", work)["figures"]["miou"])
            for kind, work in kinds.items()
        }

    def predictions(self, stage: str) -> Predictions:
        """A stage's greedy answers with how they were decoded; written to the analysis, as `labkit score` reads them."""
        from labkit.scoring.predictions import as_predictions, write_predictions

        p = self.params
        settings = {
            "model": f"{p.run}, {stage}", "prompt": p.prompt, "thinking": "on", "decoding": "greedy", "temperature": 0,
            "max_new_tokens": p.max_new_tokens, "fps": p.fps, "max_frames": p.max_frames,
            "min_pixels": p.min_pixels, "max_pixels": p.max_pixels,
        }  # fmt: skip
        file = self.folder("05_analysis") / f"predictions-{stage}.jsonl"
        write_predictions(file, self.measured(stage).greedy, settings)
        return dataclasses.replace(as_predictions(self.measured(stage).greedy, settings), file=file.name)

    def score(self, stage: str) -> Score:
        """A stage's greedy answers to the test split: interval, baselines fitted on the training split, protocol card."""
        from labkit.scoring.scores import score

        return score(self.predictions(stage), self.moments("test"), train=self.moments("train"))

    def others(self) -> dict[str, Measured]:
        """The final models of the runs that `compare` names, by the run's name; they must share this test split."""
        mine, found = self.manifest["data"].get("test"), {}
        for other in self.params.compare:
            folder = self.resolve(other)
            if read_manifest(folder)["data"].get("test") != mine:
                raise LabError(
                    f"compare: '{folder}' was tested on other data than this run; compare runs of one test split"
                )
            found[folder.name] = read_measured(folder, "grpo_final")
        return found

    def telling_query(self) -> str:
        """The test query whose answer gained most from the base to the final model: what the training is for."""
        from labkit.views.readings import read

        moments = {moment.qid: moment for moment in self.moments("test")}
        ious = [
            {reading.record.qid: reading.answer_iou for reading in read(self.measured(stage).greedy, moments)}
            for stage in ("base", "grpo_final")
        ]
        return max(moments, key=lambda qid: ious[1][qid] - ious[0][qid])

    def train_grpo(self, stage: str, policy: Policy) -> GrpoResult:
        """Train `grpo` or `grpo_final`: goes on where it was broken off, and only reads when it has ended.

        A notebook shows how it goes, while it goes.
        """
        from labkit.stages.grpo import GrpoSettings, train_grpo
        from labkit.views.monitor import Monitor

        p, final = self.params, stage == "grpo_final"
        settings = GrpoSettings(
            steps=p.final_steps if final else p.grpo_steps, prompts_per_step=p.prompts_per_step,
            group_size=p.group_size, learning_rate=p.learning_rate, temperature=p.temperature, beta=p.beta,
            max_new_tokens=p.max_new_tokens, save_steps=p.save_steps, seed=p.seed,
            prompts_per_pass=p.prompts_per_pass, gradient_checkpointing=p.gradient_checkpointing,
            # The final stage starts where both conditions hold already; it takes all its steps.
            stop_anchor_rate=1.0 if final else p.stop_anchor_rate, stop_progress=1.0 if final else p.stop_progress,
        )  # fmt: skip
        moments, spec = self.moments("train"), self.rewards(final)
        progress = Progress(stage, settings.steps)
        monitor = Monitor(stage, settings.steps, self.rollouts(stage), moments, spec=spec, folder=self.sheets)

        def on_step(row: dict[str, Any]) -> None:
            progress(int(row["step"]), _note(row))
            monitor(row)

        result = train_grpo(
            policy, self._source(policy, moments), moments, spec=spec, settings=settings,
            folder=self.folder(NOTEBOOK_OF[stage]), run=p.run, stage=stage, on_step=on_step, on_resume=monitor.resume,
        )  # fmt: skip
        monitor.end(result.history)
        return result

    def harvest(self, policy: Policy) -> Harvest:
        """Sample chains of training queries with the harvester, and keep those worth learning from.

        A harvest that was broken off goes on; one that is complete is only read.
        """
        from labkit.stages.distill import sample_traces

        p, moments = self.params, self._harvested_moments()
        progress = Progress("harvest", len(moments))
        sample_traces(
            policy, self.source(policy, "train"), moments, self.rollouts("distill"), spec=self.rewards(),
            samples=p.harvest_samples, temperature=p.temperature, max_new_tokens=p.max_new_tokens, seed=p.seed,
            run=p.run, on_part=lambda done, total: progress(done),
        )  # fmt: skip
        return self.harvested()

    def harvested(self) -> Harvest:
        """What the filter keeps of the chains that were sampled."""
        from labkit.stages.distill import HarvestRules, filter_traces

        p = self.params
        rules = HarvestRules(
            min_anchors=p.min_anchors, max_anchors=p.max_anchors, min_answer_iou=p.min_answer_iou,
            max_per_query=p.max_per_query,
        )  # fmt: skip
        moments = {moment.qid: moment for moment in self._harvested_moments()}
        return filter_traces(self.rollouts("distill").read(), moments, rules)

    def train_sft(self, policy: Policy, kept: Sequence[Rollout]) -> SftResult:
        """Train a fresh base on the kept traces: goes on where it was broken off, and only reads when it has ended."""
        from labkit.stages.sft import SftSettings, Trace, train_sft

        p = self.params
        if not kept:
            raise LabError(
                "the harvest kept no trace, so there is nothing to learn from: see its funnel in 02_distill for what "
                "dropped them, then lower min_answer_iou or harvest more (harvest_prompts, harvest_samples)"
            )
        settings = SftSettings(
            epochs=p.sft_epochs, batch=p.sft_batch, learning_rate=p.sft_learning_rate, save_steps=p.save_steps,
            seed=p.seed, gradient_checkpointing=p.gradient_checkpointing,
        )  # fmt: skip
        traces = [Trace(rollout.qid, rollout.text) for rollout in kept]
        progress = Progress("sft", max(1, round(p.sft_epochs * len(kept) / min(p.sft_batch, len(kept)))))
        return train_sft(
            policy, self.source(policy, "train"), traces, settings=settings, folder=self.folder("03_sft"),
            on_step=lambda row: progress(int(row["step"]), f"loss {float(row['loss']):.3f}"),
        )  # fmt: skip

    def _harvested_moments(self) -> list[Moment]:
        # The same queries whenever this run asks, but not the first clips alone.
        moments = self.moments("train")
        return random.Random(self.params.seed).sample(moments, k=len(moments))[: self.params.harvest_prompts]

    def _evaluate(
        self, policy: Policy, moments: Sequence[Moment], decoding: str, cache: FrameCache | None = None
    ) -> dict[str, Any]:
        from labkit.stages.evaluate import evaluate

        p, progress = self.params, Progress(f"evaluation, {decoding}", len(moments))
        found = evaluate(
            policy, self._source(policy, moments, cache), moments, greedy=decoding == "greedy",
            temperature=p.temperature, max_new_tokens=p.max_new_tokens, batch_size=p.eval_batch, seed=p.seed,
            on_batch=progress,
        )  # fmt: skip
        return {
            "figures": found.figures,
            "predictions": [(each.qid, each.text, each.status) for each in found.predictions],
        }

    def _source(self, policy: Policy, moments: Sequence[Moment], cache: FrameCache | None = None) -> PromptSource:
        from labkit.policy.inputs import Sampling
        from labkit.policy.sources import PromptSource

        p = self.params
        sampling = Sampling(p.fps, p.max_frames, p.min_pixels, p.max_pixels)
        return PromptSource(policy, moments, template=p.prompt, sampling=sampling, cache=cache or self._cache())

    def _cache(self) -> FrameCache:
        from labkit.data.video import FrameCache

        return FrameCache(self.root / self.params.outputs / "frames")

    def _data(self) -> Path:
        p = self.params
        if p.data != "world":
            return self.resolve(p.data)
        counts = (p.world_train, p.world_validation, p.world_test)
        # All runs share a world of one size and seed; its clips are written once.
        folder = self.root / p.outputs / "-".join(["world", *map(str, counts), f"seed{p.world_seed}"])
        if not moments_file(folder, "test", p.task).exists():
            progress = Progress("clips of the embedded world", sum(counts))
            write_world(folder, *counts, seed=p.world_seed, progress=lambda done, _: progress(done), task=p.task)
        return folder


def read_measured(folder: Path, stage: str) -> Measured:
    """What a run measured of a stage's model; raises LabError when it has not come so far."""
    found, notebook = {}, NOTEBOOK_OF.get(stage, "01_grpo")
    for decoding in ("greedy", "sampled"):
        path = folder / notebook / f"{stage}-{decoding}.json"
        if path.is_file():
            found[decoding] = json.loads(path.read_text(encoding="utf-8"))
    if "greedy" not in found:
        raise LabError(f"{stage} has not been evaluated in '{folder}'; run notebooks/{notebook}.ipynb first")
    rows = {decoding: [Prediction(*row) for row in each["predictions"]] for decoding, each in found.items()}
    figures = {decoding: each["figures"] for decoding, each in found.items()}
    return Measured(figures, rows["greedy"], rows.get("sampled", []))


def _note(row: Mapping[str, Any]) -> str:
    """The two figures that tell how a step of GRPO went."""
    names = {"total": "reward", "anchor_rate": "anchors"}
    return ", ".join(f"{label} {row[name]:.2f}" for name, label in names.items() if row.get(name) is not None)
