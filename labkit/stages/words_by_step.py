"""Words of thoughts along training: how many are true, step by step, from the rollouts that a stage of GRPO has kept.

Nothing is counted while a stage trains. Counted once it has ended, the rows stay beside its result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from labkit.data.moments import Moment
from labkit.embedded.true_words import KINDS, blanked, check_words, thought, word_chances
from labkit.files import write_json
from labkit.stages.checkpoints import read_result
from labkit.stages.grpo_steps import GrpoResult
from labkit.stages.rollouts import Rollout, RolloutStore

WORDS_FILE = "words.json"
"""In a stage's folder: its `words_by_step`."""
_RULES = 2
"""Number of the rules that `WORDS_FILE` was counted by; others' are counted anew. Rules 1 took words for those of the asked scene."""


def words_by_step(rollouts: Iterable[Rollout], moments: Sequence[Moment]) -> list[dict[str, Any]]:
    """One row a step of what its sampled thoughts say; empty unless every moment is of the embedded world.

    `n` chains and `distinct_thoughts` among them; `said_<kind>`, `true_<kind>` and `chance_<kind>` as of
    `labkit.embedded.true_words.word_figures`, but that words are dealt out among all of `moments`: a step asks too few. What
    there is none of is None.
    """
    if not word_chances(moments[:1]) or not (chances := word_chances(moments)):
        return []
    places, thoughts = dict[int, list[int]](), dict[tuple[str, str], int]()
    for rollout in rollouts:
        said = thought(rollout.text)  # with its spans: a word speaks of the scene of the anchor before it
        places.setdefault(rollout.step, []).append(thoughts.setdefault((rollout.qid, said), len(thoughts)))
    counts = _counts(thoughts, {moment.qid: moment for moment in moments}, chances)
    numbers: dict[str, int] = {}
    forms = np.array([numbers.setdefault(blanked(said), len(numbers)) for _, said in thoughts], dtype=int)
    rows: list[dict[str, Any]] = []
    for step, inside in sorted(places.items()):
        row: dict[str, Any] = {"step": step, "n": len(inside), "distinct_thoughts": len(set(forms[inside].tolist()))}
        for kind, (said_, true, chance) in zip(KINDS, counts[inside].sum(axis=0).tolist(), strict=True):
            row[f"said_{kind}"] = said_
            row[f"true_{kind}"] = true / said_ if said_ else None
            row[f"chance_{kind}"] = chance / said_ if said_ else None
        rows.append(row)
    return rows


def _counts(
    thoughts: dict[tuple[str, str], int], moments: dict[str, Moment], chances: dict[str, dict[str, float]]
) -> np.ndarray:
    """For each thought and kind: words said, those that are true, and how many would be by chance; (thoughts, kinds, 3)."""
    by_qid: dict[str, list[str]] = {}
    for qid, said in thoughts:
        by_qid.setdefault(qid, []).append(said)
    counts = np.zeros((len(thoughts), len(KINDS), 3))
    for turn in range(max(map(len, by_qid.values()), default=0)):  # `check_words` takes one thought a query
        texts = {qid: each[turn] for qid, each in by_qid.items() if turn < len(each)}
        found = check_words(texts, [moments[qid] for qid in texts])
        for number, kind in enumerate(KINDS):
            at = [thoughts[word.qid, texts[word.qid]] for word in found[kind]]
            values = [(1.0, word.true, chances[kind].get(word.says, 0.0)) for word in found[kind]]
            np.add.at(counts[:, number], at, np.array(values).reshape(-1, 3))
    return counts


def word_history(folder: Path, moments: Callable[[], Sequence[Moment]], keep: bool = True) -> list[dict[str, Any]]:
    """The history of the stage in `folder` with its words: rows of `words_by_step` with `total` and `miou` of each step.

    `moments` gives the training split. Empty while the stage has not ended, and on other data than the embedded world. What has
    been counted is kept in the folder, unless `keep` says that it is another run's.
    """
    if (result := read_result(folder, GrpoResult)) is None:
        return []
    file = folder / WORDS_FILE
    rows = _kept(file)
    if rows is None:
        rows = words_by_step(RolloutStore(folder / "rollouts").stream(), moments())
        if rows and keep:
            write_json(file, {"rules": _RULES, "kinds": list(KINDS), "rows": rows}, indent=None)
    steps = {row["step"]: row for row in result.history}
    return [{key: steps.get(row["step"], {}).get(key) for key in ("total", "miou")} | row for row in rows]


def _kept(file: Path) -> list[dict[str, Any]] | None:
    """What was counted before; None where nothing was, or by other rules, or of other kinds."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return kept["rows"] if (kept["rules"], kept["kinds"]) == (_RULES, list(KINDS)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
