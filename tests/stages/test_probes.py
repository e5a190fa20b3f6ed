"""Probe queries are asked while a stage trains, and change nothing of it."""

from __future__ import annotations

import pytest
import torch

from labkit.policy.model import load_policy
from labkit.stages.evaluate import evaluate
from labkit.stages.rollouts import RolloutStore
from tests.stages import small


@pytest.mark.slow
def test_probes_change_no_bit_of_the_training(source, moments, tmp_path):
    """Neither a weight nor a sampled chain, nor a number that is drawn afterwards."""
    ends = {}
    for every in (0, 2):
        torch.manual_seed(0)
        policy = load_policy("embedded", device="cpu")
        folder = tmp_path / str(every)
        small.train_grpo(policy, source, moments, folder, grpo_steps=3, beta=0.04, probe_every=every)
        ends[every] = small.weights(policy), RolloutStore(folder / "rollouts").read(), torch.rand(4).tolist()
    (without, first, drawn), (with_probes, second, also_drawn) = ends.values()
    assert all(torch.equal(without[name], with_probes[name]) for name in without)
    assert first == second and drawn == also_drawn
    assert not (tmp_path / "0" / "probes").exists(), "off is off"


@pytest.mark.slow
def test_what_is_recorded_is_what_an_evaluation_answers(source, moments, tmp_path):
    """Before the first step the start's answers, after the last one those of the final model; nothing is paid."""
    start, policy = (load_policy("embedded", device="cpu") for _ in range(2))
    small.train_grpo(policy, source, moments, tmp_path, grpo_steps=3, probe_every=2, run="probed")
    probed = RolloutStore(tmp_path / "probes").read()
    assert [each.step for each in probed] == [step for step in (0, 1, 2, 3) for _ in range(3)]
    assert [each.qid for each in probed] == [moment.qid for moment in moments[:3]] * 4
    for step, model in ((0, start), (3, policy)):
        answers = evaluate(model, source, moments[:3], max_new_tokens=24).rollouts
        assert [each.text for each in probed if each.step == step] == [each.text for each in answers]
        assert [each.question for each in probed if each.step == step] == [each.question for each in answers]
    assert {(each.run, each.stage, each.seed) for each in probed} == {("probed", "grpo", 7)}
    assert all(each.total != each.total for each in probed), "NaN: nothing is paid"
