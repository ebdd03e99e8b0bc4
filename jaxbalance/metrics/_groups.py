"""Metrics of groups of classes, such as the many-, medium- and few-shot ones."""

import jax.numpy as jnp

from jaxbalance import _check
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
