"""GRPO on video prompts: TRL's trainer, with one prefill and one packed policy pass per prompt.

Stock `GRPOTrainer` hands videos to `generate` but builds its log-prob inputs for images only: it would train, without a word, a policy
that never saw the video. Here TRL sees no prompt at all. A prompt's place in the step stands for it, as a single token id; the rollout
hook and the log-prob pass look the real prompt up. All that TRL does with ids (padding, splitting, losses, clipping, KL) stays TRL's.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.param_fields import GrpoParams
from labkit.params import Params
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy, ignore_renames
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import prefetch
from labkit.stages.arguments import grpo_config, items_per_pass
from labkit.stages.checkpoints import (
    finish_stage,
    frozen_copy,
    newest_checkpoint,
    preserve_model_state,
    read_result,
    require_same_start,
    resumable,
    shuffled_order,
    stage_seed,
    step_of,
)
from labkit.stages.completions import ScoredCompletion, score_completion
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.distributed.preemption import stop_callback
from labkit.stages.distributed.process_group import all_gather_object, barrier, process_rank
from labkit.stages.experimental.vllm_generation import generate_rollouts
from labkit.stages.grpo_steps import (
    GrpoResult,
    recorded_figures,
    reward_terms,
    should_stop,
    stage_params,
    step_figures,
)
from labkit.stages.probes import Probes, probe_callback
from labkit.stages.rollouts import RolloutStore
from labkit.stages.sharding import is_sharded, require_same_sharding, shard_model, shard_trained

LOGGED = ("loss", "entropy", "kl", "grad_norm", "learning_rate", "step_time", "cpu_seconds")
"""What a step's history takes over from TRL's log."""


@single_process()
def train_grpo(
    policy: Policy,
    source: Mapping[str, Prompt],
    moments: Sequence[Moment],
    *,
    spec: RewardSpec,
    params: Params,
    stage: str,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_resume: Callable[[list[dict[str, Any]]], None] | None = None,
    probes: Probes | None = None,
) -> GrpoResult:
    """Train `policy` on `moments` and write `checkpoint-*/`, `rollouts/` and, last, `final/` to `folder`.

    `on_step` is called with the row of each step once it is taken, `on_resume` with those of the steps that an earlier attempt took.
    `probes` are asked meanwhile, and change nothing.

    Called again on the same folder it goes on from the newest complete checkpoint, samples the same rollouts again from there, and
    ends with the weights of a run that was never interrupted. Once `final/` is there, it only reads. Where it is broken off,
    `policy` gets back the weights that it came with, so that the same object may be given again.

    With `beta`, the policy is held to the weights that it has now, token by token: beta * (r - log r - 1) is added to the loss, where
    r is the probability under the start over that under the policy. Its gradient is (1 - r) times that of the policy's
    log-prob. Source: DeepSeekMath's GRPO, eq. 4, and Time-R1's trainer; see `labkit.stages.arguments.OBJECTIVE` for all
    that is chosen in the loss, and for what TRL would take by default.

    The stage enters the random numbers: `grpo` and `grpo_final` of one seed ask other queries, and sample other chains.

    Several workers (`labkit.stages.distributed.launch`) call it together. Each samples and learns from whole groups,
    `prompts_per_step` / workers of them; rank 0 writes what all have sampled. The weights do not depend on how many they are.

    Raises:
        LabError: fewer moments than a step asks for, a step cannot be divided into the passes of all processes, one process
            would go on from what several had sharded, or the reverse, vLLM is asked for and cannot write, or the stage in
            `folder` began from other weights or another seed, or has lost rollouts.
    """
    from datasets import Dataset

    if result := read_result(folder, GrpoResult):
        return result
    begin = time.monotonic()
    params = stage_params(params, stage)
    size, world = params.prompts_per_step, process_rank().world_size
    per_pass = prompts_per_pass(params, world)
    if len(moments) < size:
        raise LabError(
            f"a step asks {size} queries and the training split has {len(moments)}; "
            "lower prompts_per_step or give more data"
        )
    checkpoint = newest_checkpoint(folder)
    require_same_sharding(checkpoint, params.sharding)
    require_same_start(policy, folder, seed=params.seed)
    store = RolloutStore(folder / "rollouts")
    require_rollouts(store, checkpoint)
    if process_rank().rank == 0:
        store.truncate(step_of(checkpoint))
    barrier()
    seed = stage_seed(params.seed, stage)
    asked = {moment.qid: moment for moment in moments}
    terms = reward_terms(moments, spec.terms)
    order = shuffled_order(list(asked), params.grpo_steps * size, seed, block=size)
    figures = recorded_figures(store.stream(), asked, spec, params.group_size)
    # A run that was killed between its last step and its end has no step left to take.
    steps = step_of(checkpoint) if should_stop(figures, step_of(checkpoint), params) else params.grpo_steps
    arguments = grpo_config(
        policy, source, folder, params, steps=steps, seed=seed, prompts_per_pass=per_pass,
        reward_weights=[spec.weights[term] for term in terms],
    )  # fmt: skip
    held = params.beta and not policy.has_adapter
    reference = frozen_copy(policy, shared=is_sharded(params.sharding)) if held else None
    with ignore_renames(), preserve_model_state(policy, reference):
        trainer = trainer_class()(
            policy, source, asked, spec, terms, params, store, figures, reference, seed,
            names={"run": params.run, "stage": stage, "seed": params.seed, "checkpoint": policy.name},
            on_step=on_step, on_resume=on_resume, probes=probes, args=arguments,
            train_dataset=Dataset.from_dict({"prompt": order[: steps * size]}),
        )  # fmt: skip
        shard_trained(policy, trainer)
        trainer.train_from(checkpoint)
    if process_rank().rank == 0:
        store.compact()
    stopped_by = "steps" if trainer.state.global_step >= params.grpo_steps else "condition"
    seconds = round(time.monotonic() - begin, 1)
    result = GrpoResult(trainer.state.global_step, stopped_by, trainer.history(), seconds)
    finish_stage(policy, result, folder)
    return result


def prompts_per_pass(params: GrpoParams, world: int) -> int:
    """Prompts of one process's pass; raises LabError unless passes of so many make up a step of all `world` processes.

    A group is never divided: its rewards are compared with one another, and its prompt is read once.
    """
    size, asked = params.prompts_per_step, params.prompts_per_pass
    if size % (world * (asked or 1)):
        text = f"prompts_per_step is {size} and must be a multiple of "
        text += f"prompts_per_pass, {asked}" if world == 1 else f"processes, {world}"
        text += f" x prompts_per_pass, {asked}" if world > 1 and asked else ""
        raise LabError(f"{text}; change one of them")
    return asked or items_per_pass(size, world)


def require_rollouts(store: RolloutStore, checkpoint: Path | None) -> None:
    """Raise LabError where rollouts of steps that a checkpoint has seen have gone: the record of the stage would have a hole."""
    if missing := sorted(set(range(1, step_of(checkpoint) + 1)) - set(store.steps())):
        raise LabError(
            f"'{store.folder}' lacks the rollouts of {len(missing)} steps that '{checkpoint}' has seen (the first: {missing[0]}); "
            "put them back, or remove the stage's checkpoints to start it over"
        )


@functools.cache
def trainer_class() -> Any:
    """`GRPOTrainer` for videos, made when it is first needed: importing TRL takes seconds."""
    import torch
    import transformers

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # `rollout_func` is the hook that TRL offers for this
    import trl
    from trl.trainer.utils import split_tensor_dict

    callback: Any = transformers.TrainerCallback  # their annotations do not foresee overrides

    class AfterStep(callback):
        """Calls `on_step` and `on_resume`, and ends training when the stop condition holds."""

        def __init__(self, trainer: VideoGRPOTrainer) -> None:
            self.trainer = trainer

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.trainer.prefetch_clips(state.global_step)
            if state.global_step and self.trainer.on_resume is not None and state.is_world_process_zero:
                self.trainer.on_resume(self.trainer.history())

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if should_stop(self.trainer.figures, state.global_step, self.trainer.params):
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if "loss" in logs and self.trainer.on_step is not None and state.is_world_process_zero:
                self.trainer.on_step(self.trainer.history()[-1])

    grpo_trainer: Any = resumable(trl.GRPOTrainer)

    class VideoGRPOTrainer(grpo_trainer):
        """One prefill and one packed policy pass per prompt; every rollout is recorded."""

        def __init__(
            self,
            policy: Policy,
            source: Mapping[str, Prompt],
            moments: Mapping[str, Moment],
            spec: RewardSpec,
            terms: Sequence[str],
            params: Params,
            store: RolloutStore,
            figures: dict[int, dict[str, float]],
            reference: Any,
            seed: int,
            *,
            names: dict[str, Any],
            on_step: Callable[[dict[str, Any]], None] | None,
            on_resume: Callable[[list[dict[str, Any]]], None] | None,
            probes: Probes | None,
            **kwargs: Any,
        ) -> None:
            self.policy, self.source, self.moments, self.spec, self.params = policy, source, moments, spec, params
            self.store, self.names, self.on_step, self.on_resume = store, names, on_step, on_resume
            self.figures, self.rollout_seed = figures, seed * 1_000_003
            self.asked: list[Prompt] = []
            self.completions: list[ScoredCompletion] = []
            # KL is against the model as it is given, which need not lie on a disk where TRL would look for it. Under
            # LoRA there is no `reference`: TRL adds a copy of the adapter.
            super().__init__(
                model=policy.model,
                processing_class=policy.tokenizer,
                reward_funcs=[self._reward(term) for term in terms],
                rollout_func=lambda prompts, trainer: trainer.rollout(prompts),
                **kwargs,
            )
            if reference is not None:
                shard_model(policy, reference, self.accelerator)
                self.beta, self.ref_model = params.beta, reference
            self.remove_callback(transformers.PrinterCallback)
            self.add_callback(AfterStep(self))
            if probes is not None:
                self.add_callback(probe_callback(probes, policy, params.max_new_tokens, names))
            self.add_callback(stop_callback())

        def prefetch_clips(self, step: int) -> None:
            """Have the clips of this process's queries decoded ahead, in the order of the steps behind `step`."""
            order, size = list(self.train_dataset["prompt"]), self.params.prompts_per_step
            rank, world, _ = process_rank()
            share = size // world
            begins = range(step * size + rank * share, len(order), size)
            prefetch(self.source, [qid for begin in begins for qid in order[begin : begin + share]])

        def rollout(self, prompts: list[str]) -> dict[str, Any]:
            """TRL's hook: qids, each repeated for its group, to prompt ids and completion ids."""
            group = self.num_generations
            self.asked = [self.source[qid] for qid in prompts[::group]]
            seed = self.rollout_seed + self.state.global_step + 1
            limits = {"max_new_tokens": self.params.max_new_tokens, "temperature": self.temperature}
            generated = generate_rollouts(self, group, seed=seed, **limits)
            step = self.state.global_step + 1
            self.completions = [
                score_completion(
                    self.moments[qid], index % group, done.text, len(done.ids), done.finished, self.spec, step=step
                )
                for index, (qid, done) in enumerate(zip(prompts, generated.completions, strict=True))
            ]
            return {
                # All that TRL gets of a prompt is its place in `asked`.
                "prompt_ids": [[index // group] for index in range(len(prompts))],
                "completion_ids": [completion.ids for completion in generated.completions],
                "logprobs": generated.log_probs,
            }

        def _reward(self, term: str) -> Callable[..., list[float]]:
            def reward(**columns: Any) -> list[float]:
                return [each.rewards.terms[term] for each in self.completions]

            reward.__name__ = term
            return reward

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            step = self.state.global_step + 1
            prompt_tokens = {prompt.qid: len(prompt.ids) for prompt in self.asked}  # the source may have dropped them
            records = all_gather_object([
                each.rollout(
                    **self.names, step=step, prompt_tokens=prompt_tokens[each.moment.qid], advantage=advantage, spec=self.spec
                )
                for each, advantage in zip(self.completions, output["advantages"].tolist(), strict=True)
            ])  # fmt: skip
            if process_rank().rank == 0:
                self.store.write(step, records)
            self.figures[step] = step_figures(all_gather_object(self.completions), self.num_generations)
            return output

        def _prepare_inputs(self, generation_batch: Any) -> Any:
            """As TRL's, without shuffling the step's rollouts: a group stays together, so its prompt is read once."""
            passes = self.args.steps_per_generation
            if self._step % (passes * self.num_iterations) == 0 or self._buffered_inputs is None:
                scored = self._generate_and_score_completions(generation_batch)
                self._buffered_inputs: Any = split_tensor_dict(scored, passes)
            return self._buffered_inputs[self._step % passes]

        def _get_per_token_logps_and_entropies(
            self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *rest: Any, **options: Any
        ) -> tuple[Any, Any, None]:
            """Log-probs and entropies (rows, C) of completions, each group packed behind its prompt."""
            completions, mask = input_ids[:, -logits_to_keep:], attention_mask[:, -logits_to_keep:]
            prompts = input_ids[:, -logits_to_keep - 1]  # one token each, padded on the left
            places, sizes = torch.unique_consecutive(prompts, return_counts=True)
            packed = pack_shared_prefix(
                [self.asked[place] for place in places.tolist()], completions, mask, sizes.tolist()
            )
            return (*packed.log_probs(model, self.temperature, options.get("compute_entropy", False)), None)

        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
            """As TRL's, whose log takes the mean over passes: each counts as its tokens do, so that it is the mean over these."""
            loss = super()._compute_loss(model, inputs)
            tokens = self.accelerator.reduce(inputs["completion_mask"].sum(), reduction="sum")
            weight = float(tokens / inputs["num_items_in_batch"]) * self.args.steps_per_generation
            for name in ("kl", "entropy"):
                if values := self._metrics["train"].get(name):
                    values[-1] *= weight
            return loss

        def history(self) -> list[dict[str, Any]]:
            """One row for each step that has been logged."""
            rows = []
            for entry in self.state.log_history:
                if entry.get("step") in self.figures and "loss" in entry:
                    logged = {name: float(entry[name]) for name in LOGGED if name in entry}
                    rows.append({"step": entry["step"], **self.figures[entry["step"]], **logged})
            return rows

    return VideoGRPOTrainer
