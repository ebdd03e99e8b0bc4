"""Areas under the ROC curves of all pairs of classes."""

import jax
import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion, _ranking


def pairwise_auroc(scores: ArrayLike, labels: ArrayLike) -> Array:
    r"""How often an example of class j outranks one of class k in the scores of class j.

    .. math:: A_{jk} = \frac{1}{n_j n_k} \sum_{i:\, y_i = j} \sum_{l:\, y_l = k}
              \left( [s_{ij} > s_{lj}] + \tfrac12 [s_{ij} = s_{lj}] \right)

    Each entry compares two classes alone, so none depends on how frequent the classes are, unlike
    one class against the rest. Exact, with no gradient; needs all scores at once. Takes memory
    O(N K) and time O(N K²).

    Args:
      scores: ``[N, K]``, floating: logits or probabilities.
      labels: integer class ids ``[N]``; −1 and any id outside ``0 .. K-1`` counts nowhere.

    Returns:
      ``[K, K]``, at least float32. NaN on the diagonal, in rows and columns of absent classes, and
      where a score of either class in the column that is compared is NaN.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Hand and Till 2001, Machine Learning 45(2), 171-186, eq. 3 and before.

    >>> scores = jnp.array([[0.6, 0.2], [0.7, 0.3], [0.65, 0.35]])
    >>> pairwise_auroc(scores, jnp.array([0, 0, 1]))
    Array([[nan, 0.5],
           [1. , nan]], dtype=float32)
    """
    array = _check.logits(scores, name="scores")
    if array.ndim != 2:
        raise ValueError(f"scores: got shape {array.shape}, wanted [N, K]")
    ids = _check.labels(_check.class_ids(labels), array, scores_name="scores")
    array, ids = _sharding.replicated(array), _sharding.replicated(ids)
    classes = jnp.arange(array.shape[-1], dtype=ids.dtype)

    def row(column_and_class: tuple[Array, Array]) -> Array:
        return _against_each(*column_and_class, ids, classes)

    return jax.lax.map(row, (array.T, classes))


def hand_till_auroc(scores: ArrayLike, labels: ArrayLike) -> Array:
    r"""Multi-class area under the ROC curve: the mean over all pairs of present classes (M).

    .. math:: M = \frac{2}{K' (K' - 1)} \sum_{j < k} \frac{A_{jk} + A_{kj}}{2}

    with A of :func:`pairwise_auroc`: every pair of classes counts the same, however rare. For two
    classes whose scores sum to a constant it is :func:`auroc`.

    Args:
      scores: ``[N, K]``, floating: logits or probabilities.
      labels: integer class ids ``[N]``; −1 and any id outside ``0 .. K-1`` counts nowhere.

    Returns:
      ``[]``, at least float32. Absent classes are left out (scikit-learn's
      ``roc_auc_score(multi_class="ovo")`` refuses them); NaN with fewer than two present classes or
      where a labelled example has a NaN among its scores of present classes.

    Raises:
      ValueError: shapes or dtypes disagree.

    Source: Hand and Till 2001, Machine Learning 45(2), 171-186, eq. 7.

    >>> scores = jnp.array([[0.6, 0.2], [0.7, 0.3], [0.65, 0.35]])
    >>> hand_till_auroc(scores, jnp.array([0, 0, 1]))
    Array(0.75, dtype=float32)
    """
    pairs = pairwise_auroc(scores, labels)
    ids = _check.class_ids(labels)
    present = jnp.any(ids[:, None] == jnp.arange(pairs.shape[0], dtype=ids.dtype)[None, :], axis=0)
    compared = present[:, None] & present[None, :] & ~jnp.eye(pairs.shape[0], dtype=bool)
    total = jnp.sum(jnp.where(compared, pairs, jnp.zeros_like(pairs)))
    return _confusion.ratio(total, jnp.sum(compared).astype(total.dtype), jnp.nan)


def _against_each(scores: Array, own: Array, ids: Array, classes: Array) -> Array:
    """Row ``own`` of the table, ``[K]``, from the scores ``[N]`` of that class."""
    dtype = _check.working_dtype(scores)
    members = ids[:, None] == classes[None, :]
    broken = jnp.any(jnp.isnan(scores)[:, None] & members, axis=0)
    order = jnp.argsort(scores)
    scores, sorted_members = scores[order], members[order]
    differs = scores[1:] != scores[:-1]
    end = jnp.ones_like(differs, shape=min(scores.size, 1))
    first, last = jnp.concatenate([end, differs]), jnp.concatenate([differs, end])
    counts = jnp.cumsum(sorted_members, axis=0, dtype=jnp.int32)

    def outranked(mine: Array, count: Array) -> Array:
        below = _ranking.at_first(count - mine.astype(jnp.int32), first)
        number = jnp.maximum(jnp.max(count, initial=0), 1).astype(dtype)
        twice = (below + _ranking.at_last(count, last)).astype(dtype)
        return _ranking.mean_over(twice / (2 * number), sorted_members[:, own])

    values = jax.vmap(outranked, in_axes=1)(sorted_members, counts)
    undefined = broken | broken[own] | (classes == own) | ~jnp.any(members, axis=0)
    return jnp.where(undefined, jnp.full_like(values, jnp.nan), values)
