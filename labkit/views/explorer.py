"""The chain explorer and the video scrubber: widgets that a page without a kernel shows just as well.

All that is drawn is drawn in the browser, by one ES module without dependencies; Python packs the chains once, and
answers when a clip is asked for that did not travel along. A step of the scrub bar therefore never waits for a kernel.
"""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import traitlets

from labkit.chain.anchors import AnchorChain
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.errors import LabError
from labkit.stages.rollouts import only_growing
from labkit.views import records as packing
from labkit.views.failures import failure_kind
from labkit.views.readings import ChainRecord
from labkit.views.records import Chains, Clip, Kind, Listed, Packed, Specs
from labkit.views.saving import hint_once
from labkit.views.sprites import Sheet, SheetCache
from labkit.views.style import count
from labkit.views.widget import PageWidget

SCRUBBER_WIDTH = 320
"""Pixels of a frame of the scrubber, which has more room than the explorer."""
VIEWS = ("chain", "group", "stages")
_SPAN: TypeAlias = Span | tuple[float, float]
Spans: TypeAlias = Mapping[str, _SPAN | Sequence[_SPAN]] | Sequence[_SPAN]
"""Spans by label, or without labels."""


class Selection(NamedTuple):
    """A chain of the explorer: the record as it was handed in, what was asked, and how the text was read."""

    record: ChainRecord
    moment: Moment
    chain: AnchorChain


class Context(NamedTuple):
    """What an explorer knows besides the chains it shows."""

    moments: Mapping[str, Moment]
    base: list[Listed]
    spec: Specs | None
    kind: Kind


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

    told = (*PageWidget.told, "selected", "filter", "stage", "kind", "view")

    def __init__(self, rollouts: Chains, context: Context, cache: SheetCache, clips: int, height: int) -> None:
        """Take what `explore` was given."""
        self._lock = threading.RLock()
        self._context = context
        self._cache = cache
        self._packed, first, told, sheets = self._pack(rollouts, clips)
        data = self._packed.data
        super().__init__(shows="explorer", data=data, clips=told, sheets=sheets, selected=first, height=height)
        self.on_msg(self._answer)

    def __repr__(self) -> str:
        queries = len({row.reading.moment.qid for row in self._packed.rows})
        told = (count(len(self), "chain"), count(queries, "query", "queries"), count(len(self.clips), "clip"))
        return "ChainExplorer({} of {}, {} inside)".format(*told)

    def __len__(self) -> int:
        return len(self._packed.rows)

    @property
    def selection(self) -> Selection | None:
        """The selected chain with its moment; None when none is selected."""
        with self._lock:
            if self.selected < 0:
                return None
            reading = self._packed.rows[self.selected].reading
            return Selection(reading.record, reading.moment, reading.chain)

    def find(self, **wanted: object) -> list[int]:
        """Places of the chains whose record, or moment, has these values: `find(qid="q1", sample=0)`.

        `stage` is the stage a chain is listed under. Each place can be assigned to `selected`.
        """

        def value(row: Listed, name: str) -> object:
            return row.stage if name == "stage" else getattr(row.reading.record, name, None)

        rows = self._packed.rows
        return [at for at, row in enumerate(rows) if all(value(row, name) == each for name, each in wanted.items())]

    def update(self, rollouts: Chains, clips: int = 1) -> None:
        """Show other chains of the same moments, as a run does that is still going on; a page keeps its filters.

        `clips` of them travel along: while a cell runs, the kernel can't be asked for more.
        """
        packed, first, told, sheets = self._pack(rollouts, clips)
        with self._lock, self.hold_sync():
            self._packed = packed
            if self.stage not in {row.stage for row in packed.rows}:
                self.stage = ""
            if self.kind not in packed.kinds:
                self.kind = ""
            self.clips, self.sheets = told, sheets
            self.selected = first
            self.data = packed.data

    def _pack(self, rollouts: Chains, clips: int) -> tuple[Packed, int, dict[str, Any], dict[str, bytes]]:
        with only_growing():
            rows = packing.listed(rollouts, self._context.moments) + self._context.base
            compared = packing.base_ious(rows)
            packed = packing.pack(rows, base=compared, spec=self._context.spec, kind=self._context.kind)
        first = packing.telling(rows)
        embedded = packing.worth_showing(packed, first, compared, clips)
        found = {str(key): self._clip(packed.clips[key]) for key in embedded}
        sheets = {key: clip.pop("sheet") for key, clip in found.items() if "sheet" in clip}
        return packed, first, found, sheets

    @traitlets.validate("selected")
    def _check_selected(self, proposal: Any) -> int:
        index = int(proposal["value"])
        if 0 <= index < len(self) or index == -1 == len(self) - 1:
            return index
        raise LabError(f"chain {index} is not among the {len(self):,} of this explorer; give 0 to {len(self) - 1}")

    @traitlets.validate("stage")
    def _check_stage(self, proposal: Any) -> str:
        stages = dict.fromkeys(row.stage for row in self._packed.rows)
        return _one_of("stage", proposal["value"], ("", *stages))

    @traitlets.validate("kind")
    def _check_kind(self, proposal: Any) -> str:
        return _one_of("kind", proposal["value"], ("", *filter(None, self._packed.kinds)))

    @traitlets.validate("view")
    def _check_view(self, proposal: Any) -> str:
        return _one_of("view", proposal["value"], VIEWS)

    def _clip(self, clip: Clip) -> dict[str, Any]:
        """A clip as the page takes it; what is wrong with a video is shown in the place of its frames."""
        try:
            sheet = self._cache.get(clip.video, clip.duration, clip.start)
        except LabError as error:
            return {"error": str(error)}
        except Exception as error:
            # An error nobody foresaw is this clip's: thousands of other chains are still to be seen.
            logging.getLogger("labkit.views").warning("%s: no frames", clip.video, exc_info=True)
            return {"error": f"video {clip.video} cannot be shown ({type(error).__name__}: {error}); replace it"}
        return {**sheet.meta(), "sheet": sheet.webp}

    def _answer(self, _: Any, message: Any, __: Any) -> None:
        """A page asks for a clip: it always gets an answer. Called in whichever thread runs the kernel's messages."""
        if not isinstance(message, dict) or message.get("ask") != "clip":
            return
        key = message.get("key")
        with self._lock:
            clips = self._packed.clips
        if isinstance(key, int) and 0 <= key < len(clips):
            clip = self._clip(clips[key])
        else:
            clip = {"error": f"there is no clip {key!r} in this explorer"}
        sheet = clip.pop("sheet", None)
        self.send({"clip": key, **clip}, [] if sheet is None else [sheet])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        chosen = self.selection
        return _with_poster(super()._repr_mimebundle_(**kwargs), repr(self), chosen)


class Scrubber(PageWidget):
    """One video with a scrub bar and labelled spans; made by `scrub`. `time` can be read, set and observed."""

    time = traitlets.Float(0.0).tag(sync=True)
    """Seconds from the clip's beginning."""

    told = (*PageWidget.told, "time")

    def __init__(self, told: dict[str, Any], sheet: Sheet) -> None:
        """Take what `scrub` has read."""
        self._name, self._seconds = told["name"], told["duration"]
        packed = gzip.compress(json.dumps(told, allow_nan=False).encode(), mtime=0)
        super().__init__(shows="scrubber", data=packed, clips={"0": sheet.meta()}, sheets={"0": sheet.webp}, height=0)

    def __repr__(self) -> str:
        return f"Scrubber('{self._name}', {self._seconds:.1f} s)"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return _with_poster(super()._repr_mimebundle_(**kwargs), repr(self), None)


def explore(
    rollouts: Chains,
    moments: Sequence[Moment],
    *,
    base: Sequence[ChainRecord] | None = None,
    spec: Specs | None = None,
    folder: str | Path | None = None,
    clips: int = 20,
    kind: Kind = failure_kind,
    height: int = 700,
) -> ChainExplorer:
    """Chains to look at: a table of all, and one over its video with every anchor, reward and sibling.

    `rollouts` may also be predictions, either of them by stage, or a table of `RolloutStore.frame()`; `moments` are
    those they were made from. `base` are the base model's chains, shown as the stage `base`, which the others are
    compared with. `spec` is what was paid, in all stages or by stage; without it weights are shown only where the
    default ones explain a total. `folder` keeps the clips' pictures between runs. `clips` of them travel along with
    the notebook: those of the worst, the best and the most regressed chains; the kernel makes the others on demand.
    `kind` names a chain's class of failure, "" for none. Raises LabError when a chain's moment isn't there.
    """
    by_qid = {moment.qid: moment for moment in moments}
    context = Context(by_qid, packing.listed({"base": base or []}, by_qid), spec, kind)
    return ChainExplorer(rollouts, context, SheetCache(folder), clips, height)


def scrub(
    video: str | Path,
    spans: Spans | None = None,
    start: float = 0.0,
    duration: float | None = None,
    *,
    folder: str | Path | None = None,
) -> Scrubber:
    """Any video with a scrub bar, and a bar for each span: `scrub("a.mp4", {"truth": (3, 8), "answer": (4, 7)})`.

    Seconds count from `start`; the clip ends after `duration`, or with the video. A label may have several spans.
    `truth` is drawn green, `answer` orange, every other label blue. `folder` keeps the clip's picture between runs.
    Raises LabError for a video that can't be read, and for a span that is none.
    """
    sheet = SheetCache(folder).get(video, duration, start, SCRUBBER_WIDTH)
    if duration is None:
        from labkit.data.video import probe

        duration = probe(video).duration - start
    named: Mapping[str, Any] = (
        spans
        if isinstance(spans, Mapping)
        else {str(k): each for k, each in enumerate(_several(() if spans is None else spans), 1)}
    )
    rows = [
        {"label": label, "spans": [_pair(label, each) for each in _several(value)]} for label, value in named.items()
    ]
    return Scrubber({"name": Path(video).name, "duration": duration, "rows": rows}, sheet)


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise LabError(f"{name} {value!r} is not one of {', '.join(repr(each) for each in allowed)}")
    return value


def _several(value: Any) -> Sequence[Any]:
    """One span or several, as several."""
    if isinstance(value, Span) or not isinstance(value, Iterable):
        return [value]
    listed = list(value)
    return [listed] if len(listed) == 2 and all(isinstance(end, Real) for end in listed) else listed


def _pair(label: str, value: Any) -> list[float]:
    try:
        span = value if isinstance(value, Span) else Span(*map(float, value))
    except (TypeError, ValueError) as error:
        raise LabError(f"span {value!r} labelled {label!r} is none ({error}); give (start, end) in seconds") from None
    return [span.start, span.end]


def _with_poster(bundle: Any, text: str, chosen: Selection | None) -> Any:
    """A widget's bundle with what viewers show that run nothing: a picture where one can be drawn, and a line of text."""
    if bundle is None:
        return None
    hint_once()
    data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
    data["text/plain"] = f"{text}. Alive in JupyterLab, once the notebook is trusted, and in the report."
    try:
        if chosen is not None and (picture := _poster(chosen)):
            data["image/png"] = picture
    except LabError as error:  # the video is gone: the explorer says so itself
        logging.getLogger("labkit.views").info("no poster: %s", error)
    return data, metadata


def _poster(chosen: Selection) -> str | None:
    """The selected chain as PNG in base64; None without a browser to draw it."""
    import plotly.io as pio

    from labkit.views.display import setup
    from labkit.views.strips import chain_picture

    if "png" not in setup():
        return None
    fig = chain_picture(chosen.record, chosen.moment)
    found: str | None = pio.renderers["labkit"].to_mimebundle(fig.to_dict()).get("image/png")
    return found
