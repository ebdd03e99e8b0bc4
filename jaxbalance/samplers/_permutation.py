"""A random permutation one can evaluate at any place without building it.

The numbers ``0 .. size-1`` are laid out row by row as a table about as high as wide, of which the
last row may be shorter. A round turns every column, or every row, by an amount of its own, a
pseudo-random function of which column or row it is. That is a generalised Feistel network (Black
and Rogaway 2002, "Ciphers with arbitrary finite domains") but for the shorter lines, which turn
within what there is of them: every round is a bijection on exactly the numbers there are, for any
size, so nothing has to be walked or tried again. The i-th element of a shuffled epoch costs O(1)
and no memory, which is what makes every batch a function of (seed, step) alone: a resumed run and
every host compute their own part and agree.
"""

import math

import jax
import jax.numpy as jnp

from jaxbalance._types import Array

# With random functions in the rounds, the images of any two elements are within 8e-4 in total
# variation of those under a random permutation: from ``_LARGE`` elements on after ``_ROUNDS``, with
# fewer, of which 9 are the worst, after twice as many.
_ROUNDS = 8
_LARGE = 256


def _mix(value: Array) -> Array:
    """A 32-bit finaliser: every input bit reaches every output bit."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
    value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
    return value ^ (value >> 16)


def _turned(first: Array, second: Array, line: Array, place: Array, length: Array) -> Array:
    """``place + f(line)`` modulo ``length``, f keyed by ``first`` and ``second``."""
    value = first + line
    value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
    value = value ^ second
    value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
    # No line is longer than 2**16: 16 bits scale to it within 32. What they leave uneven, a
    # relative length / 2**16, the other rounds even out.
    place = place + ((value >> 16) * length >> 16)
    # Below zero wraps round to the largest numbers, so this subtracts the length where it can.
    return jnp.minimum(place, place - length)


@jax.jit
def _columns_and_rows(first: Array, second: Array, value: Array, last: Array, half: Array) -> Array:
    """Two rounds on a table of rows of ``2**half``; compiled as one function, called often."""
    mask = (jnp.uint32(1) << half) - 1
    row, column = value >> half, value & mask
    last_row, last_column = last >> half, last & mask
    height = last_row + (column <= last_column).astype(jnp.uint32)
    row = _turned(first, second, column, row, height)
    width = jnp.where(row < last_row, mask, last_column) + 1
    column = _turned(first + (1 << 16), second, row, column, width)
    return (row << half) | column


def _rounds(words: Array, last: Array, value: Array, begin: int) -> Array:
    """The rounds from ``begin`` on, of permutations of ``0 .. last``."""
    first = _mix(words + last * jnp.uint32(0x85EBCA77))
    second = _mix(words ^ jnp.uint32(0x9E3779B1))
    # Rows of two lengths in turn, where the bits are odd: elements of a row then part sooner.
    bits = 32 - jax.lax.clz(jnp.maximum(last, 1))
    halves = bits >> 1, (bits + 1) >> 1
    for number in range(begin, begin + _ROUNDS, 2):
        # A line is below 2**16: no two rounds ask for the same value of the function.
        key = first + (number << 16)
        value = _columns_and_rows(key, second, value, last, halves[number // 2 % 2])
    return value


def permute(words: Array, position: Array, size: Array) -> Array:
    """Where a random permutation of ``0 .. size-1`` sends ``position``; all arguments elementwise.

    Args:
      words: uint32: with the size, names the permutation (equal words, equal permutation).
      position: int32, in ``0 .. size-1``.
      size: int32, at least 1. The shapes broadcast.

    Returns:
      int32, of the common shape.
    """
    shape = jnp.broadcast_shapes(words.shape, position.shape, size.shape)
    some_small = jnp.any(size < _LARGE)
    # Along one axis: along a short last one processors would work number by number.
    words, position, size = (_flat(array, shape) for array in (words, position, size))
    last = jnp.maximum(size, 1).astype(jnp.uint32) - 1
    value = jnp.broadcast_to(jnp.minimum(position.astype(jnp.uint32), last), (math.prod(shape),))
    value = _rounds(words, last, value, 0)

    def more(value: Array) -> Array:
        return jnp.where(last < _LARGE - 1, _rounds(words, last, value, _ROUNDS), value)

    value = jax.lax.cond(some_small, more, lambda value: value, value)
    return value.reshape(shape).astype(jnp.int32)


def _flat(array: Array, shape: tuple[int, ...]) -> Array:
    """The elements of ``array`` broadcast to ``shape``, or the only one there is."""
    if array.size == 1:
        return array.reshape(())
    return jnp.broadcast_to(array, shape).reshape(-1)
