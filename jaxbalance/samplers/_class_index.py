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
