"""Budgets: what a run has spent on learning, and as many steps as another run's rollouts, or its processor time, are worth.

What is spent is counted from the files that a stage left, and not from what it was planned to take: stage 1 may stop by its condition,
and a killed run takes steps twice. Evaluation and figures are no learning; probes, asked between two steps, are in processor time.
A budget is counted once, when a run is made, and stands in this run's params.yaml from then on. So a control says in its file what it
is equal to, and not a number that somebody has worked out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from labkit.errors import LabError
from labkit.files import under
from labkit.params import DEFAULTS, Params, read_yaml
from labkit.stages.checkpoints import read_result
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import RolloutStore
from labkit.stages.sft import SftResult

KEPT_SPENT = "spent.json"
"""In a small copy of a run, whose rollouts stayed behind: what `read_spent` counted before."""


class Spent(NamedTuple):
    """What one stage took."""

    steps: int
    """Updates; 0 of a harvest."""
    rollouts: int
    """Chains that were sampled to learn from; 0 of SFT."""
    cpu_seconds: float | None
    """Processor time of its training or sampling; None of runs that are older than its measure (2026-11-30)."""


def read_spent(run: Path) -> dict[str, Spent]:
    """By notebook, what each stage of the run in the folder `run` has spent that has ended; of a harvest what there is of it.

    Stages that it skips are missing.
    """
    if (kept := run / KEPT_SPENT).is_file():
        return {name: Spent(*each) for name, each in json.loads(kept.read_text(encoding="utf-8")).items()}
    found: dict[str, Spent] = {}
    for notebook in ("01_grpo", "04_grpo_final"):
        if result := read_result(run / notebook, GrpoResult):
            found[notebook] = Spent(result.steps, _count(run / notebook), _cpu_seconds(result.history))
    store = RolloutStore(run / "02_distill" / "rollouts")
    if store.files():
        found["02_distill"] = Spent(0, _count(run / "02_distill"), store.cpu_seconds())
    if learnt := read_result(run / "03_sft", SftResult):
        found["03_sft"] = Spent(learnt.steps, 0, _cpu_seconds(learnt.history))
    return dict(sorted(found.items()))


def total(spent: Mapping[str, Spent]) -> Spent:
    """All stages together.

    >>> total({"01_grpo": Spent(10, 960, 12.5), "03_sft": Spent(20, 0, 3.5)})
    Spent(steps=30, rollouts=960, cpu_seconds=16.0)
    """
    seconds = [each.cpu_seconds for each in spent.values()]
    known = [each for each in seconds if each is not None]
    return Spent(
        sum(each.steps for each in spent.values()),
        sum(each.rollouts for each in spent.values()),
        math.fsum(known) if len(known) == len(seconds) else None,
    )


def _count(folder: Path) -> int:
    return sum(sum(qids.values()) for qids in RolloutStore(folder / "rollouts").qid_counts().values())


def _cpu_seconds(history: list[dict[str, float]]) -> float | None:
    if not history or not all("cpu_seconds" in row for row in history):
        return None
    return math.fsum(row["cpu_seconds"] for row in history)


COUNTED = ("grpo_steps", "stop_anchor_rate", "final_steps")
"""Parameters that are computed where `budget_of` is given."""
CHANGEABLE = (
    "run", "outputs", "compare", "processes", "second_process", "report_to", "sampled_evaluation", "blind_share",
)  # fmt: skip
"""Parameters that may change in a run: what its folder is called and where it stands, what 05_analysis shows beside it, how
many work on it, and who is told."""
_MAY_DIFFER = (*CHANGEABLE, "budget_of", "pace_of", *COUNTED)


def named_run(name: str, params: Params, root: Path) -> Path:
    """The folder of the run that `budget_of` or `pace_of` names: a name in `outputs`, or a path; `{seed}` is this run's seed."""
    name = name.replace("{seed}", str(params.seed))
    return under(root, name) if "/" in name else under(root, params.outputs) / name


def as_counted(params: Params, there: Mapping[str, Any]) -> Params:
    """Parameters with the steps that were counted when their run was made, whose params.yaml holds `there`."""
    if not params.budget_of or there.get("budget_of") != params.budget_of:
        return params
    return params.replace(**{name: there[name] for name in COUNTED if name in there})


def count_budget(params: Params, root: Path) -> Params:
    """Parameters with the steps that `budget_of` and `pace_of` ask for; the same ones where neither is given.

    Raises LabError when the run that is named is not there or not finished, has no stage or no processor time to count, leaves
    nothing for stage 3, or when steps are given that are not the computed ones.
    """
    if not params.budget_of:
        return params
    other = named_run(params.budget_of, params, root)
    spent, changes = _finished("budget_of", other), dict[str, Any]()
    per_step = params.prompts_per_step * params.group_size
    left = total(spent).rollouts
    if not (params.grpo_model or params.traces or params.sft_model):
        if "01_grpo" not in spent:
            raise LabError(f"budget_of: '{other}' has no stage 1 whose steps this run could take; name one that has")
        changes = {"grpo_steps": _steps(spent["01_grpo"].rollouts, per_step), "stop_anchor_rate": 1.0}
        left -= changes["grpo_steps"] * per_step
    if not (params.traces or params.sft_model):
        left -= _harvest(params, other, spent)
    if params.pace_of:
        changes["final_steps"] = _paced(params, root, other, spent)
    elif left <= 0:
        raise LabError(
            f"budget_of: '{other}' spent {total(spent).rollouts:,} rollouts, and this run's stages before the last take as many; "
            "nothing is left for stage 3: lower harvest_prompts"
        )
    else:
        changes["final_steps"] = _steps(left, per_step)
    for name, value in changes.items():
        if (given := getattr(params, name)) not in (getattr(DEFAULTS, name), value):
            raise LabError(f"{name}: {given} is given, and budget_of makes it {value}; leave it out")
    return params.replace(**changes)


def other_training(params: Params, there: Mapping[str, Any]) -> list[str]:
    """Names of the parameters by which a step of `params` may take another time than one of the run of parameters `there`."""
    here = params.as_dict()
    return [name for name in here if name not in _MAY_DIFFER and here[name] != there.get(name)]


def _finished(parameter: str, run: Path) -> dict[str, Spent]:
    if not (run / "params.yaml").is_file():
        raise LabError(f"{parameter}: there is no run '{run}'; make it first, as `labkit campaign` does")
    spent = read_spent(run)
    if "04_grpo_final" not in spent:
        raise LabError(
            f"{parameter}: run '{run}' has not ended its stage 3; finish it first, as `labkit campaign` does"
        )
    return spent


def _steps(rollouts: int, per_step: int) -> int:
    """Steps that take at least so many rollouts."""
    return math.ceil(rollouts / per_step)


def _harvest(params: Params, other: Path, spent: Mapping[str, Spent]) -> int:
    """Rollouts that this run's harvest will take: there may be fewer training queries than `harvest_prompts`, as the other shows."""
    there = DEFAULTS.as_dict() | read_yaml(other / "params.yaml")
    prompts = params.harvest_prompts
    if "02_distill" in spent and there["harvest_prompts"] == prompts:
        prompts = spent["02_distill"].rollouts // there["harvest_samples"]
    return prompts * params.harvest_samples


def _paced(params: Params, root: Path, other: Path, spent: Mapping[str, Spent]) -> int:
    """Steps that take the other run's processor time, at the pace of the run that `pace_of` names."""
    twin = named_run(params.pace_of, params, root)
    pace = _finished("pace_of", twin)["04_grpo_final"]
    if names := other_training(params, DEFAULTS.as_dict() | read_yaml(twin / "params.yaml")):
        raise LabError(
            f"pace_of: '{twin}' is a run of other parameters ({', '.join(names)}); its steps take another time"
        )
    seconds = total(spent).cpu_seconds
    if seconds is None or not pace.cpu_seconds:
        old = other if seconds is None else twin
        raise LabError(f"'{old}' has no record of its processor time: it is older than its measure; run it again")
    return max(1, round(seconds / (pace.cpu_seconds / pace.steps)))
