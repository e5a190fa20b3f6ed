"""How the commands of `labkit` are declared: their options, the parser that comes of them, and the values that several share."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any


def _path(text: str) -> str:
    """A path of the command line; a shell leaves `~` as it is behind an equals sign."""
    return os.path.expanduser(text)


_Function = Callable[[argparse.Namespace], Any]
_Option = tuple[list[str], dict[str, Any]]
"""An option's names, and how argparse takes it."""
_COMMANDS: dict[str, tuple[_Function, tuple[_Option, ...]]] = {}
"""By name, in the order in which `labkit --help` lists them."""


def command(*options: _Option) -> Callable[[_Function], _Function]:
    """Make a function a command of its name, with its docstring as the help."""

    def register(function: _Function) -> _Function:
        _COMMANDS[function.__name__] = function, options
        return function

    return register


def option(names: str, **settings: Any) -> _Option:
    """An option by its names, with what argparse's `add_argument` takes."""
    return names.split(), settings


def switch(name: str, help: str) -> _Option:
    """An option that is given or not."""
    return option(name, action="store_true", help=help)


def file_option(names: str, help: str, **settings: Any) -> _Option:
    """An option whose value is a path."""
    return option(names, type=_path, help=help, **settings)


def parser() -> argparse.ArgumentParser:
    """Of all commands that have been declared."""
    whole = argparse.ArgumentParser(prog="labkit", description="A lab for video grounding with verifiable anchors.")
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for name, (function, options) in _COMMANDS.items():
        words = (function.__doc__ or "").rstrip(".")
        own = commands.add_parser(name, help=words[0].lower() + words[1:])
        for names, settings in options:
            own.add_argument(*names, **settings)
        own.set_defaults(command=function)
    return whole


def named(example: str = "rewards FILE.py:NAME=0.5") -> list[_Option]:
    """Options for parameters by name."""
    return [
        option("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="overrides",
                help=f"a parameter, such as {example}, which goes before all others; may be given several times"),
        option("--protocol", metavar="NAME", help="frames and pixels as a benchmark's owners show them: timelens, "
                "timelens2, timelens2-ego4d, timer1, nextgqa"),
    ]  # fmt: skip


def asked_options(**moments: Any) -> list[_Option]:
    """Options of what a model is asked; `moments` are settings of --moments."""
    return [
        file_option("--moments", "such as charades-sta/test, an annotation file, or world-2/test for the embedded world",
              default="", metavar="NAME_OR_FILE", **moments),
        file_option("--videos", "folder of the videos (default: videos beside the file)", metavar="DIR"),
        switch("--present", "ask only about the videos that are there, and say how many"),
        option("--limit", type=int, default=0, metavar="N", help="ask the first so many questions"),
        option("--processes", metavar="N", help="processes that share the work, a GPU each; 0 is one for each GPU"),
        file_option("-o --output", "folder for all, in which the same command goes on (default: outputs/evaluate-...)",
              metavar="FOLDER"),
        *PROMPTED,
    ]  # fmt: skip


PARAMS = file_option("params", "YAML file, such as params/embedded.yaml")
FOLDER = file_option("folder", "a run's directory, such as outputs/embedded")
NEW_FOLDER = file_option("folder", "folder to write to")
MOMENTS = file_option(
    "--moments", "annotation file, or a name such as charades-sta/test", required=True, metavar="FILE_OR_NAME"
)
VIDEOS = file_option("--videos", "folder of the videos", metavar="DIR")
JSON = switch("--json", "everything, for a program")
ALL_FIGURES = switch("--json", "all figures, for a program")
PROMPTED = [
    option("--prompt", metavar="PROMPT", help="a template's name, a text file, or the text itself with {query} in it "
            "(default: anchors; of embedded models query)"),
    *named("max_frames 32"),
]  # fmt: skip


def overrides(options: argparse.Namespace) -> dict[str, str]:
    """The parameters given by name, those of a protocol below them."""
    from labkit.params import protocol_params

    shown = {name: str(value) for name, value in protocol_params(options.protocol).items()}
    return shown | {name: value.lstrip() for name, value in options.overrides}


def with_options(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The overrides, with the parameters that have an option of their own."""
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    return overrides(options) | given


def json_alone(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """With `--json`, what is printed on the way, progress and what own code prints, goes to standard error."""
    return contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()


def holds(stream: Any, text: str) -> bool:
    """Whether a stream's encoding can write all of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def escape_negative_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with a blank before each negative number behind `-p NAME`: argparse takes -1e-4 for an option.

    >>> escape_negative_values(["run", "p.yaml", "-p", "learning_rate", "-1e-4"])
    ['run', 'p.yaml', '-p', 'learning_rate', ' -1e-4']
    """
    escaped = list(arguments)
    for k in range(2, len(escaped)):
        if escaped[k - 2] == "-p" and re.match(r"-\.?(\d|inf|nan)", escaped[k]):
            escaped[k] = " " + escaped[k]
    return escaped
