"""Agreement of truth and prediction beyond chance, as functions of a confusion matrix."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion


class _OneAgainstRest(NamedTuple):
    """Each class's own 2 × 2 table, as shares of all examples: four arrays ``[..., K]``."""

    hits: Array
    misses: Array
    false_alarms: Array
    others: Array


def _one_against_rest(confusion: ArrayLike) -> _OneAgainstRest:
    matrix = _confusion.square(confusion)
    true, predicted = jnp.sum(matrix, axis=-1), jnp.sum(matrix, axis=-2)
    # Sums of int32 are int64 where x64 is enabled.
    hits = _confusion.diagonal(matrix).astype(true.dtype)
    total = jnp.sum(true, axis=-1, keepdims=True)
    others = total - true - predicted + hits
    parts = hits, true - hits, predicted - hits, others
    return _OneAgainstRest(
        *(_confusion.ratio(part, jnp.broadcast_to(total, part.shape), 0.0) for part in parts)
    )


def _chance_corrected(numerator: Array, denominator: Array, confusion: ArrayLike) -> Array:
    """Their ratio, 0 where the denominator is, NaN where there is no example."""
    values = _confusion.ratio(numerator, denominator, 0.0)
    some = jnp.any(_confusion.present(confusion), axis=-1)
    return jnp.where(some, values, jnp.full_like(values, jnp.nan))


def matthews_correlation(confusion: ArrayLike) -> Array:
    r"""Correlation between true and predicted classes (R_K; Matthews' coefficient for K = 2).

    .. math:: \frac{\sum_k (n\, C_{kk} - t_k p_k)}
                   {\sqrt{\sum_k t_k (n - t_k)} \sqrt{\sum_k p_k (n - p_k)}}

    with t the row sums, p the column sums and n the number of examples. From −1 (for K = 2) to 1.

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32. 0, as in scikit-learn, where it is 0/0: all examples of one
      class, or all predictions of one class. NaN without any example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    Source: Gorodkin 2004, Computational Biology and Chemistry 28(5-6), 367-374.

    >>> matthews_correlation(jnp.array([[3, 1], [1, 3]]))
    Array(0.5, dtype=float32)
    """
    part = _one_against_rest(confusion)
    # n C_kk - t_k p_k = TP TN - FN FP: no product here exceeds the denominator, so whatever
    # cancels leaves an error of a few units in the last place even when n**2 dwarfs the result.
    covariance = jnp.sum(part.hits * part.others - part.misses * part.false_alarms, axis=-1)
    true = (part.hits + part.misses) * (part.false_alarms + part.others)
    predicted = (part.hits + part.false_alarms) * (part.misses + part.others)
    variance = jnp.sum(true, axis=-1) * jnp.sum(predicted, axis=-1)
    spread = jnp.sqrt(jnp.where(variance > 0, variance, jnp.ones_like(variance)))
    spread = jnp.where(variance > 0, spread, jnp.zeros_like(spread))
    return _chance_corrected(covariance, spread, confusion)


def cohen_kappa(confusion: ArrayLike) -> Array:
    r"""Agreement of truth and prediction beyond what their class frequencies make by chance.

    .. math:: \frac{p_o - p_e}{1 - p_e}
              = \frac{\sum_k (n\, C_{kk} - t_k p_k)}{\sum_k t_k (n - p_k)}

    with t the row sums, p the column sums and n the number of examples; unweighted.

    Args:
      confusion: ``[..., K, K]``.

    Returns:
      ``[...]``, at least float32. 0 where it is 0/0: every label and every prediction is the same
      one class (scikit-learn: its ``replace_undefined_by``, NaN by default). NaN without any
      example.

    Raises:
      ValueError: ``confusion`` is not ``[..., K, K]``.

    Source: Cohen 1960, Educational and Psychological Measurement 20(1), 37-46.

    >>> cohen_kappa(jnp.array([[3, 1], [1, 3]]))
    Array(0.5, dtype=float32)
    """
    part = _one_against_rest(confusion)
    agreement = jnp.sum(part.hits * part.others - part.misses * part.false_alarms, axis=-1)
    chance = jnp.sum((part.hits + part.misses) * (part.misses + part.others), axis=-1)
    return _chance_corrected(agreement, chance, confusion)
