"""Every wrong chain has one class, the classes hold what they say, and the atlas counts them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.chain.anchors import AnchorChain, parse, render
from labkit.chain.metrics import chain_figures, chain_ious
from labkit.chain.spans import Span, union
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.views.figures.failures import KINDS, MEANINGS, atlas, by_failure, failure_kind
from labkit.views.measured_chains import MeasuredChain, measure_chains

TRUTH = [Span(10, 20)]
"""The truth of every case, in a clip of 40 seconds."""


@dataclass(frozen=True)
class Record:
    qid: str
    text: str
    stage: str = "base"
    status: str = "ok"


def text(*spans: tuple[float, float]) -> str:
    """Anchors, then the answer."""
    *anchors, answer = (Span(*span) for span in spans)
    return render(anchors, answer)


CASES = [
    # right
    ("", text((0, 40), (5, 25), (10, 20)), "answer 10 to 20: IoU 1"),
    ("", text((10, 15)), "IoU 5/10 reaches 0.5 with equality, as R1@0.5 counts it"),
    ("", text((5, 25), (5, 25), (5, 25)), "copies, but IoU 10/20 is right: what is right has no class"),
    ("", "<answer>10 to 20</answer>", "the form is broken, the answer is right"),
    # nothing to judge
    ("cut_off!", "<think>I see <timestamp>10 to 20</timestamp> and", "the limit came inside the thought"),
    ("cut_off!", "<think></think><answer>10 to", "the limit came inside the answer"),
    ("no_answer", "", "a policy that wrote nothing"),
    ("no_answer", "<think><timestamp>10 to 20</timestamp></think>", "finished, and no answer behind a right anchor"),
    ("no_answer", "<think></think><answer>20 to 10</answer>", "what stands in the answer is no span"),
    # behind the end, the clip has 40 s
    ("past_the_end", text((10, 20), (41, 45)), "the whole answer; that an anchor was right comes second"),
    ("past_the_end", text((36, 46)), "middle 41: most of it"),
    ("past_the_end", text((42, 44), (50, 60)), "cut to the clip both are nothing, but they are no copies of each other"),
    # copies
    ("copied_anchor", text((0, 40), (22, 30), (22, 30)), "answer = last anchor"),
    ("copied_anchor", text((0, 40), (0, 40), (22, 30)), "anchor 2 = anchor 1"),
    ("copied_anchor", text((30, 40), (30, 47)), "cut to the clip the answer is the anchor"),
    ("copied_anchor", text((10, 20), (0, 40), (0, 40)), "anchor 1 was right, but the answer is a copy: that comes first"),
    ("copied_anchor", text((50, 60), (50, 60), (30, 35)), "behind the end too, an equal anchor is a copy"),
    ("copied_anchor", text((0, 40), (22, 30), (22.1, 29.9)), "answer near the last anchor: IoU 7.8/8"),
    ("copied_anchor", text((22, 30), (0, 40), (22, 30)), "back to the first anchor"),
    # right, then left
    ("right_then_left", text((0, 40), (10, 20), (12, 16)), "IoU 1, then 4/10"),
    ("right_then_left", text((5, 25), (30, 35)), "IoU 10/20, then 0"),
    # the right event
    ("wrong_extent", text((0, 40)), "10/40: far too long, and without an anchor"),
    ("wrong_extent", text((0, 40), (0, 30), (13, 16)), "3/10: too short"),
    ("wrong_extent", text((16, 26)), "4/16: too late"),
    ("wrong_extent", text((16, 43)), "past the end by 3 s, but most of it lies inside"),
    ("too_many_spans", "<think></think><answer>10 to 14, 30 to 36</answer>", "4/16: of two spans one is of nothing"),
    # the wrong place
    ("narrowed_elsewhere", text((0, 40), (25, 39), (30, 35)), "40 s to 5 s, away from the truth"),
    ("narrowed_elsewhere", text((21, 30), (20, 28)), "8 s after 9 s; touching the truth at 20 is not meeting it"),
    ("narrowed_elsewhere", text((41, 60), (50, 58), (30, 35)), "two anchors behind the end are no copies"),
    ("never_narrowed", text((30, 35)), "no anchor: nothing to narrow"),
    ("never_narrowed", text((30, 35), (25, 35)), "5 s to 10 s: it got wider"),
    ("never_narrowed", text((30, 35), (22, 27)), "as long as before, only somewhere else"),
    ("never_narrowed", text((30, 35), (22, 26.9)), "a tenth of a second shorter is as long as before"),
    ("never_narrowed", text((36, 50), (22, 26)), "in the clip the first anchor has 4 s, as the answer: no narrower"),
]  # fmt: skip


def read(text: str, kind: str = "") -> AnchorChain:
    return parse(text, finished=not kind.endswith("!"))


def measured(texts: Iterable[tuple[str, bool]]) -> list[MeasuredChain]:
    """Texts, each with whether it was cut off, held against the truth in a clip of 40 s."""
    records = [Record("q", text, status="cut_off" if cut else "ok") for text, cut in texts]
    return measure_chains(records, {"q": Moment("q", "/v.mp4", "it opens", tuple(TRUTH), 40.0)})


def kind_of(chain: AnchorChain, windows: Sequence[Span], right: float = 0.5) -> str:
    moment = Moment("q", "/v.mp4", "it opens", tuple(windows), 40.0)
    ious = [] if chain.answer is None else chain_ious(chain, windows, 40.0)
    return failure_kind(MeasuredChain(Record("q", chain.text), moment, chain, ious), right=right)


@pytest.mark.parametrize(("kind", "text", "reason"), CASES)
def test_a_chain_is_named_by_what_went_wrong_first(kind: str, text: str, reason: str) -> None:
    assert kind_of(read(text, kind), TRUTH) == kind.rstrip("!"), reason


def test_the_table_has_every_class() -> None:
    assert {kind.rstrip("!") for kind, _, _ in CASES} == {"", *KINDS} - {"too_few_spans"}, (
        "of a truth that happens once"
    )


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("", "10 to 20, 32 to 38", "16 of 20 s"),
        ("too_few_spans", "12 to 18", "6 of 20 s, one of two"),
        ("too_many_spans", "10 to 12, 14 to 16, 30 to 32", "6 of 20 s, three of two"),
        ("wrong_extent", "10 to 13, 30 to 33", "6 of 20 s, as many as there are"),
        ("never_narrowed", "22 to 24, 26 to 28", "neither"),
        ("past_the_end", "22 to 24, 50 to 60", "most of its seconds lie behind the end"),
    ],
)
def test_of_what_happens_twice_a_span_too_few_or_too_many_has_a_class(kind: str, answer: str, reason: str) -> None:
    truth = union([Span(10, 20), Span(30, 40)])
    assert kind_of(read(f"<think></think><answer>{answer}</answer>"), [truth]) == kind, reason


def test_a_text_cut_off_behind_its_answer_is_judged_by_the_answer() -> None:
    assert kind_of(parse("<think></think><answer>10 to 20</answer> and", finished=False), TRUTH) == ""
    assert kind_of(parse("<think></think><answer>30 to 35</answer> and", finished=False), TRUTH) == ("never_narrowed")


def test_of_several_windows_the_best_one_counts() -> None:
    windows = [Span(0, 5), Span(30, 40)]
    assert kind_of(read(text((0, 20), (29, 39))), windows) == ""
    # the anchor was right about the first window, the answer meets the second a little: 2/14
    assert kind_of(read(text((0, 4), (26, 32))), windows) == "right_then_left"


def test_what_is_right_is_a_matter_of_the_threshold() -> None:
    chain = read(text((0, 40), (10, 16)))  # IoU 0.6
    assert [kind_of(chain, TRUTH, right=m) for m in (0.3, 0.6, 0.7)] == ["", "", "wrong_extent"]


def count(chains: Iterable[MeasuredChain], **right: float) -> dict[str, int]:
    return {kind: len(found) for kind, found in by_failure(chains, **right).items()}


def test_counts_have_a_place_for_every_class_and_lose_no_chain() -> None:
    counts = count(measured((text, kind.endswith("!")) for kind, text, _ in CASES))
    assert list(counts) == ["", *KINDS] and sum(counts.values()) == len(CASES)
    assert counts[""] == 4 and counts["cut_off"] == 2 and counts["right_then_left"] == 2
    assert set(count([]).values()) == {0}


def test_the_atlas_classes_each_chain_once(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = measured((text, kind.endswith("!")) for kind, text, _ in CASES)
    classed: list[MeasuredChain] = []

    def counted(chain: MeasuredChain, **named: Any) -> str:
        classed.append(chain)
        return failure_kind(chain, **named)

    monkeypatch.setattr("labkit.views.figures.failures.failure_kind", counted)
    atlas({"sft": [each.record for each in chains]}, {each.moment.qid: each.moment for each in chains})
    assert len(classed) == len(CASES)


spans = st.tuples(st.integers(0, 50), st.integers(1, 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(st.lists(st.lists(spans, min_size=1, max_size=4), min_size=1, max_size=8), st.sampled_from([0.3, 0.5, 0.7]))
def test_the_share_of_right_chains_is_r1(chains: list[list[tuple[int, int]]], right: float) -> None:
    measured_chains = measured((text(*chain), False) for chain in chains)
    counts = count(measured_chains, right=right)
    rows = ([TRUTH] * len(chains), [40.0] * len(chains))
    figures = chain_figures([each.chain for each in measured_chains], *rows)
    assert counts[""] / len(chains) == pytest.approx(figures[f"r1@{right}"])


pieces = st.sampled_from(
    [*"0123. ", " to ", "<think>", "</think>", "<answer>", "</answer>", "<timestamp>", "</timestamp>"]
)


@given(st.lists(pieces, max_size=30).map("".join), st.booleans())
def test_any_text_has_exactly_one_class(text: str, finished: bool) -> None:
    assert kind_of(parse(text, finished=finished), TRUTH) in ("", *KINDS)


MOMENTS = {qid: Moment(qid, f"/videos/{qid}.mp4", "the door opens", (Span(10, 20),), 40.0) for qid in "abcd"}


def test_the_atlas_has_a_panel_a_stage_and_a_row_for_each_class_that_occurs() -> None:
    records = [
        Record("a", text((10, 20))), Record("b", text((0, 40))), Record("c", text((0, 40))), Record("d", ""),
        Record("a", text((10, 20)), "grpo_final"), Record("b", text((10, 20), (30, 35)), "grpo_final"),
    ]  # fmt: skip
    fig = atlas(records, MOMENTS)
    base, final = (trace for trace in fig.data if trace.type == "bar")
    # rows: no answer, right then left, wrong extent
    assert list(base.x) == [25, 0, 50] and list(base.text) == ["1", "0", "2"]
    assert list(final.x) == [0, 50, 0] and list(final.text) == ["0", "1", "0"]
    notes = [note.text for note in fig.layout.annotations]
    assert notes[:2] == ["<b>base</b><br>75 % of 4 wrong", "<b>grpo_final</b><br>50 % of 2 wrong"]
    assert notes[2:] == [
        f"<b>{kind.replace('_', ' ')}</b>  {MEANINGS[kind]}"
        for kind in ("no_answer", "right_then_left", "wrong_extent")
    ]
    alt = fig.layout.meta["alt"]
    assert "Most often in grpo_final, among 1 wrong: 'right then left'." in alt
    assert "No chain falls into: cut off, past the end, copied anchor, narrowed elsewhere, never narrowed." in alt


def test_the_atlas_says_so_when_nothing_is_wrong_or_nothing_is_there() -> None:
    assert "of 1 chain every answer reaches IoU 0.5" in (
        atlas([Record("a", text((10, 20)))], MOMENTS).layout.title.subtitle.text
    )
    assert "there are no chains" in atlas([], MOMENTS).layout.title.subtitle.text


def test_the_atlas_tells_every_class_once_a_row_of_panels() -> None:
    runs = {f"run {k}": [Record("a", text((0, 40)))] for k in range(7)}
    fig = atlas(runs, MOMENTS)
    assert sum("wrong extent" in note.text for note in fig.layout.annotations) == 2
    assert len({trace.xaxis for trace in fig.data if trace.type == "bar"}) == 7


@pytest.mark.parametrize("name", ["<a href=x>run</a>", "$x$", "%{x}"])
def test_labels_are_data(name: str) -> None:
    shown = atlas({name: [Record("a", "")]}, MOMENTS).to_plotly_json()["layout"]
    assert name not in str(shown["annotations"]) + str(shown["title"])
    assert html.escape(name, quote=False).replace("$", "&#36;").replace("%{", "&#37;{") in str(shown["annotations"])


@pytest.mark.parametrize("hostile", ["<think>" + "<timestamp>1 to 2</timestamp>" * 500, text((0, 1e300))])
def test_any_record_gives_an_atlas_that_plotly_can_write(hostile: str) -> None:
    written = atlas([Record("a", hostile)], MOMENTS).to_json()
    assert "Infinity" not in written and "NaN" not in written


def test_an_atlas_grows_by_a_few_bytes_a_chain() -> None:
    small, large = (len(atlas([Record("a", text((0, 40)))] * n, MOMENTS).to_json()) for n in (10, 2000))
    assert large - small < 3 * 1990, "a bit for the bar and one for its end"


def test_a_record_of_an_unknown_query_is_named() -> None:
    with pytest.raises(LabError, match="qid 'lost', which is not among the 4 moments"):
        atlas([Record("lost", "")], MOMENTS)
