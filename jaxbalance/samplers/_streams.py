"""What every draw is made of: steps, words that name permutations, endless rows of passes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxbalance import _check
from jaxbalance._types import Array, Scalar
from jaxbalance.samplers._class_index import ClassIndex
from jaxbalance.samplers._permutation import permute


def words(key: Array, number: int) -> Array:
    """As many uint32 as asked for, each of which names everything drawn for one purpose."""
    return jax.random.bits(key, (number,), jnp.uint32)


def row_steps(start: Scalar, steps: int) -> Array:
    """The steps ``start, start + 1, ...`` of the rows asked for, ``[steps]``, int32."""
    _check.positive_integer(steps=steps)
    return jnp.asarray(start, jnp.int32) + jnp.arange(steps, dtype=jnp.int32)


def once(index: ClassIndex, function: Callable[..., Array], *operands: Array) -> Array:
    """``function`` of the operands, worked out once however many uses its result has.

    XLA for processors fuses through optimization barriers and so works out a value again for each
    use. Through a conditional it does not; that no class has a negative size it cannot know.
    """
    shape = jax.eval_shape(function, *operands)

    def otherwise(*_: Array) -> Array:
        return jnp.zeros(shape.shape, shape.dtype)

    return jax.lax.cond(index.class_counts[0] >= 0, function, otherwise, *operands)


def divide(value: Array, divisor: Array) -> tuple[Array, Array]:
    """``divmod(value, divisor)``, exact for int32 with value >= 0 and 0 < divisor < 2**31 - 2**13.

    By a float's reciprocal, and the remainder again by it: processors divide integers one by one.
    """
    inverse = 1 / divisor.astype(jnp.float32)
    quotient = (value.astype(jnp.float32) * inverse).astype(jnp.int32)
    rest = value - quotient * divisor
    # The first quotient is off by some in 2**22 of it, the second then by one at most.
    more = jnp.floor(rest.astype(jnp.float32) * inverse).astype(jnp.int32)
    quotient, rest = quotient + more, rest - more * divisor
    more = (rest >= divisor).astype(jnp.int32) - (rest < 0).astype(jnp.int32)
    return quotient + more, rest - more * divisor


def times_divmod(value: Array, factor: int, divisor: Array) -> tuple[Array, Array]:
    """``divmod(value * factor, divisor)`` without forming the product, which overflows int32."""
    whole, rest = divide(value, divisor)
    limit = divisor.astype(jnp.uint32)
    quotient, remainder = jnp.zeros_like(rest), jnp.zeros_like(rest, dtype=jnp.uint32)
    for bit in f"{factor:b}":
        carry, remainder = _carried(2 * remainder, limit)
        quotient = 2 * quotient + carry
        if bit == "1":
            carry, remainder = _carried(remainder + rest.astype(jnp.uint32), limit)
            quotient = quotient + carry
    return whole * factor + quotient, remainder.astype(jnp.int32)


def _carried(value: Array, limit: Array) -> tuple[Array, Array]:
    """``divmod(value, limit)`` of uint32 where the quotient is 0 or 1."""
    # Below zero wraps round to the largest numbers.
    return (value >= limit).astype(jnp.int32), jnp.minimum(value, value - limit)


def members(word: Array, index: ClassIndex, classes: Array, position: Array) -> Array:
    """Members at ``position`` of each class's endless row of shuffled passes; −1 if absent."""
    number, place = divide(position, jnp.maximum(index.class_counts[classes], 1))
    return pass_members(word, index, classes, number, place)


def pass_members(
    word: Array, index: ClassIndex, classes: Array, number: Array, place: Array
) -> Array:
    """Members at ``place`` of the shuffled pass of that ``number``; −1 if the class is absent.

    The shapes of the last three broadcast; ``word`` names them all.
    """
    sizes = index.class_counts[classes]
    words = word + number.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
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
