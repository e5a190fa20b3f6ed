"""Benchmarks: moments by name or from a file as its authors publish it, with everything counted that was wrong in it.

    moments = load_moments("charades-sta/test", videos="/data/Charades_v1")
    moments = load_moments("annotations/tvgbench.json")

A name is looked for below $LABKIT_DATA, by default the project's folder data/, under its published file name; which
formats there are stands in `labkit.data.annotations`. Rows that cannot be used as they stand are repaired or dropped by a
rule for each kind (`labkit.data.usable_moments.RULES`), counted, and listed on request; `strict=True` makes the first an error.

Trim windows are honoured: a moment's `clip` is the window in the source video and its labels count from the clip's
beginning. Where a file that holds the clip alone is at hand (QVHighlights' ID_start_end.mp4, TimeRFT's files with
clock times in their names), it is read whole, so that nothing is cut twice.
"""

from __future__ import annotations

import csv
import filecmp
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

from labkit.data.annotations import CHARADES, DURATIONS, AnotherForm, read_rows
from labkit.data.cleaning import RowCleaner
from labkit.data.moments import Moment, write_moments
from labkit.data.rows import AnnotationFile, gc_paused
from labkit.data.usable_moments import MomentColumns, Moments
from labkit.data.video_index import VideoFolder, stem_of, walk
from labkit.errors import LabError, nearest
from labkit.files import project_root, replacing

WRITTEN = ("labkit", "timelens-bench")
"""Forms in which `labkit moments --write` writes."""


class Published(NamedTuple):
    """File names of a benchmark, the likeliest first; `folder` is a word that its folder's path must hold.

    A folder is asked for only where the file name alone says nothing.
    """

    files: tuple[str, ...]
    folder: str = ""


BENCHMARKS = {
    "charades-sta/train": Published(("charades_sta_train.txt", "charades_train.json", "Charades_sta_train.json")),
    "charades-sta/test": Published(("charades_sta_test.txt", "charades_test.json", "Charades_sta_test.json")),
    "activitynet/train": Published(("train.json",), "activitynet"),
    "activitynet/val_1": Published(("val_1.json",), "activitynet"),
    "activitynet/val_2": Published(("val_2.json",), "activitynet"),
    "qvhighlights/train": Published(("highlight_train_release.jsonl",)),
    "qvhighlights/val": Published(("highlight_val_release.jsonl",)),
    "tvgbench": Published(("tvgbench.json",)),
    "timerft": Published(("train_2k5.json",)),
    "nextgqa/val": Published(("val.csv",), "nextgqa"),
    "nextgqa/test": Published(("test.csv",), "nextgqa"),
    **{
        f"timelens-bench/{part}": Published((f"{part}-timelens.json",))
        for part in ("charades", "activitynet", "qvhighlights")
    },
    "timelens-100k": Published(("timelens-100k.jsonl", "TimeLens-100K_grpo.jsonl")),
    "timelens2-93k": Published(
        tuple(f"TimeLens2-93K_{form}.jsonl" for form in ("raw_annotations", "grpo", "conversations", "xtuner"))
    ),
    **{f"ego4d-nlq/{split}": Published((f"nlq_{split}.json",)) for split in ("train", "val")},
    **{f"tacos/{split}": Published((f"{split}.json",), "tacos") for split in ("train", "val", "test")},
    **{f"didemo/{split}": Published((f"{split}_data.json",), "didemo") for split in ("train", "val", "test")},
    **{f"hirest/{split}": Published((f"all_data_{split}.json",)) for split in ("train", "val", "test")},
}
"""What can be loaded by name, and the published file names. Case and punctuation of a name do not matter, and a file's own name
will do where no folder is asked for: charades-timelens is timelens-bench/charades."""


@gc_paused()
def load_moments(
    name_or_path: str | Path,
    *,
    videos: str | Path | None = None,
    durations: str | Path | None = None,
    strict: bool = False,
) -> Moments:
    """Moments of a benchmark, or of a file in a benchmark's format or our own.

    Args:
        name_or_path: one of BENCHMARKS, or a file.
        videos: folder of the videos, at any depth and with any suffix; by default `videos` beside the file. A video that
            is not there gets the path where it would be expected: whether it is there is looked at before a run, not here.
        durations: csv with columns id and length, for rows without; by default Charades-STA's own beside the file.
        strict: raise at the first fault instead of repairing or dropping.

    Raises LabError when the file cannot be found or read, when no row of it is usable, or, with `strict`, at the first
    fault: file, line, id, value and what to do.
    """
    path, title = _resolve(name_or_path)
    if videos is not None and not Path(videos).is_dir():
        raise LabError(f"videos = {str(videos)!r} is not a folder; give the folder that the videos lie in")
    folder = VideoFolder(path.parent / "videos" if videos is None else videos, implied=videos is None)
    try:
        # The first fault of a strict reading is told by the form that the whole file has.
        return _load(path, title, folder, durations, strict, whole=strict)
    except (AnotherForm, csv.Error):
        return _load(path, title, folder, durations, strict, whole=True)


def _load(
    path: Path, title: str, folder: VideoFolder, durations: str | Path | None, strict: bool, whole: bool
) -> Moments:
    table = read_rows(path, durations, whole)
    cleaner = RowCleaner(path, folder, strict, table.rows)
    # Some hundred rows are read before any is cleaned: a sixth faster, by what the processor remembers.
    rows = iter(table.rows)
    parts = iter(lambda: list(islice(rows, 500)), [])
    usable = MomentColumns(filter(None, map(cleaner.fields, chain.from_iterable(parts))))
    encoding = "" if table.encoding == "UTF-8" else f", {table.encoding}"
    count = len(usable) + sum(issue.action == "dropped" for issue in cleaner.issues)
    moments = Moments(usable, count, cleaner.issues, f"{title or table.title} ({path}{encoding})")
    if not usable:
        step = _next_step(table, moments)
        found = ", ".join(f"{kind} {count:,}" for kind, count in moments.counts().items())
        first = next(issue for issue in moments.issues if issue.action == "dropped")
        raise LabError(f"no row of {path} is usable ({found}; the first: {first}); {step}")
    return moments


def _next_step(table: AnnotationFile, moments: Moments) -> str:
    """What to do about a file of which nothing is usable."""
    counts = moments.counts()
    measured = "give the folder of the videos, of which they are then measured: videos= (--videos)"
    if counts.get("no duration", 0) < moments.rows:
        return measured.replace("they are", "it is") if "no frame rate" in counts else "correct the rows"
    if any(row.source == CHARADES for row in table.rows):
        return f"put {' and '.join(DURATIONS)} beside it, or give durations= (--durations), or {measured}"
    return f"add the seconds of each video as duration, or {measured}"


def moments_text(
    name_or_path: str | Path,
    *,
    videos: str | Path | None = None,
    durations: str | Path | None = None,
    write: str | Path | None = None,
    form: str = "labkit",
    listing: str | None = None,
    strict: bool = False,
    as_set: bool = False,
) -> str:
    """What `labkit moments` prints: counts, issues and how many videos are there; writes a file in one of WRITTEN if asked.

    `listing` is None for none, "" for every issue, or a kind of issue. With `strict` what `form` cannot hold is an error.
    With `as_set` the written moments ask for all windows of a query together.
    """
    if form not in WRITTEN:
        raise LabError(f"form = {form!r} is none that labkit writes; the forms are {', '.join(WRITTEN)}")
    if write is None and form != WRITTEN[0]:
        raise LabError(f"form = {form!r} says how to write, and no file is named; add write= (--write)")
    if as_set and (write is None or form != WRITTEN[0]):
        raise LabError("as_set is written into labkit's own form; add write= (--write) and leave the form out")
    moments = load_moments(name_or_path, videos=videos, durations=durations, strict=strict)
    lines = [str(moments), _videos_line(moments)]
    if listing is not None:
        lines.append(moments.listing(listing or None) or f"nothing to list{f' of {listing!r}' if listing else ''}")
    if write is not None:
        left: list[str] = []
        try:
            if form == WRITTEN[0]:
                write_moments([replace(each, as_set=True) for each in moments] if as_set else moments, write)
            else:
                left = write_timelens_bench(moments, write, strict)
        except OSError as error:
            raise LabError(f"'{write}' cannot be written ({error.strerror}); give another file to write") from None
        lines.append(f"{len(moments) - len(left):,} moments written to {write}")
        lines += [f"{count:>8,}  left out: {why}" for why, count in Counter(left).items()]
    return "\n".join(lines)


def write_timelens_bench(moments: Sequence[Moment], path: str | Path, strict: bool = False) -> list[str]:
    """Write moments as TimeLens-Bench is published, {video: {duration, spans, queries}}; it appears whole or not at all.

    That form holds neither ids nor sources, and one span a query: returns the reason for each moment that it cannot hold and
    that was left out. Raises LabError when nothing can be written or, with `strict`, something was left out.
    """
    entries: dict[str, dict[str, Any]] = {}
    files: dict[str, tuple[str, float]] = {}
    left: list[tuple[str, str]] = []
    for moment in moments:
        stem = stem_of(moment.video)[0]
        why = _misfit(moment)
        if not why:
            file, duration = files.setdefault(stem, (moment.video, moment.duration))
            if file != moment.video:
                why = "another video by the same name, by which the form knows videos"
            elif duration != moment.duration:
                why = "another duration than its video's first, where the form has one"
        if why:
            left.append((moment.qid, why))
            continue
        entry = entries.setdefault(stem, {"duration": moment.duration, "spans": [], "queries": []})
        entry["spans"].append([moment.windows[0].start, moment.windows[0].end])
        entry["queries"].append(moment.query)
    if left and (strict or not entries):
        step = "write labkit's own form" if not entries else "write labkit's own form, or leave strict out"
        raise LabError(
            f"{len(left):,} of {len(moments):,} moments do not fit {path}, first {left[0][0]!r} ({left[0][1]}); {step}"
        )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as draft:
        draft.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
    return [why for _, why in left]


def _misfit(moment: Moment) -> str:
    """Why TimeLens-Bench's form cannot hold a moment, whatever else is in the file; "" where it can."""
    if len(moment.windows) != 1:
        return "several windows, where the form has one span a query"
    if moment.clip is not None:
        return "a part of its video, where the form has whole files"
    return "options, which the form does not have" if moment.options else ""


def _videos_line(moments: Moments) -> str:
    paths = {moment.video for moment in moments}
    there = sum(map(os.path.isfile, paths))
    folder = os.path.commonpath(paths if len(paths) > 1 else [os.path.dirname(path) for path in paths])
    return f"{there:,} of {len(paths):,} videos are there, below {folder}"


def _resolve(name_or_path: str | Path) -> tuple[Path, str]:
    """The file, and the benchmark's name where it was asked for by name."""
    path = Path(name_or_path)
    # Not Path.is_file, which raises at a name that is too long for a file.
    if os.path.isfile(path):
        return Path(os.path.abspath(path)), ""
    if isinstance(name_or_path, str):
        wanted = _plain(name_or_path)
        for name, published in BENCHMARKS.items():
            stems = [] if published.folder else [_plain(file.rpartition(".")[0]) for file in published.files]
            if wanted in (_plain(name), *stems):
                return _find(name, published), name
        parts = [name for name in BENCHMARKS if "/" in name and _plain(name.partition("/")[0]) == wanted]
        if parts:
            raise LabError(f"{name_or_path!r} has several sets of questions; say which: {', '.join(parts)}")
    near = nearest(str(name_or_path).lower(), BENCHMARKS)
    guess = f"did you mean {near!r}? " if near else ""
    what = "is a folder, not an annotation file" if os.path.isdir(path) else "is neither a file nor a benchmark's name"
    raise LabError(f"'{name_or_path}' {what}; {guess}the names are {', '.join(BENCHMARKS)}")


def _plain(name: str) -> str:
    """Letters and digits of a name; ActivityNet-Captions is ActivityNet.

    >>> _plain("Charades-STA test"), _plain("ActivityNet-Captions/val_2")
    ('charadesstatest', 'activitynetval2')
    """
    return re.sub(r"[^a-z0-9]", "", name.lower()).replace("activitynetcaptions", "activitynet")


def _find(name: str, published: Published) -> Path:
    """The benchmark's file below the data folder; of several equal ones the first.

    Raises LabError when there is none, or when there are several that differ.
    """
    root = _data_root()
    wanted = {file.lower(): rank for rank, file in reversed(list(enumerate(published.files)))}
    found: list[tuple[int, str]] = []
    for folder, files in walk(str(root)):
        if published.folder in _plain(os.path.relpath(folder, root.parent)):
            named = [(file.lower().removesuffix(".gz"), file) for file in files]
            found += [(wanted[name], os.path.join(folder, file)) for name, file in named if name in wanted]
    if not found:
        inside = f" in a folder called {published.folder}" if published.folder else ""
        there = "" if root.is_dir() else " (which is not there)"
        raise LabError(
            f"{name} is not below {root}{there}; put its file there, published as {published.files[0]}{inside}, or set "
            "LABKIT_DATA to the folder that holds it, or give the file's path"
        )
    best = min(rank for rank, _ in found)
    first, *others = [path for rank, path in found if rank == best]
    for other in others:
        if not filecmp.cmp(first, other, shallow=False):
            raise LabError(f"{name} is there twice and the files differ: {first} and {other}; give one's path")
    return Path(first)


def _data_root() -> Path:
    """$LABKIT_DATA, or data/ of the project."""
    if given := os.environ.get("LABKIT_DATA"):
        return Path(os.path.abspath(os.path.expanduser(given)))
    return project_root() / "data"
