"""Trimming: examples that lie far from what the rest of their class agrees on."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, counts
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.posthoc._gaussians import labelled_rows

_ROUNDS = 3


def trim_outliers(
    features: ArrayLike, labels: ArrayLike, *, num_classes: int, trim: Scalar
) -> Array:
    r"""Unlabel the share of each class that lies farthest from the class's centre.

    .. math:: \text{keep the } n_k - \lfloor \kappa n_k \rfloor \text{ smallest }
              \lVert f_i - c_k \rVert_2 \text{ of each class } k

    The centre starts as the coordinate-wise median and is replaced by the mean of what is kept,
    three times over. What follows (:func:`class_moments`, a refit of the head) then runs on the
    returned labels as it would on any others. For noisy labels: it needs the wrong ones to be a
    minority of their class, so it cannot save a tail class that mistakes outnumber.

    Identity: ``trim=0`` returns the labels.

    Args:
      features: ``[N, D]``, floating.
      labels: integer class ids ``[N]``; −1 and any id outside ``0 .. K-1`` is unlabelled, whatever
        its features hold.
      num_classes: K, static.
      trim: kappa in [0, 1]. Every present class keeps at least one example.

    Returns:
      Labels ``[N]``, −1 where trimmed or unlabelled. Of equally far examples the later are trimmed.

    Raises:
      ValueError: shapes or dtypes disagree, ``num_classes`` is not an integer >= 1, or ``trim`` is
        outside [0, 1].

    Source: Zhang et al. 2022, arXiv:2211.10955 (RCAL), remove outliers before they estimate class
    Gaussians from noisy labels; trimming by distance is the simplest such removal, not theirs.

    >>> features = jnp.array([[0.0], [0.1], [0.2], [9.0], [5.0]])
    >>> trim_outliers(features, jnp.array([0, 0, 0, 0, 1]), num_classes=2, trim=0.25)
    Array([ 0,  0,  0, -1,  1], dtype=int32)
    """
    _check.between(0.0, 1.0, trim=trim)
    rows, ids = labelled_rows(features, labels, num_classes)
    wide = rows.astype(_check.working_dtype(rows))
    group = jnp.where(ids >= 0, ids, num_classes)
    number = counts.class_counts(ids, num_classes=num_classes)
    starts = jnp.cumsum(number) - number
    limit = jnp.append(_number_kept(number, jnp.asarray(trim, wide.dtype)), 0)

    def keep(centres: Array) -> Array:
        distance = jnp.sum((wide - centres[jnp.maximum(ids, 0)]) ** 2, axis=-1)
        place = jnp.arange(ids.size, dtype=starts.dtype)
        ordered, _, origin = jax.lax.sort((group, distance, place), num_keys=2, is_stable=True)
        rank = place - jnp.append(starts, 0)[ordered]
        return jnp.zeros_like(ids, dtype=bool).at[origin].set(rank < limit[ordered])

    def recentre(_: int, kept: Array) -> Array:
        chosen = jnp.where(kept, group, num_classes)
        sums = jax.ops.segment_sum(wide, chosen, num_classes + 1)[:-1]
        sizes = jax.ops.segment_sum(kept.astype(wide.dtype), chosen, num_classes + 1)[:-1]
        return keep(sums / jnp.maximum(sizes, 1)[:, None])

    kept = jax.lax.fori_loop(0, _ROUNDS, recentre, keep(_medians(wide, group, number, starts)))
    return jnp.where(kept, ids, -1)


def _number_kept(number: Array, trim: Array) -> Array:
    # A share such as 0.1 of 30 is 3, whichever way its float is rounded.
    share = trim * (1 + 4 * float(np.finfo(trim.dtype).eps))
    dropped = jnp.floor(share * number.astype(trim.dtype)).astype(number.dtype)
    return jnp.maximum(number - dropped, 1)


def _medians(rows: Array, group: Array, number: Array, starts: Array) -> Array:
    """The coordinate-wise median of each class, ``[K, D]``."""
    if rows.shape[0] == 0:
        return jnp.zeros((number.size, rows.shape[1]), rows.dtype)
    column = jnp.broadcast_to(group[:, None], rows.shape)
    _, ordered = jax.lax.sort((column, rows), dimension=0, num_keys=2)
    last = rows.shape[0] - 1
    low, high = (
        jnp.clip(starts + place, 0, last)
        for place in (jnp.maximum(number - 1, 0) // 2, number // 2)
    )
    return ordered[low] / 2 + ordered[high] / 2
