import pytest

from labkit.chain.anchors import parse
from labkit.stages.evaluate import evaluate
from labkit.stages.interventions import closed_thought, forced_anchor, with_anchors, without_anchors, without_tag

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


def test_anchors_forbidden_and_forced_give_a_chain_a_moment(policy, source, moments, tmp_path):
    moments, asked = moments[:6], {"max_new_tokens": 48}
    own = evaluate(policy, source, moments, **asked).rollouts
    closed = without_anchors(policy, source, moments, own, folder=tmp_path / "closed", **asked)
    untagged = without_tag(policy, source, moments, folder=tmp_path / "tag", **asked)
    forced = with_anchors(policy, source, moments, own, folder=tmp_path / "forced", **asked)
    for rollouts in (closed, untagged, forced):
        assert [each.qid for each in rollouts] == [each.qid for each in moments]
    assert not any("<timestamp>" in each.text for each in (*closed, *untagged))
    assert all(parse(each.text).answer for each in closed), "an answer is forced"
    for mine, given in zip(own, forced, strict=True):
        assert given.text.startswith(forced_anchor(mine.text)) and parse(given.text).anchors
    plain = [each for each in own if not parse(each.text).anchors]
    assert [each.text for each in plain] == [each.text for each in closed if each.qid in {one.qid for one in plain}]
