"""The README's pictures: a query as it learnt, which moves, and the explorer, photographed in headless Chromium.

python benchmarks/picture.py outputs/embedded docs/explorer.webp docs/watch.webp
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from labkit.data.moments import Moment
from labkit.embedded.true_words import check_words
from labkit.lab import Lab
from labkit.params import read_params
from labkit.stages.rollouts import Rollout
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.watch import QueryWatch
from labkit.views.explorer.widget import explore
from labkit.views.report.notebook_html import to_webp

BEAT, REST, SHORT_REST = 420, 4000, 1200
"""Milliseconds of a step; of the whole picture at the end; and of the same at the beginning, which viewers that stand still show."""
WIDTH = 1440
"""Pixels of the picture that moves, which is shown in a page at two thirds of them or less."""


def main(run: str, explorer: str, watch: str = "") -> None:
    """Make the picture of the explorer and, where a target is named, the one that moves."""
    lab = Lab.open(read_params(f"{run}/params.yaml"))
    photograph(lab, explorer)
    if watch:
        play(lab, watch)


def play(lab: Lab, target: str, qid: str = "") -> None:
    """The query that learnt most, or the one named, step by step as an animated WebP that begins and ends with all steps."""
    widget = lab.watch_queries(qid)
    if not isinstance(widget, QueryWatch):
        sys.exit(f"run '{lab.params.run}' asked no query while it trained (probe_queries)")
    steps = len(widget.line())
    frames = []
    for shown in (steps, *range(1, steps + 1)):
        picture = Image.open(io.BytesIO(widget.picture(shown))).convert("RGB")
        frames.append(picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS))
    durations = [SHORT_REST, *[BEAT] * (steps - 1), REST]
    frames[0].save(
        target, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=74, method=4,
        minimize_size=True, allow_mixed=True,
    )  # fmt: skip


def photograph(lab: Lab, target: str) -> None:
    """Show the final model's greedy chains whose every word is true, opened at the one that narrows most.

    In the embedded world those of its hard half, whose queries say beside what.
    """
    from playwright.sync_api import sync_playwright

    greedy = {"grpo_final": lab.read_evaluation("grpo_final").greedy}
    base = lab.read_evaluation("base").greedy
    moments = lab.moments("test")
    true = {
        qid
        for qid in (moment.qid for moment in moments if "beside" in moment.query)
        if _all_true(qid, greedy["grpo_final"], moments)
    }
    greedy = {stage: [row for row in rows if row.qid in true] for stage, rows in greedy.items()}
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


def _all_true(qid: str, rows: Sequence[Rollout], moments: Sequence[Moment]) -> bool:
    """Whether a chain says things of several kinds, and all of them are true; on other data, where nothing is known, yes."""
    found = check_words({row.qid: row.text for row in rows if row.qid == qid}, [m for m in moments if m.qid == qid])
    said = [words for words in found.values() if words]
    return not found or (len(said) >= 4 and all(word.true for words in said for word in words))


if __name__ == "__main__":
    main(*sys.argv[1:])
