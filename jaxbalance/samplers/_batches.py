"""Draws that follow a schedule, batches of a given make-up, and a shard's part of either."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.samplers._class_index import ClassIndex
from jaxbalance.samplers._draws import balanced_row, class_edges
from jaxbalance.samplers._permutation import permute
from jaxbalance.samplers._schedules import Schedule, as_pytree
from jaxbalance.samplers._streams import (
    divide,
    members,
    once,
    pass_members,
    present_classes,
    row_steps,
    times_divmod,
    words,
)

_ROWS_AT_A_TIME = 64


def scheduled(
    key: Array,
    index: ClassIndex,
    *,
    schedule: Schedule,
    batch_size: int,
    steps: int,
    start: Scalar = 0,
) -> Array:
    r"""Draw a class by the probabilities of the step, then a member of it, for every place.

    .. math:: P_t(k) \propto p_k(t) \text{ over present classes}, \qquad P(i \mid k) = 1 / n_k

    Under :func:`constant_schedule` the rows are those of :func:`class_balanced` with the same
    ``class_probabilities``; under the class counts themselves that is plain sampling with
    replacement, the identity. Memory is that of the answer and of 64 rows of probabilities.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`, of classes or of domains.
      schedule: ``Schedule``, from :func:`temperature_schedule` and its like or any function of
        the step. A new function object compiles anew, one of this module does not.
      batch_size: B.
      steps: number of rows, static.
      start: step of the first row.

    Returns:
      Indices ``[steps, B]``, int32. An absent class is never drawn, whatever its probability; a
      row all of whose probability lies on absent classes is −1.

    Raises:
      ValueError: a size is not a positive integer, or the schedule returns another number of
        classes than the index has.

    >>> from jaxbalance import samplers
    >>> labels = jnp.array([0] * 98 + [1] * 2)
    >>> index = samplers.class_index(labels, num_classes=2)
    >>> late = samplers.switch_schedule(
    ...     samplers.constant_schedule([1, 0]), samplers.constant_schedule([0, 1]), begin=2
    ... )
    >>> rows = scheduled(jax.random.key(0), index, schedule=late, batch_size=3, steps=4)
    >>> labels[rows].tolist()
    [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    """
    _check.positive_integer(batch_size=batch_size)
    return _scheduled(key, index, as_pytree(schedule), row_steps(start, steps), batch_size)


@partial(jax.jit, static_argnums=4)
def _scheduled(
    key: Array, index: ClassIndex, schedule: Partial, steps: Array, batch_size: int
) -> Array:
    def row(step: Array) -> Array:
        share = _check.class_vector("schedule(step)", schedule(step), index.class_counts.size)
        edges = class_edges(index, jnp.log(share.astype(jnp.float32)))
        return balanced_row(key, index, edges, step, batch_size)

    if steps.size <= _ROWS_AT_A_TIME:
        return jax.vmap(row)(steps)
    return jax.lax.map(row, steps, batch_size=_ROWS_AT_A_TIME)


def class_aware(
    key: Array, index: ClassIndex, *, batch_size: int, steps: int, start: Scalar = 0
) -> Array:
    """Batches through which the present classes take turns, so that each holds rare ones.

    Place s of the endless row of batches belongs to class ``s mod K'`` of the K' present ones, and
    each class is gone through in shuffled passes of its own. So a batch of at least K' examples
    holds every present class, the numbers of examples of two classes differ by at most one in any
    run of batches, and so do the uses of two members of a class from the first batch on. Within a
    batch the order is random, so that its shards are alike.

    On an index of :func:`statistic_bins` this is balanced sampling by any statistic of the
    examples: every batch has rare instances.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`.
      batch_size: B.
      steps: number of rows, static.
      start: step of the first row.

    Returns:
      Indices ``[steps, B]``, int32, never −1. An absent class has no turn. A class with fewer
      members than its turns in a batch appears with repetitions.

    Raises:
      ValueError: a size is not a positive integer.

    Source: Shen et al. 2016, arXiv:1512.05830, class-aware sampling. Their order of the classes is
    drawn anew for each cycle; here it is fixed, which is what guarantees every class in a batch.

    >>> from jaxbalance import samplers
    >>> labels = jnp.array([0] * 97 + [1] * 2 + [2])
    >>> index = samplers.class_index(labels, num_classes=3)
    >>> rows = class_aware(jax.random.key(0), index, batch_size=3, steps=2)
    >>> [sorted(labels[row].tolist()) for row in rows]
    [[0, 1, 2], [0, 1, 2]]
    """
    _check.positive_integer(batch_size=batch_size)
    return _class_aware(key, index, row_steps(start, steps), batch_size)


@partial(jax.jit, static_argnums=3)
def _class_aware(key: Array, index: ClassIndex, steps: Array, batch_size: int) -> Array:
    order_word, member_word = words(key, 2)
    order, number = present_classes(index)
    places = jnp.arange(batch_size, dtype=jnp.int32)[None, :]
    order_words = (order_word + steps.astype(jnp.uint32))[:, None]
    size = jnp.asarray(batch_size, jnp.int32)
    cycle, turn = times_divmod(steps, batch_size, number)
    turn = turn[:, None] + once(index, permute, order_words, places, size)
    classes = once(index, _owner, order, number, turn)
    position = once(index, _uses, cycle[:, None], number, turn)
    return members(member_word, index, classes, position)


def _owner(order: Array, number: Array, turn: Array) -> Array:
    return order[divide(turn, number)[1]]


def _uses(cycle: Array, number: Array, turn: Array) -> Array:
    return cycle + divide(turn, number)[0]


def m_per_class(
    key: Array,
    index: ClassIndex,
    *,
    classes_per_batch: int,
    examples_per_class: int,
    steps: int,
    start: Scalar = 0,
) -> Array:
    """In each batch some distinct classes, chosen at random, and the same number of each.

    What losses on pairs or triplets need when there are more classes than a batch can hold. Every
    present class is as likely as any other to be among the P of a batch, and so is every member of
    a class among its m.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`.
      classes_per_batch: P, at most K.
      examples_per_class: m.
      steps: number of batches, static.
      start: step of the first batch.

    Returns:
      Indices ``[steps, P, m]``, int32. The m of a class are distinct, unless it has fewer members:
      then each of them appears floor or ceil of m/n times, a class of one example m times (its
      pairs are then pairs with itself). With fewer than P present classes the rest of the rows
      is −1.

    Raises:
      ValueError: a size is not a positive integer, or ``classes_per_batch`` is more than K.

    Source: Hermans et al. 2017, arXiv:1703.07737, section 2 (batches of P classes with K examples
    of each).

    >>> from jaxbalance import samplers
    >>> index = samplers.class_index(jnp.array([0] * 6 + [1, 2, 2]), num_classes=3)
    >>> rows = m_per_class(
    ...     jax.random.key(0), index, classes_per_batch=3, examples_per_class=2, steps=1
    ... )
    >>> sorted(sorted(group) for group in rows[0].tolist())[1:]
    [[6, 6], [7, 8]]
    """
    _check.positive_integer(
        classes_per_batch=classes_per_batch, examples_per_class=examples_per_class
    )
    num_classes = index.class_counts.shape[0]
    if classes_per_batch > num_classes:
        raise ValueError(
            f"classes_per_batch: got {classes_per_batch}, wanted at most the {num_classes} classes "
            "of the index"
        )
    sizes = classes_per_batch, examples_per_class
    return _m_per_class(key, index, row_steps(start, steps), *sizes)


@partial(jax.jit, static_argnums=(3, 4))
def _m_per_class(
    key: Array, index: ClassIndex, steps: Array, classes_per_batch: int, examples_per_class: int
) -> Array:
    class_word, member_word = words(key, 2)
    order, number = present_classes(index)
    slot = jnp.arange(classes_per_batch, dtype=jnp.int32)[None, :]
    class_words = (class_word + steps.astype(jnp.uint32))[:, None]
    classes = order[permute(class_words, slot, number)][..., None]
    sizes = jnp.maximum(index.class_counts[classes], 1)
    # As many passes per batch as the class needs; a batch never continues a pass of another.
    passes = 1 + divide(jnp.full_like(sizes, examples_per_class - 1), sizes)[0]
    place = jnp.arange(examples_per_class, dtype=jnp.int32)[None, None, :]
    more, place = divide(place, sizes)
    turn = steps[:, None, None] * passes + more
    rows = pass_members(member_word, index, classes, turn, place)
    return jnp.where((slot < number)[..., None], rows, jnp.full_like(rows, -1))


def shard_rows(rows: ArrayLike, *, shard: int | Array, num_shards: int) -> Array:
    """A shard's part of every row: equal consecutive pieces of the last axis.

    The pieces of all shards, side by side, are the rows, so nothing is read twice or by no one, and
    a row of a shard is a function of ``(key, step, shard)`` alone. ``num_shards=1`` is the
    identity.

    Args:
      rows: ``[..., B]`` from any sampler; of a class-major ``[steps, K, b]`` each shard gets
        ``b / num_shards`` of every class.
      shard: which one, in ``0 .. num_shards - 1``; may be traced (``jax.lax.axis_index``).
      num_shards: into how many, static; it must divide B.

    Returns:
      ``[..., B / num_shards]``, the dtype of ``rows``.

    Raises:
      ValueError: ``rows`` are not integers, ``num_shards`` does not divide their last axis, or
        ``shard`` is no shard.

    >>> shard_rows(jnp.array([[5, 2, 7, 0], [1, 4, 3, 6]]), shard=1, num_shards=2)
    Array([[7, 0],
           [3, 6]], dtype=int32)
    """
    _check.positive_integer(num_shards=num_shards)
    _check.between(0, num_shards - 1, shard=shard)
    array = _check.class_ids(rows, name="rows")
    if array.ndim < 1 or array.shape[-1] % num_shards:
        raise ValueError(
            f"rows: got shape {array.shape}, wanted a last axis that {num_shards} shards divide"
        )
    size = array.shape[-1] // num_shards
    begin = jnp.asarray(shard, jnp.int32) * size
    return jax.lax.dynamic_slice_in_dim(array, begin, size, axis=-1)
