"""Which chains and clips are saved with a notebook: whole groups up to a bound, so that no file grows too large to open.

All the others stay where they were read from; a kernel that holds them is asked by the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise, zip_longest
from pathlib import PurePath
from typing import Any

from labkit.chain.steps import LEAST_GAIN
from labkit.views.explorer.packing import PackedChains
from labkit.views.measured_chains import MeasuredChain

MOST_CHAINS = 12_000
"""Chains that are saved at most: a page draws as many within a second."""
MOST_BYTES = 5_200_000
"""Of their packed columns; a notebook holds them in base64, as 6.9 MB. Long texts mean fewer chains."""
FEWEST_CHAINS = 400
"""As many are saved however long their texts are."""
MOST_SHEET_BYTES = 2_500_000
"""Of the clips' sprite sheets that are saved with it, 3.3 MB in base64."""
_EPSILON = 1e-6
_MOST_STEPS = 12
"""Steps that a page looks at for the best one of a chain, as MOST_STEPS in js/chains.js."""


def groups(rows: Sequence[MeasuredChain]) -> list[list[int]]:
    """Places of the chains by what they competed in: run, stage, step and query, as the Group view shows them."""
    found: dict[tuple[str, str, int, str], list[int]] = {}
    for place, row in enumerate(rows):
        key = (row.run, row.stage, row.step, row.moment.qid)
        found.setdefault(key, []).append(place)
    return list(found.values())


def choose_subset(
    rows: Sequence[MeasuredChain],
    first: int,
    base: Mapping[str, float],
    *,
    most: int = MOST_CHAINS,
    kept: Callable[[MeasuredChain], bool] | None = None,
    among: Iterable[int] | None = None,
) -> list[int]:
    """Places, in order, of up to `most` chains that stand for all: whole groups, unless one alone is larger.

    The group of `first` comes first. Half of the room goes to the steps, each in its turn; the other half in turn to the
    groups with the worst chain, the best, the most regressed one (see `iou_loss`), and to those with chains that are `kept`.
    `among` are the only chains whose groups may come, such as those that pass a filter.
    """
    if among is None and len(rows) <= most:
        return list(range(len(rows)))
    wanted = None if among is None else set(among)
    all_groups = [group for group in groups(rows) if wanted is None or not wanted.isdisjoint(group)]
    answers = [row.answer_iou for row in rows]

    def value(places: list[int], of: Callable[[int], float], best: Callable[..., float]) -> float:
        return best(of(place) for place in places if wanted is None or place in wanted)

    every = range(len(all_groups))
    worst = sorted(every, key=lambda at: value(all_groups[at], answers.__getitem__, min))
    best = sorted(every, key=lambda at: -value(all_groups[at], answers.__getitem__, max))
    regressed = sorted(every, key=lambda at: -value(all_groups[at], lambda place: iou_loss(rows[place], base), max))
    harvested = [at for at in every if kept and any(kept(rows[place]) for place in all_groups[at])]
    chosen: dict[int, None] = {first: None} if first >= 0 else {}

    def take(at: int | None) -> None:
        new = [] if at is None else [place for place in all_groups[at] if place not in chosen]
        if len(chosen) + len(new) <= room:
            chosen.update(dict.fromkeys(new))

    room = most
    take(next((at for at in every if first in all_groups[at]), None))
    room = (most + len(chosen)) // 2
    for at in _by_step(rows, all_groups):
        take(at)
    room = most
    for turn in zip_longest(worst, best, regressed, harvested):
        for at in turn:
            take(at)
    # A query that was asked more often than may be saved: of its chains every so many.
    larger = [place for group in all_groups if len(group) > most for place in group]
    if larger and len(chosen) < most:
        chosen.update(dict.fromkeys(larger[:: -(-len(larger) // (most - len(chosen)))]))
    return sorted(chosen)


def iou_loss(row: MeasuredChain, base: Mapping[str, float]) -> float:
    """IoU that a chain's answer lost against the base model, or where there is none, since its best step."""
    before = base.get(row.moment.qid)
    if before is None or row.stage == "base":
        before = max(row.ious, default=0.0)
    return before - row.answer_iou


def clips_to_embed(packed: PackedChains, first: int, base: Mapping[str, float], most: int) -> list[int]:
    """Up to `most` clips to save along: the first chain's, then in turn of the worst, the best and the most regressed.

    A chain regresses as `iou_loss` says.
    """
    answers = [row.answer_iou for row in packed.rows]
    order = sorted(range(len(packed.rows)), key=answers.__getitem__)
    regressed = sorted(order, key=lambda at: iou_loss(packed.rows[at], base), reverse=True)
    chosen = dict.fromkeys([packed.clip_of[first]] if first >= 0 else [])
    for turn in zip(order, reversed(order), regressed, strict=True):
        for index in turn:
            if len(chosen) >= most:
                return list(chosen)[:most]
            chosen.setdefault(packed.clip_of[index])
    return list(chosen)[:most]


def matching(
    rows: Sequence[MeasuredChain], kinds: Sequence[str], base: Mapping[str, float], asked: Mapping[str, Any]
) -> list[int] | None:
    """Places of the chains that pass the filters of a page, by the same rules as the page's own; None where nothing is filtered.

    `asked` holds text, stage, status, kind, anchors, regress, low and high; what is missing or empty lets all pass.
    """
    needle = str(asked.get("text") or "").strip().lower()
    equal = {name: str(asked.get(name) or "") for name in ("stage", "status", "kind")}
    anchors = str(asked.get("anchors") or "")
    low, high = float(asked.get("low") or 0), float(1 if asked.get("high") is None else asked["high"])
    course = str(asked.get("regress") or "")
    if not (needle or anchors or course or low > 0 or high < 1 or any(equal.values())):
        return None

    def passes(place: int, row: MeasuredChain) -> bool:
        chain, moment, iou = row.chain, row.moment, row.answer_iou
        own = {"stage": row.stage, "status": chain.status, "kind": kinds[place]}
        if any(each and own[name] != each for name, each in equal.items()):
            return False
        if (low > 0 or high < 1) and not low - _EPSILON <= iou <= high + _EPSILON:
            return False
        if anchors and (len(chain.anchors) < 4 if anchors == "4" else str(len(chain.anchors)) != anchors):
            return False
        if course == "step" and not any(
            before - after >= LEAST_GAIN - _EPSILON for before, after in pairwise(row.ious)
        ):
            return False
        if course == "answer" and not max([0.0, *row.ious[:_MOST_STEPS]]) - iou > _EPSILON:
            return False
        if course == "base" and not (moment.qid in base and iou - base[moment.qid] < -_EPSILON):
            return False
        name = PurePath(moment.video).name
        return not needle or needle in f"{moment.query}\n{moment.qid}\n{name}\n{row.record.text}".lower()

    return [place for place, row in enumerate(rows) if passes(place, row)]


def _by_step(rows: Sequence[MeasuredChain], all_groups: Sequence[Sequence[int]]) -> list[int]:
    """Groups such that every step of every stage comes once before any comes twice."""
    steps: dict[tuple[str, int], list[int]] = {}
    for at, group in enumerate(all_groups):
        row = rows[group[0]]
        steps.setdefault((row.stage, row.step), []).append(at)
    # Where there are more steps than room, those that come are spread over the whole stage.
    turns = [at for turn in zip_longest(*steps.values()) for at in turn if at is not None]
    first, rest = turns[: len(steps)], turns[len(steps) :]
    return [*first[::2], *first[1::2], *rest]
