"""Which chains and clips are saved with a notebook: whole groups up to a bound, so that no file grows too large to open.

All the others stay where they were read from; a kernel that holds their columns is asked by the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import PurePath
from typing import Any

import numpy as np

from labkit.views.explorer.chain_columns import EPSILON, ChainColumns, Column

MOST_CHAINS = 12_000
"""Chains that are saved at most: a page draws as many within a second."""
MOST_BYTES = 5_200_000
"""Of their packed columns; a notebook holds them in base64, as 6.9 MB. Long texts mean fewer chains."""
FEWEST_CHAINS = 400
"""As many are saved however long their texts are."""
MOST_SHEET_BYTES = 2_500_000
"""Of the clips' sprite sheets that are saved with it, 3.3 MB in base64."""


def choose_subset(
    rows: ChainColumns,
    first: int,
    base: Mapping[str, float],
    *,
    most: int = MOST_CHAINS,
    kept: Iterable[int] = (),
    among: Sequence[int] | None = None,
) -> list[int]:
    """Places, in order, of up to `most` chains that stand for all: whole groups, unless one alone is larger.

    A group is what competed, as the Group view shows it: one run, stage, step and query. That of `first` comes first. Half of the
    room goes to the steps, each in its turn; the other half in turn to the groups with the worst chain, the best, the most
    regressed one (see `ChainColumns.iou_loss`), and to those of chains that are `kept`.
    `among` are the places of the only chains whose groups may come, such as those that pass a filter.
    """
    if len(rows) <= (most if among is None else 0):
        return list(range(len(rows)))
    steps, step = np.unique(rows.step, return_inverse=True)
    key = rows.run.astype(np.int64)
    for column, size in ((rows.stage, len(rows.names["stage"])), (step, len(steps)), (rows.moment, len(rows.moments))):
        key = key * size + column
    _, begun, key = np.unique(key, return_index=True, return_inverse=True)
    # Groups are counted in the order in which they came, and their chains stand side by side.
    group_of = np.argsort(np.argsort(begun))[key]
    members = np.argsort(group_of, kind="stable")
    begins = np.searchsorted(group_of[members], np.arange(len(begun) + 1)).tolist()
    wanted = np.zeros(len(rows), dtype=bool)
    wanted[slice(None) if among is None else among] = True
    there = np.logical_or.reduceat(wanted[members], begins[:-1])
    every = np.flatnonzero(there)

    def ranked(values: Column) -> list[int]:
        """The groups by the least value of those chains that are wanted."""
        least = np.fmin.reduceat(np.where(wanted, values, np.inf)[members], begins[:-1])
        return every[np.argsort(least[every], kind="stable")].tolist()

    chosen: dict[int, None] = {first: None} if first >= 0 else {}

    def take(groups: Iterable[int | None], room: int) -> None:
        for group in groups:
            new = [] if group is None else members[begins[group] : begins[group + 1]].tolist()
            new = [place for place in new if place not in chosen]
            if len(chosen) + len(new) <= room:
                chosen.update(dict.fromkeys(new))
            elif len(chosen) == room:
                return

    if first >= 0 and there[group_of[first]]:
        take([int(group_of[first])], most)
    take(_by_step(rows, {group: int(members[begins[group]]) for group in every.tolist()}), (most + len(chosen)) // 2)
    if len(every):
        harvested = sorted({int(group_of[place]) for place in kept} & set(every.tolist()))
        turns = zip_longest(ranked(rows.iou), ranked(-rows.iou), ranked(-rows.iou_loss(base)), harvested)
        take((group for turn in turns for group in turn), most)
    # A query that was asked more often than may be saved: of its chains every so many.
    larger = [
        place
        for group in every.tolist()
        if begins[group + 1] - begins[group] > most
        for place in members[begins[group] : begins[group + 1]].tolist()
    ]
    if larger and len(chosen) < most:
        chosen.update(dict.fromkeys(larger[:: -(-len(larger) // (most - len(chosen)))]))
    return sorted(chosen)


def clips_to_embed(
    rows: ChainColumns, places: Sequence[int], clip_of: Sequence[int], first: int, base: Mapping[str, float], most: int
) -> list[int]:
    """Up to `most` clips to save along: the `first` chain's, then in turn of the worst, the best and the most regressed.

    `clip_of` are the clips of the chains at `places`. A chain regresses as `ChainColumns.iou_loss` says.
    """
    order = np.argsort(rows.iou[list(places)], kind="stable")
    loss = rows.iou_loss(base)[list(places)]
    regressed = order[np.argsort(-loss[order], kind="stable")]
    chosen = dict.fromkeys([clip_of[first]] if first >= 0 else [])
    for turn in zip(order.tolist(), order[::-1].tolist(), regressed.tolist(), strict=True):
        for index in turn:
            if len(chosen) >= most:
                return list(chosen)[:most]
            chosen.setdefault(clip_of[index])
    return list(chosen)[:most]


def matching(rows: ChainColumns, base: Mapping[str, float], asked: Mapping[str, Any]) -> list[int] | None:
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
    passed = np.ones(len(rows), dtype=bool)
    for name, value in equal.items():
        if value:
            passed &= rows.where(name, value)
    if low > 0 or high < 1:
        passed &= (low - EPSILON <= rows.iou) & (rows.iou <= high + EPSILON)
    if anchors:
        passed &= rows.anchors >= 4 if anchors == "4" else rows.anchors == int(anchors)
    if course in ("step", "answer"):
        passed &= rows.falls_back if course == "step" else rows.loses
    if course == "base":
        passed &= rows.iou - np.array([base.get(qid, np.nan) for qid in rows.names["moment"]])[rows.moment] < -EPSILON
    places: list[int] = np.flatnonzero(passed).tolist()
    if not needle:
        return places
    named = [needle in f"{each.query}\n{each.qid}\n{PurePath(each.video).name}".lower() for each in rows.moments]
    queries = rows.moment[places].tolist()
    return [
        place
        for place, query, text in zip(places, queries, rows.texts(places), strict=True)
        if named[query] or needle in text.lower()
    ]


def _by_step(rows: ChainColumns, firsts: Mapping[int, int]) -> list[int]:
    """Groups such that every step of every stage comes once before any comes twice; `firsts` are their first chains."""
    steps: dict[tuple[int, int], list[int]] = {}
    places = list(firsts.values())
    for group, *step in zip(firsts, rows.stage[places].tolist(), rows.step[places].tolist(), strict=True):
        steps.setdefault((step[0], step[1]), []).append(group)
    # Where there are more steps than room, those that come are spread over the whole stage.
    turns = [group for turn in zip_longest(*steps.values()) for group in turn if group is not None]
    first, rest = turns[: len(steps)], turns[len(steps) :]
    return [*first[::2], *first[1::2], *rest]
