"""The ES modules of the explorer and the one module that they are joined to."""

from __future__ import annotations

import re

from labkit.views.explorer import page
from labkit.views.explorer.page import MODULES, PageWidget
from labkit.views.figures import style

SOURCES = {file.stem: file.read_text(encoding="utf-8") for file in (page.HERE / "js").glob("*.js")}
IMPORT = re.compile(r'^import \{ ([\w, ]+) \} from "\./(\w+)\.js";$', re.MULTILINE)
DECLARED = re.compile(r"^(export )?(?:async )?(?:const|let|function|class) (\w+)", re.MULTILINE)


def test_each_import_is_an_export_of_a_module_that_is_joined_before() -> None:
    assert sorted(MODULES) == sorted(SOURCES)
    for place, name in enumerate(MODULES):
        assert len(IMPORT.findall(SOURCES[name])) == len(re.findall(r"^import\b", SOURCES[name], re.MULTILINE)), name
        for names, module in IMPORT.findall(SOURCES[name]):
            assert module in MODULES[:place], f"{name} imports {module}"
            exported = {word for export, word in DECLARED.findall(SOURCES[module]) if export}
            assert set(names.split(", ")) <= exported, f"{name} imports from {module}"


def test_modules_are_fit_to_share_one_scope() -> None:
    declared = [name for source in SOURCES.values() for _, name in DECLARED.findall(source)]
    assert len(declared) == len(set(declared)) > 60
    for name, source in SOURCES.items():
        assert name == "index" or re.search(r"^export (default|\{|\*)", source, re.MULTILINE) is None, name
        for line in source.splitlines():
            assert line.count("`") % 2 == 0, (
                f"{name}: a template over several lines would lose its indentation: {line}"
            )
    exported = re.findall(
        r"^export (?:async )?(?:const|function|default) (\w+|\{ render \})", PageWidget._esm, re.MULTILINE
    )
    assert exported == ["mount", "mountScrubber", "mountFromState", "chainsOf", "mountAll", "{ render }"]


def test_a_saved_widget_carries_neither_comments_nor_indentation() -> None:
    for text in (PageWidget._esm, PageWidget._css):
        assert not re.findall(r"^(?:\s|//|/\*|$)", text, re.MULTILINE)
    sources = sum(len(source.encode()) for source in SOURCES.values()) + (page.HERE / "explorer.css").stat().st_size
    assert len((PageWidget._esm + PageWidget._css).encode()) < 0.9 * sources


def test_the_module_is_fit_to_be_inlined_and_reads_no_text_as_markup() -> None:
    code, css = PageWidget._esm, PageWidget._css
    for forbidden in ("</script", "<!--", "innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write"):
        assert forbidden not in code
    assert not re.search(r"^\s*import\b", code, re.MULTILINE) and "</style" not in css
    for text in (code, css):
        assert not re.findall(r"https?://(?!www\.w3\.org/)", text) and "@import" not in text


def test_colours_are_those_of_the_figures() -> None:
    for name, color in (("truth", style.TRUTH), ("answer", style.ANSWER), ("anchor", style.ANCHOR)):
        assert f"--{name}: {color};" in PageWidget._css
    for stage, look in style.looks(style.STAGES).items():
        assert re.search(rf'{stage}: \["{look.color}"', PageWidget._esm), stage
