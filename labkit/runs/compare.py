"""Several runs beside each other: figures over seeds, paired tests on the same queries, and the parameters that differ.

Runs whose parameters differ in the seed alone are one setting (`labkit.runs.settings`), whose figures have a mean, a spread and an
interval over seeds. That interval speaks of other seeds on these queries; a paired test speaks of other queries, for these very
models. Runs on other test data stand apart, by name, and so does what has nothing to compare; what no parameter says and runs do not
share, such as the code that made them, is said.
"""

from __future__ import annotations

import functools
import hashlib
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
from labkit.runs.results import (
    ANSWERED,
    COLUMNS,
    DECODINGS,
    DISTINCT,
    LEGEND,
    MODELS,
    TRUE_WORDS,
    read_model_evaluation,
)
from labkit.runs.run import read_manifest, runs_in
from labkit.runs.settings import (
    COST,
    FINAL,
    HALF,
    RunRecord,
    Setting,
    differences,
    final_tables,
    less,
    less_table,
    made_with,
    read_run,
    runs_tables,
    settings_of,
    stage_tables,
)
from labkit.scoring.bootstrap import Difference, Spread, few_videos, known, paired_differences
from labkit.scoring.predictions import as_predictions
from labkit.scoring.scores import gap_cells, score
from labkit.table import Table, repr_pretty

PAIRED = {"miou": "mIoU", "r1@0.5": "R1@0.5"}
"""Figures of the paired tests."""
MANY = 2
"""Of more settings than this only the final models are shown."""


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
        words = {f"true_{kind}": f"true {name}" for kind, name in KINDS.items()}
        titles = COLUMNS | ANSWERED | words | {"distinct_share": "distinct", "true_words": "true words"}
        each = [run.figures(model, decoding) for run in self.runs for model in MODELS for decoding in DECODINGS]
        return {name: title for name, title in titles.items() if any(one.get(name) is not None for one in each)}

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
            # Of reinforcement alone, what stage 3 begins from is the base.
            alike = [model for model in MODELS if run.title(model) == other.title(model)]
            shared = [model for model in alike if run.figures(model, "greedy") and other.figures(model, "greedy")]
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
                for name, values in differences(self.settings).items()
            },
            "made_with": made_with(self.settings),
            "paired": {
                "rows": [
                    {
                        "label": each.label, "model": each.model, "better": each.better, "worse": each.worse, "same": each.same,
                        "differences": {name: gap.as_dict() for name, gap in each.differences.items()},
                    }
                    for each in paired.rows
                ],
                "note": paired.note,
            },
        }  # fmt: skip

    def _setting_dict(self, setting: Setting) -> dict[str, Any]:
        gaps = less(setting, self.settings[0]) if setting is not self.settings[0] else {}
        return {
            "runs": {run.name: {"seed": run.seed, "open": run.open_stage} for run in setting.runs},
            "repeated": {run.name: {"seed": run.seed, "open": run.open_stage} for run in setting.repeated},
            "figures": {
                model: {
                    decoding: _plain({figure: setting.spread(model, decoding, figure) for figure in self.figures})
                    for decoding in DECODINGS
                }
                for model in MODELS
            },
            "spent": _plain({kind: setting.spent(kind) for kind in COST}),
            "less": _plain(gaps),
        }

    def tables(self) -> list[Table]:
        """What a person reads: the runs, the parameters that differ, figures over seeds, and what is paired."""
        shown = final_tables if len(self.settings) > MANY else stage_tables
        figures = shown(self.settings, self.figures)
        return [*runs_tables(self.settings), *figures, *less_table(self.settings), *self._paired_tables()]

    def _paired_tables(self) -> list[Table]:
        paired, note, _ = self.paired
        if not paired and not note:
            return []
        rows = [
            [f"{each.label}, {MODELS[each.model]}", *(cell for gap in each.differences.values() for cell in gap_cells(gap)),
             *map(str, (each.better, each.worse, each.same))]
            for each in paired
        ]  # fmt: skip
        heads = [
            "",
            *(head for name in PAIRED.values() for head in (name, "95 % interval", "p")),
            "better",
            "worse",
            "same",
        ]
        several = len(self.settings) > 1
        means = f"; means over seeds less {self.settings[0].label}'s of the same seeds" if several else ""
        title = f"paired on the same queries, greedy{means}"
        return [Table(title, heads if rows else (), rows or [[note]], note if rows else "", align="lr")]


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
    several = any(len(setting.runs) > 1 for test in tests for setting in test.settings)
    videos = [test.paired.videos for test in tests if test.paired.rows]
    parts = [
        "Runs whose parameters differ in the seed alone are one setting.",
        HALF if several else "One seed says nothing about others: no interval.",
        "Paired tests ask about other queries, for these very models; intervals by source video." if videos else "",
        few_videos(min(videos)) if videos else "",
        LEGEND,
        f"{TRUE_WORDS}; which kinds are said differs.\n{DISTINCT}" if any("distinct_share" in test.figures for test in tests) else "",
    ]  # fmt: skip
    return "\n".join(filter(None, parts))


def _plain(spreads: Mapping[str, Spread | None]) -> dict[str, Any]:
    return {
        name: {"mean": each.mean, "sd": known(each.sd), "interval": [*map(known, each.interval)], "n": each.n}
        for name, each in spreads.items()
        if each
    }
