"""Settings: runs whose parameters differ in the seed alone, read from their folders, with their figures over seeds.

An interval over seeds speaks of other seeds on these queries. Where two settings have seeds in common they are paired by them: a
seed's difference is over the same queries, and the seeds' differences are the sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError
from labkit.params import DEFAULTS, read_yaml
from labkit.runs.budget import COUNTED
from labkit.runs.results import DECODINGS, MODELS, all_true, read_results
from labkit.runs.run import CHANGEABLE, NOTEBOOK_OF, read_manifest
from labkit.runs.spent import Spent, read_spent, total
from labkit.runs.versions import version_text
from labkit.scoring.bootstrap import Spread, spread_over_seeds
from labkit.stages.start import read_start


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
