"""What a report holds of a notebook, what it leaves out, and what is written of a run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from labkit.errors import LabError
from labkit.views.explorer.page import PageWidget
from labkit.views.report import notebook_html, report
from labkit.views.report.notebook_html import read_chapter
from labkit.views.report.report import report_page, report_text, write_report
from labkit.views.report.sanitize import script_json
from tests.executed import PNG, code, failure, figure, notebook, output, run, stream, words

ROOT = Path(__file__).parents[3]


def chapter(*outputs: Any, widgets: dict[str, Any] | None = None) -> notebook_html.Chapter:
    return read_chapter(notebook(code("x", *outputs), widgets=widgets), "01_grpo")


@pytest.mark.parametrize(
    ("forms", "shown", "why"),
    [
        ({"text_html": "<b>a</b>", "text_plain": "a"}, "<b>a</b>", "markup before text"),
        ({"text_html": "<script>x()</script>", "text_plain": "a"}, "<pre>a</pre>", "markup that was all script"),
        ({"text_html": "<img src='http://x/y'>", "image_png": PNG}, 'src="data:image/png', "a picture, if markup is empty"),
        ({"image_png": PNG, "text_plain": 'say "a"'}, 'alt="say &quot;a&quot;"', "a picture says what it shows"),
        ({"image_png": '"onerror=x()', "text_plain": "a"}, "<pre>a</pre>", "what is no picture"),
        ({"text_markdown": "# *a*", "text_plain": "a"}, "<h3 id=", "markdown, below the notebook's headings"),
        ({"text_latex": "$$x^2$$", "text_plain": "a"}, '<math display="block">', "maths"),
        ({"application_json": {"a": "<b>"}, "text_plain": "a"}, "&lt;b&gt;", "data as text"),
        ({"application_javascript": "x()", "text_plain": "<a>"}, "<pre>&lt;a&gt;</pre>", "a script's words"),
        ({"image_svg+xml": "<svg><script>x()</script></svg>"}, 'src="data:image/svg+xml;base64', "a drawing as a picture"),
        ({"text_html": "<svg><text>3</text></svg>", "text_plain": "step 3"}, 'alt="step 3" src="data:image/svg+xml;base64',
         "the panels of a stage that was stopped"),
    ],
)  # fmt: skip
def test_an_output_is_shown_in_its_best_form(forms: dict[str, Any], shown: str, why: str) -> None:
    made = chapter(output(**forms)).html
    assert shown in made and "x()" not in made.replace("<code>x</code>", ""), why


def test_a_progress_bar_that_has_ended_leaves_nothing() -> None:
    assert '<div class="output">' not in chapter(output(text_html="", text_plain="<_Bar object>")).html


def test_pieces_of_printed_text_are_joined_and_long_ones_folded() -> None:
    made = chapter(stream("1\n2\n"), stream("3\n4"), stream("careful", "stderr")).html
    assert "<span>Printed, 4 lines</span>" in made and "<pre>1\n2\n3\n4</pre>" in made
    assert 'aria-label="messages"' in made


def test_a_failure_stands_open_with_its_code() -> None:
    made = chapter(failure("LabError", "<no>", "\x1b[31mline 1\x1b[0m")).html
    assert '<details class="code" open>' in made
    assert "<strong>LabError: &lt;no&gt;</strong>" in made and "<pre>line 1</pre>" in made


def test_a_notebook_that_stopped_says_so() -> None:
    made = read_chapter(notebook(words("> **This run stopped:** `x`", tags=["labkit-error"]), words("# A")), "n")
    assert made.stopped and made.title == "A" and 'class="words banner"' in made.html


def test_papermills_two_banners_are_one_of_ours() -> None:
    papermill = [words("<span style='color:red'>An Exception</span>", tags=["papermill-error-cell-tag"]) for _ in "ab"]
    made = read_chapter(notebook(papermill[0], words("# A"), papermill[1]), "n")
    assert made.stopped and made.html.count('class="words banner"') == 1 and "An Exception" not in made.html
    ours = words("> **This run stopped:** `x`", tags=["labkit-error"])
    both = read_chapter(notebook(ours, papermill[0], words("# A")), "n")
    assert both.html.count('class="words banner"') == 1 and "This run stopped" in both.html


def test_a_figure_keeps_its_data_and_its_picture() -> None:
    made = chapter(output(plotly=figure("</script>"), image_png=PNG, text_plain="what to see"))
    assert made.plots and 'data-plot="01-grpo-0"' in made.html and 'aria-label="what to see"' in made.html
    assert "</" not in made.data["01-grpo-0"]
    assert json.loads(made.data["01-grpo-0"])["layout"]["title"]["text"] == "</script>"


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ({"data": [{"type": "scattergeo"}]}, "its map would be fetched"),
        ({"data": [{"type": "scattergl"}]}, "its shaders are compiled"),
        ({"data": [], "layout": {"images": [{"source": "https://x.example/y.png"}]}}, "its picture would be fetched"),
        ({"data": [{"type": "image", "source": "https://x.example/y.png"}]}, "so would this one"),
        ({"data": {"type": "scatter"}}, "it is none"),
        ({"layout": {}}, "nothing to draw"),
        ("scatter", "no figure at all"),
    ],
)
def test_a_figure_that_could_not_be_drawn_offline_is_its_picture(broken: Any, why: str) -> None:
    made = chapter(output(plotly=broken, image_png=PNG))
    assert not made.plots and not made.data and 'class="poster"' in made.html, why


def ours(**state: Any) -> dict[str, Any]:
    told = {"_esm": "hit()", "_css": "p{}", "shows": "explorer", "data": None, "clips": {}, **state}
    buffers = [{"path": ["data"], "data": "aGk=", "encoding": "base64"}]
    return {"model_module": "anywidget", "model_name": "AnyModel", "state": told, "buffers": buffers}


def view(model: str) -> dict[str, Any]:
    return {"model_id": model, "version_major": 2, "version_minor": 0}


def test_an_explorer_is_mounted_from_its_saved_state_without_the_code_saved_in_it() -> None:
    shown = output(widget=view("m"), image_png=PNG, text_plain="3 chains")
    made = chapter(shown, shown, widgets={"m": ours(), "unseen": ours(data="other")})
    assert made.explorers and made.html.count('data-explorer="01-grpo-0"') == 2
    assert list(made.data) == ["01-grpo-0"], "its state stands there once, and none that no output shows"
    held = json.loads(made.data["01-grpo-0"])
    assert held["state"] == {"shows": "explorer", "data": None, "clips": {}}
    assert held["buffers"][0]["data"] == "aGk="


def test_bytes_of_clips_that_are_gone_stay_out_of_a_page() -> None:
    saved = ours(clips={"0": {"frames": 4}})
    for key in ("0", "7"):
        saved["buffers"].append({"path": ["sheets", key], "data": key, "encoding": "base64"})
    made = chapter(output(widget=view("m"), text_plain="3 chains"), widgets={"m": saved})
    held = json.loads(made.data["01-grpo-0"])
    assert [each["path"] for each in held["buffers"]] == [["data"], ["sheets", "0"]]


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (None, "its state was not saved"),
        ({**ours(), "model_module": "evil"}, "a module of somebody else"),
        (ours(shows="evil"), "not one of ours"),
        ({"model_name": "IntSliderModel", "state": {"value": 3}}, "a slider does nothing without a kernel"),
        ("broken", "no model at all"),
    ],
)
def test_any_other_widget_is_its_picture_or_a_word(model: Any, why: str) -> None:
    widgets = {} if model is None else {"m": model}
    assert 'class="poster"' in chapter(output(widget=view("m"), image_png=PNG), widgets=widgets).html, why
    made = chapter(output(widget=view("m"), text_plain="IntSlider()"), widgets=widgets)
    assert "alive in JupyterLab alone" in made.html and not made.explorers, why


def test_the_parameters_are_shown_once_in_a_page_of_several_chapters() -> None:
    seen: set[str] = set()
    made = [read_chapter(notebook(code("x", output(text_html="<b>p</b>"))), name, seen=seen) for name in "ab"]
    assert [each.html.count("The same table as above") for each in made] == [0, 1]


def test_json_of_a_page_can_end_no_script() -> None:
    hostile = {"a": "</script><!--\u2028", "b": "\ud800"}
    assert (
        "<" not in script_json(hostile)
        and script_json(hostile).isascii()
        and json.loads(script_json(hostile)) == hostile
    )


def test_what_is_not_a_number_is_a_gap() -> None:
    assert script_json({"y": [1.0, float("nan"), float("inf")], "</": 0}) == '{"y":[1.0,null,null],"\\u003c/":0}'


def test_a_page_runs_its_own_scripts_and_nothing_else() -> None:
    made = report_page("x", [chapter(output(plotly=figure()), output(widget=view("m")), widgets={"m": ours()})])
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', made)
    assert policy and policy[1].startswith("default-src &#39;none&#39;; ")
    allowed = re.findall(r"sha256-([A-Za-z0-9+/=]+)", policy[1])
    plotly = re.search(r"data-plotly>([^<]*)<", made)
    assert plotly
    scripts = re.findall(r'<script type="module">(.*?)</script>', made, re.DOTALL)
    running = [*scripts, gzip.decompress(base64.b64decode(plotly[1])).decode()]
    assert [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in running] == allowed
    assert len(scripts) == 2 and "unsafe-eval" not in policy[1] and "http" not in policy[1]


def test_a_page_without_figures_and_explorers_is_small() -> None:
    made = report_page("x", [chapter(output(text_plain="a"))])
    assert "data-plotly>" not in made and "labkitMount = mountFromState" not in made and len(made) < 40_000


def test_a_page_is_the_same_whenever_it_is_written() -> None:
    assert report_page("x", [chapter(output(plotly=figure()))]) == report_page("x", [chapter(output(plotly=figure()))])


def test_a_title_is_text() -> None:
    made = report_page("</title><script>hit()</script>", [chapter()])
    assert "<script>hit()" not in made and made.count("<title>") == 1


def test_a_run_is_reported_in_a_file_for_each_notebook_and_one_for_all(tmp_path: Path) -> None:
    folder = run(
        tmp_path / "first",
        {
            "01_grpo": notebook(words("# One"), words("## Look"), code("x", output(plotly=figure()))),
            "04_grpo_final": notebook(words("# Four"), words("## Look"), code("x", output(plotly=figure()))),
        },
        learning_rate=1e-4,
    )
    files = write_report(folder)
    assert [file.name for file in files] == ["01_grpo.html", "04_grpo_final.html", "report.html"]
    assert not list(folder.glob(".*")), "nothing half written is left"
    one, _, whole = (file.read_text(encoding="utf-8") for file in files)
    assert '<a href="report.html">the whole run</a>' in one and '<span aria-current="page">01_grpo</span>' in one
    assert one.count("<h1") == 1 and whole.count("<h1") == 1
    assert 'href="#s-01-grpo-look"' in whole and 'href="#s-04-grpo-final-look"' in whole
    assert whole.count("data-plotly>") == 1, "plotly travels once"
    assert ">52.8<" not in whole and '<td class="best">75.0</td>' in whole and "<td>50.0</td>" in whole
    assert "20 (25.0 %)" in whole and "<dd>2 min 0 s</dd>" in whole
    changed = re.search(r"<code>learning_rate</code>.*?</tr>", whole, re.DOTALL)
    assert changed and "<strong>0.0001</strong>" in changed[0] and "<td>0.0005</td>" in changed[0]
    assert report_text(files).splitlines()[0].endswith(" MB")


def test_a_run_that_goes_on_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    folder = run(tmp_path / "half", {"01_grpo": notebook(words("# One"))}, finished=False)
    whole = write_report(folder)[-1].read_text(encoding="utf-8")
    assert "This run is not finished." in whole and "Open: 03_sft, 05_analysis." in whole


def test_values_of_parameters_are_text(tmp_path: Path) -> None:
    folder = run(tmp_path / "r", {"01_grpo": notebook(words("# One"))}, model="<script>hit()</script>")
    assert "<script>hit()" not in write_report(folder)[-1].read_text(encoding="utf-8")


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is not a run"):
        write_report(tmp_path)
    with pytest.raises(LabError, match="holds no executed notebook"):
        write_report(run(tmp_path / "empty", {}))
    folder = run(tmp_path / "broken", {})
    (folder / "01_grpo.ipynb").write_text('{"cells": ')
    with pytest.raises(LabError, match=r"01_grpo\.ipynb' is no notebook"):
        write_report(folder)


def test_nbconvert_exports_a_notebook_that_nobody_trusts(tmp_path: Path) -> None:
    import nbformat

    from labkit.views.report.exporter import ReportExporter

    path = tmp_path / "mine.ipynb"
    nbformat.write(notebook(words("# Mine"), code("x", output(plotly=figure(), image_png=PNG))), path)
    made, resources = ReportExporter().from_filename(str(path))
    assert resources["output_extension"] == ".html" and "<title>Mine</title>" in made and 'data-plot="mine-0"' in made


def test_jupyterlab_is_told_of_the_exporter_and_to_save_widgets() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = project["project"]["entry-points"]["nbconvert.exporters"]
    assert named == {"labkit_report": "labkit.views.report.exporter:ReportExporter"}
    files = project["tool"]["setuptools"]["data-files"]
    assert list(files) == ["share/jupyter/lab/settings/overrides.d"]
    for file in files["share/jupyter/lab/settings/overrides.d"]:
        settings = json.loads((ROOT / file).read_text())
        assert settings["@jupyter-widgets/jupyterlab-manager:plugin"] == {"saveState": True}
    installed = [each for each in entry_points(group="nbconvert.exporters") if each.name == "labkit_report"]
    assert all(each.value == named["labkit_report"] for each in installed)


def test_scripts_of_the_package_stay_inside_their_element() -> None:
    own = (report.HERE / "report.js").read_bytes().decode()
    for script in (own, PageWidget._esm):
        assert not re.search(r"</script|<!--", script, re.IGNORECASE) and "\r" not in script
