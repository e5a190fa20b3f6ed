"""Values: what YAML 1.1 and Papermill make of a value, turned back into what was meant."""

from __future__ import annotations

import math
import typing
from pathlib import Path
from typing import Any, Literal

from labkit.errors import LabError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping of names to values."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice; YAML would silently take the last."""

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


def coerce(value: Any, kind: Any) -> Any:
    """Turn a loose value into a field's type: bool, int, float, str, a Literal of texts or a tuple of texts.

    Raises ValueError that says what the value should be, when it is anything else than spoilt on its way.

    >>> coerce("1e-6", float), coerce("false", bool), coerce(75.0, int), coerce("a, b", tuple[str, ...])
    (1e-06, False, 75, ('a', 'b'))
    >>> coerce("fast", float)
    Traceback (most recent call last):
    ValueError: 'fast' is not a number
    """
    if value is None:
        raise ValueError("has no value; give one, or delete the line for the default")
    if typing.get_origin(kind) is Literal:
        if value in typing.get_args(kind):
            return value
        raise ValueError(f"{value!r} is not one of {', '.join(typing.get_args(kind))}")
    if kind is bool:
        word = str(value).lower()
        if word in ("true", "yes", "on", "false", "no", "off"):
            return word in ("true", "yes", "on")
        raise ValueError(f"{value!r} is not true or false")
    if kind is int or kind is float:
        return _number(value, kind)
    if kind is str:
        # `run: 7` is meant as a name; `run: no` and `run: 1.10` have already lost what was written.
        if isinstance(value, (bool, float)) or not isinstance(value, (str, int)):
            raise ValueError(f"{value!r} is not text; put it in quotes")
        return str(value)
    return _texts(value)


def _number(value: Any, kind: type) -> Any:
    what = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"{value!r} is not {what}")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not {what}") from None
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    if kind is int:
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number")
        return int(number)
    return number


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        # On a command line: -p compare outputs/a,outputs/b
        value = [part.strip(" '\"") for part in value.strip(" []").split(",")]
        value = [part for part in value if part]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(value)
