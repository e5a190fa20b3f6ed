"""Moments: what is asked about which video, and when it happens.

A moments file is JSON Lines: UTF-8, one object a line, lines without any text are passed over. Its fields:

    qid       the question's name, unique in the file
    video     the video file, relative to the moments file's folder or absolute
    query     the sentence to be found
    windows   [[start, end], ...] one or more, in seconds from the clip's beginning
    duration  the clip's length in seconds
    clip      [start, end] of the clip in the source video, or null when the clip is the whole video (may be left out)
    source    where the question comes from, free text (may be left out)
    options   ["...", ...] two or more answers to choose from, in grounded question answering (may be left out)
    choice    number of the right option, counted from 0; goes with options
    as_set    true where an answer is to name all windows, which are then measured as one set; otherwise the best window counts
              (may be left out)
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.chain.spans import Span, union
from labkit.data.rows import binary_kind, printable, short
from labkit.data.video_index import is_foreign_path, local_path, stem_of, trim_window
from labkit.errors import LabError, nearest
from labkit.files import replacing

REQUIRED = ("qid", "video", "query", "windows", "duration")
FIELDS = (*REQUIRED, "clip", "source", "options", "choice", "as_set")
_CONVERT_HINT = "`labkit moments FILE --write NEW.jsonl` makes moments of it"
SCORE_STEP = "`labkit score PREDICTIONS --moments FILE` scores them"
ANSWERS = (
    ("pred_relevant_windows",), ("qid", "text"), ("qid", "windows"), ("qid", "output_text"), ("qid", "pred"),
    ("doc_id", "resps"), ("response",), ("completion",), ("input", "output"), ("video_id", "query_id", "answer"),
    ("original_data", "model_output"), ("video_path", "answer", "ans"), ("question", "prediction"),
)  # fmt: skip
"""Fields by which an object is known as a prediction, of labkit or another program, and no moment."""
OPTION_LETTERS = "ABCDEFGH"
"""What options are called in a prompt and in an answer, in order."""
ROUNDING = 1e-3
"""Seconds that are rounding, more is a mistake: labels and durations are written with two or three decimals."""
FRAME = 0.05
"""Seconds by which a clip may differ from its trim window, which cuts at frames: half of one at 10 fps."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_TIME_R1 = "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
DOWNLOADS = {
    "charades-sta": "'wget https://ai2-public-datasets.s3-us-west-2.amazonaws.com/charades/Charades_v1_480.zip' (13 GB)",
    "qvhighlights": "'wget https://nlp.cs.unc.edu/data/jielei/qvh/qvhilights_videos.tar.gz' (134 GB)",
    "tvgbench": _TIME_R1,
    "timerft": _TIME_R1,
    "timelens-bench": "'hf download TencentARC/TimeLens-Bench --repo-type dataset'",
    "timelens-100k": "'hf download TencentARC/TimeLens-100K --repo-type dataset'",
    "timelens2": "'hf download MCG-NJU/TimeLens2-93K --repo-type dataset'",
}
"""How to fetch the videos, by a part of a moment's `source` between slashes. Source: the benchmarks' own pages and
Time-R1's docs/DATA.md; the links have not been followed. ActivityNet's and NExT-GQA's authors give theirs on request."""

_QVHIGHLIGHTS_CLIP = 150.0
"""Seconds of a clip of QVHighlights, all 1,550 of the validation set."""
_TACOS = re.compile(r"s\d+-d\d+", re.ASCII)
_CHARADES = re.compile(r"[A-Z0-9]{5}", re.ASCII)


class BadField(ValueError):
    """A moment's field that cannot be used: which one, its value, what is wrong and what to write instead."""

    def __init__(self, field: str, value: object, wrong: str, step: str) -> None:
        """Keep the parts, so that a reader can put file and line in front."""
        self.field, self.value, self.wrong, self.step = field, value, wrong, step
        super().__init__(f"{printable(field)} = {short(value)} {wrong}; {step}")


@dataclass(frozen=True, slots=True)
class Moment:
    """A question about a video, with the windows that answer it.

    `windows` are in seconds from the clip's beginning; `duration` is the clip's length; `clip` is the trim window in
    the source video, None when the clip is all of it; `video` is an absolute path. In grounded question answering
    `query` is a question, `windows` are its evidence, and `options[choice]` is its answer. With `as_set` all windows
    together are what is asked for; otherwise each of them is an answer. Without `windows` nobody has said
    when it happens: such a question can be asked (`labkit.ask`) and looked at, and nothing can be measured on it; files hold none.

    Raises BadField (a ValueError) that names the field, its value and what to write instead.

    >>> moment = Moment("q1", "/videos/a.mp4", "she opens the door", (Span(1.0, 4.0),), 12.0, clip=Span(30.0, 42.0))
    >>> moment.start
    30.0
    >>> Moment("q1", "/videos/a.mp4", "she opens the door", (Span(1.0, 14.0),), 12.0)
    Traceback (most recent call last):
    labkit.data.moments.BadField: windows = [1.0, 14.0] ends past the clip (12.0 s); cut the window or correct duration
    """

    qid: str
    video: str
    query: str
    windows: tuple[Span, ...]
    duration: float
    clip: Span | None = None
    source: str = ""
    options: tuple[str, ...] = ()
    choice: int | None = None
    as_set: bool = False

    def __post_init__(self) -> None:
        """Check every field: a moment that exists can be used."""
        for field, value in (("qid", self.qid), ("video", self.video), ("query", self.query)):
            if not isinstance(value, str):
                raise BadField(field, value, "is not text", f'write it as "{field}": "..."')
            if not value or value.isspace():
                raise BadField(field, value, "is empty", "fill it in or take the line out")
        texts = {"qid": self.qid, "video": self.video, "query": self.query, "source": self.source}
        for k, text in enumerate((*texts.values(), *self.options)):
            if isinstance(text, str) and not text.isascii() and (half := _SURROGATE.search(text)):
                field = [*texts, "options"][min(k, len(texts))]
                step = f"write the character that {ascii(half[0])} is half of, or take it out"
                raise BadField(field, text, "holds half a character, which no file can", step)
        if "\0" in self.video or not os.path.isabs(self.video):
            raise BadField("video", self.video, "is no absolute path", "resolve it against the moments file's folder")
        if not (math.isfinite(self.duration) and self.duration > 0):
            raise BadField("duration", self.duration, "is not a length", "write the clip's seconds, above 0")
        for window in self.windows:
            if window.start < 0:
                step = "count seconds from the clip's beginning"
                raise BadField("windows", _pair(window), "starts before the clip", step)
            if window.end > self.duration + ROUNDING:
                wrong = f"ends past the clip ({self.duration} s)"
                raise BadField("windows", _pair(window), wrong, "cut the window or correct duration")
        if self.clip is not None:
            if self.clip.start < 0:
                step = "count seconds from the video's beginning"
                raise BadField("clip", _pair(self.clip), "starts before the video", step)
            if abs(self.clip.length - self.duration) > FRAME:
                wrong = f"is {self.clip.length:g} s long but duration is {self.duration:g} s"
                raise BadField("clip", _pair(self.clip), wrong, "write the clip's own length as duration")
        if type(self.as_set) is not bool:
            raise BadField("as_set", self.as_set, "is neither true nor false", "write one of them, or leave it out")
        self._check_options()

    def _check_options(self) -> None:
        if not self.options:
            if self.choice is not None:
                raise BadField("choice", self.choice, "has no options to choose from", "give options or take it out")
            return
        if not 2 <= len(self.options) <= len(OPTION_LETTERS):
            step = f"give 2 to {len(OPTION_LETTERS)} options"
            raise BadField("options", list(self.options), "cannot be chosen from", step)
        for option in self.options:
            if not isinstance(option, str) or not option.strip():
                raise BadField("options", list(self.options), "holds one that is empty or no text", "write it out")
        if type(self.choice) is not int or not 0 <= self.choice < len(self.options):
            step = f"write the right option's number, 0 to {len(self.options) - 1}"
            raise BadField("choice", self.choice, "is not one of the options", step)
        if self.options.count(self.options[self.choice]) > 1:
            step = "give the right option once; wrong ones may be alike"
            raise BadField("options", list(self.options), "holds the right one twice", step)

    @property
    def has_truth(self) -> bool:
        """Whether somebody has said when it happens."""
        return bool(self.windows)

    @property
    def targets(self) -> tuple[Span, ...]:
        """What a span is measured against: the windows, of which the best counts, or all of them as the one set that is asked for.

        >>> moment = Moment("q1", "/v/a.mp4", "it blinks", (Span(1.0, 4.0), Span(7.0, 9.0)), 12.0, as_set=True)
        >>> moment.targets[0].parts == moment.windows
        True
        """
        return (union(self.windows),) if self.as_set and self.windows else self.windows

    @property
    def start(self) -> float:
        """Where the clip begins in the video, in seconds: what `read_frames` takes as `start`."""
        return self.clip.start if self.clip is not None else 0.0

    @property
    def source_video(self) -> str:
        """The untrimmed video that the clip was cut from: what moments are grouped by that are not independent.

        The path without its suffix, and without the trim window that a clip's name states.

        >>> Moment("q1", "/videos/NUsG9BgSes0_210.0_360.0.mp4", "she cooks", (Span(1.0, 4.0),), 150.0).source_video
        '/videos/NUsG9BgSes0'
        """
        stem, _ = stem_of(self.video)
        window = trim_window(stem)
        return os.path.join(os.path.dirname(self.video), window[0] if window else stem)


def read_moments(path: str | Path) -> list[Moment]:
    """Moments of a JSON Lines file, in the file's order; relative videos are resolved against its folder.

    Raises LabError naming file, line, field, value and next step at the first line that cannot be used: not an object,
    a field missing, unknown, repeated or ill-typed, an empty query, start >= end, a window past the clip, a qid that
    came before. Likewise for a file that is missing, unreadable or holds no moment.
    """
    path = Path(path)
    moments: list[Moment] = []
    try:
        for number, moment in read_lines(path):
            if isinstance(moment, BadField):
                raise LabError(f"{path}, line {number}: {moment}") from None
            moments.append(moment)
    except OSError as error:
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise LabError(f"moments file {path} {reason}; correct its path or its access rights") from None
    if not moments:
        fields = ", ".join(REQUIRED)
        raise LabError(f"moments file {path} holds no moment; write one JSON object a line with {fields}")
    return moments


def read_lines(path: Path) -> Iterator[tuple[int, Moment | BadField]]:
    """Each line of a moments file that holds text, by its number: the moment, or why there is none. Raises OSError."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if kind := binary_kind(raw):
        yield (
            1,
            BadField(
                "file", path.name, f"is {kind}, no UTF-8 text", f"unpack it or save it as UTF-8, or {_CONVERT_HINT}"
            ),
        )
        return
    # Old Macs end a line by a carriage return alone.
    lines = raw.split(b"\n" if b"\n" in raw else b"\r")
    seen: dict[str, int] = {}
    first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row: dict[str, Any] = {}
        try:
            row = parse_json_line(line)
            moment = moment_of(row, path.parent)
            if moment.qid in seen:
                wrong = f"was used before, on line {seen[moment.qid]}"
                raise BadField("qid", moment.qid, wrong, "give every question a name of its own")
        except BadField as error:
            # Only its first line can tell that a file is none of moments at all.
            if first and not set(REQUIRED) <= set(row) and error.step != SCORE_STEP:
                other = (
                    "if this is another annotation file, `labkit moments FILE --write NEW.jsonl` makes moments of it"
                )
                error = BadField(error.field, error.value, error.wrong, f"{error.step}; {other}")
            yield number, error
        else:
            seen[moment.qid] = number
            yield number, moment
        first = False


def moment_row(moment: Moment) -> dict[str, Any]:
    """A moment as plain data, the object that stands on its line of a file; its video is as the moment has it.

    >>> row = moment_row(Moment("q1", "/v/a.mp4", "it blinks", (Span(1.0, 4.0), Span(7.0, 9.0)), 12.0, as_set=True))
    >>> row["windows"], row["as_set"]
    ([[1.0, 4.0], [7.0, 9.0]], True)
    """
    row = {
        "qid": moment.qid,
        "video": moment.video,
        "query": moment.query,
        "windows": [_pair(window) for window in moment.windows],
        "duration": moment.duration,
        "clip": None if moment.clip is None else _pair(moment.clip),
        "source": moment.source,
    }
    if moment.options:
        row |= {"options": list(moment.options), "choice": moment.choice}
    return row | ({"as_set": True} if moment.as_set else {})


def write_moments(moments: Iterable[Moment], path: str | Path) -> None:
    """Write a file that `read_moments` reads back equal; it appears whole or not at all.

    Videos below the file's folder are written relative to it, so that the folder can be moved; others stay absolute.

    Raises ValueError when two moments share a qid or there is none: such a file could not be read back.
    """
    path = Path(path)
    folder = os.path.abspath(path.parent)
    rows: dict[str, str] = {}
    for moment in moments:
        if moment.qid in rows:
            raise ValueError(f"qid {moment.qid!r} is given twice; give every question a qid of its own")
        row = moment_row(moment) | {"video": _below(moment.video, folder)}
        rows[moment.qid] = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    if not rows:
        raise ValueError(f"no moment to write to {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(rows.values()), encoding="utf-8", newline="\n")


def require_videos(moments: Sequence[Moment]) -> None:
    """Check before any work that every video is a file with something in it; a stat each, nothing is decoded.

    Raises LabError naming the first bad video, its question, and how many are bad.
    """
    bad: list[tuple[Moment, str]] = []
    for moment in {moment.video: moment for moment in reversed(moments)}.values():
        try:
            if not os.path.isfile(moment.video):
                bad.append((moment, "is not a file" if os.path.exists(moment.video) else "is not there"))
            elif os.path.getsize(moment.video) == 0:
                bad.append((moment, "is empty"))
        except OSError as error:
            bad.append((moment, f"cannot be looked at ({error.strerror})"))
    if bad:
        moment, reason = bad[-1]
        others = f" (and {len(bad) - 1} other videos are missing or empty)" if len(bad) > 1 else ""
        step = "put the file there or correct 'video' in the moments file"
        if command := download_command(moment.source):
            step += f"; {command} fetches what its authors publish, and `labkit moments ... --videos DIR` finds it in there"
        raise LabError(f"video {moment.video} of question {moment.qid!r} {reason}{others}; {step}")


def download_command(source: str) -> str:
    """The command that fetches the videos of a moment's `source`; empty where there is none.

    >>> download_command("tvgbench/anet")
    "'hf download Boshenxx/TimeR1-Dataset --repo-type dataset'"
    >>> download_command("mine")
    ''
    """
    return next((DOWNLOADS[part] for part in source.split("/") if part in DOWNLOADS), "")


def benchmarks_by_id(videos: Iterable[str]) -> dict[str, str]:
    """The benchmark that each of a file's videos belongs to, by its id; "" where none is known by it.

    Charades' ids are five random characters: where all share their first two somebody has numbered videos of their own.

    >>> benchmarks_by_id(["v_uqiMw7tQ1Cc", "AO8RW.mp4", "NUsG9BgSes0_210.0_360.0", "s13-d21.avi", "kitchen"]).values()
    dict_values(['activitynet', 'charades-sta', 'qvhighlights', 'tacos', ''])
    >>> benchmarks_by_id(["CLIP1", "CLIP2"])
    {'CLIP1': '', 'CLIP2': ''}
    """
    benchmarks = {video: _benchmark_by_id(stem_of(video)[0]) for video in videos}
    charades = {stem_of(video)[0] for video, benchmark in benchmarks.items() if benchmark == "charades-sta"}
    if len(charades) > 1 and len(os.path.commonprefix(list(charades))) > 1 or all(map(str.isdigit, charades)):
        benchmarks = {
            video: "" if benchmark == "charades-sta" else benchmark for video, benchmark in benchmarks.items()
        }
    return benchmarks


def _benchmark_by_id(stem: str) -> str:
    if (window := trim_window(stem)) and window[2] - window[1] == _QVHIGHLIGHTS_CLIP:
        return "qvhighlights"
    if stem.startswith("v_"):
        return "activitynet"
    if _TACOS.fullmatch(stem):
        return "tacos"
    return "charades-sta" if _CHARADES.fullmatch(stem) else ""


def parse_json_line(line: bytes) -> dict[str, Any]:
    """The JSON object on one line."""
    shape = 'write one object a line, such as {"qid": "q1", ...}'
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_refuse_repeated_keys)
    except UnicodeDecodeError:
        raise BadField("line", line, "is not UTF-8", "save the file as UTF-8") from None
    except BadField:
        raise
    except (ValueError, RecursionError) as error:
        text = line.decode("utf-8").strip()
        raise BadField("line", text, f"is not JSON ({getattr(error, 'msg', 'out of range')})", shape) from None
    if not isinstance(row, dict):
        raise BadField("line", row, "is not a JSON object", shape)
    return row


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in pairs:
        if name in row:
            raise BadField(name, value, "is given twice", "keep one of the two")
        row[name] = value
    return row


def moment_of(row: dict[str, Any], folder: Path) -> Moment:
    """The moment of a line's object; a relative video is resolved against `folder`. Raises BadField."""
    if not {"video", "duration"} & set(row) and any(all(name in row for name in names) for names in ANSWERS):
        raise BadField("line", row, "is a prediction, not a moment", SCORE_STEP)
    for name, value in row.items():
        if name not in FIELDS:
            near = nearest(name, FIELDS)
            step = f"did you mean {near!r}?" if near else f"the fields are {', '.join(FIELDS)}"
            raise BadField(name, value, "is not a field of a moment", step)
    for name in REQUIRED:
        if name not in row:
            raise BadField(name, None, "is missing", "add it to the line")
    windows = row["windows"]
    if not isinstance(windows, list) or windows and not isinstance(windows[0], list):
        raise BadField("windows", windows, "is not a list of windows", "write [[start, end], ...] in seconds")
    if not windows:
        raise BadField("windows", [], "holds no window", "write at least one [start, end] or take the line out")
    video, source = row["video"], row.get("source", "")
    if not isinstance(source, str):
        raise BadField("source", source, "is not text", "write it as text or leave it out")
    options = row.get("options") or []
    if not isinstance(options, list):
        raise BadField("options", options, "is not a list", 'write ["...", ...] or leave it out')
    # An empty or ill-typed video stays as it is, for Moment to name it by what stands in the file.
    if isinstance(video, str) and video.strip():
        if is_foreign_path(video):
            step = "write where it lies here, or `labkit moments FILE --videos DIR --write NEW.jsonl`"
            raise BadField("video", video, "is a link, or a path of another system", step)
        video = local_path(video, folder)
    return Moment(
        qid=row["qid"],
        video=video,
        query=row["query"],
        windows=tuple(_span("windows", window) for window in windows),
        duration=_number("duration", row["duration"]),
        clip=None if row.get("clip") is None else _span("clip", row["clip"]),
        source=source,
        options=tuple(options),
        choice=row.get("choice"),
        as_set=row.get("as_set", False),
    )


def _span(field: str, value: object) -> Span:
    if not isinstance(value, list) or len(value) != 2:
        raise BadField(field, value, "is not a pair", "write [start, end] in seconds")
    start, end = (_number(field, number, value) for number in value)
    if start >= end:
        raise BadField(field, value, "does not end after its start", "write [start, end] with start below end")
    return Span(start, end)


def _number(field: str, value: object, shown: object = None) -> float:
    """`value` as seconds; `shown` is what the error quotes when the number stands inside a pair."""
    # True is an int for Python, not for a person who writes a moments file.
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
        return float(value)
    shown = value if shown is None else shown
    raise BadField(field, shown, "is not a number of seconds", "write plain finite numbers")


def _pair(span: Span) -> list[float]:
    return [span.start, span.end]


def _below(video: str, folder: str) -> str:
    """`video` relative to `folder` when it lies in there, with forward slashes; otherwise as it is."""
    relative = os.path.relpath(video, folder) if video.startswith(folder + os.sep) else video
    return relative.replace(os.sep, "/") if relative is not video else video
