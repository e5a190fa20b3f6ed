"""Answers on disk: what a policy said to thousands of questions, a batch at a time, and what they depend on.

Each batch is a file of its own, written whole or not at all, so that a kill costs one batch and several processes write to
one folder without talking to each other. A file says in its first line what its answers depend on: answers of other
weights, or of another decoding, are an error and never mixed in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.files import replacing

if TYPE_CHECKING:
    from labkit.policy.inputs import Prompt
    from labkit.policy.model import Policy

ALONE = (0, 1)
"""The share of work of a process that works alone: number 0 of 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What decides what is answered to a question. Two origins agree when all but the policy's name is equal."""

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
        seed: int | None = None, samples: int = 1,
    ) -> Origin:  # fmt: skip
        """Of what `policy` would answer to prompts of `source`."""
        from labkit.policy.prompt_source import PromptSource

        prompts = ""
        if isinstance(source, PromptSource):
            prompts = f"{source.template}, {source.sampling}, {type(source.cache).__name__}"
        return cls(
            policy=policy.name, weights=weights_digest(policy), prompts=prompts, max_new_tokens=max_new_tokens,
            temperature=temperature, seed=seed, samples=samples,
        )  # fmt: skip

    def note(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self)

    def require(self, note: Mapping[str, Any], where: Path) -> None:
        """Raise LabError, which names each difference, unless what was noted agrees with this origin."""
        here = self.note()
        names = [name for name in here if name != "policy" and note.get(name) != here[name]]
        if names:
            there = "; ".join(f"{name}: there {note.get(name)!r}, here {here[name]!r}" for name in names)
            raise LabError(
                f"'{where}' holds answers of another origin, of policy {note.get('policy')!r} ({there}); "
                "remove the folder to ask again, or give another one"
            )


class Answer(NamedTuple):
    """What was answered to one question."""

    qid: str
    text: str
    finished: bool
    """False when the token limit cut the text off."""
    question: str
    """`question_digest` of the moment that was asked."""


class AnswerStore:
    """A folder of answers of one origin."""

    def __init__(self, folder: str | Path, origin: Origin | None = None) -> None:
        """Nothing is read yet. Without an `origin` any is read, but no two of them, and nothing can be written."""
        self.folder, self.origin = Path(folder), origin
        self._known: dict[str, list[Answer]] = {}
        self._note: dict[str, Any] | None = None

    def read(self, moments: Sequence[Moment]) -> dict[str, Answer]:
        """The answers that are there to these moments, by qid; those of a moment that has changed since don't count.

        Files that were read before are not read again. Raises LabError for a file of another origin, or a damaged one.
        """
        for path in sorted(self.folder.glob("part-*.jsonl")):
            if path.name not in self._known:
                self._known[path.name] = self._read(path)
        asked = {moment.qid: question_digest(moment) for moment in moments}
        found = {
            answer.qid: answer
            for answers in self._known.values()
            for answer in answers
            if asked.get(answer.qid) == answer.question
        }
        return {qid: found[qid] for qid in asked if qid in found}

    def write(self, answers: Sequence[Answer]) -> Path:
        """Write a batch, which appears whole or not at all."""
        if self.origin is None:
            raise ValueError(f"'{self.folder}' was opened without an origin, so that nothing can be written")
        self.folder.mkdir(parents=True, exist_ok=True)
        # Named by what was asked: batches of any size and any process stand side by side.
        digest = hashlib.sha256(repr([answer.qid for answer in answers]).encode()).hexdigest()[:16]
        path = self.folder / f"part-{digest}.jsonl"
        rows = [self.origin.note(), *(answer._asdict() for answer in answers)]
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self._known[path.name] = list(answers)
        return path

    def _read(self, path: Path) -> list[Answer]:
        try:
            note, *rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            answers = [Answer(**row) for row in rows]
        except (ValueError, TypeError) as error:
            raise LabError(f"'{path}' is damaged ({error}); remove it, and what it held is asked again") from error
        if self.origin is not None:
            self.origin.require(note, self.folder)
        if self._note is not None and {**note, "policy": ""} != {**self._note, "policy": ""}:
            raise LabError(
                f"'{self.folder}' holds answers of several origins; remove it, and run the evaluation again"
            )
        self._note = note
        return answers


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
    >>> there = dataclasses.replace(moment, video="/elsewhere/a.mp4", windows=(Span(2.0, 4.0),))
    >>> question_digest(there) == question_digest(moment) != question_digest(dataclasses.replace(moment, query="she"))
    True
    """
    clip = moment.clip and (moment.clip.start, moment.clip.end)
    asked = (moment.qid, moment.query, moment.options, Path(moment.video).name, clip, moment.duration)
    return hashlib.sha256(repr(asked).encode()).hexdigest()[:16]


def parts_of(count: int, size: int, share: tuple[int, int]) -> list[tuple[int, int]]:
    """The stretches [begin, end) of `count` things, `size` at a time, that are process `share[0]` of `share[1]`'s.

    Stretches do not depend on how many processes there are, so that neither does what is answered.

    >>> parts_of(10, 3, (0, 2)), parts_of(10, 3, (1, 2))
    ([(0, 3), (6, 9)], [(3, 6), (9, 10)])
    """
    rank, world = share
    if not 0 <= rank < world:
        raise ValueError(f"share {share}: need 0 <= process < processes")
    begins = range(0, count, size)[rank::world]
    return [(begin, min(begin + size, count)) for begin in begins]
