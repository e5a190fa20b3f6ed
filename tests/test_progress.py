"""Progress in a batch log: few lines, with the time left."""

from __future__ import annotations

import pytest

from labkit import progress as module
from labkit.progress import Progress, Tally, duration, read_step


class Clock:
    """A clock that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys, steps: list[tuple[float, int, str]], total: int) -> list[str]:
    clock = Clock()
    progress = Progress("grpo", total, clock)
    for seconds, done, note in steps:
        clock.now = 100.0 + seconds
        progress(done, note)
    return capsys.readouterr().out.splitlines()


def test_a_line_comes_at_most_every_ten_seconds_and_at_the_end(capsys):
    steps = [(4.0 * i, i, "") for i in range(1, 9)]
    assert lines_of(capsys, steps, 8) == [
        "grpo: 3 of 8, 12 s, 20 s left",
        "grpo: 6 of 8, 24 s, 8 s left",
        "grpo: 8 of 8, 32 s",
    ]


def test_a_resumed_run_reckons_with_its_own_steps_alone(capsys):
    # 26 and 27 took 10 s each, so the 3 that are left take 30 s, whatever the first 25 took.
    assert lines_of(capsys, [(10, 26, ""), (20, 27, "reward 0.50")], 30)[-1] == (
        "grpo: 27 of 30, 20 s, 30 s left; reward 0.50"
    )


def test_a_step_that_is_told_twice_is_heard_once(capsys):
    assert lines_of(capsys, [(1, 2, ""), (2, 2, "")], 2) == ["grpo: 2 of 2, 1 s"]


@pytest.mark.parametrize(
    ("seconds", "said", "why"),
    [
        (0, "0 s", "nothing yet"),
        (59.4, "59 s", "rounded down"),
        (59.6, "1 min 0 s", "never 60 s"),
        (119.7, "2 min 0 s", "the seconds carry"),
        (239.9, "4 min 0 s", "never 3 min 60 s"),
        (3599.4, "59 min 59 s", "below the hour"),
        (3599.7, "1 h 0 min", "never 60 min 0 s"),
        (7199.0, "2 h 0 min", "from an hour on to whole minutes, which carry too"),
        (360_000, "100 h 0 min", "no comma"),
    ],
)
def test_a_duration_is_rounded_to_what_it_shows(seconds, said, why):
    assert duration(seconds) == said, why


class Bar:
    """What a notebook's display would be given."""

    def __init__(self) -> None:
        self.shown = []

    def update(self, bar) -> None:
        self.shown.append(bar._repr_html_())


def test_a_stage_that_stopped_by_condition_is_over_and_says_why(capsys, monkeypatch, tmp_path):
    bar, clock, file = Bar(), Clock(), tmp_path / "progress.json"
    monkeypatch.setattr(module, "_bar", lambda: bar)
    progress = Progress("grpo", 150, clock, file)
    clock.now += 60
    progress(92, "anchors 0.97")
    progress.end("stopped by condition: 97.0 % had anchors")
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == "grpo: 92 of 150, 1 min 0 s; stopped by condition: 97.0 % had anchors"
    step = read_step(file)
    assert step is not None and step[:4] == ("grpo", 92, 150, None), "no time is left"
    assert "<progress" in bar.shown[0] and bar.shown[-1] == "", "and the bar is gone"


def test_a_stage_that_took_all_its_steps_or_was_only_read_says_nothing_more(capsys, monkeypatch):
    bar = Bar()
    monkeypatch.setattr(module, "_bar", lambda: bar)
    progress = Progress("grpo", 2, Clock())
    progress(2)
    told = capsys.readouterr().out
    progress.end("all steps were taken")
    read = Progress("grpo", 150, Clock())
    read.end("stopped by condition")
    assert told == "grpo: 2 of 2, 0 s\n" and capsys.readouterr().out == ""
    assert bar.shown[-1] == "", "no empty bar is left"


def test_the_progress_file_holds_the_newest_step_at_most_every_ten_seconds(tmp_path):
    clock, file = Clock(), tmp_path / "progress.json"
    progress = Progress("grpo", 8, clock, file)
    found = []
    for done in range(1, 9):
        clock.now += 4
        progress(done, f"reward {done}")
        step = read_step(file)
        assert step is not None
        found.append((step.done, step.left, step.note))
    assert found[0] == (1, "28 s", "reward 1"), "the first is there at once"
    assert [done for done, *_ in found] == [1, 1, 1, 4, 4, 4, 7, 8]
    assert found[-1] == (8, None, "reward 8")
    assert [path.name for path in tmp_path.iterdir()] == ["progress.json"]


def test_what_several_processes_report_is_one_step_of_the_work(tmp_path):
    file = tmp_path / "progress.json"
    tally = Tally(10, file)
    for rank, done in ((0, 4), (1, 10), (0, 8)):
        tally(rank, {"what": "harvest", "done": done})
    step = read_step(file)
    assert step is not None and (step.what, step.done, step.total) == ("harvest", 10, 10)


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"what": "grpo"}'])
def test_a_progress_file_that_is_not_there_or_damaged_says_nothing(text, tmp_path):
    if text is not None:
        (tmp_path / "progress.json").write_text(text)
    assert read_step(tmp_path / "progress.json") is None


def test_a_progress_file_that_cannot_be_written_ends_no_work(tmp_path):
    Progress("grpo", 2, Clock(), tmp_path / "gone" / "progress.json")(1)
