"""Settings: runs whose parameters differ in the seed alone, with their figures over seeds, and tables of these.

An interval over seeds speaks of other seeds on these queries. Where two settings have seeds in common they are paired by them: a
seed's difference is over the same queries, and the seeds' differences are the sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.embedded.true_words import KINDS
from labkit.errors import LabError
from labkit.params import DEFAULTS, format_value, read_yaml
from labkit.runs.budget import COUNTED, Spent, read_spent, total
from labkit.runs.results import ANSWERED, DECODINGS, MODELS, all_true, read_results
from labkit.runs.run import CHANGEABLE, NOTEBOOK_OF, read_manifest
from labkit.runs.versions import version_text
from labkit.scoring.bootstrap import Spread, spread_over_seeds
from labkit.stages.checkpoints import read_start
from labkit.table import Table, percent


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as a comparison needs it."""

    name: str
    """Its folder's name, or where several have the same name its path."""
    path: Path
    seed: int
    values: dict[str, Any]
    """Every parameter but the seed and those that change no figure; one that the run is older than has its default, and steps that
    were counted from another run are `counted`.

    Of the user's own code, what tells its text from others.
    """
    test: str
    """The test split's fingerprint and how many of its queries at most were asked, which tell runs apart; "" before it is read."""
    results: dict[str, Any]
    made_with: dict[str, str]
    """What no parameter says and figures depend on: versions, commits, training data, the base's weights; those that are known."""
    spent: Spent | None = None
    """What its training and harvest took; None before its last stage has ended."""

    @property
    def open_stage(self) -> str:
        """The first stage that is not finished; "" where all are."""
        stages = self.results["stages"]
        return next((name for name, entry in stages.items() if entry["state"] not in ("finished", "skipped")), "")

    def counts_from(self, parameter: str) -> str:
        """Name of the run that `budget_of` or `pace_of` names; "" where there is none."""
        return Path(str(self.values.get(parameter) or "").replace("{seed}", str(self.seed))).name

    def title(self, model: str) -> str:
        """What its tables call a model: of reinforcement alone, the one that stage 3 begins from is the base."""
        return MODELS["base" if model == "sft" and self.values.get("sft_model") == "base" else model]

    def figures(self, model: str, decoding: str) -> dict[str, float | None]:
        """A model's flat figures, with `distinct_share` of all its thoughts; {} where it was not evaluated so."""
        figures = self.results["models"].get(model, {}).get(decoding) or {}
        distinct, n = figures.get("distinct_thoughts"), figures.get("n")
        return figures | {"distinct_share": distinct / n} if distinct and n else figures


@dataclass(frozen=True, eq=False, repr=False)
class Setting:
    """Runs that differ in their seed alone."""

    label: str
    """NAME where its runs are called NAME-seedN, and no other setting's; else A, B and so on by its place."""
    runs: list[RunRecord]
    repeated: list[RunRecord]
    """Runs of a seed that is there already: they say nothing about other seeds and count in no mean."""

    @property
    def all_runs(self) -> list[RunRecord]:
        """Its runs, and behind them those of a seed that is there already."""
        return [*self.runs, *self.repeated]

    @property
    def by_seed(self) -> dict[int, RunRecord]:
        """Its runs by their seed."""
        return {run.seed: run for run in self.runs}

    def spread(self, model: str, decoding: str, figure: str) -> Spread | None:
        """A figure over the seeds whose runs have it; None where none has."""
        found = list(self.figure_by_seed(model, decoding, figure).values())
        return spread_over_seeds(found) if found else None

    def less(self, other: Setting, model: str, decoding: str, figure: str) -> Spread | None:
        """A figure less the other setting's, seed by seed, over the seeds that both have; None where there is none."""
        ours, theirs = (each.figure_by_seed(model, decoding, figure) for each in (self, other))
        gaps = [value - theirs[seed] for seed, value in ours.items() if seed in theirs]
        return spread_over_seeds(gaps) if gaps else None

    def spent(self, kind: str) -> Spread | None:
        """`rollouts` or `cpu_seconds` over the seeds whose final models have figures; None where none has a record of it."""
        found = [getattr(run.spent, kind) for run in self.runs if run.spent and run.figures("grpo_final", "greedy")]
        values = [float(value) for value in found if value is not None]
        return spread_over_seeds(values) if values else None

    def figure_by_seed(self, model: str, decoding: str, figure: str) -> dict[int, float]:
        """A figure by seed, where a run has it."""
        found = {run.seed: run.figures(model, decoding).get(figure) for run in self.runs}
        return {seed: float(value) for seed, value in found.items() if value is not None and math.isfinite(value)}


def read_run(folder: Path) -> RunRecord:
    """The run in a folder; raises LabError where it holds none, or a damaged one."""
    manifest, results = read_manifest(folder), read_results(folder)
    values = DEFAULTS.as_dict() | read_yaml(folder / "params.yaml")
    if type(seed := values.pop("seed")) is not int:
        raise LabError(f"'{folder / 'params.yaml'}': seed {seed!r} is not a whole number; put back what labkit wrote")
    for name in CHANGEABLE:
        values.pop(name, None)
    values |= dict.fromkeys(COUNTED, "counted") if values["budget_of"] else {}
    values |= {f"text of {name}": note["sha256"] for name, note in manifest.get("own", {}).items()}
    # What an unfinished stage has measured stands beside its notebook already.
    for model in MODELS:
        for decoding in DECODINGS:
            file = folder / NOTEBOOK_OF.get(model, "01_grpo") / f"{model}-{decoding}.json"
            if model not in results["models"] and file.is_file():
                results["models"][model] = {}
            if not results["models"].get(model, {}).get(decoding) and file.is_file():
                results["models"][model][decoding] = _figures_in(file)
    results["models"] = {
        model: {name: figures and {**figures, "true_words": all_true(figures)} for name, figures in decodings.items()}
        for model, decodings in results["models"].items()
    }
    limit = values.get("test_limit") or 0
    test = manifest["data"].get("test", "")
    test += f", first {limit} queries" if test and limit else ""
    spent = read_spent(folder)
    return RunRecord(
        str(results["run"]), folder, seed, values, test, results, _made_with(folder, manifest, values),
        total(spent) if "04_grpo_final" in spent else None,
    )  # fmt: skip


def _made_with(folder: Path, manifest: dict[str, Any], values: dict[str, Any]) -> dict[str, str]:
    begun = [entry for entry in manifest["stages"].values() if entry.get("started")] or [{}]
    found = {"labkit": " and ".join(dict.fromkeys(version_text(manifest | entry) for entry in begun))}
    found |= manifest.get("versions", {})
    # SFT starts from a fresh base, and so does the stage that a run begins with, unless it is given another model.
    first = {"": "" if values["harvester"] else "01_grpo", "base": "04_grpo_final"}.get(values["sft_model"], "")
    begins = [read_start(folder / stage).get("weights", "") for stage in ("03_sft", first) if stage]
    if not values["lora_rank"]:  # whose adapters are drawn by the seed
        found["weights of the base"] = next(filter(None, begins), "")
    found["training data"] = manifest["data"].get("train", "")
    return {name: value for name, value in found.items() if value}


def _figures_in(file: Path) -> dict[str, float | None]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["figures"])
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(f"'{file}' is damaged ({error!r}); remove it, and run its notebook again") from None


def settings_of(runs: Sequence[RunRecord]) -> list[Setting]:
    """The settings of runs; first those whose budget others have, then in the order in which they were given.

    Of two runs of one seed the first that has ended counts.
    """
    sources = [{run.counts_from(parameter) for run in runs} for parameter in ("budget_of", "pace_of")]
    alike: dict[str, list[RunRecord]] = {}
    for run in sorted(
        runs, key=lambda run: [*(run.path.name not in names for names in sources), not run.values.get("pace_of")]
    ):
        alike.setdefault(json.dumps(run.values, sort_keys=True, default=str), []).append(run)
    names = [_common_name(group) for group in alike.values()]
    settings = []
    for number, (group, name) in enumerate(zip(alike.values(), names, strict=True)):
        by_seed: dict[int, RunRecord] = {}
        for run in sorted(group, key=lambda run: bool(run.open_stage)):
            by_seed.setdefault(run.seed, run)
        named = len(names) > 1 and len(name) > 1 and names.count(name) == 1  # a letter would be another's
        letter = chr(65 + number) if number < 26 else f"S{number + 1}"
        chosen = sorted(by_seed.values(), key=(lambda run: run.seed) if named else group.index)
        settings.append(Setting(name if named else letter, chosen, [run for run in group if run not in chosen]))
    return settings


def _common_name(runs: Sequence[RunRecord]) -> str:
    """NAME of those that are called NAME-seedN, as a sweep's or a campaign's are; "" where there are none, or of several names."""
    found = {run.name.removesuffix(end) for run in runs if run.name.endswith(end := f"-seed{run.seed}")}
    return found.pop() if len(found) == 1 else ""


FINAL = ("grpo_final", "greedy")
"""Which model's figures settings are compared by, and how it was decoded."""
ACCURACY = {"miou": "mIoU", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}
COST = {"rollouts": "rollouts", "cpu_seconds": "CPU s"}
COMPARED = {**ACCURACY, "anchor_rate": "anchors", "strict_share": "strict"}
"""Figures that are over all queries; those of chains with anchors, and of words, are over other queries in each run."""
WORDS = tuple(f"true_{kind}" for kind in KINDS)
SHOWN = (
    ("miou", "r1@0.3", "r1@0.5", "r1@0.7", *ANSWERED),
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
