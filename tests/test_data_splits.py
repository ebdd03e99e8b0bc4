"""Splits are disjoint, cover everything, keep every class where it can be, and repeat exactly."""

import hashlib
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedShuffleSplit

from jaxbalance import counts, data

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 0)
SEEDS = st.integers(0, 2**32 - 1)


def shuffled_labels(sizes, seed=0):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).permutation(labels)


def per_class(labels, rows):
    return Counter(labels[rows].tolist())


@given(COUNTS, SEEDS, st.floats(0, 0.9), st.floats(0, 0.9))
@settings(deadline=None, max_examples=150)
def test_parts_are_disjoint_cover_everything_and_keep_the_promises(sizes, seed, share, of_rest):
    labels = shuffled_labels(sizes)
    validation_fraction = share * (1 - of_rest) * 0.99
    fractions = {"validation_fraction": validation_fraction, "test_fraction": of_rest * 0.99}
    split = data.stratified_split(labels, seed=seed, **fractions)
    assert all(part.dtype == np.int64 for part in split)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(labels)))
    again = data.stratified_split(labels, seed=seed + 1, **fractions)
    for part, other in zip(split, again, strict=True):
        assert per_class(labels, part) == per_class(labels, other)
    train, validation, test = (per_class(labels, part) for part in split)
    for class_id, size in enumerate(sizes):
        assert train[class_id] >= min(size, 1)
        if fractions["test_fraction"] > 0:
            assert test[class_id] >= (size >= 2)
        if fractions["validation_fraction"] > 0:
            assert validation[class_id] >= (size >= 3)
        if size <= 2 and fractions["test_fraction"] > 0:
            assert validation[class_id] == 0


@given(COUNTS, SEEDS, st.floats(0.01, 0.9), st.data())
@settings(deadline=None, max_examples=100)
def test_an_official_test_split_is_kept(sizes, seed, validation_fraction, draw):
    labels = shuffled_labels(sizes)
    some = st.lists(st.integers(0, len(labels) - 1), unique=True, max_size=len(labels) - 1)
    official = np.array(draw.draw(some), np.int64)
    split = data.stratified_split(
        labels, seed=seed, validation_fraction=validation_fraction, test_indices=official
    )
    assert sorted(split.test.tolist()) == sorted(official.tolist())
    assert sorted(np.concatenate(split).tolist()) == list(range(len(labels)))
    rest = per_class(labels, np.setdiff1d(np.arange(len(labels)), official))
    train, validation = (per_class(labels, part) for part in split[:2])
    for class_id, size in rest.items():
        assert train[class_id] >= 1
        wanted = int(np.floor(validation_fraction * size + 0.5 + 1e-9))
        assert validation[class_id] == min(max(wanted, int(size >= 2)), size - 1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (1, 1, 1)),
        (4, (2, 1, 1)),
        (5, (3, 1, 1)),
        (8, (4, 2, 2)),
        (10, (6, 2, 2)),
        (12, (8, 2, 2)),
        (13, (7, 3, 3)),
        (1000, (600, 200, 200)),
    ],
)
def test_sizes_by_hand(size, expected):
    labels = np.concatenate([np.zeros(size, int), np.ones(50, int)])
    split = data.stratified_split(labels, seed=3)
    assert tuple(int(np.sum(labels[part] == 0)) for part in split) == expected


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ({"test_fraction": 0.0}, (8, 2, 0)),
        ({"validation_fraction": 0.0}, (8, 0, 2)),
        ({"validation_fraction": 0.0, "test_fraction": 0.0}, (10, 0, 0)),
        ({"validation_fraction": 0.25, "test_fraction": 0.15}, (5, 3, 2)),
        ({"validation_fraction": 0.01, "test_fraction": 0.98}, (1, 1, 8)),
        ({"validation_fraction": 0.5, "test_fraction": 0.49}, (1, 4, 5)),
    ],
)
def test_fractions_by_hand(fractions, expected):
    split = data.stratified_split(np.zeros(10, int), seed=0, **fractions)
    assert tuple(map(len, split)) == expected


def test_two_rows_without_a_test_part_train_and_validate():
    split = data.stratified_split(np.array([0, 0]), seed=0, test_fraction=0.0)
    assert tuple(map(len, split)) == (1, 1, 0)


def test_a_half_in_decimals_rounds_up():
    # 0.29 * 50 is 14.499999999999998 in binary.
    split = data.stratified_split(np.zeros(50, int), seed=0, test_fraction=0.29)
    assert len(split.test) == 15


def test_proportions_agree_with_scikit_learn(generator):
    labels = generator.permutation(np.repeat([0, 1, 2], [700, 250, 50]))
    splitter = StratifiedShuffleSplit(1, test_size=0.2, random_state=0)
    _, reference = next(splitter.split(labels, labels))
    split = data.stratified_split(labels, seed=0)
    assert per_class(labels, split.test) == per_class(labels, reference)


def test_the_seed_decides_the_rows_and_nothing_else_does():
    labels = shuffled_labels([40, 20, 3])
    first, same = (data.stratified_split(labels, seed=5) for _ in range(2))
    other = data.stratified_split(labels, seed=6)
    for one, two, three in zip(first, same, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert set(one.tolist()) != set(three.tolist())
    # The global generator of NumPy plays no role, nor does the dtype of the labels.
    np.testing.assert_array_equal(
        data.stratified_split(labels.astype(np.uint8), seed=5).train, first.train
    )


def test_parts_are_shuffled():
    split = data.stratified_split(np.repeat([0, 1], 500), seed=0)
    for part in split:
        # Of M shuffled numbers about half are followed by a larger one; 5 sigma is a false alarm in
        # a million seeds, and the seed is fixed.
        rises = np.mean(np.diff(part) > 0)
        assert abs(rises - 0.5) < 5 * np.sqrt(1 / (12 * len(part)))
        # And about half by a row of the other class.
        assert abs(np.mean(np.diff(part >= 500)) - 0.5) < 5 * np.sqrt(1 / (4 * len(part)))


def test_every_row_is_equally_likely_to_be_tested():
    labels = shuffled_labels([20, 10])
    hits = sum(
        np.bincount(data.stratified_split(labels, seed=seed).test, minlength=30)
        for seed in range(1000)
    )
    # Binomial(1000, 0.2): sigma 12.6; five sigma on 30 rows is a false alarm in 60000.
    assert np.all(np.abs(hits - 200) < 5 * 12.65)


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        ([0, 1], {"validation_fraction": -0.1}, ["validation_fraction", "-0.1"]),
        ([0, 1], {"test_fraction": -0.1}, ["test_fraction", "-0.1"]),
        ([0, 1], {"test_fraction": float("nan")}, ["test_fraction", "nan"]),
        ([0, 1], {"validation_fraction": 0.5, "test_fraction": 0.5}, ["got 1", "less than 1"]),
        ([0, 1], {"validation_fraction": 1.0, "test_indices": [0]}, ["got 1", "less than 1"]),
        ([0, 1], {"test_indices": [2]}, ["test_indices"]),
        ([0, 1], {"test_indices": [-1]}, ["test_indices"]),
        ([0, 1, 1], {"test_indices": [1, 1]}, ["test_indices", "distinct"]),
        ([0, 1], {"test_indices": [0, 1]}, ["fewer than 2"]),
        ([0, 1], {"test_indices": [True, False]}, ["bool"]),
        ([0, -1], {}, ["-1", ">= 0"]),
        ([], {}, ["N >= 1"]),
        ([[0, 1]], {}, ["(1, 2)"]),
        ([0.0, 1.0], {}, ["float64"]),
    ],
)
def test_split_refuses(labels, options, words):
    with pytest.raises(ValueError, match="got") as caught:
        data.stratified_split(np.array(labels), seed=0, **options)
    for word in words:
        assert word in str(caught.value)


@given(COUNTS, SEEDS, st.data())
@settings(deadline=None, max_examples=150)
def test_a_subset_has_exactly_the_sizes_and_repeats(sizes, seed, draw):
    labels = shuffled_labels(sizes)
    wanted = [draw.draw(st.integers(0, size)) for size in sizes]
    rows = data.long_tail_subset(labels, wanted, seed=seed)
    assert rows.dtype == np.int64
    assert np.all(np.diff(rows) > 0)
    assert [per_class(labels, rows)[k] for k in range(len(sizes))] == wanted
    np.testing.assert_array_equal(rows, data.long_tail_subset(labels, wanted, seed=seed))
    fewer = [size // 2 for size in wanted]
    assert set(data.long_tail_subset(labels, fewer, seed=seed)) <= set(rows)


def test_a_subset_is_random_and_takes_a_profile():
    labels = shuffled_labels([100, 100, 100])
    sizes = counts.exponential(3, largest=100, ratio=25)
    first, second = (data.long_tail_subset(labels, sizes, seed=seed) for seed in (0, 1))
    assert np.bincount(labels[first]).tolist() == [100, 20, 4]
    assert set(first.tolist()) != set(second.tolist())
    np.testing.assert_array_equal(first[labels[first] == 0], np.flatnonzero(labels == 0))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([2, 4], ["got 4 for class 1", "at most 3"]),
        ([2], ["class 1", "below 1"]),
        ([2, -1], ["[2, -1]"]),
        ([2.0, 1.0], ["[2.0, 1.0]"]),
        ([[2, 1]], ["[[2, 1]]"]),
        ([1, 1, 1], ["got 1 for class 2", "at most 0"]),
    ],
)
def test_a_subset_is_never_clipped_silently(sizes, words):
    with pytest.raises(ValueError, match="got") as caught:
        data.long_tail_subset(np.array([0, 0, 1, 1, 1]), sizes, seed=0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, ">i8"])
def test_fingerprint_is_the_hash_of_little_endian_integers(dtype):
    rows = [5, 3, 250]
    expected = hashlib.sha256(struct.pack("<3q", *rows)).hexdigest()[:12]
    assert data.fingerprint(np.array(rows, dtype)) == expected


def test_fingerprint_tells_rows_and_orders_apart():
    known = [data.fingerprint(np.array(rows)) for rows in ([1, 2], [2, 1], [1, 2, 3], [1])]
    assert len(set(known)) == 4
    assert data.fingerprint(np.array([], int)) == hashlib.sha256(b"").hexdigest()[:12]
    for wrong in (np.array([1.0]), np.array([[1]]), np.array([True])):
        with pytest.raises(ValueError, match=r"indices: got shape"):
            data.fingerprint(wrong)
