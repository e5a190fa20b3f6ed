"""A run as markdown and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from labkit.errors import LabError
from labkit.views.report.markdown import publish, safe_markdown
from tests.executed import PNG, code, failure, notebook, output, run, stream, words


def test_a_run_becomes_pages_and_pictures(tmp_path: Path) -> None:
    made = notebook(
        words("# One <script>hit()</script>"),
        code("x = 1", stream("a\n"), output(image_png=PNG, text_plain="see [this] <b>")),
        code("y", output(text_markdown="**so** <i>x</i>", text_plain="so"), failure("E", "v", "```\nline")),
        code("z", output(text_html="", text_plain="<_Bar>"), output(text_plain="3")),
        code("p", stream("\n".join(map(str, range(9))))),
    )
    folder = run(tmp_path / "r", {"01_grpo": made}, seed=3)
    files = publish(folder, tmp_path / "out")
    assert sorted(file.relative_to(tmp_path / "out").as_posix() for file in files) == [
        "01_grpo.md",
        "README.md",
        "pictures/01_grpo-1.webp",
    ]
    text = (tmp_path / "out" / "01_grpo.md").read_text(encoding="utf-8")
    assert "# One &lt;script>hit()&lt;/script>" in text
    assert "![see \\[this\\] &lt;b>](pictures/01_grpo-1.webp)" in text
    assert "**so** &lt;i>x&lt;/i>" in text and "````text\n```\nline\n````" in text
    assert "_Bar" not in text and "```text\n3\n```" in text and "<summary>9 printed lines</summary>" in text
    front = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| final | **75.0** |" in front and "| `seed` | 3 | 0 |" in front
    assert "[One &lt;script>hit()&lt;/script>](01_grpo.md)" in front


def test_a_published_folder_is_brought_up_to_date_and_others_are_left_alone(tmp_path: Path) -> None:
    def shown() -> Any:
        return code("x", output(image_png=PNG))

    publish(run(tmp_path / "a", {"01_grpo": notebook(shown(), shown()), "03_sft": notebook()}), tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    publish(run(tmp_path / "b", {"01_grpo": notebook(shown())}), tmp_path / "out")
    left = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*"))
    assert left == ["01_grpo.md", "README.md", "notes.txt", "pictures/01_grpo-1.webp"]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "r", {"01_grpo": notebook()})
    other = tmp_path / "project"
    other.mkdir()
    (other / "README.md").write_text("# My project")
    with pytest.raises(LabError, match="not written by `labkit publish`"):
        publish(folder, other)
    with pytest.raises(LabError, match="is a file"):
        publish(folder, other / "README.md")
    assert (other / "README.md").read_text() == "# My project"


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("<img src=x onerror=hit()>", "&lt;img src=x onerror=hit()>"),
        ("<https://x.example> 1 < 2", "<https://x.example> 1 < 2"),
        ("[a](javascript:hit())", "[a](#hit())"),
        ("[a]( <JavaScript:hit()>)", "[a]( &lt;JavaScript:hit()>)"),
        ("[a]: javascript:hit()", "[a]: #hit()"),
        ("```html\n<b>\n```", "```html\n<b>\n```"),
        ("a\n\n    <b>\n    c\n\nd", "a\n\n```text\n<b>\nc\n```\n\nd"),
        ("```\na\n\n    <b>\n```", "```\na\n\n    <b>\n```"),
    ],
)
def test_markdown_loses_its_html_and_its_scripts(source: str, left: str) -> None:
    assert safe_markdown(source) == left
