"""How far a figure would move for other videos: intervals of a mean, and whether two models differ.

Queries on one video rise and fall together, so that the videos are the sample and not the queries: the spread between whole
videos is what an interval rests on, and few videos make it wide, whatever the number of queries. The spread is estimated
with the small-sample correction CR2, and Student's t has Satterthwaite's degrees of freedom, which are fewer than videos
less one where some hold most of the queries. A figure between 0 and 1 gets Wilson's interval, which stays in there and
doesn't shrink to nothing where few videos happen to agree; a difference gets the plain one. `benchmarks/coverage.py`
measures how often they hold the truth.

Source: Bell and McCaffrey 2002 (CR2), Satterthwaite 1946, Wilson 1927; that spread never counts as less than that of
single queries is our choice.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

FEW_VIDEOS = 20
"""Below so many videos cards add a note on how far intervals can be relied on."""
_EQUAL = 1e-18
"""A variance up to this is rounding: all values are equal."""


def known(value: float) -> float | None:
    """A number for a program: None for NaN."""
    return None if math.isnan(value) else value


class Interval(NamedTuple):
    """Where a figure would fall for other videos; NaN where nothing can be said."""

    low: float
    high: float

    def times(self, unit: float) -> Interval:
        """The same in another unit."""
        return Interval(unit * self.low, unit * self.high)

    def text(self, form: str = ".1f") -> str:
        """Both ends; "" where nothing can be said.

        >>> Interval(0.312, 0.4).times(100).text(), Interval(-0.1, 0.2).text("+.2f"), Interval(math.nan, math.nan).text()
        ('31.2 to 40.0', '-0.10 to +0.20', '')
        """
        return "" if math.isnan(self.low) else f"{self.low:{form}} to {self.high:{form}}"


class Difference(NamedTuple):
    """By how much a figure of one model exceeds the other's, on the same queries; `p` is two-sided."""

    value: float
    interval: Interval
    p: float

    def as_dict(self) -> dict[str, Any]:
        """The difference for a program; what cannot be said is None."""
        return {"value": self.value, "interval": [*map(known, self.interval)], "p": known(self.p)}


class Slope(NamedTuple):
    """How far one thing moves for each unit that another was moved, over `n` movements in so many `videos`."""

    value: float
    interval: Interval
    n: int
    videos: int


class Spread(NamedTuple):
    """A figure of runs that differ in their seed alone; what `n` values cannot say is NaN."""

    mean: float
    sd: float
    """Sample standard deviation over the seeds."""
    interval: Interval
    """Of the mean, for other seeds."""
    n: int

    @property
    def varies(self) -> bool:
        """Whether the seeds differ: a few that agree show no spread, which is not the same as having none, and no interval."""
        return bool(self.sd > _EQUAL**0.5)

    @property
    def side(self) -> int:
        """Of a difference, on which side of 0 its interval lies: 1, -1, or 0 where it holds 0 or says nothing.

        >>> [spread_over_seeds(gaps).side for gaps in ([0.02, 0.03, 0.025], [-0.02, 0.03], [0.02], [0.02, 0.02])]
        [1, 0, 0, 0]
        """
        low, high = self.interval
        return int(low > 0) - int(high < 0) if self.varies else 0


def spread_over_seeds(values: Sequence[float], *, level: float = 0.95) -> Spread:
    """Mean, standard deviation, and Student's t interval of the mean with n - 1 degrees of freedom; neither of one value.

    It is not cut to [0, 1]: of two seeds it is 12.7 standard errors wide to both sides, and says so.
    Raises: ValueError when there is no value.

    >>> mean, sd, (low, high), n = spread_over_seeds([0.50, 0.54, 0.52])
    >>> round(mean, 3), round(sd, 3), round(low, 3), round(high, 3), n
    (0.52, 0.02, 0.47, 0.57, 3)
    """
    if not (n := len(values)):
        raise ValueError("no value: give that of one seed at least")
    mean = math.fsum(values) / n
    if n < 2:
        return Spread(mean, math.nan, Interval(math.nan, math.nan), n)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    reach = _t_quantile(level, n - 1) * sd / math.sqrt(n)
    return Spread(mean, sd, Interval(mean - reach, mean + reach), n)


def few_videos(videos: int) -> str:
    """What to say beside figures of few videos; "" of `FEW_VIDEOS` and more.

    >>> few_videos(1)
    'Only 1 video: nothing can be said about others.'
    >>> few_videos(20)
    ''
    """
    if videos < 2:
        return f"Only {videos} video{'' if videos else 's'}: nothing can be said about others."
    if videos >= FEW_VIDEOS:
        return ""
    return (
        f"Only {videos} videos: intervals of so few are wide on purpose (as measured, they hold the truth in 96 to 100 % of "
        "tries, where narrower ones don't), and a difference must be large to show."
    )


class _Means(NamedTuple):
    """The mean of each column, its variance between videos, and what both rest on."""

    means: Floats
    variances: Floats
    videos: int
    freedom: float


def mean_interval(values: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95) -> Interval:
    """Interval of the mean of `values`, each in [0, 1], for other clusters (videos).

    `clusters` names each value's video; None makes each value its own. With one cluster nothing can be said: NaN.
    Where all values are equal the spread is unknown, and the videos count as that many trials that agreed.
    Raises: ValueError when values and clusters differ in length, there is no value or one outside [0, 1], or level makes
    no sense.

    >>> low, high = mean_interval([0.4, 0.6, 0.5, 0.7, 0.9, 0.5], ["a", "a", "b", "b", "c", "c"])
    >>> round(low, 2), round(high, 2)
    (0.3, 0.84)
    >>> low, high = mean_interval([1.0] * 5)  # five of five
    >>> round(low, 2), high
    (0.39, 1.0)
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"values of shape {array.shape}: need a list of at least one number")
    return mean_intervals(array[:, None], clusters, level=level)[0]


def mean_intervals(
    matrix: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> list[Interval]:
    """`mean_interval` of each column of an (N, K) matrix.

    >>> mean_intervals([[0.25, 1.0], [0.25, 1.0]], ["a", "a"])
    [Interval(low=nan, high=nan), Interval(low=nan, high=nan)]
    """
    array = _matrix(matrix)
    if not ((array >= 0) & (array <= 1 + _EQUAL**0.5)).all():
        raise ValueError("values outside 0 to 1: give fractions, such as IoU")
    means, variances, videos, freedom = _means(array, clusters, level)
    if videos < 2:
        return [Interval(math.nan, math.nan)] * len(means)
    spread = np.maximum(means * (1 - means), 0.0)
    has_spread = (variances > _EQUAL) & (spread > 0)
    # As many independent yes-or-no trials as would have this variance.
    trials = np.where(has_spread, spread / np.where(has_spread, variances, 1.0), float(videos))
    weight = _t_quantile(level, freedom) ** 2 / trials
    middles = (means + weight / 2) / (1 + weight)
    reach = np.sqrt(weight * spread + weight**2 / 4) / (1 + weight)
    ends = np.clip(np.stack([middles - reach, middles + reach], axis=1), 0.0, 1.0)
    return [Interval(float(low), float(high)) for low, high in ends]


def paired_differences(
    ours: ArrayLike, theirs: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> list[Difference]:
    """For each column of two (N, K) matrices over the same queries: the mean difference, its interval and p.

    Pairing takes out what both models find hard, which is most of what moves a single figure. Matrices that are equal
    throughout differ by exactly 0. A figure that differs by the same on every query shows no spread: few videos then count as
    that many trials that agreed, and p is that of turning their signs.
    Raises: as `mean_interval`, and ValueError when the matrices differ in shape.

    >>> paired_differences([[1.0], [0.5]], [[0.5], [0.25]])[0].value
    0.375
    """
    first, second = _matrix(ours), _matrix(theirs)
    if first.shape != second.shape:
        raise ValueError(f"matrices of shapes {first.shape} and {second.shape}: pair the same queries and figures")
    gaps = first - second
    means, variances, videos, freedom = _means(gaps, clusters, level)
    if videos < 2:
        return [Difference(float(mean), Interval(math.nan, math.nan), math.nan) for mean in means]
    if not gaps.any():
        return [Difference(0.0, Interval(0.0, 0.0), 1.0)] * len(means)
    quantile, agreed = _t_quantile(level, freedom), 1 - ((1 - level) / 2) ** (1 / videos)
    found = []
    for mean, variance in zip(means.tolist(), variances.tolist(), strict=True):
        if variance > _EQUAL:
            reach, p = quantile * math.sqrt(variance), _t_tails(mean / math.sqrt(variance), freedom)
        elif abs(mean) < _EQUAL:
            reach, p = agreed, 1.0
        else:
            # Other videos may lose as much as these gain: below six the interval holds 0, as p says.
            reach, p = 2 * agreed * abs(mean) if videos < FEW_VIDEOS else 0.0, 0.5 ** (videos - 1)
        found.append(Difference(mean, Interval(max(-1.0, mean - reach), min(1.0, mean + reach)), p))
    return found


def slope(
    moved: ArrayLike, followed: ArrayLike, clusters: Sequence[Hashable] | None = None, *, level: float = 0.95
) -> Slope:
    """Least-squares slope through the origin of `followed` over `moved`, with an interval for other clusters (videos).

    Where nothing is moved, nothing is expected to follow: there is no intercept. With `moved` at 1 it is the mean of `followed`.
    The slope is the mean of the videos' own slopes, each weighed by its share of the squared movements, and so is its
    interval's variance and degrees of freedom (CR2, as above); a movement of 0 says nothing and isn't counted. Where none departs
    from the line, the videos count as that many trials that agreed. NaN without any movement, and the interval with one cluster.
    Raises: ValueError when the arguments differ in length.

    >>> value, (low, high), n, videos = slope([1, -1, 2, -2, 0], [0.5, -0.5, 1.5, -1.0, 9.0], ["a", "a", "b", "b", "c"])
    >>> value, low < value < high, n, videos
    (0.6, True, 4, 2)
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (moved, followed))
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"movements of shapes {x.shape} and {y.shape}: give one number each")
    index, _ = _numbered(clusters, len(x), level)
    x, y, index = x[x != 0], y[x != 0], index[x != 0]
    index, videos = np.unique(index, return_inverse=True)[1], len(np.unique(index))
    if not videos:
        return Slope(math.nan, Interval(math.nan, math.nan), 0, 0)
    square = float((x**2).sum())
    value = float((x * y).sum()) / square
    if videos < 2:
        return Slope(value, Interval(math.nan, math.nan), len(x), videos)
    influence, shares = x * (y - value * x) / square, x**2 / square
    weights: Floats = np.bincount(index, shares).astype(np.float64)
    between = float((np.bincount(index, influence) ** 2 / (1 - weights)).sum())
    variance = max(between, float((influence**2 / (1 - shares)).sum()))
    agreed = 1 - ((1 - level) / 2) ** (1 / videos)
    reach = _t_quantile(level, _degrees_of_freedom(weights)) * math.sqrt(variance) if variance > _EQUAL else agreed
    return Slope(value, Interval(value - reach, value + reach), len(x), videos)


def _means(matrix: Floats, clusters: Sequence[Hashable] | None, level: float) -> _Means:
    rows = len(matrix)
    index, videos = _numbered(clusters, rows, level)
    means = matrix.mean(axis=0)
    if videos < 2:
        return _Means(means, np.full(len(means), math.nan), videos, math.nan)
    weights = np.bincount(index) / rows
    # What each video adds to the mean, beyond what its share of the queries would.
    residuals = np.stack([np.bincount(index, column) for column in matrix.T], axis=1) / rows - weights[:, None] * means
    between = (residuals**2 / (1 - weights)[:, None]).sum(axis=0)
    # Videos that happen to agree don't make queries more certain than they are one by one.
    single = matrix.var(axis=0, ddof=1) / rows
    return _Means(means, np.maximum(between, single), videos, _degrees_of_freedom(weights))


def _numbered(clusters: Sequence[Hashable] | None, rows: int, level: float) -> tuple[NDArray[np.int64], int]:
    """Each row's cluster as a number from 0, in order of appearance, and how many clusters there are."""
    if clusters is not None and len(clusters) != rows:
        raise ValueError(f"{rows} values and {len(clusters)} clusters: name one cluster for each value")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1")
    numbers: dict[Hashable, int] = {}
    named = range(rows) if clusters is None else clusters
    return np.array([numbers.setdefault(name, len(numbers)) for name in named], np.int64), len(numbers)


def _degrees_of_freedom(weights: Floats) -> float:
    """Satterthwaite's degrees of freedom of CR2, were the videos' means equally uncertain.

    >>> round(_degrees_of_freedom(np.full(10, 0.1)), 9), round(_degrees_of_freedom(np.array([0.9, 0.05, 0.05])), 2)
    (9.0, 1.04)
    """
    total, part = (weights**2).sum(), weights**2 / (1 - weights)
    first, second = (part * weights).sum(), (part * weights**2).sum()
    # Trace of the quadratic form's matrix, and of its square without making a matrix of videos by videos.
    trace = (part * (1 - 2 * weights + total)).sum()
    square = total**2 * part.sum() ** 2 + 2 * part.sum() * second - 4 * total * part.sum() * first + 2 * first**2
    square += (part**2 * (1 + 2 * (total - 2 * weights))).sum()
    return max(1.0, float(trace**2 / square))


@lru_cache(maxsize=16)  # figures of one table share it
def _t_table(freedom: float) -> tuple[Floats, Floats]:
    """Angles atan(t / sqrt(freedom)) from 0 to a right angle, and the chance of lying beyond each on both sides."""
    # In the angle Student's density is a power of its cosine, which has no tail to cut off.
    angles = np.linspace(0.0, math.pi / 2, 50_001)
    density = np.cos(angles) ** (freedom - 1)
    areas = (density[1:] + density[:-1]) / 2
    beyond = np.concatenate([np.cumsum(areas[::-1])[::-1], [0.0]])
    return angles, beyond / beyond[0]


def _t_quantile(level: float, freedom: float) -> float:
    """What |t| stays below with chance `level`.

    >>> [round(_t_quantile(0.95, freedom), 3) for freedom in (1, 4, 19, 1000)]
    [12.706, 2.776, 2.093, 1.962]
    """
    angles, beyond = _t_table(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(level, 1 - beyond, angles)))


def _t_tails(t: float, freedom: float) -> float:
    """The chance that |t| is as large as this.

    >>> round(_t_tails(-2.776, 4), 3), _t_tails(0.0, 4)
    (0.05, 1.0)
    """
    return float(np.interp(math.atan(abs(t) / math.sqrt(freedom)), *_t_table(freedom)))


def _matrix(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise ValueError(f"values of shape {array.shape}: need at least one number for at least one figure")
    return array
