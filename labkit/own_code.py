"""Own code: a user's functions, loaded from their text alone, so that other processes, machines and later days run the same.

A function stands in a file and is named as `my_rewards.py:boundary`, or in a notebook's cell under `@labkit.reward` or
`@labkit.harvest_filter` and is named as `boundary`. Nothing is pickled: what a run keeps, and what crosses to another process, is
text. Of a file it is all of it. Of a cell it is the function with what it uses of the notebook: imports, plain constants and
other functions. The text is run as a module of its own, in which nothing of the notebook is left.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import inspect
import linecache
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

from labkit.errors import LabError, nearest
from labkit.files import under

_MODULE = "labkit_own_"
"""How the names of modules made of own code begin."""
_HEAD = "from __future__ import annotations\n"
_PLAIN = (int, float, complex, str, bytes, bool, type(None))

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class OwnFunction:
    """A function of the user's. Two are equal when their texts are; one that was pickled or read from a file has no function."""

    name: str
    source: str
    """The file as the parameters name it; empty for a cell of a notebook."""
    digest: str
    """`text_digest` of the text."""
    text: str = field(default="", compare=False, repr=False)
    function: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return OwnFunction, (self.name, self.source, self.digest)

    def as_dict(self) -> dict[str, str]:
        """What says whose value something is, as plain data."""
        return {"name": self.name, "source": self.source, "digest": self.digest}

    @property
    def reference(self) -> str:
        """As the parameters name it."""
        return f"{self.source}:{self.name}" if self.source else self.name

    def call(self, *arguments: Any) -> Any:
        """Call the function; raises LabError, which says what it raised and in which line."""
        assert self.function is not None
        try:
            return self.function(*arguments)
        except Exception as error:
            raise LabError(f"raised {_what(error, self.filename)}") from error

    @property
    def filename(self) -> str:
        """What tracebacks call the text."""
        return self.source or f"<cell of {self.name}>"


class CellFunction(NamedTuple):
    """A function that a cell of this process's notebook has given to the lab."""

    parameter: str
    """`rewards` or `filters`."""
    text: str
    weight: float
    uses: frozenset[str] = frozenset()
    """What the text holds of the notebook."""


CELLS: dict[str, CellFunction] = {}
"""By name, what cells of this process have decorated; a cell that is run again replaces its own."""


@overload
def reward(function: Function) -> Function: ...
@overload
def reward(*, weight: float = 1.0) -> Callable[[Function], Function]: ...
def reward(function: Any = None, *, weight: float = 1.0) -> Any:
    """Decorator: pay what this function of a notebook's cell says, times `weight`, beside the built-in terms.

    It takes the chain (`AnchorChain`), the `Moment` and the `RewardSpec`, and returns a number, or a number and its reason. Its cell
    stands above that of `Params.from_notebook(globals())`. Its text becomes part of the run, whose other notebooks, workers and
    jobs run it too. In a file it changes nothing: name that in the parameters, `rewards: {"my_rewards.py:boundary": 0.5}`.
    Raises LabError for what cannot stand alone.

        @labkit.reward(weight=0.5)
        def boundary(chain, moment, spec):
            if chain.answer is None:
                return -1.0, "no answer"
            off = abs(chain.answer.start - moment.windows[0].start) / moment.duration
            return -off, f"starts {off:.0%} of the clip away"
    """
    if function is None:
        return functools.partial(_register, "rewards", weight=weight)
    return _register("rewards", function, weight=weight)


def harvest_filter(function: Function) -> Function:
    """Decorator: drop the traces for which this function of a notebook's cell says False, as a rule of the harvest's funnel.

    It takes the chain (`AnchorChain`), the `Moment` and the `Rollout`, and returns True or False, or that and a reason. All else is as
    in `labkit.reward`.
    """
    return _register("filters", function)


def _register(parameter: str, function: Function, weight: float = 1.0) -> Function:
    if not inspect.isfunction(function) or not function.__name__.isidentifier():
        raise LabError(f"{function!r} is no function with a name; decorate `def name(...)`")
    if function.__module__.startswith(_MODULE):
        return function
    if function.__module__ != "__main__":
        step = f"name the file in the parameters instead, {parameter}: FILE.py:{function.__name__}"
        raise LabError(f"'{function.__name__}' stands in the module {function.__module__} and in no cell; {step}")
    seen: dict[str, str] = {}
    body = _with_needs(function, seen)
    text = _HEAD + "\n".join([*seen.values(), body])
    CELLS[function.__name__] = CellFunction(parameter, text, weight, frozenset(seen))
    return function


def text_digest(text: str) -> str:
    """Sixteen letters that are others once a text is."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_of(reference: str) -> str:
    """The file that a reference names; empty for a function of a cell.

    >>> file_of("my_rewards.py:boundary"), file_of("boundary")
    ('my_rewards.py', '')
    """
    return reference.rpartition(":")[0]


def own_text(path: str, root: Path | None, kept: Mapping[str, str]) -> str:
    """The text of a user's file below `root`, or where that has gone or no root is given, of a run that kept it.

    Raises LabError where neither has it.
    """
    if root is None and path in kept:
        return kept[path]
    root = root or Path()
    file = under(root, path)
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if path in kept:
            return kept[path]
        there = sorted(each.name for each in file.parent.glob(f"[!.]*{file.suffix}")) if file.parent.is_dir() else []
        near = nearest(file.name, there)
        hint = f"did you mean '{near}'?" if near else f"paths are taken from the project's root, '{root}'"
        raise LabError(f"there is no file '{file}'; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"'{file}' cannot be read: {error}") from None


def load(reference: str, root: Path | None, kept: Mapping[str, str]) -> OwnFunction:
    """The function that a reference names: of a file, of a cell of this process, or of the texts that a run has kept.

    Without a `root` what was kept goes before what files and cells hold now.

    Raises LabError when there is no such file, cell or function, and when its text does not run.
    """
    source, _, name = reference.rpartition(":")
    if not name.isidentifier():
        raise LabError(f"'{reference}' names no function; write FILE.py:NAME, or the name of one in a cell")
    if source:
        text = own_text(source, root, kept)
    elif name in CELLS and not (root is None and name in kept):
        text = CELLS[name].text
    elif name in kept:
        text = kept[name]
    else:
        raise LabError(
            f"'{name}' is in no cell of this notebook and in no text that the run has kept; decorate it in a cell above "
            f"Params.from_notebook, or name its file, FILE.py:{name}"
        )
    found = OwnFunction(name, source, text_digest(text), text)
    function = vars(_module(found.filename, text)).get(name)
    if not inspect.isfunction(function):
        names = [key for key, each in vars(_module(found.filename, text)).items() if inspect.isfunction(each)]
        near = nearest(name, names)
        hint = f"did you mean '{near}'?" if near else f"it has {', '.join(names) or 'none'}"
        raise LabError(f"'{source}' has no function '{name}'; {hint}")
    return OwnFunction(name, source, found.digest, text, function)


@functools.cache
def _module(filename: str, text: str) -> types.ModuleType:
    """A module made of a text, under a name that no import finds."""
    module = types.ModuleType(_MODULE + text_digest(text))
    module.__file__ = filename
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)  # for tracebacks
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:
        exec(compile(text, filename, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise LabError(f"'{filename}' does not run: {_what(error, filename)}") from error
    return module


def _what(error: BaseException, filename: str) -> str:
    """An exception in a line: its kind, what it says, and in which line of the user's text it came up."""
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == filename else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    words = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}{': ' + words if words else ''}" + (f" (line {line} of {filename})" if line else "")


def _with_needs(function: Any, seen: dict[str, str]) -> str:
    """The text of a notebook's function; the imports, constants and functions that it uses are put into `seen`, by name.

    Raises LabError that names what cannot be written as text.
    """
    name = function.__name__
    if function.__closure__:
        raise LabError(f"'{name}' uses variables of the function around it; define it at the top of a cell")
    try:
        source = textwrap.dedent("".join(inspect.getsourcelines(function)[0]))
        node = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError) as error:
        raise LabError(f"the text of '{name}' cannot be found ({error}); put the function into a file") from None
    if not isinstance(node, ast.FunctionDef):
        raise LabError(f"'{name}' is no plain function; write it as `def {name}(...)`")
    body = "\n".join(source.splitlines()[node.lineno - 1 : node.end_lineno])
    for used in sorted(set(_global_names(compile(_HEAD + body, name, "exec", dont_inherit=True)))):
        if used in seen or used == name or (used not in function.__globals__ and hasattr(builtins, used)):
            continue
        if used not in function.__globals__:
            raise LabError(f"'{name}' uses '{used}', which nothing has defined; define it in a cell above, or inside")
        seen[used] = ""  # its place, behind what it needs itself, is taken below
        text = _as_text(name, used, function.__globals__[used], seen)
        del seen[used]
        seen[used] = text
    return body


def _as_text(user: str, name: str, value: Any, seen: dict[str, str]) -> str:
    """A line, or a function, that gives `name` its value in another process."""
    if isinstance(value, types.ModuleType):
        return f"import {name}" if name == value.__name__ else f"import {value.__name__} as {name}"
    home, own = getattr(value, "__module__", None), getattr(value, "__name__", "")
    if home not in (None, "__main__") and getattr(sys.modules.get(str(home)), own, None) is value:
        return f"from {home} import {own}" + (f" as {name}" if name != own else "")
    if inspect.isfunction(value) and value.__name__ == name:
        return _with_needs(value, seen)
    if _is_plain(value):
        return f"{name} = {value!r}"
    raise LabError(
        f"'{user}' uses '{name}', which cannot be kept as text ({type(value).__name__}); make it inside the function, or "
        "put both into a file"
    )


def _is_plain(value: Any) -> bool:
    """Whether Python's own notation of a value gives it back."""
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    if type(value) in (list, tuple, set):
        return bool(value or type(value) is not set) and all(map(_is_plain, value))
    return type(value) in _PLAIN and value == value and value not in (float("inf"), float("-inf"))


def _global_names(code: types.CodeType) -> Iterator[str]:
    """The names that code reads from its module, those of the functions inside it included."""
    import dis

    stored = {each.argval for each in dis.get_instructions(code) if each.opname == "STORE_NAME"}
    for each in dis.get_instructions(code):
        if each.opname in ("LOAD_GLOBAL", "LOAD_NAME") and each.argval not in stored:
            yield each.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)
