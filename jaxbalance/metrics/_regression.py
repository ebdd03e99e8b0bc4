"""Errors of a regression by bin of the target, so that rare targets are seen: additive sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check, _sharding, counts
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion


class RegressionErrors(NamedTuple):
    """Sums over the examples of each bin; all of them add up."""

    examples: Array
    """How many there are ``[M]``, int32."""
    absolute: Array
    """Sum of their absolute errors ``[M]``."""
    squared: Array
    """Sum of their squared errors ``[M]``."""
    log_absolute: Array
    """Sum of the logarithms of their absolute errors ``[M]``; −∞ with an error of 0."""


def regression_errors(
    predictions: ArrayLike, targets: ArrayLike, bins: ArrayLike, *, num_bins: int
) -> RegressionErrors:
    r"""Add up the errors of the examples of each bin.

    .. math:: \sum_{i:\, b_i = b} |e_i|, \qquad \sum_{i:\, b_i = b} e_i^2, \qquad
              \sum_{i:\, b_i = b} \log |e_i|, \qquad e_i = \hat y_i - y_i

    Args:
      predictions: ``[...]``, floating.
      targets: of the same shape, floating.
      bins: integer, of the same shape: the bin of each target, for instance of
        :func:`jaxbalance.losses.target_bins`; −1 and any id outside ``0 .. M-1`` counts nowhere,
        whatever prediction and target hold. A labelled NaN makes its bin NaN.
      num_bins: M, static; with 1 bin of all examples these are the usual errors.

    Returns:
      :class:`RegressionErrors`, floats at least float32. Errors of batches add up.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_bins`` is not an integer >= 1.

    >>> errors = regression_errors(
    ...     jnp.array([1.0, 3.0, 9.0]), jnp.array([2.0, 5.0, 1.0]), jnp.array([0, 0, 1]), num_bins=2
    ... )
    >>> errors.examples, errors.absolute
    (Array([2, 1], dtype=int32), Array([3., 8.], dtype=float32))
    """
    _check.positive_integer(num_bins=num_bins)
    first, second, ids = _labelled(predictions, targets, bins, num_bins)
    error = first - second
    return RegressionErrors(
        examples=counts.class_counts(ids, num_classes=num_bins),
        absolute=counts.class_sums(jnp.abs(error), ids, num_classes=num_bins),
        squared=counts.class_sums(error * error, ids, num_classes=num_bins),
        log_absolute=counts.class_sums(jnp.log(jnp.abs(error)), ids, num_classes=num_bins),
    )


def group_errors(
    errors: RegressionErrors, groups: ArrayLike, *, num_groups: int
) -> RegressionErrors:
    r"""Add up the errors of bins to those of groups of bins, such as the few-shot ones.

    .. math:: s_g = \sum_{b:\, g_b = g} s_b

    Every *example* counts the same within its group; in a mean of bins, ``macro``, every bin does.

    Args:
      errors: of M bins.
      groups: group of each bin ``[M]``, integer: :func:`jaxbalance.counts.shot_groups` or
        :func:`jaxbalance.counts.frequency_groups` of the *training* counts of the bins. A bin whose
        group is outside ``0 .. G-1`` belongs to none.
      num_groups: G, static; ``groups=arange(M)`` with G = M is the identity.

    Returns:
      :class:`RegressionErrors` of G groups.

    Raises:
      ValueError: ``groups`` is not integer ``[M]`` or ``num_groups`` is not an integer >= 1.

    Source: Yang et al. 2021, arXiv:2102.09554, section 4: many-, medium- and few-shot regions.

    >>> errors = regression_errors(
    ...     jnp.array([1.0, 3.0, 9.0]), jnp.array([2.0, 5.0, 1.0]), jnp.array([0, 0, 1]), num_bins=2
    ... )
    >>> mean_absolute_error(group_errors(errors, jnp.array([0, 0]), num_groups=1))
    Array([3.666...], dtype=float32)
    """
    _check.positive_integer(num_groups=num_groups)
    ids = _check.class_ids(groups, name="groups")
    ids = _check.same_shape("groups", ids, "errors.examples", errors.examples)

    def grouped(values: Array) -> Array:
        members = ids[:, None] == jnp.arange(num_groups, dtype=ids.dtype)[None, :]
        parts = jnp.where(members, values[:, None], jnp.zeros((), values.dtype))
        return jnp.sum(parts, axis=0, dtype=values.dtype)

    return jax.tree.map(grouped, errors)


def mean_absolute_error(errors: RegressionErrors) -> Array:
    r"""Mean absolute error of each bin (MAE).

    .. math:: \frac{1}{n_b} \sum_{i:\, b_i = b} |e_i|

    ``macro`` of it is the balanced MAE: every bin weighs the same.

    Args:
      errors: ``[..., M]``.

    Returns:
      ``[..., M]``; NaN for an empty bin.

    Source: for the mean over bins, Ren et al. 2022, arXiv:2203.16427, section 5.

    >>> one = regression_errors(jnp.ones(2), jnp.array([0.0, 3.0]), jnp.zeros(2, int), num_bins=1)
    >>> mean_absolute_error(one)
    Array([1.5], dtype=float32)
    """
    return _per_example(errors.absolute, errors)


def mean_squared_error(errors: RegressionErrors) -> Array:
    r"""Mean squared error of each bin (MSE).

    .. math:: \frac{1}{n_b} \sum_{i:\, b_i = b} e_i^2

    Args:
      errors: ``[..., M]``.

    Returns:
      ``[..., M]``; NaN for an empty bin.

    >>> one = regression_errors(jnp.ones(2), jnp.array([0.0, 3.0]), jnp.zeros(2, int), num_bins=1)
    >>> mean_squared_error(one)
    Array([2.5], dtype=float32)
    """
    return _per_example(errors.squared, errors)


def geometric_mean_error(errors: RegressionErrors) -> Array:
    r"""Geometric mean of the absolute errors of each bin (GM).

    .. math:: \Bigl( \prod_{i:\, b_i = b} |e_i| \Bigr)^{1 / n_b}

    Args:
      errors: ``[..., M]``.

    Returns:
      ``[..., M]``; exactly 0 for a bin with an error of 0, NaN for an empty one.

    Source: Yang et al. 2021, arXiv:2102.09554, section 4.

    >>> one = regression_errors(jnp.ones(2), jnp.array([5.0, 10.0]), jnp.zeros(2, int), num_bins=1)
    >>> geometric_mean_error(one)
    Array([6.], dtype=float32)
    """
    return jnp.exp(_per_example(errors.log_absolute, errors))


def pearson_correlation(
    predictions: ArrayLike, targets: ArrayLike, bins: ArrayLike, *, num_bins: int
) -> Array:
    r"""Correlation of predictions and targets within each bin or group of examples.

    .. math:: r_b = \frac{\sum_i (\hat y_i - \bar{\hat y}_b)(y_i - \bar y_b)}
                         {\sqrt{\sum_i (\hat y_i - \bar{\hat y}_b)^2}
                          \sqrt{\sum_i (y_i - \bar y_b)^2}}

    over the examples of bin b. Centred before anything is squared, which sums over batches cannot
    be: it needs all examples at once.

    Args:
      predictions: ``[...]``, floating.
      targets: of the same shape, floating.
      bins: integer, of the same shape, as in :func:`regression_errors`. By shot it is
        ``groups[bins]`` with the group of each bin (and −1 where the bin is).
      num_bins: M, static; with 1 bin of all examples it is the usual correlation.

    Returns:
      ``[M]`` in [−1, 1], at least float32; NaN for a bin in which predictions or targets are all
      equal, or that is empty.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_bins`` is not an integer >= 1.

    >>> pearson_correlation(
    ...     jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 4.0, 6.5]), jnp.zeros(3, int), num_bins=1
    ... )
    Array([0.997...], dtype=float32)
    """
    _check.positive_integer(num_bins=num_bins)
    first, second, ids = _labelled(predictions, targets, bins, num_bins)
    one, other = _centred(first, ids, num_bins), _centred(second, ids, num_bins)

    def summed(products: Array) -> Array:
        return counts.class_sums(products, ids, num_classes=num_bins)

    spreads = jnp.sqrt(summed(one * one)) * jnp.sqrt(summed(other * other))
    return jnp.clip(_confusion.ratio(summed(one * other), spreads, jnp.nan), -1, 1)


def _centred(values: Array, ids: Array, num_bins: int) -> Array:
    """Values ``[N]`` less the mean of their bin, 0 in no bin."""
    # First less the lowest of the bin, or rounding of the mean would spread equal values out.
    members = ids[:, None] == jnp.arange(num_bins, dtype=ids.dtype)[None, :]
    lowest = jnp.min(jnp.where(members, values[:, None], jnp.inf), axis=0, initial=jnp.inf)
    own = jnp.maximum(ids, 0)
    values = jnp.where(ids >= 0, values - lowest[own], jnp.zeros_like(values))
    number = jnp.sum(members, axis=0).astype(values.dtype)
    sums = counts.class_sums(values, ids, num_classes=num_bins)
    return jnp.where(ids >= 0, values - _confusion.ratio(sums, number, 0.0)[own], values)


def _labelled(
    predictions: ArrayLike, targets: ArrayLike, bins: ArrayLike, num_bins: int
) -> tuple[Array, Array, Array]:
    """All three as vectors, the first two of one dtype, bins −1 where they are none."""
    first, second = _check.floating("predictions", predictions), _check.floating("targets", targets)
    second = _check.same_shape("targets", second, "predictions", first)
    ids = _check.class_ids(bins, name="bins")
    ids = _check.same_shape("bins", ids, "predictions", first)
    dtype = jnp.promote_types(_check.working_dtype(first), _check.working_dtype(second))
    first, second, ids = (_sharding.replicated(array) for array in (first, second, ids))
    ids = jnp.where((ids >= 0) & (ids < num_bins), ids, jnp.full_like(ids, -1))
    return first.reshape(-1).astype(dtype), second.reshape(-1).astype(dtype), ids.reshape(-1)


def _per_example(sums: Array, errors: RegressionErrors) -> Array:
    return _confusion.ratio(sums, errors.examples.astype(sums.dtype), jnp.nan)
