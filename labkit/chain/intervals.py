"""How far a figure would move for other videos: bootstrap intervals, and whether two models differ.

Queries on one video rise and fall together, so whole videos are drawn, with replacement: drawing single queries would
claim too narrow an interval. The figures of one table share their draws, and so do two models that are compared.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_BLOCK = 2_000_000
"""Draws times videos that are held at once: near 16 MB."""


class Interval(NamedTuple):
    """Where a figure would fall for another draw of videos."""

    low: float
    high: float


class Difference(NamedTuple):
    """By how much a figure of one model exceeds the other's, on the same queries.

    `p` is two-sided: how often draws of videos fall on the less frequent side of 0, twice.
    """

    value: float
    interval: Interval
    p: float


def bootstrap_interval(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean of `values`, drawing whole clusters (the videos) with replacement.

    `clusters` names each value's video; None makes each value its own. With one cluster nothing can be said: NaN.
    Raises: ValueError when values and clusters differ in length, there is no value, or level or draws make no sense.

    >>> bootstrap_interval([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    Interval(low=0.0, high=1.0)
    >>> bootstrap_interval([0.5, 0.5, 0.5])
    Interval(low=0.5, high=0.5)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values of shape {array.shape}: need a list of at least one number")
    return bootstrap_intervals(array[:, None], clusters, level=level, draws=draws, seed=seed)[0]


def bootstrap_intervals(
    matrix: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """`bootstrap_interval` of each column of an (N, K) matrix, all from the same draws.

    >>> bootstrap_intervals([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], ["a", "a", "b"])
    [Interval(low=0.0, high=1.0), Interval(low=0.0, high=1.0)]
    """
    means = _drawn_means(_matrix(matrix), clusters, level, draws, seed)
    return [_interval(column, level) for column in means.T]


def paired_differences(
    ours: ArrayLike,
    theirs: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> list[Difference]:
    """For each column of two (N, K) matrices over the same queries: the mean difference, its interval and p.

    Pairing takes out what both models find hard, which is most of what moves a single figure.
    Raises: as `bootstrap_interval`, and ValueError when the matrices differ in shape.

    >>> paired_differences([[1.0], [1.0]], [[0.5], [0.5]])[0].value
    0.5
    """
    first, second = _matrix(ours), _matrix(theirs)
    if first.shape != second.shape:
        raise ValueError(f"matrices of shapes {first.shape} and {second.shape}: pair the same queries and figures")
    gaps = first - second
    means = _drawn_means(gaps, clusters, level, draws, seed)
    return [
        Difference(float(gap.mean()), _interval(column, level), _p_value(column))
        for gap, column in zip(gaps.T, means.T, strict=True)
    ]


def _drawn_means(matrix: Floats, clusters: Sequence[Hashable] | None, level: float, draws: int, seed: int) -> Floats:
    """Means of the columns in each draw, (draws, K); NaN when there is one cluster only."""
    rows, columns = matrix.shape
    if clusters is not None and len(clusters) != rows:
        raise ValueError(f"{rows} values and {len(clusters)} clusters: name one cluster for each value")
    if not 0 < level < 1 or draws < 1:
        raise ValueError(f"level={level}, draws={draws}: level must lie between 0 and 1, draws above 0")
    names: Sequence[Hashable] = range(rows) if clusters is None else clusters
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    groups = len(numbers)
    if groups < 2:
        return np.full((draws, columns), math.nan)
    sums = np.stack([np.bincount(index, column) for column in matrix.T], axis=1)
    sizes = np.bincount(index).astype(np.float64)
    generator = np.random.default_rng(seed)
    means = np.empty((draws, columns))
    block = max(1, _BLOCK // groups)
    for begin in range(0, draws, block):
        count = min(block, draws - begin)
        picked = generator.integers(0, groups, (count, groups))
        # How often each video was drawn turns the sums over its draws into one matrix product for all figures.
        picked += np.arange(count)[:, None] * groups
        times = np.bincount(picked.ravel(), minlength=count * groups).reshape(count, groups).astype(np.float64)
        means[begin : begin + count] = (times @ sums) / (times @ sizes)[:, None]
    return means


def _matrix(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"values of shape {array.shape}: need at least one number for at least one figure")
    return array


def _interval(means: Floats, level: float) -> Interval:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def _p_value(means: Floats) -> float:
    if np.isnan(means).any():
        return math.nan
    # One is added on both sides, so that no finite number of draws claims that a difference cannot be chance.
    rarer = 1 + min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * rarer / (len(means) + 1))
