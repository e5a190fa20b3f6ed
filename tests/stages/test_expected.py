"""Every stage tells the source which prompts it will ask for, so that readers may decode their clips meanwhile."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from labkit.data.video.frames import FrameCache
from labkit.policy.inputs import FrameSampling, Prompt
from labkit.policy.prompt_source import PromptSource
from labkit.stages.evaluate import evaluate
from labkit.stages.harvest import harvest
from labkit.stages.rollouts import RolloutStore
from tests.stages import small


class Listening(PromptSource):
    """Keeps what was told and what was asked."""

    told: list[str]
    asked: list[str]

    def prefetch(self, qids: Iterable[str]) -> None:
        self.told, self.asked = list(qids), []

    def __getitem__(self, qid: str) -> Prompt:
        self.asked.append(qid)
        return super().__getitem__(qid)


def _evaluate(policy: Any, source: Any, moments: Any, folder: Path) -> None:
    evaluate(policy, source, moments, max_new_tokens=2, batch_size=4)


def _harvest(policy: Any, source: Any, moments: Any, folder: Path) -> None:
    limits: dict[str, Any] = {"samples": 1, "temperature": 1.0, "max_new_tokens": 2, "seed": 0, "run": "small"}
    harvest(policy, source, moments, RolloutStore(folder), spec=small.SPEC, **limits)


def _sft(policy: Any, source: Any, moments: Any, folder: Path) -> None:
    small.train_sft(policy, source, moments, folder, sft_epochs=1.0)


def _grpo(policy: Any, source: Any, moments: Any, folder: Path) -> None:
    small.train_grpo(policy, source, moments, folder, grpo_steps=2, max_new_tokens=4)


@pytest.mark.parametrize("stage", [_evaluate, _harvest, _sft, _grpo], ids=lambda stage: stage.__name__[1:])
def test_a_stage_asks_for_what_it_told_in_that_order(policy, moments, tmp_path, stage):
    sampling = FrameSampling(1.0, 16, 3136, 3136)
    source = Listening(policy, moments, template="query", sampling=sampling, cache=FrameCache(tmp_path / "frames"))
    stage(policy, source, moments, tmp_path / "stage")
    assert source.asked == source.told and len(source.told) >= 8
