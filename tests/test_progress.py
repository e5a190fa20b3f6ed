"""Progress in a batch log: few lines, with the time left."""

from __future__ import annotations

from labkit.progress import Progress


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
