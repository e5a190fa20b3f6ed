"""A stage that is watched in JupyterLab while its cell still runs: the panels move, and so do the chains."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import CHROMIUM
from tests.browser.pages import frame_shown, run_in_jupyterlab, write_notebook
from tests.data.films import CONSTANT, expected

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.slow,
]
STEPS = 4
CELL = f"""
import time
from pathlib import Path
from labkit.chain.anchors import parse, render
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span
from labkit.data.moments import read_moments
from labkit.stages.rollouts import Rollout, RolloutStore
from labkit.views.figures import renderer
from labkit.views import monitor as views

renderer._open_browser = lambda: None  # pictures for static viewers are another test's
views.SHARE, views.EVERY = 1e9, 0.0  # whoever steps by hand waits for every drawing
asked = read_moments("moments.jsonl")
store, history = RolloutStore("watched"), []
watch = views.Monitor("grpo", {STEPS}, store, asked)

def chain(step, sample):
    moment = asked[step % 3]
    text = render([Span(0, 8), Span(1, 6 - sample)], Span(2, 4 + sample / 2), [f"step {{step}}", "near", "so"])
    breakdown = score_chain(parse(text), moment.windows, moment.duration, RewardSpec())
    earned = {{f"reward_{{term}}": value for term, value in breakdown.terms.items()}}
    told = dict(run="r", stage="grpo", step=step, qid=moment.qid, sample=sample, seed=0, checkpoint="base", text=text)
    told |= dict(status="ok", total=breakdown.total, advantage=0.0, prompt_tokens=9, completion_tokens=9, finished=True)
    return Rollout(**earned, **told)

for step in range(1, {STEPS} + 1):
    while not Path(f"step-{{step}}").exists():
        time.sleep(0.02)
    store.write(step, [chain(step, sample) for sample in range(3)])
    history.append({{"step": step, "total": step / 2, "anchor_rate": step / {STEPS}, "iou_answer": 0.2 * step,
                     "entropy": 1 / step, "zero_variance_groups": 1, "groups": 4}})
    watch(history[-1])
while not Path("end").exists():
    time.sleep(0.02)
watch.end(history)
"""
RUNNING = "document.querySelector('.jp-InputPrompt').innerText.includes('*')"


@pytest.fixture(scope="module")
def sight(server: tuple[str, Path], browser: Any) -> Iterator[Any]:
    write_notebook(server[1] / "watch.ipynb", CELL)
    page = run_in_jupyterlab(browser, server[0], "watch.ipynb")
    yield page
    page.close()


def test_panels_and_chains_follow_the_steps_of_a_cell_that_still_runs(server: tuple[str, Path], sight: Any) -> None:
    waiting = sight.locator(".jp-OutputArea-output", has_text="waiting for the first step")
    waiting.wait_for(timeout=120_000)
    panels = sight.locator('svg[aria-label="rewards and chains over the training steps"]')
    drawn = []
    for step in range(1, STEPS + 1):
        (server[1] / f"step-{step}").touch()
        # Two outputs, wherever each stands: the panels end at this step, the explorer holds its group.
        sight.wait_for_function(
            """(told) => {
                const lines = [...document.querySelectorAll("svg[aria-label^='rewards'] polyline")];
                const lk = document.querySelector(".lk");
                return lines[0]?.getAttribute("points").split(" ").length === told.step
                    && lk?.dataset.media === "ready" && lk.querySelector(".lk-facts").innerText.includes(`step ${told.step},`);
            }""",
            arg={"step": step},
            timeout=120_000,
        )
        assert sight.evaluate(RUNNING), "what is seen here is seen before the cell has ended"
        assert sight.locator(".lk").count() == panels.count() == 1
        assert sight.locator(".lk").get_attribute("data-view") == "group"
        assert sight.locator(".lk [data-row-chain]").count() == 3
        assert f"step {step}" in sight.locator(".lk-words").inner_text()
        drawn.append(re.findall(r"[\d.]+", str(sight.locator("svg polyline").first.get_attribute("points")))[-2:])
        # The frames travelled along: the kernel is busy and could not be asked.
        sight.locator(".lk-slider").focus()
        sight.keyboard.press("Home")
        assert frame_shown(sight) == expected(CONSTANT, [0.0])[0]
    assert [float(x) for x, _ in drawn] == sorted({float(x) for x, _ in drawn}), "the line grows to the right"
    assert waiting.count() == 0


def test_the_end_leaves_a_figure_and_the_last_group(server: tuple[str, Path], sight: Any) -> None:
    (server[1] / "end").touch()
    sight.wait_for_selector(".js-plotly-plot .main-svg >> nth=0", timeout=180_000)
    sight.wait_for_function(f"!({RUNNING})", timeout=120_000)
    sight.wait_for_selector('.lk[data-media="ready"]', timeout=60_000)
    assert "step 4," in sight.locator(".lk-facts").inner_text()
    assert sight.locator(".lk").count() == 1 and sight.locator(".js-plotly-plot").count() == 1
    assert sight.locator("svg[aria-label^='rewards']").count() == 0, "the figure stands where the panels stood"
