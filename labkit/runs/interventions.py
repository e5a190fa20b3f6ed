"""Do anchors cause the answer? The figures of a model's answers to interventions on its own chains, as tables and for a program.

Differences are paired by query, and every interval is by whole videos.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from labkit.chain.anchors import AnchorChain, parse
from labkit.chain.metrics import answer_iou, chain_ious
from labkit.chain.spans import Span, clip_span
from labkit.data.moments import Moment
from labkit.scoring.baselines import SHUFFLED_FIGURES, Null, shuffled_chains
from labkit.scoring.bootstrap import Difference, Interval, Slope, few_videos, mean_interval, paired_differences, slope
from labkit.scoring.predictions import as_predictions
from labkit.scoring.scores import Paired, Score, between, compare, gap_cells, score
from labkit.stages.interventions import ASKED, FRAMES, MOST_CUTS, PLACES, UNTAGGED, Plan
from labkit.stages.rollouts import Rollout
from labkit.table import Table, percent, repr_pretty

CONDITIONS = {
    "own": "by itself",
    "closed": "forbidden: thought closed",
    UNTAGGED: "forbidden: no tag",
    "forced": "forced",
}
"""Variants that are scored as a whole, and what they are called."""
EDITS = {"shift": "shifted", "swap": "swapped", "widen": "widened"}
"""What is done to an anchor, and what the anchor is then."""
_Movement = tuple[float, float, float, str]
"""Seconds that an anchor was to be shifted by, its movement, the answer's, and the qid."""
_BARE_SPAN = re.compile(r"\d+(?:\.\d+)?\s*(?:to|-|–)\s*\d+(?:\.\d+)?")


class Dose(NamedTuple):
    """Anchors that were to be shifted by so many seconds."""

    asked: float
    moved: float
    """Mean, in seconds: less where the clip ends."""
    followed: float
    """The answers' mean movement, in seconds."""
    interval: Interval
    n: int


class Follow(NamedTuple):
    """How far answers follow an edit of an anchor."""

    slope: Slope
    """Movement of the answer's middle over that of the anchor's between shifts of a chain, and between its two swaps; of `widen` that
    of their lengths, from the unedited ones."""
    doses: list[Dose]
    """By seconds; only of shifts."""
    left_out: dict[str, int]
    """Why so many edits were not done, or not read."""
    cut_short: int
    """Anchors that were moved or widened less than asked, to the clip's border."""


class Step(NamedTuple):
    """Answers when the thought is closed behind so many anchors, of the chains that have the most of them."""

    anchors: int
    miou: float
    interval: Interval
    anchor_miou: float
    """Of the newest anchor itself; NaN of none."""
    gain: Difference | None
    """Over the step before."""
    unread: int
    """Texts without an answer, which count 0."""


class FrameChange(NamedTuple):
    """Answers on edited frames, beside those on the query's own."""

    miou: float
    before: float
    difference: Difference
    n: int
    unread: int
    """Texts without an answer, which count 0."""
    left_out: dict[str, int]


@dataclass(frozen=True, repr=False)
class Interventions:
    """What a model answered to all variants of its own chains, and the figures of that; a notebook shows them as tables."""

    model: str
    moments: Sequence[Moment]
    own: Sequence[Rollout]
    variants: Mapping[str, Mapping[str, Rollout]]
    """By variant and qid."""
    planned: Plan

    @functools.cached_property
    def chains(self) -> dict[str, dict[str, AnchorChain]]:
        """The parser's reading, by variant and qid; `own` among them."""
        rows = {"own": {each.qid: each for each in self.own}} | dict(self.variants)
        return {
            name: {qid: parse(each.text, finished=each.finished) for qid, each in found.items()}
            for name, found in rows.items()
        }

    @functools.cached_property
    def scores(self) -> dict[str, Score]:
        """Scores of the model by itself, without anchors in two ways, and with an anchor forced, by name."""
        rows = {"own": self.own} | {name: list(self.variants[name].values()) for name in CONDITIONS if name != "own"}
        return {title: score(as_predictions(rows[name], {}), list(self.moments)) for name, title in CONDITIONS.items()}

    def against_own(self, condition: str) -> Paired:
        """The model by itself less a condition, both of `CONDITIONS`, paired by query."""
        return compare(self.scores[CONDITIONS["own"]], self.scores[CONDITIONS[condition]])

    @functools.cached_property
    def anchored(self) -> int:
        """How many of its own chains have an anchor."""
        return sum(bool(chain.anchors) for chain in self.chains["own"].values())

    @functools.cached_property
    def bare_spans(self) -> int:
        """Thoughts without the tag that write a span of times all the same."""
        return sum(
            bool(_BARE_SPAN.search(chain.text.partition("</think>")[0])) for chain in self.chains[UNTAGGED].values()
        )

    @functools.cached_property
    def follows(self) -> dict[str, Follow]:
        """By place and edit, such as `last shift`: how far the answer follows."""
        return {f"{place} {edit}": self._follow(place, edit) for place in PLACES for edit in EDITS}

    def _follow(self, place: str, edit: str) -> Follow:
        variants = {f"{place} {edit}": 0.0}
        if edit == "shift":
            variants = {f"{place} shift {by:+g}": by for by in self.planned.note["shifts"]}
        against = f"{place} {'other swap' if edit == 'swap' else 'again'}"
        left_out = sum((self.planned.left_out.get(name, Counter()) for name in variants), Counter[str]())
        rows: list[_Movement] = []
        for variant, by in variants.items():
            for qid in self.variants.get(variant, {}):
                (new, new_answer), (old, old_answer) = (self._edited(name, qid, place) for name in (variant, against))
                if new is None or old is None:
                    left_out["its vocabulary cannot write the times"] += 1
                elif new_answer is None or old_answer is None:
                    left_out["no answer in the clip"] += 1
                else:
                    moved, followed = (
                        one.length - other.length if edit == "widen" else one.middle - other.middle
                        for one, other in ((new, old), (new_answer, old_answer))
                    )
                    rows.append((by, moved, followed, qid))
        doses = []
        for asked in dict.fromkeys(row[0] for row in rows) if edit == "shift" else ():
            _, moves, answers, qids = zip(*(row for row in rows if row[0] == asked), strict=True)
            mean = slope([1.0] * len(moves), answers, self._videos(qids))
            doses.append(Dose(asked, float(np.mean(moves)), mean.value, mean.interval, mean.n))
        if edit == "shift":
            rows, alone = _between(rows)
            left_out += Counter({"no other shift to hold it against": alone})
        fitted = slope([row[1] for row in rows], [row[2] for row in rows], self._videos([row[3] for row in rows]))
        return Follow(fitted, doses, dict(left_out), sum(self.planned.cut_short[name] for name in variants))

    def _edited(self, variant: str, qid: str, place: str) -> tuple[Span | None, Span | None]:
        """An edited anchor, None where it was not written as planned; and the answer behind it, None where none is in the clip."""
        chain, moment, planned = self.chains[variant][qid], self._by_qid[qid], self.planned.spans[f"{qid}/{variant}"]
        number = 0 if place == "first" else len(self.chains["own"][qid].anchors) - 1
        answer = None if chain.answer is None else clip_span(chain.answer, moment.duration)
        return planned if chain.spans[number : number + 1] == (planned,) else None, answer

    @functools.cached_property
    def steps(self) -> list[Step]:
        """Accuracy by step, over the queries whose chains have as many anchors as half of those with one; empty without any."""
        own = {qid: chain for qid, chain in self.chains["own"].items() if chain.anchors}
        if not own:
            return []
        most = min(int(np.median([len(chain.anchors) for chain in own.values()])), MOST_CUTS)
        qids = [qid for qid, chain in own.items() if len(chain.anchors) >= most]
        videos = self._videos(qids)
        steps: list[Step] = []
        before: list[float] = []
        for k in range(most + 1):
            name = f"cut {k}" if k else "closed"
            ious = [self._iou(name, qid) for qid in qids]
            anchor = np.nan if k == 0 else float(np.mean([self._own_ious[qid][k - 1] for qid in qids]))
            gain = paired_differences(_column(ious), _column(before), videos)[0] if before else None
            miou, interval, unread = float(np.mean(ious)), mean_interval(ious, videos), self._unread(name, qids)
            steps.append(Step(k, miou, interval, anchor, gain, unread))
            before = ious
        return steps

    @functools.cached_property
    def step_queries(self) -> int:
        """How many queries `steps` rest on."""
        most = self.steps[-1].anchors if self.steps else 0
        return sum(len(chain.anchors) >= most > 0 for chain in self.chains["own"].values())

    @functools.cached_property
    def frames(self) -> dict[str, FrameChange]:
        """By what was done to the last anchor's frames, and whether the `answer` was asked behind the anchors, or all `anew`."""
        found = {}
        for name in (f"{what}, {asked}" for what in FRAMES for asked in ASKED if self.anchored):
            left_out, qids = dict(self.planned.left_out.get(name, {})), list(self.variants.get(name, {}))
            miou = before = math.nan
            gap = Difference(math.nan, Interval(math.nan, math.nan), math.nan)
            if qids:
                again = "last again" if name.endswith("answer") else "own"
                edited, own = (_column([self._iou(variant, qid) for qid in qids]) for variant in (name, again))
                gap = paired_differences(edited, own, self._videos(qids))[0]
                miou, before = float(edited.mean()), float(own.mean())
            found[name] = FrameChange(miou, before, gap, len(qids), self._unread(name, qids), left_out)
        return found

    @functools.cached_property
    def elsewhere(self) -> dict[str, Difference]:
        """What hiding the anchor's frames costs beyond hiding as many elsewhere, on the same queries, by `answer` and `anew`."""
        found = {}
        for asked in ASKED:
            inside, other = (f"hide {where}, {asked}" for where in ("inside", "elsewhere"))
            if qids := list(self.variants.get(other, {})):
                ours, theirs = (_column([self._iou(name, qid) for qid in qids]) for name in (inside, other))
                videos = self._videos(qids)
                found[asked] = paired_differences(ours, theirs, videos)[0]
        return found

    @functools.cached_property
    def null(self) -> dict[str, Null]:
        """The chains' figures held against those of the same chains dealt to other queries."""
        return shuffled_chains([self.chains["own"][moment.qid] for moment in self.moments], self.moments)

    @property
    def videos(self) -> int:
        """How many videos the queries are of: what intervals rest on."""
        return len({moment.source_video for moment in self.moments})

    def as_dict(self) -> dict[str, Any]:
        """Everything for a program; fractions, seconds, and None for what there is not."""
        own = CONDITIONS["own"]
        return {
            "model": self.model, "queries": len(self.moments), "videos": self.videos, "with_anchors": self.anchored,
            "answers": {
                name: {"figures": as_plain(self.scores[title].figures), "intervals": as_plain(self.scores[title].intervals)}
                | ({} if title == own else {"by_itself_less_this": self.against_own(name).as_dict()})
                for name, title in CONDITIONS.items()
            },
            "bare_spans": self.bare_spans, "follows": as_plain(self.follows), "steps": as_plain(self.steps),
            "step_queries": self.step_queries, "frames": as_plain(self.frames),
            "inside_less_elsewhere": as_plain(self.elsewhere), "null": as_plain(self.null),
        }  # fmt: skip

    def tables(self) -> list[Table]:
        """The same as tables."""
        return [
            each
            for each in (self._answers(), self._slopes(), self._steps(), self._frames(), self._null())
            if each.rows
        ]

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.tables()))

    def __repr__(self) -> str:
        return f"<Interventions on {self.model}: {len(self.moments):,} queries, {self.anchored:,} chains with anchors>"

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        return "".join(table._repr_html_() for table in self.tables())

    def _answers(self) -> Table:
        rows = []
        for name, title in CONDITIONS.items():
            figures = [percent(self.scores[title].figures[key]) for key in ("miou", "r1@0.5", "r1@0.7")]
            share = sum(bool(chain.anchors) for chain in self.chains[name].values()) / len(self.moments)
            gap = None if name == "own" else self.against_own(name).differences["miou"]
            unread = sum(chain.answer is None for chain in self.chains[name].values())
            rows.append((title, *figures, percent(share), "" if gap is None else _gap(gap), f"{unread:,}"))
        note = (
            f"Percent, {len(self.moments):,} queries; costs: mIoU by itself less the row's, with its 95 % interval by video.\n"
            f"{self.bare_spans:,} thoughts without the tag write times all the same. {few_videos(self.videos)}"
        ).rstrip()
        return Table(
            "anchors forbidden and forced",
            ("", "mIoU", "R1@0.5", "R1@0.7", "anchors", "costs", "no answer"),
            rows,
            note,
            "lr",
        )

    def _slopes(self) -> Table:
        rows = [
            (f"{name.split()[0]}, {EDITS[name.split()[1]]}",
             "-" if np.isnan(each.slope.value) else f"{each.slope.value:.2f}", _signed(each.slope.interval),
             f"{each.slope.n:,}", f"{each.cut_short:,}", _reasons(each.left_out))
            for name, each in self.follows.items()
        ]  # fmt: skip
        note = (
            "1: the answer goes as far as the anchor was moved; 0: it stays. Widened: lengths in the place of middles."
        )
        head = ("anchor", "slope", "95 % interval", "edits", "cut short", "left out")
        return Table(
            "how far the answer follows an edited anchor", head, rows if self.anchored else [], note, "lrrrrl"
        )

    def _steps(self) -> Table:
        rows = [
            (f"{step.anchors}", percent(step.miou), between(step.interval), percent(step.anchor_miou),
             "" if step.gain is None else _gap(step.gain), f"{step.unread:,}")
            for step in self.steps
        ]  # fmt: skip
        note = f"Percent, the {self.step_queries:,} queries whose own chain has so many anchors."
        head = ("anchors", "mIoU of the answer", "95 % interval", "of the anchor itself", "gain", "no answer")
        return Table("thought closed behind so many anchors", head, rows, note, "r")

    def _frames(self) -> Table:
        rows = [
            (name, percent(each.before), percent(each.miou), _gap(each.difference),
             f"{each.n:,}", f"{each.unread:,}", _reasons(each.left_out))
            for name, each in self.frames.items()
        ]  # fmt: skip
        head = ("last anchor's frames", "own", "edited", "change", "queries", "no answer", "left out")
        note = "mIoU, percent. answer: asked behind the model's own anchors; anew: the whole chain. elsewhere: as many frames beside."
        return Table("frames edited", head, rows, note, "lrrrrrl")

    def _null(self) -> Table:
        rows = [
            (title, percent(each.observed), percent(each.mean), f"{percent(each.low)} to {percent(each.high)}", f"{each.p:.3f}")
            for name, title in SHUFFLED_FIGURES.items() if (each := self.null.get(name))
        ]  # fmt: skip
        head = ("", "as they are", "shuffled", "95 % of shuffles", "p")
        return Table("chains dealt to other queries", head, rows, "Percent, chains with an anchor.", "lr")

    @functools.cached_property
    def _by_qid(self) -> dict[str, Moment]:
        return {moment.qid: moment for moment in self.moments}

    @functools.cached_property
    def _own_ious(self) -> dict[str, list[float]]:
        return {
            qid: chain_ious(chain, self._by_qid[qid].targets, self._by_qid[qid].duration)
            for qid, chain in self.chains["own"].items()
        }

    def _videos(self, qids: Iterable[str]) -> list[str]:
        return [self._by_qid[qid].source_video for qid in qids]

    def _unread(self, variant: str, qids: Sequence[str]) -> int:
        return sum(self.chains[variant][qid].answer is None for qid in qids)

    def _iou(self, variant: str, qid: str) -> float:
        moment = self._by_qid[qid]
        return answer_iou(self.chains[variant][qid], moment.targets, moment.duration)


def as_plain(value: Any) -> Any:
    """Named tuples and mappings as plain data, what is not a number as None."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: as_plain(each) for name, each in value._asdict().items()}
    if isinstance(value, dict):
        return {name: as_plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _between(rows: Sequence[_Movement]) -> tuple[list[_Movement], int]:
    """Movements less their mean over the shifts of a chain, and how many there were without another; each has a qid.

    Behind any edited anchor an answer may go elsewhere, say to the middle of the clip; what it does alike behind all shifts of a chain
    is no following, though at the clip's borders, where anchors can be shifted one way only, it would look like it.
    """
    chains: dict[str, list[_Movement]] = {}
    for row in rows:
        chains.setdefault(row[3], []).append(row)
    found = []
    for each in chains.values():
        moved, followed = sum(row[1] for row in each) / len(each), sum(row[2] for row in each) / len(each)
        if any(abs(row[1] - moved) > 1e-6 for row in each):
            found += [(by, own - moved, answer - followed, qid) for by, own, answer, qid in each]
    return found, len(rows) - len(found)


def _column(values: Sequence[float]) -> Any:
    return np.asarray(values, dtype=np.float64)[:, None]


def _gap(gap: Difference) -> str:
    """A difference of fractions in points, with its interval."""
    value, interval, _ = gap_cells(gap)
    return "-" if math.isnan(gap.value) else value if interval == "-" else f"{value} ({interval})"


def _signed(interval: Interval) -> str:
    return "-" if math.isnan(interval.low) else f"{interval.low:+.2f} to {interval.high:+.2f}"


def _reasons(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {why}" for why, count in left_out.items()) or "none"
