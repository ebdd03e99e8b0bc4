"""Where the members of each class are, so that samplers can draw from a class."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike


class ClassIndex(NamedTuple):
    """The examples of a data set, grouped by class; an ordinary pytree of three arrays.

    The members of class k are ``members[starts[k] : starts[k] + class_counts[k]]``.
    """

    members: Array
    """Positions of all labelled examples ``[n]``, int32, sorted by class."""
    starts: Array
    """Where each class begins in ``members``, ``[K]``, int32."""
    class_counts: Array
    """Members of each class ``[K]``, int32."""


def class_index(labels: ArrayLike, *, num_classes: int) -> ClassIndex:
    """Group examples by class, on the host, once per data set.

    Args:
      labels: class ids ``[N]``; −1 and other ids outside ``0 .. K-1`` belong to no class and are
        never drawn.
      num_classes: K.

    Returns:
      A :class:`ClassIndex` whose members keep their order within each class.

    Raises:
      ValueError: ``labels`` is not a vector of integers, or no example is labelled.

    >>> class_index(np.array([1, 0, 1, -1]), num_classes=2).members
    Array([1, 0, 2], dtype=int32)
    """
    _check.positive_integer(num_classes=num_classes)
    ids = np.asarray(labels)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"labels: got shape {ids.shape} and dtype {ids.dtype}, wanted integer class ids [N]"
        )
    labelled = np.flatnonzero((ids >= 0) & (ids < num_classes))
    if labelled.size == 0:
        raise ValueError(f"labels: got no id in 0 .. {num_classes - 1}, wanted at least one")
    members = labelled[np.argsort(ids[labelled], kind="stable")]
    class_counts = np.bincount(ids[labelled], minlength=num_classes)
    starts = np.cumsum(class_counts) - class_counts
    return ClassIndex(*(jnp.asarray(a, jnp.int32) for a in (members, starts, class_counts)))


def multilabel_index(labels: ArrayLike) -> ClassIndex:
    r"""Group the examples of a multi-label problem by label, on the host, once per data set.

    An example is a member of every label it has, so each sampler then draws a label by its rule and
    an example that has it. Drawing labels with probabilities q reaches example i with

    .. math:: P(i) = \sum_k q_k \frac{y_{ik}}{n_k}, \qquad n_k = \textstyle\sum_i y_{ik}

    which is more than for its rarest label alone: frequent labels ride along with rare ones, and
    :func:`jaxbalance.losses.distribution_balanced_loss` is there to put that right.

    Args:
      labels: ``[N, K]`` in {0, 1, −1}; −1 is unknown and makes nobody a member. An example without
        any label belongs nowhere and is never drawn: to draw such examples too, append a column
        that is 1 for them.

    Returns:
      A :class:`ClassIndex`; ``class_counts`` are the positives of each label, their sum is the
      length of ``members``.

    Raises:
      ValueError: ``labels`` is not ``[N, K]``, holds another number, or no label is on.

    >>> index = multilabel_index(np.array([[1, 0], [1, 1], [0, 0]]))
    >>> index.members.tolist(), index.class_counts.tolist()
    ([0, 1, 1], [2, 1])
    """
    table = np.asarray(labels)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ValueError(f"labels: got shape {table.shape}, wanted shape [N, K]")
    on = table == 1
    if not np.all(on | (table == 0) | (table == -1)):
        raise ValueError("labels: got numbers other than 0, 1 and -1, wanted only these")
    label, members = np.nonzero(on.T)
    if members.size == 0:
        raise ValueError("labels: got no 1, wanted at least one label that is on")
    class_counts = np.bincount(label, minlength=table.shape[1])
    starts = np.cumsum(class_counts) - class_counts
    return ClassIndex(*(jnp.asarray(a, jnp.int32) for a in (members, starts, class_counts)))
