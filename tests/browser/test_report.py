"""A report in a browser: from a file, offline, with figures and explorers alive, and nothing hostile that runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.anchors import parse, render
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.stages.rollouts import Rollout
from labkit.views.report import sanitize
from labkit.views.report.notebook_html import read_chapter
from labkit.views.report.report import report_page, write_report
from tests.browser.attacks import PAYLOADS
from tests.browser.conftest import CHROMIUM
from tests.browser.pages import WatchedPage, drag_to_twenty_places
from tests.data.films import CONSTANT, film
from tests.executed import PNG, code, failure, figure, notebook, output, run, saved, stream, words
from tests.views.report.test_front import notebooks as a_run
from tests.views.report.test_front import scored

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture
def look(open_page: Callable[..., WatchedPage]) -> Callable[..., WatchedPage]:
    """Opens a report, once its script is through, unless it is not `quiet`."""

    def look(file: Path, width: int = 1280, scheme: str = "light", quiet: bool = True) -> WatchedPage:
        return open_page(file, 'html[data-ready="yes"]' if quiet else "", width, scheme, quiet)

    return look


def rollout(qid: str, text: str, stage: str = "grpo") -> Rollout:
    told: dict[str, Any] = {"run": "r", "stage": stage, "step": 1, "qid": qid, "sample": 0, "seed": 0}
    told |= {"checkpoint": "base", "text": text, "status": parse(text).status, "total": 1.0, "advantage": 0.0}
    told |= {f"reward_{term}": 0.0 for term in ("format", "answer", "anchors", "progress")}
    return Rollout(**told, prompt_tokens=9, completion_tokens=20, finished=True)


@pytest.fixture(scope="module")
def moment(tmp_path_factory: pytest.TempPathFactory) -> Moment:
    video = film(tmp_path_factory.mktemp("clips") / "film.mp4", CONSTANT)
    return Moment("q0", str(video), "a thing happens", (Span(2, 4),), 8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, moment: Moment) -> Path:
    """A run of two notebooks with all that a report can hold."""
    from labkit.views.explorer.scrubber import scrub
    from labkit.views.explorer.widget import explore

    text = render([Span(0, 8), Span(1, 5)], Span(2, 4), ["all of it", "closer", "so"])
    explorer, scrubber = explore([rollout("q0", text)], [moment]), scrub(moment.video, {"truth": (2, 4)})
    states = saved(explorer) | saved(scrubber)
    first, second = list(saved(explorer))[0], list(saved(scrubber))[0]
    view = {"version_major": 2, "version_minor": 0}
    one = notebook(
        words("# One $x^2$\n\nSome words with `code` and a [link](https://example.org)."),
        code("x = 1  # a number", output(text_html="<table><tr><th>a</th><td>1</td></tr></table>")),
        words("## Chains\n\n$$R = \\sum_i w_i r_i$$"),
        code("explore()", output(widget={**view, "model_id": first}, image_png=PNG, text_plain="1 chain")),
        code("scrub()", output(widget={**view, "model_id": second}, text_plain="a video")),
        words("## Figures"),
        *(code("plot()", stream(f"{k}\n" * 9), output(plotly=figure(f"Figure {k}"), image_png=PNG)) for k in range(6)),
        widgets=states,
    )
    two = notebook(words("# Two"), code("f()", failure("ValueError", "it broke", "line 1\n" + "wide " * 80)))
    return run(tmp_path_factory.mktemp("runs") / "first", {"01_grpo": one, "05_analysis": two}, learning_rate=1e-4)


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in write_report(folder)}


@pytest.mark.parametrize("name", ["01_grpo", "report"])
def test_figures_explorers_and_maths_are_alive_without_a_network(
    look: Callable[..., WatchedPage], files: dict[str, Path], name: str
) -> None:
    shown = look(files[name])
    first = shown.page.locator("[data-plot]")
    assert first.last.get_attribute("data-drawn") is None, "what is far below waits"
    assert set(shown.scroll_through()) == {"yes"}
    assert shown.page.locator(".plot .main-svg").count() >= 6
    assert shown.page.locator(".plot .poster:visible").count() == 0
    assert shown.page.locator("math").count() == 2
    shown.page.locator(".lk").first.scroll_into_view_if_needed()
    shown.page.wait_for_selector('.lk[data-media="ready"]', timeout=20_000)
    assert shown.page.locator('.lk[data-view="scrubber"]').count() == 1
    before = shown.page.locator(".lk").first.get_attribute("data-frame")
    shown.page.locator(".lk").first.focus()
    shown.page.keyboard.press("ArrowRight")
    assert shown.page.locator(".lk").first.get_attribute("data-frame") != before


def test_dragging_in_a_report_shows_the_frame_of_each_place(
    look: Callable[..., WatchedPage], files: dict[str, Path]
) -> None:
    shown = look(files["01_grpo"])
    shown.page.locator("[data-explorer]").first.scroll_into_view_if_needed()
    shown.page.wait_for_selector('.lk[data-media="ready"]', timeout=20_000)
    drag_to_twenty_places(shown.page, CONSTANT, 8.0)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark"), (390, "light")])
def test_a_report_fits_its_window_and_is_in_reach_for_everyone(
    look: Callable[..., WatchedPage], files: dict[str, Path], width: int, scheme: str
) -> None:
    shown = look(files["report"], width, scheme)
    shown.scroll_through()
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert (shown.page.locator(".contents").get_attribute("open") is not None) == (width >= 1120)
    shown.page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert shown.violations() == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (800, "dark"), (390, "light")])
def test_the_first_page_shows_score_and_picture_first_and_fits_its_window(
    look: Callable[..., WatchedPage], tmp_path: Path, width: int, scheme: str
) -> None:
    folder = scored(run(tmp_path / "r", a_run()))
    shown = look(write_report(folder)[-1], width, scheme)
    shown.page.wait_for_selector("#s-front .plot .main-svg", timeout=20_000)
    tops = [
        shown.page.locator(name).first.bounding_box()["y"]
        for name in (".tiles", "#s-front .plot", ".conclusions", ".facts")
    ]
    assert tops == sorted(tops) and tops[1] < 900, "score and picture stand on the first screen"
    assert "✓" in shown.page.evaluate("getComputedStyle(document.querySelector('li.yes'), '::before').content")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.page.locator("a[href^='mailto']").count() == 0
    assert shown.violations() == []


def test_the_contents_lead_to_their_places_and_say_where_one_is(
    look: Callable[..., WatchedPage], files: dict[str, Path]
) -> None:
    shown = look(files["report"])
    shown.page.locator(".contents a", has_text="Figures").click()
    shown.page.wait_for_function(
        "document.querySelector('.contents a[aria-current]').textContent.trim() === 'Figures'", timeout=20_000
    )
    assert shown.page.evaluate("location.hash") == "#s-01-grpo-figures"
    shown.page.locator(".links a", has_text="05_analysis").click()
    shown.page.wait_for_selector("h1:has-text('Two')")


def test_the_reader_may_choose_the_theme(look: Callable[..., WatchedPage], files: dict[str, Path]) -> None:
    shown = look(files["05_analysis"])
    button, ground = shown.page.locator("[data-theme-button]"), "getComputedStyle(document.body).backgroundColor"
    assert shown.page.evaluate(ground) == "rgb(255, 255, 255)"
    button.click()
    button.click()
    assert shown.page.evaluate(ground) == "rgb(20, 24, 29)" and button.get_attribute("aria-label") == "Theme: dark"
    button.click()
    assert shown.page.evaluate(ground) == "rgb(255, 255, 255)"


def test_paper_gets_the_pictures(look: Callable[..., WatchedPage], files: dict[str, Path]) -> None:
    shown = look(files["01_grpo"])
    shown.scroll_through()
    shown.page.emulate_media(media="print")
    assert shown.page.locator(".plot .poster:visible").count() == 6
    assert shown.page.locator(".plot .live:visible, .side:visible").count() == 0
    assert len(shown.page.pdf()) > 10_000


def test_without_scripts_pictures_and_words_are_there(browser: Any, files: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    drawn = context.new_page()
    drawn.goto(files["01_grpo"].as_uri())
    assert (
        drawn.locator(".plot .poster:visible").count() == 6
        and drawn.locator("[data-theme-button]:visible").count() == 0
    )
    context.close()


def test_a_figure_that_fails_leaves_its_picture(look: Callable[..., WatchedPage], tmp_path: Path) -> None:
    broken = {"data": [{"type": "scatter", "x": [1], "y": [1]}], "layout": {"template": 3, "xaxis": {"range": 7}}}
    state = {"model_module": "anywidget", "state": {"shows": "explorer", "data": "bm8="}}
    view = {"model_id": "m", "version_major": 2, "version_minor": 0}
    cells = [
        code("x", output(plotly=broken, image_png=PNG)),
        code("y", output(widget=view, image_png=PNG, text_plain="chains")),
    ]
    file = tmp_path / "x.html"
    file.write_text(report_page("x", [read_chapter(notebook(*cells, widgets={"m": state}), "n")]), encoding="utf-8")
    shown = look(file)
    assert shown.scroll_through()[1] == "failed"
    assert shown.page.locator(".explorer .poster:visible").count() == 1
    assert "Only the picture is shown" in shown.page.locator(".explorer figcaption").inner_text()


def hostile(moment: Moment) -> Any:
    """A notebook in which every text that somebody else may have written attacks the page."""
    from labkit.views.explorer.widget import explore

    moments, rollouts = [], []
    for k, payload in enumerate(PAYLOADS):
        text = render([Span(0, 8)], Span(2, 4), [payload, payload])
        moments.append(Moment(f"{k} {payload}", moment.video, payload, (Span(2, 4),), 8.0, source=payload))
        rollouts.append(rollout(f"{k} {payload}", text, stage=payload))
    states = saved(explore(rollouts, moments, clips=1))
    model = list(states)[0]
    states[model]["state"]["_esm"] = "hit()"
    view = {"model_id": model, "version_major": 2, "version_minor": 0}
    cells = [words("# " + PAYLOADS[0]), code("explore()", output(widget=view, text_plain=PAYLOADS[1]))]
    for payload in PAYLOADS:
        drawn = figure(payload, annotations=[{"text": payload, "x": 1, "y": 1, "showarrow": False}])
        drawn["data"][0] |= {"text": [payload] * 3, "hovertemplate": payload, "mode": "markers+text"}
        cells += [
            words(payload),
            words(f"## {payload}"),
            words(f"```{payload}\n{payload}\n```\n\n![{payload}](x) $${payload}$$ `{payload}`"),
            code(
                payload,
                stream(payload),
                stream(payload, "stderr"),
                output(text_html=payload),
                output(text_markdown=payload, text_plain=payload),
                output(text_latex=payload),
                output(text_plain=payload),
                output(application_json={payload: payload}),
                output(application_javascript="hit()", text_plain=payload),
                output(image_png=payload, text_plain=payload),
                output(image_png=PNG, text_plain=payload),
                output(**{"image_svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{payload}</svg>"}),
                failure(payload, payload, payload),
            ),
        ]
    cells += [code("plot", output(plotly=figure(each), text_plain=each)) for each in PAYLOADS[::5]]
    return notebook(*cells, widgets=states)


@pytest.mark.slow
def test_fifty_attacks_in_every_place_run_nothing(
    look: Callable[..., WatchedPage], tmp_path: Path, moment: Moment, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path / "r", {"01_grpo": hostile(moment)}, model=PAYLOADS[3], prompt=PAYLOADS[4])
    for file in write_report(folder):
        shown = look(file)
        assert "failed" not in shown.scroll_through()
        alive = shown.page.evaluate(
            """() => {
                const own = [...document.querySelectorAll("main *, nav *")].filter((each) => !each.closest(".live"));
                const handlers = own.filter((each) => [...each.attributes].some(({ name }) => name.startsWith("on")));
                const bad = "iframe, form, input, object, embed, base, link, meta, style, script, video, svg animate";
                const inside = own.filter((each) => each.matches(bad) && !each.matches("nav svg *"));
                const links = [...document.querySelectorAll("a[href], [*|href]")].map((each) => each.getAttribute("href") ?? "");
                return [handlers.length, inside.map((each) => each.outerHTML.slice(0, 80)),
                        links.filter((each) => /^\\s*(javascript|data|vbscript):(?!image)/i.test(each))];
            }"""
        )
        assert alive == [0, [], []]
        assert "{{ 7 * 7 }}" in shown.page.locator("main").inner_text(), "shown, as it was written"


def test_even_markup_that_slipped_through_could_do_nothing(
    look: Callable[..., WatchedPage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sanitize, "sanitize_html", lambda given: given)
    cells = [code("x", output(text_html=payload)) for payload in PAYLOADS if "refresh" not in payload]
    file = tmp_path / "open.html"
    file.write_text(report_page("open", [read_chapter(notebook(*cells), "n")]), encoding="utf-8")
    shown = look(file, quiet=False)
    shown.page.wait_for_timeout(1_000)
    assert any("Content Security Policy" in each for each in shown.trouble), "the attacks were real"
