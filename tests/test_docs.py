"""Docs do not rot: links lead somewhere, commands parse, examples run, the site builds."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from labkit import cli  # noqa: F401, which declares the commands
from labkit.command_options import parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
COMMAND = re.compile(r"^(?:\S*/)?labkit (?P<words>[^#|>\n]+)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_between_pages_lead_to_files(page):
    generated = {"parameters.md"}
    missing = [
        link for link in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists() and link not in generated and not link.startswith("example/")
    ]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_paths_of_modules_that_a_page_names_exist(page):
    if page.name in ("LOG.md", "CHANGELOG.md"):
        return  # they tell of what was
    named = set(
        re.findall(r"(?:labkit|tests|benchmarks|params|notebooks)/[\w/.-]+\.(?:py|yaml|ipynb|md)", page.read_text())
    )
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_those_that_labkit_has(page, capsys):
    for block in blocks(page, "bash"):
        for part in block.replace("\\\n", " ").replace("&&", "\n").splitlines():
            if found := COMMAND.match(part.strip()):
                words = shlex.split(found["words"])
                try:
                    parser().parse_args(words)
                except SystemExit as error:
                    raise AssertionError(f"labkit {found['words']}: {capsys.readouterr().err}") from error
                files = [word for word in words if word.startswith("params/")]
                assert all((ROOT / file).exists() for file in files), words


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_of_a_page_names_what_there_is(page):
    import labkit

    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                assert node.module == "labkit" and {alias.name for alias in node.names} <= set(labkit.__all__), block
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("lab", "views")
            ):
                assert hasattr(labkit.Lab if node.value.id == "lab" else labkit.views, node.attr), block


def test_every_page_is_reached_from_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"(\w+\.md)$", text, re.MULTILINE))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} | {"parameters.md"}


def test_the_page_of_parameters_names_every_one():
    pytest.importorskip("mkdocs", reason="the site's generator is not installed: pip install -e '.[docs]'")
    from labkit.params import names

    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.parameters_page()
    assert [name for name in names() if f"| `{name}` |" not in page] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site's generator is not installed: pip install -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    assert (site / "parameters" / "index.html").is_file() and (site / "example" / "report.html").is_file()
    pages = [path for path in site.rglob("*.html") if "example" not in path.parts]
    fetched = [
        (path.name, found[0])
        for path in pages
        for found in re.finditer(
            r"<(?:script|img|iframe|link(?! rel=.canonical))[^>]*(?:src|href)=.?https?:[^ >]*", path.read_text("utf-8")
        )
    ]
    assert fetched == []  # the site asks nothing of a network
