"""Tables by setting: runs, parameters that differ, figures over seeds, what it cost, and each less the first, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.embedded.true_words import KINDS
from labkit.params import format_value
from labkit.runs.results import DECODINGS, MODELS
from labkit.runs.settings import Setting
from labkit.scoring.bootstrap import Spread
from labkit.table import Table, percent

FINAL = ("grpo_final", "greedy")
"""Which model's figures settings are compared by, and how it was decoded."""
ACCURACY = {"miou": "mIoU", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}
COST = {"rollouts": "rollouts", "cpu_seconds": "CPU s"}
COMPARED = {**ACCURACY, "anchor_rate": "anchors", "strict_share": "strict"}
"""Figures that are over all queries; those of chains with anchors, and of words, are over other queries in each run."""
WORDS = tuple(f"true_{kind}" for kind in KINDS)
SHOWN = (
    ("miou", "r1@0.3", "r1@0.5", "r1@0.7", "acc_qa", "acc_gqa"),
    ("anchor_rate", "strict_share", "iou_first", "iou_last", "iou_answer", "true_words"),
    (*WORDS, "distinct_share"),
)
"""Figures by table, so that none is wider than a terminal."""
HALF = (
    "± half of Student's 95 % interval, whose sample are the n seeds (of a difference those of both), for other seeds on these "
    "queries; not cut to 0 and 100, and none where all seeds agree."
)


def differences(settings: Sequence[Setting]) -> dict[str, list[str]]:
    """Parameters that differ between settings, with each setting's value."""
    names = dict.fromkeys(name for setting in settings for name in setting.runs[0].values)
    rows = {name: [setting.runs[0].values.get(name, "absent") for setting in settings] for name in names}
    return {
        name: [format_value(tuple(map(str, each)) if isinstance(each, list) else each) for each in values]
        for name, values in rows.items()
        if any(each != values[0] for each in values)
    }


def made_with(settings: Sequence[Setting]) -> dict[str, dict[str, list[str]]]:
    """What no parameter says and the runs of settings do not share: its name, and by value the runs that have it."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in (run for setting in settings for run in setting.all_runs):
        for name, value in run.made_with.items():
            found.setdefault(name, {}).setdefault(value, []).append(run.name)
    return {name: values for name, values in found.items() if len(values) > 1}


def runs_tables(settings: Sequence[Setting]) -> list[Table]:
    """The seeds of each setting, ended and not, with names that do not say them; and the parameters that differ."""
    rows = []
    for setting in settings:
        states: dict[bool, list[str]] = {True: [], False: []}
        for run in setting.runs:
            named = "" if run.name == f"{setting.label}-seed{run.seed}" else f" ({run.name})"
            states[not run.open_stage].append(f"{run.seed}{named}" + (run.open_stage and f" at {run.open_stage}"))
        rows.append([setting.label, *(", ".join(states[done]) or "-" for done in (True, False))])
    notes = []
    if again := [run.name for setting in settings for run in setting.repeated]:
        notes = [f"A seed that is there already says nothing about others, and counts in no mean: {', '.join(again)}."]
    for name, values in made_with(settings).items():
        more = {value: f" and {len(runs) - 1} more" if len(runs) > 1 else "" for value, runs in values.items()}
        each = [f"{value} in {runs[0]}{more[value]}" for value, runs in values.items()]
        notes.append(f"Not the same in all runs: {name}, {'; '.join(each)}.")
    tables = [Table("runs by setting", ("", "finished seeds", "unfinished"), rows, "\n".join(notes), align="l")]
    if differ := differences(settings):
        first = {name: values[0] for name, values in differ.items()}
        rows = []
        for number, setting in enumerate(settings):
            own = {name: values[number] for name, values in differ.items()}
            # What was counted is said by `budget_of`.
            other = {name: value for name, value in own.items() if not number or value not in (first[name], "counted")}
            rows.append([setting.label, ", ".join(f"{name} {value}" for name, value in other.items()) or "-"])
        tables.append(
            Table(f"parameters that differ; below {settings[0].label}'s those that are others", (), rows, align="l")
        )
    return tables


def stage_tables(settings: Sequence[Setting], figures: Mapping[str, str]) -> list[Table]:
    """All models of the settings by decoding; `figures` have their titles."""
    tables = []
    for decoding in DECODINGS:
        for names in SHOWN:
            columns = {name: figures[name] for name in names if name in figures}
            rows = [
                _row(f"{setting.runs[0].title(model)}{f' {setting.label}' * (len(settings) > 1)}", spreads)
                for model in MODELS
                for setting in settings
                if any((spreads := {name: setting.spread(model, decoding, name) for name in columns}).values())
            ]
            if rows:
                tables.append(Table(_title(settings, decoding), ("", "n", *columns.values()), rows, align="lr"))
    return [*tables, *_final(settings, COST, "spent")]


def final_tables(settings: Sequence[Setting], figures: Mapping[str, str]) -> list[Table]:
    """The final models of the settings, greedy, with what they cost, and the words of their sampled chains, which say more."""
    chains, words = ({name: figures[name] for name in names if name in figures} for names in SHOWN[1:])
    return [
        *_final(settings, ACCURACY | COST, f"final models, {_title(settings, FINAL[1])}"),
        *_final(settings, chains, "their chains"),
        *_final(settings, words, "their words, sampled", "sampled"),
    ]


def less_table(settings: Sequence[Setting]) -> list[Table]:
    """The final models of the other settings less the first's; nothing where fewer than two have one."""
    measured = [setting for setting in settings if setting.spread(*FINAL, "miou")]
    if len(measured) < 2:
        return []
    gaps = {setting.label: less(setting, settings[0]) for setting in measured if setting is not settings[0]}
    rows = [_row(label, each, difference=True) for label, each in gaps.items() if any(each.values())]
    known = [gap for each in gaps.values() for gap in each.values() if gap and gap.varies]
    stars, chance = sum(abs(gap.side) for gap in known), f"{0.05 * len(known):.2g}"
    notes = [
        f"* an interval that leaves out 0: {stars} of {len(known)}; were nothing different, {chance} would by chance alone."
    ]
    if not known:
        notes = ["No interval: one seed says nothing about others, nor do some that agree."]
    if alone := [label for label, each in gaps.items() if not any(each.values())]:
        notes.append(f"No seed of which {settings[0].label} has a final model too, so not here: {', '.join(alone)}.")
    title = f"final models less {settings[0].label}'s, paired by seed on the same queries"
    heads = ("", "n", *COMPARED.values()) if rows else ()
    return [Table(title, heads, rows or [["-"]], "\n".join(notes), align="lr")]


def less(setting: Setting, first: Setting) -> dict[str, Spread | None]:
    """By figure of `COMPARED` how much a setting's final model has more than the first's, seed by seed."""
    return {figure: setting.less(first, *FINAL, figure) for figure in COMPARED}


def _final(
    settings: Sequence[Setting], columns: Mapping[str, str], title: str, decoding: str = FINAL[1]
) -> list[Table]:
    rows = []
    for setting in settings:
        spreads = {
            name: setting.spent(name) if name in COST else setting.spread(FINAL[0], decoding, name) for name in columns
        }
        if any(spreads.values()):
            rows.append(_row(setting.label, spreads))
    cost = "Of training, with the probes in it, and harvest; evaluation is left out." if COST.keys() & columns else ""
    return [Table(title, ("", "n", *columns.values()), rows, cost, align="lr")] if rows else []


def _title(settings: Sequence[Setting], decoding: str) -> str:
    found = {run.figures(model, decoding).get("n") for each in settings for run in each.all_runs for model in MODELS}
    queries = " or ".join(f"{n:,.0f}" for n in sorted(n for n in found if n is not None))
    several = ", mean over n seeds" if any(len(setting.runs) > 1 for setting in settings) else ""
    return f"{decoding}, {queries} queries{several}" if queries else f"{decoding}{several}"


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
