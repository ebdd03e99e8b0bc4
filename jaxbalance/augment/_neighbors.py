"""The nearest examples of the same class, tile by tile, without all distances at once."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxbalance import _check, _sharding
from jaxbalance._types import Array, ArrayLike

_ROWS = 256
_COLUMNS = 10240
_BLOCK = 16


class Neighbors(NamedTuple):
    """Nearest examples of the same class, the nearest first."""

    indices: Array
    """Their places ``[N, k]``, int32; −1 where the class has no more."""
    squared_distances: Array
    """``[N, k]``, infinite where there is none."""


class _Classes(NamedTuple):
    """Examples sorted by class: each class is one stretch."""

    points: Array
    """Each followed by minus half its square, all by zeros, so that a tile may begin anywhere."""
    order: Array
    starts: Array
    counts: Array


def nearest_neighbors(
    inputs: ArrayLike, labels: ArrayLike, *, num_classes: int, k: int = 5
) -> Neighbors:
    r"""For every example the k nearest others of its class, exactly.

    .. math:: \text{the } k \text{ smallest } \lVert x_i - x_j \rVert^2
              \text{ over } j \ne i,\; y_j = y_i

    Distances are matrix products of tiles of 256 examples with at most 10,240 others, each reduced
    to its k best before the next is looked at: memory does not grow with the number of examples
    squared. Within a tile the k blocks of 16 with the smallest minima hold the k smallest numbers,
    so little is sorted.

    Args:
      inputs: ``[N, ...]``, flattened. An example with a number that is not finite counts as
        unlabelled.
      labels: class ids ``[N]``; −1 has no neighbours and is nobody's. All zeros, with
        ``num_classes=1``, asks for neighbours of any class.
      num_classes: K.
      k: number of neighbours.

    Returns:
      ``Neighbors(indices, squared_distances)``. A class of n examples has n − 1 neighbours for
      each. Duplicates are neighbours at distance 0; of equal distances any may be found. Distances
      are differences of rounded squares around the mean of all inputs, so those of near duplicates
      far from it are only good to the last digits of the squares.

    Raises:
      ValueError: shapes do not fit each other, or ``k`` is not a positive integer.

    >>> x = jnp.array([[0.0], [1.0], [3.0], [3.5]])
    >>> nearest_neighbors(x, jnp.array([0, 0, 0, 1]), num_classes=2, k=2).indices
    Array([[ 1,  2],
           [ 0,  2],
           [ 1,  0],
           [-1, -1]], dtype=int32)
    """
    _check.positive_integer(num_classes=num_classes, k=k)
    points, ids = flat(inputs, labels, num_classes)
    return of_classes(points, ids, jnp.ones(num_classes, bool), k, len(points))


def flat(inputs: ArrayLike, labels: ArrayLike, num_classes: int) -> tuple[Array, Array]:
    """Inputs as floating rows, and ids in which everything unlabelled is K."""
    x, ids = jnp.asarray(inputs), _check.class_ids(labels)
    if x.ndim < 1 or ids.shape != x.shape[:1]:
        raise ValueError(
            f"labels: got shape {ids.shape}, wanted one class id for each of {x.shape}"
        )
    x, ids = _sharding.replicated(x), _sharding.replicated(ids)
    rows = x.reshape(len(x), -1).astype(_check.working_dtype(x))
    usable = (ids >= 0) & (ids < num_classes) & jnp.all(jnp.isfinite(rows), axis=1)
    rows = jnp.where(usable[:, None], rows, jnp.zeros_like(rows))
    return rows, jnp.where(usable, ids, num_classes).astype(jnp.int32)


@partial(jax.jit, static_argnums=(3, 4))
def of_classes(points: Array, ids: Array, wanted: Array, k: int, largest: int) -> Neighbors:
    """Neighbours of the examples of wanted classes, none of which has over ``largest``."""
    number, num_classes = len(points), len(wanted)
    columns = _width(largest, k)
    classes = _sorted(points, ids, num_classes, max(_ROWS, columns))
    tiles = jnp.where(wanted, -(-classes.counts // _ROWS), 0)
    ends = jnp.cumsum(tiles)

    def tile(_: None, at: Array) -> tuple[None, tuple[Array, Array, Array]]:
        of = jnp.minimum(jnp.searchsorted(ends, at, side="right"), num_classes - 1)
        row = (at - ends[of] + tiles[of]) * _ROWS
        real = (at < ends[-1]) & (row + jnp.arange(_ROWS) < classes.counts[of])
        near, place = _one_tile(classes, of, row, jnp.where(at < ends[-1], 1, 0), k, columns)
        rows = jnp.where(real, classes.starts[of] + row + jnp.arange(_ROWS), number)
        return None, (rows, near, place)

    # A tile holds one class, so that each class may leave one tile unfilled.
    every = jnp.arange(number // _ROWS + num_classes, dtype=jnp.int32)
    _, (rows, near, place) = jax.lax.scan(tile, None, every)
    rows = jnp.append(classes.order, number)[rows.reshape(-1)]
    empty = jnp.full((number + 1, k), jnp.inf, points.dtype)
    distances = empty.at[rows].set(near.reshape(-1, k))[:-1]
    indices = jnp.full((number + 1, k), -1, jnp.int32).at[rows].set(place.reshape(-1, k))[:-1]
    return Neighbors(indices, distances)


def _width(largest: int, k: int) -> int:
    """Columns of a tile: equal shares of the largest class, in more than k whole blocks."""
    pieces = -(-largest // _COLUMNS)
    return max(-(-largest // (pieces * _BLOCK)), k + 1) * _BLOCK


def _sorted(points: Array, ids: Array, num_classes: int, more: int) -> _Classes:
    order = jnp.argsort(ids, stable=True).astype(jnp.int32)
    ends = jnp.searchsorted(ids[order], jnp.arange(num_classes + 1), side="left")
    centred = (points - jnp.mean(points, axis=0)[None])[order]
    halves = jnp.sum(centred * centred, axis=1, keepdims=True) / 2
    padded = jnp.pad(jnp.concatenate([centred, -halves], axis=1), ((0, more), (0, 0)))
    return _Classes(padded, order, ends[:-1], jnp.diff(ends))


def _one_tile(
    classes: _Classes, of: Array, row: Array, turns: Array, k: int, columns: int
) -> tuple[Array, Array]:
    """The k nearest of one tile's rows: squared distances and places, ``[rows, k]`` each."""
    start, count = classes.starts[of], classes.counts[of]
    cut = jax.lax.dynamic_slice_in_dim
    own = cut(classes.points, start + row, _ROWS)
    halves, own = -own[:, -1:], own.at[:, -1].set(1)

    def piece(turn: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        first = turn * columns
        others = cut(classes.points, start + first, columns)
        there = first + jnp.arange(columns) < count
        others = others.at[:, -1].set(jnp.where(there, others[:, -1], -jnp.inf))
        # Minus half a squared distance, but for half the square of the row, which orders nothing.
        near = jnp.matmul(own, others.T, precision=jax.lax.Precision.HIGHEST)
        return _largest(near, first, best)

    nothing = (_ROWS, k + 1)
    best = jnp.full(nothing, -jnp.inf, own.dtype), jnp.full(nothing, -1, jnp.int32)
    near, member = jax.lax.fori_loop(0, turns * -(-count // columns), piece, best)
    # A row is its own nearest; where k + 1 others tie with it, it need not be among the found.
    itself = member == (row + jnp.arange(_ROWS))[:, None]
    kept, which = jax.lax.top_k(jnp.where(itself, -jnp.inf, near), k)
    distances = jnp.where(jnp.isfinite(kept), jnp.maximum(2 * (halves - kept), 0), jnp.inf)
    member = jnp.take_along_axis(member, which, axis=1)
    safe = jnp.minimum(start + jnp.maximum(member, 0), len(classes.order) - 1)
    found = jnp.isfinite(distances)
    return distances.astype(own.dtype), jnp.where(found, classes.order[safe], -1)


def _largest(near: Array, first: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
    """The largest numbers of every row among ``near`` and the best so far, and their places."""
    few, places = _selected(near, best[0].shape[1])
    kept, which = jax.lax.top_k(jnp.concatenate([best[0], few], axis=1), best[0].shape[1])
    places = jnp.concatenate([best[1], first + places], axis=1)
    return kept, jnp.take_along_axis(places, which, axis=1)


def _selected(values: Array, k: int) -> tuple[Array, Array]:
    """A few numbers of every row with the k largest among them, and their places.

    Each of the k largest lies in one of the k blocks with the largest maxima: a block before its
    own in that order has a larger number in it. A block's members lie ``blocks`` apart, so that
    all maxima are taken side by side.
    """
    rows, columns = values.shape
    blocks = columns // _BLOCK
    if columns % _BLOCK or blocks <= k:
        return values, jnp.broadcast_to(jnp.arange(columns, dtype=jnp.int32), values.shape)
    parts = values.reshape(rows, _BLOCK, blocks)
    few, places = _selected(jnp.max(parts, axis=1), k)
    chosen = jnp.take_along_axis(places, jax.lax.top_k(few, k)[1], axis=1)
    few = jnp.take_along_axis(parts, chosen[:, None, :], axis=2).reshape(rows, _BLOCK * k)
    ranks = jnp.arange(_BLOCK, dtype=jnp.int32)[None, :, None]
    return few, (ranks * blocks + chosen[:, None, :]).reshape(rows, _BLOCK * k)
