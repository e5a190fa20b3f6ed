"""`labkit explore`: what it prints, and the page that it writes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.chain.spans import Span
from labkit.cli import main
from labkit.data.moments import Moment, read_moments, write_moments
from labkit.scoring.predictions import write_predictions
from labkit.views import side_by_side
from labkit.views.side_by_side import explore_files

CHAIN = "<think></think><answer>{} to {}</answer>"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Moments, and two models' answers to them: the second leaves one out, and is far off on another."""
    moments = [Moment(f"q{k}", str(tmp_path / f"v{k}.mp4"), f"thing {k}", (Span(2, 4),), 8.0) for k in range(3)]
    write_moments(moments, tmp_path / "m.jsonl")
    write_predictions(tmp_path / "ours.jsonl", {f"q{k}": CHAIN.format(2, 4) for k in range(3)})
    rows = [
        {"qid": k, "vid": f"v{k}", "query": f"thing {k}", "pred_relevant_windows": [[2 + 2 * k, 4 + 2 * k]]}
        for k in (1, 0)
    ]
    (tmp_path / "detr.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [str(tmp_path / "ours.jsonl"), str(tmp_path / "detr.jsonl"), "--moments", str(tmp_path / "m.jsonl")]


def test_it_prints_the_table_how_each_was_joined_and_where_they_differ_most(
    files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *files]) == 0
    text = capsys.readouterr().out
    table, ours, detr, head, first, *_ = text.split("\n\n")
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [
        ["ours", "labkit", "100.0"],
        ["detr", "qvhighlights", "33.3"],
    ]
    assert "joined 3 by qid; every moment answered" in ours
    assert "written by moment_detr, lighthouse; joined 2 by video and query; 1 moment unanswered" in detr
    assert head == "Where they are furthest apart:"
    query, truth, own, theirs, seconds = first.splitlines()
    assert query == '"thing 1"  v1.mp4, q1'
    # 54 characters for 8 s: 2 to 4 s are 13 to 27 of them, 4 to 6 s are 27 to 40.
    assert truth.split()[1] == "·" * 13 + "▒" * 14 + "·" * 27
    assert own.split()[1] == "·" * 13 + "█" * 14 + "·" * 27 and own.endswith("2.0 to 4.0 s     IoU 1.00")
    assert theirs.split()[1] == "·" * 27 + "█" * 13 + "·" * 14 and theirs.endswith("IoU 0.00")
    assert seconds.split() == ["0.0", "2.0", "4.0", "6.0", "8.0", "s"]
    assert "detr" in text.split("not answered")[0].splitlines()[-1]
    assert "--html PAGE.html writes a page" in text


@pytest.mark.parametrize(
    ("known", "head", "said", "first"),
    [
        (
            (),
            "The first queries:",
            "No moment has a truth, so that nothing is scored.\nours: 3 answers, joined 3 by qid",
            "q0",
        ),
        (
            (0,),
            "Where they are furthest apart:",
            "2 of the 3 moments have no truth: the 3 answers to them are shown and not scored.",
            "q0",
        ),
    ],
)
def test_moments_without_a_truth_are_shown_and_counted_but_not_scored(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    known: tuple[int, ...],
    head: str,
    said: str,
    first: str,
) -> None:
    moments = read_moments(tmp_path / "m.jsonl")
    asked = [m if k in known else replace(m, windows=()) for k, m in enumerate(moments)]
    monkeypatch.setattr(side_by_side, "load_moments", lambda name, videos: asked)  # files of moments hold none today
    parts = explore_files(files[:2], files[3], ascii_only=True).split("\n\n")
    place = parts.index(head)
    assert said in "\n\n".join(parts[:place]) and "have no moment" not in "\n\n".join(parts[:place])
    assert parts[place + 1].splitlines()[0].endswith(f", {first}")
    assert len(parts[place + 1 : -1]) == (1 if known else 3), "only queries on which models can be apart"
    assert set(parts[place + 1].splitlines()[-2].split()[1]) == {"#", "."}, "ASCII alone"
    assert "\n\n".join(parts).isascii()


def test_long_labels_are_cut_where_they_are_alike(files: list[str], tmp_path: Path) -> None:
    for seed in (1, 2):
        shutil.copy(files[0], tmp_path / f"qwen2.5-vl-3b-anchors-seed{seed}.jsonl")
    text = explore_files(sorted(map(str, tmp_path.glob("qwen*"))), files[3])
    assert "\nqwen2.5-vl-...chors-seed1 " in text and "\nqwen2.5-vl-...chors-seed2 " in text


def test_the_page_holds_all_chains_also_without_videos(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["explore", *files, "--html", str(page)]) == 0
    assert "5 chains, " in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    before = html.split("<script")[0]
    assert "<title>ours, detr on m.jsonl</title>" in html and "data-labkit" in html
    assert str(tmp_path) not in before and "http" not in before, "no path of a disk, no network"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.jsonl"], "gone.jsonl' can't be read (No such file or directory); check the path"),
        (["--rules", "mine"], "rules 'mine': "),
        (["--html", "/proc/none/x.html"], "'/proc/none/x.html' cannot be written"),
    ],
)
def test_bad_input_is_one_message(
    files: list[str], capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert (
        main(["explore", *arguments, *files] if arguments[0] == "gone.jsonl" else ["explore", *files, *arguments]) == 2
    )
    assert message in capsys.readouterr().err
