"""Trackers get each step once, with figures and some chains, also when a stage goes on after a stop."""

from __future__ import annotations

import io
import json
import sys

import pytest
from PIL import Image

from labkit.errors import LabError
from labkit.params import DEFAULTS, Params
from labkit.runs.run import Run
from labkit.runs.trackers import StageLog, TrackedChain, Trackers

FAKE = """
import json, pathlib
calls = []
class Settings(dict):
    def __init__(self, **options): super().__init__(options)
class Image:
    def __init__(self, pixels, caption=""): self.shape, self.caption = pixels.shape, caption
def init(**options): calls.append(("init", options))
def log(figures, step): calls.append(("log", step, figures))
def finish(): calls.append(("finish",))
"""


def row(step: int) -> dict[str, object]:
    return {"step": step, "total": step / 10, "anchor_rate": 0.25, "iou_first": float("nan"), "kl": None}


def chains() -> list[TrackedChain]:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), "#2563b8").save(file, "PNG")
    return [TrackedChain("best", "a door opens\n<answer>1 to 2</answer>", file.getvalue())]


@pytest.fixture
def where(tmp_path):
    (tmp_path / "x" / "01_grpo").mkdir(parents=True)
    return StageLog(tmp_path / "x", "01_grpo", {"seed": 0}, "2026-11-30")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Modules of the names of wandb and trackio that write down how they are called."""
    for name in ("wandb", "trackio"):
        (tmp_path / f"{name}.py").write_text(FAKE)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda name: sys.modules[name].calls
    for name in ("wandb", "trackio"):
        sys.modules.pop(name, None)


def read_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    found.Reload()
    return found


def test_tensorboard_holds_each_step_once_though_a_stage_went_on_after_a_stop(where):
    first = Trackers(["tensorboard"], where, chains)
    first.open()
    for step in (1, 2, 3):
        first(row(step))
    # Killed here; the newest checkpoint had seen two steps, so that the third is taken again.
    second = Trackers(["tensorboard"], where, chains)
    second.resume([row(1), row(2)])
    for step in (3, 4, 11):
        second(row(step))
    second.end([row(step) for step in (1, 2, 3, 4, 11)])
    events = read_events(where.run / "tensorboard" / "01_grpo")
    assert events.Tags()["scalars"] == ["total", "anchor_rate"]  # what has no value has no point
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("total")] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (11, 1.1)
    ]  # fmt: skip
    assert [(image.step, image.width, image.height) for image in events.Images("chain/best")] == [
        (1, 12, 8),
        (11, 12, 8),
    ]
    assert {"parameters/text_summary", "chain/best/text_summary"} <= set(events.Tags()["tensors"])


def test_steps_before_a_tracker_was_named_are_reported_when_the_stage_goes_on_or_has_ended(where):
    trackers = Trackers(["tensorboard"], where, chains)
    trackers.end([row(1), row(2)])
    events = read_events(where.run / "tensorboard" / "01_grpo")
    assert [event.step for event in events.Scalars("total")] == [1, 2]
    before = sorted((where.run / "tensorboard").rglob("*"))
    Trackers(["tensorboard"], where, chains).end([row(1), row(2)])
    assert sorted((where.run / "tensorboard").rglob("*")) == before, "the notebook is run again: nothing is new"


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_wandb_and_trackio_are_called_as_they_want_to_be(name, where, fakes):
    trackers = Trackers([name], where, chains)
    for step in (1, 2):
        trackers(row(step))
    trackers.end([row(1), row(2)])
    (_, options), *calls = fakes(name)
    assert options["project"] == "labkit" and options["config"] == {"seed": 0} and options["resume"] == "allow"
    assert options["name"].startswith("x-01_grpo")
    figures, shown, again, end = calls
    assert figures == ("log", 1, {"total": 0.1, "anchor_rate": 0.25}) and again[1] == 2 and end == ("finish",)
    assert shown[1] == 1 and shown[2]["chain/best"].shape == (8, 12, 3)
    assert "<answer>1 to 2</answer>" in shown[2]["chain/best"].caption
    if name == "wandb":
        assert options["dir"] == str(where.run) and options["id"] == where.key


def test_a_run_that_is_started_over_has_another_log(where):
    assert where.key != where._replace(created="2026-12-01").key and where.key.startswith("x-01_grpo-")


def test_off_nothing_is_imported_or_written(where, fakes):
    trackers = Trackers([], where, lambda: 1 / 0)
    trackers.open()
    trackers(row(1))
    trackers.end([row(1)])
    assert "wandb" not in sys.modules and list(where.run.rglob("*")) == [where.run / "01_grpo"]


def test_a_tracker_that_fails_is_left_out_and_training_goes_on(where, fakes, capsys):
    trackers = Trackers(["wandb", "tensorboard"], where, chains)
    trackers(row(1))
    sys.modules["wandb"].log = lambda *_, **__: 1 / 0
    trackers(row(2))
    trackers(row(3))
    trackers.end([])
    assert "01_grpo: wandb is told nothing more from step 2 on (ZeroDivisionError" in capsys.readouterr().out
    assert [event.step for event in read_events(where.run / "tensorboard" / "01_grpo").Scalars("total")] == [1, 2, 3]
    note = json.loads(where.note.read_text())
    assert note == {"wandb": 1, "tensorboard": 3}, "what it has not taken it is given when the stage goes on"


def test_one_that_cannot_be_opened_is_an_error_before_training(where, fakes):
    trackers = Trackers(["wandb"], where)
    sys.modules.pop("wandb", None)
    (where.run.parent / "wandb.py").write_text(FAKE + "def init(**options): raise RuntimeError('no API key')\n")
    with pytest.raises(
        LabError, match=r"wandb cannot be opened \(RuntimeError: no API key\); log in to it, set it off"
    ):
        trackers.open()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mlflow", "report_to: 'mlflow' is not one of tensorboard, wandb, trackio"),
        ("tensorboard,aim", "report_to: 'aim' is not one of tensorboard, wandb, trackio"),
    ],
)
def test_an_unknown_tracker_is_no_parameter(value, message):
    with pytest.raises(LabError, match=message):
        Params(report_to=value)


def test_a_package_that_is_missing_is_said_before_any_work_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LabError, match="report_to: wandb is not installed here; 'pip install wandb'"):
        Run.open(DEFAULTS.replace(report_to=("wandb",)))
    assert list(tmp_path.iterdir()) == []


def test_trackers_may_change_within_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Run.open(DEFAULTS)
    assert Run.open(DEFAULTS.replace(report_to="tensorboard")).params.report_to == ("tensorboard",)
