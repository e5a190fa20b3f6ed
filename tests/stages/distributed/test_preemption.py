"""Training that is asked to stop saves the step that it is at, and a rerun ends as if it had never been asked."""

import os
import signal

import pytest
import torch

from labkit.errors import Stopped
from labkit.policy.model import load_policy
from labkit.stages.checkpoints import COMPLETE
from labkit.stages.distributed.preemption import handle_preemption, stop_requested
from tests.stages import small
from tests.stages.small import distance, weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "changes"),
    [
        (small.train_grpo, {"grpo_steps": 4, "stop_anchor_rate": 1.0, "stop_progress": 1.0}),
        (small.train_sft, {"sft_epochs": 1.0}),
    ],
    ids=["grpo", "sft"],
)
def test_training_asked_to_stop_loses_no_step(policy, source, moments, tmp_path, train, changes):
    changes = {**changes, "save_steps": 100}  # no checkpoint but the one that is asked for
    heard, folder, start = [], tmp_path / "run", weights(policy)

    def ask_after_the_first(row):
        heard.append(row["step"])
        if row["step"] == 1:
            os.kill(os.getpid(), signal.SIGUSR2)

    with handle_preemption(tmp_path / ".stop"):
        with pytest.raises(Stopped, match="stopped as asked after step 2, which is saved"):
            train(policy, source, moments, folder, on_step=ask_after_the_first, **changes)
        assert stop_requested()
    assert heard == [1, 2] and (folder / "checkpoint-2" / COMPLETE).exists() and not (folder / "final").exists()

    resumed, whole = load_policy("embedded", device="cpu"), load_policy("embedded", device="cpu")
    result = train(resumed, source, moments, folder, on_step=lambda row: heard.append(row["step"]), **changes)
    expected = train(whole, source, moments, tmp_path / "whole", **changes)
    assert heard == list(range(1, expected.steps + 1)) and result.steps == expected.steps > 2
    ours, theirs = weights(resumed), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and distance(start, theirs) > 0.1
