"""Tasks: what is done with a model, by the notebook's own process or, share by share, by several workers.

A task finds on disk what earlier work has left, and leaves there what comes of it: whoever asked for it reads it there, and
what was broken off goes on. Workers call the same task together; each does its share, rank 0 writes what belongs to all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from labkit.stages.distributed.launch import place, wait
from labkit.stages.distributed.preemption import heeding

if TYPE_CHECKING:
    from labkit.lab import Lab
    from labkit.policy.model import Policy

Tell = Callable[[dict[str, Any]], None]
"""Takes what a task reports: plain data, so that it can be said from one process to another."""


def train_grpo(lab: Lab, policy: Policy, tell: Tell, *, stage: str) -> None:
    """Train `grpo` or `grpo_final`; tells the `row` of each step, and the `rows` of steps that were taken before."""
    from labkit.stages import grpo

    grpo.train_grpo(
        policy, lab.source(policy, "train"), lab.moments("train"), spec=lab.rewards(stage == "grpo_final"),
        params=lab.params, stage=stage, folder=lab.stage_folder(stage),
        on_step=lambda row: tell({"row": row}), on_resume=lambda rows: tell({"rows": rows}),
    )  # fmt: skip


def train_sft(lab: Lab, policy: Policy, tell: Tell, *, traces: Sequence[Sequence[str]]) -> None:
    """Train on traces, (qid, text) each; tells the `row` of each step."""
    from labkit.stages import sft

    clips = {moment.qid: f"{moment.video} {moment.clip}" for moment in lab.moments("train")}
    sft.train_sft(
        policy, lab.source(policy, "train"), [sft.Trace(*trace) for trace in traces], params=lab.params,
        folder=lab.stage_folder("sft"), on_step=lambda row: tell({"row": row}),
        clips=clips if lab.params.pack_clips else None,
    )  # fmt: skip


def harvest(lab: Lab, policy: Policy, tell: Tell) -> None:
    """Sample chains of the harvested queries; tells how many queries are `done`."""
    from labkit.stages.harvest import join_traces, sample_traces

    p, here, moments, store = lab.params, place(), lab.harvested_moments(), lab.rollouts("distill")
    sample_traces(
        policy, lab.source(policy, "train"), moments, store, spec=lab.rewards(), samples=p.harvest_samples,
        temperature=p.temperature, max_new_tokens=p.max_new_tokens, seed=p.seed, run=p.run,
        on_part=heeding(lambda done, total: tell({"what": "harvest", "done": done})), share=(here.rank, here.world),
    )  # fmt: skip
    wait()
    if here.world > 1 and here.rank == 0:
        join_traces(store, moments, p.harvest_samples)


def evaluate(lab: Lab, policy: Policy, tell: Tell, *, notebook: str, asked: Sequence[Sequence[str]]) -> None:
    """Ask the test split: `asked` holds the name to keep the result under, the decoding, and which frames are shown.

    Tells how many queries are `done`. See `Lab.source` for the frames.
    """
    for what, decoding, frames in asked:
        _ask(lab, policy, tell, notebook, what, decoding, frames)


def _ask(lab: Lab, policy: Policy, tell: Tell, notebook: str, what: str, decoding: str, frames: str) -> None:
    from labkit.stages.evaluate import evaluate, read_evaluation

    p, here, moments = lab.params, place(), lab.moments("test")
    answers = lab.folder(notebook) / "answers" / what
    evaluate(
        policy, lab.source(policy, "test", frames), moments, greedy=decoding == "greedy", temperature=p.temperature,
        max_new_tokens=p.max_new_tokens, batch_size=p.eval_batch, seed=p.seed, folder=answers,
        share=(here.rank, here.world),
        on_batch=heeding(lambda done: tell({"what": f"evaluation, {decoding}", "done": done})),
    )  # fmt: skip
    wait()

    def plain() -> dict[str, Any]:
        found = read_evaluation(answers, moments)
        rows = [(each.qid, each.text, each.status) for each in found.predictions]
        return {"figures": found.figures, "predictions": rows}

    if here.rank == 0:
        lab.keep(notebook, what, plain)


TASKS: dict[str, Callable[..., None]] = {
    "train_grpo": train_grpo,
    "train_sft": train_sft,
    "harvest": harvest,
    "evaluate": evaluate,
}
"""By the name that a job gives."""
