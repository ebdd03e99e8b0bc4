"""Data sets from NumPy archives."""

import functools
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbalance._check import InputError
from jaxbalance._types import HostArray
from jaxbalance.data import _columns, _paths, _wording
from jaxbalance.data._dataset import Dataset, Parts, from_arrays

_PAIRS = (("X", "y"), ("inputs", "labels"))
_PARTS = ("x_train", "y_train", "x_test", "y_test")
_OF_IMAGES = ("train_images", "train_labels", "test_images", "test_labels")
_VALIDATION = {"x_val": "val_images", "y_val": "val_labels"}
_EXTRAS = ("feature_names", "class_names", "is_test", "is_categorical", "cat_levels_json")


def read_npz(path: str | os.PathLike[str], *, target: str | None = None) -> Dataset:
    """Read a data set from an .npz archive; nothing in it is ever unpickled.

    The archive holds inputs and labels as ``X`` and ``y``, as ``inputs`` and ``labels``, in parts
    as ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or as MedMNIST has them:
    ``train_images``, ``train_labels``, ``test_images``, ``test_labels``, and ``val_images`` and
    ``val_labels``, which are taken for more to train on. Inputs are what :func:`from_arrays` takes;
    labels are ``[N]`` or ``[N, 1]``. It may also hold ``feature_names``, ``class_names``,
    ``is_test`` (``[N]``, the official test rows) and ``is_categorical`` (``[F]``): such a column
    holds whole numbers, the codes of its levels, and becomes one column "name=level" for each level
    that occurs. The levels' text is ``json.loads(cat_levels_json)[feature_name][code]`` where that
    key is there, else the code. NaN is the level "missing".

    Args:
      path: the archive.
      target: the key of the labels instead of ``y`` or ``labels``; ``class_names`` is then not
        used. None takes the usual key.

    Returns:
      The :class:`Dataset`, named after the file.

    Raises:
      InputError: (a ValueError) in one line: no archive or a damaged one, keys missing (it lists
        those there are), arrays of Python objects, codes without a level, a categorical column with
        more than 100 levels, or whatever :func:`from_arrays` refuses.

    >>> import tempfile
    >>> file = tempfile.NamedTemporaryFile(suffix=".npz")
    >>> np.savez(file, X=np.eye(3), y=np.array([5, 7, 7]))
    >>> _ = file.seek(0)
    >>> read_npz(file.name).class_names
    ('5', '7')
    >>> file.close()
    """
    return from_arrays(**archive_parts(path, target)._asdict())


def archive_parts(path: str | os.PathLike[str], target: str | None) -> Parts:
    """What an archive holds, its categorical columns as columns of levels."""
    file = _paths.existing(path)
    name = _paths.stem(file)
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file}: is no .npz archive or a cut-off one; save it with numpy.savez")
    arrays = _joined_parts(name, _arrays(file, target))
    inputs, labels = arrays["inputs"], arrays["labels"]
    names: Sequence[str] | None = _texts(arrays.get("feature_names"))
    if "is_categorical" in arrays and np.any(arrays["is_categorical"]):
        inputs, names = _expanded(name, arrays, names)
    return Parts(
        inputs=inputs,
        labels=labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels,
        name=name,
        class_names=_texts(arrays.get("class_names")) if target is None else None,
        feature_names=names,
        test_indices=_test_rows(name, arrays, len(labels)),
    )


def stacked(name: str, what: str, train: HostArray, test: HostArray) -> HostArray:
    """The training rows and then the test rows."""
    if train.ndim == 0 or test.ndim == 0 or train.shape[1:] != test.shape[1:]:
        raise InputError(
            f"{name}: {what} to train on have shape {train.shape}, those to test on {test.shape}; "
            "their rows must have one shape"
        )
    return np.concatenate([train, test])


def _arrays(file: os.PathLike[str], target: str | None) -> dict[str, HostArray]:
    """What the archive holds of inputs, labels (or the four parts) and extras, by those names."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            keys = _keys(file, archive.files, target)
            extras = {key: key for key in _EXTRAS if key in archive.files}
            return {name: _array(file, archive, key) for name, key in (keys | extras).items()}
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file}: is damaged ({_wording.reason(error)}); save or fetch it again"
        ) from error


def _array(file: os.PathLike[str], archive: Mapping[str, HostArray], key: str) -> HostArray:
    try:
        return archive[key]
    except ValueError as error:
        raise InputError(
            f"{file}: the key {key!r} cannot be read ({_wording.reason(error)}); save plain arrays "
            "of numbers or text"
        ) from error


def _keys(file: os.PathLike[str], there: Sequence[str], target: str | None) -> dict[str, str]:
    if target is not None and target not in there:
        close = _wording.suggestion(target, there)
        raise InputError(f"{file}: no key {target!r}{close}; it holds {_wording.listed(there)}")
    for inputs, usual in _PAIRS:
        labels = usual if target is None else target
        if inputs in there and labels in there:
            return {"inputs": inputs, "labels": labels}
    for parts in (_PARTS, _OF_IMAGES) if target is None else ():
        if set(parts) <= set(there):
            more = _VALIDATION if set(_VALIDATION.values()) <= set(there) else {}
            return dict(zip(_PARTS, parts, strict=True)) | more
    usual = f"X and y, inputs and labels, {', '.join(_PARTS)}, or {', '.join(_OF_IMAGES)}"
    wanted = "X or inputs" if target else usual
    raise InputError(f"{file}: needs the keys {wanted}; it holds {_wording.listed(there)}")


def _joined_parts(name: str, arrays: dict[str, HostArray]) -> dict[str, HostArray]:
    if "inputs" in arrays:
        return arrays
    parts = [part for part in ("train", "val", "test") if f"x_{part}" in arrays]
    for part in parts:
        inputs, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if inputs.ndim and labels.ndim and len(inputs) != len(labels):
            raise InputError(
                f"{name}: the {part} part has {len(inputs)} inputs and {len(labels)} labels; give "
                "one label for each"
            )
    inputs = functools.reduce(
        functools.partial(stacked, name, "inputs"), (arrays[f"x_{p}"] for p in parts)
    )
    labels = functools.reduce(
        functools.partial(stacked, name, "labels"), (arrays[f"y_{p}"] for p in parts)
    )
    is_test = np.arange(len(inputs)) >= len(inputs) - len(arrays["x_test"])
    return arrays | {"inputs": inputs, "labels": labels, "is_test": is_test}


def _texts(names: HostArray | None) -> list[str] | None:
    return None if names is None else [str(one) for one in np.ravel(names)]


def _test_rows(name: str, arrays: Mapping[str, HostArray], rows: int) -> HostArray | None:
    mask = arrays.get("is_test")
    if mask is None:
        return None
    if mask.shape != (rows,) or not np.all((mask == 0) | (mask == 1)):
        raise InputError(
            f"{name}: is_test has shape {mask.shape} and dtype {mask.dtype}; give one True or "
            f"False for each of the {rows} rows"
        )
    return np.flatnonzero(mask)


def _expanded(
    name: str, arrays: Mapping[str, HostArray], names: Sequence[str] | None
) -> tuple[HostArray, Sequence[str]]:
    inputs, is_categorical = arrays["inputs"], arrays["is_categorical"]
    width = inputs.shape[1] if inputs.ndim == 2 else 0
    names = [f"x{i}" for i in range(width)] if names is None else names
    if inputs.dtype.kind not in "biuf" or is_categorical.shape != (width,) or len(names) != width:
        raise InputError(
            f"{name}: inputs of dtype {inputs.dtype} and shape {inputs.shape} do not go with "
            f"is_categorical of shape {is_categorical.shape} and {len(names)} feature_names; "
            "give a table of numbers with one of each per column"
        )
    levels = _levels(name, arrays.get("cat_levels_json"))
    columns = [
        _coded(name, label, column, levels.get(label)) if coded else _columns.numeric(label, column)
        for label, column, coded in zip(names, inputs.T, is_categorical, strict=True)
    ]
    table = _columns.joined(name, columns)
    return table.values, table.names


def _levels(name: str, text: HostArray | None) -> dict[str, Any]:
    try:
        levels = json.loads("{}" if text is None else str(text))
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: cat_levels_json is no JSON ({error}); repair it") from error
    if not isinstance(levels, dict) or not all(isinstance(one, list) for one in levels.values()):
        raise InputError(f"{name}: cat_levels_json must map each column's name to a list of levels")
    return levels


def _coded(
    name: str, label: str, column: HostArray, levels: Sequence[object] | None
) -> _columns.Columns:
    missing = np.isnan(column)
    codes = np.where(missing, 0, column)
    most = np.inf if levels is None else len(levels)
    if np.any((codes != np.floor(codes)) | (codes < 0) | ((codes >= most) & ~missing)):
        raise InputError(
            f"{name}: column {label!r} is categorical but holds other numbers than the codes of "
            "its levels, 0, 1, ...; repair the codes or is_categorical"
        )
    texts = [int(code) if levels is None else levels[int(code)] for code in codes]
    return _columns.categorical(name, label, texts, missing)
