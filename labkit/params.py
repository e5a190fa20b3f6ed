"""Parameters: typed, documented, checked before any work.

A YAML file, Papermill's `-p` and a notebook's first cell all use the same flat names, and all end here. What YAML 1.1
and Papermill spoil on the way ('1e-6' and 'false' arrive as text) is put right; anything else that does not fit its
field is an error that names the field, the value and what is allowed. The defaults are the embedded lab.

The string under each field says what it is, its unit, and where its value comes from: the paper (TAR-TVG), Time-R1's
recipe (the nearest open one), or ours. Most defaults are ours: they fit a model of 1.4 million parameters.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from labkit.errors import LabError
from labkit.values import coerce, read_yaml

T = TypeVar("T")


def _within(default: T, low: float, high: float = math.inf, *, open_low: bool = False) -> T:
    """A field that holds numbers from `low` to `high`, ends included unless `open_low`."""
    return field(default=default, metadata={"range": (low, high, open_low)})


@dataclass(frozen=True, kw_only=True)
class RunParams:
    """Which run this is and what it runs on."""

    run: str = "embedded"
    """Name of the run: its directory under `outputs`. Letters, digits, dot, dash, underscore. Ours."""
    outputs: str = "outputs"
    """Folder of all runs, relative to the project's root or absolute. Ours."""
    seed: int = _within(0, 0, 2**31 - 1)
    """Seed of everything that is drawn while training and sampling; the world has its own. Ours."""
    threads: int = _within(1, 1, 256)
    """CPU threads of torch. One is the fastest for the embedded model. Ours."""


@dataclass(frozen=True, kw_only=True)
class ModelParams:
    """Who answers."""

    model: str = "embedded"
    """The base: `embedded`, a local folder, or a hub id. Paper: Qwen2.5-VL-3B and 7B."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number type of weights and activations. Time-R1: bfloat16; float32 is faster for the embedded model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; `auto` takes the GPU when there is one. Ours."""
    lora_rank: int = _within(0, 0, 1024)
    """Rank of the LoRA adapters; 0 trains all weights (the vision tower stays frozen, as in Time-R1). Ours."""
    lora_alpha: int = _within(32, 1, 4096)
    """Scale of the LoRA adapters. Ours."""
    prompt: str = "query"
    """Name of the question template. The paper's prompt is not public; the templates are ours."""


@dataclass(frozen=True, kw_only=True)
class DataParams:
    """What is asked and what is seen."""

    data: str = "world"
    """`world`, or a folder with train.jsonl, validation.jsonl and test.jsonl. Ours."""
    world_train: int = _within(300, 1, 1_000_000)
    """Training clips of the embedded world, about 4 queries each. Ours."""
    world_validation: int = _within(40, 1, 1_000_000)
    """Validation clips. Ours."""
    world_test: int = _within(150, 1, 1_000_000)
    """Test clips. Ours."""
    world_seed: int = _within(0, 0, 999)
    """Seed of the world, apart from `seed`, so that runs of several seeds see the same clips. Ours."""
    fps: float = _within(2.0, 0, 60, open_low=True)
    """Frames seen per second of video. Time-R1: 2."""
    max_frames: int = _within(32, 2, 4096)
    """Frames seen of one clip at most; longer clips are sampled more thinly. Ours."""
    min_pixels: int = _within(3136, 784, 16_777_216)
    """Pixels of one frame at least, after resizing. Ours: 56 x 56, the embedded world's size."""
    max_pixels: int = _within(3136, 784, 16_777_216)
    """Pixels of one frame at most. Ours; Time-R1 bounds the whole video, at 3584 x 28 x 28."""
    train_limit: int = _within(0, 0)
    """Use the first so many training queries; 0 means all. Ours."""
    validation_limit: int = _within(0, 0)
    """The same for validation. Ours."""
    test_limit: int = _within(0, 0)
    """The same for test. Ours."""


@dataclass(frozen=True, kw_only=True)
class RewardParams:
    """What is paid. The terms are the paper's, their weights ours."""

    format_weight: float = _within(1.0, 0, 100)
    """Weight of the form: one think block with anchors inside, then one answer. Ours."""
    answer_weight: float = _within(2.0, 0, 100)
    """Weight of the answer's overlap with the truth in stage 1. Ours."""
    anchors_weight: float = _within(0.5, 0, 100)
    """Weight of the anchors' overlap, later ones counting more. 0 turns the term off. Ours."""
    progress_weight: float = _within(0.5, 0, 100)
    """Weight of each step being better than the one before. 0 turns the term off. Ours."""
    answer_reward: Literal["soft_iou", "iou", "timer1"] = "soft_iou"
    """How the answer is measured. Paper: soft IoU; `iou` is clamped at 0; `timer1` is Time-R1's."""
    progress_reward: Literal["share", "gated"] = "share"
    """`share` of strict improvements, or `gated`: that share x the anchors' mean IoU. Ours; share explores better."""
    min_anchors: int = _within(2, 0, 16)
    """Anchors that a chain needs. Paper: two works best in its ablation. 0 is the control that asks for none."""
    max_anchors: int = _within(4, 1, 16)
    """More anchors than this earn nothing more and are not distilled. Ours."""
    final_answer_weight: float = _within(2.0, 0, 100)
    """`answer_weight` of stage 3. Ours."""
    final_progress_weight: float = _within(1.5, 0, 100)
    """`progress_weight` of stage 3, where gating makes the term smaller. Ours: with 0.5, anchors came to be copied."""
    final_progress_reward: Literal["share", "gated"] = "gated"
    """`progress_reward` of stage 3. Ours: gated cannot be earned by a bad first anchor."""


@dataclass(frozen=True, kw_only=True)
class GrpoParams:
    """Stages 1 and 3: GRPO."""

    grpo_steps: int = _within(100, 1)
    """Steps of stage 1 at most; it stops sooner by the two conditions below. Ours."""
    final_steps: int = _within(75, 1)
    """Steps of stage 3. Ours."""
    prompts_per_step: int = _within(12, 1, 4096)
    """Queries of one step. Ours."""
    group_size: int = _within(8, 2, 256)
    """Rollouts of one query. Time-R1: 8."""
    learning_rate: float = _within(5e-4, 0, 1, open_low=True)
    """Step size of AdamW in stages 1 and 3. Ours; Time-R1: 1e-6 at 7B."""
    temperature: float = _within(1.0, 0, 5, open_low=True)
    """Sampling temperature of rollouts, harvest and sampled evaluation. Time-R1: 1.0."""
    beta: float = _within(0.04, 0, 10)
    """Weight of the KL term to the stage's start. Ours: without it, words that no reward reads decay."""
    max_new_tokens: int = _within(64, 4, 32_768)
    """Tokens of one chain at most. Ours; a real model needs 512 or more, 200 cuts anchors off."""
    stop_anchor_rate: float = _within(0.95, 0, 1)
    """Stage 1 stops when more sampled chains than this have anchors and the next holds too. 1 means never. Ours."""
    stop_progress: float = _within(0.55, 0, 1)
    """Share of sampled chains whose anchors get strictly better, from which stage 1 stops. 1 means never. Ours."""
    prompts_per_pass: int = _within(0, 0, 4096)
    """Queries of one forward and backward pass, a divisor of `prompts_per_step`; 0 is all. Less takes less memory. Ours."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them, in stages 1 to 3: for models that fill a GPU. Ours."""
    save_steps: int = _within(25, 1)
    """Steps between two checkpoints: what a kill costs at most. Ours."""


@dataclass(frozen=True, kw_only=True)
class DistillParams:
    """Stage 2, first half: harvest and filter. The paper keeps about 30,000 traces."""

    harvest_prompts: int = _within(600, 1)
    """Training queries that are harvested, at most as many as there are. Ours."""
    harvest_samples: int = _within(8, 1, 1024)
    """Chains sampled for each of them. Ours."""
    min_answer_iou: float = _within(0.5, 0, 1)
    """IoU that the answer of a kept trace reaches. Ours."""
    max_per_query: int = _within(3, 1, 1024)
    """Traces kept of one query, the best first. Ours."""


@dataclass(frozen=True, kw_only=True)
class SftParams:
    """Stage 2, second half: SFT of a fresh base on the kept traces."""

    sft_epochs: float = _within(3.0, 0, 1000, open_low=True)
    """Passes over the traces. Ours."""
    sft_batch: int = _within(24, 1, 4096)
    """Traces of one step. Ours."""
    sft_learning_rate: float = _within(5e-4, 0, 1, open_low=True)
    """Step size of AdamW. Ours."""


@dataclass(frozen=True, kw_only=True)
class EvaluateParams:
    """How it is measured."""

    eval_batch: int = _within(64, 1, 4096)
    """Queries answered at once; does not change the answers. Ours."""
    sampled_evaluation: bool = True
    """Evaluate with sampling too: greedy decoding alone hides rare anchors. Ours."""
    compare: tuple[str, ...] = ()
    """Other run directories that 05_analysis shows beside this one, relative to the root or absolute. Ours."""


CONCERNS: tuple[type, ...] = (
    RunParams,
    ModelParams,
    DataParams,
    RewardParams,
    GrpoParams,
    DistillParams,
    SftParams,
    EvaluateParams,
)


@dataclass(frozen=True, kw_only=True, repr=False)
class Params(EvaluateParams, SftParams, DistillParams, GrpoParams, RewardParams, DataParams, ModelParams, RunParams):
    """All parameters of a run under flat names: `params.learning_rate`, and `params` itself where a concern is asked.

    Raises LabError when constructed with a value out of its range or two values that contradict each other; use
    `Params.build` for values that come from a file, a command line or a notebook.
    """

    def __post_init__(self) -> None:
        problems = [problem for name in names() if (problem := _outside(name, getattr(self, name)))]
        problems += _contradictions(self)
        if problems:
            raise LabError(_report(problems))

    @classmethod
    def build(cls, mapping: Mapping[str, Any]) -> Params:
        """Make parameters of loose values, everything that is not named at its default.

        Raises LabError that lists every unknown name, every value of a wrong type and every one out of range.

        >>> Params.build({"learning_rate": "1e-6", "sampled_evaluation": "false"}).learning_rate
        1e-06
        >>> Params.build({"learning_rat": 1e-6})
        Traceback (most recent call last):
        labkit.errors.LabError: unknown parameter 'learning_rat'; did you mean 'learning_rate'?
        """
        hints, known = _types(), names()
        values: dict[str, Any] = {}
        problems = []
        for name, value in mapping.items():
            if name not in known:
                problems.append(_unknown(str(name)))
                continue
            try:
                values[name] = coerce(value, hints[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
                continue
            if problem := _outside(name, values[name]):
                problems.append(problem)
                del values[name]
        if problems:
            raise LabError(_report(problems))
        return cls(**values)

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Params:
        """Make parameters of what a notebook's parameter cells defined; call it as `Params.from_notebook(globals())`.

        IPython's own names, names that begin with an underscore, modules, functions and classes are left alone.
        Anything else is a parameter, whoever set it, so that a mistyped `papermill -p` ends here. When the cell is run
        again in a live notebook, names that later cells made are left alone too, unless they look like a mistyped
        parameter.
        """
        first = namespace.setdefault("_names_of_parameter_cells", frozenset(namespace))
        given = {}
        for name, value in namespace.items():
            if name.startswith("_") or name in IPYTHON_NAMES or isinstance(value, NOT_PARAMETERS):
                continue
            if name in names() or name in first or get_close_matches(name, names(), n=1, cutoff=0.85):
                given[name] = value
        return cls.build(given)

    def as_dict(self) -> dict[str, Any]:
        """Every value in force, concern by concern, in a form that YAML and JSON can hold."""
        values = {name: getattr(self, name) for name in names()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def changed(self) -> list[str]:
        """The names whose values differ from the defaults."""
        return [name for name in names() if getattr(self, name) != getattr(DEFAULTS, name)]

    def __str__(self) -> str:
        from labkit.tables import params_text

        return params_text(self)

    def __repr__(self) -> str:
        return f"Params.build({ {name: getattr(self, name) for name in self.changed()} })"

    def _repr_html_(self) -> str:
        from labkit.tables import params_html

        return params_html(self)


IPYTHON_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
# Params among them: when the second cell is run again, its own result is still there.
NOT_PARAMETERS = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, Params)


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all parameters, concern by concern."""
    return tuple(item.name for concern in CONCERNS for item in fields(concern))


@functools.cache
def documentation() -> dict[str, str]:
    """The string under each field, by the field's name."""
    found = {}
    for node in ast.parse(Path(__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for item, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[ast.unparse(item.target)] = str(ast.literal_eval(below.value))
    return found


def read_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read a YAML file of overrides; `overrides` go on top. An empty file is the embedded lab.

    Raises LabError, naming the file, when it is missing, no YAML, holds a key twice or holds a bad parameter.
    """
    values = read_yaml(path)
    try:
        return Params.build({**values, **(overrides or {})})
    except LabError as error:
        raise LabError(f"{path}: {error}") from None


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Params)


@functools.cache
def _ranges() -> dict[str, tuple[float, float, bool]]:
    return {item.name: item.metadata["range"] for item in fields(Params) if "range" in item.metadata}


def _outside(name: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if name == "run" and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        return f"run: {value!r} cannot name a directory; use letters, digits, dot, dash and underscore"
    if isinstance(value, str) and not value.strip():
        return f"{name}: is empty; give a value, or delete the line for the default {show(_default(name))}"
    if name not in _ranges():
        return None
    low, high, open_low = _ranges()[name]
    if low <= value <= high and not (open_low and value == low):
        return None
    if high == math.inf:
        return f"{name}: {value!r} is out of range, it must be {'above' if open_low else 'at least'} {low:g}"
    return f"{name}: {value!r} is out of range {'(' if open_low else '['}{low:g}, {high:.10g}]"


def _contradictions(params: Params) -> list[str]:
    """What is wrong with values that are each in their range."""
    pairs = (("min_anchors", "max_anchors"), ("min_pixels", "max_pixels"))
    problems = [
        f"{low}: {getattr(params, low)} is more than {high} ({getattr(params, high)})"
        for low, high in pairs
        if getattr(params, low) > getattr(params, high)
    ]
    weights = ("format_weight", "answer_weight", "anchors_weight", "progress_weight")
    if params.prompts_per_pass and params.prompts_per_step % params.prompts_per_pass:
        problems.append(
            f"prompts_per_pass: {params.prompts_per_pass} does not divide prompts_per_step ({params.prompts_per_step})"
        )
    if not any(getattr(params, name) for name in weights):
        problems.append(f"{', '.join(weights)}: all are 0, so nothing would be rewarded; give one of them a weight")
    return problems


def _default(name: str) -> Any:
    return next(item.default for item in fields(Params) if item.name == name and item.default is not MISSING)


def _unknown(name: str) -> str:
    near = get_close_matches(name, names(), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "labkit/params.py lists all of them"
    return f"unknown parameter '{name}'; {hint}"


def _report(problems: Iterable[str]) -> str:
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)])


def show(value: Any) -> str:
    """A value as people read it.

    >>> show(5e-4), show(("outputs/a", "outputs/b")), show(())
    ('0.0005', 'outputs/a, outputs/b', 'none')
    """
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


DEFAULTS = Params()
