"""Groups of classes by how frequent they are."""

import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike


def frequency_groups(class_counts: ArrayLike, *, num_groups: int) -> Array:
    r"""Split the classes into groups of about equal numbers of *examples*, most frequent first.

    Classes are sorted by falling count (ties keep their order); with :math:`S_k` the number of
    examples before class k in that order and n the total, the class goes to group

    .. math:: \lfloor G\, S_k / n \rfloor,

    so a class that crosses a breakpoint stays in the earlier group. A class larger than n/G
    swallows breakpoints: the groups it covers are empty, simply unused in the answer.

    Args:
      class_counts: ``[K]``.
      num_groups: G, static.

    Returns:
      Group of each class ``[K]``, int32, 0 the most frequent. Absent classes are in the last group.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``num_groups`` is not an integer >= 1.

    Source: the frequency groups of Kunstner et al. 2024, arXiv:2402.19449.

    >>> frequency_groups(jnp.array([1, 50, 30, 19]), num_groups=2)
    Array([1, 0, 1, 1], dtype=int32)
    """
    _check.positive_integer(num_groups=num_groups)
    counts = _check.class_vector("class_counts", class_counts)
    order = jnp.argsort(-counts, stable=True)
    sorted_counts = counts[order]
    before = jnp.cumsum(sorted_counts) - sorted_counts
    total = jnp.maximum(jnp.sum(counts), 1e-30)
    # A hair above the breakpoint, so that float32 sums of equal counts land on the right side.
    share = before / total * num_groups * (1 + 1e-6)
    group = jnp.minimum(jnp.floor(share), num_groups - 1).astype(jnp.int32)
    return jnp.zeros_like(group).at[order].set(group)


def shot_groups(class_counts: ArrayLike, *, many: int = 100, few: int = 20) -> Array:
    """Sort classes into many-, medium- and few-shot by their training counts.

    Group 0 (many) has more than ``many`` examples, group 2 (few) fewer than ``few``, group 1
    (medium) the rest, both ends included.

    Args:
      class_counts: training counts ``[K]``.
      many: upper end of medium.
      few: lower end of medium.

    Returns:
      Group of each class ``[K]``, int32 in {0, 1, 2}.

    Raises:
      ValueError: ``class_counts`` is not ``[K]`` or ``few`` exceeds ``many``.

    Source: Liu et al. 2019, arXiv:1904.05160, section 4.

    >>> shot_groups(jnp.array([500, 100, 20, 19]))
    Array([0, 1, 1, 2], dtype=int32)
    """
    if few > many:
        raise ValueError(f"few: got {few}, wanted at most many={many}")
    counts = _check.class_vector("class_counts", class_counts)
    return jnp.where(counts > many, 0, jnp.where(counts < few, 2, 1)).astype(jnp.int32)
