"""The harvest's filter: which traces are kept, and the reason for each of the others."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.params import DEFAULTS, Params
from labkit.stages import harvest as module
from labkit.stages.completions import Provenance
from labkit.stages.harvest import REASONS, FilterCount, draw_traces, filter_traces, merge_shards
from labkit.stages.rollouts import JOINED, Rollout, RolloutStore
from tests.stages import small

# Truth 10 to 20 s of 40 s: IoU 0.25 for 0-40, 0.5 for 5-25, 2/3 for 10-25, 1 for 10-20.
WIDE, ROUGH, NEAR, TRUE, OFF = Span(0, 40), Span(5, 25), Span(10, 25), Span(10, 20), Span(30, 35)
MOMENTS = {qid: Moment(qid, "/v.mp4", "a door opens", (TRUE,), 40.0) for qid in ("q1", "q2")}
GOOD = render([ROUGH, NEAR], TRUE)


def trace(text: str, qid: str = "q1", sample: int = 0, step: int = 0, finished: bool = True) -> Rollout:
    return Rollout(
        run="x", stage="distill", step=step, qid=qid, sample=sample, seed=0, checkpoint="grpo", text=text, status="ok",
        reward_format=1.0, reward_answer=1.0, reward_anchors=1.0, reward_progress=1.0, total=1.0, advantage=0.0,
        prompt_tokens=1, completion_tokens=1, finished=finished,
    )  # fmt: skip


def reason(text: str, params: Params = DEFAULTS, finished: bool = True) -> str:
    harvest = filter_traces([trace(text, finished=finished)], MOMENTS, params)
    return next(iter(harvest.reasons.values()), "kept")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (GOOD, "kept"),
        (render([WIDE, ROUGH, NEAR], TRUE), "kept"),
        (render([ROUGH, NEAR], NEAR), "kept"),  # an answer that stays with the last anchor is no step back
        ("nothing of the form", "unparsed"),
        (render([ROUGH, NEAR], None), "unparsed"),
        (GOOD.replace("10.0 to 20.0", "soon"), "unparsed"),  # an answer without a span
        (GOOD + " and so on", "format"),  # text behind the answer
        (GOOD.replace("</timestamp>", "", 1), "format"),  # an anchor that is not closed
        (render([], TRUE), "too few anchors"),
        (render([NEAR], TRUE), "too few anchors"),
        (render([WIDE, ROUGH, Span(6, 25), NEAR, Span(10, 22)], TRUE), "too many anchors"),
        (render([NEAR, ROUGH], TRUE), "not progressive"),  # the anchors move away
        (render([ROUGH, ROUGH], TRUE), "not progressive"),  # a copy is no step
        (render([ROUGH, NEAR], ROUGH), "not progressive"),  # the answer steps back
        (render([OFF, Span(36, 40)], TRUE), "not progressive"),  # two misses are equal: both have no overlap
        (render([OFF, Span(0, 39)], WIDE), "not progressive"),
        (render([OFF, WIDE], TRUE), "not progressive"),  # what starts at a miss has not narrowed
        (render([ROUGH, Span(5, 24.9)], TRUE), "not progressive"),  # 0.503 after 0.5: a near copy is no step
        (render([ROUGH, Span(6, 25)], TRUE), "not progressive"),  # 0.526 after 0.5: half of the least gain
        (render([ROUGH, Span(7, 25)], TRUE), "kept"),  # 0.556
        (render([Span(10.02, 19.98), Span(10.01, 19.99)], TRUE), "not progressive"),  # near copies of the answer
        (render([WIDE, Span(0, 31)], Span(0, 30)), "answer off"),  # IoU 0.33 of at least 0.5
    ],
)
def test_reason_of_one_trace(text, wanted):
    assert reason(text) == wanted


def test_a_trace_cut_off_behind_its_answer_is_not_kept():
    assert reason(GOOD, finished=False) == "format"


def test_the_answer_may_just_reach_the_limit():
    assert reason(render([Span(0, 39), Span(0, 30)], ROUGH)) == "kept"  # IoU 0.5, the limit
    assert reason(render([Span(0, 39), Span(0, 30)], ROUGH), DEFAULTS.replace(min_answer_iou=0.51)) == "answer off"


def test_spans_are_cut_to_the_video_as_in_the_metrics():
    # 10 to 400 s is 10 to 40 s of this video: IoU 1/3, better than 0.25.
    assert reason(render([WIDE, Span(10, 400)], TRUE)) == "kept"


def test_the_best_of_several_windows_counts():
    moments = {"q1": replace(MOMENTS["q1"], windows=(Span(30, 40), TRUE))}
    assert filter_traces([trace(GOOD)], moments).size == 1
    assert len(filter_traces([trace(GOOD)], moments).kept) == 1


def test_the_control_without_anchors_keeps_plain_answers():
    params = DEFAULTS.replace(min_anchors=0)
    assert reason(render([], TRUE), params) == "kept"
    assert reason(render([], WIDE), params) == "answer off"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (render([ROUGH, NEAR], TRUE, option=2), "kept"),
        (render([ROUGH, NEAR], TRUE, option=1), "wrong option"),
        (render([ROUGH, NEAR], TRUE), "format"),  # no option
        (render([ROUGH, NEAR], TRUE, option=2) + "<option>C</option>", "format"),
        (
            render([WIDE, Span(0, 31)], Span(0, 30), option=1),
            "answer off",
        ),  # of two faults the first one that is looked for
    ],
)
def test_a_kept_trace_chooses_the_right_option(text, wanted):
    moments = {"q1": replace(MOMENTS["q1"], options=("a", "b", "c", "d"), choice=2)}
    harvest = filter_traces([trace(text)], moments)
    assert next(iter(harvest.reasons.values()), "kept") == wanted
    assert [each.reason for each in harvest.filter_counts] == [*REASONS, "kept"]


def test_the_best_trace_of_a_query_is_kept_not_the_first():
    near, best = render([WIDE, ROUGH], NEAR), GOOD
    harvest = filter_traces([trace(near, sample=0), trace(best, sample=1)], MOMENTS, DEFAULTS.replace(max_per_query=1))
    assert [each.sample for each in harvest.kept] == [1]
    assert harvest.reasons == {("q1", 0, 0): "over the limit per query"}


def test_of_equal_answers_the_one_that_narrows_to_it_is_kept_not_the_one_that_was_there_before():
    there, narrows = render([ROUGH, TRUE], TRUE), render([ROUGH, NEAR], TRUE)
    harvest = filter_traces(
        [trace(there, sample=0), trace(narrows, sample=1)], MOMENTS, DEFAULTS.replace(max_per_query=1)
    )
    assert [each.sample for each in harvest.kept] == [1]


def test_equal_traces_leave_the_earliest_and_count_as_duplicates():
    harvest = filter_traces(
        [
            trace(GOOD, sample=1),
            trace(GOOD.replace(" ", "  "), sample=2),
            trace(GOOD, sample=0),
            trace(GOOD, qid="q2"),
        ],
        MOMENTS,
        DEFAULTS.replace(max_per_query=3),
    )
    assert [each.key for each in harvest.kept] == [(0, "q1", 0), (0, "q2", 0)]
    assert set(harvest.reasons.values()) == {"duplicate"}


def test_the_filter_counts_name_every_reason_and_ends_with_what_is_kept():
    texts = [GOOD, "nothing", render([], TRUE), render([NEAR, ROUGH], TRUE)]
    harvest = filter_traces([trace(text, sample=i) for i, text in enumerate(texts)], MOMENTS)
    assert [each.reason for each in harvest.filter_counts] == [r for r in REASONS if r != "wrong option"] + ["kept"]
    assert [each for each in harvest.filter_counts if each.traces] == [
        FilterCount("unparsed", 1),
        FilterCount("too few anchors", 1),
        FilterCount("not progressive", 1),
        FilterCount("kept", 1),
    ]
    assert harvest.figures()["harvested"] == 4
    assert harvest.figures()["yield"] == 0.25


def test_traces_at_random_are_as_many_as_the_filter_keeps_and_may_be_bad_but_not_broken():
    texts = [
        GOOD,
        "nothing",
        GOOD + " and so on",
        render([], OFF),
        render([], OFF),
        render([NEAR, ROUGH], TRUE),
        render([], WIDE),
    ]
    rollouts = [trace(text, sample=i) for i, text in enumerate(texts)]
    filtered = filter_traces(rollouts, MOMENTS)
    seen = set()
    for seed in range(30):
        drawn = draw_traces(rollouts, filtered, seed)
        assert len(drawn.kept) == len(filtered.kept) == 1 and drawn.size == len(rollouts)
        assert drawn == draw_traces(rollouts[::-1], filtered, seed), "the order does not matter"
        seen |= {each.sample for each in drawn.kept}
    assert seen == {0, 3, 5, 6}
    assert drawn.filter_counts == [
        FilterCount("unparsed", 1), FilterCount("format", 1), FilterCount("duplicate", 1), FilterCount("not drawn", 3),
        FilterCount("kept", 1),
    ]  # fmt: skip


def test_no_traces_give_an_empty_harvest():
    harvest = filter_traces([], MOMENTS)
    assert (harvest.kept, harvest.size, harvest.figures()["yield"]) == ([], 0, 0.0)


def test_an_unknown_query_and_a_doubled_rollout_are_refused():
    with pytest.raises(LabError, match=r"\('q9', 0, 0\).* not in the moments file"):
        filter_traces([trace(GOOD, qid="q9")], MOMENTS)
    with pytest.raises(LabError, match=r"\('q1', 0, 0\).* came twice"):
        filter_traces([trace(GOOD), trace(GOOD)], MOMENTS)


spans = st.tuples(st.integers(0, 38), st.integers(1, 40)).map(lambda pair: Span(min(pair), max(*pair, min(pair) + 1)))
texts = st.one_of(
    st.sampled_from([GOOD, "nothing", GOOD + "x"]),
    st.builds(render, st.lists(spans, max_size=6), st.one_of(st.none(), spans)),
)


@given(
    harvested=st.lists(st.tuples(texts, st.sampled_from(["q1", "q2"])), max_size=20),
    most=st.integers(1, 3),
    shuffle=st.randoms(use_true_random=False),
)
def test_nothing_is_lost_and_the_order_does_not_matter(harvested, most, shuffle: random.Random):
    rollouts = [trace(text, qid, sample) for sample, (text, qid) in enumerate(harvested)]
    params = DEFAULTS.replace(max_per_query=most)
    harvest = filter_traces(rollouts, MOMENTS, params)
    counted = sum(each.traces for each in harvest.filter_counts)
    assert len(harvest.kept) + len(harvest.reasons) == len(rollouts) == counted
    assert {(each.qid, each.sample, each.step) for each in harvest.kept}.isdisjoint(harvest.reasons)
    assert all(sum(each.qid == qid for each in harvest.kept) <= most for qid in MOMENTS)
    shuffle.shuffle(rollouts)
    assert filter_traces(rollouts, MOMENTS, params) == harvest


def test_a_store_is_filtered_as_it_is_read(tmp_path):
    texts = [GOOD, render([NEAR, ROUGH], TRUE), render([], TRUE), "nothing", render([WIDE, ROUGH], NEAR)]
    store = RolloutStore(tmp_path)
    for step in (1, 2, 3):
        store.write(step, [trace(text, "q1" if step == 1 else "q2", i, step) for i, text in enumerate(texts)])
    assert filter_traces(store.stream(), MOMENTS) == filter_traces(store.read(), MOMENTS)


SAMPLES = 2


def harvest(policy, source, moments, folder, **changes) -> RolloutStore:
    store = RolloutStore(folder)
    asked = {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": 8, "seed": 3, "run": "x", "spec": small.SPEC}
    module.harvest(policy, source, moments, store, **asked | changes)
    return store


def part_of(moments, part) -> list[Rollout]:
    asked = moments[4 * part - 4 : 4 * part]
    return [trace("x", moment.qid, sample, part) for moment in asked for sample in range(SAMPLES)]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PROMPTS_PER_PART", 4)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_a_harvest_and_end_with_that_of_one(policy, source, moments, tmp_path, small_parts, processes):
    alone = harvest(policy, source, moments, tmp_path / "alone")
    heard = []
    for rank in reversed(range(processes)):
        shared = harvest(
            policy,
            source,
            moments,
            tmp_path / "shared",
            shard=(rank, processes),
            on_part=lambda *told: heard.append(told),
        )
    assert heard[-1] == (len(moments), len(moments)), "progress is told of all processes together"
    assert not (shared.folder / JOINED).exists(), "the others may still be writing"
    merge_shards(shared, moments, SAMPLES)
    assert [path.name for path in shared.folder.iterdir()] == [JOINED]
    assert shared.read() == alone.read() and shared.provenances() == alone.provenances()
    assert shared.cpu_seconds() > 0 < alone.cpu_seconds()


def test_a_harvest_that_was_broken_off_samples_only_what_is_missing(
    policy, source, moments, tmp_path, small_parts, monkeypatch
):
    alone, heard, asked = harvest(policy, source, moments, tmp_path / "alone"), [], []

    def interrupt(done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(policy, source, moments, tmp_path / "broken", on_part=interrupt)
    real = module.generate
    monkeypatch.setattr(
        module, "generate", lambda p, prompts, *a, **k: asked.extend(prompts) or real(p, prompts, *a, **k)
    )
    again = harvest(policy, source, moments, tmp_path / "broken", on_part=lambda done, _: heard.append(done))
    assert [prompt.qid for prompt in asked] == [moment.qid for moment in moments[8:]]
    assert heard[:2] == [8, 12] and heard[-1] == len(moments), "what was there is told first"
    assert again.read() == alone.read()
    asked.clear()
    harvest(policy, source, moments, tmp_path / "broken")
    assert asked == []


def test_a_harvest_of_another_provenance_is_not_mixed_in(policy, source, moments, tmp_path, small_parts):
    harvest(policy, source, moments, tmp_path, shard=(0, 2))
    with pytest.raises(LabError, match="seed: there 3, here 4.*; remove the folder"):
        harvest(policy, source, moments, tmp_path, seed=4)
    with pytest.raises(LabError, match="part 1 of .* does not hold 2 traces of each of the queries"):
        harvest(policy, source, moments[1:], tmp_path)
    store = RolloutStore(tmp_path)
    with pytest.raises(LabError, match=r"lacks 2 of 4 parts of the harvest \(number 2 first\); run the harvest again"):
        merge_shards(store, moments, SAMPLES)
    for part in (2, 4):
        store.write(part, part_of(moments, part), {**store.provenances()[0], "weights": "others"})
    with pytest.raises(LabError, match="weights: there 'others'"):
        merge_shards(store, moments, SAMPLES)


def test_frame_sampling_is_recorded_as_by_earlier_versions_whose_stores_are_continued(policy, source):
    prompts = Provenance.of(policy, source, max_new_tokens=4).prompts
    assert prompts == "query, Sampling(fps=1.0, max_frames=16, min_pixels=3136, max_pixels=3136), FrameCache"


def test_a_harvest_from_before_provenance_was_recorded_is_read(policy, source, moments, tmp_path, small_parts):
    store = RolloutStore(tmp_path)
    for part in (1, 2, 3, 4):
        store.write(part, part_of(moments, part))
    before = store.read()
    assert harvest(policy, source, moments, tmp_path).read() == before


def test_thirty_thousand_traces_are_filtered_quickly():
    moments = {f"q{i}": replace(MOMENTS["q1"], qid=f"q{i}") for i in range(3750)}
    texts = [GOOD, render([NEAR, ROUGH], TRUE), render([], TRUE), "nothing", GOOD + "x", render([WIDE, ROUGH], NEAR)]
    rollouts = [trace(texts[(i + s) % len(texts)], f"q{i}", s) for i in range(3750) for s in range(8)]
    begin = time.process_time()
    harvest = filter_traces(rollouts, moments)
    # 1 s where nothing else runs; the limit is for a machine that is busy with other tests.
    assert time.process_time() - begin < 6
    assert harvest.size == 30_000
