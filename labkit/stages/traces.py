"""Traces from elsewhere, as a run's SFT takes them: each is matched to its moment, and what cannot be learnt is counted.

A file of traces is JSON Lines: one object a line with `qid`, the name of a training moment, and `text`, the whole completion; of one
moment there may be several. Other fields are passed over, and so is a first line of `settings`, so that predictions and what
`labkit export --format jsonl` writes can be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.chain.anchors import END_OF_TURN, parse
from labkit.data.moments import Moment
from labkit.data.rows import InvalidLine, read_object, read_text
from labkit.errors import LabError
from labkit.progress import say
from labkit.stages.harvest import Harvest, Reasons
from labkit.stages.rollouts import UNPAID, Rollout
from labkit.stages.sft import Trace

REASONS = ("no such moment", "unparsed", "duplicate")
"""Why a trace is dropped, in the order in which it is looked for. Unparsed: no answer is read from it. Duplicate: of the same moment
another has the same text but for its blanks."""
_WRITE = 'write {"qid": "...", "text": "<think> ... </answer>"} on each line'


def read_traces(path: Path) -> list[Trace]:
    """The traces of a file in its order, unmatched; what ends a turn is cut off their ends, since SFT adds it.

    Raises LabError that names file, line, fault and next step at the first line that is no trace, and for a file without any.
    """
    traces: list[Trace] = []
    if not path.is_file():
        raise LabError(f"traces: there is no file '{path}'; give JSON Lines of qid and text")
    try:
        lines = read_text(path).split("\n")
    except LabError as error:
        raise LabError(f"traces: '{path}' is not JSON Lines in UTF-8 ({error}); {_WRITE}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row: Any = read_object(line)
        if isinstance(row, dict) and "settings" in row and "qid" not in row and not traces:
            continue
        if fault := _fault(row):
            raise LabError(f"traces: '{path}', line {number}: {fault}; {_WRITE}")
        traces.append(Trace(str(row["qid"]), _completion(row["text"])))
    if not traces:
        raise LabError(f"traces: '{path}' holds none; {_WRITE}")
    return traces


def import_traces(path: Path, moments: Sequence[Moment], run: str) -> Harvest:
    """The traces of a file that a model can learn from, and why the others are dropped; the counts are said in one line.

    Kept are all whose answer can be read, in the file's order and as they are: neither form nor accuracy is asked of them.
    A trace's `sample` is its place in the file. Raises what `read_traces` does, and LabError where none asks for one of `moments`.
    """
    asked, seen = {moment.qid: moment for moment in moments}, set()
    kept, reasons, strangers = [], Reasons(REASONS), []
    for number, trace in enumerate(read_traces(path)):
        key = (trace.qid, " ".join(trace.text.split()))
        moment = asked.get(trace.qid)
        chain = parse(trace.text, options=len(moment.options)) if moment else None
        if chain is None:
            strangers.append(trace.qid)
            reasons.add((trace.qid, number, 0), "no such moment")
        elif chain.answer is None:
            reasons.add((trace.qid, number, 0), "unparsed")
        elif key in seen:
            reasons.add((trace.qid, number, 0), "duplicate")
        else:
            seen.add(key)
            reasons.add((trace.qid, number, 0), "")
            kept.append(Rollout(
                run=run, stage="traces", step=0, qid=trace.qid, sample=number, seed=0, checkpoint=path.name, text=trace.text,
                status=chain.status, **UNPAID, prompt_tokens=0, completion_tokens=0, finished=True,
            ))  # fmt: skip
    total = len(kept) + len(reasons)
    if len(strangers) == total:
        raise LabError(
            f"traces: none of the {total:,} traces of '{path}' asks for a training moment (there '{strangers[0]}', here "
            f"'{moments[0].qid}'); give the qids of the training split"
        )
    found = Harvest(kept, reasons)
    first = {"no such moment": f" (the first: '{strangers[0]}')"} if strangers else {}
    dropped = ", ".join(f"{count:,} {reason}{first.get(reason, '')}" for reason, count in found.filter_counts[:-1])
    say(f"traces: {len(kept):,} of {total:,} in '{path.name}' are learnt from; {dropped}")
    return found


def _fault(row: Any) -> str:
    if isinstance(row, InvalidLine):
        return str(row)
    if not isinstance(row, dict):
        return "is no object"
    qid, text = row.get("qid"), row.get("text")
    if isinstance(qid, bool) or not isinstance(qid, str | int) or qid == "":
        return f"qid = {qid!r} names no moment"
    return "" if isinstance(text, str) and text.strip() else f"text = {str(text)[:40]!r} is no text"


def _completion(text: str) -> str:
    text = text.strip()
    while ends := [end for end in END_OF_TURN if text.endswith(end)]:
        text = text.removesuffix(ends[0]).rstrip()
    return text
