"""Data sets whose target is a number."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import ArrayLike, HostArray
from jaxbalance.data import _paths
from jaxbalance.data._csv import table_parts
from jaxbalance.data._dataset import (
    Parts,
    checked_feature_names,
    checked_inputs,
    checked_test_rows,
)
from jaxbalance.data._npz import archive_parts


class TargetDataset(NamedTuple):
    """A regression data set on the host, as :func:`from_target_arrays` leaves it.

    Attributes:
      inputs: as those of a :class:`Dataset`.
      targets: finite numbers ``[N]``, float64, at least two of them different.
      feature_names: the F column names; empty for images.
      name: what reports call the data set.
      test_indices: the rows of the official test split, int64; None where there is none.
    """

    inputs: HostArray
    targets: HostArray
    feature_names: tuple[str, ...]
    name: str
    test_indices: HostArray | None


def from_target_arrays(
    inputs: ArrayLike,
    targets: ArrayLike | Sequence[float],
    *,
    name: str = "arrays",
    feature_names: Sequence[str] | None = None,
    test_indices: ArrayLike | None = None,
) -> TargetDataset:
    """Check arrays of a regression and bring them into one form.

    Args:
      inputs: as of :func:`from_arrays`.
      targets: one number per row, ``[N]``, integers or floats.
      name: what reports and error messages call the data set.
      feature_names: one for each column of a table; None calls them x0, x1, ...
      test_indices: distinct rows of an official test split; None or empty where there is none.

    Returns:
      The :class:`TargetDataset`.

    Raises:
      InputError: (a ValueError) in one line: targets that are text, booleans or anything else that
        is no number, that are missing, infinite or all equal, lengths that disagree, or whatever
        :func:`from_arrays` refuses of inputs, names and test rows.

    >>> from_target_arrays(np.array([[0.5], [1.5]]), [10, 12.5]).targets
    array([10. , 12.5])
    """
    array = checked_inputs(name, inputs)
    values = _numbers(name, targets)
    if len(values) != len(array):
        raise InputError(
            f"{name}: got {len(array)} rows of inputs and {len(values)} targets; "
            "give exactly one target for each row"
        )
    return TargetDataset(
        inputs=array,
        targets=values,
        feature_names=checked_feature_names(name, array, feature_names),
        name=name,
        test_indices=checked_test_rows(name, len(array), test_indices),
    )


def load_targets(source: str, *, target: str | None = None) -> TargetDataset:
    r"""Read a regression data set from a table or an archive.

    Args:
      source: a path ending in .npz (as :func:`read_npz`), .csv, .csv.gz, .tsv or .tsv.gz (as
        :func:`read_csv`), or a folder that holds one .npz of its own name. The embedded and TFDS
        sets have classes.
      target: the column (csv) or key (npz) that holds the numbers; None finds the usual names, but
        refuses the ids of an archive that also names its classes.

    Returns:
      The :class:`TargetDataset`, named after the source.

    Raises:
      InputError: (a ValueError) in one line: nothing there, an unknown ending, or whatever the
        reader or :func:`from_target_arrays` found wrong.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile("w", suffix=".csv")
    >>> _ = file.write("size,price\n1.5,10\n2,12.5\n")
    >>> file.flush()
    >>> load_targets(file.name, target="price").targets
    array([10. , 12.5])
    >>> file.close()
    """
    parts = _parts(source, target)
    if parts.class_names is not None:
        raise InputError(
            f"{source}: its usual labels are ids of named classes; say which key holds the numbers "
            "to predict with --target NAME"
        )
    return from_target_arrays(
        parts.inputs,
        parts.labels,
        name=parts.name,
        feature_names=parts.feature_names,
        test_indices=parts.test_indices,
    )


def _parts(source: str, target: str | None) -> Parts:
    if source == "digits" or source.startswith("tfds:"):
        raise InputError(f"{source}: has classes, no numbers to predict; give a table or an .npz")
    path = _paths.existing(source)
    if path.is_dir():
        path = _paths.existing(path / f"{path.resolve().name}.npz")
    if path.name.lower().endswith(".npz"):
        return archive_parts(path, target)
    if path.name.lower().endswith(_paths.TABLE_ENDINGS):
        return table_parts(path, target)
    raise InputError(
        f"{source}: unknown ending; give a file ending in .npz, {', '.join(_paths.TABLE_ENDINGS)} "
        "or a folder"
    )


def _numbers(name: str, targets: ArrayLike | Sequence[float]) -> HostArray:
    values = np.asarray(targets)
    if values.ndim != 1:
        raise InputError(f"{name}: targets have shape {values.shape}; give one number per row, [N]")
    if values.dtype.kind not in "iuf":
        raise InputError(
            f"{name}: targets have dtype {values.dtype}, not numbers; turn them into numbers or "
            "compare classifiers instead, without --task regression"
        )
    values = values.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(values))
    if len(broken):
        raise InputError(
            f"{name}: {len(broken)} of {len(values)} targets are missing or infinite, the first in "
            f"row {broken[0]}; drop these rows or repair them"
        )
    if values.size and values.min() == values.max():
        raise InputError(f"{name}: every target is {values[0]:g}; there is nothing to predict")
    return values
