"""Probe queries: the same few moments, asked greedily while a stage of GRPO trains, so that one can watch a query learn.

They come from the validation split: no stage trains on it, and no figure is taken from it. What is answered goes into a rollout
store beside the stage's own, `probes/`, and into nothing else: decoding greedily draws from no random stream, so that the weights
are the same to the last bit with probes and without.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.data.moments import Moment
from labkit.policy.generate import generate
from labkit.policy.inputs import Prompt
from labkit.policy.model import Policy
from labkit.policy.prompt_source import prefetch
from labkit.stages.completions import unpaid_rollout
from labkit.stages.distributed.process_group import all_gather_object, process_rank
from labkit.stages.rollouts import RolloutStore
from labkit.stages.sharding import summon_full_params


def choose_probes(moments: Sequence[Moment], count: int) -> list[Moment]:
    """Up to `count` moments, of as many different videos as there are: the same of a split whatever the seed of a run.

    By a digest of their qids, so that a file's order (by video, or by length) has no say.

    >>> from labkit.chain.spans import Span
    >>> asked = [Moment(f"q{k}", f"/{k // 2}.mp4", "she sits", (Span(1.0, 4.0),), 12.0) for k in range(4)]
    >>> sorted(moment.video for moment in choose_probes(asked, 2)), len(choose_probes(asked, 9))
    (['/0.mp4', '/1.mp4'], 4)
    """
    ordered = sorted(moments, key=lambda moment: hashlib.sha256(moment.qid.encode()).digest())
    first = {moment.video: moment.qid for moment in reversed(ordered)}
    return sorted(ordered, key=lambda moment: first[moment.video] != moment.qid)[:count]


def due(step: int, every: int) -> bool:
    """Whether to ask after this many steps: after none, every so many, and before that after 1, 2, 4, 8 ...: most is learnt early.

    >>> [step for step in range(61) if due(step, 15)]
    [0, 1, 2, 4, 8, 15, 30, 45, 60]
    """
    return step % every == 0 or (step < every and step & (step - 1) == 0)


@dataclass(frozen=True, slots=True)
class Probes:
    """What is asked while a stage trains, and where the answers go."""

    moments: Sequence[Moment]
    source: Mapping[str, Prompt]
    store: RolloutStore
    every: int
    """Steps between two times of asking; see `due`. After the last step they are asked, too."""
    batch: int
    """Queries that are answered together."""

    def ask(self, policy: Policy, step: int, max_new_tokens: int, names: Mapping[str, Any]) -> None:
        """Answer all and write them as `step`: the updates that the policy has seen.

        Several processes take a share each; all of them must call it, since a sharded model needs all to decode.
        """
        here = process_rank()
        mine = self.moments[here.rank :: here.world_size]
        prefetch(self.source, [moment.qid for moment in mine])
        answered = []
        with summon_full_params(policy.model):
            for begin in range(0, len(mine), self.batch):
                asked = mine[begin : begin + self.batch]
                prompts = [self.source[moment.qid] for moment in asked]
                completions = generate(policy, prompts, max_new_tokens=max_new_tokens, greedy=True)
                answered += [
                    unpaid_rollout(*each, step=step, **names) for each in zip(asked, prompts, completions, strict=True)
                ]
        rollouts = all_gather_object(answered)
        if here.rank == 0:
            places = {moment.qid: place for place, moment in enumerate(self.moments)}
            self.store.write(step, sorted(rollouts, key=lambda each: places[each.qid]))


def probe_callback(probes: Probes, policy: Policy, max_new_tokens: int, names: Mapping[str, Any]) -> Any:
    """A callback for a `transformers.Trainer` that asks probes; give it behind those that may end the training."""
    import transformers

    callback: Any = transformers.TrainerCallback  # its annotations do not foresee overrides

    class AskProbes(callback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            first, step = process_rank().rank == 0, state.global_step
            if first:
                probes.store.truncate(step)
            # Only rank 0 looks: the others might see an older state of the folder, and then not ask along.
            known = all_gather_object(probes.store.steps() if first else [])
            if step not in known and (due(step, probes.every) or step >= state.max_steps):
                probes.ask(policy, step, max_new_tokens, names)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Before a checkpoint of this step is written, which would not ask again.
            if control.should_training_stop or due(state.global_step, probes.every):
                probes.ask(policy, state.global_step, max_new_tokens, names)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if process_rank().rank == 0:
                probes.store.compact()

    return AskProbes()
