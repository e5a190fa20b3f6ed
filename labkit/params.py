"""Parameters: typed, documented, checked before any work.

A YAML file, Papermill's `-p` and a notebook's first cell all use the same flat names, and all end here. What YAML 1.1
and Papermill spoil on the way ('1e-6' and 'false' arrive as text) is put right; anything else that does not fit its
field is an error that names the field, the value and what is allowed. The defaults are the embedded lab.
`labkit.param_fields` says what each of them means.
"""

from __future__ import annotations

import functools
import html
import symtable
import types
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import annotated_types
import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from labkit.errors import LabError, nearest
from labkit.files import project_root, under
from labkit.own_code import CELLS
from labkit.param_fields import (
    FIRST_EDITION_MODELS,
    GROUPS,
    WORLDS,
    DataParams,
    DistillParams,
    EvaluateParams,
    GrpoParams,
    ModelParams,
    RewardParams,
    RunParams,
    SftParams,
    StartParams,
    own_weights,
)


class Params(
    EvaluateParams, SftParams, DistillParams, GrpoParams, RewardParams, DataParams, StartParams, ModelParams, RunParams
):
    """All parameters of a run under flat names: `params.learning_rate`, and `params` itself where a group of them is asked.

    However it is made, values are converted and checked alike. Raises LabError that lists every unknown name, every value of a
    wrong type or out of its range, or else each in contradiction to another.

    >>> Params(learning_rate="1e-6", sampled_evaluation="false").learning_rate
    1e-06
    >>> Params(grpo_steps="ten")
    Traceback (most recent call last):
    labkit.errors.LabError: grpo_steps: 'ten' is not a whole number
    >>> Params(learning_rat=1e-6)
    Traceback (most recent call last):
    labkit.errors.LabError: unknown parameter 'learning_rat'; did you mean 'learning_rate'?
    """

    def __init__(self, **values: Any) -> None:
        """Everything that is not named has its default."""
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise LabError(_report(_problems(error.errors(), values))) from None
        if problems := _contradictions(self):
            raise LabError(_report(problems))

    @classmethod
    def build(cls, mapping: Mapping[str, Any]) -> Params:
        """Make parameters of a mapping, as a YAML file holds it."""
        return cls(**{str(name): value for name, value in mapping.items()})

    def __hash__(self) -> int:
        """Equal for equal parameters; a mapping among them has none of its own."""
        return hash(repr(self))

    def replace(self, **changes: Any) -> Params:
        """The same parameters but for `changes`, checked anew."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Params:
        """Make parameters of what a notebook's parameter cells defined; call it as `Params.from_notebook(globals())`.

        Names that no cell has assigned (a startup file's or a platform's), the paths that Papermill injects, names that
        begin with an underscore, modules, functions and classes are left alone. Anything else is a parameter, so that a
        mistyped `papermill -p` ends here. When the cell is run again in a live notebook, names that later cells made
        are left alone too, unless they look like a mistyped parameter. What cells have decorated (`labkit.reward`,
        `labkit.harvest_filter`) is among the parameters, and what that uses is left alone.
        """
        assigned = _assigned_by_cells(namespace)
        first = namespace.setdefault("_names_of_parameter_cells", assigned)
        given, used = {}, {name for cell in CELLS.values() for name in cell.uses} - set(names())
        for name, value in namespace.items():
            if name.startswith(("_", "PAPERMILL_")) or name in IPYTHON_NAMES or isinstance(value, NOT_PARAMETERS):
                continue
            if name not in assigned or name in used:
                continue
            if name in names() or name in first or nearest(name, names(), like=0.85):
                given[name] = value
        own = {name: cell.weight for name, cell in CELLS.items() if cell.parameter == "rewards"}
        if own:
            with suppress(ValueError):  # what is wrong with a parameter is said below
                given["rewards"] = {**own, **own_weights(given.get("rewards", {}))}
        params = cls.build(given)
        filters = [name for name, cell in CELLS.items() if cell.parameter == "filters"]
        return params.replace(filters=tuple(dict.fromkeys((*params.filters, *filters))))

    def as_dict(self) -> dict[str, Any]:
        """Every value in force, group by group, in a form that YAML and JSON can hold."""
        return self.model_dump(mode="json")

    def start_model(self, parameter: str) -> str:
        """The model that `grpo_model` or `sft_model` names; `base` is `model` itself."""
        name: str = getattr(self, parameter)
        return self.model if name == "base" else name

    def decodings(self, stage: str) -> tuple[str, ...]:
        """How a stage's model is evaluated: `greedy`, and where `sampled_evaluation` says so `sampled`.

        >>> [Params().decodings(stage) for stage in ("base", "grpo", "grpo_final")]
        [('greedy', 'sampled'), ('greedy',), ('greedy', 'sampled')]
        """
        ends = ("sft" if self.sft_model else "base", "grpo_final")
        sampled = {"none": False, "ends": stage in ends, "all": True}[self.sampled_evaluation]
        return ("greedy", "sampled") if sampled else ("greedy",)

    def changed(self) -> list[str]:
        """The names whose values differ from the defaults."""
        return [name for name in names() if getattr(self, name) != getattr(DEFAULTS, name)]

    def __str__(self) -> str:
        changed, width = set(self.changed()), max(map(len, names()))
        lines = []
        for group in GROUPS:
            lines.append(_title(group))
            for name in group.model_fields:
                lines.append(
                    f" {'*' if name in changed else ' '} {name:<{width}}  {format_value(getattr(self, name))}"
                )
        return "\n".join([*lines, "* differs from the default"])

    def __repr__(self) -> str:
        return f"Params.build({ {name: getattr(self, name) for name in self.changed()} })"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # Where no table can be shown, such as on GitHub.
        lines = [
            f"{name} = {format_value(getattr(self, name))}  (default {format_value(getattr(DEFAULTS, name))})"
            for name in self.changed()
        ]
        printer.text("\n".join(lines) or "All parameters have their defaults.")

    def _repr_html_(self) -> str:
        """What differs from the defaults, and every value in force below it, folded; hovering a row says what it means."""
        changed = self.changed()
        head = "".join(_cell("th", each) for each in ("differs from the default", "value", "default"))
        rows = [
            _row(name, format_value(getattr(self, name)), format_value(getattr(DEFAULTS, name))) for name in changed
        ]
        blocks = "".join(
            _table(
                f'<th colspan="2" style="text-align:left">{_title(group)}</th>',
                [_row(name, format_value(getattr(self, name))) for name in group.model_fields],
            )
            for group in GROUPS
        )
        summary = f"All {len(names())} parameters{'' if changed else ', each at its default'}"
        return (
            f"{_table(head, rows) if changed else ''}<details><summary>{summary}</summary>"
            f'<div style="display:flex;flex-wrap:wrap;align-items:flex-start">{blocks}</div></details>'
        )


def _cell(tag: str, text: str) -> str:
    return f'<{tag} style="text-align:left">{html.escape(text)}</{tag}>'


def _row(name: str, *values: str) -> str:
    return f'<tr title="{html.escape(documentation()[name])}">{"".join(_cell("td", each) for each in (name, *values))}</tr>'


def _table(head: str, rows: Iterable[str]) -> str:
    return f'<table style="margin:0 1.5em 1em 0"><tr>{head}</tr>{"".join(rows)}</table>'


def _title(group: type) -> str:
    return group.__name__.removesuffix("Params").lower()


IPYTHON_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
# Params among them: when the second cell is run again, its own result is still there.
NOT_PARAMETERS = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, Params)


def _assigned_by_cells(namespace: Mapping[str, Any]) -> frozenset[str]:
    """The names in a notebook's namespace that its cells, as far as they were run, have assigned themselves.

    All names of a namespace that belongs to no notebook.
    """
    cells = namespace.get("In")
    if not isinstance(cells, list) or not cells or "from_notebook" not in str(cells[-1]):
        return frozenset(namespace)
    found: set[str] = set()
    for cell in cells:
        try:
            found |= assigned_names(cell)
        except (SyntaxError, ValueError):
            continue  # a cell that failed has assigned nothing
    return frozenset(found)


def assigned_names(source: str) -> set[str]:
    """The names that a module of this source assigns at its top level.

    >>> sorted(assigned_names("import os; seed: int = 3; run = [x for x in 'ab']"))
    ['os', 'run', 'seed']
    """
    table = symtable.symtable(source, "cell", "exec")
    return {each.get_name() for each in table.get_symbols() if each.is_assigned() or each.is_imported()}


def names() -> tuple[str, ...]:
    """The names of all parameters, group by group."""
    return tuple(Params.model_fields)


@functools.cache
def documentation() -> dict[str, str]:
    """The string under each field, by the field's name."""
    return {name: field.description or "" for name, field in Params.model_fields.items()}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping of names to values."""

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice; YAML would silently take the last."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
            for key in keys:
                if keys.count(key) > 1:
                    raise LabError(f"{path}: '{key}' stands there twice; keep one of them")
            return super().construct_mapping(node, deep=deep)

    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        near = ", ".join(str(each) for each in sorted(Path(path).parent.glob("[!.]*.yaml")))
        raise LabError(f"there is no params file '{path}'" + (f"; there are {near}" if near else "")) from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"params file '{path}' cannot be read: {error}") from None
    try:
        values = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise LabError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise LabError(f"{path} must hold lines of the form 'name: value', not {values!r}")
    return values


def read_params(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Params:
    """Read a YAML file of overrides; `overrides` go on top. An empty file is the embedded lab.

    The params.yaml of a run's directory means that run, also when the directory was renamed, copied or moved. Raises LabError,
    naming the file, when it is missing, no YAML, holds a key twice or holds a bad parameter.
    """
    values = read_yaml(path)
    folder = Path(path).resolve().parent
    if "run" in values and (folder / "manifest.json").is_file():
        values["run"] = folder.name
        if under(project_root(), str(values.get("outputs", DEFAULTS.outputs))) != folder.parent:
            values["outputs"] = str(folder.parent)
    try:
        return Params.build({**values, **(overrides or {})})
    except LabError as error:
        raise LabError(f"{path}: {error}") from None


PROTOCOLS: dict[str, dict[str, Any]] = {
    # README and evaluation/utils.py of github.com/TencentARC/TimeLens; frames and pixels at most are qwen-vl-utils' own.
    "timelens": {
        "fps": 2.0, "max_frames": 768, "min_pixels": 64 * 28**2, "max_pixels": 768 * 28**2, "total_pixels": 14_336 * 28**2
    },
    # evaluation/vlmeval/dataset/video_dataset_config.py of github.com/MCG-NJU/TimeLens2: its TimeLens-Bench, then its Ego4D-NLQ.
    "timelens2": {
        "fps": 4.0, "max_frames": 2048, "min_pixels": 32**2, "max_pixels": 640**2, "total_pixels": 128_000 * 32**2
    },
    "timelens2-ego4d": {
        "fps": 2.0, "max_frames": 2048, "min_pixels": 32**2, "max_pixels": 480**2, "total_pixels": 128_000 * 32**2
    },
    # Time-R1, of TVGBench and TimeRFT: its training scripts.
    "timer1": {
        "fps": 2.0, "max_frames": 768, "min_pixels": 16 * 28**2, "max_pixels": 768 * 28**2, "total_pixels": 3_584 * 28**2
    },
    # NExT-GQA: 32 frames of every video, as its upbd files list them; its models take features, so that pixels stay the run's.
    "nextgqa": {"fps": 60.0, "max_frames": 32},
}  # fmt: skip
"""How many frames and pixels a benchmark's owners show, by name: parameters that go before a file's and after those given."""


def protocol_params(name: str | None) -> dict[str, Any]:
    """The parameters of a protocol, none without a name. Raises LabError for an unknown one.

    >>> protocol_params("timelens")["total_pixels"], protocol_params(None)
    (11239424, {})
    """
    if name is None or name in PROTOCOLS:
        return {} if name is None else dict(PROTOCOLS[name])
    near = nearest(name, PROTOCOLS)
    guess = f"did you mean '{near}'? " if near else ""
    raise LabError(f"protocol: there is none called '{name}'; {guess}the protocols are {', '.join(PROTOCOLS)}")


EXPECTED = {
    "bool": "true or false",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "string": "text; put it in quotes",
    "tuple": "a list of texts",
}
"""What a value should have been, by the beginning of pydantic's name for its error."""


def _problems(errors: Iterable[ErrorDetails], given: Mapping[str, Any]) -> list[str]:
    """What is wrong with each value, in the words of this lab and in the order given; unknown names first."""
    found = {str(error["loc"][0]): error for error in errors}
    unknown = [_unknown(name) for name in given if name in found and found[name]["type"] == "extra_forbidden"]
    wrong = [_problem(name, found[name], given[name]) for name in given if name in found and name in names()]
    return [*unknown, *wrong]


def _problem(name: str, error: ErrorDetails, value: Any) -> str:
    field, kind = Params.model_fields[name], error["type"]
    if kind == "value_error":
        return f"{name}: {error['ctx']['error']}"
    if kind == "string_pattern_mismatch":
        return f"{name}: {value!r} cannot name a directory; use letters, digits, dot, dash and underscore"
    if kind == "literal_error":
        choices = get_args(field.annotation)
        if choices[-1] is Ellipsis:  # a list, of which the error names the one that is wrong
            choices, value = get_args(choices[0]), error["input"]
        return f"{name}: {value!r} is not one of {', '.join(choices)}"
    if kind.startswith(("greater_than", "less_than")):
        number = int(float(value)) if field.annotation is int else float(value)
        return f"{name}: {number} is out of range{_range(field.metadata)}"
    expected = EXPECTED["tuple" if len(error["loc"]) > 1 else kind.partition("_")[0]]
    return f"{name}: {value!r} is not {expected}"


def _range(bounds: Iterable[Any]) -> str:
    lower, upper = "", ""
    for bound in bounds:
        if isinstance(bound, annotated_types.Gt):
            lower = f"({bound.gt}"
        elif isinstance(bound, annotated_types.Ge):
            lower = f"[{bound.ge}"
        elif isinstance(bound, annotated_types.Le):
            upper = f"{bound.le}]"
    if upper:
        return f" {lower}, {upper}"
    return f", it must be {'above' if lower[0] == '(' else 'at least'} {lower[1:]}"


def _worlds_apart(params: Params) -> list[str]:
    """What a model of the embedded world's one edition cannot read of the other, and of its questions."""
    if params.data not in WORLDS:
        return []
    if params.task == "gqa" and params.data != "world-2":
        return [f"task: {params.data} has no questions with options; gqa needs data world-2 and model embedded-gqa"]
    problems = []
    for name in ("model", "harvester"):
        model = getattr(params, name)
        if params.task == "gqa" and model in ("embedded", "embedded-2"):
            problems.append(f"{name}: {model} lacks the words for questions with options; task gqa needs embedded-gqa")
        elif params.data != "world" and model in FIRST_EDITION_MODELS:
            problems.append(f"{name}: {model} lacks words of {params.data}; give embedded-2, or data world")
    return problems


def _contradictions(params: Params) -> list[str]:
    """What is wrong with values that are each in their range."""
    pairs = (("min_anchors", "max_anchors"), ("min_pixels", "max_pixels"))
    problems = [
        f"{low}: {getattr(params, low)} is more than {high} ({getattr(params, high)})"
        for low, high in pairs
        if getattr(params, low) > getattr(params, high)
    ]
    weights = ["format_weight", "answer_weight", "anchors_weight", "progress_weight"]
    if params.task == "gqa" or params.data not in WORLDS:
        weights.append("option_weight")
    problems += _worlds_apart(params)
    if params.prompts_per_pass and params.prompts_per_step % params.prompts_per_pass:
        problems.append(
            f"prompts_per_pass: {params.prompts_per_pass} does not divide prompts_per_step ({params.prompts_per_step})"
        )
    shares = params.processes * (params.prompts_per_pass or 1)
    if params.processes > 1 and params.prompts_per_step % shares:
        problems.append(
            f"prompts_per_step: {params.prompts_per_step} is no multiple of processes ({params.processes})"
            + (f" x prompts_per_pass ({params.prompts_per_pass})" if params.prompts_per_pass else "")
            + "; each process takes whole queries"
        )
    if params.processes > 1 and params.sft_batch % params.processes:
        problems.append(f"sft_batch: {params.sft_batch} is no multiple of processes ({params.processes})")
    if params.quantization != "none":
        problems += [
            f"quantization: {params.quantization} {why}"
            for there, why in (
                (params.sharding == "fsdp2", "cannot be sharded by fsdp2; take sharding: ddp"),
                (params.generation == "vllm", "has not been tried with generation: vllm; take hf"),
            )
            if there
        ]
    starts = [name for name in StartParams.model_fields if getattr(params, name)]
    if len(starts) > 1:
        problems.append(f"{' and '.join(starts)}: a run begins in one place; give one of them")
    elif starts and params.harvester:
        problems.append(
            f"harvester: stage 1, which would train it, is skipped where {starts[0]} is given; leave one out"
        )
    if params.filters and params.traces:
        problems.append(
            "filters: the harvest, which they choose from, is skipped where traces is given; leave one out"
        )
    if params.trace_choice == "random" and (params.traces or params.sft_model):
        problems.append(
            "trace_choice: there is no harvest to choose from where traces or sft_model is given; leave it out"
        )
    if params.pace_of and not (params.budget_of and params.sft_model):
        problems.append(
            "pace_of: it counts the steps of a run with budget_of that is stage 3 alone; give sft_model and budget_of too"
        )
    if not params.max_anchors and (params.anchors_weight or params.progress_weight or params.final_progress_weight):
        problems.append(
            "max_anchors: 0 scores no anchor; let anchors_weight, progress_weight and final_progress_weight be 0 too"
        )
    if strange := [name for name in params.final_rewards if name not in params.rewards]:
        problems.append(
            f"final_rewards: '{strange[0]}' is not in rewards; name it there too, with 0 to pay it in stage 3 only"
        )
    if not any([getattr(params, name) for name in weights] + [*params.rewards.values()]):
        problems.append(f"{', '.join(weights)}: all are 0, so nothing would be rewarded; give one of them a weight")
    return problems


def _unknown(name: str) -> str:
    near = nearest(name, names())
    hint = f"did you mean '{near}'?" if near else "labkit/param_fields.py lists all of them"
    return f"unknown parameter '{name}'; {hint}"


def _report(problems: Iterable[str]) -> str:
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)])


def format_value(value: Any) -> str:
    """A value as people read it.

    >>> format_value(5e-4), format_value(("outputs/a", "outputs/b")), format_value(()), format_value("")
    ('0.0005', 'outputs/a, outputs/b', 'none', 'none')
    >>> format_value({"my_rewards.py:boundary": 0.5})
    'my_rewards.py:boundary=0.5'
    """
    if isinstance(value, dict):
        return ", ".join(f"{name}={weight:g}" for name, weight in value.items()) or "none"
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


DEFAULTS = Params()
