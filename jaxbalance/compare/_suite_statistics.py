"""Methods over many data sets: ranks, tests, and gains over plain training."""

import itertools
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxbalance._types import HostArray
from jaxbalance.compare._statistics import LEVEL, holm


class Ranking(NamedTuple):
    """M methods on D data sets by one metric."""

    average_ranks: HostArray
    """``[M]``: 1 is the best; of methods that tie, each gets the mean of their ranks."""
    p_value: float
    """Of all methods being alike: Friedman's test, corrected by Iman and Davenport."""
    pair_p_values: HostArray
    """``[M, M]``: of two being alike: Wilcoxon's signed rank test, corrected for all pairs."""
    groups: list[tuple[int, ...]]
    """Methods by rank, as long as no two of them differ; the largest such groups, two at least."""

    def differ(self, one: int, other: int) -> bool:
        """Whether two methods differ: both tests must say so."""
        return _differ(self.p_value, self.pair_p_values)[one, other].item()


class Gains(NamedTuple):
    """One method against plain training, on D data sets; gains are differences of the metric."""

    number: int
    """D"""
    better: int
    """Data sets on which its mean over seeds is higher."""
    worse: int
    """Data sets on which it is lower."""
    quartiles: tuple[float, float, float]
    """Of the gains: lower quartile, median, upper quartile; NaN without data sets."""


def rank(table: HostArray) -> Ranking:
    r"""Rank methods on each data set, and test whether and which of them differ.

    With average ranks :math:`R_j` of M methods on D data sets, Friedman's statistic and its
    correction are

    .. math:: \chi^2 = \frac{12 D}{M(M+1)} \sum_j \Bigl(R_j - \frac{M+1}{2}\Bigr)^2, \qquad
              F = \frac{(D-1)\chi^2}{D(M-1) - \chi^2},

    the first divided by SciPy's correction for ties, the second F-distributed with M − 1 and
    (M − 1)(D − 1) degrees of freedom. The tests take the data sets for independent.

    Args:
      table: ``[D, M]``, D and M at least 1; higher is better, no NaN.

    Returns:
      The :class:`Ranking`. Where there is nothing to test (D or M is 1, or all are equal) p-values
      are 1; with two methods the first test is the second.

    Source: Demšar 2006, "Statistical comparisons of classifiers over multiple data sets", sections
    3.1.3 and 3.2.2 (ties of Wilcoxon's test are split evenly); pairs by Wilcoxon and Holm rather
    than by Nemenyi, whose verdict on two methods depends on which others take part: Benavoli,
    Corani and Mangili 2016, "Should we really use post-hoc tests based on mean-ranks?".

    >>> rank(np.array([[0.9, 0.5, 0.5], [0.8, 0.6, 0.4]])).average_ranks.tolist()
    [1.0, 2.25, 2.75]
    """
    average = stats.rankdata(-table, axis=1).mean(axis=0)
    pairs = _pairs(table)
    p_value = float(pairs[0, 1]) if table.shape[1] == 2 else _friedman(table)
    return Ranking(average, p_value, pairs, _groups(average, _differ(p_value, pairs)))


def gains(gained: HostArray) -> Gains:
    """What one method gained ``[D]``, in a few numbers.

    >>> gains(np.array([0.25, 0.0, -0.25])).quartiles
    (-0.125, 0.0, 0.125)
    """
    quartiles = np.percentile(gained, (25, 50, 75)) if gained.size else np.full(3, np.nan)
    low, middle, high = (float(value) for value in quartiles)
    better, worse = int(np.sum(gained > 0)), int(np.sum(gained < 0))
    return Gains(len(gained), better, worse, (low, middle, high))


def _friedman(table: HostArray) -> float:
    number, methods = table.shape
    if number < 2 or methods < 3 or np.all(table == table[:, :1]):
        return 1.0
    statistic = float(stats.friedmanchisquare(*table.T).statistic)
    rest = number * (methods - 1) - statistic
    if rest <= 0:
        return 0.0
    freedom = methods - 1
    value = (number - 1) * statistic / rest
    return float(stats.f.sf(value, freedom, freedom * (number - 1)))


def _pairs(table: HostArray) -> HostArray:
    methods = table.shape[1]
    pairs = list(itertools.combinations(range(methods), 2))
    corrected = holm([_wilcoxon(table[:, i] - table[:, j]) for i, j in pairs])
    p_values = np.ones((methods, methods))
    for (i, j), p_value in zip(pairs, corrected, strict=True):
        p_values[i, j] = p_values[j, i] = p_value
    return p_values


def _wilcoxon(differences: HostArray) -> float:
    if not np.any(differences):
        return 1.0
    return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def _differ(p_value: float, pairs: HostArray) -> HostArray:
    return (p_value < LEVEL) & (pairs < LEVEL)


def _groups(average: HostArray, differ: HostArray) -> list[tuple[int, ...]]:
    order = np.argsort(average, kind="stable")
    groups: list[tuple[int, ...]] = []
    end = 0
    for start in range(len(order)):
        last = start
        while last + 1 < len(order) and not differ[order[last + 1], order[start : last + 1]].any():
            last += 1
        if last > start and last >= end:
            groups.append(tuple(int(i) for i in order[start : last + 1]))
            end = last + 1
    return groups
