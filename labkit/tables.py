"""Tables: parameters as a person reads them, in a terminal and in a notebook."""

from __future__ import annotations

import html
from dataclasses import fields

from labkit.params import CONCERNS, Params, documentation, names, show


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
    """The same as small tables side by side; hovering a row says what the parameter means."""
    changed, notes = set(params.changed()), documentation()
    blocks = []
    for concern in CONCERNS:
        rows = []
        for item in fields(concern):
            value = html.escape(show(getattr(params, item.name)))
            value = f"<b>{value} *</b>" if item.name in changed else value
            rows.append(
                f'<tr title="{html.escape(notes[item.name])}"><td style="text-align:left">{item.name}</td>'
                f'<td style="text-align:left">{value}</td></tr>'
            )
        blocks.append(
            f'<table style="margin:0 1.5em 1em 0"><tr><th colspan="2" style="text-align:left">{_title(concern)}'
            f"</th></tr>{''.join(rows)}</table>"
        )
    note = f"<b>*</b> differs from the default ({len(changed)} of {len(names())}). Hover a row for what it means."
    return f'<div style="display:flex;flex-wrap:wrap;align-items:flex-start">{"".join(blocks)}</div><p>{note}</p>'


def _title(concern: type) -> str:
    return concern.__name__.removesuffix("Params").lower()
