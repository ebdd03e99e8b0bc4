"""Metrics of groups: of classes, such as the few-shot ones, and of examples, such as subgroups."""

import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike
from jaxbalance.metrics import _confusion


def group_recall(confusion: ArrayLike, groups: ArrayLike, *, num_groups: int) -> Array:
    r"""Mean recall over the present classes of each group of classes.

    .. math:: R_g = \frac{\sum_k [g_k = g]\,[n_k > 0]\, r_k}{\sum_k [g_k = g]\,[n_k > 0]}

    Every class counts the same within its group, as in the many/medium/few-shot accuracies of the
    long-tail literature on a balanced test set.

    Args:
      confusion: ``[..., K, K]``.
      groups: group of each class ``[K]``, integer: :func:`jaxbalance.counts.shot_groups` or
        :func:`jaxbalance.counts.frequency_groups` of the *training* counts. A class whose group
        is outside ``0 .. G-1`` belongs to none.
      num_groups: G, static; with 1 group of all classes this is the balanced accuracy.

    Returns:
      ``[..., G]``, at least float32; NaN for a group without a present class.

    Raises:
      ValueError: shapes or dtypes disagree, or ``num_groups`` is not an integer >= 1.

    >>> confusion = jnp.array([[9, 1, 0], [2, 2, 0], [0, 0, 4]])
    >>> group_recall(confusion, jnp.array([0, 1, 1]), num_groups=2)
    Array([0.9 , 0.75], dtype=float32)
    """
    _check.positive_integer(num_groups=num_groups)
    recalls = _confusion.recall(confusion)
    ids = _check.class_ids(groups, name="groups")
    ids = _check.class_vector("groups", ids, recalls.shape[-1])
    members = ids[None, :] == jnp.arange(num_groups, dtype=ids.dtype)[:, None]
    shape = (*recalls.shape[:-1], *members.shape)
    values = jnp.broadcast_to(recalls[..., None, :], shape)
    return _confusion.macro(jnp.where(jnp.broadcast_to(members, shape), values, jnp.nan))


def group_confusion(
    labels: ArrayLike,
    predictions: ArrayLike,
    groups: ArrayLike,
    *,
    num_classes: int,
    num_groups: int,
) -> Array:
    r"""Count the examples of each group by true and predicted class.

    .. math:: C_{gkj} = \sum_i [g_i = g]\,[y_i = k]\,[\hat y_i = j]

    A stack of confusion matrices, so every function of one gives a number for each group:
    ``worst(accuracy(...))`` is the worst-group accuracy, ``accuracy(jnp.sum(..., axis=0))`` the
    plain one. Groups of class and attribute together are ids ``label * num_attributes +
    attribute``.

    Args:
      labels: integer class ids ``[...]``; −1 and any id outside ``0 .. K-1`` counts nowhere.
      predictions: integer class ids of the same shape, likewise.
      groups: integer group of each example, of the same shape; outside ``0 .. G-1`` likewise.
      num_classes: K, static.
      num_groups: G, static; 1 group of all examples is :func:`confusion_matrix`.

    Returns:
      ``[G, K, K]``, int32; rows true, columns predicted. Those of batches add up.

    Raises:
      ValueError: a dtype is not an integer one, shapes disagree, or a number is not an
        integer >= 1.

    Source: Sagawa et al. 2020, arXiv:1911.08731, for the accuracy of the worst group.

    >>> labels, predictions = jnp.array([0, 1, 1, 0]), jnp.array([0, 1, 0, 0])
    >>> confusion = group_confusion(
    ...     labels, predictions, jnp.array([0, 0, 1, 1]), num_classes=2, num_groups=2
    ... )
    >>> _confusion.accuracy(confusion)
    Array([1. , 0.5], dtype=float32)
    """
    _check.positive_integer(num_classes=num_classes, num_groups=num_groups)
    truth, predicted = _check.class_ids(labels), _check.class_ids(predictions, name="predictions")
    members = _check.class_ids(groups, name="groups")
    predicted = _check.same_shape("predictions", predicted, "labels", truth)
    members = _check.same_shape("groups", members, "labels", truth)
    # Past the end, because a scatter drops what lies there but counts −1 from the back.
    places = tuple(
        _sharding.replicated(jnp.where((ids >= 0) & (ids < size), ids, size)).reshape(-1)
        for ids, size in ((members, num_groups), (truth, num_classes), (predicted, num_classes))
    )
    empty = jnp.zeros((num_groups, num_classes, num_classes), jnp.int32)
    return empty.at[tuple(ids.astype(jnp.int32) for ids in places)].add(1, mode="drop")


def worst(values: ArrayLike) -> Array:
    r"""Lowest of a vector of numbers, one per class or group, over those that have a value.

    .. math:: \min_{k:\, v_k \text{ is not NaN}} v_k

    Args:
      values: ``[..., K]``, NaN where a class or group has none.

    Returns:
      ``[...]``, at least float32; NaN if every entry is.

    Raises:
      ValueError: ``values`` has no class axis.

    >>> worst(jnp.array([0.5, jnp.nan, 1.0]))
    Array(0.5, dtype=float32)
    """
    array = jnp.asarray(values)
    if array.ndim < 1 or array.shape[-1] < 1:
        raise ValueError(f"values: got shape {array.shape}, wanted [..., K]")
    return jnp.nanmin(array.astype(_check.working_dtype(array)), axis=-1)
