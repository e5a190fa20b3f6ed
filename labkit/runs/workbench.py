"""The workbench: a run with its data, models and rewards at hand, and the four tasks that are done with a model.

The notebook's own process does a task alone (through `labkit.lab.Lab`), or several workers do it together, each on its shard
(`labkit.runs.worker`). A task finds on disk what earlier work has left and leaves its results there; what was interrupted is
resumed. Nothing here draws anything: workers load no views.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment, read_moments, require_videos
from labkit.data.video.frames import BlackFrames, FrameCache
from labkit.embedded.world import moments_file, world_folder, write_world
from labkit.errors import LabError
from labkit.files import project_root, under
from labkit.param_fields import WORLDS
from labkit.params import Params
from labkit.policy.inputs import FrameSampling
from labkit.policy.model import Policy, load_policy
from labkit.policy.prompt_source import PromptSource
from labkit.policy.prompts import query_precedes_video, read_template
from labkit.progress import PROGRESS_FILE, Progress
from labkit.runs.own_terms import OwnTerms
from labkit.runs.results import evaluation_folder, read_model_evaluation
from labkit.runs.run import NOTEBOOK_OF, Run
from labkit.stages import evaluate, grpo, harvest, interventions, sft
from labkit.stages.checkpoints import stage_seed
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.distributed.preemption import stop_between_parts
from labkit.stages.distributed.process_group import barrier, process_rank, world_size
from labkit.stages.probes import Probes, choose_probes
from labkit.stages.rollouts import Rollout
from labkit.stages.traces import import_traces

EventListener: TypeAlias = Callable[[dict[str, Any]], None]
"""Called with each event that a task reports: plain data, so that a worker can send it to the notebook's process."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Have malloc keep what tensors free: each step asks for the same again, and new pages cost a tenth of its CPU time.

    Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        for option, value in (
            (M_TRIM_THRESHOLD, 2**31 - 1),
            (M_MMAP_THRESHOLD, 2**25),
        ):  # bytes; the most that it takes
            ctypes.CDLL(None).mallopt(option, value)


def seed_everything(params: Params) -> None:
    """Set torch's threads and all seeds of this process, and silence the libraries' warnings."""
    import torch
    from transformers import logging, set_seed

    keep_freed_memory()
    torch.set_num_threads(params.threads)
    set_seed(params.seed)
    # What the libraries plan to rename is nothing that the reader of a notebook can do anything about.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl|peft|accelerate")
    logging.set_verbosity_error()


def prompt_source(
    params: Params, policy: Policy, moments: Sequence[Moment], cache: FrameCache, template: str
) -> PromptSource:
    """Ready prompts of moments for a policy, by qid, made as the parameters say; `template` is what their `prompt` names."""
    p = params
    return PromptSource(
        policy, moments, template=template, sampling=frame_sampling(p),
        cache=cache, readers=p.readers, video_deadline=p.video_deadline, feature_memory=p.feature_memory,
    )  # fmt: skip


def frame_sampling(params: Params) -> FrameSampling:
    """How frames are sampled, by the parameters."""
    p = params
    return FrameSampling(p.fps, p.max_frames, p.min_pixels, p.max_pixels, p.total_pixels)


def answer_settings(params: Params, own: OwnTerms, model: str) -> dict[str, Any]:
    """How greedy answers are decoded and what the model sees, for the protocol card."""
    p = params
    return {
        "model": model, "prompt": own.prompt_name(p.prompt), "thinking": "on", "decoding": "greedy", "temperature": 0,
        "max_new_tokens": p.max_new_tokens, "fps": p.fps, "max_frames": p.max_frames,
        "min_pixels": p.min_pixels, "max_pixels": p.max_pixels,
        **({"total_pixels": p.total_pixels} if p.total_pixels else {}),
    }  # fmt: skip


@functools.lru_cache(3)
def _moments_of(path: Path, digest: str) -> tuple[Moment, ...]:
    """The moments of a file of this content: a notebook's cells and a worker's tasks ask for the same ones again and again."""
    return tuple(read_moments(path))


class Workbench(Run):
    """A run with its data, models, rewards and tasks; open it with `Workbench.open(params)`."""

    shares_cores = False
    """Whether two workers do the tasks of a run whose `processes` is 1: see `labkit.runs.worker.second_core_is_worth_it`."""

    @property
    def world(self) -> int:
        """How many processes do a task: 1 is this one."""
        return 2 if self.shares_cores else world_size(self.params.processes)

    def seed_everything(self) -> None:
        """Set torch's threads and all seeds, and silence the libraries' warnings, in each process that works."""
        seed_everything(self.params)

    def moments(self, split: str) -> list[Moment]:
        """The moments of `train`, `validation` or `test`; the embedded world is written when it is not there yet."""
        path = moments_file(self.data_folder(), split, self.params.task if self.params.data in WORLDS else "grounding")
        moments = _moments_of(path, self.fingerprint(split, path))[: getattr(self.params, f"{split}_limit") or None]
        require_videos(moments)
        return list(moments)

    def harvested_moments(self) -> list[Moment]:
        """The training queries that are harvested: the same on each call, a seeded sample and not the first clips alone."""
        moments = self.moments("train")
        return random.Random(self.params.seed).sample(moments, k=len(moments))[: self.params.harvest_prompts]

    def probe_moments(self) -> list[Moment]:
        """The validation queries that are asked while stages 1 and 3 train; none where `probe_queries` is 0."""
        p = self.params
        return choose_probes(self.moments("validation"), p.probe_queries) if p.probe_queries else []

    def harvested(self) -> harvest.Harvest:
        """What the filter keeps of the chains that were sampled, or what can be learnt of the `traces` that were given."""
        if self.params.traces:
            file = self.resolve(self.params.traces)
            self.fingerprint("traces", file)
            return import_traces(file, self.moments("train"), self.params.run)
        moments = {moment.qid: moment for moment in self.harvested_moments()}
        store = self.rollouts("distill")
        filtered = harvest.filter_traces(store.stream(), moments, self.params, self.own.filters)
        if self.params.trace_choice == "random":
            return harvest.draw_traces(store.stream(), filtered, self.params.seed)
        return filtered

    def data_folder(self) -> Path:
        """The folder of the moments files; that of the embedded world is written when it is not there yet."""
        p = self.params
        if p.data not in WORLDS:
            return self.resolve(p.data)
        counts = (p.world_train, p.world_validation, p.world_test)
        folder = self.resolve(p.outputs) / world_folder(p.as_dict())
        if not moments_file(folder, "test", p.task).exists():
            progress = Progress("clips of the embedded world", sum(counts), file=self.progress_file)
            write_world(folder, *counts, seed=p.world_seed, progress=lambda done, _: progress(done), task=p.task,
                        edition=WORLDS[p.data])  # fmt: skip
        return folder

    def stage_folder(self, stage: str) -> Path:
        """The folder of grpo, distill, sft or grpo_final."""
        return self.folder(NOTEBOOK_OF[stage])

    @property
    def progress_file(self) -> Path:
        """Where long work writes how far it is, for `labkit status`."""
        return self.path / PROGRESS_FILE

    @single_process()
    def load(self, stage: str, whole: bool = True) -> Policy:
        """Load a model in this process: the `base`, the `harvester` before its training, or a stage's final one.

        `whole` is False where it is to be sharded, see `load_policy`.
        """
        p = self.params
        return load_policy(
            self.model_name(stage), dtype=p.dtype, device=p.device, lora_rank=p.lora_rank, lora_alpha=p.lora_alpha,
            lora_targets=p.lora_targets, lora_merge=p.lora_merge, quantization=p.quantization, fused_decoding=p.fused_decoding,
            seed=stage_seed(p.seed, stage), whole=whole,
        )  # fmt: skip

    def model_name(self, stage: str) -> str:
        """Where a stage's model is loaded from: a folder, or a name on the hub or of shipped weights.

        Raises LabError when the stage has not ended.
        """
        p = self.params
        given = {
            "base": p.model,
            "harvester": p.harvester or p.model,
            "grpo": p.start_model("grpo_model"),
            "sft": p.start_model("sft_model"),
        }
        if not (name := given.get(stage, "")):
            name = str(self.path / NOTEBOOK_OF[stage] / "final")
            if not Path(name).is_dir():
                raise LabError(f"there is no model '{name}'; run notebooks/{NOTEBOOK_OF[stage]}.ipynb first")
        elif self.resolve(name).is_dir():
            name = str(self.resolve(name))
        return name

    def source(self, policy: Policy, split: str, frames: str = "own") -> PromptSource:
        """Ready prompts of a split for a policy, by qid; `frames` are each query's `own`, `black`, or `another` clip's."""
        moments, cache = self.moments(split), self.frame_cache
        if frames == "another":
            videos = sorted({moment.video for moment in moments})
            other = dict(zip(videos, videos[1:] + videos[:1], strict=True))
            moments = [dataclasses.replace(moment, video=other[moment.video], clip=None) for moment in moments]
        if frames == "black":
            cache = BlackFrames(cache.folder)
        return prompt_source(self.params, policy, moments, cache, self.own.template)

    @property
    def frame_cache(self) -> FrameCache:
        """Decoded frames; all runs share them."""
        return FrameCache(self.resolve(self.params.outputs) / "frames", self.params.video_deadline)

    def rewards(self, final: bool = False) -> RewardSpec:
        """The reward of stage 1, or of the final stage."""
        return RewardSpec.of(self.params, final, self.own.rewards)

    def run_task(self, task: str, policy: Policy, on_event: EventListener, /, **arguments: Any) -> None:
        """Do `grpo`, `sft`, `harvest`, `evaluation` or `interventions`, as the method `run_...` of that name documents."""
        tasks: dict[str, Callable[..., None]] = {
            "grpo": self.run_grpo,
            "sft": self.run_sft,
            "harvest": self.run_harvest,
            "evaluation": self.run_evaluation,
            "interventions": self.run_interventions,
        }
        tasks[task](policy, on_event, **arguments)

    def run_grpo(self, policy: Policy, on_event: EventListener, *, stage: str) -> None:
        """Train `grpo` or `grpo_final`; events are the `row` of each step, and the `rows` of steps that were taken before."""
        grpo.train_grpo(
            policy, self.source(policy, "train"), self.moments("train"), spec=self.rewards(stage == "grpo_final"),
            params=self.params, stage=stage, folder=self.stage_folder(stage),
            on_step=lambda row: on_event({"row": row}), on_resume=lambda rows: on_event({"rows": rows}),
            probes=self._probes(policy, stage),
        )  # fmt: skip

    def _probes(self, policy: Policy, stage: str) -> Probes | None:
        if not (moments := self.probe_moments()):
            return None
        p, source = self.params, self.source(policy, "validation")
        return Probes(moments, source, self.probes(stage), p.probe_every, p.eval_batch)

    def run_sft(self, policy: Policy, on_event: EventListener, *, traces: Sequence[Sequence[str]]) -> None:
        """Fine-tune on traces, (qid, text) each; events as those of `run_grpo`."""
        of_query = query_precedes_video(self.own.template)
        groups = {each.qid: each.qid if of_query else f"{each.video} {each.clip}" for each in self.moments("train")}
        sft.train_sft(
            policy, self.source(policy, "train"), [sft.Trace(*trace) for trace in traces],
            params=self.params, folder=self.stage_folder("sft"),
            on_step=lambda row: on_event({"row": row}), on_resume=lambda rows: on_event({"rows": rows}),
            groups=groups if self.params.pack_traces else None,
        )  # fmt: skip

    def run_harvest(self, policy: Policy, on_event: EventListener) -> None:
        """Sample chains of the harvested queries; events say how many queries are `done`."""
        p, here, moments, store = self.params, process_rank(), self.harvested_moments(), self.rollouts("distill")
        harvest.harvest(
            policy, self.source(policy, "train"), moments, store, spec=self.rewards(), samples=p.harvest_samples,
            temperature=p.temperature, max_new_tokens=p.max_new_tokens, seed=p.seed, run=p.run,
            on_part=stop_between_parts(lambda done, total: on_event({"what": "harvest", "done": done})),
            shard=(here.rank, here.world_size),
        )  # fmt: skip

    def run_evaluation(
        self, policy: Policy, on_event: EventListener, *,
        stage: str, notebook: str, parts: Sequence[Sequence[str]], queries: int = 0,
    ) -> None:  # fmt: skip
        """Answer the test split with a stage's model: into a rollout store, and the figures into a JSON file.

        Each of `parts` is the name of its result, the decoding, and the frames (see `source`); of several hundred `queries` only
        those of `draw_clips`, where 0 is all. Events say how many queries are `done`.
        """
        moments = self.moments("test")
        asked = evaluate.draw_clips(moments, queries) if queries else moments
        source, made_of = None, ""
        for name, decoding, frames in parts:
            if source is None or frames != made_of:  # another decoding has the same prompts
                source, made_of = self.source(policy, "test", frames), frames
            self._evaluate_part(policy, on_event, source, asked, stage, notebook, name, decoding)

    def _evaluate_part(
        self, policy: Policy, on_event: EventListener, source: PromptSource, moments: Sequence[Moment],
        stage: str, notebook: str, name: str, decoding: str,
    ) -> None:  # fmt: skip
        p, here = self.params, process_rank()
        folder = evaluation_folder(self.path, notebook, name)
        evaluate.answer(
            policy, source, moments, greedy=decoding == "greedy",
            temperature=p.temperature, max_new_tokens=p.max_new_tokens, batch_size=p.eval_batch, seed=p.seed,
            folder=folder, shard=(here.rank, here.world_size), run=p.run, stage=stage,
            on_batch=stop_between_parts(
                lambda done: on_event({"what": f"evaluation, {decoding}", "done": done})
            ),
        )  # fmt: skip
        barrier()
        if here.rank == 0:
            self.cached_json(notebook, name, lambda: {"figures": evaluate.read_evaluation(folder, moments).figures})

    def greedy_chains(self, stage: str) -> list[Rollout]:
        """What a stage's model has answered to the test split. Raises LabError when it has not been evaluated."""
        return read_model_evaluation(self.path, stage, self.moments("test")).greedy

    def run_interventions(
        self, policy: Policy, on_event: EventListener, *, stage: str, folder: str, shifts: Sequence[float]
    ) -> None:
        """Ask a stage's model all variants of its own chains, into `folder` in the run; events say how many are `done`."""
        p, here, moments = self.params, process_rank(), self.moments("test")
        planned = interventions.plan(self.greedy_chains(stage), moments, frame_sampling(p), shifts)
        interventions.intervene(
            policy, self.source(policy, "test"), moments, planned, self.path / folder, max_new_tokens=p.max_new_tokens,
            batch_size=p.eval_batch, shard=(here.rank, here.world_size), run=p.run, stage=stage,
            on_batch=stop_between_parts(lambda done: on_event({"what": "interventions", "done": done})),
        )  # fmt: skip
        barrier()


MOMENTS = "moments.jsonl"
"""In the folder of an evaluation: what is asked."""
ANSWERS = "greedy"
"""Name of such an evaluation, whose decoding is greedy."""


class EvaluationBench(Workbench):
    """A folder in which one model answers one file of moments: a workbench without stages, the test split being that file.

    The folder is `run` under `outputs`, as a run's is; frames are cached beside it, where runs look for them.
    """

    @classmethod
    def open(cls, params: Params, check: Any = None) -> Self:
        """Open the folder that `params` names, or make it. Raises LabError when it is a run's, or none of labkit's."""
        root = project_root()
        folder = under(root, params.outputs) / params.run
        if folder.exists() and not folder.is_dir():
            raise LabError(f"'{folder}' is a file; give another folder with -o")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MOMENTS).is_file():
            raise LabError(f"'{folder}' is not empty, and no evaluation is in it; give another folder with -o")
        own = OwnTerms(read_template(params.prompt, root, {}))
        folder.mkdir(parents=True, exist_ok=True)
        return cls(params, folder, root, own)

    def moments(self, split: str) -> list[Moment]:
        """The moments that are asked, whatever the split is called."""
        return read_moments(self.path / MOMENTS)

    def data_folder(self) -> Path:
        """The folder itself."""
        return self.path

    def greedy_chains(self, stage: str) -> list[Rollout]:
        """What the model has answered; it has one stage."""
        return evaluate.read_evaluation_rollouts(evaluation_folder(self.path, ".", ANSWERS), self.moments("test"))
