"""Honest error bars: what seeds, splits and a finite test set leave uncertain."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxbalance._types import HostArray

LEVEL = 0.05


class Estimate(NamedTuple):
    """A mean over seeds, with what is needed to judge it."""

    mean: float
    half_width: float
    """Half of the 95 % interval."""
    p_value: float
    """Two-sided, of the mean being zero."""


def estimate(
    values: HostArray, example_variance: float, *, redrawn: bool, test_share: float
) -> Estimate:
    r"""Mean over seeds with a standard error that also covers the test set.

    Seeds that redraw train and test parts from the same data overlap, so their spread understates
    the error of their mean; the corrected resampled t-test widens it:

    .. math:: \mathrm{SE}^2 = \Bigl(\frac1S + \frac{n_{\text{test}}}{n_{\text{train}}}\Bigr) s^2 .

    With one fixed test set the spread over seeds knows nothing of the test examples, so the
    variance that sampling them causes is added: :math:`\mathrm{SE}^2 = s^2/S + v`. With one seed
    only v is left.

    Args:
      values: one number per seed ``[S]``.
      example_variance: v, the variance of such a number from sampling test examples.
      redrawn: whether each seed has a test set of its own.
      test_share: fraction of the data in the test part.

    Returns:
      An :class:`Estimate`; Student's t with S − 1 degrees of freedom.

    Source: Nadeau & Bengio 2003, "Inference for the generalization error", section 3.

    >>> estimate(np.array([1.0, 2.0, 3.0]), 0.0, redrawn=False, test_share=0.0).mean
    2.0
    """
    number = len(values)
    mean = float(np.mean(values))
    if number == 1:
        error, freedom = np.sqrt(example_variance), np.inf
    else:
        spread = float(np.var(values, ddof=1))
        if redrawn:
            widened = spread * (1 / number + test_share / (1 - test_share))
            error = np.sqrt(max(widened, example_variance / number))
        else:
            error = np.sqrt(spread / number + example_variance)
        freedom = number - 1
    quantile = float(stats.t.ppf(1 - LEVEL / 2, freedom))
    if error == 0:
        return Estimate(mean, 0.0, 1.0 if mean == 0 else 0.0)
    return Estimate(
        mean, float(quantile * error), float(2 * stats.t.sf(abs(mean) / error, freedom))
    )


def balanced_variance(scores: HostArray, labels: HostArray, num_classes: int) -> float:
    r"""Variance, from sampling test examples within classes, of a mean over classes of class means.

    .. math:: v = \frac{1}{K'^2} \sum_k \frac{s_k^2}{m_k}

    over the K' classes with m_k > 0 test examples. A class with one example shows no spread of its
    own and is given that of a fair coin, 1/4.

    Args:
      scores: one number per test example ``[m]``, such as "was right" or a difference of two.
      labels: class ids ``[m]``.
      num_classes: K.

    Returns:
      v, for :func:`estimate`.

    >>> balanced_variance(np.array([1.0, 0.0, 1.0, 1.0]), np.array([0, 0, 1, 1]), 2)
    0.0625
    """
    parts = []
    for k in range(num_classes):
        members = scores[labels == k]
        if len(members) == 1:
            parts.append(0.25)
        elif len(members) > 1:
            parts.append(float(np.var(members, ddof=1)) / len(members))
    return sum(parts) / len(parts) ** 2


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for testing them all: Holm's step-down rule.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, p_values[place] * (len(p_values) - rank)))
        adjusted[place] = highest
    return [float(p) for p in adjusted]
