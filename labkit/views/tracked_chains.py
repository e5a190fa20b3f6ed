"""Chains of a step as trackers show them: the best, the median and the worst, each as text and as the explorer's still picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.runs.trackers import TrackedChain
from labkit.stages.rollouts import Rollout
from labkit.views.explorer.sprites import SheetCache
from labkit.views.explorer.still import draw_still
from labkit.views.measured_chains import measure_chains


def tracked_chains(rollouts: Sequence[Rollout], moments: Sequence[Moment], sheets: Path) -> list[TrackedChain]:
    """The best, the median and the worst of a step's rollouts by the IoU of the answer; `sheets` keeps the clips' pictures."""
    rows = measure_chains(rollouts, {moment.qid: moment for moment in moments})
    order = sorted(range(len(rows)), key=lambda at: (-rows[at].answer_iou, at))
    cache, shown = SheetCache(sheets), []
    for name, place in {"best": 0, "median": len(order) // 2, "worst": -1}.items() if order else ():
        row = rows[order[place]]
        moment, sheet, problem = row.moment, None, ""
        try:
            sheet = cache.get(moment.video, moment.duration, moment.start)
        except LabError as error:  # the rest of the picture is as good without its frames
            problem = str(error)
        caption = f"step {rollouts[0].step}: the {name} of {len(rows):,} chains"
        picture = draw_still(rows, order[place], sheet, caption, problem)
        text = f"{moment.query}\n{row.record.text}\nIoU {row.answer_iou:.2f}"
        shown.append(TrackedChain(name, text, picture))
    return shown
