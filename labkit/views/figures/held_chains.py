"""Which chains a figure's points hold, so that a click on one opens them in the explorer.

A figure names its chains once, in `layout.meta["chains"]`; a trace's `meta["held"]` has for each of its points the bits of those
that it holds, so that a point costs an eighth of a byte a chain. A report's script (js/held.js) and `labkit.explore_figure`
read the same.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from labkit.runs.run import NOTEBOOK_OF
from labkit.views.figures.style import Figure
from labkit.views.measured_chains import MeasuredChain

MOST_NAMED = 20_000
"""Chains that a figure names at most; of more every so many, and a click says of how many they are."""


class ChainKey(NamedTuple):
    """What tells a chain from all others: where it comes from, and its text by `text_digest`."""

    label: str
    """What the figure calls its stage, or run."""
    stage: str
    run: str
    qid: str
    step: int
    sample: int
    digest: int | None
    """None where the figure has seen no text: a score."""


def text_digest(text: str) -> int:
    """A text as 32 bits, of what a page counts as its characters: half an emoji counts, too.

    >>> text_digest("a")
    1027557401
    """
    return zlib.crc32(text.encode("utf-16-le", "surrogatepass"))


class HeldChains:
    """The chains of one figure: `points` for each trace, and `write` when all are drawn."""

    def __init__(self, groups: Mapping[str, Sequence[MeasuredChain]]) -> None:
        """The chains by label, as a figure draws them."""
        every = -(-sum(map(len, groups.values())) // MOST_NAMED) or 1
        self._place: dict[int, int] = {}
        keys: list[ChainKey] = []
        for label, chains in groups.items():
            for each in chains[::every]:
                record = each.record
                self._place[id(each)] = len(keys)
                source = (str(getattr(record, "stage", "")), str(getattr(record, "run", "")), record.qid)
                place = (getattr(record, "step", 0), getattr(record, "sample", 0))
                keys.append(ChainKey(label, *source, *place, text_digest(record.text)))
        self._keys = keys

    @classmethod
    def of_questions(cls, qids: Mapping[str, Sequence[str]]) -> HeldChains:
        """Greedy answers by label, of which nothing is known but the question: what a score rests on."""
        made = cls({})
        made._keys = [ChainKey(label, label, "", qid, 0, 0, None) for label, each in qids.items() for qid in each]
        return made

    def points(self, held: Iterable[Sequence[MeasuredChain]], names: Sequence[str] = ()) -> dict[str, Any]:
        """A trace's `meta` from the chains that each of its points holds; `names` say what a point is."""
        listed = list(held)
        places = [[self._place[id(each)] for each in chains if id(each) in self._place] for chains in listed]
        return _meta(places, list(map(len, listed)), names)

    def questions(self, held: Iterable[Sequence[int]], label: str, names: Sequence[str] = ()) -> dict[str, Any]:
        """The same of `of_questions`: places among the label's questions."""
        first = next((at for at, key in enumerate(self._keys) if key.label == label), 0)
        places = [[first + at for at in each] for each in held]
        return _meta(places, list(map(len, places)), names)

    def write(self, fig: Figure) -> Figure:
        """Put the chains' names into the figure."""
        qids = {qid: at for at, qid in enumerate(dict.fromkeys(key.qid for key in self._keys))}
        labels: dict[tuple[str, str, str], int] = {}
        rows = []
        for key in self._keys:
            label = labels.setdefault(key[:3], len(labels))
            rows.append((label, qids[key.qid], key.step, key.sample, key.digest))
        columns = dict(
            zip(("label", "qid", "step", "sample", "digest"), map(list, zip(*rows, strict=True)), strict=True)
        )
        named = [
            {"label": label, "stage": stage, "run": run, "read": _command(stage, columns["step"])}
            for label, stage, run in labels
        ]
        fig.layout.meta = {
            **(fig.layout.meta or {}),
            "chains": {
                "labels": named,
                "qids": list(qids),
                # A column that says the same of all, as the step of an evaluation does, says it once.
                **{name: each[0] if len(set(each)) == 1 else each for name, each in columns.items()},
            },
        }
        return fig


def held_by(figure: Figure, trace: int, point: int | tuple[int, int]) -> list[ChainKey]:
    """The chains that a point of a figure holds; none where it doesn't say."""
    table = (figure.layout.meta or {}).get("chains")
    meta = figure.data[trace].meta or {}
    if table is None or "held" not in meta:
        return []
    packed = meta["held"][point if isinstance(point, int) else point[0] * meta["columns"] + point[1]]
    empty, bits = packed.split(":")
    places = [
        8 * at + k for at, byte in enumerate(base64.b64decode(bits), int(empty)) for k in range(8) if byte >> k & 1
    ]

    def column(name: str, place: int) -> Any:
        return table[name][place] if isinstance(table[name], list | tuple) else table[name]

    found = []
    for place in places:
        label = table["labels"][column("label", place)]
        source = (label["label"], label["stage"], label["run"], table["qids"][column("qid", place)])
        found.append(ChainKey(*source, *(column(name, place) for name in ("step", "sample", "digest"))))
    return found


def _meta(places: Sequence[Sequence[int]], counts: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    return {"held": [_bits(each) for each in places], "counts": list(counts)} | (
        {"names": list(names)} if names else {}
    )


def _bits(places: Sequence[int]) -> str:
    """Places as bits in base64, behind the number of empty bytes before them; a step's chains stand side by side.

    >>> _bits([0, 9]), _bits([800]), _bits([])
    ('0:AQI=', '100:AQ==', '0:')
    """
    empty = min(places, default=0) // 8
    bits = bytearray(max(places) // 8 + 1 - empty if places else 0)
    for place in places:
        bits[place // 8 - empty] |= 1 << place % 8
    return f"{empty}:{base64.b64encode(bits).decode('ascii')}"


def _command(stage: str, steps: Sequence[int]) -> str:
    """How a notebook reads the chains of a stage; of unknown ones, what the figure was made from."""
    if stage in NOTEBOOK_OF and any(steps):
        return f'explore(lab.rollouts("{stage}").read(), lab.moments("train"))'
    if stage in (*NOTEBOOK_OF, "base", "harvester"):
        return f'explore([*lab.read_evaluation("{stage}").greedy, *lab.read_evaluation("{stage}").sampled], lab.moments("test"))'
    return "explore(records, moments)"
