"""What the explorer costs: chains from parquet to the widget, then first paint, filter, sort and scrub in a browser.

    python benchmarks/explorer.py [chains]

Chains are made up: four anchors and a hundred words each, as a large model writes them. Needs chromium and playwright.
"""

from __future__ import annotations

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from labkit.chain.anchors import parse, render
from labkit.chain.rewards import RewardSpec, score_chain
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.embedded.world import write_world
from labkit.stages.rollouts import Rollout, RolloutStore
from labkit.views.explorer.page import widget_page
from labkit.views.explorer.widget import explore

GROUP = 8
WORDS = (
    "the person walks to a door and opens it slowly while light falls into room before that nothing happens".split()
)
BUDGETS = {"first paint": 2000.0, "filter by text": 50.0, "filter, first time": 50.0, "sort": 50.0, "scrub step": 5.0}

MEASURE = """async () => {
  const root = document.querySelector(".lk");
  const explorer = root.labkit;
  // What a reader waits for: the work itself, and the layout that follows from it.
  const took = (work) => { const begin = performance.now(); work(); root.getBoundingClientRect(); return performance.now() - begin; };
  const first = took(() => explorer.setFilter("text", "door"));
  const texts = ["light falls", "nothing", "q1", "", "opens it", "zebra", "a"];
  const filter = texts.map((text) => took(() => explorer.setFilter("text", text)));
  explorer.clear();
  const sort = [];
  for (const column of explorer.table.columns) for (let way = 0; way < 2; way++) sort.push(took(() => explorer.sortBy(column.name)));
  const scrub = [];
  for (let k = 0; k < 400; k++) scrub.push(took(() => explorer.player.setTime(((k * 7) % 400) / 400 * explorer.player.duration)));
  const select = [];
  for (let k = 0; k < 50; k++) select.push(took(() => explorer.move(1)));
  const rows = document.querySelectorAll(".lk-rows .lk-row").length;
  return {first, filter, sort, scrub, select, rows};
}"""
WATCH = """new MutationObserver((_, watcher) => {
  if (!document.querySelector('.lk .lk-rows .lk-row')) return;
  watcher.disconnect();
  requestAnimationFrame(() => setTimeout(() => { window.painted = performance.now(); }, 0));
}).observe(document, {childList: true, subtree: true});"""


def rollouts(count: int, moments: list[Moment], seed: int = 0) -> list[Rollout]:
    """Chains that narrow more or less, in two stages."""
    drawn = random.Random(seed)
    spec = RewardSpec()
    made = []
    for k in range(count):
        moment = moments[k // GROUP % len(moments)]
        ends = [sorted(drawn.sample(range(int(moment.duration * 2)), 2)) for _ in range(5)]
        spans = [Span(a / 2, b / 2) for a, b in ends]
        thoughts = [" ".join(drawn.choices(WORDS, k=20)) for _ in spans]
        chain = parse(render(spans[:-1], spans[-1], thoughts))
        breakdown = score_chain(chain, moment.windows, moment.duration, spec)
        step = k // (GROUP * 64) + 1
        earned: dict[str, Any] = {f"reward_{term}": value for term, value in breakdown.terms.items()}
        told: dict[str, Any] = {"run": "bench", "seed": 0, "checkpoint": "base", "finished": True, "advantage": 0.0}
        told |= {"stage": "grpo" if k < count // 2 else "grpo_final", "step": step, "qid": moment.qid}
        told |= {"sample": k % GROUP, "text": chain.text, "status": chain.status, "total": breakdown.total}
        made.append(Rollout(**earned, **told, prompt_tokens=900, completion_tokens=160))
    return made


def main() -> None:
    chains = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder / "world", train=20, validation=1, test=1, seed=0, edition=1)
        from labkit.data.moments import read_moments

        moments = read_moments(folder / "world" / "train.jsonl")
        # Imports, and the clips' sheets, which a second look finds on disk.
        explore(rollouts(GROUP * len(moments), moments), moments, clips=len(moments), folder=folder / "sheets")
        load(30_000, moments, folder)
        made, begin = rollouts(chains, moments), time.perf_counter()
        widget = explore(made, moments, folder=folder / "sheets")
        print(f"{chains:,} rollouts to the explorer: {time.perf_counter() - begin:.1f} s; {widget!r}")
        begin = time.perf_counter()
        widget._answer(None, {"ask": "chains", "filters": {"text": "door", "low": 0.5}}, [])
        print(f"a search among all by the kernel: {time.perf_counter() - begin:.1f} s")
        widget._answer(None, {"ask": "chains", "filters": {}}, [])
        print(f"a notebook with it: {notebook_bytes(widget) / 1e6:.2f} MB, goal below 15")
        file = folder / "page.html"
        file.write_text(widget_page(widget), encoding="utf-8")
        print(f"page of {chains:,} chains and {len(widget.clips)} clips: {file.stat().st_size / 1e6:.2f} MB")
        look(file)


def notebook_bytes(widget: Any) -> int:
    """Of a notebook that holds nothing but the explorer, its state and its picture."""
    import nbformat
    from ipywidgets import Widget

    data, metadata = widget._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    saved = {"application/vnd.jupyter.widget-state+json": Widget.get_manager_state(widgets=[widget])}
    cells = [nbformat.v4.new_code_cell("explore(...)", outputs=[output])]
    return len(nbformat.writes(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": saved})).encode())


def load(count: int, moments: list[Moment], folder: Path) -> None:
    """From parquet to a widget that can be shown."""
    store = RolloutStore(folder / "rollouts")
    made = rollouts(count, moments)
    for step in range(1, made[-1].step + 1):
        store.write(step, [rollout for rollout in made if rollout.step == step])
    store.compact()
    wall, cpu = time.perf_counter(), time.process_time()
    explore(store.read(), moments, folder=folder / "sheets")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{count:,} rollouts from parquet to the explorer: {wall:.2f} s, of them {cpu:.2f} s of work; goal 3 s")


def look(file: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        sight = browser.new_page(viewport={"width": 1280, "height": 900})
        sight.add_init_script(WATCH)
        sight.goto(file.as_uri())
        sight.wait_for_selector('.lk[data-media="ready"]', timeout=60_000)
        sight.wait_for_function("window.painted")
        painted = sight.evaluate("window.painted")
        # Texts are made ready for the first search a few at a time, in much less than it takes to read the page.
        sight.wait_for_function(
            "(({chains}) => chains.lowered.length === chains.count)(document.querySelector('.lk').labkit)"
        )
        found = sight.evaluate(MEASURE)
        browser.close()
    times = {"first paint": [painted], "filter, first time": [found["first"]], "filter by text": found["filter"]}
    times |= {"sort": found["sort"], "scrub step": found["scrub"], "select a chain": found["select"]}
    print(f"{'':20}{'median':>10}{'longest':>10}{'goal':>10}   ms, longest counts")
    for what, took in times.items():
        goal = f"{BUDGETS[what]:.0f}" if what in BUDGETS else ""
        print(f"{what:20}{statistics.median(took):10.2f}{max(took):10.2f}{goal:>10}")
    print(f"rows in the page: {found['rows']}, goal 40")


if __name__ == "__main__":
    main()
