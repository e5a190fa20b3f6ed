"""What a model might have answered about a film, for tests of asked questions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labkit.asker import AskedChains
from labkit.chain.anchors import parse
from labkit.data.moments import Moment
from labkit.params import Params
from labkit.stages.rollouts import UNPAID, Rollout


def asked_chains(folder: Path, texts: Sequence[str]) -> AskedChains:
    """The texts as a model's chains about the 8 seconds of `folder`/film.mp4; the first is the greedy one."""
    moment = Moment("asked", str(folder / "film.mp4"), "a door opens", (), 8.0)
    rollouts = [
        Rollout(
            run="", stage="standin", step=0, qid="asked", sample=sample, seed=0, checkpoint="standin", text=text,
            status=parse(text).status, **UNPAID, prompt_tokens=1, completion_tokens=9, finished=True,
        )
        for sample, text in enumerate(texts)
    ]  # fmt: skip
    return AskedChains(moment, rollouts, Params(), folder / "sheets")
