"""An installed wheel: `labkit new` lays out a project, and without one doctor and run say so and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.errors import LabError
from labkit.runs.notebooks import lay_out

ROOT = Path(__file__).parents[1]
BUILT_FROM = (
    "labkit",
    "notebooks",
    "params",
    "share",
    "pyproject.toml",
    "setup.py",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """What pip puts into site-packages, from a copy of the project: a build leaves folders behind."""
    pytest.importorskip("setuptools", reason="LOUD: without setuptools no wheel can be built")
    source, wheels, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "target"))
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    (source / "notebooks" / ".01_grpo.running.ipynb").touch()  # what a kill leaves does not travel
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
    subprocess.run(build, check=True)
    (wheel,) = wheels.glob("labkit-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    return target


def labkit(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command of the installed wheel, by the interpreter that has its dependencies."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "labkit", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wheel_brings_notebooks_and_params_along_and_lays_them_out(installed, tmp_path):
    done = labkit(installed, tmp_path / "work", "new", "lab")
    assert done.returncode == 0, done.stderr
    for name in ("notebooks", "params"):
        ours, made = (
            {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}
            for folder in (ROOT / name, tmp_path / "work" / "lab" / name)
        )
        assert made == ours
    assert "cd lab && labkit run params/embedded.yaml" in done.stdout
    assert (installed / "labkit" / "embedded" / "recipes" / "second_base.py").is_file(), "what `labkit base` trains by"
    again = labkit(installed, tmp_path / "work", "new", "lab")
    assert again.returncode == 2 and "exist already" in again.stderr
    # A run starts there: it gets as far as the model that is not there.
    started = labkit(installed, tmp_path / "work" / "lab", "run", "params/smoke.yaml", "-p", "model", "./none")
    assert "is not a directory" in started.stderr
    examined = labkit(installed, tmp_path / "work" / "lab", "doctor", "params/smoke.yaml", "--quick")
    assert examined.returncode == 0, examined.stdout + examined.stderr


@pytest.mark.slow
def test_without_a_project_doctor_and_run_say_so_and_leave_nothing(installed, tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "p.yaml").write_text("run: x\n")
    for command in ("run", "doctor", "submit"):
        options = {"doctor": ["--quick"], "submit": ["--local"]}.get(command, [])
        done = labkit(installed, folder, command, "p.yaml", *options)
        assert done.returncode == (1 if command == "doctor" else 2)
        assert "`labkit new FOLDER` lays out" in done.stdout + done.stderr, command
    assert [path.name for path in folder.iterdir()] == ["p.yaml"]


@pytest.mark.slow
def test_a_wheel_holds_each_notebook_once(installed):
    assert len(list(installed.rglob("01_grpo.ipynb"))) == 1


@pytest.mark.slow
def test_a_wheel_holds_what_pages_are_made_of(installed):
    kinds = {".js", ".css", ".j2", ".yaml"}
    files = [path.relative_to(ROOT) for path in (ROOT / "labkit").rglob("*") if path.suffix in kinds]
    assert len(files) > 10 and all((installed / file).is_file() for file in files)


def test_a_checkout_lays_out_what_stands_at_its_root(tmp_path, capsys):
    assert main(["new", str(tmp_path / "my lab")]) == 0
    assert "7 notebooks" in capsys.readouterr().out
    for file in ("smoke.yaml", "controls/plain.yaml"):
        assert (tmp_path / "my lab" / "params" / file).is_file()


@pytest.mark.parametrize("there", ["notebooks", "params", ""])
def test_nothing_is_laid_out_over_something(tmp_path, there):
    folder = tmp_path / "lab"
    if there:
        (folder / there).mkdir(parents=True)
    else:
        folder.touch()
    with pytest.raises(LabError, match="exist already|is a file"):
        lay_out(folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["lab", there] if there else ["lab"])
