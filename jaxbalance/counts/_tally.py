"""From labels to additive class statistics."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike


class LabelCounts(NamedTuple):
    """How often each label of a multi-label problem is on and off, ``[K]`` each."""

    positive: Array
    negative: Array


def class_counts(labels: ArrayLike, *, num_classes: int) -> Array:
    r"""Count the examples of each class.

    .. math:: n_k = \sum_i [y_i = k]

    Args:
      labels: integer class ids of any shape; ids outside ``0 .. K-1``, −1 too, count nowhere.
      num_classes: K, static, so that the function compiles.

    Returns:
      Counts ``[K]``, int32. Counts of batches add up to the count of the whole.

    Raises:
      ValueError: ``labels`` is not of an integer dtype, or ``num_classes`` is not an integer >= 1.

    >>> class_counts(jnp.array([0, 2, 2, -1]), num_classes=3)
    Array([1, 0, 2], dtype=int32)
    """
    _check.positive_integer(num_classes=num_classes)
    ids = _check.class_ids(labels).reshape(-1)
    # Compare-and-sum fuses without materialising [N, K] and, unlike a scatter, needs no
    # communication pattern of its own when the labels are sharded.
    hits = ids[:, None] == jnp.arange(num_classes, dtype=ids.dtype)[None, :]
    return jnp.sum(hits, axis=0, dtype=jnp.int32)


def multilabel_counts(labels: ArrayLike) -> LabelCounts:
    """Count how often each label is on (1) and off (0); −1 is unknown and counts in neither.

    Args:
      labels: ``[..., K]`` in {0, 1, −1}, of any dtype.

    Returns:
      ``LabelCounts(positive [K], negative [K])``, int32.

    Raises:
      ValueError: ``labels`` has no class axis.

    >>> multilabel_counts(jnp.array([[1, 0], [1, -1]]))
    LabelCounts(positive=Array([2, 0], dtype=int32), negative=Array([0, 1], dtype=int32))
    """
    array = jnp.asarray(labels)
    if array.ndim < 1:
        raise ValueError(f"labels: got shape {array.shape}, wanted [..., K]")
    flat = array.reshape(-1, array.shape[-1])
    on, off = (jnp.sum(flat == value, axis=0, dtype=jnp.int32) for value in (1, 0))
    return LabelCounts(positive=on, negative=off)


def class_sums(values: ArrayLike, labels: ArrayLike, *, num_classes: int) -> Array:
    r"""Add up one number per example by class: the additive half of any per-class mean.

    .. math:: s_k = \sum_i [y_i = k]\, v_i

    Args:
      values: ``[...]``, floating.
      labels: integer class ids of the same shape (−1 belongs to no class), or class probabilities
        ``[..., K]``, where each example adds to every class in proportion.
      num_classes: K, static.

    Returns:
      Sums ``[K]`` in the dtype of ``values``, at least float32. Sums of batches add up.

    Raises:
      ValueError: shapes disagree.

    >>> class_sums(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 1, 1]), num_classes=3)
    Array([1., 6., 0.], dtype=float32)
    """
    array = _check.floating("values", values)
    scores = jnp.empty((*array.shape, num_classes), array.dtype)
    array = array.astype(_check.working_dtype(array))
    targets = _check.labels(labels, scores, scores_name="values per class")
    if not _check.is_class_ids(targets):
        parts = targets.astype(array.dtype) * array[..., None]
    else:
        classes = jnp.arange(num_classes, dtype=targets.dtype)
        hits = targets[..., None] == jnp.broadcast_to(classes, scores.shape)
        parts = jnp.where(hits, array[..., None], jnp.zeros((), array.dtype))
    return jnp.sum(parts.reshape(-1, num_classes), axis=0)
