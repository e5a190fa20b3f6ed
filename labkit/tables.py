"""Tables: parameters as a person reads them, in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import fields

from labkit.params import CONCERNS, DEFAULTS, Params, documentation, names, show


def params_text(params: Params) -> str:
    """Every value in force, concern by concern; a star marks what differs from the default."""
    changed, width = set(params.changed()), max(map(len, names()))
    lines = []
    for concern in CONCERNS:
        lines.append(_title(concern))
        for item in fields(concern):
            mark = "*" if item.name in changed else " "
            lines.append(f" {mark} {item.name:<{width}}  {show(getattr(params, item.name))}")
    return "\n".join([*lines, "* differs from the default"])


def params_html(params: Params) -> str:
    """What differs from the defaults as a table, and every value in force below it, folded; hovering a row says what it means."""
    changed, notes = params.changed(), documentation()

    def line(name: str, *values: str) -> str:
        cells = "".join(f'<td style="text-align:left">{html.escape(each)}</td>' for each in (name, *values))
        return f'<tr title="{html.escape(notes[name])}">{cells}</tr>'

    def table(head: str, rows: Iterable[str]) -> str:
        return f'<table style="margin:0 1.5em 1em 0"><tr>{head}</tr>{"".join(rows)}</table>'

    heads = "".join(
        f'<th style="text-align:left">{each}</th>' for each in ("differs from the default", "value", "default")
    )
    own = table(heads, [line(name, show(getattr(params, name)), show(getattr(DEFAULTS, name))) for name in changed])
    blocks = "".join(
        table(
            f'<th colspan="2" style="text-align:left">{_title(concern)}</th>',
            [line(item.name, show(getattr(params, item.name))) for item in fields(concern)],
        )
        for concern in CONCERNS
    )
    every = f"All {len(names())} parameters" if changed else f"All {len(names())} parameters, each at its default"
    return (
        f"{own if changed else ''}<details><summary>{every}</summary>"
        f'<div style="display:flex;flex-wrap:wrap;align-items:flex-start">{blocks}</div></details>'
    )


def _title(concern: type) -> str:
    return concern.__name__.removesuffix("Params").lower()
