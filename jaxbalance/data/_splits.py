"""Rows for training, validation and testing, and long-tailed subsets, as index arrays."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxbalance import _check
from jaxbalance._types import ArrayLike, HostArray


class Split(NamedTuple):
    """Row numbers of the three disjoint parts that cover a data set, int64, each shuffled."""

    train: HostArray
    validation: HostArray
    test: HostArray


def stratified_split(
    labels: ArrayLike,
    *,
    seed: int,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.2,
    test_indices: ArrayLike | None = None,
) -> Split:
    r"""Split the rows into training, validation and test, each class in the same proportions.

    Of the n rows of a class, :math:`\mathrm{round}(t n)` go to the test part and
    :math:`\mathrm{round}(v n)` to validation, half rounding up, chosen at random; the rest trains.
    The sizes depend on the class counts alone, so that every seed gives arrays of the same shapes.
    Rare classes: one row trains, two rows train and test, and three or more leave at least one to
    each part whose fraction is not 0. Split before any resampling, and resample only ``train``.

    Args:
      labels: class ids ``[N]``, integers >= 0; each distinct one is a class.
      seed: of ``numpy.random.default_rng``; decides which rows, never how many.
      validation_fraction: v >= 0, of the whole class; 0 leaves the part empty.
      test_fraction: t >= 0, of the whole class; 0 leaves the part empty. t + v < 1.
      test_indices: rows of an official test split. They are the test part, ``test_fraction`` plays
        no role, and v is a fraction of each class's other rows, of which the last one trains. None
        draws the test part.

    Returns:
      The :class:`Split`.

    Raises:
      ValueError: ``labels`` are not ``[N]`` integers >= 0 with N >= 1, a fraction is negative, both
        add up to 1 or more, or ``test_indices`` are not distinct rows that leave some others.

    >>> split = stratified_split(np.array([0] * 10 + [1] * 2), seed=0)
    >>> [len(part) for part in split]
    [7, 2, 3]
    """
    ids = _class_ids(labels)
    generator = np.random.default_rng(seed)
    fixed = np.empty(0, np.int64) if test_indices is None else _rows(test_indices, len(ids))
    drawn = test_fraction if test_indices is None else 0.0
    _check_fractions(validation_fraction, drawn)
    free = np.setdiff1d(np.arange(len(ids)), fixed)
    order, rank, size = _ranked(ids[free], generator)
    test, validation = _part_sizes(size, validation_fraction, drawn)
    rows = free[order]
    parts = (rank >= test + validation, (rank >= test) & (rank < test + validation), rank < test)
    train_rows, validation_rows, test_rows = (rows[part] for part in parts)
    every_test_row = np.concatenate([fixed, test_rows])
    shuffled = (generator.permutation(p) for p in (train_rows, validation_rows, every_test_row))
    return Split(*shuffled)


def long_tail_subset(
    labels: ArrayLike, sizes: ArrayLike | Sequence[int], *, seed: int
) -> HostArray:
    """Draw ``sizes[k]`` random rows of each class k, without replacement.

    The same seed with smaller sizes draws a subset of the rows that it draws with larger ones.

    Args:
      labels: class ids ``[N]`` in ``0 .. K-1``.
      sizes: rows wanted of each class ``[K]``, integers >= 0, as from :mod:`jaxbalance.counts`
        (:func:`~jaxbalance.counts.exponential` and the like). A class's own count keeps it whole.
      seed: of ``numpy.random.default_rng``.

    Returns:
      Row numbers, sorted, int64.

    Raises:
      ValueError: ``labels`` are not ``[N]`` integers in ``0 .. K-1``, ``sizes`` are not integers
        >= 0, or a class has fewer rows than wanted of it.

    >>> len(long_tail_subset(np.array([0, 0, 0, 1, 1]), [2, 1], seed=0))
    3
    """
    ids = _class_ids(labels)
    wanted = np.asarray(sizes)
    if wanted.ndim != 1 or wanted.dtype.kind not in "iu" or np.any(wanted < 0):
        raise ValueError(f"sizes: got {wanted.tolist()}, wanted one integer >= 0 for each class")
    if ids.max() >= len(wanted):
        raise ValueError(
            f"labels: got class {ids.max()}, wanted classes below {len(wanted)}, one "
            "for each of the sizes"
        )
    available = np.bincount(ids, minlength=len(wanted))
    short = np.flatnonzero(wanted > available)
    if len(short):
        first = int(short[0])
        raise ValueError(
            f"sizes: got {wanted[first]} for class {first}, wanted at most {available[first]}, the "
            "rows it has"
        )
    order, rank, _ = _ranked(ids, np.random.default_rng(seed))
    return np.sort(order[rank < wanted[ids[order]]])


def fingerprint(indices: ArrayLike) -> str:
    """Twelve hexadecimal digits by which two people can see that they have the same rows.

    They are the first digits of the SHA-256 hash of the indices as little-endian 64-bit integers,
    so that the order of the rows counts and their dtype does not.

    Args:
      indices: row numbers ``[M]``, integers.

    Returns:
      The digits.

    Raises:
      ValueError: ``indices`` are not ``[M]`` integers.

    >>> fingerprint(np.array([3, 1, 2]))
    '7c4cec7a82e1'
    """
    rows = np.asarray(indices)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"indices: got shape {rows.shape} and dtype {rows.dtype}, wanted integers [M]"
        )
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()[:12]


def _check_fractions(validation_fraction: float, test_fraction: float) -> None:
    _check.at_least(0.0, validation_fraction=validation_fraction, test_fraction=test_fraction)
    total = validation_fraction + test_fraction
    if not total < 1:
        raise ValueError(
            f"validation_fraction + test_fraction: got {total:g}, wanted less than 1, so that some "
            "rows train"
        )


def _class_ids(labels: ArrayLike) -> HostArray:
    ids = np.asarray(labels)
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"labels: got shape {ids.shape} and dtype {ids.dtype}, wanted integers [N] with N >= 1"
        )
    if ids.min() < 0:
        raise ValueError(f"labels: got {ids.min()}, wanted class ids >= 0")
    return ids.astype(np.int64)


def _rows(indices: ArrayLike, total: int) -> HostArray:
    rows = np.asarray(indices)
    distinct = rows.ndim == 1 and rows.dtype.kind in "iu" and len(np.unique(rows)) == len(rows)
    if not distinct or rows.size >= total or np.any((rows < 0) | (rows >= total)):
        raise ValueError(
            f"test_indices: got shape {rows.shape} and dtype {rows.dtype}, wanted fewer than "
            f"{total} distinct row numbers from 0 to {total - 1}"
        )
    return rows.astype(np.int64)


def _ranked(ids: HostArray, generator: np.random.Generator) -> tuple[HostArray, ...]:
    """Positions in class order, shuffled inside each class; the rank in the class; its size."""
    order = generator.permutation(len(ids))
    order = order[np.argsort(ids[order], kind="stable")]
    _, first, counts = np.unique(ids[order], return_index=True, return_counts=True)
    rank = np.arange(len(ids)) - np.repeat(first, counts)
    return order, rank, np.repeat(counts, counts)


def _part_sizes(
    size: HostArray, validation_fraction: float, test_fraction: float
) -> tuple[HostArray, HostArray]:
    """How many rows of a class of each size are for test and for validation."""
    some_test = (size >= 2) & (test_fraction > 0)
    some_validation = (size >= 2 + (test_fraction > 0)) & (validation_fraction > 0)
    # A hair above one half, so that 0.29 * 50 rounds like the 14.5 that it stands for.
    wanted_test = np.floor(test_fraction * size + 0.5 + 1e-9)
    wanted_validation = np.floor(validation_fraction * size + 0.5 + 1e-9)
    test = np.clip(wanted_test, some_test, size - 1 - some_validation)
    return test, np.clip(wanted_validation, some_validation, size - 1 - test)
