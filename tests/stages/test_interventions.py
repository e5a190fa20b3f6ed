from dataclasses import replace

import numpy as np
import pytest
import torch

from labkit.chain.anchors import parse
from labkit.chain.edits import closed_thought, forced_anchor
from labkit.chain.spans import Span
from labkit.errors import LabError
from labkit.policy.variants import FrameEdit, Variant, VariantPrompts, edit_frames, frames_within
from labkit.stages.evaluate import evaluate
from labkit.stages.interventions import UNTAGGED, intervene, plan, read_interventions, stretch_elsewhere
from tests import tiny

TWO = "<think>It is late. Near <timestamp>2.0 to 9.0</timestamp>, no <timestamp>3 to 8</timestamp>.</think>\n<answer>3 to 7</answer>"


@pytest.mark.parametrize(
    ("text", "anchors", "begun"),
    [
        (TWO, 0, "<think>It is late.</think>\n<answer>"),  # up to the last sentence, closed as it closes itself
        (TWO, 1, "<think>It is late. Near <timestamp>2.0 to 9.0</timestamp></think>\n<answer>"),
        (TWO, 2, TWO[: TWO.index(".</think>")] + "</think>\n<answer>"),
        ("<think> near 2 </think> <answer> 3 to 7 </answer>", 0, "<think> near 2 </think> <answer>"),  # no anchor
        ("<think><timestamp>1 to 2</timestamp></think><answer>1 to 2</answer>", 0, "<think></think><answer>"),
        ("<think>round and round and", 0, "<think>round and round and</think>\n<answer>"),  # cut off
        ("<think>Late. So <timestamp>9 to 2", 0, "<think>Late.</think>\n<answer>"),  # an anchor that cannot be read
        ("", 0, "<think></think>\n<answer>"),
    ],
)
def test_a_thought_is_closed_before_its_first_anchor_or_behind_a_later_one(text, anchors, begun):
    assert closed_thought(text, anchors) == begun


@pytest.mark.parametrize(
    ("text", "begun"),
    [
        (TWO, "<think>It is late. Near <timestamp>"),  # its own words up to there
        ("<think>It is late.</think><answer>1 to 2</answer>", "<think>It is late. <timestamp>"),
        ("", "<think> <timestamp>"),
    ],
)
def test_an_anchor_is_forced_behind_the_thoughts_own_words(text, begun):
    assert forced_anchor(text) == begun


def test_all_variants_are_asked_once_and_read_back(policy, source, moments, tmp_path):
    """Of a model whose chains have anchors: one is put into each."""
    moments, asked = moments[:3], {"max_new_tokens": 32, "batch_size": 5}
    plain = evaluate(policy, source, moments, max_new_tokens=32).rollouts
    own = [
        replace(each, text=each.text.replace("</think>", "around <timestamp> 3.0 to 9.0 </timestamp> </think>"))
        for each in plain
    ]
    planned, told = plan(own, moments, source.sampling, [-1.0, 1.0]), []
    intervene(policy, source, moments, planned, tmp_path, on_batch=told.append, **asked)
    assert told[-1] == len(planned.texts) + len(planned.frames) + len(moments)
    found = read_interventions(tmp_path, moments, planned)
    assert {"closed", "forced", "cut 1", "last again", "last shift +1", "hide inside, anew", UNTAGGED} <= found.keys()
    for name, rollouts in found.items():
        for qid, rollout in rollouts.items():
            begun = {**planned.texts, **planned.frames}.get(f"{qid}/{name}")
            assert rollout.qid == qid and rollout.text.startswith(begun.begun if begun else "")
    for qid in found[UNTAGGED]:
        assert "<timestamp>" not in found[UNTAGGED][qid].text + found["closed"][qid].text
        assert parse(found["closed"][qid].text).answer and parse(found["forced"][qid].text).anchors, "both are forced"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    intervene(policy, source, moments, planned, tmp_path, **asked)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}, "nothing is asked again"
    gone = min(files)
    gone.unlink()
    with pytest.raises(LabError, match="lacks the answers to"):
        read_interventions(tmp_path, moments, planned)
    intervene(policy, source, moments, planned, tmp_path, **asked)
    assert files.keys() == {*tmp_path.rglob("*.parquet")}
    assert all(path.stat().st_mtime_ns == when for path, when in files.items() if path != gone), (
        "only what is missing is"
    )
    with pytest.raises(LabError, match="completions of another policy or decoding"):
        intervene(policy, source, moments, plan(own, moments, source.sampling, [-2.0, 2.0]), tmp_path, **asked)
    before = source[moments[0].qid]
    edited = VariantPrompts(policy, source, {
        "black": Variant(moments[0].qid, "", FrameEdit("hide", Span(2.0, 4.0))),
        "all": Variant(moments[0].qid, "", FrameEdit("hide", Span(2.0, 4.0), outside=True)),
    })  # fmt: skip
    changed = [(edited[name].features != before.features).any(1).view(before.grid[0], -1).any(1) for name in edited]
    assert (changed[0] ^ changed[1]).all() and 0 < changed[0].sum() < len(changed[0]), "either one or the other"


@pytest.mark.parametrize(
    ("times", "span", "elsewhere"),
    [
        (
            np.arange(10.0),
            Span(1.0, 3.0),
            Span(7.0, 9.0),
        ),  # shifted by pairs, so that it touches as many temporal patches
        (
            np.arange(10.0),
            Span(0.5, 2.5),
            Span(6.0, 9.0),
        ),  # three frames are shown in these two seconds: three elsewhere
        (np.arange(10.0), Span(6.0, 9.5), Span(0.0, 4.0)),
        (np.arange(8.0) / 2, Span(0.0, 1.5), Span(2.0, 3.5)),  # at two frames a second
        (np.arange(10.0), Span(3.0, 8.0), None),  # half of them: no room
    ],
)
def test_as_many_frames_elsewhere(times, span, elsewhere):
    assert stretch_elsewhere(times, span) == elsewhere
    if elsewhere:
        inside, other = (frames_within(times, each) for each in (span, elsewhere))
        assert inside.sum() == other.sum() and not (inside & other).any()


def test_what_fills_up_the_last_patch_is_hidden_with_the_frame_that_it_repeats(tmp_path):
    """Of a clip of five frames, the last one is shown twice, at second 4 both times and not at 4 and 5."""
    policy, moments = tiny.policy(), tiny.moments(tmp_path, clips=1, per_clip=1)
    clip = [replace(moments[0], duration=5.0, windows=(Span(1.0, 2.0),))]
    source = tiny.source(policy, clip, tmp_path)
    assert source.frames_for(clip[0].qid).times.tolist() == [0, 1, 2, 3, 4, 4]
    hide = {
        name: Variant(clip[0].qid, "", FrameEdit("hide", span))
        for name, span in (("last", Span(4, 5)), ("all", Span(0, 5)))
    }
    last, black = (VariantPrompts(policy, source, hide)[name].features.view(3, -1)[-1] for name in hide)
    torch.testing.assert_close(last, black)


@pytest.mark.parametrize(
    ("edit", "order"),
    [
        (FrameEdit("hide", Span(1.0, 2.0)), [0, 1, -1, -1, 4, 5]),
        (FrameEdit("hide", Span(1.0, 2.0), outside=True), [-1, -1, 2, 3, -1, -1]),
        (FrameEdit("hide", Span(1.2, 1.3)), [0, 1, -1, 3, 4, 5]),  # the frame that is shown then
        (FrameEdit("shuffle", Span(1.0, 1.4)), [0, 1, 2, 3, 4, 5]),  # a single one stays
    ],
)
def test_frames_inside_or_outside_a_span_are_edited(edit, order):
    rgb = np.arange(1, 7, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    edited = edit_frames(rgb, np.arange(6) / 2, edit)
    assert edited[:, 0, 0, 0].tolist() == [number + 1 for number in order]


def test_shuffled_frames_all_leave_their_place_and_no_other_moves():
    rgb = np.arange(8, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    order = edit_frames(rgb, np.arange(8.0), FrameEdit("shuffle", Span(2.0, 6.0), outside=True))[:, 0, 0, 0].tolist()
    assert order[2:6] == [2, 3, 4, 5] and sorted(order) == list(range(8))
    assert all(order[k] != k for k in (0, 1, 6, 7))
