"""ROC and precision-recall curves, of as many points as there are examples."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion, _ranking


class RocCurve(NamedTuple):
    """Points of a ROC curve in order of falling threshold, each ``[N + 1]`` or ``[K, N + 1]``."""

    thresholds: Array
    """Scores at which a point is reached: examples of at least this score are called positive."""
    false_positive_rate: Array
    """Share of the negatives called positive."""
    true_positive_rate: Array
    """Share of the positives called positive."""


class PrecisionRecallCurve(NamedTuple):
    """Points of it in order of falling threshold, each ``[N + 1]`` or ``[K, N + 1]``."""

    thresholds: Array
    """Scores at which a point is reached: examples of at least this score are called positive."""
    precision: Array
    """Share of those called positive that are."""
    recall: Array
    """Share of the positives called positive."""


class _Called(NamedTuple):
    """How many are called positive at each of N + 1 falling thresholds, the first of them ∞."""

    thresholds: Array
    positives: Array
    negatives: Array


def roc_curve(scores: ArrayLike, labels: ArrayLike) -> RocCurve:
    r"""True against false positives at every threshold, the highest first.

    .. math:: \mathrm{TPR}(t) = \frac{\#\{i : y_i = 1,\ s_i \ge t\}}{P}, \qquad
              \mathrm{FPR}(t) = \frac{\#\{j : y_j = 0,\ s_j \ge t\}}{N_-}

    Shapes cannot depend on values, so there is a point for each of the N examples after the first,
    (0, 0) at threshold ∞: the examples of one score share a point, which stands there once for
    each of them, and a padding example repeats the last point, (1, 1). Repeated points change
    neither a plot nor a trapezoidal area; without them (``np.unique(..., axis=1)``) these are the
    points of scikit-learn's ``roc_curve(..., drop_intermediate=False)``.

    Args:
      scores: ``[N]`` or ``[N, K]``, floating, as in :func:`auroc`.
      labels: integer ``[N]`` or ``[N, K]``, as in :func:`auroc`; −1 counts nowhere.

    Returns:
      :class:`RocCurve`; thresholds in the dtype of the scores, rates in at least float32. All NaN
      where a labelled score is NaN; the rate of a kind without examples is NaN.

    Raises:
      ValueError: shapes or dtypes disagree.

    >>> curve = roc_curve(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1]))
    >>> curve.false_positive_rate
    Array([0. , 0. , 0.5, 0.5, 1. ], dtype=float32)
    >>> curve.true_positive_rate
    Array([0. , 0.5, 1. , 1. , 1. ], dtype=float32)
    """

    def of_column(column: Array, positive: Array, negative: Array) -> RocCurve:
        called = _called(column, positive, negative)
        return RocCurve(
            thresholds=called.thresholds,
            false_positive_rate=_share_of_last(called.negatives, column),
            true_positive_rate=_share_of_last(called.positives, column),
        )

    return _ranking.one_against_rest(of_column, scores, labels)


def precision_recall_curve(scores: ArrayLike, labels: ArrayLike) -> PrecisionRecallCurve:
    r"""Precision against recall at every threshold, the highest first.

    .. math:: \mathrm{precision}(t) = \frac{\#\{i : y_i = 1,\ s_i \ge t\}}{\#\{i : s_i \ge t\}},
              \qquad \mathrm{recall}(t) = \frac{\#\{i : y_i = 1,\ s_i \ge t\}}{P}

    Points are laid out as in :func:`roc_curve`: one for each example after the first, which is
    precision 1, recall 0 at threshold ∞. :func:`average_precision` is the area under the steps,
    ``sum((recall[1:] - recall[:-1]) * precision[1:])``. Without repeated points these are those of
    scikit-learn's ``precision_recall_curve``, which lists them by rising threshold.

    Args:
      scores: ``[N]`` or ``[N, K]``, floating, as in :func:`auroc`.
      labels: integer ``[N]`` or ``[N, K]``, as in :func:`auroc`; −1 counts nowhere.

    Returns:
      :class:`PrecisionRecallCurve`; thresholds in the dtype of the scores, rates in at least
      float32. All NaN where a labelled score is NaN; without positives the recall is NaN
      (scikit-learn: 1).

    Raises:
      ValueError: shapes or dtypes disagree.

    >>> curve = precision_recall_curve(jnp.array([0.1, 0.4, 0.4, 0.8]), jnp.array([0, 0, 1, 1]))
    >>> curve.precision
    Array([1. , 1. , 0.666..., 0.666..., 0.5 ], dtype=float32)
    >>> curve.recall
    Array([0. , 0.5, 1. , 1. , 1. ], dtype=float32)
    """

    def of_column(column: Array, positive: Array, negative: Array) -> PrecisionRecallCurve:
        called = _called(column, positive, negative)
        dtype = _check.working_dtype(column)
        number = (called.positives + called.negatives).astype(dtype)
        return PrecisionRecallCurve(
            thresholds=called.thresholds,
            precision=_confusion.ratio(called.positives, number, 1.0),
            recall=_share_of_last(called.positives, column),
        )

    return _ranking.one_against_rest(of_column, scores, labels)


def _called(scores: Array, positive: Array, negative: Array) -> _Called:
    # Padding takes the place of the lowest labelled score: it joins that group and adds nothing.
    labelled = positive | negative
    lowest = jnp.min(jnp.where(labelled, scores, jnp.inf), initial=jnp.inf)
    known = jnp.where(labelled, scores, lowest)
    falling, positive, negative = jax.lax.sort((-known, positive, negative), num_keys=1)
    differs = falling[1:] != falling[:-1]
    last = jnp.concatenate([differs, jnp.ones_like(positive, shape=min(scores.size, 1))])
    none = jnp.zeros_like(positive, shape=1, dtype=jnp.int32)
    positives, negatives = (
        jnp.concatenate([none, _ranking.at_last(jnp.cumsum(kind, dtype=jnp.int32), last)])
        for kind in (positive, negative)
    )
    start = jnp.full_like(scores, jnp.inf, shape=1)
    return _Called(jnp.concatenate([start, -falling]), positives, negatives)


def _share_of_last(rising: Array, scores: Array) -> Array:
    dtype = _check.working_dtype(scores)
    whole = jnp.broadcast_to(rising[-1].astype(dtype), rising.shape)
    return _confusion.ratio(rising, whole, jnp.nan)
