"""A report's first page: the score with its interval, what each notebook concluded, and a picture of narrowing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labkit.views.conclusions import Claim, Conclusion
from labkit.views.report.front import FrontPage, notebook_conclusions, tiles
from labkit.views.report.markdown import publish
from labkit.views.report.report import write_report
from tests.executed import PNG, code, failure, figure, notebook, output, run, words

TITLES = {"01_grpo": "One", "04_grpo_final": "Four", "05_analysis": "Five"}
NARROWING = "<b>Do anchors narrow toward the truth?</b>"


def concluded(*claims: Claim) -> Any:
    return code("conclusions.after()", output(text_markdown=Conclusion(claims)._repr_markdown_(), text_plain="yes"))


def a_score(**figures: float) -> dict[str, Any]:
    return {
        "figures": figures,
        "intervals": {name: [value - 0.02, value + 0.02] for name, value in figures.items()},
        "baselines": {"best constant": {"miou": 0.297}},
        "protocol": {"rows": 579, "videos": 150},
    }


SCORES = {"base": a_score(miou=0.528, map=0.1), "grpo_final": a_score(miou=0.731, map=0.2)}
HELD = Claim("They narrow", True, "576 of 579 (99.5 %)")
MISSED = Claim("R1@0.7 has gained at least 25 points", False, "15.7 to 20.1 %, +4.4")
TOLD = Claim("Stage 1 ended", None, "after 92 steps; stopped by condition")


def notebooks() -> dict[str, Any]:
    return {
        "01_grpo": notebook(words("# One"), code("x", output(text_markdown="a table: none")), concluded(TOLD)),
        "04_grpo_final": notebook(
            words("# Four"),
            code("funnel", output(plotly=figure(NARROWING), image_png=PNG, text_plain="older")),
            concluded(HELD, MISSED),
        ),
        "05_analysis": notebook(
            words("# Five"),
            code("funnel", output(plotly=figure("another")), output(plotly=figure(NARROWING), image_png=PNG)),
            concluded(HELD, MISSED, Claim("It needs the query's own frames", True, "73.1 to 25.5")),
        ),
    }


def scored(folder: Path) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stages"]["05_analysis"]["figures"] = {"scores": SCORES}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_answer_stands_above_tables_and_parameters(tmp_path: Path) -> None:
    whole = write_report(scored(run(tmp_path / "r", notebooks())))[-1].read_text(encoding="utf-8")
    order = [
        "<h1>Run r</h1>", "<strong>73.1</strong>", "<span>71.1 to 75.1</span>", "579 queries of 150 videos", "front-05-analysis-0",
        "after 92 steps", "They narrow", "It needs the query", '<dl class="facts">', "Parameters</h2>", "s-chapter-01_grpo\" aria",
    ]  # fmt: skip
    places = [whole.index(each) for each in order]
    assert places == sorted(places), dict(zip(order, places, strict=True))
    assert "base 52.8" in whole and "best constant 29.7" in whole
    assert whole.count("data-plotly>") == 1, "plotly travels once"


def test_what_came_of_a_claim_stands_in_words_and_in_its_class(tmp_path: Path) -> None:
    whole = write_report(run(tmp_path / "r", notebooks()))[-1].read_text(encoding="utf-8")
    front = whole[whole.index('id="s-front"') : whole.index('id="s-summary"')]
    assert '<li class="yes"><strong>Yes.</strong> They narrow: <span>576 of 579 (99.5 %)</span></li>' in front
    assert '<li class="no"><strong>No.</strong> R1@0.7 has gained at least 25 points: <span>15.7' in front
    assert '<li class="">Stage 1 ended: <span>after 92 steps' in front
    assert front.count("They narrow") == 1, "what two notebooks conclude alike stands there once"
    assert "mailto" not in whole


def test_a_page_of_one_notebook_has_no_first_page(tmp_path: Path) -> None:
    assert 'id="s-front"' not in write_report(run(tmp_path / "r", notebooks()))[0].read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (code("x", output(text_plain="3")), "the last cell shows something else"),
        (code("x", failure("LabError", "no", "trace")), "it stopped there"),
        (words("the end"), "no cell was run"),
    ],
)
def test_a_notebook_without_conclusion_says_nothing_and_hides_nothing(tmp_path: Path, last: Any, why: str) -> None:
    made = {"01_grpo": notebook(words("# One"), last)}
    assert notebook_conclusions(made, TITLES) == [], why
    whole = write_report(run(tmp_path / "r", made))[-1].read_text(encoding="utf-8")
    assert 'id="s-front"' not in whole and '<dl class="facts">' in whole


def test_a_run_that_was_not_scored_has_no_tiles() -> None:
    assert tiles({}) == []
    front = FrontPage.of(notebooks(), TITLES, {})
    assert front.tiles == [] and len(front.conclusions) == 3 and front.picture is not None
    assert front.picture.title == "Five", "the newest picture"


def test_figures_without_interval_or_base_are_shown_as_they_are() -> None:
    alone = {"grpo_final": {**SCORES["grpo_final"], "intervals": {"miou": [None, None]}, "baselines": {}}}
    assert tiles(alone) == [("mIoU", "73.1", "", [])]


def test_what_a_notebook_concluded_can_run_nothing(tmp_path: Path) -> None:
    hostile = "- **Yes.** <script>hit()</script>: <img src=x onerror=hit()>\n- [x](javascript:hit())"
    made = {"01_grpo": notebook(code("x", output(text_markdown=hostile)))}
    whole = write_report(run(tmp_path / "r", made))[-1].read_text(encoding="utf-8")
    front = whole[whole.index('id="s-front"') : whole.index('id="s-summary"')]
    assert "<script" not in front and "onerror" not in front and "javascript:" not in front


def test_a_published_run_opens_with_its_answer_too(tmp_path: Path) -> None:
    publish(scored(run(tmp_path / "r", notebooks())), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    order = ["# Run r", "| mIoU | **73.1** | 71.1 to 75.1 | base 52.8, best constant 29.7 |", "](pictures/05_analysis-1.webp)",
             "### [One](01_grpo.md)", "- **Yes.** They narrow: 576 of 579", "## The run", "## Results", "## Parameters"]  # fmt: skip
    places = [text.index(each) for each in order]
    assert places == sorted(places)
    assert "R1@0" not in text, "viewers take it for a mail address"
