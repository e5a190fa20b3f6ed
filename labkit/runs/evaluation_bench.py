"""A bench for one model outside of a run: what it is asked with, and the folder in which it is evaluated on any moments.

The parameters are those of a run. Where nobody says otherwise a published model is asked as `REAL_MODEL` says, and a model of the
embedded size by the defaults, which are the embedded lab's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from labkit.data.moments import Moment, read_moments
from labkit.errors import LabError
from labkit.files import project_root, under
from labkit.param_fields import FIRST_EDITION_MODELS
from labkit.params import Params
from labkit.policy.model import SHIPPED, adapter_base, cached_folder, is_path
from labkit.policy.prompts import read_template
from labkit.runs.own_terms import OwnTerms
from labkit.runs.results import evaluation_folder
from labkit.runs.run import check_inputs
from labkit.runs.workbench import Workbench
from labkit.stages.evaluate import read_evaluation_rollouts
from labkit.stages.rollouts import Rollout

REAL_MODEL: Mapping[str, Any] = {
    "prompt": "anchors", "dtype": "bfloat16", "fps": 2.0, "max_frames": 72, "min_pixels": 12544, "max_pixels": 50176,
    "max_new_tokens": 512, "eval_batch": 16, "threads": 4,
}  # fmt: skip
"""Parameters of a published model where they are not given: those of params/qwen2.5-vl-3b-lora.yaml, which says whose they are."""
SMALL_WIDTH = 512
"""Width of a language model up to which it is taken for one of the embedded size: that has 128, the smallest published one 1,536."""
MOMENTS = "moments.jsonl"
ANSWERS = "greedy"
"""Name of the evaluation, whose decoding is greedy."""


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


class EvaluationBench(Workbench):
    """A folder in which one model answers one file of moments: a workbench without stages, the test split being that file.

    The folder is `run` under `outputs`, as a run's is; frames are cached beside it, where runs look for them.
    """

    @classmethod
    def open(cls, params: Params, check: Any = None) -> Self:
        """Open the folder that `params` names, or make it. Raises LabError when it is a run's, or none of labkit's."""
        root = project_root()
        folder = under(root, params.outputs) / params.run
        if folder.exists() and not folder.is_dir():
            raise LabError(f"'{folder}' is a file; give another folder with -o")
        if folder.is_dir() and any(folder.iterdir()) and not (folder / MOMENTS).is_file():
            raise LabError(f"'{folder}' is not empty, and no evaluation is in it; give another folder with -o")
        own = OwnTerms(read_template(params.prompt, root, {}))
        folder.mkdir(parents=True, exist_ok=True)
        return cls(params, folder, root, own)

    def moments(self, split: str) -> list[Moment]:
        """The moments that are asked, whatever the split is called."""
        return read_moments(self.path / MOMENTS)

    def data_folder(self) -> Path:
        """The folder itself."""
        return self.path

    def greedy_chains(self, stage: str) -> list[Rollout]:
        """What the model has answered; it has one stage."""
        return read_evaluation_rollouts(evaluation_folder(self.path, ".", ANSWERS), self.moments("test"))
