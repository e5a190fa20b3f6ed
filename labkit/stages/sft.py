"""SFT of a fresh base on kept traces: TRL's trainer on packed videos.

The loss is on the completion alone, the mean over the batch's tokens. Inputs come from the same function as everywhere else, the
frozen tower's features stand in for the pixels, and traces of one clip in one batch share the pass over it.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.inputs import Prompt, not_yet_begun
from labkit.policy.model import Policy, ignore_renames
from labkit.policy.packed_logprobs import pack_shared_prefix
from labkit.policy.prompt_source import prefetch
from labkit.stages.arguments import sft_config
from labkit.stages.checkpoints import (
    finish_stage,
    newest_checkpoint,
    preserve_model_state,
    read_result,
    require_same_start,
    resumable,
    shuffled_order,
    stage_seed,
    step_of,
)
from labkit.stages.distributed.launcher_variables import single_process
from labkit.stages.distributed.preemption import stop_callback
from labkit.stages.distributed.process_group import process_rank
from labkit.stages.sharding import require_same_sharding, shard_trained


class Trace(NamedTuple):
    """A training example: the completion `text` of the prompt of moment `qid`."""

    qid: str
    text: str


@dataclass(frozen=True)
class SftResult:
    """How the stage went; the model stands in `final/`."""

    steps: int
    history: list[dict[str, Any]]
    """One row a step: loss, grad_norm, learning_rate, cpu_seconds."""
    seconds: float
    """Time of training, without what earlier attempts took before they were killed."""


@single_process()
def train_sft(
    policy: Policy,
    source: Mapping[str, Prompt],
    traces: Sequence[Trace],
    *,
    params: Params,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    on_resume: Callable[[list[dict[str, Any]]], None] | None = None,
    groups: Mapping[str, str] | None = None,
) -> SftResult:
    """Train `policy` on `traces` and write `checkpoint-*/` and, last, `final/` to `folder`.

    Resumes as `labkit.stages.grpo.train_grpo` does, and is shared by several workers as that is: each takes its part of a batch.
    Only where there are fewer traces than a batch asks for do the weights depend on the number of workers: see `sft_batch_size`.

    `on_step` and `on_resume` are called as there. `groups`, which names what each qid shares a prefix with, puts traces of one group
    next to each other.

    Raises:
        LabError: there is no trace, a batch cannot be divided among the processes or there are fewer traces than these,
            one process would go on from what several had sharded, or the reverse, or the stage in `folder` began from
            other weights, traces or another seed.
    """
    import transformers
    from datasets import Dataset

    if result := read_result(folder, SftResult):
        return result
    if not traces:
        raise LabError("SFT was given no trace to learn from; harvest more, or loosen the filter")
    begin = time.monotonic()
    world = process_rank().world_size
    batch = sft_batch_size(params.sft_batch, len(traces), world)
    if not batch or batch % world:
        # A divisor of what there is now divides the steps of GRPO too, which a run's parameters are checked for.
        fits = max(n for n in range(1, world) if n <= len(traces) and not world % n and not params.sft_batch % n)
        raise LabError(
            f"{len(traces)} traces, of which a step takes sft_batch, {params.sft_batch}, cannot be shared out evenly among {world} "
            f"processes; let `processes` be {fits}, which may change within a run"
        )
    steps = sft_steps(params.sft_epochs, len(traces), batch)
    seed = stage_seed(params.seed, "sft")
    order = shuffled_order(range(len(traces)), steps * batch, seed)
    if groups is not None:
        order = group_together(order, [groups[trace.qid] for trace in traces])
    arguments = sft_config(policy, folder, params, steps=steps, seed=seed, batch=batch)

    callback: Any = transformers.TrainerCallback  # its annotations do not foresee overrides

    class StepCallback(callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step and on_resume is not None and state.is_world_process_zero:
                on_resume(_history(state))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if on_step is not None and "loss" in logs and state.is_world_process_zero:
                on_step({"step": state.global_step, **logs})

    checkpoint = newest_checkpoint(folder)
    require_same_sharding(checkpoint, params.sharding)
    learnt = hashlib.sha256(repr([tuple(trace) for trace in traces]).encode()).hexdigest()[:16]
    require_same_start(policy, folder, seed=params.seed, traces=learnt)
    prefetch(source, [traces[index].qid for index in order[step_of(checkpoint) * batch :]])
    with ignore_renames(), preserve_model_state(policy):
        trainer = trainer_class()(
            model=policy.model,
            args=arguments,
            train_dataset=Dataset.from_list([traces[index]._asdict() for index in order]),
            processing_class=policy.tokenizer,
            data_collator=functools.partial(collate, policy, source),
            callbacks=[StepCallback(), stop_callback()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        shard_trained(policy, trainer)
        trainer.train_from(checkpoint)
    result = SftResult(trainer.state.global_step, _history(trainer.state), round(time.monotonic() - begin, 1))
    finish_stage(policy, result, folder)
    return result


def _history(state: Any) -> list[dict[str, Any]]:
    names = ("step", "loss", "grad_norm", "learning_rate", "cpu_seconds")
    return [{name: float(row[name]) for name in names if name in row} for row in state.log_history if "loss" in row]


def sft_batch_size(asked: int, traces: int, world: int) -> int:
    """Traces of one step of `world` processes: `asked`, or where there are fewer, as many of them as divide evenly.

    What a step then leaves out stands in the next; 0 where there are fewer traces than processes.

    >>> sft_batch_size(64, 100, 8), sft_batch_size(64, 37, 8), sft_batch_size(64, 37, 1)
    (64, 32, 37)
    """
    return asked if traces >= asked else traces // world * world


def sft_steps(epochs: float, traces: int, batch: int) -> int:
    """Steps that come nearest to `epochs` passes over the traces, at least one.

    >>> sft_steps(2.0, 37, 37), sft_steps(2.0, 37, 32), sft_steps(3.0, 37, 32)
    (2, 2, 3)
    """
    return max(1, round(epochs * traces / batch))


def group_together(order: Sequence[int], groups: Sequence[str]) -> list[int]:
    """Bring traces of one group together, epoch by epoch; groups keep the order in which they first come.

    `groups` has the group of each trace, so that an epoch is as long as it.

    >>> group_together([0, 1, 2, 3, 2, 0, 3, 1], ["a", "b", "a", "b"])
    [0, 2, 1, 3, 2, 0, 3, 1]
    """
    arranged: list[int] = []
    for begin in range(0, len(order), len(groups)):
        members: dict[str, list[int]] = {}
        for index in order[begin : begin + len(groups)]:
            members.setdefault(groups[index], []).append(index)
        arranged += [index for group in members.values() for index in group]
    return arranged


def collate(policy: Policy, source: Mapping[str, Prompt], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """A batch of traces: prompts, how many traces each has, and the completions' tokens (rows, C), -100 behind the end.

    Traces of one clip, and among them those of one question, stand together, so that they can share what they have in common.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    asked = {row["qid"]: source[row["qid"]] for row in rows}
    clips = {qid: id(prompt.features) for qid, prompt in asked.items()}
    first_clip = {clip: place for place, clip in reversed(list(enumerate(clips.values())))}
    first_qid = {qid: place for place, qid in enumerate(asked)}
    rows = sorted(rows, key=lambda row: (first_clip[clips[row["qid"]]], first_qid[row["qid"]]))
    completions = []
    for row in rows:
        rest = not_yet_begun(policy, asked[row["qid"]], row["text"])
        completions.append(torch.tensor([*policy.completion_ids(rest), policy.tokenizer.eos_token_id]))
    labels = pad_sequence(completions, batch_first=True, padding_value=-100)
    # By this name, Trainer counts all of them; of `labels`, it would leave each row's first out.
    groups = [(asked[qid], len(list(same))) for qid, same in itertools.groupby(row["qid"] for row in rows)]
    prompts, sizes = zip(*groups, strict=True)
    return {"prompts": prompts, "sizes": sizes, "labels": labels, "shift_labels": labels}


@functools.cache
def trainer_class() -> Any:
    """`SFTTrainer` for packed videos, made when it is first needed: importing TRL takes seconds."""
    import trl
    from torch.utils.data import SequentialSampler

    sft_trainer: Any = resumable(trl.SFTTrainer)

    class VideoSFTTrainer(sft_trainer):
        """Takes its rows in the order given: they were shuffled in a way that a resumed run repeats."""

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """The mean over the completions' tokens: this batch's, or all those of the step when Trainer has counted them."""
            labels = inputs["labels"]
            shown = labels != -100
            packed = pack_shared_prefix(inputs["prompts"], labels.masked_fill(~shown, 0), shown, inputs["sizes"])
            log_probs, _ = packed.log_probs(model)
            if num_items_in_batch is None:
                return -log_probs.sum() / shown.sum()
            # Every process counts the tokens of all, and DDP takes the mean of their gradients.
            shares = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
            return -log_probs.sum() / num_items_in_batch * shares

    return VideoSFTTrainer
