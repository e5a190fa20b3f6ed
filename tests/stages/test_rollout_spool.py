"""Rollouts outside of memory: what one thread asks for is not what another one has asked for."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from labkit.stages.rollout_spool import RolloutSpool
from labkit.stages.rollouts import UNPAID, Rollout


def rollout(sample: int) -> Rollout:
    return Rollout(
        run="x", stage="distill", step=1, qid="q", sample=sample, seed=0, checkpoint="grpo", text="text", status="ok",
        **UNPAID, prompt_tokens=1, completion_tokens=1, finished=True,
    )  # fmt: skip


def test_a_thread_reads_what_it_asked_for_whatever_another_reads_between_any_two_lines() -> None:
    spool, before = RolloutSpool(), sys.gettrace()
    spool.extend([rollout(0), rollout(1)])
    spool.extend([rollout(2), rollout(3)])

    def elsewhere(frame: FrameType, event: str, value: Any) -> Any:
        if frame.f_code is RolloutSpool.take.__code__:
            assert [found.sample for found in spool.take([2, 3])] == [2, 3]
            return elsewhere
        return None

    sys.settrace(elsewhere)
    try:
        found = list(spool.take([0, 1]))
    finally:
        sys.settrace(before)
    assert [each.sample for each in found] == [0, 1]
