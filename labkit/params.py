"""Parameters: typed, documented, checked before any work.

A YAML file, Papermill's `-p` and a notebook's first cell all use the same flat names, and all end here. What YAML 1.1
and Papermill spoil on the way ('1e-6' and 'false' arrive as text) is put right; anything else that does not fit its
field is an error that names the field, the value and what is allowed. The defaults are the embedded lab.
`labkit.param_fields` says what each of them means.
"""

from __future__ import annotations

import ast
import functools
import math
import re
import symtable
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from labkit import param_fields
from labkit.errors import LabError, nearest
from labkit.files import project_root, under
from labkit.param_fields import (
    CONCERNS,
    DataParams,
    DistillParams,
    EvaluateParams,
    GrpoParams,
    ModelParams,
    RewardParams,
    RunParams,
    SftParams,
)
from labkit.values import coerce, read_yaml


@dataclass(frozen=True, kw_only=True, repr=False)
class Params(EvaluateParams, SftParams, DistillParams, GrpoParams, RewardParams, DataParams, ModelParams, RunParams):
    """All parameters of a run under flat names: `params.learning_rate`, and `params` itself where a concern is asked.

    However it is made, values are put right and checked alike. Raises LabError that lists every value of a wrong type, out of
    its range, or in contradiction to another.

    >>> Params(grpo_steps="ten")
    Traceback (most recent call last):
    labkit.errors.LabError: grpo_steps: 'ten' is not a whole number
    """

    def __post_init__(self) -> None:
        values, problems = _checked({name: getattr(self, name) for name in names()})
        for name, value in values.items():
            object.__setattr__(self, name, value)
        problems = problems or _contradictions(self)
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
        unknown = [_unknown(str(name)) for name in mapping if name not in names()]
        values, problems = _checked({name: value for name, value in mapping.items() if name in names()})
        if unknown or problems:
            raise LabError(_report([*unknown, *problems]))
        return cls(**values)

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Params:
        """Make parameters of what a notebook's parameter cells defined; call it as `Params.from_notebook(globals())`.

        Names that no cell has assigned (a startup file's or a platform's), the paths that Papermill injects, names that
        begin with an underscore, modules, functions and classes are left alone. Anything else is a parameter, so that a
        mistyped `papermill -p` ends here. When the cell is run again in a live notebook, names that later cells made
        are left alone too, unless they look like a mistyped parameter.
        """
        assigned = _assigned_by_cells(namespace)
        first = namespace.setdefault("_names_of_parameter_cells", assigned)
        given = {}
        for name, value in namespace.items():
            if name.startswith(("_", "PAPERMILL_")) or name in IPYTHON_NAMES or isinstance(value, NOT_PARAMETERS):
                continue
            if name not in assigned:
                continue
            if name in names() or name in first or nearest(name, names(), like=0.85):
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

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # Where no table can be shown, such as on GitHub.
        told = [
            f"{name} = {show(getattr(self, name))}  (default {show(getattr(DEFAULTS, name))})"
            for name in self.changed()
        ]
        printer.text("\n".join(told) or "All parameters have their defaults.")

    def _repr_html_(self) -> str:
        from labkit.tables import params_html

        return params_html(self)


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


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all parameters, concern by concern."""
    return tuple(item.name for concern in CONCERNS for item in fields(concern))


@functools.cache
def documentation() -> dict[str, str]:
    """The string under each field, by the field's name."""
    found = {}
    for node in ast.parse(Path(param_fields.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            for item, below in zip(node.body, node.body[1:], strict=False):
                if isinstance(item, ast.AnnAssign) and isinstance(below, ast.Expr):
                    found[ast.unparse(item.target)] = str(ast.literal_eval(below.value))
    return found


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


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Params)


@functools.cache
def _ranges() -> dict[str, tuple[float, float, bool]]:
    return {item.name: item.metadata["range"] for item in fields(Params) if "range" in item.metadata}


def _checked(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values of known names in their fields' types, and what is wrong with each of the others."""
    values: dict[str, Any] = {}
    problems = []
    for name, value in given.items():
        try:
            values[name] = coerce(value, _types()[name])
        except ValueError as error:
            problems.append(f"{name}: {error}")
            continue
        if problem := _outside(name, values[name]):
            problems.append(problem)
            del values[name]
    return values, problems


def _outside(name: str, value: Any) -> str | None:
    """What is wrong with a value of the right type, or None."""
    if name == "run" and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", value):
        return f"run: {value!r} cannot name a directory; use letters, digits, dot, dash and underscore"
    if isinstance(value, str) and not value.strip() and _default(name) != "":
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
    weights = ["format_weight", "answer_weight", "anchors_weight", "progress_weight"]
    if params.task == "gqa" or params.data != "world":
        weights.append("option_weight")
    if params.task == "gqa" and params.data == "world" and params.model == "embedded":
        problems.append("model: embedded lacks the words for questions with options; task gqa needs embedded-gqa")
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
    if not any(getattr(params, name) for name in weights):
        problems.append(f"{', '.join(weights)}: all are 0, so nothing would be rewarded; give one of them a weight")
    return problems


def _default(name: str) -> Any:
    return next(item.default for item in fields(Params) if item.name == name and item.default is not MISSING)


def _unknown(name: str) -> str:
    near = nearest(name, names())
    hint = f"did you mean '{near}'?" if near else "labkit/param_fields.py lists all of them"
    return f"unknown parameter '{name}'; {hint}"


def _report(problems: Iterable[str]) -> str:
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return "\n".join([f"{len(problems)} problems", *(f"  {problem}" for problem in problems)])


def show(value: Any) -> str:
    """A value as people read it.

    >>> show(5e-4), show(("outputs/a", "outputs/b")), show(()), show("")
    ('0.0005', 'outputs/a, outputs/b', 'none', 'none')
    """
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


DEFAULTS = Params()
