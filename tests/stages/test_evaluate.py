import math
from dataclasses import replace

import pytest
import torch

from labkit.chain.anchors import parse
from labkit.chain.metrics import answer_iou, chain_figures
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.policy.generate import generate
from labkit.stages import evaluate as module
from labkit.stages.completions import weights_digest
from labkit.stages.evaluate import draw_clips, evaluate, in_evaluation_order, read_evaluation
from labkit.stages.rollouts import UNPAID, RolloutStore

SHORT = {"max_new_tokens": 8, "batch_size": 4}


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.slow
def test_rollouts_depend_on_neither_batch_size_nor_order(policy, source, moments, greedy):
    def asked(on, batch_size):
        return evaluate(policy, source, on, greedy=greedy, max_new_tokens=24, batch_size=batch_size, seed=4)

    together, alone = asked(moments, 64), asked(moments, 1)
    assert repr(together) == repr(alone)  # some figures, and all rewards, are NaN
    assert repr(asked(moments[::-1], 5).rollouts) == repr(together.rollouts[::-1])
    assert [rollout.qid for rollout in together.rollouts] == [moment.qid for moment in moments]


def test_another_seed_samples_other_chains(policy, source, moments):
    texts = [
        [each.text for each in evaluate(policy, source, moments, greedy=False, max_new_tokens=24, seed=seed).rollouts]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_figures_are_those_of_the_chains(policy, source, moments):
    found = evaluate(policy, source, moments, max_new_tokens=24)
    chains = [parse(rollout.text) for rollout in found.rollouts]
    expected = chain_figures(chains, [m.windows for m in moments], [m.duration for m in moments])
    assert found.figures["miou"] == expected["miou"] > 0
    ious = [answer_iou(chain, m.windows, m.duration) for chain, m in zip(chains, moments, strict=True)]
    assert found.figures["miou"] == pytest.approx(sum(ious) / len(ious))


def test_a_rollout_of_an_evaluation_says_where_it_comes_from_and_is_not_paid(policy, source, moments):
    found = evaluate(policy, source, moments[:3], max_new_tokens=24, run="x", stage="sft", seed=7)
    for rollout, moment in zip(found.rollouts, moments, strict=False):
        (completion,) = generate(policy, [source[moment.qid]], max_new_tokens=24, greedy=True)
        assert (rollout.run, rollout.stage, rollout.key, rollout.seed) == ("x", "sft", (0, moment.qid, 0), 7)
        assert (rollout.checkpoint, rollout.spec) == (policy.name, None)
        assert rollout.prompt_tokens == len(source[moment.qid].ids) and rollout.completion_tokens == len(
            completion.ids
        )
        assert rollout.status == parse(rollout.text, finished=rollout.finished).status
        assert all(math.isnan(getattr(rollout, name)) for name in UNPAID)


def test_words_are_measured_in_the_embedded_world_and_nowhere_else(policy, source, moments):
    known = evaluate(policy, source, moments, max_new_tokens=24).figures
    assert {"distinct_thoughts", "said_place", "true_place", "chance_place"} <= known.keys()
    elsewhere = [replace(moment, source="films") for moment in moments]
    assert not any(name.startswith(("said_", "true_", "distinct")) for name in evaluate(
        policy, source, elsewhere, max_new_tokens=24).figures)  # fmt: skip


def test_a_chain_that_meets_the_token_limit_is_cut_off(policy, source, moments):
    found = evaluate(policy, source, moments, max_new_tokens=3)
    assert {rollout.status for rollout in found.rollouts} == {"cut_off"}
    assert found.figures["status_cut_off"] == 1.0 and found.figures["miou"] == 0.0


def test_clips_are_drawn_whole_and_by_their_names_alone():
    split = [
        Moment(f"q{clip}-{n}", f"/v/{clip:03}.mp4", "it moves", (Span(1, 2),), 24.0)
        for clip in range(60)
        for n in range(4 - clip % 2)
    ]
    drawn = draw_clips(split, 70)
    assert 70 <= len(drawn) < 70 + 4 and drawn == [moment for moment in split if moment in drawn], (
        "in the split's order"
    )
    assert all((moment.video in {each.video for each in drawn}) == (moment in drawn) for moment in split), (
        "whole clips"
    )
    assert draw_clips(split[::-1], 70) == drawn[::-1]
    moved = [replace(moment, video=f"/elsewhere{moment.video}", query="it stops") for moment in split]
    assert [moment.qid for moment in draw_clips(moved, 70)] == [moment.qid for moment in drawn]
    assert draw_clips(split, len(drawn)) == drawn, "as many as were asked are those that were asked"
    assert {moment.qid for moment in drawn} < {moment.qid for moment in draw_clips(split, 150)}
    assert draw_clips(split, len(split)) == split


def test_progress_is_told_after_each_batch(policy, source, moments):
    heard = []
    evaluate(policy, source, moments, max_new_tokens=2, batch_size=5, on_batch=heard.append)
    assert heard[:2] == [5, 10] and heard[-1] == len(moments)


def test_greedy_evaluation_is_plain_greedy_decoding(policy, source, moments):
    (rollout,) = evaluate(policy, source, moments[:1], max_new_tokens=24).rollouts
    (completion,) = generate(policy, [source[moments[0].qid]], max_new_tokens=24, greedy=True)
    assert rollout.text == completion.text


@pytest.fixture
def asked(monkeypatch):
    """The qids of each batch that a policy is really asked."""
    batches = []

    def watched(policy, prompts, *args, **kwargs):
        batches.append([prompt.qid for prompt in prompts])
        return generate(policy, prompts, *args, **kwargs)

    monkeypatch.setattr(module, "generate", watched)
    return batches


def broken_off(asked, after, *args, **kwargs):
    """Ask, and be interrupted when so many batches are on disk."""

    def interrupt(done):
        if len(asked) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*args, on_batch=interrupt, **kwargs)


@pytest.mark.parametrize("greedy", [True, False])
def test_an_evaluation_that_was_broken_off_asks_only_what_is_missing(policy, source, moments, tmp_path, asked, greedy):
    whole = evaluate(policy, source, moments, greedy=greedy, **SHORT)
    everything, heard = [qid for batch in asked for qid in batch], []
    asked.clear()
    broken_off(asked, 2, policy, source, moments, greedy=greedy, folder=tmp_path, **SHORT)
    again = evaluate(policy, source, moments, greedy=greedy, folder=tmp_path, on_batch=heard.append, **SHORT)
    assert [qid for batch in asked for qid in batch] == everything, "each once"
    assert heard[:2] == [8, 12] and heard[-1] == len(moments), "what was there is told first"
    assert repr(again) == repr(whole)
    asked.clear()
    assert repr(evaluate(policy, source, moments, greedy=greedy, folder=tmp_path, **SHORT)) == repr(whole)
    assert asked == []


@pytest.mark.parametrize(
    ("processes", "broken"),
    [(2, False), (3, False), (2, True), (9, False)],
    ids=["two", "three", "two, after one was killed", "more than batches"],
)
def test_processes_share_an_evaluation_and_end_with_that_of_one(
    policy, source, moments, tmp_path, asked, processes, broken
):
    alone = evaluate(policy, source, moments, **SHORT)
    batches = asked.copy()
    asked.clear()
    if broken:
        broken_off(asked, 1, policy, source, moments, folder=tmp_path, **SHORT)
    heard, shards = [], []
    for rank in reversed(range(processes)):
        shard = (rank, processes)
        shards.append(evaluate(policy, source, moments, folder=tmp_path, shard=shard, on_batch=heard.append, **SHORT))
    assert sorted(asked) == sorted(batches), "the same batches, so that not even rounding differs"
    assert sum(len(shard.rollouts) for shard in shards) == len(moments)
    assert all(shard.figures == {} for shard in shards if not shard.rollouts)
    assert heard[-1] == len(moments), "progress is told of all processes together"
    assert repr(read_evaluation(tmp_path, moments)) == repr(alone)


def test_an_evaluation_that_is_not_whole_is_not_read(policy, source, moments, tmp_path):
    evaluate(policy, source, moments, folder=tmp_path, shard=(0, 2), **SHORT)
    missing = len(moments) - len(RolloutStore(tmp_path).read())
    with pytest.raises(
        LabError, match=f"lacks the answers to {missing} of {len(moments)} questions .*run the evaluation"
    ):
        read_evaluation(tmp_path, moments)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"max_new_tokens": 9}, "max_new_tokens: there 8, here 9"),
        ({"greedy": False}, "temperature: there None, here 1.0; seed: there None, here 0"),
    ],
)
def test_answers_of_another_decoding_are_not_mixed_in(policy, source, moments, tmp_path, changed, named):
    evaluate(policy, source, moments[:4], folder=tmp_path, **SHORT)
    with pytest.raises(LabError, match=named):
        evaluate(policy, source, moments, folder=tmp_path, **SHORT | changed)


def test_answers_of_other_weights_are_not_mixed_in(policy, source, moments, tmp_path):
    evaluate(policy, source, moments[:4], folder=tmp_path / "one", **SHORT)
    before = weights_digest(policy)
    weight = policy.base.lm_head.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))  # the least step of one weight
    assert weights_digest(policy) != before
    with pytest.raises(LabError, match=f"weights: there '{before}', here .*; remove the folder to ask again"):
        evaluate(policy, source, moments[4:], folder=tmp_path / "one", **SHORT)
    evaluate(policy, source, moments[4:], folder=tmp_path / "other", **SHORT)
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "one" / file.name)
    with pytest.raises(LabError, match="weights: there .*, here "):
        read_evaluation(tmp_path / "one", moments)


def test_a_question_that_has_changed_is_asked_again(policy, source, moments, tmp_path, asked):
    evaluate(policy, source, moments[:4], folder=tmp_path, **SHORT)
    asked.clear()
    moved = [replace(moment, video=f"/moved{moment.video}", windows=(Span(0, 1),)) for moment in moments[:4]]
    other = [replace(moved[0], query="something else"), *moved[1:]]
    evaluate(policy, source, other, folder=tmp_path, **SHORT)
    evaluate(policy, source, other, folder=tmp_path, **SHORT)
    assert asked == [[moments[0].qid]], "once"


def test_a_damaged_file_of_answers_is_named(policy, source, moments, tmp_path):
    evaluate(policy, source, moments[:4], folder=tmp_path, **SHORT)
    (tmp_path / ".part-000000-0.parquet.12.tmp").write_text("half")  # what a kill leaves
    assert len(read_evaluation(tmp_path, moments[:4]).rollouts) == 4
    (part,) = tmp_path.glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(LabError, match=f"'{part}' cannot be read .*remove it"):
        read_evaluation(tmp_path, moments[:4])


def test_questions_on_one_clip_are_asked_together_and_the_longest_first():
    def at(qid, video, duration, clip=None):
        return Moment(qid, f"/{video}.mp4", "it opens", (Span(0, 1),), duration, clip)

    early, late = Span(0, 30), Span(50, 80)
    moments = [
        at("a", "v", 20), at("b", "w", 30, late), at("c", "w", 30, early), at("d", "v", 20), at("e", "w", 30, late),
        at("f", "u", 20),
    ]  # fmt: skip
    assert [moment.qid for moment in in_evaluation_order(moments)] == ["c", "b", "e", "f", "a", "d"]
    assert in_evaluation_order(moments[::-1]) == in_evaluation_order(moments)
    with pytest.raises(ValueError, match="2 moments have 1 qids"):
        in_evaluation_order([moments[0], moments[0]])
