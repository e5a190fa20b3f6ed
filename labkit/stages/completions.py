"""A completion: what it depends on, how the parser reads it, what it earns, its record, and figures of many.

What completions depend on, their provenance, is written beside them (`labkit.stages.rollouts`), so that those of other weights, or of
another decoding, are an error and never mixed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import chain_figures
from labkit.chain.question_answering import answering_figures
from labkit.chain.rewards import TERMS, OwnValue, RewardBreakdown, RewardSpec, score_moment
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.policy.generate import Completion
from labkit.policy.inputs import Prompt
from labkit.stages.rollouts import UNPAID, Rollout

if TYPE_CHECKING:
    from labkit.policy.model import Policy


UNSHARDED = (0, 1)
"""The shard of a process that does all the work: number 0 of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What decides what is answered to a question. Two agree when all but the policy's name is equal."""

    policy: str
    """The name that the policy was loaded under, for people."""
    weights: str
    """`weights_digest` of the policy."""
    prompts: str
    """Template, and how videos are looked at; empty where the source of the prompts does not say."""
    max_new_tokens: int
    temperature: float | None = None
    """None for greedy decoding, which has neither a temperature nor a seed."""
    seed: int | None = None
    samples: int = 1
    """Completions of each question."""

    @classmethod
    def of(
        cls, policy: Policy, source: Mapping[str, Prompt], *, max_new_tokens: int, temperature: float | None = None,
        seed: int | None = None, samples: int = 1, forbid: str = "",
    ) -> Provenance:  # fmt: skip
        """Of what `policy` would answer to prompts of `source`, where it cannot write what is to `forbid`."""
        from labkit.policy.prompt_source import PromptSource
        from labkit.policy.prompts import template_label
        from labkit.policy.variants import VariantPrompts

        prompts, changed = "", f", without {forbid!r}" if forbid else ""
        if isinstance(source, VariantPrompts):
            changed = f", variants {source.digest()}{changed}"
            source = source.source
        if isinstance(source, PromptSource):
            # As stores of earlier versions, which are continued, call and have it.
            sampling = repr(source.sampling).removeprefix("Frame").replace(", total_pixels=0", "")
            prompts = f"{template_label(source.template)}, {sampling}, {type(source.cache).__name__}"
        return cls(
            policy=policy.name, weights=weights_digest(policy), prompts=prompts + changed, max_new_tokens=max_new_tokens,
            temperature=temperature, seed=seed, samples=samples,
        )  # fmt: skip

    def note(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def require(self, note: Mapping[str, Any], where: Path) -> None:
        """Raise LabError, which names each difference, unless what was noted in the folder `where` agrees with this."""
        here = self.note()
        names = [name for name in here if name != "policy" and note.get(name) != here[name]]
        if names:
            there = "; ".join(f"{name}: there {note.get(name)!r}, here {here[name]!r}" for name in names)
            raise LabError(
                f"'{where}' holds completions of another policy or decoding, of policy {note.get('policy')!r} ({there}); "
                "remove the folder to ask again, or give another one"
            )


def weights_digest(policy: Policy) -> str:
    """Sixteen letters that are others once any bit of a policy's weights is, and equal on every device.

    Each weight is read as a whole number, and summed: exact, so that no rounding depends on device or threads.
    """
    import torch

    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest = hashlib.sha256()
    for name, weight in sorted(policy.model.named_parameters()):
        bits = weight.detach().contiguous().view(whole[weight.element_size()])
        # By pieces: torch would otherwise copy an embedding of gigabytes to eight bytes a weight.
        total = sum(int(piece.sum(dtype=torch.int64)) for piece in bits.flatten().split(1 << 24))
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)} {total}".encode())
    return digest.hexdigest()[:16]


def question_digest(moment: Moment) -> str:
    """Sixteen letters that are others once what a moment asks is: its query, options, video by name, or clip.

    The windows that answer it don't count, and neither does the folder that the videos stand in.

    >>> from labkit.chain.spans import Span
    >>> moment = Moment("q1", "/videos/a.mp4", "she opens the door", (Span(1.0, 4.0),), 12.0)
    >>> moved = dataclasses.replace(moment, video="/other/a.mp4", windows=(Span(2.0, 4.0),))
    >>> question_digest(moved) == question_digest(moment) != question_digest(dataclasses.replace(moment, query="she"))
    True
    """
    clip = moment.clip and (moment.clip.start, moment.clip.end)
    asked = (moment.qid, moment.query, moment.options, Path(moment.video).name, clip, moment.duration)
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def require_same_provenance(notes: Sequence[Mapping[str, Any]], where: Path) -> None:
    """Raise LabError, which names each difference, unless all that was noted in the folder `where` agrees."""
    for note in notes[1:]:
        Provenance(**notes[0]).require(note, where)


def shard_ranges(count: int, size: int, shard: tuple[int, int]) -> list[tuple[int, int]]:
    """The ranges [begin, end) of `count` things, `size` at a time, that process `shard[0]` of `shard[1]` works on.

    Ranges do not depend on how many processes there are, so that neither does what is answered.

    >>> shard_ranges(10, 3, (0, 2)), shard_ranges(10, 3, (1, 2))
    ([(0, 3), (6, 9)], [(3, 6), (9, 10)])
    """
    rank, world_size = shard
    if not 0 <= rank < world_size:
        raise ValueError(f"shard {shard}: need 0 <= rank < world_size")
    begins = range(0, count, size)[rank::world_size]
    return [(begin, min(begin + size, count)) for begin in begins]


class ScoredCompletion(NamedTuple):
    """One sampled completion, how the parser reads it and what it earns."""

    moment: Moment
    sample: int
    """Place in the group, from 0."""
    text: str
    tokens: int
    finished: bool
    chain: AnchorChain
    rewards: RewardBreakdown

    def rollout(self, **origin: Any) -> Rollout:
        """The record; `origin` are the fields that say where it comes from and what the update used."""
        values, reasons = self.rewards.terms, self.rewards.reasons
        terms: dict[str, Any] = {f"reward_{term}": values[term] for term in TERMS}
        terms["own"] = {term: OwnValue(values[term], reasons[term]) for term in values if term not in TERMS}
        return Rollout(
            qid=self.moment.qid, sample=self.sample, text=self.text, status=self.chain.status, **terms,
            total=self.rewards.total, completion_tokens=self.tokens, finished=self.finished, **origin,
        )  # fmt: skip


def score_completion(
    moment: Moment,
    sample: int,
    text: str,
    tokens: int,
    finished: bool,
    spec: RewardSpec,
    *,
    step: int,
    recorded: Mapping[str, OwnValue] | None = None,
) -> ScoredCompletion:
    """Parse and score one completion of a step; what own terms said that is `recorded` is not asked again.

    Raises LabError, which names the term and the chain, where an own term fails.
    """
    chain = parse(text, finished=finished, options=len(moment.options))
    rewards = score_moment(chain, moment, spec, f"step {step}, sample {sample}", recorded)
    return ScoredCompletion(moment, sample, text, tokens, finished, chain, rewards)


def unpaid_rollout(
    moment: Moment, prompt: Prompt, completion: Completion, *, step: int = 0, sample: int = 0, **origin: Any
) -> Rollout:
    """The record of a completion that nothing is paid for; `origin` are the fields that say where it comes from."""
    chain = parse(completion.text, finished=completion.finished, options=len(moment.options))
    return Rollout(
        step=step, qid=moment.qid, sample=sample, text=completion.text, status=chain.status, **UNPAID,
        prompt_tokens=len(prompt.ids), completion_tokens=len(completion.ids), finished=completion.finished,
        question=question_digest(moment), **origin,
    )  # fmt: skip


def figures_of_chains(chains: Sequence[AnchorChain], moments: Sequence[Moment]) -> dict[str, float]:
    """Figures of chains, each beside its moment: `chain_figures`, and `answering_figures` where moments have options."""
    windows = [moment.targets for moment in moments]
    figures = chain_figures(chains, windows, [moment.duration for moment in moments])
    return figures | answering_figures(chains, windows, [moment.choice for moment in moments])
