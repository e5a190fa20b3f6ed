"""Grounded question answering through the stages: options reach the reader, the rewards, the figures and the records."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.chain.anchors import parse, render
from labkit.chain.question_answering import answering_figures
from labkit.chain.rewards import TERMS, RewardSpec
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.world import write_world
from labkit.policy.model import load_policy
from labkit.stages.completions import score_completion
from labkit.stages.evaluate import evaluate
from labkit.stages.grpo_steps import recorded_figures, reward_terms, step_figures
from labkit.stages.harvest import harvest
from labkit.stages.rollouts import RolloutStore
from tests.stages import small

TRUTH = Span(10.0, 20.0)
PLAIN = Moment("p", "/v.mp4", "it opens", (TRUTH,), 60.0)
ASKED = Moment("a", "/v.mp4", "what opens?", (TRUTH,), 60.0, options=("a door", "a box"), choice=1)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("questions"), 3, 1, 1, task="gqa")["train"]


@pytest.fixture
def answerer():
    return load_policy("embedded-gqa", device="cpu")


@pytest.fixture
def asked(answerer, questions, tmp_path_factory):
    return small.source(answerer, questions, tmp_path_factory.getbasetemp() / "frames", max_frames=24)


def sampled(moment: Moment, option: int | None, sample: int = 0):
    text = render([Span(0.0, 40.0), Span(5.0, 25.0)], TRUTH, option=option)
    return score_completion(moment, sample, text, 9, True, RewardSpec(), step=1)


def test_a_completion_is_read_with_its_moments_options():
    assert sampled(ASKED, 1).chain.status == "ok"
    assert sampled(ASKED, 1).rewards.terms["option"] == 1.0
    assert sampled(ASKED, 2).chain.status == "bad_option", "there are two"
    assert sampled(PLAIN, 1).chain.status == "extra_text", "there are none"
    assert sampled(PLAIN, None).rewards.terms["option"] == 0.0


def test_the_option_is_a_term_only_where_there_are_options():
    assert reward_terms([PLAIN, ASKED]) == TERMS
    assert reward_terms([PLAIN]) == TERMS[:-1] == ("format", "answer", "anchors", "progress")


def test_figures_of_a_step_count_options_where_there_are_any():
    plain = step_figures([sampled(PLAIN, None), sampled(PLAIN, None, 1)], 2)
    assert not {"reward_option", "acc_qa", "acc_gqa"} & set(plain)
    mixed = step_figures([sampled(ASKED, 1), sampled(ASKED, 0, 1), sampled(PLAIN, None), sampled(PLAIN, None, 1)], 2)
    assert (mixed["reward_option"], mixed["acc_qa"], mixed["acc_gqa"], mixed["miop"]) == (0.25, 0.5, 0.5, 1.0)
    assert {key: value for key, value in mixed.items() if key in plain and key.startswith("iou_")}["iou_answer"] == 1.0


@given(st.lists(st.sampled_from([None, 0, 1]), min_size=2, max_size=6))
def test_the_right_option_is_all_that_tells_equal_chains_apart(options):
    totals = [sampled(ASKED, option, number).rewards.total for number, option in enumerate(options)]
    assert (
        all((total == max(totals)) == (option == 1) for total, option in zip(totals, options, strict=True))
        or 1 not in options
    )


@pytest.mark.slow
def test_a_stage_is_paid_for_options_and_records_them(answerer, asked, questions, tmp_path):
    result = small.train_grpo(answerer, asked, questions, tmp_path / "run", grpo_steps=2, max_new_tokens=48)
    rollouts = RolloutStore(tmp_path / "run" / "rollouts").read()
    moments = {moment.qid: moment for moment in questions}
    for rollout in rollouts:
        chain = parse(rollout.text, finished=rollout.finished, options=4)
        assert rollout.status == chain.status
        assert rollout.reward_option == (chain.option == moments[rollout.qid].choice)
        terms = sum(small.SPEC.weights[term] * getattr(rollout, f"reward_{term}") for term in TERMS)
        assert rollout.total == pytest.approx(terms)
    first = [rollout for rollout in rollouts if rollout.step == 1]
    assert result.history[0]["reward_option"] == sum(rollout.reward_option for rollout in first) / len(first)
    assert result.history[0]["acc_qa"] == result.history[0]["reward_option"]
    again = recorded_figures(rollouts, moments, small.SPEC, 4)
    assert again[1]["reward_option"] == result.history[0]["reward_option"]
    # What the update used: within a group, advantages rank as the totals do, the option among them.
    for begin in range(0, len(first), 4):
        group = sorted(first[begin : begin + 4], key=lambda rollout: rollout.total)
        assert [r.advantage for r in group] == sorted(r.advantage for r in group)


def test_a_harvest_reads_options(answerer, asked, questions, tmp_path):
    store = RolloutStore(tmp_path)
    harvest(
        answerer, asked, questions[:4], store, spec=small.SPEC, samples=2, temperature=1.0, max_new_tokens=48, seed=0,
        run="small",
    )  # fmt: skip
    moments = {moment.qid: moment for moment in questions}
    for rollout in store.read():
        chain = parse(rollout.text, finished=rollout.finished, options=4)
        assert (rollout.status, rollout.reward_option) == (chain.status, chain.option == moments[rollout.qid].choice)


def test_an_evaluation_says_how_often_the_right_option_was_chosen(answerer, asked, questions):
    found = evaluate(answerer, asked, questions, max_new_tokens=64)
    chains = [parse(rollout.text, finished=rollout.finished, options=4) for rollout in found.rollouts]
    assert [rollout.status for rollout in found.rollouts] == [chain.status for chain in chains]
    windows, choices = [m.windows for m in questions], [m.choice for m in questions]
    assert found.figures.items() >= answering_figures(chains, windows, choices).items()
    assert found.figures["option_rate"] > 0.9, "the base keeps to the form"
