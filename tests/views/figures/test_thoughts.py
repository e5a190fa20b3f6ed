"""The figure of true words holds the shares that it claims, beside what chance would give."""

from __future__ import annotations

from labkit.embedded.true_words import KINDS
from labkit.views import true_words


def figures(**true: float | None) -> dict[str, float | None]:
    found: dict[str, float | None] = {"n": 579.0, "distinct_thoughts": 4.0}
    for kind in KINDS:
        share = true.get(kind)
        known = share is not None
        found |= {f"true_{kind}": share, f"said_{kind}": 579.0 * known, f"chance_{kind}": 0.25 if known else None}
    return found


def test_each_kind_shows_its_share_its_count_and_chance() -> None:
    fig = true_words({"grpo_final": figures(place=0.256, shape=0.8), "base": figures(place=0.238)})
    shown = {
        (trace.xaxis, trace.y[0]): (round(trace.x[0], 1), trace.text[0])
        for trace in fig.data
        if trace.type == "scatter"
    }
    assert shown == {
        ("x", 1): (80.0, "80.0 of 579"),
        ("x2", 0): (23.8, "23.8 of 579"),
        ("x2", 1): (25.6, "25.6 of 579"),
    }
    assert [trace.x[0] for trace in fig.data if trace.type == "bar"] == [25.0] * 3
    assert list(fig.layout.yaxis.ticktext) == ["base", "grpo_final"], "in the order of the stages"
    assert sum(note.text == "none said" for note in fig.layout.annotations) == 1, (
        "kinds that nobody says are not shown"
    )
    assert "base 4 of 579" in fig.layout.title.subtitle.text


def test_where_no_simulator_knows_nothing_is_shown() -> None:
    assert "Nothing to show" in true_words({"base": {"miou": 0.5}}).layout.title.subtitle.text
    assert "Nothing to show" in true_words({}).layout.title.subtitle.text


def test_labels_are_data() -> None:
    fig = true_words({"<a href=x>run</a>": figures(place=0.2)})
    written = fig.update_layout(meta=None).to_json()  # the words for viewers that draw nothing, which are plain text
    assert "&lt;a href" in written and "\\u003ca href" not in written and "<a href" not in written
