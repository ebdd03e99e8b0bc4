"""Samplers: from a key to a matrix of example indices."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check
from jaxbalance._types import Array, ArrayLike, Scalar
from jaxbalance.samplers._class_index import ClassIndex
from jaxbalance.samplers._permutation import permute
from jaxbalance.samplers._streams import (
    divide,
    members,
    once,
    pass_members,
    row_steps,
    times_divmod,
    words,
)


def shuffled_epochs(
    key: Array,
    *,
    num_examples: int,
    batch_size: int,
    steps: int,
    start: Scalar = 0,
    pad_last: bool = False,
) -> Array:
    """Every example once per epoch, each epoch in a new random order.

    Row t depends on ``(key, start + t)`` alone, so a run that resumes at step s passes ``start=s``
    and gets exactly the rows it would have got; a shard takes its own columns.

    Args:
      key: a JAX PRNG key.
      num_examples: N.
      batch_size: B.
      steps: number of rows, static.
      start: step of the first row.
      pad_last: False lets a batch run on into the next epoch, so that every row is full; True ends
        each epoch with a row padded with −1, so that N need not be a multiple of B.

    Returns:
      Indices ``[steps, B]``, int32, in ``0 .. N-1`` or −1.

    Raises:
      ValueError: a size is not a positive integer.

    >>> rows = shuffled_epochs(jax.random.key(0), num_examples=6, batch_size=3, steps=2)
    >>> sorted(rows.reshape(-1).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    _check.positive_integer(num_examples=num_examples, batch_size=batch_size)
    epoch_length = num_examples
    if pad_last:
        epoch_length = -(-num_examples // batch_size) * batch_size
    return _shuffled(key, row_steps(start, steps), num_examples, batch_size, epoch_length)


# Compiled here, each draw below is one program also where nobody compiles the caller.
@partial(jax.jit, static_argnums=(2, 3, 4))
def _shuffled(
    key: Array, steps: Array, num_examples: int, batch_size: int, epoch_length: int
) -> Array:
    epoch, place = _stream(steps, batch_size, jnp.asarray(epoch_length, jnp.int32))
    names = words(key, 1)[0] + epoch.astype(jnp.uint32)
    rows = permute(names, place, jnp.asarray(num_examples, jnp.int32))
    return jnp.where(place < num_examples, rows, jnp.full_like(rows, -1))


def _stream(step: Array, batch_size: int, epoch_length: Array) -> tuple[Array, Array]:
    """Epoch and place ``[steps, B]`` of every element of the given steps."""
    start_epoch, start_place = times_divmod(step, batch_size, epoch_length)
    more, place = divide(
        start_place[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None, :], epoch_length
    )
    return start_epoch[:, None] + more, place


def class_balanced(
    key: Array,
    index: ClassIndex,
    *,
    batch_size: int,
    steps: int,
    start: Scalar = 0,
    temperature: Scalar = float("inf"),
    class_probabilities: ArrayLike | None = None,
) -> Array:
    r"""Draw a class, then a member of it, independently for every place in every batch.

    .. math:: P(k) \propto n_k^{1/T} \text{ over present classes}, \qquad
              P(i \mid k) = 1 / n_k

    ``temperature=1`` is the identity: plain sampling with replacement from the data;
    ``temperature=2`` is square-root sampling and infinity, the default, gives every present class
    the same share.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`.
      batch_size: B.
      steps: number of rows, static.
      start: step of the first row.
      temperature: T > 0.
      class_probabilities: ``[K]``, used in place of the temperature rule; need not add up to one.
        An absent class is never drawn, whatever its probability.

    Returns:
      Indices ``[steps, B]``, int32; all −1 if no present class has a positive probability.

    Raises:
      ValueError: a size is not a positive integer, ``temperature`` is not positive, or
        ``class_probabilities`` is not ``[K]``.

    Source: Kang et al. 2020, arXiv:1910.09217, eq. 1 with q = 1/T.

    >>> from jaxbalance import samplers
    >>> labels = np.array([0] * 98 + [1] * 2)
    >>> index = samplers.class_index(labels, num_classes=2)
    >>> rows = class_balanced(jax.random.key(0), index, batch_size=50, steps=40)
    >>> bool(abs(labels[np.asarray(rows)].mean() - 0.5) < 0.05)
    True
    """
    _check.positive_integer(batch_size=batch_size)
    _check.more_than(0.0, temperature=temperature)
    if class_probabilities is None:
        sizes = jnp.maximum(index.class_counts, 1).astype(jnp.float32)
        log_share = jnp.log(sizes) / jnp.asarray(temperature, jnp.float32)
    else:
        number = index.class_counts.shape[0]
        share = _check.class_vector("class_probabilities", class_probabilities, number)
        log_share = jnp.log(share.astype(jnp.float32))
    return _balanced(key, index, log_share, row_steps(start, steps), batch_size)


@partial(jax.jit, static_argnums=4)
def _balanced(
    key: Array, index: ClassIndex, log_share: Array, steps: Array, batch_size: int
) -> Array:
    edges = class_edges(index, log_share)
    return jax.vmap(lambda step: balanced_row(key, index, edges, step, batch_size))(steps)


def class_edges(index: ClassIndex, log_share: Array) -> Array:
    """Cumulative probabilities ``[K]`` of the present classes; zeros where nobody has a share."""
    drawable = (index.class_counts > 0) & (log_share > -jnp.inf)
    somebody = jnp.any(drawable)
    masked = jnp.where(drawable | ~somebody, log_share, jnp.full_like(log_share, -jnp.inf))
    share = jax.nn.softmax(jnp.where(somebody, masked, jnp.zeros_like(masked)))
    return jnp.cumsum(jnp.where(somebody, share, jnp.zeros_like(share)))


def balanced_row(
    key: Array, index: ClassIndex, edges: Array, step: Array, batch_size: int
) -> Array:
    """Draw one row: for every place a class by its share, and a member of it; −1 if none has."""
    # The two words of each place's own key: as random as bits drawn with it, and far cheaper.
    own = jax.random.key_data(jax.random.split(jax.random.fold_in(key, step), batch_size))
    uniform = (own[:, 0] >> 8).astype(jnp.float32) * jnp.float32(2**-24)
    classes = once(index, _class_of, edges.astype(jnp.float32), uniform)
    sizes = index.class_counts[classes].astype(jnp.uint32)
    place = _high_product(own[:, 1], sizes).astype(jnp.int32)
    rows = index.members[index.starts[classes] + place]
    return jnp.where(edges[-1] > 0, rows, jnp.full_like(rows, -1))


def _class_of(edges: Array, uniform: Array) -> Array:
    """How many ``edges [K]`` are at most each of ``uniform``; the last with a share at most."""
    # The last class with a share owns the rounding error above its edge, never one without.
    return _number_below(
        jnp.where(edges < edges[-1], edges, jnp.full_like(edges, jnp.inf)), uniform
    )


def _number_below(edges: Array, values: Array) -> Array:
    """How many of the sorted ``edges [K]`` are at most each value, never all of them.

    Found digit by digit, each by comparing with a row of about ten: faster than halving, of which
    every round is a gather, and than comparing with all.
    """
    digits = max(1, math.ceil(math.log10(edges.size)))
    side = next(side for side in itertools.count(1) if side**digits >= edges.size)
    wide = (1,) * values.ndim
    # No value is above the last edge, so that may stand for what pads the table.
    padded = jnp.pad(edges, (0, side**digits - edges.size), mode="edge")
    rows = padded[side ** (digits - 1) - 1 :: side ** (digits - 1)].reshape(*wide, side)
    found = jnp.sum(rows <= values[..., None], axis=-1, dtype=jnp.int32)
    for digit in reversed(range(digits - 1)):
        rows = padded[side**digit - 1 :: side**digit].reshape(-1, side)[found]
        within = jnp.sum(rows <= values[..., None], axis=-1, dtype=jnp.int32)
        found = found * side + within
    return found


def _high_product(left: Array, right: Array) -> Array:
    """The upper 32 of the 64 bits of a product of uint32: ``left`` scaled to ``0 .. right-1``."""
    low, high = left & 0xFFFF, left >> 16
    other_low, other_high = right & 0xFFFF, right >> 16
    middle = high * other_low + (low * other_low >> 16)
    carry = low * other_high + (middle & 0xFFFF)
    return high * other_high + (middle >> 16) + (carry >> 16)


def stratified(
    key: Array, index: ClassIndex, *, examples_per_class: int, steps: int, start: Scalar = 0
) -> Array:
    """The same number of examples of every class in every batch, class-major.

    Each class is gone through in shuffled passes of its own, so its members are used equally often
    (to within one) at any moment.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`.
      examples_per_class: b.
      steps: number of batches, static.
      start: step of the first batch.

    Returns:
      Indices ``[steps, K, b]``, int32. A class with fewer than b members appears more than once in
      a batch; the row of an absent class is −1.

    Raises:
      ValueError: a size is not a positive integer.

    >>> from jaxbalance import samplers
    >>> index = samplers.class_index(np.array([0, 0, 0, 1]), num_classes=2)
    >>> stratified(jax.random.key(0), index, examples_per_class=2, steps=3).shape
    (3, 2, 2)
    """
    _check.positive_integer(examples_per_class=examples_per_class)
    return _class_major(key, index, row_steps(start, steps), examples_per_class)


@partial(jax.jit, static_argnums=3)
def _class_major(key: Array, index: ClassIndex, step: Array, examples_per_class: int) -> Array:
    sizes = jnp.maximum(index.class_counts, 1)[None, :]
    classes = jnp.arange(sizes.size, dtype=jnp.int32)[None, :, None]
    number, place = times_divmod(step[:, None], examples_per_class, sizes)
    place = place[..., None] + jnp.arange(examples_per_class, dtype=jnp.int32)[None, None, :]
    more, place = divide(place, sizes[..., None])
    word = words(key, 1)[0]
    return pass_members(word, index, classes, number[..., None] + more, place)


def resampled_epochs(
    key: Array,
    index: ClassIndex,
    *,
    target_counts: ArrayLike | Sequence[int],
    batch_size: int,
    steps: int,
    start: Scalar = 0,
) -> Array:
    """Shuffled epochs in which class k appears exactly ``target_counts[k]`` times.

    A target above a class's size over-samples it: every member appears floor or ceil of
    target/size times. A target below it under-samples it: each epoch takes other members, in turn,
    so that over several epochs nothing is thrown away. Targets come from
    :func:`oversampled_counts` or :func:`undersampled_counts`; ``target_counts`` equal to the class
    counts is the identity.

    Args:
      key: a JAX PRNG key; row t depends on ``(key, start + t)`` alone.
      index: from :func:`class_index`.
      target_counts: ``[K]`` on the host (their sum is the epoch's length); must be 0 for no one but
        classes that should not appear.
      batch_size: B; a batch runs on into the next epoch, so every row is full.
      steps: number of rows, static.
      start: step of the first row.

    Returns:
      Indices ``[steps, B]``, int32. A place that falls to an absent class is −1.

    Raises:
      ValueError: ``target_counts`` is not ``[K]``, is negative or sums to nothing, or a size is not
        a positive integer.

    >>> from jaxbalance import samplers
    >>> index = samplers.class_index(np.array([0, 0, 0, 0, 1]), num_classes=2)
    >>> rows = resampled_epochs(
    ...     jax.random.key(0), index, target_counts=[4, 4], batch_size=8, steps=1
    ... )
    >>> sorted(rows[0].tolist())
    [0, 1, 2, 3, 4, 4, 4, 4]
    """
    _check.positive_integer(batch_size=batch_size)
    targets = _check.host_counts("target_counts", target_counts).astype(np.int64)
    if targets.shape != index.class_counts.shape or targets.sum() < 1:
        raise ValueError(
            f"target_counts: got {targets.tolist()}, wanted {index.class_counts.shape[0]} counts, "
            "one per class, not all zero"
        )
    ends = jnp.asarray(np.cumsum(targets), jnp.int32)
    return _resampled(key, index, ends, row_steps(start, steps), batch_size)


@partial(jax.jit, static_argnums=4)
def _resampled(key: Array, index: ClassIndex, ends: Array, steps: Array, batch_size: int) -> Array:
    # Targets are data: other targets, or another data set of the same size, compile nothing.
    length = ends[-1]
    order_word, member_word = words(key, 2)
    epoch, place = _stream(steps, batch_size, length)
    slot = once(index, permute, order_word + epoch.astype(jnp.uint32), place, length)
    classes = once(index, _number_below, ends, slot)
    position = once(index, _position, ends, classes, epoch, slot)
    return members(member_word, index, classes, position)


def _position(ends: Array, classes: Array, epoch: Array, slot: Array) -> Array:
    """Which of all the uses of its class a slot of an epoch is, from the first epoch on."""
    starts = jnp.concatenate([jnp.zeros_like(ends[:1]), ends[:-1]])
    return epoch * (ends - starts)[classes] + slot - starts[classes]


def oversampled_counts(class_counts: ArrayLike, *, ratio: float = 1.0) -> np.ndarray:
    r"""Target counts that raise rare classes until the largest is at most ``ratio`` times any.

    .. math:: m_k = \max(n_k, \lceil \max_j n_j / \rho \rceil)

    An infinite ``ratio`` (or one at least the present imbalance) is the identity; 1 balances fully.

    Args:
      class_counts: ``[K]``, on the host.
      ratio: allowed imbalance rho >= 1.

    Returns:
      Targets ``[K]``, int64, for :func:`resampled_epochs`; an absent class stays 0.

    Raises:
      ValueError: a negative count, or ``ratio`` below 1.

    Source: Buda et al. 2018, arXiv:1710.05381, section 2.2.

    >>> oversampled_counts([100, 10, 0], ratio=2)
    array([100,  50,   0])
    """
    _check.at_least(1.0, ratio=ratio)
    sizes = _check.host_counts("class_counts", class_counts).astype(np.int64)
    floor = np.ceil(sizes.max() / ratio).astype(np.int64)
    return np.where(sizes > 0, np.maximum(sizes, floor), 0)


def undersampled_counts(class_counts: ArrayLike, *, ratio: float = 1.0) -> np.ndarray:
    r"""Target counts that cut frequent classes to at most ``ratio`` times the rarest present one.

    .. math:: m_k = \min(n_k, \lfloor \rho \min_{j: n_j > 0} n_j \rfloor)

    An infinite ``ratio`` (or one at least the present imbalance) is the identity; 1 balances fully.

    Args:
      class_counts: ``[K]``, on the host.
      ratio: allowed imbalance rho >= 1.

    Returns:
      Targets ``[K]``, int64, for :func:`resampled_epochs`.

    Raises:
      ValueError: a negative count, no present class, or ``ratio`` below 1.

    Source: Buda et al. 2018, arXiv:1710.05381, section 2.2.

    >>> undersampled_counts([100, 10, 0], ratio=2)
    array([20, 10,  0])
    """
    _check.at_least(1.0, ratio=ratio)
    sizes = _check.host_counts("class_counts", class_counts).astype(np.int64)
    if not np.any(sizes > 0):
        raise ValueError(f"class_counts: got {sizes.tolist()}, wanted at least one present class")
    ceiling = min(sizes[sizes > 0].min() * ratio, sizes.max())
    return np.minimum(sizes, int(ceiling))
