"""Terms of a user's own through the stages: paid, recorded, counted, and named where they fail."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.rewards import OwnValue, RewardSpec, score_chain, score_moment
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.own_code import load
from labkit.param_fields import RewardParams
from labkit.params import DEFAULTS
from labkit.stages.completions import score_completion
from labkit.stages.harvest import filter_traces
from labkit.stages.rollouts import RolloutStore
from labkit.views.explorer.packing import pack
from labkit.views.figures.training import harvest_funnel, reward_lines, training_curves
from labkit.views.measured_chains import measure_chains
from tests.stages import small

REFERENCE, FILTER = "tests/own_terms.py:boundary", "tests/own_terms.py:short_thoughts"
OWN = load(REFERENCE, small.ROOT, {})
SPEC = RewardSpec.of(RewardParams(rewards={REFERENCE: 0.5}), own=[OWN])
MOMENT = Moment("q", "/v.mp4", "a door opens", (Span(2.0, 6.0),), 16.0)


def spec_of(text: str, folder: Path, name: str = "term") -> RewardSpec:
    (folder / "a.py").write_text(text)
    return RewardSpec.of(RewardParams(rewards={f"a.py:{name}": 1.0}), own=[load(f"a.py:{name}", folder, {})])


def test_an_own_term_is_paid_beside_the_built_in_ones():
    chain = parse(render([Span(0.0, 8.0)], Span(3.0, 6.0)))
    plain, paid = score_chain(chain, MOMENT.windows, MOMENT.duration), score_moment(chain, MOMENT, SPEC)
    assert paid.terms == plain.terms | {"boundary": 0.875}  # one border of two is 1 s away: 1 - 4 * 0.5 / 16
    assert paid.total == pytest.approx(plain.total + 0.5 * 0.875, abs=1e-12)
    assert paid.reasons["boundary"] == "borders 0.5 s away on average"
    assert score_moment(chain, MOMENT, RewardSpec()) == plain
    with pytest.raises(ValueError, match="boundary needs the moment"):
        score_chain(chain, MOMENT.windows, MOMENT.duration, SPEC)


def test_a_question_whose_truth_nobody_has_told_is_paid_by_nobody():
    with pytest.raises(ValueError, match="no ground-truth window"):
        score_moment(parse(""), Moment("q", "/v.mp4", "a door opens", (), 16.0), RewardSpec())


def test_a_spec_from_a_file_takes_what_was_recorded_and_asks_nobody():
    there = RewardSpec(**SPEC.as_dict())
    assert there == SPEC and there.own[0].function is None and there.terms[-1] == "boundary"
    chain = parse(render([], Span(3.0, 6.0)))
    assert score_moment(chain, MOMENT, there, recorded={"boundary": OwnValue(0.25, "then")}).terms["boundary"] == 0.25
    assert math.isnan(score_moment(chain, MOMENT, there).total)


def test_training_pays_records_and_counts_an_own_term(policy, source, moments, tmp_path):
    result = small.train_grpo(policy, source, moments, tmp_path, spec=SPEC, grpo_steps=1)
    store, asked = RolloutStore(tmp_path / "rollouts"), {moment.qid: moment for moment in moments}
    rollouts = store.read()
    for each in rollouts:
        chain = parse(each.text, finished=each.finished)
        expected = score_moment(chain, asked[each.qid], SPEC)
        assert each.own == {"boundary": OwnValue(expected.terms["boundary"], expected.reasons["boundary"])}
        assert each.total == expected.total and each.spec == SPEC
    mean = sum(each.own["boundary"].value for each in rollouts) / len(rollouts)
    assert result.history[0]["reward_boundary"] == pytest.approx(mean, abs=1e-9)
    frame = store.frame()
    assert frame["reason_boundary"].str.contains("on average|no answer").all() and "reward_boundary" in frame
    group = [each.total for each in rollouts if each.qid == rollouts[0].qid]
    assert (rollouts[0].advantage > 0) == (rollouts[0].total > sum(group) / len(group))
    figure = training_curves(rollouts, asked)
    assert "boundary" in [trace.name for trace in figure.data] and "reward_boundary" in reward_lines(result.history)
    packed = json.loads(gzip.decompress(pack(measure_chains(rollouts, asked)).data))
    assert packed["terms"] == ["format", "answer", "anchors", "progress", "boundary"]
    assert packed["weights"][0]["boundary"] == 0.5 and set(packed["columns"]["weighed"]) == {1}
    reasons = [packed["names"]["reason"][row[-1]] for row in packed["columns"]["reasons"]]
    assert reasons == [each.own["boundary"].reason for each in rollouts]


def test_stores_with_and_without_own_terms_are_read_together(tmp_path):
    def written(step: int, spec: RewardSpec):
        scored = score_completion(MOMENT, 0, render([], Span(3.0, 6.0)), 9, True, spec, step=step)
        return scored.rollout(
            run="x", stage="grpo", step=step, seed=0, checkpoint="b", advantage=0.0, prompt_tokens=1, spec=spec
        )

    store = RolloutStore(tmp_path)
    both = [written(1, RewardSpec()), written(2, SPEC)]
    for each in both:
        store.write(each.step, [each])
    assert store.read() == both and [each.spec for each in store.read()] == [RewardSpec(), SPEC]
    store.compact()
    assert [each.own for each in store.read()] == [{}, {"boundary": OwnValue(0.875, "borders 0.5 s away on average")}]
    assert store.newest() == both[1:] and len(set(store.read())) == 2
    assert store.frame()["reward_boundary"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return None if len(calls) > 1 else 0", "returned None; return a finite number"),
        ("return 10**400 if len(calls) > 1 else 0", "returned 1000"),  # more than a float holds
        ("return float('inf') if len(calls) > 1 else 0", "returned inf; return"),
        ("return 1 / (len(calls) - 2)", "raised ZeroDivisionError: division by zero (line 4 of a.py)"),
    ],
)
def test_a_term_that_fails_later_names_itself_and_the_chain(tmp_path, body, says):
    spec = spec_of(f"calls = []\ndef term(*_):\n    calls.append(1)\n    {body}\n", tmp_path)
    score_completion(MOMENT, 0, "", 1, True, spec, step=7)
    with pytest.raises(LabError, match=re.escape(f"reward 'a.py:term', chain of qid q, step 7, sample 3: {says}")):
        score_completion(MOMENT, 3, "", 1, True, spec, step=7)


@pytest.mark.slow
def test_a_term_that_fails_ends_training(policy, source, moments, tmp_path):
    spec = spec_of("calls = []\ndef term(*_):\n    calls.append(1)\n    return 1 / (2 - len(calls))\n", tmp_path)
    with pytest.raises(LabError, match=r"reward 'a.py:term', chain of qid \S+, step 1, sample 1: raised ZeroDivision"):
        small.train_grpo(policy, source, moments, tmp_path / "run", spec=spec, grpo_steps=1)
    assert not (tmp_path / "run" / "final").exists()


def test_an_own_filter_is_a_rule_of_the_funnel_with_its_count(tmp_path):
    texts = [render([], Span(2.0, 6.0), ["so " * words]) for words in (1, 40, 2)]
    traces = [
        score_completion(MOMENT, sample, text, 9, True, SPEC, step=1).rollout(
            run="x", stage="distill", step=1, seed=0, checkpoint="b", advantage=0.0, prompt_tokens=1, spec=SPEC
        )
        for sample, text in enumerate([*texts, "no chain"])
    ]
    params = DEFAULTS.replace(min_anchors=0)
    harvest = filter_traces(traces, {"q": MOMENT}, params, [load(FILTER, small.ROOT, {})])
    counts = {each.reason: each.traces for each in harvest.filter_counts}
    assert (counts["short thoughts"], counts["unparsed"], counts["kept"]) == (1, 1, 2)
    assert list(counts).index("short thoughts") == list(counts).index("duplicate") - 1
    assert harvest.reasons["q", 1, 1] == "short thoughts" and harvest.figures()["dropped: short thoughts"] == 1
    assert "short thoughts" in harvest_funnel(harvest.filter_counts).layout.yaxis.ticktext
    (tmp_path / "b.py").write_text("def late(chain, moment, rollout):\n    return rollout.sample\n")
    with pytest.raises(
        LabError, match="filter 'b.py:late', trace of qid q, step 1, sample 0: returned 0; return True"
    ):
        filter_traces(traces, {"q": MOMENT}, params, [load("b.py:late", tmp_path, {})])
