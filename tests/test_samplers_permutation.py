"""The permutation behind the samplers: exact, against Python integers, and uniform."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxbalance import samplers
from jaxbalance.samplers import _permutation, _streams

FALSE_ALARM = 1e-6
"""Every statistical test here fails by chance about once in a million seeds; seeds are fixed."""

permute = jax.jit(_permutation.permute)


def permutations(size, number, padded=None):
    """The first ``number`` permutations, one in a row, by one program for all sizes."""
    padded = size if padded is None else padded
    words = jnp.arange(number, dtype=jnp.uint32)[:, None]
    place = jnp.arange(padded, dtype=jnp.int32)[None, :]
    return np.asarray(permute(words, place, jnp.full((1, 1), size, jnp.int32)))[:, :size]


def mixed(value):
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = (value ^ (value >> shift)) * factor % 2**32
    return value ^ (value >> 16)


def table_by_hand(word, size):
    """Where each of ``0 .. size-1`` goes: a table of lists that are turned, by Python integers."""
    first = mixed((word + (size - 1) * 0x85EBCA77) % 2**32)
    second = mixed(word ^ 0x9E3779B1)
    bits = max(1, (size - 1).bit_length())
    cells = list(range(size))

    def turned(lines, number):
        for line, places in enumerate(lines):
            value = (first + (number << 16) + line) % 2**32
            value = (value ^ (value >> 16)) * 0x7FEB352D % 2**32 ^ second
            value = (value ^ (value >> 15)) * 0x846CA68B % 2**32
            by = (value >> 16) * len(places) >> 16
            before = [cells[place] for place in places]
            for at in range(len(places)):
                cells[places[(at + by) % len(places)]] = before[at]

    for number in range(0, 16 if size < 256 else 8, 2):
        width = 2 ** ((bits + number // 2 % 2) // 2)
        turned([range(column, size, width) for column in range(width)], number)
        rows = [range(row, min(row + width, size)) for row in range(0, size, width)]
        turned(rows, number + 1)
    image = [0] * size
    for place, element in enumerate(cells):
        image[element] = place
    return image


@pytest.mark.parametrize("size", [*range(1, 18), 31, 32, 33, 100, 255, 256, 257, 1000, 5000])
def test_it_is_a_table_whose_lines_are_turned(size):
    padded = 40 if size <= 40 else 300 if size <= 300 else size
    got = permutations(size, 3, padded)
    for word in range(3):
        assert got[word].tolist() == table_by_hand(word, size)


@pytest.mark.parametrize("size", [65_536, 65_537, 300_000])
def test_it_is_a_bijection_of_many(size):
    np.testing.assert_array_equal(np.sort(permutations(size, 1)[0]), np.arange(size))


def test_it_is_one_to_one_on_the_largest(generator):
    """Sizes whose lines are as long as can be: distinct places, the ends among them, stay so."""
    sizes = np.array([2**30, 2**30 + 1, 2**31 - 2**16, 2**31 - 1])
    place = np.concatenate(
        [
            np.stack(
                [np.arange(500), n - 1 - np.arange(500), generator.integers(500, n - 500, 500)]
            )
            for n in sizes
        ]
    ).reshape(4, 1500)
    place = np.stack([np.resize(np.unique(row), 1450) for row in place])
    words = generator.integers(0, 2**32, (4, 1), np.uint32)
    image = np.asarray(permute(words, place.astype(np.int32), sizes.astype(np.int32)[:, None]))
    assert np.all((image >= 0) & (image < sizes[:, None]))
    assert all(
        len(np.unique(row)) == len(np.unique(of)) for row, of in zip(image, place, strict=True)
    )


def test_every_element_is_permuted_by_its_own_word_and_size(generator):
    """Small sizes among large ones, one element of each, equal the same ones alone."""
    sizes = np.array([1, 3, 9, 255, 256, 300])
    alone = {n: permutations(n, 50, 300) for n in sizes}
    words, which = generator.integers(0, 50, 2000), sizes[generator.integers(0, 6, 2000)]
    place = generator.integers(0, which)
    got = permute(words.astype(np.uint32), place.astype(np.int32), which.astype(np.int32))
    expected = [alone[n][word, at] for n, word, at in zip(which, words, place, strict=True)]
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_small_permutations_are_equally_likely(size):
    seen = Counter(map(tuple, permutations(size, 20_000, 5).tolist()))
    observed = [*seen.values(), *[0] * (math.factorial(size) - len(seen))]
    assert stats.chisquare(observed).pvalue > FALSE_ALARM


@pytest.mark.parametrize("size", [8, 9, 23])
def test_pairs_of_images_are_uniform(size):
    """Of neighbours, of two in a column and of the ends, which begin in lines of their own."""
    rows = permutations(size, 60_000, 23)
    for one, other in ((0, 1), (0, 4), (0, size - 1)):
        pairs = np.bincount(rows[:, one] * size + rows[:, other], minlength=size**2)
        observed = pairs.reshape(size, size)[~np.eye(size, dtype=bool)]
        assert pairs.sum() == observed.sum()
        assert stats.chisquare(observed).pvalue > FALSE_ALARM


@pytest.mark.parametrize("size", [23, 300, 1025])
def test_shuffles_are_as_random_as_can_be(size):
    """Places, gaps, falls and fixed points; and nothing is kept from one word to the next."""
    rows = permutations(size, 4000 if size < 1000 else 1000).astype(np.int64)
    gaps = (rows[:, 1] - rows[:, 0]) % size
    after = (rows[1::2, 0] - rows[::2, 0]) % size
    for found, low in ((rows[:, 0], 0), (rows[:, -1], 0), (gaps, 1), (after, 0)):
        classes = (found - low) * 20 // (size - low)
        share = np.bincount(np.arange(size - low) * 20 // (size - low)) / (size - low)
        observed = np.bincount(classes, minlength=20)
        assert stats.chisquare(observed, share * len(found)).pvalue > FALSE_ALARM
    falls = np.sum(rows[:, 1:] < rows[:, :-1])
    spread = math.sqrt(len(rows) * (size + 1) / 12)
    assert 2 * stats.norm.sf(abs(falls - len(rows) * (size - 1) / 2) / spread) > FALSE_ALARM
    fixed = np.sum(rows == np.arange(size))
    assert abs(fixed - len(rows)) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(len(rows))


def test_places_and_neighbours_of_shuffled_epochs_are_uniform():
    size, number = 23, 8000
    rows = samplers.shuffled_epochs(
        jax.random.key(42), num_examples=size, batch_size=size, steps=number
    )
    rows = np.asarray(rows)
    for place in (0, 1, 11, 22):
        assert stats.chisquare(np.bincount(rows[:, place])).pvalue > FALSE_ALARM
    gap = (rows[:, 1] - rows[:, 0]) % size
    assert stats.chisquare(np.bincount(gap, minlength=size)[1:]).pvalue > FALSE_ALARM


def divisions(generator):
    """Numbers of all magnitudes, and those next to multiples, where quotients are off by one."""
    divisor = np.concatenate([2.0 ** (31 * generator.random(5000)), [1, 2, 2**31 - 2**13 - 1]])
    divisor = divisor.astype(np.int64)
    value = (2.0 ** (31 * generator.random(divisor.size))).astype(np.int64)
    near = value // divisor * divisor + generator.integers(-1, 2, divisor.size)
    largest = np.full_like(value, 2**31 - 1)
    value = np.concatenate([value, near, largest, np.zeros_like(value)])
    return np.clip(value, 0, 2**31 - 1), np.tile(divisor, 4)


def test_divide_is_exact(generator):
    value, divisor = divisions(generator)
    got = jax.jit(_streams.divide)(value.astype(np.int32), divisor.astype(np.int32))
    for one, other in zip(got, np.divmod(value, divisor), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("factor", [1, 2, 7, 1000, 4095])
def test_times_divmod_equals_wider_integers(factor, generator):
    value, divisor = divisions(generator)
    quotient, remainder = np.divmod(value * factor, divisor)
    got = jax.jit(_streams.times_divmod, static_argnums=1)(
        value.astype(np.int32), factor, divisor.astype(np.int32)
    )
    np.testing.assert_array_equal(got[1], remainder)
    fits = quotient < 2**31
    np.testing.assert_array_equal(np.asarray(got[0])[fits], quotient[fits])
