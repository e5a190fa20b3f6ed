"""The columns of many chains as a page gets them: packed once, with everything already parsed and measured.

The page draws and compares numbers; it never parses a model's text nor computes a score, so that a view and a figure
cannot read one chain in two ways. Packing thirty thousand chains takes as long as parsing them, since it goes column by column.
"""

from __future__ import annotations

import gzip
import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import orjson

from labkit.chain.anchors import AnchorChain
from labkit.chain.rewards import TERMS, OwnValue, RewardSpec, score_moment
from labkit.chain.spans import Span
from labkit.chain.steps import LEAST_GAIN
from labkit.data.moments import Moment
from labkit.scoring.readings import PredictedChain
from labkit.views.explorer.chain_columns import Kind, kind_of
from labkit.views.figures.failures import KINDS, MEANINGS
from labkit.views.figures.style import STAGES, in_order
from labkit.views.measured_chains import ChainRecord, MeasuredChain, Records

Specs: TypeAlias = RewardSpec | Mapping[str, RewardSpec]
"""What was paid: in every stage the same, or by stage."""


class VideoClip(NamedTuple):
    """The part of a video that a moment is about: `start` to `start + duration` seconds."""

    video: str
    start: float
    duration: float


class PackedChains(NamedTuple):
    """Chains ready for a page: gzipped columns, the chains in their order, and the clips by the key a page asks with."""

    data: bytes
    rows: list[MeasuredChain]
    clips: list[VideoClip]
    clip_of: list[int]
    """The clip of each chain."""


def pack(
    rows: Sequence[MeasuredChain],
    *,
    base: Mapping[str, float] | None = None,
    spec: Specs | None = None,
    kind: Kind | None = None,
    left_out: Mapping[str, Any] | None = None,
    sources: Sequence[str] = (),
) -> PackedChains:
    """Columns of all chains as gzipped JSON, moments and names once.

    `left_out` is what a page says of chains that are left out; with `places`, those of the rows among all chains.

    `base` is the base model's IoU by qid, or that of the first of several `sources`. A chain is explained by the
    spec that it has on record; where it has none by
    `spec`, and without that by the default one. Weights are given only where they explain its recorded total, and the
    reason of a term only where it explains the recorded term.
    """
    used = list({row.moment.qid: row.moment for row in rows}.values())
    places = {moment.qid: place for place, moment in enumerate(used)}
    clips = {clip: place for place, clip in enumerate(dict.fromkeys(map(clip_of, used)))}
    clip_at = [clips[clip_of(moment)] for moment in used]
    columns: dict[str, Any] = {
        "text": [row.record.text for row in rows],
        "moment": [places[row.moment.qid] for row in rows],
        "anchors": [anchor_columns(row.chain) for row in rows],
        "answer": [answer_column(row.chain) for row in rows],
        "ious": rounded([row.ious for row in rows]),
        "option": [row.chain.option for row in rows],
        "step": [row.step for row in rows],
        "sample": [row.sample for row in rows],
    }
    if any(moment.options for moment in used):
        columns["option_chars"] = [option_chars(row.chain) for row in rows]
    names: dict[str, list[str]] = {}
    for name, order, values in (
        ("stage", STAGES, [row.stage for row in rows]),
        ("status", (), [row.chain.status for row in rows]),
        ("run", (), [row.run for row in rows]),
        ("kind", KINDS, [kind_of(kind, row) for row in rows]),
    ):
        names[name] = in_order(values, order)
        place = {value: at for at, value in enumerate(names[name])}
        columns[name] = [place[value] for value in values]
    columns["completion_tokens"] = [
        None if paid_total(row.record) is None else getattr(row.record, "completion_tokens", None) for row in rows
    ]
    # Harvested chains compete with nobody, and carry a 0 where an advantage would stand.
    trained = [None if row.stage == "distill" else getattr(row.record, "advantage", None) for row in rows]
    (columns["advantage"],) = rounded([trained])
    # A choice is paid only where there is one.
    terms = [term for term in TERMS if term != "option" or any(moment.options for moment in used)]
    terms += _own_terms(rows, spec)
    ledgers, weights = _reward_columns(rows, spec, names, terms)
    columns |= ledgers
    page = {
        "columns": columns,
        "format": 1,
        "terms": terms,
        "names": names,
        "meanings": {name: MEANINGS[name] for name in names["kind"] if name in MEANINGS},
        "weights": weights,
        "least_gain": LEAST_GAIN,
        "moments": [
            _moment(moment, clip, (base or {}).get(moment.qid)) for moment, clip in zip(used, clip_at, strict=True)
        ],
    }
    if sources:
        page["sources"] = list(sources)
    if left_out:
        page["left_out"] = dict(left_out)
    data = gzip.compress(as_json(page), 4, mtime=0)
    return PackedChains(data, list(rows), list(clips), [clip_at[moment] for moment in columns["moment"]])


def sources_of(records: Records) -> list[str]:
    """The labels of several models' predictions, in their order; none where the records are of a run, or of one model."""
    if not isinstance(records, Mapping) or len(records) < 2:
        return []
    several = all(isinstance(chain, PredictedChain) for chains in records.values() for chain in chains)
    return list(records) if several else []


def clip_of(moment: Moment) -> VideoClip:
    """The clip that a moment is about."""
    return VideoClip(moment.video, moment.start, moment.duration)


def _moment(moment: Moment, clip: int, base: float | None) -> dict[str, Any]:
    packed = {
        "qid": moment.qid,
        "query": moment.query,
        # A path says where somebody's files lie; the name is enough to find the video again.
        "video": PurePath(moment.video).name,
        "clip": clip,
        "windows": [[window.start, window.end] for window in moment.windows],
        "duration": moment.duration,
        "start": moment.start,
        "base": None if base is None else round(base, 4),
    }
    if moment.options:
        packed |= {"options": list(moment.options), "choice": moment.choice}
    return packed


def _reward_columns(
    rows: Sequence[MeasuredChain], spec: Specs | None, names: dict[str, list[str]], terms: Sequence[str]
) -> tuple[dict[str, list[Any]], list[dict[str, float]]]:
    """What each chain earned by term, in total, by which weights, and why; then the weights that explain any.

    `weighed` counts the weights from 1, and is 0 where none explain a total; `reasons` are numbers of texts.
    """
    earned: list[list[float]] = []
    totals: list[float] = []
    weighed: list[int] = []
    reasons: list[list[int]] = []
    texts: dict[str, int] = {"": 0}
    assumed = {stage: _spec(spec, stage) for stage in names["stage"]}
    columns = [(term, f"reward_{term}") for term in terms]
    weights: list[dict[str, float]] = []
    for row in rows:
        record, moment = row.record, row.moment
        # Nobody paid for a prediction, and its rules may not be labkit's; without a truth nothing can be paid.
        if isinstance(record, PredictedChain) or not moment.has_truth:
            earned.append([math.nan] * len(terms))
            reasons.append([0] * len(terms))
            totals.append(math.nan)
            weighed.append(0)
            continue
        paid: RewardSpec = getattr(record, "spec", None) or assumed[row.stage]
        own: Mapping[str, OwnValue] = getattr(record, "own", {})
        breakdown = score_moment(row.chain, moment, paid, f"step {row.step}, sample {row.sample}", own)
        recorded = paid_total(record)
        total = breakdown.total if recorded is None else recorded
        explained = 0.0
        values, why = [], []
        for term, column in columns:
            # An evaluation pays nothing: what the reward would have been is shown in its place.
            would = breakdown.terms.get(term, math.nan)
            value = would if recorded is None else getattr(record, column, would)
            if term in paid.weights:
                explained += paid.weights[term] * value
            values.append(value)
            same = abs(value - would) < 1e-6
            why.append(texts.setdefault(breakdown.reasons[term], len(texts)) if same else 0)
        earned.append(values)
        reasons.append(why)
        totals.append(total)
        weighed.append(_place(paid, terms, weights) if abs(explained - total) < 1e-6 else 0)
    names["reason"] = list(texts)
    (total_column,) = rounded([totals])
    return {"earned": rounded(earned), "total": total_column, "weighed": weighed, "reasons": reasons}, weights


def _own_terms(rows: Sequence[MeasuredChain], spec: Specs | None) -> list[str]:
    """The user's own terms that any chain was paid by, or would be."""
    specs: dict[int, RewardSpec | None] = (
        {id(each): each for each in (spec or {}).values()} if isinstance(spec, Mapping) else {0: spec}
    )
    specs |= {id(paid): paid for row in rows if (paid := getattr(row.record, "spec", None)) is not None}
    return list(dict.fromkeys(each.name for paid in specs.values() if paid for each in paid.own))


def paid_total(record: ChainRecord) -> float | None:
    """A chain's total reward on record; None where nothing was paid: an evaluation's rollout, or a prediction."""
    total: float = getattr(record, "total", math.nan)
    return None if math.isnan(total) else total


def _place(paid: RewardSpec, terms: Sequence[str], weights: list[dict[str, float]]) -> int:
    """The place of a spec's weights among those in use, from 1; they are put there when they are new."""
    mine = {term: paid.weights[term] for term in terms if term in paid.weights}
    if mine not in weights:
        weights.append(mine)
    return weights.index(mine) + 1


def _spec(spec: Specs | None, stage: str) -> RewardSpec:
    if isinstance(spec, RewardSpec):
        return spec
    return (spec or {}).get(stage) or RewardSpec()


def anchor_columns(chain: AnchorChain) -> list[list[Any]]:
    """Start, end, and the first and behind-last character of each anchor's tag as a page counts them; of a set also its spans."""
    place = _utf16(chain.text)
    return [[span.start, span.end, place(begin), place(end), *_spans(span)] for span, begin, end in chain.anchors]


def answer_column(chain: AnchorChain) -> list[Any] | None:
    """The same of the answer's tag; None without an answer."""
    if chain.answer is None or chain.answer_chars is None:
        return None
    place = _utf16(chain.text)
    return [chain.answer.start, chain.answer.end, *map(place, chain.answer_chars), *_spans(chain.answer)]


def _spans(span: Span) -> list[list[list[float]]]:
    return [[[part.start, part.end] for part in span.parts]] if len(span.parts) > 1 else []


def option_chars(chain: AnchorChain) -> list[int] | None:
    """The first and behind-last character of the option's tag; None without an option."""
    return None if chain.option_chars is None else [*map(_utf16(chain.text), chain.option_chars)]


def _utf16(text: str) -> Callable[[int], int]:
    """Turns a place in a Python string into the place in a page's string, where an emoji counts two.

    >>> _utf16("a😀b")(2)
    3
    """
    if text.isascii():
        return int
    wide = [place for place, char in enumerate(text) if ord(char) > 0xFFFF]
    return lambda place: place + bisect_left(wide, place)


def rounded(rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Four decimals of each value; None where there is none, or none that can be written.

    >>> import math
    >>> rounded([[0.123456, None], [], [math.inf]])
    [[0.1235, None], [], [None]]
    """
    flat = np.round(np.array([value for row in rows for value in row], dtype=np.float64), 4)
    values: list[float | None] = flat.tolist()
    for at in np.flatnonzero(~np.isfinite(flat)).tolist():
        values[at] = None
    ends = list(accumulate(map(len, rows)))
    return [values[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def as_json(value: Any) -> bytes:
    """JSON without blanks; ten times as fast by orjson, which refuses half a character: a text may hold one all the same."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
