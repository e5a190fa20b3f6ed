"""The project's own files agree with each other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_conda_and_pip_install_the_same():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = conda["dependencies"]
    assert [f"python {PROJECT['requires-python']}", "pip"] == plain
    assert pip["pip"][:-1] == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert pip["pip"][-1] == "-e ."


def test_the_matrix_tests_both_ends_of_what_is_allowed():
    pins = re.findall(r"^        (pins)=\((.*?)\)", (ROOT / ".ci" / "matrix").read_text(), re.MULTILINE)
    oldest, newest = (dict(re.findall(r'"(\w+)(==\S+|<\S+)"', each)) for _, each in pins)
    allowed = {line.split(">=")[0]: line.split(" ")[0] for line in PROJECT["dependencies"]}
    for name in ("torch", "transformers", "trl"):
        assert allowed[name] == f"{name}>={oldest[name][2:-2]},{newest[name]}"


def test_every_public_name_loads():
    import labkit

    assert [name for name in labkit.__all__ if getattr(labkit, name, None) is None] == []


def test_torchvision_is_not_asked_for():
    assert not any("torchvision" in line for line in PROJECT["dependencies"])


def test_ci_runs_the_test_command_of_the_readme():
    command = re.search(r"pytest [^\n]*--dist \w+", (ROOT / ".ci" / "run").read_text())
    assert command and command[0] in (ROOT / "README.md").read_text()


def test_source_notebooks_are_clean():
    import nbformat

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            assert not cell.get("outputs") and cell.get("execution_count") is None, path
            assert "papermill" not in cell.metadata, path
            assert len(cell.source.splitlines()) <= 12 or cell.cell_type == "markdown", (path, cell.source)
            assert not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE) or cell.cell_type == "markdown", path


def test_parameter_cells_name_parameters_at_their_defaults():
    import nbformat

    from labkit.params import DEFAULTS, names

    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cell = next(cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        assert cell.metadata.tags == ["parameters"], path
        values: dict[str, object] = {}
        exec(cell.source, {}, values)
        assert values and set(values) <= set(names()), path
        for name, value in values.items():
            default = getattr(DEFAULTS, name)
            assert value == (list(default) if isinstance(default, tuple) else default), (path, name)


def test_nothing_claims_that_the_paper_is_not_public():
    claim = re.compile(
        r"(?:(?:not|never|nowhere|isn't|aren't|n't)\s+(?:yet\s+)?(?:been\s+)?(?:public|published|released|available)"
        r"|unpublished|neither says)"
    )
    paper = re.compile(r"paper(?!mill|_bg|\.)|TAR-TVG", re.IGNORECASE)
    folders = [ROOT / name for name in ("labkit", "notebooks", "params", "benchmarks")]
    files = [
        path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".ipynb", ".yaml", ".md")
    ]
    for path in [*files, *ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        text = " ".join(re.sub(r"[#>*]", " ", path.read_text(encoding="utf-8")).split())
        for found in claim.finditer(text):
            around = text[max(0, found.start() - 120) : found.end() + 60]
            assert not paper.search(around), f"{path}: ...{around}... (it is public, and we have not read it)"


def test_where_the_paper_is_named_as_a_source_it_is_said_that_it_was_not_read():
    for path in [ROOT / "README.md", ROOT / "labkit/param_fields.py", *(ROOT / "params").glob("*b*.yaml")]:
        text = " ".join(path.read_text(encoding="utf-8").replace("#", " ").replace("*", "").split()).lower()
        if "paper:" in text or path.suffix != ".yaml":
            assert "we have not read it" in text, path
