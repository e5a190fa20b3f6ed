"""The lab's data, rewards and comparisons; its models and training are walked by test_notebooks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from labkit.errors import LabError
from labkit.lab import Lab, Prediction
from labkit.params import DEFAULTS

SMALL = replace(DEFAULTS, world_train=2, world_validation=1, world_test=2)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    for folder in ("notebooks", "params"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_share_a_world_and_limits_cut_it(project):
    lab = Lab.open(SMALL)
    moments = lab.moments("train")
    clips = sorted((project / "outputs").glob("world-*/clips/*.mp4"))
    assert len(clips) == 5
    before = [clip.stat().st_mtime_ns for clip in clips]
    other = Lab.open(replace(SMALL, run="y", train_limit=3))
    assert other.moments("train") == moments[:3]
    assert [clip.stat().st_mtime_ns for clip in clips] == before
    assert lab.manifest["data"]["train"] == other.manifest["data"]["train"]


def test_a_clip_that_has_gone_is_named(project):
    lab = Lab.open(SMALL)
    Path(lab.moments("test")[0].video).unlink()
    with pytest.raises(LabError, match="is not there"):
        lab.moments("test")


def test_the_final_stage_gates_progress_and_pays_more_for_it(project):
    lab = Lab.open(DEFAULTS)
    first, final = lab.rewards(), lab.rewards(final=True)
    assert (first.weights["progress"], first.progress) == (0.5, "share")
    assert (final.weights["progress"], final.progress) == (2.0, "gated")


def test_the_constant_answer_is_fitted_on_train_and_measured_on_test(project):
    folder = project / "data"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(b"film")
    windows = {"train": Span(5, 10), "validation": Span(5, 10), "test": Span(5, 20)}
    for split, window in windows.items():
        moment = Moment(f"{split}1", str(folder / "v.mp4"), "a door opens", (window,), 20.0)
        write_moments([moment], folder / f"{split}.jsonl")
    lab = Lab.open(replace(DEFAULTS, data="data"))
    assert lab.constant() == pytest.approx(1 / 3)  # 5 to 10 s against 5 to 20 s


def test_a_model_that_has_not_come_to_be_names_its_notebook(project):
    lab = Lab.open(DEFAULTS)
    with pytest.raises(LabError, match="run notebooks/03_sft.ipynb first"):
        lab.policy("sft")
    with pytest.raises(LabError, match="base has not been evaluated .* run notebooks/01_grpo.ipynb first"):
        lab.measured("base")


def test_a_harvest_that_kept_nothing_says_what_to_change(project):
    with pytest.raises(LabError, match="the harvest kept no trace.*lower min_answer_iou"):
        Lab.open(DEFAULTS).train_sft(None, [])  # type: ignore[arg-type]


def measure(lab: Lab, miou: float) -> None:
    lab.moments("test")
    row = {"figures": {"miou": miou}, "predictions": [["q", "text", "ok"]]}
    (lab.folder("04_grpo_final") / "grpo_final-greedy.json").write_text(json.dumps(row))


def test_other_runs_stand_beside_this_one_when_they_share_the_test_split(project):
    measure(Lab.open(replace(SMALL, run="other")), 0.7)
    measure(Lab.open(replace(SMALL, run="elsewhere", world_seed=1)), 0.9)
    lab = Lab.open(replace(SMALL, compare=("outputs/other",)))
    lab.moments("test")
    assert lab.others()["other"].figures["greedy"] == {"miou": 0.7}
    assert lab.others()["other"].greedy == [Prediction("q", "text", "ok")]
    lab = Lab.open(replace(SMALL, compare=("outputs/elsewhere",)))
    with pytest.raises(LabError, match="elsewhere' was tested on other data"):
        lab.others()
