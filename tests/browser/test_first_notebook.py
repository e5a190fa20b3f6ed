"""A newcomer's first look: the notebook that the run has just made, opened in JupyterLab with nothing clicked."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from labkit.params import read_params
from labkit.runs.notebooks import execute
from tests.browser.conftest import CHROMIUM, ROOT

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def first(server: tuple[str, Path]) -> Path:
    """01_grpo as `labkit run` executes it, on a machine without Chrome, by the user whose JupyterLab is running."""
    folder = server[1]
    said: list[str] = []
    given = {"outputs": str(folder / "outputs"), "run": "first"}
    params = read_params(ROOT / "params/smoke.yaml", given)
    changed = {name: params.as_dict()[name] for name in params.changed()} | given
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(folder.parent / "data"))
        patch.setenv("BROWSER_PATH", "/no/browser")
        patch.setenv("OMP_NUM_THREADS", "1")
        execute(ROOT / "notebooks/01_grpo.ipynb", folder / "first.ipynb", changed, cwd=ROOT, say=said.append)
    assert not [line for line in said if "not signed" in line]
    shutil.copy(folder / "first.ipynb", folder / "sent.ipynb")
    sent = nbformat.read(folder / "sent.ipynb", 4)
    sent.metadata["from"] = "somebody else"  # another text than the one that was signed
    nbformat.write(sent, folder / "sent.ipynb")
    return folder / "first.ipynb"


@pytest.fixture
def opened(server: tuple[str, Path], browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The notebook in a page of JupyterLab, scrolled to its explorer; nobody has clicked or run anything."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{server[0]}/lab/workspaces/{request.param[:-6]}/tree/{request.param}")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.evaluate(
        """async () => {
            const { content } = window.jupyterapp.shell.currentWidget;
            const at = content.widgets.findIndex((cell) => cell.model.sharedModel.getSource().startsWith("explore("));
            await content.scrollToItem(at, "start");
        }"""
    )
    yield page
    page.close()


@pytest.mark.parametrize("opened", ["first.ipynb"], indirect=True)
@pytest.mark.usefixtures("first")
def test_the_run_s_own_notebook_shows_the_explorer_alive(opened: Any) -> None:
    opened.wait_for_selector('.lk-explorer[data-media="ready"]', timeout=60_000)
    assert opened.locator(".lk-explorer .lk-rows .lk-row").count() > 3


@pytest.mark.parametrize("opened", ["sent.ipynb"], indirect=True)
@pytest.mark.usefixtures("first")
def test_somebody_else_s_notebook_shows_its_picture_although_no_chrome_drew_it(opened: Any) -> None:
    opened.wait_for_selector('.jp-OutputArea-output img[width="960"]', timeout=60_000)
    assert opened.locator(".lk-explorer").count() == 0, "nobody has trusted it"


def test_it_says_once_that_figures_have_no_pictures_and_tells_nothing_twice(first: Path) -> None:
    notebook = nbformat.read(first, 4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert printed.count("without static pictures") == 1
    for cell in notebook.cells:
        streams = [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
        works = [line.split(":")[0] for line in "".join(streams).splitlines() if " of " in line]
        assert len(works) == len(set(works)), "of each work's progress the last line"
    assert not [output for output in outputs if output.get("name") == "stderr"]
    hidden = [cell for cell in notebook.cells if cell.metadata.get("jupyter", {}).get("source_hidden")]
    assert [cell.metadata.tags for cell in hidden] == [["parameters"]], "the values in force stand below"
