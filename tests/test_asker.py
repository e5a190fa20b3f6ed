"""A video and a sentence in, a chain over the timeline out: nothing is made up where nobody has told the truth."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import nbformat
import pytest

import labkit
from labkit.asker import Asker
from labkit.chain.anchors import parse, render
from labkit.chain.metrics import chain_figures
from labkit.chain.spans import Span
from labkit.cli import main
from labkit.embedded.model import write_untrained
from labkit.errors import LabError
from labkit.params import Params
from labkit.policy.model import load_policy
from labkit.views.figures.chain_strip import chain_picture
from tests.asked import asked_chains
from tests.tiny import write_clip

ROOT = Path(__file__).parents[1]
VIDEO = ROOT.parent / "shared" / "real" / "videos" / "OHOFG.mp4"
CHAIN = render([Span(2, 8), Span(3, 7)], Span(3, 6), ["at first", "or rather", "so"])
TEXTS = (CHAIN, render([Span(5, 8)], Span(5, 7)), "<think>no idea", render([], Span(9, 12)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    write_clip(folder / "film.mp4")
    write_untrained(folder / "standin", "qwen2_5_vl")
    return folder


def chains(folder, texts=TEXTS):
    return asked_chains(folder, texts)


def page(asked):
    return json.loads(gzip.decompress(asked.explorer.data))


def test_a_question_without_truth_has_neither_iou_nor_reward_nor_a_class_that_would_need_one(folder):
    asked = chains(folder)
    packed = page(asked)
    columns = packed["columns"]
    assert packed["moments"][0]["windows"] == []
    assert columns["ious"] == [[None] * 3, [None] * 2, [], [None]]
    assert columns["total"] == [None] * 4 and columns["earned"] == [[None] * 4] * 4
    assert [packed["names"]["kind"][at] for at in columns["kind"]] == ["", "", "no_answer", "past_the_end"]
    assert asked.explorer.selected == 0, "the greedy chain is shown first"
    assert all(math.isnan(row.answer_iou) for row in asked.explorer._rows)
    assert asked.explorer._poster(), "the still picture is drawn without a truth"
    words = json.dumps(chain_picture(asked.rollouts[0], asked.moment).to_plotly_json(), default=str)
    assert (
        "not told" in words
        and "nan" not in words.lower().replace("anno", "")
        and "IoU" not in words.split("there is no")[0]
    )


def test_nothing_can_be_scored_or_measured_without_a_truth(folder):
    asked = chains(folder)
    for text in (CHAIN, "<think>no idea"):
        with pytest.raises(ValueError, match="no ground-truth window"):
            labkit.score_chain(parse(text), (), 8.0)
        with pytest.raises(ValueError, match="no ground-truth window"):
            chain_figures([parse(text)], [()], [8.0])
    with pytest.raises(LabError, match="moment 'asked' has no window"):
        labkit.score(asked.rollouts, [asked.moment])
    with pytest.raises(ValueError, match="holds no window"):  # a file is there to be learnt from or scored against
        labkit.data.moments.moment_of(
            {"qid": "q", "video": "a.mp4", "query": "x", "windows": [], "duration": 1}, folder
        )


def test_text_and_bars_in_unicode_and_in_ascii(folder):
    asked = chains(folder)
    lines = asked.text(46).splitlines()
    assert lines[0] == "“a door opens”  film.mp4"
    # 20 characters are 8 s: anchor 1 from 2 to 8 is the characters 5 to 20
    assert lines[2] == "anchor 1  ·····▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒  2.0 – 8.0 s"
    assert lines[4] == "answer    ·······████████·····  3.0 – 6.0 s"
    plain = asked.text(46, ascii_only=True)
    assert plain.isascii() and "anchor 1  .....===============  2.0 - 8.0 s" in plain
    assert "none, no think" in plain and "IoU 0.5 or more" in " ".join(plain.split())
    assert "toy world" in " ".join(plain.split())


def test_the_same_question_has_the_same_chains_and_the_first_is_the_greedy_one(folder, monkeypatch):
    monkeypatch.chdir(folder)
    terms = {"model": "standin", "max_new_tokens": 24}
    first = labkit.ask("film.mp4", "a door opens", samples=3, **terms)
    again = labkit.ask(folder / "film.mp4", " a door  opens ", samples=3, **terms)
    alone = labkit.ask("film.mp4", "a door opens", **terms)
    assert [each.text for each in first.rollouts] == [each.text for each in again.rollouts]
    assert [each.text for each in alone.rollouts] == [first.rollouts[0].text]
    assert len({each.text for each in first.rollouts[1:]}) > 1
    assert first.moment.duration == pytest.approx(8.0, abs=0.3) and not first.moment.has_truth
    policy = load_policy("standin", device="cpu")
    lab = Asker(Params(max_new_tokens=24), "query", folder / "frames", folder / "sheets")
    assert lab.ask(lambda: policy, "film.mp4", "a door opens").rollouts[0].text == first.rollouts[0].text


def test_a_run_is_asked_with_its_own_parameters_and_model(folder, tmp_path, monkeypatch):
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    lab = labkit.Lab.open(Params(run="r", model=str(folder / "standin"), max_new_tokens=8))
    asked = lab.ask(folder / "film.mp4", "a door opens", lab.policy(), samples=2)
    assert [each.completion_tokens <= 8 for each in asked.rollouts] == [True] * 3
    assert asked.sheets == lab.sheets and "model " + str(folder / "standin") in asked.notes[0]


@pytest.mark.parametrize("text", [None, "Say nothing of {query}."])
def test_a_run_is_asked_with_the_prompt_that_it_has_kept(text, folder, tmp_path, monkeypatch):
    for name in ("notebooks", "params"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    prompt = tmp_path / "mine.txt"
    prompt.write_text("When does {query} happen?")
    lab = labkit.Lab.open(Params(run="r", model=str(folder / "standin"), prompt="mine.txt", max_new_tokens=8))
    prompt.unlink() if text is None else prompt.write_text(text)
    shown = []
    monkeypatch.setattr("labkit.asker.Asker._answers", lambda self, *_: shown.append(self.template) or [])
    lab.ask(folder / "film.mp4", "a door opens", lab.load("base"))
    assert shown == ["When does {query} happen?"]


def test_only_another_model_is_loaded_anew_and_never_beside_the_one_before(folder, monkeypatch):
    monkeypatch.chdir(folder)
    loaded = []

    def load(name, **terms):
        assert not labkit.asker._newest, "two may not fit into memory"
        loaded.append((Path(name).name, terms["dtype"]))
        return load_policy(name, **terms)

    monkeypatch.setattr("labkit.asker.load_policy", load)
    labkit.asker._newest.clear()
    for terms in ({}, {"max_frames": 4}, {"max_new_tokens": 4}, {"dtype": "bfloat16"}, {"model": "embedded"}):
        labkit.ask("film.mp4", "a door opens", **{"model": "standin", "max_new_tokens": 8, **terms})
    assert loaded == [("standin", "float32"), ("standin", "bfloat16"), ("embedded", "float32")]


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"sentence": " "}, "query.* is empty"),
        ({"video": "gone.mp4"}, "'gone.mp4' is not there"),
        ({"samples": 257}, "samples = 257"),
        ({"prompt": "options"}, "options"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_before_a_model_is_loaded(folder, monkeypatch, question, said):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("labkit.asker._policy", lambda params: pytest.fail("it was loaded"))
    with pytest.raises(LabError, match=said):
        labkit.ask(**{"video": "film.mp4", "sentence": "a door opens", "model": "standin", **question})


@pytest.mark.slow
def test_a_page_that_works_offline_in_one_command_from_the_real_video(folder, capsys, monkeypatch):
    if not VIDEO.exists():
        pytest.skip(f"THE REAL VIDEO IS ABSENT ({VIDEO}): asking about a real video was NOT tested")
    monkeypatch.chdir(folder)
    words = [
        "ask",
        str(VIDEO),
        "a person opens the door",
        "--model",
        "standin",
        "--samples",
        "2",
        "--html",
        "answer.html",
    ]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "OHOFG.mp4" in said and "sample 2" in said and "answer.html: the same as a page" in said
    html = (folder / "answer.html").read_text()
    assert "<title>“a person opens the door” in OHOFG.mp4</title>" in html and "toy world" in html
    state = json.loads(html.partition('<script type="application/json">')[2].partition("</script>")[0])
    assert state["sheets"]["0"] and "http" not in html.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gone.mp4", "x"], ["'gone.mp4' is not there", "give a video file"]),
        (["standin", "x"], ["'standin' is a folder", "give a video file"]),
        (["notes.mp4", "x"], ["notes.mp4"]),
        (["film.mp4", " "], ["query", "is empty", "fill it in"]),
        (["film.mp4", "x", "--model", "./nobody"], ["nobody", "not a directory", "hub id"]),
        (["film.mp4", "x", "--model", "hollow"], ["hollow", "no weights"]),
        (["film.mp4", "x", "--samples", "999"], ["samples = 999", "[0, 256]"]),
        (["film.mp4", "x", "-p", "max_frame", "8"], ["did you mean 'max_frames'?"]),
        (["film.mp4", "x", "--prompt", "nothing"], ["'nothing'", "anchors"]),
        (["film.mp4", "x", "--html", "no/such/folder/a.html"], ["no/such/folder/a.html", "its folder is not there"]),
    ],
)
def test_bad_input_is_one_error_that_names_the_thing_and_the_next_step(folder, capsys, monkeypatch, words, said):
    monkeypatch.chdir(folder)
    (folder / "notes.mp4").write_text("no film at all")
    (folder / "hollow").mkdir(exist_ok=True)
    (folder / "hollow/config.json").write_text("{}")
    assert main(["ask", *words, "-p", "max_new_tokens", "8"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("labkit: ") and all(each in error for each in said), error


def test_the_box_asks_when_a_sentence_is_entered_and_says_what_cannot_be_asked(folder, monkeypatch):
    monkeypatch.chdir(folder)
    box = labkit.ask_box("standin", samples=1, videos=".", max_new_tokens=8)
    assert str(folder / "film.mp4") in box.video.options
    box.sentence.value = "a door opens"
    assert "give a video" in box.status.value and box.asked is None
    box.upload.value = ({"name": "up.mp4", "type": "video/mp4", "size": 1, "last_modified": datetime(2026, 1, 1),
                         "content": memoryview((folder / "film.mp4").read_bytes())},)  # fmt: skip
    assert box.video.value.endswith("up.mp4")
    box.ask()
    assert len(box.asked.rollouts) == 2 and box.children[-1] is box.asked.explorer
    assert "model standin" in box.status.value and not box.button.disabled
    box.video.value = "gone.mp4"
    box.button.click()
    assert "is not there" in box.status.value and len(box.children) == 3


def test_the_box_asks_once_where_a_click_follows_what_it_has_just_answered(folder, monkeypatch):
    monkeypatch.chdir(folder)
    asked, answer = [], chains(folder)
    monkeypatch.setattr("labkit.asker.ask", lambda video, sentence, **_: asked.append(sentence) or answer)
    box = labkit.ask_box("standin", videos=".")
    box.video.value = "film.mp4"
    box.sentence.value = "a door opens"  # the cursor leaves the box for the button
    box.button.click()
    assert asked == ["a door opens"] and box.children[-1] is answer.explorer
    box.sentence.value = "a door shuts"
    box.terms["samples"] = 2
    box.button.click()
    os.utime(folder / "film.mp4", (1, 1))
    box.button.click()
    assert asked == ["a door opens", *["a door shuts"] * 3], "another sentence, other terms, another file"


def test_the_box_shows_what_went_wrong_whatever_it_is(folder, monkeypatch):
    monkeypatch.chdir(folder)
    box = labkit.ask_box("standin", videos=".")
    box.video.value = "film.mp4"

    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr("labkit.asker.ask", fail)
    with pytest.raises(MemoryError):
        box.sentence.value = "a door opens"
    assert "MemoryError: no room" in box.status.value and not box.button.disabled and box.asked is None


@pytest.mark.slow
def test_the_notebook_runs_and_shows_box_and_explorer(tmp_path):
    command = [
        sys.executable,
        "-m",
        "nbconvert",
        "--to",
        "notebook",
        "--execute",
        str(ROOT / "notebooks/00_ask.ipynb"),
    ]
    environment = os.environ | {"JUPYTER_DATA_DIR": str(tmp_path / "data"), "PYTHONWARNINGS": "default"}
    done = subprocess.run([*command, "--output-dir", str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    outputs = [each for cell in nbformat.read(tmp_path / "00_ask.ipynb", 4).cells for each in cell.get("outputs", [])]
    kinds = [kind for each in outputs for kind in each.get("data", {})]
    assert kinds.count("application/vnd.jupyter.widget-view+json") == 2
    assert not [each for each in outputs if each.output_type in ("error", "stream")], outputs
