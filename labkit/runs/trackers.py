"""Trackers: TensorBoard, Weights & Biases and Trackio get each step's figures, and some chains, while a stage trains.

The notebook's own process reports, however many train. What each tracker has been given is noted in the stage's folder: a stage
that goes on after a stop repeats steps, and no step is reported twice. A tracker that fails is left out, and training goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from labkit.errors import LabError
from labkit.files import write_json
from labkit.progress import say

CHAINS_EVERY = 10
"""Steps between two reports of chains, from the first step on."""
NOTE = "tracked.json"
"""In a stage's folder: the last step that each tracker has been given."""


class TrackedChain(NamedTuple):
    """A chain as a tracker shows it."""

    name: str
    """Such as `best`: what it is among those of its step."""
    text: str
    png: bytes


class Tracker(Protocol):
    """One tracker's log of one stage."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Take a step's figures."""

    def show(self, step: int, chains: Sequence[TrackedChain]) -> None:
        """Take chains that were sampled in a step, after its figures."""

    def close(self) -> None:
        """End the log, so that it can be read whole."""


class StageLog(NamedTuple):
    """What is logged, and where."""

    run: Path
    """The run's directory."""
    stage: str
    """Its folder in there."""
    config: Mapping[str, Any]
    """Shown beside the figures: the run's parameters."""
    created: str = ""
    """When the run was: one of the same name that is started over has a log of its own."""

    @property
    def title(self) -> str:
        """Such as `embedded-01_grpo`."""
        return f"{self.run.name}-{self.stage}"

    @property
    def key(self) -> str:
        """By which whoever goes on with the stage finds its log."""
        return f"{self.title}-{hashlib.sha256(self.created.encode()).hexdigest()[:6]}"

    @property
    def note(self) -> Path:
        """The file of the last step that each tracker has been given."""
        return self.run / self.stage / NOTE


def require_trackers(names: Iterable[str]) -> None:
    """Raise LabError where a tracker's package is not installed; nothing is imported."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise LabError(
                f"report_to: {name} is not installed here; 'pip install {name}' (or labkit[trackers]), or take it out of report_to"
            )


class Trackers:
    """All trackers of a stage; call it with the row of each step, and `end` with all of them.

    They are opened by `open` before training, or else when there is something to report.
    """

    def __init__(
        self, names: Sequence[str], where: StageLog, chains: Callable[[], Sequence[TrackedChain]] = list
    ) -> None:
        """`chains` are those of the stage's newest step; without `names` nothing is imported, read or written."""
        self.names, self.where, self.chains = list(dict.fromkeys(names)), where, chains
        self.opened: dict[str, Tracker] = {}
        self.last = self._read_note() if self.names else {}

    def open(self) -> None:
        """Open every tracker; raises LabError with what a tracker says where it cannot be had, such as without a login."""
        for name in self.names:
            if name not in self.opened:
                try:
                    self.opened[name] = _OPEN[name](self.where, self.last.get(name, 0))
                except Exception as error:  # another program's, whatever it is: nothing has been trained yet
                    raise LabError(
                        f"report_to: {name} cannot be opened ({type(error).__name__}: {error}); log in to it, set it offline "
                        "(WANDB_MODE=offline), or take it out of report_to"
                    ) from error

    def resume(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take the rows of steps that were taken before: those that a tracker has not been given are reported now."""
        for row in rows:
            self._report(row, chains=False)

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Take the row of a step."""
        self._report(row, chains=(int(row["step"]) - 1) % CHAINS_EVERY == 0)

    def end(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Report what no tracker was given of all `rows`, and close the trackers."""
        self.resume(rows)
        for name in list(self.opened):
            self._careful(name, lambda tracker: tracker.close(), self.last.get(name, 0))
        self.opened.clear()

    def _report(self, row: Mapping[str, Any], chains: bool) -> None:
        step = int(row["step"])
        due = [name for name in self.names if step > self.last.get(name, 0)]
        if not due:
            return
        self.open()
        figures = {name: float(value) for name, value in row.items() if name != "step" and _is_figure(value)}
        shown = self._chains(step) if chains else []
        for name in due:
            if not self._careful(name, lambda tracker: tracker.log(step, figures), step):
                continue
            self.last[name] = step
            if shown:
                self._careful(name, lambda tracker: tracker.show(step, shown), step)
        write_json(self.where.note, self.last)

    def _chains(self, step: int) -> Sequence[TrackedChain]:
        try:
            return self.chains()
        except Exception as error:  # a picture is worth no training
            say(f"{self.where.stage}: the chains of step {step} could not be drawn for the trackers ({error!r})")
            return []

    def _careful(self, name: str, what: Callable[[Tracker], None], step: int) -> bool:
        """Tell a tracker something, and whether it took it; one that fails is told nothing more."""
        if name not in self.opened:
            return False
        try:
            what(self.opened[name])
        except Exception as error:  # whatever it is: hours of training are worth more than a curve
            say(
                f"{self.where.stage}: {name} is told nothing more from step {step} on ({type(error).__name__}: {error})"
            )
            del self.opened[name]
            self.names.remove(name)
            return False
        return True

    def _read_note(self) -> dict[str, int]:
        try:
            return dict(json.loads(self.where.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):  # none yet: what was reported before is reported again
            return {}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class _TensorBoard:
    """Event files in RUN/tensorboard/STAGE: `tensorboard --logdir outputs`."""

    def __init__(self, where: StageLog, last: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(where.run / "tensorboard" / where.stage), purge_step=last + 1)
        if not last:
            lines = "\n".join(f"    {name}: {value}" for name, value in where.config.items())
            self.writer.add_text("parameters", lines, 0)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # a kill loses none that were noted

    def show(self, step: int, chains: Sequence[TrackedChain]) -> None:
        for name, text, png in chains:
            self.writer.add_text(f"chain/{name}", "    " + text.replace("\n", "\n    "), step)
            self.writer.add_image(f"chain/{name}", _pixels(png), step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Table:
    """What Weights & Biases and Trackio have in common: a run for each stage, rows by step, pictures among them."""

    def __init__(self, tool: str, where: StageLog, **options: Any) -> None:
        self.tool: Any = importlib.import_module(tool)
        project = os.environ.get(f"{tool.upper()}_PROJECT", "labkit")
        self.tool.init(project=project, config=dict(where.config), resume="allow", **options)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.tool.log(dict(figures), step=step)

    def show(self, step: int, chains: Sequence[TrackedChain]) -> None:
        shown = {f"chain/{name}": self.tool.Image(_pixels(png), caption=text) for name, text, png in chains}
        self.tool.log(shown, step=step)

    def close(self) -> None:
        self.tool.finish()


def _wandb(where: StageLog, last: int) -> Tracker:
    settings = importlib.import_module("wandb").Settings(console="off", silent=True)
    return _Table("wandb", where, name=where.title, id=where.key, dir=str(where.run), settings=settings)


def _trackio(where: StageLog, last: int) -> Tracker:
    return _Table("trackio", where, name=where.key)


def _pixels(png: bytes) -> Any:
    import io

    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


_OPEN: dict[str, Callable[[StageLog, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}
