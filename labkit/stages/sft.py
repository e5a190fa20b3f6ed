"""SFT of a fresh base on kept traces: TRL's trainer with a collator for videos.

The loss is on the completion alone, the mean over its tokens. Inputs come from the same function as everywhere else, and the frozen
tower's features stand in for the pixels.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.policy.inputs import Prompt, vision_kwargs, with_completion
from labkit.policy.model import Policy, old_names
from labkit.policy.sources import expect
from labkit.stages.checkpoints import end_stage, newest_checkpoint, read_result, resumable, shuffled_order, step_of
from labkit.stages.sharding import keep_vision_whole, require_sharding, sharing
from labkit.stopping import stop_callback
from labkit.workers import place


class Trace(NamedTuple):
    """What is learnt: the completion `text` as the answer to the moment `qid`."""

    qid: str
    text: str


@dataclass(frozen=True, kw_only=True)
class SftSettings:
    """How SFT trains; `labkit.params` documents each value."""

    epochs: float
    batch: int
    learning_rate: float
    save_steps: int
    seed: int
    gradient_checkpointing: bool = False
    warmup_steps: int = 10
    sharding: str = "ddp"
    """What several processes share, `ddp` or `fsdp2`."""


@dataclass(frozen=True)
class SftResult:
    """How the stage went; the model stands in `final/`."""

    steps: int
    history: list[dict[str, Any]]
    """One row a step: loss, grad_norm, learning_rate."""
    seconds: float
    """Time of training, without what earlier attempts took before they were killed."""


def train_sft(
    policy: Policy,
    source: Mapping[str, Prompt],
    traces: Sequence[Trace],
    *,
    settings: SftSettings,
    folder: Path,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> SftResult:
    """Train `policy` on `traces` and write `checkpoint-*/` and, last, `final/` to `folder`.

    Resumes as `labkit.stages.grpo.train_grpo` does, and is shared by several workers as that is: each takes its part of a batch.

    Raises:
        LabError: there is no trace, or a batch cannot be divided among the processes.
    """
    import transformers
    from datasets import Dataset
    from trl import SFTConfig

    if result := read_result(folder, SftResult):
        return result
    if not traces:
        raise LabError("SFT was given no trace to learn from; harvest more, or loosen the filter")
    begin = time.monotonic()
    batch, world = min(settings.batch, len(traces)), place().world
    if batch % world:
        raise LabError(
            f"a batch of {batch} traces cannot be divided among {world} processes; choose an sft_batch that is a multiple of "
            "`processes`" + (f" and not above the number of traces, {len(traces)}" if batch < settings.batch else "")
        )
    steps = max(1, round(settings.epochs * len(traces) / batch))
    order = shuffled_order(range(len(traces)), steps * batch, settings.seed)
    arguments = SFTConfig(
        output_dir=str(folder),
        seed=settings.seed,
        max_steps=steps,
        per_device_train_batch_size=batch // world,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=min(settings.warmup_steps, steps // 2),
        adam_beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
        activation_checkpointing=settings.gradient_checkpointing,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        bf16=str(policy.base.dtype) == "torch.bfloat16",
        use_cpu=policy.device.type == "cpu",
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        **sharing(policy, settings.sharding),
    )
    keep_vision_whole(policy, arguments)

    callback: Any = transformers.TrainerCallback  # its annotations do not foresee overrides

    class Tell(callback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
            if on_step is not None and "loss" in logs and state.is_world_process_zero:
                on_step({"step": state.global_step, **logs})

    checkpoint = newest_checkpoint(folder)
    expect(source, [traces[index].qid for index in order[step_of(checkpoint) * batch :]])
    with old_names():
        trainer = trainer_class()(
            model=policy.model,
            args=arguments,
            train_dataset=Dataset.from_list([traces[index]._asdict() for index in order]),
            processing_class=policy.tokenizer,
            data_collator=functools.partial(collate, policy, source),
            callbacks=[Tell(), stop_callback()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        require_sharding(trainer)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    names = ("step", "loss", "grad_norm", "learning_rate")
    rows = [{name: float(row[name]) for name in names} for row in trainer.state.log_history if "loss" in row]
    result = SftResult(trainer.state.global_step, rows, round(time.monotonic() - begin, 1))
    end_stage(policy, result, folder)
    return result


def collate(policy: Policy, source: Mapping[str, Prompt], rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Model inputs of a batch of traces, padded behind; labels are -100 everywhere but on the completions."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids, labels, positions = [], [], []
    prompts = [source[row["qid"]] for row in rows]
    for prompt, row in zip(prompts, rows, strict=True):
        text = policy.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        completion = torch.tensor([*text, policy.tokenizer.eos_token_id])
        whole, places = with_completion(prompt, completion)
        ids.append(whole)
        labels.append(torch.cat([torch.full_like(prompt.ids, -100), completion]))
        positions.append(places.T)
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=policy.pad_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "position_ids": pad_sequence(positions, batch_first=True).permute(2, 0, 1).contiguous(),
        **vision_kwargs(prompts, policy.device),
    }


@functools.cache
def trainer_class() -> Any:
    """`SFTTrainer` that takes its rows in the order given: they were shuffled in a way that a resumed run repeats."""
    import trl
    from torch.utils.data import SequentialSampler

    sft_trainer: Any = resumable(trl.SFTTrainer)

    class VideoSFTTrainer(sft_trainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset if dataset is None else dataset)

    return VideoSFTTrainer
