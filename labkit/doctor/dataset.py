"""Data checks: every row of the moments files, every video, and the number of tokens that a clip has."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple

from labkit.data import moments as rows
from labkit.data.moments import BadField, Moment
from labkit.data.video.frames import sample_times
from labkit.data.video.probe import CLOCK_RESET, VideoCheck, check_videos, stat_video
from labkit.data.video_index import SUFFIXES
from labkit.doctor.findings import Finding
from labkit.params import Params
from labkit.policy.families import Geometry
from labkit.table import Table

SPLITS = ("train", "validation", "test")
# Tolerance in seconds: containers round the duration of the last frame differently.
_SLACK = 0.1
# A video that is longer than the annotated duration by more than this fraction is probably another one.
_SHARE_UNSEEN = 0.05
_NEXT_STEPS = {
    "missing": ("is not there", "put the file there or correct 'video' in the moments file"),
    "empty": ("is empty (0 bytes)", "copy or download it again"),
    "unreadable rights": ("may not be read", "give it a read bit: chmod a+r"),
    "not a video": ("is not a video", "replace the file, or convert it to H.264 mp4"),
    "audio only": ("has an audio stream but no video stream", "download it again with its video stream"),
    "truncated": ("is truncated", "copy or download it again"),
    "hangs": ("hangs every decoder that opens it", "replace the file, or convert it to H.264 mp4"),
    "crashed": ("kills the process that opens it", "replace the file, or convert it to H.264 mp4"),
}
_KINDS = {"missing": "missing video", "empty": "empty video", "truncated": "truncated video"}


class ClipCost(NamedTuple):
    """Frames and tokens of one clip."""

    seconds: float
    frames: int
    fps: float
    """Frames per second that the model sees: less than `fps` where `max_frames` limits them."""
    size: tuple[int, int]
    """Height and width at the model."""
    tokens: int


@dataclass
class DataReport:
    """Data of a run: usable rows, clips, videos and findings."""

    moments: dict[str, list[Moment]] = field(default_factory=dict)
    """Usable rows by split, after the limits."""
    clips: dict[str, list[ClipCost]] = field(default_factory=dict)
    """One for each clip of a split."""
    queries: dict[str, int] = field(default_factory=dict)
    videos: dict[str, VideoCheck] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def table(self) -> Table:
        """The splits and their sizes."""
        lines = []
        for split, clips in self.clips.items():
            if clips:
                seconds, fps, frames, tokens = zip(
                    *((c.seconds, c.fps, c.frames, c.tokens) for c in clips), strict=True
                )
                lines.append((
                    split, f"{self.queries[split]:,}", f"{len(clips):,}", _range(seconds, "{:.1f}"), _range(fps, "{:.2f}"),
                    _range(frames, "{:.0f}"), _range(tokens, "{:,.0f}"),
                ))  # fmt: skip
        head = ("split", "queries", "clips", "seconds", "frames/s seen", "frames", "video tokens")
        return Table("data", head, lines, "a range runs from the least to the most, with the median between them")


def inspect_folder(
    folder: Path, params: Params, vision: Geometry, *, quick: bool, cache: Path,
    on_video: Callable[[int, int], None] | None = None,
) -> DataReport:  # fmt: skip
    """Read every row and open every video (with `quick`: look for every video) of a data folder."""
    data = DataReport()
    all_moments: list[Moment] = []
    for split in SPLITS:
        usable, findings = check_rows(folder / f"{split}.jsonl")
        data.findings += findings
        all_moments += usable
        data.moments[split] = usable[: getattr(params, f"{split}_limit") or None]
        data.queries[split] = len(data.moments[split])
    paths = dict.fromkeys(moment.video for moment in all_moments)
    if quick:
        data.videos = {path: stat_video(path) for path in paths}
    else:
        data.videos = check_videos(paths, cache=cache, on_video=on_video)
    data.findings += video_findings(data.videos)
    data.findings += same_names(list(paths))
    data.findings += [each for moment in all_moments for each in label_findings(moment, data.videos[moment.video])]
    for split, moments in data.moments.items():
        clips = {(m.video, m.clip, m.duration): m for m in moments}
        data.clips[split] = [clip_cost(m.duration, data.videos[m.video], params, vision) for m in clips.values()]
    data.findings += _sampling_findings(data, params)
    return data


def check_rows(path: Path) -> tuple[list[Moment], list[Finding]]:
    """Usable rows of a moments file and a finding for every bad one, by the rules of `read_moments`, which stops at the first."""
    kind, findings = "moments file", []
    moments: list[Moment] = []
    try:
        for number, moment in rows.read_lines(path):
            if isinstance(moment, BadField):
                findings.append(Finding("error", "bad row", f"{path}, line {number}:", str(moment)))
            else:
                moments.append(moment)
    except OSError as error:
        step = "write it, or correct `data`"
        message = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        return [], [Finding("error", kind, str(path), message, step)]
    if not moments:
        findings.append(Finding("error", kind, str(path), "holds no usable row", "write one JSON object a line"))
    return moments, findings


def video_findings(videos: dict[str, VideoCheck]) -> list[Finding]:
    """Findings about each video by itself."""
    findings = []
    for path, check in videos.items():
        subject, notes = f"video {path}", "; ".join(check.notes)
        if check.state in _NEXT_STEPS:
            message, step = _NEXT_STEPS[check.state]
            if check.state == "truncated" and check.readable:
                message += f": {check.duration:.2f} s are left ({notes})"
                findings.append(Finding("warning", "truncated video", subject, message, step))
            else:
                message += f" ({notes})" if notes else ""
                findings.append(Finding("error", _KINDS.get(check.state, check.state), subject, message, step))
        elif check.codec == "av1" or check.backend == "pyav":
            note = f"is {check.codec}, read by {check.backend}" + (f" ({notes})" if notes else "")
            step = "nothing needs to be done: labkit reads it; many tools do not"
            kind = "AV1 video"
            if check.codec != "av1":
                fails = any(each.startswith("decord: ") for each in check.notes)
                kind = "read by PyAV because decord " + ("cannot read it" if fails else "shows wrong frames, or may")
                step = "nothing needs to be done: labkit reads it; tools that trust decord see other frames"
            findings.append(Finding("note", kind, subject, note, step))
        if resets := [each for each in check.notes if each.startswith(CLOCK_RESET)]:
            step = "cut the file there, or make sure that the times of its questions count on from there"
            findings.append(
                Finding("warning", "clock set back", subject, f"was joined from several recordings: {resets[0]}", step)
            )
        if check.wrong_suffix:
            step = f"rename it to {check.wrong_suffix}; labkit reads it as it is, other tools may not"
            findings.append(
                Finding("warning", "wrong suffix", subject, f"is no {Path(path).suffix or 'suffix'} file", step)
            )
        if check.variable_rate:
            note = f"has a variable frame rate ({check.fps:.2f} on average)"
            step = "nothing needs to be done: labkit samples by time; tools that count frames are off"
            findings.append(Finding("note", "variable frame rate", subject, note, step))
        if check.rotation:
            note = f"is stored rotated by {check.rotation} degrees and shown as {check.width}x{check.height}"
            findings.append(
                Finding("note", "rotated video", subject, note, "nothing needs to be done: labkit rotates it")
            )
    return findings


def label_findings(moment: Moment, check: VideoCheck) -> list[Finding]:
    """A question's times against the duration of its video."""
    if not check.duration:
        return []
    findings = []
    subject, true = f"question {moment.qid!r}:", check.duration
    video, left = f"video {moment.video} ends at {true:.2f} s", true - moment.start
    step = "correct the times or replace the video"
    if moment.clip is not None and left <= 0:
        message = f"its clip begins at {moment.clip.start:g} s and {video}"
        return [Finding("error", "clip past the video", subject, message, step)]
    if moment.clip is not None and moment.clip.end > true + _SLACK:
        message = f"its clip ends at {moment.clip.end:g} s and {video}"
        findings.append(Finding("warning", "clip past the video", subject, message, step))
    elif moment.duration > left + _SLACK:
        message = f"its duration is {moment.duration:g} s and {video}: the last frame is shown for what is missing"
        findings.append(Finding("warning", "duration past the video", subject, message, step))
    elif moment.clip is None and true - moment.duration > max(1.0, _SHARE_UNSEEN * true):
        message = f"its duration is {moment.duration:g} s and {video}: the rest is never shown"
        findings.append(Finding("warning", "duration short of the video", subject, message, step))
    for window in moment.windows:
        if window.end > left + _SLACK:
            how = "lies" if window.start >= left else "ends"
            message = f"its window [{window.start:g}, {window.end:g}] {how} past the end; {video}"
            message += f", {left:.2f} s into the clip" if moment.start else ""
            findings.append(Finding("warning", "window past the video", subject, message, step))
    return findings


def same_names(paths: Sequence[str]) -> list[Finding]:
    """Videos whose names differ only in folder or suffix, in the folders of the data's videos."""
    files = set(paths)
    for folder in {os.path.dirname(path) for path in paths}:
        try:
            with os.scandir(folder) as entries:
                files |= {entry.path for entry in entries if entry.name.lower().endswith(SUFFIXES)}
        except OSError:
            continue  # its videos are reported as missing
    stems: dict[str, list[str]] = {}
    for path in sorted(files):
        stems.setdefault(Path(path).stem, []).append(path)
    step = "keep one, or make sure that 'video' names the right one"
    return [
        Finding(
            "warning", "duplicate names", f"video {stem}", f"is the name of {len(same)} files: {', '.join(same)}", step
        )
        for stem, same in stems.items()
        if len(same) > 1
    ]


def clip_cost(duration: float, check: VideoCheck, params: Params, vision: Geometry) -> ClipCost:
    """Frames and tokens of one clip; of a video that was not opened, as large as `max_pixels` allows.

    Raises LabError where the model reads frames of one size alone, and the pixel budget is another.

    >>> cost = clip_cost(16.0, VideoCheck("ok", width=112, height=112), Params(), Geometry())
    >>> cost.frames, cost.fps, cost.size, cost.tokens
    (32, 2.0, (56, 56), 64)
    """
    from labkit.policy.inputs import frame_size
    from labkit.runs.workbench import frame_sampling

    times = sample_times(duration, params.fps, params.max_frames, vision.temporal)
    factor = vision.patch * vision.merge
    height, width = (check.height, check.width) if check.width else (9 * factor, 16 * factor)
    if not check.width:
        grow = (params.max_pixels / (height * width)) ** 0.5
        height, width = max(1, round(height * grow)), max(1, round(width * grow))
    size = frame_size("the model", vision, height, width, frame_sampling(params), len(times))
    frames = -(-len(times) // vision.temporal) * vision.temporal
    tokens = frames // vision.temporal * (size[0] // factor) * (size[1] // factor)
    step = float(times[1] - times[0]) if len(times) > 1 else 1 / params.fps
    return ClipCost(duration, len(times), round(1 / step, 6), size, tokens)


def _sampling_findings(data: DataReport, params: Params) -> list[Finding]:
    """Whether the frame rate of long clips is too low for the moments in question."""
    sparse = [clip for clips in data.clips.values() for clip in clips if clip.fps < params.fps * 0.99]
    if not sparse:
        return []
    lowest = min(clip.fps for clip in sparse)
    short = sum(
        max(window.length for window in moment.windows) * params.max_frames / moment.duration < 1
        for moments in data.moments.values()
        for moment in moments
        if moment.duration * params.fps > params.max_frames
    )
    message = f"binds for {len(sparse)} clips, which are seen at {lowest:.2f} frames a second or more instead of {params.fps:g}"
    message += f"; {short} questions ask for less time than lies between two frames" if short else ""
    return [Finding("warning" if short else "note", "sparse sampling", f"max_frames = {params.max_frames}", message,
                    "raise max_frames, at the price of tokens")]  # fmt: skip


def _range(values: Sequence[float], form: str) -> str:
    low, middle, high = (form.format(value) for value in (min(values), median(values), max(values)))
    return low if low == high else f"{low} .. {middle} .. {high}"
