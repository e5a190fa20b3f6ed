"""What of a notebook's markup is left in a page."""

from __future__ import annotations

import pytest

from labkit.views.report.sanitize import image_data_url, latex_to_mathml, render_markdown, sanitize_html, terminal_text


@pytest.mark.parametrize(
    ("given", "left", "why"),
    [
        ("<b onclick='x()'>a</b>", "<b>a</b>", "a handler is code"),
        ("a<script>x()</script>b", "ab", "a script, with what stands in it"),
        ("a<SCRIPT src=x></SCRIPT >b", "ab", "in capitals, too"),
        ("a<script>x()", "ax()", "an open one: its words are words"),
        ("<style>p{}</style>a", "a", "a style sheet would reach the whole page"),
        ("<iframe src='x'></iframe>a", "a", "a frame"),
        ("<svg onload='x()'><a>b</a></svg>", "<a>b</a>", "drawings come as pictures"),
        ("<form action='x'><input name='y'><b>a</b></form>", "<b>a</b>", "nothing is submitted"),
        ("<a href='javascript:x()'>a</a>", "<a>a</a>", "an address that runs"),
        ("<a href=' java\tscript:x()'>a</a>", "<a>a</a>", "hidden by blanks"),
        ("<a href='&#106;avascript:x()'>a</a>", "<a>a</a>", "hidden by an entity"),
        ("<a href='data:text/html,x'>a</a>", "<a>a</a>", "a page of its own"),
        ("<a href='https://x.example'>a</a>", '<a href="https://x.example">a</a>', "a reader may follow a link"),
        ("<a href='02_distill.html'>a</a>", '<a href="02_distill.html">a</a>', "to a file beside this one"),
        ("<img src='https://x.example/y.png' alt='a <b>'>", "a &lt;b&gt;", "a picture that would be fetched"),
        ("<img src='data:text/html;base64,aGk='>", "", "what is no picture"),
        ("<img src='data:image/png;base64,aGk='>", '<img src="data:image/png;base64,aGk=">', "one that is there"),
        ("<p id='x' name='y' data-plot='z' class='plot'>a</p>", "<p>a</p>", "nothing of the page's own can be named"),
        ("<p style='color: red; position: fixed; top: 0'>a</p>", '<p style="color: red">a</p>', "stays in its place"),
        ("<p style='background: url(https://x.example)'>a</p>", '<p style="">a</p>', "a ground that would be fetched"),
        ("<p style='width: calc(1px + 2px)'>a</p>", '<p style="width: calc(1px + 2px)">a</p>', "sizes may be reckoned"),
        ("<b>a<!-- x --></b>", "<b>a</b>", "a comment"),
        ("a\u202eb\u200bc", "a\ufffdb\ufffdc", "characters that turn and hide"),
        ("<table class='dataframe'><tr><td>1</td></tr></table>",
         '<table class="dataframe"><tbody><tr><td>1</td></tr></tbody></table>', "pandas' tables"),
        ("<math><mtext><img src=x onerror=x()></mtext></math>", "<math><mtext></mtext></math>", "maths is no way in"),
        ("<details ontoggle='x()' open><summary>a</summary></details>",
         '<details open><summary>a</summary></details>', "folding is no code"),
    ],
)  # fmt: skip
def test_markup_keeps_what_formats(given: str, left: str, why: str) -> None:
    assert sanitize_html(given) == left, why


def test_headings_of_markdown_can_be_linked() -> None:
    made = render_markdown("# One\n\n## Two *words*\n\n## Two words", prefix="n-", shift=1)
    assert [tuple(each) for each in made.headings] == [
        (1, "One", "s-n-one"),
        (2, "Two words", "s-n-two-words"),
        (2, "Two words", "s-n-two-words-2"),
    ]
    assert '<h2 id="s-n-one">One</h2>' in made.html and '<h3 id="s-n-two-words">Two <em>words</em></h3>' in made.html


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("of $x^2$ and", '<math display="inline"><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'),
        ("$$\\frac{a}{b}$$", '<math display="block">'),
        ("\\begin{align} a &= b \\end{align}", "<mtable"),
        ("it costs $5 and $6", "it costs $5 and $6"),
        ("`$x$`", "<code>$x$</code>"),
        ("$\\text{a <img src=x onerror=hit()>}$", "<mtext>a&#x000A0;</mtext>"),
    ],
)
def test_maths_of_markdown_needs_no_script(source: str, expected: str) -> None:
    assert expected in render_markdown(source).html


def test_maths_that_cannot_be_read_is_shown_as_written() -> None:
    assert latex_to_mathml("\\frac{") == "<code>\\frac{</code>"


def test_code_in_markdown_is_coloured_and_mermaid_is_code() -> None:
    assert '<span class="mi">1</span>' in render_markdown("```python\nx = 1\n```").html
    assert "graph TD" in render_markdown("```mermaid\ngraph TD\n```").html


def test_what_may_be_wide_can_be_moved_by_keyboard() -> None:
    made = render_markdown("| a |\n|---|\n| 1 |\n\n```\nx\n```").html
    assert made.count('tabindex="0"') == 2 and made.count("<div") == made.count("</div>")


def test_attachments_are_pictures_and_a_missing_one_is_its_words() -> None:
    held = {"a.png": {"image/png": "aGk="}}
    assert 'src="data:image/png;base64,aGk="' in render_markdown("![x](attachment:a.png)", attachments=held).html
    assert "<em>x</em>" in render_markdown("![x](attachment:b.png)", attachments=held).html


def test_a_drawing_is_a_picture_in_which_nothing_runs() -> None:
    address = image_data_url("image/svg+xml", '<svg xmlns="http://www.w3.org/2000/svg"><script>hit()</script></svg>')
    assert address is not None and address.startswith("data:image/svg+xml;base64,")


@pytest.mark.parametrize(
    ("printed", "seen"),
    [("a\r\nb", "a\nb"), ("10 %\r20 %\r", "20 %"), ("\x1b[1;31mred\x1b[0m", "red"), ("\x1b[2K\rdone", "done")],
)
def test_printed_text_is_what_a_terminal_would_show(printed: str, seen: str) -> None:
    assert terminal_text(printed) == seen
