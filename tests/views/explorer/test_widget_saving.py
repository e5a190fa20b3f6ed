"""Whoever works in a JupyterLab that drops widgets on saving is told once, and what to do."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from labkit.views.explorer.page import saving_hint, saving_hint_of_server
from labkit.views.explorer.widget import explore

KEEPS = '{"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": true}}'


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A JupyterLab that was told nothing."""
    folder = tmp_path / "lab"
    folder.mkdir()
    monkeypatch.setenv("JUPYTERLAB_DIR", str(folder))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path / "own"))
    return folder


def test_the_line_that_is_told_makes_it_keep_them(lab: Path) -> None:
    hint = saving_hint()
    assert "saves notebooks without what widgets show" in hint
    subprocess.run(["sh", "-c", hint.partition("once: ")[2]], check=True)
    assert saving_hint() == ""
    assert shlex.quote(str(lab)) in hint


@pytest.mark.parametrize(
    ("place", "text", "keeps", "why"),
    [
        ("lab/settings/overrides.d/other.json", KEEPS, True, "another package says so, too"),
        ("lab/settings/overrides.json", KEEPS, True, "the machine's own settings"),
        ("lab/settings/overrides.json", KEEPS.replace("true", "false"), False, "told not to"),
        ("own/@jupyter-widgets/jupyterlab-manager/plugin.jupyterlab-settings", '{// mine\n"saveState": true}', True,
         "ticked in the settings menu, with a comment that JSON does not know"),
    ],
)  # fmt: skip
def test_whoever_said_so_counts(lab: Path, place: str, text: str, keeps: bool, why: str) -> None:
    file = lab.parent / place
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert (saving_hint() == "") == keeps, why


def test_without_jupyterlab_in_this_environment_nothing_is_said(lab: Path) -> None:
    lab.rmdir()
    assert saving_hint() == ""


def test_it_is_a_line_of_the_explorer_where_somebody_works_and_never_a_message(
    lab: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (None, "look.ipynb"):
        saving_hint_of_server.cache_clear()
        monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
        if name:
            monkeypatch.setenv("JPY_SESSION_NAME", name)
        widget = explore([], [])
        widget._repr_mimebundle_()
        assert ("saves notebooks without" in widget.hint) == bool(name)
        assert "hint" not in widget.page_state(), "a report has nothing to save"
    assert not caplog.records and capsys.readouterr() == ("", ""), "a notebook shows messages as red blocks"
    saving_hint_of_server.cache_clear()
