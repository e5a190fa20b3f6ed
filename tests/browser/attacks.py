"""Texts that try to run: calls of `hit()`, styles and links from elsewhere, each breaking out of a place of its own."""

from __future__ import annotations

import itertools

PAYLOADS = [
    before + core + behind
    for core, (before, behind) in itertools.product(
        [
            "<script>hit()</script>",
            "<img src=x onerror=hit()>",
            "<svg onload=hit()><animate onbegin=hit() attributeName=x dur=1s></svg>",
            "<iframe srcdoc='<script>parent.hit()</script>'></iframe>",
            "<a href=javascript:hit()>x</a>[y](javascript:hit())",
            "<details open ontoggle=hit()><summary>z</summary></details>",
            "{{ 7 * 7 }}{{constructor.constructor('hit()')()}}{% include 'x' %}${hit()}%{x}$\\href{javascript:hit()}{x}$",
            "<style>@import 'https://evil.example/x.css';body{background:url(https://evil.example/y)}</style>",
            "<link rel=stylesheet href=https://evil.example/z.css><meta http-equiv=refresh content='0;https://evil.example'>",
            "<img src=https://evil.example/p.png><video src=https://evil.example/v.mp4 autoplay></video><base href=https://evil.example>",
        ],
        [("", ""), ("</script>", ""), ('">', ""), ("'-->]]></title>", "<!--"), ("</textarea></style>`", "\u202e\x00")],
    )
]
