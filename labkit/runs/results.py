"""Results of a run: every stage's figures at a glance from its manifest, and what its models answered on the test split."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from labkit.data.moments import Moment
from labkit.embedded.true_words import KINDS
from labkit.errors import LabError
from labkit.progress import duration
from labkit.runs.run import NOTEBOOK_OF, STAGES, read_manifest
from labkit.runs.versions import version_text
from labkit.scoring.bootstrap import Interval
from labkit.scoring.scores import between
from labkit.stages.evaluate import read_evaluation_rollouts
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.table import Table, percent

MODELS = {"base": "base", "grpo": "stage 1", "sft": "sft", "grpo_final": "final"}
"""The models that are evaluated, in the order in which they come to be, and what the table calls them."""
DECODINGS = ("greedy", "sampled")
SCORES = {"miou": "mIoU", "r1@0.3": "R1@0.3", "r1@0.5": "R1@0.5", "r1@0.7": "R1@0.7"}
COLUMNS = SCORES | {
    "anchor_rate": "anchors",
    "strict_share": "strict",
    "iou_first": "first",
    "iou_last": "last",
    "iou_answer": "answer",
}
ANSWERED = {"etf1": "EtF1", "count_accuracy": "C-Acc", "acc_qa": "Acc@QA", "acc_gqa": "Acc@GQA"}
"""Columns beside these where a truth is a set of spans, or moments have options."""
TRUE_WORDS = "True words: of all words said of a kind the share that is true of what the clip shows"
DISTINCT = "Distinct: thoughts that differ once object words and numbers are blanked."
WORDS_LEGEND = (
    f"{TRUE_WORDS}, below it its 95 % interval by\n"
    "video, and what the same words would have by chance, dealt out at random among all queries.\n"
    f"{DISTINCT}"
)
LEGEND = (
    "All in percent. anchors: chains with an anchor. strict: with two or more, each by 0.05 IoU better.\n"
    "first, last, answer: mean IoU of the first anchor, the last anchor and the answer, of the chains with anchors."
)


class ModelEvaluation(NamedTuple):
    """A model on the test split, decoded greedily and, where `sampled_evaluation` says so, by sampling."""

    figures: dict[str, dict[str, float]]
    """By decoding (`greedy`, `sampled`): flat figures, see `labkit.stages.evaluate.Evaluation`."""
    greedy: list[Rollout]
    sampled: list[Rollout]


class FrameAblation(NamedTuple):
    """A model's greedy mIoU with its own frames and without, and that of the best constant answer, all over the same queries."""

    queries: int
    seeing: float
    blind: dict[str, float]
    """By kind of the frames that are not the query's."""
    constant: float


def evaluation_folder(run: Path, notebook: str, name: str) -> Path:
    """The rollout store of an evaluation of the run in the folder `run`; its figures are in `<notebook>/<name>.json`."""
    return run / notebook / "evaluations" / name


def evaluation_files(run: Path, stage: str) -> dict[str, Path]:
    """By decoding, the files with a stage's figures that are there."""
    folder = run / NOTEBOOK_OF.get(stage, "01_grpo")
    files = {decoding: folder / f"{stage}-{decoding}.json" for decoding in DECODINGS}
    return {decoding: file for decoding, file in files.items() if file.is_file()}


def is_evaluated(run: Path, stage: str) -> bool:
    """Whether a stage's model has been evaluated in the folder of a run."""
    return "greedy" in evaluation_files(run, stage)


def require_evaluation(run: Path, stage: str) -> None:
    """Raise LabError when a stage's model has not been evaluated in the folder of a run."""
    if not is_evaluated(run, stage):
        notebook = NOTEBOOK_OF.get(stage, "01_grpo")
        raise LabError(f"{stage} has not been evaluated in '{run}'; run notebooks/{notebook}.ipynb first")


def read_model_evaluation(run: Path, stage: str, moments: Sequence[Moment]) -> ModelEvaluation:
    """The evaluation of a stage's model in the folder of a run, in the order of the test split's moments.

    Raises LabError when there is none yet.
    """
    require_evaluation(run, stage)
    figures, rollouts = {}, {}
    for decoding, path in evaluation_files(run, stage).items():
        stored = json.loads(path.read_text(encoding="utf-8"))
        figures[decoding] = stored["figures"]
        if "predictions" in stored:
            rollouts[decoding] = _rollouts_of_predictions(stored["predictions"], run.name, stage)
        else:
            folder = evaluation_folder(run, path.parent.name, path.stem)
            rollouts[decoding] = read_evaluation_rollouts(folder, moments)
    return ModelEvaluation(figures, rollouts["greedy"], rollouts.get("sampled", []))


def _rollouts_of_predictions(rows: Sequence[Sequence[str]], run: str, stage: str) -> list[Rollout]:
    """Runs of 2026 before evaluations were rollouts: (qid, text, status) beside the figures, in the split's order."""
    return [
        Rollout(
            run=run, stage=stage, step=0, qid=qid, sample=0, seed=0, checkpoint="", text=text, status=status, **UNPAID,
            prompt_tokens=0, completion_tokens=0, finished=status != "cut_off",
        )
        for qid, text, status in rows
    ]  # fmt: skip


def read_results(folder: str | Path) -> dict[str, Any]:
    """The figures of a run's finished stages, as plain data for JSON.

    `run`, `labkit` (version, commit), `stages` (state and seconds), `models`, `scores` and `harvest`; `begins` says why the first
    stages are skipped, where they are.

    `models` holds, by model and decoding, the flat figures of `labkit.stages.evaluate.Evaluation`; IoU is a fraction.
    `scores` holds, by model, greedy figures with intervals and baselines (`labkit.scoring.scores.Score.as_dict`), once 05_analysis has
    scored them. Raises LabError when `folder` holds no run.
    """
    manifest = read_manifest(folder)
    figures = {name: entry.get("figures", {}) for name, entry in manifest["stages"].items()}
    models: dict[str, Any] = {}
    for model in MODELS:
        for stage in figures.values():
            if model in stage:
                models[model] = stage[model]
    return {
        "run": Path(folder).resolve().name,
        "labkit": {key: manifest[key] for key in ("labkit", "commit", "changed") if key in manifest},
        "stages": {
            name: {key: manifest["stages"].get(name, {}).get(key) for key in ("state", "seconds")} for name in STAGES
        },
        "models": models,
        "scores": figures.get("05_analysis", {}).get("scores", {}),
        "harvest": next((stage["harvest"] for stage in figures.values() if "harvest" in stage), {}),
        "begins": next((entry["why"] for entry in manifest["stages"].values() if entry["state"] == "skipped"), ""),
    }


def results_text(results: Mapping[str, Any]) -> str:
    """The same as plain text: one table for each decoding, what the harvest dropped, and how long each stage took."""
    blocks: list[object] = [f"run {results['run']}" + (f": {results['begins']}" if results["begins"] else "")]
    columns = columns_of(results["models"])
    for decoding in DECODINGS:
        rows = [
            [label, *(percent(results["models"][model][decoding].get(key)) for key in columns)]
            for model, label in MODELS.items()
            if results["models"].get(model, {}).get(decoding)
        ]
        if rows:
            queries = {row[decoding]["n"] for row in results["models"].values() if row.get(decoding)}
            title = f"{decoding}, {' or '.join(f'{n:.0f}' for n in sorted(queries))} queries"
            blocks.append(Table(title, ("", *columns.values()), rows, align="lr"))
    words = words_table({label: results["models"].get(model, {}) for model, label in MODELS.items()})
    if words:
        blocks.append(words)
    if results["harvest"]:
        rows = [[name, f"{count:g}"] for name, count in results["harvest"].items() if name != "yield"]
        blocks.append(Table(f"harvest, {100 * results['harvest']['yield']:.1f} % kept", (), rows, align="lr"))
    states = [
        [name, entry["state"] or "not run", "" if entry["seconds"] is None else duration(entry["seconds"])]
        for name, entry in results["stages"].items()
    ]
    blocks.append(Table("stages", (), states, align="lr"))
    blocks.append(f"labkit {version_text(results['labkit'])}")
    if results["models"]:
        blocks.append(f"{LEGEND}\n{WORDS_LEGEND}" if words else LEGEND)
    return "\n\n".join(map(str, blocks))


def columns_of(models: Mapping[str, Any]) -> dict[str, str]:
    """Columns of the tables for these models: figure names and titles."""
    found = {key for decodings in models.values() for figures in decodings.values() for key in figures or ()}
    return COLUMNS | {key: title for key, title in ANSWERED.items() if key in found}


def words_columns(models: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Names and titles of the shares of true words that any model's figures by decoding have."""
    found = {key for decodings in models for figures in decodings.values() for key in figures or ()}
    return {f"true_{kind}": name for kind, name in KINDS.items() if f"true_{kind}" in found}


def words_table(models: Mapping[str, Mapping[str, Any]]) -> Table | None:
    """True words of models, a column each and a row for each kind and decoding; None where no figures have them.

    `models` holds by label, then by decoding, flat figures of `labkit.embedded.true_words.word_figures` among others.
    """
    rows, labels = [], [label for label, each in models.items() if words_columns([each])]
    for decoding in DECODINGS:
        found = [models[label].get(decoding) or {} for label in labels]
        if not any("distinct_thoughts" in each for each in found):
            continue
        rows.append([decoding, *[""] * len(labels)])
        for kind, name in KINDS.items():
            if any(each.get(f"said_{kind}") for each in found):
                rows.append([f"{name}, true", *(true_share(each, kind) for each in found)])
                rows.append(["interval; chance", *(_interval_and_chance(each, kind) for each in found)])
        distinct = [(each.get("distinct_thoughts"), each.get("n")) for each in found]
        rows.append(
            ["distinct thoughts", *("-" if d is None or not n else f"{d:,.0f} of {n:,.0f}" for d, n in distinct)]
        )
    return Table("true words, in percent of those said", ("", *labels), rows, align="lr") if rows else None


def all_true(figures: Mapping[str, float | None]) -> float | None:
    """Share of true words of all kinds together; None where none was said, or nothing says what is true.

    >>> all_true({"true_place": 0.5, "said_place": 10.0, "true_color": 1.0, "said_color": 30.0})
    0.875
    """
    said = {kind: figures.get(f"said_{kind}") or 0.0 for kind in KINDS}
    true = sum(count * float(figures[f"true_{kind}"] or 0.0) for kind, count in said.items() if count)
    return true / sum(said.values()) if any(said.values()) else None


def true_share(figures: Mapping[str, float | None], kind: str) -> str:
    """Percent of true words of a kind, and how many were said.

    >>> true_share({"true_place": 0.256, "said_place": 579.0}, "place")
    '25.6 of 579'
    """
    if not (said := figures.get(f"said_{kind}")):
        return "none said" if said == 0 else "-"
    return f"{percent(figures[f'true_{kind}'])} of {said:,.0f}"


def _interval_and_chance(figures: Mapping[str, float | None], kind: str) -> str:
    if not figures.get(f"said_{kind}"):
        return ""
    low, high = (math.nan if (end := figures.get(f"{name}_{kind}")) is None else end for name in ("low", "high"))
    return f"{between(Interval(low, high))}; {percent(figures.get(f'chance_{kind}'))}"
