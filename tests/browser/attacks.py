"""Texts that try to run: calls of `hit()`, styles and links from elsewhere, each breaking out of a place of its own."""

from __future__ import annotations

import itertools

PAYLOADS = [
    before + core + behind
    for core, (before, behind) in itertools.product(
        [
            "<script>hit()</script>",
            "<img src=x onerror=hit()>",
            "<svg onload=hit()>",
            "<iframe srcdoc='<script>parent.hit()</script>'></iframe>",
            "<a href=javascript:hit()>x</a>",
            "<details open ontoggle=hit()>",
            "{{constructor.constructor('hit()')()}}",
            "${hit()}",
            "<style>@import 'https://evil.example/x.css'</style>",
            "<link rel=stylesheet href=https://evil.example/y.css>",
        ],
        [("", ""), ("</script>", ""), ('">', ""), ("'-->", "<!--"), ("</textarea></style>", "\u202e\x00")],
    )
]
