"""A figure and an explorer that shows the chains of whatever is clicked in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.views.explorer.widget import ChainExplorer
from labkit.views.figures.held_chains import ChainKey, held_by, text_digest

if TYPE_CHECKING:
    import ipywidgets
    import plotly.graph_objects as go


def explore_figure(figure: go.Figure, explorer: ChainExplorer) -> ipywidgets.VBox:
    """A figure over an explorer of the same chains: a click on a point or a bar lists those that it holds.

    `explore_figure(views.atlas(records, by_qid), explore(records, moments))`. A click sets `explorer.chosen`; set it to [] for
    all chains again. Where the explorer has none of them, a line between the two says so. Raises LabError for a figure whose
    points don't say which chains they hold.
    """
    import ipywidgets
    import plotly.graph_objects as go

    if "chains" not in (figure.layout.meta or {}):
        raise LabError(
            "this figure's points don't say which chains they hold; those of chains do, such as views.atlas, before_after, "
            "lengths, funnel, iou_by_step, r1_curves, scoreboard, and training_curves of rollouts"
        )
    alive = go.FigureWidget(figure)
    note = ipywidgets.HTML()

    def choose(trace: Any, points: Any, _: Any) -> None:
        if not points.point_inds:
            return
        try:
            explorer.chosen = places_of(explorer, held_by(figure, points.trace_index, points.point_inds[0]))
            note.value = ""
        except LabError as error:  # raised in a callback, it would be seen by nobody
            note.value = html.escape(str(error))

    for trace in alive.data:
        if "held" in (trace.meta or {}):
            trace.on_click(choose)
    return ipywidgets.VBox([alive, note, explorer])


def places_of(explorer: ChainExplorer, keys: Sequence[ChainKey]) -> list[int]:
    """Places of the chains among those of an explorer, as js/held.js finds them; those that it doesn't have are left out.

    Raises LabError when it has none of them.
    """
    wanted: dict[tuple[str, int, int], list[ChainKey]] = {}
    for key in keys:
        wanted.setdefault((key.qid, key.step, key.sample), []).append(key)
    found = []
    for place, row in enumerate(explorer.rows):
        for key in wanted.get((row.record.qid, row.step, row.sample), ()):
            same_run = not (key.run and row.run) or key.run == row.run
            same_stage = not row.stage or row.stage in (key.label, key.stage)
            if same_run and same_stage and key.digest in (None, text_digest(row.record.text)):
                found.append(place)
                break
    if keys and not found:
        raise LabError(
            f"none of the {len(keys)} chains of this point is in the explorer; explore the records that the figure was made from"
        )
    return found
