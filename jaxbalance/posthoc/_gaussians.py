"""Class-Gaussian statistics: additive moments, and the Gaussians they make."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding, counts
from jaxbalance._types import Array, ArrayLike, Scalar


class ClassMoments(NamedTuple):
    """Additive statistics of features by class: add those of batches, leaf by leaf."""

    class_counts: Array
    """Labelled examples of each class, ``[K]``, int32."""
    totals: Array
    """Sum of each class's features, ``[K, D]``."""
    squares: Array
    """Sum of outer products of features with themselves: ``[1, D, D]`` over all classes together,
    or ``[K, D, D]`` by class."""


class ClassGaussians(NamedTuple):
    """One Gaussian per class, by its principal axes: fit once, use everywhere."""

    class_counts: Array
    """Labelled examples of each class, ``[K]``."""
    means: Array
    """``[K, D]``."""
    variances: Array
    """Variance along each axis, ascending, exactly 0 where there is none to speak of: ``[1, D]`` if
    all classes share one covariance, or ``[K, D]``."""
    axes: Array
    """Orthonormal axes as columns, ``[1, D, D]`` or ``[K, D, D]``."""


def class_moments(
    features: ArrayLike, labels: ArrayLike, *, num_classes: int, own_covariances: bool = False
) -> ClassMoments:
    r"""Counts, sums and sums of squares of features by class.

    .. math:: n_k = \sum_i [y_i = k], \qquad s_k = \sum_i [y_i = k]\, f_i, \qquad
              Q_k = \sum_i [y_i = k]\, f_i f_i^{\top}, \qquad Q = \sum_k Q_k

    Moments of batches add up: ``jax.tree.map(jnp.add, first, second)``. In float32 a covariance
    keeps its digits only while means are not large beside standard deviations, so take a constant
    such as the first batch's mean off all features, here and wherever the result is used.

    Args:
      features: ``[N, D]``, floating.
      labels: integer class ids ``[N]``; −1 and any id outside ``0 .. K-1`` counts nowhere, whatever
        its features hold.
      num_classes: K, static.
      own_covariances: False keeps one Q, enough for a shared covariance; True keeps all Q_k, at K
        times the memory and the work; static.

    Returns:
      :class:`ClassMoments`, sums in at least float32. An absent class holds zeros.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_classes`` is not an integer >= 1.

    >>> features, labels = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1])
    >>> moments = class_moments(features, labels, num_classes=2)
    >>> moments.totals
    Array([[4.],
           [5.]], dtype=float32)
    """
    rows, ids = labelled_rows(features, labels, num_classes)
    wide = rows.astype(_check.working_dtype(rows))
    classes = jnp.arange(num_classes, dtype=ids.dtype)
    member = (ids[None, :] == classes[:, None]).astype(wide.dtype)

    def square(weights: Array) -> Array:
        return jnp.matmul((wide * weights[:, None]).T, wide, precision="highest")

    groups = member if own_covariances else jnp.sum(member, axis=0, keepdims=True)
    return ClassMoments(
        class_counts=counts.class_counts(ids, num_classes=num_classes),
        totals=jnp.matmul(member, wide, precision="highest"),
        squares=jax.lax.map(square, groups),
    )


def labelled_rows(features: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Features, 0 in padding, and labels, −1 in padding, all in one place."""
    _check.positive_integer(num_classes=num_classes)
    rows = _check.rows("features", features)
    ids = _check.class_ids(labels)
    if ids.shape != rows.shape[:1]:
        raise ValueError(
            f"labels: got shape {ids.shape}, wanted shape {rows.shape[:1]} for features of shape "
            f"{rows.shape}"
        )
    ids = jnp.where((ids >= 0) & (ids < num_classes), ids, -1)
    rows = jnp.where((ids >= 0)[:, None], rows, jnp.zeros_like(rows))
    return _sharding.replicated(rows), _sharding.replicated(ids)


def class_means(moments: ClassMoments) -> Array:
    r"""The mean of each class's features: its prototype.

    .. math:: \mu_k = s_k / n_k

    Args:
      moments: from :func:`class_moments`, added up over batches.

    Returns:
      ``[K, D]``, at least float32. An absent class has the mean of all labelled examples; without
      any, all are zero.

    >>> features, labels = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1])
    >>> class_means(class_moments(features, labels, num_classes=2))
    Array([[2.],
           [5.]], dtype=float32)
    """
    number = moments.class_counts.astype(moments.totals.dtype)[:, None]
    everything = jnp.sum(moments.totals, axis=0, keepdims=True)
    overall = everything / jnp.maximum(jnp.sum(number), 1)
    own = moments.totals / jnp.broadcast_to(jnp.maximum(number, 1), moments.totals.shape)
    return jnp.where(number > 0, own, jnp.broadcast_to(overall, own.shape))


def fit_class_gaussians(
    moments: ClassMoments,
    *,
    borrowed_examples: Scalar | None = None,
    shrinkage: Scalar = 0.0,
) -> ClassGaussians:
    r"""Turn moments into one Gaussian per class, of shared or partly borrowed covariance.

    .. math:: \Sigma = \frac1n \sum_k n_k S_k, \qquad
              S_k = \frac{Q_k}{n_k} - \mu_k \mu_k^{\top}, \qquad
              \Sigma_k = \frac{n_k S_k + m \Sigma}{n_k + m}, \qquad
              \hat\Sigma = (1 - \lambda) \Sigma
                           + \lambda \frac{\operatorname{tr} \Sigma}{D} I

    With the default every class has :math:`\hat\Sigma`; with a number m, class k has
    :math:`\Sigma_k`, shrunk in the same way: a frequent class relies on its own examples, a rare
    one borrows its shape from all.

    Identity: ``borrowed_examples=0`` is each class's own covariance, infinity the shared one;
    ``shrinkage=0`` leaves a covariance as it is and 1 makes it a multiple of the identity.

    Args:
      moments: from :func:`class_moments`, added up over batches.
      borrowed_examples: m >= 0, how many examples the shared covariance is worth; None is one
        covariance for all, and enough for :func:`gaussian_discriminant`.
      shrinkage: lambda in [0, 1].

    Returns:
      :class:`ClassGaussians`, at least float32. A class with one example has no covariance of its
      own: 0 at m = 0; an absent class has the mean of all examples and the shared covariance.
      Variances that rounding could have made (below D machine epsilons times the largest mean
      square of a feature) are 0: constant features, and singular covariances, are no error.

    Raises:
      ValueError: ``borrowed_examples`` is negative, or given where ``moments`` has no covariances
        of classes; ``shrinkage`` is outside [0, 1].

    >>> features, labels = jnp.array([[1.0], [3.0], [5.0]]), jnp.array([0, 0, 1])
    >>> moments = class_moments(features, labels, num_classes=2, own_covariances=True)
    >>> fit_class_gaussians(moments).variances
    Array([[0.666...]], dtype=float32)
    >>> fit_class_gaussians(moments, borrowed_examples=1).variances
    Array([[0.888...],
           [0.333...]], dtype=float32)
    """
    _check.between(0.0, 1.0, shrinkage=shrinkage)
    means = class_means(moments)
    covariance = _shared(moments, means)
    if borrowed_examples is not None:
        _check.at_least(0.0, borrowed_examples=borrowed_examples)
        covariance = _borrowing(moments, means, covariance, borrowed_examples)
    size = covariance.shape[-1]
    share = jnp.asarray(shrinkage, covariance.dtype)
    spread = jnp.trace(covariance, axis1=-2, axis2=-1) / size
    round_one = spread[:, None, None] * jnp.eye(size, dtype=covariance.dtype)[None]
    variances, axes = jnp.linalg.eigh((1 - share) * covariance + share * round_one)
    noise = size * float(np.finfo(variances.dtype).eps) * _largest_mean_square(moments)
    return ClassGaussians(
        class_counts=moments.class_counts,
        means=means,
        variances=jnp.where(variances > noise, variances, jnp.zeros_like(variances)),
        axes=axes,
    )


def _largest_mean_square(moments: ClassMoments) -> Array:
    squares = jnp.diagonal(jnp.sum(moments.squares, axis=0))
    number = jnp.maximum(jnp.sum(moments.class_counts), 1).astype(squares.dtype)
    return jnp.max(squares, initial=0) / number


def _shared(moments: ClassMoments, means: Array) -> Array:
    """The covariance of all classes together, each about its own mean, ``[1, D, D]``."""
    between = jnp.matmul(moments.totals.T, means, precision="highest")
    number = jnp.maximum(jnp.sum(moments.class_counts), 1).astype(means.dtype)
    within = (jnp.sum(moments.squares, axis=0) - between) / number
    return ((within + within.T) / 2)[None]


def _borrowing(
    moments: ClassMoments, means: Array, shared: Array, borrowed_examples: Scalar
) -> Array:
    """Each class's covariance mixed with the shared one, ``[K, D, D]``."""
    if moments.squares.shape[0] != means.shape[0]:
        raise ValueError(
            f"borrowed_examples: got {borrowed_examples} for moments of one covariance, wanted "
            "None, or moments made with own_covariances=True"
        )
    number = moments.class_counts.astype(means.dtype)[:, None, None]
    safe = jnp.maximum(number, 1)
    own = moments.squares / jnp.broadcast_to(safe, moments.squares.shape)
    own = own - means[:, :, None] * means[:, None, :]
    lent = 1 / (1 + safe / jnp.asarray(borrowed_examples, means.dtype))
    lent = jnp.where(number > 0, lent, jnp.ones_like(lent))
    return (1 - lent) * own + lent * shared
