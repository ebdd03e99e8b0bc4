"""How far apart the classes lie in a space of features."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike, Scalar

_EXACT = jax.lax.Precision.HIGHEST
# Spread below this many units in the last place of the feature's largest value is taken for none.
_ROUNDING = 32


def fisher_discriminant_ratio(
    features: ArrayLike, labels: ArrayLike, *, num_classes: int, ridge: Scalar = 0.0
) -> Array:
    r"""Spread of features between the classes, in units of that inside them (FDR).

    .. math:: \operatorname{tr} \Sigma_W^{-1} \Sigma_B, \qquad
              \Sigma_W = \frac1N \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top, \qquad
              \Sigma_B = \sum_k \frac{n_k}{N} (\mu_k - \mu)(\mu_k - \mu)^\top

    with μ the mean of all N labelled features: the sum of the eigenvalues of linear discriminant
    analysis. No invertible linear map or shift of the features changes it. Directions in which
    neither kind of spread is more than rounding (constant or repeated features) add nothing. It
    needs all features at once.

    Args:
      features: ``[N, D]``, floating.
      labels: class ids ``[N]``; −1 and any id outside ``0 .. K-1`` is unlabelled: it counts for
        nothing, whatever its features hold.
      num_classes: K, static.
      ridge: r >= 0: r times the mean of the diagonal of Σ_W is added to that diagonal. 0 is the
        identity; with fewer examples than features nothing else gives a finite ratio.

    Returns:
      ``[]``, at least float32. Infinite where the means differ in a direction in which no class has
      any spread; NaN with fewer than two classes present or a labelled feature that is not finite.

    Raises:
      ValueError: shapes or dtypes disagree, ``num_classes`` is not an integer >= 1, or ``ridge`` is
        negative.

    Source: Fukunaga 1990, Introduction to Statistical Pattern Recognition, chapter 10, criterion
    J1; of long-tailed features, Hasegawa and Sato 2023, arXiv:2305.16573.

    >>> features = jnp.array([[0.0], [2.0], [-1.0], [-3.0], [9.0]])
    >>> ratio = fisher_discriminant_ratio(features, jnp.array([0, 0, 1, 1, -1]), num_classes=2)
    >>> f"{ratio:.3f}"
    '2.250'
    """
    _check.positive_integer(num_classes=num_classes)
    _check.at_least(0.0, ridge=ridge)
    rows = _check.rows("features", features)
    ids = _check.same_shape("labels", _check.class_ids(labels), "features by row", rows[:, 0])
    rows, ids = _sharding.replicated(rows), _sharding.replicated(ids)
    rows = rows.astype(_check.working_dtype(rows))
    inside, between, present = _spreads(rows, ids, num_classes)
    covariance = jnp.matmul(inside.T, inside, precision=_EXACT)
    share = jnp.asarray(ridge, rows.dtype) / max(rows.shape[1], 1)
    covariance = covariance + share * jnp.trace(covariance) * jnp.eye(
        rows.shape[1], dtype=rows.dtype
    )
    value = _trace_of_quotient(covariance, between)
    known = (present > 1) & jnp.all(jnp.isfinite(covariance)) & jnp.all(jnp.isfinite(between))
    return jnp.where(known, value, jnp.full_like(value, jnp.nan))


def _spreads(rows: Array, ids: Array, num_classes: int) -> tuple[Array, Array, Array]:
    """Deviations from class means ``[N, D]`` and of these ``[K, D]``, weighted; their number."""
    members = ids[:, None] == jnp.arange(num_classes, dtype=ids.dtype)[None, :]
    labelled = jnp.any(members, axis=-1)
    total = jnp.maximum(jnp.sum(labelled), 1).astype(rows.dtype)
    rows = jnp.where(labelled[:, None], rows, jnp.zeros_like(rows))
    floor = _ROUNDING * float(np.finfo(rows.dtype).eps) * jnp.max(jnp.abs(rows), axis=0, initial=0)
    # Centred first, so that features far from 0 keep their digits.
    rows = jnp.where(labelled[:, None], rows - (jnp.sum(rows, axis=0) / total)[None, :], 0)
    hits = members.astype(rows.dtype)
    number = jnp.sum(hits, axis=0)
    means = jnp.matmul(hits.T, rows, precision=_EXACT) / jnp.maximum(number, 1)[:, None]
    own = means[jnp.argmax(members, axis=-1)]
    inside = jnp.where(labelled[:, None], rows - own, 0) / jnp.sqrt(total)
    between = means * jnp.sqrt(number / total)[:, None]
    return _above(floor, inside), _above(floor, between), jnp.sum(number > 0)


def _above(floor: Array, matrix: Array) -> Array:
    """``matrix``, 0 in the columns whose norm is no more than what rounding makes."""
    negligible = jnp.sum(matrix * matrix, axis=0) <= floor * floor
    return jnp.where(negligible[None, :], jnp.zeros_like(matrix), matrix)


def _trace_of_quotient(covariance: Array, between: Array) -> Array:
    """``tr(covariance⁻¹ betweenᵀ between)``, infinite where the first alone is singular."""
    size = covariance.shape[0]
    deviations = jnp.sqrt(jnp.diagonal(covariance))
    # In units of each feature's own spread, so that small features are not taken for constant.
    scale = jnp.where(deviations > 0, deviations, jnp.ones_like(deviations))
    values, vectors = jnp.linalg.eigh(covariance / (scale[:, None] * scale[None, :]))
    parts = jnp.matmul(between / scale[None, :], vectors, precision=_EXACT)
    squares = jnp.sum(parts * parts, axis=0)
    tolerance = size * float(np.finfo(values.dtype).eps)
    spread = values > tolerance * jnp.max(values, initial=0)
    finite = jnp.sum(jnp.where(spread, squares / jnp.where(spread, values, 1), 0))
    unlimited = jnp.any(~spread & (squares > tolerance * jnp.sum(squares)))
    return jnp.where(unlimited, jnp.full_like(finite, jnp.inf), finite)
