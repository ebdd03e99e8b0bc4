"""What every draw is made of: steps, words that name permutations, endless rows of passes."""

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, Scalar
from jaxbalance.samplers._class_index import ClassIndex
from jaxbalance.samplers._permutation import permute


def word(key: Array) -> Array:
    """One uint32 that names everything drawn from ``key``."""
    return jax.random.bits(key, (), jnp.uint32)


def row_steps(start: Scalar, steps: int) -> Array:
    """The steps ``start, start + 1, ...`` of the rows asked for, ``[steps]``, int32."""
    _check.positive_integer(steps=steps)
    return jnp.asarray(start, jnp.int32) + jnp.arange(steps, dtype=jnp.int32)


def times_divmod(value: Array, factor: int, divisor: int | Array) -> tuple[Array, Array]:
    """``divmod(value * factor, divisor)`` without forming the product, which overflows int32."""
    whole, rest = value // divisor, value % divisor
    quotient, remainder = jnp.zeros_like(value), jnp.zeros_like(value)
    for bit in f"{factor:b}":
        remainder = 2 * remainder + int(bit) * rest
        quotient = 2 * quotient + remainder // divisor
        remainder = remainder % divisor
    return whole * factor + quotient, remainder


def members(key: Array, index: ClassIndex, classes: Array, position: Array) -> Array:
    """Members at ``position`` of each class's endless row of shuffled passes; −1 if absent."""
    sizes = jnp.maximum(index.class_counts[classes], 1)
    return pass_members(key, index, classes, position // sizes, position % sizes)


def pass_members(
    key: Array, index: ClassIndex, classes: Array, number: Array, place: Array
) -> Array:
    """Members at ``place`` of the shuffled pass of that ``number``; −1 if the class is absent."""
    sizes = index.class_counts[classes]
    words = word(key) + number.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    words = words ^ (classes.astype(jnp.uint32) * jnp.uint32(0x85EBCA77))
    found = index.members[index.starts[classes] + permute(words, place, sizes)]
    return jnp.where(sizes > 0, found, jnp.full_like(found, -1))


def present_classes(index: ClassIndex) -> tuple[Array, Array]:
    """The ids of the present classes, then those of the absent ``[K]``; and how many are present.

    The number is at least one, so that one can divide by it.
    """
    absent = index.class_counts == 0
    order = jnp.argsort(absent, stable=True).astype(jnp.int32)
    return order, jnp.maximum(jnp.sum(~absent, dtype=jnp.int32), 1)
