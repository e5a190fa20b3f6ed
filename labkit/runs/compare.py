"""Several runs beside each other: figures over seeds, paired tests on the same queries, and the parameters that differ.

Runs whose parameters differ in the seed alone are one setting (`labkit.runs.settings`), whose figures have a mean, a spread and an
interval over seeds. That interval speaks of other seeds on these queries; a paired test speaks of other queries, for these very
models. Runs on other test data stand apart, by name, and so does what has nothing to compare; what no parameter says and runs do not
share, such as the code that made them, is said.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labkit.data.moments import Moment, read_moments
from labkit.embedded.true_words import KINDS
from labkit.embedded.world import moments_file, world_folder
from labkit.errors import LabError
from labkit.files import project_root, under
from labkit.param_fields import WORLDS
from labkit.params import format_value
from labkit.progress import duration
from labkit.runs.results import (
    DECODINGS,
    DISTINCT,
    LEGEND,
    MODELS,
    TRUE_WORDS,
    columns_of,
    read_model_evaluation,
    words_columns,
)
from labkit.runs.run import read_manifest, runs_in
from labkit.runs.setting_tables import FINAL, setting_tables, settings_dict
from labkit.runs.settings import RunRecord, Setting, read_run, settings_of
from labkit.scoring.bootstrap import Difference, Spread, few_videos, paired_differences
from labkit.scoring.predictions import as_predictions
from labkit.scoring.scores import between, gap_cells, score
from labkit.table import Table, percent, repr_pretty

PAIRED = {"miou": "mIoU", "r1@0.5": "R1@0.5"}
"""Figures of the paired tests."""
_SHOWN = (
    ("miou", "r1@0.3", "r1@0.5", "r1@0.7", "acc_qa", "acc_gqa"),
    ("anchor_rate", "strict_share", "iou_first", "iou_last", "iou_answer"),
    (*(f"true_{kind}" for kind in KINDS), "distinct_share"),
)
"""Figures by table, so that none is wider than a terminal."""
MANY = 2
"""More settings than this have a row each and no column, and only their final models are shown."""


class PairedRuns(NamedTuple):
    """A run's model less another's, or a setting's mean over seeds less the first's of the same seeds, query by query."""

    label: str
    model: str
    differences: dict[str, Difference]
    better: int
    worse: int
    same: int


class PairedTests(NamedTuple):
    """What was paired, what kept any run from it, and how many source videos the queries are about."""

    rows: list[PairedRuns]
    note: str = ""
    videos: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class RunsOfOneTest:
    """The settings that were tested on the same queries."""

    settings: list[Setting]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, setting by setting."""
        return [run for setting in self.settings for run in setting.all_runs]

    @cached_property
    def figures(self) -> dict[str, str]:
        """Names and titles of the figures that any run has a value of."""
        models: dict[str, Any] = {}
        for number, run in enumerate(self.runs):
            models |= {f"{number} {model}": decodings for model, decodings in run.results["models"].items()}
        words = {key: f"true {name}" for key, name in words_columns(models.values()).items()}
        titles = columns_of(models) | words | ({"distinct_share": "distinct"} if words else {})
        each = [run.figures(model, decoding) for run in self.runs for model in MODELS for decoding in DECODINGS]
        return {name: title for name, title in titles.items() if any(one.get(name) is not None for one in each)}

    def differences(self) -> dict[str, list[str]]:
        """Parameters that differ between the settings, with each setting's value."""
        names = dict.fromkeys(name for setting in self.settings for name in setting.runs[0].values)
        rows = {name: [setting.runs[0].values.get(name, "absent") for setting in self.settings] for name in names}
        return {
            name: [format_value(tuple(map(str, each)) if isinstance(each, list) else each) for each in values]
            for name, values in rows.items()
            if any(each != values[0] for each in values)
        }

    def made_with(self) -> dict[str, dict[str, list[str]]]:
        """What no parameter says and these runs do not share: its name, and by value the runs that have it."""
        found: dict[str, dict[str, list[str]]] = {}
        for run in self.runs:
            for name, value in run.made_with.items():
                found.setdefault(name, {}).setdefault(value, []).append(run.name)
        return {name: values for name, values in found.items() if len(values) > 1}

    @cached_property
    def paired(self) -> PairedTests:
        """Runs less others on the same queries, and settings' means less the first's, over the seeds that both have.

        Of one setting each run less the first; of several, unless there are many, each run less the first setting's of its seed, or
        where that has none less its first run.
        """
        if len(self.runs) < 2:
            return PairedTests([])
        try:
            moments = moments_of(self.runs[0])
        except LabError as error:
            return PairedTests([], f"No paired tests: {error}.")
        first, *others = self.settings
        compared = [(run, first.by_seed.get(run.seed, first.runs[0])) for each in others for run in each.all_runs]
        if not others:
            compared = [(run, first.runs[0]) for run in self.runs[1:]]
        sides = []
        for run, other in compared if len(self.settings) <= MANY else ():
            shared = [model for model in MODELS if run.figures(model, "greedy") and other.figures(model, "greedy")]
            sides.append((f"{run.name} less {other.name}", shared[-1] if shared else FINAL[0], [(run, other)]))
        for setting in others:
            pairs = [
                (run, first.by_seed[seed])
                for seed, run in setting.by_seed.items()
                if seed in first.by_seed and run.figures(*FINAL) and first.by_seed[seed].figures(*FINAL)
            ]
            if len(pairs) > (len(self.settings) <= MANY):
                sides.append((f"{setting.label}, mean of {len(pairs)}", FINAL[0], pairs))
        troubles: dict[str, None] = {}

        @functools.cache
        def answers(run: RunRecord, model: str) -> np.ndarray | None:
            """(queries, figures of `PAIRED`)."""
            try:
                scored = score(as_predictions(read_model_evaluation(run.path, model, moments).greedy), moments)
            except (LabError, OSError) as error:
                troubles[f"{run.name}, {MODELS[model]}: {error}."] = None
                return None
            return np.stack([scored.columns[name] for name in PAIRED], axis=1)

        clusters, rows = [moment.source_video for moment in moments], []
        for label, model, pairs in sides:
            known = [each for pair in pairs for run in pair if (each := answers(run, model)) is not None]
            if len(known) == 2 * len(pairs):
                rows.append(_pair(label, model, np.mean(known[::2], axis=0), np.mean(known[1::2], axis=0), clusters))
        return PairedTests(rows, " ".join(troubles), len(set(clusters)))

    def as_dict(self) -> dict[str, Any]:
        """Everything for a program; a value that doesn't exist is None."""
        paired = self.paired
        return {
            "test": self.runs[0].test,
            "settings": {setting.label: self._setting_dict(setting) for setting in self.settings},
            "differences": {
                name: dict(zip([setting.label for setting in self.settings], values, strict=True))
                for name, values in self.differences().items()
            },
            "made_with": self.made_with(),
            "final_models": settings_dict(self.settings),
            "paired": {
                "rows": [
                    {
                        "label": each.label, "model": each.model, "better": each.better, "worse": each.worse, "same": each.same,
                        "differences": {
                            name: {"value": gap.value, "interval": [*map(_known, gap.interval)], "p": _known(gap.p)}
                            for name, gap in each.differences.items()
                        },
                    }
                    for each in paired.rows
                ],
                "note": paired.note,
            },
        }  # fmt: skip

    def _setting_dict(self, setting: Setting) -> dict[str, Any]:
        return {
            "runs": {run.name: {"seed": run.seed, "open": run.open_stage} for run in setting.runs},
            "repeated": {run.name: {"seed": run.seed, "open": run.open_stage} for run in setting.repeated},
            "figures": {
                model: {
                    decoding: {
                        figure: {"mean": s.mean, "sd": _known(s.sd), "interval": [*map(_known, s.interval)], "n": s.n}
                        for figure in self.figures
                        if (s := setting.spread(model, decoding, figure))
                    }
                    for decoding in DECODINGS
                }
                for model in MODELS
            },
        }

    def tables(self) -> list[Table]:
        """What a person reads: the runs, the parameters that differ, figures over seeds, paired tests."""
        labels, many = [setting.label for setting in self.settings], len(self.settings) > MANY
        made = self._many_tables() if many else [self._runs_table()]
        if 1 < len(labels) <= MANY:
            rows = [[name, *values] for name, values in self.differences().items()]
            made.append(Table("parameters that differ between settings", ("", *labels), rows, align="l"))
        for decoding in () if many else DECODINGS:
            for names in _SHOWN:
                columns = {name: self.figures[name] for name in names if name in self.figures}
                if rows := self._spread_rows(decoding, columns):
                    made.append(Table(self._title(decoding), ("", "n", *columns.values()), rows, align="lr"))
        words = {name: self.figures[name] for name in _SHOWN[-1] if name in self.figures}
        return [*made, *setting_tables(self.settings, words if many else None), *self._paired_tables()]

    def _many_tables(self) -> list[Table]:
        """The settings by row, with the seeds that have ended, and what each has other than the first."""
        ended, differ, others = [], [], self.differences()
        for number, setting in enumerate(self.settings):
            states: dict[bool, list[str]] = {True: [], False: []}
            for run in setting.runs:
                named = "" if run.name == f"{setting.label}-seed{run.seed}" else f" ({run.name})"
                states[not run.open_stage].append(f"{run.seed}{named}" + (run.open_stage and f" at {run.open_stage}"))
            ended.append([setting.label, *(", ".join(states[done]) or "-" for done in (True, False))])
            changed = [
                f"{name} {values[number]}"
                for name, values in others.items()
                if values[number] not in (values[0], "counted")  # as `budget_of` says
            ]
            differ.append([setting.label, ", ".join(changed) or "-"])
        return [
            Table("runs by setting", ("", "finished seeds", "unfinished"), ended, self._runs_note(), align="l"),
            Table(f"parameters other than {self.settings[0].label}'s", (), differ[1:], align="l"),
        ]

    def _paired_tables(self) -> list[Table]:
        paired, note, _ = self.paired
        if not paired and not note:
            return []
        rows = [
            [f"{each.label}, {MODELS[each.model]}", *(cell for gap in each.differences.values() for cell in gap_cells(gap)),
             *map(str, (each.better, each.worse, each.same))]
            for each in paired
        ]  # fmt: skip
        heads = (
            "",
            *(part for name in PAIRED.values() for part in (name, "95 % interval", "p")),
            "better",
            "worse",
            "same",
        )
        several = len(self.settings) > 1
        means = f"; means over seeds less {self.settings[0].label}'s of the same seeds" if several else ""
        title = f"paired on the same queries, greedy{means}"
        return [Table(title, heads if rows else (), rows or [[note]], note if rows else "", align="lr")]

    def _title(self, decoding: str) -> str:
        found = {
            figures.get("n") for run in self.runs for model in MODELS if (figures := run.figures(model, decoding))
        }
        queries = " or ".join(f"{n:,.0f}" for n in sorted(n for n in found if n is not None))
        several = ", mean over n seeds" if any(len(setting.runs) > 1 for setting in self.settings) else ""
        return f"{decoding}, {queries} queries{several}" if queries else f"{decoding}{several}"

    def _runs_table(self) -> Table:
        rows = []
        for setting in self.settings:
            for run in setting.all_runs:
                state = f"unfinished, at {run.open_stage}" if run.open_stage else "finished"
                seconds = [
                    entry["seconds"] for entry in run.results["stages"].values() if entry["seconds"] is not None
                ]
                again = ", again" if run in setting.repeated else ""
                took = duration(math.fsum(seconds)) if seconds else ""
                rows.append([run.name, setting.label, f"{run.seed}{again}", state, took])
        return Table("runs", ("", "setting", "seed", "state", "took"), rows, self._runs_note(), align="l")

    def _runs_note(self) -> str:
        again = [run.name for setting in self.settings for run in setting.repeated]
        parts = (
            [f"A seed that is there already says nothing about others, and counts in no mean: {', '.join(again)}."]
            if again
            else []
        )
        for name, values in self.made_with().items():
            each = [
                f"{value} in {runs[0]}{f' and {len(runs) - 1} more' * (len(runs) > 1)}"
                for value, runs in values.items()
            ]
            parts.append(f"Not the same in all runs: {name}, {'; '.join(each)}.")
        return "\n".join(parts)

    def _spread_rows(self, decoding: str, columns: Mapping[str, str]) -> list[list[str]]:
        """Two rows for each model and setting, the mean with its spread and the interval; that of a single seed has none."""
        rows = []
        for model in MODELS:
            for setting in self.settings:
                title = setting.runs[0].title(model)
                spreads = [setting.spread(model, decoding, figure) for figure in columns]
                known = [each.n for each in spreads if each]
                if not known:
                    continue
                label = f"{title} {setting.label}" if len(self.settings) > 1 else title
                rows.append([label, str(max(known)), *(_mean_text(each, max(known)) for each in spreads)])
                if max(known) > 1:
                    rows.append(
                        ["", "", *(between(each.interval) if each and each.varies else "" for each in spreads)]
                    )
        return rows


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Runs beside each other, those on other test data apart; a table in a notebook, and lines in a terminal."""

    tests: list[RunsOfOneTest]
    left_out: dict[str, str]
    """What was given and is no run, or has not been tested yet, with what is wrong with it."""

    def as_dict(self) -> dict[str, Any]:
        """Everything for a program."""
        return {"tests": [each.as_dict() for each in self.tests], "left_out": self.left_out}

    def __repr__(self) -> str:
        names = [run.name for test in self.tests for run in test.runs]
        return f"<Comparison of {len(names)} runs: {', '.join(names)}>"

    def __str__(self) -> str:
        return "\n\n".join(str(each) for each in self._parts())

    _repr_pretty_ = repr_pretty

    def _repr_html_(self) -> str:
        return "".join(
            each._repr_html_() if isinstance(each, Table) else f"<p>{each}</p>" for each in self._parts(True)
        )

    def _parts(self, escaped: bool = False) -> Iterable[Table | str]:
        import html

        say = html.escape if escaped else str
        for number, test in enumerate(self.tests):
            names = ", ".join(run.name for run in test.runs)
            if len(self.tests) > 1:
                other = " (other test data: not to be compared with the runs above)" if number else ""
                yield say(f"test data {test.runs[0].test}: {names}{other}")
            yield from test.tables()
        yield say(_legend(self.tests))
        if self.left_out:
            yield Table(f"left out, {len(self.left_out)} of what was given", (), [*self.left_out.items()], align="l")


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Read the runs in `folders`; one folder may also be one that holds runs.

    Raises LabError when there is no run among them.
    """
    given = [Path(folder) for folder in folders]
    if len(given) == 1:
        given = runs_in(given[0])
    by_test: dict[str, list[RunRecord]] = {}
    left_out: dict[str, str] = {}
    seen: set[Path] = set()
    for folder in given:
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        if not (folder / "manifest.json").is_file():
            left_out[str(folder)] = "no manifest.json"
            continue
        try:
            run = read_run(folder)
        except (LabError, OSError) as error:
            left_out[str(folder)] = str(error)
            continue
        if run.test or run.results["models"]:
            by_test.setdefault(run.test or "not recorded", []).append(run)
        else:
            left_out[str(folder)] = "it has not been tested yet"
    if not by_test:
        why = "; ".join(f"{name}: {each}" for name, each in list(left_out.items())[:3])
        raise LabError(f"none of the {len(given)} folders is a run ({why}); `labkit run` makes runs under outputs/")
    names = Counter(run.name for runs in by_test.values() for run in runs)
    by_test = {
        test: [replace(run, name=str(run.path)) if names[run.name] > 1 else run for run in runs]
        for test, runs in by_test.items()
    }
    return Comparison([RunsOfOneTest(settings_of(runs)) for runs in by_test.values()], left_out)


def moments_of(run: RunRecord, split: str = "test") -> list[Moment]:
    """The queries of a run's split, from where its data lie; raises LabError when they don't lie there any more."""
    values = run.values
    if values["data"] in WORLDS:
        paths = [moments_file(run.path.resolve().parent / world_folder(values), split, values["task"])]
    else:
        roots = dict.fromkeys([project_root(run.path), project_root()])
        paths = [under(root, values["data"]) / f"{split}.jsonl" for root in roots]
    path = next((each for each in paths if each.is_file()), None)
    if path is None:
        raise LabError(f"the queries of the {split} split are not at '{paths[0]}'; put the runs' data there")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if read_manifest(run.path)["data"].get(split) != digest:
        raise LabError(f"'{path}' is not the {split} split of run '{run.name}' any more; put back what it had")
    return read_moments(path)[: values.get(f"{split}_limit") or None]


def _pair(label: str, model: str, ours: np.ndarray, theirs: np.ndarray, clusters: Sequence[str]) -> PairedRuns:
    """One side less the other, (queries, figures) each, clustered by source video."""
    gaps = paired_differences(ours, theirs, clusters)
    change = ours[:, 0] - theirs[:, 0]
    counts = (int((change > 0).sum()), int((change < 0).sum()), int((change == 0).sum()))
    return PairedRuns(label, model, dict(zip(PAIRED, gaps, strict=True)), *counts)


def _legend(tests: Sequence[RunsOfOneTest]) -> str:
    shown = [test for test in tests if len(test.settings) <= MANY]  # of many, notes stand below their tables
    several = any(len(setting.runs) > 1 for test in shown for setting in test.settings)
    videos = [test.paired.videos for test in tests if test.paired.rows]
    parts = [
        "Runs whose parameters differ in the seed alone are one setting.",
        "In brackets the standard deviation over the seeds; below a mean its 95 % interval by Student's t, for other seeds on "
        "these queries, which is not cut to 0 and 100; none where all seeds agree." if several else "",
        "One seed says nothing about others: no interval." if shown and not several else "",
        "Paired tests ask about other queries, for these very models; intervals by source video." if videos else "",
        few_videos(min(videos)) if videos else "",
        LEGEND,
        f"{TRUE_WORDS}; which kinds are said differs.\n{DISTINCT}" if any("distinct_share" in test.figures for test in tests) else "",
    ]  # fmt: skip
    return "\n".join(filter(None, parts))


def _mean_text(spread: Spread | None, most: int) -> str:
    """A mean with its spread, and its n where it is of fewer seeds than others in its row."""
    if spread is None:
        return "-"
    fewer = f", n {spread.n}" if spread.n < most else ""
    sd = "" if math.isnan(spread.sd) else f"{percent(spread.sd)}"
    inner = f"{sd}{fewer}".removeprefix(", ")
    return f"{percent(spread.mean)} ({inner})" if inner else percent(spread.mean)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
