"""A random permutation one can evaluate at any place without building it.

A Feistel network is a bijection on the numbers of 2h bits whatever its round function is. Applying
it again while the result lies outside ``0 .. size-1`` (cycle walking) restricts it to a bijection
on exactly those. So the i-th element of a shuffled epoch costs O(1) and no memory, which is what
makes every batch a function of (seed, step) alone: a resumed run and every host compute their own
part and agree.
"""

import jax
import jax.numpy as jnp

from jaxbalance._types import Array

_ROUNDS = 8


def _mix(value: Array) -> Array:
    """A 32-bit finaliser: every input bit reaches every output bit."""
    value = (value ^ (value >> 16)) * jnp.uint32(0x7FEB352D)
    value = (value ^ (value >> 15)) * jnp.uint32(0x846CA68B)
    return value ^ (value >> 16)


def _half_bits(size: Array) -> Array:
    """Half the number of bits that hold ``0 .. size-1``, rounded up, at least one."""
    bits = 32 - jax.lax.clz(jnp.maximum(size, 2) - 1)
    return (bits + 1) // 2


def permute(words: Array, position: Array, size: Array) -> Array:
    """Where a random permutation of ``0 .. size-1`` sends ``position``; all arguments elementwise.

    Args:
      words: uint32, any shape: names the permutation (equal words, equal permutation).
      position: int32 of that shape, in ``0 .. size-1``.
      size: int32 of that shape, at least 1.

    Returns:
      int32 of that shape.
    """
    limit = jnp.maximum(size, 1).astype(jnp.uint32)
    half = _half_bits(limit)
    mask = (jnp.uint32(1) << half) - 1

    def turn(number: Array, value: Array) -> Array:
        left, right = value >> half, value & mask
        key = _mix(words + jnp.uint32(0x9E3779B9) * (number + 1))
        return (right << half) | (left ^ (_mix(right ^ key) & mask))

    def network(value: Array) -> Array:
        # A loop rather than eight copies: it compiles in a fraction of the time.
        return jax.lax.fori_loop(jnp.uint32(0), jnp.uint32(_ROUNDS), turn, value)

    def outside(value: Array) -> Array:
        return jnp.any(value >= limit)

    def walk(value: Array) -> Array:
        return jnp.where(value >= limit, network(value), value)

    # Feistel networks are even permutations; exchanging 0 and 1 half of the time adds the odd.
    place = jnp.minimum(position.astype(jnp.uint32), limit - 1)
    exchange = _mix(words) & ((place < 2) & (limit > 1)).astype(jnp.uint32)
    start = network(place ^ exchange)
    return jax.lax.while_loop(outside, walk, start).astype(jnp.int32)
