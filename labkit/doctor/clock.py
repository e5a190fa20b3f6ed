"""Clock audit: which frames of a clip a model is shown, and which seconds it is told of them, by labkit and by other programs.

A frame is on screen from its own timestamp to the next one's; that is the truth. What other programs do is written down in
clock_rules.yaml, with version, files and day; what is installed is asked in its own code instead, and the table says so.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from labkit.data.video.decode_worker import frame_clock
from labkit.data.video.decoders import PTS_TOLERANCE, FrameClock, Times
from labkit.data.video.frames import sample_times
from labkit.doctor.clock_picture import Ladder, ladders, page
from labkit.doctor.clock_programs import RULES, pad, told_by_program
from labkit.doctor.environment import find_model, read_json
from labkit.errors import LabError
from labkit.files import replacing
from labkit.params import Params, read_yaml
from labkit.policy.families import FAMILIES, Family
from labkit.policy.inputs import patch_middles
from labkit.table import Table

WRONG = 0.1
"""Seconds from which on a time that is told is counted as wrong, beyond what the clock itself can write."""
PUBLISHED = {"tokens_per_second": 2, "temporal_patch_size": 2}
"""Of the published Qwen2.5-VL and Qwen3-VL, where a family is given by its name."""
_TEXT = re.compile(r"<(\d+\.\d) seconds>")
_WHOLE = re.compile(r"Frame from (\d+):(\d+):")
_ROUNDING = 0.05


@dataclass(frozen=True)
class ToldClock:
    """What one way tells a model of a clip, temporal patch by temporal patch."""

    family: str
    way: str
    """Program and version."""
    by: str
    """Whether its own code was asked, or its rule."""
    note: str
    frames: int
    shown: Times
    """(T, 2) seconds from and to which the frames are on screen that the time is told of: a patch's first one, or its middle."""
    told: Times
    """(T,) seconds."""
    below: float
    """A time that is told may stand for a second this much smaller, since the clock writes tenths or whole positions ..."""
    above: float
    """... or this much larger."""

    @cached_property
    def errors(self) -> Times:
        """(T,) seconds by which the times are told too early (below 0) or too late, beyond what the clock can write."""
        early = np.minimum(self.told + self.above - self.shown[:, 0], 0)
        return early + np.maximum(self.told - self.below - self.shown[:, 1], 0)

    @property
    def wrong(self) -> int:
        """How many times are told wrongly."""
        return int((np.abs(self.errors) > WRONG).sum())

    def verdict(self) -> str:
        """The worst of it in words."""
        if not self.wrong:
            return "right"
        worst = int(np.abs(self.errors).argmax())
        error, second = self.errors[worst], self.shown[worst, 0]
        return f"{abs(error):.1f} s {'early' if error < 0 else 'late'} at {second:.1f} s"


@dataclass(frozen=True)
class ClockAudit:
    """All that is told of one clip, as a table, a page and for programs."""

    video: str
    clock: FrameClock
    rows: Sequence[ToldClock]

    def title(self) -> str:
        """The clip: name, length, rate, and whether its frames come at uneven times."""
        waits = np.diff(self.clock.starts)
        uneven = len(waits) > 0 and float(np.ptp(waits)) > 0.5 / self.clock.rate
        return (
            f"{self.video}: {self.clock.end:,.1f} s, {len(self.clock.starts):,} frames, {self.clock.rate:.2f} a second"
            + (" in the mean, at uneven times" if uneven else "")
        )

    def table(self) -> Table:
        """A row for each family and way."""
        rows = [
            (row.family, row.way, str(row.frames), f"{row.shown[-1, 0]:.1f}", f"{row.told[-1]:.1f}",
             f"{row.wrong} of {len(row.told)}", row.verdict(), row.by)
            for row in self.rows
        ]  # fmt: skip
        head = ("family", "way", "frames", "last one at", "told as", "told wrongly", "worst", "by")
        return Table(self.title(), head, rows, "\n".join(self.notes()), align="llrrrrll")

    def notes(self) -> list[str]:
        """What the figures mean."""
        ways = dict.fromkeys(f"{row.way}: {row.note}" for row in self.rows if row.note)
        how = f"Seconds. A time is wrong that lies more than {WRONG} s outside those in which its frame is on screen, beyond what is "
        return [how + "written: tenths in text, whole seconds in SmolVLM2's, whole positions in Qwen2.5-VL.", *ways]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return {
            "video": self.video, "seconds": self.clock.end, "frames": len(self.clock.starts), "rate": self.clock.rate,
            "rows": [
                {"family": row.family, "way": row.way, "by": row.by, "note": row.note, "frames": row.frames,
                 "shown": row.shown.round(3).tolist(), "told": row.told.round(3).tolist(), "error": row.errors.round(3).tolist()}
                for row in self.rows
            ],
        }  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write table and picture as a page that needs no network. Raises LabError where it cannot be written."""
        try:
            with replacing(path) as draft:
                draft.write_text(page(self._repr_html_(), self.title()), encoding="utf-8")
        except OSError as error:
            raise LabError(f"'{path}' cannot be written ({error.strerror}); give another file") from None

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        drawn = [
            Ladder(row.family, row.way, row.shown[:, 0], row.told, np.abs(row.errors) > WRONG, row.verdict())
            for row in self.rows
        ]
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes())
        table = replace(self.table(), title="", note="")
        return f"{ladders(drawn, self.clock.end)}{table._repr_html_()}<ul>{notes}</ul>"


def audit_clock(video: str | Path, params: Params, model: str | None, root: Path) -> ClockAudit:
    """Compare what is told of a clip.

    `params`: frames per second and how many at most, for labkit's own. `model`: shipped weights, a folder, a hub id that is on this
    machine, or a family by its `model_type`; None takes every family that is told seconds. Raises LabError for a video that
    cannot be read, a model that is not there, and a family that is told no seconds.
    """
    if not Path(video).is_file():
        raise LabError(f"video '{video}' is not there; give a video file")
    clock = frame_clock(video)
    rows = []
    for kind, vision in _models(model, root).items():
        family = FAMILIES[kind]
        rows.append(_by_labkit(family, vision, clock, params))
        for way, rule in read_yaml(RULES).items():
            if kind in rule["families"]:
                per_second = None if _writes_times(family) else vision.tokens_per_second
                numbers, told, by = told_by_program(
                    way, rule | rule["families"][kind], kind, clock, vision.temporal_patch_size, per_second
                )
                rows.append(_row(family, f"{way} {rule['version']}", by, rule["note"], numbers, told, vision, clock))
    return ClockAudit(Path(video).name, clock, rows)


def told_seconds(family: Family, vision: Any, middles: Sequence[float], seconds: float) -> Times | None:
    """The seconds that a family's text, or else its positions, tell of patches; None of a family that is told none."""
    text = family.render_video(middles, 1, 0.0)
    if found := _TEXT.findall(text):
        return np.array(found, np.float64)
    if found := _WHOLE.findall(text):
        return np.array([60 * int(minute) + int(second) for minute, second in found], np.float64)
    if family.temporal_positions is None:
        return None
    now, slower = (family.temporal_positions(vision, len(middles), scale * seconds) for scale in (1, 2))
    return None if now == slower else np.array(now[0]) / vision.tokens_per_second


def _models(model: str | None, root: Path) -> dict[str, Any]:
    """Vision configs by `model_type`."""
    if model in FAMILIES:
        found = {model: PUBLISHED}
    elif model is None:
        found = dict.fromkeys(FAMILIES, PUBLISHED)
    else:
        there, findings = find_model(model, root)
        if there is None:
            raise LabError(findings[-1].line() + f"; or give a family: {', '.join(FAMILIES)}")
        config = read_json(there.folder / "config.json")
        found = {
            config["model_type"]: {**PUBLISHED, "tokens_per_second": 4, **config["vision_config"]}
        }  # transformers' default
    visions = {
        kind: SimpleNamespace(**vision | ({"temporal_patch_size": 1} if FAMILIES[kind].frames_as_images else {}))
        for kind, vision in found.items()
    }
    clocked = {
        kind: vision
        for kind, vision in visions.items()
        if told_seconds(FAMILIES[kind], vision, [0.5, 2.5], 2.0) is not None
    }
    if not clocked:
        title = FAMILIES[next(iter(visions))].title
        raise LabError(
            f"model {model!r} is a {title}, which is told no seconds: it counts its frames; give another model"
        )
    return clocked


def _by_labkit(family: Family, vision: Any, clock: FrameClock, params: Params) -> ToldClock:
    times = sample_times(clock.end, params.fps, params.max_frames, vision.temporal_patch_size)
    step = float(times[1] - times[0]) * vision.temporal_patch_size
    numbers = np.searchsorted(clock.starts, times + PTS_TOLERANCE, side="right").astype(np.float64) - 1
    middles = patch_middles(len(times) // vision.temporal_patch_size, step, vision.temporal_patch_size, clock.end)
    told = told_seconds(family, vision, middles, step)
    assert told is not None
    note = f"fps {params.fps:g}, max_frames {params.max_frames}"
    return _row(family, "labkit", "own code", note, numbers, told, vision, clock)


def _writes_times(family: Family) -> bool:
    text = family.render_video([0.5], 1, 0.0)
    return bool(_TEXT.search(text) or _WHOLE.search(text))


def _row(
    family: Family, way: str, by: str, note: str, numbers: Times, told: Times, vision: Any, clock: FrameClock
) -> ToldClock:
    """What is told, beside when the frames of these numbers are on screen."""
    temporal, as_text = vision.temporal_patch_size, _writes_times(family)
    starts, ends = clock.starts, np.append(clock.starts[1:], clock.end)
    patches = pad(numbers, temporal).reshape(-1, temporal).astype(int)
    of = patches[:, [0, -1]] if as_text else patches[:, :1]
    shown = np.stack([starts[of].mean(1), ends[of].mean(1)], 1)
    if _WHOLE.search(family.render_video([0.5], 1, 0.0)):
        slack = (0.0, 1.0)
    else:
        slack = (_ROUNDING, _ROUNDING) if as_text else (0.0, 1 / vision.tokens_per_second)
    return ToldClock(family.title, way, by, note, len(numbers), shown, told, *slack)
