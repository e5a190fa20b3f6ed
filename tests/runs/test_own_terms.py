"""A run with terms of the user's own: refused before any work where they fail, and kept with the run where they don't."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from labkit import own_code
from labkit.chain.anchors import parse, render
from labkit.chain.rewards import RewardSpec, score_moment
from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.doctor.checks import examine
from labkit.errors import LabError
from labkit.lab import Lab
from labkit.own_code import CellFunction
from labkit.params import DEFAULTS, Params, read_params
from labkit.policy.prompts import messages
from labkit.runs.run import Run

REWARD = "def boundary(chain, moment, spec):\n    return 0.5 if chain.answer else 0, moment.qid\n"
FILTER = "def short_thoughts(chain, moment, rollout):\n    return len(chain.text) < 9999\n"
OWN = DEFAULTS.replace(
    rewards={"my_rewards.py:boundary": 0.5}, filters=("my_filters.py:short_thoughts",), prompt="my_prompt.txt"
)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    (tmp_path / "my_rewards.py").write_text(REWARD)
    (tmp_path / "my_filters.py").write_text(FILTER)
    (tmp_path / "my_prompt.txt").write_text("Look:\n{video}\nWhen does {query} happen in {duration} s? {{so}}\n")
    monkeypatch.chdir(tmp_path)
    cells: dict[str, Any] = {}
    monkeypatch.setattr(own_code, "CELLS", cells)
    monkeypatch.setattr("labkit.params.CELLS", cells)
    return tmp_path


def cell(text: str, parameter: str = "rewards", weight: float = 1.0) -> None:
    own_code.CELLS[text.split("(")[0].removeprefix("def ")] = CellFunction(parameter, text, weight)


def from_cells(**changes: Any) -> Params:
    """As a notebook makes them whose cells have decorated something."""
    return Params.from_notebook({"run": "x", **changes})


def test_a_run_keeps_the_texts_and_names_their_digests(project):
    lab = Lab.open(OWN)
    own = lab.manifest["own"]
    assert {name: note["text"] for name, note in own.items()} == {
        "my_rewards.py": REWARD,
        "my_filters.py": FILTER,
        "my_prompt.txt": (project / "my_prompt.txt").read_text().strip(),
    }
    assert len({note["sha256"] for note in own.values()}) == 3
    assert lab.rewards().weights == RewardSpec().weights | {"boundary": 0.5}
    assert lab.own.prompt_name(OWN.prompt) == f"my_prompt.txt ({own['my_prompt.txt']['sha256']})"
    assert Lab.open(OWN).manifest["own"] == own


def test_a_run_without_own_terms_has_nothing_of_them(project):
    lab = Lab.open(DEFAULTS)
    assert "own" not in lab.manifest and lab.rewards() == RewardSpec() and lab.own.template == "query"


def test_a_term_may_be_paid_in_one_stage_more_than_in_another(project):
    lab = Lab.open(OWN.replace(final_rewards={"my_rewards.py:boundary": 2}))
    assert [lab.rewards(final).weights["boundary"] for final in (False, True)] == [0.5, 2.0]


@pytest.mark.parametrize("file", ["my_rewards.py", "my_filters.py", "my_prompt.txt"])
def test_a_text_that_has_changed_is_named_and_one_that_has_gone_is_the_runs_own(project, file):
    Lab.open(OWN)
    text = (project / file).read_text()
    (project / file).write_text(text + "\n# another version {query}"[: None if file.endswith("py") else 10])
    with pytest.raises(LabError, match=rf"text of {file}: there \w{{16}}, here \w{{16}} \(manifest.json has the text"):
        Lab.open(OWN)
    assert any(file in line for line in doctors_errors(OWN))
    (project / file).unlink()
    assert Lab.open(OWN).own.texts[file] == text.strip("\n") + "\n" * file.endswith("py")


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"rewards": "my_reward.py:boundary"}, "rewards: there is no file .*did you mean 'my_rewards.py'", "no such file"),
    ({"rewards": "my_rewards.py:boundry"}, "rewards: .*no function 'boundry'; did you mean 'boundary'", "a slip"),
    ({"rewards": "boundary"}, "rewards: 'boundary' is in no cell", "nor has a run kept it"),
    ({"rewards": {"my_rewards.py:boundary": 1, "b.py:boundary": 1}}, "b.py:boundary' has the name of 'my_rewards.py", "twice"),
    ({"rewards": "b.py:answer"}, "rewards: 'b.py:answer' has the name of a built-in term; rename", "built in"),
    ({"rewards": "b.py:total"}, "has the name of a built-in term", "a column of its own"),
    ({"rewards": "b.py:nothing"}, "rewards: 'b.py:nothing', tried on a chain with two anchors, returned None; return a", "None"),
    ({"rewards": "b.py:not_a_number"}, "returned nan; return a finite number", "nan"),
    ({"rewards": "b.py:words"}, "returned 'good'; return a finite number", "text"),
    ({"rewards": "b.py:three"}, r"returned \(1, 'a', 'b'\)", "one too many"),
    ({"rewards": "b.py:swapped"}, r"returned \('good', 1\); return a finite number, or \(number, reason\)", "swapped"),
    ({"rewards": "b.py:careless"}, r"tried on a text without an answer, raised AttributeError: .*'start' \(line 8 of b.py\)", "None"),
    ({"rewards": "b.py:two"}, "raised TypeError: two.. takes 2 positional arguments but 3 were given", "arguments"),
    ({"filters": "b.py:nothing"}, "filters: 'b.py:nothing', tried on a chain with two anchors, returned None; return True", "None"),
    ({"filters": "b.py:one"}, "returned 1; return True to keep, False to drop, or that and a reason", "a number"),
    ({"filters": "b.py:answer_off"}, "filters: 'b.py:answer_off' has the name of another rule, 'answer off'", "built in"),
    ({"filters": "b.py:kept"}, "has the name of another rule, 'kept'", "the last bar"),
    ({"filters": ("b.py:fine", "my_filters.py:fine")}, "filters: .*no function 'fine'", "the second of two"),
    ({"prompt": "my_promt.txt"}, "prompt 'my_promt.txt': there is no file .*did you mean 'my_prompt.txt'", "a slip"),
    ({"prompt": "bad.txt"}, "prompt 'bad.txt': prompt has no {query}, the place of what is asked", "asks nothing"),
    ({"prompt": "When does {qery} happen?"}, "prompt has the placeholder {qery}; did you mean {query}", "a slip"),
    ({"prompt": "{query} {moment}"}, "prompt has the placeholder {moment}; there are {query}, {options},", "no such"),
    ({"prompt": "{video} {query} {video}"}, "prompt has {video} 2 times", "one video"),
    ({"prompt": "When is it?"}, "prompt has no {query}", "a text without a place"),
]  # fmt: skip
B = """
def answer(*_): return 1
def total(*_): return 1
def nothing(*_): pass
def not_a_number(*_): return float("nan")
def words(*_): return "good"
def three(*_): return 1, "a", "b"
def careless(chain, *_): return chain.answer.start
def two(chain, moment): return 1
def swapped(*_): return "good", 1
def one(*_): return 1
def answer_off(*_): return True
def kept(*_): return True
def fine(*_): return True
def boundary(*_): return 1
"""


@pytest.mark.parametrize(("changes", "says", "reason"), BAD, ids=[str(row[0]) for row in BAD])
def test_what_would_fail_is_refused_before_any_work_and_by_the_doctor(project, changes, says, reason):
    (project / "b.py").write_text(B)
    (project / "bad.txt").write_text("When does it happen?")
    params = DEFAULTS.replace(**changes)
    with pytest.raises(LabError, match=says):
        Run.open(params)
    assert not (project / "outputs").exists()
    if reason in ("twice", "None", "no such file"):  # the same check; the doctor takes a second
        assert len(doctors_errors(params)) == 1


def doctors_errors(params: Params) -> list[str]:
    return [each.line() for each in examine(params, quick=True).of("error") if each.kind != "notebooks"]


def test_a_prompt_with_options_is_for_moments_with_options(project):
    assert doctors_errors(DEFAULTS.replace(prompt="{query} {options}"))[0].endswith("take {options} out of it")
    gqa = DEFAULTS.replace(task="gqa", model="embedded-gqa")
    assert doctors_errors(gqa.replace(prompt="{query} {options}")) == []
    assert doctors_errors(gqa.replace(prompt="When does {query} happen?"))[0].endswith("write {options} into it")


# --- what the page says


def test_the_page_of_own_terms_holds_what_it_says(project, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "own.md").read_text(encoding="utf-8")
    files = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["my_rewards.py", "own.yaml", "my_filters.py", "my_prompt.txt"]
    for name, text in files:
        (project / name).write_text(text)
    lab = Lab.open(read_params("own.yaml"))
    assert lab.rewards().terms[-1] == "boundary" and [each.name for each in lab.own.filters] == ["short_thoughts"]
    moment = Moment("q", "/v.mp4", "a door opens", (Span(2.0, 6.0),), 16.0)
    chain = parse(render([Span(0.0, 8.0)], Span(3.0, 6.0)))
    assert score_moment(chain, moment, lab.rewards()).terms["boundary"] == 1 - 4 * 0.5 / 16
    assert messages(moment, lab.own.template)[0]["content"][0]["text"] == "Here is a video of 16.0 seconds.\n"


# --- terms of a notebook's cell


def test_the_notebooks_of_a_run_share_what_a_cell_of_one_has_given(project):
    Run.open(Params.build({"run": "x"}))  # as `labkit run` opens it, which has seen no cell yet
    cell(REWARD, weight=0.5)
    first = Lab.open(from_cells())
    assert first.rewards().weights["boundary"] == 0.5 and first.manifest["own"]["boundary"]["text"] == REWARD
    first.start("01_grpo")
    own_code.CELLS.clear()
    second = Lab.open(Params.build({"run": "x"}))  # 02_distill, a worker, or a job that goes on
    assert second.rewards() == first.rewards() and second.params.rewards == {"boundary": 0.5}
    assert Lab.open(read_params(first.path / "params.yaml")).rewards() == first.rewards()
    assert doctors_errors(Params.build({"run": "x"})) == []


def test_until_a_stage_has_started_a_cell_may_change(project):
    for text in (REWARD, REWARD.replace("0.5", "0.75")):
        cell(text)
        lab = Lab.open(from_cells())
        assert lab.manifest["own"]["boundary"]["text"] == text
    lab.start("01_grpo")
    cell(REWARD)
    with pytest.raises(LabError, match="text of boundary: there"):
        Lab.open(from_cells())
    cell(REWARD.replace("0.5", "0.75"), weight=3.0)
    with pytest.raises(LabError, match=r"rewards: there \{'boundary': 1.0\}, here \{'boundary': 3.0\}"):
        Lab.open(from_cells())


def test_a_file_may_not_change_even_then(project):
    Lab.open(OWN)
    (project / "my_rewards.py").write_text(REWARD + "\n")
    with pytest.raises(LabError, match=r"text of my_rewards.py"):
        Lab.open(OWN)
