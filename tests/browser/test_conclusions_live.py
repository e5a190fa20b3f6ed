"""Conclusions in JupyterLab, whose markdown takes what looks like an address for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import CHROMIUM
from tests.browser.pages import run_in_jupyterlab, write_notebook

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.slow,
]
CELL = """
from IPython.display import Markdown, display
from labkit.views.conclusions import Claim, Conclusion
display(Markdown("- plain: R1@0.7 rose"), Conclusion([Claim("R1@0.7 rose", True, "R1@0.5 by *4.4* <b>points</b>")]))
"""


def test_a_threshold_is_no_mail_address(server: tuple[str, Path], browser: Any) -> None:
    write_notebook(server[1] / "claims.ipynb", CELL)
    page = run_in_jupyterlab(browser, server[0], "claims.ipynb")
    shown = page.locator(".jp-RenderedMarkdown li")
    shown.nth(1).wait_for(timeout=120_000)
    assert shown.nth(0).locator("a").get_attribute("href") == "mailto:R1@0.7", "JupyterLab does it to plain words"
    assert shown.nth(1).locator("a, em, b").count() == 0
    assert shown.nth(1).inner_text() == "Yes. R1@0.7 rose: R1@0.5 by *4.4* <b>points</b>"
    page.close()
