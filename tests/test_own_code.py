"""A user's functions: loaded from their text alone, from files and from the cells of a notebook."""

from __future__ import annotations

import linecache
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit import own_code
from labkit.errors import LabError
from labkit.own_code import harvest_filter, load, reward
from labkit.params import Params

NUMBER = {"calls": 0}


@pytest.fixture(autouse=True)
def cells(monkeypatch) -> dict[str, Any]:
    found: dict[str, Any] = {}
    monkeypatch.setattr(own_code, "CELLS", found)
    monkeypatch.setattr("labkit.params.CELLS", found)
    return found


def run_cell(source: str, namespace: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a cell as a kernel does: in the notebook's namespace, its text where tracebacks look for it."""
    NUMBER["calls"] += 1
    name = f"<cell {NUMBER['calls']}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    namespace = {"__name__": "__main__", "reward": reward, "harvest_filter": harvest_filter} | (namespace or {})
    exec(compile(source, name, "exec"), namespace)
    return namespace


CELL = """
import math
import statistics as stats
from labkit import iou
SCALE, NAMES = 0.5, ("a", {"b": [1, None]})

def helper(x):
    return x * SCALE

@reward(weight=0.25)
def boundary(chain: NoSuchName, moment, spec, k=SCALE):
    '''Near borders pay.'''  # and so on
    return stats.mean(helper(y) for y in (2, 4)) * k + math.floor(0.5) + len(NAMES) + (iou is None)
"""


def test_a_cells_function_stands_alone_with_all_that_it_uses(cells):
    here = run_cell(CELL, {"NoSuchName": object})["boundary"]
    assert (cells["boundary"].parameter, cells["boundary"].weight) == ("rewards", 0.25)
    program = cells["boundary"].text + "\nprint(boundary(1, 2, 3))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) == here(1, 2, 3) == 1.5 * 0.5 + 2
    assert "# and so on" in cells["boundary"].text and "@reward" not in cells["boundary"].text
    assert load("boundary", Path(), {}).call(1, 2, 3) == 2.75


def test_a_notebooks_parameters_hold_what_its_cells_have_decorated(cells):
    namespace = run_cell(CELL, {"NoSuchName": object})
    run_cell("@harvest_filter\ndef brief(chain, moment, rollout):\n    return True")
    cell = {name: namespace[name] for name in ("boundary", "SCALE", "NAMES", "helper", "stats")} | {"run": "x"}
    params = Params.from_notebook(dict(cell))
    assert (params.rewards, params.filters) == ({"boundary": 0.25}, ("brief",))
    assert Params.from_notebook({**cell, "rewards": {"boundary": 2.0, "a.py:b": 1}}).rewards == {
        "boundary": 2.0,
        "a.py:b": 1.0,
    }
    final = Params.from_notebook({**cell, "final_rewards": {"boundary": 1.0}})
    assert final.final_rewards == {"boundary": 1.0}, (
        "a cell's reward is known where parameters are held against each other"
    )
    names = ("format_weight", "answer_weight", "anchors_weight", "progress_weight", "option_weight",
             "final_answer_weight", "final_progress_weight")  # fmt: skip
    assert Params.from_notebook({**cell, **dict.fromkeys(names, 0.0)}).rewards == {"boundary": 0.25}, "paid alone"


def test_a_cell_that_is_run_again_replaces_its_own(cells):
    for value in (1, 2):
        run_cell(f"@reward\ndef boundary(chain, moment, spec):\n    return {value}")
    assert load("boundary", Path(), {"boundary": "def boundary(*_): return 3"}).call(0, 0, 0) == 2
    cells.clear()
    assert load("boundary", Path(), {"boundary": "def boundary(*_): return 3"}).call(0, 0, 0) == 3  # a run's own text


@pytest.mark.parametrize(
    ("source", "says", "reason"),
    [
        ("def f(c, m, s):\n    return missing", "'f' uses 'missing', which nothing has defined", "a slip of the pen"),
        ("thing = object()\ndef f(c, m, s):\n    return thing", "'f' uses 'thing', which cannot be kept", "no text"),
        ("def g():\n    return thing()\nthing = object()\ndef f(c, m, s):\n    return g()", "'g' uses 'thing'", "by way of another"),
        ("def o(k):\n    def f(c, m, s):\n        return k\n    return reward(f)\no(1)", "uses variables", "a closure"),
        ("reward(lambda c, m, s: 1)", "is no function with a name", "no name to call it by"),
        ("reward(dict.fromkeys)", "is no function with a name", "not written in Python"),
    ],
)  # fmt: skip
def test_what_cannot_stand_alone_is_refused(cells, source, says, reason):
    cell = source if "reward(" in source else source.replace("def f(", "@reward\ndef f(")
    with pytest.raises(LabError, match=says):
        run_cell(cell)
    assert not cells


def test_in_a_file_a_decorator_changes_nothing_and_an_import_is_told_where_to_write_it(tmp_path, cells, monkeypatch):
    text = "import labkit\n@labkit.reward(weight=3)\ndef near(chain, moment, spec):\n    return 1\n"
    (tmp_path / "decorated_terms.py").write_text(text)
    assert load("decorated_terms.py:near", tmp_path, {}).call(0, 0, 0) == 1 and not cells
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LabError, match="name the file in the parameters instead, rewards: FILE.py:near"):
        __import__("decorated_terms")


def test_what_crosses_to_another_process_is_a_name_and_a_digest(tmp_path):
    (tmp_path / "a.py").write_text("def near(*_): return 1\n")
    found = load("a.py:near", tmp_path, {})
    there = pickle.loads(pickle.dumps(found))
    assert there == found and there.function is None and found.function is not None
    (tmp_path / "a.py").write_text("def near(*_): return 2\n")
    assert load("a.py:near", tmp_path, {}) != found


def test_a_file_that_has_gone_is_taken_from_the_run_that_kept_it(tmp_path):
    assert load("gone.py:near", tmp_path, {"gone.py": "def near(*_): return 5"}).call() == 5


@pytest.mark.parametrize(
    ("text", "reference", "says", "reason"),
    [
        (None, "terms/a.py:near", r"there is no file '.*a.py'; paths are taken from the project's root", "nothing there"),
        (None, "b.py:near", r"there is no file '.*b.py'; did you mean 'c.py'\?", "a slip"),
        ("def near(*_): pass", "a.py:naer", r"has no function 'naer'; did you mean 'near'\?", "a slip"),
        ("near = 3", "a.py:near", "has no function 'near'; it has none", "a number"),
        ("def near(*_): pass", "a.py:", "names no function", "only a file"),
        ("def near(*_): pass", "a.py", "'a.py' names no function; write FILE.py:NAME", "only a file"),
        ("def near(:", "a.py:near", r"does not run: SyntaxError: .*\(line 1 of a.py\)", "no Python"),
        ("\nimport no_such_thing", "a.py:near", r"ModuleNotFoundError: .*no_such_thing.*\(line 2 of a.py\)", "not installed"),
        ("raise SystemExit(3)", "a.py:near", "does not run: SystemExit: 3", "a script"),
        (b"\xff\xfe", "a.py:near", "cannot be read", "no text"),
    ],
)  # fmt: skip
def test_a_reference_that_leads_nowhere_is_refused(tmp_path, text, reference, says, reason):
    (tmp_path / "c.py").write_text("")
    if text is not None:
        (tmp_path / "a.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(LabError, match=says):
        load(reference, tmp_path, {})


def test_what_a_function_raises_is_told_with_its_line(tmp_path):
    (tmp_path / "a.py").write_text("def near(chain, *_):\n    return chain.answer.start\n")
    with pytest.raises(LabError, match=r"raised AttributeError: 'NoneType' .*'answer' \(line 2 of a.py\)") as caught:
        load("a.py:near", tmp_path, {}).call(None, 0, 0)
    assert isinstance(caught.value.__cause__, AttributeError)
