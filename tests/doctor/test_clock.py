"""The clock audit: five clips, every family that is told seconds; labkit's row against its prompts, rules against code."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from labkit.cli import main
from labkit.data.moments import Moment, Span
from labkit.data.video.frames import FrameCache
from labkit.doctor import clock as clocks
from labkit.doctor.clock import ToldClock, audit_clock, told_seconds
from labkit.doctor.clock_programs import RULES, frame_numbers
from labkit.params import Params, read_yaml
from labkit.policy.families import FAMILIES
from labkit.policy.inputs import FrameSampling, bare_clip, build_prompt, frame_times_and_size
from tests import tiny

PARAMS = Params.build({"fps": 2.0, "max_frames": 768})
CLOCKED = [kind for kind, family in FAMILIES.items()
           if told_seconds(family, SimpleNamespace(**clocks.PUBLISHED), [0.5, 2.5], 2.0) is not None]  # fmt: skip


def clip(path: Path, ticks: list[int], base: Fraction) -> Path:
    """A tiny film whose frame k is shown at `ticks[k] * base` seconds; only its packets are read here."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1 / base)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for tick in ticks:
            frame.pts, frame.time_base = tick, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


# Name, frames a second and seconds, and the worst of each way with Qwen2.5-VL and Qwen3-VL: early (-) or late (+), None for right.
CLIPS = [
    ("25 fps", Fraction(25), 60, {"lmms-eval": (-1.5, None), "qwen-vl-utils": (None, None), "transformers": (None, None)}),
    ("29.97 fps", Fraction(30000, 1001), 60, {"lmms-eval": (-1.7, None), "qwen-vl-utils": (-0.5, None), "transformers": (None, None)}),
    ("60 fps", Fraction(60), 60, {"lmms-eval": (-1.5, None), "qwen-vl-utils": (None, None), "transformers": (None, None)}),
    # 768 frames: with the ends among them, each lies 7200 / 767 s behind the one before it, and is told to lie 7200 / 768 s behind it.
    ("two hours", Fraction(1, 5), 7200, {"lmms-eval": (-210, None), "qwen-vl-utils": (-6.0, None), "transformers": (None, None)}),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clock")


@pytest.fixture(scope="module")
def uneven(folder):
    """30 frames a second, then 5, then 30 again."""
    seconds = [*np.arange(0, 12, 1 / 30), *np.arange(12, 48, 1 / 5), *np.arange(48, 60, 1 / 30)]
    return clip(folder / "uneven.mp4", [round(1000 * second) for second in seconds], Fraction(1, 1000))


def worst(row: ToldClock) -> float | None:
    return float(row.errors[np.abs(row.errors).argmax()]) if row.wrong else None


def rows(audit, title):
    return {row.way.rpartition(" ")[0] or row.way: row for row in audit.rows if row.family == title}


@pytest.mark.parametrize(("name", "rate", "seconds", "expected"), CLIPS, ids=[case[0] for case in CLIPS])
def test_on_a_clip_of_even_rate_labkit_and_the_makers_are_right_and_others_drift(
    name, rate, seconds, expected, folder
):
    video = clip(folder / f"{name}.mp4", list(range(round(rate * seconds))), 1 / rate)
    audit = audit_clock(video, PARAMS, None, folder)
    assert "uneven" not in audit.title()
    for kind in CLOCKED:
        found = rows(audit, FAMILIES[kind].title)
        assert found["labkit"].wrong == 0
        for way, errors in expected.items() if kind in read_yaml(RULES)["vLLM"]["families"] else ():
            error = errors[kind != "qwen2_5_vl"]
            assert (
                (worst(found[way]) is None)
                if error is None
                else math.isclose(worst(found[way]), error, rel_tol=0.06, abs_tol=0.06)
            ), way
        if "qwen-vl-utils, bare" in found:  # twelve times too slow: 2 frames a second are taken for 24
            row = found["qwen-vl-utils, bare"]
            assert row.told[-1] == pytest.approx(len(row.told) / 12, abs=0.6) and row.wrong >= len(row.told) - 1


def test_on_a_clip_of_uneven_rate_only_timestamps_are_right(uneven, folder):
    audit = audit_clock(uneven, PARAMS, None, folder)
    assert "at uneven times" in audit.title()
    for row in audit.rows:
        # A frame's number divided by the mean rate is off by 12 s where 30 frames a second end.
        assert (row.wrong == 0) == (row.way == "labkit"), row.way
        assert row.way == "labkit" or abs(worst(row)) > 10


def test_a_time_is_wrong_by_what_lies_outside_the_frames_own_seconds():
    shown = np.array([[0.0, 0.5], [4.0, 4.5], [9.0, 9.5], [20.0, 20.5]])
    # Positions of half seconds: 3.5 stands for 3.5 to 4.0, the beginning of the frame; 8.0 is half a second too early.
    row = ToldClock("Qwen2.5-VL", "x", "", "", 8, shown, np.array([0.0, 3.5, 8.0, 22.0]), 0.0, 0.5)
    assert row.errors.tolist() == [0, 0, -0.5, 1.5]
    assert (row.wrong, row.verdict()) == (2, "1.5 s late at 20.0 s")


@pytest.mark.parametrize("kind", CLOCKED)
def test_labkits_row_is_what_its_prompt_tells(kind, folder):
    policy = tiny.policy(family=kind)
    video = tiny.write_clip(folder / f"{kind}.mp4", seconds=9.0, fps=6)
    moment, cache = Moment("q", str(video), "it moves", (Span(1, 2),), 9.0), FrameCache(folder / "frames")
    sampling = FrameSampling(2.0, 768, 28 * 28 * 4, 28 * 28 * 4)
    times, size = frame_times_and_size(policy, moment, cache, sampling)
    shape = bare_clip(policy, times, size, sampling)
    prompt = build_prompt(policy, moment, "query", shape, features=object())
    row = audit_clock(video, PARAMS, kind, folder).rows[0]
    text = policy.tokenizer.decode(prompt.ids)
    vision = prompt.ids == getattr(policy.base.config, policy.family.video_token)
    if clocked := re.findall(r"Frame from (\d+):(\d+):", text):
        assert row.told.tolist() == [60 * int(minute) + int(second) for minute, second in clocked]
    elif told := re.findall(r"<([\d.]+) seconds>", text):
        assert row.told.tolist() == [float(each) for each in told]
    else:
        positions = prompt.positions[0][vision]
        assert row.told.tolist() == ((positions.unique() - positions.min()) / 2).tolist()


def test_rules_of_frames_are_those_of_the_transformers_that_is_installed():
    """By the text of its functions: importing their modules needs torchvision."""
    import torch

    rule = read_yaml(RULES)["transformers"]
    for kind, module in (("qwen2_5_vl", "qwen2_vl"), ("qwen3_vl", "qwen3_vl")):
        parent = importlib.util.find_spec("transformers").submodule_search_locations[0]
        source = ast.parse(Path(parent, "models", module, f"video_processing_{module}.py").read_text(encoding="utf-8"))
        found = next(
            node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "sample_frames"
        )
        names = {"math": math, "np": np, "torch": torch, "VideoMetadata": object}
        exec(
            compile(ast.Module([ast.parse("from __future__ import annotations").body[0], found], []), module, "exec"),
            names,
        )
        own = SimpleNamespace(num_frames=None, fps=2, temporal_patch_size=2, min_frames=4, max_frames=768)
        for total, rate in ((1500, 25.0), (1798, 30000 / 1001), (3600, 60.0), (250, 10.0), (7, 5.0), (14400, 2.0)):
            theirs = names["sample_frames"](own, SimpleNamespace(total_num_frames=total, fps=rate), fps=2)
            assert frame_numbers(rule | rule["families"][kind], total, rate).tolist() == list(map(int, theirs)), (
                kind,
                total,
            )


def test_the_audit_as_a_page_and_for_programs(uneven, tmp_path, capsys):
    page = tmp_path / "clock.html"
    assert main(["doctor", "--clock", str(uneven), "--model", "qwen2_5_vl", "--html", str(page), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["way"].split()[0] for row in data["rows"]] == [
        "labkit",
        "transformers",
        "qwen-vl-utils",
        "qwen-vl-utils,",
        "vLLM",
        "lmms-eval",
    ]
    assert {len(row["told"]) for row in data["rows"]} == {len(row["error"]) for row in data["rows"]}
    text = page.read_text(encoding="utf-8")
    assert "light dark" in text and "http" not in text.replace("http://www.w3.org", "")
    leaning = re.findall(r'class="wrong" x1="([\d.]+)" y1="\S+" x2="([\d.]+)"', text)
    assert leaning and all(above != below for above, below in leaning)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clock", "nowhere.mp4"], "nowhere.mp4' is not there; give a video file"),
        (["--clock", "notes.mp4"], "cannot be opened"),
        (["--clock", "uneven.mp4", "--model", "./none"], "none' is not a directory"),
        (["--clock", "uneven.mp4", "--model", "nobody/nothing"], "nobody/nothing is not on this machine"),
        (["--clock", "uneven.mp4", "--model", "qwen2_vl"], "a Qwen2-VL, which is told no seconds"),
        (["--clock", "uneven.mp4", "--html", "no/such/folder.html"], "cannot be written"),
        (["--clock", "uneven.mp4", "-p", "fps", "0"], "fps"),
        (["--model", "qwen2_5_vl"], "--model goes with --clock"),
        (["--html", "a.html"], "--html goes with --clock"),
        ([], "give a params file"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, words, uneven, capsys, monkeypatch):
    monkeypatch.chdir(uneven.parent)
    (uneven.parent / "notes.mp4").write_text("no video")
    absolute = [str(uneven.parent / each) if each.endswith(".mp4") else each for each in arguments]
    assert main(["doctor", *absolute]) == 2
    assert re.search(words, capsys.readouterr().err)
