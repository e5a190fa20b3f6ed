"""Evaluating any model on any moments outside of a run: `labkit evaluate`, and what stands in its folder.

    moments.jsonl      what was asked
    evaluations/       a rollout store: the chains, as they were generated
    predictions.jsonl  the same as `labkit score` and `labkit.explore` read them, with how they were decoded
    score.json         figures, intervals, baselines and protocol, for a program
    evaluation.json    the parameters that decide the answers

Answers go to disk batch by batch, and what is there is not asked again: killed at any moment, the same command goes on.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.data.benchmarks import load_moments
from labkit.data.moments import Moment, require_videos, write_moments
from labkit.data.usable_moments import Moments
from labkit.errors import LabError
from labkit.files import differences, locked, project_root, read_json, under, write_json
from labkit.param_fields import FIRST_EDITION_MODELS, WORLDS
from labkit.params import DEFAULTS, Params
from labkit.policy.model import SHIPPED, Policy, adapter_base, cached_folder, is_path
from labkit.policy.prompts import is_file, require_fit
from labkit.progress import Tally
from labkit.runs.results import evaluation_folder
from labkit.runs.run import STAGE_LOCK, check_inputs
from labkit.runs.workbench import ANSWERS, MOMENTS, EvaluationBench, Workbench, answer_settings
from labkit.runs.worker import do_task
from labkit.scoring.predictions import as_predictions, write_predictions
from labkit.scoring.score_table import published_figures
from labkit.scoring.scores import Score, score
from labkit.stages.distributed.preemption import handle_preemption
from labkit.stages.evaluate import Evaluation, read_evaluation
from labkit.table import Table

PREDICTIONS = "predictions.jsonl"
REAL_MODEL: Mapping[str, Any] = {
    "prompt": "anchors", "dtype": "bfloat16", "fps": 2.0, "max_frames": 72, "min_pixels": 12544, "max_pixels": 50176,
    "max_new_tokens": 512, "eval_batch": 16, "threads": 4,
}  # fmt: skip
"""Parameters of a published model where they are not given: those of params/qwen2.5-vl-3b-lora.yaml, which says whose they are.

A model of the embedded size is asked by the defaults, which are the embedded lab's."""
SMALL_WIDTH = 512
"""Width of a language model up to which it is taken for one of the embedded size: that has 128, the smallest published one 1,536."""
WORLD_TESTS = {f"{world}/test": world for world in WORLDS}
"""Names under which the test splits of the embedded world's editions are asked, which are written under `outputs` where they are not
there."""
_DECIDING = (
    "model",
    "dtype",
    "prompt",
    "fps",
    "max_frames",
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "max_new_tokens",
)
"""Parameters that decide what is answered greedily; the weights themselves are compared by the store."""


@dataclass(frozen=True)
class EvaluatedModel:
    """A model's answers on a file of moments, and what they are worth; `published` are others' figures on the same benchmark."""

    folder: Path
    evaluation: Evaluation
    score: Score
    published: Table | None

    @property
    def predictions(self) -> Path:
        """The answers as `labkit score` and `labkit.explore` read them."""
        return self.folder / PREDICTIONS

    def as_dict(self) -> dict[str, Any]:
        """Score and published figures, for a program."""
        published = None if self.published is None else self.published.as_dict()
        return self.score.as_dict() | {"published": published}

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in (self.score, self.published) if part is not None)


def evaluate_model(
    model: str,
    moments: str,
    *,
    videos: str | Path | None = None,
    present: bool = False,
    limit: int = 0,
    folder: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> EvaluatedModel:
    """Have a model answer moments greedily, and score the answers; everything is checked before any work.

    `model` is a name of shipped weights, a hub id or a folder, also of a LoRA adapter; `moments` a benchmark's name, an annotation
    file, or `world-2/test`. With `present`, only the videos that are there are asked about, and how many that leaves stands on the
    card; `limit` asks the first so many, 0 all. Everything goes into `folder`, by default one below `outputs` that is named after
    model and moments. `overrides` are parameters by name, which go before the defaults.

    Raises LabError for bad input, and when the folder holds answers of other parameters or weights.
    """
    bench, asked = open_bench(model, moments, videos, present, limit, folder, overrides or {})
    require_fit(bench.own.template, asked)
    with locked(bench.path / STAGE_LOCK, "labkit evaluate"):
        _require_same_parameters(bench)
        write_moments(asked, bench.path / MOMENTS)
        answers = evaluation_folder(bench.path, ".", ANSWERS)
        if (evaluation := _complete(answers, asked, bench)) is None:
            # The bench's own figures are of the moments of then.
            (bench.path / f"{ANSWERS}.json").unlink(missing_ok=True)
            arguments: dict[str, Any] = {"notebook": ".", "parts": [(ANSWERS, "greedy", "own")]}
            load = functools.partial(bench.load, "base")
            do_missing(bench, "evaluation", "base", load, len(asked), **arguments)
            evaluation = read_evaluation(answers, asked)
            write_json(bench.path / "evaluation.json", _deciding(bench) | {"files": _files(bench)})
        return _score(bench, evaluation, asked)


def params_for(model: str, overrides: Mapping[str, Any]) -> Params:
    """The parameters that a model is asked with outside of a run; `overrides` go before everything.

    Raises LabError for a parameter that is unknown or out of its range, and for a model that is visibly not there.
    """
    root = project_root()
    # What is asked is given apart; `data` names the world that the model knows, if it is a toy.
    world = "world" if model in FIRST_EDITION_MODELS else "world-2"
    params = Params.build({"model": model, **overrides, "data": world})
    check_inputs(params.replace(compare=()), root)
    return params if is_small(model) else Params.build({**REAL_MODEL, **overrides, "model": model})


def is_small(model: str) -> bool:
    """Whether a model has the size of the embedded one, by its configuration; a hub's model that is not here yet has not."""
    folder: Path | None = under(project_root(), model)
    if model in SHIPPED or folder is None:
        return model in SHIPPED
    if not folder.is_dir():
        folder = None if is_path(model) else cached_folder(model)
    if folder is not None and (folder / "adapter_config.json").is_file():
        return is_small(adapter_base(str(folder)))
    if folder is None or not (folder / "config.json").is_file():
        return False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("text_config", config).get("hidden_size") or SMALL_WIDTH + 1) <= SMALL_WIDTH


def open_bench(
    model: str, moments: str, videos: str | Path | None, present: bool, limit: int, folder: str | Path | None,
    overrides: Mapping[str, Any],
) -> tuple[EvaluationBench, Moments]:  # fmt: skip
    """The folder in which a model answers moments, and these; arguments and errors as those of `evaluate_model`."""
    params = params_for(model, overrides)
    root = project_root()
    asked = _asked(moments, params, videos, present, limit)
    path = under(root, folder or Path(params.outputs) / f"evaluate-{_slug(model)}-{_slug(moments)}")
    try:
        params = params.replace(run=path.name, outputs=str(path.parent))
    except LabError:
        raise LabError(
            f"'{path}' cannot be a folder's name here; use letters, digits, dot, dash and underscore"
        ) from None
    return EvaluationBench.open(params), asked


def _asked(name: str, params: Params, videos: str | Path | None, present: bool, limit: int) -> Moments:
    """The moments to ask, with all that was found wrong in their file; `source` says which part of it they are."""
    if name in WORLD_TESTS:
        world = Workbench(
            params.replace(data=WORLD_TESTS[name]), under(project_root(), params.outputs), project_root()
        )
        name = str(world.data_folder() / "test.jsonl")
    found = load_moments(name, videos=videos)
    kept: list[Moment] = list(found)
    source = found.source
    if present:
        kept = [moment for moment in kept if os.path.isfile(moment.video)]
        source += f", the {len(kept):,} of {len(found):,} whose videos are there"
        if not kept:
            raise LabError(
                f"none of the videos of {found.source} is there, such as {found[0].video}; give --videos DIR"
            )
    if limit < 0:
        raise LabError(f"limit = {limit} is below 0; give how many moments to ask, 0 for all")
    if 0 < limit < len(kept):
        source += f", the first {limit:,} of {len(kept):,}"
        kept = kept[:limit]
    _require_videos(kept, videos)
    listed = found.rows if len(kept) == len(found) else len(kept)
    return Moments(kept, listed, found.issues, source)


def _require_videos(moments: list[Moment], videos: str | Path | None) -> None:
    try:
        require_videos(moments)
    except LabError as error:
        there = sum(os.path.isfile(path) for path in {moment.video for moment in moments})
        step = "--present asks only about those" if there else "--videos DIR says where they lie"
        where = "" if videos is None else f" below '{videos}'"
        raise LabError(f"{error}. {there:,} of the videos are there{where}: {step}") from None


def _complete(answers: Path, moments: Moments, bench: EvaluationBench) -> Evaluation | None:
    """The evaluation where every moment has been answered by this very model, so that none needs to be loaded."""
    if _noted(bench).get("files") != _files(bench):
        return None
    try:
        return read_evaluation(answers, moments)
    except LabError:
        return None  # what is missing is asked, and what is wrong is said then


def do_missing(
    bench: Workbench, task: str, stage: str, load: Callable[[], Policy], count: int, **arguments: Any
) -> None:
    """Have a stage's model do what is missing of a task, in this process or by workers; `count` parts are the whole."""
    tally = Tally(count, bench.progress_file)
    with handle_preemption(bench.path / ".stop"):
        bench.seed_everything()
        policy = load() if bench.world == 1 else stage
        do_task(bench, task, policy, tally, stage=stage, **arguments)


def _score(bench: EvaluationBench, evaluation: Evaluation, moments: Moments) -> EvaluatedModel:
    settings = answer_settings(bench.params, bench.own, bench.params.model)
    file = bench.path / PREDICTIONS
    write_predictions(file, evaluation.rollouts, settings)
    answers = as_predictions(file)
    scored = score(answers, moments)
    published = published_figures(moments)
    evaluated = EvaluatedModel(bench.path, evaluation, scored, published)
    write_json(bench.path / "score.json", evaluated.as_dict())
    return evaluated


def evaluation_text(evaluated: EvaluatedModel) -> str:
    """What `labkit evaluate` prints."""
    files = f"{evaluated.predictions} --moments {evaluated.folder / MOMENTS}"
    return (
        f"{evaluated}\n\nThe answers are in {evaluated.predictions}; to look at them, and to read them by other rules:\n"
        f"  labkit explore {files} --html answers.html\n  labkit score {files} --rules all"
    )


def _deciding(bench: EvaluationBench) -> dict[str, Any]:
    """What decides the answers; of a prompt in a file, which may be edited, with what tells its text from others."""
    p = bench.params
    prompt = bench.own.prompt_name(p.prompt) if is_file(p.prompt) else p.prompt
    return {name: getattr(p, name) for name in _DECIDING} | {"prompt": prompt}


def _require_same_parameters(bench: EvaluationBench) -> None:
    folder, noted, here = bench.path, _noted(bench), _deciding(bench)
    # What a parameter that is newer than the folder was then is its default.
    there = {name: noted.get(name, getattr(DEFAULTS, name)) for name in here} if noted else here
    if other := differences(there, here):
        raise LabError(f"'{folder}' is an evaluation with other parameters ({other}); give another folder with -o")
    if not noted:
        write_json(folder / "evaluation.json", here)


def _noted(bench: EvaluationBench) -> dict[str, Any]:
    return read_json(bench.path / "evaluation.json", "remove it, and the same command goes on")


def _files(bench: EvaluationBench) -> list[list[Any]]:
    """Name, size and time of the files of a local model: they are others once it has been trained on or replaced."""
    folder = Path(bench.model_name("base"))
    if not folder.is_dir():
        return []
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    return [[name, each.st_size, each.st_mtime_ns] for name, each in stats.items()]


def _slug(name: str) -> str:
    """A model's or file's name as a part of a folder's.

    >>> _slug("Qwen/Qwen2.5-VL-3B-Instruct"), _slug("/data/charades_sta_test.txt"), _slug("charades-sta/test")
    ('Qwen2.5-VL-3B-Instruct', 'charades_sta_test', 'charades-sta-test')
    """
    text = Path(name).stem if os.path.isabs(name) or re.search(r"\.(jsonl?|txt|csv|gz)$", name) else name
    text = text.partition("/")[2] if text.count("/") == 1 and re.match(r"[A-Z]", text) else text
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "model"
