"""A stage of GRPO on the screen while it runs: its panels, and the chains of its newest step in the explorer.

Watching must not cost what is watched: a monitor times itself, and draws only while that stays below a small share of
the time gone by. At the end it always draws.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labkit.chain.rewards import RewardSpec
from labkit.data.moments import Moment
from labkit.stages.rollouts import RolloutStore
from labkit.views.explorer.widget import ChainExplorer, explore
from labkit.views.figures.renderer import setup
from labkit.views.figures.style import count
from labkit.views.monitor_panels import panels_figure, panels_svg

SHARE = 0.015
"""Of the time gone by, the most that is drawn in."""
EVERY = 10.0
"""Seconds, at least, between two changes of the chains that are shown: somebody may be reading them."""
CLIPS = 6
"""Clips that a saved notebook holds with the chains of the last step."""


class Monitor:
    """Shows how a stage goes; call it with the row of each step, and `end` with all of them.

    Outside of a notebook it does nothing. It never ends a training: what goes wrong in it is logged, and it stops.
    """

    def __init__(
        self,
        stage: str,
        steps: int,
        store: RolloutStore,
        moments: Sequence[Moment],
        *,
        spec: RewardSpec | None = None,
        folder: str | Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`steps` are those to come; `store` holds the stage's rollouts of `moments`, paid by `spec`.

        `folder` keeps the clips' pictures, as `explore` does.
        """
        self.stage, self.steps, self.store, self.clock = stage, steps, store, clock
        self.rows: list[Mapping[str, Any]] = []
        self.why = ""
        self.spent = 0.0
        """Seconds that drawing took while the stage ran."""
        self.costs = {"panels": 0.01, "chains": 0.1}
        """What each took last, or at first a guess, in seconds."""
        self.shown = _in_notebook()
        if self.shown:
            # Both have their places now, above all that is printed while the stage runs.
            self._panels = _place(f"{stage}: waiting for the first step")
            self._chains = _place(f"{stage}: the chains of its newest step will stand here")
            self.explorer = explore([], moments, spec=spec, folder=folder, clips=0)
            self.explorer.view = "group"
        self.begin, self.changed = clock(), -EVERY

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of steps that were taken before."""
        self.rows = list(rows)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take the row of a step, and show it as soon as that is cheap enough."""
        self.rows.append(row)
        if self._may("panels"):
            self._timed("panels", self._show_panels)
        if self._may("chains") and self.clock() - self.changed >= EVERY:
            self._timed("chains", self._show_chains)

    def end(self, rows: Sequence[Mapping[str, Any]], why: str = "") -> None:
        """Show all steps as figures are shown, with a picture for viewers that run nothing.

        `why` says what ended the stage before all of its steps were taken.
        """
        self.rows, self.why = list(rows), why
        if self.shown:
            self._draw_safely(self._show_end)

    def _may(self, what: str) -> bool:
        return self.shown and self.spent + self.costs[what] <= SHARE * (self.clock() - self.begin)

    def _timed(self, what: str, draw: Callable[[], None]) -> None:
        begin = self.clock()
        self._draw_safely(draw)
        self.costs[what] = self.clock() - begin
        self.spent += self.costs[what]

    def _draw_safely(self, draw: Callable[[], None]) -> None:
        try:
            draw()
        except Exception as error:  # whatever it is: hours of training are worth more than a look at them
            self.shown = False
            logging.getLogger("labkit.views").warning("%s goes on without being shown: %r", self.stage, error)

    def _show_panels(self) -> None:
        text = f"{self.stage}: step {self.rows[-1]['step']} of {self.steps}"
        self._panels.update({"text/html": panels_svg(self.rows, self.steps), "text/plain": text}, raw=True)

    def _show_chains(self) -> None:
        first = not len(self.explorer)
        self.explorer.update(self.store.newest())
        if first:  # from then on the widget changes by itself
            self._chains.update(**_bundle(self.explorer, poster=False), raw=True)
        self.changed = self.clock()

    def _show_end(self) -> None:
        import plotly.io as pio

        setup()
        figure = panels_figure(f"{self.stage}, {count(len(self.rows), 'step')}", self.rows, self.why)
        self._panels.update(pio.renderers["labkit"].to_mimebundle(figure.to_dict()), raw=True)
        self.explorer.update(self.store.newest(), clips=CLIPS)
        self._chains.update(**_bundle(self.explorer, poster=True), raw=True)


def _in_notebook() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return get_ipython() is not None


def _place(text: str) -> Any:
    """A place in the output of the running cell, for what comes later."""
    from IPython.display import display

    return display({"text/plain": text}, raw=True, display_id=True)


def _bundle(explorer: ChainExplorer, poster: bool) -> dict[str, Any]:
    """What a notebook shows of a widget, as a display takes it; the poster takes as long as a step."""
    bundle: Any = explorer._repr_mimebundle_() if poster else super(ChainExplorer, explorer)._repr_mimebundle_()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    return {"obj": data, "metadata": metadata}
