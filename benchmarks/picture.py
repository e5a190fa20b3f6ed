"""The README's picture: the explorer on a finished run, photographed in headless Chromium.

python benchmarks/picture.py outputs/embedded outputs/example/explorer.webp
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from labkit.lab import Lab
from labkit.params import read_params
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import explore
from labkit.views.report.notebook_html import to_webp


def main(run: str, target: str) -> None:
    """Show the greedy chains of all stages, opened at the one that narrows most, and take a picture."""
    from playwright.sync_api import sync_playwright

    lab = Lab.open(read_params(f"{run}/params.yaml"))
    greedy = {stage: lab.read_evaluation(stage).greedy for stage in ("grpo", "sft", "grpo_final")}
    base = lab.read_evaluation("base").greedy
    moments = lab.moments("test")
    explorer = explore(greedy, moments, base=base, spec=lab.rewards(final=True), folder=lab.sheets)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder) / "explorer.html"
        file.write_text(widget_page(explorer, f"labkit.explore: {lab.params.run}"), encoding="utf-8")
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": 1240, "height": 760})
        view.goto(file.as_uri())
        view.wait_for_selector('[data-media="ready"]')
        picture = view.screenshot()
        browser.close()
    Path(target).write_bytes(to_webp(picture))


if __name__ == "__main__":
    main(*sys.argv[1:])
