"""The lab: what a notebook asks of a run, one method each.

A notebook stays a narrative because everything that needs a loop, a path or a guard is done here: data written once,
models loaded from the stage that made them, long work done once and loaded when the notebook is run again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from labkit.asker import AskedChains, Asker
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.files import locked
from labkit.params import read_yaml
from labkit.policy.model import Policy
from labkit.progress import Progress, Tally, say
from labkit.runs.compare import Comparison, RunsOfOneTest, compare_runs, moments_of
from labkit.runs.intervene import intervene_in
from labkit.runs.interventions import Interventions
from labkit.runs.notebooks import pass_over_cells
from labkit.runs.results import (
    MODELS,
    FrameAblation,
    ModelEvaluation,
    evaluation_files,
    is_evaluated,
    read_model_evaluation,
    require_evaluation,
)
from labkit.runs.run import NOTEBOOK_OF, STAGE_LOCK, read_manifest, runs_in
from labkit.runs.settings import differences
from labkit.runs.trackers import StageLog, Trackers
from labkit.runs.workbench import Workbench, answer_settings
from labkit.runs.worker import begin_workers, do_task, second_core_is_worth_it
from labkit.scoring.baselines import best_constant_miou
from labkit.scoring.predictions import Predictions, as_predictions, write_predictions
from labkit.scoring.scores import Score, score
from labkit.stages.checkpoints import read_result, require_final_weights
from labkit.stages.distributed.launch import end_workers, end_workers_later
from labkit.stages.evaluate import blind_queries, draw_clips, evaluate_answers
from labkit.stages.grpo_steps import GrpoResult, stage_params
from labkit.stages.harvest import Harvest, harvest_complete, merge_shards
from labkit.stages.interventions import SHIFTS
from labkit.stages.rollouts import Rollout
from labkit.stages.sft import SftResult, sft_batch_size, sft_steps
from labkit.stages.words_by_step import word_history

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from labkit.views.explorer.watch import QueryWatch


Result = TypeVar("Result", GrpoResult, SftResult)
IDLE_SECONDS = 60.0
"""After which the workers of a notebook that has ended end, too."""


class ModelRef(NamedTuple):
    """Names a model that each worker loads for itself: what `Lab.policy` returns where several processes work."""

    stage: str
    name: str
    """As `Policy.name`."""


class Lab(Workbench):
    """A run as notebooks see it; open it with `Lab.open(params)`."""

    def start(self, name: str) -> bool:
        """Claim the run for a notebook, as `Run.start`; set torch's threads and the seed, and silence the libraries.

        The notebook of a stage that the run skips says so, and its later cells do nothing.
        """
        finished = super().start(name)
        pass_over_cells(self.skipped(name))
        self.shares_cores = not finished and second_core_is_worth_it(self.params)
        if self.shares_cores:
            begin_workers(self)
        else:
            self.seed_everything()
        return finished

    def finish(self, name: str, figures: Mapping[str, Any]) -> None:
        """As `Run.finish`; workers that wait for another task hold memory, and end.

        Where it is no GPU's, they end after a while: the next notebook may follow.
        """
        if self.shares_cores:
            end_workers_later(IDLE_SECONDS)
        else:
            end_workers()
        super().finish(name, figures)

    def policy(self, stage: str = "base") -> Policy | ModelRef:
        """The `base`, the `harvester` before its training (the base, where none is named), or what a stage ended with.

        Where `processes` are several, only its name: a model that waits in the notebook's process takes a GPU's memory.
        """
        if self.world > 1:
            return ModelRef(stage, self.model_name(stage))
        return self.load(stage)

    @property
    def sheets(self) -> Path:
        """Where explorers keep the pictures of clips; all runs share them."""
        return self.resolve(self.params.outputs) / "sheets"

    @property
    def start_model(self) -> str:
        """Which model stage 1 starts from: the `base`, or the `harvester` where one is named."""
        return "harvester" if self.params.harvester else "base"

    def evaluate(self, stage: str, policy: Policy | ModelRef) -> ModelEvaluation:
        """Evaluate a policy on the test split, once: called again, it reads what is there.

        `stage` names the model: base, harvester, grpo, sft or grpo_final.
        """
        parts = [(f"{stage}-{decoding}", decoding, "own") for decoding in self.params.decodings(stage)]
        self._evaluate(policy, NOTEBOOK_OF.get(stage, "01_grpo"), parts, stage)
        return self.read_evaluation(stage)

    def read_evaluation(self, stage: str) -> ModelEvaluation:
        """What `evaluate` has found for a stage's model; the same object as long as nothing is added to it."""
        require_evaluation(self.path, stage)  # before the world is written for its moments
        moments, files = self.moments("test"), evaluation_files(self.path, stage)
        written = tuple(file.stat().st_mtime_ns for file in files.values())
        known = self._evaluations.get(stage)
        if known is None or known[0] != written:
            known = self._evaluations[stage] = (written, read_model_evaluation(self.path, stage, moments))
        return known[1]

    @functools.cached_property
    def _evaluations(self) -> dict[str, tuple[tuple[int, ...], ModelEvaluation]]:
        return {}

    def evaluations(self) -> dict[str, ModelEvaluation]:
        """What `evaluate` has found for each model of the run so far, in the order in which they come to be.

        Those of stages that the run skips are missing.
        """
        return {stage: self.read_evaluation(stage) for stage in MODELS if is_evaluated(self.path, stage)}

    def ask(
        self, video: str | Path, sentence: str, policy: Policy | ModelRef | None = None, samples: int = 0
    ) -> AskedChains:
        """Ask a model of this run when a sentence happens in any video: the greedy chain and `samples` sampled ones.

        `policy` is what `lab.policy(stage)` returns, by default the base. Raises LabError for a video that cannot be read.
        """
        stage = policy.stage if isinstance(policy, ModelRef) else "base"
        name = self.model_name(stage) if policy is None else policy.name
        frames = self.resolve(self.params.outputs) / "frames"
        asker = Asker(self.params.replace(model=name), self.own.template, frames, self.sheets)

        def load() -> Policy:
            self.seed_everything()
            return self.load(stage) if policy is None or isinstance(policy, ModelRef) else policy

        return asker.ask(load, video, sentence, samples)

    def ablate_frames(self, policy: Policy | ModelRef) -> FrameAblation:
        """What the final model can do on frames that are not the query's, over the share `blind_share` of the test split.

        Black frames always; another clip's, where the test split has more than one. `policy` is that model.
        """
        moments, kinds = self.moments("test"), {"black": "black"}
        if len({moment.video for moment in moments}) > 1:
            kinds["another clip's"] = "another"
        parts = [(f"blind-{frames}", "greedy", frames) for frames in kinds.values()]
        asked = draw_clips(moments, self._blind_queries([name for name, _, _ in parts], len(moments)))
        results = self._evaluate(policy, "05_analysis", parts, queries=len(asked))
        blind = {kind: float(results[f"blind-{frames}"]["figures"]["miou"]) for kind, frames in kinds.items()}
        greedy = {rollout.qid: rollout for rollout in self.read_evaluation("grpo_final").greedy}
        seeing = float(evaluate_answers(greedy, asked).figures["miou"])
        return FrameAblation(len(asked), seeing, blind, best_constant_miou(asked, self.moments("train")))

    def _blind_queries(self, names: Sequence[str], queries: int) -> int:
        """Of how many queries: those of what is there already, so that kinds of frames stand beside each other."""
        files = (self.folder("05_analysis") / f"{name}.json" for name in names)
        there = [json.loads(file.read_text(encoding="utf-8"))["figures"] for file in files if file.exists()]
        return round(there[0].get("n", queries)) if there else blind_queries(queries, self.params.blind_share)

    def interventions(self, stage: str = "grpo_final", shifts: Sequence[float] = SHIFTS) -> Interventions:
        """What becomes of the answers of a stage's model once its anchors are forbidden, forced, edited, or their frames hidden.

        `shifts` are seconds. Asked once: called again, it reads what is there. Raises LabError when it has not been evaluated.
        """
        return intervene_in(self, stage, lambda: self.load(stage), shifts)

    def predictions(self, stage: str) -> Predictions:
        """A stage's greedy answers with how they were decoded; written to the analysis, as `labkit score` reads them."""
        settings = answer_settings(self.params, self.own, f"{self.params.run}, {stage}")
        file = self.folder("05_analysis") / f"predictions-{stage}.jsonl"
        greedy = self.read_evaluation(stage).greedy
        write_predictions(file, greedy, settings)
        return dataclasses.replace(as_predictions(greedy, settings), file=file.name)

    def score(self, stage: str) -> Score:
        """A stage's greedy answers to the test split: interval, baselines fitted on the training split, protocol card."""
        return score(self.predictions(stage), self.moments("test"), train=self.moments("train"))

    def compared_runs(self) -> dict[str, ModelEvaluation]:
        """The final models of the runs that `compare` names, by the run's name; they must share this test split.

        Where it names a folder of runs, these are seen in `compare_runs` alone: they are too many to stand in each figure.
        """
        own, evaluations = self.manifest["data"].get("test"), {}
        for other in self.params.compare:
            folder = self.resolve(other)
            if runs_in(folder) != [folder]:
                continue
            if read_manifest(folder)["data"].get("test") != own:
                raise LabError(
                    f"compare: '{folder}' was tested on other data than this run; compare runs of one test split"
                )
            # Of one file, runs may take more or fewer moments.
            moments = self.moments("test")[: read_yaml(folder / "params.yaml").get("test_limit") or None]
            evaluations[folder.name] = read_model_evaluation(folder, "grpo_final", moments)
        return evaluations

    def compare_runs(self) -> Comparison | None:
        """This run and those that `compare` names over seeds, paired, and with what differs; None where it names none."""
        others = [run for other in self.params.compare for run in runs_in(self.resolve(other))]
        return compare_runs([self.path, *others]) if others else None

    def word_history(
        self, *stages: str, compared: Comparison | None = None
    ) -> dict[str, list[dict[str, list[dict[str, Any]]]]]:
        """How true words were in each step of `stages`, 1 and 3 unless given, by setting and run; {} on other data.

        Of this run alone, or with `compared` of each run of its first test set. Counted once, when a stage has ended.
        """
        stages = stages or ("grpo", "grpo_final")

        def history(folder: Path, moments: Callable[[], Sequence[Moment]]) -> dict[str, list[dict[str, Any]]]:
            own = folder.resolve() == self.path.resolve()
            return {stage: word_history(folder / NOTEBOOK_OF[stage], moments, keep=own) for stage in stages}

        if compared is None:
            found = {"": [history(self.path, lambda: self.moments("train"))]}
        else:
            test = compared.tests[0]
            found = {
                title: [history(run.path, functools.partial(moments_of, run, "train")) for run in setting.runs]
                for title, setting in zip(_titles(test), test.settings, strict=True)
            }
        return {label: runs for label, runs in found.items() if any(any(run.values()) for run in runs)}

    def most_improved_query(self) -> str:
        """The qid of the test query whose answer's IoU improved most from the base, or the run's first model, to the final one."""
        from labkit.views.measured_chains import measure_chains

        first = next((stage for stage in MODELS if is_evaluated(self.path, stage)), "base")
        moments = {moment.qid: moment for moment in self.moments("test")}
        ious = [
            {
                chain.record.qid: chain.answer_iou
                for chain in measure_chains(self.read_evaluation(stage).greedy, moments)
            }
            for stage in (first, "grpo_final")
        ]
        return max(moments, key=lambda qid: ious[1][qid] - ious[0][qid])

    def watch_queries(self, qid: str = "") -> QueryWatch | go.Figure:
        """How the probe queries learnt in stages 1 and 3, as far as these have come; opened at `qid`, or where most was learnt."""
        from labkit.views.explorer.watch import watch
        from labkit.views.figures.style import nothing

        rollouts = [rollout for stage in ("grpo", "grpo_final") for rollout in self.probes(stage).read()]
        if not rollouts:
            return nothing("Watch a query learn", "no query was asked while this run trained (<i>probe_queries</i>)")
        return watch(rollouts, self.moments("validation"), qid=qid, folder=self.sheets)

    def train_grpo(self, stage: str, policy: Policy | ModelRef) -> GrpoResult:
        """Train `grpo` or `grpo_final`: resumes where it was interrupted, and only reads when it has ended.

        A notebook shows a live monitor meanwhile.
        """
        from labkit.views.monitor import Monitor

        steps, moments = stage_params(self.params, stage).grpo_steps, self.moments("train")
        progress, spec = Progress(stage, steps, file=self.progress_file), self.rewards(stage == "grpo_final")
        monitor = Monitor(stage, steps, self.rollouts(stage), moments, spec=spec, folder=self.sheets)
        trackers = self._trackers(stage, moments)

        def on_event(rank: int, event: dict[str, Any]) -> None:
            if "rows" in event:
                monitor.resume(event["rows"])
                trackers.resume(event["rows"])
            else:
                progress(int(event["row"]["step"]), _note(event["row"]))
                monitor(event["row"])
                trackers(event["row"])

        result = self._train("grpo", GrpoResult, stage, policy, on_event, trackers, stage=stage)
        progress.end(result.end_reason)
        monitor.end(result.history, result.end_reason if result.stopped_by == "condition" else "")
        return result

    def harvest(self, policy: Policy | ModelRef) -> Harvest:
        """Sample chains of training queries with the harvester, and keep those worth learning from.

        A harvest that was interrupted is resumed; one that is complete is only read.
        """
        moments, store, samples = self.harvested_moments(), self.rollouts("distill"), self.params.harvest_samples
        # A policy that is here compares itself with the one that sampled; workers would each load one for that alone.
        if not (isinstance(policy, ModelRef) and harvest_complete(store, moments, samples)):
            self._work("harvest", policy, Tally(len(moments), self.progress_file))
        merge_shards(store, moments, samples)
        return self.harvested()

    def train_sft(self, policy: Policy | ModelRef, kept: Sequence[Rollout]) -> SftResult:
        """Fine-tune a fresh base on the kept traces: resumes where it was interrupted, and only reads when it has ended."""
        p = self.params
        if not kept:
            raise LabError(
                "the harvest kept no trace, so there is nothing to learn from: see the chart in 02_distill for what "
                "dropped them, then lower min_answer_iou or harvest more (harvest_prompts, harvest_samples)"
            )
        world = self.world if isinstance(policy, ModelRef) else 1
        batch = sft_batch_size(p.sft_batch, len(kept), world)
        steps = sft_steps(p.sft_epochs, len(kept), batch or 1)  # 0 is refused by the stage itself
        progress, trackers = Progress("sft", steps, file=self.progress_file), self._trackers("sft")

        def on_event(rank: int, event: dict[str, Any]) -> None:
            if "rows" in event:
                trackers.resume(event["rows"])
                return
            trackers(event["row"])
            progress(int(event["row"]["step"]), f"loss {float(event['row']['loss']):.3f}")

        traces = [(rollout.qid, rollout.text) for rollout in kept]
        if 0 < batch < min(p.sft_batch, len(kept)) and read_result(self.stage_folder("sft"), SftResult) is None:
            few = f"sft: {len(kept)} traces are fewer than sft_batch, {p.sft_batch}"
            say(f"{few}; {world} processes take {batch} a step, {steps} times")
        result = self._train("sft", SftResult, "sft", policy, on_event, trackers, traces=traces)
        progress.end()
        return result

    def _train(
        self, task: str, kind: type[Result], stage: str, policy: Policy | ModelRef,
        on_event: Callable[[int, dict[str, Any]], None], trackers: Trackers, /, **arguments: Any,
    ) -> Result:  # fmt: skip
        """Do a stage of training that has not ended, and read its result."""
        if (result := read_result(self.stage_folder(stage), kind)) is None:
            trackers.open()
            self._work(task, policy, on_event, **arguments)
            result = read_result(self.stage_folder(stage), kind)
        assert result is not None  # written last of all by what has just ended
        trackers.end(result.history)
        return result

    def _trackers(self, stage: str, moments: Sequence[Moment] = ()) -> Trackers:
        """Those that `report_to` names, for a stage of GRPO with chains of its newest step; without `moments` there are none."""
        from labkit.views.monitor import tracked_chains

        store = self.rollouts(stage)
        where = StageLog(self.path, NOTEBOOK_OF[stage], self.params.as_dict(), str(self.manifest.get("created")))
        chains = (lambda: tracked_chains(store.newest(), moments, self.sheets)) if moments else list
        return Trackers(self.params.report_to, where, chains)

    def _evaluate(
        self, policy: Policy | ModelRef, notebook: str, parts: Sequence[tuple[str, str, str]],
        stage: str = "", queries: int = 0,
    ) -> dict[str, dict[str, Any]]:  # fmt: skip
        """The results of `run_evaluation` by the names in `parts`; `stage` is whose model it must be, if any's."""
        files = {name: self.folder(notebook) / f"{name}.json" for name, _, _ in parts}
        if missing := [part for part in parts if not files[part[0]].exists()]:
            self._require_model_of(stage, policy)
            tally = Tally(queries or len(self.moments("test")), self.progress_file)
            self._work("evaluation", policy, tally, stage=stage, notebook=notebook, parts=missing, queries=queries)
        return {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}

    def _work(
        self,
        task: str,
        policy: Policy | ModelRef,
        on_event: Callable[[int, dict[str, Any]], None],
        /,
        **arguments: Any,
    ) -> None:
        """Do a task with a policy that is here, or have workers do it; `on_event` takes their events with their ranks.

        Meanwhile no other process works in the run: a cell may be run by itself, before `start` or after `finish`.
        """
        model = policy.stage if isinstance(policy, ModelRef) else policy
        with locked(self.path / STAGE_LOCK, "a notebook"):
            do_task(self, task, model, on_event, **arguments)

    def _require_model_of(self, stage: str, policy: Policy | ModelRef) -> None:
        """Raise LabError where a policy is not what a stage has ended with: a notebook may hold one that has been trained since."""
        if stage not in NOTEBOOK_OF:
            return
        if not isinstance(policy, ModelRef):
            require_final_weights(policy, self.stage_folder(stage))
        elif policy.stage != stage:
            raise LabError(f"the model of '{policy.stage}' is not that of '{stage}'; give lab.policy('{stage}')")


def _titles(test: RunsOfOneTest) -> list[str]:
    """What a figure calls the settings: by their own name, else by up to two parameters that differ, else by their first run."""
    differ, titles = differences(test.settings), []
    for at, setting in enumerate(test.settings):
        values = ", ".join(f"{name} {each[at]}" for name, each in differ.items())
        more = values if 0 < len(differ) < 3 else setting.runs[0].name
        titles.append(setting.label if setting.runs[0].name.startswith(setting.label) else f"{setting.label}: {more}")
    return titles


def _note(row: Mapping[str, Any]) -> str:
    """Reward and anchor rate of a GRPO step, for the progress bar."""
    names = {"total": "reward", "anchor_rate": "anchors"}
    return ", ".join(f"{label} {row[name]:.2f}" for name, label in names.items() if row.get(name) is not None)
