"""From class counts to priors and class weights."""

import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar


def floor_absent(class_counts: ArrayLike) -> Array:
    """Give every absent class the count of the rarest present one; all absent gives all ones.

    This keeps logarithms and ratios of counts finite without disturbing any other class, and is
    unchanged when all counts are multiplied by the same number.

    Args:
      class_counts: ``[K]``.

    Returns:
      Positive counts ``[K]``, at least float32.

    Raises:
      ValueError: ``class_counts`` is not ``[K]``.

    >>> floor_absent(jnp.array([90, 0, 10]))
    Array([90., 10., 10.], dtype=float32)
    """
    counts = _check.class_vector("class_counts", class_counts)
    infinity = jnp.array(jnp.inf, counts.dtype)
    rarest = jnp.min(jnp.where(counts > 0, counts, infinity))
    rarest = jnp.where(jnp.isfinite(rarest), rarest, jnp.ones_like(rarest))
    return jnp.where(counts > 0, counts, rarest)


def log_prior(class_counts: ArrayLike) -> Array:
    r"""Log of each class's share of the examples.

    .. math:: \log \pi_k = \log n_k - \log \textstyle\sum_j n_j

    An absent class gets the log prior of the rarest present class (:func:`floor_absent`), and the
    present classes' values do not depend on it. With no examples at all every class gets −log K.

    Args:
      class_counts: ``[K]``.

    Returns:
      ``[K]``, at least float32, finite.

    Raises:
      ValueError: ``class_counts`` is not ``[K]``.

    >>> log_prior(jnp.array([3, 1])).round(4)
    Array([-0.2877, -1.3863], dtype=float32)
    """
    counts = _check.class_vector("class_counts", class_counts)
    floored = floor_absent(counts)
    total = jnp.sum(counts)
    total = jnp.where(total > 0, total, jnp.sum(floored))
    return jnp.log(floored) - jnp.log(total)


def effective_number(class_counts: ArrayLike, *, beta: Scalar) -> Array:
    r"""Effective number of examples: how much of a class is new when examples overlap.

    .. math:: E_k = \frac{1 - \beta^{n_k}}{1 - \beta}

    ``beta=0`` gives 1 for every present class and ``beta=1`` gives the count itself (the limit).
    An absent class has effective number 0.

    Args:
      class_counts: ``[K]``.
      beta: overlap in [0, 1]; published settings are 0.9, 0.99, 0.999, 0.9999.

    Returns:
      ``[K]``, at least float32.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``beta`` is outside [0, 1].

    Source: Cui et al. 2019, arXiv:1901.05555, eq. 2.

    >>> effective_number(jnp.array([0, 1, 1000]), beta=0.99).round(3)
    Array([ 0.   ,  1.   , 99.996], dtype=float32)
    """
    _check.between(0.0, 1.0, beta=beta)
    counts = _check.class_vector("class_counts", class_counts)
    beta = jnp.asarray(beta, counts.dtype)
    inside = (beta > 0) & (beta < 1)
    safe = jnp.where(inside, beta, jnp.full_like(beta, 0.5))
    # expm1 keeps the digits that 1 - beta**n loses in float32 for beta near 1.
    mixed = -jnp.expm1(counts * jnp.log(safe)) / (1 - safe)
    limit = jnp.where(beta < 1, (counts > 0).astype(counts.dtype), counts)
    return jnp.where(inside, mixed, limit)


def _mean_one(sizes: Array, power: Array) -> Array:
    """Weights ``sizes ** -power``, scaled to mean one over the classes of positive size."""
    present = sizes > 0
    # Relative to the smallest size, so that no power overflows.
    smallest = jnp.min(jnp.where(present, sizes, jnp.full_like(sizes, jnp.inf)))
    ratio = jnp.where(present, smallest / jnp.where(present, sizes, 1), 1)
    raw = jnp.where(present, ratio**power, 0)
    number = jnp.sum(present).astype(sizes.dtype)
    # The smallest size contributes exactly 1, so the sum is below 1 only if no class is present.
    return raw * (number / jnp.maximum(jnp.sum(raw), 1))


def inverse_frequency_weights(class_counts: ArrayLike, *, power: Scalar = 1.0) -> Array:
    r"""Class weights proportional to a negative power of the count, mean one over present classes.

    .. math:: w_k = \frac{K' n_k^{-p}}{\sum_{j: n_j > 0} n_j^{-p}}

    with K' the number of present classes. ``power=0`` is the identity (all present classes 1),
    ``0.5`` the square-root rule, ``1`` full inverse frequency.

    Args:
      class_counts: ``[K]``.
      power: p >= 0.

    Returns:
      ``[K]``, at least float32. An absent class gets 0 and does not change the others; with no
      examples at all every weight is 0.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``power`` is negative.

    >>> inverse_frequency_weights(jnp.array([30, 10, 0]))
    Array([0.5..., 1.5..., 0. ...], dtype=float32)
    """
    _check.at_least(0.0, power=power)
    counts = _check.class_vector("class_counts", class_counts)
    return _mean_one(counts, jnp.asarray(power, counts.dtype))


def effective_number_weights(class_counts: ArrayLike, *, beta: Scalar = 0.999) -> Array:
    r"""Class-balanced weights: one over the effective number, mean one over present classes.

    .. math:: w_k = \frac{K' / E_k}{\sum_{j: n_j > 0} 1 / E_j},
              \qquad E_k = \frac{1 - \beta^{n_k}}{1 - \beta}

    ``beta=0`` is the identity (all present classes 1), ``beta=1`` full inverse frequency.

    Args:
      class_counts: ``[K]``.
      beta: overlap in [0, 1].

    Returns:
      ``[K]``, at least float32; an absent class gets 0 and does not change the others.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``beta`` is outside [0, 1].

    Source: Cui et al. 2019, arXiv:1901.05555, eq. 3 with the normalisation of its section 4. (The
    authors' TensorFlow code normalises to K, counting absent classes too.)

    >>> effective_number_weights(jnp.array([1000, 10]), beta=0.99)
    Array([0.1745..., 1.8254...], dtype=float32)
    """
    sizes = effective_number(class_counts, beta=beta)
    return _mean_one(sizes, jnp.ones((), sizes.dtype))
