"""Tables of a method beside its controls: a row for each setting, with what it cost, and each less the first, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
_LESS = (*ACCURACY, "anchor_rate", "strict_share")


def control_tables(settings: Sequence[Setting]) -> list[Table]:
    """The final models of the settings beside each other; nothing where fewer than two have one."""
    measured = [setting for setting in settings if setting.spread(*FINAL, "miou")]
    if len(measured) < 2:
        return []
    tables = [_table(measured, ACCURACY, "final models, greedy", COST), _table(measured, CHAINS, "their chains")]
    first, *others = measured
    rows = []
    for setting in others:
        gaps = [setting.less(first, *FINAL, figure) for figure in _LESS]
        shared = max((gap.n for gap in gaps if gap), default=0)
        rows.append([setting.label, str(shared), *map(_gap_text, gaps)])
    heads = [(ACCURACY | CHAINS)[figure] for figure in _LESS]
    title = f"less {first.label}, paired by seed on the same queries"
    return [*tables, Table(title, ("", "n", *heads), rows, _note(others, first), align="lr")]


def control_dict(settings: Sequence[Setting]) -> dict[str, Any]:
    """What the tables show, for a program: by setting what it spent, and how much it has less the first."""
    first = settings[0]
    return {
        setting.label: {
            "spent": {kind: spread.mean for kind in COST if (spread := setting.spent(kind))},
            "figures": {each: _plain(spread) for each in _FIGURES if (spread := setting.spread(*FINAL, each))},
            "less": {
                each: _plain(spread)
                for each in _FIGURES
                if setting is not first and (spread := setting.less(first, *FINAL, each))
            },
        }
        for setting in settings
    }


_FIGURES = (*ACCURACY, *CHAINS)


def _plain(spread: Spread) -> dict[str, Any]:
    known = not math.isnan(spread.sd)
    return {"mean": spread.mean, "interval": [*spread.interval] if known else [None, None], "n": spread.n}


def _table(
    settings: Sequence[Setting], figures: dict[str, str], title: str, cost: dict[str, str] | None = None
) -> Table:
    rows = []
    for setting in settings:
        spreads = [setting.spread(*FINAL, figure) for figure in figures]
        taken = [setting.spent(kind) for kind in cost or ()]
        count = max(spread.n for spread in spreads if spread)
        cells = ["-" if each is None else f"{each.mean:,.0f}" for each in taken]
        rows.append([setting.label, str(count), *map(_mean_text, spreads), *cells])
    return Table(title, ("", "n", *figures.values(), *(cost or {}).values()), rows, align="lr")


def _mean_text(spread: Spread | None) -> str:
    """A mean with half of its interval, in percent."""
    return "-" if spread is None else percent(spread.mean) + _half(spread)


def _gap_text(spread: Spread | None) -> str:
    """A difference in points with half of its interval, and a star where that leaves out 0."""
    if spread is None:
        return "-"
    low, high = spread.interval
    return f"{100 * spread.mean:+.1f}{_half(spread)}" + "*" * (low > 0 or high < 0)


def _half(spread: Spread) -> str:
    return "" if math.isnan(spread.sd) else f" ±{100 * (spread.interval.high - spread.mean):.1f}"


def _note(others: Sequence[Setting], first: Setting) -> str:
    gaps = [gap for each in others for figure in _LESS if (gap := each.less(first, *FINAL, figure)) and gap.n > 1]
    told = (
        f"* an interval that leaves out 0; of these {len(gaps)} about {max(1, round(0.05 * len(gaps)))} would by chance alone."
        if gaps
        else "One seed says nothing about others: no interval."
    )
    return (
        "± half of Student's 95 % interval, whose sample are the n seeds (of a difference those that both have).\n"
        f"{told}\nRollouts and CPU seconds were counted in training and harvest; evaluation is left out."
    )
