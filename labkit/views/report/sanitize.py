"""Sanitizing of notebook content for an HTML page: markdown with maths, HTML outputs, code and plain text.

A notebook may come from anybody, and what models write and files are called stands in it. So text becomes text, and
markup keeps only what formats: no script, no frame, no form, no address that a page would fetch by itself.
"""

from __future__ import annotations

import functools
import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img kbd li "
    "mark ol p pre s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)
MATHS = frozenset(
    "math mrow mi mo mn mtext ms mspace msup msub msubsup mfrac msqrt mroot mover munder munderover mtable mtr mtd "
    "mstyle mpadded mphantom menclose mmultiscripts mprescripts none".split()
)
STYLES = frozenset(
    "align-content align-items align-self background background-color border border-bottom border-bottom-color "
    "border-collapse border-color border-left border-radius border-right border-spacing border-style border-top "
    "border-width box-sizing color column-gap display flex flex-basis flex-direction flex-grow flex-shrink flex-wrap font "
    "font-family font-size font-style font-variant-numeric font-weight gap grid-template-columns height justify-content "
    "justify-items letter-spacing line-height list-style-type margin margin-bottom margin-left margin-right margin-top "
    "max-height max-width min-height min-width opacity overflow overflow-x overflow-y padding padding-bottom padding-left "
    "padding-right padding-top row-gap text-align text-decoration text-indent text-transform vertical-align white-space "
    "width word-break overflow-wrap".split()
)
"""Properties that format a box where it stands; none that moves it over other parts of the page."""
FUNCTIONS = frozenset({"rgb", "rgba", "hsl", "hsla", "calc", "min", "max", "clamp", "repeat", "minmax"})
_ATTRIBUTES = frozenset(
    "title alt width height colspan rowspan scope open start lang dir display mathvariant stretchy fence form separator "
    "accent accentunder columnalign columnspacing rowspacing linethickness depth lspace rspace minsize maxsize movablelimits "
    "symmetric scriptlevel displaystyle".split()
)
HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_PICTURE = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]+")
_LINK = re.compile(r"(https?://|mailto:|#|(?![a-z][a-z0-9+.-]*:))", re.IGNORECASE)
_PYGMENTS = re.compile(r"highlight|[a-z][a-z0-9]?")
_TOKEN = re.compile(r"[a-z][a-z0-9]?")
_UNSEEN = re.compile(r"<(script|style|template|noscript|title)\b.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_IMAGE = re.compile(r'<img((?: [a-z]+="[^"]*")*)>')
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_UNSAFE_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class Heading(NamedTuple):
    """A heading of a page: its level (1 is the chapter's own), its words and the id it can be linked by."""

    level: int
    text: str
    anchor: str


class RenderedMarkdown(NamedTuple):
    """Markdown as sanitized HTML, and its headings."""

    html: str
    headings: tuple[Heading, ...]


def safe_text(text: str) -> str:
    r"""Text without the characters that hide or turn around what stands beside them; each leaves a mark.

    >>> safe_text("a\u202eb") == "a\ufffdb"
    True
    """
    return _UNSAFE_CHARACTERS.sub("\ufffd", text)


def escape_markdown(text: str) -> str:
    r"""Plain text as markdown that shows it and makes nothing of it, in whatever viewer: no emphasis, no markup, no address.

    An `@` is spelled out, since viewers take `R1@0.7` for a mail address.

    >>> escape_markdown("[x](y) *a* R1@0.7")
    '\\[x\\](y) \\*a\\* R1&#64;0.7'
    """
    text = re.sub(r"([\\\[\]*_`!#|~$])", r"\\\1", safe_text(text).replace("&", "&amp;").replace("<", "&lt;"))
    return text.replace("@", "&#64;")


def terminal_text(text: str) -> str:
    r"""What a terminal would show of a cell's printed text: without colours, of an overwritten line its last state.

    >>> terminal_text("10 %\r20 %\n\x1b[31mred\x1b[0m")
    '20 %\nred'
    """
    lines = _COLOURS.sub("", text).replace("\r\n", "\n").split("\n")
    return safe_text("\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines))


def escape_html(text: str) -> str:
    """Text with HTML's special characters escaped.

    >>> escape_html('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(safe_text(text))


def sanitize_html(markup: str) -> str:
    """Markup with everything left out that could run, fetch, submit or lie over other parts of the page.

    >>> sanitize_html('<b onclick="x()" style="color: red; position: fixed">Hi</b><script>x()</script><img src="http://x/y">')
    '<b style="color: red">Hi</b>'
    """
    return _IMAGE.sub(_named, str(_cleaner().clean(safe_text(_UNSEEN.sub("", markup)))))


def render_markdown(
    source: str, *, prefix: str = "", shift: int = 0, attachments: Mapping[str, Any] | None = None
) -> RenderedMarkdown:
    """Markdown of a notebook as harmless markup; maths becomes MathML, which browsers draw by themselves.

    Headings sink by `shift` levels and get ids that begin with `prefix`. `attachments` are the cell's pictures.
    """
    renderer = _renderer_class()(prefix, shift, attachments or {})
    made = sanitize_html(_reader(renderer)(safe_text(source)))
    # What may be wider than the page gets a box of its own, which the keyboard can reach and move.
    made = re.sub(r"<table\b", f"{scroll_box('table')}<table", made).replace("</table>", "</table></div>")
    made = made.replace('<div class="highlight">', scroll_box("code", "scrolled highlight"))
    return RenderedMarkdown(made, tuple(renderer.headings))


def scroll_box(label: str, kind: str = "scrolled") -> str:
    """The opening of a box for what may be wider than the page; without a tab stop no key could move it."""
    return f'<div class="{kind}" tabindex="0" role="group" aria-label="{label}">'


def latex_to_mathml(source: str, display: bool = False) -> str:
    """LaTeX as MathML; what can't be parsed is shown as it was written.

    >>> latex_to_mathml("x^2")[:40]
    '<math display="inline"><mrow><msup><mi>x'
    """
    from latex2mathml.converter import convert

    try:
        made = convert(source.strip(), display="block" if display else "inline")
    except Exception:  # whatever its parser stumbles over, the reader can still read the source
        return f"<code>{escape_html(source.strip())}</code>"
    return sanitize_html(made)


def highlight_code(source: str, language: str = "python") -> str:
    """Code with its words in the colours of report.css."""
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        lexer = get_lexer_by_name(language, stripnl=True)
    except ClassNotFound:
        return f'<div class="highlight"><pre>{escape_html(source)}</pre></div>'
    return str(highlight(safe_text(source), lexer, HtmlFormatter()))


def script_json(value: Any) -> str:
    r"""Plain data as JSON that no script element can be ended by, and that is one line of ASCII.

    >>> script_json({"a": "</script>\u2028"})
    '{"a":"\\u003c/script>\\u2028"}'
    """
    try:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:  # Python writes NaN, which is no JSON; figures leave a gap for null
        text = json.dumps(_finite(value), separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slug(text: str) -> str:
    """Text as the fragment of a URL.

    >>> slug("1 · Can rewards alone?")
    '1-can-rewards-alone'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"


def image_data_url(kind: str, data: str) -> str | None:
    r"""A picture of a notebook as an address that needs no network; None when it is no picture.

    >>> image_data_url("image/png", "aGk=\n"), image_data_url("image/png", '"onerror=hit()')
    ('data:image/png;base64,aGk=', None)
    """
    if kind == "image/svg+xml" and not _PICTURE.fullmatch(f"data:{kind};base64,{data}"):
        import base64

        data = base64.b64encode(safe_text(data).encode()).decode("ascii")
    address = f"data:{kind};base64,{''.join(data.split())}"
    return address if _PICTURE.fullmatch(address) else None


def _named(image: re.Match[str]) -> str:
    """A picture whose address was left out, as its words."""
    if ' src="' in image[1]:
        return image[0]
    words = re.search(r' alt="([^"]*)"', image[1])
    return html.escape(html.unescape(words[1])) if words else ""


class _Css:
    """The style attributes that are left, as bleach asks for them."""

    def sanitize_css(self, style: str) -> str:
        import tinycss2

        kept = []
        for each in tinycss2.parse_declaration_list(style, skip_comments=True, skip_whitespace=True):
            if each.type == "declaration" and each.lower_name in STYLES and all(map(_plain, each.value)):
                kept.append(f"{each.lower_name}: {tinycss2.serialize(each.value).strip()}")
        return "; ".join(kept)


def _plain(token: Any) -> bool:
    """Whether a part of a style's value can fetch nothing."""
    if token.type == "function":
        return token.lower_name in FUNCTIONS and all(map(_plain, token.arguments))
    return token.type not in {"url", "error", "{} block", "[] block"}


def _allowed(tag: str, name: str, value: str) -> bool:
    if name == "style" or name in _ATTRIBUTES:
        return True
    if name == "src":
        return tag == "img" and _PICTURE.fullmatch(value) is not None
    if name == "href":
        return tag == "a" and _LINK.match(value.strip()) is not None
    if name == "id":
        # The dash keeps it from ever being the name of something in a script.
        return tag in HEADINGS and re.fullmatch(r"s-[a-z0-9-]+", value) is not None
    if name == "class":
        # Pygments' short names, and pandas' table: none of the report's own.
        return value in {"highlight", "dataframe"} or (tag == "span" and _TOKEN.fullmatch(value) is not None)
    return False


@functools.cache
def _cleaner() -> Any:
    from bleach.sanitizer import Cleaner

    return Cleaner(
        tags=TAGS | MATHS,
        attributes=_allowed,
        protocols={"http", "https", "mailto", "data"},
        strip=True,
        strip_comments=True,
        css_sanitizer=_Css(),
    )


@functools.cache
def _renderer_class() -> Any:
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        """Markdown as HTML with our headings, MathML, and code that stays code."""

        def __init__(self, prefix: str, shift: int, attachments: Mapping[str, Any]) -> None:
            super().__init__(escape=False, attachments=dict(attachments))
            self.prefix, self.shift = prefix, shift
            self.headings: list[Heading] = []

        def heading(self, text: str, level: int, **attributes: Any) -> str:
            words = html.unescape(re.sub(r"<[^>]*>", "", text))
            anchor = f"s-{self.prefix}{slug(words)}"
            while anchor in {each.anchor for each in self.headings}:
                anchor += "-2"
            self.headings.append(Heading(level, words, anchor))
            depth = min(6, level + self.shift)
            return f'<h{depth} id="{anchor}">{text}</h{depth}>\n'

        def block_code(self, code_text: str, info: str | None = None) -> str:
            return highlight_code(code_text, (info or "text").split(maxsplit=1)[0])

        def image(self, text: str, url: str, title: str | None = None) -> str:
            if url.startswith("attachment:") and url.removeprefix("attachment:") not in self.attachments:
                return f"<em>{html.escape(text)}</em>"
            return str(super().image(text, url, title))

        def block_math(self, body: str) -> str:
            return latex_to_mathml(body, display=True)

        def inline_math(self, body: str) -> str:
            # "$5 and $6" is two prices: maths hugs its dollar signs.
            return latex_to_mathml(body) if body == body.strip() else f"${html.escape(body)}$"

        def latex_environment(self, name: str, body: str) -> str:
            return latex_to_mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)

    return Renderer


def _reader(renderer: Any) -> Any:
    from nbconvert.filters.markdown_mistune import MarkdownWithMath

    return MarkdownWithMath(renderer=renderer)
