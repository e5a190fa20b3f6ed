"""Tables by setting: the final models beside each other with what each cost, and each less the first, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.runs.settings import Setting
from labkit.scoring.bootstrap import Spread
from labkit.table import Table, percent

FINAL = ("grpo_final", "greedy")
"""Which model's figures are compared, and how it was decoded."""
ACCURACY = {"miou": "mIoU", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}
CHAINS = {
    "anchor_rate": "anchors", "strict_share": "strict", "iou_first": "first", "iou_last": "last", "iou_answer": "answer",
    "true_words": "true words",
}  # fmt: skip
COST = {"rollouts": "rollouts", "cpu_seconds": "CPU s"}
PAIRED = (*ACCURACY, "anchor_rate", "strict_share")
"""Figures that are over all queries; those of chains with anchors, and of words, are over other queries in each run."""


def setting_tables(settings: Sequence[Setting], words: Mapping[str, str] | None = None) -> list[Table]:
    """The final models of the settings, greedy; nothing where fewer than two have one.

    With `words`, figures of words and their titles, also what their chains are like, and the words of sampled ones, which say more.
    """
    measured = [setting for setting in settings if setting.spread(*FINAL, "miou")]
    if len(measured) < 2:
        return []
    tables = [_table(measured, ACCURACY | COST, "final models, greedy")]
    if words is not None:
        tables.append(_table(measured, CHAINS, "their chains"))
    if words:
        tables.append(_table(measured, words, "their words, sampled", "sampled"))
    first = settings[0]
    gaps = {setting.label: _differences(setting, first) for setting in measured if setting is not first}
    rows = [_row(label, each, difference=True) for label, each in gaps.items() if any(each.values())]
    alone = [label for label, each in gaps.items() if not any(each.values())]
    note = _note([gap for each in gaps.values() for gap in each.values() if gap])
    if alone:
        note += f"\nNo seed of which {first.label} has a final model too, so not here: {', '.join(alone)}."
    heads = ("", "n", *((ACCURACY | CHAINS)[figure] for figure in PAIRED))
    title = f"less {first.label}, paired by seed on the same queries"
    return [*tables, Table(title, heads if rows else (), rows or [["-"]], note, align="lr")]


def settings_dict(settings: Sequence[Setting]) -> dict[str, Any]:
    """What the tables show, for a program: by setting what it spent, its figures, and how much it has less the first."""
    return {
        setting.label: {
            "spent": _plain({kind: setting.spent(kind) for kind in COST}),
            "figures": _plain({each: setting.spread(*FINAL, each) for each in (*ACCURACY, *CHAINS)}),
            "less": _plain(_differences(setting, settings[0])) if setting is not settings[0] else {},
        }
        for setting in settings
    }


def _differences(setting: Setting, first: Setting) -> dict[str, Spread | None]:
    return {figure: setting.less(first, *FINAL, figure) for figure in PAIRED}


def _plain(spreads: Mapping[str, Spread | None]) -> dict[str, Any]:
    return {
        name: {"mean": each.mean, "interval": [None if math.isnan(end) else end for end in each.interval], "n": each.n}
        for name, each in spreads.items()
        if each
    }


def _table(settings: Sequence[Setting], figures: Mapping[str, str], title: str, decoding: str = FINAL[1]) -> Table:
    rows = []
    for setting in settings:
        spreads = {f: setting.spent(f) if f in COST else setting.spread(FINAL[0], decoding, f) for f in figures}
        if any(spreads.values()):
            rows.append(_row(setting.label, spreads))
    return Table(title, ("", "n", *figures.values()), rows, align="lr")


def _row(label: str, spreads: Mapping[str, Spread | None], *, difference: bool = False) -> list[str]:
    """Means with half of their intervals, in percent or points; n is said again where it is of fewer seeds."""
    n = max(each.n for each in spreads.values() if each)
    cells = []
    for name, each in spreads.items():
        if each is None:
            cells.append("-")
            continue
        half = f" ±{100 * (each.interval.high - each.mean):.1f}" if each.varies and name not in COST else ""
        mean = f"{each.mean:,.0f}" if name in COST else f"{100 * each.mean:+.1f}" if difference else percent(each.mean)
        cells.append(f"{mean}{half}{'*' * abs(difference * each.side)}" + f" (n {each.n})" * (each.n < n))
    return [label, str(n), *cells]


def _note(gaps: Sequence[Spread]) -> str:
    if judged := [gap for gap in gaps if gap.varies]:
        stars, chance = sum(abs(gap.side) for gap in judged), f"{0.05 * len(judged):.2g}"
        told = f"* an interval that leaves out 0: {stars} of {len(judged)}; were nothing different, {chance} would by chance alone."
    else:
        told = "No interval: one seed says nothing about others."
    return (
        "± half of Student's 95 % interval, whose sample are the n seeds (of a difference those of both); none where all agree.\n"
        f"{told}\nRollouts and CPU seconds are those of training, with the probes in it, and harvest; evaluation is left out."
    )
