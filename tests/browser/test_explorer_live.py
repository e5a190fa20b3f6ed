"""The explorer in JupyterLab with a kernel behind it: what goes to Python and what comes from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.browser.attacks import PAYLOADS
from tests.browser.conftest import CHROMIUM, ROOT
from tests.browser.pages import drag_to_twenty_places, run_in_jupyterlab, write_notebook
from tests.data.films import CONSTANT

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.slow,
]
CELL = """
from labkit.chain.anchors import render
from labkit.chain.spans import Span
from labkit.data.moments import read_moments
from labkit.views.explorer.widget import explore
from labkit.views.measured_chains import PlainRecord

moments = read_moments("moments.jsonl")
rows = [PlainRecord(m.qid, render([Span(0, 8), Span(1, 2 + k)], Span(2, 4), ["far", "near", "so"])) for k, m in enumerate(moments)]
heard = []
explorer = explore({"base": rows, "sft": rows[::-1]}, moments, clips=1)
explorer.observe(lambda change: heard.append(change["new"]), "selected")
explorer
"""


@pytest.fixture(scope="module")
def sight(server: tuple[str, Path], browser: Any) -> Iterator[Any]:
    write_notebook(server[1] / "look.ipynb", CELL, "1 + 1")
    page = run_in_jupyterlab(browser, server[0], "look.ipynb")
    page.wait_for_selector('.lk[data-media="ready"]', timeout=180_000)
    yield page
    page.close()


def root(page: Any, name: str) -> str:
    return str(page.locator(".lk").get_attribute(f"data-{name}"))


def python(page: Any, code: str) -> Any:
    """What an expression, or the last line of some code, is worth in the notebook's kernel."""
    found = page.evaluate(
        """async (code) => {
            const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            let text = null;
            const future = kernel.requestExecute({code, store_history: false});
            future.onIOPub = (message) => {
                if (message.header.msg_type === "execute_result") text = message.content.data["text/plain"];
                if (message.header.msg_type === "error") text = JSON.stringify(message.content.traceback.join("\\n"));
            };
            await future.done;
            return text;
        }""",
        f"import json\n{code}" if "\n" in code else f"import json\njson.dumps({code})",
    )
    import ast

    return None if found is None else json.loads(ast.literal_eval(found))


def until(page: Any, condition: str) -> None:
    page.wait_for_function(
        f"(() => {{ const lk = document.querySelector('.lk'); return {condition} }})()", timeout=15_000
    )


def test_a_chain_clicked_is_selected_in_python_and_one_set_there_is_shown(sight: Any) -> None:
    row = sight.locator(".lk-rows .lk-row").nth(3)
    chosen = int(row.get_attribute("data-index"))
    row.click()
    until(sight, f"lk.dataset.chain === '{chosen}'")
    deadline = time.monotonic() + 10
    while python(sight, "explorer.selected") != chosen:
        assert time.monotonic() < deadline
    assert python(sight, "heard")[-1] == chosen
    assert python(sight, "explorer.selection.moment.qid") == f"q{[0, 1, 2, 2, 1, 0][chosen]}"
    python(sight, "explorer.selected = 1\nNone")
    until(sight, "lk.dataset.chain === '1'")
    python(sight, "explorer.view = 'stages'\nexplorer.stage = 'sft'\nNone")
    until(sight, "lk.dataset.view === 'stages' && lk.dataset.count === '3'")
    python(sight, "explorer.view, explorer.stage, explorer.filter = 'chain', '', 'thing 2'\nNone")
    until(sight, "lk.dataset.view === 'chain' && lk.dataset.count === '2'")
    python(sight, "explorer.filter = ''\nNone")
    until(sight, "lk.dataset.count === '6'")


def test_a_clip_that_did_not_travel_along_comes_from_the_kernel(sight: Any) -> None:
    held = int(python(sight, "list(explorer.clips)")[0])
    for wanted in {0, 1, 2} - {held}:
        python(sight, f"explorer.selected = {wanted}\nNone")
        until(sight, f"lk.dataset.chain === '{wanted}' && lk.dataset.media === 'ready'")


def test_dragging_to_twenty_places_shows_the_frame_of_each(sight: Any) -> None:
    drag_to_twenty_places(sight, CONSTANT, 8.0)


def test_keys_move_the_explorer_and_never_the_notebook(sight: Any) -> None:
    before = sight.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.length")
    sight.locator(".lk-table").focus()
    sight.keyboard.press("Home")
    for key in ("d", "d", "a", "b", "x", "z", "0", "0", "Enter", "m", "y", "r", "c", "v", "Shift+M", "Escape"):
        sight.keyboard.press(key)
    sight.keyboard.press("/")
    sight.keyboard.type("ddaabb00")
    sight.keyboard.press("Escape")
    sight.keyboard.press("0")
    sight.keyboard.press("2")
    until(sight, "lk.dataset.view === 'group'")
    sight.keyboard.press("1")
    cells = sight.evaluate("window.jupyterapp.shell.currentWidget.content.widgets.map((cell) => cell.model.type)")
    assert len(cells) == before and cells == ["code", "code"]
    assert sight.evaluate("window.jupyterapp.shell.currentWidget.content.mode") == "command"


def test_chains_are_replaced_while_they_are_looked_at(sight: Any) -> None:
    python(sight, "explorer.update({'sft': rows[:2]})\nNone")
    until(sight, "lk.dataset.count === '2'")
    sight.wait_for_selector('.lk[data-media="ready"]')
    assert sight.locator(".lk").count() == 1


def test_who_types_a_filter_while_chains_are_replaced_goes_on_typing(sight: Any) -> None:
    sight.locator(".lk-search").click()
    sight.keyboard.type("th")
    until(sight, "lk.querySelector('.lk-search').value === 'th'")
    first = sight.evaluate_handle("document.querySelector('.lk')")
    python(sight, "explorer.update({'sft': rows})\nNone")
    sight.wait_for_function("(old) => document.querySelector('.lk') !== old", arg=first)
    sight.keyboard.type("ing")
    until(sight, "lk.querySelector('.lk-search').value === 'thing'")
    assert sight.evaluate("document.activeElement.matches('.lk-search')")
    sight.keyboard.press("Escape")
    sight.keyboard.press("0")
    python(sight, "explorer.update({'sft': rows[:2]})\nNone")
    until(sight, "lk.dataset.count === '2'")


def test_chains_that_did_not_travel_are_found_by_the_kernel(sight: Any) -> None:
    python(
        sight,
        """from labkit.views.explorer import subset
subset.MOST_CHAINS, before = 4, subset.MOST_CHAINS
texts = [render([Span(0, 8)], Span(2, 3 + k / 10), ["needle" if k == 13 else "hay", "so"]) for k in range(20)]
explorer.update({f"stage-{k}": [PlainRecord("q0", texts[k])] for k in range(20)})
None""",
    )
    until(sight, "lk.dataset.count === '4' && lk.querySelector('.lk-about').textContent.includes('4 of 20 chains')")
    sight.locator(".lk-search").fill("needle")
    until(sight, "lk.dataset.count === '0'")
    sight.locator(".lk-about button").click()
    until(sight, "lk.dataset.count === '1' && lk.querySelector('.lk-about').textContent.includes('1 chain of 20')")
    sight.locator(".lk-rows .lk-row").first.click()
    until(sight, "lk.dataset.chain === '13'")
    deadline = time.monotonic() + 10
    while python(sight, "explorer.selected") != 13:
        assert time.monotonic() < deadline
    python(sight, "explorer.filter = ''\nexplorer.selected = 7\nNone")
    until(sight, "lk.dataset.chain === '7'")
    python(sight, "subset.MOST_CHAINS = before\nexplorer.update({'sft': rows[:2]})\nNone")
    until(sight, "lk.dataset.count === '2'")


def test_no_text_of_a_model_can_run_in_the_notebook(sight: Any) -> None:
    # It ends in a number: Playwright would call what it takes for a function.
    sight.evaluate("window.hit = () => { window.hits += 1 }; window.hits = 0")
    told = f"attacks = json.loads({json.dumps(json.dumps(PAYLOADS))})"
    text = 'f"<think>{a} <timestamp>1 to 5</timestamp> {a}</think><answer>2 to 4</answer>{a}"'
    python(sight, f"{told}\nexplorer.update({{a: [PlainRecord(moments[0].qid, {text})] for a in attacks}})\nNone")
    until(sight, f"lk.dataset.count === '{len(PAYLOADS)}'")
    sight.locator(".lk-table").focus()
    for view in "123":
        sight.keyboard.press(view)
        sight.keyboard.press("Home")
        for _ in PAYLOADS:
            sight.keyboard.press("ArrowDown")
    assert sight.evaluate("window.hits") == 0
    sight.evaluate("window.hit()")
    assert sight.evaluate("window.hits") == 1, "a hit would have been heard"
    for tag in ("script", "img", "iframe", "a", "details", "link"):
        assert sight.locator(f".lk {tag}").count() == 0, tag


def test_a_dark_theme_is_followed(sight: Any) -> None:
    ground = "getComputedStyle(document.querySelector('.lk')).backgroundColor"
    light = sight.evaluate(ground)
    sight.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
    sight.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
    sight.wait_for_function(f"{ground} !== '{light}'")


def test_without_its_kernel_a_clip_that_is_not_here_says_so_and_the_others_still_move(sight: Any) -> None:
    python(sight, "explorer.update({'sft': rows})\nNone")
    until(sight, "lk.dataset.count === '3' && lk.dataset.media === 'ready'")
    held = python(sight, "[int(explorer.selected), *map(int, explorer.clips)]")
    other = next(k for k in range(3) if k not in held)
    sight.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    sight.wait_for_function("!window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel")
    sight.locator(f'.lk-row[data-index="{other}"]').click()
    sight.wait_for_selector(".lk-note:visible")
    assert "not stored here" in sight.locator(".lk-note").inner_text()
    sight.locator(f'.lk-row[data-index="{held[0]}"]').click()
    until(sight, "lk.dataset.media === 'ready'")
    sight.keyboard.press("Home")
    until(sight, "lk.dataset.frame === '0'")


@pytest.fixture(scope="module")
def executed(server: tuple[str, Path]) -> Path:
    """The notebook, run as a batch does, beside the one that is looked at: it is nobody's yet, so nobody trusts it."""
    from nbclient import NotebookClient

    work = server[1]
    notebook = nbformat.read(work / "look.ipynb", 4)
    # As a monitor does: chains are replaced, and other clips travel along than before.
    shown = "{'base': rows, 'sft': rows[::-1]}"
    notebook.cells[-1].source = f"explorer.update({shown}, clips=3)\nexplorer.update({shown}, clips=1)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(work)}}).execute()
    nbformat.write(notebook, work / "shared.ipynb")
    return work / "shared.ipynb"


def opened(browser: Any, address: str, name: str) -> Any:
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/workspaces/{Path(name).stem}/tree/{name}")
    page.wait_for_selector(".jp-Notebook .jp-OutputArea-output", timeout=60_000)
    return page


def test_a_notebook_from_somebody_else_shows_its_picture_until_it_is_trusted_and_then_lives_without_its_kernel(
    server: tuple[str, Path], executed: Path, browser: Any
) -> None:
    stranger = opened(browser, server[0], executed.name)
    stranger.wait_for_selector(".jp-OutputArea-output img", timeout=30_000)
    assert stranger.locator(".lk").count() == 0, "a widget ran in a notebook that nobody trusts"
    stranger.close()

    places = {f"JUPYTER_{name}_DIR": str(server[1].parent / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    subprocess.run([sys.executable, "-m", "jupyter", "trust", str(executed)], env=os.environ | places, check=True)
    page = opened(browser, server[0], executed.name)
    page.wait_for_selector('.lk[data-media="ready"]', timeout=60_000)
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    page.wait_for_function("!window.jupyterapp.shell.currentWidget.sessionContext.session")
    before = root(page, "frame")
    page.locator(".lk").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"document.querySelector('.lk').dataset.frame !== '{before}'")
    page.close()
