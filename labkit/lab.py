"""The lab: what a notebook asks of a run, in one word each.

A notebook stays a narrative because everything that needs a loop, a path or a guard is done here: data written once,
models loaded from the stage that made them, long work done once and loaded when the notebook is run again.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment, read_moments, require_videos
from labkit.embedded.world import moments_file, write_world
from labkit.errors import LabError
from labkit.files import locked
from labkit.progress import Progress, Tally, say
from labkit.runs import tasks
from labkit.runs.measured import Measured, read_measured
from labkit.runs.run import NOTEBOOK_OF, STAGE_LOCK, Run, read_manifest
from labkit.stages.distributed.launch import Job, count, launch
from labkit.stages.distributed.launcher_variables import single_process

if TYPE_CHECKING:
    from labkit.data.video.frames import FrameCache
    from labkit.policy.model import Policy
    from labkit.policy.prompt_source import PromptSource
    from labkit.scoring.predictions import Predictions
    from labkit.scoring.scores import Score
    from labkit.stages.grpo_steps import GrpoResult
    from labkit.stages.harvest import Harvest
    from labkit.stages.rollouts import Rollout
    from labkit.stages.sft import SftResult


class Elsewhere(NamedTuple):
    """A model that workers load, each for itself: what `Lab.policy` gives a notebook whose work is done by several."""

    stage: str
    name: str
    """As `Policy.name`."""


class Lab(Run):
    """A run with its data, models and stages at hand; open it with `Lab.open(params)`."""

    def begin(self, name: str) -> bool:
        """Claim the run for a notebook, as `Run.begin`; set torch's threads and the seed, and quiet the libraries."""
        finished = super().begin(name)
        self.settle()
        return finished

    def settle(self) -> None:
        """Set torch's threads and the seed, and quiet the libraries, in each process that works."""
        import warnings

        import torch
        from transformers import logging, set_seed

        torch.set_num_threads(self.params.threads)
        set_seed(self.params.seed)
        # What the libraries plan to rename is nothing that the reader of a notebook can do anything about.
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
        logging.set_verbosity_error()

    def moments(self, split: str) -> list[Moment]:
        """The moments of `train`, `validation` or `test`; the embedded world is written when it is not there yet."""
        path = moments_file(self._data(), split, self.params.task if self.params.data == "world" else "grounding")
        self.fingerprint(split, path)
        moments = read_moments(path)[: getattr(self.params, f"{split}_limit") or None]
        require_videos(moments)
        return moments

    def policy(self, stage: str = "base") -> Policy | Elsewhere:
        """The `base`, the `harvester` before its training (the base, where none is named), or what a stage ended with.

        Where `processes` are several, only its name: a model that waits in the notebook's process takes a GPU's memory.
        """
        several = count(self.params.processes) > 1
        return Elsewhere(stage, self._weights(stage)) if several else self.load(stage)

    @single_process()
    def load(self, stage: str) -> Policy:
        """The same model, in this process."""
        from labkit.policy.model import load_policy
        from labkit.stages.start import stage_seed

        p, name = self.params, self._weights(stage)
        return load_policy(
            name, dtype=p.dtype, device=p.device, lora_rank=p.lora_rank, lora_alpha=p.lora_alpha,
            seed=stage_seed(p.seed, stage),
        )  # fmt: skip

    def _weights(self, stage: str) -> str:
        p = self.params
        name = (p.harvester or p.model) if stage == "harvester" else p.model
        if stage not in ("base", "harvester"):
            name = str(self.path / NOTEBOOK_OF[stage] / "final")
            if not Path(name).is_dir():
                raise LabError(f"there is no model '{name}'; run notebooks/{NOTEBOOK_OF[stage]}.ipynb first")
        elif self.resolve(name).is_dir():
            name = str(self.resolve(name))
        return name

    def source(self, policy: Policy, split: str, frames: str = "own") -> PromptSource:
        """Ready prompts of a split for a policy, by qid; `frames` are each query's `own`, `black`, or `another` clip's."""
        from labkit.data.video.frames import BlackFrames

        moments = self.moments(split)
        if frames == "another":
            videos = sorted({moment.video for moment in moments})
            other = dict(zip(videos, videos[1:] + videos[:1], strict=True))
            moments = [dataclasses.replace(moment, video=other[moment.video], clip=None) for moment in moments]
        return self._source(policy, moments, BlackFrames(self._cache().folder) if frames == "black" else None)

    @property
    def sheets(self) -> Path:
        """Where explorers keep the pictures of clips; all runs share them."""
        return self.resolve(self.params.outputs) / "sheets"

    def rewards(self, final: bool = False) -> RewardSpec:
        """What is paid in stage 1, or in the final stage."""
        return RewardSpec.of(self.params, final)

    def measure(self, stage: str, policy: Policy | Elsewhere) -> Measured:
        """Evaluate a policy on the test split, once: called again, it reads what was measured.

        `stage` names the model: base, harvester, grpo, sft or grpo_final.
        """
        decodings = ("greedy", "sampled") if self.params.sampled_evaluation else ("greedy",)
        asked = [(f"{stage}-{decoding}", decoding, "own") for decoding in decodings]
        self._evaluate(policy, NOTEBOOK_OF.get(stage, "01_grpo"), asked, stage)
        return self.measured(stage)

    @property
    def start(self) -> str:
        """Which model stage 1 starts from: the `base`, or the `harvester` where one is named."""
        return "harvester" if self.params.harvester else "base"

    def measured(self, stage: str) -> Measured:
        """What `measure` found out about a stage's model."""
        return read_measured(self.path, stage)

    def blind(self, policy: Policy | Elsewhere) -> dict[str, float]:
        """Greedy mIoU of a policy on frames that are not the query's, by kind: what it can do without looking.

        Black frames always; another clip's, where the test split has more than one.
        """
        kinds = {"black": "black"}
        if len({moment.video for moment in self.moments("test")}) > 1:
            kinds["another clip's"] = "another"
        found = self._evaluate(policy, "05_analysis", [(f"blind-{kind}", "greedy", kind) for kind in kinds.values()])
        return {kind: float(found[f"blind-{frames}"]["figures"]["miou"]) for kind, frames in kinds.items()}

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
        from labkit.views.measured_chains import read

        moments = {moment.qid: moment for moment in self.moments("test")}
        ious = [
            {reading.record.qid: reading.answer_iou for reading in read(self.measured(stage).greedy, moments)}
            for stage in ("base", "grpo_final")
        ]
        return max(moments, key=lambda qid: ious[1][qid] - ious[0][qid])

    def train_grpo(self, stage: str, policy: Policy | Elsewhere) -> GrpoResult:
        """Train `grpo` or `grpo_final`: goes on where it was broken off, and only reads when it has ended.

        A notebook shows how it goes, while it goes.
        """
        from labkit.stages.checkpoints import read_result
        from labkit.stages.grpo_steps import GrpoResult, stage_params
        from labkit.views.monitor import Monitor

        steps, moments = stage_params(self.params, stage).grpo_steps, self.moments("train")
        progress, spec = Progress(stage, steps), self.rewards(stage == "grpo_final")
        monitor = Monitor(stage, steps, self.rollouts(stage), moments, spec=spec, folder=self.sheets)

        def hear(rank: int, event: dict[str, Any]) -> None:
            if "rows" in event:
                monitor.resume(event["rows"])
            else:
                progress(int(event["row"]["step"]), _note(event["row"]))
                monitor(event["row"])

        if (result := read_result(self.stage_folder(stage), GrpoResult)) is None:
            self._work("train_grpo", policy, hear, NOTEBOOK_OF[stage], stage=stage)
            result = read_result(self.stage_folder(stage), GrpoResult)
        assert result is not None  # written last of all by what has just ended
        progress.end(result.end_reason)
        monitor.end(result.history, result.end_reason if result.stopped_by == "condition" else "")
        return result

    def harvest(self, policy: Policy | Elsewhere) -> Harvest:
        """Sample chains of training queries with the harvester, and keep those worth learning from.

        A harvest that was broken off goes on; one that is complete is only read.
        """
        from labkit.stages.harvest import is_whole, join_traces

        moments, store, samples = self.harvested_moments(), self.rollouts("distill"), self.params.harvest_samples
        # A policy that is here compares itself with the one that sampled; workers would each load one for that alone.
        if isinstance(policy, Elsewhere) and is_whole(store, moments, samples):
            join_traces(store, moments, samples)
        else:
            self._work("harvest", policy, Tally(len(moments)), "02_distill")
        return self.harvested()

    def harvested(self) -> Harvest:
        """What the filter keeps of the chains that were sampled."""
        from labkit.stages.harvest import filter_traces

        moments = {moment.qid: moment for moment in self.harvested_moments()}
        return filter_traces(self.rollouts("distill").stream(), moments, self.params)

    def train_sft(self, policy: Policy | Elsewhere, kept: Sequence[Rollout]) -> SftResult:
        """Train a fresh base on the kept traces: goes on where it was broken off, and only reads when it has ended."""
        from labkit.stages.checkpoints import read_result
        from labkit.stages.sft import SftResult, sft_batch_size, sft_steps

        p = self.params
        if not kept:
            raise LabError(
                "the harvest kept no trace, so there is nothing to learn from: see its funnel in 02_distill for what "
                "dropped them, then lower min_answer_iou or harvest more (harvest_prompts, harvest_samples)"
            )
        world = count(p.processes) if isinstance(policy, Elsewhere) else 1
        batch = sft_batch_size(p.sft_batch, len(kept), world)
        steps = sft_steps(p.sft_epochs, len(kept), batch or 1)  # 0 is refused by the stage itself
        progress = Progress("sft", steps)

        def hear(rank: int, event: dict[str, Any]) -> None:
            progress(int(event["row"]["step"]), f"loss {float(event['row']['loss']):.3f}")

        traces = [(rollout.qid, rollout.text) for rollout in kept]
        if (result := read_result(self.folder("03_sft"), SftResult)) is None:
            if 0 < batch < min(p.sft_batch, len(kept)):
                few = f"sft: {len(kept)} traces are fewer than sft_batch, {p.sft_batch}"
                say(f"{few}; {world} processes take {batch} a step, {steps} times")
            self._work("train_sft", policy, hear, "03_sft", traces=traces)
            result = read_result(self.folder("03_sft"), SftResult)
        assert result is not None  # written last of all by what has just ended
        progress.end()
        return result

    def harvested_moments(self) -> list[Moment]:
        """The queries that are harvested: the same whenever this run asks, but not the first clips alone."""
        moments = self.moments("train")
        return random.Random(self.params.seed).sample(moments, k=len(moments))[: self.params.harvest_prompts]

    def stage_folder(self, stage: str) -> Path:
        """The folder of grpo, distill, sft or grpo_final."""
        return self.folder(NOTEBOOK_OF[stage])

    def _evaluate(
        self, policy: Policy | Elsewhere, notebook: str, asked: Sequence[tuple[str, str, str]], stage: str = ""
    ) -> dict[str, dict[str, Any]]:
        """What `tasks.evaluate` keeps under the names in `asked`; `stage` is whose model it must be, if any's."""
        files = {what: self.folder(notebook) / f"{what}.json" for what, _, _ in asked}
        if new := [each for each in asked if not files[each[0]].exists()]:
            self._require_model_of(stage, policy)
            self._work("evaluate", policy, Tally(len(self.moments("test"))), notebook, notebook=notebook, asked=new)
        return {what: json.loads(file.read_text(encoding="utf-8")) for what, file in files.items()}

    def _work(
        self, task: str, policy: Policy | Elsewhere, hear: Callable[[int, dict[str, Any]], None], at: str, **asked: Any
    ) -> None:
        """Do a task with a policy that is here, or have workers do it; `hear` takes what they tell, with their ranks.

        Meanwhile no other process works in the run: a cell may be run by itself, before `begin` or after `finish`.
        """
        with locked(self.path / STAGE_LOCK, "a notebook"):
            if not isinstance(policy, Elsewhere):
                with single_process():
                    tasks.TASKS[task](self, policy, lambda event: hear(0, event), **asked)
                return
            self._data()  # written by one, before several look for it
            logs = self.folder(at) / "logs"
            job = Job(task, policy.stage, self.params.as_dict(), asked)
            launch(job.command(logs), count(self.params.processes), logs, hear=hear, cwd=self.root)

    def _require_model_of(self, stage: str, policy: Policy | Elsewhere) -> None:
        """Raise LabError where a policy is not what a stage has ended with: a notebook may hold one that has been trained since."""
        from labkit.stages.start import require_final_weights

        if stage not in NOTEBOOK_OF:
            return
        if not isinstance(policy, Elsewhere):
            require_final_weights(policy, self.stage_folder(stage))
        elif policy.stage != stage:
            raise LabError(f"the model of '{policy.stage}' is not that of '{stage}'; give lab.policy('{stage}')")

    def _source(self, policy: Policy, moments: Sequence[Moment], cache: FrameCache | None = None) -> PromptSource:
        from labkit.policy.inputs import Sampling
        from labkit.policy.prompt_source import PromptSource

        p = self.params
        sampling = Sampling(p.fps, p.max_frames, p.min_pixels, p.max_pixels)
        return PromptSource(
            policy, moments, template=p.prompt, sampling=sampling, cache=cache or self._cache(), readers=p.readers,
            video_deadline=p.video_deadline, feature_memory=p.feature_memory,
        )  # fmt: skip

    def _cache(self) -> FrameCache:
        from labkit.data.video.frames import FrameCache

        return FrameCache(self.resolve(self.params.outputs) / "frames", self.params.video_deadline)

    def _data(self) -> Path:
        p = self.params
        if p.data != "world":
            return self.resolve(p.data)
        counts = (p.world_train, p.world_validation, p.world_test)
        # All runs share a world of one size and seed; its clips are written once.
        folder = self.resolve(p.outputs) / "-".join(["world", *map(str, counts), f"seed{p.world_seed}"])
        if not moments_file(folder, "test", p.task).exists():
            progress = Progress("clips of the embedded world", sum(counts))
            write_world(folder, *counts, seed=p.world_seed, progress=lambda done, _: progress(done), task=p.task)
        return folder


def _note(row: Mapping[str, Any]) -> str:
    """The two figures that tell how a step of GRPO went."""
    names = {"total": "reward", "anchor_rate": "anchors"}
    return ", ".join(f"{label} {row[name]:.2f}" for name, label in names.items() if row.get(name) is not None)
