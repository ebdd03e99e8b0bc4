"""One data set in memory: inputs, class ids and names, checked once where the data enter."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import ArrayLike, HostArray
from jaxbalance.data import _wording

# How None, NaN, pandas.NA and NaT print; labels that are text are never compared with these.
_MISSING_TEXTS = frozenset({"None", "nan", "<NA>", "NaT"})


class Dataset(NamedTuple):
    """A classification data set on the host, as :func:`from_arrays` leaves it.

    Attributes:
      inputs: a table ``[N, F]``, float32, in which NaN means missing; or images ``[N, H, W, C]``,
        uint8 or float32, without NaN. No value is infinite.
      labels: class ids ``[N]``, int32 in ``0 .. K-1``; every class has an example.
      class_names: the K names, in the order of the ids.
      feature_names: the F column names; empty for images.
      name: what reports call the data set.
      test_indices: the rows of the official test split, int64; None where there is none.
    """

    inputs: HostArray
    labels: HostArray
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...]
    name: str
    test_indices: HostArray | None


class Parts(NamedTuple):
    """What a reader found in a file, not yet checked, as :func:`from_arrays` takes it."""

    inputs: HostArray
    labels: HostArray
    name: str
    class_names: Sequence[str] | None
    feature_names: Sequence[str] | None
    test_indices: HostArray | None


def is_images(dataset: Dataset) -> bool:
    """Whether the inputs are images ``[N, H, W, C]`` rather than a table ``[N, F]``.

    >>> is_images(from_arrays(np.zeros((2, 8, 8), np.uint8), np.array([0, 1])))
    True
    """
    return bool(dataset.inputs.ndim == 4)


def from_arrays(
    inputs: ArrayLike,
    labels: ArrayLike | Sequence[object],
    *,
    name: str = "arrays",
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    test_indices: ArrayLike | None = None,
) -> Dataset:
    """Check arrays and bring them into the one form that the rest of the library expects.

    Args:
      inputs: a table ``[N, F]`` or images ``[N, H, W]`` or ``[N, H, W, C]``, booleans, integers or
        floats. Tables become float32 and may hold NaN for a missing value. Images stay uint8 or
        become float32, and get a channel axis where they have none.
      labels: one per row, ``[N]``: integers of any value, text, booleans or floats that are whole
        numbers. The distinct values in sorted order (numbers as numbers) become 0 .. K-1.
      name: what reports and error messages call the data set.
      class_names: names of the labels. Integer labels that all lie in ``0 .. len(class_names)-1``
        are looked up in it, and names of classes without an example are dropped; any other labels
        need exactly one name for each distinct value, in sorted order. None takes the labels' own
        text.
      feature_names: one for each column of a table; None calls them x0, x1, ...
      test_indices: distinct rows of an official test split; None or empty where there is none.

    Returns:
      The :class:`Dataset`.

    Raises:
      InputError: (a ValueError) in one line: no rows or no columns, lengths that disagree, inputs
        that are not numbers, an infinite value (or one beyond float32), a column with no value at
        all, NaN in images, rows without a label, a label that looks like a regression target, only
        one class, names or test rows that do not fit.

    >>> data = from_arrays(np.array([[0.5], [1.5], [np.nan]]), ["yes", "no", "yes"])
    >>> data.labels, data.class_names, data.feature_names
    (array([1, 0, 1], dtype=int32), ('no', 'yes'), ('x0',))
    """
    array = checked_inputs(name, inputs)
    values = _label_values(name, labels)
    if len(values) != len(array):
        raise InputError(
            f"{name}: got {len(array)} rows of inputs and {len(values)} labels; "
            "give exactly one label for each row"
        )
    present, ids = np.unique(values, return_inverse=True)
    names = _class_names(name, present, class_names)
    if len(names) < 2:
        raise InputError(
            f"{name}: every row has the class {names[0]!r}; classification needs at least two"
        )
    return Dataset(
        inputs=array,
        labels=ids.astype(np.int32),
        class_names=names,
        feature_names=checked_feature_names(name, array, feature_names),
        name=name,
        test_indices=checked_test_rows(name, len(array), test_indices),
    )


def checked_inputs(name: str, value: ArrayLike) -> HostArray:
    """Inputs as a :class:`Dataset` holds them."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: inputs have dtype {array.dtype}; turn text and objects into numbers first"
        )
    if array.ndim not in (2, 3, 4):
        raise InputError(
            f"{name}: inputs have shape {array.shape}; give a table [N, F] or images [N, H, W] or "
            "[N, H, W, C]"
        )
    if array.size == 0:
        missing = "rows" if len(array) == 0 else "columns" if array.ndim == 2 else "pixels"
        raise InputError(f"{name}: there are no {missing}; inputs have shape {array.shape}")
    if array.ndim == 2 or array.dtype != np.uint8:
        # What does not fit into float32 turns into infinity here and is refused by name below.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
    if array.ndim > 2 and not np.all(np.isfinite(array)):
        bad = np.sum(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise InputError(
            f"{name}: {bad} of {len(array)} images hold NaN or infinite pixels; repair or drop them"
        )
    return array[..., None] if array.ndim == 3 else array


def checked_feature_names(
    name: str, array: HostArray, given: Sequence[str] | None
) -> tuple[str, ...]:
    """One name for each column of a table, none for images; refuses columns of no use."""
    if array.ndim == 4:
        if given is not None and len(given) > 0:
            raise InputError(
                f"{name}: images take no feature_names, got {len(given)}; leave it out"
            )
        return ()
    width = array.shape[1]
    names = tuple(f"x{i}" for i in range(width)) if given is None else tuple(map(str, given))
    if len(names) != width:
        raise InputError(
            f"{name}: got {len(names)} feature_names for {width} columns; give one each"
        )
    _check_columns(name, array, names)
    return names


def _check_columns(name: str, array: HostArray, names: Sequence[str]) -> None:
    infinite = np.sum(np.isinf(array), axis=0)
    if np.any(infinite):
        first = int(np.argmax(infinite > 0))
        raise InputError(
            f"{name}: column {names[first]!r} is infinite (or beyond float32) in {infinite[first]} "
            f"of {len(array)} rows{_others(infinite > 0)}; clip it or mark these as missing"
        )
    empty = np.all(np.isnan(array), axis=0)
    if np.any(empty):
        first = int(np.argmax(empty))
        raise InputError(
            f"{name}: column {names[first]!r} has no value in any row{_others(empty)}; drop it"
        )


def _others(columns: HostArray) -> str:
    more = int(np.sum(columns)) - 1
    return f" (like {more} more column{'s' * (more > 1)})" if more else ""


def _label_values(name: str, labels: ArrayLike | Sequence[object]) -> HostArray:
    """Labels as integers, booleans, whole floats or text, one per row and none missing."""
    # NumPy alone would turn ["a", None] or ["a", nan] into text and lose what is missing.
    values = np.asarray(labels, dtype=None if hasattr(labels, "dtype") else object)
    if values.ndim != 1:
        raise InputError(
            f"{name}: labels have shape {values.shape}; give one class per row, [N] (several "
            "labels per row are not a classification target)"
        )
    if values.dtype.kind in "OST":
        values = _from_objects(name, values.tolist())
    if values.dtype.kind not in "biufU":
        raise InputError(
            f"{name}: labels have dtype {values.dtype}; give integers, text or booleans"
        )
    if values.dtype.kind == "f":
        _check_whole(name, values)
    return values


def _from_objects(name: str, values: list[Any]) -> HostArray:
    missing = [not isinstance(value, str) and str(value) in _MISSING_TEXTS for value in values]
    _refuse_missing(name, sum(missing), len(values))
    if all(isinstance(value, Real | np.bool_) for value in values):
        return np.array(values)
    texts = [
        value.decode(errors="replace") if isinstance(value, bytes) else str(value)
        for value in values
    ]
    return np.array(texts)


def _check_whole(name: str, values: HostArray) -> None:
    _refuse_missing(name, int(np.sum(~np.isfinite(values))), len(values))
    broken = values != np.floor(values)
    if np.any(broken):
        raise InputError(
            f"{name}: labels look like a regression target: {len(np.unique(values))} different "
            f"numbers such as {values[np.argmax(broken)]:g}; use a column of classes or bin this"
        )


def _refuse_missing(name: str, missing: int, total: int) -> None:
    if missing:
        raise InputError(
            f"{name}: {missing} of {total} rows have no label; drop these rows or label them"
        )


def _text(value: Any) -> str:
    return str(int(value)) if isinstance(value, np.floating | np.integer) else str(value)


def _class_names(name: str, present: HostArray, given: Sequence[str] | None) -> tuple[str, ...]:
    texts = tuple(_text(value) for value in present)
    if given is None:
        return texts
    if present.dtype.kind in "biuf" and present[0] >= 0 and present[-1] < len(given):
        return tuple(str(given[int(value)]) for value in present)
    if len(given) != len(present):
        raise InputError(
            f"{name}: got {len(given)} class_names for {len(present)} classes "
            f"({_wording.listed(texts)}); give one name for each"
        )
    return tuple(map(str, given))


def checked_test_rows(name: str, rows: int, given: ArrayLike | None) -> HostArray | None:
    """Rows of the official test split; None where there is none."""
    indices = np.asarray([] if given is None else given)
    if indices.size == 0:
        return None
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InputError(
            f"{name}: test_indices have shape {indices.shape} and dtype {indices.dtype}; give row "
            "numbers [M] (np.flatnonzero turns a mask into them)"
        )
    if indices.min() < 0 or indices.max() >= rows or len(np.unique(indices)) != len(indices):
        raise InputError(f"{name}: test_indices must be distinct row numbers from 0 to {rows - 1}")
    if len(indices) == rows:
        raise InputError(f"{name}: every row is in the test split; leave some to train on")
    return indices.astype(np.int64)
