"""SMOTE: synthetic examples between neighbours of one class, on the device."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbalance import _check, _sharding, counts
from jaxbalance._types import Array, ArrayLike, HostArray
from jaxbalance.augment import _neighbors


class Resampled(NamedTuple):
    """R examples, a stretch per class; row r is ``x[seed] + weight * (x[partner] - x[seed])``."""

    inputs: Array
    """``[R, ...]``, floating; zeros where a class has nothing to draw from."""
    labels: Array
    """Class ids ``[R]``, int32; −1 where a class has nothing to draw from."""
    seeds: Array
    """Places of the examples they start from, ``[R]``, int32."""
    partners: Array
    """Places of the neighbours they go towards, ``[R]``, int32; the seed itself for an original."""
    weights: Array
    """How far they go, ``[R]`` in [0, 1); 0 for an original."""


def smote(
    key: Array,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    target_counts: Sequence[int] | HostArray,
    k: int = 5,
    eligible: ArrayLike | None = None,
) -> Resampled:
    r"""Resample to exact class counts: classes grow by synthetic examples and shrink at random.

    .. math:: \tilde x = x + u\,(x' - x), \qquad u \sim U(0, 1), \quad
              x' \text{ one of the } k \text{ nearest of the class}

    A class of :math:`n_k` examples keeps :math:`\min(n_k, m_k)` of them, drawn without replacement,
    and the rest of its target :math:`m_k` is synthetic, from every eligible example in turn.
    Targets of :math:`n_k` are the identity, up to order; targets between the counts of rare and
    frequent classes are the published SMOTE with under-sampling. Distances mix all inputs:
    standardise them first. The shapes depend on the targets alone, so this compiles once and runs
    on any device.

    Args:
      key: a JAX PRNG key.
      inputs: ``[N, ...]`` of any rank, flattened for distances; integers become float32. Training
        data alone: a synthetic example of a test example is a leak.
      labels: class ids ``[N]``; −1 is never used, nor is an example with a number that is not
        finite.
      target_counts: m, ``[K]``, integers on the host.
      k: number of neighbours; a class of n <= k examples uses all n − 1 others.
      eligible: which examples may be seeds of synthetic ones, boolean ``[N]``, such as
        :func:`borderline`; None is all. A class with no eligible example uses all of its own.

    Returns:
      ``Resampled(inputs, labels, seeds, partners, weights)`` with R the sum of the targets. A class
      of one example is repeated. A class that has none leaves rows of label −1, which every loss
      here ignores.

    Raises:
      ValueError: shapes do not fit each other, a target is negative or not whole, none is positive,
        or ``k`` is not a positive integer.

    Source: Chawla et al. 2002, arXiv:1106.1813, section 4.2. Like imbalanced-learn, u is drawn once
    for all inputs; the published pseudo-code draws it for each, which leaves the segment.

    >>> x, y = jnp.array([[0.0], [1.0], [4.0], [5.0], [6.0]]), jnp.array([0, 0, 1, 1, 1])
    >>> new = smote(jax.random.key(0), x, y, target_counts=[4, 2])
    >>> new.labels, bool(jnp.all(new.inputs[:4] <= 1.0))
    (Array([0, 0, 0, 0, 1, 1], dtype=int32), True)
    """
    _check.positive_integer(k=k)
    targets = _targets(target_counts)
    points, ids = _neighbors.flat(inputs, labels, len(targets))
    may = None if eligible is None else _sharding.replicated(jnp.asarray(eligible))
    if may is not None and (may.shape != ids.shape or may.dtype != np.dtype(bool)):
        raise ValueError(
            f"eligible: got {may.dtype} of shape {may.shape}, wanted booleans of {ids.shape}"
        )
    grows = counts.class_counts(ids, num_classes=len(targets)) < jnp.asarray(targets)
    largest = int(min(len(points), max(targets.max(), 1)))
    near = _neighbors.of_classes(points, ids, grows, k, largest)
    return _assemble(key, _sharding.replicated(jnp.asarray(inputs)), ids, targets, near, may)


def borderline(inputs: ArrayLike, labels: ArrayLike, *, num_classes: int, m: int = 10) -> Array:
    r"""Examples in danger: most, but not all, of their neighbours are of other classes.

    .. math:: m / 2 \le \#\{j \in N_m(i) : y_j \ne y_i\} < m

    With them, ``smote(..., eligible=borderline(...))`` is Borderline-SMOTE 1: the seeds are those
    in danger, neighbours may be any of the class. Where all neighbours are foreign the example is
    taken for noise.

    Args:
      inputs: ``[N, ...]``, flattened.
      labels: class ids ``[N]``; −1 is in no danger and no neighbour.
      num_classes: K.
      m: number of neighbours of any class; with fewer examples than that, all there are.

    Returns:
      Booleans ``[N]``.

    Raises:
      ValueError: shapes do not fit each other, or ``m`` is not a positive integer.

    Source: Han, Wang and Mao 2005, "Borderline-SMOTE", steps 1 and 2.

    >>> x, y = jnp.array([[0.0], [0.1], [2.0], [2.9], [3.0]]), jnp.array([0, 0, 0, 1, 1])
    >>> borderline(x, y, num_classes=2, m=2)
    Array([False, False, False,  True,  True], dtype=bool)
    """
    _check.positive_integer(num_classes=num_classes, m=m)
    points, ids = _neighbors.flat(inputs, labels, num_classes)
    one = jnp.where(ids < num_classes, 0, 1)
    near = _neighbors.of_classes(points, one, jnp.ones(1, bool), m, len(points)).indices
    there = near >= 0
    foreign = there & (ids[jnp.maximum(near, 0)] != ids[:, None])
    number, others = jnp.sum(foreign, axis=1), jnp.sum(there, axis=1)
    return (2 * number >= others) & (number < others)


def _targets(target_counts: Sequence[int] | HostArray) -> HostArray:
    targets = _check.host_counts("target_counts", np.asarray(target_counts))
    if not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(f"target_counts: got dtype {targets.dtype}, wanted integers")
    if targets.sum() == 0:
        raise ValueError("target_counts: got zeros alone, wanted at least one example")
    return targets.astype(np.int32)


def _assemble(
    key: Array,
    inputs: Array,
    ids: Array,
    targets: HostArray,
    near: _neighbors.Neighbors,
    may: Array | None,
) -> Resampled:
    classes = np.repeat(np.arange(len(targets), dtype=np.int32), targets)
    within = np.arange(len(classes)) - np.repeat(np.cumsum(targets) - targets, targets)
    of, rank = jnp.asarray(classes), jnp.asarray(within.astype(np.int32))
    shuffle, choose, go = jax.random.split(key, 3)
    everyone = _Members(shuffle, ids, len(targets))
    first = everyone
    if may is not None:
        first = _Members(shuffle, jnp.where(may, ids, len(targets)), len(targets))
    kept = rank < everyone.counts[of]
    turn = rank - everyone.counts[of]
    seed = jnp.where(first.counts[of] > 0, first.of(of, turn), everyone.of(of, turn))
    seed = jnp.where(kept, everyone.of(of, rank), seed)
    available = jnp.sum(near.indices[seed] >= 0, axis=1)
    drawn = jax.random.randint(choose, seed.shape, 0, jnp.maximum(available, 1))
    partner = jnp.take_along_axis(near.indices[seed], drawn[:, None], axis=1)[:, 0]
    synthetic = ~kept & (available > 0)
    partner = jnp.where(synthetic, partner, seed)
    weight = jnp.where(synthetic, jax.random.uniform(go, seed.shape), 0)
    return _rows(inputs, jnp.where(everyone.counts[of] > 0, of, -1), seed, partner, weight)


class _Members:
    """The examples of every class in a random order, each class going round and round."""

    def __init__(self, key: Array, ids: Array, num_classes: int):
        bits, places = jax.random.bits(key, ids.shape, jnp.uint32), jnp.arange(ids.size)
        ordered, _, self.places = jax.lax.sort((ids, bits, places), num_keys=2)
        ends = jnp.searchsorted(ordered, jnp.arange(num_classes + 1), side="left")
        self.starts, self.counts = ends[:-1], jnp.diff(ends)

    def of(self, classes: Array, rank: Array) -> Array:
        """Place of the ``rank``-th example of a class; some place where the class has none."""
        turn = jnp.maximum(rank, 0) % jnp.maximum(self.counts[classes], 1)
        return self.places[jnp.minimum(self.starts[classes] + turn, len(self.places) - 1)]


def _rows(inputs: Array, labels: Array, seed: Array, partner: Array, weight: Array) -> Resampled:
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    dtype = inputs.dtype if floating else np.dtype(np.float32)
    first, second = inputs[seed].astype(dtype), inputs[partner].astype(dtype)
    share = weight.reshape(-1, *[1] * (inputs.ndim - 1)).astype(dtype)
    rows = first + share * (second - first)
    there = (labels >= 0).reshape(share.shape)
    rows = jnp.where(there, rows, jnp.zeros_like(rows))
    return Resampled(
        rows, labels, seed.astype(jnp.int32), partner.astype(jnp.int32), weight.astype(dtype)
    )
