"""Average precision by hand, and against a plain reading of the definition."""

from __future__ import annotations

import random
import time

import pytest

from labkit.chain.spans import Span
from labkit.scoring.question_figures import AP_THRESHOLDS, MOST_WINDOWS, average_precisions

A, B = Span(0, 10), Span(20, 30)


def at(value: float) -> int:
    return AP_THRESHOLDS.index(value)


def ap(row, windows, scores=None) -> float:
    """AP at 0.5 of one query."""
    return float(average_precisions([row], [windows], [scores])[0, at(0.5)])


@pytest.mark.parametrize(
    ("row", "windows", "value", "why"),
    [
        ([(0, 10)], [A], 1.0, "found at once"),
        ([(0, 10), (20, 30)], [A, B], 1.0, "both found"),
        ([(20, 30), (0, 10)], [A, B], 1.0, "in any order"),
        ([(50, 60), (0, 10)], [A], 1 / 2, "one miss first: precision 1/2 where it is found"),
        ([(0, 10), (50, 60), (20, 30)], [A, B], (1 + 2 / 3) / 2, "precision 1 at the first, 2/3 at the second"),
        ([(50, 60), (0, 10), (20, 30)], [A, B], (2 / 3 + 2 / 3) / 2, "1/2 at the first is raised to the later 2/3"),
        ([(0, 10)], [A, B], 1 / 2, "half of the truth is never found"),
        ([(0, 10), (0, 10)], [A], 1.0, "a second on a truth that is taken counts nothing, and comes too late to harm"),
        ([(0, 10), (0, 10), (20, 30)], [A, B], (1 + 2 / 3) / 2, "but takes a rank"),
        ([(0, 5)], [A], 1.0, "IoU 0.5 reaches 0.5"),
        ([(0, 4.9)], [A], 0.0, "0.49 doesn't"),
        ([(10, 0)], [A], 0.0, "what is no span meets nothing"),
        ([(10, 0), (0, 10)], [A], 1 / 2, "and takes a rank"),
        ([], [A], 0.0, "nothing predicted"),
        ([(50, 60)] * 10 + [(0, 10)], [A], 0.0, "the eleventh is not looked at"),
        ([(50, 60)] * 9 + [(0, 10)], [A], 1 / 10, "the tenth is"),
        ([(0, 18), (0, 10)], [Span(0, 10), Span(0, 17)], 1.0, "the better truth is taken, the other is left"),
        ([(0, 17), (0, 17)], [Span(0, 10), Span(0, 17)], 1.0, "the better is taken, so the second takes the other"),
    ],
)
def test_average_precision_by_hand(row, windows, value, why):
    assert ap(row, windows) == pytest.approx(value, abs=1e-12), why


def test_scores_order_the_windows_and_equal_ones_keep_the_files_order():
    row = [(50, 60), (0, 10)]
    assert ap(row, [A], [0.1, 0.9]) == 1.0
    assert ap(row, [A], [0.9, 0.1]) == ap(row, [A], [0.5, 0.5]) == ap(row, [A]) == 0.5


def test_the_first_ten_of_the_file_are_taken_before_they_are_ordered():
    row = [(50, 60)] * MOST_WINDOWS + [(0, 10)]
    assert ap(row, [A], [0.1] * MOST_WINDOWS + [0.9]) == 0.0


def test_each_threshold_is_judged_by_itself():
    # IoU 0.8 reaches 0.5 to 0.8; thresholds are the decimals themselves, as 0.8 = 8 / 10 is reached.
    got = average_precisions([[(0, 8)]], [[A]])[0]
    assert got.tolist() == [1.0] * 7 + [0.0] * 3
    assert AP_THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    for threshold in AP_THRESHOLDS:
        assert average_precisions([[(0, round(100 * threshold))]], [[Span(0, 100)]])[0, at(threshold)] == 1.0


def test_queries_with_more_windows_do_not_change_others():
    rows, windows = [[(0, 10)], [(50, 60), (0, 10), (20, 30)], []], [[A], [A, B], [B]]
    together = average_precisions(rows, windows)
    for number in range(3):
        assert (
            together[number].tolist()
            == average_precisions(rows[number : number + 1], windows[number : number + 1])[0].tolist()
        )


def plain_ap(row, windows, threshold) -> float:
    """The definition, word by word."""
    taken, hits = set(), []
    for start, end in row[:MOST_WINDOWS]:
        overlaps = []
        for place, window in enumerate(windows):
            inside = min(end, window.end) - max(start, window.start)
            outside = max(end, window.end) - min(start, window.start)
            if start < end and inside / outside >= threshold and place not in taken:
                overlaps.append((inside / outside, place))
        if overlaps:
            taken.add(max(overlaps)[1])
        hits.append(bool(overlaps))
    total = 0.0
    for rank, hit in enumerate(hits):
        if hit:
            total += max(sum(hits[: later + 1]) / (later + 1) for later in range(rank, len(hits)))
    return total / len(windows)


def test_many_queries_agree_with_the_definition():
    rng = random.Random(0)

    def span() -> tuple[int, int]:
        start = rng.randrange(0, 20)
        return start, start + rng.randrange(1, 12)

    rows = [[span() for _ in range(rng.randrange(13))] for _ in range(300)]
    windows = [[Span(*span()) for _ in range(rng.randrange(1, 6))] for _ in rows]
    got = average_precisions(rows, windows)
    for row, gold, values in zip(rows, windows, got, strict=True):
        for threshold, value in zip(AP_THRESHOLDS, values, strict=True):
            assert value == pytest.approx(plain_ap(row, gold, threshold), abs=1e-12)


def test_a_benchmark_takes_a_second_or_two():
    rng = random.Random(1)
    rows = [[(start := rng.uniform(0, 90), start + 10) for _ in range(10)] for _ in range(17_031)]
    windows = [[Span(start := rng.uniform(0, 90), start + 10)] for _ in rows]
    begin = time.process_time()
    average_precisions(rows, windows, [[rng.random() for _ in row] for row in rows])
    assert time.process_time() - begin < 4


def test_rows_must_match():
    with pytest.raises(ValueError, match="1 rows of predictions for 2"):
        average_precisions([[]], [[A], [A]])
    with pytest.raises(ValueError, match="1 scores for 2 windows"):
        average_precisions([[(0, 1), (1, 2)]], [[A]], [[0.5]])
    with pytest.raises(ValueError, match="window"):
        average_precisions([[(0, 1)]], [[]])
