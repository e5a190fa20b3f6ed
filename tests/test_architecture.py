"""The order of the rooms: a module imports only from its own room and from rooms below, and there is no circle of modules.

Imports under `TYPE_CHECKING` and inside functions count: they are read from the source, not from what is loaded.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From bottom to top; docs/architecture.md says what each holds.
ROOMS = (
    "errors", "files", "quick_imports", "own_code", "progress", "table",
    "param_fields", "params",
    "chain", "data", "scoring", "policy", "embedded", "stages", "runs", "views", "doctor",
    "asker", "lab", "command_options", "cli", "__main__",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below labkit, packages under their own name."""
    found = {}
    for path in sorted((ROOT / "labkit").rglob("*.py")):
        parts = path.relative_to(ROOT / "labkit").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:  # labkit/__init__.py is the public face: it names modules, and loads them when they are used
            found[name] = path
    return found


def imported(path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            base = node.module or ""
            names = [f"{base}.{alias.name}" for alias in node.names]
            found |= {name if name.removeprefix("labkit.") in known else base for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("labkit.") for name in found if name.startswith("labkit.")} & known


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {name: imported(path, set(known)) - {name} for name, path in known.items()}


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_module_stands_in_a_room_that_has_its_place(graph):
    assert {room(name) for name in graph} <= set(ROOMS)


def test_imports_only_go_down(graph):
    floor = {name: number for number, name in enumerate(ROOMS)}
    up = {
        f"{name} imports {other}"
        for name, others in sorted(graph.items())
        for other in sorted(others)
        if floor[room(other)] > floor[room(name)]
    }
    assert up == set()


def test_no_circle_of_modules(graph):
    assert rings(graph) == []


def test_a_circle_is_found():
    assert rings({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


def test_the_architecture_page_names_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [name for name in ROOMS if name != "__main__" and not re.search(rf"\b{name}\b", page)]
    assert missing == []


def rings(graph: dict[str, set[str]]) -> list[list[str]]:
    """The circles of a graph: its strongly connected parts of more than one node."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in graph.get(waiting.pop(), set()) - seen:
                seen.add(other)
                waiting.append(other)
        return seen

    reached = {name: reach(name) for name in graph}
    parts = {frozenset(other for other in reached[name] if name in reached[other]) for name in graph}
    return sorted(sorted(part) for part in parts if len(part) > 1)


def test_the_recipes_of_the_shipped_bases_are_loaded_by_nothing_but_the_command_line(graph):
    using = {name for name, used in graph.items() if any(other.startswith("embedded.recipes") for other in used)}
    assert {name for name in using if not name.startswith("embedded.recipes")} == {"cli"}
