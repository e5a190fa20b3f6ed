"""The chain explorer and the video scrubber: widgets that a page without a kernel shows just as well.

All that is drawn is drawn in the browser, by one ES module without dependencies; Python packs the chains once, and
answers when a clip is asked for that was not saved with it. A step of the scrub bar therefore never waits for a kernel.
"""

from __future__ import annotations

import html
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import traitlets

from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.scoring.predictions import Answers
from labkit.stages.rollouts import RolloutStore, gc_paused
from labkit.views.explorer import packing, subset
from labkit.views.explorer.chain_columns import ChainColumns, Kind
from labkit.views.explorer.packing import Specs, VideoClip
from labkit.views.explorer.page import PageWidget, saving_hint_of_server
from labkit.views.explorer.sprites import SHARP_WIDTH, WIDTH, OnProgress, Sheet, SheetCache
from labkit.views.explorer.still import draw_still
from labkit.views.figures.held_chains import ChainKey, held_by, text_digest
from labkit.views.figures.style import Figure, count, in_stage_order
from labkit.views.measured_chains import ChainRecord, MeasuredChain, Records, by_stage, with_predictions

if TYPE_CHECKING:
    import ipywidgets

PROGRESS_SECONDS = 0.2
"""Between two messages of how far a clip's pictures are."""
VIEWS = ("chain", "group", "stages")


class Context(NamedTuple):
    """What an explorer knows besides the chains it shows."""

    moments: Mapping[str, Moment]
    base: Sequence[tuple[str, ChainRecord]] = ()
    """The base model's chains, each behind what it is shown under."""
    spec: Specs | None = None
    kind: Kind | None = None
    kept: frozenset[tuple[str, str]] = frozenset()
    """Query and text of the chains that are saved before others."""
    sources: Sequence[str] = ()
    """Labels of the models whose predictions are compared, the first with the others; none of a run's chains."""


class ChainExplorer(PageWidget):
    """Thousands of anchor chains in a table, and the one that is selected over its video; made by `explore`.

    `selected`, `filter`, `stage`, `kind` and `view` can be read, set and observed, from here and from the page.
    """

    selected = traitlets.Int(-1).tag(sync=True)
    """Place of the selected chain among the records handed in; -1 where there are none."""
    filter = traitlets.Unicode().tag(sync=True)
    """Text that a chain's query, thought, qid or video must hold."""
    stage = traitlets.Unicode().tag(sync=True)
    """The only stage to list, "" for all."""
    kind = traitlets.Unicode().tag(sync=True)
    """The only class of failure to list, "" for all."""
    view = traitlets.Unicode("chain").tag(sync=True)
    """chain, group (all chains of one prompt) or stages (one query through the stages)."""

    chosen = traitlets.List(traitlets.Int()).tag(sync=True)
    """Places of the only chains to list, those of a figure's point for example; empty for all."""

    page_traits = (*PageWidget.page_traits, "selected", "filter", "stage", "kind", "view", "chosen")
    page_name = "explorer"
    """What of js/index.js draws it."""

    def __init__(
        self, rollouts: Records | RolloutStore, context: Context, cache: SheetCache, clips: int, height: int
    ) -> None:
        """Take what `explore` was given."""
        self._lock = threading.RLock()
        self._context, self._cache = context, cache
        self._read(rollouts)
        layouts, sheets = self._clips_to_embed(clips)
        super().__init__(
            shows=self.page_name, data=self._packed.data, clips=layouts, sheets=sheets, selected=self._first, height=height,
            view="stages" if context.sources else "chain",
        )  # fmt: skip
        self.hint = saving_hint_of_server()

    def __repr__(self) -> str:
        return f"ChainExplorer({self._counted()}, {count(len(self.clips), 'clip')} inside)"

    def _counted(self) -> str:
        counted = f"{count(len(self), 'chain')} of {count(len(self._rows.moments), 'query', 'queries')}"
        saved = len(self._places)
        return counted if saved == len(self) else f"{counted}, {saved:,} of the chains are saved with it"

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> ChainColumns:
        """All chains in their places, each made when it is asked for, and what is known of them as columns."""
        return self._rows

    @property
    def selection(self) -> MeasuredChain | None:
        """The selected chain: `record` as it was handed in, its `moment`, and the `chain` as it was read; None when none is."""
        with self._lock:
            return None if self.selected < 0 else self._rows[self.selected]

    def find(self, **wanted: object) -> list[int]:
        """Places of the chains whose record, or moment, has these values: `find(qid="q1", sample=0)`.

        `stage` is the stage a chain is listed under. Each place can be assigned to `selected`.
        """
        rows = self._rows
        there = np.ones(len(rows), dtype=bool)
        for column, name in (("stage", "stage"), ("moment", "qid")):
            if name in wanted:
                there &= rows.where(column, str(wanted.pop(name)))
        places: list[int] = np.flatnonzero(there).tolist()
        if not wanted:
            return places
        return [
            place
            for place, record in zip(places, rows.records(places), strict=True)
            if all(getattr(record, name, None) == each for name, each in wanted.items())
        ]

    def update(self, rollouts: Records | RolloutStore, clips: int = 1) -> None:
        """Show other chains of the same moments, as a run does that is still going on; a page keeps its filters.

        `clips` of them are saved with it: while a cell runs, the kernel can't be asked for more.
        """
        with self._lock, self.hold_sync():
            self._read(rollouts)
            if self.stage not in self._rows.names["stage"]:
                self.stage = ""
            if self.kind not in self._rows.names["kind"]:
                self.kind = ""
            self.chosen = []
            self.clips, self.sheets = self._clips_to_embed(clips)
            self.selected = self._first
            self.data = self._packed.data

    def _read(self, rollouts: Records | RolloutStore) -> None:
        """Measure all chains, and pack the subset that is saved."""
        context = self._context
        with gc_paused():
            self._rows = rows = ChainColumns(rollouts, context.moments, context.kind, context.base)
            self._base = rows.base_ious(*context.sources[:1])
            asked = np.isin(rows.names["moment"], [qid for qid, _ in context.kept])[rows.moment]
            queries = rows.moment[asked].tolist()
            places = np.flatnonzero(asked).tolist()
            self._kept = [
                place
                for place, query, text in zip(places, queries, rows.texts(places), strict=True)
                if (rows.names["moment"][query], text) in context.kept
            ]
        self._first = self._first_to_show()
        self._pack(self._first)

    def _first_to_show(self) -> int:
        """Place of the chain to open with; -1 when there is none."""
        return self._rows.most_disputed() if self._context.sources else self._rows.first_to_show()

    def _pack(self, first: int, asked: Mapping[str, Any] | None = None, chosen: Sequence[int] = ()) -> None:
        """Pack the subset that is saved: that one and others, those that pass the filters that a page has `asked` with.

        Of `chosen` ones, no others.
        """
        context, rows, most = self._context, self._rows, subset.MOST_CHAINS
        with gc_paused():
            found = None if asked is None else subset.matching(rows, self._base, asked)
            if chosen:
                found = sorted(set(chosen) if found is None else set(chosen).intersection(found))
            while True:
                self._places = self._saved(first, found, most)
                saved = rows.take(self._places)
                self._packed = packing.pack(
                    saved, base=self._base, spec=context.spec, kind=context.kind, left_out=self._left_out(found),
                    sources=context.sources,
                )  # fmt: skip
                size = len(self._packed.data)
                fewer = max(subset.FEWEST_CHAINS, int(0.95 * len(saved) * subset.MOST_BYTES / size))
                if size <= subset.MOST_BYTES or len(saved) <= subset.FEWEST_CHAINS or fewer >= most:
                    break
                most = fewer
        self._here = frozenset(self._places)
        self._only_chosen = bool(chosen)

    def _saved(self, first: int, found: Sequence[int] | None, most: int) -> list[int]:
        """Places of the chains to save, the `first` among them: about `most`, of those that were `found` if any were looked for."""
        return subset.choose_subset(self._rows, first, self._base, most=most, among=found, kept=self._kept)

    def _left_out(self, found: Sequence[int] | None) -> dict[str, Any] | None:
        """What the page says beside the table of chains that are not in the subset; None where all are."""
        if len(self._places) == len(self._rows):
            return None
        here, every = f"{len(self._places):,}", f"{len(self._rows):,}"
        if found is None:
            where = " and ".join(f"run '{run}'" for run in self._rows.names["run"][:3] if run)
            kept = "kept, " if self._context.kept else ""
            text = (
                f"{here} of {every} chains are saved in this notebook: whole groups, some of each step, and those with the "
                f"{kept}worst, best and most regressed chains. The others are in "
                + (f"the rollouts of {where}." if where else "the records that this was made from.")
            )
        elif found:
            text = (
                f"{count(len(found), 'chain')} of {every} pass these filters; {here} are here, whole groups of theirs."
            )
        else:
            text = f"None of {every} chains passes these filters."
        names = {
            "stage": in_stage_order(self._rows.names["stage"]),
            "status": self._rows.names["status"],
            "kind": self._rows.names["kind"],
        }
        return {
            "all": len(self._rows),
            "text": text,
            "found": found is not None,
            "places": self._places,
            "names": names,
        }

    def _clips_to_embed(self, most: int) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Clips that are saved with the widget, and their sprite sheets, by the keys a page asks with."""
        first = self._places.index(self._first) if self._first >= 0 else -1
        found: dict[str, Any] = {}
        sheets: dict[str, bytes] = {}
        for key in subset.clips_to_embed(self._rows, self._places, self._packed.clip_of, first, self._base, most):
            clip = self._clip(self._packed.clips[key])
            sheet = clip.pop("sheet", b"")
            if sheets and sum(map(len, sheets.values())) + len(sheet) > subset.MOST_SHEET_BYTES:
                break
            found[str(key)] = clip
            if sheet:
                sheets[str(key)] = sheet
        return found, sheets

    def _repack(self, first: int, asked: Mapping[str, Any] | None = None) -> None:
        """Put other chains into the subset; clips that are already there stay."""
        held = {self._packed.clips[int(key)]: key for key in self.clips}
        self._pack(first, asked, self.chosen)
        with self.hold_sync():
            kept = {str(new): held[clip] for new, clip in enumerate(self._packed.clips) if clip in held}
            self.clips, self.sheets = (
                {new: by_key[old] for new, old in kept.items() if old in by_key}
                for by_key in (self.clips, self.sheets)
            )
            self.data = self._packed.data

    @traitlets.observe("selected")
    def _include_selected(self, change: Any) -> None:
        """A chain that was selected from Python, and is not in the subset, is put there."""
        with self._lock:
            if change["new"] >= 0 and change["new"] not in self._here:
                self._repack(change["new"])

    @traitlets.observe("chosen")
    def _include_chosen(self, change: Any) -> None:
        """Chains that were chosen from Python, and are not in the subset, are put there, and later the others again."""
        with self._lock:
            if not self._here.issuperset(change["new"]):
                self._repack(change["new"][0])
            elif self._only_chosen and not change["new"]:
                self._repack(self.selected)

    @traitlets.validate("chosen")
    def _check_chosen(self, proposal: Any) -> list[int]:
        if strange := [place for place in proposal["value"] if not 0 <= place < len(self)]:
            raise LabError(
                f"chain {strange[0]} is not among the {len(self):,} of this explorer; give 0 to {len(self) - 1}"
            )
        return list(proposal["value"])

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Any) -> int:
        index = int(proposal["value"])
        if 0 <= index < len(self) or index == -1 == len(self) - 1:
            return index
        raise LabError(f"chain {index} is not among the {len(self):,} of this explorer; give 0 to {len(self) - 1}")

    @traitlets.validate("stage", "kind", "view")
    def _check_word(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, str(proposal["value"])
        allowed = dict.fromkeys(VIEWS if name == "view" else ["", *self._rows.names[name]])
        if value not in allowed:
            raise LabError(f"{name} {value!r} is not one of {', '.join(map(repr, allowed))}")
        return value

    def _sheet(self, clip: VideoClip, on_progress: OnProgress | None = None) -> tuple[Sheet | None, str]:
        """A clip's pictures, sharper where it is the only one, or what is wrong with it: the rest is as good without."""
        width = SHARP_WIDTH if len(self._packed.clips) == 1 else WIDTH
        return self._cache.get_or_problem(clip.video, clip.duration, clip.start, width, on_progress)

    def _clip(self, clip: VideoClip, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """A clip as the page takes it; what is wrong with a video is shown in the place of its frames."""
        sheet, problem = self._sheet(clip, on_progress)
        return {"error": problem} if sheet is None else {**sheet.meta(), "sheet": sheet.webp}

    @property
    def clip_sources(self) -> Sequence[VideoClip]:
        """The clips by the key that a page asks with."""
        with self._lock:
            return self._packed.clips

    def _answer(self, client: Any, message: Any, buffers: Any) -> None:
        """A page asks for a clip: it always gets an answer. Called in whichever thread runs the kernel's messages.

        Or it asks for the chains that pass its filters among all, which then take the place of the others.
        """
        super()._answer(client, message, buffers)
        if not isinstance(message, dict):
            return
        if message.get("ask") == "chains" and isinstance(message.get("filters"), dict):
            with self._lock:
                self._repack(self.selected, message["filters"])
        if message.get("ask") != "clip":
            return
        key = message.get("key")
        with self._lock:
            clips = self._packed.clips
        if isinstance(key, int) and 0 <= key < len(clips):
            told = 0.0

            def progress(done: int, frames: int) -> None:
                nonlocal told
                if (now := time.monotonic()) - told > PROGRESS_SECONDS:
                    told = now
                    self.send({"making": key, "share": done / frames})

            clip = self._clip(clips[key], progress)
        else:
            clip = {"error": f"there is no clip {key!r} in this explorer"}
        sheet = clip.pop("sheet", None)
        self.send({"clip": key, **clip}, [] if sheet is None else [sheet])

    def _poster(self) -> bytes | None:
        with self._lock:
            if self.selected < 0:
                return None
            place = self._places.index(self.selected) if self.selected in self._here else 0
            packed = self._packed
            sheet, problem = self._sheet(packed.clips[packed.clip_of[place]])
            return draw_still(packed.rows, place, sheet, self._counted(), problem)


def explore(
    rollouts: Records | Answers | RolloutStore,
    moments: Sequence[Moment],
    *,
    rules: str | None = None,
    base: Sequence[ChainRecord] | Answers | None = None,
    spec: Specs | None = None,
    folder: str | Path | None = None,
    clips: int = 20,
    kind: Kind | None = None,
    kept: Sequence[ChainRecord] = (),
    height: int = 700,
) -> ChainExplorer:
    """Chains to look at: a table of all, and one over its video with every anchor, reward and sibling.

    `rollouts` may also be a `RolloutStore`, of which a million chains take 300 MB since no text is held, or predictions, either of
    them by stage, or a table of `RolloutStore.frame()`; `moments` are those they were made from. `base` are the base model's chains,
    shown as the stage `base`, which the others are
    compared with. Rollouts say themselves what they were paid by. Of chains that don't (a table, stores of earlier versions),
    `spec` is what is paid, in all stages or by stage, or the default; where that does not explain a recorded total, the
    page says so and shows no weights. `folder` keeps the clips' pictures between runs. `clips` of them are saved with
    the notebook: those of the worst, the best and the most regressed chains; the kernel makes the others on demand.
    Up to `labkit.views.explorer.subset.MOST_CHAINS` chains are saved, too: whole groups of each step, and those with the worst, the
    best and the most regressed chain and with one that was `kept`; the page finds the others with the kernel's help.
    `kind` names a chain's class of failure from its windows and duration, "" for none, in the place of labkit's own.
    Raises LabError when a chain's moment isn't there.

    Whatever `labkit.score` takes is shown as its `rules` read it, one chain a question: of ranked windows the first is the
    answer, anchors are those of the rules' own models, and nothing has a reward. Several files, or several models' predictions by
    label, stand side by side, query by query, and are compared with the first.
    """
    by_qid = {moment.qid: moment for moment in moments}
    if isinstance(rollouts, RolloutStore) and rules is not None:
        rollouts = rollouts.read()
    records, note = with_predictions(rollouts, moments, rules)
    if note:
        logging.getLogger("labkit.views").warning("%s", note)
    compared = with_predictions(base, moments, rules)[0] if base else []
    context = Context(
        by_qid, by_stage({"base": compared}), spec, kind,
        frozenset((record.qid, record.text) for record in kept), [] if compared else packing.sources_of(records),
    )  # fmt: skip
    return ChainExplorer(records, context, SheetCache(folder), clips, height)


def explore_figure(figure: Figure, explorer: ChainExplorer) -> ipywidgets.VBox:
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
    rows, found = explorer.rows, []
    places = np.flatnonzero(np.isin(rows.names["moment"], [key.qid for key in keys])[rows.moment]).tolist()
    for place, row in zip(places, rows.take(places), strict=True):
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
